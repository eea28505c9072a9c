//! What stands between the tool and a store, a proxy or a service that gives credentials, takes connections and says nothing, or
//! begins to answer and stops: a job ends with an error that names it and that is worth another try.
//!
//! Invariants: the silence is one of the answer, never of the connection, and was met more than once by each job; a job that waits
//! for ever is noticed; the store itself is never asked.

use std::process::Command;

use mover_test_servers::{Action, Fault, FaultProxy, Reply, Scripted};
use mover_tests::bucket::told;
use mover_tests::job::{Job, wait_until};
use mover_tests::mover::{AnyRepo, Outcome, Protection, exit, secret_file};
use mover_tests::plant;
use mover_tests::random::Random;
use mover_tests::scratch::Scratch;

use super::SEED;

/// A store that only a proxy could lead to.
const FAR: &str = "store.invalid:9000";
/// Where nobody listens.
const NOBODY: &str = "127.0.0.1:9";
/// Passwords of the proxy. Whoever writes the second one does not know that its `@` has to be percent-encoded.
const PROXY_SECRETS: [&str; 2] = ["pr0xy-s3cret", "p@ss"];
/// What of them would be seen.
const HIDDEN: [&str; 3] = ["pr0xy-s3cret", "p@", "ss@"];

/// A repository that is nowhere, by means of these variables.
fn nowhere(
    scratch: &Scratch,
    endpoint: &str,
    options: &str,
    environment: &[(&str, &str)],
) -> AnyRepo {
    let url =
        format!("s3://mover/nowhere?endpoint={endpoint}&region=us-east-1&path_style=true{options}");
    let (repo, _) = AnyRepo::prepare(scratch, "nowhere", &url, environment, Protection::None);
    repo
}

/// `list` of a repository.
fn list(repo: &AnyRepo) -> Command {
    let mut list = repo.command("list");
    list.arg("--json");
    list
}

/// Runs these at once, so that their patience passes once.
fn all_at_once(commands: impl IntoIterator<Item = Command>) -> Vec<Outcome> {
    let start = |mut command: Command| Job::start(&mut command);
    let jobs: Vec<Job> = commands.into_iter().map(start).collect();
    let ended = |mut job: Job| {
        // Whoever waits for ever is noticed after a minute.
        wait_until(|| !job.is_running());
        job.outcome()
    };
    jobs.into_iter().map(ended).collect()
}

/// A server that hits every request with `trouble`. Behind it is one that answers something.
fn troubled(behind: &Scripted, trouble: Action) -> FaultProxy {
    let silent = FaultProxy::start(&behind.endpoint());
    silent.inject(Fault::new(trouble));
    silent
}

fn without_scheme(endpoint: &str) -> &str {
    endpoint.strip_prefix("http://").expect("plain HTTP")
}

