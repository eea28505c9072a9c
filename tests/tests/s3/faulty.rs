//! Whole jobs behind a proxy that does to their requests what networks and servers do: faults that pass are outlived by
//! every verb, on a store that keeps conditional writes and on one that does not; faults that stay end a job with an error
//! that is worth another try, and harm nothing that was there before.
//!
//! Invariants: each fault is met, by each verb that sends requests of its kind, which is asserted; what a job came to is looked
//! at on the server itself, past the proxy; jobs that are to give up go by a clock that is fast once they are harmed, so that the two
//! minutes which they hold on take seconds.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use mover_test_servers::{
    Access, Action, Fault, FaultId, FaultProxy, FilesystemS3, Garage, GarageCluster,
};
use mover_tests::bucket::{repo_in, told, variables};
use mover_tests::clock;
use mover_tests::job::{Job, wait_until};
use mover_tests::mover::{AnyRepo, Outcome, Protection, exit};
use mover_tests::plant;
use mover_tests::proof::{change, restores_to};
use mover_tests::random::Random;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;

use super::{SEED, objects};

/// How many of a verb's requests a fault hits beside those that it hits for certain, and at most.
const CHANCE: f64 = 0.15;
const HITS_MAX: u64 = 10;
/// The same of writes, of which there are few.
const CHANCE_OF_WRITES: f64 = 0.5;
/// `timeout=` where every request that is not answered costs a test so much.
const SILENCE_S: u64 = 1;
/// The same where a pack is taken in slowly: so long, and as long again as its bytes may lie in the kernel, it is waited for.
const SLOWNESS_S: u64 = 5;
/// `timeout=` elsewhere, the default.
const TIMEOUT_S: u64 = 30;
/// Faults that happen at a time, each to a repository of its own.
const LANES: usize = 3;

/// The clock of a job that is to give up is so much faster from the harm on.
const FASTER: u32 = 20;
/// `timeout=` by that clock: a machine under load has five seconds to answer, and more before.
const FAST_TIMEOUT_S: u64 = 100;
/// Tries that a shard has saved, and gets back each second (`TRIES_SAVED_MAX` and `TRIES_PER_SECOND` of the product).
const TRIES_SAVED_MAX: f64 = 600.0;
const TRIES_PER_SECOND: f64 = 4.0;
/// First tries, which nobody pays for: of what is in flight, and of what a job takes back at its end.
const FIRST_TRIES_MAX: f64 = 100.0;
/// Tries in two minutes if each took as long as it may, and then more than twice as long for the load.
const TRIES_MIN: u64 = 5;

/// How a job's requests go to the proxy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Plain,
    /// Within TLS, which breaks with its connection; no body is signed.
    Tls,
    /// Bodies signed chunk by chunk as they go.
    Chunks,
}

/// What a repository goes through. Each meets the fault anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Init,
    Backup,
    /// With a parent, of which it reads.
    BackupAgain,
    List,
    Verify,
    Restore,
    Expire,
}

/// All of them, those that write, those that make a backup, and those that read packs.
const ALL: [Verb; 7] = [
    Verb::Init,
    Verb::Backup,
    Verb::BackupAgain,
    Verb::List,
    Verb::Verify,
    Verb::Restore,
    Verb::Expire,
];
const WRITING: [Verb; 4] = [Verb::Init, Verb::Backup, Verb::BackupAgain, Verb::Expire];
const BACKUPS: [Verb; 2] = [Verb::Backup, Verb::BackupAgain];
const READING: [Verb; 3] = [Verb::BackupAgain, Verb::Verify, Verb::Restore];

impl Verb {
    /// What is in the paths of the objects that it is about: it cannot do without them.
    fn core(self) -> &'static str {
        match self {
            Verb::Init => "/keys/",
            Verb::Backup | Verb::BackupAgain | Verb::Verify | Verb::Restore => "/packs/",
            Verb::List => "/backups/",
            Verb::Expire => "/expired/",
        }
    }
}

