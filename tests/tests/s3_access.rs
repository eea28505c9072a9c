//! How the tool reaches a store and is let in: keys of the environment, of a machine, of a container and of a web
//! identity, until they run out; proxies, with and without TLS; authorities; and names with several addresses.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use mover_test_servers::{
    Action, Conditions, Fault, FaultProxy, FilesystemOptions, FilesystemS3, Reply, Scripted,
    SessionCredentials, Tls, Tunnel, free_ports,
};
use mover_tests::bucket::{RATE, UNDER_WAY_BYTES, in_the_middle_of, repo_in, told, variables};
use mover_tests::job::{Job, wait_until};
use mover_tests::mover::{AnyRepo, Outcome, Protection, exit, secret_file};
use mover_tests::plant;
use mover_tests::proof::{disk_bytes, restores_to};
use mover_tests::random::Random;
use mover_tests::run::run;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;

/// Seed of everything that is planted here.
const SEED: u64 = 0x7333_acce;
/// The role that web identities ask for here.
const ROLE_ARN: &str = "arn:aws:iam::123456789012:role/mover";
const TLS: FilesystemOptions = FilesystemOptions {
    tls: Tls::Signed,
    conditions: Conditions::Atomic,
};

/// On a machine without metadata nobody is there to be asked, or whoever is knows of no role.
#[test]
fn without_any_credentials_the_tool_says_so_after_one_look() {
    let demanding = Demanding::new("s3-no-credentials", "any");
    let [port] = free_ports();
    let silent = SocketAddr::from(([127, 0, 0, 1], port));
    let _silent = Dead::silent(silent);
    let nothing = Scripted::start(|_, _| Reply::new(404, ""));
    for metadata in [
        "http://127.0.0.1:9".to_owned(),
        format!("http://{silent}"),
        nothing.endpoint(),
    ] {
        let repo = demanding.with(&[(METADATA, &metadata)]);
        // Whoever waits for the service for ever is noticed after a minute.
        let mut list = Job::start(repo.command("list").arg("--json"));
        wait_until(|| !list.is_running());
        told(
            list.outcome(),
            exit::STORAGE,
            "no usable credentials",
            "AWS_ACCESS_KEY_ID",
        );
    }
    let asked = nothing.requests();
    assert_eq!(asked.len(), 1, "{asked:?}");
}

/// Who names one does not mean what the machine has for everybody.
#[test]
fn a_profile_that_gives_nothing_is_told_and_the_role_of_the_machine_is_not_taken() {
    let demanding = Demanding::new("s3-profile", "role-token");
    let session = demanding.session("role-token");
    let metadata = Scripted::instance_metadata("mover-role", &[session]);
    let metadata_at = metadata.endpoint();
    let of_machine = (METADATA, metadata_at.as_str());
    let config = demanding.scratch.join("config");
    let signed_in = "sso_start_url = https://x.invalid\nsso_region = eu-west-1\nsso_account_id = 1\nsso_role_name = r\n";
    let text =
        format!("[profile role]\nrole_arn = r\nsource_profile = base\n[default]\n{signed_in}");
    fs::write(&config, text).expect("a configuration");
    let config = config.display().to_string();
    let config = ("AWS_CONFIG_FILE", config.as_str());
    let url = |option: &str| format!("{}&{option}", demanding.repo.url());
    let here = demanding.repo.url().to_owned();
    let (usable, sign_in) = ("no usable credentials", "gives no credentials");
    for (url, environment, message, hint) in [
        (url("profile=absent"), vec![of_machine], usable, "[absent]"),
        (
            url("profile=role"),
            vec![of_machine, config],
            usable,
            "role_arn",
        ),
        (
            here.clone(),
            vec![of_machine, ("AWS_PROFILE", "absent")],
            usable,
            "[absent]",
        ),
        (here, vec![of_machine, config], sign_in, "aws sso login"),
    ] {
        let repo = demanding.repo.at(&url, &environment);
        told(repo.list(), exit::STORAGE, message, hint);
    }
    let absent = url("credentials=/nonexistent");
    let unreadable = demanding.repo.at(&absent, &[of_machine]).list();
    assert_eq!(unreadable.error()["object"], "/nonexistent", "{unreadable}");
    told(unreadable, exit::USAGE, "cannot be read", "credentials=");
    assert_eq!(metadata.requests().len(), 0, "the machine was asked");
}

