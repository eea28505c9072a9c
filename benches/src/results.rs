//! Result files: what they hold, where they are, how they are read back.
//!
//! Invariants: one file per date, part and data set, so a part can be measured again without the others; a file is
//! written whole or not at all.

use std::io::Write;
use std::path::{Path, PathBuf};

use mover_base::{Error, Kind, Result, Timestamp};
use serde::{Deserialize, Serialize};

use crate::command::Usage;
use crate::data::Dataset;
use crate::disk::DiskFigure;
use crate::latency::Latencies;
use crate::machine::Machine;
use crate::s3::backups::BackupRun;
use crate::s3::link_runs::LinkRun;
use crate::s3::transfers::S3Transfers;
use crate::stages::{SampleFacts, StageFigure};
use crate::stats::{Spread, middle};
use crate::tools::ToolRun;

/// A part of the whole measurement.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Disk alone, CPU stages alone.
    Rooflines,
    /// The mover.
    Mover,
    /// Its peers.
    Peers,
    /// The extraction loop on four runtimes.
    Bakeoff,
    /// Peak memory of the mover on 1 GB and 10 GB.
    Memory,
    /// Repositories in S3, and transfers beside other S3 clients.
    S3,
    /// S3 over a link of limited bandwidth.
    S3Link,
}

impl Part {
    /// All, in the order in which they run.
    pub const ALL: [Part; 7] = [
        Part::Rooflines,
        Part::Mover,
        Part::Peers,
        Part::Bakeoff,
        Part::Memory,
        Part::S3,
        Part::S3Link,
    ];

    /// Name in file names.
    pub fn name(self) -> &'static str {
        match self {
            Part::Rooflines => "rooflines",
            Part::Mover => "mover",
            Part::Peers => "peers",
            Part::Bakeoff => "bakeoff",
            Part::Memory => "memory",
            Part::S3 => "s3",
            Part::S3Link => "s3_link",
        }
    }
}

/// The decisive limits, measured once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LimitRound {
    /// O_DIRECT reads of the data set.
    pub read: DiskFigure,
    /// The same, with what a backup does to each frame.
    pub read_and_pack: DiskFigure,
    /// O_DIRECT writes with fsync.
    pub write: DiskFigure,
    /// The same, with what a restore does to each frame first.
    pub open_and_write: DiskFigure,
    /// All stages of a backup in memory, on all cores, in source bytes per second.
    pub backup_stages: f64,
    /// All stages of a restore in memory.
    pub restore_stages: f64,
}

/// The limits that the hardware sets on one data set.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rooflines {
    /// One before each repetition of the programs, so that a machine whose speed drifts slows both sides.
    pub rounds: Vec<LimitRound>,
    /// The data in memory that the stages ran on.
    pub sample: SampleFacts,
    /// CPU stages alone.
    pub stages: Vec<StageFigure>,
    /// Highest possible rate of a backup, in source bytes per second: the slower of disk and CPU, each alone and
    /// in the median of all rounds.
    pub backup_bytes_per_second: f64,
    /// What sets it.
    pub backup_limit: String,
    /// Highest possible rate of a restore.
    pub restore_bytes_per_second: f64,
    /// What sets it.
    pub restore_limit: String,
}

impl Rooflines {
    /// One of the disk figures, of all rounds: what rates are told by and divided by.
    pub fn rates(&self, figure: fn(&LimitRound) -> &DiskFigure) -> Option<Spread> {
        let figures = self.rounds.iter().map(figure);
        Spread::of(figures.map(|figure| figure.bytes_per_second))
    }

    /// The same of the round in the middle by its rate: latencies belong to one round, and have no median over several.
    pub fn middle(&self, figure: fn(&LimitRound) -> &DiskFigure) -> Option<&DiskFigure> {
        middle(self.rounds.iter().map(figure), |figure| {
            figure.bytes_per_second
        })
    }
}

/// Older results have their huge pages in the engine's own words, behind this.
const HUGE_PAGES_IN_NOTE: &str = ", huge pages ";

/// One run of one engine in the bake-off.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BakeoffRun {
    /// Engine, as the bake-off names it.
    pub engine: String,
    /// `read` or `hash`.
    pub variant: String,
    /// Counted from 1.
    pub repetition: u32,
    /// Bytes read.
    pub bytes: u64,
    /// Time of the loop, in seconds.
    pub loop_seconds: f64,
    /// What the process used.
    #[serde(flatten)]
    pub usage: Usage,
    /// From the call of a read until its task has the data.
    pub latency: Latencies,
    /// Equal for all engines of a variant.
    pub check: String,
    /// What the engine says about its settings.
    pub note: String,
    /// Most huge pages that the process was seen to have when one of its shards was done, in MiB; none in results of up to
    /// 2026-11-30, where [`note`](Self::note) tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_mib: Option<u64>,
}

impl BakeoffRun {
    /// Bytes per second of the loop.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.loop_seconds
    }

    /// CPU seconds of the process per gigabyte.
    pub fn cpu_seconds_per_gb(&self) -> f64 {
        self.usage.cpu_seconds() * 1e9 / self.bytes.max(1) as f64
    }

    /// Its huge pages, in MiB, wherever the result tells them.
    pub fn huge_pages_mib(&self) -> Option<u64> {
        self.huge_mib.or_else(|| {
            let (_, told) = self.note.split_once(HUGE_PAGES_IN_NOTE)?;
            told.split(' ').next()?.parse().ok()
        })
    }

    /// Its settings, without its huge pages.
    pub fn settings(&self) -> &str {
        let told = self.note.split_once(HUGE_PAGES_IN_NOTE);
        told.map_or(self.note.as_str(), |(settings, _)| settings)
    }
}

