//! Which backups of one group a policy keeps, and why. Pure: ids and times in, rules out.
//!
//! The order comes from the backup ids alone; days, weeks and months, in UTC, from the ids and from what the clocks of the hosts
//! said. These differ where a clock was ahead and went back: the ids that follow are all of the second in which it was ahead, and
//! by them alone the backups of weeks would be of one day. A backup stays that is the newest of its period by either. The clock at
//! hand decides one thing: a backup that claims to begin later than `SKEW_SECONDS_MAX` from now is kept and counts for no rule, so
//! that it cannot displace any other.
//!
//! Invariants: every rule keeps at least the newest backup that counts, so a group never becomes empty; what is deleted is
//! never more than the same policy would delete by the ids alone, if no clock were looked at.

use std::collections::BTreeSet;

use mover_base::{BackupId, Timestamp};
use serde::Serialize;

/// By how much the clock of the host of a backup may be ahead of the one at hand.
pub(crate) const SKEW_SECONDS_MAX: i64 = 3600;

/// Rules by which backups are kept; at least one of them is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// The newest so many; 0 for no such rule.
    pub last: u32,
    /// The newest of each of the newest so many days that have one.
    pub daily: u32,
    /// The same for weeks, from Monday on.
    pub weekly: u32,
    /// The same for months.
    pub monthly: u32,
    /// All that began at most so many seconds before the newest, and the one before them.
    pub within_seconds: Option<u64>,
}

/// Why a backup is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// One of the newest.
    Last,
    /// The newest of its day.
    Daily,
    /// The newest of its week.
    Weekly,
    /// The newest of its month.
    Monthly,
    /// Within the window.
    Within,
    /// The newest before the window: with it all of the window can be recovered.
    WindowBase,
    /// It claims to begin in the future.
    Future,
}

impl Policy {
    /// Whether there is no rule at all.
    pub fn is_empty(&self) -> bool {
        *self == Policy::default()
    }

