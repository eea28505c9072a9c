//! Files to S3 and back: every client against every server.
//!
//! Invariants: clients take turns within a repetition, each with a server that has just started; nobody pays for memory that
//! the machine's host has yet to give; what came back is compared with what was sent, byte by byte, in the first repetition.

use std::fs::File;
use std::io::{Read, copy, repeat};
use std::path::{Path, PathBuf};

use mover_base::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use super::figures::Moved;
use super::peers::{Client, Direction, Job, first_byte};
use super::servers::{Programs, Server, ServerKind};
use crate::command::{Usage, compare_trees, sync};
use crate::data::Files;
use crate::stats::turns;

/// Core of the server and core of the client where each has its own.
const SERVER_CORE: &str = "1";
const CLIENT_CORE: &str = "0";

/// Who may use which core.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// One core for the server, one for the client: the client's own limit shows.
    OneEach,
    /// Both use what they find.
    Shared,
}

impl Placement {
    /// For tables.
    pub fn title(self) -> &'static str {
        match self {
            Placement::OneEach => "one core each",
            Placement::Shared => "both cores shared",
        }
    }
}

/// Servers and placements that are measured. Garage needs more of the machine than any client, so it gets all that is left.
pub const SETUPS: [(ServerKind, Placement); 6] = [
    (ServerKind::Sink, Placement::OneEach),
    (ServerKind::Sink, Placement::Shared),
    (ServerKind::SinkTls, Placement::OneEach),
    (ServerKind::SinkTls, Placement::Shared),
    (ServerKind::Garage, Placement::Shared),
    (ServerKind::GarageTls, Placement::Shared),
];

/// One timed transfer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TransferRun {
    /// Against which server.
    pub server: ServerKind,
    /// On which cores.
    pub placement: Placement,
    /// By whom.
    pub client: Client,
    /// Which way.
    pub direction: Direction,
    /// Counted from 1.
    pub repetition: u32,
    /// Bytes of the files.
    pub bytes: u64,
    /// What the client's process used.
    #[serde(flatten)]
    pub usage: Usage,
    /// What the server used meanwhile, in CPU seconds.
    pub server_cpu_seconds: f64,
    /// What our own programs tell of their requests.
    pub own: Option<Moved>,
}

impl TransferRun {
    /// Bytes per second of wall time, from start to exit of the program.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.usage.wall_seconds
    }

    /// CPU seconds of the client per gigabyte.
    pub fn cpu_seconds_per_gb(&self) -> f64 {
        self.usage.cpu_seconds() * 1e9 / self.bytes.max(1) as f64
    }

    /// CPU seconds of the server per gigabyte.
    pub fn server_cpu_seconds_per_gb(&self) -> f64 {
        self.server_cpu_seconds * 1e9 / self.bytes.max(1) as f64
    }
}

/// Times to the first byte of small reads, one at a time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FirstByteRun {
    /// From which server.
    pub server: ServerKind,
    /// By whom: the mover's driver or a bare connection.
    pub client: Client,
    /// Counted from 1.
    pub repetition: u32,
    /// The requests.
    pub times: Moved,
}

/// All transfers of a day.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct S3Transfers {
    /// Uploads and downloads.
    pub runs: Vec<TransferRun>,
    /// Times to the first byte.
    pub first_bytes: Vec<FirstByteRun>,
}

/// Where programs and data are.
#[derive(Clone, Debug)]
pub struct Places {
    /// This package's program for S3.
    pub own: PathBuf,
    /// Garage.
    pub garage: PathBuf,
    /// Directory of the peers' environment.
    pub peers: PathBuf,
    /// Directory of the scripts.
    pub scripts: PathBuf,
    /// Directory in memory, for everything temporary.
    pub memory: PathBuf,
}

impl Places {
    /// The programs that serve.
    pub fn servers(&self) -> Programs<'_> {
        Programs {
            own: &self.own,
            garage: &self.garage,
        }
    }
}

