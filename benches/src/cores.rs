//! One core: work that is held on it, and the processor time that it takes there.
//!
//! Invariants: threads that the work starts are held on the same core; the processor time is that of the whole process, so that
//! nothing that another thread does for the work is left out.

use std::time::{Duration, Instant};

use mover_base::{Error, Kind, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// What some work took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Took {
    /// Wall time, in seconds.
    pub wall_seconds: f64,
    /// Processor time of the process, in seconds.
    pub cpu_seconds: f64,
}

/// Where work may run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cores {
    /// On one, with all threads that it starts.
    One,
    /// Wherever this process may.
    All,
}

/// Processor time of this process so far.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Holds the calling thread, and those that it starts, on the first core that it may use.
fn hold() -> Result<()> {
    let failed = |error: rustix::io::Errno| {
        Error::new(Kind::CheckFailed, "a thread cannot be held on a core").cause(error)
    };
    let allowed = sched_getaffinity(None).map_err(failed)?;
    let first = (0..CpuSet::MAX_CPU).find(|core| allowed.is_set(*core));
    let mut one = CpuSet::new();
    one.set(first.unwrap_or(0));
    sched_setaffinity(None, &one).map_err(failed)
}

/// Does `work` in a thread of its own and says what it took.
///
/// # Errors
/// Those of `work`; `Internal` if it panics; `CheckFailed` if it cannot be held on a core.
pub fn timed<T: Send>(cores: Cores, work: impl FnOnce() -> Result<T> + Send) -> Result<(Took, T)> {
    let run = || {
        if cores == Cores::One {
            hold()?;
        }
        let (begun, cpu) = (Instant::now(), cpu_time());
        let done = work()?;
        let took = Took {
            wall_seconds: begun.elapsed().as_secs_f64(),
            cpu_seconds: (cpu_time() - cpu).as_secs_f64(),
        };
        Ok((took, done))
    };
    let joined = std::thread::scope(|scope| scope.spawn(run).join());
    joined.map_err(|_| Error::new(Kind::Internal, "what was measured panicked"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_timed_with_its_threads_and_held_where_it_is_to_be() {
        let allowed = || sched_getaffinity(None).unwrap().count();
        let before = allowed();
        let work = || {
            Ok(std::thread::scope(|scope| {
                scope.spawn(allowed).join().unwrap()
            }))
        };
        let (took, on) = timed(Cores::One, work).unwrap();
        assert_eq!(on, 1);
        assert!(took.wall_seconds > 0.0);
        assert_eq!(timed(Cores::All, work).unwrap().1, before);
        assert_eq!(allowed(), before);
        let spin = || {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(20) {}
            Ok(())
        };
        assert!(timed(Cores::One, spin).unwrap().0.cpu_seconds > 0.0);
        let wrong = || Err::<(), _>(Error::new(Kind::Usage, "no"));
        assert!(timed(Cores::All, wrong).is_err());
    }
}
