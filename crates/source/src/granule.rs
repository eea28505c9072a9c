//! How long a source has to rest between its scan and the first read, and what the scan itself may have read too early.
//!
//! A file system stamps with a clock that moves in steps. What is written within the step in which a file was stamped last
//! leaves the stamp as it was, and so a file that is half read by then would become a mix that nobody notices. After a
//! step every write shows. What the scan reads (attributes, targets of links) is read before that step is over, so where a
//! stamp is as new as the scan, it vouches for nothing, and the second look has to read again.
//!
//! Invariants: nobody waits for longer than a step, whatever the stamps say, or than [`LATE_MAX`] for a clock of this machine whose
//! tick is late; a stamp that is not [doubtful](Doubt) has become
//! another one if anything was changed since the scan began, where this machine's clock stamps. Where another machine's does (NFS)
//! that is so too, unless its clock is behind and something there was stamped later than when the scan began.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use mover_base::tree::FileTime;
use mover_base::{Result, Timestamp};
use rustix::time::{ClockId, clock_gettime};

use crate::scan::Stamp;

/// Two ticks of the slowest kernel clock (100 Hz), with which fine stamps are taken before Linux 6.13.
const FINE: Duration = Duration::from_millis(20);

/// The steps of a file system that keeps whole seconds (ext4 with inodes of 128 bytes) or even ones (vfat), and a tick.
const COARSE: Duration = Duration::from_millis(2_020);

/// How long a tick of the kernel's clock is waited for that is late, as on a machine whose host takes its cores away.
const LATE_MAX: Duration = Duration::from_secs(2);

/// How long a wait goes on without asking whether it may.
const SLICE: Duration = Duration::from_millis(50);

/// What is known of the clock of a file system.
struct Clock {
    /// The last of its stamps that was found.
    newest: FileTime,
    /// Whether all of them are of whole seconds.
    is_coarse: bool,
}

impl Clock {
    fn step(&self) -> Duration {
        if self.is_coarse { COARSE } else { FINE }
    }

    /// How long it is at `now` until it has gone on from its newest stamp.
    fn rest(&self, now: Timestamp) -> Duration {
        let step = self.step().as_nanos() as i128;
        // A stamp in the future was set by somebody, or by a clock that is not ours and takes a step meanwhile, too.
        let left = nanos_of(self.newest) + step - nanos_at(now);
        Duration::from_nanos(left.clamp(0, step) as u64)
    }

    /// Whether the kernel, whose clock for stamps is at `coarse`, may still stamp with its newest stamp, though a step is over at
    /// `now`. Stamps in the future are not its.
    fn is_late(&self, now: Timestamp, coarse: FileTime) -> bool {
        let newest = nanos_of(self.newest);
        !self.is_coarse && nanos_of(coarse) <= newest && newest <= nanos_at(now)
    }
}

/// The clocks of the file systems that a scan found, by their devices.
pub(crate) struct Clocks(HashMap<u64, Clock>);

impl Clocks {
    pub(crate) fn of(stamps: impl Iterator<Item = Stamp>) -> Clocks {
        let mut clocks: HashMap<u64, Clock> = HashMap::new();
        for stamp in stamps {
            let time = stamp.mtime.max(stamp.ctime);
            let is_whole = stamp.mtime.nanos == 0 && stamp.ctime.nanos == 0;
            clocks
                .entry(stamp.dev)
                .and_modify(|clock| {
                    clock.newest = time.max(clock.newest);
                    clock.is_coarse &= is_whole;
                })
                .or_insert(Clock {
                    newest: time,
                    is_coarse: is_whole,
                });
        }
        Clocks(clocks)
    }

