//! Crashes at every instant: what was acknowledged is there, what is there is a prefix of what was done.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use mover_base::{HistoryId, Lsn};
use mover_pagedb::random::Random;
use mover_pagedb::{Database, Journal, Options, SimDisk, Workload};
use mover_source::pages::{Store, read_control};

use crate::support::*;

/// Runs transactions and checkpoints until the power is off; returns the journal and the last acknowledged position.
fn run_until_off(
    database: &Database,
    workload: &mut Workload,
    random: &mut Random,
    acknowledged: Lsn,
) -> (Journal, Lsn) {
    run_until(database, workload, random, acknowledged, u64::MAX)
}

/// The same, and ends after so many transactions at the latest.
fn run_until(
    database: &Database,
    workload: &mut Workload,
    random: &mut Random,
    mut acknowledged: Lsn,
    transactions: u64,
) -> (Journal, Lsn) {
    for _ in 0..transactions {
        match database.commit(&workload.next_transaction()) {
            Ok(end) => acknowledged = end,
            Err(_) => break,
        }
        if random.below(12) == 0 && database.checkpoint().is_err() {
            break;
        }
    }
    (database.journal(), acknowledged)
}

/// Crashes after `operations` more operations, again and again, on one history.
fn lives(seed: u64, log2: u8, pool_pages: usize, crashes: u64) -> u64 {
    let mut random = Random::new(seed);
    let options = Options {
        pool_pages,
        journal: true,
    };
    let mut disk = SimDisk::new();
    let database = create(&disk, seed, log2, options);
    let mut journal = database.journal();
    let mut acknowledged = database.writer().durable();
    drop(database);
    let mut torn = 0;
    for life in 0..crashes {
        let Ok((database, end)) = Database::open(arc(&disk), options) else {
            let error = Database::open(arc(&disk), options).err().unwrap();
            panic!("seed {seed}, life {life}: {error}");
        };
        assert!(
            end >= acknowledged,
            "seed {seed}, life {life}: {acknowledged} was acknowledged, {end} is there"
        );
        journal.cut(end);
        compare(&database, &disk, &journal, end);
        // Transactions that the crash took are done anew, from the same client.
        let mut workload = Workload::new(seed, 0);
        for _ in 0..journal.0.len() - 1 {
            workload.next_transaction();
        }
        database.set_journal(journal);
        disk.power_off_after(1 + random.below(400));
        (journal, acknowledged) = run_until_off(&database, &mut workload, &mut random, end);
        drop(database);
        // The process alone, sometimes: what it did not sync is there, and is lost if the machine goes next.
        if random.below(3) == 0 {
            disk.restart();
        } else {
            disk = disk.crash(random.bits());
        }
        // A crash while recovering from a crash, sometimes.
        while random.below(3) == 0 {
            disk.power_off_after(1 + random.below(60));
            let _ = Database::open(arc(&disk), options);
            if random.below(3) == 0 {
                disk.restart();
            } else {
                disk = disk.crash(random.bits());
            }
            torn += 1;
        }
    }
    torn
}

#[test]
fn a_crash_at_any_instant_loses_nothing_acknowledged() {
    let mut interrupted = 0;
    for seed in 0..24 {
        let log2 = [14, 15, 16, 20][seed as usize % 4];
        let pool = [8, 40, 200][seed as usize % 3];
        interrupted += lives(seed, log2, pool, 25);
    }
    assert!(
        interrupted > 50,
        "recoveries that were cut off: {interrupted}"
    );
}

/// Every single operation of one short history is the last, with several outcomes each.
#[test]
fn every_operation_may_be_the_last() {
    let options = Options {
        pool_pages: 12,
        journal: true,
    };
    let total = {
        let disk = SimDisk::new();
        let database = create(&disk, 5, 15, options);
        let before = disk.operations();
        run(&database, &mut Workload::new(5, 0), &mut Random::new(5), 30);
        disk.operations() - before
    };
    assert!(total > 100, "{total} operations");
    for last in 0..total {
        for outcome in 0..3 {
            let disk = SimDisk::new();
            let database = create(&disk, 5, 15, options);
            let begun = database.writer().durable();
            disk.power_off_after(last);
            let mut random = Random::new(5);
            let mut workload = Workload::new(5, 0);
            let mut acknowledged = begun;
            for _ in 0..30 {
                match database.commit(&workload.next_transaction()) {
                    Ok(end) => acknowledged = end,
                    Err(_) => break,
                }
                if random.below(20) == 0 && database.checkpoint().is_err() {
                    break;
                }
            }
            let mut journal = database.journal();
            drop(database);
            let disk = disk.crash(last * 3 + outcome);
            let (database, end) = Database::open(arc(&disk), options)
                .unwrap_or_else(|error| panic!("operation {last}, outcome {outcome}: {error}"));
            assert!(end >= acknowledged, "operation {last}, outcome {outcome}");
            journal.cut(end);
            compare(&database, &disk, &journal, end);
        }
    }
}

