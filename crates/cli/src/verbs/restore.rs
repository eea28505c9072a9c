//! `restore`: plans, then executes; with `--dry-run` prints the plan.

use mover_base::Result;
use mover_base::units::format_bytes;
use mover_jobs::restore::{self, RestoreOptions, RestorePlan};
use serde::Serialize;

use super::{Context, figures_of, missing, restore_table};
use crate::args::RestoreArgs;
use crate::figures;
use crate::output::BOLD;
use crate::progress::Ticker;
use crate::table::{Align, Table};

#[derive(Serialize)]
struct DryRun<'a> {
    dry_run: bool,
    #[serde(flatten)]
    plan: &'a RestorePlan,
}

/// Runs the verb.
pub fn run(context: &mut Context<'_>, args: RestoreArgs) -> Result<()> {
    let to = args.to.ok_or_else(|| {
        missing(
            "target directory",
            "--to DIR, HELIOS_MOVER_RESTORE_TO, or `to` in [restore] of the configuration file",
        )
    })?;
    let options = RestoreOptions {
        repo: context.repo_access()?,
        set: args.set.unwrap_or_else(|| "latest".into()),
        to,
        delta: args.delta,
    };
    let engine = &context.settings.engine;
    let mut ticker = Ticker::start(context.out, context.signals, None);
    let plan = restore::plan(engine, &options, &mut |progress, stop| {
        ticker.tick(progress, stop)
    })?;
    if args.dry_run {
        drop(ticker);
        return tell_plan(context, &plan);
    }
    let summary = restore::execute(engine, plan, &mut |progress, stop| {
        ticker.tick(progress, stop)
    })?;
    drop(ticker);
    context.tell_warnings(&summary.warnings);
    let title = context
        .out
        .paint(&format!("restored {}", summary.backup_id), BOLD);
    context.out.line(title);
    context.out.table(&restore_table(&summary));
    context.out.summary(&summary);
    Ok(())
}

fn tell_plan(context: &mut Context<'_>, plan: &RestorePlan) -> Result<()> {
    context.tell_warnings(&plan.warnings);
    let title = context
        .out
        .paint("plan of a restore (nothing was written)", BOLD);
    context.out.line(title);
    let mut table = Table::plain(&[Align::Left, Align::Left]).indent(2);
    table.pair("backup", plan.backup_id.to_string());
    table.pair("repository", &plan.repository);
    table.pair("target", plan.target.display().to_string());
    table.pair("mode", plan.mode);
    table.pair(
        "content",
        figures_of::content(plan.files, plan.dirs, plan.symlinks, plan.hardlinks),
    );
    table.pair(
        "size",
        format!(
            "{}, {} without holes",
            format_bytes(plan.bytes),
            format_bytes(plan.data_bytes)
        ),
    );
    table.pair(
        "to read",
        format!(
            "{} in {}",
            format_bytes(plan.pack_bytes),
            figures::counted(plan.packs, "pack")
        ),
    );
    table.pair("free", format_bytes(plan.free_bytes));
    let estimate = plan
        .estimated_seconds
        .map_or("not known".into(), |seconds| {
            format!("about {}", figures::duration(seconds))
        });
    table.pair("to take", estimate);
    context.out.table(&table);
    context.out.summary(DryRun {
        dry_run: true,
        plan,
    });
    Ok(())
}