/// A fault that passes.
struct Passing {
    name: &'static str,
    /// What happens, and which requests it may hit.
    fault: Fault,
    /// Verbs whose first such request it hits for certain.
    first: &'static [Verb],
    /// Verbs whose first such request for an object of their core it hits for certain.
    core: &'static [Verb],
    /// How many it hits there, one after the other.
    times: u64,
    /// Which part of the others it hits.
    chance: f64,
    timeout_s: u64,
}

impl Passing {
    /// One that every verb meets, at its first request and at its core for certain, and at others by chance.
    fn new(name: &'static str, fault: Fault) -> Self {
        Passing {
            name,
            fault,
            first: &ALL,
            core: &ALL,
            times: 1,
            chance: CHANCE,
            timeout_s: TIMEOUT_S,
        }
    }

    /// The same for those that take long: the first such requests of these verbs meet it, and no others.
    fn at_first(self, first: &'static [Verb]) -> Self {
        Passing {
            first,
            core: &[],
            chance: 0.0,
            ..self
        }
    }
}

/// The faults that every job has to end well over.
fn passing_faults() -> Vec<Passing> {
    let any = |name, action| Passing::new(name, Fault::new(action));
    let writes = |name, action| Passing {
        first: &WRITING,
        core: &WRITING,
        chance: CHANCE_OF_WRITES,
        ..Passing::new(name, Fault::new(action).method("PUT"))
    };
    let silence = |name, fault| Passing {
        chance: 0.0,
        timeout_s: SILENCE_S,
        ..Passing::new(name, fault)
    };
    let slow = Action::SlowReply(1024);
    let listings = Fault::new(slow.clone()).query("list-type");
    let packs = Fault::new(slow).method("GET").path("/packs/");
    let written = Fault::new(Action::SlowRequest(1024)).method("PUT");
    vec![
        any("reset-before", Action::ResetBeforeRequest),
        writes("reset-within", Action::ResetAfterRequestBytes(100_000)),
        any("lost-reply", Action::LostReply),
        any("twice", Action::Duplicate),
        any("internal-error", Action::error(500, "InternalError")),
        any("slow-down", Action::slow_down()),
        writes("conflict", Action::error(409, "ConditionalRequestConflict")),
        // Where bytes of an object were asked for, it is told by the ETag that is missing.
        any("error-in-200", Action::ErrorIn200("InternalError".into())),
        any("truncated", Action::TruncateReply(100)),
        any("late", Action::Delay(Duration::from_millis(300))),
        Passing {
            times: 2,
            ..Passing::new("slow", listings).at_first(&ALL)
        },
        Passing::new("slow-packs", packs).at_first(&READING),
        Passing {
            timeout_s: SLOWNESS_S,
            ..Passing::new("slow-writes", written.path("/packs/")).at_first(&BACKUPS)
        },
        silence("stalled", Fault::new(Action::Stall)),
        silence("silent", Fault::new(Action::SilentReply)),
        Passing {
            core: &[Verb::BackupAgain, Verb::List, Verb::Verify, Verb::Restore],
            ..silence(
                "stalled-within",
                Fault::new(Action::StallReply(50)).method("GET"),
            )
        },
    ]
}

/// Those of them that meet what is different on another way than the plain one.
fn faults_of(way: Way) -> Vec<Passing> {
    let names: &[&str] = match way {
        Way::Plain => return passing_faults(),
        Way::Tls => &[
            "reset-before",
            "reset-within",
            "lost-reply",
            "truncated",
            "slow-down",
            "stalled-within",
        ],
        Way::Chunks => &[
            "reset-within",
            "lost-reply",
            "twice",
            "internal-error",
            "conflict",
            "stalled",
        ],
    };
    let mut faults = passing_faults();
    faults.retain(|passing| names.contains(&passing.name));
    assert_eq!(faults.len(), names.len());
    faults
}

