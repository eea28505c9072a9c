//! Repositories in S3: where they are, how the tool is let in, and jobs in whose middle something happens.
//!
//! Invariant: a server that is taken from a job stays away until the job has noticed.

use std::fs::{self, File};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use mover_test_servers::{Access, AccessKey};
use serde_json::Value;

use crate::job::{Job, wait_until};
use crate::mover::{AnyRepo, Outcome, Protection};
use crate::plant::MIB;
use crate::scratch::Scratch;

/// Slow enough that what happens meanwhile falls inside of a job.
pub const RATE: &str = "4MiB/s";
/// Bytes that have arrived when a job is well under way.
pub const UNDER_WAY_BYTES: u64 = MIB;
/// Has a job log each request that it is about to send again, and what stands in such a line.
const LOGGED: &str = "mover_store=debug";
const SENT_AGAIN: &str = "trying again";

/// The variables by which credentials are given.
pub fn variables(key: &AccessKey) -> [(&'static str, &str); 2] {
    [
        ("AWS_ACCESS_KEY_ID", &key.id),
        ("AWS_SECRET_ACCESS_KEY", &key.secret),
    ]
}

/// A new repository below `prefix` in a server.
pub fn repo_in(
    access: &Access,
    scratch: &Scratch,
    prefix: &str,
    protection: Protection,
) -> AnyRepo {
    let environment = variables(&access.key);
    let url = access.url(prefix);
    AnyRepo::create(scratch, prefix, &url, &environment, protection)
}

/// Fails the test unless a run ended with `code` and said these parts of a message and of what to do.
#[track_caller]
pub fn told(outcome: Outcome, code: i32, message: &str, hint: &str) {
    let outcome = outcome.expect(code);
    let error = outcome.error();
    for (field, part) in [("message", message), ("hint", hint)] {
        let text = error[field].as_str().unwrap_or_default();
        assert!(text.contains(part), "{field} without {part:?}\n{outcome}");
    }
}

/// Starts a job, does `harm` when `begun` says that it is well under way, and returns its summary.
pub fn in_the_middle_of(
    command: &mut Command,
    begun: impl Fn() -> bool,
    harm: impl FnOnce(&mut Job),
) -> Value {
    harmed(Job::start(command), begun, harm)
}

fn harmed(mut job: Job, begun: impl Fn() -> bool, harm: impl FnOnce(&mut Job)) -> Value {
    wait_until(|| begun() || !job.is_running());
    assert!(job.is_running(), "ended too early\n{}", job.outcome());
    harm(&mut job);
    job.outcome().summary()
}

/// A server that goes away in the middle of a job.
pub struct Outage<'a> {
    /// Takes it away.
    pub begin: &'a dyn Fn(),
    /// Brings it back, or another one in its place.
    pub end: &'a dyn Fn(),
    /// Where the log of the job goes.
    pub log: &'a Path,
}

impl Outage<'_> {
    /// Starts a job, takes the server away when `begun` says that the job is well under way, and brings it back when a request of
    /// the job has failed. The job ends well, and says that it sent requests again.
    #[track_caller]
    pub fn in_the_middle_of(&self, command: &mut Command, begun: impl Fn() -> bool) {
        command.env("HELIOS_MOVER_LOG", LOGGED);
        let log = File::create(self.log).expect("a log");
        let job = Job::start_into(command, Stdio::piped(), log.into());
        let sent_again = || {
            let log = fs::read(self.log).expect("a log");
            String::from_utf8_lossy(&log).matches(SENT_AGAIN).count()
        };
        let summary = harmed(job, begun, |job| {
            let before = sent_again();
            (self.begin)();
            wait_until(|| sent_again() > before || !job.is_running());
            assert!(job.is_running(), "ended while the server was away");
            (self.end)();
        });
        let retries = summary["engine"]["link"]["retries"].as_u64();
        assert!(retries > Some(0), "it has noticed nothing: {summary}");
    }
}

/// One address that leads to one of several servers, as operators have it before a cluster: to another one when that is lost.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    server: Arc<Mutex<String>>,
}

impl Relay {
    /// Leads to the server at `endpoint` (`http://host:port`), as long as the test's process lives.
    pub fn start(endpoint: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
        let relay = Relay {
            address: listener.local_addr().expect("an address"),
            server: Arc::new(Mutex::new(host_and_port(endpoint))),
        };
        let server = Arc::clone(&relay.server);
        thread::spawn(move || {
            for near in listener.incoming().take(10_000).flatten() {
                let server = lock(&server).clone();
                // Where nobody listens, the client's connection ends here.
                if let Ok(far) = TcpStream::connect(server) {
                    pass_on(&near, &far);
                    pass_on(&far, &near);
                }
            }
        });
        relay
    }

    /// From now on new connections are led to the server at `endpoint`.
    pub fn lead_to(&self, endpoint: &str) {
        *lock(&self.server) = host_and_port(endpoint);
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn lock(server: &Mutex<String>) -> MutexGuard<'_, String> {
    server.lock().expect("nobody panics while it is held")
}

fn host_and_port(endpoint: &str) -> String {
    let bare = endpoint.strip_prefix("http://");
    bare.expect("an endpoint without TLS").to_owned()
}

/// Passes on what comes in one direction. Where that ends, the whole connection does: HTTP knows no half of one.
fn pass_on(from: &TcpStream, to: &TcpStream) {
    let mut from = from.try_clone().expect("a descriptor");
    let mut to = to.try_clone().expect("a descriptor");
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        for end in [&from, &to] {
            let _ = end.shutdown(Shutdown::Both);
        }
    });
}