/// What a part measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measured {
    /// Limits of the hardware.
    Rooflines(Box<Rooflines>),
    /// Runs of programs.
    Tools(Vec<ToolRun>),
    /// Runs of engines.
    Bakeoff(Vec<BakeoffRun>),
    /// Files to S3 and back by several clients.
    S3Transfers(S3Transfers),
    /// Backups and restores, locally and in S3.
    S3Backups(Vec<BackupRun>),
    /// Backups and restores over a limited link.
    S3Link(Vec<LinkRun>),
}

/// A result file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResultFile {
    /// Which part.
    pub part: Part,
    /// On which data.
    pub dataset: Dataset,
    /// Files of the data set.
    pub dataset_files: usize,
    /// Bytes of the data set's files.
    pub dataset_bytes: u64,
    /// Tiny data, to try the harness: no figure to quote.
    pub smoke: bool,
    /// When the part began.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// Where.
    pub machine: Machine,
    /// Figures.
    pub measured: Measured,
}

fn path_of(dir: &Path, date: &str, part: Part, dataset: Dataset) -> PathBuf {
    dir.join(format!("{date}-{}-{}.json", part.name(), dataset.name()))
}

fn cannot(
    what: &str,
    path: &Path,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::new(Kind::Target, what)
        .object(path.display().to_string())
        .cause(error)
}

/// Writes a report to `path`, whole or not at all, and makes the directory that it lies in.
///
/// # Errors
/// `Target` if that fails.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let write = || -> std::io::Result<()> {
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        std::fs::write(&part, text)?;
        std::fs::rename(&part, path)
    };
    write().map_err(|error| cannot("a result cannot be written", path, error))
}

/// The date in file names, such as 2026-11-22.
pub fn day(time: Timestamp) -> String {
    time.to_string().chars().take(10).collect()
}

/// Writes `<date>-<name>.json` and `.md` into `dir`, and shows the tables.
///
/// # Errors
/// `Target` if that fails.
pub fn publish(
    dir: &Path,
    name: &str,
    started: Timestamp,
    figures: &impl Serialize,
    tables: &str,
) -> Result<()> {
    let path = |kind| dir.join(format!("{}-{name}.{kind}", day(started)));
    let json = path("json");
    let figures = serde_json::to_string_pretty(figures)
        .map_err(|error| cannot("a result cannot be written", &json, error))?;
    write(&json, &(figures + "\n"))?;
    write(&path("md"), tables)?;
    std::io::stdout()
        .write_all(tables.as_bytes())
        .map_err(|error| Error::new(Kind::Target, "standard output cannot be written").cause(error))
}

impl ResultFile {
    /// Writes it into `dir` and returns its path.
    pub fn write(&self, dir: &Path, date: &str) -> Result<PathBuf> {
        let path = path_of(dir, date, self.part, self.dataset);
        let json = serde_json::to_string_pretty(self)
            .map_err(|e| cannot("a result cannot be written", &path, e))?;
        write(&path, &(json + "\n"))?;
        Ok(path)
    }

    /// All result files of a date.
    pub fn read_all(dir: &Path, date: &str) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for part in Part::ALL {
            for dataset in Dataset::ALL {
                let path = path_of(dir, date, part, dataset);
                let text = match std::fs::read_to_string(&path) {
                    Ok(text) => text,
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(cannot("a result cannot be read", &path, error)),
                };
                let file = serde_json::from_str(&text)
                    .map_err(|e| cannot("a result is not as it was written", &path, e))?;
                all.push(file);
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_told_by_older_results_too() {
        let run = |text: &str| -> BakeoffRun {
            let fixed = r#""engine":"glommio","variant":"read","repetition":1,"bytes":1,"loop_seconds":1.0,"check":"",
                "wall_seconds":1.0,"user_seconds":1.0,"system_seconds":1.0,"rss_bytes":1,
                "latency":{"p50_us":1,"p99_us":1,"p999_us":1,"max_us":1}"#;
            serde_json::from_str(&format!("{{{fixed},{text}}}")).unwrap()
        };
        let old = run(r#""note":"32 threads, huge pages 70 MiB""#);
        assert_eq!(
            (old.huge_pages_mib(), old.settings()),
            (Some(70), "32 threads")
        );
        let new = run(r#""note":"32 threads","huge_mib":0"#);
        assert_eq!(
            (new.huge_pages_mib(), new.settings()),
            (Some(0), "32 threads")
        );
        assert_eq!(run(r#""note":"32 threads""#).huge_pages_mib(), None);
    }

    #[test]
    fn figures_and_tables_are_published_by_date() {
        let dir = tempfile::tempdir().unwrap();
        let started = Timestamp::from_micros(1_790_000_000_000_000);
        let results = dir.path().join("results");
        publish(&results, "dedup", started, &[1, 2], "# Tables\n").unwrap();
        let day = day(started);
        let read = |kind: &str| {
            std::fs::read_to_string(results.join(format!("{day}-dedup.{kind}"))).unwrap()
        };
        assert_eq!(day, "2026-09-21");
        assert_eq!(read("md"), "# Tables\n");
        assert_eq!(
            serde_json::from_str::<Vec<u8>>(&read("json")).unwrap(),
            [1, 2]
        );
    }
}
