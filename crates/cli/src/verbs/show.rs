//! `show`: one backup in full.

use mover_base::Result;
use mover_base::units::format_bytes;
use mover_jobs::catalogue::{self, RECIPIENT_ONLY, ShowDetails};
use mover_jobs::{BackupMetadata, source_on};

use super::{Context, figures_of};
use crate::args::ShowArgs;
use crate::figures;
use crate::output::YELLOW;
use crate::table::{Cell, Table};

/// Runs the verb.
pub fn run(context: &mut Context<'_>, args: ShowArgs) -> Result<()> {
    let repo = context.repo_access()?;
    let details = catalogue::show(&context.settings.engine, &repo, args.set())?;
    let title = format!("backup {}", details.metadata.backup_id);
    context.tell(&title, &table(&details), &details);
    Ok(())
}

fn table(details: &ShowDetails) -> Table {
    let metadata = &details.metadata;
    let mut table = Table::pairs().indent(2);
    origin_rows(metadata, &mut table);
    size_rows(metadata, &mut table);
    table.pair(
        "packs needed",
        format!(
            "{} of {} in all",
            figures::count(details.packs),
            format_bytes(details.pack_bytes)
        ),
    );
    table.pair("authenticity", authenticity(details));
    table.pair(
        "checked",
        if metadata.verification_info.decoded_and_compared {
            "decoded and compared with the source while it was made"
        } else {
            "not while it was made"
        },
    );
    for (key, value) in &metadata.annotations {
        table.pair("note", format!("{key}={value}"));
    }
    for problem in &details.problems {
        table.pair("note", Cell::styled(problem, YELLOW));
    }
    for hold in &details.holds {
        let why = hold.reason.as_deref().or(hold.problem.as_deref());
        table.pair("held", why.unwrap_or_default());
    }
    if details.expiring {
        table.pair("expiring", "an expire is about to delete it");
    }
    table
}

/// What the backup is of, and how and when it was made.
fn origin_rows(metadata: &BackupMetadata, table: &mut Table) {
    let kind = figures_of::type_text(metadata.backup_type, metadata.reason.as_deref());
    table.pair("type", kind);
    if let Some(base) = metadata.base_id {
        table.pair("base", base.to_string());
    }
    if let Some(range) = &metadata.lsn_range {
        table.pair("positions", format!("{} to {}", range.start, range.end));
    }
    if let Some(history) = &metadata.history {
        table.pair("history", history);
    }
    table.pair("started", metadata.started.to_string());
    let seconds = metadata.ended.seconds_since(metadata.started);
    table.pair("took", figures::duration(seconds));
    table.pair(
        "source",
        source_on(&metadata.source.url, &metadata.source.host),
    );
    table.pair("made by", format!("helios-mover {}", metadata.tool_version));
}

/// What the source held, and what of it was stored.
fn size_rows(metadata: &BackupMetadata, table: &mut Table) {
    let size = &metadata.size_info;
    table.pair(
        "content",
        figures_of::content(size.files, size.dirs, size.symlinks, size.hardlinks),
    );
    table.pair(
        "size",
        figures_of::size(size.original_bytes, size.data_bytes),
    );
    table.pair(
        "new",
        format!("{} not held before", format_bytes(size.new_bytes)),
    );
    table.pair(
        "packed",
        format!(
            "{}, {} before encryption",
            format_bytes(size.encrypted_bytes),
            format_bytes(size.compressed_bytes)
        ),
    );
    table.pair(
        "blocks",
        format!(
            "{}: {} zero, {} in holes, {} deduplicated",
            figures::count(size.blocks),
            figures::count(size.zero_blocks),
            figures::count(size.hole_blocks),
            figures::count(size.deduplicated_blocks)
        ),
    );
}

fn authenticity(details: &ShowDetails) -> &'static str {
    match details.authenticity {
        "master_key" => "written by a holder of the master key",
        RECIPIENT_ONLY => "encrypted to the repository, but its writer is not proven",
        _ => "none: not encrypted",
    }
}
