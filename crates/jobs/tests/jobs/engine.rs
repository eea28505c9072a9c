//! Every way the machinery can be set up gives the same bytes.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mover_base::{Kind, Timestamp};
use mover_jobs::backup::{self, BackupOptions};
use mover_jobs::expire::{self, ExpireOptions, Policy};
use mover_jobs::{Credentials, Engine, JobLimits, RateBudget, Rung, check, restore, verify};
use mover_source::disk::{DirDisk, Disk};
use mover_source::pages::{Store, TableFile, new_identity};
use mover_source::wal::{Group, Record, SegmentSize, TableKind};

use crate::fixture::{BLOCK, MIB, Place, Random, assert_same_trees, engine, secret};

/// Incompressible, compressible, zero and odd-sized content, in more than one extent's worth of pieces.
fn fill(place: &Place) {
    let mut random = Random(1);
    fs::write(place.source("incompressible"), random.bytes(12 * MIB + 77)).unwrap();
    fs::write(
        place.source("text"),
        b"all work and no play ".repeat(200_000),
    )
    .unwrap();
    fs::write(place.source("zeros"), vec![0; 3 * MIB + 1]).unwrap();
    fs::create_dir(place.source("many")).unwrap();
    for i in 0..200 {
        let bytes = random.bytes(i * 97);
        fs::write(place.source(&format!("many/{i}")), bytes).unwrap();
    }
}

fn round_trip(engine: &Engine) {
    let place = Place::sealed();
    fill(&place);
    let options = place.backup_options();
    let summary = place.try_backup(engine, &options).unwrap();
    assert!(summary.zero_bytes >= 3 * MIB as u64);
    assert_eq!(place.try_backup(engine, &options).unwrap().bytes_new, 0);
    place
        .try_restore(engine, &place.restore_options("latest", "out", false))
        .unwrap();
    assert_same_trees(&place.path("source"), &place.path("out"));
    let verified = verify::execute(engine, &place.verify_options(None), &mut |_, _| {}).unwrap();
    assert!(verified.ok, "{:?}", verified.findings);
}

#[test]
fn one_two_and_five_shards_give_the_same_bytes() {
    for shards in [1, 2, 5] {
        round_trip(&Engine { shards, ..engine() });
    }
}

#[test]
fn every_rung_gives_the_same_bytes() {
    for top_rung in [Rung::CoopTaskrun, Rung::PlainRing, Rung::Threads] {
        round_trip(&Engine {
            top_rung,
            ..engine()
        });
    }
}

#[test]
fn buffered_files_and_unregistered_buffers_give_the_same_bytes() {
    round_trip(&Engine {
        direct: false,
        ..engine()
    });
    round_trip(&Engine {
        register_buffers: false,
        ..engine()
    });
}

#[test]
fn gentle_jobs_give_the_same_bytes() {
    round_trip(&Engine {
        gentle: true,
        ..engine()
    });
}

#[test]
fn the_smallest_arena_goes_forward_and_a_smaller_one_is_refused() {
    let smallest = (1..64)
        .map(|mib| Engine {
            shards: 1,
            arena_bytes: mib * MIB,
            ..engine()
        })
        .find(|engine| {
            let options = check::CheckOptions::default();
            check::run(engine, &options).unwrap().ok
        })
        .unwrap();
    round_trip(&smallest);
    // As many shards as are asked for do not make it smaller per shard.
    round_trip(&Engine {
        shards: 5,
        ..smallest.clone()
    });
    let place = Place::plain();
    fs::write(place.source("a"), b"a").unwrap();
    place.backup();
    let below = Engine {
        arena_bytes: smallest.arena_bytes - 1,
        ..smallest
    };
    let kind = |result: mover_base::Result<()>| result.unwrap_err().kind();
    let backup = place.try_backup(&below, &place.backup_options()).map(drop);
    assert_eq!(kind(backup), Kind::Usage);
    let options = place.restore_options("latest", "out", false);
    assert_eq!(
        kind(place.try_restore(&below, &options).map(drop)),
        Kind::Usage
    );
    assert!(!place.path("out").exists());
    let verified = verify::execute(&below, &place.verify_options(None), &mut |_, _| {});
    assert_eq!(kind(verified.map(drop)), Kind::Usage);
}

#[test]
fn jobs_within_rate_limits_lose_nothing() {
    let limited = Engine {
        limits: JobLimits {
            read: RateBudget::new(Some(64 * MIB as u64)),
            write: RateBudget::new(Some(64 * MIB as u64)),
        },
        ..engine()
    };
    let place = Place::plain();
    fs::write(place.source("a"), Random(2).bytes(4 * MIB + BLOCK)).unwrap();
    place.try_backup(&limited, &place.backup_options()).unwrap();
    place
        .try_restore(&limited, &place.restore_options("latest", "out", false))
        .unwrap();
    assert_same_trees(&place.path("source"), &place.path("out"));
}

