//! `list`: the backups of a repository, oldest first.

use std::collections::BTreeSet;

use mover_base::units::format_bytes;
use mover_base::{BackupId, Result, Timestamp};
use mover_jobs::catalogue::{self, ListItem};
use mover_jobs::{BackupMetadata, SourceInfo, source_on};
use serde::Serialize;

use super::{Context, figures_of, whose};
use crate::args::ListArgs;
use crate::figures::{self, UNKNOWN};
use crate::output::YELLOW;
use crate::table::{Align, Cell, Table};

/// By so much may an id differ from when its backup began before the list says so.
const NAMED_OFF_SECONDS_MAX: f64 = 3600.0;

#[derive(Serialize)]
struct Document<'a> {
    repository: &'a str,
    backups: &'a [ListItem],
    strays: &'a [String],
}

/// Runs the verb.
pub fn run(context: &mut Context<'_>, args: &ListArgs) -> Result<()> {
    let whose = whose(args.source.as_deref(), args.host.as_deref())?;
    let repo = context.repo_access()?;
    let listed = catalogue::list(&context.settings.engine, &repo)?;
    let all = listed.backups;
    let known = all.len() as u64;
    // What cannot be read may be of whom was asked for.
    let is_meant = |item: &ListItem| source(item).is_none_or(|source| whose.is_of(source));
    let items: Vec<ListItem> = all.into_iter().filter(is_meant).collect();
    context.warn_of_strays(&listed.strays);
    let shared = shared_problem(&items);
    if items.is_empty() {
        context.out.line("no backups");
        if let Some(warning) = only_others(args, known) {
            context.out.warning(&warning);
        }
    } else {
        context.out.table(&table(&items, shared));
    }
    if let Some(problem) = shared.filter(|_| !context.out.is_json()) {
        let all = figures::counted(items.len() as u64, "backup");
        context
            .out
            .warning(&format!("{all} cannot be read: {problem}"));
    }
    context.out.summary(Document {
        repository: &repo.url,
        backups: &items,
        strays: &listed.strays,
    });
    Ok(())
}

/// What to say where none of the backups that there are is of whom was asked for: the name may be a slip.
fn only_others(args: &ListArgs, others: u64) -> Option<String> {
    let asked = match (&args.source, &args.host) {
        (Some(_), Some(_)) => "this source and host",
        (Some(_), None) => "this source",
        (None, Some(_)) => "this host",
        (None, None) => return None,
    };
    let number = figures::count(others);
    (others > 0).then(|| format!("no backups of {asked}; the repository holds {number} of others"))
}

/// Why none of several backups can be read, if that is the same of all: without a key, most likely.
fn shared_problem(items: &[ListItem]) -> Option<&str> {
    let first = items.first()?.problem.as_deref()?;
    let is_same =
        |item: &ListItem| item.metadata.is_none() && item.problem.as_deref() == Some(first);
    (items.len() > 1 && items.iter().all(is_same)).then_some(first)
}

fn source(item: &ListItem) -> Option<&SourceInfo> {
    item.metadata.as_ref().map(|metadata| &metadata.source)
}

fn of_text(source: &SourceInfo) -> String {
    source_on(&source.url, &source.host)
}

/// Columns before those of source and notes.
const COLUMNS: [(&str, Align); 7] = [
    ("BACKUP", Align::Left),
    ("TYPE", Align::Left),
    ("TOOK", Align::Right),
    ("SIZE", Align::Right),
    ("NEW", Align::Right),
    ("PACKED", Align::Right),
    ("FILES", Align::Right),
];

