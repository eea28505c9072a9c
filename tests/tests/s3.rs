//! The tool with repositories in S3: every promise of the other suites again, on a real server (Garage, which ignores
//! conditional writes) and on one in this process (s3s-fs, whose objects are files that can be damaged), with
//! servers that are killed in the middle of a job, and with everything that can be wrong between the two.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mover_test_servers::{AccessKey, FilesystemOptions, FilesystemS3, Garage, Listed, Scripted};
use mover_tests::accounts;
use mover_tests::job::{Job, time_of, wait_until};
use mover_tests::mover::{
    AnyRepo, Outcome, PASSPHRASE, Protection, dir_url, exit, identity, secret_file,
};
use mover_tests::nano::Nano;
use mover_tests::plant::{self, MIB, SHAPES};
use mover_tests::postgres::Postgres;
use mover_tests::proof::{
    backups_at_once, change, disk_bytes, killed_backups_harm_nothing, restores_to,
};
use mover_tests::random::Random;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;
use serde_json::Value;

/// Seed of everything that is planted here.
const SEED: u64 = 0x7333;
/// What the tool may use at its defaults.
const RSS_MAX: u64 = 256 * MIB;
/// Kills of backups into S3.
const KILLS: u64 = 20;
/// How long a killed server stays away.
const AWAY: Duration = Duration::from_millis(700);
/// Slow enough that a kill falls inside of a job.
const RATE: &str = "4MiB/s";
/// Bytes that have arrived when a job is well under way.
const UNDER_WAY_BYTES: u64 = MIB;
/// Within which a person is told that something is wrong; the time-outs below it are a few seconds.
const SOON: Duration = Duration::from_secs(15);
/// Two `init` at once, so many times.
const CONTESTS: u64 = 10;

