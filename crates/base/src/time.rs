//! Points in time: microseconds since 1970-01-01 UTC, always with an offset in text.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time, in microseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(i64);

const COMPACT: &str = "%Y%m%d-%H%M%S";

impl Timestamp {
    /// Reads the system's clock.
    pub fn now() -> Self {
        Timestamp(jiff::Timestamp::now().as_microsecond())
    }

    /// From microseconds since 1970.
    pub const fn from_micros(micros: i64) -> Self {
        Timestamp(micros)
    }

    /// Microseconds since 1970.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Seconds from `earlier` to here; negative if it is later.
    pub fn seconds_since(self, earlier: Timestamp) -> f64 {
        self.0.saturating_sub(earlier.0) as f64 / 1e6
    }

    fn jiff(self) -> jiff::Timestamp {
        let limit = if self.0 < 0 {
            jiff::Timestamp::MIN
        } else {
            jiff::Timestamp::MAX
        };
        jiff::Timestamp::from_microsecond(self.0).unwrap_or(limit)
    }

    /// Days from 1970-01-01 to the day of this point, UTC.
    pub fn utc_day(self) -> i64 {
        self.0.div_euclid(86_400_000_000)
    }

    /// Weeks, from Monday to Sunday, from the one of 1970-01-01 to the one of this point, UTC.
    pub fn utc_week(self) -> i64 {
        // 1970-01-01 was a Thursday.
        (self.utc_day() + 3).div_euclid(7)
    }

    /// Months from January 1970 to the month of this point, UTC.
    pub fn utc_month(self) -> i64 {
        let date = self.jiff().to_zoned(jiff::tz::TimeZone::UTC).date();
        (i64::from(date.year()) - 1970) * 12 + i64::from(date.month()) - 1
    }

    /// `20261122-181409`, UTC, whole seconds.
    pub fn compact(self) -> String {
        self.jiff().strftime(COMPACT).to_string()
    }

    /// The inverse of [`compact`](Self::compact).
    pub fn parse_compact(text: &str) -> Option<Self> {
        let civil = jiff::civil::DateTime::strptime(COMPACT, text).ok()?;
        let zoned = civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
        Some(Timestamp(zoned.timestamp().as_microsecond()))
    }

    /// Parses RFC 3339; an offset or `Z` is required.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let parsed: jiff::Timestamp = text.parse().ok()?;
        Some(Timestamp(parsed.as_microsecond()))
    }

    /// Parses the date of an HTTP header, as in `Sun, 22 Nov 2026 18:14:09 GMT`.
    pub fn parse_http_date(text: &str) -> Option<Self> {
        let parsed = jiff::fmt::rfc2822::parse(text).ok()?;
        Some(Timestamp(parsed.timestamp().as_microsecond()))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.jiff().fmt(f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Timestamp::parse_rfc3339(&text)
            .ok_or_else(|| serde::de::Error::custom("not an RFC 3339 time with an offset"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_weeks_and_months_begin_where_the_calendar_says() {
        let at = |text: &str| Timestamp::parse_rfc3339(text).unwrap();
        assert_eq!(at("1970-01-01T00:00:00Z").utc_day(), 0);
        assert_eq!(at("1969-12-31T23:59:59Z").utc_day(), -1);
        // 2026-11-23 is a Monday.
        let (sunday, monday) = (at("2026-11-22T23:59:59Z"), at("2026-11-23T00:00:00Z"));
        assert_eq!(sunday.utc_week() + 1, monday.utc_week());
        assert_eq!(
            at("2026-11-29T12:00:00Z").utc_week(),
            monday.utc_week(),
            "a week ends on Sunday"
        );
        let (old, new) = (at("2026-12-31T23:59:59Z"), at("2027-01-01T00:00:00Z"));
        assert_eq!(old.utc_month() + 1, new.utc_month());
        assert_eq!(at("1970-02-28T00:00:00Z").utc_month(), 1);
        assert_eq!(at("1969-12-01T00:00:00Z").utc_month(), -1);
    }
}