/// `repo`, which lies below `prefix`, by way of `proxy`.
fn by(
    proxy: &FaultProxy,
    repo: &AnyRepo,
    access: &Access,
    prefix: &str,
    timeout_s: u64,
) -> AnyRepo {
    let url = access.at(&proxy.endpoint()).url(prefix);
    let url = format!("{url}&timeout={timeout_s}");
    repo.at(&url, &variables(&access.key))
}

/// The id of a backup that was made.
#[track_caller]
fn id_of(made: &Outcome) -> String {
    made.summary()["backup_id"].as_str().expect("id").to_owned()
}

/// What the server holds, seen without the code under test: so many backups, and nothing that a job takes back.
#[track_caller]
fn holds_backups(access: &Access, prefix: &str, count: usize) {
    let objects = objects(access, prefix).into_iter();
    let keys: Vec<String> = objects.map(|object| object.key).collect();
    let below = |part: &str| {
        let part = format!("{prefix}/{part}/");
        keys.iter().filter(|key| key.starts_with(&part)).count()
    };
    assert_eq!(below("backups"), count, "{keys:?}");
    assert_eq!(below("tmp") + below("sessions"), 0, "{keys:?}");
}

/// Keeps the newest backup only.
fn expire(repo: &AnyRepo) -> Outcome {
    let mut command = repo.command("expire");
    Outcome::of(command.args(["--keep-last", "1", "--confirm", "--json"]))
}

/// A repository whose every verb goes by way of a new proxy and meets the fault there.
struct Life<'a> {
    passing: &'a Passing,
    way: Way,
    access: &'a Access,
    scratch: &'a Scratch,
    /// The repository without a proxy.
    direct: &'a AnyRepo,
    /// What the signatures of all requests cover.
    signed: Vec<String>,
}

