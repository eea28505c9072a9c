//! The measurements in order: each part on each data set, a result file after each.
//!
//! Invariants: everything temporary is below one working directory (for S3 also one in memory), named by the process,
//! which is removed at the end, by benches/run if need be; a part that fails leaves the files of the parts before it;
//! the mover and its peers take turns within each repetition; an engine of the bake-off that should have huge pages has them.

use std::path::{Path, PathBuf};

use mover_base::units::format_bytes;
use mover_base::{Error, Kind, Result, Timestamp};
use serde_json::Value;

use crate::command::{Program, drop_caches};
use crate::data::{Dataset, Files, Sample, Scale};
use crate::disk::{self, Drain, Fill};
use crate::latency::Latencies;
use crate::machine::Machine;
use crate::results::{BakeoffRun, LimitRound, Measured, Part, ResultFile, Rooflines};
use crate::s3::backups;
use crate::s3::link_runs::{self, Sources};
use crate::s3::transfers::{self, Places};
use crate::stages::{self, Prepared, Stage};
use crate::stats::{Spread, turns};
use crate::tools::{self, Tool, ToolRun};

/// Free space for the largest working set: a repository and a restore of 10.7 GB, and room to spare.
const FREE_BYTES_MIN: u64 = 18_000_000_000;
/// More of it as long as a data set has to be made.
const FREE_BYTES_MIN_DATA: u64 = 17_000_000_000;
/// The same for tiny data.
const FREE_BYTES_MIN_SMOKE: u64 = 3_000_000_000;
/// Data in memory for CPU stages: large against the caches of the processor.
const SAMPLE_BYTES: u64 = 192 << 20;
/// Written for the write roofline.
const WRITE_BYTES: u64 = 2 << 30;
/// Files of the bake-off are at least so large, so that it reads and does not open.
const BAKEOFF_FILE_BYTES_MIN: u64 = 1 << 20;
/// File system in memory.
const MEMORY_DIR: &str = "/dev/shm";
/// Engines of the bake-off, as its program names them.
const ENGINES: [&str; 5] = [
    "mover_io",
    "tokio_uring",
    "glommio",
    "pread_threads",
    "mover_io_threads",
];
/// Loops of the bake-off: name in the results, loop of the program, whether every engine gets huge pages. The mover's
/// arena asks for them itself; without them for all, they and not the engines would be compared, so that is its own line.
const VARIANTS: [(&str, &str, bool); 3] = [
    ("read", "read", true),
    ("hash", "hash", true),
    ("read_as_shipped", "read", false),
];
/// Makes the C library's allocator ask for huge pages.
const HUGE_PAGES: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
/// A run whose buffers should lie on huge pages has at least so many of them for each core, in MiB: half of what its reads
/// under way take, since a shard that has ended has given its own back.
const HUGE_MIB_PER_CORE_MIN: u64 = 8;
/// Where the kernel is asked to make huge pages, before each run that should have them.
const COMPACT_MEMORY: &str = "/proc/sys/vm/compact_memory";
/// A run that did not get them is done again so often.
const BAKEOFF_ATTEMPTS_MAX: u32 = 5;
/// Longest time for one run in the bake-off: an engine that hangs is a result, too.
const BAKEOFF_TIMEOUT_SECONDS: &str = "120";

/// What to measure, and with what.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Parts.
    pub parts: Vec<Part>,
    /// Data sets.
    pub datasets: Vec<Dataset>,
    /// Repetitions of tools and engines.
    pub repetitions: u32,
    /// Size of the data.
    pub scale: Scale,
    /// Date in file names, such as 2026-11-22.
    pub date: String,
    /// The checkout.
    pub root: PathBuf,
    /// Data sets and working directory.
    pub cache: PathBuf,
    /// Result files.
    pub results: PathBuf,
    /// Binary of the mover.
    pub mover: PathBuf,
    /// Binary of the bake-off.
    pub bakeoff: PathBuf,
    /// This package's program for S3.
    pub s3: PathBuf,
    /// Directory of the peers' environment for S3.
    pub s3_peers: PathBuf,
    /// Binary of Garage.
    pub garage: PathBuf,
}