/// The source has a column where there is more than one. A problem that all share is told beside the table.
fn table(items: &[ListItem], shared: Option<&str>) -> Table {
    let sources: BTreeSet<String> = items.iter().filter_map(source).map(of_text).collect();
    let has_sources = sources.len() > 1;
    let mut columns = COLUMNS.to_vec();
    columns.extend(has_sources.then_some(("SOURCE", Align::Left)));
    columns.push(("NOTES", Align::Left));
    let mut table = Table::with_header(&columns);
    for item in items {
        let id = Cell::from(item.backup_id.to_string());
        let (mut row, notes) = match &item.metadata {
            Some(metadata) => (
                figures_row(id, metadata),
                Cell::from(notes(item, metadata).join(" ")),
            ),
            None => {
                let unknown = (1..COLUMNS.len()).map(|_| Cell::from(UNKNOWN));
                let problem = match shared {
                    Some(_) => "cannot be read",
                    None => item.problem.as_deref().unwrap_or("cannot be read"),
                };
                (
                    std::iter::once(id).chain(unknown).collect(),
                    Cell::styled(problem, YELLOW),
                )
            }
        };
        let of = source(item).map_or(UNKNOWN.to_owned(), of_text);
        row.extend(has_sources.then(|| Cell::from(of)));
        row.push(notes);
        table.row(row);
    }
    table
}

fn figures_row(id: Cell, metadata: &BackupMetadata) -> Vec<Cell> {
    let size = &metadata.size_info;
    let seconds = metadata.ended.seconds_since(metadata.started);
    vec![
        id,
        Cell::from(figures_of::type_name(metadata.backup_type)),
        Cell::from(figures::duration(seconds)),
        Cell::from(format_bytes(size.original_bytes)),
        Cell::from(format_bytes(size.new_bytes)),
        Cell::from(format_bytes(size.encrypted_bytes)),
        Cell::from(figures::count(size.files)),
    ]
}

fn notes(item: &ListItem, metadata: &BackupMetadata) -> Vec<String> {
    let state = [(item.expiring, "expiring"), (item.holds > 0, "held")];
    let states = state.iter().filter(|(is, _)| *is);
    let noted = metadata.annotations.iter();
    states
        .map(|(_, name)| (*name).to_owned())
        .chain(began(item.backup_id, metadata.started))
        .chain(noted.map(|(key, value)| format!("{key}={value}")))
        .chain(item.problem.clone())
        .collect()
}

/// When a backup began, where its id says something else: it is named behind one that was made while a clock was ahead.
fn began(id: BackupId, started: Timestamp) -> Option<String> {
    let text = started.to_string().replacen('T', " ", 1);
    let is_off = id.started().seconds_since(started).abs() > NAMED_OFF_SECONDS_MAX;
    is_off.then(|| format!("began {}", text.get(..16).unwrap_or(&text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_backup_began_is_said_where_its_id_is_over_an_hour_off() {
        let started = Timestamp::parse_rfc3339("2026-05-04T03:00:59.5Z").unwrap();
        let named = |seconds: i64| {
            let at = Timestamp::from_micros(started.as_micros() + seconds * 1_000_000);
            began(BackupId::new(at, 0), started)
        };
        assert_eq!(named(0), None);
        assert_eq!(named(3599), None);
        let said = Some("began 2026-05-04 03:00".to_owned());
        assert_eq!(named(3602), said);
        assert_eq!(named(365 * 86_400), said);
    }

    #[test]
    fn whose_backups_are_missing_is_said_only_where_there_are_others() {
        let said = |source: Option<&str>, host: Option<&str>, others| {
            let args = ListArgs {
                source: source.map(str::to_owned),
                host: host.map(str::to_owned),
            };
            only_others(&args, others)
        };
        let both = said(Some("/srv/db"), Some("VM"), 1200).unwrap();
        assert_eq!(
            both,
            "no backups of this source and host; the repository holds 1,200 of others"
        );
        assert!(said(None, Some("VM"), 1).unwrap().contains("this host;"));
        assert!(said(Some("/s"), None, 1).unwrap().contains("this source;"));
        assert_eq!(said(Some("/s"), None, 0), None, "it is empty");
        assert_eq!(said(None, None, 0), None);
    }
}
