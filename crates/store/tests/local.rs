//! The local driver: every promise of a store on every way it may reach the disk, and what only a directory
//! can do wrong: full disks, permissions, planted links, failing syncs, leftovers of killed jobs.
//!
//! Some tests need root: they mount small file systems on loop devices and start copies of this program as
//! another user or under strace. Such a copy runs one test named `child_...`, which does nothing unless the
//! environment variable [`CHILD_ROOT`] names a store.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

mod conformance;
mod small_disk;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use conformance::{Subject, key, list_all, pattern, push_all, upload_all};
use mover_base::{Error, Kind, Result};
use mover_io::{BUF_BYTES, Rung, Shard, ShardConfig};
use mover_store::{LinkLimits, Put, STALE_AFTER_MS, Store};
use small_disk::SmallDisk;
use tempfile::TempDir;

const CHILD_ROOT: &str = "MOVER_STORE_TEST_ROOT";

fn config() -> ShardConfig {
    ShardConfig {
        shards: 1,
        pin: false,
        arena_bytes: 8 * BUF_BYTES,
        ..ShardConfig::default()
    }
}

fn store_at(path: &Path) -> Store {
    Store::open(
        &format!("file://{}", path.display()),
        &LinkLimits::default(),
    )
    .expect("the path is absolute")
}

fn subject_with(config: ShardConfig) -> (TempDir, Subject) {
    let directory = TempDir::new().expect("a temporary directory");
    let subject = Subject {
        store: store_at(directory.path()),
        config,
    };
    (directory, subject)
}

fn subject() -> (TempDir, Subject) {
    subject_with(config())
}

conformance!(through_the_default_ring, super::subject());
conformance!(
    through_threads,
    super::subject_with(super::ShardConfig {
        top_rung: super::Rung::Threads,
        ..super::config()
    })
);
conformance!(
    through_the_page_cache,
    super::subject_with(super::ShardConfig {
        direct: false,
        register_buffers: false,
        ..super::config()
    })
);

/// Every file below `directory`, relative to it.
fn files(directory: &Path) -> Vec<String> {
    fn walk(at: &Path, base: &Path, out: &mut Vec<String>) {
        for entry in fs::read_dir(at).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                walk(&path, base, out);
            } else {
                out.push(
                    path.strip_prefix(base)
                        .expect("below")
                        .display()
                        .to_string(),
                );
            }
        }
    }
    let mut out = Vec::new();
    walk(directory, directory, &mut out);
    out.sort();
    out
}

fn refused<T>(result: Result<T>) -> Error {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error,
    }
}

/// A command that runs the test `name` of this program in a process of its own, on `root`.
fn child(wrapper: &[&str], name: &str, root: &Path) -> Command {
    let this = std::env::current_exe().expect("this program has a path");
    let mut words: Vec<&std::ffi::OsStr> = wrapper.iter().map(std::ffi::OsStr::new).collect();
    words.push(this.as_os_str());
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .args([name, "--exact", "--nocapture", "--test-threads=1"]);
    command
        .env(CHILD_ROOT, root)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn assert_passed(output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}\n{}",
        text(&output.stdout),
        text(&output.stderr)
    );
}

fn child_subject() -> Option<(PathBuf, Subject)> {
    let root = PathBuf::from(std::env::var_os(CHILD_ROOT)?);
    Some((
        root.clone(),
        Subject {
            store: store_at(&root),
            config: config(),
        },
    ))
}

#[test]
fn a_finished_object_leaves_no_temporary_file_and_only_the_owner_may_enter() {
    let (directory, subject) = subject();
    subject.on_shard(async |shard| {
        subject
            .store
            .put_if_absent(&shard, &key("a/b/c"), b"x")
            .await?;
        subject
            .store
            .put_if_absent(&shard, &key("a/b/c"), b"y")
            .await?;
        upload_all(
            &subject.store,
            &shard,
            &key("top"),
            &pattern(20 * BUF_BYTES, 1),
        )
        .await?;
        drop(subject.store.upload(&shard, &key("dropped")).await?);
        Ok(())
    });
    assert_eq!(files(directory.path()), ["a/b/c", "top"]);
    let mode = |path: &str| {
        fs::metadata(directory.path().join(path))
            .expect("exists")
            .permissions()
            .mode()
            & 0o7777
    };
    assert_eq!([mode("a"), mode("a/b"), mode("tmp")], [0o700; 3]);
    assert_eq!([mode("a/b/c"), mode("top")], [0o600; 2]);
    assert!(
        fs::read(directory.path().join("top")).expect("readable") == pattern(20 * BUF_BYTES, 1)
    );
}

