//! The readable tables of a date's results.
//!
//! Invariants: every figure comes from a result file; medians are shown with the smallest and largest repetition; a ratio is
//! printed only if both of its sides were measured, is one of the medians that are shown, and is marked where its sides are
//! not of one run on one machine.

use std::collections::BTreeMap;
use std::fmt::Write;

use mover_base::units::format_bytes;

use crate::data::Dataset;
use crate::disk::DiskFigure;
use crate::machine::Machine;
use crate::results::{BakeoffRun, LimitRound, Measured, Part, ResultFile, Rooflines};
use crate::s3::tables;
use crate::stats::{Spread, middle};
use crate::tools::{Step, Tool, ToolRun};

/// Repetitions of one step of one tool.
#[derive(Clone, Debug)]
pub struct Row {
    /// Program.
    pub tool: Tool,
    /// Step.
    pub step: Step,
    /// Wall seconds.
    pub wall_seconds: Spread,
    /// Source bytes per second.
    pub bytes_per_second: Spread,
    /// CPU seconds per gigabyte.
    pub cpu_seconds_per_gb: Spread,
    /// Largest resident set.
    pub rss_bytes: Spread,
    /// Seconds of the `sync` after it.
    pub sync_seconds: Spread,
    /// Bytes of the repository.
    pub stored_bytes: u64,
    /// Bytes of the source.
    pub source_bytes: u64,
}

/// The rows of all runs, by step, then tool.
pub fn rows<'a>(runs: impl IntoIterator<Item = &'a ToolRun>) -> Vec<Row> {
    let mut groups: BTreeMap<(Step, Tool), Vec<&ToolRun>> = BTreeMap::new();
    for run in runs {
        groups.entry((run.step, run.tool)).or_default().push(run);
    }
    let row = |((step, tool), runs): ((Step, Tool), Vec<&ToolRun>)| {
        let of = |figure: fn(&ToolRun) -> f64| Spread::of(runs.iter().map(|run| figure(run)));
        Some(Row {
            tool,
            step,
            wall_seconds: of(|run| run.usage.wall_seconds)?,
            bytes_per_second: of(ToolRun::bytes_per_second)?,
            cpu_seconds_per_gb: of(ToolRun::cpu_seconds_per_gb)?,
            rss_bytes: of(|run| run.usage.rss_bytes as f64)?,
            sync_seconds: of(|run| run.sync_seconds)?,
            stored_bytes: runs.first()?.stored_bytes,
            source_bytes: runs.first()?.source_bytes,
        })
    };
    groups.into_iter().filter_map(row).collect()
}

/// The rooflines of a data set, if they were measured.
pub fn rooflines(files: &[ResultFile], dataset: Dataset) -> Option<&Rooflines> {
    files.iter().find_map(|file| match &file.measured {
        Measured::Rooflines(rooflines) if file.dataset == dataset => Some(&**rooflines),
        _ => None,
    })
}

/// Runs of the mover and of its peers on a data set.
pub fn runs(files: &[ResultFile], dataset: Dataset) -> Vec<&ToolRun> {
    let mut runs = Vec::new();
    for file in files.iter().filter(|file| file.dataset == dataset) {
        if let (Part::Mover | Part::Peers, Measured::Tools(own)) = (file.part, &file.measured) {
            runs.extend(own);
        }
    }
    runs
}

/// Megabytes (10^6) per second, without decimals.
pub(crate) fn mb(bytes_per_second: f64) -> String {
    format!("{:.0}", bytes_per_second / 1e6)
}

pub(crate) fn spread(spread: Spread, show: impl Fn(f64) -> String) -> String {
    let (low, middle, high) = (show(spread.min), show(spread.median), show(spread.max));
    if low == high {
        middle
    } else {
        format!("{middle} ({low}-{high})")
    }
}

pub(crate) fn step_title(step: Step) -> &'static str {
    match step {
        Step::Init => "init",
        Step::Backup => "backup",
        Step::BackupUnchanged => "second backup, unchanged",
        Step::Restore => "restore",
        Step::Verify => "verify",
    }
}