impl Life<'_> {
    /// Does `work` on the repository while the fault happens, which is asserted.
    #[track_caller]
    fn meets<T>(&mut self, verb: Verb, work: impl FnOnce(&AnyRepo) -> T) -> T {
        let (proxy, repo) = self.by_proxy();
        let Passing { name, fault, .. } = self.passing;
        let certain = |verbs: &[Verb], fault: Fault| {
            let is_met = verbs.contains(&verb);
            is_met.then(|| proxy.inject(fault.times(self.passing.times)))
        };
        // Of several faults that match, the one that was there first hits.
        let first = certain(self.passing.first, fault.clone());
        let core = certain(self.passing.core, fault.clone().path(verb.core()));
        let seed = SEED ^ verb as u64;
        let others = fault.clone().chance(self.passing.chance, seed);
        let others = proxy.inject(others.times(HITS_MAX));

        let done = work(&repo);
        let hits = |id: Option<FaultId>| id.map(|id| proxy.hits(id));
        let seen = proxy.seen();
        for hits in [hits(first), hits(core)] {
            assert_ne!(hits, Some(0), "{name} did not happen in {verb:?}: {seen:?}");
        }
        let all = [first, core, Some(others)].into_iter().flat_map(hits);
        let all: u64 = all.sum();
        eprintln!("{name}, {verb:?}: {all} of {} requests", seen.len());
        let signed = proxy.signed();
        assert!(signed.len() >= seen.len(), "some do not say what is signed");
        self.signed.extend(signed);
        done
    }

    /// The repository by way of a new proxy.
    fn by_proxy(&self) -> (FaultProxy, AnyRepo) {
        let Passing {
            name, timeout_s, ..
        } = *self.passing;
        let upstream = &self.access.endpoint;
        let (proxy, more) = match self.way {
            Way::Plain => (FaultProxy::start(upstream), String::new()),
            Way::Tls => {
                let ca = self.scratch.join(format!("ca-{name}.pem"));
                let proxy = FaultProxy::start_tls(upstream, &ca);
                (proxy, format!("&ca={}", ca.display()))
            }
            Way::Chunks => (FaultProxy::start(upstream), "&sign=chunks".to_owned()),
        };
        let repo = by(&proxy, self.direct, self.access, name, timeout_s);
        let url = format!("{}{more}", repo.url());
        let repo = repo.at(&url, &variables(&self.access.key));
        (proxy, repo)
    }

    /// That the way was the one it should be: no body goes unsigned where nothing else protects it.
    #[track_caller]
    fn went_its_way(&self) {
        let is_hash = |signed: &String| {
            signed.len() == 64 && signed.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        let other = match self.way {
            Way::Plain => None,
            Way::Tls => Some("UNSIGNED-PAYLOAD"),
            Way::Chunks => Some("STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
        };
        let others: BTreeSet<&str> = self
            .signed
            .iter()
            .filter(|signed| !is_hash(signed))
            .map(String::as_str)
            .collect();
        assert_eq!(others, other.into_iter().collect());
    }
}

/// Every verb of a repository's life while a fault happens again and again.
fn lives_over(passing: &Passing, way: Way, access: &Access, scratch: &Scratch) {
    let name = passing.name;
    let environment = variables(&access.key);
    let url = access.url(name);
    let (direct, init) = AnyRepo::prepare(scratch, name, &url, &environment, Protection::Identity);
    let mut life = Life {
        passing,
        way,
        access,
        scratch,
        direct: &direct,
        signed: Vec::new(),
    };
    life.meets(Verb::Init, |repo| {
        Outcome::of(&mut repo.init_command(&init)).expect(exit::OK);
    });

    let source = scratch.dir(format!("source-{name}"));
    let mut random = Random::new(SEED);
    plant::mixed(&source, &mut random, 1 << 20);
    plant::small_files(&source, &mut random, 200);
    let before = Tree::read(&source);
    let first = life.meets(Verb::Backup, |repo| id_of(&repo.backup(&source)));
    change(&source, &mut random);
    let after = Tree::read(&source);
    let second = life.meets(Verb::BackupAgain, |repo| id_of(&repo.backup(&source)));

    let ids = [first.as_str(), second.as_str()];
    assert_eq!(life.meets(Verb::List, AnyRepo::ids), ids, "{name}");
    assert_eq!(direct.ids(), ids, "{name}");
    life.meets(Verb::Verify, |repo| {
        repo.verify().expect(exit::OK);
    });
    direct.verify().expect(exit::OK);
    for (id, truth) in ids.into_iter().zip([&before, &after]) {
        life.meets(Verb::Restore, |repo| restores_to(repo, id, truth, scratch));
        restores_to(&direct, id, truth, scratch);
    }
    holds_backups(access, name, 2);

    life.meets(Verb::Expire, |repo| {
        expire(repo).expect(exit::OK);
    });
    assert_eq!(direct.ids(), ids[1..], "{name}");
    holds_backups(access, name, 1);
    direct.verify().expect(exit::OK);
    restores_to(&direct, ids[1], &after, scratch);
    life.went_its_way();
}

/// Several at a time, since most of it is waiting.
fn all_live_over(faults: &[Passing], way: Way, access: &Access, scratch: &Scratch) {
    thread::scope(|scope| {
        for lane in 0..LANES {
            scope.spawn(move || {
                let of_lane = faults.iter().skip(lane).step_by(LANES);
                of_lane.for_each(|passing| lives_over(passing, way, access, scratch));
            });
        }
    });
}

#[test]
fn jobs_end_well_over_every_fault_that_passes() {
    let scratch = Scratch::new("s3-passing");
    let server = FilesystemS3::start(scratch.path());
    let mut faults = faults_of(Way::Plain);
    // As where an object was there when the write came, and is gone when one looks: as often as that is believed.
    let refused = Fault::new(Action::error(412, "PreconditionFailed")).method("PUT");
    faults.push(Passing {
        times: 3,
        ..Passing::new("refused", refused.path("/backups/")).at_first(&BACKUPS)
    });
    all_live_over(&faults, Way::Plain, server.access(), &scratch);
}

/// Here every new object is claimed first, which takes more requests.
#[test]
fn jobs_end_well_over_every_fault_that_passes_where_conditions_are_ignored() {
    let scratch = Scratch::new("s3-passing-claims");
    let garage = Garage::start(scratch.path());
    all_live_over(
        &faults_of(Way::Plain),
        Way::Plain,
        garage.access(),
        &scratch,
    );
}

#[test]
fn jobs_end_well_over_faults_that_pass_within_tls() {
    let scratch = Scratch::new("s3-passing-tls");
    let server = FilesystemS3::start(scratch.path());
    all_live_over(&faults_of(Way::Tls), Way::Tls, server.access(), &scratch);
}

#[test]
fn jobs_end_well_over_faults_that_pass_where_bodies_are_signed_in_chunks() {
    let scratch = Scratch::new("s3-passing-chunks");
    let garage = Garage::start(scratch.path());
    all_live_over(
        &faults_of(Way::Chunks),
        Way::Chunks,
        garage.access(),
        &scratch,
    );
}

/// A repository with one backup, in Garage, and a source that has changed since.
struct Kept {
    garage: Garage,
    repo: AnyRepo,
    source: PathBuf,
    kept: Tree,
    scratch: Scratch,
}

impl Kept {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let garage = Garage::start(scratch.path());
        let repo = repo_in(garage.access(), &scratch, "kept", Protection::Identity);
        let source = scratch.dir("source");
        let mut random = Random::new(SEED);
        plant::mixed(&source, &mut random, 4 << 20);
        let kept = Tree::read(&source);
        repo.backup(&source).summary();
        change(&source, &mut random);
        Kept {
            garage,
            repo,
            source,
            kept,
            scratch,
        }
    }

    /// The same by way of a new proxy.
    fn by_proxy(&self) -> (FaultProxy, AnyRepo) {
        let access = self.garage.access();
        let proxy = FaultProxy::start(&access.endpoint);
        let repo = by(&proxy, &self.repo, access, "kept", FAST_TIMEOUT_S);
        (proxy, repo)
    }

    /// Where nothing may appear.
    fn target(&self, name: &str) -> PathBuf {
        self.scratch.join(format!("never-{name}"))
    }

    /// What was there is there, nothing else came into being, and work goes on.
    #[track_caller]
    fn is_unharmed(&self, targets: &[&str]) {
        for name in targets {
            let target = self.target(name);
            assert!(!target.exists(), "{} was published", target.display());
        }
        assert_eq!(self.repo.ids().len(), 1, "a backup that failed is listed");
        self.repo.verify().expect(exit::OK);
        restores_to(&self.repo, "latest", &self.kept, &self.scratch);
        let made = id_of(&self.repo.backup(&self.source));
        let truth = Tree::read(&self.source);
        restores_to(&self.repo, &made, &truth, &self.scratch);
        self.repo.verify().expect(exit::OK);
    }
}