#[test]
fn opening_creates_nothing_and_a_missing_root_is_never_an_empty_store() {
    let directory = TempDir::new().expect("a temporary directory");
    let root = directory.path().join("not/yet");
    let subject = Subject {
        store: store_at(&root),
        config: config(),
    };
    subject.on_shard(async |shard| {
        let (store, name) = (&subject.store, key("a"));
        let kinds = [
            refused(store.list(&shard, "", None, 10).await),
            refused(store.head(&shard, &name).await),
            refused(store.get(&shard, &name, 10).await),
            refused(store.put_if_absent(&shard, &name, b"x").await),
            refused(store.upload(&shard, &name).await),
            refused(store.delete(&shard, &name).await),
            refused(store.stale_temporaries(&shard, |_| true).await),
        ];
        for error in kinds {
            assert_eq!(error.kind(), Kind::NotFound);
            assert_eq!(error.message(), "the repository's directory does not exist");
        }
        assert!(!root.exists() && !directory.path().join("not").exists());

        // Made, twice, the same store object works.
        for _ in 0..2 {
            Store::create_root(store.url(), &LinkLimits::default())?;
        }
        assert_eq!(
            store.put_if_absent(&shard, &name, b"x").await?,
            Put::Created
        );
        // Removed while open.
        fs::remove_dir_all(&root).expect("removable");
        assert_eq!(
            refused(store.list(&shard, "", None, 10).await).kind(),
            Kind::NotFound
        );
        assert_eq!(
            refused(store.list(&shard, "some/", None, 10).await).kind(),
            Kind::NotFound
        );
        assert!(store.put_if_absent(&shard, &name, b"x").await.is_err());
        Ok(())
    });
    fs::write(directory.path().join("file"), b"").expect("writable");
    for path in ["file", "file/below"] {
        let url = format!("file://{}/{path}", directory.path().display());
        let error = refused(Store::create_root(&url, &LinkLimits::default()));
        assert_eq!(error.kind(), Kind::Usage, "{path}");
    }
}

#[test]
fn a_symbolic_link_inside_the_repository_is_refused() {
    let (directory, subject) = subject();
    let outside = TempDir::new().expect("a temporary directory");
    fs::write(outside.path().join("secret"), b"secret").expect("writable");
    fs::create_dir(directory.path().join("real")).expect("writable");
    fs::write(directory.path().join("real/object"), b"x").expect("writable");
    symlink(
        outside.path().join("secret"),
        directory.path().join("file-link"),
    )
    .expect("linkable");
    symlink(outside.path(), directory.path().join("dir-link")).expect("linkable");
    symlink("real", directory.path().join("inner-link")).expect("linkable");
    symlink("nowhere", directory.path().join("broken-link")).expect("linkable");
    subject.on_shard(async |shard| {
        let store = &subject.store;
        for name in [
            "file-link",
            "dir-link/secret",
            "inner-link/object",
            "broken-link",
            "dir-link/new",
        ] {
            let name = key(name);
            let errors = [
                refused(store.head(&shard, &name).await),
                refused(store.get(&shard, &name, 10).await),
                refused(store.read(&shard, &name, 0, 1).await),
                refused(store.put_if_absent(&shard, &name, b"forged").await),
                refused(upload_all(store, &shard, &name, b"forged").await),
                refused(store.delete(&shard, &name).await),
            ];
            for error in errors {
                assert_eq!(error.kind(), Kind::Corrupt, "{name}: {error}");
                assert!(error.message().contains("symbolic link"), "{error}");
            }
        }
        for prefix in ["", "dir-link/", "inner-link/", "file-l"] {
            assert_eq!(
                refused(store.list(&shard, prefix, None, 10).await).kind(),
                Kind::Corrupt,
                "{prefix:?}"
            );
        }
        // What lies beside a link is usable.
        assert_eq!(
            list_all(store, &shard, "real/", 10).await?,
            [("real/object".to_owned(), 1)]
        );
        // The directory of temporary files may not lead outside either.
        fs::remove_dir(directory.path().join("tmp")).expect("it is empty");
        symlink(outside.path(), directory.path().join("tmp")).expect("linkable");
        assert_eq!(
            refused(store.upload(&shard, &key("new")).await).kind(),
            Kind::Corrupt
        );
        Ok(())
    });
    assert_eq!(files(outside.path()), ["secret"]);
}