/// A data set that is there.
struct Ready {
    dataset: Dataset,
    path: PathBuf,
    files: Files,
}

impl Plan {
    fn smoke(&self) -> bool {
        self.scale == Scale::Smoke
    }

    fn has(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    /// Data sets that are kept; packs are made in memory, for S3 alone.
    fn on_disk(&self) -> impl Iterator<Item = Dataset> {
        let all = self.datasets.iter().copied();
        all.filter(|dataset| *dataset != Dataset::Packs)
    }

    fn ready(&self, dataset: Dataset) -> Result<Ready> {
        self.ready_in(dataset, &self.cache)
    }

    fn ready_in(&self, dataset: Dataset, cache: &Path) -> Result<Ready> {
        let path = dataset.ensure(cache, &self.root.join("benches/scripts"), self.scale)?;
        let files = Files::list(&path)?;
        Ok(Ready {
            dataset,
            path,
            files,
        })
    }

    /// Whether a part has anything to do on the data sets.
    fn measures(&self, part: Part) -> bool {
        match part {
            Part::Memory => true,
            Part::S3 => !self.datasets.is_empty(),
            Part::S3Link => self.datasets.contains(&Dataset::Packs),
            Part::Rooflines | Part::Mover | Part::Peers | Part::Bakeoff => {
                self.on_disk().next().is_some()
            }
        }
    }

    /// That each of the parts which were asked for by name has a data set to be measured on.
    ///
    /// # Errors
    /// [`Kind::Usage`] with the first that has none.
    pub fn check_measures(&self, named: &[Part]) -> Result<()> {
        let Some(part) = named.iter().find(|part| !self.measures(**part)) else {
            return Ok(());
        };
        let hint = match part {
            Part::S3Link => "it moves packs and rows: leave --dataset out, or name packs",
            _ => {
                "it is measured on pg, nano, rows and rows10g: name one of these, or leave --dataset out"
            }
        };
        let sets: Vec<&str> = self.datasets.iter().map(|set| set.name()).collect();
        let what = format!(
            "part {} measures nothing on {}",
            part.name().replace('_', "-"),
            sets.join(", ")
        );
        Err(Error::new(Kind::Usage, what).hint(hint))
    }

    /// That the server of the S3 part is there: told now, and not after all other parts.
    fn check_garage(&self) -> Result<()> {
        if !self.has(Part::S3) || self.garage.is_file() {
            return Ok(());
        }
        Err(Error::new(Kind::CheckFailed, "Garage is not there")
            .object(self.garage.display().to_string())
            .hint("let benches/run build it"))
    }

    fn check_space(&self) -> Result<()> {
        let mut sets: Vec<Dataset> = self.on_disk().collect();
        let large = self.has(Part::Memory) || self.has(Part::S3Link);
        sets.extend(large.then_some(Dataset::Rows10g));
        let complete = sets
            .iter()
            .all(|set| set.path(&self.cache, self.scale).is_dir());
        let needed = match (self.smoke(), complete) {
            (true, _) => FREE_BYTES_MIN_SMOKE,
            (false, true) => FREE_BYTES_MIN,
            (false, false) => FREE_BYTES_MIN + FREE_BYTES_MIN_DATA,
        };
        let found = rustix::fs::statvfs(&self.cache).map_err(|e| {
            Error::new(Kind::CheckFailed, "the free space cannot be read")
                .object(self.cache.display().to_string())
                .cause(e)
        })?;
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        if free < needed {
            return Err(Error::new(
                Kind::CheckFailed,
                format!(
                    "{} are free and {} are needed",
                    format_bytes(free),
                    format_bytes(needed)
                ),
            )
            .object(self.cache.display().to_string())
            .hint("free some space, or set XDG_CACHE_HOME to a directory on a larger disk"));
        }
        Ok(())
    }

    fn save(
        &self,
        part: Part,
        ready: &Ready,
        started: Timestamp,
        measured: Measured,
    ) -> Result<()> {
        let file = ResultFile {
            part,
            dataset: ready.dataset,
            dataset_files: ready.files.0.len(),
            dataset_bytes: ready.files.bytes(),
            smoke: self.smoke(),
            started,
            ended: Timestamp::now(),
            machine: Machine::read(&self.cache, &self.root),
            measured,
        };
        let path = file.write(&self.results, &self.date)?;
        eprintln!("wrote {}", path.display());
        Ok(())
    }
}

/// Makes the data sets that the plan needs.
pub fn prepare(plan: &Plan) -> Result<()> {
    std::fs::create_dir_all(&plan.cache).map_err(|e| {
        Error::new(Kind::Target, "the cache directory cannot be made")
            .object(plan.cache.display().to_string())
            .cause(e)
    })?;
    plan.check_space()?;
    for dataset in plan.on_disk() {
        let ready = plan.ready(dataset)?;
        eprintln!(
            "{}: {} in {} files",
            ready.dataset.name(),
            format_bytes(ready.files.bytes()),
            ready.files.0.len()
        );
    }
    if plan.has(Part::Memory) || plan.has(Part::S3Link) {
        plan.ready(Dataset::Rows)?;
        plan.ready(Dataset::Rows10g)?;
    }
    Ok(())
}

/// Runs the plan.
pub fn run(plan: &Plan) -> Result<()> {
    plan.check_garage()?;
    prepare(plan)?;
    let work = tempfile::Builder::new()
        .prefix(&format!("work-{}-", std::process::id()))
        .tempdir_in(&plan.cache)
        .map_err(|e| {
            Error::new(Kind::Target, "a working directory cannot be made")
                .object(plan.cache.display().to_string())
                .cause(e)
        })?;
    for dataset in plan.on_disk() {
        measure_dataset(plan, &plan.ready(dataset)?, work.path())?;
    }
    if plan.has(Part::Bakeoff)
        && let Some(dataset) = plan.on_disk().next()
    {
        eprintln!("== bake-off, {}", dataset.name());
        let ready = plan.ready(dataset)?;
        let started = Timestamp::now();
        let runs = measure_bakeoff(plan, &ready)?;
        plan.save(Part::Bakeoff, &ready, started, Measured::Bakeoff(runs))?;
    }
    if plan.has(Part::Memory) {
        measure_memory(plan, work.path())?;
    }
    if plan.has(Part::S3) || plan.has(Part::S3Link) {
        measure_s3(plan, work.path())?;
    }
    Ok(())
}

/// What rooflines are measured on.
struct Limits {
    sample: Sample,
    prepared: Prepared,
    rounds: Vec<LimitRound>,
}

impl Limits {
    fn new(ready: &Ready) -> Result<Self> {
        let sample = Sample::load(&ready.files, SAMPLE_BYTES)?;
        let prepared = Prepared::new(&sample)?;
        Ok(Limits {
            sample,
            prepared,
            rounds: Vec::new(),
        })
    }

