//! `verify`: reads the repository and proves its backups; damage is the verb's result and its exit code.

use mover_base::units::format_bytes;
use mover_base::{Error, Kind, Result};
use mover_jobs::verify::{self, Level, VerifyOptions, VerifySummary};

use super::{Context, figures_of, first_of};
use crate::args::{LevelArg, VerifyArgs};
use crate::figures;
use crate::output::{GREEN, RED, YELLOW};
use crate::table::{Cell, Table};

/// Runs the verb.
pub fn run(context: &mut Context<'_>, args: VerifyArgs) -> Result<()> {
    let is_one = args.set.is_some();
    let options = VerifyOptions {
        repo: context.repo_access()?,
        level: match args.level.unwrap_or(LevelArg::Checksum) {
            LevelArg::Checksum => Level::Checksum,
        },
        set: args.set,
    };
    let mut summary =
        context.watch(None, |engine, tick| verify::execute(engine, &options, tick))?;
    let is_empty = summary.ok && summary.backups.is_empty();
    // Nothing is damaged, and nothing was proved.
    summary.ok &= !is_empty;
    context.warn_of_strays(&summary.strays);
    context.tell_warnings(&summary.warnings, 0);
    context.out.merge_warnings(&mut summary.warnings);
    tell(context, &summary);
    context.out.summary(&summary);
    if summary.ok {
        let all = figures::counted(summary.backups.len() as u64, "backup");
        context
            .out
            .done(format!("verified {all}, and nothing is damaged"));
        return Ok(());
    }
    if is_empty {
        return Err(nothing_to_prove(&options.repo.url, &summary));
    }
    let hint = match (damaged_backups(&summary), is_one) {
        (0, true) => {
            "this backup can be restored; put the objects named back from a copy; holds, notes and key slots can be made anew (`helios-mover hold`, `annotate`, `key`). Nothing is known of the others: `helios-mover verify` without --set looks at all"
        }
        (0, false) => {
            "every backup can be restored; put the objects named back from a copy; holds, notes and key slots can be made anew (`helios-mover hold`, `annotate`, `key`)"
        }
        _ => {
            "put the objects named back from a copy, or make a backup with --no-parent, which stores every block anew: any other here would build on the damaged ones"
        }
    };
    let first = summary.findings.first();
    let first = first.map(|finding| format!("{}: {}", finding.object, finding.what));
    Err(Error::new(Kind::VerifyFailed, "verification found damage")
        .object(first_of(first, summary.findings.len() as u64))
        .hint(hint))
}

fn nothing_to_prove(url: &str, summary: &VerifySummary) -> Error {
    let hint = match unreferenced(summary) {
        Some(packs) => format!("it holds {packs}"),
        None => "check the URL, or make a backup".to_owned(),
    };
    Error::new(Kind::NotFound, "the repository holds no backup yet")
        .object(url)
        .hint(hint)
}

/// The packs that no backup needs, if there are any.
fn unreferenced(summary: &VerifySummary) -> Option<String> {
    let packs = summary.unreferenced_packs.filter(|packs| *packs > 0)?;
    let bytes = format_bytes(summary.unreferenced_bytes?);
    let packs = figures::counted(packs, "pack");
    Some(format!(
        "{packs}, {bytes}: left by backups that did not end, or of one that runs"
    ))
}

fn damaged_backups(summary: &VerifySummary) -> u64 {
    let damaged = summary.backups.iter().filter(|backup| !backup.ok);
    damaged.count() as u64
}

fn tell(context: &mut Context<'_>, summary: &VerifySummary) {
    let is_empty = summary.backups.is_empty() && summary.findings.is_empty();
    let title = match (summary.ok, is_empty) {
        (true, _) => context.out.paint("verified", GREEN),
        (false, true) => context.out.paint("nothing to verify", YELLOW),
        (false, false) => context.out.paint("DAMAGED", RED),
    };
    let all = figures::counted(summary.backups.len() as u64, "backup");
    let of = match summary.ok || is_empty {
        true => String::new(),
        false => format!("{} of ", figures::count(damaged_backups(summary))),
    };
    context.out.line(format!("{title}  {of}{all}"));
    let mut table = Table::pairs().indent(2);
    for backup in &summary.backups {
        let state = if backup.ok {
            Cell::styled("ok", GREEN)
        } else {
            Cell::styled("DAMAGED", RED)
        };
        table.pair(&backup.backup_id.to_string(), state);
    }
    context.out.table(&table);
    let mut table = Table::pairs().indent(2);
    let read = format!(
        "{}, {}",
        figures::counted(summary.objects, "object"),
        format_bytes(summary.bytes)
    );
    let rate = summary.bytes as f64 / summary.engine.seconds.max(1e-9);
    table.pair("read", figures_of::timed(&read, &summary.engine, rate));
    table.pair("checked", figures::counted(summary.blocks, "block"));
    if let Some(packs) = unreferenced(summary) {
        table.pair("unreferenced", packs);
    }
    figures_of::engine_rows(&summary.engine, &mut table);
    context.out.table(&table);
    for finding in &summary.findings {
        let hit: Vec<String> = finding.backups.iter().map(ToString::to_string).collect();
        let hits = match hit.is_empty() {
            true => String::new(),
            false => format!("; hits {}", hit.join(", ")),
        };
        let text = format!("{}: {}{hits}", finding.object, finding.what);
        context.out.finding("finding", &text);
    }
}
