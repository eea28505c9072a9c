//! No damage to a repository goes unnoticed, and none ever turns into wrong bytes: every byte flipped, every
//! length cut, every object swapped with another or taken away.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use mover_tests::mover::{Outcome, Protection, Repo, exit, identity, secret_file};
use mover_tests::random::Random;
use mover_tests::run;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;

/// Seed of the data and of the bits that are flipped.
const SEED: u64 = 0x6461_6d61;
/// Workers, each with a repository of its own.
const WORKERS: usize = 4;
/// Every so many damages are also restored from.
const RESTORE_EVERY: usize = 8;
/// One shard, small buffers and no ring to set up: thousands of processes are started.
const SMALL: [&str; 6] = ["--shards", "1", "--arena", "12MiB", "--rung", "threads"];
/// The ways in which damage may end a verification, and one more where the object damaged is what the key is read from.
const NOTICED: [i32; 2] = [exit::VERIFY_FAILED, exit::CORRUPT];
/// Kinds of objects without which there is no restore; of the others it knows nothing.
const NEEDED: [&str; 4] = ["config", "keys", "packs", "backups"];

/// One change to one object.
#[derive(Debug, Clone)]
enum Damage {
    Flip { object: usize, at: usize, bit: u8 },
    Cut { object: usize, to: usize },
    Swap { one: usize, other: usize },
    Delete { object: usize },
}

impl Damage {
    /// The objects that it touches.
    fn objects(&self) -> Vec<usize> {
        match *self {
            Damage::Flip { object, .. }
            | Damage::Cut { object, .. }
            | Damage::Delete { object } => vec![object],
            Damage::Swap { one, other } => vec![one, other],
        }
    }
}

/// A repository with a few backups, and what they must restore to.
struct Sample {
    scratch: Scratch,
    repo: Repo,
    objects: Vec<(PathBuf, Vec<u8>)>,
    truth: Vec<(String, Tree)>,
    /// How many restores failed because of each object, where it alone was damaged.
    refused: Mutex<BTreeMap<usize, usize>>,
}

impl Sample {
    fn new(name: &str, protection: Protection, backups: usize) -> Self {
        let scratch = Scratch::new(name);
        let repo = Repo::create(&scratch, "repo", protection);
        let mut random = Random::new(SEED);
        let mut truth = Vec::new();
        for round in 0..backups {
            let source = scratch.dir(format!("source-{round}"));
            fs::write(source.join("rows"), random.rows(5000)).expect("file");
            fs::write(source.join("byte"), random.bytes(1)).expect("file");
            std::os::unix::fs::symlink("rows", source.join("link")).expect("symbolic link");
            let made = repo.backup(&source).summary();
            let id = made["backup_id"].as_str().expect("id").to_string();
            for line in [
                &["hold", "add", &id, "--reason", "x"][..],
                &["annotate", &id, "a=b"],
            ] {
                Outcome::of(repo.command(line[0]).args(&line[1..])).expect(exit::OK);
            }
            truth.push((id, Tree::read(&source)));
        }
        repo.verify().expect(exit::OK);
        let objects = repo.objects();
        Sample {
            scratch,
            repo,
            objects,
            truth,
            refused: Mutex::default(),
        }
    }

    /// A copy for one worker.
    fn copy(&self, worker: usize) -> Repo {
        let dir = self.scratch.join(format!("copy-{worker}"));
        run::run(
            "cp",
            ["-a".as_ref(), self.repo.dir.as_os_str(), dir.as_os_str()],
        );
        self.repo.moved_to(&dir)
    }

    fn apply(&self, repo: &Repo, damage: &Damage) {
        let put = |object: usize, bytes: &[u8]| {
            fs::write(repo.dir.join(&self.objects[object].0), bytes).expect("object")
        };
        match *damage {
            Damage::Flip { object, at, bit } => {
                let mut bytes = self.objects[object].1.clone();
                bytes[at] ^= 1 << bit;
                put(object, &bytes);
            }
            Damage::Cut { object, to } => put(object, &self.objects[object].1[..to]),
            Damage::Swap { one, other } => {
                put(one, &self.objects[other].1);
                put(other, &self.objects[one].1);
            }
            Damage::Delete { object } => {
                fs::remove_file(repo.dir.join(&self.objects[object].0)).expect("object")
            }
        }
    }

    fn heal(&self, repo: &Repo, damage: &Damage) {
        for object in damage.objects() {
            let (name, bytes) = &self.objects[object];
            fs::write(repo.dir.join(name), bytes).expect("object");
        }
    }

