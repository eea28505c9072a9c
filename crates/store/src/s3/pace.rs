//! How fast an answer comes, by the time that was spent waiting for the network.
//!
//! Invariants: what happens here between two pieces (the wait for our own limit on the link, for instance) is no time of
//! the server's; an answer may come as slowly as it likes for the time-out, and then has to bring
//! [`BYTES_PER_SECOND_MIN`], since a byte now and then would keep a request for ever. Only the end of an upload in parts
//! may be answered by a byte now and then, for [`ENDING_TIME_MAX`], or under a claim (see `claim`) for as long as that is used.

use std::time::Duration;

/// Slower answers are given up, and where a run is asked for, a try that brought less was one in vain.
const BYTES_PER_SECOND_MIN: u64 = 64;
/// How long the answer to the end of an upload in parts may take. Its head comes at once, and then white space for as long as
/// the server puts the parts together: Amazon speaks of several minutes. Whoever asked again meanwhile would find the upload
/// gone. One that takes longer than this is taken for a server that has forgotten the request.
const ENDING_TIME_MAX: Duration = Duration::from_secs(600);

/// What an answer has brought so far.
#[derive(Debug, Default)]
pub(super) struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// The next piece came, after the network was waited for so long.
    pub fn add(&mut self, waited: Duration, bytes: u64) {
        self.waited += waited;
        self.bytes += bytes;
    }

    /// How long the network was waited for.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Whether it might go on for ever.
    pub fn is_too_slow(&self, timeout: Duration) -> bool {
        let late = self.waited.saturating_sub(timeout);
        self.bytes < late.as_secs() * BYTES_PER_SECOND_MIN
    }

    /// The same for the answer to the end of an upload in parts.
    pub fn is_too_slow_for_ending(&self) -> bool {
        self.waited > ENDING_TIME_MAX
    }
}

/// Whether a try that took so long was worth it: many that bring next to nothing come to no end.
pub(super) fn is_worth(bytes: u64, took: Duration) -> bool {
    bytes >= took.as_secs().max(1) * BYTES_PER_SECOND_MIN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_may_be_slow_for_the_time_out_and_no_longer() {
        let (second, timeout) = (Duration::from_secs(1), Duration::from_secs(30));
        let mut pace = Pace::default();
        for _ in 0..30 {
            pace.add(second, 0);
            assert!(!pace.is_too_slow(timeout));
        }
        for _ in 0..100 {
            pace.add(second, BYTES_PER_SECOND_MIN);
            assert!(!pace.is_too_slow(timeout));
        }
        pace.add(second, BYTES_PER_SECOND_MIN - 1);
        assert!(pace.is_too_slow(timeout));
    }

    #[test]
    fn the_end_of_an_upload_in_parts_may_take_minutes_and_no_longer() {
        let (mut pace, step) = (Pace::default(), Duration::from_secs(20));
        for _ in 0..30 {
            pace.add(step, 1);
            assert!(!pace.is_too_slow_for_ending());
        }
        pace.add(step, 1);
        assert!(pace.is_too_slow_for_ending());
    }

    #[test]
    fn a_try_that_brings_next_to_nothing_was_one_in_vain() {
        let second = Duration::from_secs(1);
        assert!(!is_worth(0, Duration::ZERO));
        assert!(!is_worth(1, second / 2));
        assert!(is_worth(BYTES_PER_SECOND_MIN, second / 2));
        assert!(!is_worth(2, 58 * second));
        assert!(is_worth(58 * BYTES_PER_SECOND_MIN, 58 * second));
    }
}
