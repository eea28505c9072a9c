//! `tune`: the machine beside the tuning profiles, and the commands that close the difference.

use mover_base::Result;
use serde::Serialize;

use super::Context;
use crate::args::TuneArgs;
use crate::figures::{self, UNKNOWN};
use crate::output::{BOLD, DIM, GREEN, YELLOW};
use crate::table::{Align, Cell, Table};
use crate::tune::compare::{self, Applied, Finding, Verdict};
use crate::tune::profile::{self, Profile};

#[derive(Serialize)]
struct Document<'a> {
    differs: usize,
    not_available: usize,
    settings: &'a [Finding],
    applied: &'a [Applied],
}

/// Runs the verb.
pub fn run(context: &mut Context<'_>, args: TuneArgs) -> Result<()> {
    let profiles = profile::choose(&args.profile)?;
    let mut all = Vec::new();
    for profile in &profiles {
        let findings = compare::compare(profile);
        tell(context, profile, &findings);
        all.extend(findings);
    }
    let applied = if args.apply {
        compare::apply(&all)?
    } else {
        Vec::new()
    };
    tell_applied(context, &args, &applied);
    tell_commands(context, &all, &applied);
    let number = |verdict| {
        all.iter()
            .filter(|finding| finding.verdict == verdict)
            .count()
    };
    context.out.summary(Document {
        differs: number(Verdict::Differs),
        not_available: number(Verdict::NotAvailable),
        settings: &all,
        applied: &applied,
    });
    Ok(())
}

fn tell(context: &mut Context<'_>, profile: &Profile, findings: &[Finding]) {
    let title = context.out.paint(&profile.title, BOLD);
    context.out.line(format!("{title} ({})", profile.name));
    let reasons = context.out.verbosity() > 0;
    if reasons {
        for line in wrap(&profile.about, 96) {
            context.out.line(format!("  {line}"));
        }
    }
    let columns = [Align::Left, Align::Left, Align::Left, Align::Left];
    let mut table = Table::plain(&columns).indent(2);
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Ok => Cell::styled("ok", GREEN),
            Verdict::Differs => Cell::styled("differs", YELLOW),
            Verdict::Information => Cell::from("info"),
            Verdict::NotAvailable => Cell::styled("n/a", DIM),
        };
        let current = finding.current.as_ref().or(finding.unavailable.as_ref());
        let current = current
            .map(String::as_str)
            .filter(|text| !text.is_empty())
            .unwrap_or(UNKNOWN);
        table.row([
            verdict,
            Cell::from(&finding.name),
            Cell::from(current),
            Cell::styled(&finding.wanted, DIM),
        ]);
    }
    context.out.table(&table);
    if reasons {
        let mut last = "";
        for finding in findings {
            if finding.reason != last {
                last = &finding.reason;
                let name = context.out.paint(&finding.name, BOLD);
                context.out.line(format!("  {name}"));
                for line in wrap(&finding.reason, 92) {
                    context.out.line(format!("    {line}"));
                }
                context
                    .out
                    .line(format!("    to keep: {}", finding.persist));
            }
        }
    }
}

fn tell_applied(context: &mut Context<'_>, args: &TuneArgs, applied: &[Applied]) {
    if args.apply && applied.is_empty() {
        context
            .out
            .line("nothing to apply: every sysctl that may be set here is as wanted");
    }
    for one in applied {
        let done = context.out.paint("applied", GREEN);
        context.out.line(format!(
            "{done} {} = {} (was {}; undo: {})",
            one.name, one.now, one.before, one.undo
        ));
    }
}

fn tell_commands(context: &mut Context<'_>, findings: &[Finding], applied: &[Applied]) {
    let open = |finding: &&Finding| {
        finding.verdict == Verdict::Differs && !applied.iter().any(|one| one.name == finding.name)
    };
    let commands: Vec<&Finding> = findings.iter().filter(open).collect();
    if commands.is_empty() {
        return;
    }
    let title = context.out.paint("To change what differs", BOLD);
    let values = figures::counted(commands.len() as u64, "value");
    context
        .out
        .line(format!("{title} ({values}; -v for the reasons)"));
    for finding in commands {
        context.out.line(format!("  {}", finding.apply));
    }
}

/// `text` in lines of at most `width` characters, where words allow.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_wraps_at_words() {
        assert_eq!(wrap("a bb  ccc\ndddd", 4), ["a bb", "ccc", "dddd"]);
        assert_eq!(wrap("longer than four", 4), ["longer", "than", "four"]);
        assert!(wrap("", 4).is_empty());
    }
}
