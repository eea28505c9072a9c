//! `list`: the backups of a repository, oldest first.

use mover_base::Result;
use mover_base::units::format_bytes;
use mover_jobs::catalogue::{self, ListItem};
use serde::Serialize;

use super::Context;
use crate::figures::{self, UNKNOWN};
use crate::output::YELLOW;
use crate::table::{Align, Cell, Table};

#[derive(Serialize)]
struct Document<'a> {
    repository: &'a str,
    backups: &'a [ListItem],
    strays: &'a [String],
}

/// Runs the verb.
pub fn run(context: &mut Context<'_>) -> Result<()> {
    let repo = context.repo_access()?;
    let listed = catalogue::list(&context.settings.engine, &repo)?;
    let items = listed.backups;
    context.warn_of_strays(&listed.strays);
    if items.is_empty() {
        context.out.line("no backups");
    } else {
        context.out.table(&table(&items));
    }
    context.out.summary(Document {
        repository: &repo.url,
        backups: &items,
        strays: &listed.strays,
    });
    Ok(())
}

fn table(items: &[ListItem]) -> Table {
    let mut table = Table::with_header(&[
        ("BACKUP", Align::Left),
        ("TYPE", Align::Left),
        ("TOOK", Align::Right),
        ("SIZE", Align::Right),
        ("NEW", Align::Right),
        ("STORED", Align::Right),
        ("FILES", Align::Right),
        ("NOTES", Align::Left),
    ]);
    for item in items {
        let id = Cell::from(item.backup_id.to_string());
        let Some(metadata) = &item.metadata else {
            let problem = item.problem.as_deref().unwrap_or("cannot be read");
            let unknown = || Cell::from(UNKNOWN);
            table.row([
                id,
                unknown(),
                unknown(),
                unknown(),
                unknown(),
                unknown(),
                unknown(),
                Cell::styled(problem, YELLOW),
            ]);
            continue;
        };
        let size = &metadata.size_info;
        let seconds = metadata.ended.seconds_since(metadata.started);
        let state = [(item.expiring, "expiring"), (item.holds > 0, "held")];
        let states = state.iter().filter(|(is, _)| *is);
        let noted = metadata.annotations.iter();
        let notes: Vec<String> = states
            .map(|(_, name)| (*name).to_owned())
            .chain(noted.map(|(key, value)| format!("{key}={value}")))
            .chain(item.problem.clone())
            .collect();
        table.row([
            id,
            Cell::from(super::figures_of::type_name(metadata.backup_type)),
            Cell::from(figures::duration(seconds)),
            Cell::from(format_bytes(size.original_bytes)),
            Cell::from(format_bytes(size.new_bytes)),
            Cell::from(format_bytes(size.encrypted_bytes)),
            Cell::from(figures::count(size.files)),
            Cell::from(notes.join(" ")),
        ]);
    }
    table
}
