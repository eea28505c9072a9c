//! The clients compared: the mover's driver, bare HTTP and three copying tools, each at settings that suit it.
//!
//! Invariants: each moves the same files, named alike, to the same server and back; none resumes, compares or looks for what
//! is there already; a pack is one request for all of them, since none cuts what is below 16 MiB; over TLS all of them verify
//! the server's certificate.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::servers::{Access, ServerKind};
use crate::command::Program;

/// What `benches/run` installs into the peers' environment, for the results.
pub const VERSIONS: [&str; 3] = ["rclone 1.75.2", "s5cmd 2.3.0", "AWS CRT (awscrt 0.38.1)"];
/// Below it the objects are written.
const PREFIX: &str = "packs/";
/// Files that a copying tool moves at a time.
const WORKERS: &str = "16";

/// A program that moves files to S3 and back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Client {
    /// The mover's driver.
    Mover,
    /// The same, told to sign bodies in chunks.
    MoverChunks,
    /// Bare HTTP: the roofline.
    Bare,
    /// The AWS CRT's S3 client, called from Python.
    Crt,
    /// s5cmd.
    S5cmd,
    /// rclone.
    Rclone,
}

/// Which way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Files to objects.
    Upload,
    /// Objects to files.
    Download,
}

/// Programs and directories of one transfer.
#[derive(Debug)]
pub struct Job<'a> {
    /// This package's program for S3.
    pub own: &'a Path,
    /// Directory of the peers' environment.
    pub peers: &'a Path,
    /// Directory of the scripts.
    pub scripts: &'a Path,
    /// The files.
    pub source: &'a Path,
    /// Where they come back to.
    pub target: &'a Path,
    /// The server.
    pub access: &'a Access,
}

impl Client {
    /// All, the mover first.
    pub const ALL: [Client; 6] = [
        Client::Mover,
        Client::MoverChunks,
        Client::Bare,
        Client::Crt,
        Client::S5cmd,
        Client::Rclone,
    ];

    /// Whether it is worth measuring there: over TLS the mover hashes no body for its signature, neither whole nor in chunks.
    pub fn is_for(self, server: ServerKind) -> bool {
        !(server.is_tls() && self == Client::MoverChunks)
    }

    /// Name for tables.
    pub fn title(self) -> &'static str {
        match self {
            Client::Mover => "mover's driver",
            Client::MoverChunks => "mover's driver, sign=chunks",
            Client::Bare => "bare HTTP",
            Client::Crt => "AWS CRT",
            Client::S5cmd => "s5cmd",
            Client::Rclone => "rclone",
        }
    }

    /// How it was told to work, for the report.
    pub fn settings(self) -> &'static str {
        match self {
            Client::Mover => {
                "defaults: each body signed by its SHA-256 and sent with a CRC-32C, If-None-Match, 32 connections; downloads in ranges of up to 7 MiB as a restore reads"
            }
            Client::MoverChunks => "the same, each body signed by the SHA-256 of its chunks",
            Client::Bare => {
                "8 connections, presigned, no checksum, through a buffer of 256 KiB each"
            }
            Client::Crt => {
                "Python binding, files read and written by the CRT, parts of 16 MiB, 16 objects at a time, target 10 Gbit/s; payload not signed, no checksum"
            }
            Client::S5cmd => {
                "16 workers, one part each; each body signed by its SHA-256 and sent with its MD5"
            }
            Client::Rclone => {
                "16 transfers, no checks, no HEAD, payload not signed, no data integrity checksums, one stream per file; each body sent with its MD5, which it cannot be told to leave out of an upload in one part"
            }
        }
    }

    /// What differs over TLS, for the report.
    pub fn tls_settings(self) -> &'static str {
        match self {
            Client::Mover => {
                "no body hashed for its signature, the CRC-32C as without TLS; ca=FILE"
            }
            Client::MoverChunks => "not measured, since no body is signed",
            Client::Bare => "rustls, 256 KiB read or written at a time",
            Client::Crt => "its trust store replaced; payload not signed, as without TLS",
            Client::S5cmd => "AWS_CA_BUNDLE; SHA-256 and MD5 of each body as without TLS",
            Client::Rclone => "--ca-cert; payload not signed and MD5 of each body, as without TLS",
        }
    }

    /// The program for one direction.
    pub fn program(self, direction: Direction, job: &Job<'_>) -> Program {
        let program = match self {
            Client::Mover => mover(direction, job, ""),
            Client::MoverChunks => mover(direction, job, "&sign=chunks"),
            Client::Bare => bare(direction, job),
            Client::Crt => crt(direction, job),
            Client::S5cmd => s5cmd(direction, job),
            Client::Rclone => rclone(direction, job),
        };
        let variables = job.access.variables().into_iter();
        variables.fold(program, |program, (name, value)| program.env(name, value))
    }
}

