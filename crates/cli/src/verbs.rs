//! One module per verb: settings and options in, a job called, its figures printed.
//!
//! Invariants: a verb prints only through [`Output`], calls only the jobs crate, and returns an error instead
//! of reporting it.

mod annotate;
mod backup;
mod check;
mod completions;
mod expire;
pub mod figures_of;
mod hold;
mod init;
mod key;
mod list;
mod restore;
mod show;
mod tune;
mod verify;

use std::cell::RefCell;
use std::ffi::OsString;

use mover_base::{Error, Kind, Result};
use mover_jobs::check::STRAY_HINT;
use mover_jobs::{Engine, Progress, RepoAccess, Stop, Tick, Whose};
use serde::Serialize;

use crate::args::{HoldVerb, KeyVerb, Verb};
use crate::config::layers::{Environment, Layer};
use crate::config::{Call, Settings, absolute};
use crate::figures;
use crate::output::{BOLD, Output, Shape};
use crate::progress::Ticker;
use crate::signals::Signals;
use crate::table::Table;

/// So many stray names stand in a warning; a summary has them all.
const STRAYS_NAMED: usize = 10;

/// What a verb works with.
pub struct Context<'a> {
    /// Resolved settings.
    pub settings: &'a Settings,
    /// Where results go.
    pub out: &'a mut Output,
    /// Whether to stop.
    pub signals: &'a Signals,
    /// The command line, to resolve the limits anew.
    pub argv: &'a [OsString],
}