#[test]
fn a_proxy_that_takes_the_connection_and_says_nothing_is_named_by_every_verb() {
    let scratch = Scratch::new("s3-silent-proxy");
    let source = scratch.dir("source");
    plant::file(&source.join("table"), &mut Random::new(SEED), 4096);
    let behind = Scripted::html_page();
    // A tunnel is a part of the connection, for which there are five seconds; what goes by the proxy itself is a request.
    for (scheme, variable, options, request, message) in [
        (
            "https",
            "HTTPS_PROXY",
            "&timeout=10",
            format!("CONNECT {FAR}"),
            "the store cannot be reached",
        ),
        (
            "http",
            "HTTP_PROXY",
            "&timeout=1",
            format!("GET http://{FAR}/mover"),
            "the store does not answer, for ",
        ),
    ] {
        let place = format!("{scheme}://{FAR}");
        let (mut proxies, mut jobs) = (Vec::new(), Vec::new());
        for secret in PROXY_SECRETS {
            let proxy = troubled(&behind, Action::Stall);
            let endpoint = proxy.endpoint();
            let via = format!("http://mover:{secret}@{}", without_scheme(&endpoint));
            let environment = [
                ("AWS_ACCESS_KEY_ID", "id"),
                ("AWS_SECRET_ACCESS_KEY", "secret"),
                (variable, via.as_str()),
            ];
            let repo = nowhere(&scratch, &place, options, &environment);
            jobs.extend([list(&repo), repo.backup_command(&source)]);
            proxies.push((proxy, endpoint));
        }
        let proxy_of_each = proxies.iter().flat_map(|proxy| [proxy; 2]);
        for (outcome, (_, endpoint)) in all_at_once(jobs).into_iter().zip(proxy_of_each) {
            let error = outcome.error();
            let object = error["object"].as_str().unwrap_or_default();
            for part in [FAR, without_scheme(endpoint)] {
                assert!(object.contains(part), "{part} is not named\n{outcome}");
            }
            for part in HIDDEN {
                assert!(!outcome.to_string().contains(part), "{part}\n{outcome}");
            }
            if scheme == "https" {
                let cause = error["cause"].to_string();
                assert!(cause.contains("timed out"), "{outcome}");
            }
            told(outcome, exit::UNREACHABLE, message, "check");
        }
        for (proxy, _) in &proxies {
            let seen = proxy.seen();
            assert!(seen.len() >= 4, "each job asked once: {seen:?}");
            for line in &seen {
                assert!(line.starts_with(&request), "{line}");
            }
        }
    }
    assert!(behind.requests().is_empty(), "{:?}", behind.requests());
}

/// One that is set up counts, whatever the machine has.
#[test]
fn a_service_for_credentials_that_takes_the_connection_and_says_nothing_is_told() {
    let scratch = Scratch::new("s3-silent-services");
    let behind = Scripted::start(|_, _| Reply::new(200, "x".repeat(100)));
    let machine = Scripted::start(|_, _| Reply::new(404, ""));
    let machine_at = machine.endpoint();
    let token = scratch.join("identity-token");
    secret_file(&token, "identity");
    let token = token.display().to_string();
    let store = format!("http://{NOBODY}");
    let (mut services, mut jobs) = (Vec::new(), Vec::new());
    for trouble in [Action::Stall, Action::StallReply(10)] {
        let [roles, container, metadata] = [(); 3].map(|()| troubled(&behind, trouble.clone()));
        let roles_at = roles.endpoint();
        let container_at = format!("{}/credentials", container.endpoint());
        let metadata_at = metadata.endpoint();
        let of_machine = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", machine_at.as_str());
        let of_roles = [
            ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/mover"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", token.as_str()),
            ("AWS_ENDPOINT_URL_STS", roles_at.as_str()),
            of_machine,
        ];
        let of_container = [
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", container_at.as_str()),
            of_machine,
        ];
        let of_metadata = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata_at.as_str())];
        let by = |environment: &[(&str, &str)]| list(&nowhere(&scratch, &store, "", environment));
        jobs.extend([by(&of_roles), by(&of_container), by(&of_metadata)]);
        services.extend([roles, container, metadata]);
    }
    let of_roles = (
        "the service that gives roles to web identities does not answer as it should",
        "AWS_ENDPOINT_URL_STS",
    );
    let of_others = (
        "the credentials for the store could not be loaded",
        "AWS_EC2_METADATA_DISABLED",
    );
    let tellings = [of_roles, of_others, of_others].into_iter().cycle();
    for ((outcome, service), (message, hint)) in
        all_at_once(jobs).into_iter().zip(&services).zip(tellings)
    {
        let cause = outcome.error()["cause"].to_string();
        assert!(cause.contains("timed out"), "{outcome}");
        let seen = service.seen();
        assert!(seen.len() > 1, "it was asked once: {seen:?}\n{outcome}");
        told(outcome, exit::UNREACHABLE, message, hint);
    }
    assert!(machine.requests().is_empty(), "{:?}", machine.requests());
}
