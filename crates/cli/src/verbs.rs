//! One module per verb: settings and options in, a job called, its figures printed.
//!
//! Invariants: a verb prints only through [`Output`], calls only the jobs crate, and returns an error instead
//! of reporting it.

mod backup;
mod check;
mod completions;
mod figures_of;
mod init;
mod key;
mod list;
mod restore;
mod show;
mod tune;
mod verify;

use mover_base::{Error, Kind, Result};
use mover_jobs::RepoAccess;

pub use figures_of::{backup_table, engine_line, engine_rows, restore_table, stored};

use crate::args::{KeyVerb, Verb};
use crate::config::{Call, Settings};
use crate::output::{Output, Shape};
use crate::signals::Signals;

/// What a verb works with.
pub struct Context<'a> {
    /// Resolved settings.
    pub settings: &'a Settings,
    /// Where results go.
    pub out: &'a mut Output,
    /// Whether to stop.
    pub signals: &'a Signals,
}

impl Context<'_> {
    /// The repository with its key; warns about careless key files.
    pub fn repo_access(&mut self) -> Result<RepoAccess> {
        let out = &mut *self.out;
        self.settings
            .repo_access(&mut |warning| out.warning(&warning))
    }

    /// Prints the warnings of a plan or a summary in human output; in JSON they stand in the document.
    pub fn tell_warnings(&mut self, warnings: &[String]) {
        if !self.out.is_json() {
            for warning in warnings {
                self.out.warning(warning);
            }
        }
    }
}

/// Runs the verb of `call`.
pub fn run(call: Call, out: &mut Output, signals: &Signals) -> Result<()> {
    let Call {
        settings,
        verb,
        warnings,
    } = call;
    let (name, shape) = name(&verb);
    out.begin(name, shape);
    for warning in &warnings {
        out.warning(warning);
    }
    if let Some(file) = settings.file.as_ref().filter(|_| out.verbosity() > 0) {
        out.note(&format!("configuration file: {}", file.display()));
    }
    let mut context = Context {
        settings: &settings,
        out,
        signals,
    };
    let context = &mut context;
    match verb {
        Verb::Init(args) => init::run(context, args),
        Verb::Backup(args) => backup::run(context, args),
        Verb::List(_) => list::run(context),
        Verb::Show(args) => show::run(context, args),
        Verb::Restore(args) => restore::run(context, args),
        Verb::Verify(args) => verify::run(context, args),
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

fn name(verb: &Verb) -> (&'static str, Shape) {
    match verb {
        Verb::Init(_) => ("init", Shape::Query),
        Verb::Backup(_) => ("backup", Shape::Job),
        Verb::List(_) => ("list", Shape::Query),
        Verb::Show(_) => ("show", Shape::Query),
        Verb::Restore(_) => ("restore", Shape::Job),
        Verb::Verify(_) => ("verify", Shape::Job),
        Verb::Key(args) => match args.verb {
            KeyVerb::List(_) => ("key list", Shape::Query),
            KeyVerb::Add(_) => ("key add", Shape::Query),
            KeyVerb::Remove(_) => ("key remove", Shape::Query),
            KeyVerb::Generate(_) => ("key generate", Shape::Query),
        },
        Verb::Check(_) => ("check", Shape::Query),
        Verb::Tune(_) => ("tune", Shape::Query),
        Verb::Completions(_) => ("completions", Shape::Query),
        Verb::Demo(_) => ("demo", Shape::Job),
    }
}

/// An option that the verb cannot do without is in no layer.
fn missing(what: &str, option: &str) -> Error {
    Error::new(Kind::Usage, format!("no {what} is given")).hint(format!("use {option}"))
}