/// Runs a job, and does `harm` when the first of its requests of this kind for a pack has arrived at the proxy, where it stays;
/// from then on the job's clock is fast. Returns how the job ended.
#[track_caller]
fn harmed(
    command: &mut Command,
    proxy: FaultProxy,
    method: &str,
    harm: impl FnOnce(FaultProxy),
) -> Outcome {
    let pace = clock::Pace::of(command);
    let first = Fault::new(Action::Hold).method(method).path("/packs/");
    proxy.inject(first.times(1));
    let mut job = Job::start(command);
    wait_until(|| proxy.held() > 0 || !job.is_running());
    assert!(job.is_running(), "ended too early\n{}", job.outcome());
    harm(proxy);
    pace.set(FASTER);
    wait_until(|| !job.is_running());
    job.outcome()
}

#[test]
fn a_server_that_dies_for_good_ends_jobs_with_a_retryable_error() {
    let kept = Kept::new("s3-dies");
    let gone = ("the store cannot be reached", "check endpoint");
    let mute = ("the store does not answer", "check the server");
    let ends = |name: &str, is_mute: bool| {
        let (proxy, repo) = kept.by_proxy();
        let (method, mut command) = match name.starts_with("backup") {
            true => ("PUT", repo.backup_command(&kept.source)),
            false => ("GET", repo.restore_command("latest", &kept.target(name))),
        };
        let mut mute_proxy = None;
        let begun = Instant::now();
        let outcome = harmed(&mut command, proxy, method, |proxy| {
            if is_mute {
                proxy.inject(Fault::new(Action::Stall));
                mute_proxy = Some(proxy);
            }
        });
        eprintln!("{name}: {:?}\n{outcome}", begun.elapsed());
        let (message, hint) = if is_mute { mute } else { gone };
        assert!(outcome.error()["object"].is_string(), "{outcome}");
        told(outcome, exit::UNREACHABLE, message, hint);
    };
    thread::scope(|scope| {
        for (name, is_mute) in [
            ("backup-gone", false),
            ("backup-mute", true),
            ("restore-gone", false),
            ("restore-mute", true),
        ] {
            scope.spawn(move || ends(name, is_mute));
        }
    });
    kept.is_unharmed(&["restore-gone", "restore-mute"]);
}

