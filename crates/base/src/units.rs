//! Sizes, rates and numbers of things, for people and from people.

use crate::error::{Error, Kind, Result};

/// A block: the unit of hashing, deduplication and change tracking, in bytes.
pub const BLOCK_BYTES: usize = 4096;

/// Parses a size such as `10`, `64KiB`, `1.5 GiB`, `10MB` (decimal and binary units) into bytes.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let wrong = || {
        Error::new(Kind::Usage, "not a size")
            .object(text)
            .hint("write a number with an optional unit: 512KiB, 64MiB, 1.5GiB, 10MB")
    };
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number: f64 = text[..split].parse().map_err(|_| wrong())?;
    let unit = unit_bytes(&text[split..].trim().to_ascii_lowercase()).ok_or_else(wrong)?;
    let bytes = number * unit;
    if !(0.0..9e18).contains(&bytes) {
        return Err(wrong());
    }
    Ok(bytes.round() as u64)
}

/// Bytes of a unit in lower case: `kib` and `k` are binary, `kb` is decimal.
fn unit_bytes(unit: &str) -> Option<f64> {
    const PREFIXES: &str = "kmgtpe";
    if matches!(unit, "" | "b") {
        return Some(1.0);
    }
    let power = PREFIXES.find(unit.chars().next()?)? as i32 + 1;
    match &unit[1..] {
        "" | "ib" => Some(1024_f64.powi(power)),
        "b" => Some(1000_f64.powi(power)),
        _ => None,
    }
}

/// Formats bytes with a binary unit and three significant digits: `1.50 GiB`.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// How many blocks hold `bytes`, the last one perhaps in part.
pub const fn blocks_of(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES as u64)
}

/// `1,204`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 file`, `2 files`, `1,204 files`; the plural is made with `s` or, for `…y`, with `ies`.
pub fn counted(number: u64, noun: &str) -> String {
    if number == 1 {
        return format!("1 {noun}");
    }
    match noun.strip_suffix('y') {
        Some(stem) => format!("{} {stem}ies", count(number)),
        None => format!("{} {noun}s", count(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_with_binary_and_decimal_units() {
        for (text, bytes) in [
            ("0", 0),
            ("10", 10),
            ("64KiB", 65536),
            ("64 k", 65536),
            ("1.5GiB", 1_610_612_736),
            ("10MB", 10_000_000),
            ("2t", 2_199_023_255_552),
            ("1PiB", 1 << 50),
            ("3PB", 3_000_000_000_000_000),
            ("7 EiB", 7 << 60),
        ] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for text in [
            "", "-1", "1x", "1..2", "MiB", "1e3", "8EiB", "9EB", "1kk", "1ki", "1é",
        ] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_print_three_digits() {
        assert_eq!(format_bytes(0), "0 B");
        assert_eq!(format_bytes(1023), "1023 B");
        assert_eq!(format_bytes(1536), "1.50 KiB");
        assert_eq!(format_bytes(1024 * 1024 - 1), "1.00 MiB");
        assert_eq!(format_bytes(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn what_is_printed_parses() {
        for bytes in (0..63).flat_map(|power| [1_u64 << power, (1 << power) - 1]) {
            let (read, wanted) = (parse_bytes(&format_bytes(bytes)).unwrap(), bytes);
            assert!(read.abs_diff(wanted) <= wanted / 200, "{bytes}: {read}");
        }
    }

    #[test]
    fn last_block_may_be_partial() {
        assert_eq!([0, 1, 4095, 4096, 4097].map(blocks_of), [0, 1, 1, 1, 2]);
    }

    #[test]
    fn one_is_singular_and_thousands_are_told_apart() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(count),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(counted(1, "directory"), "1 directory");
        assert_eq!(counted(0, "directory"), "0 directories");
        assert_eq!(counted(1204, "file"), "1,204 files");
    }
}
