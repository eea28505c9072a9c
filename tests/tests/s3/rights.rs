//! What each verb needs to be allowed to do: where a server denies one kind of request, a verb works without it, or says which
//! permission it lacks, and nothing is lost.

use mover_test_servers::{Action, Fault, FaultProxy, FilesystemS3};
use mover_tests::bucket::{repo_in, variables};
use mover_tests::mover::{AnyRepo, Outcome, Protection, exit};
use mover_tests::plant;
use mover_tests::proof::restores_to;
use mover_tests::random::Random;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;

use super::{Reached, SEED};

/// Kinds of requests: their name, the permission that lets them pass, and what they are recognised by.
struct Right {
    permission: &'static str,
    /// Method, part of the path and part of the query.
    requests: &'static [(&'static str, &'static str, &'static str)],
    /// Verbs that do without.
    spares: &'static [&'static str],
}

/// The part of a path that only objects have.
const OBJECT: &str = "/reached/";

/// Verbs that only read.
const READERS: [&str; 6] = ["list", "show", "verify", "restore", "hold list", "expire"];

const RIGHTS: [Right; 4] = [
    Right {
        permission: "s3:ListBucket",
        requests: &[("GET", "", "list-type=2")],
        spares: &[],
    },
    Right {
        permission: "s3:GetObject",
        requests: &[("GET", OBJECT, ""), ("HEAD", OBJECT, "")],
        spares: &[],
    },
    Right {
        permission: "s3:PutObject",
        requests: &[("PUT", OBJECT, "")],
        spares: &READERS,
    },
    Right {
        permission: "s3:DeleteObject",
        requests: &[("DELETE", OBJECT, ""), ("POST", "", "delete")],
        spares: &[
            "list",
            "show",
            "check",
            "verify",
            "restore",
            "backup",
            "annotate",
            "hold add",
            "hold list",
            "expire",
        ],
    },
];

/// Every verb that asks a store.
fn verbs(reached: &Reached, repo: &AnyRepo) -> Vec<(&'static str, Outcome)> {
    let run = |verb: &str, arguments: &[&str]| {
        Outcome::of(repo.command(verb).args(arguments).arg("--json"))
    };
    let target = reached.scratch.join("target");
    let _ = std::fs::remove_dir_all(&target);
    vec![
        ("list", repo.list()),
        ("show", run("show", &["latest"])),
        ("check", run("check", &[])),
        ("verify", repo.verify()),
        ("restore", repo.restore("latest", &target)),
        ("backup", repo.backup(&reached.source)),
        ("annotate", run("annotate", &["latest", "ticket=1"])),
        (
            "hold add",
            run("hold add", &["latest", "--reason", "audit"]),
        ),
        ("hold list", run("hold list", &[])),
        ("expire", run("expire", &["--keep-last", "1"])),
        (
            "expire --confirm",
            run("expire", &["--keep-last", "1", "--confirm"]),
        ),
    ]
}

#[test]
fn a_verb_works_without_a_permission_or_names_it() {
    let reached = Reached::new("s3-rights");
    let access = reached.garage.access();
    let truth = Tree::read(&reached.source);
    for right in &RIGHTS {
        let proxy = FaultProxy::start(&access.endpoint);
        let repo = reached.by(&access.at(&proxy.endpoint()));
        for (method, path, query) in right.requests {
            let denied = Fault::new(Action::error(403, "AccessDenied")).method(method);
            proxy.inject(denied.path(path).query(query));
        }
        let mut spared = Vec::new();
        for (verb, outcome) in verbs(&reached, &repo) {
            match outcome.code {
                Some(exit::OK) => spared.push(verb),
                Some(exit::CHECK_FAILED) => assert_eq!(verb, "check", "{outcome}"),
                code => assert_eq!(code, Some(exit::STORAGE), "{verb}\n{outcome}"),
            }
            assert!(
                spared.contains(&verb) || outcome.stdout.contains(right.permission),
                "{verb} does not name {}\n{outcome}",
                right.permission
            );
        }
        spared.sort_unstable();
        let mut wanted = right.spares.to_vec();
        wanted.sort_unstable();
        assert_eq!(spared, wanted, "without {}", right.permission);
        restores_to(&reached.repo, "latest", &truth, &reached.scratch);
        reached.repo.verify().expect(exit::OK);
    }
}

/// Jobs write in parts only what is longer than 16 MiB, which few objects are: `check` tries it, and says what is denied.
#[test]
fn check_names_what_uploads_in_parts_lack() {
    let scratch = Scratch::new("s3-rights-of-parts");
    let server = FilesystemS3::start(scratch.path());
    let access = server.access();
    let direct = repo_in(access, &scratch, "parts", Protection::Identity);
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(SEED), 1 << 20);
    let truth = Tree::read(&source);
    for (permission, method, query) in [
        ("s3:PutObject", "POST", "uploads"),
        ("s3:PutObject", "PUT", "uploadId"),
        ("s3:AbortMultipartUpload", "DELETE", "uploadId"),
        ("s3:ListBucketMultipartUploads", "GET", "uploads"),
    ] {
        let proxy = FaultProxy::start(&access.endpoint);
        let denied = Fault::new(Action::error(403, "AccessDenied"));
        let denied = proxy.inject(denied.method(method).query(query));
        let url = access.at(&proxy.endpoint()).url("parts");
        let repo = direct.at(&url, &variables(&access.key));
        let check = Outcome::of(repo.command("check").arg("--json")).expect(exit::OK);
        assert!(proxy.hits(denied) > 0, "{method} {query} is not asked for");
        let report = check.summary();
        let items = report["items"].as_array().expect("items");
        let warned = items.iter().any(|item| {
            let hint = item["hint"].as_str().unwrap_or_default();
            item["status"] == "warn" && hint.contains(permission)
        });
        assert!(warned, "{permission} is not named\n{report}");
        // What fits into one request needs none of it.
        repo.backup(&source).summary();
        let mut expire = repo.command("expire");
        expire.args(["--keep-last", "1", "--confirm", "--json"]);
        Outcome::of(&mut expire).expect(exit::OK);
    }
    restores_to(&direct, "latest", &truth, &scratch);
    direct.verify().expect(exit::OK);
}