#[test]
fn the_way_to_the_root_may_be_a_link() {
    let directory = TempDir::new().expect("a temporary directory");
    fs::create_dir(directory.path().join("disk")).expect("writable");
    symlink("disk", directory.path().join("backup")).expect("linkable");
    let subject = Subject {
        store: store_at(&directory.path().join("backup")),
        config: config(),
    };
    subject.on_shard(async |shard| subject.store.put_if_absent(&shard, &key("a/b"), b"x").await);
    assert_eq!(files(&directory.path().join("disk")), ["a/b"]);
}

#[test]
fn what_is_neither_file_nor_directory_is_refused_without_waiting_on_it() {
    let (directory, subject) = subject();
    fs::create_dir(directory.path().join("dir")).expect("writable");
    let made = Command::new("mkfifo")
        .arg(directory.path().join("dir/pipe"))
        .status()
        .expect("mkfifo runs");
    assert!(made.success());
    subject.on_shard(async |shard| {
        let (store, name) = (&subject.store, key("dir/pipe"));
        for error in [
            refused(store.head(&shard, &name).await),
            refused(store.get(&shard, &name, 10).await),
            refused(store.read(&shard, &name, 0, 1).await),
            refused(store.put_if_absent(&shard, &name, b"x").await),
            refused(upload_all(store, &shard, &name, b"x").await),
            refused(store.delete(&shard, &name).await),
            refused(store.list(&shard, "dir/", None, 10).await),
        ] {
            assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        }
        Ok(())
    });
    assert_eq!(files(directory.path()), ["dir/pipe"]);
}

#[test]
fn empty_directories_are_no_objects_and_hide_none() {
    let (directory, subject) = subject();
    let root = directory.path();
    subject.on_shard(async |shard| {
        let store = &subject.store;
        // However small the page.
        for empty in 0..30 {
            fs::create_dir_all(root.join(format!("empty/{empty:02}/x"))).expect("writable");
        }
        fs::write(root.join("empty/zz"), b"").expect("writable");
        assert_eq!(
            list_all(store, &shard, "empty/", 1).await?,
            [("empty/zz".to_owned(), 0)]
        );
        Ok(())
    });
}

#[test]
fn a_name_that_is_both_object_and_directory_is_a_conflict() {
    let (directory, subject) = subject();
    subject.on_shard(async |shard| {
        let store = &subject.store;
        store.put_if_absent(&shard, &key("a/object"), b"x").await?;
        for name in ["a", "a/object/below", "a/object/far/below"] {
            assert_eq!(
                refused(store.put_if_absent(&shard, &key(name), b"y").await).kind(),
                Kind::Conflict,
                "{name}"
            );
            assert_eq!(
                refused(upload_all(store, &shard, &key(name), b"y").await).kind(),
                Kind::Conflict,
                "{name}"
            );
        }
        Ok(())
    });
    assert_eq!(files(directory.path()), ["a/object"]);
}

#[test]
fn an_object_cut_short_is_told_as_damaged() {
    let (directory, subject) = subject();
    subject.on_shard(async |shard| {
        let (store, name) = (&subject.store, key("p/pack"));
        store
            .put_if_absent(&shard, &name, &pattern(10_000, 1))
            .await?;
        let reader = store.reader(&shard);
        assert!(*reader.read(&name, 5000, 5000).await? == pattern(10_000, 1)[5000..]);
        let file = fs::File::options()
            .write(true)
            .open(directory.path().join("p/pack"))
            .expect("exists");
        for cut in [9_999, 8192, 5000, 0] {
            file.set_len(cut).expect("cut");
            for error in [
                refused(store.read(&shard, &name, 5000, 5000).await),
                refused(reader.read(&name, 5000, 5000).await),
            ] {
                assert_eq!(
                    (error.kind(), error.object_name()),
                    (Kind::Corrupt, Some("p/pack")),
                    "{cut}"
                );
            }
        }
        Ok(())
    });
}

