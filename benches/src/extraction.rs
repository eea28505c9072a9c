//! How fast changes are extracted straight from the segments of a log, beside what the hardware allows.
//!
//! Invariants: the log is the reference database's own, with the deltas and images of its transactions; rates are bytes of
//! the range, padding included, per second; every extraction gives the same pages, and as many transactions as were
//! written; limits are measured over the same bytes, before each extraction that they are held against.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use mover_base::checksum::{crc32, sha256};
use mover_base::{Error, Kind, Lsn, LsnRange, Result, Timestamp};
use mover_pagedb::workload::accounts;
use mover_pagedb::{Database, Options, Workload};
use mover_source::delta::{BUDGET_BYTES_DEFAULT, Delta, extract};
use mover_source::disk::{DirDisk, Disk};
use mover_source::pages::{Store, new_identity};
use mover_source::wal::{LogIdentity, LogReader, Record, SegmentSize, Verify};
use serde::{Deserialize, Serialize};

use crate::command::{drop_caches, sync};
use crate::cores::{Cores, Took, timed};
use crate::data::Files;
use crate::disk::{self, Drain};
use crate::machine::Machine;
use crate::stats::Spread;

/// Clients whose transactions the log holds, in turn.
const CLIENTS: u64 = 4;
/// Transactions between two checkpoints: what four clients commit in a second or two.
const CHECKPOINT_EVERY: u64 = 10_000;
/// Bytes that a checksum is computed over at once, where nothing says how many.
const PIECE_BYTES: usize = 1 << 20;

/// How the log was flushed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flushed {
    /// Whenever each client has committed once: each flush is padded to whole blocks.
    Together,
    /// When the writer's buffer is full: next to no padding.
    Rarely,
}

impl Flushed {
    /// Both.
    pub const ALL: [Flushed; 2] = [Flushed::Together, Flushed::Rarely];

    fn title(self) -> &'static str {
        match self {
            Flushed::Together => "flushed for four commits at a time",
            Flushed::Rarely => "flushed when the buffer was full",
        }
    }
}

/// What is done with the log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// The segments are read from the disk, past the page cache, and nothing else.
    ReadDisk,
    /// Changes are extracted from the segments on the disk, with cold caches.
    ExtractDisk,
    /// The same wherever the process may run: whoever reads ahead has a core of its own.
    ExtractDiskAllCores,
    /// CRC-32 of the same bytes in memory, a MiB at a time.
    Crc32,
    /// CRC-32 of each record.
    Crc32Records,
    /// Changes are extracted from segments in memory.
    ExtractMemory,
    /// The same wherever the process may run.
    ExtractMemoryAllCores,
    /// SHA-256 of the segments, which extraction does not need.
    Sha256,
    /// All records are read, with the SHA-256 of each segment, as an archive is to be read.
    ReadVerified,
}

impl Work {
    /// All, each limit before what is held against it.
    pub const ALL: [Work; 9] = [
        Work::ReadDisk,
        Work::ExtractDisk,
        Work::ExtractDiskAllCores,
        Work::Crc32,
        Work::Crc32Records,
        Work::ExtractMemory,
        Work::ExtractMemoryAllCores,
        Work::Sha256,
        Work::ReadVerified,
    ];

    fn title(self) -> &'static str {
        match self {
            Work::ReadDisk => "limit: the segments read alone, O_DIRECT, one core",
            Work::ExtractDisk => "**extraction, cold caches, one core**",
            Work::ExtractDiskAllCores => "extraction, cold caches, all cores",
            Work::Crc32 => "limit: CRC-32 of all bytes, 1 MiB at a time, one core",
            Work::Crc32Records => "limit: CRC-32 record by record, one core",
            Work::ExtractMemory => "**extraction, log in memory, one core**",
            Work::ExtractMemoryAllCores => "extraction, log in memory, all cores",
            Work::Sha256 => "limit: SHA-256 of all bytes, one core",
            Work::ReadVerified => {
                "all records read and each segment's SHA-256 compared, log in memory, one core"
            }
        }
    }

    fn cores(self) -> Cores {
        match self {
            Work::ExtractDiskAllCores | Work::ExtractMemoryAllCores => Cores::All,
            _ => Cores::One,
        }
    }
}

