//! What the extractor says of a range against what the database told the model.

use std::collections::BTreeMap;

use mover_base::{HistoryId, Kind, Lsn, LsnRange};
use mover_pagedb::model::Changed;
use mover_pagedb::random::Random;
use mover_pagedb::{Database, Options, SimDisk, Workload};
use mover_source::delta::{BUDGET_BYTES_DEFAULT, Delta, extract};
use mover_source::wal::LogIdentity;

use crate::support::*;

fn spelled(delta: &Delta) -> BTreeMap<u32, Changed> {
    let tables = delta.tables.iter().map(|(id, table)| {
        let pages: std::collections::BTreeSet<u32> = table.pages.iter().collect();
        assert_eq!(table.pages.len(), pages.len() as u64);
        assert_eq!(table.pages.is_empty(), pages.is_empty());
        assert!(pages.iter().all(|page| table.pages.contains(*page)));
        let changed = Changed {
            created: table.created,
            dropped: table.dropped,
            pages_at_end: table.pages_at_end,
            pages,
        };
        (*id, changed)
    });
    tables.collect()
}

#[test]
fn extraction_agrees_with_the_model_on_every_kind_of_range() {
    let mut compared = 0;
    for seed in 0..6 {
        let options = Options {
            pool_pages: 50,
            journal: true,
        };
        let disk = SimDisk::new();
        let log2 = [14, 16, 18][seed as usize % 3];
        let database = create(&disk, seed, log2, options);
        let mut random = Random::new(seed);
        let mut clients: Vec<Workload> = (0..3).map(|client| Workload::new(seed, client)).collect();
        for round in 0..150 {
            let client = random.below(3) as usize;
            run(&database, &mut clients[client], &mut random, 2);
            if round % 40 == 39 {
                database.writer().switch_segment().unwrap();
                database.writer().point("here", TIME).unwrap();
            }
        }
        let journal = database.journal();
        let identity = *database.writer().identity();
        let mut ends: Vec<Lsn> = journal.0.iter().map(|commit| commit.end).collect();
        ends.insert(0, Lsn(4096));
        let mut ranges = vec![(0, ends.len() - 1), (0, 0), (0, 1)];
        ranges.extend((0..ends.len() - 1).map(|at| (at, at + 1)));
        for _ in 0..100 {
            let a = random.below(ends.len() as u64) as usize;
            let b = a + random.below((ends.len() - a) as u64) as usize;
            ranges.push((a, b));
        }
        for (a, b) in ranges {
            let range = LsnRange {
                start: ends[a],
                end: ends[b],
            };
            let delta = extract(arc(&disk), identity, range, BUDGET_BYTES_DEFAULT).unwrap();
            assert_eq!(
                spelled(&delta),
                journal.changed(range),
                "seed {seed}, {range:?}"
            );
            assert_eq!(delta.transactions, (b - a) as u64);
            compared += delta.tables.len();
        }
    }
    assert!(compared > 3000, "{compared} tables");
}

#[test]
fn what_is_outside_of_the_extracted_pages_is_unchanged() {
    let options = Options {
        pool_pages: 30,
        journal: true,
    };
    let disk = SimDisk::new();
    let database = create(&disk, 21, 16, options);
    let mut workload = Workload::new(21, 0);
    run(&database, &mut workload, &mut Random::new(21), 300);
    database.checkpoint().unwrap();
    let (start, before) = (database.writer().durable(), disk.copy());
    let tables_before = database.journal().pages_at(start);
    run(&database, &mut workload, &mut Random::new(22), 8);
    database.checkpoint().unwrap();
    let end = database.writer().durable();
    let identity = *database.writer().identity();
    let delta = extract(arc(&disk), identity, LsnRange { start, end }, 1 << 20).unwrap();
    let mut unchanged = 0;
    for (table, page) in tables_before.into_keys() {
        let entry = delta.tables.get(&table);
        if entry.is_some_and(|table| table.dropped || table.pages.contains(page)) {
            continue;
        }
        let path = mover_source::pages::table_path(table);
        let at = page as usize * 4096;
        let (old, new) = (before.bytes(&path), disk.bytes(&path));
        assert!(
            old[at..at + 4096] == new[at..at + 4096],
            "table {table}, page {page}"
        );
        unchanged += 1;
    }
    assert!(unchanged > 5, "{unchanged} pages");
}

#[test]
fn breaks_budgets_and_other_histories_are_errors() {
    let options = Options::default();
    let disk = SimDisk::new();
    let database = create(&disk, 31, 14, options);
    run(
        &database,
        &mut Workload::new(31, 0),
        &mut Random::new(31),
        30,
    );
    let (end, identity) = (database.writer().durable(), *database.writer().identity());
    let range = LsnRange {
        start: Lsn(4096),
        end,
    };
    let kind = |identity, range, budget| {
        extract(arc(&disk), identity, range, budget)
            .unwrap_err()
            .kind()
    };
    assert_eq!(kind(identity, range, 1500), Kind::Limit);
    assert_eq!(
        kind(
            identity,
            LsnRange {
                start: end,
                end: Lsn(4096)
            },
            1 << 20
        ),
        Kind::Usage
    );
    let other = LogIdentity {
        history: HistoryId([5; 16]),
        ..identity
    };
    assert_eq!(kind(other, range, 1 << 20), Kind::NotFound);
    let middle = identity.path(Lsn(2 * identity.size.bytes()));
    let bytes = disk.bytes(&middle);
    disk.delete(&middle);
    assert_eq!(kind(identity, range, 1 << 20), Kind::NotFound);
    disk.set(&middle, &bytes);
    disk.flip(&middle, 5000, 4);
    assert_eq!(kind(identity, range, 1 << 20), Kind::Corrupt);
    disk.flip(&middle, 5000, 4);
    extract(arc(&disk), identity, range, 1 << 20).unwrap();
    // A new history's log is not that of its parent.
    drop(database);
    let mut store = mover_source::pages::Store::open(arc(&disk)).unwrap();
    let recovered = store.recover(50).unwrap();
    let writer = store.begin_history(recovered, HistoryId([6; 16])).unwrap();
    let new = *writer.identity();
    assert_eq!(kind(new, range, 1 << 20), Kind::Usage);
    drop(writer);
    let (database, _) = Database::open(arc(&disk), options).unwrap();
    database
        .commit(&[mover_pagedb::Op::Create("later".to_owned())])
        .unwrap();
    let end = database.writer().durable();
    let first = Lsn(new.first_segment().0 + 4096);
    let delta = extract(arc(&disk), new, LsnRange { start: first, end }, 1 << 20).unwrap();
    assert_eq!(delta.tables.len(), 1);
}