#[test]
fn only_old_leftovers_of_uploads_are_told_and_removed() {
    let (directory, subject) = subject();
    let root = directory.path();
    let at = |age: Duration| SystemTime::now().checked_sub(age).expect("within range");
    let day = Duration::from_millis(STALE_AFTER_MS as u64);
    let hour = Duration::from_secs(3600);
    let name = |digit: &str| format!("{}.part", digit.repeat(32));
    let put = |name: &str, age: Duration| {
        let file = fs::File::create(root.join("tmp").join(name)).expect("writable");
        file.set_len(4096).expect("settable");
        file.set_modified(at(age)).expect("settable");
    };
    subject.on_shard(async |shard| {
        let store = &subject.store;
        assert!(
            store.stale_temporaries(&shard, |_| true).await?.is_empty(),
            "no directory of temporary files yet"
        );
        let upload = store.upload(&shard, &key("running")).await?;
        put(&name("a"), day + hour);
        put(&name("b"), day - hour);
        put(&name("c"), day * 30);
        put(".nfs0001", day * 30);
        let stale = store.stale_temporaries(&shard, |_| true).await?;
        let told: Vec<_> = stale
            .iter()
            .map(|leftover| (leftover.name.clone(), leftover.bytes))
            .collect();
        assert_eq!(told, [(name("a"), 4096), (name("c"), 4096)]);
        // Written to since.
        put(&name("c"), Duration::ZERO);
        assert_eq!(
            refused(store.remove_temporary(&shard, &stale[1]).await).kind(),
            Kind::Conflict
        );
        store.remove_temporary(&shard, &stale[0]).await?;
        assert_eq!(
            refused(store.remove_temporary(&shard, &stale[0]).await).kind(),
            Kind::NotFound
        );
        // A name that is not a temporary one is never removed.
        let mut forged = stale[0].clone();
        forged.name = "../precious".to_owned();
        assert_eq!(
            refused(store.remove_temporary(&shard, &forged).await).kind(),
            Kind::NotFound
        );
        upload.abort().await?;
        assert_eq!(
            files(root),
            [".nfs0001", &name("b"), &name("c")].map(|name| format!("tmp/{name}"))
        );
        // Something else among them is told, not skipped.
        put("notes.txt", day * 2);
        assert_eq!(
            refused(store.stale_temporaries(&shard, |_| true).await).kind(),
            Kind::Storage
        );
        Ok(())
    });
}

#[test]
fn a_temporary_file_that_vanishes_is_an_error_and_nothing_is_created() {
    let (directory, subject) = subject();
    subject.on_shard(async |shard| {
        let mut upload = subject.store.upload(&shard, &key("a")).await?;
        push_all(&shard, &mut upload, b"x").await?;
        fs::remove_dir_all(directory.path().join("tmp")).expect("removable");
        assert_eq!(refused(upload.commit().await).kind(), Kind::Storage);
        Ok(())
    });
    assert!(files(directory.path()).is_empty());
}

#[test]
fn a_full_disk_is_told_as_a_full_repository_and_leaves_nothing_half_written() {
    let disk = SmallDisk::new(12);
    let subject = Subject {
        store: store_at(&disk.path()),
        config: config(),
    };
    subject.on_shard(async |shard| {
        let store = &subject.store;
        let mut kept = Vec::new();
        let error = loop {
            let name = key(&format!("packs/{:02}", kept.len()));
            match upload_all(
                store,
                &shard,
                &name,
                &pattern(BUF_BYTES * 3 / 2, kept.len() as u64),
            )
            .await
            {
                Ok(put) => assert_eq!(put, Put::Created),
                Err(error) => break error,
            }
            kept.push(name);
            assert!(kept.len() < 12, "more was stored than the disk holds");
        };
        assert_eq!(
            (error.kind(), error.message()),
            (Kind::Storage, "the repository is full"),
            "{error}"
        );
        assert!(error.hint_text().is_some());
        assert!(kept.len() >= 2, "the disk was full too early");
        let error = refused(
            store
                .put_if_absent(&shard, &key("packs/put"), &pattern(4 * BUF_BYTES, 1))
                .await,
        );
        assert_eq!(error.message(), "the repository is full");
        // An object that fits where the step of allocation ahead does not is still written.
        let last = kept.pop().expect("some objects were stored");
        store.delete(&shard, &last).await?;
        disk.settle();
        let small = pattern(BUF_BYTES + 1, 7);
        assert_eq!(
            upload_all(store, &shard, &key("packs/small"), &small).await?,
            Put::Created
        );
        assert!(store.get(&shard, &key("packs/small"), u64::MAX).await? == small);
        // What was stored before is whole.
        for (seed, name) in kept.iter().enumerate() {
            assert!(
                store.get(&shard, name, u64::MAX).await? == pattern(BUF_BYTES * 3 / 2, seed as u64),
                "{name}"
            );
        }
        let mut expected: Vec<String> = kept.iter().map(|name| name.as_str().to_owned()).collect();
        expected.push("packs/small".to_owned());
        let mut found = files(&disk.path());
        found.retain(|name| !name.starts_with("lost+found"));
        assert_eq!(found, expected);
        Ok(())
    });
}

