//! Files to the servers and back, plainly and over TLS, by the clients that are this package's own.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs;
use std::path::{Path, PathBuf};

use mover_benches::command::compare_trees;
use mover_benches::s3::figures::{FIRST_BYTE_READS, Moved};
use mover_benches::s3::packs;
use mover_benches::s3::peers::{Client, Direction, Job, first_byte};
use mover_benches::s3::servers::{Access, Programs, Server, ServerKind};
use mover_test_servers::Garage;

const OWN: &str = env!("CARGO_BIN_EXE_mover-bench-s3");
/// Two files, of which no piece is whole.
const BYTES: u64 = 20_000_000;

struct Files {
    dir: tempfile::TempDir,
    source: PathBuf,
}

impl Files {
    fn make() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        packs::make(&source, BYTES).unwrap();
        Files { dir, source }
    }

    fn serve(&self, kind: ServerKind) -> Server {
        // Garage makes its cluster anew each time.
        let place = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
        let programs = Programs {
            own: Path::new(OWN),
            garage: &Garage::program(),
        };
        Server::start(kind, programs, &place, BYTES, None).unwrap()
    }

    fn job<'a>(&'a self, access: &'a Access, target: &'a Path) -> Job<'a> {
        let nowhere = Path::new("/nonexistent");
        Job {
            own: Path::new(OWN),
            peers: nowhere,
            scripts: nowhere,
            source: &self.source,
            target,
            access,
        }
    }
}

/// What a program of ours tells: every request's time is in the histogram that results keep. Returns how many there were.
fn requests_kept(said: &str) -> u64 {
    let moved: Moved = serde_json::from_str(said).expect("figures");
    let times = moved.latency.histogram().expect("a histogram is read");
    let times = times.expect("a histogram");
    assert_eq!(times.len(), moved.requests);
    assert_eq!(times.max(), moved.latency.max_us);
    moved.requests
}

#[test]
fn what_was_sent_comes_back_plainly_and_over_tls() {
    let files = Files::make();
    for kind in [ServerKind::Sink, ServerKind::SinkTls, ServerKind::GarageTls] {
        for client in [Client::Bare, Client::Mover, Client::MoverChunks] {
            let target = files.dir.path().join(format!("{kind:?}-{client:?}"));
            fs::create_dir(&target).unwrap();
            let server = files.serve(kind);
            assert_eq!(server.access.endpoint.starts_with("https:"), kind.is_tls());
            let job = files.job(&server.access, &target);
            for direction in [Direction::Upload, Direction::Download] {
                let said = client.program(direction, &job).output().unwrap();
                assert!(requests_kept(&said) >= 2, "{said}");
            }
            compare_trees(client.title(), &files.source, &target, &[]).unwrap();
            if let Some(program) = first_byte(client, &job) {
                let said = program.output().unwrap();
                assert_eq!(requests_kept(&said), FIRST_BYTE_READS as u64);
            }
        }
    }
}

#[test]
fn a_server_that_is_not_known_gets_nothing() {
    let files = Files::make();
    let server = files.serve(ServerKind::SinkTls);
    let other = tempfile::tempdir().unwrap();
    let known = files.serve(ServerKind::SinkTls);
    let access = Access {
        ca_file: known.access.ca_file.clone(),
        ..server.access.clone()
    };
    let job = files.job(&access, other.path());
    for client in [Client::Bare, Client::Mover] {
        let said = client.program(Direction::Upload, &job).output();
        let said = said.expect_err("it is not known").to_string();
        assert!(said.contains("certificate"), "{said}");
    }
}
