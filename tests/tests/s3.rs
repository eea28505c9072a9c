//! The tool with repositories in S3: every promise of the other suites again, on a real server (Garage, which ignores
//! conditional writes) and on one in this process (s3s-fs, whose objects are files that can be damaged), with
//! servers that are killed in the middle of a job, and with everything that can be wrong between the two.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mover_test_servers::{
    Access, AccessKey, Action, Fault, FaultProxy, FilesystemS3, Garage, GarageCluster, Listed,
    Reply, Scripted,
};
use mover_tests::accounts;
use mover_tests::bucket::{Outage, RATE, Relay, UNDER_WAY_BYTES, repo_in, told, variables};
use mover_tests::clock;
use mover_tests::job::{Job, wait_until};
use mover_tests::mover::{
    AnyRepo, Outcome, PASSPHRASE, Protection, Repo, dir_url, exit, identity, secret_file,
};
use mover_tests::nano::Nano;
use mover_tests::plant::{self, MIB, SHAPES};
use mover_tests::postgres::Postgres;
use mover_tests::proof::{backups_at_once, change, disk_bytes, one_init_wins, restores_to};
use mover_tests::random::Random;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;
use serde_json::Value;

#[path = "s3/endless.rs"]
mod endless;
#[path = "s3/faulty.rs"]
mod faulty;
#[path = "s3/killed.rs"]
mod killed;
#[path = "s3/limits.rs"]
mod limits;
#[path = "s3/refused.rs"]
mod refused;
#[path = "s3/rights.rs"]
mod rights;
#[path = "s3/silent.rs"]
mod silent;
#[path = "s3/verbs.rs"]
mod verbs;

/// Seed of everything that is planted here.
const SEED: u64 = 0x7333;
/// What the tool may use at its defaults.
const RSS_MAX: u64 = 256 * MIB;
/// How much longer a far server takes to answer.
const FAR: Duration = Duration::from_millis(200);
/// The clock of a job that is to give something up is so much faster, and so many seconds by it are its time-out.
const FASTER: u32 = 20;
const FAST_TIMEOUT_S: u64 = 100;
/// Two `init` at once, so many times.
const CONTESTS: u64 = 10;

/// Every object below `prefix`, seen without the code under test.
fn objects(access: &Access, prefix: &str) -> Vec<Listed> {
    let client = access.client();
    let (objects, _) = client
        .list(&format!("{prefix}/"), 1000)
        .expect("the bucket can be listed");
    objects
}