    /// Whether any of the objects that `damage` touched is named in what was printed.
    fn named(&self, outcome: &Outcome, damage: &Damage) -> bool {
        self.is_named_in(&outcome.stdout, damage) || self.is_named_in(&outcome.stderr, damage)
    }

    /// Whether any of the objects that `damage` touched is named in `text`.
    fn is_named_in(&self, text: &str, damage: &Damage) -> bool {
        let name = |object: usize| self.objects[object].0.display().to_string();
        let mut names = damage.objects().into_iter().map(name);
        names.any(|name| text.contains(&name))
    }

    /// Whether the header or a key slot was taken away, without which nothing can be opened.
    fn lost_entrance(&self, damage: &Damage) -> bool {
        match damage {
            Damage::Delete { object } => ["config", "keys"]
                .iter()
                .any(|kind| self.kind(*object) == Path::new(kind)),
            _ => false,
        }
    }

    /// Whether a verification that ends with `code` has noticed `damage`.
    fn is_noticed(&self, code: i32, damage: &Damage) -> bool {
        let opens = |object: usize| {
            ["config", "keys"]
                .iter()
                .any(|kind| self.kind(object) == Path::new(kind))
        };
        let may_be_key = match *damage {
            Damage::Flip { object, .. }
            | Damage::Cut { object, .. }
            | Damage::Delete { object } => opens(object),
            Damage::Swap { one, other } => opens(one) || opens(other),
        };
        NOTICED.contains(&code) || may_be_key && code == exit::KEY
    }

    /// What is wrong with how the tool took `damage`, if anything.
    fn judge(&self, repo: &Repo, damage: &Damage, restore: bool) -> Option<String> {
        let outcome = Outcome::of(
            repo.command("verify")
                .args(["--level", "checksum", "--json"])
                .args(SMALL),
        );
        let shown = |what: &str| {
            Some(format!(
                "{damage:?} of {}: {what}\n{outcome}",
                self.shown(damage)
            ))
        };
        let code = outcome.code.unwrap_or_default();
        match self.lost_entrance(damage) {
            // What is gone cannot be named: the repository, or the key to it, is not found.
            true if [exit::NOT_FOUND, exit::KEY].contains(&code) => {}
            false if !self.is_noticed(code, damage) => return shown("not noticed"),
            false if self.named(&outcome, damage) => {}
            _ => return shown("the object is not named"),
        }
        if !outcome.error()["hint"].is_string() {
            return shown("nothing is said of what to do next");
        }
        if restore {
            self.judge_restore(repo, damage)
        } else {
            None
        }
    }

    /// A restore from a damaged repository fails, or gives exactly what was backed up.
    fn judge_restore(&self, repo: &Repo, damage: &Damage) -> Option<String> {
        let target = repo.dir.with_extension("target");
        for (id, truth) in &self.truth {
            let outcome = Outcome::of(repo.restore_command(id, &target).args(SMALL));
            let wrong = match outcome.code {
                Some(exit::OK) => truth.differences(&Tree::read(&target)),
                Some(exit::CORRUPT | exit::KEY | exit::NOT_FOUND) => {
                    self.judge_refusal(repo, damage, &outcome, &target)
                }
                _ => vec!["ended with a code that does not say what is wrong".to_string()],
            };
            let _ = fs::remove_dir_all(&target);
            if !wrong.is_empty() {
                return Some(format!(
                    "{damage:?} of {}: {wrong:?}\n{outcome}",
                    self.shown(damage)
                ));
            }
        }
        None
    }