    /// Waits until every write shows in the stamp of what it changes; usually that is so. Ends with the error of `go_on`,
    /// which is asked from time to time in a long wait.
    pub(crate) fn wait(&self, go_on: &dyn Fn() -> Result<()>) -> Result<()> {
        let mut rest = self.rest(Timestamp::now(), coarse_time());
        let begun = Instant::now();
        loop {
            let waited = begun.elapsed();
            let left = rest.saturating_sub(waited);
            if left.is_zero() {
                let is_late = self.is_late(Timestamp::now(), coarse_time());
                if !is_late || waited >= LATE_MAX {
                    return Ok(());
                }
                rest = waited + FINE;
                go_on()?;
                continue;
            }
            std::thread::sleep(left.min(SLICE));
            if left > SLICE {
                go_on()?;
            }
        }
    }

    /// How long it is at `now` until the last file system takes other stamps than any that were found on it, as far as that is to
    /// be known while the kernel's clock for stamps is at `coarse`.
    fn rest(&self, now: Timestamp, coarse: FileTime) -> Duration {
        let rests = self.0.values().map(|clock| clock.rest(now));
        let rest = rests.max().unwrap_or_default();
        match self.is_late(now, coarse) {
            true => rest.max(FINE),
            false => rest,
        }
    }

    fn is_late(&self, now: Timestamp, coarse: FileTime) -> bool {
        self.0.values().any(|clock| clock.is_late(now, coarse))
    }

    /// Which stamps a scan that began at `begun` cannot rely on. Not those of its end alone: a name that it came to first may
    /// have been changed right behind that.
    pub(crate) fn doubt(&self, begun: Timestamp) -> Doubt {
        let since = |clock: &Clock| {
            // A clock that is behind ours stamps what came after the beginning with an earlier time.
            let begun = nanos_at(begun).min(nanos_of(clock.newest));
            begun - clock.step().as_nanos() as i128
        };
        let devices = self.0.iter();
        Doubt(devices.map(|(dev, clock)| (*dev, since(clock))).collect())
    }
}

/// Since when on each device a stamp may hide a change that came after what the scan read: in nanoseconds since 1970.
#[derive(Debug, Clone, Default)]
pub(crate) struct Doubt(HashMap<u64, i128>);

impl Doubt {
    /// Whether something may have changed since the scan and have the same time of change.
    pub(crate) fn is_about(&self, stamp: &Stamp) -> bool {
        let since = self.0.get(&stamp.dev);
        since.is_some_and(|since| nanos_of(stamp.ctime) >= *since)
    }
}

/// When a scan begins, by the clock with which its source may be stamped right then: its last tick may be long over.
pub(crate) fn scan_begins() -> Timestamp {
    let coarse = nanos_of(coarse_time()) / 1_000;
    let coarse = i64::try_from(coarse).map_or(Timestamp::now(), Timestamp::from_micros);
    coarse.min(Timestamp::now())
}

/// What the kernel stamps with now, where it stamps with ticks.
fn coarse_time() -> FileTime {
    let time = clock_gettime(ClockId::RealtimeCoarse);
    FileTime {
        seconds: time.tv_sec,
        nanos: time.tv_nsec as u32,
    }
}

fn nanos_at(time: Timestamp) -> i128 {
    i128::from(time.as_micros()) * 1_000
}

