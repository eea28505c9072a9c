//! Every way the machinery can be set up gives the same bytes.

use std::fs;

use mover_base::Kind;
use mover_jobs::{Engine, JobLimits, RateBudget, Rung, check, verify};

use crate::fixture::{BLOCK, MIB, Place, Random, assert_same_trees, engine};

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