    fn round(&mut self, plan: &Plan, ready: &Ready, work: &Path) -> Result<()> {
        let bytes = if plan.smoke() { 64 << 20 } else { WRITE_BYTES };
        drop_caches()?;
        let read = disk::read(&ready.files, Drain::Nothing)?;
        drop_caches()?;
        let read_and_pack = disk::read(&ready.files, Drain::Pack)?;
        drop_caches()?;
        let write = disk::write(work, bytes, Fill::Bytes(&self.sample.frames[0]))?;
        drop_caches()?;
        let open_and_write = disk::write(work, bytes, Fill::Frames(&self.prepared))?;
        let cpu = |stage| stages::source_rate(&self.sample, &self.prepared, stage);
        let round = LimitRound {
            read,
            read_and_pack,
            write,
            open_and_write,
            backup_stages: cpu(Stage::BackupPipeline)?,
            restore_stages: cpu(Stage::RestorePipeline)?,
        };
        eprintln!(
            "limits, MB/s: disk read {:.0}, backup stages {:.0}, both {:.0}; disk write {:.0}, restore stages {:.0}, both {:.0}",
            round.read.bytes_per_second / 1e6,
            round.backup_stages / 1e6,
            round.read_and_pack.bytes_per_second / 1e6,
            round.write.bytes_per_second / 1e6,
            round.restore_stages / 1e6,
            round.open_and_write.bytes_per_second / 1e6,
        );
        self.rounds.push(round);
        Ok(())
    }

