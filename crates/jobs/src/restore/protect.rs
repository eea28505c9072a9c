//! What keeps a backup from being deleted while it is restored over what is there, and what a deletion meanwhile is told as.
//!
//! Invariants: before the first change to a target the backup bears a hold, or an `expire` is about to delete it and nothing is
//! changed, or a warning says why there is none. The hold goes when the target is whole again: until then nothing but this backup makes
//! it so, and who restores once more finds the hold and takes it over. A restore into an empty place needs none, since it leaves
//! nothing behind when it fails.

use std::path::Path;

use mover_base::{Error, HoldId, Kind, Result};
use mover_io::Shard;
use mover_repo::{BackupView, catalogue, holds, host_name};

use crate::backup::only;
use crate::progress::Progress;
use crate::settings::{Engine, Tick};

/// Bytes of the target's path in a reason, from its end: a path may be longer than a reason.
const PATH_BYTES_MAX: usize = 1024;

/// A backup that is being restored over a target.
pub(super) struct Protected<'a> {
    engine: &'a Engine,
    view: &'a BackupView,
    /// What the hold says, the same each time for the same target.
    reason: String,
    /// The hold, if it is of this restore and not of an earlier one.
    added: Option<HoldId>,
    /// Why there is none.
    pub warning: Option<String>,
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
        progress: &Progress,
        tick: Tick<'_>,
    ) -> Result<Self> {
        let reason = reason(target);
        let put = async |shard: Shard| {
            if !left(&shard, view, &reason).await?.is_empty() {
                return Ok(None);
            }
            let set = view.id.to_string();
            let hold = holds::add(&shard, view.repository(), &set, &reason).await?;
            Ok(Some(hold.hold_id))
        };
        let put = mover_io::run(&engine.single(), put, |stop| tick(progress, stop)).and_then(only);
        let mut added = None;
        let warning = match put {
            Ok(hold) => {
                added = hold;
                None
            }
            Err(error) if error.kind() == Kind::NotFound => return Err(deleted(view)),
            Err(error) if matches!(error.kind(), Kind::Conflict | Kind::Cancelled) => {
                return Err(error);
            }
            Err(error) => Some(format!(
                "no hold could be put on the backup, so run no expire until it is restored: {error}"
            )),
        };
        Ok(Protected {
            engine,
            view,
            reason,
            added,
            warning,
        })
    }

    /// Takes back what this restore put on, as it changed nothing.
    pub fn cancel(self) {
        let Some(hold) = self.added else {
            return;
        };
        if let Err(error) = self.remove(&[hold]) {
            tracing::warn!(%error, "the hold on the backup stays");
        }
    }

    /// Takes the hold away, as the target is whole; gives a warning if it stays.
    pub fn end(self) -> Option<String> {
        if self.warning.is_some() {
            return self.warning;
        }
        let find = async |shard: Shard| left(&shard, self.view, &self.reason).await;
        let found = mover_io::run(&self.engine.single(), find, |_| {}).and_then(only);
        let error = found.and_then(|holds| self.remove(&holds)).err()?;
        Some(format!(
            "the hold that was put on the backup for the time of the restore stays (`helios-mover hold list`): {error}"
        ))
    }
}

impl Protected<'_> {
    fn remove(&self, holds: &[HoldId]) -> Result<()> {
        let remove = async |shard: Shard| {
            for hold in holds {
                holds::remove(&shard, self.view.repository(), &hold.to_string()).await?;
            }
            Ok(())
        };
        // All is done but this, so that nobody is to cancel it: it is short, and ends with the patience of the store.
        mover_io::run(&self.engine.single(), remove, |_| {}).and_then(only)
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
    let look = async |shard: Shard| catalogue::stands(&shard, view.repository(), view.id).await;
    let stands = mover_io::run(&engine.single(), look, |stop| tick(progress, stop)).and_then(only);
    match stands {
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