/// The local directory of a direction.
fn local<'a>(direction: Direction, job: &Job<'a>) -> &'a Path {
    match direction {
        Direction::Upload => job.source,
        Direction::Download => job.target,
    }
}

fn verb(direction: Direction) -> &'static str {
    match direction {
        Direction::Upload => "put",
        Direction::Download => "get",
    }
}

/// The mover's driver, with further options in the URL.
fn mover(direction: Direction, job: &Job<'_>, options: &str) -> Program {
    Program::new(job.own)
        .args(["transfer", verb(direction), "--url"])
        .args([job.access.url(PREFIX.trim_end_matches('/'), options)])
        .args(["--dir"])
        .path(local(direction, job))
}

fn bare(direction: Direction, job: &Job<'_>) -> Program {
    bare_program(verb(direction), job)
}

/// The time to the first byte, by the mover's driver or over a bare connection.
pub fn first_byte(client: Client, job: &Job<'_>) -> Option<Program> {
    let program = match client {
        Client::Mover => Program::new(job.own)
            .args(["transfer", "first-byte", "--url"])
            .args([job.access.url(PREFIX.trim_end_matches('/'), "")])
            .args(["--dir"])
            .path(job.target),
        Client::Bare => bare_program("first-byte", job),
        // It differs in uploads only; and what happens inside of the other programs cannot be seen.
        Client::MoverChunks | Client::Crt | Client::S5cmd | Client::Rclone => return None,
    };
    let variables = job.access.variables().into_iter();
    Some(variables.fold(program, |program, (name, value)| program.env(name, value)))
}

fn bare_program(way: &str, job: &Job<'_>) -> Program {
    let access = job.access;
    let program = Program::new(job.own)
        .args(["bare", way, "--endpoint"])
        .args([access.endpoint.as_str(), "--region", &access.region])
        .args(["--bucket", &access.bucket, "--prefix", PREFIX, "--source"])
        .path(job.source)
        .args(["--dir"])
        .path(job.target);
    trusting(program, "--ca", access)
}

/// Adds the option by which a program learns which certificate to trust.
fn trusting(program: Program, option: &str, access: &Access) -> Program {
    match &access.ca_file {
        Some(path) => program.args([option]).path(path),
        None => program,
    }
}

fn crt(direction: Direction, job: &Job<'_>) -> Program {
    let access = job.access;
    let program = Program::new(job.peers.join("bin/python"))
        .path(&job.scripts.join("crt-transfer"))
        .args([verb(direction), &access.endpoint, &access.region])
        .args([access.bucket.as_str(), PREFIX])
        .path(local(direction, job));
    let program = trusting(program, "--ca", access);
    match direction {
        Direction::Upload => program,
        // It has no listing of its own: the names are those of the source.
        Direction::Download => program.args(["--names-of"]).path(job.source),
    }
}

fn s5cmd(direction: Direction, job: &Job<'_>) -> Program {
    let objects = format!("s3://{}/{PREFIX}", job.access.bucket);
    let program = Program::new(job.peers.join("bin/s5cmd"))
        .args(["--endpoint-url", &job.access.endpoint, "--log", "error"])
        .args(["--numworkers", WORKERS, "cp", "--concurrency", "1"]);
    // It has no option for that, but Amazon's library looks there.
    let program = match &job.access.ca_file {
        Some(path) => program.env("AWS_CA_BUNDLE", path.display().to_string()),
        None => program,
    };
    match direction {
        Direction::Upload => program.args([format!("{}/*", job.source.display()), objects]),
        Direction::Download => {
            let target = format!("{}/", job.target.display());
            program.args([format!("{objects}*"), target])
        }
    }
}

fn rclone(direction: Direction, job: &Job<'_>) -> Program {
    let access = job.access;
    let objects = format!(":s3:{}/{PREFIX}", access.bucket);
    let program = Program::new(job.peers.join("bin/rclone"))
        .args(["copy", "--config", "/dev/null", "--s3-provider", "Other"])
        .args(["--s3-env-auth", "--s3-endpoint", &access.endpoint])
        .args(["--s3-region", &access.region, "--s3-list-version", "2"])
        .args([
            "--s3-no-check-bucket",
            "--s3-no-head",
            "--s3-no-head-object",
        ])
        .args([
            "--s3-disable-checksum",
            "--ignore-checksum",
            "--no-check-dest",
        ])
        .args(["--s3-use-unsigned-payload=true"])
        .args(["--s3-use-data-integrity-protections=false"])
        .args(["--multi-thread-streams", "0"])
        .args(["--transfers", WORKERS, "--checkers", WORKERS]);
    let program = trusting(program, "--ca-cert", access);
    match direction {
        Direction::Upload => program.path(job.source).args([objects]),
        Direction::Download => program.args([objects]).path(job.target),
    }
}