#[test]
fn a_read_only_disk_is_told_as_such_and_can_be_read() {
    let disk = SmallDisk::new(8);
    let subject = Subject {
        store: store_at(&disk.path()),
        config: config(),
    };
    subject.on_shard(async |shard| {
        let store = &subject.store;
        store.put_if_absent(&shard, &key("a/b"), b"x").await?;
        disk.remount("ro");
        for error in [
            refused(store.put_if_absent(&shard, &key("a/c"), b"x").await),
            refused(store.delete(&shard, &key("a/b")).await),
        ] {
            assert_eq!(error.kind(), Kind::Storage);
            assert!(
                error.message().ends_with("the file system is read-only"),
                "{error}"
            );
        }
        assert_eq!(store.get(&shard, &key("a/b"), 1).await?, b"x");
        assert_eq!(
            list_all(store, &shard, "", 5).await?,
            [("a/b".to_owned(), 1)]
        );
        Ok(())
    });
}

/// As a user who owns nothing in the store.
#[test]
fn child_without_permission() {
    let Some((_, subject)) = child_subject() else {
        return;
    };
    subject.on_shard(async |shard: Shard| {
        let (store, name) = (&subject.store, key("closed/object"));
        for error in [
            refused(store.put_if_absent(&shard, &key("new"), b"x").await),
            refused(store.upload(&shard, &key("open/new")).await),
            refused(store.head(&shard, &name).await),
            refused(store.get(&shard, &name, 10).await),
            refused(store.read(&shard, &name, 0, 1).await),
            refused(store.delete(&shard, &key("open/object")).await),
            refused(store.list(&shard, "", None, 10).await),
            refused(store.list(&shard, "closed/", None, 10).await),
        ] {
            assert_eq!(error.kind(), Kind::Storage, "{error}");
            assert!(error.message().starts_with("no permission to "), "{error}");
            assert!(error.hint_text().is_some());
        }
        assert_eq!(
            list_all(store, &shard, "open/", 10).await?,
            [("open/object".to_owned(), 1)]
        );
        Ok(())
    });
}

#[test]
fn missing_permission_is_told_and_never_taken_for_absence() {
    // Not below a directory of root's own: the other user must be able to reach it.
    let directory = TempDir::new().expect("a temporary directory");
    let root = directory.path();
    let open = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("settable")
    };
    for (name, mode) in [("closed", 0o700), ("open", 0o755)] {
        fs::create_dir(root.join(name)).expect("writable");
        fs::write(root.join(name).join("object"), b"x").expect("writable");
        open(&root.join(name), mode);
    }
    open(root, 0o755);
    // A copy of this program that the other user can run.
    let program = root.join("open").join("program");
    fs::copy(
        std::env::current_exe().expect("this program has a path"),
        &program,
    )
    .expect("copied");
    open(&program, 0o755);
    let elsewhere = TempDir::new().expect("a temporary directory");
    open(elsewhere.path(), 0o755);
    fs::rename(&program, elsewhere.path().join("program")).expect("moved");
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(elsewhere.path().join("program"))
        .args(["child_without_permission", "--exact", "--nocapture"])
        .env(CHILD_ROOT, root)
        .output()
        .expect("setpriv runs");
    assert_passed(&output);
    assert_eq!(files(root), ["closed/object", "open/object"]);
}