fn stored_bytes(access: &Access, prefix: &str) -> u64 {
    objects(access, prefix)
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

/// A new repository in a new Garage, by way of a proxy, and a source of one file.
fn behind_proxy(
    scratch: &Scratch,
    protection: Protection,
    bytes: usize,
) -> (Garage, FaultProxy, AnyRepo, PathBuf) {
    let garage = Garage::start(scratch.path());
    let proxy = FaultProxy::start(&garage.access().endpoint);
    let access = garage.access().at(&proxy.endpoint());
    let repo = repo_in(&access, scratch, "behind", protection);
    let source = scratch.dir("source");
    plant::file(&source.join("table"), &mut Random::new(SEED), bytes);
    (garage, proxy, repo, source)
}

#[test]
fn what_goes_over_the_link_is_told_as_the_server_sees_it() {
    let scratch = Scratch::new("s3-link");
    let (garage, proxy, repo, source) = behind_proxy(&scratch, Protection::None, 16 << 20);
    let told = |summary: &Value, name: &str| {
        let figure = summary["engine"]["link"][name].as_u64();
        figure.unwrap_or_else(|| panic!("no {name} in {summary}"))
    };

    let stored = || stored_bytes(garage.access(), "behind");
    let (before, stored_before) = (proxy.seen().len(), stored());
    // Packs alone, whose requests are all answered before the job tells its figures.
    let failing = Fault::new(Action::error(500, "InternalError")).path("/packs/");
    let failing = proxy.inject(failing.times(3));
    let made = repo.backup(&source).summary();
    let seen = (proxy.seen().len() - before) as u64;
    // The job's session is taken back after its end was told.
    let told_late = seen - told(&made, "requests");
    assert!(told_late <= 2, "of {seen} requests: {made}");
    assert_eq!(told(&made, "retries"), proxy.hits(failing), "{made}");
    assert_eq!(proxy.hits(failing), 3);
    let grown = stored() - stored_before;
    assert!(grown > 16 << 20, "{grown}");
    assert!(told(&made, "sent_bytes") >= grown, "{made}");

    let target = scratch.join("target");
    let restored = repo.restore("latest", &target).summary();
    assert!(told(&restored, "received_bytes") >= 16 << 20, "{restored}");
    assert_eq!(told(&restored, "retries"), 0, "{restored}");

    let shown = Outcome::of(repo.command("verify").args(["--level", "checksum"]));
    eprintln!("{shown}");
    let rows = shown.stdout.lines().chain(shown.stderr.lines());
    let mut link = rows.filter(|row| row.trim_start().starts_with("link "));
    let link = link.next().unwrap_or_else(|| panic!("no link\n{shown}"));
    for part in [" MiB received, ", " requests, 0 sent again"] {
        assert!(link.contains(part), "{link}");
    }
}

/// The lengths of the ranges that were asked for by way of `proxy`, from number `from` on, without those that only open
/// packs.
fn frames_asked_for(proxy: &FaultProxy, from: usize) -> Vec<u64> {
    const OPENING_MAX: u64 = 256 << 10;
    let length = |range: &String| {
        let (first, last) = bytes_of(range);
        last + 1 - first
    };
    let all = proxy.ranges();
    let long = all[from..].iter().map(length);
    long.filter(|bytes| *bytes > OPENING_MAX).collect()
}

/// Whoever asks for a buffer's worth at a time asks twice as often and more.
#[test]
fn a_restore_and_a_verification_ask_for_much_at_a_time() {
    const AVERAGE_MIN: u64 = 2 << 20;
    let scratch = Scratch::new("s3-requests");
    let garage = Garage::start(scratch.path());
    let proxy = FaultProxy::start(&garage.access().endpoint);
    let access = garage.access().at(&proxy.endpoint());
    let repo = repo_in(&access, &scratch, "requests", Protection::Identity);
    let source = scratch.dir("source");
    // What shrinks by nothing makes frames longer than a buffer; the other file is made of short ones.
    plant::file(&source.join("random"), &mut Random::new(SEED), 96 << 20);
    let rows = Random::new(SEED).rows(64 << 20);
    fs::write(source.join("rows"), rows).expect("file");
    repo.backup(&source).summary();
    let target = scratch.join("target");
    let mut verify = repo.command("verify");
    verify.args(["--level", "checksum", "--json"]);
    for mut command in [repo.restore_command("latest", &target), verify] {
        let from = proxy.ranges().len();
        Outcome::of(command.args(["--shards", "1"])).expect(exit::OK);
        let asked = frames_asked_for(&proxy, from);
        let bytes: u64 = asked.iter().sum();
        assert!(bytes > 96 << 20, "all frames were read: {bytes}");
        assert!(bytes / asked.len() as u64 >= AVERAGE_MIN, "{asked:?}");
    }
    Tree::read(&source).assert_same(&Tree::read(&target), "restored");
}

/// First and last byte of a range that was asked for.
fn bytes_of(range: &str) -> (u64, u64) {
    let range = range.strip_prefix("bytes=").expect("bytes");
    let (first, last) = range.split_once('-').expect("a range");
    let number = |text: &str| text.parse::<u64>().expect("a number");
    (number(first), number(last))
}

/// The ranges that were asked for of the object at `key`.
fn ranges_of(proxy: &FaultProxy, key: &str) -> Vec<(u64, u64)> {
    let (seen, ranges) = (proxy.seen(), proxy.ranges());
    let of_packs = seen
        .iter()
        .filter(|line| line.starts_with("GET ") && line.contains("/packs/"));
    // Of packs ranges are asked for, and of nothing else.
    let both: Vec<_> = of_packs.zip(&ranges).collect();
    let of_key = both.into_iter().filter(|(line, _)| line.contains(key));
    of_key.map(|(_, range)| bytes_of(range)).collect()
}

#[test]
fn a_pack_is_opened_by_two_requests_at_once_and_a_short_one_by_one() {
    // The longest beginning, and the longest pack that counts as short.
    const PREAMBLE_BYTES_MAX: u64 = 1124;
    const SHORT_BYTES_MAX: u64 = 128 << 10;
    let scratch = Scratch::new("s3-opening");
    let server = FilesystemS3::start(scratch.path());
    let repo = repo_in(server.access(), &scratch, "opening", Protection::Identity);
    let source = scratch.dir("source");
    for (name, bytes) in [("table", 24 << 20), ("small", 40_000)] {
        plant::file(&source.join(name), &mut Random::new(bytes as u64), bytes);
        repo.backup(&source).summary();
    }
    let packs = objects(server.access(), "opening").into_iter();
    let packs: Vec<Listed> = packs
        .filter(|object| object.key.contains("/packs/"))
        .collect();
    let is_short = |pack: &&Listed| pack.bytes <= SHORT_BYTES_MAX;
    let short = packs.iter().filter(is_short).count();
    assert!(0 < short && short < packs.len(), "{packs:?}");
    let by = |proxy: &FaultProxy| {
        let access = server.access().at(&proxy.endpoint());
        let url = format!("{}&timeout=3600", access.url("opening"));
        repo.at(&url, &variables(&access.key))
    };

    let proxy = FaultProxy::start(&server.access().endpoint);
    let target = scratch.join("target");
    let mut restore = by(&proxy).restore_command("latest", &target);
    Outcome::of(restore.args(["--shards", "1"])).summary();
    Tree::read(&source).assert_same(&Tree::read(&target), "restored");
    for pack in &packs {
        let asked = ranges_of(&proxy, &pack.key);
        let whole = (0, pack.bytes - 1);
        let opening: Vec<_> = asked
            .iter()
            .filter(|(first, last)| *first == 0 || *last == whole.1)
            .collect();
        if is_short(&pack) {
            assert_eq!(opening, [&whole], "{pack:?}: {asked:?}");
            continue;
        }
        let [head, tail] = opening[..] else {
            panic!("{pack:?}: {asked:?}");
        };
        let (head, tail) = if head.0 == 0 {
            (head, tail)
        } else {
            (tail, head)
        };
        assert_eq!(*head, (0, PREAMBLE_BYTES_MAX - 1), "{pack:?}: {asked:?}");
        assert_eq!(tail.1, whole.1, "{pack:?}: {asked:?}");
    }

    // Neither waits for the other: one is never answered here, whichever comes first.
    let long = packs
        .iter()
        .find(|pack| !is_short(pack))
        .expect("a long pack");
    let proxy = FaultProxy::start(&server.access().endpoint);
    proxy.inject(Fault::new(Action::Stall).path(&long.key).times(1));
    let target = scratch.join("never");
    let _job = Job::start(&mut by(&proxy).restore_command("latest", &target));
    wait_until(|| {
        let asked = ranges_of(&proxy, &long.key);
        asked.iter().any(|(first, _)| *first == 0)
            && asked.iter().any(|(_, last)| last + 1 == long.bytes)
    });
}

#[test]
fn answers_that_break_off_again_and_again_do_not_harm_a_restore() {
    let scratch = Scratch::new("s3-cut-answers");
    let (_garage, proxy, repo, source) = behind_proxy(&scratch, Protection::Identity, 48 << 20);
    repo.backup(&source).summary();
    let cut = Fault::new(Action::TruncateReply(1_500_000)).method("GET");
    let cut = proxy.inject(cut.path("/packs/").chance(0.6, SEED));
    restores_to(&repo, "latest", &Tree::read(&source), &scratch);
    repo.verify().expect(exit::OK);
    assert!(proxy.hits(cut) > 0);
}

#[test]
fn a_delta_restore_from_s3_repairs_what_differs() {
    let scratch = Scratch::new("s3-delta");
    let garage = Garage::start(scratch.path());
    let repo = repo_in(garage.access(), &scratch, "delta", Protection::None);
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
    let Access {
        endpoint,
        region,
        bucket,
        key: AccessKey { id, secret },
        ..
    } = garage.access();
    let text = |profile: &str, secret: &str| {
        format!("[{profile}]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n\n")
    };
    let good = text("default", secret);
    secret_file(&file, &(text("other", "wrong") + &good));
    let file = file.display();
    let url =
        format!("s3://{bucket}/deep/prefix?endpoint={endpoint}&region={region}&credentials={file}");
    // What stands in the environment does not count where a file is named.
    let elsewhere = AccessKey::new("GKelse", "where");
    let environment = variables(&elsewhere);
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
    let repo = repo_in(garage.access(), &scratch, "secrets", Protection::Passphrase);
    let access = garage.access();
    let secret = access.key.secret.as_str();
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
    let mixed = AccessKey::new(&garage.read_only_key().id, secret);
    let mixed = repo.at(repo.url(), &variables(&mixed));
    let dead = access.at("http://127.0.0.1:9").url("secrets");
    let dead = repo.at(&dead, &variables(&access.key));
    let mut command = repo.backup_command(&source);
    command
        .args(["--limit-upload", "1MiB/s"])
        .env("HELIOS_MOVER_LOG", "debug");
    let mut job = Job::start(&mut command);
    let file = format!("/proc/{}/cmdline", job.id());
    let mut words = String::new();
    // In its first moments a process has none.
    wait_until(|| {
        words = String::from_utf8_lossy(&fs::read(&file).expect("a command line")).into_owned();
        !words.is_empty() || !job.is_running()
    });
    assert!(words.contains(repo.url()), "of the job: {words:?}");
    let limited = job.outcome().expect(exit::OK);
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
        assert!(outcome.stderr.contains("TRACE"), "no trace\n{outcome}");
    }
    for outcome in outcomes.iter().chain([&limited]) {
        for text in [&outcome.stdout, &outcome.stderr, &words] {
            assert!(!text.contains(secret), "the secret is shown\n{outcome}");
            assert!(
                !text.contains(PASSPHRASE),
                "the passphrase is shown\n{outcome}"
            );
        }
    }
    for object in objects(garage.access(), "secrets") {
        let body = access.client().get(&object.key).expect("object").text();
        assert!(
            !body.contains(secret) && !body.contains(PASSPHRASE),
            "a secret lies in {}",
            object.key
        );
    }
}

