//! How a running job is shown: a bar on a terminal, JSON lines with `--json`, sparse lines with `-v`, and a line whenever SIGUSR1
//! asks for one.
//!
//! Invariants: rates are measured over the last few seconds of the current phase, so that an ETA follows the
//! job and not its history; a JSON job writes at least one status line; the display never fails a job.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use mover_base::Result;
use mover_base::units::format_bytes;
use mover_jobs::Stop;
use mover_jobs::progress::{Phase, Progress, Reading};
use serde::Serialize;

use crate::figures;
use crate::output::Output;
use crate::signals::Signals;

/// How long a measured rate looks back.
const WINDOW_SECONDS: f64 = 5.0;
/// Most readings kept: the window at ten readings a second, and some.
const SAMPLES_MAX: usize = 64;
/// Time between two JSON status lines.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// Time between two lines on a standard error that is not a terminal.
const NOTE_EVERY: Duration = Duration::from_secs(10);
/// Steps of the bar; fine enough for the widest terminal.
const BAR_STEPS: u64 = 10_000;

/// Figures derived from readings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// 0 to 100, absent while the total is not known.
    pub percent: Option<f64>,
    /// Over the last seconds, absent until there are two readings.
    pub bytes_per_second: Option<f64>,
    /// Seconds to the end of the phase at that rate.
    pub eta_seconds: Option<f64>,
}

/// Turns readings into figures.
#[derive(Debug, Default)]
pub struct Meter {
    samples: VecDeque<(f64, u64)>,
    phase: Option<(Phase, u64)>,
}

impl Meter {
    /// Takes a reading made `now` seconds after the job began.
    pub fn observe(&mut self, now: f64, reading: &Reading) -> Figures {
        let phase = Some((reading.phase, reading.bytes_total));
        if self.phase != phase {
            self.phase = phase;
            self.samples.clear();
        }
        self.samples.push_back((now, reading.bytes_done));
        while self.samples.len() > SAMPLES_MAX
            || (self.samples.len() > 2
                && self
                    .samples
                    .front()
                    .is_some_and(|(at, _)| now - at > WINDOW_SECONDS))
        {
            self.samples.pop_front();
        }
        let bytes_per_second = self.samples.front().and_then(|(at, done)| {
            let seconds = now - at;
            (seconds > 0.0).then(|| reading.bytes_done.saturating_sub(*done) as f64 / seconds)
        });
        let left = reading.bytes_total.saturating_sub(reading.bytes_done) as f64;
        let share = |done: u64, total: u64| (total > 0).then(|| 100.0 * done as f64 / total as f64);
        Figures {
            percent: share(reading.bytes_done, reading.bytes_total)
                .or(share(reading.files_done, reading.files_total)),
            bytes_per_second,
            eta_seconds: bytes_per_second
                .filter(|rate| *rate > 0.0 && reading.bytes_total > 0)
                .map(|rate| left / rate),
        }
    }
}

/// The line that says where a job is, without the bar.
fn describe(reading: &Reading, figures: &Figures) -> String {
    let mut out = String::new();
    if reading.bytes_total > 0 {
        out += &format!(
            "{} of {}",
            format_bytes(reading.bytes_done),
            format_bytes(reading.bytes_total)
        );
    } else if reading.bytes_done > 0 {
        out += &format_bytes(reading.bytes_done);
    } else if reading.files_total > 0 {
        out += &format!(
            "{} of {}",
            figures::count(reading.files_done),
            figures::counted(reading.files_total, "file")
        );
    }
    if let Some(rate) = figures
        .bytes_per_second
        .filter(|_| reading.bytes_total > 0 || reading.bytes_done > 0)
    {
        out += &format!("  {}", figures::rate(rate));
    }
    if let Some(eta) = figures.eta_seconds {
        out += &format!("  ETA {}", rough(eta));
    }
    out
}

/// How much of the phase is done; nothing where that is not known.
fn share_text(figures: &Figures) -> String {
    // Not rounded up: what is not done is not 100 %.
    let percent = figures.percent.map(f64::floor);
    percent.map_or(String::new(), |percent| format!("{percent:>3.0} %"))
}

