//! The last step of restoring a page store: what was restored is a store as a crash left it, and becomes one that stands at
//! exactly the position of its backup, at the beginning of a new history.
//!
//! Invariants: it is done before the target appears, or in delta mode before its marker goes; a log that leads anywhere
//! else than to the backup's position is an error. Owner and mode go onto no file that has further names, or is anybody's but
//! who restores (or whom the file system gives what they make to) or its owner in the backup. The new history keeps
//! backups of the restored database and of the one that it was restored from apart.

use std::io;
use std::sync::Arc;

use mover_base::entries::EntryList;
use mover_base::tree::{Entry, EntryKind, display_path};
use mover_base::{Error, HistoryId, Kind, Result};
use mover_io::random_bytes;
use mover_repo::BackupView;
use mover_source::disk::Disk;
use mover_source::pages::{CATALOGUE_FILE, Store, TABLES_DIR};
use mover_source::wal::segment::LOG_DIR;
use mover_source::{DirTarget, target_error};
use serde::Serialize;

use crate::backup::SOURCE_KIND;

/// Pages that redo holds in memory: 32 MiB.
const CACHE_PAGES: usize = 8192;

/// What became of a restored page store.
#[derive(Debug, Clone, Serialize)]
pub struct Settled {
    /// Where it stands: all transactions that end here or before are in it, and no other.
    pub position: u64,
    /// The history that it begins.
    pub history: String,
    /// Records of the log that were applied to pages.
    pub records_applied: u64,
}

/// Whether the backup is of a page store, so that its restore must be settled.
pub(crate) fn is_page_store(view: &BackupView) -> bool {
    view.metadata.source.kind == SOURCE_KIND
}

/// Length of the store's log segments in bytes: all of them are equally long.
pub(crate) fn segment_bytes(view: &BackupView) -> u64 {
    let in_log = |path: &[u8]| {
        path.strip_prefix(LOG_DIR.as_bytes())
            .is_some_and(|rest| rest.starts_with(b"/"))
    };
    let entries = view.items.entries();
    let is_segment = |at: &usize| entries.path(*at).is_some_and(|path| in_log(&path));
    let segments = (0..entries.len()).filter(is_segment);
    let bytes = segments.map(|at| entries.content_bytes(at));
    bytes.max().unwrap_or_default()
}

/// An error of [`settle`] as that of a restore: what is read and written there, as a database does with its store, is the target.
pub(crate) fn in_target(error: Error) -> Error {
    if !matches!(
        error.kind(),
        Kind::Storage | Kind::Source | Kind::SourceChanged
    ) {
        return error;
    }
    let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref());
    match cause.and_then(io::Error::raw_os_error) {
        Some(code) => target_error(
            error.message(),
            error.object_name().unwrap_or_default().as_bytes(),
            io::Error::from_raw_os_error(code),
        ),
        None => error.with_kind(Kind::Target),
    }
}

/// Refuses a page store that has anything but directories and files among its entries: no backup of one is made so.
///
/// # Errors
/// `Corrupt` naming the first of them.
pub(crate) fn require_plain(entries: &EntryList) -> Result<()> {
    let is_strange = |at: &usize| !entries.is_dir(*at) && !entries.is_file(*at);
    match (0..entries.len()).find(is_strange) {
        None => Ok(()),
        Some(at) => {
            let what = "the backup of a page store has an entry that is neither directory nor file";
            Err(Error::new(Kind::Corrupt, what)
                .object(display_path(&entries.path(at).unwrap_or_default()))
                .hint("verify the backup, and restore another one meanwhile"))
        }
    }
}

/// Recovers the page store in `target`, whose files are reached by `disk`, and begins a new history.
///
/// # Errors
/// `Corrupt` if the log does not lead to the backup's position; `Target` or `Storage` if it cannot be written; `Cancelled` if
/// the disk's watch says so.
pub(crate) fn settle(
    view: &BackupView,
    target: &DirTarget,
    disk: Arc<dyn Disk>,
) -> Result<Settled> {
    let metadata = &view.metadata;
    let mut store = Store::open_unfinished(disk.clone())?;
    let recovered = store.recover(CACHE_PAGES)?;
    let end = recovered.log.end;
    if metadata.lsn_range.is_none_or(|range| range.end != end) {
        let wanted = metadata
            .lsn_range
            .map_or("none".to_owned(), |range| range.end.to_string());
        return Err(Error::new(
            Kind::Corrupt,
            format!("the restored log leads to {end}, and the backup's position is {wanted}"),
        )
        .object(view.id.to_string())
        .hint("verify the backup, and restore another one meanwhile"));
    }
    let settled = Settled {
        position: end.0,
        history: String::new(),
        records_applied: recovered.redone.applied,
    };
    let history = HistoryId(random_bytes()?);
    drop(store.begin_history(recovered, history)?);
    own(view, target, &*disk)?;
    Ok(Settled {
        history: history.to_string(),
        ..settled
    })
}

