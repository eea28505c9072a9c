//! Figures as people read them: durations, rates, shares, ratios and counts.
//!
//! Invariants: three significant digits or so, always with a unit; what cannot be said (not finite, negative)
//! is `-`, never a wrong number.

use mover_base::units::format_bytes;
pub use mover_base::units::{count, counted};

/// What stands for a figure that is not known.
pub const UNKNOWN: &str = "-";

/// `0.42 s`, `12.3 s`, `3 min 07 s`, `2 h 05 min`, `3 d 04 h`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return UNKNOWN.into();
    }
    if seconds < 9.995 {
        return format!("{seconds:.2} s");
    }
    if seconds < 59.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match whole {
        0..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {:02} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// `312 MiB/s`.
pub fn rate(bytes_per_second: f64) -> String {
    if !bytes_per_second.is_finite() || bytes_per_second < 0.0 {
        return UNKNOWN.into();
    }
    format!("{}/s", format_bytes(bytes_per_second as u64))
}

/// A share of 1 as `42.0 %`; never rounded up to 100 % nor down to 0 %.
pub fn percent(share: f64) -> String {
    if !share.is_finite() || share < 0.0 {
        return UNKNOWN.into();
    }
    let shown = share * 100.0;
    if shown > 0.0 && shown < 0.1 {
        return "< 0.1 %".into();
    }
    if shown < 100.0 && shown > 99.9 {
        return "99.9 %".into();
    }
    format!("{shown:.1} %")
}

/// `2.34:1`.
pub fn ratio(ratio: f64) -> String {
    if !ratio.is_finite() || ratio <= 0.0 {
        return UNKNOWN.into();
    }
    match ratio {
        0.0..9.995 => format!("{ratio:.2}:1"),
        9.995..99.95 => format!("{ratio:.1}:1"),
        _ => format!("{ratio:.0}:1"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_change_unit_at_the_boundaries() {
        for (seconds, text) in [
            (0.0, "0.00 s"),
            (9.994, "9.99 s"),
            (9.995, "10.0 s"),
            (59.94, "59.9 s"),
            (59.95, "1 min 00 s"),
            (61.0, "1 min 01 s"),
            (3599.4, "59 min 59 s"),
            (3599.5, "1 h 00 min"),
            (86_399.4, "23 h 59 min"),
            (86_400.0, "1 d 00 h"),
            (f64::NAN, "-"),
            (f64::INFINITY, "-"),
            (-1.0, "-"),
        ] {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn shares_do_not_round_to_all_or_nothing() {
        for (share, text) in [
            (0.0, "0.0 %"),
            (0.0001, "< 0.1 %"),
            (0.42, "42.0 %"),
            (0.99999, "99.9 %"),
            (1.0, "100.0 %"),
            (f64::NAN, "-"),
        ] {
            assert_eq!(percent(share), text, "{share}");
        }
    }

    #[test]
    fn ratios_and_rates() {
        assert_eq!(ratio(2.344), "2.34:1");
        assert_eq!(ratio(15.12), "15.1:1");
        assert_eq!(ratio(512.0), "512:1");
        assert_eq!(ratio(0.0), "-");
        assert_eq!(ratio(f64::INFINITY), "-");
        assert_eq!(rate(1024.0 * 1024.0 * 312.0), "312 MiB/s");
        assert_eq!(rate(f64::NAN), "-");
    }
}