/// How much is measured, and where.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// A directory in memory.
    pub memory: &'a Path,
    /// A directory on the disk to measure.
    pub disk: &'a Path,
    /// The checkout.
    pub root: &'a Path,
    /// Bytes of each log.
    pub log_bytes: u64,
    /// How often each work is measured.
    pub repetitions: u32,
    /// Whether caches are emptied before the disk is read, which needs root.
    pub cold: bool,
}

/// What a log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Bytes of the range.
    pub bytes: u64,
    /// Bytes of its records.
    pub record_bytes: u64,
    /// Deltas.
    pub deltas: u64,
    /// Their bytes.
    pub delta_bytes: u64,
    /// Images.
    pub images: u64,
    /// Transactions.
    pub transactions: u64,
    /// All other records.
    pub others: u64,
    /// Pages that extraction names.
    pub pages: u64,
}

/// What was measured with one log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogFigures {
    /// How it was flushed.
    pub flushed: Flushed,
    /// What it holds.
    pub facts: Facts,
    /// What each work took, by repetition.
    pub took: BTreeMap<Work, Vec<Took>>,
}

/// All figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExtractionFigures {
    /// When they were measured.
    pub started: Timestamp,
    /// Where; the disk is that of the segments.
    pub machine: Machine,
    /// By log.
    pub logs: Vec<LogFigures>,
}

fn cannot(what: &str, error: std::io::Error) -> Error {
    Error::new(Kind::CheckFailed, what.to_owned()).cause(error)
}

/// Measures both logs.
///
/// # Errors
/// What the database, the log or the disk says; `Internal` if extraction gives something else than was written.
pub fn measure(setting: Setting<'_>) -> Result<ExtractionFigures> {
    let started = Timestamp::now();
    let machine = Machine::read(setting.disk, setting.root);
    let logs = Flushed::ALL.into_iter().map(|flushed| {
        let made = |dir| {
            let made = tempfile::Builder::new()
                .prefix("extraction-")
                .tempdir_in(dir);
            made.map_err(|error| cannot("no directory could be made", error))
        };
        let (memory, disk) = (made(setting.memory)?, made(setting.disk)?);
        let log = Log::make(memory.path(), flushed, setting.log_bytes)?;
        copy_segments(memory.path(), disk.path())?;
        log.measure(setting, memory.path(), disk.path())
    });
    Ok(ExtractionFigures {
        started,
        machine,
        logs: logs.collect::<Result<_>>()?,
    })
}

