//! Life and death of shards: results, errors, panics, stops; buffers as back-pressure.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mover_base::{Error, Kind, Result};
use mover_io::{RateBudget, Rung, Shard, ShardConfig, run};

fn shards(shards: usize) -> ShardConfig {
    ShardConfig {
        shards,
        arena_bytes: 2 << 20,
        ..ShardConfig::default()
    }
}

/// Waits until the run is asked to end, as a body that does its job would.
async fn until_stopped(shard: &Shard) -> Result<()> {
    loop {
        shard.stop()?;
        shard.turn().await;
    }
}

#[test]
fn results_come_back_by_index_and_reports_name_the_rung() {
    let seen = AtomicUsize::new(0);
    let reports = run(
        &shards(5),
        async |shard| {
            seen.fetch_add(1, Ordering::Relaxed);
            assert_eq!(shard.count(), 5);
            Ok((shard.index(), shard.report()))
        },
        |_| {},
    )
    .expect("run");
    assert_eq!(seen.load(Ordering::Relaxed), 5);
    for (at, (index, report)) in reports.iter().enumerate() {
        assert_eq!((at, at), (*index, report.shard));
        let json = serde_json::to_value(report).expect("json");
        assert_eq!(json["rung"], "defer_taskrun");
    }
}

#[test]
fn zero_shards_means_one_per_core_each_pinned_to_its_own() {
    let cores = std::thread::available_parallelism().expect("cores").get();
    let core = async |shard: Shard| Ok(shard.report().core);
    let results = run(&shards(0), core, |_| {}).expect("run");
    assert_eq!(results.len(), cores);
    let mut pinned: Vec<usize> = results
        .into_iter()
        .map(|core| core.expect("pinned"))
        .collect();
    pinned.sort_unstable();
    pinned.dedup();
    assert_eq!(pinned.len(), cores, "{pinned:?}");
}

/// Pinned, the few shards of every job would share the same few cores while others idle.
#[test]
fn fewer_shards_than_cores_run_where_there_is_room() {
    let cores = std::thread::available_parallelism().expect("cores").get();
    assert!(cores > 1, "this test needs two cores");
    let core = async |shard: Shard| Ok(shard.report().core);
    let results = run(&shards(cores - 1), core, |_| {}).expect("run");
    assert_eq!(results, vec![None; cores - 1]);
}

/// Connections, for instance, know their shard: that must keep neither of them alive.
struct Kept {
    _shard: Shard,
    dropped: Arc<AtomicUsize>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn what_is_kept_on_a_shard_ends_with_it_and_takes_nothing_along() {
    let entries = |of: &str| std::fs::read_dir(of).expect("proc").count();
    let owner = Arc::new(());
    let dropped = Arc::new(AtomicUsize::new(0));
    let budget = RateBudget::new(Some(1 << 30));
    for rung in Rung::ALL {
        let config = ShardConfig {
            top_rung: rung,
            ..shards(2)
        };
        let once = || {
            let keeping = async |shard: Shard| {
                shard.throttle(&budget, 1).await;
                let make = || {
                    Ok(Kept {
                        _shard: shard.clone(),
                        dropped: Arc::clone(&dropped),
                    })
                };
                shard.keep(&owner, make).map(|_| ())
            };
            run(&config, keeping, |_| {}).expect("run");
        };
        let before = dropped.load(Ordering::Relaxed);
        let descriptors = entries("/proc/self/fd");
        for _ in 0..20 {
            once();
        }
        assert_eq!(dropped.load(Ordering::Relaxed) - before, 40, "{rung:?}");
        // Other tests of this program run meanwhile, with a few shards of a few descriptors each.
        let more = entries("/proc/self/fd").saturating_sub(descriptors);
        assert!(more < 40, "{rung:?}: {more} descriptors more");
    }
}

/// A terminal that is stopped holds the tick up, and with it the coordinator of budgets.
#[test]
fn a_tick_that_does_not_end_keeps_no_shard_waiting_for_its_share() {
    let budget = RateBudget::new(Some(8 << 20));
    let through = AtomicBool::new(false);
    let in_time = AtomicBool::new(false);
    let ticks = AtomicUsize::new(0);
    let body = async |shard: Shard| {
        let begun = Instant::now();
        if shard.index() == 0 {
            // Joined, and idle while shares are set: all of the rate goes to the other.
            shard.throttle(&budget, 1).await;
            while ticks.load(Ordering::Relaxed) < 6 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            shard.throttle(&budget, 1 << 20).await;
            through.store(true, Ordering::Relaxed);
        } else {
            while !through.load(Ordering::Relaxed) && begun.elapsed() < Duration::from_secs(60) {
                shard.throttle(&budget, 64 << 10).await;
            }
        }
        Ok(())
    };
    run(&shards(2), body, |_| {
        // The sixth tick hangs until the shard came through without any more of them.
        if ticks.fetch_add(1, Ordering::Relaxed) == 5 {
            let begun = Instant::now();
            while !through.load(Ordering::Relaxed) && begun.elapsed() < Duration::from_secs(30) {
                std::thread::sleep(Duration::from_millis(5));
            }
            in_time.store(through.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    })
    .expect("run");
    assert!(in_time.load(Ordering::Relaxed), "the sixth tick gave up");
}

#[test]
fn the_first_error_stops_the_others_and_is_returned() {
    let error = run(
        &shards(3),
        async |shard| {
            if shard.index() == 1 {
                return Err(Error::new(Kind::Corrupt, "block is torn"));
            }
            until_stopped(&shard).await
        },
        |_| {},
    )
    .expect_err("error");
    assert_eq!(error.kind(), Kind::Corrupt);
}

#[test]
fn a_panic_of_a_body_is_an_internal_error_on_every_rung() {
    for top_rung in Rung::ALL {
        let config = ShardConfig {
            top_rung,
            ..shards(2)
        };
        let error = run(
            &config,
            async |shard| {
                let _held = shard.buffer().await;
                assert_ne!(shard.index(), 1, "on purpose");
                until_stopped(&shard).await
            },
            |_| {},
        )
        .expect_err("panic");
        assert_eq!(error.kind(), Kind::Internal);
        assert!(error.to_string().contains("on purpose"));
    }
}

#[test]
fn a_panic_of_a_task_ends_the_run_even_if_nobody_waits_for_the_task() {
    let error = run(
        &shards(2),
        async |shard| {
            if shard.index() == 0 {
                drop(shard.spawn(async { panic!("task on purpose") }));
            }
            until_stopped(&shard).await
        },
        |_| {},
    )
    .expect_err("panic");
    assert_eq!(error.kind(), Kind::Internal);
    assert!(error.to_string().contains("task on purpose"));
}

#[test]
fn a_panic_of_a_destructor_is_an_error_too() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("destructor on purpose");
        }
    }
    let error = run(
        &shards(1),
        async |shard| {
            let bomb = Bomb;
            drop(shard.spawn(async move {
                let _bomb = bomb;
                std::future::pending::<()>().await;
            }));
            shard.turn().await;
            Ok(())
        },
        |_| {},
    )
    .expect_err("panic");
    assert_eq!(error.kind(), Kind::Internal);
}