/// Libraries that load credentials log whole providers, tokens included.
#[test]
fn a_log_of_everything_holds_nothing_of_the_libraries_for_credentials() {
    let demanding = Demanding::new("s3-log", "role-token");
    let session = demanding.session("role-token");
    let role = Scripted::instance_metadata("mover-role", &[session]);
    let nothing = Scripted::start(|_, _| Reply::new(404, ""));
    for (metadata, code) in [(&role, exit::OK), (&nothing, exit::STORAGE)] {
        let repo = demanding.with(&[(METADATA, &metadata.endpoint())]);
        let mut command = repo.command("list");
        command.env("HELIOS_MOVER_LOG", "trace,reqsign_core::api=trace");
        let outcome = Outcome::of(&mut command).expect(code);
        let said = &outcome.stderr;
        assert!(said.contains("DEBUG"), "nothing was logged\n{outcome}");
        for secret in [
            "reqsign",
            "CredentialProvider",
            "metadata-token",
            "role-token",
        ] {
            assert!(!said.contains(secret), "{secret} is shown\n{outcome}");
        }
    }
}

/// A repository with one backup in a server that asks for a session token from then on.
struct Demanding {
    server: FilesystemS3,
    repo: AnyRepo,
    source: PathBuf,
    scratch: Scratch,
}

impl Demanding {
    fn new(name: &str, token: &str) -> Self {
        let scratch = Scratch::new(name);
        let server = FilesystemS3::start(scratch.path());
        let repo = repo_in(server.access(), &scratch, "demanding", Protection::None);
        let source = scratch.dir("source");
        plant::mixed(&source, &mut Random::new(SEED), 1 << 20);
        repo.backup(&source).summary();
        server.demand_token(token);
        Demanding {
            server,
            repo,
            source,
            scratch,
        }
    }

    /// The key of the server, with this token, as a role has it.
    fn session(&self, token: &str) -> SessionCredentials {
        let key = &self.server.access().key;
        SessionCredentials {
            access_key_id: key.id.clone(),
            secret_access_key: key.secret.clone(),
            token: token.to_owned(),
            expiration: "2099-01-01T00:00:00Z".to_owned(),
        }
    }

    /// The repository by means of these variables and no others.
    fn with(&self, environment: &[(&str, &str)]) -> AnyRepo {
        self.repo.at(self.repo.url(), environment)
    }

    /// Backs up by means of these variables, and does `change` in the middle.
    fn changes_in_a_job(&self, environment: &[(&str, &str)], change: impl FnOnce()) {
        plant::mixed(&self.scratch.dir("more"), &mut Random::new(1), 8 << 20);
        let repo = self.with(environment);
        let mut backup = repo.backup_command(&self.scratch.join("more"));
        backup.args(["--limit-upload", RATE]);
        let held = self.server.objects();
        let before = disk_bytes(&held);
        let begun = || disk_bytes(&held) > before + UNDER_WAY_BYTES;
        in_the_middle_of(&mut backup, begun, |_| change());
    }

    /// Backs up and restores by means of these variables; returns how often the tool ran.
    fn assert_works_with(&self, environment: &[(&str, &str)]) -> usize {
        let repo = self.with(environment);
        repo.backup(&self.source).summary();
        restores_to(&repo, "latest", &Tree::read(&self.source), &self.scratch);
        2
    }
}

/// Where the metadata service of a machine is.
const METADATA: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";

/// How often a service that gives credentials gave some.
fn loads(service: &Scripted, path: &str) -> usize {
    let requests = service.requests();
    let given = requests.iter().filter(|request| request.head.path == path);
    given.count()
}

const ROLE: &str = "/latest/meta-data/iam/security-credentials/mover-role";

#[test]
fn the_role_of_a_machine_opens_a_store() {
    let demanding = Demanding::new("s3-imds", "role-token");
    let session = demanding.session("role-token");
    let metadata = Scripted::instance_metadata("mover-role", &[session]);
    let runs = demanding.assert_works_with(&[(METADATA, &metadata.endpoint())]);
    assert_eq!(loads(&metadata, ROLE), runs, "once a run, for all shards");
    // The server does insist on the token, and what is in the environment comes first.
    let key = &demanding.server.access().key;
    let [id, secret] = variables(key);
    let bare = demanding.with(&[id, secret, (METADATA, &metadata.endpoint())]);
    told(bare.list(), exit::STORAGE, "has expired", "renew");
    assert_eq!(loads(&metadata, ROLE), runs);
}