/// A page store of one small table, with so many bytes of log and more behind its last checkpoint.
fn make_long_log(place: &Place, log_bytes: u64) {
    const PAGES: u32 = 20;
    let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(&place.path("source")).unwrap());
    let identity = new_identity([7; 32], SegmentSize::new(24).unwrap());
    let mut store = Store::create(Arc::clone(&disk), identity).unwrap();
    let writer = store.recover(16).unwrap().writer;
    let time = Timestamp::from_micros(1);
    let mut group = Group::new();
    group.create(1, TableKind::Rows, "rows").unwrap();
    group.extend(1, PAGES).unwrap();
    let made = writer.append(&group, 1, time).unwrap();
    writer.flush_to(made.end).unwrap();
    let mut catalogue = store.catalogue().clone();
    let create = Record::Create {
        table: 1,
        kind: TableKind::Rows,
        name: "rows",
    };
    catalogue.apply(made.records[0], &create).unwrap();
    let extend = Record::Extend {
        table: 1,
        pages: PAGES,
    };
    catalogue.apply(made.records[1], &extend).unwrap();
    catalogue.lsn = writer.end();
    TableFile::open_write(&*disk, 1).unwrap().sync().unwrap();
    store.checkpoint(&writer, catalogue, 2, time).unwrap();
    let begin = writer.end();
    let mut transaction = 2;
    while writer.end().0 - begin.0 < log_bytes {
        let mut group = Group::new();
        for image in 0..1000 {
            group.image(1, image % PAGES, &[5; 4072]).unwrap();
        }
        let end = writer.append(&group, transaction, time).unwrap().end;
        writer.flush_to(end).unwrap();
        transaction += 1;
    }
}

/// One shard does for the few pages, and two are started for the log: what each of them did there is told.
#[test]
fn what_the_shards_read_of_a_long_log_behind_few_pages_is_in_their_figures() {
    const LOG_BYTES: u64 = 80 << 20;
    let place = Place::plain();
    make_long_log(&place, LOG_BYTES);
    let options = BackupOptions {
        source: format!("pages://{}", place.path("source").display()),
        ..place.backup_options()
    };
    let two = Engine {
        shards: 2,
        ..engine()
    };
    let made = place.try_backup(&two, &options).unwrap();
    let range = made.lsn_range.unwrap();
    let log = range.end.0 - range.start.0;
    assert!(log >= LOG_BYTES, "{log}");
    let reports = made.engine.shards.iter().map(|shard| &shard.report);
    let indices: Vec<usize> = reports.clone().map(|report| report.shard).collect();
    assert_eq!(indices, [0, 1]);
    let read: u64 = reports.map(|report| report.read_bytes).sum();
    assert!(read >= log, "{read} of {log}");
}

/// Of the time of a job its plan is the part in which a passphrase is stretched, and who looks at the plan may take long. Each
/// duration is measured around what it is of, so that the bounds hold on any machine.
#[test]
fn the_time_of_a_job_is_that_of_its_plan_and_execution_and_not_what_lies_between() {
    const PASSPHRASE: &str = "correct horse battery staple";
    let place = Place::bare(Credentials::Passphrase(secret(PASSPHRASE)));
    place.init(Some(PASSPHRASE), &[]).unwrap();
    fs::write(place.source("a"), b"a").unwrap();
    let check = |planning: Duration, executing: Duration, seconds: f64| {
        assert!(planning.as_secs_f64() <= seconds, "{planning:?}, {seconds}");
        let both = (planning + executing).as_secs_f64();
        assert!(seconds <= both, "{seconds} of {both}");
    };

    let begun = Instant::now();
    let plan = backup::plan(&engine(), &place.backup_options(), &mut |_, _| {}).unwrap();
    let planning = begun.elapsed();
    let begun = Instant::now();
    let made = backup::execute(&engine(), plan, &mut |_, _| {}).unwrap();
    check(planning, begun.elapsed(), made.engine.seconds);

    let options = place.restore_options("latest", "out", false);
    let begun = Instant::now();
    let plan = restore::plan(&engine(), &options, &mut |_, _| {}).unwrap();
    let planning = begun.elapsed();
    place.verify_is_ok(None);
    let begun = Instant::now();
    let made = restore::execute(&engine(), plan, &mut |_, _| {}).unwrap();
    check(planning, begun.elapsed(), made.engine.seconds);

    let policy = Policy {
        last: 1,
        ..Policy::default()
    };
    let options = ExpireOptions::by_rules(place.access(), policy);
    let begun = Instant::now();
    let plan = expire::plan(&engine(), &options, &mut |_, _| {}).unwrap();
    let planning = begun.elapsed();
    let begun = Instant::now();
    let made = expire::execute(&engine(), plan, &mut |_, _| {}).unwrap();
    check(planning, begun.elapsed(), made.engine.seconds);
}
