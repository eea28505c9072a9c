//! Every verb on repositories in S3: in a real server, below a prefix of every character that may stand in one, and over
//! TLS.

use std::fs;
use std::path::Path;

use mover_test_servers::{Access, Conditions, FilesystemOptions, FilesystemS3, Garage, Tls};
use mover_tests::bucket::variables;
use mover_tests::mover::{AnyRepo, Outcome, Protection, dir_url, exit, identity};
use mover_tests::proof::restores_to;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;
use serde_json::Value;

use super::{every_shape, objects, stored_bytes};

/// What ends a part of a URL, a query or a file's name, what is written in another way there, what looks as if it were
/// so written already, and what stands for itself.
const ODD: &str = "a b+c&d=e;f%41/\"quoted\" <x>'y'/ü日本~*!(),:@$#[]{}^|`\\/-._";

/// A repository below `prefix`, with what of the tests' own sees its objects.
struct Place<'a> {
    access: &'a Access,
    prefix: &'a str,
    repo: AnyRepo,
}

impl Place<'_> {
    fn run(&self, verb: &str, arguments: &[&str]) -> Outcome {
        let mut command = self.repo.command(verb);
        Outcome::of(command.args(arguments).arg("--json"))
    }

    fn document(&self, verb: &str, arguments: &[&str]) -> Value {
        self.run(verb, arguments).expect(exit::OK).document()
    }

    /// Two backups of one tree, the second of which takes next to nothing; their ids.
    fn backups(&self, source: &Path) -> [String; 2] {
        let first = self.repo.backup(source).summary();
        let before = stored_bytes(self.access, self.prefix);
        let second = self.repo.backup(source).summary();
        let grown = stored_bytes(self.access, self.prefix) - before;
        assert_eq!(second["bytes_new"], 0, "{second}");
        assert!(
            grown * 20 < before,
            "the second backup took {grown} bytes beside {before} of the first"
        );
        [&first, &second].map(|made| made["backup_id"].as_str().expect("id").to_owned())
    }

    /// Holds, notes, keys and retention; what is left is the second backup.
    fn is_looked_after(&self, ids: &[String; 2], scratch: &Scratch, name: &str) {
        let held = self.document("hold add", &[&ids[0], "--reason", "audit"]);
        assert_eq!(
            self.document("hold list", &[])["holds"][0]["reason"],
            "audit"
        );
        self.run("annotate", &["latest", "ticket=1"])
            .expect(exit::OK);
        let shown = self.document("show", &["latest"]);
        assert_eq!(shown["metadata"]["annotations"]["ticket"], "1", "{shown}");

        let (_, recipient) = identity(scratch, &format!("{name}-second"));
        self.run("key add", &["--recipient", &recipient, "--label", "second"])
            .expect(exit::OK);
        let listed = self.document("key list", &[]);
        let slots = listed["slots"].as_array().expect("slots");
        assert_eq!(slots.len(), 2, "{listed}");
        let added = slots.iter().find(|slot| slot["label"] == "second");
        let added = added.expect("the slot that was added")["slot_id"].as_str();
        self.run("key remove", &[added.expect("its id"), "--confirm"])
            .expect(exit::OK);

        let expire = |expected: usize| {
            let done = self
                .run("expire", &["--keep-last", "1", "--confirm"])
                .summary();
            let deleted = done["deleted"].as_array().map(Vec::len);
            assert_eq!(deleted, Some(expected), "{done}");
        };
        expire(0);
        let hold = held["hold"]["hold_id"].as_str().expect("id");
        self.run("hold remove", &[hold]).expect(exit::OK);
        expire(1);
        assert_eq!(self.repo.ids(), ids[1..]);
        let verified = self.repo.verify().summary();
        assert_eq!(verified["unreferenced_packs"], 0, "{verified}");
    }
}

/// Every verb, once, below `prefix` in a server. Of what the store is weak in, `check` says `weakness`.
fn every_verb_works(access: &Access, prefix: &str, weakness: Option<&str>, scratch: &Scratch) {
    let name = format!("place-{}", prefix.len());
    let source = scratch.dir(format!("{name}-source"));
    every_shape(&source);
    let truth = Tree::read(&source);
    let ca = access.ca_file.as_ref();
    let ca = ca.map_or_else(String::new, |file| format!("&ca={}", file.display()));
    let repo = AnyRepo::create(
        scratch,
        &name,
        &(access.url(prefix) + &ca),
        &variables(&access.key),
        Protection::Identity,
    );
    let place = Place {
        access,
        prefix,
        repo,
    };
    let repo = &place.repo;
    assert!(repo.ids().is_empty());
    let check = place.run("check", &["--source", &dir_url(&source)]);
    let check = check.expect(exit::OK);
    assert_eq!(check.document()["ok"], true, "{check}");
    let ignores = "ignores conditional writes";
    assert_eq!(
        check.stdout.contains(ignores),
        weakness == Some(ignores),
        "{check}"
    );

    let ids = place.backups(&source);
    assert_eq!(repo.ids(), ids);
    for (set, id) in [("latest", &ids[1]), (&ids[0], &ids[0])] {
        let shown = place.run("show", &["--set", set]).expect(exit::OK);
        assert!(shown.stdout.contains(id.as_str()), "{shown}");
    }
    repo.verify().expect(exit::OK);
    for id in &ids {
        restores_to(repo, id, &truth, scratch);
    }
    let before = objects(access, prefix);
    assert!(!before.is_empty());
    Outcome::of(repo.backup_command(&source).arg("--dry-run")).summary();
    assert_eq!(
        before,
        objects(access, prefix),
        "a dry run stored something"
    );

    place.is_looked_after(&ids, scratch, &name);
    let target = scratch.join(format!("{name}-target"));
    repo.restore("latest", &target).summary();
    fs::write(target.join("extra"), "should go").expect("extra");
    Outcome::of(repo.restore_command("latest", &target).arg("--delta")).summary();
    truth.assert_same(&Tree::read(&target), "delta");
}

#[test]
fn every_verb_works_on_a_repository_in_s3() {
    let scratch = Scratch::new("s3-verbs");
    let garage = Garage::start(scratch.path());
    let weakness = Some("ignores conditional writes");
    for prefix in ["verbs", ODD] {
        every_verb_works(garage.access(), prefix, weakness, &scratch);
    }
}

#[test]
fn every_verb_works_over_tls() {
    let scratch = Scratch::new("s3-verbs-tls");
    let options = FilesystemOptions {
        tls: Tls::Signed,
        conditions: Conditions::Atomic,
    };
    let server = FilesystemS3::start_with(scratch.path(), options);
    every_verb_works(server.access(), "verbs", None, &scratch);
}