/// How many requests a fault has hit, and that they are no more than a shard may have sent in `time` by a fast clock.
#[track_caller]
fn is_bounded(proxy: &FaultProxy, storm: FaultId, time: Duration) {
    let hits = proxy.hits(storm);
    let seconds = time.as_secs_f64() * f64::from(FASTER);
    let tries_max = TRIES_SAVED_MAX + TRIES_PER_SECOND * seconds + FIRST_TRIES_MAX;
    eprintln!("{hits} requests in {seconds:.0} s, of {tries_max:.0}");
    assert!(hits >= TRIES_MIN, "{hits} requests: given up at once");
    assert!((hits as f64) < tries_max, "{hits} requests in {seconds} s");
}

#[test]
fn a_storm_without_end_is_given_up_with_a_retryable_error() {
    let kept = Kept::new("s3-storm");
    let ends = |name: &str, action: Action, said: &str| {
        let (proxy, repo) = kept.by_proxy();
        let (method, mut command) = match name.starts_with("backup") {
            true => ("PUT", repo.backup_command(&kept.source)),
            false => ("GET", repo.restore_command("latest", &kept.target(name))),
        };
        command.args(["--shards", "1"]);
        let mut storm = None;
        let outcome = harmed(&mut command, proxy, method, |proxy| {
            let begun = (proxy.inject(Fault::new(action)), Instant::now());
            if method == "PUT" {
                assert_eq!(proxy.release(), [200]);
            }
            storm = Some((proxy, begun));
        });
        eprintln!("{name}\n{outcome}");
        let (proxy, (storm, begun)) = storm.expect("it began");
        is_bounded(&proxy, storm, begun.elapsed());
        let error = outcome.error();
        let cause = error["cause"].as_str().unwrap_or_default();
        assert!(cause.contains(said), "{outcome}");
        assert!(error["object"].is_string(), "{outcome}");
        told(
            outcome,
            exit::UNREACHABLE,
            "the store failed to",
            "try again",
        );
    };
    thread::scope(|scope| {
        for verb in ["backup", "restore"] {
            scope.spawn(move || ends(&format!("{verb}-503"), Action::slow_down(), "HTTP 503"));
            let failure = Action::error(500, "InternalError");
            scope.spawn(move || ends(&format!("{verb}-500"), failure, "HTTP 500"));
        }
    });
    kept.is_unharmed(&["restore-503", "restore-500"]);
}