/// The machine has a role, and its metadata have their troubles when the job begins.
#[test]
fn trouble_of_a_machine_s_metadata_at_a_job_s_beginning_is_outlived_or_told_as_such() {
    let demanding = Demanding::new("s3-imds-trouble", "role-token");
    let session = demanding.session("role-token");
    let metadata = Scripted::instance_metadata("mover-role", &[session]);
    let busy = Action::error(503, "Busy");
    for (trouble, times) in [
        (busy.clone(), 2),
        (Action::Answer(Reply::new(429, "")), 2),
        (Action::ResetBeforeRequest, 2),
        (Action::Stall, 1),
    ] {
        for path in ["/latest/api/token", ROLE] {
            let proxy = FaultProxy::start(&metadata.endpoint());
            let hit = Fault::new(trouble.clone()).path(path).times(times);
            let hit = proxy.inject(hit);
            let repo = demanding.with(&[(METADATA, &proxy.endpoint())]);
            assert_eq!(repo.ids().len(), 1, "{trouble:?} at {path}");
            assert_eq!(proxy.hits(hit), times, "{trouble:?} at {path}");
        }
    }
    for trouble in [busy, Action::Stall] {
        let proxy = FaultProxy::start(&metadata.endpoint());
        proxy.inject(Fault::new(trouble));
        let repo = demanding.with(&[(METADATA, &proxy.endpoint())]);
        told(
            repo.list(),
            exit::UNREACHABLE,
            "the credentials for the store could not be loaded",
            "AWS_EC2_METADATA_DISABLED",
        );
        assert!(proxy.seen().len() > 1, "it was asked once");
    }
}

#[test]
fn the_credentials_of_a_container_open_a_store() {
    let demanding = Demanding::new("s3-container", "container-token");
    let session = demanding.session("container-token");
    let service = Scripted::container_credentials("Bearer of-the-container", &[session]);
    let uri = format!("{}/credentials", service.endpoint());
    let uri = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri.as_str());
    let by_value = (
        "AWS_CONTAINER_AUTHORIZATION_TOKEN",
        "Bearer of-the-container",
    );
    let mut runs = demanding.assert_works_with(&[uri, by_value]);
    let file = demanding.scratch.join("authorization");
    secret_file(&file, "Bearer of-the-container\n");
    let file = file.display().to_string();
    let by_file = ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file.as_str());
    runs += demanding.assert_works_with(&[uri, by_file]);
    assert_eq!(loads(&service, "/credentials"), runs);

    let wrong = ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "Bearer of-another");
    let disabled = ("AWS_EC2_METADATA_DISABLED", "true");
    let refused = demanding.with(&[uri, wrong, disabled]).list();
    assert!(!format!("{refused}").contains("of-another"), "{refused}");
    told(refused, exit::STORAGE, "credentials", "AWS_ACCESS_KEY_ID");
}

#[test]
fn a_session_of_the_environment_opens_a_store_until_it_expires() {
    let demanding = Demanding::new("s3-session", "first");
    let [id, secret] = variables(&demanding.server.access().key);
    let session = [id, secret, ("AWS_SESSION_TOKEN", "first")];
    demanding.assert_works_with(&session);
    demanding.server.demand_token("second");
    let expired = demanding.with(&session);
    told(expired.list(), exit::STORAGE, "has expired", "renew");
    let expired = expired.backup(&demanding.source);
    assert!(!expired.stdout.contains("first"), "the token\n{expired}");
    told(expired, exit::STORAGE, "has expired", "renew");
}

#[test]
fn expired_credentials_are_loaded_anew_once() {
    let demanding = Demanding::new("s3-expired", "fresh");
    let [old, fresh] = ["old", "fresh"].map(|token| demanding.session(token));
    let both = [old.clone(), fresh];
    let metadata = Scripted::instance_metadata("mover-role", &both);
    let renewed = demanding.with(&[(METADATA, &metadata.endpoint())]);
    assert_eq!(renewed.ids().len(), 1);
    assert_eq!(loads(&metadata, ROLE), 2);

    // They expire in the middle of a job.
    demanding.server.demand_token("old");
    let metadata = Scripted::instance_metadata("mover-role", &both);
    let proxy = FaultProxy::start(&metadata.endpoint());
    let mut troubles = None;
    demanding.changes_in_a_job(&[(METADATA, &proxy.endpoint())], || {
        // The machine has its own troubles then.
        let trouble = Fault::new(Action::ResetBeforeRequest).times(3);
        troubles = Some(proxy.inject(trouble));
        demanding.server.demand_token("fresh");
    });
    assert_eq!(troubles.map(|id| proxy.hits(id)), Some(3));
    assert_eq!(loads(&metadata, ROLE), 2, "once for all who were told");

    // They stay expired: one more look, and one clear error.
    let metadata = Scripted::instance_metadata("mover-role", &[old]);
    let proxy = FaultProxy::start(&demanding.server.access().endpoint);
    let url = demanding.server.access().at(&proxy.endpoint());
    let endpoint = metadata.endpoint();
    let environment = [(METADATA, endpoint.as_str())];
    let stale = demanding.repo.at(&url.url("demanding"), &environment);
    told(stale.list(), exit::STORAGE, "has expired", "renew");
    assert_eq!(loads(&metadata, ROLE), 2);
    assert_eq!(proxy.seen().len(), 2, "{:?}", proxy.seen());
}