impl Context<'_> {
    /// The repository with its key; warns about careless key files.
    pub fn repo_access(&mut self) -> Result<RepoAccess> {
        let out = &mut *self.out;
        let access = self
            .settings
            .repo_access(&mut |warning| out.warning(&warning))?;
        // What stands in a file or the environment may be meant for other repositories.
        let link = &self.settings.link;
        let limits = [
            ("limit-upload", &link.upload),
            ("limit-download", &link.download),
            ("limit-requests", &link.requests),
        ];
        for (key, limit) in limits {
            let is_typed = self.settings.layers.of(key) == Layer::Flag;
            if is_typed && !limit.is_unlimited() && access.url.starts_with("file://") {
                self.out.warning(&format!(
                    "--{key} limits nothing here: the repository is a directory; --limit-read and --limit-write limit disks"
                ));
            }
        }
        Ok(access)
    }

    /// Runs a job with its progress shown; `step` names the part of a verb that runs several jobs.
    pub fn watch<T>(
        &mut self,
        step: Option<&'static str>,
        job: impl FnOnce(&Engine, Tick<'_>) -> Result<T>,
    ) -> Result<T> {
        self.watch_warned(step, |engine, tick, _| job(engine, tick))
    }

    /// The same for a job that has warnings before its end, which it gives to its last argument: those of its plan are told
    /// even if its execution fails.
    fn watch_warned<T>(
        &mut self,
        step: Option<&'static str>,
        job: impl FnOnce(&Engine, Tick<'_>, &dyn Fn(&[String])) -> Result<T>,
    ) -> Result<T> {
        let (settings, signals, argv) = (self.settings, self.signals, self.argv);
        let ticker = RefCell::new(Ticker::start(self.out, signals, step));
        let mut tick = |progress: &Progress, stop: &Stop| {
            let mut ticker = ticker.borrow_mut();
            if signals.take_reread() {
                let limits = settings.take_new_limits(argv, &Environment::of_process());
                ticker.tell_limits(limits);
            }
            ticker.tick(progress, stop);
        };
        let warn = |warnings: &[String]| ticker.borrow_mut().warn(warnings);
        job(&settings.engine, &mut tick, &warn)
    }

    /// Prints a result: a title over its figures, or the document.
    fn tell(&mut self, title: &str, table: &Table, document: impl Serialize) {
        let title = self.out.paint(title, BOLD);
        self.out.line(title);
        self.out.table(table);
        self.out.summary(document);
    }

    /// Tells the warnings of a job's summary behind the first `told`, which were told before.
    fn tell_warnings(&mut self, warnings: &[String], told: usize) {
        for warning in warnings.iter().skip(told) {
            self.out.warning(warning);
        }
    }

    /// Warns once of names in the repository that none of its objects has.
    pub fn warn_of_strays(&mut self, strays: &[String]) {
        if strays.is_empty() {
            return;
        }
        let named = &strays[..strays.len().min(STRAYS_NAMED)];
        let more = match strays.len() - named.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        self.out.warning(&format!(
            "the repository holds names that none of its objects has: {}{more}; {STRAY_HINT}",
            named.join(", ")
        ));
    }
}

/// How a verb ended that plans before it executes.
enum Ended<P, S> {
    Planned(P),
    Done {
        summary: S,
        /// So many of its warnings, from the first on, were told already.
        told: usize,
    },
}

/// The document of a plan that is not carried out.
#[derive(Serialize)]
struct DryRun<P> {
    dry_run: bool,
    #[serde(flatten)]
    plan: P,
}

impl<P> DryRun<P> {
    fn of(plan: P) -> Self {
        DryRun {
            dry_run: true,
            plan,
        }
    }
}

/// Runs the verb of `call`.
pub fn run(call: Call, out: &mut Output, signals: &Signals) -> Result<()> {
    let Call {
        settings,
        name,
        verb,
        warnings,
        argv,
    } = call;
    out.begin(&name, shape(&verb));
    for warning in &warnings {
        out.warning(warning);
    }
    if let Some(file) = settings
        .layers
        .file
        .as_ref()
        .filter(|_| out.verbosity() > 0)
    {
        out.note(&format!("configuration file: {}", file.display()));
    }
    let mut context = Context {
        settings: &settings,
        out,
        signals,
        argv: &argv,
    };
    let context = &mut context;
    match verb {
        Verb::Init(args) => init::run(context, args),
        Verb::Backup(args) => backup::run(context, args),
        Verb::List(args) => list::run(context, &args),
        Verb::Show(args) => show::run(context, args),
        Verb::Restore(args) => restore::run(context, args),
        Verb::Verify(args) => verify::run(context, args),
        Verb::Expire(args) => expire::run(context, args),
        Verb::Hold(args) => match args.verb {
            HoldVerb::Add(args) => hold::add(context, args),
            HoldVerb::List(_) => hold::list(context),
            HoldVerb::Remove(args) => hold::remove(context, args),
        },
        Verb::Annotate(args) => annotate::run(context, args),
        Verb::Key(args) => match args.verb {
            KeyVerb::List(_) => key::list(context),
            KeyVerb::Add(args) => key::add(context, args),
            KeyVerb::Remove(args) => key::remove(context, args),
            KeyVerb::Generate(args) => key::generate(context, args),
        },
        Verb::Check(args) => check::run(context, args),
        Verb::Tune(args) => tune::run(context, args),
        Verb::Completions(args) => completions::run(context, args),
        Verb::Demo(args) => crate::demo::run(context, args),
    }
}

/// What the verb prints with `--json`.
fn shape(verb: &Verb) -> Shape {
    match verb {
        Verb::Backup(_) | Verb::Restore(_) | Verb::Verify(_) | Verb::Expire(_) | Verb::Demo(_) => {
            Shape::Job
        }
        Verb::Init(_)
        | Verb::List(_)
        | Verb::Show(_)
        | Verb::Hold(_)
        | Verb::Annotate(_)
        | Verb::Key(_)
        | Verb::Check(_)
        | Verb::Tune(_)
        | Verb::Completions(_) => Shape::Query,
    }
}

/// The first of what was found, and how many more of it there are, for the error that a verb ends with.
fn first_of(first: Option<String>, all: u64) -> String {
    let first = first.unwrap_or_default();
    match all.saturating_sub(1) {
        0 => first,
        more => format!("{first}; and {} more", figures::count(more)),
    }
}

/// Whose backups are meant; a plain path is the directory of that name.
fn whose(source: Option<&str>, host: Option<&str>) -> Result<Whose> {
    let source = source.map(|source| absolute("source", "dir://", source));
    Ok(Whose {
        source: source.transpose()?,
        host: host.map(str::to_owned),
    })
}

/// An option that the verb cannot do without is in no layer.
fn missing(what: &str, option: &str) -> Error {
    Error::new(Kind::Usage, format!("no {what} is given")).hint(format!("use {option}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_first_of_what_was_found() {
        let first = || Some("packs/ab is missing".to_owned());
        assert_eq!(first_of(first(), 1), "packs/ab is missing");
        assert_eq!(first_of(first(), 3), "packs/ab is missing; and 2 more");
    }
}