/// Writing to a string cannot fail; this says so once.
macro_rules! line {
    ($out:expr, $($arg:tt)*) => { let _ = writeln!($out, $($arg)*); };
}
pub(crate) use line;

/// The whole report as Markdown.
pub fn markdown(files: &[ResultFile], date: &str) -> String {
    let mut out = format!("# Measurements of {date}\n\n");
    let Some(first) = files.first() else {
        out.push_str("Nothing was measured.\n");
        return out;
    };
    if files.iter().any(|file| file.smoke) {
        out.push_str("**Tiny data, to try the harness: no figure here is worth quoting.**\n\n");
    }
    machine(&mut out, &first.machine, files);
    for dataset in Dataset::COMPARED {
        let of_set = files.iter().find(|file| file.dataset == dataset);
        let is_measured = rooflines(files, dataset).is_some() || !runs(files, dataset).is_empty();
        if let Some(file) = of_set.filter(|_| is_measured) {
            line!(out, "## {}\n", dataset.title());
            line!(
                out,
                "{} in {} files.\n",
                format_bytes(file.dataset_bytes),
                file.dataset_files
            );
            if let Some(limits) = rooflines(files, dataset) {
                roofline_tables(&mut out, limits);
            }
            for warning in warnings(files, dataset) {
                line!(out, "**{warning}.**\n");
            }
            tools_table(
                &mut out,
                &rows(runs(files, dataset)),
                rooflines(files, dataset),
                file.machine.cores,
            );
            mover_stages(&mut out, &runs(files, dataset));
            added_by_unchanged(&mut out, &runs(files, dataset));
        }
    }
    for file in files {
        match &file.measured {
            Measured::Bakeoff(runs) => bakeoff(&mut out, runs, file.dataset),
            Measured::Tools(runs) if file.part == Part::Memory => memory(&mut out, runs),
            Measured::S3Transfers(all) => tables::transfers(&mut out, all, &file.machine),
            Measured::S3Backups(runs) => {
                tables::backups(&mut out, runs, file.dataset, &file.machine);
            }
            Measured::S3Link(runs) => tables::link(&mut out, runs),
            _ => {}
        }
    }
    out
}

/// What makes the shares and ratios of a data set doubtful: they divide rooflines, the mover and its peers by one another, which
/// are three files, and one of these may be of another run, machine or build.
pub fn warnings(files: &[ResultFile], dataset: Dataset) -> Vec<String> {
    let is_divided = |file: &&ResultFile| {
        file.dataset == dataset && matches!(file.part, Part::Rooflines | Part::Mover | Part::Peers)
    };
    let of_set: Vec<&ResultFile> = files.iter().filter(is_divided).collect();
    let Some((first, others)) = of_set.split_first() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for other in others {
        let machine = Machine {
            commit: first.machine.commit.clone(),
            ..other.machine.clone()
        };
        let differences = [
            (first.started != other.started, "begun at another time"),
            (first.machine != machine, "of another machine"),
            (
                first.machine.commit != other.machine.commit,
                "of another commit",
            ),
        ];
        let differences = differences.into_iter().filter(|(differs, _)| *differs);
        let differences: Vec<&str> = differences.map(|(_, difference)| difference).collect();
        if !differences.is_empty() {
            found.push(format!(
                "{}: {} are {} than {}, and shares and ratios divide them by one another",
                dataset.name(),
                other.part.name(),
                differences.join(" and "),
                first.part.name()
            ));
        }
    }
    found
}

