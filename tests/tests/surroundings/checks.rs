//! What `check` finds, by the names of its items: each finding is told as what it is, with what to do, and none is told where all is
//! well.

use mover_tests::mover::{PASSPHRASE, dir_url, secret_file};
use serde_json::Value;

use super::database::{pages_url, write_to};
use super::*;

/// All items of a check that ends with `code`.
fn items(outcome: Outcome, code: i32) -> Vec<Value> {
    let outcome = outcome.expect(code);
    match code {
        exit::OK => drop(outcome.summary()),
        _ => drop(outcome.error()),
    }
    let report = outcome.lines().remove(0);
    assert_eq!(report["ok"], code == exit::OK, "{outcome}");
    let items = report["items"].as_array().expect("items").clone();
    let failed = items.iter().filter(|item| item["status"] == "fail").count();
    assert_eq!(failed == 0, code == exit::OK, "{outcome}");
    items
}

/// Fails the test unless one of the items has this area and name, this status, and says this, to begin with, and this hint.
#[track_caller]
fn assert_told(
    items: &[Value],
    name: (&str, &str),
    status: &str,
    detail: &str,
    hint: Option<&str>,
) {
    let is_it = |item: &&Value| item["area"] == name.0 && item["name"] == name.1;
    let named: Vec<&Value> = items.iter().filter(is_it).collect();
    assert_eq!(named.len(), 1, "{name:?} in {items:?}");
    let item = named[0];
    assert_eq!(item["status"], status, "{item}");
    let told = item["detail"].as_str().unwrap_or_default();
    assert!(told.starts_with(detail), "no {detail:?}: {item}");
    assert_eq!(item["hint"].as_str(), hint, "{item}");
}

fn is_named(items: &[Value], name: &str) -> bool {
    items.iter().any(|item| item["name"] == name)
}

fn check(repo: &AnyRepo, more: &[&str]) -> Outcome {
    Outcome::of(repo.command("check").arg("--json").args(more))
}

const HEADER: (&str, &str) = ("repository", "header and key");
const WRONG_KEY: &str =
    "check --passphrase-file or --identity-file; `helios-mover key list` shows the slots";

#[test]
fn a_key_that_opens_no_slot_and_a_slot_that_is_damaged_are_told_apart() {
    let scratch = Scratch::new("check-keys");
    let repo = Repo::create(&scratch, "repo", Protection::Passphrase);
    let second = scratch.join("second.passphrase");
    secret_file(&second, &format!("another {PASSPHRASE}\n"));
    let by_second = repo.opened_with(&["--passphrase-file".as_ref(), second.as_os_str()]);

    let good = items(check(&repo, &[]), exit::OK);
    assert_told(&good, HEADER, "ok", "encrypted; the key opens it", None);
    assert!(!is_named(&good, "key slot"), "{good:?}");
    let keyless = items(check(&repo.opened_with(&[]), &[]), exit::OK);
    let detail = "encrypted; without a key it can be written and not read";
    assert_told(&keyless, HEADER, "ok", detail, None);
    let wrong = items(check(&by_second, &[]), exit::CHECK_FAILED);
    let detail = "the key does not open the repository's 1 key slot: ";
    assert_told(&wrong, HEADER, "fail", detail, Some(WRONG_KEY));

    let first = Repo::objects_of(&repo.dir.join("keys")).remove(0).0;
    let first = first.to_str().expect("an id").to_owned();
    let mut add = repo.command("key add");
    add.arg("--json").arg("--new-passphrase-file").arg(&second);
    Outcome::of(&mut add).summary();
    fs::write(repo.dir.join("keys").join(&first), "no key slot").expect("a slot");
    let other = items(check(&by_second, &[]), exit::OK);
    assert_told(&other, HEADER, "ok", "encrypted; the key opens it", None);
    let detail = format!("keys/{first} cannot be used: ");
    let hint = "copy it back, or remove it with `helios-mover key remove`";
    let slot = ("repository", "key slot");
    assert_told(&other, slot, "warn", &detail, Some(hint));
    let own = items(check(&repo, &[]), exit::CHECK_FAILED);
    let detail = "the key opens none of the repository's 2 key slots, 1 of which cannot be used: ";
    assert_told(&own, HEADER, "fail", detail, Some(WRONG_KEY));
}

