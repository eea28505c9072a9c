//! The database as a process, killed at random instants: after recovery it holds what was acknowledged, and nothing that
//! its clients did not do.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use mover_pagedb::model::balance;
use mover_pagedb::random::Random;
use mover_pagedb::workload::accounts;
use mover_pagedb::{Contents, Database, Options, Workload};
use mover_source::disk::{DirDisk, Disk};

use crate::support::*;

const CLIENTS: u64 = 3;

/// Transactions that a run acknowledges before it is killed, unless that is early: from so many on, and up to so many more.
const ACKNOWLEDGED_MIN: u64 = 10;
const ACKNOWLEDGED_MORE: u64 = 30;

/// Runs the process for a while, kills it, and returns what it acknowledged last of each client.
fn run_and_kill(directory: &Path, seed: u64, random: &mut Random) -> BTreeMap<u64, i64> {
    let process = Command::new(env!("CARGO_BIN_EXE_pagedb-run"))
        .args([
            directory.to_str().unwrap(),
            &seed.to_string(),
            &CLIENTS.to_string(),
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the database starts");
    let mut process = Killed(process);
    let out = process.0.stdout.take().expect("stdout");
    // Sometimes before it has recovered, mostly after.
    let early = random.below(4) == 0;
    let (sender, transactions) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut acknowledged = BTreeMap::new();
        for line in BufReader::new(out).lines() {
            let line = line.expect("a line");
            if let Some((client, count)) = line.split_once(' ') {
                acknowledged.insert(client.parse().unwrap(), count.parse().unwrap());
                // Nobody listens any more when the process is about to be killed.
                let _ = sender.send(());
            }
        }
        acknowledged
    });
    let (wait_ms, wanted) = match early {
        true => (random.below(30), 0),
        false => (
            40 + random.below(160),
            ACKNOWLEDGED_MIN + random.below(ACKNOWLEDGED_MORE),
        ),
    };
    // Where the disk is slow, the time alone would end runs that have done next to nothing.
    std::thread::sleep(Duration::from_millis(wait_ms));
    for _ in 0..wanted {
        transactions
            .recv_timeout(Duration::from_secs(60))
            .expect("a transaction is acknowledged");
    }
    drop(process);
    reader.join().expect("reader")
}

#[test]
fn a_killed_database_recovers_what_it_acknowledged() {
    let mut transactions = 0;
    for seed in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let mut random = Random::new(seed);
        let mut acknowledged: BTreeMap<u64, i64> = BTreeMap::new();
        for _ in 0..14 {
            for (client, count) in run_and_kill(dir.path(), seed, &mut random) {
                acknowledged.insert(client, count);
            }
        }
        let disk: Arc<dyn Disk> = Arc::new(locked(dir.path()));
        let options = Options {
            pool_pages: 32,
            journal: false,
        };
        let (database, _) = Database::open(disk, options).unwrap();
        let contents = database.contents().unwrap();
        // Each client's own count says how far it came; the model goes as far.
        let mut model = Contents::default();
        model.apply(&accounts(seed));
        for client in 0..CLIENTS {
            let row = contents
                .0
                .get(&Workload::counter(client))
                .map(|rows| balance(&rows[&0]));
            let count = row.unwrap_or(0);
            let told = acknowledged.get(&client).copied().unwrap_or(0);
            assert!(
                count >= told,
                "client {client}: {told} acknowledged, {count} there"
            );
            let mut workload = Workload::new(seed, client);
            for _ in 0..count {
                model.apply(&workload.next_transaction());
            }
            transactions += count;
        }
        assert_same(&contents, &model);
        // Another process is kept out while this one has the store.
        assert!(DirDisk::open_locked(dir.path()).is_err());
    }
    assert!(transactions > 300, "{transactions} transactions in all");
}