#[test]
fn the_tick_can_stop_a_run_and_its_panic_cannot_hang_it() {
    let error = run(
        &shards(2),
        async |shard| until_stopped(&shard).await,
        |stop| stop.raise(),
    )
    .expect_err("stopped");
    assert_eq!(error.kind(), Kind::Cancelled);
    let caught = std::panic::catch_unwind(|| {
        run(
            &shards(2),
            async |shard| until_stopped(&shard).await,
            |_| panic!("tick on purpose"),
        )
    });
    assert!(caught.is_err());
}

#[test]
fn a_stop_ends_bodies_that_wait_for_ever() {
    let error = run(
        &shards(3),
        async |shard| {
            let mut held = Vec::new();
            match shard.index() {
                // Waits for a buffer that nobody will give back.
                0 => loop {
                    held.push(shard.buffer().await);
                },
                1 => std::future::pending::<Result<()>>().await,
                _ => Ok(()),
            }
        },
        |stop| stop.raise(),
    )
    .expect_err("stopped");
    assert_eq!(error.kind(), Kind::Cancelled);
}

#[test]
fn an_exhausted_arena_serves_tasks_in_order() {
    run(
        &shards(1),
        async |shard| {
            let held: Vec<_> = (0..shard.buffers_total())
                .map(|_| shard.try_buffer().expect("buffer"))
                .collect();
            assert!(shard.try_buffer().is_none());
            let order = Rc::new(RefCell::new(Vec::new()));
            let tasks: Vec<_> = (0..100)
                .map(|index| {
                    let (shard2, order) = (shard.clone(), Rc::clone(&order));
                    shard.spawn(async move {
                        let _buf = shard2.buffer().await;
                        order.borrow_mut().push(index);
                        shard2.turn().await;
                    })
                })
                .collect();
            for _ in 0..10 {
                shard.turn().await;
            }
            assert!(order.borrow().is_empty());
            drop(held);
            for task in tasks {
                task.await.expect("task");
            }
            assert!(order.borrow().iter().copied().eq(0..100));
            assert_eq!(shard.buffers_free(), shard.buffers_total());
            Ok(())
        },
        |_| {},
    )
    .expect("run");
}

#[test]
fn unlimited_budgets_let_everything_pass_and_a_stop_ends_waiting() {
    let budget = RateBudget::new(None);
    run(
        &shards(2),
        async |shard| {
            for _ in 0..1000 {
                shard.throttle(&budget, u64::MAX / 2).await;
            }
            Ok(())
        },
        |_| {},
    )
    .expect("run");
    budget.set(Some(0));
    let error = run(
        &shards(2),
        async |shard| {
            shard.throttle(&budget, 1).await;
            shard.stop()
        },
        |stop| stop.raise(),
    )
    .expect_err("stopped");
    assert_eq!(error.kind(), Kind::Cancelled);
}

#[test]
fn a_budget_changed_while_shards_wait_acts_on_them() {
    let budget = RateBudget::new(Some(0));
    let passed = AtomicUsize::new(0);
    let mut ticks = 0;
    run(
        &shards(2),
        async |shard| {
            for _ in 0..100 {
                shard.throttle(&budget, 1 << 20).await;
                passed.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        },
        |_| {
            ticks += 1;
            match ticks {
                1 => assert_eq!(passed.load(Ordering::Relaxed), 0),
                2 => budget.set(Some(1 << 30)),
                _ => budget.set(None),
            }
        },
    )
    .expect("run");
    assert_eq!(passed.load(Ordering::Relaxed), 200);
}
