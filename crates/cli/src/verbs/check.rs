//! `check`: is this machine, the repository and the source fit for a job.

use mover_base::{Error, Kind, Result};
use mover_jobs::check::{self, CheckItem, CheckOptions, Status};

use super::{Context, first_of};
use crate::args::CheckArgs;
use crate::config::absolute;
use crate::output::{BOLD, DIM, GREEN, RED, YELLOW};
use crate::table::{Align, Cell, Table};

/// Runs the verb.
pub fn run(context: &mut Context<'_>, args: CheckArgs) -> Result<()> {
    let repo = match context.settings.repo.is_some() {
        true => {
            // A URL that is none is a wrong command line; what is wrong with a key file is what is looked for.
            context.settings.repo_url()?;
            Some(context.repo_access())
        }
        false => None,
    };
    let source = args
        .source
        .map(|source| absolute("source", "dir://", &source));
    let options = CheckOptions {
        repo,
        source: source.transpose()?,
        exclude: args.exclude,
        one_file_system: args.one_file_system,
    };
    let report = check::run(&context.settings.engine, &options)?;
    tell(context, &report.items);
    context.out.summary(&report);
    if report.ok {
        return Ok(());
    }
    let failed = report
        .items
        .iter()
        .filter(|item| item.status == Status::Fail);
    let failed: Vec<&CheckItem> = failed.collect();
    if context.out.is_quiet() {
        for item in &failed {
            let hint = item.hint.as_ref().map(|hint| format!(" (hint: {hint})"));
            let text = format!("{}{}", named(item), hint.unwrap_or_default());
            context.out.finding("FAIL", &text);
        }
    }
    let first = failed.first().map(|item| named(item));
    let error = Error::new(Kind::CheckFailed, "a job would fail here")
        .object(first_of(first, failed.len() as u64));
    let hint = failed.first().and_then(|item| item.hint.clone());
    Err(match hint {
        Some(hint) => error.hint(hint),
        None => error,
    })
}

/// An item in one line.
fn named(item: &CheckItem) -> String {
    format!("{}, {}: {}", item.area, item.name, item.detail)
}

fn tell(context: &mut Context<'_>, items: &[CheckItem]) {
    let mut area = "";
    let mut table = Table::plain(&[Align::Left, Align::Left, Align::Left]).indent(2);
    for item in items {
        if item.area != area {
            flush(context, &mut table);
            area = item.area;
            let title = context.out.paint(area, BOLD);
            context.out.line(title);
        }
        let status = match item.status {
            Status::Ok => Cell::styled("ok", GREEN),
            Status::Warn => Cell::styled("warn", YELLOW),
            Status::Fail => Cell::styled("FAIL", RED),
        };
        table.row([status, Cell::from(&item.name), Cell::from(&item.detail)]);
        if let Some(hint) = &item.hint {
            table.row([
                "".into(),
                "".into(),
                Cell::styled(format!("hint: {hint}"), DIM),
            ]);
        }
    }
    flush(context, &mut table);
}

fn flush(context: &mut Context<'_>, table: &mut Table) {
    context.out.table(table);
    *table = Table::plain(&[Align::Left, Align::Left, Align::Left]).indent(2);
}
