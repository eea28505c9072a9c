//! A PostgreSQL 15 cluster of a test's own: on a Unix socket in its scratch directory, run as user postgres.
//!
//! Invariants: no TCP port is opened; the server is stopped when dropped.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{self, as_user};

const BIN: &str = "/usr/lib/postgresql/15/bin";
const PORT: &str = "54321";

/// What the truth consists of.
const ROWS: [&str; 5] = [
    "select count(*), md5(string_agg(a::text, e'\\n' order by aid)) from pgbench_accounts a",
    "select count(*), md5(string_agg(b::text, e'\\n' order by bid)) from pgbench_branches b",
    "select count(*), md5(string_agg(t::text, e'\\n' order by tid)) from pgbench_tellers t",
    "select count(*), md5(string_agg(h::text, e'\\n' order by h::text)) from pgbench_history h",
    "select count(*), md5(string_agg(n::text, e'\\n' order by id)) from noise n",
];

/// A cluster: its data directory, its socket directory, and whether it may run.
#[derive(Debug)]
pub struct Postgres {
    data: PathBuf,
    socket: PathBuf,
    running: bool,
}

impl Postgres {
    /// `initdb` with data checksums into `dir`/data; the server does not run yet.
    pub fn create(dir: &Path) -> Self {
        let server = Postgres {
            data: dir.join("data"),
            socket: dir.join("socket"),
            running: false,
        };
        fs::create_dir_all(&server.socket).expect("socket directory");
        let user = |flag: &str| {
            run::run("id", [flag, "postgres"])
                .trim()
                .parse::<u32>()
                .expect("a number")
        };
        for dir in [dir, &server.socket] {
            chown(dir, Some(user("-u")), Some(user("-g"))).expect("owner of the cluster");
        }
        let mut initdb = server.tool("initdb");
        initdb
            .args([
                "-k",
                "--no-sync",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "-D",
            ])
            .arg(&server.data);
        run::checked(&mut initdb);
        server
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// A program of PostgreSQL's, run as user postgres in a directory that it may enter.
    pub fn tool(&self, program: &str) -> Command {
        let mut command = as_user("postgres", Path::new(BIN).join(program));
        command
            .current_dir("/")
            .env("PGHOST", &self.socket)
            .env("PGPORT", PORT);
        command
    }

    /// Starts the server and waits until it accepts connections.
    pub fn start(&mut self) {
        // Also one that is given up on may run by now.
        self.running = true;
        let options = format!(
            "-c listen_addresses='' -c unix_socket_directories='{}' -p {PORT}",
            self.socket.display()
        );
        let log = self.socket.join("log");
        let mut start = self.tool("pg_ctl");
        // The server inherits what pg_ctl has open: only a file may be among it, or reading the output never ends.
        start
            .args(["start", "-w", "-s", "-t", "300", "-o", &options, "-D"])
            .arg(&self.data)
            .arg("-l")
            .arg(&log);
        let status = start
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status();
        let log = fs::read_to_string(&log).unwrap_or_default();
        assert!(
            status.is_ok_and(|status| status.success()),
            "PostgreSQL does not start:\n{log}"
        );
    }

    /// Stops the server cleanly.
    pub fn stop(&mut self) {
        run::checked(
            self.tool("pg_ctl")
                .args(["stop", "-w", "-s", "-t", "300", "-m", "fast", "-D"])
                .arg(&self.data),
        );
        self.running = false;
    }

    /// Runs SQL with psql; the result has one row a line.
    pub fn query(&self, sql: &str) -> String {
        run::checked(self.tool("psql").args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            "postgres",
            "-c",
            sql,
        ]))
    }

    /// Fills the cluster with pgbench's tables (100,000 accounts for each of `scale`), and with 14 MB that
    /// hardly compress.
    pub fn fill(&self, scale: usize) {
        self.client(
            "pgbench",
            ["-i", "-q", "-s", &scale.to_string(), "postgres"],
        );
        self.client("pgbench", ["-n", "-c", "2", "-t", "500", "postgres"]);
        self.query(
            "create table noise as select id, sha512(id::text::bytea) a, sha512((-id)::text::bytea) b \
             from generate_series(1, 75000) id",
        );
        self.query("create extension amcheck");
        let accounts = self.query("select count(*) from pgbench_accounts");
        assert_eq!(accounts.trim(), (scale * 100_000).to_string());
    }

    /// Digests of everything that [`fill`](Self::fill) makes.
    pub fn rows(&self) -> Vec<String> {
        ROWS.iter().map(|sql| self.query(sql)).collect()
    }

    /// Starts the server and fails the test unless every page, index and row is as it was, and new work succeeds.
    pub fn start_intact(&mut self, rows: &[String]) {
        let data = self.data().to_path_buf();
        self.client(
            "pg_checksums",
            ["--check".as_ref(), "-D".as_ref(), data.as_os_str()],
        );
        self.start();
        self.client(
            "pg_amcheck",
            ["--all", "--heapallindexed", "--install-missing"],
        );
        assert_eq!(rows, self.rows());
        self.client("pgbench", ["-n", "-c", "2", "-t", "50", "postgres"]);
    }

    /// Runs a client program (pgbench, pg_amcheck) and returns its output.
    pub fn client<S: AsRef<OsStr>>(
        &self,
        program: &str,
        args: impl IntoIterator<Item = S>,
    ) -> String {
        run::checked(self.tool(program).args(args))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.running {
            let _ = run::output(
                self.tool("pg_ctl")
                    .args(["stop", "-s", "-m", "immediate", "-D"])
                    .arg(&self.data),
            );
        }
    }
}