/// Gives the files that recovery made the owner and mode that their kind had in the backup. They are known by their names alone, so
/// that [`DirTarget::apply_metadata`] refuses what somebody else put there: a symbolic link, a further name of a file.
fn own(view: &BackupView, target: &DirTarget, disk: &dyn Disk) -> Result<()> {
    let known = view.items.entries();
    let like = known.find(CATALOGUE_FILE.as_bytes());
    let Some(like) = like.and_then(|at| known.get(at)) else {
        return Ok(());
    };
    let mut paths = vec![CATALOGUE_FILE.to_owned()];
    for dir in [TABLES_DIR, LOG_DIR] {
        let names = disk
            .list(dir)
            .map_err(|error| target_error("a directory cannot be listed", dir.as_bytes(), error))?;
        let paths_of = names.iter().map(|name| format!("{dir}/{name}"));
        paths.extend(paths_of.filter(|path| known.find(path.as_bytes()).is_none()));
    }
    for path in paths {
        let made = Entry {
            path: path.into_bytes(),
            kind: EntryKind::File { bytes: 0 },
            ..like.clone()
        };
        target.apply_metadata(&made, None)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use mover_base::tree::FileTime;

    use super::*;

    #[test]
    fn a_page_store_has_only_directories_and_files() {
        let entry = |path: &str, kind| Entry {
            path: path.as_bytes().to_vec(),
            kind,
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime: FileTime::default(),
            xattrs: Vec::new(),
        };
        let mut plain = EntryList::default();
        plain.push(&entry("", EntryKind::Dir)).unwrap();
        let catalogue = entry("catalogue", EntryKind::File { bytes: 9 });
        plain.push(&catalogue).unwrap();
        require_plain(&plain).unwrap();
        let (target, first) = (b"x".to_vec(), b"catalogue".to_vec());
        for kind in [
            EntryKind::Fifo,
            EntryKind::Symlink { target },
            EntryKind::Hardlink { first },
        ] {
            let mut entries = plain.clone();
            entries.push(&entry("control", kind)).unwrap();
            let error = require_plain(&entries).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt);
            assert_eq!(error.object_name(), Some("control"));
        }
    }

    #[test]
    fn what_fails_in_a_restored_store_is_the_targets() {
        let of = |kind, code| {
            Error::new(kind, "a log segment cannot be written")
                .object("wal/x")
                .cause(io::Error::from_raw_os_error(code))
        };
        let (no_space, io) = (28, 5);
        for (kind, code, wanted, says) in [
            (
                Kind::Storage,
                no_space,
                Kind::Target,
                "the target file system is full: wal/x",
            ),
            (
                Kind::Storage,
                io,
                Kind::Target,
                "a log segment cannot be written: wal/x",
            ),
            (
                Kind::Source,
                io,
                Kind::Target,
                "a log segment cannot be written: wal/x",
            ),
            (
                Kind::Corrupt,
                io,
                Kind::Corrupt,
                "a log segment cannot be written: wal/x",
            ),
        ] {
            let error = in_target(of(kind, code));
            assert_eq!(error.kind(), wanted);
            assert!(error.to_string().starts_with(says), "{error}");
            assert!(
                error.hint_text().is_some() || kind == Kind::Corrupt,
                "{error}"
            );
        }
        // Without a cause, as a log says it that failed before.
        let error = in_target(Error::new(Kind::Storage, "the log cannot be written"));
        assert_eq!(error.kind(), Kind::Target);
        let error = in_target(Error::new(Kind::Cancelled, "told to end"));
        assert_eq!(error.kind(), Kind::Cancelled);
    }
}