/// The variables by which credentials are given.
fn variables<'a>(id: &'a str, secret: &'a str) -> [(&'static str, &'a str); 2] {
    [("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret)]
}

/// A repository below `prefix` in Garage.
fn in_garage(garage: &Garage, scratch: &Scratch, prefix: &str, protection: Protection) -> AnyRepo {
    let environment = variables(garage.access_key_id(), garage.secret_access_key());
    AnyRepo::create(
        scratch,
        prefix,
        &garage.url(prefix),
        &environment,
        protection,
    )
}

/// A repository below `prefix` in a server of this process.
fn in_files(
    server: &FilesystemS3,
    scratch: &Scratch,
    prefix: &str,
    protection: Protection,
) -> AnyRepo {
    let environment = variables(server.access_key_id(), server.secret_access_key());
    AnyRepo::create(
        scratch,
        prefix,
        &server.url(prefix),
        &environment,
        protection,
    )
}

/// Every object below `prefix`, seen without the code under test.
fn objects(garage: &Garage, prefix: &str) -> Vec<Listed> {
    let (objects, _) = garage
        .client()
        .list(&format!("{prefix}/"), 1000)
        .expect("the bucket can be listed");
    objects
}

fn stored_bytes(garage: &Garage, prefix: &str) -> u64 {
    objects(garage, prefix)
        .iter()
        .map(|object| object.bytes)
        .sum()
}

/// Every shape of file below one directory.
fn every_shape(source: &Path) {
    for (name, planter) in SHAPES {
        let dir = source.join(name);
        fs::create_dir(&dir).expect("directory");
        planter(&dir, &mut Random::new(SEED));
    }
}

#[test]
fn every_verb_works_on_a_repository_in_s3() {
    let scratch = Scratch::new("s3-verbs");
    let garage = Garage::start(scratch.path());
    let source = scratch.dir("source");
    every_shape(&source);
    let truth = Tree::read(&source);
    let repo = in_garage(&garage, &scratch, "verbs", Protection::Identity);
    assert!(repo.ids().is_empty());
    let check = Outcome::of(
        repo.command("check")
            .args(["--source", &dir_url(&source), "--json"]),
    )
    .expect(exit::OK);
    assert_eq!(check.document()["ok"], true, "{check}");
    assert!(
        check.stdout.contains("ignores conditional writes"),
        "what the store is weak in is told\n{check}"
    );

    let first = repo.backup(&source).summary();
    let before = stored_bytes(&garage, "verbs");
    let second = repo.backup(&source).summary();
    let grown = stored_bytes(&garage, "verbs") - before;
    assert_eq!(second["bytes_new"], 0, "{second}");
    assert!(
        grown * 20 < before,
        "the second backup took {grown} bytes beside {before} of the first"
    );
    let ids = [&first, &second].map(|made| made["backup_id"].as_str().expect("id").to_owned());
    assert_eq!(repo.ids(), ids);
    for (set, id) in [("latest", &ids[1]), (&ids[0], &ids[0])] {
        let shown = Outcome::of(repo.command("show").args(["--set", set, "--json"]));
        let shown = shown.expect(exit::OK);
        assert!(shown.stdout.contains(id.as_str()), "{shown}");
    }
    repo.verify().expect(exit::OK);
    for id in &ids {
        restores_to(&repo, id, &truth, &scratch);
    }

    let dry = objects(&garage, "verbs");
    Outcome::of(repo.backup_command(&source).arg("--dry-run")).summary();
    assert_eq!(dry, objects(&garage, "verbs"), "a dry run stored something");
}

#[test]
fn a_delta_restore_from_s3_repairs_what_differs() {
    let scratch = Scratch::new("s3-delta");
    let garage = Garage::start(scratch.path());
    let repo = in_garage(&garage, &scratch, "delta", Protection::None);
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(SEED), 8 << 20);
    fs::remove_file(source.join("again")).expect("second name");
    let truth = Tree::read(&source);
    repo.backup(&source).summary();
    let target = scratch.join("target");
    repo.restore("latest", &target).summary();

    let table = OpenOptions::new()
        .write(true)
        .open(target.join("base/1/table"))
        .expect("table");
    table
        .write_all_at(b"damage", 1 << 20)
        .expect("table is damaged");
    drop(table);
    fs::remove_file(target.join("base/1/index")).expect("index is lost");
    fs::write(target.join("extra"), "should go").expect("extra");
    let delta = || Outcome::of(repo.restore_command("latest", &target).arg("--delta")).summary();
    let written = delta()["bytes_written"].as_u64().expect("bytes_written");
    truth.assert_same(&Tree::read(&target), "delta over a damaged target");
    assert!(
        written > 0 && written * 2 < truth.bytes(),
        "a delta restore wrote {written} of {} bytes",
        truth.bytes()
    );
    assert_eq!(delta()["bytes_written"], 0, "repaired for good");
}

#[test]
fn keys_are_managed_in_s3_with_credentials_from_a_file() {
    let scratch = Scratch::new("s3-keys");
    let garage = Garage::start(scratch.path());
    let file = scratch.join("credentials");
    let text = |profile: &str, secret: &str| {
        let id = garage.access_key_id();
        format!("[{profile}]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n\n")
    };
    let good = text("default", garage.secret_access_key());
    secret_file(&file, &(text("other", "wrong") + &good));
    let url = format!(
        "s3://{}/deep/prefix?endpoint={}&region={}&credentials={}",
        garage.bucket(),
        garage.endpoint(),
        garage.region(),
        file.display()
    );
    // What stands in the environment does not count where a file is named.
    let environment = variables("GKelse", "where");
    let repo = AnyRepo::create(&scratch, "keys", &url, &environment, Protection::Passphrase);
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(SEED), 1 << 20);
    let truth = Tree::read(&source);
    repo.backup(&source).summary();
    let key = |verb: &str, args: &[&str]| Outcome::of(repo.command(verb).arg("--json").args(args));
    let (identity, recipient) = identity(&scratch, "second");
    key("key add", &["--recipient", &recipient, "--label", "second"]).expect(exit::OK);
    let listed = key("key list", &[]).expect(exit::OK).document();
    let slots = listed["slots"].as_array().expect("slots");
    assert_eq!(slots.len(), 2, "{listed}");
    let second = repo.opened_with(&["--identity-file".as_ref(), identity.as_os_str()]);
    restores_to(&second, "latest", &truth, &scratch);

    let slot = |kind: &str| {
        let found = slots.iter().find(|slot| slot["kind"] == kind);
        found.expect("a slot of this kind")["slot_id"]
            .as_str()
            .expect("slot id")
    };
    key("key remove", &[slot("x25519"), "--confirm"]).expect(exit::OK);
    second.list().expect(exit::KEY);
    // The last one stays.
    key("key remove", &[slot("passphrase"), "--confirm"]).expect(exit::CONFLICT);
    restores_to(&repo, "latest", &truth, &scratch);

    let other = repo.at(&format!("{url}&profile=other"), &[]);
    let error = other.verify().expect(exit::STORAGE).error();
    assert!(error["hint"].is_string(), "{error}");
}

