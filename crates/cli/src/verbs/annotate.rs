//! `annotate`: changes the notes of a backup.

use mover_base::Result;
use mover_jobs::annotate::{self, AnnotateOptions};

use super::Context;
use super::backup::annotations;
use crate::args::AnnotateArgs;
use crate::output::GREEN;

/// Runs the verb.
pub fn run(context: &mut Context<'_>, args: AnnotateArgs) -> Result<()> {
    let repo = context.repo_access()?;
    let options = AnnotateOptions {
        set: args.backup,
        put: annotations(&args.put)?,
        remove: args.remove.into_iter().collect(),
    };
    let done = annotate::run(&context.settings.engine, &repo, &options)?;
    for key in &done.absent {
        context
            .out
            .warning(&format!("there was no note to take away: {key}"));
    }
    context.out.done(format!(
        "the notes of backup {} were changed",
        done.backup_id
    ));
    let title = context.out.paint("annotated", GREEN);
    context.out.line(format!("{title} {}", done.backup_id));
    context.out.summary(&done);
    Ok(())
}