fn nanos_of(time: FileTime) -> i128 {
    i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000;

    /// A name on a device that was changed so many milliseconds after [`NOW`].
    fn stamp(dev: u64, millis: i64) -> Stamp {
        let time = FileTime {
            seconds: NOW + millis.div_euclid(1_000),
            nanos: (millis.rem_euclid(1_000) * 1_000_000) as u32,
        };
        Stamp {
            dev,
            ino: 1,
            size_bytes: 0,
            mtime: time,
            ctime: time,
            allocated_bytes: 0,
            links: 1,
        }
    }

    #[test]
    fn only_what_was_changed_within_a_step_is_waited_for() {
        let rest_of = |items: &[(u64, i64)]| {
            let stamps = items.iter().map(|&(dev, ms)| stamp(dev, ms));
            let now = Timestamp::from_micros(NOW * 1_000_000);
            // It ticked a moment ago.
            let coarse = stamp(0, 1).mtime;
            Clocks::of(stamps).rest(now, coarse).as_millis()
        };
        assert_eq!(rest_of(&[]), 0);
        // Fine stamps; one of a whole second by chance.
        assert_eq!(rest_of(&[(1, -21), (1, -2_000)]), 0);
        assert_eq!(rest_of(&[(1, -5), (1, -2_000)]), 15);
        assert_eq!(rest_of(&[(1, -1), (1, 0)]), 20);
        // Whole seconds everywhere.
        assert_eq!(rest_of(&[(1, -3_000), (1, -86_400_000)]), 0);
        assert_eq!(rest_of(&[(1, -1_000), (1, -86_400_000)]), 1_020);
        // Of another file system, fine stamps tell nothing.
        assert_eq!(rest_of(&[(1, -1_000), (2, -1)]), 1_020);
        // A step is enough for what is in the future.
        assert_eq!(rest_of(&[(1, 86_400_000)]), 2_020);
        assert_eq!(rest_of(&[(1, 86_400_001)]), 20);
        assert_eq!(rest_of(&[(1, i64::MAX / 2_000_000)]), 20);
    }

    #[test]
    fn a_tick_that_is_late_is_waited_for() {
        let rest_of = |items: &[(u64, i64)], coarse_millis: i64| {
            let stamps = items.iter().map(|&(dev, ms)| stamp(dev, ms));
            let now = Timestamp::from_micros(NOW * 1_000_000);
            let coarse = stamp(0, coarse_millis).mtime;
            Clocks::of(stamps).rest(now, coarse).as_millis()
        };
        // The kernel's clock is where it was when the newest file was stamped, for longer than two ticks.
        assert_eq!(rest_of(&[(1, -90), (1, -2_000)], -90), 20);
        assert_eq!(rest_of(&[(1, -90), (1, -2_000)], -91), 20);
        assert_eq!(rest_of(&[(1, -90), (2, -2_001)], -90), 20);
        assert_eq!(rest_of(&[(1, -90), (1, -2_000)], -89), 0);
        // That of whole seconds goes on with them, and a stamp in the future was not set by the kernel.
        assert_eq!(rest_of(&[(1, -3_000)], -3_000), 0);
        assert_eq!(rest_of(&[(1, 86_400_001)], -1), 20);
        let future = [(1, 86_400_001)].into_iter();
        let clocks = Clocks::of(future.map(|(dev, ms)| stamp(dev, ms)));
        let now = Timestamp::from_micros(NOW * 1_000_000);
        assert!(!clocks.is_late(now, stamp(0, -1).mtime), "never over");
    }

    #[test]
    fn the_kernels_clock_for_stamps_is_never_before_the_stamps_that_it_gave() {
        let file = tempfile::tempfile().unwrap();
        let stamped = rustix::fs::fstat(&file).unwrap();
        let before = Stamp::of(&stamped).mtime;
        let clocks = Clocks::of(std::iter::once(Stamp::of(&stamped)));
        clocks.wait(&|| Ok(())).unwrap();
        assert!(coarse_time() > before);
    }

    #[test]
    fn only_stamps_that_are_as_new_as_the_scan_are_in_doubt() {
        // Two file systems, of fine stamps and of whole seconds, and one whose clock is behind.
        let all = [
            (1, 1),
            (1, -86_400_000),
            (2, 1_000),
            (2, -86_400_000),
            (4, -5_001),
        ];
        let clocks = Clocks::of(all.into_iter().map(|(dev, ms)| stamp(dev, ms)));
        let doubt = clocks.doubt(Timestamp::from_micros(NOW * 1_000_000));
        for (dev, millis, expected) in [
            (1, -21, false),
            (1, -20, true),
            (1, 0, true),
            // However long the scan took, and whatever the clock says.
            (1, 60_000, true),
            (2, -3_000, false),
            (2, -2_000, true),
            (3, 0, false),
            (4, -5_022, false),
            (4, -5_021, true),
        ] {
            let found = doubt.is_about(&stamp(dev, millis));
            assert_eq!(found, expected, "{dev} {millis}");
        }
        assert!(!Doubt::default().is_about(&stamp(1, 0)));
    }
}