    /// The single stages and the medians of the rounds.
    fn finish(self) -> Result<Rooflines> {
        let mut figures = Vec::new();
        for stage in Stage::ALL {
            let figure = stages::measure(&self.sample, &self.prepared, stage)?;
            eprintln!(
                "{}: {:.0} MB/s on one core, {:.0} on all",
                stage.title(),
                figure.one_core_bytes_per_second / 1e6,
                figure.all_cores_bytes_per_second / 1e6
            );
            figures.push(figure);
        }
        let median = |figure: fn(&LimitRound) -> f64| {
            Spread::of(self.rounds.iter().map(figure)).map_or(f64::INFINITY, |all| all.median)
        };
        let backup = lower(
            (median(|round| round.read.bytes_per_second), "disk read"),
            (median(|round| round.backup_stages), "CPU"),
        );
        let restore = lower(
            (median(|round| round.write.bytes_per_second), "disk write"),
            (median(|round| round.restore_stages), "CPU"),
        );
        Ok(Rooflines {
            sample: self.prepared.facts(&self.sample),
            rounds: self.rounds,
            stages: figures,
            backup_bytes_per_second: backup.0,
            backup_limit: backup.1.into(),
            restore_bytes_per_second: restore.0,
            restore_limit: restore.1.into(),
        })
    }
}

fn lower<'a>(one: (f64, &'a str), other: (f64, &'a str)) -> (f64, &'a str) {
    if one.0 <= other.0 { one } else { other }
}

fn show(run: &ToolRun) {
    eprintln!(
        "{} {:?} {}: {:.2} s, {:.0} MB/s, {:.2} CPU s/GB, {}, sync {:.2} s",
        run.tool.title(),
        run.step,
        run.repetition,
        run.usage.wall_seconds,
        run.bytes_per_second() / 1e6,
        run.cpu_seconds_per_gb(),
        format_bytes(run.usage.rss_bytes),
        run.sync_seconds
    );
}

/// Rooflines and programs on one data set, in turn within each repetition.
fn measure_dataset(plan: &Plan, ready: &Ready, work: &Path) -> Result<()> {
    let tools: Vec<Tool> = Tool::ALL
        .into_iter()
        .filter(|tool| plan.has(part_of(*tool)) && tool.takes(ready.dataset))
        .collect();
    let mut limits = match plan.has(Part::Rooflines) {
        true => Some(Limits::new(ready)?),
        false => None,
    };
    if limits.is_none() && tools.is_empty() {
        return Ok(());
    }
    eprintln!("== {}", ready.dataset.name());
    let started = Timestamp::now();
    let mut runs = Vec::new();
    for repetition in 1..=plan.repetitions {
        if let Some(limits) = &mut limits {
            limits.round(plan, ready, work)?;
        }
        for tool in turns(&tools, repetition) {
            runs.extend(tools::round(
                tool,
                repetition,
                &plan.mover,
                &ready.path,
                work,
                show,
            )?);
        }
    }
    if let Some(limits) = limits {
        let rooflines = Measured::Rooflines(Box::new(limits.finish()?));
        plan.save(Part::Rooflines, ready, started, rooflines)?;
    }
    for part in [Part::Mover, Part::Peers] {
        let of_part = |run: &&ToolRun| part_of(run.tool) == part;
        let own: Vec<ToolRun> = runs.iter().filter(of_part).cloned().collect();
        if !own.is_empty() {
            plan.save(part, ready, started, Measured::Tools(own))?;
        }
    }
    Ok(())
}

