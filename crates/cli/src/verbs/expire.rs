//! `expire`: plans; with `--confirm` also deletes. What the store keeps is the verb's result and its exit code.

use mover_base::units::format_bytes;
use mover_base::{Error, Kind, Result};
use mover_jobs::expire::{
    self, ExpireOptions, ExpirePlan, ExpireScope, ExpireSummary, Life, OtherReason, Policy, Reason,
    Rule, SessionInfo, Verdict,
};
use mover_jobs::{RepoAccess, source_on};
use serde::Serialize;

use super::{Context, DryRun, Ended, figures_of, first_of, whose};
use crate::args::ExpireArgs;
use crate::figures;
use crate::output::{BOLD, GREEN, YELLOW};
use crate::table::{Align, Cell, Table};

#[derive(Serialize)]
struct Forgotten {
    session_id: String,
    warnings: Vec<String>,
}

/// Runs the verb.
pub fn run(context: &mut Context<'_>, args: ExpireArgs) -> Result<()> {
    let repo = context.repo_access()?;
    if let Some(session) = &args.forget_session {
        return forget(context, &repo, session, args.confirm);
    }
    let scope = match args.leftovers || !args.set.is_empty() {
        true => ExpireScope::Named(args.set),
        false => ExpireScope::Rules(whose(args.source.as_deref(), args.host.as_deref())?),
    };
    let options = ExpireOptions {
        repo,
        scope,
        policy: Policy {
            last: args.keep_last.unwrap_or(0),
            daily: args.keep_daily.unwrap_or(0),
            weekly: args.keep_weekly.unwrap_or(0),
            monthly: args.keep_monthly.unwrap_or(0),
            within_seconds: args.keep_within.map(|span| span.0),
        },
    };
    let ended = context.watch_warned(None, |engine, tick, warn| {
        let plan = expire::plan(engine, &options, &mut *tick)?;
        warn(&plan.warnings);
        if !args.confirm {
            return Ok(Ended::Planned(plan));
        }
        let told = plan.warnings.len();
        let summary = expire::execute(engine, plan, tick)?;
        Ok(Ended::Done { summary, told })
    })?;
    match ended {
        Ended::Planned(mut plan) => {
            context.out.merge_warnings(&mut plan.warnings);
            tell_plan(context, &plan);
        }
        Ended::Done { mut summary, told } => {
            context.tell_warnings(&summary.outcome.warnings, told);
            context.out.merge_warnings(&mut summary.outcome.warnings);
            return tell_done(context, &summary);
        }
    }
    Ok(())
}

fn forget(
    context: &mut Context<'_>,
    repo: &RepoAccess,
    session: &str,
    confirmed: bool,
) -> Result<()> {
    if !confirmed {
        return Err(
            Error::new(Kind::Usage, "giving up a session needs a confirmation")
                .object(session)
                .hint("if its process still runs, it will fail; if that is meant, add --confirm"),
        );
    }
    let id = expire::forget_session(&context.settings.engine, repo, session)?;
    context.out.done(format!("session {id} was given up"));
    let title = context.out.paint("given up", GREEN);
    context.out.line(format!("{title} session {id}"));
    let mut warnings = Vec::new();
    context.out.merge_warnings(&mut warnings);
    context.out.summary(Forgotten {
        session_id: id.to_string(),
        warnings,
    });
    Ok(())
}

fn tell_plan(context: &mut Context<'_>, plan: &ExpirePlan) {
    let title = "plan of an expire (nothing was deleted; --confirm deletes)";
    let title = context.out.paint(title, BOLD);
    context.out.line(title);
    let why = match plan.named.is_some() {
        true => NAMED,
        false => NO_RULE,
    };
    tell_verdicts(context, &plan.backups, "expire", why);
    if !plan.sessions.is_empty() {
        context.out.table(&sessions(&plan.sessions));
    }
    let mut table = Table::pairs().indent(2);
    table.pair("keeps", figures::counted(plan.kept, "backup"));
    table.pair("deletes", figures::counted(plan.expired, "backup"));
    let leftovers = &plan.leftovers;
    if leftovers.packs > 0 {
        let packs = figures::counted(leftovers.packs, "pack");
        let bytes = format_bytes(leftovers.bytes);
        let why = "left by backups that did not end";
        table.pair("leftovers", format!("{packs}, {bytes}: {why}"));
    }
    if leftovers.owned_packs > 0 {
        let packs = figures::counted(leftovers.owned_packs, "pack");
        let bytes = format_bytes(leftovers.owned_bytes);
        table.pair("in the making", format!("{packs}, {bytes}: they stay"));
    }
    table.pair("frees", format_bytes(plan.freed_bytes));
    context.out.table(&table);
    context.out.summary(DryRun::of(plan));
}