fn machine(out: &mut String, machine: &Machine, files: &[ResultFile]) {
    line!(out, "| | |\n|---|---|");
    line!(
        out,
        "| processor | {}, {} cores ({}) |",
        machine.cpu,
        machine.cores,
        machine.cpu_flags.join(" ")
    );
    line!(out, "| memory | {} |", format_bytes(machine.memory_bytes));
    line!(out, "| disk | {} |", machine.disk);
    line!(out, "| file system | {} |", machine.mount);
    line!(
        out,
        "| system | {}, Linux {} |",
        machine.system,
        machine.kernel
    );
    line!(out, "| compiler | {} |", machine.rustc);
    let mut commits: Vec<&str> = files
        .iter()
        .map(|file| file.machine.commit.as_str())
        .collect();
    commits.sort_unstable();
    commits.dedup();
    line!(out, "| commit | {} |", commits.join(", "));
    line!(out, "| programs | {} |\n", machine.versions.join("; "));
    out.push_str(
        "Rates are bytes of the source per second of wall time, MB = 10^6 bytes; the median, with the smallest and \
         the largest repetition in brackets. Caches are emptied before every step. CPU is user and kernel time of the \
         whole process tree. Peak memory is that of the largest single process. Latencies of requests and seconds of stages are \
         those of one run, the one in the middle by its rate; of an even number, the slower of the two there.\n\n",
    );
}

fn disk_row(out: &mut String, title: &str, limits: &Rooflines, figure: DiskFigureOf) {
    let (Some(rates), Some(middle)) = (limits.rates(figure), limits.middle(figure)) else {
        return;
    };
    let figures = limits.rounds.iter().map(figure);
    let cpu = Spread::of(figures.map(|figure| figure.cpu_seconds_per_gb)).unwrap_or_default();
    let latency = &middle.latency;
    line!(
        out,
        "| {title} | {} | {:.2} | {} | {} | {} | {} |",
        spread(rates, mb),
        cpu.median,
        latency.p50_us,
        latency.p99_us,
        latency.p999_us,
        latency.max_us
    );
}

/// One of the disk figures of a round.
type DiskFigureOf = fn(&LimitRound) -> &DiskFigure;

fn roofline_tables(out: &mut String, limits: &Rooflines) {
    line!(out, "### What the hardware allows\n");
    line!(
        out,
        "| disk | MB/s | CPU s/GB | p50 us | p99 us | p99.9 us | max us |\n|---|---|---|---|---|---|---|"
    );
    let figures: [(&str, DiskFigureOf); 4] = [
        ("O_DIRECT read, 1 MiB, 16 in flight per shard", |round| {
            &round.read
        }),
        (
            "the same, with SHA-256, zstd, compare and seal of each frame",
            |round| &round.read_and_pack,
        ),
        ("O_DIRECT write, preallocated, fsync", |round| &round.write),
        (
            "the same, after open, decode and SHA-256 of each frame",
            |round| &round.open_and_write,
        ),
    ];
    for (title, figure) in figures {
        disk_row(out, title, limits, figure);
    }
    if let Some(round) = limits.rounds.first() {
        line!(out, "\nEngine: {}.\n", round.read.engine);
    }
    line!(
        out,
        "| CPU stage alone | MB/s on 1 core | MB/s on all | CPU s per GB of source |\n|---|---|---|---|"
    );
    for figure in &limits.stages {
        line!(
            out,
            "| {} | {} | {} | {:.2} |",
            figure.stage.title(),
            mb(figure.one_core_bytes_per_second),
            mb(figure.all_cores_bytes_per_second),
            figure.cpu_seconds_per_gb
        );
    }
    let sample = limits.sample;
    line!(
        out,
        "\nSample: {} of the source, {:.1} % zero blocks, compression {:.2}:1. Stage rates are in bytes that go into the stage, each taken once, for 0.7 s, after the last round: on a host whose pace changes they need not agree with the rooflines.\n",
        format_bytes(sample.source_bytes),
        100.0 * sample.zero_share,
        sample.compression_ratio
    );
    line!(
        out,
        "Roofline of a backup: **{} MB/s** ({}); of a restore: **{} MB/s** ({}). These are medians of {} rounds, one before each repetition of the programs.\n",
        mb(limits.backup_bytes_per_second),
        limits.backup_limit,
        mb(limits.restore_bytes_per_second),
        limits.restore_limit,
        limits.rounds.len()
    );
}