/// The store's name means nothing to this machine: only the proxy can lead there.
#[test]
fn the_proxy_of_the_environment_is_used_and_passed_by() {
    const FAR: &str = "http://store.invalid:9000";
    let scratch = Scratch::new("s3-proxy");
    let server = FilesystemS3::start(scratch.path());
    let proxy = FaultProxy::start(&server.access().endpoint);
    let via = proxy.endpoint();
    let [id, secret] = variables(&server.access().key);
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(SEED), 4 << 20);
    let far = server.access().at(FAR).url("proxy");
    let environment = [id, secret, ("HTTP_PROXY", via.as_str())];
    let repo = AnyRepo::create(&scratch, "proxy", &far, &environment, Protection::None);
    repo.backup(&source).summary();
    restores_to(&repo, "latest", &Tree::read(&source), &scratch);
    let seen = proxy.seen();
    assert!(!seen.is_empty());
    for request in &seen {
        let (_, url) = request.split_once(' ').expect("a method");
        assert!(url.starts_with(&format!("{FAR}/mover")), "{request}");
    }

    let near = server.access().url("proxy");
    let around = ("NO_PROXY", "localhost,127.0.0.1");
    let direct = repo.at(&near, &[id, secret, environment[2], around]);
    assert_eq!(direct.ids().len(), 1);
    assert_eq!(proxy.seen().len(), seen.len(), "passed by");
    assert_eq!(repo.at(&near, &environment).ids().len(), 1);
    assert!(proxy.seen().len() > seen.len(), "used without NO_PROXY");
}

#[test]
fn an_unknown_authority_is_trusted_only_when_it_is_named() {
    let scratch = Scratch::new("s3-tls");
    let server = FilesystemS3::start_with(scratch.path(), TLS);
    let access = server.access();
    let environment = variables(&access.key);
    let ca = access.ca_file.as_ref().expect("a server with TLS has one");
    let url = format!("{}&ca={}", access.url("tls"), ca.display());
    let repo = AnyRepo::create(&scratch, "tls", &url, &environment, Protection::None);
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(SEED), 4 << 20);
    repo.backup(&source).summary();
    restores_to(&repo, "latest", &Tree::read(&source), &scratch);
    repo.verify().expect(exit::OK);

    let stranger = repo.at(&access.url("tls"), &environment);
    told(
        stranger.backup(&source),
        exit::STORAGE,
        "certificate",
        "ca=",
    );
}

#[test]
fn a_certificate_that_is_refused_is_told_by_its_own_reason_and_remedy() {
    for (tls, message, hint) in [
        (Tls::Expired, "has expired", "clock"),
        (Tls::NotValidYet, "not valid yet", "clock"),
        (Tls::OfAnother, "is for another name", "endpoint="),
    ] {
        let scratch = Scratch::new("s3-certificate");
        let options = FilesystemOptions {
            tls,
            ..FilesystemOptions::default()
        };
        let server = FilesystemS3::start_with(scratch.path(), options);
        let access = server.access();
        let ca = access.ca_file.as_ref().expect("a server with TLS has one");
        let url = format!("{}&ca={}", access.url("refused"), ca.display());
        let environment = variables(&access.key);
        let (repo, flags) =
            AnyRepo::prepare(&scratch, "refused", &url, &environment, Protection::None);
        let source = scratch.dir("source");
        plant::mixed(&source, &mut Random::new(SEED), 1 << 20);
        let init = Outcome::of(&mut repo.init_command(&flags));
        told(init, exit::STORAGE, message, hint);
        told(repo.backup(&source), exit::STORAGE, message, hint);
        let target = scratch.path().join("target");
        told(
            repo.restore("latest", &target),
            exit::STORAGE,
            message,
            hint,
        );
        assert!(!target.exists(), "{tls:?}");
        told(repo.verify(), exit::STORAGE, message, hint);
    }
}

/// An authority's, too, as `openssl req -x509` makes them.
#[test]
fn a_certificate_that_signed_itself_is_trusted_when_it_is_named() {
    for (tls, unnamed) in [
        (Tls::SelfSigned, "not trusted"),
        (Tls::SelfSignedAuthority, "an authority's own"),
    ] {
        let scratch = Scratch::new("s3-self-signed");
        let options = FilesystemOptions {
            tls,
            ..FilesystemOptions::default()
        };
        let server = FilesystemS3::start_with(scratch.path(), options);
        let access = server.access();
        let environment = variables(&access.key);
        let ca = access.ca_file.as_ref().expect("a server with TLS has one");
        let url = format!("{}&ca={}", access.url("self"), ca.display());
        let repo = AnyRepo::create(&scratch, "self", &url, &environment, Protection::None);
        let source = scratch.dir("source");
        plant::mixed(&source, &mut Random::new(SEED), 1 << 20);
        repo.backup(&source).summary();
        restores_to(&repo, "latest", &Tree::read(&source), &scratch);

        let stranger = repo.at(&access.url("self"), &environment);
        told(stranger.list(), exit::STORAGE, unnamed, "ca=");
    }
}