/// Backs `data` up while the server is away for a while, and loses it. `held` is where a server keeps what it is given.
fn backed_up_and_lost(repo: &AnyRepo, data: &Path, held: &Path, outage: &Outage<'_>) -> Tree {
    let files = Tree::read(data);
    let before = disk_bytes(held);
    let mut backup = repo.backup_command(data);
    backup.args(["--limit-upload", RATE]);
    let begun = || disk_bytes(held) > before + UNDER_WAY_BYTES;
    outage.in_the_middle_of(&mut backup, begun);
    fs::remove_dir_all(data).expect("the data are lost");
    files
}

/// Brings `files` back to `data` while the server is away for a while.
fn restored(repo: &AnyRepo, data: &Path, files: &Tree, outage: &Outage<'_>) {
    // What is restored so far lies beside the target.
    let parent = data.parent().expect("the data lie in a directory");
    let before = disk_bytes(parent);
    let mut restore = repo.restore_command("latest", data);
    restore.args(["--limit-download", RATE]);
    let begun = || !data.exists() && disk_bytes(parent) > before + UNDER_WAY_BYTES;
    outage.in_the_middle_of(&mut restore, begun);
    files.assert_same(&Tree::read(data), "restored files");
}

/// Backs `data` up and, when it was lost, restores it; during each the server is killed and comes back.
fn lost_and_restored_over_killed_servers(
    garage: &Garage,
    scratch: &Scratch,
    repo: &AnyRepo,
    data: &Path,
) {
    let outage = Outage {
        begin: &|| garage.kill(),
        end: &|| garage.restart(),
        log: &scratch.join("job.log"),
    };
    let files = backed_up_and_lost(repo, data, &scratch.join("garage/data"), &outage);
    restored(repo, data, &files, &outage);
}

