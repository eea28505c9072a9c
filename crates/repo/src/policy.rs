//! Which backups of one group a policy keeps, and why. Pure: ids and times in, rules out.
//!
//! The order comes from the backup ids; days, weeks and months, in UTC, from the ids and from what the clocks of the hosts
//! said. These differ where a clock was ahead and went back: the ids that follow are all of the second in which it was ahead, and
//! by them alone the backups of weeks would be of one day. A backup stays that is the newest of its period by either.
//!
//! The clock at hand says which ids cannot be right: those later than `SKEW_SECONDS_MAX` from now. If the clock of its host said the
//! same, such a backup is kept and counts for no rule, so that it cannot displace any other. If it did not, the id was drawn behind one
//! of a clock that was ahead, and the backup began when its host's clock said. That is no more than a claim, and so is an id: whoever
//! writes a manifest chooses both. So the backups that count are also looked at in the order in which they began, and one stays that
//! is kept in either order. By an id ahead of the clock nobody has more go than by one of the time that is claimed, and an id that
//! stays the highest for years does not make all that follow old ones.
//!
//! Invariants: every rule keeps at least the newest backup that counts, by the ids and by the times at which they began, so a group
//! never becomes empty; what is deleted is never more than the same policy would delete by the ids alone in which the time of the
//! host's clock stands for one that is ahead, and, the window aside, never more than by the ids as they are, whatever clocks say.

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
    /// It claims to begin in the future, by its id and by the clock of its host.
    Future,
}

/// A backup that counts.
#[derive(Clone, Copy)]
struct Counted {
    /// Its place among those that were given.
    at: usize,
    /// The time in its id.
    named: Timestamp,
    /// When it began by the clock of its host.
    clock: Timestamp,
    /// When it began as far as can be told: the time in its id, or that of the clock where the id is ahead.
    begun: Timestamp,
    /// The latest `begun` of this one and all before it. They were made before it, so it cannot have begun earlier, whatever its
    /// host's clock says.
    reached: Timestamp,
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
        let by_id = counted(backups, now, &mut all);
        let mut by_begin = by_id.clone();
        // Stable: of those that began together the ids decide.
        by_begin.sort_by_key(|one| one.begun);
        for order in [&by_id, &by_begin] {
            for one in order.iter().rev().take(self.last as usize) {
                all[one.at].insert(Rule::Last);
            }
        }
        let periods = [
            (self.daily, Rule::Daily, Timestamp::utc_day as fn(_) -> _),
            (self.weekly, Rule::Weekly, Timestamp::utc_week),
            (self.monthly, Rule::Monthly, Timestamp::utc_month),
        ];
        for (count, rule, period) in periods {
            newest_of_each(&by_id, |one| period(one.named), count, rule, &mut all);
            newest_of_each(&by_id, |one| period(one.clock), count, rule, &mut all);
            newest_of_each(&by_begin, |one| period(one.begun), count, rule, &mut all);
        }
        if let Some(seconds) = self.within_seconds {
            window(&by_id, |one| one.reached, seconds, &mut all);
            window(&by_begin, |one| one.begun, seconds, &mut all);
        }
        all
    }
}

/// Those of `backups` that count, in the order of their ids; the others are kept.
fn counted(
    backups: &[(BackupId, Timestamp)],
    now: Timestamp,
    kept: &mut [BTreeSet<Rule>],
) -> Vec<Counted> {
    let skew_micros = SKEW_SECONDS_MAX * 1_000_000;
    let horizon = Timestamp::from_micros(now.as_micros().saturating_add(skew_micros));
    let mut counted: Vec<Counted> = Vec::with_capacity(backups.len());
    for (at, &(id, clock)) in backups.iter().enumerate() {
        let named = id.started();
        let begun = match named > horizon {
            true => clock,
            false => named,
        };
        if begun > horizon {
            kept[at].insert(Rule::Future);
            continue;
        }
        let before = counted.last();
        let reached = before.map_or(begun, |before| before.reached.max(begun));
        counted.push(Counted {
            at,
            named,
            clock,
            begun,
            reached,
        });
    }
    counted
}

/// Keeps the newest of each of the newest `count` periods that have a backup; `order` has the oldest first.
fn newest_of_each(
    order: &[Counted],
    period: impl Fn(&Counted) -> i64,
    count: u32,
    rule: Rule,
    kept: &mut [BTreeSet<Rule>],
) {
    let mut seen = BTreeSet::new();
    for one in order.iter().rev() {
        let period = period(one);
        if seen.contains(&period) {
            continue;
        }
        if seen.len() == count as usize {
            return;
        }
        seen.insert(period);
        kept[one.at].insert(rule);
    }
}

