//! A PostgreSQL 15 cluster that was lost comes back: page checksums, indexes and rows are judged by
//! PostgreSQL's own tools.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs;

use mover_tests::mover::{Protection, Repo, exit};
use mover_tests::postgres::Postgres;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;

#[test]
fn lost_cluster_comes_back_intact() {
    let scratch = Scratch::new("postgres");
    let mut server = Postgres::create(&scratch.dir("cluster"));
    server.start();
    server.fill(10);
    let before = server.rows();
    server.stop();

    let repo = Repo::create(&scratch, "repo", Protection::Identity);
    let data = server.data().to_path_buf();
    let files = Tree::read(&data);
    repo.backup(&data).summary();
    fs::remove_dir_all(&data).expect("the cluster is lost");

    repo.restore("latest", &data).summary();
    files.assert_same(&Tree::read(&data), "restored files");

    server.start_intact(&before);
    server.stop();
    repo.verify().expect(exit::OK);
}
