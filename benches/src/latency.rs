//! Latencies as result files keep them: quantiles to read, and the HDR histogram that they come from.
//!
//! Invariants: the histogram is whole, so that any other quantile can be had from a result file later, and files of
//! several runs can be added up; it is in the exchange format of HdrHistogram (V2, deflated, base64), which its
//! libraries and plotters of every language read. Times are microseconds.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use mover_base::{Error, Kind, Result};
use mover_io::encode_histogram;
use serde::{Deserialize, Serialize};

/// Latencies of the requests of one run. The mover's own summaries tell theirs in the same fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latencies {
    /// Median.
    pub p50_us: u64,
    /// 99 % are not slower.
    pub p99_us: u64,
    /// 99.9 % are not slower.
    pub p999_us: u64,
    /// The slowest.
    pub max_us: u64,
    /// All of them; empty in results of before 2026-11-30.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub histogram: String,
}

impl Latencies {
    /// What is kept of a histogram of microseconds.
    ///
    /// # Errors
    /// [`Kind::Internal`] where it cannot be written down.
    pub fn of(histogram: &Histogram<u64>) -> Result<Self> {
        Ok(Latencies {
            p50_us: histogram.value_at_quantile(0.5),
            p99_us: histogram.value_at_quantile(0.99),
            p999_us: histogram.value_at_quantile(0.999),
            max_us: histogram.max(),
            histogram: encode_histogram(histogram)?,
        })
    }

    /// The histogram; none where the result file is from before there was one.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] where it is not one.
    pub fn histogram(&self) -> Result<Option<Histogram<u64>>> {
        if self.histogram.is_empty() {
            return Ok(None);
        }
        let strange = |why: String| {
            Error::new(Kind::Corrupt, "a result's histogram cannot be read").object(why)
        };
        let bytes = STANDARD
            .decode(&self.histogram)
            .map_err(|error| strange(error.to_string()))?;
        let histogram = Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(|error| strange(format!("{error:?}")))?;
        Ok(Some(histogram))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_comes_back_from_a_result_file() {
        let mut times = Histogram::<u64>::new_with_bounds(1, 600_000_000, 3).unwrap();
        for time in (1..5000).chain([77_000, 599_000_000]) {
            times.record(time).unwrap();
        }
        let kept = Latencies::of(&times).unwrap();
        let text = serde_json::to_string(&kept).unwrap();
        let read: Latencies = serde_json::from_str(&text).unwrap();
        assert_eq!(read, kept);
        let back = read.histogram().unwrap().unwrap();
        assert_eq!(back, times);
        assert_eq!(back.value_at_quantile(0.25), times.value_at_quantile(0.25));
        assert_eq!(kept.p50_us, times.value_at_quantile(0.5));
        assert_eq!(kept.max_us, times.max());
    }

    #[test]
    fn an_older_result_has_quantiles_only() {
        let text = r#"{"p50_us":1,"p99_us":2,"p999_us":3,"max_us":4}"#;
        let old: Latencies = serde_json::from_str(text).unwrap();
        assert_eq!((old.p50_us, old.max_us), (1, 4));
        assert!(old.histogram().unwrap().is_none());
    }

    #[test]
    fn what_is_no_histogram_is_an_error() {
        for text in ["?", "AAAA", "SElTVA=="] {
            let torn = Latencies {
                histogram: text.to_owned(),
                ..Latencies::default()
            };
            assert!(torn.histogram().is_err(), "{text}");
        }
    }
}
