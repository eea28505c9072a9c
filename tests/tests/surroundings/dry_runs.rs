//! Dry runs change nothing: neither a page store's tracker and what it holds of the log, nor a repository in S3, nor a target.

use mover_test_servers::{FilesystemS3, Listed};
use mover_tests::bucket;
use serde_json::Value;

use super::database::{pages_url, write_to};
use super::*;

/// A page store. A backup that is planned looks through the log like one that is made, and while it does, a file in the tracker's
/// directory keeps the database from removing that; so the directory's own time is not compared.
fn store_tree(store: &Path) -> Tree {
    let mut tree = Tree::read(store);
    let tracker = tree.0.get_mut(b"tracker".as_slice());
    tracker.expect("a tracker").mtime = (0, 0);
    tree
}

#[test]
fn a_dry_run_of_a_page_store_begins_no_epoch_and_holds_no_log() {
    let scratch = Scratch::new("dry-pages");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let store = scratch.dir("store");
    write_to(&store);
    let backup = |backup_type: &str, more: &[&str]| {
        let mut command = repo.command("backup");
        command.args(["--source", &pages_url(&store), "--json"]);
        Outcome::of(command.args(["--type", backup_type]).args(more)).summary()
    };
    let full = backup("full", &[]);
    write_to(&store);
    let (store_before, repo_before) = (store_tree(&store), Tree::read(&repo.dir));
    for (backup_type, planned) in [
        ("full", "full"),
        ("incr", "incremental"),
        ("diff", "differential"),
    ] {
        let plan = backup(backup_type, &["--dry-run"]);
        assert_eq!(plan["dry_run"], true, "{plan}");
        assert_eq!(plan["backup_type"], planned, "{plan}");
        let base = match backup_type {
            "full" => Value::Null,
            _ => full["backup_id"].clone(),
        };
        assert_eq!(plan["base"], base, "{plan}");
        assert!(plan["data_bytes"].as_u64() > Some(0), "{plan}");
        // Space of the log that is set aside may become written zeros at any time, when what is beside it gets to the disk.
        let mut changed = store_before.differences(&store_tree(&store));
        changed.retain(|line| !line.contains(": data in "));
        assert_eq!(changed, [""; 0], "{backup_type}");
        repo_before.assert_same(&Tree::read(&repo.dir), backup_type);
    }
    assert_eq!(repo.ids().len(), 1);

    // What was planned last comes true, and begins an epoch: the comparison would have shown one.
    let made = backup("diff", &[]);
    assert_eq!(made["backup_type"], "differential", "{made}");
    assert_eq!(made["base"], full["backup_id"], "{made}");
    let changed = store_before.differences(&store_tree(&store));
    assert!(
        changed.iter().any(|line| line.contains("tracker/state")),
        "{changed:?}"
    );
}

#[test]
fn a_dry_run_of_a_restore_from_s3_changes_neither_target_nor_bucket() {
    let scratch = Scratch::new("dry-s3");
    let server = FilesystemS3::start(scratch.path());
    let repo = bucket::repo_in(server.access(), &scratch, "dry", Protection::Identity);
    let source = small_source(&scratch);
    repo.backup(&source).summary();
    let objects = || -> Vec<Listed> {
        let client = server.access().client();
        client.list("dry/", 1000).expect("the bucket is listed").0
    };
    let before = objects();
    assert!(before.len() > 2, "{before:?}");
    let place = scratch.dir("place");
    let target = place.join("target");
    let plan = |more: &[&str]| {
        let mut restore = repo.restore_command("latest", &target);
        let plan = Outcome::of(restore.arg("--dry-run").args(more)).summary();
        assert_eq!(plan["dry_run"], true, "{plan}");
        assert_eq!(plan["files"], 1, "{plan}");
        assert_eq!(plan["bytes"], 100_000, "{plan}");
        assert_eq!(before, objects(), "the bucket after a plan with {more:?}");
        plan
    };

    assert_eq!(plan(&[])["mode"], "fresh");
    let left = fs::read_dir(&place).expect("a directory").count();
    assert_eq!(left, 0, "a plan left something");

    fs::create_dir(&target).expect("a target");
    fs::write(target.join("table"), "an older row").expect("a file");
    fs::write(target.join("extra"), "not in the backup").expect("a file");
    let old = Tree::read(&target);
    let planned = plan(&["--delta"]);
    assert_eq!(planned["mode"], "delta", "{planned}");
    assert_eq!(planned["removes"], 1, "{planned}");
    old.assert_same(&Tree::read(&target), "the target after a plan");
    assert_eq!(holds(&repo), 0);

    let mut restore = repo.restore_command("latest", &target);
    Outcome::of(restore.arg("--delta")).summary();
    Tree::read(&source).assert_same(&Tree::read(&target), "restored as planned");
}
