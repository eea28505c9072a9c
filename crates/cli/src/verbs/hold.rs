//! `hold add|list|remove`.

use mover_base::Result;
use mover_jobs::hold;
use serde::Serialize;

use super::{Context, missing};
use crate::args::{HoldAddArgs, HoldRemoveArgs};
use crate::figures::UNKNOWN;
use crate::output::{GREEN, YELLOW};
use crate::table::{Align, Cell, Table};

#[derive(Serialize)]
struct OneHold<H> {
    hold: H,
}

/// `hold add`
pub fn add(context: &mut Context<'_>, args: HoldAddArgs) -> Result<()> {
    let reason = args
        .reason
        .ok_or_else(|| missing("reason for the hold", "--reason TEXT"))?;
    let repo = context.repo_access()?;
    let hold = hold::add(&context.settings.engine, &repo, &args.backup, &reason)?;
    let title = context.out.paint("held", GREEN);
    let (id, backup) = (hold.hold_id, hold.backup_id);
    context
        .out
        .done(format!("backup {backup} is held by hold {id}"));
    context.out.line(format!("{title} {backup} by hold {id}"));
    context.out.summary(OneHold { hold });
    Ok(())
}

/// `hold list`
pub fn list(context: &mut Context<'_>) -> Result<()> {
    let repo = context.repo_access()?;
    let listed = hold::list(&context.settings.engine, &repo)?;
    context.warn_of_strays(&listed.strays);
    let mut table = Table::with_header(&[
        ("HOLD", Align::Left),
        ("BACKUP", Align::Left),
        ("CREATED", Align::Left),
        ("HOST", Align::Left),
        ("REASON", Align::Left),
    ]);
    for hold in &listed.holds {
        let created = hold.created.map(|created| created.to_string());
        let why = match (&hold.reason, &hold.problem) {
            (Some(reason), _) => Cell::from(reason),
            (None, Some(problem)) => Cell::styled(problem, YELLOW),
            (None, None) => Cell::from(UNKNOWN),
        };
        table.row([
            Cell::from(hold.hold_id.to_string()),
            Cell::from(hold.backup_id.to_string()),
            Cell::from(created.as_deref().unwrap_or(UNKNOWN)),
            Cell::from(hold.host.as_deref().unwrap_or(UNKNOWN)),
            why,
        ]);
    }
    if listed.holds.is_empty() {
        context.out.line("no holds");
    } else {
        context.out.table(&table);
    }
    context.out.summary(&listed);
    Ok(())
}

/// `hold remove`
pub fn remove(context: &mut Context<'_>, args: HoldRemoveArgs) -> Result<()> {
    let repo = context.repo_access()?;
    let hold = hold::remove(&context.settings.engine, &repo, &args.hold)?;
    let title = context.out.paint("removed", GREEN);
    let (id, backup) = (hold.hold_id, hold.backup_id);
    context
        .out
        .done(format!("hold {id} on backup {backup} was removed"));
    context.out.line(format!("{title} hold {id} on {backup}"));
    context.out.summary(OneHold { hold });
    Ok(())
}
