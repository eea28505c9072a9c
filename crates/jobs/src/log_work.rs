//! Work that takes long and has one core, on a page store's log or through all names of a tree: it is done on a shard, so
//! that the caller's thread can show how far it is, and end it.
//!
//! Invariant: work that was asked to end is an error, whatever it made of that itself.

use std::sync::{Mutex, PoisonError};

use mover_base::{Error, Kind, Result};
use mover_io::{Shard, ShardConfig, Stop};
use mover_source::disk::LogWatch;

use crate::backup::only;
use crate::progress::{Phase, Progress};
use crate::settings::Tick;

/// Does `work`, which goes through the log that `watch` is of, on a shard as `config` says.
pub(crate) fn watched<T: Send>(
    config: &ShardConfig,
    watch: &LogWatch,
    progress: &Progress,
    tick: Tick<'_>,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    progress.begin(Phase::Log, 0, 0);
    let begun = watch.bytes();
    // The shard's body may be called once per shard, and there is one shard.
    let work = Mutex::new(Some(work));
    let body = async |_: Shard| {
        let taken = work.lock().unwrap_or_else(PoisonError::into_inner).take();
        let twice = || Error::new(Kind::Internal, "work on a log was begun twice");
        taken.ok_or_else(twice)?()
    };
    let done = mover_io::run(config, body, |stop| {
        pass_on(watch, begun, progress, tick, stop);
    })?;
    watch.check()?;
    only(done)
}

/// Does `work`, which goes through many names and asks what it is given whether to go on, on a shard as `config` says.
pub(crate) fn interruptible<T: Send>(
    config: &ShardConfig,
    progress: &Progress,
    tick: Tick<'_>,
    work: impl FnOnce(&dyn Fn() -> Result<()>) -> Result<T> + Send,
) -> Result<T> {
    let work = Mutex::new(Some(work));
    let body = async |shard: Shard| {
        let taken = work.lock().unwrap_or_else(PoisonError::into_inner).take();
        let twice = || Error::new(Kind::Internal, "work on names was begun twice");
        taken.ok_or_else(twice)?(&|| shard.stop())
    };
    only(mover_io::run(config, body, |stop| tick(progress, stop))?)
}

/// Shows how far the work came since it was at `begun`, and ends it if the caller wants that.
pub(crate) fn pass_on(
    watch: &LogWatch,
    begun: u64,
    progress: &Progress,
    tick: Tick<'_>,
    stop: &Stop,
) {
    progress.set_bytes(watch.bytes() - begun);
    tick(progress, stop);
    if stop.is_raised() {
        watch.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Engine;

    const MIB: u64 = 1 << 20;

    fn config() -> ShardConfig {
        let engine = Engine {
            pin: false,
            ..Engine::default()
        };
        engine.single()
    }

    #[test]
    fn work_without_end_shows_how_far_it_is_and_ends_when_it_is_asked_to() {
        let (watch, progress) = (LogWatch::default(), Progress::default());
        let mut seen = Vec::new();
        let work = || -> Result<()> {
            loop {
                watch.advance(MIB)?;
                std::thread::yield_now();
            }
        };
        let ended = watched(
            &config(),
            &watch,
            &progress,
            &mut |progress, stop| {
                let reading = progress.read();
                assert_eq!((reading.phase, reading.bytes_total), (Phase::Log, 0));
                seen.push(reading.bytes_done);
                if seen.len() == 3 {
                    stop.raise();
                }
            },
            work,
        );
        assert_eq!(ended.unwrap_err().kind(), Kind::Cancelled);
        assert!(seen[0] > 0 && seen.is_sorted(), "{seen:?}");
    }

    #[test]
    fn work_that_makes_nothing_of_its_end_is_cancelled_all_the_same() {
        let (watch, progress) = (LogWatch::default(), Progress::default());
        let work = || {
            while watch.check().is_ok() {
                std::thread::yield_now();
            }
            Ok(1)
        };
        let raise = &mut |_: &Progress, stop: &Stop| stop.raise();
        let ended = watched(&config(), &watch, &progress, raise, work);
        assert_eq!(ended.unwrap_err().kind(), Kind::Cancelled);
    }

    #[test]
    fn work_on_names_without_end_ends_when_it_is_asked_to() {
        let progress = Progress::default();
        let raise = &mut |_: &Progress, stop: &Stop| stop.raise();
        let ended = interruptible(&config(), &progress, raise, |go_on| -> Result<()> {
            loop {
                go_on()?;
                std::thread::yield_now();
            }
        });
        assert_eq!(ended.unwrap_err().kind(), Kind::Cancelled);
        let tick = &mut |_: &Progress, _: &Stop| {};
        assert_eq!(
            interruptible(&config(), &progress, tick, |_| Ok(7)).unwrap(),
            7
        );
    }

    #[test]
    fn what_comes_to_its_end_is_returned_and_errors_are_its_own() {
        let (watch, progress) = (LogWatch::default(), Progress::default());
        let tick = &mut |_: &Progress, _: &Stop| {};
        let done = watched(&config(), &watch, &progress, tick, || Ok(7));
        assert_eq!(done.unwrap(), 7);
        let failing = || Err::<(), _>(Error::new(Kind::Corrupt, "torn"));
        let failed = watched(&config(), &watch, &progress, tick, failing);
        assert_eq!(failed.unwrap_err().kind(), Kind::Corrupt);
    }
}
