//! A HeliosDB Nano database that was lost comes back with every row, and lives on.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs;

use mover_tests::accounts;
use mover_tests::mover::{Protection, Repo, exit};
use mover_tests::nano::Nano;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;

#[test]
fn lost_database_comes_back_with_every_row() {
    let scratch = Scratch::new("nano");
    let logs = scratch.dir("logs");
    let data = scratch.join("data");

    let server = Nano::start(&data, &logs);
    accounts::fill(&server, &scratch.join("fill.sql"), 10);
    let before = accounts::dump(&server);
    server.stop();

    let repo = Repo::create(&scratch, "repo", Protection::Passphrase);
    let files = Tree::read(&data);
    repo.backup(&data).summary();
    fs::remove_dir_all(&data).expect("the database is lost");

    repo.restore("latest", &data).summary();
    files.assert_same(&Tree::read(&data), "restored files");

    let server = Nano::start(&data, &logs);
    accounts::lives_on(&server, &before);
    server.stop();
    repo.verify().expect(exit::OK);
}