fn part_of(tool: Tool) -> Part {
    match tool {
        Tool::Mover => Part::Mover,
        _ => Part::Peers,
    }
}

fn measure_bakeoff(plan: &Plan, ready: &Ready) -> Result<Vec<BakeoffRun>> {
    let large = ready
        .files
        .0
        .iter()
        .filter(|(_, bytes)| *bytes >= BAKEOFF_FILE_BYTES_MIN);
    let files: Vec<String> = large.map(|(path, _)| path.display().to_string()).collect();
    let mut runs = Vec::new();
    for repetition in 1..=plan.repetitions {
        for variant in VARIANTS {
            for engine in turns(&ENGINES, repetition) {
                let run = bakeoff_run(plan, engine, variant, repetition, &files)?;
                eprintln!(
                    "{} {engine} {repetition}: {:.0} MB/s, {:.3} CPU s/GB, p99 {} us",
                    run.variant,
                    run.bytes_per_second() / 1e6,
                    run.cpu_seconds_per_gb(),
                    run.latency.p99_us
                );
                runs.push(run);
            }
        }
    }
    for (variant, ..) in VARIANTS {
        let mut checks = runs
            .iter()
            .filter(|run| run.variant == variant)
            .map(|run| &run.check);
        let first = checks.next();
        if checks.any(|check| Some(check) != first) {
            return Err(
                Error::new(Kind::CheckFailed, "engines saw different bytes").object(variant)
            );
        }
    }
    Ok(runs)
}

/// Whether a run on so many cores had its buffers on huge pages.
fn had_huge_pages(run: &BakeoffRun, cores: usize) -> bool {
    let least = HUGE_MIB_PER_CORE_MIN * cores as u64;
    run.huge_pages_mib().is_some_and(|mib| mib >= least)
}

/// A run of an engine; of a loop in which all are to have huge pages, one that had them.
fn bakeoff_run(
    plan: &Plan,
    engine: &str,
    variant: (&str, &str, bool),
    repetition: u32,
    files: &[String],
) -> Result<BakeoffRun> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // Tiny data does not fill the buffers.
    let needs_pages = variant.2 && !plan.smoke();
    for _ in 0..BAKEOFF_ATTEMPTS_MAX {
        let run = bakeoff_attempt(plan, engine, variant, repetition, files)?;
        if !needs_pages || had_huge_pages(&run, cores) {
            return Ok(run);
        }
        eprintln!(
            "{} {engine} {repetition}: {} MiB of huge pages, which cannot be compared; once more",
            run.variant,
            run.huge_pages_mib().unwrap_or(0)
        );
    }
    let what = format!("an engine got no huge pages in {BAKEOFF_ATTEMPTS_MAX} runs");
    Err(Error::new(Kind::CheckFailed, what)
        .object(format!("{engine}, {}", variant.0))
        .hint("free some memory or restart the machine; /sys/kernel/mm/transparent_hugepage/enabled must not be never"))
}