/// Copies the segments, and nothing else, into a directory of the same names.
fn copy_segments(from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (from.join("wal"), to.join("wal"));
    let copy = || -> std::io::Result<()> {
        std::fs::create_dir(&to)?;
        for entry in std::fs::read_dir(&from)? {
            let entry = entry?;
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok(())
    };
    copy().map_err(|error| cannot("the log could not be copied", error))?;
    sync();
    Ok(())
}

/// A log that the reference database wrote.
struct Log {
    identity: LogIdentity,
    range: LsnRange,
    flushed: Flushed,
    transactions: u64,
}

/// What is in memory of a log.
struct Loaded {
    segments: Vec<Vec<u8>>,
    /// Where each record's checksummed bytes are: segment, offset, length.
    records: Vec<(u32, u32, u32)>,
    facts: Facts,
}

impl Log {
    /// Has the database write a log of at least `bytes`, in memory.
    fn make(dir: &Path, flushed: Flushed, bytes: u64) -> Result<Log> {
        let disk: Arc<dyn Disk> = Arc::new(DirDisk::open_locked(dir)?);
        let identity = new_identity([9; 32], SegmentSize::DEFAULT);
        Store::create(Arc::clone(&disk), identity)?;
        let options = Options {
            pool_pages: 100_000,
            journal: false,
        };
        let (database, start) = Database::open(disk, options)?;
        database.commit(&accounts(5))?;
        let mut clients: Vec<Workload> = (0..CLIENTS).map(|n| Workload::new(5, n)).collect();
        let mut transactions = 1;
        while database.writer().end().0 < bytes {
            for client in &mut clients {
                database.append(&client.next_transaction())?;
                transactions += 1;
            }
            let end = database.writer().end();
            if flushed == Flushed::Together {
                database.writer().flush_to(end)?;
            }
            if transactions % CHECKPOINT_EVERY < CLIENTS {
                database.checkpoint()?;
            }
        }
        let end = database.close()?;
        Ok(Log {
            identity,
            range: LsnRange { start, end },
            flushed,
            transactions,
        })
    }

    fn reader(&self, dir: &Path, verify: Verify) -> Result<LogReader> {
        let disk = Arc::new(DirDisk::open(dir)?);
        Ok(LogReader::new(disk, self.identity, verify))
    }

    /// Bytes of the last segment up to the end of the range, behind which limits have nothing to do: a segment has room that was
    /// never written. None where the range ends with its segment.
    fn last_bytes(&self) -> Option<u64> {
        let bytes = self.range.end.0 % self.identity.size.bytes();
        (bytes > 0).then_some(bytes)
    }

    fn extract(&self, dir: &Path) -> Result<Delta> {
        let disk = Arc::new(DirDisk::open(dir)?);
        extract(disk, self.identity, self.range, BUDGET_BYTES_DEFAULT)
    }

    /// Reads the log into memory, and says what it holds.
    fn load(&self, dir: &Path) -> Result<Loaded> {
        let size = self.identity.size.bytes();
        let mut segments = Vec::new();
        for start in (0..self.range.end.0).step_by(size as usize) {
            let path = dir.join(self.identity.path(Lsn(start)));
            let bytes = std::fs::read(path);
            segments.push(bytes.map_err(|error| cannot("a segment cannot be read", error))?);
        }
        if let (Some(last), Some(bytes)) = (segments.last_mut(), self.last_bytes()) {
            last.truncate(bytes as usize);
        }
        let mut facts = Facts {
            bytes: self.range.end.0 - self.range.start.0,
            pages: self
                .extract(dir)?
                .tables
                .values()
                .map(|t| t.pages.len())
                .sum(),
            ..Facts::default()
        };
        let mut records = Vec::new();
        self.reader(dir, Verify::Records)?
            .read(self.range, |at, end, record| {
                let bytes = end.0 - at.0;
                let (segment, offset) = (at.0 / size, at.0 % size);
                records.push((segment as u32, offset as u32 + 4, bytes as u32 - 4));
                facts.record_bytes += bytes;
                match record {
                    Record::Delta { .. } => {
                        facts.deltas += 1;
                        facts.delta_bytes += bytes;
                    }
                    Record::Image { .. } => facts.images += 1,
                    Record::Commit { .. } => facts.transactions += 1,
                    _ => facts.others += 1,
                }
                Ok(())
            })?;
        Ok(Loaded {
            segments,
            records,
            facts,
        })
    }

    fn measure(&self, setting: Setting<'_>, memory: &Path, disk: &Path) -> Result<LogFigures> {
        let loaded = self.load(memory)?;
        let wanted = self.extract(memory)?;
        if wanted.transactions != self.transactions {
            let what = format!(
                "{} transactions were written, and {} were found",
                self.transactions, wanted.transactions
            );
            return Err(Error::new(Kind::Internal, what));
        }
        let mut figures = LogFigures {
            flushed: self.flushed,
            facts: loaded.facts,
            took: BTreeMap::new(),
        };
        for _ in 0..setting.repetitions {
            for work in Work::ALL {
                let on_disk = matches!(
                    work,
                    Work::ReadDisk | Work::ExtractDisk | Work::ExtractDiskAllCores
                );
                if on_disk && setting.cold {
                    drop_caches()?;
                }
                let dir = if on_disk { disk } else { memory };
                let (took, found) = timed(work.cores(), || self.run(work, dir, &loaded))?;
                if found.is_some_and(|delta| delta != wanted) {
                    return Err(Error::new(Kind::Internal, "extraction gave other pages"));
                }
                figures.took.entry(work).or_default().push(took);
            }
        }
        Ok(figures)
    }

    /// Does the work once. What was extracted, if something was.
    fn run(&self, work: Work, dir: &Path, loaded: &Loaded) -> Result<Option<Delta>> {
        match work {
            Work::ReadDisk => {
                let mut files = Files::list(&dir.join("wal"))?;
                if let (Some((_, last)), Some(bytes)) = (files.0.last_mut(), self.last_bytes()) {
                    *last = bytes;
                }
                disk::read(&files, Drain::Nothing)?;
            }
            Work::ExtractDisk
            | Work::ExtractDiskAllCores
            | Work::ExtractMemory
            | Work::ExtractMemoryAllCores => return self.extract(dir).map(Some),
            Work::Crc32 => {
                for piece in loaded.segments.iter().flat_map(|s| s.chunks(PIECE_BYTES)) {
                    black_box(crc32(piece));
                }
            }
            Work::Crc32Records => {
                for (segment, offset, len) in &loaded.records {
                    let (from, to) = (*offset as usize, (*offset + *len) as usize);
                    black_box(crc32(&loaded.segments[*segment as usize][from..to]));
                }
            }
            Work::Sha256 => {
                for segment in &loaded.segments {
                    black_box(sha256(segment));
                }
            }
            Work::ReadVerified => {
                let reader = self.reader(dir, Verify::Segments)?;
                reader.read(self.range, |_, _, record| {
                    black_box(record);
                    Ok(())
                })?;
            }
        }
        Ok(None)
    }
}

fn spread(values: impl Iterator<Item = f64>) -> String {
    Spread::of(values).map_or_else(String::new, |spread| {
        format!("{:.2} ({:.2}-{:.2})", spread.median, spread.min, spread.max)
    })
}

/// The figures as tables.
pub fn markdown(figures: &ExtractionFigures) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let (day, machine) = (crate::results::day(figures.started), &figures.machine);
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "# Extraction of changes from the log, {day}\n\n{}, {} cores; kernel {}; disk {}, {}; commit {}. Median, smallest and largest repetition. GB/s are bytes of \
         the log, padding included, a second; on one core, the thread that reads ahead is on it too. GB a CPU second count all threads and the kernel.\n",
        machine.cpu, machine.cores, machine.kernel, machine.disk, machine.mount, machine.commit
    );
    for log in &figures.logs {
        let facts = &log.facts;
        let share = |bytes: u64| 100.0 * bytes as f64 / facts.bytes as f64;
        let _ = write!(
            out,
            "\n## A log {}\n\n{} MB, {} transactions of the reference database: {} deltas of {:.0} bytes on average, {} images, {} other records; {:.0} % are records, \
             the rest is padding. {} pages changed.\n\n| | GB/s | GB a CPU second |\n|---|---|---|\n",
            log.flushed.title(),
            facts.bytes / 1_000_000,
            facts.transactions,
            facts.deltas,
            facts.delta_bytes as f64 / facts.deltas as f64,
            facts.images,
            facts.transactions + facts.others,
            share(facts.record_bytes),
            facts.pages
        );
        for (work, took) in &log.took {
            let rate = |seconds: f64| facts.bytes as f64 / seconds / 1e9;
            let _ = writeln!(
                out,
                "| {} | {} | {} |",
                work.title(),
                spread(took.iter().map(|took| rate(took.wall_seconds))),
                spread(took.iter().map(|took| rate(took.cpu_seconds))),
            );
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_log_is_extracted_in_every_way() {
        let (memory, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let setting = Setting {
            memory: memory.path(),
            disk: disk.path(),
            root: Path::new(env!("CARGO_MANIFEST_DIR")),
            log_bytes: 1 << 20,
            repetitions: 1,
            cold: false,
        };
        let figures = measure(setting).unwrap();
        assert_eq!(figures.logs.len(), 2);
        for log in &figures.logs {
            assert_eq!(log.took.len(), Work::ALL.len());
            assert!(log.facts.deltas > 0 && log.facts.images > 0 && log.facts.pages > 0);
        }
        let [together, rarely] = [&figures.logs[0], &figures.logs[1]].map(|log| log.facts);
        assert!(together.record_bytes * rarely.bytes < rarely.record_bytes * together.bytes);
        let text = markdown(&figures);
        assert!(
            text.contains("**extraction, cold caches, one core**"),
            "{text}"
        );
    }
}
