//! Repositories in S3: where they are, how the tool is let in, and jobs in whose middle something happens.

use std::process::Command;

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
    let mut job = Job::start(command);
    wait_until(|| begun() || !job.is_running());
    assert!(job.is_running(), "ended too early\n{}", job.outcome());
    harm(&mut job);
    job.outcome().summary()
}