fn bakeoff_attempt(
    plan: &Plan,
    engine: &str,
    (name, variant, huge_pages): (&str, &str, bool),
    repetition: u32,
    files: &[String],
) -> Result<BakeoffRun> {
    drop_caches()?;
    if huge_pages {
        // Where it cannot be asked, the run itself tells what it got.
        let _ = std::fs::write(COMPACT_MEMORY, "1");
    }
    let (usage, printed) = Program::new("timeout")
        .args([BAKEOFF_TIMEOUT_SECONDS])
        .path(&plan.bakeoff)
        .args([engine, variant])
        .env(HUGE_PAGES.0, if huge_pages { HUGE_PAGES.1 } else { "" })
        .args(files.iter().cloned())
        .timed()?;
    let strange = || {
        Error::new(
            Kind::Internal,
            "the bake-off printed something else than its figures",
        )
        .object(engine)
    };
    let said: Value = serde_json::from_str(&printed).map_err(|e| strange().cause(e))?;
    let latency: Latencies =
        serde_json::from_value(said["latency"].clone()).map_err(|e| strange().cause(e))?;
    let text = |name: &str| said[name].as_str().map(str::to_owned).ok_or_else(strange);
    Ok(BakeoffRun {
        engine: text("engine")?,
        variant: name.to_owned(),
        repetition,
        bytes: said["bytes"].as_u64().ok_or_else(strange)?,
        loop_seconds: said["wall_seconds"].as_f64().ok_or_else(strange)?,
        usage,
        latency,
        check: text("check")?,
        note: text("note")?,
        huge_mib: Some(said["huge_mib"].as_u64().ok_or_else(strange)?),
    })
}

/// One round of the mover on 1.3 GB and on 10.7 GB.
fn measure_memory(plan: &Plan, work: &Path) -> Result<()> {
    eprintln!("== memory");
    let started = Timestamp::now();
    let mut runs = Vec::new();
    for dataset in [Dataset::Rows, Dataset::Rows10g] {
        let ready = plan.ready(dataset)?;
        runs.extend(tools::round(
            Tool::Mover,
            1,
            &plan.mover,
            &ready.path,
            work,
            show,
        )?);
    }
    let ready = plan.ready(Dataset::Rows10g)?;
    plan.save(Part::Memory, &ready, started, Measured::Tools(runs))
}

/// Transfers, repositories in S3, and both over a limited link.
fn measure_s3(plan: &Plan, work: &Path) -> Result<()> {
    let memory = tempfile::Builder::new()
        .prefix(&format!("mover-bench-{}-", std::process::id()))
        .tempdir_in(MEMORY_DIR)
        .map_err(|e| {
            Error::new(Kind::Target, "a directory in memory cannot be made")
                .object(MEMORY_DIR)
                .cause(e)
        })?;
    let places = Places {
        own: plan.s3.clone(),
        garage: plan.garage.clone(),
        peers: plan.s3_peers.clone(),
        scripts: plan.root.join("benches/scripts"),
        memory: memory.path().to_path_buf(),
    };
    let has_packs = plan.datasets.contains(&Dataset::Packs);
    if plan.has(Part::S3) && has_packs {
        eprintln!("== S3, transfers");
        let (ready, started) = (
            plan.ready_in(Dataset::Packs, memory.path())?,
            Timestamp::now(),
        );
        let all = transfers::measure(&places, &ready.path, plan.repetitions, |run| {
            eprintln!(
                "{:?} {:?} {:?} {:?} {}: {:.0} MB/s, {:.2} CPU s/GB, {}",
                run.server,
                run.placement,
                run.client,
                run.direction,
                run.repetition,
                run.bytes_per_second() / 1e6,
                run.cpu_seconds_per_gb(),
                format_bytes(run.usage.rss_bytes)
            );
        })?;
        plan.save(Part::S3, &ready, started, Measured::S3Transfers(all))?;
    }
    if plan.has(Part::S3) {
        for dataset in plan.on_disk() {
            measure_s3_backups(plan, &places, &plan.ready(dataset)?, work)?;
        }
    }
    match plan.has(Part::S3Link) && plan.measures(Part::S3Link) {
        true => measure_s3_link(plan, &places, work),
        false => Ok(()),
    }
}

fn measure_s3_backups(plan: &Plan, places: &Places, ready: &Ready, work: &Path) -> Result<()> {
    eprintln!("== S3, repositories, {}", ready.dataset.name());
    let started = Timestamp::now();
    let runs = backups::measure(
        places,
        &plan.mover,
        &ready.path,
        work,
        plan.repetitions,
        |run| {
            eprintln!(
                "{} {:?} {}: {:.2} s, {:.0} MB/s, {:.2} CPU s, {}",
                run.place.title(),
                run.step,
                run.repetition,
                run.usage.wall_seconds,
                run.bytes_per_second() / 1e6,
                run.usage.cpu_seconds(),
                format_bytes(run.usage.rss_bytes)
            );
        },
    )?;
    plan.save(Part::S3, ready, started, Measured::S3Backups(runs))
}