/// Keys of the race between processes.
const RACES: usize = 30;

#[test]
fn child_races_for_keys() {
    let Some((_, subject)) = child_subject() else {
        return;
    };
    let created = subject.on_shard(async |shard| {
        let mut created = Vec::new();
        for round in 0..RACES {
            let bytes = pattern(3000, u64::from(std::process::id()) + round as u64);
            let name = key(&format!("race/{:02}/{round:02}", round % 5));
            if subject.store.put_if_absent(&shard, &name, &bytes).await? == Put::Created {
                created.push(format!("created={round} by={}", std::process::id()));
            }
        }
        Ok(created)
    });
    // The parent reads this from the child's output.
    let mut lines = created.join("\n");
    lines.push('\n');
    std::io::Write::write_all(&mut std::io::stdout(), lines.as_bytes())
        .expect("the parent listens");
}

#[test]
fn exactly_one_of_several_processes_creates_a_key() {
    let (directory, subject) = subject();
    let children: Vec<_> = (0..3)
        .map(|_| {
            child(&[], "child_races_for_keys", directory.path())
                .spawn()
                .expect("this program starts")
        })
        .collect();
    let mut winners = vec![Vec::new(); RACES];
    for child in children {
        let output = child.wait_with_output().expect("the child ends");
        assert_passed(&output);
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let Some(told) = line.split("created=").nth(1) else {
                continue;
            };
            let (round, process) = told.split_once(" by=").expect("the child's format");
            let process: u64 = process.parse().expect("a process id");
            winners[round.parse::<usize>().expect("a round")].push(process);
        }
    }
    subject.on_shard(async |shard| {
        for (round, winners) in winners.iter().enumerate() {
            assert_eq!(winners.len(), 1, "round {round}");
            let name = key(&format!("race/{:02}/{round:02}", round % 5));
            let bytes = subject.store.get(&shard, &name, u64::MAX).await?;
            assert!(
                bytes == pattern(3000, winners[0] + round as u64),
                "round {round} holds another's bytes"
            );
        }
        Ok(())
    });
    assert_eq!(files(directory.path()).len(), RACES);
}

/// Writes three objects through threads, whose system calls strace can fail, and prints each outcome.
#[test]
fn child_writes_through_threads() {
    let Some((_, mut subject)) = child_subject() else {
        return;
    };
    subject.config.top_rung = Rung::Threads;
    let told = subject.on_shard(async |shard| {
        let mut told = String::new();
        for object in 0..3 {
            let name = key(&format!("d/{object}"));
            let outcome = match upload_all(
                &subject.store,
                &shard,
                &name,
                &pattern(BUF_BYTES * 2 + 5, object),
            )
            .await
            {
                Ok(put) => format!("{put:?}"),
                Err(error) => format!("{} {}", error.kind().name(), error.message()),
            };
            told.push_str(&format!("\noutcome={outcome}"));
        }
        Ok(told + "\n")
    });
    std::io::Write::write_all(&mut std::io::stdout(), told.as_bytes()).expect("the parent listens");
}

/// Outcomes of [`child_writes_through_threads`] under strace with `options`, and the files left in the store.
fn with_fault(directory: &TempDir, options: &[&str]) -> (Vec<String>, Vec<String>) {
    of_child("child_writes_through_threads", directory, options)
}

/// What the test `name` told of outcomes under strace with `options`, and the files left in the store.
fn of_child(name: &str, directory: &TempDir, options: &[&str]) -> (Vec<String>, Vec<String>) {
    let log = TempDir::new().expect("a temporary directory");
    let log = log.path().join("strace").display().to_string();
    let wrapper = [&["strace", "-f", "-qq", "-o", &log], options].concat();
    let output = child(&wrapper, name, directory.path())
        .output()
        .expect("strace runs");
    assert_passed(&output);
    let text = String::from_utf8_lossy(&output.stdout);
    let outcomes = text
        .lines()
        .filter_map(|line| line.strip_prefix("outcome="))
        .map(str::to_owned)
        .collect();
    (outcomes, files(directory.path()))
}