#[test]
fn secrets_reach_no_output_and_no_command_line() {
    let scratch = Scratch::new("s3-secrets");
    let garage = Garage::start(scratch.path());
    let repo = in_garage(&garage, &scratch, "secrets", Protection::Passphrase);
    let secret = garage.secret_access_key();
    let source = scratch.dir("source");
    plant::file(&source.join("file"), &mut Random::new(SEED), 3 << 20);
    let loud = |repo: &AnyRepo, verb: &str, args: &[&str]| {
        let mut command = repo.command(verb);
        command
            .args(args)
            .arg("-vv")
            .env("HELIOS_MOVER_LOG", "trace");
        Outcome::of(&mut command)
    };
    let url = dir_url(&source);
    let target = scratch.join("target").display().to_string();
    // The right secret with another key: the server says what it thinks of it.
    let read_only = garage.read_only_key();
    let mixed = repo.at(repo.url(), &variables(&read_only.id, secret));
    let dead = repo.url().replace(&garage.endpoint(), "http://127.0.0.1:9");
    let dead = repo.at(&dead, &variables(garage.access_key_id(), secret));
    let mut command = repo.backup_command(&source);
    let mut job = Job::start(command.args(["--limit-upload", "1MiB/s"]));
    let file = format!("/proc/{}/cmdline", job.id());
    let mut words = String::new();
    // In its first moments a process has none.
    wait_until(|| {
        words = String::from_utf8_lossy(&fs::read(&file).expect("a command line")).into_owned();
        !words.is_empty() || !job.is_running()
    });
    assert!(words.contains(repo.url()), "of the job: {words:?}");
    job.outcome().summary();
    let outcomes = [
        loud(&repo, "backup", &["--source", &url]).expect(exit::OK),
        loud(&repo, "list", &[]).expect(exit::OK),
        loud(&repo, "show", &["--json"]).expect(exit::OK),
        loud(&repo, "verify", &["--json"]).expect(exit::OK),
        loud(&repo, "check", &[]).expect(exit::OK),
        loud(&repo, "key list", &[]).expect(exit::OK),
        loud(&repo, "restore", &["--to", &target]).expect(exit::OK),
        loud(&mixed, "list", &[]).expect(exit::STORAGE),
        loud(&dead, "list", &[]).expect(exit::UNREACHABLE),
    ];
    for outcome in &outcomes {
        assert!(!outcome.stderr.is_empty() || !outcome.stdout.is_empty());
        for text in [&outcome.stdout, &outcome.stderr, &words] {
            assert!(!text.contains(secret), "the secret is shown\n{outcome}");
            assert!(
                !text.contains(PASSPHRASE),
                "the passphrase is shown\n{outcome}"
            );
        }
    }
    for object in objects(&garage, "secrets") {
        let body = garage.client().get(&object.key).expect("object").text();
        assert!(
            !body.contains(secret) && !body.contains(PASSPHRASE),
            "a secret lies in {}",
            object.key
        );
    }
}

