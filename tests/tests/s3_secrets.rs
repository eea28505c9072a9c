//! What lets a job in for a time: keys and a session token of the environment, of a machine's role, of a container and of a web
//! identity, and what is shown to get those. None of it is shown to anybody else: not in the loudest log, not in what a verb
//! prints, and not where every user of the machine can look at a process.
//!
//! Invariants: each run logs in full and is looked at while it goes; the secrets have parts that no encoding changes.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use mover_test_servers::{
    Action, Fault, FaultProxy, FilesystemS3, Reply, Scripted, SessionCredentials,
};
use mover_tests::bucket::{repo_in, told, variables};
use mover_tests::job::{Job, wait_until};
use mover_tests::mover::{AnyRepo, Outcome, Protection, exit, secret_file};
use mover_tests::plant;
use mover_tests::random::Random;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;

/// Seed of what is planted here.
const SEED: u64 = 0x7333_5ec7;
/// What stands in the session token, in what a container shows to get its keys, in the token of a web identity, and in the one that
/// a machine's metadata service wants to see.
const SESSION: &str = "s3ss10n-of-a-test";
const CONTAINER: &str = "c0ntainer-of-a-test";
const IDENTITY: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJtb3ZlciJ9.s1gnature-of-a-test";
const METADATA: &str = "metadata-token";
/// The role that the web identity asks for.
const ROLE_ARN: &str = "arn:aws:iam::123456789012:role/mover";
/// How long the first request of a job waits, so that there is something to look at.
const MOMENT: Duration = Duration::from_millis(300);

/// A session token with what has to be encoded in some places.
fn token() -> String {
    format!("{SESSION}/+==")
}

/// A repository in a server that asks for the session token from now on.
struct Scene {
    server: FilesystemS3,
    repo: AnyRepo,
    source: PathBuf,
    scratch: Scratch,
}

impl Scene {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let server = FilesystemS3::start(scratch.path());
        let repo = repo_in(server.access(), &scratch, "hidden", Protection::None);
        let source = scratch.dir("source");
        plant::mixed(&source, &mut Random::new(SEED), 1 << 20);
        server.demand_token(&token());
        Scene {
            server,
            repo,
            source,
            scratch,
        }
    }

    /// The key of the server, as a role has it.
    fn session(&self) -> SessionCredentials {
        let key = &self.server.access().key;
        SessionCredentials {
            access_key_id: key.id.clone(),
            secret_access_key: key.secret.clone(),
            token: token(),
            expiration: "2099-01-01T00:00:00Z".to_owned(),
        }
    }

    /// A file that holds a secret.
    fn file(&self, name: &str, secret: &str) -> String {
        let file = self.scratch.join(name);
        secret_file(&file, &format!("{secret}\n"));
        file.display().to_string()
    }

    /// What nobody may see.
    fn secrets(&self) -> Vec<String> {
        let key = self.server.access().key.secret.clone();
        let encoded = key.replace('/', "%2F").replace('+', "%2B");
        let others = [SESSION, CONTAINER, IDENTITY, METADATA].map(str::to_owned);
        [key, encoded].into_iter().chain(others).collect()
    }

    /// The repository by means of these variables, by way of a proxy where the first request waits.
    fn by_proxy(&self, environment: &[(&str, &str)]) -> (FaultProxy, AnyRepo) {
        let access = self.server.access();
        let proxy = FaultProxy::start(&access.endpoint);
        proxy.inject(Fault::new(Action::Delay(MOMENT)).times(1));
        let url = access.at(&proxy.endpoint()).url("hidden");
        let repo = self.repo.at(&url, environment);
        (proxy, repo)
    }

    /// Runs `command` as loudly as it goes; no secret is seen.
    #[track_caller]
    fn loud(&self, mut command: Command) -> Outcome {
        let log = self.scratch.join("log");
        let file = File::create(&log).expect("a log");
        command.arg("-vv").env("HELIOS_MOVER_LOG", "trace");
        let mut job = Job::start_into(&mut command, Stdio::piped(), file.into());
        let process = PathBuf::from(format!("/proc/{}", job.id()));
        let mut seen = BTreeSet::new();
        wait_until(|| {
            seen.extend(in_plain_sight(&process));
            !job.is_running()
        });
        let outcome = job.outcome();
        let log = fs::read_to_string(&log).expect("a log");
        assert!(log.contains("TRACE"), "no trace\n{outcome}");
        let is_line = |text: &String| text.contains("--repo");
        assert!(seen.iter().any(is_line), "no command line in {seen:?}");
        for secret in self.secrets() {
            assert!(!log.contains(&secret), "{secret} is logged\n{outcome}");
            let stdout = &outcome.stdout;
            assert!(!stdout.contains(&secret), "{secret} is told\n{outcome}");
            let is_shown = seen.iter().any(|text| text.contains(&secret));
            assert!(!is_shown, "{secret} is in plain sight\n{outcome}");
        }
        outcome
    }

    /// Backs up, restores, and is refused, by means of these variables.
    #[track_caller]
    fn keeps_its_secrets(&self, environment: &[(&str, &str)]) {
        let (_proxy, repo) = self.by_proxy(environment);
        self.loud(repo.backup_command(&self.source)).summary();

        let target = self.scratch.join("target");
        let (_proxy, repo) = self.by_proxy(environment);
        self.loud(repo.restore_command("latest", &target)).summary();
        Tree::read(&self.source).assert_same(&Tree::read(&target), "restored");
        fs::remove_dir_all(&target).expect("target");

        let (proxy, repo) = self.by_proxy(environment);
        let refused = proxy.inject(Fault::new(Action::Answer(refusal())));
        let mut list = repo.command("list");
        list.arg("--json");
        let outcome = self.loud(list);
        let hint = "check AWS_ACCESS_KEY_ID";
        told(outcome, exit::STORAGE, "does not accept", hint);
        assert!(proxy.hits(refused) > 0);
    }
}

