//! Summaries of jobs as tables, shared by their verbs and by the demo.

use mover_base::BackupId;
use mover_base::units::format_bytes;
use mover_jobs::backup::BackupSummary;
use mover_jobs::report::EngineReport;
use mover_jobs::restore::RestoreSummary;
use mover_jobs::{BackupType, source_on};
use serde::Serialize;

use crate::figures;
use crate::table::Table;

/// The name that JSON has for a unit value.
fn name_of(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => figures::UNKNOWN.into(),
    }
}

/// How a backup was made, in one word.
pub fn type_name(backup_type: BackupType) -> &'static str {
    match backup_type {
        BackupType::Full => "full",
        BackupType::Incremental => "incremental",
        BackupType::Differential => "differential",
    }
}

/// The same, with the reason where it is not the type that was asked for.
pub fn type_text(backup_type: BackupType, reason: Option<&str>) -> String {
    let kind = type_name(backup_type);
    reason.map_or(kind.to_owned(), |reason| format!("{kind}: {reason}"))
}

/// The backup that another builds on, and whose it is if it is not of the same source.
pub fn parent_text(parent: BackupId, of: Option<&str>) -> String {
    match of {
        Some(source) => format!("{parent}, of another source: {source}"),
        None => parent.to_string(),
    }
}

/// `1,204 files, 12 directories, 3 symlinks`; what there is none of is left out, except files.
pub fn content(files: u64, dirs: u64, symlinks: u64, hardlinks: u64) -> String {
    let mut out = vec![figures::counted(files, "file")];
    for (number, noun) in [
        (dirs, "directory"),
        (symlinks, "symlink"),
        (hardlinks, "hard link"),
    ] {
        if number > 0 {
            out.push(figures::counted(number, noun));
        }
    }
    out.join(", ")
}

/// What a backup did.
pub fn backup_table(summary: &BackupSummary) -> Table {
    let mut table = Table::pairs().indent(2);
    let kind = type_text(summary.backup_type, summary.reason.as_deref());
    table.pair("type", kind);
    if let Some(base) = summary.base {
        table.pair("base", base.to_string());
    }
    // One of the same source is what everybody expects.
    if let (Some(parent), Some(source)) = (summary.parent, &summary.parent_source) {
        table.pair("parent", parent_text(parent, Some(source)));
    }
    if let Some(range) = &summary.lsn_range {
        table.pair("positions", format!("{} to {}", range.start, range.end));
    }
    table.pair("source", &summary.source);
    table.pair("repository", &summary.repository);
    table.pair(
        "content",
        content(
            summary.files,
            summary.dirs,
            summary.symlinks,
            summary.hardlinks,
        ),
    );
    table.pair("read", read(summary));
    if summary.log_bytes_read > 0 {
        let log = format_bytes(summary.log_bytes_read);
        table.pair("log", format!("{log} looked through"));
    }
    if summary.base.is_some() {
        let kept = format_bytes(summary.bytes_kept);
        table.pair("kept", format!("{kept} as the base has it, not read"));
    }
    table.pair("new", new(summary));
    table.pair("stored", stored(summary));
    engine_rows(&summary.engine, &mut table);
    table
}

/// How much of its source a backup copied, in one line.
pub fn read(summary: &BackupSummary) -> String {
    let read = format!(
        "{} of {}",
        format_bytes(summary.bytes_read - summary.log_bytes_read),
        format_bytes(summary.bytes_source)
    );
    timed(&read, &summary.engine, summary.bytes_per_second)
}

/// `1.20 GiB in 3.10 s, 396 MiB/s`: what a job moved, how long all of it took, and its rate.
pub fn timed(moved: &str, engine: &EngineReport, bytes_per_second: f64) -> String {
    format!(
        "{moved} in {}, {}",
        figures::duration(engine.seconds),
        figures::rate(bytes_per_second)
    )
}

/// What a backup found that the repository did not hold, and what it need not store.
pub fn new(summary: &BackupSummary) -> String {
    format!(
        "{}; {} deduplicated, {} of zeros, {} in holes",
        format_bytes(summary.bytes_new),
        figures::percent(summary.deduplicated_share),
        format_bytes(summary.zero_bytes),
        format_bytes(summary.hole_bytes)
    )
}

