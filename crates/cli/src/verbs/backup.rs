//! `backup`: plans, then executes; with `--dry-run` prints the plan.

use std::collections::BTreeMap;

use mover_base::units::format_bytes;
use mover_base::{Error, Kind, Result};
use mover_jobs::backup::{self, BackupOptions, BackupPlan};
use mover_jobs::{BackupType, COMPRESSION_LEVEL_DEFAULT};
use serde::Serialize;

use super::{Context, DryRun, Ended, figures_of, missing};
use crate::args::{BackupArgs, TypeArg};
use crate::config::absolute;
use crate::figures;
use crate::table::Table;
use crate::values::Annotation;

/// Runs the verb.
pub fn run(context: &mut Context<'_>, args: BackupArgs) -> Result<()> {
    let options = options(context, &args)?;
    let place = context.settings.layers.place("backup.exclude");
    let ended = context.watch_warned(None, |engine, tick, warn| {
        let plan = match args.no_parent {
            true => backup::plan_anew(engine, &options, &mut *tick),
            false => backup::plan(engine, &options, &mut *tick),
        };
        let plan = plan.map_err(|error| placed(error, &options.exclude, place.as_deref()))?;
        warn(&plan.warnings);
        if args.dry_run {
            return Ok(Ended::Planned(plan));
        }
        let told = plan.warnings.len();
        let summary = backup::execute(engine, plan, tick)?;
        Ok(Ended::Done { summary, told })
    })?;
    match ended {
        Ended::Planned(mut plan) => {
            context.out.merge_warnings(&mut plan.warnings);
            let title = "plan of a backup (nothing was stored)";
            context.tell(title, &plan_table(&plan), DryRun::of(Told::of(&plan)));
        }
        Ended::Done { mut summary, told } => {
            context.tell_warnings(&summary.warnings, told);
            context.out.merge_warnings(&mut summary.warnings);
            let id = summary.backup_id;
            context
                .out
                .done(format!("backup {id} was made and is complete"));
            let title = format!("backup {id}");
            context.tell(&title, &figures_of::backup_table(&summary), &summary);
        }
    }
    Ok(())
}

fn options(context: &mut Context<'_>, args: &BackupArgs) -> Result<BackupOptions> {
    let source = args.source.as_deref().ok_or_else(|| {
        missing("source", "--source pages:///path or dir:///path, HELIOS_MOVER_BACKUP_SOURCE, or `source` in [backup] of the configuration file")
    })?;
    let source = absolute("source", "dir://", source)?;
    Ok(BackupOptions {
        backup_type: backup_type(args.backup_type.unwrap_or(TypeArg::Full)),
        base: args.base.clone(),
        repo: context.repo_access()?,
        source,
        host: args.host.clone(),
        level: args.level.unwrap_or(COMPRESSION_LEVEL_DEFAULT),
        annotations: annotations(&args.annotation)?,
        exclude: args.exclude.clone(),
        one_file_system: args.one_file_system,
        estimate: args.dry_run,
    })
}

/// An error about a pattern that nobody typed says where it stands.
fn placed(error: Error, exclude: &[String], place: Option<&str>) -> Error {
    let is_of = |pattern: &&String| error.object_name() == Some(pattern.as_str());
    match (exclude.iter().find(is_of), place) {
        (Some(pattern), Some(place)) if error.kind() == Kind::Usage => {
            let told = Error::new(Kind::Usage, error.message())
                .object(format!("{pattern} (from {place})"));
            match error.hint_text() {
                Some(hint) => told.hint(hint),
                None => told,
            }
        }
        _ => error,
    }
}

fn backup_type(typed: TypeArg) -> BackupType {
    match typed {
        TypeArg::Full => BackupType::Full,
        TypeArg::Incr => BackupType::Incremental,
        TypeArg::Diff => BackupType::Differential,
    }
}

/// The notes by their keys.
pub fn annotations(list: &[Annotation]) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for Annotation { key, value } in list {
        if out.insert(key.clone(), value.clone()).is_some() {
            return Err(Error::new(Kind::Usage, "an annotation is given twice")
                .object(key)
                .hint("give each key once"));
        }
    }
    Ok(out)
}

/// A plan with how its estimates are to be read.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    plan: &'a BackupPlan,
    estimates_are_upper_bounds: bool,
}

impl<'a> Told<'a> {
    fn of(plan: &'a BackupPlan) -> Self {
        let estimates = (plan.estimated_stored_bytes, plan.estimated_seconds);
        Told {
            plan,
            estimates_are_upper_bounds: are_upper_bounds(plan.parent.is_some(), estimates),
        }
    }
}

/// Whether there are estimates, and of a backup that finds nothing in the repository, while this one may find most of it there.
fn are_upper_bounds(has_parent: bool, (bytes, seconds): (Option<u64>, Option<f64>)) -> bool {
    has_parent && (bytes.is_some() || seconds.is_some())
}

fn plan_table(plan: &BackupPlan) -> Table {
    let mut table = Table::pairs().indent(2);
    let kind = figures_of::type_text(plan.backup_type, plan.reason.as_deref());
    table.pair("type", kind);
    table.pair("source", &plan.source);
    table.pair("repository", &plan.repository);
    let (name, on) = match plan.base {
        Some(base) => ("base", Some(base)),
        None => ("parent", plan.parent),
    };
    let source = plan.parent_source.as_deref();
    let on = on.map(|id| figures_of::parent_text(id, source));
    table.pair(name, on.as_deref().unwrap_or("none"));
    table.pair(
        "content",
        figures_of::content(plan.files, plan.dirs, plan.symlinks, plan.hardlinks),
    );
    table.pair(
        "to read",
        format!(
            "{} of {}",
            format_bytes(plan.data_bytes),
            format_bytes(plan.source_bytes)
        ),
    );
    let by = match plan.sampled_bytes {
        0 => "the limits".to_owned(),
        sampled => format!("a sample of {}", format_bytes(sampled)),
    };
    // What the parent holds is known only when it is compared, block by block, by the backup itself.
    let bound = if plan.parent.is_some() {
        "at most "
    } else {
        ""
    };
    let estimate = |about: String| format!("{bound}about {about}, by {by}");
    let unknown = || "not known".to_owned();
    let stored = plan.estimated_stored_bytes.map(format_bytes);
    let stored = stored.map_or_else(unknown, &estimate);
    let known = match plan.parent {
        Some(_) => "; what the parent holds is not stored again",
        None => "",
    };
    table.pair("to store", format!("{stored}{known}"));
    if let Some(free) = plan.repository_free_bytes {
        table.pair("free", format_bytes(free));
    }
    let seconds = plan.estimated_seconds.map(figures::duration);
    table.pair("to take", seconds.map_or_else(unknown, &estimate));
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_estimate_can_be_an_upper_bound() {
        assert!(are_upper_bounds(true, (Some(1), Some(1.0))));
        assert!(are_upper_bounds(true, (None, Some(1.0))), "by the limits");
        assert!(!are_upper_bounds(false, (Some(1), Some(1.0))));
        assert!(!are_upper_bounds(true, (None, None)), "of a page store");
    }

    #[test]
    fn an_annotation_given_twice_is_refused() {
        let note = |value: &str| Annotation {
            key: "ticket".into(),
            value: value.into(),
        };
        assert_eq!(annotations(&[note("1")]).unwrap()["ticket"], "1");
        let error = annotations(&[note("1"), note("2")]).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        // `annotate` takes them without an option.
        assert_eq!(error.hint_text(), Some("give each key once"));
    }
}