fn tell_done(context: &mut Context<'_>, summary: &ExpireSummary) -> Result<()> {
    let outcome = &summary.outcome;
    let deleted = figures::counted(outcome.deleted.len() as u64, "backup");
    let title = context.out.paint(&format!("deleted {deleted}"), BOLD);
    context.out.line(title);
    let why = match summary.named {
        true => NAMED,
        false => NO_RULE,
    };
    tell_verdicts(context, &summary.backups, "expired", why);
    let mut table = Table::pairs().indent(2);
    for one in &outcome.put_off {
        let reason = name(Reason::Other(one.reason));
        let text = format!("{}: {reason}, since the plan was made", one.backup_id);
        table.pair("put off", Cell::styled(text, YELLOW));
    }
    let packs = figures::counted(outcome.packs, "pack");
    table.pair(
        "packs",
        format!("{packs}, {}", format_bytes(outcome.freed_bytes)),
    );
    if outcome.leftover_packs > 0 {
        let packs = figures::counted(outcome.leftover_packs, "pack");
        table.pair(
            "leftovers",
            format!("{packs} of these: left by backups that did not end"),
        );
    }
    if outcome.sessions_removed + outcome.uploads_removed > 0 {
        let sessions = figures::counted(outcome.sessions_removed, "ended session");
        let uploads = figures::counted(outcome.uploads_removed, "unfinished upload");
        table.pair("cleared", format!("{sessions}, {uploads}"));
    }
    figures_of::engine_rows(&summary.engine, &mut table);
    context.out.table(&table);
    for refusal in &outcome.refusals {
        let text = format!("{}: {}", refusal.object, refusal.problem);
        context.out.finding("not deleted", &text);
    }
    context.out.summary(summary);
    if summary.ok {
        context
            .out
            .done(format!("deleted {deleted}, and nothing was refused"));
        return Ok(());
    }
    let first = outcome.refusals.first();
    let first = first.map(|refusal| format!("{}: {}", refusal.object, refusal.problem));
    Err(Error::new(Kind::Storage, "the storage refused to delete")
        .object(first_of(first, outcome.refused))
        .hint("if they are locked, run this again when the locks have ended; if the storage failed at them, try again later; otherwise the mover lacks the permission to delete (s3:DeleteObject); every backup that is listed can be restored"))
}

/// Why a backup goes.
const NO_RULE: &str = "no rule keeps it";
const NAMED: &str = "it is named";

/// Those that the run is about, and beside them none.
fn tell_verdicts(
    context: &mut Context<'_>,
    backups: &[Verdict],
    gone: &'static str,
    why_gone: &'static str,
) {
    let not_asked = Reason::Other(OtherReason::NotAsked);
    let asked = backups
        .iter()
        .filter(|one| !one.reasons.contains(&not_asked));
    let asked: Vec<&Verdict> = asked.collect();
    if !asked.is_empty() {
        context.out.table(&verdicts(&asked, gone, why_gone));
    }
}

fn verdicts(backups: &[&Verdict], gone: &'static str, why_gone: &'static str) -> Table {
    let mut table = Table::with_header(&[
        ("BACKUP", Align::Left),
        ("SOURCE", Align::Left),
        ("VERDICT", Align::Left),
        ("WHY", Align::Left),
        ("FREES", Align::Right),
    ]);
    for verdict in backups {
        let why: Vec<&str> = verdict.reasons.iter().copied().map(name).collect();
        let source = source_on(&verdict.source, &verdict.host);
        let (said, why, freed) = match why.is_empty() {
            true => (
                Cell::styled(gone, YELLOW),
                why_gone.to_owned(),
                format_bytes(verdict.freed_bytes),
            ),
            false => (Cell::from("keep"), why.join(", "), String::new()),
        };
        table.row([
            Cell::from(verdict.backup_id.to_string()),
            Cell::from(source),
            said,
            Cell::from(why),
            Cell::from(freed),
        ]);
    }
    table
}

fn sessions(standing: &[SessionInfo]) -> Table {
    let mut table = Table::with_header(&[
        ("SESSION", Align::Left),
        ("HOST", Align::Left),
        ("SINCE", Align::Left),
        ("STATE", Align::Left),
    ]);
    for session in standing {
        let state = match (session.is_over, session.process) {
            (true, _) => Cell::from("ended"),
            (false, Life::Running) => Cell::from("runs"),
            (false, Life::Dead) => Cell::styled("has died", YELLOW),
            (false, Life::Unknown) => Cell::styled("runs elsewhere, or has died", YELLOW),
        };
        table.row([
            Cell::from(session.session_id.to_string()),
            Cell::from(session.host.clone()),
            Cell::from(session.started.to_string()),
            state,
        ]);
    }
    table
}

/// A reason as people read it.
fn name(reason: Reason) -> &'static str {
    match reason {
        Reason::Rule(Rule::Last) => "last",
        Reason::Rule(Rule::Daily) => "daily",
        Reason::Rule(Rule::Weekly) => "weekly",
        Reason::Rule(Rule::Monthly) => "monthly",
        Reason::Rule(Rule::Within) => "within",
        Reason::Rule(Rule::WindowBase) => "begins the window",
        Reason::Rule(Rule::Future) => "in the future",
        Reason::Other(OtherReason::Hold) => "hold",
        Reason::Other(OtherReason::InUse) => "a backup builds on it",
        Reason::Other(OtherReason::NotAsked) => "not asked for",
    }
}
