//! Key slots that a store does not give out, as its policy may say for hosts that only write, and slots that it does not delete:
//! none of them is told as damaged, or removed, and none is lost.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs;

use mover_test_servers::{Action, Fault, FaultId, FaultProxy, FilesystemS3};
use mover_tests::bucket::{repo_in, told, variables};
use mover_tests::mover::{AnyRepo, Outcome, Protection, exit, identity};
use mover_tests::scratch::Scratch;
use serde_json::Value;

/// Where the repository is in its bucket.
const PREFIX: &str = "slots";

/// A repository with two slots, which is opened by the key of the first.
struct Place {
    server: FilesystemS3,
    repo: AnyRepo,
    /// The same by the key of the second.
    by_second: AnyRepo,
    first: String,
    second: String,
    scratch: Scratch,
}

impl Place {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let server = FilesystemS3::start(scratch.path());
        let repo = repo_in(server.access(), &scratch, PREFIX, Protection::Identity);
        let (file, recipient) = identity(&scratch, "second");
        let first = slots(&repo).remove(0);
        key(
            &repo,
            "add",
            &["--recipient", &recipient, "--label", "second"],
        )
        .expect(exit::OK);
        let mut all = slots(&repo).into_iter();
        let second = all.find(|slot| slot["label"] == "second");
        let by_second = repo.opened_with(&["--identity-file".as_ref(), file.as_os_str()]);
        Place {
            first: id(&first),
            second: id(&second.expect("the slot that was added")),
            by_second,
            server,
            repo,
            scratch,
        }
    }

    /// The repository by way of a proxy that refuses some requests.
    fn denying(&self, repo: &AnyRepo, denied: Fault) -> (AnyRepo, FaultProxy, FaultId) {
        let access = self.server.access();
        let proxy = FaultProxy::start(&access.endpoint);
        let denied = proxy.inject(denied);
        let url = access.at(&proxy.endpoint()).url(PREFIX);
        (repo.at(&url, &variables(&access.key)), proxy, denied)
    }
}

/// A fault that refuses requests by this method for the slots whose names begin so.
fn denied(method: &str, slot: &str) -> Fault {
    let denied = Fault::new(Action::error(403, "AccessDenied"));
    denied.method(method).path(&format!("/keys/{slot}"))
}

fn key(repo: &AnyRepo, verb: &str, args: &[&str]) -> Outcome {
    let mut command = repo.command(&format!("key {verb}"));
    Outcome::of(command.arg("--json").args(args))
}

fn slots(repo: &AnyRepo) -> Vec<Value> {
    let listed = key(repo, "list", &[]).expect(exit::OK).document();
    listed["slots"].as_array().expect("slots").clone()
}

fn id(slot: &Value) -> String {
    slot["slot_id"].as_str().expect("an id").to_owned()
}

/// The item of a `check` that ended well which is about all slots.
fn checked(repo: &AnyRepo) -> Value {
    let check = Outcome::of(repo.command("check").arg("--json")).expect(exit::OK);
    let report = check.summary();
    let mut items = report["items"].as_array().expect("items").iter();
    let item = items.find(|item| item["name"] == "key slots");
    item.unwrap_or_else(|| panic!("nothing is said of the slots\n{check}"))
        .clone()
}

#[test]
fn a_host_that_may_not_read_the_slots_works_and_takes_none_for_damaged() {
    let place = Place::new("unread-slots");
    let source = place.scratch.dir("source");
    fs::write(source.join("file"), "content").expect("a file");
    let without_key = place.repo.opened_with(&[]);
    let (writer, proxy, hidden) = place.denying(&without_key, denied("GET", ""));

    let listed = key(&writer, "list", &[]).expect(exit::OK);
    assert!(!listed.stdout.contains("nobody can read"), "{listed}");
    for slot in slots(&writer) {
        assert_eq!(slot["damaged"], false, "{slot}");
        assert_eq!(slot["unreadable"], true, "{slot}");
        let problem = slot["problem"].as_str().expect("why");
        assert!(problem.starts_with("could not be read: "), "{slot}");
    }
    let shown = Outcome::of(&mut writer.command("key list")).expect(exit::OK);
    assert!(shown.stdout.contains("could not be read"), "{shown}");
    assert!(!format!("{shown}").contains("damaged"), "{shown}");
    let item = checked(&writer);
    assert_eq!(item["status"], "warn", "{item}");
    let detail = item["detail"].as_str().expect("what was found");
    assert!(detail.contains("could not be read"), "{item}");
    assert!(detail.ends_with("(2 of 2 key slots)"), "{item}");
    let made = writer.backup(&source).summary();
    let warnings = made["warnings"].to_string();
    assert!(!warnings.contains("no key slot"), "{made}");
    assert!(proxy.hits(hidden) > 0);

    // With a key that may be the right one.
    let (reader, _proxy, _) = place.denying(&place.repo, denied("GET", ""));
    let refused = reader.list();
    let object = refused.error()["object"].to_string();
    assert!(object.contains("keys/"), "{refused}");
    told(refused, exit::STORAGE, "could not be read", "s3:GetObject");

    // Who may not even list them writes all the same.
    let unlisted = Fault::new(Action::error(403, "AccessDenied")).query("keys%2F");
    let (writer, proxy, unlisted) = place.denying(&without_key, unlisted);
    let item = checked(&writer);
    assert_eq!(item["status"], "warn", "{item}");
    writer.backup(&source).summary();
    assert!(proxy.hits(unlisted) > 0);
}

#[test]
fn a_slot_that_cannot_be_read_is_not_removed() {
    let place = Place::new("unremoved-slot");
    let hidden = denied("GET", &place.second);
    let (repo, proxy, hidden) = place.denying(&place.repo, hidden);
    let remove = |id: &str| key(&repo, "remove", &[id, "--confirm"]);
    told(
        remove(&place.second),
        exit::STORAGE,
        "was not removed",
        "s3:GetObject",
    );
    // It may be the only other way in, which is no reason to say that there is none.
    told(
        remove(&place.first),
        exit::CONFLICT,
        "opens no other key slot",
        "a slot that stays",
    );
    assert!(proxy.hits(hidden) > 0);
    assert_eq!(slots(&place.repo).len(), 2);
    place.by_second.list().expect(exit::OK);
}

#[test]
fn a_removal_that_a_store_refuses_leaves_the_slot_and_one_more_and_can_be_done_later() {
    let place = Place::new("kept-slot");
    let kept = denied("DELETE", &place.second);
    let (repo, proxy, kept) = place.denying(&place.repo, kept);
    for tries in 1..3 {
        told(
            key(&repo, "remove", &[&place.second, "--confirm"]),
            exit::STORAGE,
            "delete",
            "s3:DeleteObject",
        );
        assert_eq!(proxy.hits(kept), tries);
        let left = slots(&place.repo);
        assert_eq!(left.len(), 3, "{left:?}");
        let label = "being removed: second";
        let stands_in = left.iter().filter(|slot| slot["label"] == label);
        assert_eq!(stands_in.count(), 1, "{left:?}");
    }
    place.by_second.list().expect(exit::OK);
    let removed = key(&place.repo, "remove", &[&place.second, "--confirm"]);
    removed.expect(exit::OK);
    let left = slots(&place.repo);
    assert_eq!(left.iter().map(id).collect::<Vec<_>>(), [place.first]);
    place.by_second.list().expect(exit::KEY);
}
