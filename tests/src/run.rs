//! Running other programs: `mkfs`, `mount`, `initdb`, `psql` and the like.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

/// Runs `program` and returns its standard output; anything but success fails the test with all it printed.
pub fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> String {
    checked(Command::new(program).args(args))
}

/// Runs a prepared command and returns its standard output; anything but success fails the test.
pub fn checked(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a prepared command without standard input and returns what it printed and how it ended.
pub fn output(command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| {
            panic!("cannot run {command:?}: {error} (tests/run installs what the tests need)")
        })
}

/// A program of `name`'s own user, so that a server that refuses root runs.
pub fn as_user(user: &str, program: impl AsRef<OsStr>) -> Command {
    require_root();
    let mut command = Command::new("runuser");
    command.args(["-u", user, "--"]).arg(program);
    command
}

/// Many of the tests mount, change owners or switch users: only root can.
pub fn require_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "the end-to-end tests need root"
    );
}
