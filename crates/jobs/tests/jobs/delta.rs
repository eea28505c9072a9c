//! Restoring over a directory that exists: what is right is left alone, everything else is put right.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};

use mover_base::Kind;
use mover_jobs::progress::Phase;
use mover_jobs::restore::{self, RestoreSummary};
use mover_jobs::{Engine, JobLimits, RateBudget, hold};

use crate::fixture::{BLOCK, MIB, Place, Random, assert_same_trees, data_map, engine, punch, walk};

/// A source with every kind of entry, its backup, and an exact copy of it in `out`.
fn restored() -> Place {
    let place = Place::sealed();
    let mut random = Random(1);
    fs::write(place.source("data"), random.bytes(6 * MIB + 123)).unwrap();
    fs::write(place.source("zeros"), vec![0; 2 * MIB]).unwrap();
    let holes = fs::File::create(place.source("holes")).unwrap();
    holes.set_len(4 * MIB as u64).unwrap();
    holes.write_all_at(&random.bytes(MIB), MIB as u64).unwrap();
    fs::create_dir(place.source("dir")).unwrap();
    fs::write(place.source("dir/small"), b"small").unwrap();
    fs::write(place.source("dir/empty"), b"").unwrap();
    symlink("small", place.source("dir/link")).unwrap();
    fs::hard_link(place.source("dir/small"), place.source("dir/second")).unwrap();
    let read_only = fs::Permissions::from_mode(0o444);
    fs::write(place.source("read-only"), random.bytes(3 * BLOCK)).unwrap();
    fs::set_permissions(place.source("read-only"), read_only).unwrap();
    place.backup();
    place.restore_is_exact("latest", "out");
    place
}

fn again(place: &Place) -> RestoreSummary {
    let options = place.restore_options("latest", "out", true);
    let summary = place.try_restore(&engine(), &options).unwrap();
    assert_same_trees(&place.path("source"), &place.path("out"));
    for path in walk(&place.path("source")) {
        let name = path.strip_prefix(place.path("source")).unwrap().to_owned();
        if path.symlink_metadata().unwrap().is_file() {
            assert_eq!(
                data_map(&path),
                data_map(&place.path("out").join(&name)),
                "{}",
                name.display()
            );
        }
    }
    summary
}

fn open(place: &Place, name: &str) -> fs::File {
    fs::OpenOptions::new()
        .write(true)
        .open(place.path("out").join(name))
        .unwrap()
}

#[test]
fn an_exact_target_is_not_written() {
    let place = restored();
    let summary = again(&place);
    assert_eq!((summary.bytes_written, summary.removed), (0, 0));
    fs::remove_file(place.source("dir/second")).unwrap();
    place.backup();
    again(&place);
    assert_eq!(again(&place).bytes_written, 0);
}

#[test]
fn flipped_bytes_cost_their_blocks() {
    let place = restored();
    let file = open(&place, "data");
    for at in [
        0,
        5 * BLOCK as u64,
        3 * MIB as u64 + 1,
        6 * MIB as u64 + 122,
    ] {
        let mut byte = [0];
        fs::File::open(place.path("out/data"))
            .unwrap()
            .read_exact_at(&mut byte, at)
            .unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }
    assert_eq!(again(&place).bytes_written, 4 * BLOCK as u64);
}

#[test]
fn a_file_of_several_names_is_kept_unless_one_is_elsewhere() {
    let place = restored();
    let out = |name: &str| place.path("out").join(name);
    // `dir/second` is the file in the backup, `dir/small` its further name.
    let inode = || fs::metadata(out("dir/second")).unwrap().ino();
    let kept = inode();
    assert_eq!(again(&place).bytes_written, 0);
    assert_eq!(inode(), kept);
    // A name more inside the target goes, one that is missing comes back.
    fs::hard_link(out("dir/small"), out("third")).unwrap();
    fs::remove_file(out("dir/small")).unwrap();
    assert_eq!(again(&place).bytes_written, 0);
    assert_eq!(inode(), kept);
    // A wrong byte is put right once, under both names.
    fs::write(out("dir/small"), b"smaXl").unwrap();
    assert_eq!(again(&place).bytes_written, BLOCK as u64);
    assert_eq!(inode(), kept);

    // With a name outside it is made anew, and nothing is written through that name.
    let outside = place.path("outside");
    fs::hard_link(out("dir/small"), &outside).unwrap();
    fs::write(&outside, b"mine!").unwrap();
    again(&place);
    assert_ne!(inode(), kept);
    assert_eq!(fs::read(&outside).unwrap(), b"mine!");
    // As many names as in the backup, and not those of the backup.
    fs::remove_file(out("dir/small")).unwrap();
    fs::remove_file(&outside).unwrap();
    fs::hard_link(out("dir/second"), &outside).unwrap();
    fs::write(&outside, b"mine!").unwrap();
    let shared = inode();
    again(&place);
    assert_ne!(inode(), shared);
    assert_eq!(fs::read(&outside).unwrap(), b"mine!");
}