/// The limits that a step is held against: the slower of disk and CPU alone, and both at once. Medians, as the tables show them.
fn limits_of(step: Step, limits: Option<&Rooflines>) -> Option<(f64, f64)> {
    let limits = limits?;
    let (lower, both) = match step {
        Step::Backup => (
            limits.backup_bytes_per_second,
            limits.rates(|round| &round.read_and_pack),
        ),
        Step::Restore => (
            limits.restore_bytes_per_second,
            limits.rates(|round| &round.open_and_write),
        ),
        _ => return None,
    };
    Some((lower, both?.median))
}

fn tools_table(out: &mut String, rows: &[Row], limits: Option<&Rooflines>, cores: usize) {
    if rows.is_empty() {
        return;
    }
    line!(out, "### The mover and its peers\n");
    line!(
        out,
        "| step | program | wall s | MB/s | of the lower roofline | of both at once | mover is faster by | CPU s/GB | peak memory MiB | stored | ratio | sync after, s |"
    );
    line!(out, "|---|---|---|---|---|---|---|---|---|---|---|---|");
    for row in rows.iter().filter(|row| row.step != Step::Init) {
        let mover = rows
            .iter()
            .find(|other| other.step == row.step && other.tool == Tool::Mover);
        let faster = match mover {
            Some(mover) if row.tool != Tool::Mover => {
                format!(
                    "{:.2}x",
                    mover.bytes_per_second.median / row.bytes_per_second.median
                )
            }
            _ => String::new(),
        };
        let share = |limit: f64| format!("{:.0} %", 100.0 * row.bytes_per_second.median / limit);
        let (of_lower, of_both) = limits_of(row.step, limits)
            .map(|(lower, both)| (share(lower), share(both)))
            .unwrap_or_default();
        let ratio = row.source_bytes as f64 / row.stored_bytes.max(1) as f64;
        line!(
            out,
            "| {} | {} | {} | {} | {of_lower} | {of_both} | {faster} | {:.2} | {:.0} | {} | {ratio:.2} | {:.2} |",
            step_title(row.step),
            row.tool.title(),
            spread(row.wall_seconds, |s| format!("{s:.2}")),
            spread(row.bytes_per_second, mb),
            row.cpu_seconds_per_gb.median,
            row.rss_bytes.max / f64::from(1 << 20),
            format_bytes(row.stored_bytes),
            row.sync_seconds.median
        );
    }
    line!(out, "");
    for tool in Tool::ALL
        .into_iter()
        .filter(|tool| rows.iter().any(|row| row.tool == *tool))
    {
        line!(out, "- {}: {}.", tool.title(), tool.settings(cores));
    }
    line!(out, "");
}

/// Stage seconds of the mover's own summary, of the run in the middle.
fn mover_stages(out: &mut String, runs: &[&ToolRun]) {
    for step in [Step::Backup, Step::Restore] {
        let of_step = runs
            .iter()
            .filter(|run| run.tool == Tool::Mover && run.step == step);
        let stages = middle(of_step, |run| run.bytes_per_second())
            .and_then(|run| run.detail.as_ref()?.pointer("/engine/stages")?.as_object());
        if let Some(stages) = stages {
            let list: Vec<String> = stages
                .iter()
                .filter_map(|(name, seconds)| Some(format!("{name} {:.2}", seconds.as_f64()?)))
                .collect();
            line!(
                out,
                "Seconds in each stage of the {}, added over shards: {}.\n",
                step_title(step),
                list.join(", ")
            );
        }
    }
}

/// What a backup of data that did not change adds to the repository, at most.
fn added_by_unchanged(out: &mut String, runs: &[&ToolRun]) {
    let added = runs.iter().filter_map(|run| {
        let is_meant = run.tool == Tool::Mover && run.step == Step::BackupUnchanged;
        let stored = run.detail.as_ref()?.get("bytes_stored")?.as_u64()?;
        is_meant.then_some((stored, run.source_bytes))
    });
    if let Some((stored, source)) = added.max() {
        line!(
            out,
            "The mover's second backup of unchanged data stores {}, {:.5} % of the source.\n",
            format_bytes(stored),
            100.0 * stored as f64 / source.max(1) as f64
        );
    }
}

