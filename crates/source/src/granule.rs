//! How long a source has to rest between its scan and the first read.
//!
//! A file system stamps with a clock that moves in steps. What is written within the step in which a file was stamped last
//! leaves the stamp as it was, and so a file that is half read by then would become a mix that nobody notices. After a
//! step every write shows.
//!
//! Invariants: nobody waits for longer than a step, whatever the stamps say.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use mover_base::tree::FileTime;
use mover_base::{Result, Timestamp};

use crate::scan::Stamp;

/// Two ticks of the slowest kernel clock (100 Hz), with which fine stamps are taken before Linux 6.13.
const FINE: Duration = Duration::from_millis(20);

/// The steps of a file system that keeps whole seconds (ext4 with inodes of 128 bytes) or even ones (vfat), and a tick.
const COARSE: Duration = Duration::from_millis(2_020);

/// How long a wait goes on without asking whether it may.
const SLICE: Duration = Duration::from_millis(50);

/// Waits until every write shows in the stamp of what it changes; usually that is so. Ends with the error of `go_on`,
/// which is asked from time to time in a long wait.
pub(crate) fn wait(
    stamps: impl Iterator<Item = Stamp>,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let rest = rest(stamps, Timestamp::now());
    let begun = Instant::now();
    loop {
        let left = rest.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(SLICE));
        if left > SLICE {
            go_on()?;
        }
    }
}

/// How long it is at `now` until the last file system takes other stamps than any that were found on it.
fn rest(stamps: impl Iterator<Item = Stamp>, now: Timestamp) -> Duration {
    // The newest stamp of each file system, and whether all are of whole seconds.
    let mut newest: HashMap<u64, (FileTime, bool)> = HashMap::new();
    for stamp in stamps {
        let time = stamp.mtime.max(stamp.ctime);
        let is_whole = stamp.mtime.nanos == 0 && stamp.ctime.nanos == 0;
        newest
            .entry(stamp.dev)
            .and_modify(|(newest, is_coarse)| {
                *newest = time.max(*newest);
                *is_coarse &= is_whole;
            })
            .or_insert((time, is_whole));
    }
    let rests = newest.into_values().map(|(time, is_coarse)| {
        let step = if is_coarse { COARSE } else { FINE };
        // A stamp in the future was set by somebody, or by a clock that is not ours and takes a step meanwhile, too.
        let left = nanos_of(time) + step.as_nanos() as i128 - i128::from(now.as_micros()) * 1_000;
        Duration::from_nanos(left.clamp(0, step.as_nanos() as i128) as u64)
    });
    rests.max().unwrap_or_default()
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
            rest(stamps, Timestamp::from_micros(NOW * 1_000_000)).as_millis()
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
}
