//! Whether a restore in place has room for what the backup needs: it begins by removing, and what it could not complete would be lost.
//!
//! Invariants: nothing is refused that fits as it is; a target that compresses may have had room for more. All that the target's tree occupies counts as room, each name of a file for itself and
//! with its length where that is more than its blocks, which may be compressed. What cannot be looked at may be room enough, and so may
//! another file system in the tree, and one that tells no size. The tree is only gone through where free space alone is not enough, and
//! only until it is. It is looked at by its path, since nothing but a size comes of it.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use mover_base::units::format_bytes;
use mover_base::{Error, Kind, Result};
use mover_source::TargetPlan;

use crate::log_work::interruptible;
use crate::progress::Progress;
use crate::settings::{Engine, Tick};

/// Bytes in the unit in which the kernel counts what a file occupies.
const UNIT_BYTES: u64 = 512;

/// What a target lacks room for, if it does.
pub(super) fn lack(
    engine: &Engine,
    target: &TargetPlan,
    needed: u64,
    progress: &Progress,
    tick: Tick<'_>,
) -> Result<Option<String>> {
    let Some(free) = target.room_bytes()? else {
        return Ok(None);
    };
    let Some(missing) = needed.checked_sub(free).filter(|missing| *missing > 0) else {
        return Ok(None);
    };
    let path = target.path();
    let walk = |go_on: &dyn Fn() -> Result<()>| occupied_bytes(path, missing, go_on);
    let occupied = interruptible(&engine.single(), progress, tick, walk)?;
    Ok((occupied < missing).then(|| {
        format!(
            "the target file system has no room for the backup: that needs {}, {} is free, and what is in the target takes {}",
            format_bytes(needed),
            format_bytes(free),
            format_bytes(occupied)
        )
    }))
}

/// Refuses to begin on a target that lacks room.
pub(super) fn require(
    engine: &Engine,
    target: &TargetPlan,
    needed: u64,
    progress: &Progress,
    tick: Tick<'_>,
) -> Result<()> {
    match lack(engine, target, needed, progress, tick)? {
        None => Ok(()),
        Some(lack) => Err(Error::new(Kind::Target, lack)
            .object(target.path().display().to_string())
            .hint("nothing was changed; free space on it, or restore to another file system")),
    }
}

/// What the tree at `root` occupies on its file system, as far as `enough`.
fn occupied_bytes(root: &Path, enough: u64, go_on: &dyn Fn() -> Result<()>) -> Result<u64> {
    let Ok(top) = root.symlink_metadata() else {
        return Ok(enough);
    };
    let mut occupied = 0u64;
    let mut pending = vec![root.to_path_buf()];
    while let Some(dir) = pending.pop() {
        go_on()?;
        let Ok(entries) = dir.read_dir() else {
            return Ok(enough);
        };
        for entry in entries {
            let looked = entry.and_then(|entry| Ok((entry.metadata()?, entry)));
            let (found, entry) = match looked {
                Ok(looked) => looked,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                // As in a directory that may be listed and not entered.
                Err(_) => return Ok(enough),
            };
            // What goes there takes nothing here.
            if found.dev() != top.dev() {
                return Ok(enough);
            }
            occupied = occupied.saturating_add(room_of(&found));
            if occupied >= enough {
                return Ok(enough);
            }
            if found.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    Ok(occupied)
}

/// How much of a backup has room in place of it, at most.
fn room_of(found: &Metadata) -> u64 {
    let blocks = found.blocks().saturating_mul(UNIT_BYTES);
    match found.is_file() {
        true => blocks.max(found.len()),
        false => blocks,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    const NOBODY: u32 = 65534;

    #[test]
    fn a_tree_occupies_what_its_files_do_and_is_looked_through_until_that_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("base");
        fs::create_dir(&below).unwrap();
        let file = fs::File::create(below.join("table")).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 1 << 20).unwrap();
        // As compressed blocks, which are fewer than what they hold.
        let sparse = fs::File::create(dir.path().join("sparse")).unwrap();
        sparse.set_len(4 << 20).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("link")).unwrap();
        let occupied = |enough| occupied_bytes(dir.path(), enough, &|| Ok(())).unwrap();
        let all = occupied(u64::MAX);
        assert!((5 << 20..6 << 20).contains(&all), "{all}");
        assert_eq!(occupied(1 << 20), 1 << 20, "no more is asked for");

        let asked = std::cell::Cell::new(0);
        let go_on = || {
            asked.set(asked.get() + 1);
            match asked.get() {
                1 => Ok(()),
                _ => Err(Error::new(Kind::Cancelled, "enough")),
            }
        };
        let cancelled = occupied_bytes(dir.path(), u64::MAX, &go_on).unwrap_err();
        assert_eq!(cancelled.kind(), Kind::Cancelled);
        assert_eq!(asked.get(), 2, "before each directory");
        // What cannot be looked at may be room enough.
        let absent = dir.path().join("absent");
        assert_eq!(occupied_bytes(&absent, 7, &|| Ok(())).unwrap(), 7);
    }

    #[test]
    fn a_directory_whose_owner_may_not_list_or_enter_it_may_be_room_enough() {
        let is_root = rustix::process::geteuid().is_root();
        assert!(is_root, "this test changes owners: run it as root");
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("base");
        fs::create_dir(&below).unwrap();
        fs::write(below.join("table"), b"x").unwrap();
        for path in [below.as_path(), dir.path()] {
            chown(path, Some(NOBODY), None).unwrap();
        }
        let occupied = |mode| {
            fs::set_permissions(&below, fs::Permissions::from_mode(mode)).unwrap();
            let root = dir.path().to_path_buf();
            let looked = std::thread::spawn(move || {
                let nobody = rustix::fs::Uid::from_raw(NOBODY);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
                occupied_bytes(&root, u64::MAX, &|| Ok(())).unwrap()
            });
            looked.join().unwrap()
        };
        assert!(occupied(0o700) < u64::MAX);
        for mode in [0o300, 0o400, 0o600] {
            assert_eq!(occupied(mode), u64::MAX, "{mode:o}");
        }
    }
}
