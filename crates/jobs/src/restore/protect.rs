//! What keeps a backup from being deleted while it is restored over what is there, and what a deletion meanwhile is told as.
//!
//! Invariants: before the first change to a target the backup bears a hold, or an `expire` is about to delete it and nothing is
//! changed, or a warning says why there is none. The hold goes when the target is whole again: until then nothing but this backup makes
//! it so, and who restores once more finds the hold and takes it over. A restore into an empty place needs none, since it leaves
//! nothing behind when it fails. What is to be known of the hold is told at once to who calls.

use std::path::Path;

use mover_base::{Error, HoldId, Kind, Result};
use mover_io::Shard;
use mover_repo::{BackupView, catalogue, holds, host_name};

use crate::backup::only;
use crate::overlap;
use crate::progress::Progress;
use crate::settings::{Engine, Tick};

/// Bytes of the target's path in a reason, from its end: a path may be longer than a reason.
const PATH_BYTES_MAX: usize = 1024;

/// Takes a warning that is to be told at once.
pub(super) type Tell<'a> = &'a dyn Fn(&str);

/// A backup that is being restored over a target.
pub(super) struct Protected<'a> {
    engine: &'a Engine,
    view: &'a BackupView,
    /// What the hold says, the same each time for the same target.
    reason: String,
    /// The hold, if it is of this restore and not of an earlier one.
    added: Option<HoldId>,
    /// Why there is none; it was told.
    warning: Option<String>,
    /// Takes what is to be told at once.
    tell: Tell<'a>,
}

impl<'a> Protected<'a> {
    /// Puts the hold on, or finds the one that an earlier restore to this target left.
    ///
    /// # Errors
    /// `Conflict` if the backup is about to be deleted or was.
    pub fn begin(
        engine: &'a Engine,
        view: &'a BackupView,
        target: &Path,
        tell: Tell<'a>,
        progress: &Progress,
        tick: Tick<'_>,
    ) -> Result<Self> {
        let reason = reason(target);
        let held = |reason, added| Protected {
            engine,
            view,
            reason,
            added,
            warning: None,
            tell,
        };
        if let Some(why) = foreign_directory(view) {
            return Ok(held(reason, None).without(&why));
        }
        let put = async |shard: Shard| {
            if !left(&shard, view, &reason).await?.is_empty() {
                return Ok(None);
            }
            let set = view.id.to_string();
            let hold = holds::add(&shard, view.repository(), &set, &reason).await?;
            Ok(Some(hold.hold_id))
        };
        let put = mover_io::run(&engine.single(), put, |stop| tick(progress, stop)).and_then(only);
        match put {
            Ok(added) => Ok(held(reason, added)),
            Err(error) if error.kind() == Kind::Cancelled => Err(error),
            Err(error) if error.kind() == Kind::Conflict => Err(going(view, error)),
            Err(error) if error.kind() == Kind::NotFound => {
                match stands(engine, view, progress, tick) {
                    Ok(false) => Err(deleted(view)),
                    Ok(true) | Err(_) => Err(error),
                }
            }
            Err(error) => Ok(held(reason, None).without(&error.to_string())),
        }
    }

    /// Goes on without a hold, which is told at once.
    fn without(mut self, why: &str) -> Self {
        let warning = format!(
            "no hold could be put on the backup, so run no expire until it is restored: {why}"
        );
        (self.tell)(&warning);
        self.warning = Some(warning);
        self
    }

    /// What was told before the first change, for the summary.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Takes back what this restore put on, as it changed nothing.
    pub fn cancel(self) {
        let Some(hold) = self.added else {
            return;
        };
        let view = self.view;
        let remove =
            async |shard: Shard| holds::remove(&shard, view.repository(), &hold.to_string()).await;
        // Also where the job was asked to end: it is short, and ends with the patience of the store.
        if let Err(error) = mover_io::run(&self.engine.single(), remove, |_| {}) {
            (self.tell)(&format!(
                "the hold on the backup stays (`helios-mover hold list`): {error}"
            ));
        }
    }

    /// Says that the hold stays, as the target is not whole, and in the error of a job that was ended what to do about both.
    pub fn keep(self, error: Error) -> Error {
        let is_held = self.warning.is_none();
        if is_held {
            (self.tell)(&format!(
                "backup {} stays held, since {} (`helios-mover hold list`)",
                self.view.id, self.reason
            ));
        }
        match (error.kind(), is_held) {
            (Kind::Cancelled, true) => error.hint(
                "the target is incomplete, and the backup stays held: run it again with --delta",
            ),
            (Kind::Cancelled, false) => {
                error.hint("the target is incomplete: run it again with --delta")
            }
            _ => error,
        }
    }