/// `1.20 GiB, 1.10 GiB without holes`.
pub fn size(bytes: u64, data_bytes: u64) -> String {
    format!(
        "{}, {} without holes",
        format_bytes(bytes),
        format_bytes(data_bytes)
    )
}

/// What a backup added to the repository, in one line.
pub fn stored(summary: &BackupSummary) -> String {
    let bytes = format_bytes(summary.bytes_stored);
    let packs = match (summary.packs, summary.compression_ratio) {
        (0, _) => "no new packs".to_owned(),
        (packs, None) => figures::counted(packs, "pack"),
        (packs, Some(ratio)) => format!(
            "{}, compressed {}",
            figures::counted(packs, "pack"),
            figures::ratio(ratio)
        ),
    };
    let sealed = if summary.encrypted {
        "encrypted"
    } else {
        "NOT encrypted"
    };
    format!("{bytes}, {packs}, {sealed}")
}

/// What a restore did.
pub fn restore_table(summary: &RestoreSummary) -> Table {
    let mut table = Table::pairs().indent(2);
    table.pair("of", source_on(&summary.source, &summary.host));
    table.pair("target", summary.target.display().to_string());
    table.pair("mode", summary.mode);
    table.pair(
        "content",
        content(
            summary.files,
            summary.dirs,
            summary.symlinks,
            summary.hardlinks,
        ),
    );
    table.pair("restored", restored(summary));
    table.pair(
        "read",
        format!("{} from the repository", format_bytes(summary.bytes_read)),
    );
    table.pair(
        "written",
        format!(
            "{}, {} unchanged, {} in holes",
            format_bytes(summary.bytes_written),
            format_bytes(summary.bytes_unchanged),
            format_bytes(summary.hole_bytes)
        ),
    );
    if let Some(settled) = &summary.settled {
        table.pair("position", settled.position.to_string());
        table.pair(
            "history",
            format!("{}, begun with this restore", settled.history),
        );
    }
    if summary.removed > 0 {
        table.pair(
            "removed",
            format!(
                "{} that the backup does not hold",
                figures::counted(summary.removed, "name")
            ),
        );
    }
    engine_rows(&summary.engine, &mut table);
    table
}

/// How much a restore brought back, in one line.
pub fn restored(summary: &RestoreSummary) -> String {
    let bytes = format_bytes(summary.bytes);
    timed(&bytes, &summary.engine, summary.bytes_per_second)
}

/// What the machinery did, in two rows, and what went over the link, in one.
pub fn engine_rows(engine: &EngineReport, table: &mut Table) {
    table.pair("engine", engine_line(engine));
    table.pair(
        "used",
        format!(
            "{} of CPU, {} of memory at most",
            figures::duration(engine.cpu_seconds),
            format_bytes(engine.peak_rss_bytes)
        ),
    );
    if let Some(link) = &engine.link {
        table.pair(
            "link",
            format!(
                "{} sent, {} received, {}, {} sent again",
                format_bytes(link.sent_bytes),
                format_bytes(link.received_bytes),
                figures::counted(link.requests, "request"),
                link.retries
            ),
        );
    }
}

/// Shards, rungs, buffers and files in one line.
pub fn engine_line(engine: &EngineReport) -> String {
    let shards = &engine.shards;
    let mut rungs: Vec<String> = shards
        .iter()
        .map(|shard| name_of(&shard.report.rung))
        .collect();
    rungs.sort();
    rungs.dedup();
    let registered =
        !shards.is_empty() && shards.iter().all(|shard| shard.report.buffers_registered);
    let direct: u64 = shards.iter().map(|shard| shard.report.direct_files).sum();
    let buffered: u64 = shards.iter().map(|shard| shard.report.buffered_files).sum();
    let files = match (direct, buffered) {
        (0, 0) => "no files".to_owned(),
        (_, 0) => "O_DIRECT".to_owned(),
        (0, _) => "page cache".to_owned(),
        _ => format!(
            "O_DIRECT, {} through the page cache",
            figures::counted(buffered, "file")
        ),
    };
    let gentle = shards.iter().any(|shard| shard.report.gentle);
    format!(
        "{}, {}, {} buffers, {files}{}",
        figures::counted(shards.len() as u64, "shard"),
        rungs.join("+"),
        if registered { "registered" } else { "plain" },
        if gentle { ", gentle" } else { "" }
    )
}