    /// The rules that keep each of `backups`, which must be sorted by their ids and bear the times at which they began by their
    /// hosts' clocks. None for those that may go.
    pub fn keep(&self, backups: &[(BackupId, Timestamp)], now: Timestamp) -> Vec<BTreeSet<Rule>> {
        let mut all = vec![BTreeSet::new(); backups.len()];
        let horizon = now
            .as_micros()
            .saturating_add(SKEW_SECONDS_MAX.saturating_mul(1_000_000));
        let counted = backups.partition_point(|(id, _)| id.started().as_micros() <= horizon);
        let backups = &backups[..counted];
        let (kept, future) = all.split_at_mut(counted);
        for rules in future {
            rules.insert(Rule::Future);
        }
        for rules in kept.iter_mut().rev().take(self.last as usize) {
            rules.insert(Rule::Last);
        }
        let periods = [
            (self.daily, Rule::Daily, Timestamp::utc_day as fn(_) -> _),
            (self.weekly, Rule::Weekly, Timestamp::utc_week),
            (self.monthly, Rule::Monthly, Timestamp::utc_month),
        ];
        for (count, rule, period) in periods {
            let by_id = backups.iter().map(|(id, _)| period(id.started()));
            newest_of_each(by_id, kept, count, rule);
            let by_clock = backups.iter().map(|(_, started)| period(*started));
            newest_of_each(by_clock, kept, count, rule);
        }
        if let (Some(seconds), Some((newest, _))) = (self.within_seconds, backups.last()) {
            let window_micros =
                i64::try_from(seconds.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
            let begin = newest.started().as_micros().saturating_sub(window_micros);
            let first = backups.partition_point(|(id, _)| id.started().as_micros() < begin);
            for rules in &mut kept[first..] {
                rules.insert(Rule::Within);
            }
            if let Some(rules) = kept[..first].last_mut() {
                rules.insert(Rule::WindowBase);
            }
        }
        all
    }
}

/// Keeps the newest of each of the newest `count` periods that have a backup, given the period of each, oldest first.
fn newest_of_each(
    periods: impl DoubleEndedIterator<Item = i64> + ExactSizeIterator,
    kept: &mut [BTreeSet<Rule>],
    count: u32,
    rule: Rule,
) {
    let mut seen = BTreeSet::new();
    for (period, rules) in periods.zip(kept).rev() {
        if seen.contains(&period) {
            continue;
        }
        if seen.len() == count as usize {
            return;
        }
        seen.insert(period);
        rules.insert(rule);
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const DAY: i64 = 86_400;
    /// 2026-11-23T00:00:00Z, a Monday.
    const NOW: i64 = 1_795_392_000;

    fn id(seconds: i64, random: u32) -> BackupId {
        BackupId::new(Timestamp::from_micros(seconds * 1_000_000), random)
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn sorted(mut ids: Vec<BackupId>) -> Vec<BackupId> {
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Backups whose hosts' clocks were right.
    fn on_time(ids: &[BackupId]) -> Vec<(BackupId, Timestamp)> {
        ids.iter().map(|id| (*id, id.started())).collect()
    }

    fn gone(policy: &Policy, ids: &[BackupId], now: Timestamp) -> BTreeSet<BackupId> {
        let kept = policy.keep(&on_time(ids), now);
        assert_eq!(kept.len(), ids.len());
        let gone = ids.iter().zip(&kept).filter(|(_, rules)| rules.is_empty());
        gone.map(|(id, _)| *id).collect()
    }

    /// The same by other means: for each backup alone, by counting which newer ones there are; with the calendar of jiff.
    fn naive(policy: &Policy, ids: &[BackupId], at: BackupId) -> BTreeSet<Rule> {
        let civil = |id: &BackupId| {
            let seconds = id.started().as_micros() / 1_000_000;
            let stamp = jiff::Timestamp::from_second(seconds).unwrap();
            stamp.to_zoned(TimeZone::UTC).date()
        };
        let day = |id: &BackupId| civil(id).to_string();
        let week = |id: &BackupId| {
            let week = civil(id).iso_week_date();
            format!("{}/{}", week.year(), week.week())
        };
        let month = |id: &BackupId| format!("{}/{}", civil(id).year(), civil(id).month());
        let newer: Vec<&BackupId> = ids.iter().filter(|id| **id > at).collect();
        let by_period = |count: u32, period: &dyn Fn(&BackupId) -> String| {
            let newer: BTreeSet<String> = newer.iter().map(|id| period(id)).collect();
            !newer.contains(&period(&at)) && newer.len() < count as usize
        };
        let mut rules = BTreeSet::new();
        let mut add = |rule, holds| {
            if holds {
                rules.insert(rule);
            }
        };
        add(Rule::Last, newer.len() < policy.last as usize);
        add(Rule::Daily, by_period(policy.daily, &day));
        add(Rule::Weekly, by_period(policy.weekly, &week));
        add(Rule::Monthly, by_period(policy.monthly, &month));
        if let Some(window) = policy.within_seconds {
            let seconds = |id: &BackupId| i128::from(id.started().as_micros() / 1_000_000);
            let newest = ids.iter().map(seconds).max().unwrap();
            let is_within = |id: &BackupId| newest - seconds(id) <= i128::from(window);
            add(Rule::Within, is_within(&at));
            let base = !is_within(&at) && newer.iter().all(|id| is_within(id));
            add(Rule::WindowBase, base);
        }
        rules
    }

    fn any_policy() -> impl Strategy<Value = Policy> {
        let window = proptest::option::of(prop_oneof![0u64..3_000_000, Just(u64::MAX)]);
        (0u32..5, 0u32..5, 0u32..4, 0u32..4, window).prop_map(
            |(last, daily, weekly, monthly, within_seconds)| Policy {
                last,
                daily,
                weekly,
                monthly,
                within_seconds,
            },
        )
    }

    fn any_ids() -> impl Strategy<Value = Vec<BackupId>> {
        // Within hours, months and decades of each other, before and after 1970's first week.
        let start = prop_oneof![
            NOW - 3 * DAY..NOW,
            NOW - 100 * DAY..NOW + 100 * DAY,
            0..NOW * 3
        ];
        vec((start, 0u32..3), 0..30).prop_map(|drawn| {
            sorted(
                drawn
                    .into_iter()
                    .map(|(at, random)| id(at, random))
                    .collect(),
            )
        })
    }

    proptest! {
        #[test]
        fn rules_are_those_of_the_naive_reading(policy in any_policy(), ids in any_ids()) {
            let far = at(NOW * 4);
            for (id, rules) in ids.iter().zip(policy.keep(&on_time(&ids), far)) {
                prop_assert_eq!(rules, naive(&policy, &ids, *id), "{}", id);
            }
        }

        #[test]
        fn no_clock_makes_more_go_than_the_order_of_ids(
            policy in any_policy(),
            ids in any_ids(),
            now in prop_oneof![NOW - 90 * DAY..NOW + 90 * DAY, 0..NOW * 3, Just(0), Just(i64::MAX / 1_000_000)],
        ) {
            let by_order = gone(&policy, &ids, Timestamp::from_micros(i64::MAX));
            let with_clock = gone(&policy, &ids, at(now));
            prop_assert!(with_clock.is_subset(&by_order));
        }

        #[test]
        fn no_clock_of_a_host_makes_more_go_than_the_ids_alone(
            policy in any_policy(),
            ids in any_ids(),
            clocks in vec(0..NOW * 3, 30),
        ) {
            let far = Timestamp::from_micros(i64::MAX);
            let clocks = clocks.into_iter().map(at);
            let backups: Vec<_> = ids.iter().copied().zip(clocks).collect();
            let by_ids = gone(&policy, &ids, far);
            for ((id, _), rules) in backups.iter().zip(policy.keep(&backups, far)) {
                prop_assert!(!rules.is_empty() || by_ids.contains(id), "{}", id);
            }
        }

        #[test]
        fn the_newest_stays_and_so_does_what_is_ahead(
            policy in any_policy(),
            ids in any_ids(),
            now in 0..NOW * 3,
        ) {
            prop_assume!(!policy.is_empty() && !ids.is_empty());
            let gone = gone(&policy, &ids, at(now));
            let ahead = |id: &&BackupId| id.started() > at(now + SKEW_SECONDS_MAX);
            prop_assert!(!ids.iter().filter(ahead).any(|id| gone.contains(id)));
            let newest = ids.iter().rfind(|id| !ahead(id));
            prop_assert!(newest.is_none_or(|id| !gone.contains(id)));
            prop_assert!(gone.len() < ids.len());
        }

        #[test]
        fn a_new_backup_brings_none_back_and_costs_at_most_what_it_replaces(
            policy in any_policy(),
            ids in any_ids(),
            later in 1i64..40 * DAY,
        ) {
            // Run after run with the same policy keeps what one run at the end would keep, or more.
            prop_assume!(!policy.is_empty() && !ids.is_empty());
            let far = Timestamp::from_micros(i64::MAX);
            let newest = ids[ids.len() - 1].started().as_micros() / 1_000_000;
            let first = gone(&policy, &ids, far);
            let mut now: Vec<BackupId> = ids.clone();
            now.push(id(newest + later, 0));
            let at_once = gone(&policy, &now, far);
            prop_assert!(first.is_subset(&at_once));
        }
    }

    #[test]
    fn one_backup_is_enough_for_any_rule() {
        let ids = [id(NOW, 1)];
        for policy in [
            Policy {
                last: 1,
                ..Policy::default()
            },
            Policy {
                daily: 1,
                ..Policy::default()
            },
            Policy {
                weekly: 1,
                ..Policy::default()
            },
            Policy {
                monthly: 1,
                ..Policy::default()
            },
            Policy {
                within_seconds: Some(0),
                ..Policy::default()
            },
        ] {
            assert!(gone(&policy, &ids, at(NOW)).is_empty(), "{policy:?}");
        }
        assert_eq!(gone(&Policy::default(), &ids, at(NOW)).len(), 1);
        assert!(Policy::default().is_empty());
    }

    #[test]
    fn a_window_keeps_the_backup_that_it_begins_with() {
        let ids: Vec<BackupId> = (0..10).map(|day| id(NOW + day * DAY, 0)).collect();
        let policy = Policy {
            within_seconds: Some(3 * DAY as u64),
            ..Policy::default()
        };
        let kept = policy.keep(&on_time(&ids), at(NOW + 9 * DAY));
        let rule = |at: usize| kept[at].iter().copied().collect::<Vec<_>>();
        assert_eq!(rule(6), [Rule::Within], "exactly at the window's begin");
        assert_eq!(rule(5), [Rule::WindowBase]);
        assert_eq!(rule(4), []);
        // It does not move on while no backup is made.
        let later = policy.keep(&on_time(&ids), at(NOW + 900 * DAY));
        assert_eq!(kept, later);
    }

    /// After one backup with a clock a month ahead, the ids of those that follow are of its second.
    #[test]
    fn backups_of_many_days_are_not_one_day_because_a_clock_was_ahead() {
        let ahead = NOW + 30 * DAY;
        let backups: Vec<(BackupId, Timestamp)> = (0..31)
            .map(|day| match day {
                0 => (id(ahead, 0), at(ahead)),
                _ => (id(ahead, day as u32), at(NOW + day * DAY)),
            })
            .collect();
        let policy = Policy {
            daily: 7,
            weekly: 3,
            ..Policy::default()
        };
        let kept = policy.keep(&backups, at(ahead + DAY));
        let of = |rule| {
            let kept = kept.iter().zip(0..31);
            let kept = kept.filter(|(rules, _)| rules.contains(&rule));
            kept.map(|(_, day)| day).collect::<Vec<i64>>()
        };
        assert_eq!(of(Rule::Daily), (24..31).collect::<Vec<i64>>());
        // Day 0 is a Monday.
        assert_eq!(of(Rule::Weekly), [20, 27, 30]);
    }

    #[test]
    fn a_backup_ahead_of_the_clock_displaces_none() {
        let ids = [
            id(NOW - DAY, 0),
            id(NOW, 0),
            id(NOW + 2 * SKEW_SECONDS_MAX, 0),
        ];
        let policy = Policy {
            last: 1,
            ..Policy::default()
        };
        let kept = policy.keep(&on_time(&ids), at(NOW));
        assert_eq!(kept[0], BTreeSet::new());
        assert_eq!(kept[1], BTreeSet::from([Rule::Last]));
        assert_eq!(kept[2], BTreeSet::from([Rule::Future]));
        // Within the skew it counts.
        let kept = policy.keep(&on_time(&ids), at(NOW + SKEW_SECONDS_MAX));
        assert_eq!(kept[1], BTreeSet::new());
        assert_eq!(kept[2], BTreeSet::from([Rule::Last]));
    }
}