/// Kills the server when `begun` says that the job is well under way, and starts it again a little later.
fn over_a_killed_server(garage: &Garage, command: &mut Command, begun: impl Fn() -> bool) -> Value {
    let mut job = Job::start(command);
    wait_until(|| begun() || !job.is_running());
    assert!(job.is_running(), "ended before the kill\n{}", job.outcome());
    garage.kill();
    std::thread::sleep(AWAY);
    assert!(
        job.is_running(),
        "ended while the server was away\n{}",
        job.outcome()
    );
    garage.restart();
    job.outcome().summary()
}

/// Backs `data` up and, when it was lost, restores it; the server is killed once during each.
fn lost_and_restored_over_killed_servers(
    garage: &Garage,
    scratch: &Scratch,
    repo: &AnyRepo,
    data: &Path,
) {
    let files = Tree::read(data);
    let held = scratch.join("garage/data");
    let before = disk_bytes(&held);
    let mut backup = repo.backup_command(data);
    backup.args(["--limit-upload", RATE]);
    over_a_killed_server(garage, &mut backup, || {
        disk_bytes(&held) > before + UNDER_WAY_BYTES
    });
    fs::remove_dir_all(data).expect("the data are lost");

    // What is restored so far lies beside the target.
    let parent = data.parent().expect("the data lie in a directory");
    let before = disk_bytes(parent);
    let mut restore = repo.restore_command("latest", data);
    restore.args(["--limit-download", RATE]);
    over_a_killed_server(garage, &mut restore, || {
        !data.exists() && disk_bytes(parent) > before + UNDER_WAY_BYTES
    });
    files.assert_same(&Tree::read(data), "restored files");
}

#[test]
fn a_lost_nano_database_comes_back_over_a_server_that_is_killed() {
    let scratch = Scratch::new("s3-nano");
    let logs = scratch.dir("logs");
    let data = scratch.dir("place").join("data");
    let server = Nano::start(&data, &logs);
    accounts::fill(&server, &scratch.join("fill.sql"), 1500);
    let before = accounts::dump(&server);
    server.stop();

    let garage = Garage::start(scratch.path());
    let repo = in_garage(&garage, &scratch, "nano", Protection::Identity);
    lost_and_restored_over_killed_servers(&garage, &scratch, &repo, &data);

    let server = Nano::start(&data, &logs);
    accounts::lives_on(&server, &before);
    server.stop();
    repo.verify().expect(exit::OK);
}

#[test]
fn a_lost_postgres_cluster_comes_back_over_a_server_that_is_killed() {
    let scratch = Scratch::new("s3-postgres");
    let mut server = Postgres::create(&scratch.dir("cluster"));
    server.start();
    server.fill(1);
    let before = server.rows();
    server.stop();

    let garage = Garage::start(scratch.path());
    let repo = in_garage(&garage, &scratch, "postgres", Protection::None);
    let data = server.data().to_path_buf();
    lost_and_restored_over_killed_servers(&garage, &scratch, &repo, &data);

    server.start_intact(&before);
    server.stop();
    repo.verify().expect(exit::OK);
}

#[test]
fn killed_backups_leave_a_sound_repository_in_s3() {
    let mut random = Random::new(SEED);
    let scratch = Scratch::new("s3-kill");
    let server = FilesystemS3::start(scratch.path());
    let source = scratch.dir("source");
    plant::mixed(&source, &mut random, 4 << 20);
    let repo = in_files(&server, &scratch, "kill", Protection::Identity);
    repo.backup(&source).summary();
    change(&source, &mut random);
    let usual = time_of(|| drop(repo.backup(&source).summary()));
    let seen = killed_backups_harm_nothing(&repo, &source, KILLS, usual, &mut random, &scratch);
    eprintln!("{seen:?}");
    assert!(
        seen.before_end * 4 > KILLS,
        "most kills came too late to prove anything"
    );
}