fn measure_s3_link(plan: &Plan, places: &Places, work: &Path) -> Result<()> {
    eprintln!("== S3, limited link");
    let packs = plan.ready_in(Dataset::Packs, &places.memory)?;
    let rows = plan.ready(Dataset::Rows)?;
    let rows10g = plan.ready(Dataset::Rows10g)?;
    let sources = Sources {
        packs: &packs.path,
        rows: &rows.path,
        rows10g: &rows10g.path,
        work,
    };
    let started = Timestamp::now();
    let runs = link_runs::measure(places, &plan.mover, &sources, plan.repetitions, |run| {
        eprintln!(
            "{:?} {:?} {:?} {:?} bit/s, connections {:?}: {:.2} s, {:.1} % of the link, {:.1} % while data flows, {}",
            run.client,
            run.dataset,
            run.step,
            run.link_bits_per_second,
            run.connections,
            run.usage.wall_seconds,
            100.0 * run.share_of_link().unwrap_or(0.0),
            100.0 * run.flowing_share().unwrap_or(0.0),
            format_bytes(run.usage.rss_bytes)
        );
    })?;
    plan.save(Part::S3Link, &packs, started, Measured::S3Link(runs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Usage;

    fn plan(datasets: &[Dataset]) -> Plan {
        Plan {
            parts: Part::ALL.to_vec(),
            datasets: datasets.to_vec(),
            repetitions: 1,
            scale: Scale::Smoke,
            date: String::new(),
            root: PathBuf::new(),
            cache: PathBuf::new(),
            results: PathBuf::new(),
            mover: PathBuf::new(),
            bakeoff: PathBuf::new(),
            s3: PathBuf::new(),
            s3_peers: PathBuf::new(),
            garage: PathBuf::new(),
        }
    }

    #[test]
    fn a_run_without_huge_pages_is_told_from_one_with_them() {
        let run = |huge_mib| BakeoffRun {
            engine: "glommio".to_owned(),
            variant: "read".to_owned(),
            repetition: 1,
            bytes: 1,
            loop_seconds: 1.0,
            usage: Usage::default(),
            latency: Latencies::default(),
            check: String::new(),
            note: String::new(),
            huge_mib,
        };
        let had = |mib| had_huge_pages(&run(mib), 2);
        assert!(had(Some(16)) && had(Some(62)));
        assert!(!had(Some(0)) && !had(Some(14)) && !had(None));
    }

    #[test]
    fn a_named_part_without_data_is_refused() {
        let rows = plan(&[Dataset::Rows]);
        let error = rows.check_measures(&[Part::Mover, Part::S3Link]);
        let error = error.expect_err("nothing to do");
        assert_eq!(error.kind(), Kind::Usage);
        assert!(
            error
                .to_string()
                .contains("part s3-link measures nothing on rows"),
            "{error}"
        );
        assert!(
            error
                .hint_text()
                .is_some_and(|hint| hint.contains("name packs"))
        );
        // Of all parts, those that have nothing to do are left out.
        rows.check_measures(&[]).unwrap();
        rows.check_measures(&[Part::Mover, Part::S3, Part::Memory])
            .unwrap();
        let packs = plan(&[Dataset::Packs]);
        packs.check_measures(&[Part::S3, Part::S3Link]).unwrap();
        for part in [Part::Rooflines, Part::Mover, Part::Peers, Part::Bakeoff] {
            assert!(packs.check_measures(&[part]).is_err(), "{part:?}");
        }
        plan(&[Dataset::Rows, Dataset::Packs])
            .check_measures(&Part::ALL)
            .unwrap();
    }
}