/// A refusal that quotes what was sent, as Amazon's do.
fn refusal() -> Reply {
    let token = token();
    let body = format!(
        "<Error><Code>InvalidToken</Code>\
         <Message>The provided token is malformed or otherwise invalid.</Message>\
         <Token-0>{token}</Token-0>\
         <CanonicalRequest>GET / x-amz-security-token:{token}</CanonicalRequest></Error>"
    );
    Reply::new(403, body).with("content-type", "application/xml")
}

/// What everybody can read of a process: its command line, and the names of its threads. Of one that has ended there is nothing.
fn in_plain_sight(process: &Path) -> Vec<String> {
    let threads = fs::read_dir(process.join("task")).into_iter().flatten();
    let names = threads.flatten().map(|thread| thread.path().join("comm"));
    let files = names.chain([process.join("cmdline"), process.join("comm")]);
    let texts = files.filter_map(|file| fs::read(file).ok());
    texts
        .map(|text| String::from_utf8_lossy(&text).into_owned())
        .collect()
}

#[test]
fn keys_of_the_environment_are_shown_to_nobody() {
    let scene = Scene::new("secrets-environment");
    let [id, secret] = variables(&scene.server.access().key);
    let token = token();
    scene.keeps_its_secrets(&[id, secret, ("AWS_SESSION_TOKEN", token.as_str())]);
}

#[test]
fn the_role_of_a_machine_is_shown_to_nobody() {
    let scene = Scene::new("secrets-machine");
    let service = Scripted::instance_metadata("mover-role", &[scene.session()]);
    let endpoint = service.endpoint();
    scene.keeps_its_secrets(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint.as_str())]);
    assert!(!service.requests().is_empty(), "the machine was not asked");
}

#[test]
fn what_a_container_is_given_and_what_it_shows_for_it_is_shown_to_nobody() {
    let scene = Scene::new("secrets-container");
    let authorization = format!("Bearer {CONTAINER}");
    let service = Scripted::container_credentials(&authorization, &[scene.session()]);
    let uri = format!("{}/credentials", service.endpoint());
    let uri = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri.as_str());
    let file = scene.file("authorization", &authorization);
    for shown in [
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", authorization.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file.as_str()),
    ] {
        let before = service.requests().len();
        scene.keeps_its_secrets(&[uri, shown]);
        assert!(service.requests().len() > before, "{}", shown.0);
    }
}

#[test]
fn a_web_identity_and_its_role_are_shown_to_nobody() {
    let scene = Scene::new("secrets-web-identity");
    let service = Scripted::web_identity(ROLE_ARN, &[(IDENTITY, scene.session())]);
    let file = scene.file("identity-token", IDENTITY);
    let endpoint = service.endpoint();
    scene.keeps_its_secrets(&[
        ("AWS_ROLE_ARN", ROLE_ARN),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", file.as_str()),
        ("AWS_ENDPOINT_URL_STS", endpoint.as_str()),
    ]);
    assert!(!service.requests().is_empty(), "no role was asked for");
}
