//! Values of options, from text: sizes, rates, spans of time, annotations.
//!
//! Invariants: a bad value is refused with a message that says how a good one looks; the caller names where
//! the value came from (flag, variable or file).

use mover_base::entries::LIST_BYTES_MAX;
use mover_base::units::{format_bytes, parse_bytes};

/// Least memory for I/O buffers: one buffer. How many a job really needs, the job says.
const ARENA_BYTES_MIN: u64 = 1 << 20;
/// Most memory for I/O buffers; above it a mistyped unit is likelier than a need.
const ARENA_BYTES_MAX: u64 = 64 << 30;
/// Least memory for the deduplication index, enough for a few gigabytes of unique blocks.
const INDEX_BYTES_MIN: u64 = 1 << 20;
/// Most memory for the deduplication index; above it a mistyped unit is likelier than a need.
const INDEX_BYTES_MAX: u64 = 256 << 30;

/// Least memory for the names of a source, enough for ten thousand.
const NAMES_BYTES_MIN: u64 = 1 << 20;
/// Most memory for the names of a source: whatever is backed up can be restored, which keeps a list in memory, too.
const NAMES_BYTES_MAX: u64 = LIST_BYTES_MAX as u64;

/// A limit in bytes, or in requests, per second; `None` is no limit, which a flag can say to win over a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(pub Option<u64>);

/// A span of time, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub u64);

/// Longest span of time: a hundred years.
const SPAN_SECONDS_MAX: u64 = 100 * 366 * 86_400;

/// One `key=value` note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    /// Not empty, without control characters.
    pub key: String,
    /// Anything without control characters.
    pub value: String,
}

fn parse_size(text: &str) -> Result<u64, String> {
    parse_bytes(text).map_err(|error| error.hint_text().unwrap_or(error.message()).to_owned())
}

fn within(bytes: u64, min: u64, max: u64) -> Result<u64, String> {
    if (min..=max).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(format!(
            "must be between {} and {}",
            format_bytes(min),
            format_bytes(max)
        ))
    }
}

/// `--arena`
pub fn parse_arena(text: &str) -> Result<u64, String> {
    within(parse_size(text)?, ARENA_BYTES_MIN, ARENA_BYTES_MAX)
}

/// `--index`
pub fn parse_index(text: &str) -> Result<u64, String> {
    within(parse_size(text)?, INDEX_BYTES_MIN, INDEX_BYTES_MAX)
}

/// `--names`
pub fn parse_names(text: &str) -> Result<u64, String> {
    within(parse_size(text)?, NAMES_BYTES_MIN, NAMES_BYTES_MAX)
}

/// `--limit-read`, `--limit-write`, `--limit-upload`, `--limit-download`: `200MiB/s`, `200MiB` or `none`. Not a bare number: other
/// tools take that for KiB, and a job at a thousandth of what was meant looks as if it hung.
pub fn parse_rate(text: &str) -> Result<Rate, String> {
    let number = text.trim();
    let number = number.strip_suffix("/s").unwrap_or(number).trim();
    if number.parse().is_ok_and(|number: f64| number > 0.0) {
        return Err(format!(
            "write a unit: {number}KiB/s, or {number}B/s if bytes are meant"
        ));
    }
    let wrong = "write a rate such as 200MiB/s, 1.5GB/s, or `none`";
    limit(text, |size| parse_bytes(size).ok(), wrong)
}

/// `--limit-requests`: `100`, `100/s` or `none`.
pub fn parse_request_rate(text: &str) -> Result<Rate, String> {
    let wrong = "write requests per second such as 100, or `none`";
    limit(text, |count| count.parse().ok(), wrong)
}

fn limit(text: &str, parse: impl Fn(&str) -> Option<u64>, wrong: &str) -> Result<Rate, String> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("none") {
        return Ok(Rate(None));
    }
    match parse(text.strip_suffix("/s").unwrap_or(text)) {
        Some(0) => Err("a rate of 0 would never end; write `none` for no limit".into()),
        Some(amount) => Ok(Rate(Some(amount))),
        None => Err(wrong.into()),
    }
}