fn bakeoff(out: &mut String, runs: &[BakeoffRun], dataset: Dataset) {
    line!(
        out,
        "## Runtimes, the same loop on each ({})\n",
        dataset.title()
    );
    out.push_str(
        "Per core 16 reads of 1 MiB in flight with O_DIRECT. In `read` and `hash` the C library asks for huge pages for every \
         engine's buffers; in `read_as_shipped` each engine has what it asks for itself, which is huge pages only for mover_io. \
         The kernel gives them only where it has them: the table tells the least that a repetition had, and a line of `read` or \
         `hash` with 0 cannot be compared with the others. `hash` also takes the SHA-256 of every 4 KiB block. Latency is from \
         the call of a read until its task has the data, with the wait for the core in it; the median over repetitions.\n\n",
    );
    line!(
        out,
        "| loop | engine | MB/s | CPU s/GB | peak memory MiB | p50 us | p99 us | p99.9 us | max us | huge pages MiB, least | settings |"
    );
    line!(out, "|---|---|---|---|---|---|---|---|---|---|---|");
    let mut groups: BTreeMap<(&str, usize), Vec<&BakeoffRun>> = BTreeMap::new();
    for run in runs {
        let place = runs
            .iter()
            .position(|other| other.engine == run.engine)
            .unwrap_or(0);
        groups.entry((&run.variant, place)).or_default().push(run);
    }
    for ((variant, _), runs) in groups {
        let of = |figure: fn(&BakeoffRun) -> f64| {
            Spread::of(runs.iter().map(|run| figure(run))).unwrap_or_default()
        };
        let huge = runs.iter().filter_map(|run| run.huge_pages_mib()).min();
        let micros = |figure: fn(&BakeoffRun) -> u64| {
            Spread::of(runs.iter().map(|run| figure(run) as f64))
                .map_or(0.0, |spread| spread.median)
        };
        line!(
            out,
            "| {variant} | {} | {} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {} | {} |",
            runs[0].engine,
            spread(of(BakeoffRun::bytes_per_second), mb),
            spread(of(BakeoffRun::cpu_seconds_per_gb), |s| format!("{s:.3}")),
            of(|run| run.usage.rss_bytes as f64).max / f64::from(1 << 20),
            micros(|run| run.latency.p50_us),
            micros(|run| run.latency.p99_us),
            micros(|run| run.latency.p999_us),
            micros(|run| run.latency.max_us),
            huge.map_or("not told".to_owned(), |mib| mib.to_string()),
            runs[0].settings()
        );
    }
    line!(out, "");
}