/// In each job it is the node that the job speaks to, and the job goes on with another one, while two are left.
#[test]
fn lost_files_come_back_from_a_cluster_that_loses_a_node() {
    let scratch = Scratch::new("s3-cluster");
    let cluster = GarageCluster::start(scratch.path());
    let endpoint = |node| cluster.access(node).endpoint.as_str();
    let relay = Relay::start(endpoint(2));
    let access = cluster.access(2).at(&relay.endpoint());
    let repo = repo_in(&access, &scratch, "cluster", Protection::Identity);
    let data = scratch.dir("place").join("data");
    fs::create_dir(&data).expect("directory");
    plant::mixed(&data, &mut Random::new(SEED), 16 << 20);
    let held = scratch.join("garage-0/data");
    let first = Outage {
        begin: &|| cluster.kill(2),
        end: &|| relay.lead_to(endpoint(0)),
        log: &scratch.join("job.log"),
    };
    let files = backed_up_and_lost(&repo, &data, &held, &first);
    cluster.restart(2);
    relay.lead_to(endpoint(1));
    let second = Outage {
        begin: &|| cluster.kill(1),
        ..first
    };
    restored(&repo, &data, &files, &second);
    repo.verify().expect(exit::OK);
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
    let repo = repo_in(garage.access(), &scratch, "nano", Protection::Identity);
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
    let repo = repo_in(garage.access(), &scratch, "postgres", Protection::None);
    let data = server.data().to_path_buf();
    lost_and_restored_over_killed_servers(&garage, &scratch, &repo, &data);

    server.start_intact(&before);
    server.stop();
    repo.verify().expect(exit::OK);
}

