//! `completions`: a completion script on standard output.
//!
//! Invariant: behind every verb its own options are completed, in bash too, for which the generator of clap has to be helped.

use clap::CommandFactory;
use clap_complete::Shell;
use mover_base::{Error, Kind, Result};

use super::Context;
use crate::args::{CompletionsArgs, RawArgs};

/// The name of the tool.
const TOOL: &str = "helios-mover";

/// Runs the verb.
pub fn run(context: &mut Context<'_>, args: CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut RawArgs::command(), TOOL, &mut script);
    let script = String::from_utf8(script).map_err(|error| {
        Error::new(Kind::Internal, "the completion script is not UTF-8").cause(error)
    })?;
    let script = match args.shell {
        Shell::Bash => agreeing(&script),
        _ => script,
    };
    context.out.verbatim(&script);
    Ok(())
}

/// A bash script that calls the tool by one name. The generator turns the hyphen in it into two underscores where it notes which
/// verb was typed, and into its separator of verbs where it looks what that verb has: behind a verb, nothing is found.
fn agreeing(script: &str) -> String {
    const SEPARATOR: &str = "__subcmd__";
    script.replace(&TOOL.replace('-', SEPARATOR), &TOOL.replace('-', "__"))
}
