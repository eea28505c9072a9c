//! Whole jobs behind a proxy that does to their requests what networks and servers do: faults that pass are outlived by
//! every verb, on a store that keeps conditional writes and on one that does not; faults that stay end a job with an error
//! that is worth another try, and harm nothing that was there before.
//!
//! Invariants: each fault is met, which is asserted; what a job came to is looked at on the server itself, past the
//! proxy; jobs that are to give up run by a clock that is fast, so that the two minutes which they hold on take seconds.

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

/// How many of the requests that a fault may hit it does hit, and at most.
const CHANCE: f64 = 0.15;
const HITS_MAX: u64 = 40;
/// The same of writes, of which there are few.
const CHANCE_OF_WRITES: f64 = 0.5;
/// `timeout=` where every request that is not answered costs a test so much, and how many are not.
const SILENCE_S: u64 = 1;
const SILENCES: u64 = 3;
/// `timeout=` elsewhere, the default.
const TIMEOUT_S: u64 = 30;
/// Faults that happen at a time, each to a repository of its own.
const LANES: usize = 3;

/// The clock of a job that is to give up is so much faster.
const FASTER: u32 = 20;
/// `timeout=` by that clock: a machine under load has five seconds to answer.
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

/// A fault that passes.
struct Passing {
    name: &'static str,
    fault: Fault,
    timeout_s: u64,
}

/// The faults that every job has to end well over.
fn passing_faults() -> Vec<Passing> {
    let any = |action| Fault::new(action).chance(CHANCE, SEED).times(HITS_MAX);
    let writes = |action| {
        let fault = Fault::new(action).method("PUT");
        fault.chance(CHANCE_OF_WRITES, SEED).times(HITS_MAX)
    };
    let silence = |action| any(action).times(SILENCES);
    let listings = |action| Fault::new(action).query("list-type").times(SILENCES);
    let packs = |method, action| {
        let fault = Fault::new(action).method(method);
        fault.path("/packs/").times(SILENCES)
    };
    let conflict = Action::error(409, "ConditionalRequestConflict");
    let late = Action::Delay(Duration::from_millis(300));
    [
        ("reset-before", any(Action::ResetBeforeRequest), TIMEOUT_S),
        (
            "reset-within",
            writes(Action::ResetAfterRequestBytes(100_000)),
            TIMEOUT_S,
        ),
        ("lost-reply", any(Action::LostReply), TIMEOUT_S),
        ("twice", any(Action::Duplicate), TIMEOUT_S),
        (
            "internal-error",
            any(Action::error(500, "InternalError")),
            TIMEOUT_S,
        ),
        ("slow-down", any(Action::slow_down()), TIMEOUT_S),
        ("conflict", writes(conflict), TIMEOUT_S),
        // Where bytes of an object were asked for, it is told by the ETag that is missing.
        (
            "error-in-200",
            any(Action::ErrorIn200("InternalError".into())),
            TIMEOUT_S,
        ),
        ("truncated", any(Action::TruncateReply(100)), TIMEOUT_S),
        ("late", any(late), TIMEOUT_S),
        ("slow", listings(Action::SlowReply(1024)), TIMEOUT_S),
        (
            "slow-packs",
            packs("GET", Action::SlowReply(1024)),
            TIMEOUT_S,
        ),
        (
            "slow-writes",
            packs("PUT", Action::SlowRequest(1024)),
            TIMEOUT_S,
        ),
        ("stalled", silence(Action::Stall), SILENCE_S),
        ("silent", silence(Action::SilentReply), SILENCE_S),
        (
            "stalled-within",
            silence(Action::StallReply(50)).method("GET"),
            SILENCE_S,
        ),
    ]
    .map(|(name, fault, timeout_s)| Passing {
        name,
        fault,
        timeout_s,
    })
    .into()
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

/// Every verb of a repository's life while a fault happens again and again.
fn lives_over(passing: &Passing, way: Way, access: &Access, scratch: &Scratch) {
    let Passing {
        name, timeout_s, ..
    } = *passing;
    let ca = scratch.join(format!("ca-{name}.pem"));
    let (proxy, more) = match way {
        Way::Plain => (FaultProxy::start(&access.endpoint), String::new()),
        Way::Tls => {
            let proxy = FaultProxy::start_tls(&access.endpoint, &ca);
            (proxy, format!("&ca={}", ca.display()))
        }
        Way::Chunks => {
            let proxy = FaultProxy::start(&access.endpoint);
            (proxy, "&sign=chunks".to_owned())
        }
    };
    let fault = proxy.inject(passing.fault.clone());
    let environment = variables(&access.key);
    let direct = access.url(name);
    let (direct, init) =
        AnyRepo::prepare(scratch, name, &direct, &environment, Protection::Identity);
    let repo = by(&proxy, &direct, access, name, timeout_s);
    let repo = repo.at(&format!("{}{more}", repo.url()), &environment);
    Outcome::of(&mut repo.init_command(&init)).expect(exit::OK);

    let source = scratch.dir(format!("source-{name}"));
    let mut random = Random::new(SEED);
    plant::mixed(&source, &mut random, 1 << 20);
    plant::small_files(&source, &mut random, 200);
    let before = Tree::read(&source);
    let first = id_of(&repo.backup(&source));
    change(&source, &mut random);
    let after = Tree::read(&source);
    let second = id_of(&repo.backup(&source));
    for repo in [&repo, &direct] {
        assert_eq!(repo.ids(), [first.as_str(), second.as_str()], "{name}");
        repo.verify().expect(exit::OK);
        restores_to(repo, &first, &before, scratch);
        restores_to(repo, &second, &after, scratch);
    }
    holds_backups(access, name, 2);

    expire(&repo).expect(exit::OK);
    assert_eq!(direct.ids(), [second.as_str()], "{name}");
    holds_backups(access, name, 1);
    direct.verify().expect(exit::OK);
    restores_to(&direct, &second, &after, scratch);
    let hits = proxy.hits(fault);
    eprintln!("{name}: {hits} of {} requests", proxy.seen().len());
    assert!(hits > 0, "{name} happened");
    // That the way was the one it should be.
    let signed = proxy.signed();
    let any = |of: &str| signed.iter().any(|signed| signed.starts_with(of));
    match way {
        Way::Plain => {}
        Way::Tls => assert!(any("UNSIGNED-PAYLOAD"), "{signed:?}"),
        Way::Chunks => assert!(any("STREAMING-"), "{signed:?}"),
    }
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
        name: "refused",
        fault: refused.path("/backups/").times(3),
        timeout_s: TIMEOUT_S,
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

/// Runs a job by a clock that is fast, and does `harm` when the first of its requests of this kind for a pack has
/// arrived at the proxy, where it stays. Returns how the job ended.
#[track_caller]
fn harmed(
    command: &mut Command,
    proxy: FaultProxy,
    method: &str,
    harm: impl FnOnce(FaultProxy),
) -> Outcome {
    clock::faster(command, FASTER);
    let first = Fault::new(Action::Hold).method(method).path("/packs/");
    proxy.inject(first.times(1));
    let mut job = Job::start(command);
    wait_until(|| proxy.held() > 0 || !job.is_running());
    assert!(job.is_running(), "ended too early\n{}", job.outcome());
    harm(proxy);
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
