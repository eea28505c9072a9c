//! Repetitions: the order within each, medians and spreads of all, and the one in the middle.
//!
//! Invariants: the spread is that of all repetitions, none is left out; rates and shares are of medians. What belongs to one
//! run, such as its latencies, is told of the one in the middle, and of an even number of the slower of the two there.

use serde::{Deserialize, Serialize};

/// Repetitions of one measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one (of an even number, the mean of the two in the middle).
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// How many there were.
    pub count: usize,
}

impl Spread {
    /// Of `values`; None if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let count = values.len();
        let median = (values[(count - 1) / 2] + values[count / 2]) / 2.0;
        Some(Spread {
            median,
            min,
            max,
            count,
        })
    }
}

/// The one in the middle by its rate; of an even number, the slower of the two in the middle.
pub fn middle<T>(all: impl IntoIterator<Item = T>, rate: impl Fn(&T) -> f64) -> Option<T> {
    let mut all: Vec<T> = all.into_iter().collect();
    all.sort_by(|one, other| rate(one).total_cmp(&rate(other)));
    let index = all.len().checked_sub(1)? / 2;
    all.into_iter().nth(index)
}

/// The order of a round, counted from 1: each begins one further in the list, and every second goes through it
/// backwards, so that none is always the first and none always comes behind the same other.
pub fn turns<T: Copy>(all: &[T], round: u32) -> Vec<T> {
    let mut order = all.to_vec();
    let shift = round.saturating_sub(1) as usize % all.len().max(1);
    order.rotate_left(shift);
    if round.is_multiple_of(2)
        && let Some((_, others)) = order.split_first_mut()
    {
        others.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_and_nothing_gives_nothing() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(
            Spread::of([3.0]).map(|s| (s.median, s.count)),
            Some((3.0, 1))
        );
        assert_eq!(
            Spread::of([9.0, 1.0, 2.0]).map(|s| (s.median, s.min, s.max)),
            Some((2.0, 1.0, 9.0))
        );
        assert_eq!(Spread::of([4.0, 1.0]).map(|s| s.median), Some(2.5));
    }

    #[test]
    fn of_an_even_number_the_slower_in_the_middle_is_taken() {
        let middle = |all: &[f64]| middle(all.iter().copied(), |rate| *rate);
        assert_eq!(middle(&[]), None);
        assert_eq!(middle(&[3.0]), Some(3.0));
        assert_eq!(middle(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(middle(&[9.0, 4.0, 1.0, 2.0]), Some(2.0));
    }

    #[test]
    fn turns_change_who_is_first_and_who_is_behind_whom() {
        let all = [1, 2, 3, 4, 5];
        let rounds: Vec<Vec<i32>> = (1..=10).map(|round| turns(&all, round)).collect();
        assert_eq!(rounds[0], all);
        assert_eq!(rounds[1], [2, 1, 5, 4, 3]);
        assert_eq!(rounds[2], [3, 4, 5, 1, 2]);
        let firsts: Vec<i32> = rounds.iter().map(|round| round[0]).collect();
        assert_eq!(firsts, [all, all].concat());
        for round in &rounds {
            let mut sorted = round.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, all);
        }
        assert!(turns::<u8>(&[], 3).is_empty());
    }
}