/// Another certificate of the same subject is not the one that was named, and the one that was stands for its own names alone.
#[test]
fn an_authority_that_is_a_server_too_is_trusted_by_its_very_certificate_and_its_name() {
    const FAR: &str = "other.invalid:9000";
    let options = FilesystemOptions {
        tls: Tls::SelfSignedAuthority,
        ..FilesystemOptions::default()
    };
    let (scratch, elsewhere) = (Scratch::new("s3-own"), Scratch::new("s3-alike"));
    let server = FilesystemS3::start_with(scratch.path(), options);
    let alike = FilesystemS3::start_with(elsewhere.path(), options);
    let access = server.access();
    let [own, others] = [access, alike.access()].map(|access| {
        let ca = access.ca_file.as_ref();
        ca.expect("a server with TLS has one").display()
    });
    let [id, secret] = variables(&access.key);
    let url = access.url("own");
    let trusting = format!("{url}&ca={own}");
    let repo = AnyRepo::create(&scratch, "own", &trusting, &[id, secret], Protection::None);
    let wrong = repo.at(&format!("{url}&ca={others}"), &[id, secret]);
    told(wrong.list(), exit::STORAGE, "an authority's own", "ca=");

    let address = access.endpoint.replace("https://", "");
    let tunnel = Tunnel::start(&[(FAR, &address)]);
    let via = format!("http://{}", tunnel.address());
    let far = access.at(&format!("https://{FAR}")).url("own");
    let environment = [id, secret, ("HTTPS_PROXY", via.as_str())];
    let renamed = repo.at(&format!("{far}&ca={own}"), &environment);
    told(
        renamed.list(),
        exit::STORAGE,
        "for another name",
        "endpoint=",
    );
    assert!(!tunnel.seen().is_empty());
}

/// The store's name means nothing to this machine, and the proxy neither sees what it leads through nor leads everybody.
#[test]
fn an_encrypted_store_is_reached_by_way_of_a_proxy_whose_password_is_never_shown() {
    const FAR: &str = "store.invalid:9000";
    // In the URL, in the header, and in plain words.
    const SECRETS: [&str; 3] = ["pr0xy%2Fs3cret", "bW92ZXI6cHIweHkvczNjcmV0", "pr0xy/s3cret"];
    let scratch = Scratch::new("s3-connect");
    let server = FilesystemS3::start_with(scratch.path(), TLS);
    let access = server.access();
    let address = access.endpoint.replace("https://", "");
    let tunnel = Tunnel::start_guarded(&[(FAR, &address)], &format!("Basic {}", SECRETS[1]));
    let ca = access.ca_file.as_ref().expect("a server with TLS has one");
    let url = |place: &str| {
        let far = access.at(&format!("https://{place}"));
        format!("{}&ca={}", far.url("tunnel"), ca.display())
    };
    let by = |user: &str, address: &str| format!("http://{user}@{address}");
    let via = by(&format!("mover:{}", SECRETS[0]), &tunnel.address());
    let [id, secret] = variables(&access.key);
    let environment = [id, secret, ("HTTPS_PROXY", via.as_str())];
    let repo = AnyRepo::create(
        &scratch,
        "tunnel",
        &url(FAR),
        &environment,
        Protection::None,
    );
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(SEED), 4 << 20);
    let target = scratch.join("target");
    let loud = |mut command: Command| {
        command.env("HELIOS_MOVER_LOG", "trace").arg("-vv");
        Job::start_into(&mut command, Stdio::piped(), log_of(&scratch))
    };
    let said = |job: Job| {
        let outcome = job.outcome();
        let log = fs::read_to_string(scratch.join("log")).expect("a log");
        assert!(log.contains("TRACE"), "no trace\n{outcome}");
        for secret in SECRETS {
            assert!(!log.contains(secret), "{secret} is logged\n{outcome}");
            assert!(
                !outcome.stdout.contains(secret),
                "{secret} is told\n{outcome}"
            );
        }
        outcome
    };
    said(loud(repo.backup_command(&source))).summary();
    said(loud(repo.restore_command("latest", &target))).summary();
    Tree::read(&source).assert_same(&Tree::read(&target), "restored");
    let seen = tunnel.seen();
    assert!(!seen.is_empty());
    for request in seen {
        assert_eq!(request, (format!("CONNECT {FAR} HTTP/1.1"), 200));
    }

    // Another password, a place to which the proxy knows no way, and no proxy at all.
    let wrong = by("mover:an0ther", &tunnel.address());
    let dead = by(&format!("mover:{}", SECRETS[0]), "127.0.0.1:9");
    for (place, via) in [
        (FAR, &wrong),
        ("elsewhere.invalid:9000", &via),
        (FAR, &dead),
    ] {
        let repo = repo.at(&url(place), &[id, secret, ("HTTPS_PROXY", via)]);
        let mut list = repo.command("list");
        list.arg("--json");
        let outcome = said(loud(list));
        assert!(!format!("{outcome}").contains("an0ther"), "{outcome}");
        told(outcome, exit::UNREACHABLE, "cannot be reached", "proxy");
    }
    let statuses: Vec<u16> = tunnel
        .seen()
        .into_iter()
        .map(|(_, status)| status)
        .collect();
    assert!(
        statuses.contains(&407) && statuses.contains(&502),
        "{statuses:?}"
    );
}