#[test]
fn cut_and_extended_files_get_their_length() {
    let place = restored();
    open(&place, "data").set_len(MIB as u64 + 1).unwrap();
    open(&place, "holes").set_len(100).unwrap();
    open(&place, "zeros").set_len(0).unwrap();
    open(&place, "dir/small").set_len(2).unwrap();
    again(&place);
    for name in ["data", "holes", "zeros", "dir/small", "dir/empty"] {
        let file = open(&place, name);
        let len = file.metadata().unwrap().len();
        file.write_all_at(&vec![9; 3 * MIB], len).unwrap();
    }
    again(&place);
}

#[test]
fn missing_and_extra_names_are_put_right() {
    let place = restored();
    fs::remove_file(place.path("out/data")).unwrap();
    fs::remove_file(place.path("out/dir/link")).unwrap();
    fs::create_dir_all(place.path("out/extra/deep")).unwrap();
    fs::write(place.path("out/extra/deep/file"), b"x").unwrap();
    fs::write(place.path("out/dir/extra"), b"x").unwrap();
    let summary = again(&place);
    assert!(summary.removed >= 4, "{}", summary.removed);
    fs::remove_dir_all(place.path("out/dir")).unwrap();
    again(&place);
}

#[test]
fn wrong_kinds_are_replaced() {
    let place = restored();
    let out = |name: &str| place.path("out").join(name);
    fs::remove_file(out("data")).unwrap();
    fs::create_dir(out("data")).unwrap();
    fs::write(out("data/inside"), b"x").unwrap();
    fs::remove_file(out("dir/link")).unwrap();
    fs::write(out("dir/link"), b"a file").unwrap();
    fs::remove_file(out("zeros")).unwrap();
    symlink("/etc/hostname", out("zeros")).unwrap();
    let host = fs::read("/etc/hostname").ok();
    again(&place);
    assert_eq!(fs::read("/etc/hostname").ok(), host, "a link was followed");
    fs::remove_dir_all(out("dir")).unwrap();
    fs::write(out("dir"), b"a file").unwrap();
    again(&place);
    // Another link where a hard link was, and a hard link where there was none.
    fs::remove_file(out("dir/second")).unwrap();
    fs::write(out("dir/second"), b"small").unwrap();
    fs::remove_file(out("dir/small")).unwrap();
    fs::hard_link(out("read-only"), out("dir/small")).unwrap();
    again(&place);
}

#[test]
fn holes_become_holes_and_zeros_become_zeros() {
    let place = restored();
    // The same bytes, differently allocated.
    open(&place, "holes")
        .write_all_at(&[0; 3 * BLOCK], 3 * MIB as u64)
        .unwrap();
    punch(&open(&place, "zeros"), MIB as u64, 5 * BLOCK as u64);
    again(&place);
    // Data in a hole, a hole in data.
    open(&place, "holes").write_all_at(b"x", 10).unwrap();
    punch(&open(&place, "data"), 2 * MIB as u64, MIB as u64);
    again(&place);
}

