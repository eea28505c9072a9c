//! Branches of a database are stored for what differs: the share that the tool tells is the share of equal blocks that an
//! independent count finds, it is above the promised 40 % for a workload of branches, and every branch comes back.
//! The same at the size of a database is measured by `mover-bench-dedup`, see docs/benchmarks.md.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use mover_tests::blocks::{BLOCK_BYTES, Blocks, Count};
use mover_tests::mover::{Protection, Repo, exit};
use mover_tests::postgres::Postgres;
use mover_tests::random::Random;
use mover_tests::run;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;
use serde_json::Value;

/// What the project promises for branches.
const PROMISED_SHARE: f64 = 0.40;
/// How far the tool may be from the count: a set of its index that is full forgets its oldest block, which meets fewer
/// than one block in a thousand of a source whose index is not at its limit.
const TOLERANCE: f64 = 0.001;

/// The share in the summary, which must be that of the count.
#[track_caller]
fn share(summary: &Value, counted: Count) -> f64 {
    let share = summary["deduplicated_share"].as_f64().expect("a share");
    let possible = counted.known_share();
    assert!(
        (share - possible).abs() <= TOLERANCE,
        "{share} instead of {possible} of {counted:?}: {summary}"
    );
    let new = summary["bytes_new"].as_u64().expect("bytes_new") / BLOCK_BYTES as u64;
    let more = new
        .checked_sub(counted.new)
        .expect("a block was not stored");
    assert!(
        more as f64 <= TOLERANCE * counted.blocks as f64,
        "{new} blocks stored instead of {}: {summary}",
        counted.new
    );
    share
}

#[test]
fn branches_of_a_postgresql_database_are_stored_for_what_differs() {
    let scratch = Scratch::new("dedup-branches");
    let mut server = Postgres::create(&scratch.dir("cluster"));
    server.start();
    // The log in proportion to so small a database: else it is most of the cluster.
    for setting in ["min_wal_size = '32MB'", "max_wal_size = '64MB'"] {
        server.query(&format!("alter system set {setting}"));
    }
    server.query("select pg_reload_conf()");
    server.query("create database main");
    server.client("pgbench", ["-i", "-q", "-s", "4", "main"]);
    for branch in ["one", "two"] {
        server.query(&format!(
            "create database {branch} template main strategy file_copy"
        ));
    }
    for (seed, database) in ["main", "one", "two"].into_iter().enumerate() {
        let seed = seed.to_string();
        server.client(
            "pgbench",
            ["-n", "-t", "200", "--random-seed", &seed, database],
        );
    }
    server.stop();

    let data = server.data();
    let truth = Tree::read(data);
    let repo = Repo::create(&scratch, "repo", Protection::Identity);
    let share = share(&repo.backup(data).summary(), Blocks::default().add(data));
    assert!(share > PROMISED_SHARE, "{share}");
    let target = scratch.join("target");
    repo.restore("latest", &target).summary();
    truth.assert_same(&Tree::read(&target), "the cluster with its branches");
}

/// Changes 16 bytes in a twentieth of a file's blocks.
fn diverge(file: &Path, random: &mut Random) {
    let file = File::options().write(true).open(file).expect("file opens");
    let blocks = file.metadata().expect("metadata").len() / BLOCK_BYTES as u64;
    let mut changed = BTreeSet::new();
    while (changed.len() as u64) < blocks / 20 {
        changed.insert(random.below(blocks));
    }
    for block in changed {
        let at = block * BLOCK_BYTES as u64 + random.below(BLOCK_BYTES as u64 - 16);
        file.write_all_at(&random.bytes(16), at).expect("changed");
    }
}

#[test]
fn branches_at_their_own_paths_share_what_none_of_them_changed() {
    let scratch = Scratch::new("dedup-paths");
    let mut random = Random::new(0x6272_616e_6368);
    let names = ["main", "one", "two"];
    let tables = ["table-1", "table-2"];
    let main = scratch.dir("main");
    for table in tables {
        fs::write(main.join(table), random.rows(12 << 20)).expect("file");
    }
    for branch in &names[1..] {
        let (from, to) = (main.as_os_str(), scratch.join(branch));
        run::run("cp", ["-a".as_ref(), from, to.as_os_str()]);
    }
    for name in names {
        for table in tables {
            diverge(&scratch.join(name).join(table), &mut random);
        }
    }

    let repo = Repo::create(&scratch, "repo", Protection::Identity);
    let mut seen = Blocks::default();
    let mut made = Vec::new();
    for name in names {
        let dir = scratch.join(name);
        let summary = repo.backup(&dir).summary();
        let share = share(&summary, seen.add(&dir));
        assert!(name == "main" || share > PROMISED_SHARE, "{name}: {share}");
        made.push(summary["backup_id"].as_str().expect("id").to_string());
    }
    for (name, id) in names.iter().zip(&made) {
        let target = scratch.join(format!("{name}-restored"));
        repo.restore(id, &target).summary();
        Tree::read(&scratch.join(name)).assert_same(&Tree::read(&target), name);
    }
    repo.verify().expect(exit::OK);
}