/// The process is killed at every operation, and the machine loses power while the next one works.
#[test]
fn what_a_killed_process_did_not_sync_is_not_relied_on() {
    let options = Options {
        pool_pages: 12,
        journal: true,
    };
    let run_on = |disk: &SimDisk, journal: Journal| -> mover_base::Result<(Journal, Lsn)> {
        let (database, end) = Database::open(arc(disk), options)?;
        let mut journal = journal;
        journal.cut(end);
        let mut workload = Workload::new(5, 0);
        for _ in 0..journal.0.len() - 1 {
            workload.next_transaction();
        }
        database.set_journal(journal);
        let mut random = Random::new(6);
        Ok(run_until(&database, &mut workload, &mut random, end, 12))
    };
    let total = {
        let disk = SimDisk::new();
        let database = create(&disk, 5, 14, options);
        let before = disk.operations();
        run(&database, &mut Workload::new(5, 0), &mut Random::new(5), 20);
        disk.operations() - before
    };
    for last in 0..total {
        for outcome in 0..4 {
            let disk = SimDisk::new();
            let database = create(&disk, 5, 14, options);
            let begun = database.writer().durable();
            disk.power_off_after(last);
            let (journal, acknowledged) = run_until(
                &database,
                &mut Workload::new(5, 0),
                &mut Random::new(5),
                begun,
                20,
            );
            drop(database);
            let context = format!("operation {last}, outcome {outcome}");
            disk.restart();
            // Some of the next process's work is done before the power goes, or all of it.
            disk.power_off_after([4, 40, 400, 4000][outcome as usize]);
            let (journal, acknowledged) =
                run_on(&disk, journal.clone()).unwrap_or((journal, acknowledged));
            let disk = disk.crash(last * 4 + outcome);
            let (database, end) = Database::open(arc(&disk), options)
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            assert!(end >= acknowledged, "{context}");
            let mut journal = journal;
            journal.cut(end);
            compare(&database, &disk, &journal, end);
        }
    }
}

#[test]
fn making_a_store_may_be_cut_off_anywhere() {
    let total = {
        let disk = SimDisk::new();
        Store::create(arc(&disk), identity(1, 14)).unwrap();
        disk.operations()
    };
    for last in 0..=total {
        for outcome in 0..8 {
            let disk = SimDisk::new();
            disk.power_off_after(last);
            let made = Store::create(arc(&disk), identity(1, 14)).is_ok();
            let disk = disk.crash(last * 8 + outcome);
            match read_control(&disk) {
                Ok(_) => {
                    Store::open(arc(&disk)).unwrap().recover(4).unwrap();
                }
                Err(_) => {
                    assert!(!made, "operation {last}");
                    let mut store = Store::create(arc(&disk), identity(1, 14)).unwrap();
                    store.recover(4).unwrap();
                }
            }
        }
    }
}

/// A new history begins where the old one ended, and may be cut off while it is begun.
#[test]
fn a_new_history_goes_on_where_the_old_one_ended() {
    let options = Options::default();
    let origin = SimDisk::new();
    let database = create(&origin, 7, 15, options);
    run(&database, &mut Workload::new(7, 0), &mut Random::new(7), 40);
    let journal = database.journal();
    database.checkpoint().unwrap();
    drop(database);
    let new = HistoryId([0xee; 16]);
    let total = {
        let disk = origin.copy();
        let mut store = Store::open(arc(&disk)).unwrap();
        let recovered = store.recover(50).unwrap();
        let before = disk.operations();
        store.begin_history(recovered, new).unwrap();
        disk.operations() - before
    };
    for last in 0..=total + 1 {
        for outcome in 0..4 {
            let disk = origin.copy();
            let mut store = Store::open(arc(&disk)).unwrap();
            let recovered = store.recover(50).unwrap();
            let end = recovered.log.end;
            disk.power_off_after(last);
            let done = store.begin_history(recovered, new).is_ok();
            let disk = disk.crash(last * 4 + outcome);
            let (database, _) = Database::open(arc(&disk), options)
                .unwrap_or_else(|error| panic!("operation {last}, outcome {outcome}: {error}"));
            let history = *database.writer().identity();
            assert!(!done || history.history == new);
            compare(&database, &disk, &journal, end);
            // Whichever history it is, it goes on, also after another crash.
            let mut workload = Workload::new(7, 0);
            for _ in 0..journal.0.len() - 1 {
                workload.next_transaction();
            }
            database.set_journal(journal.clone());
            run(&database, &mut workload, &mut Random::new(last), 8);
            let (journal, end) = (database.journal(), database.writer().durable());
            drop(database);
            let disk = disk.crash(outcome);
            let (database, again) = Database::open(arc(&disk), options).unwrap();
            assert_eq!(again, end);
            compare(&database, &disk, &journal, end);
            if history.history == new {
                let fork = history.fork.expect("fork");
                assert_eq!(fork.parent, identity(7, 15).history);
                assert!(fork.at <= history.first_segment());
            }
        }
    }
}

/// Threads commit at once while checkpoints run and the power goes off.
#[test]
fn concurrent_clients_survive_crashes() {
    for seed in 0..12 {
        let options = Options {
            pool_pages: 60,
            journal: true,
        };
        let disk = SimDisk::new();
        let database = create(&disk, seed, 16, options);
        disk.power_off_after(1500 + seed * 137);
        let acknowledged = AtomicU64::new(database.writer().durable().0);
        std::thread::scope(|scope| {
            for client in 0..4 {
                let (database, acknowledged) = (&database, &acknowledged);
                scope.spawn(move || {
                    let mut workload = Workload::new(seed, client);
                    while let Ok(end) = database.commit(&workload.next_transaction()) {
                        acknowledged.fetch_max(end.0, SeqCst);
                    }
                });
            }
            scope.spawn(|| {
                while database.checkpoint().is_ok() {
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
            });
        });
        let mut journal = database.journal();
        assert!(journal.0.len() > 20, "{} commits", journal.0.len());
        drop(database);
        let disk = disk.crash(seed);
        let (database, end) = Database::open(arc(&disk), options).unwrap();
        assert!(end.0 >= acknowledged.load(SeqCst));
        journal.cut(end);
        compare(&database, &disk, &journal, end);
    }
}