/// A file system tells of it as of a hole. Also behind the end of a file, be that shorter than in the backup or not.
#[test]
fn space_that_was_kept_and_never_written_is_given_back() {
    let place = restored();
    let names = ["data", "zeros", "holes", "dir/small"];
    let blocks = || names.map(|name| open(&place, name).metadata().unwrap().blocks());
    let keep_space = |name: &str| {
        let keep_size = rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(open(&place, name), keep_size, 0, 16 * MIB as u64).unwrap();
    };
    let fresh = blocks();
    let is_as_fresh = || {
        for (name, (now, fresh)) in names.iter().zip(blocks().into_iter().zip(fresh)) {
            // A file that was in many pieces may keep a block for the map of them.
            assert!(now <= fresh + 8, "{name}: {now} blocks, fresh {fresh}");
        }
    };
    for name in names {
        keep_space(name);
    }
    for (name, (now, fresh)) in names.iter().zip(blocks().into_iter().zip(fresh)) {
        assert!(now > fresh + 8, "{name}: {now} blocks, fresh {fresh}");
    }
    assert_eq!(again(&place).bytes_written, 0);
    is_as_fresh();
    for name in names {
        open(&place, name).set_len(2).unwrap();
        keep_space(name);
    }
    again(&place);
    is_as_fresh();
}

#[test]
fn read_only_files_of_the_target_are_written() {
    let place = restored();
    let path = place.path("out/read-only");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, b"another").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    again(&place);
}

#[test]
fn a_target_that_exists_is_refused_without_delta() {
    let place = restored();
    let options = place.restore_options("latest", "out", false);
    let error = place
        .try_restore(&engine(), &options)
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(error.kind(), Kind::Target | Kind::Usage | Kind::Conflict),
        "{error}"
    );
    assert_same_trees(&place.path("source"), &place.path("out"));
}

/// Gives the repository to another user, in whose directory root puts no holds.
fn give_away_repository(place: &Place) {
    const NOBODY: u32 = 65_534;
    let is_root = rustix::process::geteuid().is_root();
    assert!(is_root, "this test changes an owner: run it as root");
    chown(place.path("repo"), Some(NOBODY), None).unwrap();
}

/// Ends a restore over `out` when it writes; gives the hint of its error, and what was told meanwhile.
fn ended_on_the_way(place: &Place) -> (String, Vec<String>) {
    ended_after(place, || {})
}

/// The same, when it writes and `meanwhile` was done beside it.
fn ended_after(place: &Place, meanwhile: impl FnOnce()) -> (String, Vec<String>) {
    let slow = Engine {
        limits: JobLimits {
            read: RateBudget::new(Some(MIB as u64)),
            write: RateBudget::new(Some(MIB as u64)),
        },
        ..engine()
    };
    fs::write(place.path("out/data"), b"another").unwrap();
    let options = place.restore_options("latest", "out", true);
    let plan = restore::plan(&engine(), &options, &mut |_, _| {}).unwrap();
    let told = RefCell::new(Vec::new());
    let tell = |warning: &str| told.borrow_mut().push(warning.to_owned());
    let mut meanwhile = Some(meanwhile);
    let ended = restore::execute_telling(&slow, plan, &tell, &mut |progress, stop| {
        if progress.read().phase == Phase::Restore {
            if let Some(meanwhile) = meanwhile.take() {
                meanwhile();
            }
            stop.raise();
        }
    });
    let error = ended.map(drop).unwrap_err();
    assert_eq!(error.kind(), Kind::Cancelled, "{error}");
    let hint = error.hint_text().unwrap_or_default().to_owned();
    (hint, told.into_inner())
}

#[test]
fn a_restore_that_is_ended_on_the_way_says_what_it_leaves() {
    let place = restored();
    let holds = || hold::list(&engine(), &place.access()).unwrap().holds.len();
    let (hint, told) = ended_on_the_way(&place);
    // What root leaves is root's.
    let go_on = match rustix::process::geteuid().is_root() {
        true => "run it again with --delta, as root",
        false => "run it again with --delta",
    };
    let held = "the target is incomplete, and the backup stays held";
    assert_eq!(hint, format!("{held}: {go_on}"));
    assert!(
        told.len() == 1 && told[0].contains("stays held"),
        "{told:?}"
    );
    assert_eq!(holds(), 1);
    again(&place);
    assert_eq!(holds(), 0);

    give_away_repository(&place);
    let (hint, told) = ended_on_the_way(&place);
    assert_eq!(hint, format!("the target is incomplete: {go_on}"));
    assert!(
        told.len() == 1 && told[0].contains("no hold could be put on"),
        "{told:?}"
    );
    assert_eq!(holds(), 0);
    again(&place);
}

