//! The database as a process, to be killed: `pagedb-run DIRECTORY SEED CLIENTS` makes or recovers the store there, says
//! `open`, and then a line `CLIENT COUNT` after each transaction of a client that was acknowledged. With `tracked` as a
//! fourth argument it marks its changes in the tracker, and says `at LSN` up to where the log is durable instead.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.
#![allow(clippy::print_stdout)] // Its output is its interface.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use mover_base::Result;
use mover_pagedb::workload::{ACCOUNTS, Workload, accounts};
use mover_pagedb::{Database, Options};
use mover_source::disk::{DirDisk, Disk};
use mover_source::pages::{Store, new_identity};
use mover_source::wal::SegmentSize;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [directory, seed, clients, rest @ ..] = &args[..] else {
        panic!("usage: pagedb-run DIRECTORY SEED CLIENTS [tracked]");
    };
    let tracked = rest.first().is_some_and(|word| word == "tracked");
    let (seed, clients): (u64, u64) = (seed.parse().unwrap(), clients.parse().unwrap());
    let database = open(Path::new(directory), seed, tracked).expect("the database opens");
    tell("open");
    let done = database.contents().expect("contents");
    std::thread::scope(|scope| {
        for client in 0..clients {
            let (database, done) = (&database, &done);
            scope.spawn(move || {
                let counter = Workload::counter(client);
                let row = done.0.get(&counter).map(|rows| rows[&0].clone());
                let before = row.map_or(0, |row| mover_pagedb::model::balance(&row));
                let mut workload = Workload::new(seed, client);
                for _ in 0..before {
                    workload.next_transaction();
                }
                for count in before + 1.. {
                    let ops = workload.next_transaction();
                    let end = database.commit(&ops).expect("commit");
                    if tracked {
                        tell(&format!("at {end}"));
                    } else {
                        tell(&format!("{client} {count}"));
                    }
                }
            });
        }
        scope.spawn(|| {
            loop {
                std::thread::sleep(std::time::Duration::from_millis(15));
                database.checkpoint().expect("checkpoint");
            }
        });
    });
}

fn open(directory: &Path, seed: u64, tracked: bool) -> Result<Database> {
    let disk: Arc<dyn Disk> = Arc::new(DirDisk::open_locked(directory)?);
    let options = Options {
        pool_pages: 32,
        journal: false,
    };
    if !directory.join("control").exists() {
        let mut id = [7; 32];
        id[..8].copy_from_slice(&seed.to_le_bytes());
        Store::create(
            Arc::clone(&disk),
            new_identity(id, SegmentSize::new(18).expect("size")),
        )?;
    }
    let (mut database, _) = Database::open(disk, options)?;
    if tracked {
        database.track(directory, None)?;
    }
    if !database.contents()?.0.contains_key(ACCOUNTS) {
        database.commit(&accounts(seed))?;
    }
    Ok(database)
}

fn tell(line: &str) {
    // One write: whoever reads sees whole lines or none.
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes())
        .expect("stdout");
    out.flush().expect("stdout");
}