/// Measures all clients against all servers.
///
/// # Errors
/// Those of the programs; [`Kind::CheckFailed`] where other bytes came back than were sent.
pub fn measure(
    places: &Places,
    source: &Path,
    repetitions: u32,
    mut done: impl FnMut(&TransferRun),
) -> Result<S3Transfers> {
    let mut all = S3Transfers::default();
    for (server, placement) in SETUPS {
        let all_clients = Client::ALL.into_iter();
        let clients: Vec<Client> = all_clients.filter(|client| client.is_for(server)).collect();
        for repetition in 1..=repetitions {
            for client in turns(&clients, repetition) {
                let round = Round {
                    places,
                    source,
                    server,
                    placement,
                    client,
                    repetition,
                };
                round.run(&mut all, &mut done)?;
            }
        }
    }
    Ok(all)
}

/// One client, there and back.
struct Round<'a> {
    places: &'a Places,
    source: &'a Path,
    server: ServerKind,
    placement: Placement,
    client: Client,
    repetition: u32,
}

impl Round<'_> {
    fn run(&self, all: &mut S3Transfers, done: &mut impl FnMut(&TransferRun)) -> Result<()> {
        let dir = tempfile::tempdir_in(&self.places.memory)
            .map_err(|error| no_room("a directory for everything temporary").cause(error))?;
        let target = dir.path().join("target");
        std::fs::create_dir(&target)
            .map_err(|error| no_room("a directory for downloads").cause(error))?;
        let bytes = Files::list(self.source)?.bytes();
        let core = match self.placement {
            Placement::OneEach => Some(SERVER_CORE),
            Placement::Shared => None,
        };
        let programs = self.places.servers();
        let server = Server::start(self.server, programs, dir.path(), bytes, core)?;
        let job = Job {
            own: &self.places.own,
            peers: &self.places.peers,
            scripts: &self.places.scripts,
            source: self.source,
            target: &target,
            access: &server.access,
        };
        for direction in [Direction::Upload, Direction::Download] {
            let run = self.transfer(direction, &job, &server, bytes)?;
            done(&run);
            all.runs.push(run);
        }
        // Once is enough: repetitions run the same program on the same data.
        if self.repetition == 1 {
            compare_trees(self.client.title(), self.source, &target, &[])?;
        }
        if self.placement == Placement::Shared
            && let Some(program) = first_byte(self.client, &job)
        {
            all.first_bytes.push(FirstByteRun {
                server: self.server,
                client: self.client,
                repetition: self.repetition,
                times: told(&program.output()?)?,
            });
        }
        Ok(())
    }

    fn transfer(
        &self,
        direction: Direction,
        job: &Job<'_>,
        server: &Server,
        bytes: u64,
    ) -> Result<TransferRun> {
        let program = self.client.program(direction, job);
        let program = match self.placement {
            Placement::OneEach => program.through("taskset", &["-c", CLIENT_CORE]),
            Placement::Shared => program,
        };
        sync();
        touch_memory(&self.places.memory, bytes)
            .map_err(|error| no_room("memory for the transfer").cause(error))?;
        let before = server.cpu_seconds()?;
        let (usage, printed) = program.timed()?;
        let own = match self.client {
            Client::Mover | Client::MoverChunks | Client::Bare => Some(told(&printed)?),
            Client::Crt | Client::S5cmd | Client::Rclone => None,
        };
        Ok(TransferRun {
            server: self.server,
            placement: self.placement,
            client: self.client,
            direction,
            repetition: self.repetition,
            bytes,
            usage,
            server_cpu_seconds: server.cpu_seconds()? - before,
            own,
        })
    }
}

/// What our own program prints.
fn told(printed: &str) -> Result<Moved> {
    serde_json::from_str(printed).map_err(|e| {
        Error::new(
            Kind::Internal,
            "the program printed something else than its figures",
        )
        .cause(e)
    })
}

/// Fills `bytes` of memory below `dir` and gives them back to the kernel, which hands them out next. A virtual machine's host
/// takes memory back that was free for seconds, and the first to write to it waits for its return.
fn touch_memory(dir: &Path, bytes: u64) -> std::io::Result<()> {
    let path = dir.join("touched");
    let written =
        File::create(&path).and_then(|mut file| copy(&mut repeat(1).take(bytes), &mut file));
    std::fs::remove_file(&path)?;
    written.map(drop)
}

fn no_room(what: &str) -> Error {
    Error::new(Kind::Target, "there is no room in memory").object(what)
}