/// A time to go: tenths of a second would only flicker.
fn rough(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{} s", seconds.ceil() as u64);
    }
    figures::duration(seconds)
}

/// All of it in one line, for where there is no bar.
fn whole_line(reading: &Reading, figures: &Figures) -> String {
    let (phase, share) = (phase_name(reading.phase), share_text(figures));
    let line = format!("{phase} {share:5}  {}", describe(reading, figures));
    line.trim_end().to_owned()
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Prepare => "preparing",
        Phase::Log => "reading log",
        Phase::Copy => "copying",
        Phase::Restore => "restoring",
        Phase::Verify => "verifying",
        Phase::Commit => "committing",
        Phase::Delete => "deleting",
    }
}

#[derive(Serialize)]
struct Status<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<&'a str>,
    #[serde(flatten)]
    reading: Reading,
    #[serde(flatten)]
    figures: Figures,
    elapsed_seconds: f64,
}

/// Shows one job while it runs.
pub struct Ticker<'a> {
    out: &'a mut Output,
    signals: &'a Signals,
    step: Option<&'static str>,
    meter: Meter,
    began: Instant,
    last_line: Option<Instant>,
    bar: Option<ProgressBar>,
}

impl<'a> Ticker<'a> {
    /// Begins to show a job; `step` names the part of a verb that runs several jobs.
    pub fn start(out: &'a mut Output, signals: &'a Signals, step: Option<&'static str>) -> Self {
        signals.in_order();
        let bar = (!out.is_json()).then(|| {
            let bar = out.bars().add(ProgressBar::new(BAR_STEPS));
            // 80 columns hold all of it; where there are fewer, the end is cut, since a line that wraps would be drawn anew and anew.
            let template = "{prefix:11} [{bar:10}] {wide_msg}";
            // The template is a constant; should it be wrong, the default bar does.
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style.progress_chars("=> "));
            bar
        });
        let mut ticker = Ticker {
            out,
            signals,
            step,
            meter: Meter::default(),
            began: Instant::now(),
            last_line: None,
            bar,
        };
        // A job shorter than one tick still has its status line.
        ticker.show(&Progress::default().read());
        ticker
    }

    /// To be called about ten times a second; passes a signal on to the job.
    pub fn tick(&mut self, progress: &Progress, stop: &Stop) {
        if self.signals.raised() {
            stop.raise();
        }
        self.show(&progress.read());
    }

    /// Says which limits hold from now on, or why they stay.
    pub fn tell_limits(&mut self, limits: Result<String>) {
        match limits {
            Ok(limits) => self.out.note(&format!("limits from now on: {limits}")),
            Err(error) => self
                .out
                .warning(&format!("the limits stay as they are: {error}")),
        }
    }

    /// Tells warnings while the job runs.
    pub fn warn(&mut self, warnings: &[String]) {
        for warning in warnings {
            self.out.warning(warning);
        }
    }

    fn show(&mut self, reading: &Reading) {
        let figures = self
            .meter
            .observe(self.began.elapsed().as_secs_f64(), reading);
        if let Some(bar) = &self.bar {
            bar.set_prefix(phase_name(reading.phase));
            let text = describe(reading, &figures);
            bar.set_message(format!("{:5}  {text}", share_text(&figures)));
            bar.set_position((figures.percent.unwrap_or(0.0) / 100.0 * BAR_STEPS as f64) as u64);
        }
        let asked = self.signals.take_asked();
        let due = |every: Duration| self.last_line.is_none_or(|last| last.elapsed() >= every);
        if self.out.is_json() && (asked || due(STATUS_EVERY)) {
            self.last_line = Some(Instant::now());
            self.out.status(Status {
                step: self.step,
                reading: *reading,
                figures,
                elapsed_seconds: self.began.elapsed().as_secs_f64(),
            });
        } else if asked {
            self.out.note(&whole_line(reading, &figures));
        } else if self.out.verbosity() > 0 && self.out.bars().is_hidden() && due(NOTE_EVERY) {
            let first = self.last_line.replace(Instant::now()).is_none();
            if !first {
                self.out.note(&whole_line(reading, &figures));
            }
        }
    }
}

