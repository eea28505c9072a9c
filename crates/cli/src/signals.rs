//! SIGINT, SIGTERM and SIGHUP, which end, SIGUSR1, which asks how far a job is, and SIGUSR2, which has the limits read again.
//!
//! Invariants: during a job the first signal asks it to end in order and the second ends the process at once;
//! during a query the first one ends it. In each case the exit code is that of [`Kind::Cancelled`].
//! A SIGHUP that was ignored at the start, as by `nohup`, stays so. A file that becomes larger
//! than `ulimit -f` allows is an error of the write, and kills nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use mover_base::{Error, Kind, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};

/// Whether a signal has come.
#[derive(Debug, Clone)]
pub struct Signals {
    raised: Arc<AtomicBool>,
    at_once: Arc<AtomicBool>,
    asked: Arc<AtomicBool>,
    reread: Arc<AtomicBool>,
}

impl Signals {
    /// Takes the signals over; until [`Signals::in_order`] the first one ends the process.
    pub fn install() -> Result<Self> {
        let raised = Arc::new(AtomicBool::new(false));
        let at_once = Arc::new(AtomicBool::new(true));
        let cannot = |error: std::io::Error| {
            Error::new(Kind::Internal, "the signal handlers cannot be installed").cause(error)
        };
        let hangup = (!is_ignored(SIGHUP)).then_some(SIGHUP);
        for signal in [SIGINT, SIGTERM].into_iter().chain(hangup) {
            // Handlers run in this order: end if armed, else note the signal, then arm for the next one.
            let code = i32::from(Kind::Cancelled.exit_code());
            signal_hook::flag::register_conditional_shutdown(signal, code, at_once.clone())
                .map_err(cannot)?;
            signal_hook::flag::register(signal, raised.clone()).map_err(cannot)?;
            signal_hook::flag::register(signal, at_once.clone()).map_err(cannot)?;
        }
        // Between jobs it waits for the next one; it never ends anything.
        let asked = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGUSR1, asked.clone()).map_err(cannot)?;
        let reread = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGUSR2, reread.clone()).map_err(cannot)?;
        // Where it is handled at all, the write itself fails and says why.
        signal_hook::flag::register(SIGXFSZ, Arc::default()).map_err(cannot)?;
        Ok(Signals {
            raised,
            at_once,
            asked,
            reread,
        })
    }

    /// From now on a job polls [`Signals::raised`] and ends in order.
    pub fn in_order(&self) {
        self.at_once.store(false, Relaxed);
    }

    /// Whether a signal has come.
    pub fn raised(&self) -> bool {
        self.raised.load(Relaxed)
    }

    /// Whether somebody asks how far the job is; each signal is told once.
    pub fn take_asked(&self) -> bool {
        self.asked.swap(false, Relaxed)
    }

    /// Whether the limits are to be read again; each signal is told once.
    pub fn take_reread(&self) -> bool {
        self.reread.swap(false, Relaxed)
    }

    /// `Err(Cancelled)` once a signal has come.
    pub fn check(&self) -> Result<()> {
        if self.raised() {
            return Err(Error::new(Kind::Cancelled, "cancelled by a signal"));
        }
        Ok(())
    }
}

/// Whether whoever started the process had it ignore `signal`.
fn is_ignored(signal: i32) -> bool {
    // Where it cannot be read the signal is handled, which ends in order.
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores(&status, signal))
}

/// Whether a process of this status ignores `signal`.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status() {
        let status = "Name:\tmover\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\n";
        assert!(ignores(status, SIGHUP) && ignores(status, 13));
        assert!(!ignores(status, SIGINT) && !ignores("SigBlk:\t01\n", SIGHUP));
    }
}
