//! Summaries of jobs as tables, shared by their verbs and by the demo.

use mover_base::units::format_bytes;
use mover_jobs::BackupType;
use mover_jobs::backup::BackupSummary;
use mover_jobs::report::EngineReport;
use mover_jobs::restore::RestoreSummary;
use serde::Serialize;

use crate::figures;
use crate::table::{Align, Table};

/// The name that JSON has for a unit value.
pub fn name_of(value: &impl Serialize) -> String {
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
    let mut table = Table::plain(&[Align::Left, Align::Left]).indent(2);
    let kind = type_name(summary.backup_type);
    table.pair(
        "type",
        summary
            .reason
            .as_ref()
            .map_or(kind.to_owned(), |reason| format!("{kind}: {reason}")),
    );
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
    table.pair(
        "read",
        format!(
            "{} of {} in {}, {}",
            format_bytes(summary.bytes_read),
            format_bytes(summary.bytes_source),
            figures::duration(summary.engine.seconds),
            figures::rate(summary.bytes_per_second)
        ),
    );
    table.pair(
        "new",
        format!(
            "{}; {} deduplicated, {} of zeros, {} in holes",
            format_bytes(summary.bytes_new),
            figures::percent(summary.deduplicated_share),
            format_bytes(summary.zero_bytes),
            format_bytes(summary.hole_bytes)
        ),
    );
    table.pair("stored", stored(summary));
    engine_rows(&summary.engine, &mut table);
    table
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
    let mut table = Table::plain(&[Align::Left, Align::Left]).indent(2);
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
    table.pair(
        "restored",
        format!(
            "{} in {}, {}",
            format_bytes(summary.bytes),
            figures::duration(summary.engine.seconds),
            figures::rate(summary.bytes_per_second)
        ),
    );
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

/// What the machinery did, in two rows.
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
}

/// Shards, rungs, buffers and files in one line.
pub fn engine_line(engine: &EngineReport) -> String {
    let shards = &engine.shards;
    let mut rungs: Vec<String> = shards.iter().map(|shard| name_of(&shard.rung)).collect();
    rungs.sort();
    rungs.dedup();
    let registered = !shards.is_empty() && shards.iter().all(|shard| shard.buffers_registered);
    let direct: u64 = shards.iter().map(|shard| shard.direct_files).sum();
    let buffered: u64 = shards.iter().map(|shard| shard.buffered_files).sum();
    let files = match (direct, buffered) {
        (0, 0) => "no files".to_owned(),
        (_, 0) => "O_DIRECT".to_owned(),
        (0, _) => "page cache".to_owned(),
        _ => format!(
            "O_DIRECT, {} through the page cache",
            figures::counted(buffered, "file")
        ),
    };
    format!(
        "{}, {}, {} buffers, {files}",
        figures::counted(shards.len() as u64, "shard"),
        rungs.join("+"),
        if registered { "registered" } else { "plain" }
    )
}