    /// Takes the hold away, as the target is whole; says so if it stays. What is done is done: whoever ends the job now leaves the
    /// hold.
    pub fn end(self, progress: &Progress, tick: Tick<'_>) -> Option<String> {
        let (view, reason) = (self.view, &self.reason);
        let remove = async |shard: Shard| {
            for hold in left(&shard, view, reason).await? {
                holds::remove(&shard, view.repository(), &hold.to_string()).await?;
            }
            Ok(())
        };
        let removed = mover_io::run(&self.engine.single(), remove, |stop| tick(progress, stop));
        let stays = removed.err().filter(|_| self.warning.is_none())?;
        Some(format!(
            "the hold that was put on the backup for the time of the restore stays (`helios-mover hold list`): {stays}"
        ))
    }
}

/// The holds that restores of the backup to this target have put on it.
async fn left(shard: &Shard, view: &BackupView, reason: &str) -> Result<Vec<HoldId>> {
    let host = host_name();
    let found = holds::of(shard, view.repository(), view.id).await?;
    let own = found.into_iter().filter(|hold| {
        hold.reason.as_deref() == Some(reason) && hold.host.as_deref() == Some(host.as_str())
    });
    Ok(own.map(|hold| hold.hold_id).collect())
}

fn reason(target: &Path) -> String {
    let path = target.to_string_lossy();
    let cut = path.len().saturating_sub(PATH_BYTES_MAX);
    let begin = (cut..path.len()).find(|at| path.is_char_boundary(*at));
    let dots = if cut > 0 { "..." } else { "" };
    format!(
        "a restore over {dots}{} is not finished",
        &path[begin.unwrap_or(path.len())..]
    )
}

fn deleted(view: &BackupView) -> Error {
    Error::new(
        Kind::Conflict,
        "the backup was deleted while it was restored",
    )
    .object(view.id.to_string())
    .hint("restore another one: `helios-mover list` shows them; a hold keeps an expire away: `helios-mover hold add`")
}

/// Why the backup cannot be held, and what needs no hold.
fn going(view: &BackupView, error: Error) -> Error {
    let what = "the backup may be deleted at any time, so nothing is restored over what is there";
    let hint = match error.hint_text() {
        Some(hint) => format!("restore into an empty directory; or {hint}"),
        None => "restore into an empty directory".to_owned(),
    };
    Error::new(Kind::Conflict, what)
        .object(view.id.to_string())
        .hint(hint)
        .cause(error)
}

/// Whether the backup is still one.
fn stands(engine: &Engine, view: &BackupView, progress: &Progress, tick: Tick<'_>) -> Result<bool> {
    let look = async |shard: Shard| catalogue::stands(&shard, view.repository(), view.id).await;
    mover_io::run(&engine.single(), look, |stop| tick(progress, stop)).and_then(only)
}

/// Why nothing is to be written into the repository's directory, if it has one and another user's jobs work in that: they could not
/// enter what this one makes there.
fn foreign_directory(view: &BackupView) -> Option<String> {
    let owner = overlap::owner(view.repository())?;
    let own = rustix::process::geteuid().as_raw();
    (owner != own).then(|| format!("the repository's directory is that of user {owner}"))
}

/// The error of a restore, seen anew where the backup that was found damaged is no longer one.
pub(super) fn told(
    engine: &Engine,
    view: &BackupView,
    error: Error,
    progress: &Progress,
    tick: Tick<'_>,
) -> Error {
    if error.kind() != Kind::Corrupt {
        return error;
    }
    match stands(engine, view, progress, tick) {
        Ok(false) => deleted(view).cause(error),
        Ok(true) | Err(_) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_names_the_target_however_long_its_path_is() {
        assert_eq!(
            reason(Path::new("/srv/db")),
            "a restore over /srv/db is not finished"
        );
        for (name, bytes) in [("x", 1), ("\u{fc}", 2), ("\u{20ac}", 3)] {
            let long = format!("/begin/{}/end", name.repeat(4000));
            let reason = reason(Path::new(&long));
            assert!(reason.ends_with("/end is not finished"), "{reason}");
            assert!(reason.contains(&format!("...{name}{name}")), "{reason}");
            assert!(reason.len() <= PATH_BYTES_MAX + 40, "{bytes}: {reason}");
        }
    }
}