/// A file for what a job logs, which may be more than a pipe holds.
fn log_of(scratch: &Scratch) -> Stdio {
    let file = fs::File::create(scratch.join("log"));
    file.expect("a log").into()
}

/// A web identity: the file with its token, and what the tool is told about it.
struct WebIdentity {
    file: PathBuf,
    token: String,
    service: String,
}

impl WebIdentity {
    fn new(scratch: &Scratch, token: &str, service: &str) -> Self {
        let file = scratch.join("identity-token");
        secret_file(&file, token);
        WebIdentity {
            token: file.display().to_string(),
            file,
            service: service.to_owned(),
        }
    }

    fn variables(&self) -> [(&str, &str); 3] {
        [
            ("AWS_ROLE_ARN", ROLE_ARN),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", &self.token),
            ("AWS_ENDPOINT_URL_STS", &self.service),
        ]
    }
}

#[test]
fn the_role_of_a_web_identity_opens_a_store() {
    let demanding = Demanding::new("s3-web-identity", "role-token");
    let session = demanding.session("role-token");
    let service = Scripted::web_identity(ROLE_ARN, &[("identity.a+b/c=", session)]);
    let identity = WebIdentity::new(&demanding.scratch, "identity.a+b/c=\n", &service.endpoint());
    let runs = demanding.assert_works_with(&identity.variables());
    let asked = service.requests();
    assert_eq!(asked.len(), runs, "once a run, for all shards");
    let body = String::from_utf8_lossy(&asked[0].body);
    assert!(body.contains("RoleSessionName=helios-mover"), "{body}");

    // What speaks without TLS is near: the token does not go by the proxy, as the requests to the store do.
    let proxy = FaultProxy::start(&demanding.server.access().endpoint);
    let via = proxy.endpoint();
    let mut environment = identity.variables().to_vec();
    environment.push(("HTTP_PROXY", via.as_str()));
    assert_eq!(demanding.with(&environment).ids().len(), 2);
    assert_eq!(service.requests().len(), runs + 1);
    let seen = proxy.seen();
    assert!(!seen.is_empty());
    assert!(
        seen.iter().all(|request| !request.starts_with("POST")),
        "{seen:?}"
    );
}

#[test]
fn a_role_that_runs_out_is_taken_on_anew_with_the_token_of_the_day() {
    let demanding = Demanding::new("s3-web-renewal", "old");
    let [old, fresh] = ["old", "fresh"].map(|token| demanding.session(token));
    let service = Scripted::web_identity(ROLE_ARN, &[("first", old), ("second", fresh.clone())]);
    let proxy = FaultProxy::start(&service.endpoint());
    let identity = WebIdentity::new(&demanding.scratch, "first", &proxy.endpoint());
    // In the middle of a job the server says so, and the service has its own troubles then.
    let mut troubles = Vec::new();
    demanding.changes_in_a_job(&identity.variables(), || {
        for trouble in [Action::ResetBeforeRequest, Action::error(503, "Busy")] {
            troubles.push(proxy.inject(Fault::new(trouble).times(1)));
        }
        fs::write(&identity.file, "second").expect("a token");
        demanding.server.demand_token("fresh");
    });
    assert_eq!(
        troubles.into_iter().map(|id| proxy.hits(id)).sum::<u64>(),
        2
    );
    let given = |service: &Scripted| service.requests().len();
    assert_eq!(given(&service), 2, "once for all who were told");

    // The clock says so: what is about to run out serves one request.
    let soon = SessionCredentials {
        expiration: in_seconds(100),
        ..fresh.clone()
    };
    let service = Scripted::web_identity(ROLE_ARN, &[("t", soon), ("t", fresh)]);
    let identity = WebIdentity::new(&demanding.scratch, "t", &service.endpoint());
    assert_eq!(demanding.with(&identity.variables()).ids().len(), 2);
    assert_eq!(given(&service), 2);
}

