//! A PostgreSQL 15 cluster that was lost comes back: page checksums, indexes and rows are judged by
//! PostgreSQL's own tools.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs;

use mover_tests::mover::{Protection, Repo, exit};
use mover_tests::postgres::Postgres;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;

const ROWS: [&str; 4] = [
    "select count(*), md5(string_agg(a::text, e'\\n' order by aid)) from pgbench_accounts a",
    "select count(*), md5(string_agg(b::text, e'\\n' order by bid)) from pgbench_branches b",
    "select count(*), md5(string_agg(t::text, e'\\n' order by tid)) from pgbench_tellers t",
    "select count(*), md5(string_agg(h::text, e'\\n' order by h::text)) from pgbench_history h",
];

#[test]
fn lost_cluster_comes_back_intact() {
    let scratch = Scratch::new("postgres");
    let mut server = Postgres::create(&scratch.dir("cluster"));
    server.start();
    server.client("pgbench", ["-i", "-q", "-s", "10", "postgres"]);
    server.client("pgbench", ["-n", "-c", "2", "-t", "500", "postgres"]);
    server.query("create extension amcheck");
    let before: Vec<String> = ROWS.iter().map(|sql| server.query(sql)).collect();
    assert!(
        before[0].starts_with("1000000|"),
        "the truth itself is incomplete: {}",
        before[0]
    );
    server.stop();

    let repo = Repo::create(&scratch, "repo", Protection::Identity);
    let data = server.data().to_path_buf();
    let files = Tree::read(&data);
    repo.backup(&data).summary();
    fs::remove_dir_all(&data).expect("the cluster is lost");

    repo.restore("latest", &data).summary();
    files.assert_same(&Tree::read(&data), "restored files");

    server.client(
        "pg_checksums",
        ["--check".as_ref(), "-D".as_ref(), data.as_os_str()],
    );
    server.start();
    server.client(
        "pg_amcheck",
        ["--all", "--heapallindexed", "--install-missing"],
    );
    let after: Vec<String> = ROWS.iter().map(|sql| server.query(sql)).collect();
    assert_eq!(before, after);
    server.client("pgbench", ["-n", "-c", "2", "-t", "50", "postgres"]);
    server.stop();
    repo.verify().expect(exit::OK);
}
