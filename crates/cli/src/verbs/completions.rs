//! `completions`: a completion script on standard output.

use clap::CommandFactory;
use mover_base::{Error, Kind, Result};

use super::Context;
use crate::args::{CompletionsArgs, RawArgs};

/// Runs the verb.
pub fn run(context: &mut Context<'_>, args: CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(
        args.shell,
        &mut RawArgs::command(),
        "helios-mover",
        &mut script,
    );
    let script = String::from_utf8(script).map_err(|error| {
        Error::new(Kind::Internal, "the completion script is not UTF-8").cause(error)
    })?;
    context.out.verbatim(&script);
    Ok(())
}