/// A time of the near future, as services write it.
fn in_seconds(seconds: u32) -> String {
    let until = format!("+{seconds} seconds");
    let date = run("date", ["-u", "-d", &until, "+%Y-%m-%dT%H:%M:%SZ"]);
    date.trim().to_owned()
}

/// Whoever bears a web identity is that or nobody: the machine has a role that would do.
#[test]
fn a_web_identity_that_is_refused_is_told_once_and_no_other_role_is_taken() {
    let demanding = Demanding::new("s3-web-refused", "role-token");
    let session = demanding.session("role-token");
    let machine = Scripted::instance_metadata("mover-role", std::slice::from_ref(&session));
    let machine_at = machine.endpoint();
    let service = Scripted::web_identity(ROLE_ARN, &[("right", session)]);
    let identity = WebIdentity::new(&demanding.scratch, "wr0ng-t0ken", &service.endpoint());
    let repo = |identity: &WebIdentity| {
        let mut environment = vec![(METADATA, machine_at.as_str())];
        environment.extend(identity.variables());
        demanding.with(&environment)
    };
    let hint = "AWS_WEB_IDENTITY_TOKEN_FILE";
    let refused = repo(&identity).list();
    assert!(!format!("{refused}").contains("wr0ng-t0ken"), "{refused}");
    assert!(refused.stdout.contains("InvalidIdentityToken"), "{refused}");
    told(refused, exit::STORAGE, "web identity", hint);
    assert_eq!(service.requests().len(), 1, "once");
    for unusable in ["", "\n"] {
        fs::write(&identity.file, unusable).expect("a token");
        told(repo(&identity).list(), exit::STORAGE, "web identity", hint);
    }
    fs::remove_file(&identity.file).expect("a token");
    told(repo(&identity).list(), exit::STORAGE, "web identity", hint);
    assert_eq!(service.requests().len(), 1);
    // A service that is not there is waited for a while.
    let dead = WebIdentity::new(&demanding.scratch, "right", "http://127.0.0.1:9");
    let hint = "AWS_ENDPOINT_URL_STS";
    let waited = repo(&dead).list();
    assert!(waited.stdout.contains("onnection refused"), "{waited}");
    told(waited, exit::UNREACHABLE, "web identities", hint);
    let no_url = WebIdentity::new(&demanding.scratch, "right", "sts.example.com:443");
    let wrong = repo(&no_url).list();
    let cause = "AWS_ENDPOINT_URL_STS is no URL of a web server";
    assert!(wrong.stdout.contains(cause), "{wrong}");
    told(wrong, exit::USAGE, "web identities", hint);
    assert!(machine.requests().is_empty(), "{:?}", machine.requests());
}

/// An address at which a name leads nowhere.
struct Dead {
    /// How often it was tried, where that can be known.
    tried: Option<Arc<AtomicUsize>>,
    /// Kept for their end.
    _sockets: (Option<TcpListener>, Vec<TcpStream>),
}

impl Dead {
    /// Nobody listens.
    fn refusing() -> Self {
        Dead {
            tried: None,
            _sockets: (None, Vec::new()),
        }
    }

    /// Nobody answers, as where a machine has lost its power: the queue of those who wait to be accepted is full.
    fn silent(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).expect("loopback can be bound");
        rustix::net::listen(&listener, 0).expect("it listens");
        let brief = Duration::from_millis(300);
        let connect = || TcpStream::connect_timeout(&address, brief).ok();
        let waiting = std::iter::from_fn(connect).take(16).collect();
        assert!(connect().is_none(), "the queue is never full");
        Dead {
            tried: None,
            _sockets: (Some(listener), waiting),
        }
    }

    /// Connections are taken, and nothing is ever said.
    fn mute(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).expect("loopback can be bound");
        let tried = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&tried);
        thread::spawn(move || {
            let mut taken = Vec::new();
            for stream in listener.incoming().take(10_000) {
                counter.fetch_add(1, Ordering::Relaxed);
                taken.push(stream);
            }
        });
        Dead {
            tried: Some(tried),
            _sockets: (None, Vec::new()),
        }
    }
}