#[test]
fn two_backups_at_once_into_s3_are_both_exact() {
    let scratch = Scratch::new("s3-at-once");
    let garage = Garage::start(scratch.path());
    let repo = repo_in(garage.access(), &scratch, "at-once", Protection::Identity);
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
    let access = garage.access();
    let environment = variables(&access.key);
    for round in 0..CONTESTS {
        let prefix = format!("round-{round}");
        one_init_wins(&scratch, &prefix, &access.url(&prefix), &environment);
        let kinds: Vec<String> = objects(access, &prefix)
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
        let repo = repo_in(garage.access(), &scratch, "reached", Protection::None);
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

    /// The repository by another key, or by way of another server or bucket.
    fn by(&self, access: &Access) -> AnyRepo {
        self.repo
            .at(&access.url("reached"), &variables(&access.key))
    }

    /// The repository by another URL.
    fn with_url(&self, url: &str) -> AnyRepo {
        self.repo.at(url, &variables(&self.garage.access().key))
    }
}

#[test]
fn whatever_is_wrong_about_the_server_is_told_with_a_remedy() {
    let reached = Reached::new("s3-wrong");
    let access = reached.garage.access();
    let url = reached.repo.url();
    let target = reached.scratch.join("never");
    let tell = |repo: &AnyRepo, code: i32, message: &str, hint: &str| {
        told(repo.backup(&reached.source), code, message, hint);
        told(repo.restore("latest", &target), code, message, hint);
    };

    // Garage tells a wrong key from a missing right no better than this.
    for id in [&access.key.id, "GK0123456789abcdef01234567"] {
        let wrong = access.with_key(AccessKey::new(id, "not-the-secret"));
        let wrong = reached.by(&wrong);
        tell(&wrong, exit::STORAGE, "does not allow", "credentials");
    }
    let files = FilesystemS3::start(reached.scratch.path());
    let wrong = AccessKey::new(&files.access().key.id, "not-the-secret");
    let wrong = reached.by(&files.access().with_key(wrong));
    let no_key = ("does not accept the credentials", "AWS_SECRET_ACCESS_KEY");
    tell(&wrong, exit::STORAGE, no_key.0, no_key.1);
    let absent = reached.by(&access.in_bucket("absent"));
    let no_bucket = ("bucket does not exist", "create it first");
    tell(&absent, exit::NOT_FOUND, no_bucket.0, no_bucket.1);
    let init = Outcome::of(&mut absent.init_command(&["--no-encryption".into()]));
    told(init, exit::NOT_FOUND, no_bucket.0, no_bucket.1);
    let server = Scripted::html_page();
    let page = reached.by(&access.at(&server.endpoint()));
    tell(
        &page,
        exit::STORAGE,
        "not answer as an S3 server",
        "check the endpoint",
    );
    // One verb only: the tool waits a while for a server that is not there.
    let dead = reached.by(&access.at("http://127.0.0.1:9"));
    let dead = dead.backup(&reached.source);
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
    let key = reached.garage.read_only_key();
    let reader = reached.by(&reached.garage.access().with_key(key));
    let before = objects(reached.garage.access(), "reached");
    let backup = reader.backup(&reached.source);
    told(backup, exit::STORAGE, "does not allow", "s3:PutObject");
    assert_eq!(before, objects(reached.garage.access(), "reached"));
    let truth = Tree::read(&reached.source);
    restores_to(&reader, "latest", &truth, &reached.scratch);
    reader.verify().expect(exit::OK);
    let check = Outcome::of(reader.command("check").arg("--json")).expect(exit::CHECK_FAILED);
    assert!(check.stdout.contains("s3:PutObject"), "{check}");
}

/// Deletes all backups but the last.
fn expire(repo: &AnyRepo) -> Command {
    let mut command = repo.command("expire");
    command.args(["--keep-last", "1", "--confirm", "--json"]);
    command
}

/// A server that has a bad moment answers a request to delete objects, and says beside them that it failed.
#[test]
fn an_expire_outlives_what_a_server_fails_to_delete_and_is_worth_another_try_where_that_lasts() {
    /// What two minutes of pauses that grow to eight seconds leave room for, up to three times: for what is to be deleted together,
    /// and for two objects alone.
    const TRIES: std::ops::Range<u64> = 5..200;
    let scratch = Scratch::new("s3-undeleted-yet");
    let server = FilesystemS3::start(scratch.path());
    let access = server.access();
    let direct = repo_in(access, &scratch, "failing", Protection::Identity);
    let source = scratch.dir("source");
    let backup = |seed: u64| {
        plant::file(&source.join("table"), &mut Random::new(seed), 8 << 20);
        direct.backup(&source).summary();
    };
    let behind = |code: &str, times: u64| {
        let failed = format!("<Error><Code>{code}</Code><Message>later</Message></Error>");
        let failed = format!("<DeleteResult>{failed}</DeleteResult>");
        let fault = Fault::new(Action::Answer(Reply::new(200, failed)));
        let proxy = FaultProxy::start(&access.endpoint);
        let fault = proxy.inject(fault.method("POST").query("delete").times(times));
        let url = access.at(&proxy.endpoint()).url("failing");
        let url = format!("{url}&timeout={FAST_TIMEOUT_S}");
        let repo = direct.at(&url, &variables(&access.key));
        (proxy, fault, repo)
    };
    backup(0);
    for (seed, code) in [(1, "InternalError"), (2, "SlowDown")] {
        backup(seed);
        let (proxy, fault, repo) = behind(code, 3);
        let done = Outcome::of(&mut expire(&repo)).summary();
        assert!(done["packs"].as_u64() > Some(0), "{done}");
        assert_eq!(proxy.hits(fault), 3, "{code}");
        direct.verify().expect(exit::OK);
    }

    backup(3);
    let (proxy, fault, repo) = behind("InternalError", u64::MAX);
    let mut command = expire(&repo);
    clock::faster(&mut command, FASTER);
    let message = "the store failed to delete an object, and again when asked again";
    told(
        Outcome::of(&mut command),
        exit::UNREACHABLE,
        message,
        "try again later",
    );
    let tries = proxy.hits(fault);
    assert!(TRIES.contains(&tries), "{tries} requests");
    assert_eq!(direct.ids().len(), 1);
    restores_to(&direct, "latest", &Tree::read(&source), &scratch);
    Outcome::of(&mut expire(&direct)).expect(exit::OK);
    direct.verify().expect(exit::OK);
}

/// The server knows no request for many objects, so each is a request of its own, and those for the first two of them fail.
#[test]
fn an_expire_leaves_two_objects_that_a_server_goes_on_failing_at_and_deletes_the_rest() {
    let scratch = Scratch::new("s3-undeletable");
    let server = FilesystemS3::start(scratch.path());
    let access = server.access();
    let direct = repo_in(access, &scratch, "faulty", Protection::Identity);
    let source = scratch.dir("source");
    let backup = |seed: u64| {
        plant::file(&source.join("table"), &mut Random::new(seed), 32 << 20);
        direct.backup(&source).summary();
    };
    backup(0);
    let mut doomed = objects(access, "faulty/packs");
    // Others hold what did not change.
    doomed.retain(|pack| pack.bytes > MIB);
    assert!(doomed.len() > 2, "{doomed:?}");
    let left = || -> Vec<String> {
        let packs = objects(access, "faulty/packs").into_iter();
        let old = packs.filter(|pack| doomed.iter().any(|one| one.key == pack.key));
        old.map(|pack| pack.key).collect()
    };
    let faulty = [0, 1].map(|at| doomed[at].key.clone());
    backup(1);

    let proxy = FaultProxy::start(&access.endpoint);
    let many = Fault::new(Action::error(501, "NotImplemented"));
    proxy.inject(many.method("POST").query("delete"));
    let failing = faulty.clone().map(|key| {
        let failing = Fault::new(Action::error(500, "InternalError"));
        proxy.inject(failing.method("DELETE").path(&key))
    });
    let url = access.at(&proxy.endpoint()).url("faulty");
    let url = format!("{url}&timeout={FAST_TIMEOUT_S}");
    let through = direct.at(&url, &variables(&access.key));
    let mut command = expire(&through);
    clock::faster(&mut command, FASTER);
    let outcome = Outcome::of(&mut command).expect(exit::STORAGE);
    let error = outcome.error();
    let object = error["object"].as_str().unwrap_or_default();
    let key = faulty[0].trim_start_matches("faulty/");
    assert!(object.contains(key), "{outcome}");
    assert!(object.contains("failed to delete"), "{outcome}");
    for failing in failing {
        assert!(proxy.hits(failing) > 1, "it was asked for again");
    }
    assert_eq!(left(), faulty);
    direct.verify().expect(exit::OK);
    restores_to(&direct, "latest", &Tree::read(&source), &scratch);
    Outcome::of(&mut expire(&direct)).expect(exit::OK);
    assert!(left().is_empty());
}

/// Behind its manifest nothing would say that the session is over.
#[test]
fn the_backup_of_an_ended_session_that_cannot_be_taken_away_is_kept() {
    let scratch = Scratch::new("s3-ended-session");
    let server = FilesystemS3::start(scratch.path());
    let access = server.access();
    let direct = repo_in(access, &scratch, "ended", Protection::Identity);
    let source = scratch.dir("source");
    plant::file(&source.join("table"), &mut Random::new(SEED), 1 << 20);
    let proxy = FaultProxy::start(&access.endpoint);
    let refused = |part: &str| {
        let refused = Fault::new(Action::error(403, "AccessDenied"));
        refused.method("DELETE").path(part)
    };
    proxy.inject(refused("ended/sessions/").times(1));
    let url = access.at(&proxy.endpoint()).url("ended");
    let through = direct.at(&url, &variables(&access.key));
    through.backup(&source).summary();
    let sessions = || objects(access, "ended/sessions");
    let ended = sessions();
    assert_eq!(ended.len(), 1, "the first backup could not end its session");
    proxy.inject(refused(&ended[0].key));
    // So that each is a request of its own.
    let many = Fault::new(Action::error(501, "NotImplemented"));
    proxy.inject(many.method("POST").query("delete"));
    plant::file(&source.join("table"), &mut Random::new(SEED + 1), 1 << 20);
    direct.backup(&source).summary();
    Outcome::of(&mut expire(&through)).expect(exit::STORAGE);
    assert_eq!(direct.ids().len(), 2);
    direct.verify().expect(exit::OK);
    Outcome::of(&mut expire(&direct)).expect(exit::OK);
    assert_eq!((direct.ids().len(), sessions().len()), (1, 0));
    restores_to(&direct, "latest", &Tree::read(&source), &scratch);
}

#[test]
fn a_flipped_byte_on_the_server_is_named_and_never_restored() {
    let scratch = Scratch::new("s3-damage");
    let server = FilesystemS3::start(scratch.path());
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(SEED), 4 << 20);
    for protection in [Protection::None, Protection::Identity] {
        let prefix = format!("damage-{protection:?}").to_lowercase();
        let repo = repo_in(server.access(), &scratch, &prefix, protection);
        repo.backup(&source).summary();
        repo.verify().expect(exit::OK);
        let root = server.objects().join(&prefix);
        let packs = Repo::objects_of(&root.join("packs")).into_iter();
        let largest = packs.max_by_key(|(_, bytes)| bytes.len());
        let (pack, bytes) = largest.expect("there are packs");
        let (pack, bytes) = (Path::new("packs").join(pack), bytes.len() as u64);
        let file = File::options()
            .read(true)
            .write(true)
            .open(root.join(&pack));
        let file = file.expect("pack");
        let mut byte = [0];
        file.read_exact_at(&mut byte, bytes / 2).expect("byte");
        file.write_all_at(&[byte[0] ^ 1], bytes / 2).expect("byte");

        let name = pack.to_str().expect("UTF-8");
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

/// Answers are late, so that many requests are under way at a time: as many as there are connections, where there is work for
/// so many.
#[test]
fn memory_stays_small_with_a_repository_in_s3() {
    let scratch = Scratch::new("s3-memory");
    let garage = Garage::start(scratch.path());
    let far = FaultProxy::start(&garage.access().endpoint);
    let repo = repo_in(garage.access(), &scratch, "memory", Protection::Identity);
    let source = scratch.dir("source");
    let mut random = Random::new(SEED);
    for i in 0..4 {
        plant::file(&source.join(format!("table-{i}")), &mut random, 128 << 20);
    }
    far.inject(Fault::new(Action::Delay(FAR)).path("/packs/"));
    let access = garage.access().at(&far.endpoint());
    let url = access.url("memory") + "&connections=64";
    let wide = repo.at(&url, &variables(&access.key));
    for (repo, sockets) in [(&repo, 2), (&wide, 8)] {
        let target = scratch.join("target");
        let mut verify = repo.command("verify");
        verify.arg("--json");
        let mut backup = repo.backup_command(&source);
        for command in [
            &mut backup,
            &mut repo.restore_command("latest", &target),
            // It reads furthest ahead.
            &mut verify,
        ] {
            let (outcome, seen) = Job::start(command).outcome_and_peaks();
            let summary = outcome.summary();
            let told = summary["engine"]["peak_rss_bytes"].as_u64();
            let told = told.expect("peak_rss_bytes");
            assert!(seen.rss_bytes > 0, "it was never looked at");
            assert!(
                seen.rss_bytes.max(told) < RSS_MAX,
                "{told} bytes of memory are told, {seen:?}\n{outcome}"
            );
            assert!(seen.sockets >= sockets, "{seen:?}\n{outcome}");
        }
        Tree::read(&source).assert_same(&Tree::read(&target), "restored");
        fs::remove_dir_all(&target).expect("target");
        // The next has something to store.
        for i in 0..4 {
            let table = source.join(format!("table-{i}"));
            plant::file(&table, &mut random, 128 << 20);
        }
    }
}
