//! `restore`: plans, then executes; with `--dry-run` prints the plan.

use std::cell::Cell as Counter;

use mover_base::units::format_bytes;
use mover_base::{Error, Kind, Result};
use mover_jobs::restore::{self, RestoreOptions, RestorePlan};
use mover_jobs::{Choice, Engine, Tick, source_on};

use super::{Context, DryRun, Ended, figures_of, missing, whose};
use crate::args::RestoreArgs;
use crate::config::target;
use crate::figures;
use crate::output::YELLOW;
use crate::table::{Cell, Table};

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
        choice: Choice {
            set: args.set,
            whose: whose(args.source.as_deref(), args.host.as_deref())?,
        },
        to: target(to)?,
        delta: args.delta,
        estimate: args.dry_run,
    };
    let ended = context.watch_warned(None, |engine, tick, warn| {
        let mut plan = restore::plan(engine, &options, &mut *tick)?;
        warn(&plan.warnings);
        if args.dry_run {
            count_removals(&mut plan, engine, tick, warn)?;
            return Ok(Ended::Planned(plan));
        }
        if !args.confirm {
            require_own_source(&plan)?;
        }
        if !plan.foreign_names.is_empty() && !args.confirm {
            count_removals(&mut plan, engine, &mut *tick, warn)?;
            require_confirmation(&plan)?;
        }
        let told = Counter::new(plan.warnings.len());
        let tell = |warning: &str| {
            warn(&[warning.to_owned()]);
            told.set(told.get() + 1);
        };
        let summary = restore::execute_telling(engine, plan, &tell, tick)?;
        let told = told.get();
        Ok(Ended::Done { summary, told })
    })?;
    match ended {
        Ended::Planned(mut plan) => {
            context.out.merge_warnings(&mut plan.warnings);
            let title = "plan of a restore (nothing was written)";
            context.tell(title, &plan_table(&plan), DryRun::of(&plan));
        }
        Ended::Done { mut summary, told } => {
            context.tell_warnings(&summary.warnings, told);
            context.out.merge_warnings(&mut summary.warnings);
            let (id, target) = (summary.backup_id, summary.target.display());
            context.out.done(format!(
                "backup {id} was restored to {target}, which is complete"
            ));
            let title = format!("restored {id}");
            context.tell(&title, &figures_of::restore_table(&summary), &summary);
        }
    }
    Ok(())
}

/// Counts what would go, and warns of what could not be counted.
fn count_removals(
    plan: &mut RestorePlan,
    engine: &Engine,
    tick: Tick<'_>,
    warn: &dyn Fn(&[String]),
) -> Result<()> {
    let told = plan.warnings.len();
    plan.count_removals(engine, tick)?;
    warn(&plan.warnings[told..]);
    Ok(())
}

/// Refuses to replace a source that has backups of its own by one of another source.
fn require_own_source(plan: &RestorePlan) -> Result<()> {
    let Some(known) = &plan.replaces_source else {
        return Ok(());
    };
    let what = format!(
        "the repository holds backups of the target, {known}, and backup {} is of another source: {}",
        plan.backup_id,
        source_on(&plan.source, &plan.host)
    );
    Err(Error::new(Kind::Target, what)
        .object(plan.target.display().to_string())
        .hint("name a backup of the target with --set, or with --source and --host; if another database shall really take its place, add --confirm"))
}

/// Refuses to replace a directory that looks as if another one was meant.
fn require_confirmation(plan: &RestorePlan) -> Result<()> {
    let removes = plan.removes.unwrap_or(0);
    if removes == 0 {
        return Ok(());
    }
    let what = format!(
        "the target holds nothing of the backup, and all that is in it would be removed: {} ({})",
        names_removed(plan, removes),
        first_names(plan, removes)
    );
    Err(Error::new(Kind::Target, what)
        .object(plan.target.display().to_string())
        .hint("restore to a new directory without --delta; if all of that shall really go, add --confirm"))
}

/// How many names would be removed.
fn names_removed(plan: &RestorePlan, removes: u64) -> String {
    let least = match plan.uncounted_dirs {
        None | Some(0) => "",
        Some(_) => "at least ",
    };
    format!("{least}{}", figures::counted(removes, "name"))
}

/// The first names that would be removed; more are below them or behind them.
fn first_names(plan: &RestorePlan, removes: u64) -> String {
    let names = plan.foreign_names.join(", ");
    let more = removes > plan.foreign_names.len() as u64;
    format!("{names}{}", if more { ", ..." } else { "" })
}

fn plan_table(plan: &RestorePlan) -> Table {
    let mut table = Table::pairs().indent(2);
    table.pair("backup", plan.backup_id.to_string());
    table.pair("of", source_on(&plan.source, &plan.host));
    table.pair("repository", &plan.repository);
    table.pair("target", plan.target.display().to_string());
    table.pair("mode", plan.mode);
    table.pair(
        "content",
        figures_of::content(plan.files, plan.dirs, plan.symlinks, plan.hardlinks),
    );
    table.pair("size", figures_of::size(plan.bytes, plan.data_bytes));
    table.pair(
        "to read",
        format!(
            "{} in {}",
            format_bytes(plan.pack_bytes),
            figures::counted(plan.packs, "pack")
        ),
    );
    if let Some(removes) = plan.removes {
        let removes = match (removes, plan.uncounted_dirs) {
            (0, None | Some(0)) => "nothing".to_owned(),
            (0, Some(_)) => "not known".to_owned(),
            (removes, _) => format!("{}, not in the backup", names_removed(plan, removes)),
        };
        table.pair("to remove", removes);
    }
    if let (Some(removes @ 1..), false) = (plan.removes, plan.foreign_names.is_empty()) {
        let names = first_names(plan, removes);
        let needed = format!("--confirm: the target holds nothing of the backup, but {names}");
        table.pair("needs", Cell::styled(needed, YELLOW));
    }
    if let Some(known) = &plan.replaces_source {
        let needed = format!("--confirm: the target is {known}, which has backups of its own");
        table.pair("needs", Cell::styled(needed, YELLOW));
    }
    if let Some(free) = plan.free_bytes {
        table.pair("free", format_bytes(free));
    }
    let estimate = plan
        .estimated_seconds
        .map_or("not known".into(), |seconds| {
            let (seconds, sample) = (figures::duration(seconds), plan.sampled_bytes);
            let by = match sample {
                0 => "the limits".to_owned(),
                _ => format!("reading a sample of {}", format_bytes(sample)),
            };
            format!("at least about {seconds}, by {by}; the target may be slower")
        });
    table.pair("to take", estimate);
    table
}