#[test]
fn a_page_store_that_cannot_be_backed_up_as_asked_is_found() {
    let scratch = Scratch::new("check-pages");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let store = scratch.dir("store");
    write_to(&store);
    let url = pages_url(&store);
    let readable = ("source", "readable");

    let good = items(check(&repo, &["--source", &url]), exit::OK);
    let is_it = |item: &&Value| item["name"] == readable.1;
    let detail = good.iter().find(is_it).expect("an item")["detail"].clone();
    let detail = detail.as_str().expect("a text");
    assert!(detail.contains(" tables, "), "{detail}");
    assert!(detail.contains(" of them opened, in history "), "{detail}");
    assert_told(&good, readable, "ok", detail, None);
    assert!(!is_named(&good, "left out"), "{good:?}");

    let whole = "a page store is backed up as a whole";
    for more in [&["--exclude", "tables"][..], &["--one-file-system"]] {
        let asked = ["--source", url.as_str()]
            .into_iter()
            .chain(more.iter().copied());
        let asked: Vec<&str> = asked.collect();
        let found = items(check(&repo, &asked), exit::CHECK_FAILED);
        assert_told(&found, readable, "ok", detail, None);
        let hint = "leave out --exclude and --one-file-system";
        let name = ("source", "left out");
        assert_told(&found, name, "fail", whole, Some(hint));
        let mut backup = repo.command("backup");
        backup.arg("--json").args(&asked);
        let error = Outcome::of(&mut backup).told(exit::USAGE, &url);
        assert_eq!(error["message"], whole, "{error}");
    }

    fs::rename(store.join("control"), scratch.join("control")).expect("a control file");
    let found = items(check(&repo, &["--source", &url]), exit::CHECK_FAILED);
    let hint =
        "check the path; a directory that is no page store is backed up as dir:///absolute/path";
    let detail = "there is no page store: ";
    assert_told(&found, readable, "fail", detail, Some(hint));
}

#[test]
fn what_a_backup_would_warn_of_is_found_before_it() {
    let scratch = Scratch::new("check-warnings");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let source = small_source(&scratch);
    let url = dir_url(&source);
    let asked = ["--source", &url, "--exclude", "nothing"];
    let name = ("source", "as it would be read");
    let detail = "the exclude pattern nothing matched nothing at the top of the source";

    let plain = items(check(&repo, &asked[..2]), exit::OK);
    assert!(!is_named(&plain, name.1), "{plain:?}");
    let found = items(check(&repo, &asked), exit::OK);
    assert_told(&found, name, "warn", detail, None);
    let mut backup = repo.command("backup");
    let made = Outcome::of(backup.arg("--json").args(asked)).summary();
    let warnings = made["warnings"].to_string();
    assert!(warnings.contains(detail), "{made}");
}

#[test]
fn shards_that_cannot_be_set_up_are_found_with_a_remedy() {
    let scratch = Scratch::new("check-shards");
    let mut command = mover::command(&scratch.dir("home"));
    command.args(["check", "--json", "--shards", "1"]);
    let shards = ("environment", "shards");
    let good = items(Outcome::of(&mut command), exit::OK);
    assert_told(&good, shards, "ok", "1 shard", None);

    let limit = format!("--nofile={FILES_MIN}");
    let few = by(&["prlimit", &limit, "--"], &command, &scratch);
    let few = items(few, exit::CHECK_FAILED);
    let detail = "a shard could not be set up: shard 0: Too many open files";
    let hint = "use fewer shards or a smaller arena, or raise the limits of open files and memory";
    assert_told(&few, shards, "fail", detail, Some(hint));
}