/// A machine of a store: what connects to it is led to the server behind.
struct Machine {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Machine {
    fn start(address: SocketAddr, behind: &str) -> Self {
        let listener = TcpListener::bind(address).expect("loopback can be bound");
        let address = listener.local_addr().expect("an address");
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let behind = behind.to_owned();
        thread::spawn(move || {
            for near in listener.incoming().take(10_000).flatten() {
                counter.fetch_add(1, Ordering::Relaxed);
                let far = TcpStream::connect(&behind).expect("the server listens");
                Machine::lead(&near, &far);
                Machine::lead(&far, &near);
            }
        });
        Machine {
            address,
            connections,
        }
    }

    /// Passes on what comes in one direction, to its end.
    fn lead(from: &TcpStream, to: &TcpStream) {
        let mut from = from.try_clone().expect("a descriptor");
        let mut to = to.try_clone().expect("a descriptor");
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// `command` where names are those of the file `hosts`.
fn among(command: &Command, hosts: &Path) -> Command {
    let mut inside = Command::new("unshare");
    let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
    inside.args(["--mount", "sh", "-c", script]).arg(hosts);
    inside.arg(command.get_program()).args(command.get_args());
    inside.env_clear();
    for (name, value) in command.get_envs() {
        inside.env(name, value.expect("set, not removed"));
    }
    inside.current_dir(command.get_current_dir().expect("a directory"));
    inside
}

#[test]
fn a_name_of_which_one_address_is_dead_leads_to_the_others() {
    let scratch = Scratch::new("s3-addresses");
    let server = FilesystemS3::start(scratch.path());
    let repo = repo_in(server.access(), &scratch, "addresses", Protection::None);
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(SEED), 24 << 20);
    let hosts = scratch.join("hosts");
    fs::write(&hosts, "127.0.0.2 store.test\n127.0.0.1 store.test\n").expect("a file");
    let deaths: [fn(SocketAddr) -> Dead; 3] = [|_| Dead::refusing(), Dead::silent, Dead::mute];
    for (at, death) in deaths.into_iter().enumerate() {
        let live = FaultProxy::start(&server.access().endpoint);
        let port = live
            .endpoint()
            .rsplit_once(':')
            .expect("a port")
            .1
            .to_owned();
        let dead: SocketAddr = format!("127.0.0.2:{port}").parse().expect("an address");
        let dead = death(dead);
        let access = server.access().at(&format!("http://store.test:{port}"));
        let url = format!("{}&timeout=2", access.url("addresses"));
        let named = repo.at(&url, &variables(&access.key));
        fs::write(source.join("more"), Random::new(at as u64).bytes(8 << 20)).expect("a file");
        Outcome::of(&mut among(&named.backup_command(&source), &hosts)).summary();
        let target = scratch.join(format!("target-{at}"));
        Outcome::of(&mut among(
            &named.restore_command("latest", &target),
            &hosts,
        ))
        .summary();
        Tree::read(&source).assert_same(&Tree::read(&target), "restored");
        Outcome::of(&mut among(named.command("verify").arg("--json"), &hosts)).expect(exit::OK);
        assert!(!live.seen().is_empty());
        if let Some(tried) = &dead.tried {
            assert!(tried.load(Ordering::Relaxed) > 0, "nobody tried it");
        }
    }
}

#[test]
fn connections_spread_over_all_addresses_of_a_name() {
    let scratch = Scratch::new("s3-spread");
    let server = FilesystemS3::start(scratch.path());
    let behind = server.access().endpoint.replace("http://", "");
    let first = Machine::start("127.0.0.2:0".parse().expect("an address"), &behind);
    let port = first.address.port();
    let others = ["127.0.0.3", "127.0.0.4"].map(|at| {
        let at = format!("{at}:{port}").parse().expect("an address");
        Machine::start(at, &behind)
    });
    let machines: Vec<Machine> = std::iter::once(first).chain(others).collect();
    let hosts = scratch.join("hosts");
    let lines = machines.iter().map(|machine| machine.address.ip());
    let lines: String = lines.map(|at| format!("{at} store.test\n")).collect();
    fs::write(&hosts, lines).expect("a file");

    let repo = repo_in(server.access(), &scratch, "spread", Protection::None);
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(SEED), 64 << 20);
    let access = server.access().at(&format!("http://store.test:{port}"));
    let named = repo.at(&access.url("spread"), &variables(&access.key));
    let target = scratch.join("target");
    for command in [
        named.backup_command(&source),
        named.restore_command("latest", &target),
    ] {
        let before: Vec<usize> = machines.iter().map(Machine::connections).collect();
        Outcome::of(&mut among(&command, &hosts)).summary();
        let counts = machines.iter().zip(before);
        let counts: Vec<usize> = counts.map(|(now, then)| now.connections() - then).collect();
        assert!(!counts.contains(&0), "{counts:?}");
    }
    Tree::read(&source).assert_same(&Tree::read(&target), "restored");
}