fn memory(out: &mut String, runs: &[ToolRun]) {
    line!(out, "## Memory against the size of the data\n");
    line!(
        out,
        "| source | step | MB/s | peak memory MiB |\n|---|---|---|---|"
    );
    for run in runs.iter().filter(|run| run.step != Step::Init) {
        line!(
            out,
            "| {} | {} | {} | {:.0} |",
            format_bytes(run.source_bytes),
            step_title(run.step),
            mb(run.bytes_per_second()),
            run.usage.rss_bytes as f64 / f64::from(1 << 20)
        );
    }
    line!(out, "");
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::latency::Latencies;
    use crate::stages::SampleFacts;

    fn disk(megabytes_per_second: f64) -> DiskFigure {
        DiskFigure {
            bytes: 1,
            wall_seconds: 1.0,
            bytes_per_second: megabytes_per_second * 1e6,
            cpu_seconds_per_gb: 1.0,
            latency: Latencies::default(),
            engine: String::new(),
        }
    }

    /// Rounds whose every disk figure is the same.
    fn limits(rounds: &[f64]) -> Rooflines {
        let round = |rate: &f64| LimitRound {
            read: disk(*rate),
            read_and_pack: disk(*rate),
            write: disk(*rate),
            open_and_write: disk(*rate),
            backup_stages: 1e9,
            restore_stages: 1e9,
        };
        Rooflines {
            rounds: rounds.iter().map(round).collect(),
            sample: SampleFacts {
                source_bytes: 1,
                plain_bytes: 1,
                stored_bytes: 1,
                compression_ratio: 1.0,
                zero_share: 0.0,
            },
            stages: Vec::new(),
            backup_bytes_per_second: 2e9,
            backup_limit: "CPU".to_owned(),
            restore_bytes_per_second: 2e9,
            restore_limit: "CPU".to_owned(),
        }
    }

    #[test]
    fn a_share_is_one_of_the_median_that_is_shown() {
        let limits = limits(&[1000.0, 400.0, 600.0, 900.0]);
        let even = |megabytes_per_second: f64| Spread {
            median: megabytes_per_second * 1e6,
            ..Spread::default()
        };
        let row = Row {
            tool: Tool::Mover,
            step: Step::Backup,
            wall_seconds: even(0.0),
            bytes_per_second: even(600.0),
            cpu_seconds_per_gb: even(0.0),
            rss_bytes: even(0.0),
            sync_seconds: even(0.0),
            stored_bytes: 1,
            source_bytes: 1,
        };
        let mut shown = String::new();
        roofline_tables(&mut shown, &limits);
        // The median of the four is between two of them.
        let both =
            "| the same, with SHA-256, zstd, compare and seal of each frame | 750 (400-1000) |";
        assert!(shown.contains(both), "{shown}");
        let mut table = String::new();
        tools_table(&mut table, &[row], Some(&limits), 2);
        // 80 % of 750 is 600; 30 % of 2000 is 600.
        let shares = "| backup | helios-mover | 0.00 | 600 | 30 % | 80 % |";
        assert!(table.contains(shares), "{table}");
        // Latencies are of a round, the slower of the two in the middle.
        let middle = limits.middle(|round| &round.read).unwrap();
        assert_eq!(middle.bytes_per_second, 600e6);
    }

    /// Rooflines, mover and peers of one run, as they are kept.
    fn kept() -> Vec<ResultFile> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
        ResultFile::read_all(&dir, "2026-11-24-xeon").unwrap()
    }

    #[test]
    fn files_of_one_run_are_divided_without_a_warning_and_others_with_one() {
        let mut files = kept();
        assert_eq!(warnings(&files, Dataset::Pg), [] as [&str; 0]);
        let peers = files
            .iter_mut()
            .find(|file| file.part == Part::Peers && file.dataset == Dataset::Pg)
            .unwrap();
        peers.machine.commit = "0123456789ab".to_owned();
        peers.machine.cores += 1;
        peers.started = peers.ended;
        let expected = "pg: peers are begun at another time and of another machine and of another commit than rooflines, \
                        and shares and ratios divide them by one another";
        assert_eq!(warnings(&files, Dataset::Pg), [expected]);
        assert!(markdown(&files, "today").contains(&format!("**{expected}.**")));
        assert_eq!(warnings(&files, Dataset::Rows), [] as [&str; 0]);
    }

    #[test]
    fn older_bakeoffs_tell_the_least_of_their_huge_pages() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
        let files = ResultFile::read_all(&dir, "2026-11-30").unwrap();
        let report = markdown(&files, "2026-11-30");
        let line = |begin: &str| report.lines().find(|line| line.starts_with(begin));
        let hashed = line("| hash | tokio_uring |").unwrap();
        // Two of its repetitions had 72 MiB.
        assert!(
            hashed.ends_with("| 0 | CoopTaskrun, registered true |"),
            "{hashed}"
        );
        let read = line("| read | pread_threads |").unwrap();
        assert!(read.ends_with("| 70 | 32 threads |"), "{read}");
    }
}