/// Nobody deletes here what was written; a server that says so without end is not believed without end.
#[test]
fn a_write_that_is_refused_for_what_does_not_exist_ends_in_a_conflict() {
    let scratch = Scratch::new("s3-refused-writes");
    let server = FilesystemS3::start(scratch.path());
    let access = server.access();
    let direct = repo_in(access, &scratch, "refused", Protection::Identity);
    let proxy = FaultProxy::start(&access.endpoint);
    let repo = by(&proxy, &direct, access, "refused", TIMEOUT_S);
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(SEED), 1 << 20);
    let refusal = Fault::new(Action::error(412, "PreconditionFailed")).method("PUT");
    let refusal = proxy.inject(refusal.path("/backups/"));
    told(
        repo.backup(&source),
        exit::CONFLICT,
        "comes and goes while it is written",
        "try again",
    );
    assert!(proxy.hits(refusal) > 0);
    assert!(direct.ids().is_empty());
    // The session stays: as far as the job knows, what was written may be there in a moment, and needs its packs.
    assert!(objects(access, "refused/backups").is_empty());
    let made = id_of(&direct.backup(&source));
    restores_to(&direct, &made, &Tree::read(&source), &scratch);
    direct.verify().expect(exit::OK);
}

/// Two jobs at once, each by way of another node.
fn at_once(mut commands: [Command; 2]) -> [Outcome; 2] {
    let jobs = commands.each_mut().map(Job::start);
    jobs.map(Job::outcome)
}

#[test]
fn two_writers_through_two_nodes_of_a_cluster_agree() {
    const CONTESTS: usize = 3;
    let scratch = Scratch::new("s3-nodes");
    let cluster = GarageCluster::start(scratch.path());
    let environment = variables(&cluster.access(0).key);
    let mut winner = None;
    for round in 0..CONTESTS {
        let prefix = format!("round-{round}");
        let rivals = [0, 1].map(|node| {
            let name = format!("{prefix}-{node}");
            let url = cluster.access(node).url(&prefix);
            AnyRepo::prepare(&scratch, &name, &url, &environment, Protection::Identity)
        });
        let outcomes = at_once(
            rivals
                .each_ref()
                .map(|(repo, init)| repo.init_command(init)),
        );
        let won = match outcomes.each_ref().map(|outcome| outcome.code) {
            [Some(exit::OK), Some(exit::CONFLICT)] => 0,
            [Some(exit::CONFLICT), Some(exit::OK)] => 1,
            _ => panic!("round {round}\n{}\n{}", outcomes[0], outcomes[1]),
        };
        rivals[1 - won].0.list().expect(exit::KEY);
        winner = Some((prefix, rivals[won].0.clone()));
    }
    let (prefix, winner) = winner.expect("there was a contest");
    let through = |node: usize| winner.at(&cluster.access(node).url(&prefix), &environment);

    let sources = ["left", "right"].map(|side| {
        let source = scratch.dir(side);
        let seed = SEED ^ side.len() as u64;
        plant::mixed(&source, &mut Random::new(seed), 4 << 20);
        source
    });
    cluster.kill(2);
    let made = at_once([0, 1].map(|node| through(node).backup_command(&sources[node])));
    let made = made.each_ref().map(id_of);
    for node in [0, 1] {
        assert_eq!(through(node).ids().len(), 2, "by way of node {node}");
        let other = 1 - node;
        let truth = Tree::read(&sources[other]);
        restores_to(&through(node), &made[other], &truth, &scratch);
    }

    // The node that was away has not seen them yet, and one of those that took them in goes.
    cluster.restart(2);
    cluster.kill(0);
    expire(&through(2)).expect(exit::OK);
    // Each source keeps its newest.
    assert_eq!(through(2).ids().len(), 2);
    change(&sources[0], &mut Random::new(SEED));
    let newest = id_of(&through(1).backup(&sources[0]));
    expire(&through(2)).expect(exit::OK);
    let ids = through(1).ids();
    assert_eq!(ids.len(), 2, "{ids:?}");
    assert!(!ids.contains(&made[0]), "{ids:?}");
    for (id, source) in [(&newest, &sources[0]), (&made[1], &sources[1])] {
        restores_to(&through(2), id, &Tree::read(source), &scratch);
    }
    through(1).verify().expect(exit::OK);
}
