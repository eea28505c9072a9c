//! Whether a repository lies in what is backed up, or in what is restored to: a backup would copy itself, and a restore with
//! `--delta` remove the repository as no part of the backup. And whether one of these lies in the repository, which changes
//! while it is read, and holds objects and nothing else. Whose the repository is, too.
//!
//! Invariant: directories are told apart by device and inode, not by their paths, so that no link hides one. A mount may
//! still: it gives a directory other parents. So what a restore would remove is looked through for the repository as well
//! (see [`mover_source::TargetPlan::spare`]).

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use mover_base::{Error, Kind, Result};
use mover_repo::Repository;
use mover_source::{DirSource, Inode, Tree, holds_repository};

fn inode(path: &Path) -> Option<Inode> {
    let found = path.metadata().ok()?;
    Some((found.dev(), found.ino()))
}

/// Whether `inner` is the directory `outer`, or below it. Where `inner` is not there yet, its parent counts.
fn is_within(inner: &Path, outer: Inode) -> bool {
    let path = inner.canonicalize();
    let path = path.as_deref().unwrap_or(inner);
    path.ancestors().any(|dir| inode(dir) == Some(outer))
}

/// Refuses a source that lies in the repository, and one whose tree, without what is excluded, holds it.
pub(crate) fn refuse_in_source(
    repository: &Repository,
    source: &DirSource,
    tree: &Tree,
) -> Result<()> {
    refuse_source_below(repository, source.path())?;
    refuse_source_around(repository, tree)
}

/// Refuses a source that lies in the repository, or is it, as far as its path tells.
pub(crate) fn refuse_source_below(repository: &Repository, source: &Path) -> Result<()> {
    match directory(repository) {
        Some(directory) if is_within(source, directory) => {
            Err(Error::new(Kind::Usage, "the source lies in the repository")
                .object(source.display().to_string())
                .hint("name the database's directory as the source"))
        }
        _ => Ok(()),
    }
}

/// Refuses a source whose tree, without what is excluded, holds the repository.
pub(crate) fn refuse_source_around(repository: &Repository, tree: &Tree) -> Result<()> {
    let Some(directory) = directory(repository) else {
        return Ok(());
    };
    let is_repository = |item: &mover_source::Item| (item.stamp.dev, item.stamp.ino) == directory;
    let Some(item) = tree.items().find(is_repository) else {
        return Ok(());
    };
    let path = item.entry.display_path();
    Err(Error::new(
        Kind::Usage,
        "the repository lies in what is to be backed up",
    )
    .object(repository.url())
    .hint(format!(
        "move it elsewhere, or leave it out with --exclude '{path}'"
    )))
}

/// The repository's directory, if it has one on this machine.
pub(crate) fn directory(repository: &Repository) -> Option<Inode> {
    repository.store().directory().and_then(inode)
}

/// Whose the repository's directory is, if it has one on this machine.
pub(crate) fn owner(repository: &Repository) -> Option<u32> {
    let found = repository.store().directory()?.metadata().ok()?;
    Some(found.uid())
}

/// Whom network file systems take root of another machine for.
const NOBODY: u32 = 65_534;

/// What root is to know before it writes to the repository of another user.
pub(crate) fn owner_warning(repository: &Repository) -> Option<String> {
    let owner = owner(repository).filter(|owner| ![0, NOBODY].contains(owner))?;
    rustix::process::geteuid().is_root().then(|| {
        format!(
            "this runs as root, and the repository belongs to the user with id {owner}, who can neither read nor add to what root makes in it: run as that user"
        )
    })
}

/// Refuses a target that holds the repository, or lies in it, as far as their paths tell.
pub(crate) fn refuse_in_target(repository: &Repository, target: &Path) -> Result<()> {
    let Some(directory) = repository.store().directory() else {
        return Ok(());
    };
    if inode(target).is_some_and(|target| is_within(directory, target)) {
        return Err(holds_repository(target.display().to_string()));
    }
    if inode(directory).is_some_and(|directory| is_within(target, directory)) {
        return Err(Error::new(Kind::Usage, "the target lies in the repository")
            .object(target.display().to_string())
            .hint("restore to another directory, or move the repository away"));
    }
    Ok(())
}