    /// A restore that fails leaves nothing, neither at the target nor beside it, and says what is damaged and what to do.
    fn judge_refusal(
        &self,
        repo: &Repo,
        damage: &Damage,
        outcome: &Outcome,
        target: &Path,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        if target.exists() {
            wrong.push("it left its target".to_string());
        }
        let name = target.file_name().expect("a target has a name");
        let staging = format!(".{}.helios-mover-partial-", name.to_string_lossy());
        let beside = target.parent().expect("a target has a parent");
        for entry in fs::read_dir(beside).expect("directory").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&staging) {
                wrong.push(format!("it left {name}"));
            }
        }
        let error = outcome.error();
        let text = |field: &str| error[field].as_str().unwrap_or_default();
        // What is gone cannot be named: the repository, or the key to it, is not found.
        let is_named = match self.lost_entrance(damage) {
            true => text("object").contains(repo.url()),
            false => self.is_named_in(text("object"), damage),
        };
        if !is_named {
            wrong.push("the error is about another object".to_string());
        }
        if text("hint").is_empty() {
            wrong.push("nothing is said of what to do next".to_string());
        }
        if let [object] = damage.objects()[..] {
            let mut refused = self.refused.lock().expect("no worker panics");
            *refused.entry(object).or_default() += 1;
        }
        wrong
    }

    fn shown(&self, damage: &Damage) -> String {
        let name = |object: usize| {
            format!(
                "{} ({} bytes)",
                self.objects[object].0.display(),
                self.objects[object].1.len()
            )
        };
        match *damage {
            Damage::Flip { object, .. }
            | Damage::Cut { object, .. }
            | Damage::Delete { object } => name(object),
            Damage::Swap { one, other } => format!("{} with {}", name(one), name(other)),
        }
    }

    /// Does every damage to a copy, one after the other, and fails the test with the first few that pass
    /// unnoticed.
    fn try_all(&self, damages: &[Damage], restore_every: usize) {
        assert!(!damages.is_empty());
        let next = AtomicUsize::new(0);
        let wrong: Mutex<Vec<String>> = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for worker in 0..WORKERS {
                let (next, wrong) = (&next, &wrong);
                scope.spawn(move || {
                    let repo = self.copy(worker);
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(damage) = damages.get(i) else { break };
                        self.apply(&repo, damage);
                        let found = self.judge(&repo, damage, i.is_multiple_of(restore_every));
                        self.heal(&repo, damage);
                        wrong.lock().expect("no worker panics").extend(found);
                    }
                    repo.verify().expect(exit::OK);
                    fs::remove_dir_all(&repo.dir).expect("copy can be removed");
                });
            }
        });
        let wrong = wrong.into_inner().expect("no worker panics");
        let shown = wrong
            .iter()
            .take(4)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n\n");
        assert!(
            wrong.is_empty(),
            "{} of {} damages:\n{shown}",
            wrong.len(),
            damages.len()
        );
        self.assert_refused();
    }

    /// Fails the test unless each object that a restore needs was damaged alone and a restore failed for it.
    fn assert_refused(&self) {
        let refused = self.refused.lock().expect("no worker panics");
        eprintln!("{} restores failed", refused.values().sum::<usize>());
        let is_needed = |object: &usize| NEEDED.map(Path::new).contains(&self.kind(*object));
        let needed = (0..self.objects.len()).filter(is_needed);
        let never: Vec<&PathBuf> = needed
            .filter(|object| !refused.contains_key(object))
            .map(|object| &self.objects[object].0)
            .collect();
        assert!(never.is_empty(), "no restore failed for {never:?}");
    }

    /// The kind of an object: the first part of its name.
    fn kind(&self, object: usize) -> &Path {
        let mut parts = self.objects[object].0.iter();
        Path::new(parts.next().expect("a name has a part"))
    }
}

fn every_flipped_byte_is_noticed(name: &str, protection: Protection) {
    let sample = Sample::new(name, protection, 1);
    let mut random = Random::new(SEED);
    let mut damages = Vec::new();
    for (object, (_, bytes)) in sample.objects.iter().enumerate() {
        for at in 0..bytes.len() {
            damages.push(Damage::Flip {
                object,
                at,
                bit: random.below(8) as u8,
            });
        }
    }
    eprintln!("{} flips", damages.len());
    sample.try_all(&damages, RESTORE_EVERY);
}

#[test]
fn every_flipped_byte_is_noticed_without_encryption() {
    every_flipped_byte_is_noticed("flips-plain", Protection::None);
}

#[test]
fn every_flipped_byte_is_noticed_with_encryption() {
    every_flipped_byte_is_noticed("flips-sealed", Protection::Identity);
}

fn every_cut_swap_and_loss_is_noticed(name: &str, protection: Protection) {
    let sample = Sample::new(name, protection, 2);
    let mut damages = Vec::new();
    for (object, (_, bytes)) in sample.objects.iter().enumerate() {
        for to in (0..bytes.len()).step_by(64).chain([bytes.len() - 1]) {
            damages.push(Damage::Cut { object, to });
        }
        // A backup without its manifest does not exist, which is what `deleted_manifest` is about; nothing else tells of a record.
        let known_by_itself = ["backups", "holds", "annotations"].map(Path::new);
        if !known_by_itself.contains(&sample.kind(object)) {
            damages.push(Damage::Delete { object });
        }
        for other in object + 1..sample.objects.len() {
            damages.push(Damage::Swap { one: object, other });
        }
    }
    eprintln!("{} cuts, swaps and losses", damages.len());
    sample.try_all(&damages, 1);
}