impl Drop for Ticker<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(done: u64, total: u64) -> Reading {
        Reading {
            phase: Phase::Copy,
            bytes_total: total,
            bytes_done: done,
            bytes_stored: 0,
            files_total: 10,
            files_done: 1,
        }
    }

    #[test]
    fn the_first_reading_has_no_rate() {
        let figures = Meter::default().observe(0.0, &reading(0, 1000));
        assert_eq!(
            figures,
            Figures {
                percent: Some(0.0),
                bytes_per_second: None,
                eta_seconds: None
            }
        );
    }

    #[test]
    fn rate_and_eta_follow_the_last_seconds() {
        let mut meter = Meter::default();
        // 10 bytes a second for 10 s, then 90 bytes a second for 10 s.
        for second in 0..=20_u64 {
            let done = if second <= 10 {
                second * 10
            } else {
                100 + (second - 10) * 90
            };
            let figures = meter.observe(second as f64, &reading(done, 1900));
            if second == 20 {
                assert_eq!(figures.bytes_per_second, Some(90.0));
                assert_eq!(figures.eta_seconds, Some(10.0));
            }
        }
    }

    #[test]
    fn a_stalled_job_has_no_eta() {
        let mut meter = Meter::default();
        meter.observe(0.0, &reading(500, 1000));
        let figures = meter.observe(1.0, &reading(500, 1000));
        assert_eq!(
            (figures.bytes_per_second, figures.eta_seconds),
            (Some(0.0), None)
        );
    }

    #[test]
    fn a_new_phase_forgets_the_old_rate() {
        let mut meter = Meter::default();
        meter.observe(0.0, &reading(0, 1000));
        meter.observe(1.0, &reading(1000, 1000));
        let commit = Reading {
            phase: Phase::Commit,
            bytes_total: 0,
            bytes_done: 0,
            ..reading(0, 0)
        };
        let figures = meter.observe(1.1, &commit);
        assert_eq!(figures.bytes_per_second, None);
        assert_eq!(
            figures.percent,
            Some(10.0),
            "files count where bytes do not"
        );
    }

    #[test]
    fn memory_of_a_meter_is_bounded() {
        let mut meter = Meter::default();
        for i in 0..10_000 {
            meter.observe(f64::from(i) * 1e-6, &reading(0, 1));
        }
        assert!(meter.samples.len() <= SAMPLES_MAX);
    }

    #[test]
    fn the_line_says_bytes_rate_and_eta() {
        let figures = Figures {
            percent: Some(50.0),
            bytes_per_second: Some(1048576.0),
            eta_seconds: Some(1.2),
        };
        let line = describe(&reading(1 << 20, 2 << 20), &figures);
        assert_eq!(line, "1.00 MiB of 2.00 MiB  1.00 MiB/s  ETA 2 s");
        assert_eq!(share_text(&figures), " 50 %");
        let whole = whole_line(&reading(1 << 20, 2 << 20), &figures);
        assert_eq!(whole, format!("copying  50 %  {line}"));
        let nearly = Figures {
            percent: Some(99.9),
            ..figures
        };
        assert_eq!(share_text(&nearly), " 99 %");
    }

    #[test]
    fn what_has_no_total_says_bytes_and_rate_and_claims_no_more() {
        let log = |done| Reading {
            phase: Phase::Log,
            bytes_done: done,
            bytes_total: 0,
            files_total: 0,
            ..reading(0, 0)
        };
        let mut meter = Meter::default();
        meter.observe(0.0, &log(0));
        let figures = meter.observe(2.0, &log(4 << 20));
        assert_eq!((figures.percent, figures.eta_seconds), (None, None));
        assert_eq!(share_text(&figures), "");
        let line = describe(&log(4 << 20), &figures);
        assert_eq!(line, "4.00 MiB  2.00 MiB/s");
        assert_eq!(
            describe(&log(0), &Meter::default().observe(0.0, &log(0))),
            ""
        );
        let nothing = Meter::default().observe(0.0, &log(0));
        assert_eq!(whole_line(&log(0), &nothing), "reading log");
    }
}
