//! Life and death of shards: results, errors, panics, stops; buffers as back-pressure.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

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
        assert!(report.core.is_some(), "pinned");
        let json = serde_json::to_value(report).expect("json");
        assert_eq!(json["rung"], "defer_taskrun");
    }
}

#[test]
fn zero_shards_means_one_per_core() {
    let cores = std::thread::available_parallelism().expect("cores").get();
    let results = run(&shards(0), async |_| Ok(()), |_| {}).expect("run");
    assert_eq!(results.len(), cores);
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