#[test]
fn two_backups_at_once_into_s3_are_both_exact() {
    let scratch = Scratch::new("s3-at-once");
    let garage = Garage::start(scratch.path());
    let repo = in_garage(&garage, &scratch, "at-once", Protection::Identity);
    let sources = ["left", "right"].map(|side| {
        let source = scratch.dir(side);
        let seed = SEED ^ side.len() as u64;
        plant::mixed(&source, &mut Random::new(seed), 6 << 20);
        source
    });
    backups_at_once(&repo, &sources, &scratch);
    let [left, right] = sources;
    for source in [left, right] {
        change(&source, &mut Random::new(SEED));
        backups_at_once(&repo, &[source.clone(), source], &scratch);
    }
}

#[test]
fn of_two_repositories_at_once_in_one_place_one_comes_into_being() {
    let scratch = Scratch::new("s3-init");
    let garage = Garage::start(scratch.path());
    let environment = variables(garage.access_key_id(), garage.secret_access_key());
    for round in 0..CONTESTS {
        let prefix = format!("round-{round}");
        let rivals = ["one", "other"].map(|name| {
            let name = format!("{prefix}-{name}");
            let url = garage.url(&prefix);
            AnyRepo::prepare(&scratch, &name, &url, &environment, Protection::Identity)
        });
        let jobs = rivals
            .each_ref()
            .map(|(repo, protection)| Job::start(&mut repo.init_command(protection)));
        let outcomes = jobs.map(Job::outcome);
        let codes = outcomes.each_ref().map(|outcome| outcome.code);
        let winner = match codes {
            [Some(exit::OK), Some(exit::CONFLICT)] => 0,
            [Some(exit::CONFLICT), Some(exit::OK)] => 1,
            _ => panic!("round {round}\n{}\n{}", outcomes[0], outcomes[1]),
        };
        assert_eq!(outcomes[1 - winner].error()["kind"], "conflict");
        // The winner's key opens it, the loser's does not, and no slot of the loser's is left.
        assert!(rivals[winner].0.ids().is_empty());
        rivals[1 - winner].0.list().expect(exit::KEY);
        let slots = Outcome::of(rivals[winner].0.command("key list").arg("--json"));
        let slots = slots.expect(exit::OK).document();
        assert_eq!(slots["slots"].as_array().map(Vec::len), Some(1), "{slots}");
        let kinds: Vec<String> = objects(&garage, &prefix)
            .into_iter()
            .map(|object| object.key)
            .collect();
        assert_eq!(kinds.len(), 2, "the header and one slot: {kinds:?}");
    }
}

/// A repository in Garage with one backup, and what can be wrong about reaching it.
struct Reached {
    garage: Garage,
    repo: AnyRepo,
    source: PathBuf,
    scratch: Scratch,
}

impl Reached {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let garage = Garage::start(scratch.path());
        let repo = in_garage(&garage, &scratch, "reached", Protection::None);
        let source = scratch.dir("source");
        plant::mixed(&source, &mut Random::new(SEED), 1 << 20);
        repo.backup(&source).summary();
        Reached {
            garage,
            repo,
            source,
            scratch,
        }
    }

    /// The repository with another key.
    fn with_key(&self, id: &str, secret: &str) -> AnyRepo {
        self.repo.at(self.repo.url(), &variables(id, secret))
    }

    /// The repository by another URL.
    fn with_url(&self, url: &str) -> AnyRepo {
        let key = variables(self.garage.access_key_id(), self.garage.secret_access_key());
        self.repo.at(url, &key)
    }

    /// The repository behind another server.
    fn behind(&self, endpoint: &str) -> AnyRepo {
        self.with_url(&self.repo.url().replace(&self.garage.endpoint(), endpoint))
    }
}

/// Fails the test unless a run ended with `code` and said these parts of a message and of what to do.
#[track_caller]
fn told(outcome: Outcome, code: i32, message: &str, hint: &str) {
    let outcome = outcome.expect(code);
    let error = outcome.error();
    for (field, part) in [("message", message), ("hint", hint)] {
        let text = error[field].as_str().unwrap_or_default();
        assert!(text.contains(part), "{field} without {part:?}\n{outcome}");
    }
}