#[test]
fn a_failed_write_or_sync_discards_its_object_for_good() {
    let io_error = "storage I/O error: cannot write an object";
    let full = "storage the repository is full";
    // strace counts calls per thread, so which object meets the fault varies, but the very first call of all
    // is always some thread's first.
    for (inject, told) in [
        ("inject=pwrite64:error=EIO:when=1", io_error),
        ("inject=pwrite64:error=ENOSPC:when=1", full),
        ("inject=pwrite64:error=EDQUOT:when=1", full),
        ("inject=pwrite64:error=EIO:when=2", io_error),
        ("inject=pwrite64:error=EIO:when=3", io_error),
        ("inject=pwrite64:error=EIO", io_error),
        ("inject=fsync:error=EIO", io_error),
        ("inject=fsync:error=ENOSPC", full),
    ] {
        let directory = TempDir::new().expect("a temporary directory");
        let (outcomes, left) = with_fault(&directory, &["-e", inject]);
        assert_eq!(outcomes.len(), 3, "{inject}");
        assert!(
            outcomes
                .iter()
                .all(|outcome| outcome == told || outcome == "Created"),
            "{inject}: {outcomes:?}"
        );
        if inject.ends_with("when=1") {
            assert_eq!(outcomes[0], told, "{inject}");
        }
        if !inject.contains("when") {
            assert_eq!(outcomes, [told; 3], "{inject}");
        }
        let created: Vec<String> = (0..3)
            .filter(|object| outcomes[*object] == "Created")
            .map(|object| format!("d/{object}"))
            .collect();
        assert_eq!(left, created, "{inject}");
    }
}

#[test]
fn after_a_failed_directory_sync_nothing_is_called_durable() {
    let directory = TempDir::new().expect("a temporary directory");
    let path = directory.path().join("d");
    fs::create_dir(&path).expect("writable");
    // The first sync of the directory, on whichever thread; later ones are not even tried.
    let path = path.display().to_string();
    let (outcomes, left) = with_fault(
        &directory,
        &["-P", &path, "-e", "inject=fsync:error=EIO:when=1"],
    );
    assert_eq!(
        outcomes[0],
        "storage I/O error: cannot make a directory of the repository durable"
    );
    for outcome in &outcomes[1..] {
        assert_eq!(
            outcome,
            "storage an earlier sync of a directory failed, so no further write is trusted"
        );
    }
    assert!(
        left.iter().all(|name| name.starts_with("d/")),
        "no temporary file stays: {left:?}"
    );
}

#[test]
fn a_file_system_without_atomic_rename_is_served_by_links() {
    let directory = TempDir::new().expect("a temporary directory");
    let (outcomes, left) = with_fault(&directory, &["-e", "inject=renameat2:error=EINVAL"]);
    assert_eq!(outcomes, ["Created", "Created", "Created"]);
    assert_eq!(left, ["d/0", "d/1", "d/2"]);
}

/// Names an object that has got its name already, as if the answer to that had been lost, and one whose name is another's.
#[test]
fn child_names_what_is_named() {
    let Some((root, subject)) = child_subject() else {
        return;
    };
    fs::write(root.join("theirs"), b"theirs").expect("writable");
    let told = subject.on_shard(async |shard| {
        let mut told = String::new();
        for name in ["ours", "theirs"] {
            let mut upload = subject.store.upload(&shard, &key(name)).await?;
            push_all(&shard, &mut upload, b"ours").await?;
            if name == "ours" {
                let temporary = &files(&root.join("tmp"))[0];
                fs::hard_link(root.join("tmp").join(temporary), root.join(name)).expect("linkable");
            }
            let put = upload.commit().await?;
            told.push_str(&format!("\noutcome={put:?}"));
        }
        Ok(told + "\n")
    });
    std::io::Write::write_all(&mut std::io::stdout(), told.as_bytes()).expect("the parent listens");
}

#[test]
fn a_link_whose_answer_was_lost_is_no_other_writers_object() {
    let directory = TempDir::new().expect("a temporary directory");
    let options = ["-e", "inject=renameat2:error=EINVAL"];
    let (outcomes, left) = of_child("child_names_what_is_named", &directory, &options);
    assert_eq!(outcomes, ["Created", "Exists"]);
    assert_eq!(left, ["ours", "theirs"]);
    for name in ["ours", "theirs"] {
        let bytes = fs::read(directory.path().join(name)).expect("readable");
        assert_eq!(bytes, name.as_bytes());
    }
}

