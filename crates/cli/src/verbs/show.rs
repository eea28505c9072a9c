//! `show`: one backup in full.

use mover_base::Result;
use mover_base::units::format_bytes;
use mover_jobs::catalogue::{self, ShowDetails};

use super::{Context, figures_of};
use crate::args::ShowArgs;
use crate::figures;
use crate::output::BOLD;
use crate::table::{Align, Table};

/// Runs the verb.
pub fn run(context: &mut Context<'_>, args: ShowArgs) -> Result<()> {
    let repo = context.repo_access()?;
    let set = args.set.as_deref().unwrap_or("latest");
    let details = catalogue::show(&context.settings.engine, &repo, set)?;
    let title = context
        .out
        .paint(&format!("backup {}", details.metadata.backup_id), BOLD);
    context.out.line(title);
    context.out.table(&table(&details));
    context.out.summary(&details);
    Ok(())
}

fn table(details: &ShowDetails) -> Table {
    let metadata = &details.metadata;
    let size = &metadata.size_info;
    let mut table = Table::plain(&[Align::Left, Align::Left]).indent(2);
    let kind = figures_of::type_name(metadata.backup_type);
    table.pair(
        "type",
        metadata
            .reason
            .as_ref()
            .map_or(kind.to_owned(), |reason| format!("{kind}: {reason}")),
    );
    if let Some(base) = metadata.base_id {
        table.pair("base", base.to_string());
    }
    if let Some(range) = &metadata.lsn_range {
        table.pair("positions", format!("{} to {}", range.start, range.end));
    }
    let seconds = (metadata.ended.as_micros() - metadata.started.as_micros()) as f64 / 1e6;
    table.pair("started", metadata.started.to_string());
    table.pair("took", figures::duration(seconds));
    table.pair(
        "source",
        format!("{} on {}", metadata.source.url, metadata.source.host),
    );
    table.pair("made by", format!("helios-mover {}", metadata.tool_version));
    table.pair(
        "content",
        figures_of::content(size.files, size.dirs, size.symlinks, size.hardlinks),
    );
    table.pair(
        "size",
        format!(
            "{}, {} without holes",
            format_bytes(size.original_bytes),
            format_bytes(size.data_bytes)
        ),
    );
    table.pair(
        "new",
        format!("{} not held before", format_bytes(size.new_bytes)),
    );
    table.pair(
        "stored",
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
    table
}

fn authenticity(details: &ShowDetails) -> &'static str {
    match details.authenticity {
        "master_key" => "written by a holder of the master key",
        "recipient_only" => "encrypted to the repository, but its writer is not proven",
        _ => "none: not encrypted",
    }
}