#[test]
fn every_cut_swap_and_loss_is_noticed_without_encryption() {
    every_cut_swap_and_loss_is_noticed("cuts-plain", Protection::None);
}

#[test]
fn every_cut_swap_and_loss_is_noticed_with_encryption() {
    every_cut_swap_and_loss_is_noticed("cuts-sealed", Protection::Identity);
}

#[test]
fn a_damaged_hold_is_found_and_hits_no_backup() {
    let sample = Sample::new("hold", Protection::Identity, 1);
    let at = |(name, _): &&(PathBuf, Vec<u8>)| name.starts_with("holds");
    let (name, bytes) = sample.objects.iter().find(at).expect("a hold");
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 1;
    fs::write(sample.repo.dir.join(name), damaged).expect("object");
    let outcome = sample.repo.verify().expect(exit::VERIFY_FAILED);
    let summary = outcome.bad_summary();
    assert_eq!(summary["backups"][0]["ok"], true, "{summary}");
    let found = &summary["findings"][0];
    assert_eq!(found["object"], name.to_str().expect("a name"), "{summary}");
    assert_eq!(found["backups"], serde_json::json!([]), "{summary}");
    let hint = outcome.error()["hint"].clone();
    assert!(
        hint.as_str()
            .expect("a hint")
            .contains("every backup can be restored"),
        "{outcome}"
    );
}

#[test]
fn a_verification_of_one_backup_says_nothing_of_the_others() {
    let scratch = Scratch::new("one-of-two");
    let repo = Repo::create(&scratch, "repo", Protection::Identity);
    let mut random = Random::new(SEED);
    let mut back_up = |name: &str| {
        let source = scratch.dir(name);
        fs::write(source.join("rows"), random.rows(5000)).expect("file");
        let made = repo.backup(&source).summary();
        made["backup_id"].as_str().expect("id").to_string()
    };
    let first = |kind: &str| {
        let mut objects = repo.objects().into_iter();
        let first = objects.find(|(name, _)| name.starts_with(kind));
        first.expect("an object")
    };
    back_up("other");
    let (pack, _) = first("packs");
    let one = back_up("one");
    let mut hold = repo.command("hold add");
    Outcome::of(hold.args([one.as_str(), "--reason", "x"])).expect(exit::OK);
    let (hold, bytes) = first("holds");
    fs::remove_file(repo.dir.join(pack)).expect("a pack of the other one");
    fs::write(repo.dir.join(&hold), &bytes[..bytes.len() - 1]).expect("a hold");

    let mut verify = repo.command("verify");
    let outcome = Outcome::of(verify.args(["--json", "--set", &one])).expect(exit::VERIFY_FAILED);
    let summary = outcome.bad_summary();
    assert_eq!(summary["backups"][0]["ok"], true, "{summary}");
    let found = summary["findings"].as_array().expect("findings");
    assert_eq!(found.len(), 1, "{summary}");
    assert_eq!(found[0]["object"], hold.to_str().expect("a name"));
    let hint = "this backup can be restored; put the objects named back from a copy; holds, notes and key slots can be made anew (`helios-mover hold`, `annotate`, `key`). Nothing is known of the others: `helios-mover verify` without --set looks at all";
    assert_eq!(outcome.error()["hint"], hint, "{outcome}");
    let all = repo.verify().expect(exit::VERIFY_FAILED);
    let hint = all.error()["hint"].to_string();
    assert!(hint.contains("--no-parent"), "{all}");
}

#[test]
fn deleted_manifest_takes_its_backup_and_no_other() {
    let sample = Sample::new("manifest", Protection::Identity, 2);
    let (gone, kept) = (&sample.truth[1].0, &sample.truth[0]);
    fs::remove_file(sample.repo.dir.join("backups").join(gone)).expect("manifest");
    assert_eq!(sample.repo.ids(), [kept.0.as_str()]);
    sample
        .repo
        .restore(gone, &sample.scratch.join("gone"))
        .expect(exit::NOT_FOUND)
        .error();
    sample
        .repo
        .restore("latest", &sample.scratch.join("kept"))
        .summary();
    kept.1.assert_same(
        &Tree::read(&sample.scratch.join("kept")),
        "the other backup",
    );
    sample.repo.verify().expect(exit::OK);
}