/// Tries the store out, and prints the outcome.
#[test]
fn child_tries_out() {
    let Some((_, subject)) = child_subject() else {
        return;
    };
    let told = subject.on_shard(async |shard| {
        Ok(match subject.store.try_out(&shard).await {
            Ok(_) => "\noutcome=usable\n".to_owned(),
            Err(error) => format!("\noutcome={} {}\n", error.kind().name(), error.message()),
        })
    });
    std::io::Write::write_all(&mut std::io::stdout(), told.as_bytes()).expect("the parent listens");
}

#[test]
fn a_file_system_that_cannot_give_a_name_safely_is_told_and_trying_out_finds_it() {
    const UNABLE: &str =
        "storage this file system can neither rename without replacing nor make hard links";
    let renames = "inject=renameat2:error=EINVAL";
    for error in ["EPERM", "ENOSYS", "EOPNOTSUPP", "EMLINK"] {
        let directory = TempDir::new().expect("a temporary directory");
        let links = format!("inject=linkat:error={error}");
        let options = ["-e", renames, "-e", &links];
        let (outcomes, left) = with_fault(&directory, &options);
        assert_eq!(outcomes, [UNABLE; 3], "{error}");
        assert!(left.is_empty(), "{error}: {left:?}");
        let (outcomes, left) = of_child("child_tries_out", &directory, &options);
        assert_eq!(outcomes, [UNABLE], "{error}");
        assert!(left.is_empty(), "{error}: {left:?}");
    }
    // One way is enough.
    for inject in [renames, "inject=linkat:error=EPERM"] {
        let directory = TempDir::new().expect("a temporary directory");
        let (outcomes, left) = of_child("child_tries_out", &directory, &["-e", inject]);
        assert_eq!(outcomes, ["usable"], "{inject}");
        assert!(left.is_empty(), "{inject}: {left:?}");
    }
}

#[test]
fn a_failed_allocation_ahead_costs_only_speed() {
    for error in ["ENOSPC", "EIO", "EOPNOTSUPP"] {
        let directory = TempDir::new().expect("a temporary directory");
        let (outcomes, left) = with_fault(
            &directory,
            &["-e", &format!("inject=fallocate:error={error}")],
        );
        assert_eq!(outcomes, ["Created", "Created", "Created"], "{error}");
        assert_eq!(left, ["d/0", "d/1", "d/2"]);
    }
}

#[test]
fn the_file_is_synced_before_it_is_named_and_the_directories_after() {
    let directory = TempDir::new().expect("a temporary directory");
    let log = TempDir::new().expect("a temporary directory");
    let path = log.path().join("strace");
    let shown = path.display().to_string();
    let wrapper = [
        "strace",
        "-f",
        "-qq",
        "-y",
        "-o",
        &shown,
        "-e",
        "trace=fsync,renameat2,ftruncate",
    ];
    let output = child(&wrapper, "child_writes_through_threads", directory.path())
        .output()
        .expect("strace runs");
    assert_passed(&output);
    let root = directory.path().display().to_string();
    // Per object; the directories above only with the first, which made them.
    let trace = fs::read_to_string(&path).expect("strace wrote its log");
    let steps: Vec<&str> = trace
        .lines()
        .filter_map(|line| {
            let is = |call: &str, at: &str| {
                line.contains(call) && line.contains(&format!("<{root}{at}"))
            };
            if is(" ftruncate(", "/tmp/") {
                Some("cut file")
            } else if is(" fsync(", "/tmp/") {
                Some("sync file")
            } else if line.contains(" renameat2(") {
                Some("name")
            } else if is(" fsync(", "/d>") {
                Some("sync directory")
            } else if is(" fsync(", ">") {
                Some("sync root")
            } else {
                None
            }
        })
        .collect();
    let later = ["cut file", "sync file", "name", "sync directory"];
    let mut expected = vec![
        "cut file",
        "sync file",
        "name",
        "sync root",
        "sync directory",
    ];
    expected.extend(later);
    expected.extend(later);
    assert_eq!(steps, expected, "{trace}");
}