#[test]
fn whatever_is_wrong_about_the_server_is_told_with_a_remedy() {
    let reached = Reached::new("s3-wrong");
    let id = reached.garage.access_key_id();
    let url = reached.repo.url();
    let target = reached.scratch.join("never");
    let tell = |repo: &AnyRepo, code: i32, message: &str, hint: &str| {
        told(repo.backup(&reached.source), code, message, hint);
        told(repo.restore("latest", &target), code, message, hint);
    };

    let wrong = reached.with_key(id, "not-the-secret");
    tell(&wrong, exit::STORAGE, "does not", "credentials");
    let unknown = reached.with_key("GK0123456789abcdef01234567", "not-the-secret");
    tell(&unknown, exit::STORAGE, "does not", "credentials");
    let absent = reached.with_url(&url.replace("s3://mover/", "s3://absent/"));
    let no_bucket = ("bucket does not exist", "create it first");
    tell(&absent, exit::NOT_FOUND, no_bucket.0, no_bucket.1);
    let init = Outcome::of(&mut absent.init_command(&["--no-encryption".into()]));
    told(init, exit::NOT_FOUND, no_bucket.0, no_bucket.1);
    let server = Scripted::html_page();
    let page = reached.behind(&server.endpoint());
    tell(
        &page,
        exit::STORAGE,
        "not answer as an S3 server",
        "check the endpoint",
    );
    // One verb only: the tool waits a while for a server that is not there.
    let dead = reached.behind("http://127.0.0.1:9").backup(&reached.source);
    told(dead, exit::UNREACHABLE, "cannot be reached", "endpoint");
    let option = reached.with_url(&format!("{url}&regoin=x"));
    tell(&option, exit::USAGE, "unknown option", "region");
    let relative = reached.with_url("s3://mover/reached?endpoint=127.0.0.1");
    tell(&relative, exit::USAGE, "endpoint", "https://");
    let other = reached.with_url(&url.replace("/reached?", "/elsewhere?"));
    tell(&other, exit::NOT_FOUND, "no repository", "init");

    assert!(!target.exists(), "a target was published");
    assert_eq!(reached.repo.ids().len(), 1, "nothing else came into being");
}

#[test]
fn a_key_that_may_only_read_restores_and_backs_nothing_up() {
    let reached = Reached::new("s3-read-only");
    let AccessKey { id, secret } = reached.garage.read_only_key();
    let reader = reached.with_key(&id, &secret);
    let before = objects(&reached.garage, "reached");
    let backup = reader.backup(&reached.source);
    told(backup, exit::STORAGE, "does not allow", "s3:PutObject");
    assert_eq!(before, objects(&reached.garage, "reached"));
    let truth = Tree::read(&reached.source);
    restores_to(&reader, "latest", &truth, &reached.scratch);
    reader.verify().expect(exit::OK);
    let check = Outcome::of(reader.command("check").arg("--json")).expect(exit::CHECK_FAILED);
    assert!(check.stdout.contains("s3:PutObject"), "{check}");
}

#[test]
fn without_any_credentials_the_tool_soon_says_so() {
    let reached = Reached::new("s3-no-credentials");
    let home = reached.scratch.dir("empty-home");
    let repo = reached
        .repo
        .at(reached.repo.url(), &[("AWS_EC2_METADATA_DISABLED", "true")]);
    let mut command = repo.command("list");
    command.env("HOME", &home).arg("--json");
    let mut outcome = None;
    let took = time_of(|| outcome = Some(Outcome::of(&mut command)));
    let outcome = outcome.expect("it ran");
    told(outcome, exit::STORAGE, "credentials", "AWS_ACCESS_KEY_ID");
    assert!(took < SOON, "{took:?}");
}

