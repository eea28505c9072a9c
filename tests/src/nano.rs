//! A HeliosDB Nano 4.41.1 server of a test's own, which speaks PostgreSQL's protocol.
//!
//! Invariants: it listens on loopback only; it is stopped by SIGTERM, the way it is stopped in production; a
//! server that a failed test leaves behind is killed.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mover_test_servers::{free_ports, peer};
use rustix::process::{Pid, Signal, kill_process};

use crate::run;

/// How often the start is looked at, and how many times before it counts as failed (5 minutes: a slow disk).
const READY_POLL: Duration = Duration::from_millis(50);
const READY_POLLS: u32 = 6000;

/// The version that `tests/run` installs.
const VERSION: &str = "4.41.1";

/// A running server.
#[derive(Debug)]
pub struct Nano {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Nano {
    /// Starts a server on `data` (created when absent, mode 0700); its log and ready file go to `dir`.
    pub fn start(data: &Path, dir: &Path) -> Self {
        fs::create_dir_all(data).expect("data directory");
        fs::set_permissions(data, fs::Permissions::from_mode(0o700))
            .expect("mode of the data directory");
        let ready = dir.join("nano.ready");
        let _ = fs::remove_file(&ready);
        let log = dir.join("nano.log");
        let out = File::create(&log).expect("log file");
        let [port] = free_ports();
        let child = Command::new(peer("heliosdb-nano", VERSION))
            .args([
                "start",
                "--listen",
                "127.0.0.1",
                "--http-port",
                "0",
                "--auth",
                "trust",
                "--port",
            ])
            .arg(port.to_string())
            .arg("--data-dir")
            .arg(data)
            .env("HELIOSDB_NANO_READY_FILE", &ready)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("log file"))
            .stderr(out)
            .spawn()
            .expect("the server starts");
        let mut server = Nano { child, port, log };
        for _ in 0..READY_POLLS {
            if ready.exists() {
                return server;
            }
            if let Some(status) = server.child.try_wait().expect("child can be waited for") {
                panic!("HeliosDB Nano ended with {status}:\n{}", server.log());
            }
            std::thread::sleep(READY_POLL);
        }
        panic!("HeliosDB Nano does not get ready:\n{}", server.log());
    }

    /// Stops the server by SIGTERM and waits for its end.
    pub fn stop(mut self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).expect("the server can be signalled");
        let status = self.child.wait().expect("the server ends");
        assert!(
            status.success(),
            "HeliosDB Nano ended with {status}:\n{}",
            self.log()
        );
    }

    /// Runs SQL with psql; the result has one row a line, fields separated by `|`.
    pub fn query(&self, sql: &str) -> String {
        let mut psql = self.psql();
        run::checked(psql.args(["-c", sql]))
    }

    /// Runs the statements of a file with psql.
    pub fn script(&self, path: &Path) {
        let mut psql = self.psql();
        run::checked(psql.arg("-f").arg(path));
    }

    fn psql(&self) -> Command {
        let mut command = Command::new("psql");
        command
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
            .args(["-h", "127.0.0.1", "-U", "postgres", "-d", "postgres", "-p"])
            .arg(self.port.to_string())
            .env("PGSSLMODE", "disable");
        command
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Nano {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