/// `--keep-within`: `36h`, `14d`, `6w`, `1w2d`. Months and years are left out: they have no fixed length.
pub fn parse_span(text: &str) -> Result<Span, String> {
    const WRONG: &str = "write hours, days or weeks, such as 36h, 14d, 6w or 1w2d";
    let mut seconds = 0u64;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(WRONG.into());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(WRONG)?;
        let number: u64 = rest[..digits].parse().map_err(|_| WRONG)?;
        let unit = match rest.as_bytes()[digits] {
            b'h' => 3600,
            b'd' => 86_400,
            b'w' => 7 * 86_400,
            _ => return Err(WRONG.into()),
        };
        seconds = seconds.saturating_add(number.saturating_mul(unit));
        rest = &rest[digits + 1..];
    }
    match seconds {
        0 => Err("a span of 0 would keep the newest backup alone; write --keep-last 1".into()),
        1..=SPAN_SECONDS_MAX => Ok(Span(seconds)),
        _ => Err("the span is over a hundred years".into()),
    }
}

/// Longest name of a host; those of the domain name system have 253 bytes.
const HOST_BYTES_MAX: usize = 255;

/// `backup --host`
pub fn parse_host(text: &str) -> Result<String, String> {
    let is_wrong = |c: char| c.is_whitespace() || c.is_control();
    if text.is_empty() || text.len() > HOST_BYTES_MAX || text.contains(is_wrong) {
        return Err(format!(
            "write a name of at most {HOST_BYTES_MAX} bytes without spaces, such as db7"
        ));
    }
    Ok(text.to_owned())
}

/// `--annotation`
pub fn parse_annotation(text: &str) -> Result<Annotation, String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    let key = key.trim();
    if key.is_empty() {
        return Err("the key before `=` is empty".into());
    }
    if text.chars().any(char::is_control) {
        return Err("control characters are not allowed".into());
    }
    Ok(Annotation {
        key: key.into(),
        value: value.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_without_units() {
        assert_eq!(parse_request_rate("100"), Ok(Rate(Some(100))));
        assert_eq!(parse_request_rate("100/s"), Ok(Rate(Some(100))));
        assert_eq!(parse_request_rate("none"), Ok(Rate(None)));
        for bad in ["", "0", "1k", "1MiB", "-1", "1.5"] {
            assert!(parse_request_rate(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn rates_take_an_optional_per_second() {
        assert_eq!(parse_rate("200MiB/s"), Ok(Rate(Some(200 << 20))));
        assert_eq!(parse_rate("200MiB"), Ok(Rate(Some(200 << 20))));
        assert_eq!(parse_rate(" None "), Ok(Rate(None)));
        for bad in ["", "0", "0/s", "fast", "1MiB/min", "-1"] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_rate("5000B/s"), Ok(Rate(Some(5000))));
    }

    #[test]
    fn a_rate_without_a_unit_is_refused() {
        for bare in ["5000", " 5000/s", "1.5", "1e6"] {
            let error = parse_rate(bare).unwrap_err();
            assert!(error.contains("KiB/s"), "{bare}: {error}");
        }
        assert!(parse_rate("0").unwrap_err().contains("never end"));
    }

    #[test]
    fn a_host_is_one_word() {
        assert_eq!(parse_host("db7.example"), Ok("db7.example".to_owned()));
        for bad in ["", "db 7", " db7", "db7\n", "a\u{1b}b", &"x".repeat(256)] {
            assert!(parse_host(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn arena_and_index_are_bounded() {
        assert_eq!(parse_arena("1MiB"), Ok(1 << 20));
        assert!(parse_arena("1023KiB").is_err());
        assert!(parse_arena("65GiB").is_err());
        assert_eq!(parse_index("48MiB"), Ok(48 << 20));
        assert!(parse_index("1").is_err());
    }

    #[test]
    fn spans_are_of_fixed_units() {
        assert_eq!(parse_span("36h"), Ok(Span(36 * 3600)));
        assert_eq!(parse_span("14d"), Ok(Span(14 * 86_400)));
        assert_eq!(parse_span(" 1w2d "), Ok(Span(9 * 86_400)));
        for bad in [
            "",
            "7",
            "d",
            "0d",
            "1m",
            "1y",
            "1d2",
            "-1d",
            "1.5d",
            "1é",
            "1 d",
            "99999999999999999999w",
            "36601d",
        ] {
            assert!(parse_span(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn annotation_splits_at_the_first_equals_sign() {
        let parsed = parse_annotation("ticket=a=b").unwrap();
        assert_eq!(
            (parsed.key.as_str(), parsed.value.as_str()),
            ("ticket", "a=b")
        );
        for bad in ["", "ticket", "=b", " =b", "a=\u{1b}[31m"] {
            assert!(parse_annotation(bad).is_err(), "{bad:?}");
        }
    }
}