#[test]
fn an_unknown_authority_is_trusted_only_when_it_is_named() {
    let scratch = Scratch::new("s3-tls");
    let options = FilesystemOptions {
        tls: true,
        ..FilesystemOptions::default()
    };
    let server = FilesystemS3::start_with(scratch.path(), options);
    let environment = variables(server.access_key_id(), server.secret_access_key());
    let ca = server.ca_file().expect("a server with TLS has one");
    let url = format!("{}&ca={}", server.url("tls"), ca.display());
    let repo = AnyRepo::create(&scratch, "tls", &url, &environment, Protection::None);
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(SEED), 4 << 20);
    repo.backup(&source).summary();
    restores_to(&repo, "latest", &Tree::read(&source), &scratch);
    repo.verify().expect(exit::OK);

    let stranger = repo.at(&server.url("tls"), &environment);
    told(
        stranger.backup(&source),
        exit::STORAGE,
        "certificate",
        "ca=",
    );
}

#[test]
fn a_flipped_byte_on_the_server_is_named_and_never_restored() {
    let scratch = Scratch::new("s3-damage");
    let server = FilesystemS3::start(scratch.path());
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(SEED), 4 << 20);
    for protection in [Protection::None, Protection::Identity] {
        let prefix = format!("damage-{protection:?}").to_lowercase();
        let repo = in_files(&server, &scratch, &prefix, protection);
        repo.backup(&source).summary();
        repo.verify().expect(exit::OK);
        let root = server.objects().join(&prefix);
        let (pack, bytes) = largest_file(&root.join("packs"));
        let file = File::options().read(true).write(true).open(&pack);
        let file = file.expect("pack");
        let mut byte = [0];
        file.read_exact_at(&mut byte, bytes / 2).expect("byte");
        file.write_all_at(&[byte[0] ^ 1], bytes / 2).expect("byte");

        let name = pack.strip_prefix(&root).expect("below the repository");
        let name = name.to_str().expect("UTF-8");
        let verified = repo.verify().expect(exit::VERIFY_FAILED);
        assert!(verified.stdout.contains(name), "{name}\n{verified}");
        let target = scratch.join("target");
        let restored = repo.restore("latest", &target).expect(exit::CORRUPT);
        assert!(restored.error()["object"].as_str().is_some(), "{restored}");
        assert!(restored.stdout.contains(name), "{name}\n{restored}");
        assert!(!target.exists(), "a damaged backup was published");
        // Put back, everything is as it was.
        file.write_all_at(&byte, bytes / 2).expect("byte");
        repo.verify().expect(exit::OK);
        restores_to(&repo, "latest", &Tree::read(&source), &scratch);
    }
}

/// The largest file below `dir`, and its length.
fn largest_file(dir: &Path) -> (PathBuf, u64) {
    let tree = Tree::read(dir);
    let sizes = tree.0.keys().map(|path| {
        let path = dir.join(String::from_utf8_lossy(path).as_ref());
        let meta = fs::metadata(&path).expect("file");
        (path, if meta.is_file() { meta.len() } else { 0 })
    });
    sizes
        .max_by_key(|(_, bytes)| *bytes)
        .expect("there are files")
}

#[test]
fn memory_stays_small_with_a_repository_in_s3() {
    let scratch = Scratch::new("s3-memory");
    let garage = Garage::start(scratch.path());
    let repo = in_garage(&garage, &scratch, "memory", Protection::Identity);
    let source = scratch.dir("source");
    let mut random = Random::new(SEED);
    for i in 0..4 {
        plant::file(&source.join(format!("table-{i}")), &mut random, 40 << 20);
    }
    let peak = |summary: &Value| {
        summary["engine"]["peak_rss_bytes"]
            .as_u64()
            .expect("peak_rss_bytes")
    };
    let used = peak(&repo.backup(&source).summary());
    assert!(used < RSS_MAX, "a backup used {used} bytes of memory");
    let target = scratch.join("target");
    let used = peak(&repo.restore("latest", &target).summary());
    assert!(used < RSS_MAX, "a restore used {used} bytes of memory");
    Tree::read(&source).assert_same(&Tree::read(&target), "restored");
}
