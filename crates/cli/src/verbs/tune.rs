//! `tune`: the machine beside the tuning profiles, and the commands that close the difference.

use mover_base::Result;
use mover_base::units::format_bytes;
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
        all.extend(compare::compare(profile));
    }
    tell(context, &profiles, &all);
    let (applied, ended) = match args.apply {
        true => compare::apply(&all),
        false => (Vec::new(), Ok(())),
    };
    tell_applied(context, args.apply && ended.is_ok(), &applied);
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
    ended
}

fn tell(context: &mut Context<'_>, profiles: &[Profile], findings: &[Finding]) {
    let mut table = Table::with_header(&[
        ("STATE", Align::Left),
        ("VALUE", Align::Left),
        ("NOW", Align::Left),
        ("WANTED", Align::Left),
    ])
    .indent(2);
    for finding in findings {
        table.row(row(finding));
    }
    // One table, so that all groups line up; its lines are printed group by group.
    let mut lines = table.lines();
    let header = lines.remove(0);
    context.out.table_line(&header);
    let mut lines = lines.into_iter();
    for profile in profiles {
        let title = context.out.paint(&profile.title, BOLD);
        context.out.line(format!("{title} ({})", profile.name));
        let reasons = context.out.verbosity() > 0;
        if reasons {
            tell_text(context, &profile.about, "  ");
        }
        let own: Vec<&Finding> = findings
            .iter()
            .filter(|finding| finding.profile == profile.name)
            .collect();
        for line in lines.by_ref().take(own.len()) {
            context.out.table_line(&line);
        }
        if reasons {
            tell_reasons(context, &own);
        }
    }
}

fn row(finding: &Finding) -> [Cell; 4] {
    let verdict = match finding.verdict {
        Verdict::Ok => Cell::styled("ok", GREEN),
        Verdict::Differs => Cell::styled("differs", YELLOW),
        Verdict::Information => Cell::from("info"),
        Verdict::NotAvailable => Cell::styled("n/a", DIM),
    };
    let now = match (&finding.current, &finding.unavailable) {
        (Some(text), _) if text.is_empty() => Cell::from("none"),
        (Some(text), _) => Cell::from(with_unit(text, &finding.wanted)),
        (None, why) => Cell::styled(why.as_deref().unwrap_or(UNKNOWN), DIM),
    };
    [
        verdict,
        Cell::from(&finding.name),
        now,
        Cell::from(&finding.wanted),
    ]
}

/// A number of bytes as people read it, where the wish is in such units.
fn with_unit(current: &str, wanted: &str) -> String {
    match current.parse::<u64>() {
        Ok(bytes) if wanted.contains("iB") => format_bytes(bytes),
        _ => current.to_owned(),
    }
}

fn tell_reasons(context: &mut Context<'_>, findings: &[&Finding]) {
    let mut last = "";
    for finding in findings.iter().filter(|finding| !finding.reason.is_empty()) {
        if finding.reason == last {
            continue;
        }
        last = &finding.reason;
        let name = context.out.paint(&finding.name, BOLD);
        context.out.line(format!("  {name}"));
        tell_text(context, &finding.reason, "    ");
        context.out.line(format!("    to set:  {}", finding.apply));
        context
            .out
            .line(format!("    to keep: {}", finding.persist));
    }
}

fn tell_text(context: &mut Context<'_>, text: &str, indent: &str) {
    for line in wrap(text, 96 - indent.len()) {
        context.out.line(format!("{indent}{line}"));
    }
}

fn tell_applied(context: &mut Context<'_>, is_all: bool, applied: &[Applied]) {
    if is_all && applied.is_empty() {
        context
            .out
            .line("nothing to apply: every sysctl that may be set here is as wanted");
    }
    let set = applied.iter();
    let set = set.map(|one| format!("{} = {} (was {})", one.name, one.now, one.before));
    let set: Vec<String> = set.collect();
    if !set.is_empty() {
        context.out.done(format!("applied: {}", set.join(", ")));
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
    let more = if context.out.verbosity() > 0 {
        ""
    } else {
        "; -v for the reasons"
    };
    context.out.line(format!("{title} ({values}{more})"));
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
    fn bytes_are_readable_where_the_wish_is() {
        assert_eq!(with_unit("8388608", "at least 128MiB"), "8.00 MiB");
        assert_eq!(with_unit("60", "at most 10"), "60");
        assert_eq!(with_unit("unlimited", "at least 128MiB"), "unlimited");
    }

    #[test]
    fn text_wraps_at_words() {
        assert_eq!(wrap("a bb  ccc\ndddd", 4), ["a bb", "ccc", "dddd"]);
        assert_eq!(wrap("longer than four", 4), ["longer", "than", "four"]);
        assert!(wrap("", 4).is_empty());
    }
}