#[test]
fn objects_of_another_repository_are_refused() {
    for protection in [Protection::None, Protection::Identity] {
        let sample = Sample::new("own", protection, 1);
        let foreign = Sample::new("foreign", protection, 1);
        // Its packs come along, so that nothing is missing: only the repository differs.
        for (name, bytes) in foreign
            .objects
            .iter()
            .filter(|(name, _)| !name.starts_with("keys") && name != Path::new("config"))
        {
            let path = sample.repo.dir.join(name);
            fs::create_dir_all(path.parent().expect("objects lie in directories"))
                .expect("directory");
            fs::write(path, bytes).expect("object");
        }
        let outcome = sample.repo.verify().expect(exit::VERIFY_FAILED);
        for (id, _) in &foreign.truth {
            assert!(outcome.stdout.contains(id), "{id} is not named\n{outcome}");
            let restored = sample.repo.restore(id, &sample.scratch.join("wrong"));
            assert!(
                matches!(restored.code, Some(exit::CORRUPT | exit::KEY)),
                "{restored}"
            );
        }
        for (id, truth) in &sample.truth {
            let target = sample.scratch.join(id);
            sample.repo.restore(id, &target).summary();
            truth.assert_same(&Tree::read(&target), "own backup beside a foreign one");
        }
    }
}

/// What a target has is lost with the first change, so it is found out before that whether every pack is there.
#[test]
fn a_restore_in_place_does_not_begin_where_a_pack_is_missing_or_cut() {
    let sample = Sample::new("delta-damage", Protection::Passphrase, 1);
    let target = sample.scratch.join("source-0");
    fs::write(target.join("rows"), "changed").expect("file");
    fs::write(target.join("extra"), "not in the backup").expect("file");
    let before = Tree::read(&target);
    let pack = sample
        .objects
        .iter()
        .find(|(path, _)| path.starts_with("packs"));
    let (pack, bytes) = pack.expect("a pack");
    let path = sample.repo.dir.join(pack);
    let restore = || {
        let mut command = sample.repo.restore_command("latest", &target);
        Outcome::of(command.arg("--delta"))
    };
    for damage in [None, Some(&bytes[..bytes.len() - 1])] {
        match damage {
            None => fs::remove_file(&path).expect("a pack"),
            Some(cut) => fs::write(&path, cut).expect("a pack"),
        }
        let error = restore().expect(exit::CORRUPT).error();
        before.assert_same(&Tree::read(&target), &error.to_string());
    }
    fs::write(&path, bytes).expect("a pack");
    restore().summary();
    sample.truth[0]
        .1
        .assert_same(&Tree::read(&target), "restored");
}

#[test]
fn wrong_or_missing_keys_and_repositories_are_told_apart() {
    let scratch = Scratch::new("keys");
    let source = scratch.dir("source");
    fs::write(source.join("file"), "content").expect("file");
    let target = scratch.join("target");
    let wrong_passphrase = scratch.join("wrong.passphrase");
    secret_file(&wrong_passphrase, "incorrect horse\n");
    let (wrong_identity, _) = identity(&scratch, "wrong");

    for protection in [Protection::Passphrase, Protection::Identity] {
        let repo = Repo::create(&scratch, &format!("{protection:?}"), protection);
        repo.backup(&source).summary();
        for key in [
            &["--passphrase-file".as_ref(), wrong_passphrase.as_os_str()][..],
            &["--identity-file".as_ref(), wrong_identity.as_os_str()],
            &[],
        ] {
            let repo = repo.opened_with(key);
            for outcome in [repo.verify(), repo.restore("latest", &target)] {
                let error = outcome.expect(exit::KEY).error();
                assert_eq!(error["kind"], "key", "{error}");
                assert!(error["hint"].is_string(), "what to do next: {error}");
            }
        }
        let absent = repo.moved_to(&scratch.join("absent"));
        absent.verify().expect(exit::NOT_FOUND).error();
        absent.backup(&source).expect(exit::NOT_FOUND).error();
        let empty = repo.moved_to(&scratch.dir("empty"));
        empty.list().expect(exit::NOT_FOUND);
        repo.restore("20261122-181409-7f3a9c2e", &target)
            .expect(exit::NOT_FOUND)
            .error();
        repo.restore("no such id", &target)
            .expect(exit::NOT_FOUND)
            .error();
        assert!(!target.exists());
    }
}