/// Keeps all that are at most so many seconds older than the newest, and the one before them. In `order` no time is before the
/// one that precedes it.
fn window(
    order: &[Counted],
    time: impl Fn(&Counted) -> Timestamp,
    seconds: u64,
    kept: &mut [BTreeSet<Rule>],
) {
    let Some(newest) = order.last() else {
        return;
    };
    let window_micros = i64::try_from(seconds.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
    let begin = time(newest).as_micros().saturating_sub(window_micros);
    let first = order.partition_point(|one| time(one).as_micros() < begin);
    for one in &order[first..] {
        kept[one.at].insert(Rule::Within);
    }
    if let Some(base) = order[..first].last() {
        kept[base.at].insert(Rule::WindowBase);
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

    /// Backups whose hosts' clocks said this, in seconds.
    fn told(ids: &[BackupId], clocks: Vec<i64>) -> Vec<(BackupId, Timestamp)> {
        ids.iter()
            .copied()
            .zip(clocks.into_iter().map(at))
            .collect()
    }

    /// Each rule on its own, as narrow as it can be.
    fn single_rules() -> [Policy; 5] {
        let none = Policy::default();
        [
            Policy { last: 1, ..none },
            Policy { daily: 1, ..none },
            Policy { weekly: 1, ..none },
            Policy { monthly: 1, ..none },
            Policy {
                within_seconds: Some(0),
                ..none
            },
        ]
    }

    /// The places of those that stay.
    fn stay(policy: Policy, backups: &[(BackupId, Timestamp)], now: Timestamp) -> Vec<usize> {
        let kept = policy.keep(backups, now).into_iter().enumerate();
        kept.filter(|(_, rules)| !rules.is_empty())
            .map(|(place, _)| place)
            .collect()
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
            let backups = told(&ids, clocks);
            let by_ids = gone(&policy, &ids, far);
            for ((id, _), rules) in backups.iter().zip(policy.keep(&backups, far)) {
                prop_assert!(!rules.is_empty() || by_ids.contains(id), "{}", id);
            }
        }

        /// The window aside: backups of weeks whose ids are of one second are all within it, by the ids.
        #[test]
        fn no_two_clocks_make_more_go_than_the_ids_alone(
            policy in any_policy(),
            ids in any_ids(),
            clocks in vec(0..NOW * 3, 30),
            now in prop_oneof![NOW - 90 * DAY..NOW + 90 * DAY, 0..NOW * 3],
        ) {
            let policy = Policy {
                within_seconds: None,
                ..policy
            };
            let backups = told(&ids, clocks);
            let by_ids = gone(&policy, &ids, Timestamp::from_micros(i64::MAX));
            for ((id, _), rules) in backups.iter().zip(policy.keep(&backups, at(now))) {
                prop_assert!(!rules.is_empty() || by_ids.contains(id), "{}", id);
            }
        }

        /// Whoever writes a manifest chooses its id and what its clock said.
        #[test]
        fn an_id_ahead_makes_no_more_go_than_one_of_the_time_that_is_claimed(
            policy in any_policy(),
            ids in any_ids(),
            clocks in vec(0..NOW * 3, 30),
            now in prop_oneof![NOW - 90 * DAY..NOW + 90 * DAY, 0..NOW * 3],
        ) {
            let backups = told(&ids, clocks);
            let horizon = at(now + SKEW_SECONDS_MAX);
            // The second half says which one it is, and keeps the order of those that began together.
            let mut believed = Vec::new();
            for (place, (id, clock)) in (0..).zip(&backups) {
                let begun = match id.started() > horizon {
                    true => *clock,
                    false => id.started(),
                };
                if begun <= horizon {
                    believed.push(BackupId::new(begun, place));
                }
            }
            believed.sort_unstable();
            let by_ids = gone(&policy, &believed, Timestamp::from_micros(i64::MAX));
            let by_ids: BTreeSet<u32> = by_ids.into_iter().map(BackupId::random).collect();
            for (place, rules) in (0..).zip(policy.keep(&backups, at(now))) {
                prop_assert!(!rules.is_empty() || by_ids.contains(&place), "{}", place);
            }
        }

        #[test]
        fn whatever_clocks_say_the_newest_stays(
            policy in any_policy(),
            ids in any_ids(),
            clocks in vec(0..NOW * 3, 30),
            now in prop_oneof![NOW - 90 * DAY..NOW + 90 * DAY, 0..NOW * 3],
        ) {
            prop_assume!(!policy.is_empty() && !ids.is_empty());
            let kept = policy.keep(&told(&ids, clocks), at(now));
            prop_assert!(kept.last().is_some_and(|rules| !rules.is_empty()));
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
        for policy in single_rules() {
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

    /// One backup of a clock five years ahead, and one a day with the right clock since then: the ids of these are of its second.
    fn behind_one_far_ahead() -> Vec<(BackupId, Timestamp)> {
        let ahead = NOW + 5 * 365 * DAY;
        let days = (1..31).map(|day| (id(ahead, day as u32), at(NOW + day * DAY)));
        std::iter::once((id(ahead, 0), at(ahead)))
            .chain(days)
            .collect()
    }

    #[test]
    fn backups_behind_one_of_a_clock_years_ahead_go_when_their_time_has_come() {
        let (backups, now) = (behind_one_far_ahead(), at(NOW + 30 * DAY));
        let stay = |policy| stay(policy, &backups, now);
        let none = Policy::default();
        let daily = Policy { daily: 7, ..none };
        assert_eq!(stay(daily), [0, 24, 25, 26, 27, 28, 29, 30]);
        assert_eq!(stay(Policy { last: 3, ..none }), [0, 28, 29, 30]);
        // Day 0 is a Monday, and the eighth one the first of December.
        assert_eq!(stay(Policy { weekly: 3, ..none }), [0, 20, 27, 30]);
        assert_eq!(stay(Policy { monthly: 2, ..none }), [0, 7, 30]);
        let within = Policy {
            within_seconds: Some(3 * DAY as u64),
            ..none
        };
        assert_eq!(stay(within), [0, 26, 27, 28, 29, 30]);
        // The one that is ahead itself counts for nothing.
        let kept = daily.keep(&backups, now);
        let future = |rules: &&BTreeSet<Rule>| rules.contains(&Rule::Future);
        assert_eq!(kept.iter().filter(future).count(), 1);
        assert_eq!(kept[0], BTreeSet::from([Rule::Future]));
    }

    /// By their ids the last days before are those before the day of all that follow.
    #[test]
    fn of_before_a_clock_was_far_ahead_no_more_stays_than_the_rules_keep() {
        let before = (1..=40).rev().map(|day| NOW - day * DAY);
        let mut backups: Vec<_> = before.map(|begun| (id(begun, 0), at(begun))).collect();
        backups.extend(behind_one_far_ahead());
        let policy = Policy {
            last: 3,
            daily: 7,
            within_seconds: Some(3 * DAY as u64),
            ..Policy::default()
        };
        let expected: Vec<usize> = (34..=40).chain(64..=70).collect();
        assert_eq!(stay(policy, &backups, at(NOW + 30 * DAY)), expected);
    }

    /// Of somebody who can write to the repository, for backups of another one who cannot read it and has a right clock.
    #[test]
    fn a_forged_id_of_years_ahead_does_not_make_what_follows_old() {
        let honest = (1..10).map(|day| (id(NOW + day * DAY, 0), at(NOW + day * DAY)));
        let mut backups: Vec<_> = honest.collect();
        backups.push((id(NOW + 5 * 365 * DAY, 0), at(NOW)));
        for policy in single_rules() {
            let stay = stay(policy, &backups, at(NOW + 9 * DAY));
            assert!(stay.ends_with(&[8, 9]), "{policy:?}: {stay:?}");
        }
        let last = Policy {
            last: 1,
            ..Policy::default()
        };
        assert_eq!(stay(last, &backups, at(NOW + 9 * DAY)), [8, 9]);
    }

    /// After a clock that was years ahead, one that begins in 1970 with each boot.
    #[test]
    fn the_latest_stays_where_one_clock_was_ahead_and_then_far_behind() {
        let mut backups = behind_one_far_ahead();
        let (ahead, _) = backups[0];
        backups.push((id(NOW + 5 * 365 * DAY, 31), at(60)));
        assert!(backups.is_sorted() && backups[31].0.started() == ahead.started());
        for policy in single_rules() {
            let stay = stay(policy, &backups, at(NOW + 31 * DAY));
            assert!(stay.ends_with(&[30, 31]), "{policy:?}: {stay:?}");
        }
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
