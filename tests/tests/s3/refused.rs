//! What the tool says where a server refuses: with a web page, for the clock, for the region, and what it will not delete.

use mover_test_servers::{Action, Fault, FaultProxy, FilesystemS3, Reply, Scripted};
use mover_tests::bucket::{repo_in, told, variables};
use mover_tests::clock;
use mover_tests::mover::{AnyRepo, Outcome, Protection, exit};
use mover_tests::scratch::Scratch;
use serde_json::Value;

use super::Reached;
use super::endless::{field, page_without_end};

/// `init` of a repository without encryption at the place of `repo`.
fn init(repo: &AnyRepo) -> Outcome {
    Outcome::of(&mut repo.init_command(&["--no-encryption".into()]))
}

#[test]
fn a_web_page_with_an_error_is_told_by_every_verb() {
    let scratch = Scratch::new("s3-pages");
    let files = FilesystemS3::start(scratch.path());
    let repo = repo_in(files.access(), &scratch, "pages", Protection::None);
    for status in [403, 404] {
        let page = Scripted::start(move |_, _| {
            Reply::new(status, "<html><body>Not here</body></html>")
                .with("content-type", "text/html")
        });
        let access = files.access().at(&page.endpoint());
        let there = repo.at(&access.url("pages"), &variables(&access.key));
        for outcome in [there.list(), init(&there), there.backup(scratch.path())] {
            let parts = ("does not answer as an S3 server", "check the endpoint");
            told(outcome, exit::STORAGE, parts.0, parts.1);
        }
    }
}

/// `list` by a machine whose clock is wrong.
fn list_at(repo: &AnyRepo, offset: &str) -> Outcome {
    let mut command = repo.command("list");
    clock::off_by(command.arg("--json"), offset);
    Outcome::of(&mut command)
}

#[test]
fn a_clock_that_is_days_off_is_told_with_both_times() {
    let reached = Reached::new("s3-clocks");
    let files = FilesystemS3::start(reached.scratch.path());
    let other = repo_in(files.access(), &reached.scratch, "clocks", Protection::None);
    // Garage minds a clock that is behind, and none that is ahead.
    for (repo, offset) in [(&reached.repo, "-3d"), (&other, "-3d"), (&other, "+3d")] {
        let outcome = list_at(repo, offset);
        let cause = outcome.error()["cause"].to_string();
        for part in ["this machine's clock says 20", "the server's 20"] {
            assert!(cause.contains(part), "{offset}\n{outcome}");
        }
        told(outcome, exit::STORAGE, "the clocks differ", "set the clock");
    }
    for repo in [&reached.repo, &other] {
        list_at(repo, "+0").expect(exit::OK);
    }
}

#[test]
fn another_region_is_told_with_its_name() {
    let reached = Reached::new("s3-regions");
    let access = reached.garage.access();
    let url = reached.repo.url();
    let wrong = format!("region={}", access.region);
    let wrong = reached.with_url(&url.replace(&wrong, "region=eu-wrong-1"));
    let moved = Scripted::other_region("eu-north-7");
    let moved = reached.by(&access.at(&moved.endpoint()));
    for (repo, region) in [(&wrong, access.region.as_str()), (&moved, "eu-north-7")] {
        for outcome in [repo.list(), init(repo), repo.backup(&reached.source)] {
            assert!(!outcome.stdout.contains("credentials"), "{outcome}");
            let hint = format!("use region={region} ");
            told(outcome, exit::USAGE, "another region", &hint);
        }
    }
}

/// The item of a check under this name.
fn item<'a>(report: &'a Value, name: &str) -> &'a Value {
    let items = report["items"].as_array().expect("items");
    let item = items.iter().find(|item| item["name"] == name);
    item.unwrap_or_else(|| panic!("no item {name} in {report}"))
}

#[test]
fn a_check_tells_what_a_store_will_not_delete_and_not_list() {
    let reached = Reached::new("s3-undeleted");
    let access = reached.garage.access();
    let proxy = FaultProxy::start(&access.endpoint);
    let through = reached.by(&access.at(&proxy.endpoint()));
    let check = || {
        let mut check = through.command("check");
        Outcome::of(check.arg("--json")).expect(exit::OK).document()
    };
    let before = check();
    let writable = "an object can be written and thrown away";
    assert_eq!(item(&before, "writable")["detail"], writable);

    proxy.inject(Fault::new(Action::error(403, "AccessDenied")).method("DELETE"));
    let endless = "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker>\
        <NextUploadIdMarker>u</NextUploadIdMarker></ListMultipartUploadsResult>";
    let endless = Action::Answer(Reply::new(200, endless));
    proxy.inject(Fault::new(endless).method("GET").query("uploads="));
    let report = check();
    assert_eq!(
        item(&report, "writable")["detail"],
        "an object can be written"
    );
    for (name, detail, hint) in [
        ("deletes", "does not allow to delete", "s3:DeleteObject"),
        ("leftovers", "does not go forward", "ListMultipartUploads"),
    ] {
        let item = item(&report, name);
        assert_eq!(item["status"], "warn", "{report}");
        for (field, part) in [("detail", detail), ("hint", hint)] {
            let text = item[field].as_str().unwrap_or_default();
            assert!(text.contains(part), "{field} of {name}: {report}");
        }
    }
    // What cannot be deleted is no hindrance.
    through.backup(&reached.source).summary();
    let denied = through
        .command("expire")
        .args(["--keep-last", "1", "--confirm", "--json"])
        .output();
    let denied = denied.expect("the tool runs");
    assert_eq!(denied.status.code(), Some(exit::STORAGE), "{denied:?}");
}

#[test]
fn a_listing_without_end_comes_to_an_end_with_a_remedy() {
    const LIMIT: i32 = 60;
    let scratch = Scratch::new("s3-endless");
    let files = FilesystemS3::start(scratch.path());
    let repo = repo_in(files.access(), &scratch, "endless", Protection::None);
    let config = files.access().client().get("endless/config");
    let config = config.expect("the header").body;
    let list: fn(&AnyRepo) -> Outcome = AnyRepo::list;
    for (directory, stem, verb, objects_max, message, hint) in [
        (
            "backups%2F",
            "backups/20260101-000000-",
            list,
            4_000_000,
            "over 4000000 backups",
            "begin another repository",
        ),
        (
            "backups%2F",
            "backups/copy-",
            list,
            100_000,
            "over 100000 objects stand there that are none",
            "move them elsewhere",
        ),
        (
            "packs%2F",
            "packs/copy-",
            AnyRepo::verify,
            100_000,
            "over 100000 objects stand there that are none",
            "move them elsewhere",
        ),
    ] {
        let config = config.clone();
        let endless = Scripted::start(move |head, _| match field(head, "prefix") {
            None => Reply::new(200, config.clone()).with("etag", "\"x\""),
            Some(prefix) if prefix.ends_with(directory) => page_without_end(head, stem),
            Some(_) => Reply::new(
                200,
                "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>",
            ),
        });
        let access = files.access().at(&endless.endpoint());
        let there = repo.at(&access.url("endless"), &variables(&access.key));
        told(verb(&there), LIMIT, message, hint);
        // Pages of a thousand, and one more after each to see whether there are more.
        let requests = endless.requests().len();
        assert!(
            requests < objects_max / 1000 * 2 + 100,
            "{stem}: {requests}"
        );
    }
}