/// It is refused, as the first one has the target, and takes back what it put on itself and nothing else.
#[test]
fn a_second_restore_over_the_same_target_leaves_the_hold_of_the_first() {
    let place = restored();
    let holds = || hold::list(&engine(), &place.access()).unwrap().holds.len();
    let (hint, told) = ended_after(&place, || {
        assert_eq!(holds(), 1);
        let options = place.restore_options("latest", "out", true);
        let refused = place.try_restore(&engine(), &options).map(drop);
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict, "{error}");
        assert_eq!(holds(), 1);
    });
    assert!(hint.contains("the backup stays held"), "{hint}");
    assert!(
        told.len() == 1 && told[0].contains("stays held"),
        "{told:?}"
    );
    assert_eq!(holds(), 1);
    again(&place);
    assert_eq!(holds(), 0);
}

#[test]
fn that_there_is_no_hold_is_told_before_the_first_change_and_stands_in_the_summary_once() {
    let place = restored();
    give_away_repository(&place);
    fs::write(place.path("out/data"), b"another").unwrap();
    let options = place.restore_options("latest", "out", true);
    let plan = restore::plan(&engine(), &options, &mut |_, _| {}).unwrap();
    let planned = plan.warnings.len();
    let told = RefCell::new(Vec::new());
    let tell = |warning: &str| {
        assert_eq!(fs::read(place.path("out/data")).unwrap(), b"another");
        told.borrow_mut().push(warning.to_owned());
    };
    let done = restore::execute_telling(&engine(), plan, &tell, &mut |_, _| {}).unwrap();
    let told = told.into_inner();
    assert!(
        told.len() == 1 && told[0].contains("no hold could be put on"),
        "{told:?}"
    );
    assert_eq!(done.warnings[planned..], told[..]);
    assert_same_trees(&place.path("source"), &place.path("out"));
}

#[test]
fn where_no_holes_can_be_made_zeros_are_written() {
    let is_root = rustix::process::geteuid().is_root();
    assert!(is_root, "this test mounts a file system: run it as root");
    let place = restored();
    // This file system knows no holes.
    let mounted = Mounted::new("ramfs", "mode=755", &place.path("ram"));
    let file = mounted.0.join("holes");
    fs::write(&file, vec![9; 5 * MIB]).unwrap();
    let options = place.restore_options("latest", "ram", true);
    place.try_restore(&engine(), &options).unwrap();
    assert_same_trees(&place.path("source"), &mounted.0);
    // Blocks that are zero already are left alone.
    fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .unwrap()
        .write_all_at(&[9], 3 * MIB as u64)
        .unwrap();
    let summary = place.try_restore(&engine(), &options).unwrap();
    assert_eq!(summary.bytes_written, BLOCK as u64);
    assert_same_trees(&place.path("source"), &mounted.0);
}

/// Nobody knows how much of the backup goes there before it does.
#[test]
fn another_file_system_in_the_target_may_be_the_room_that_the_target_lacks() {
    let is_root = rustix::process::geteuid().is_root();
    assert!(is_root, "this test mounts file systems: run it as root");
    let place = Place::plain();
    fs::create_dir(place.source("tables")).unwrap();
    fs::write(place.source("tables/one"), Random(1).bytes(6 * MIB)).unwrap();
    place.backup();
    let small = Mounted::new("tmpfs", "size=2m", &place.path("small"));
    let options = place.restore_options("latest", "small", true);
    let refused = place.try_restore(&engine(), &options).map(drop);
    let error = refused.unwrap_err();
    assert_eq!(error.kind(), Kind::Target, "{error}");
    assert!(error.to_string().contains("no room"), "{error}");
    let _large = Mounted::new("tmpfs", "size=32m", &small.0.join("tables"));
    place.try_restore(&engine(), &options).unwrap();
    assert_same_trees(&place.path("source"), &small.0);
}

/// A file system in memory that is unmounted when it goes out of scope.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new(kind: &str, options: &str, at: &std::path::Path) -> Mounted {
        fs::create_dir(at).unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", kind, "-o", options, "none"])
            .arg(at)
            .status();
        assert!(mount.unwrap().success());
        Mounted(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}
