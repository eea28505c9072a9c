//! Backup and restore over a link of limited bandwidth, and under limits of the mover's own.
//!
//! Invariants: the cheap server is at the far end, its objects in memory; what is restored is compared with the source;
//! a share of the link counts what TCP, IP and Ethernet add to the payload, and says so.

use std::path::Path;

use mover_base::Result;
use serde::{Deserialize, Serialize};

use super::backups::{moved_bytes, with_keys};
use super::link::{Link, SEGMENT_BYTES};
use super::peers::{Client, Direction, Job};
use super::servers::Server;
use super::transfers::Places;
use super::windows::{Sample, Windows, while_sampling};
use crate::command::{Program, Usage, compare_trees, drop_caches};
use crate::data::{Dataset, Files};
use crate::tools::{Round, Step, cannot_make, mover};

const GIGABIT: u64 = 1_000_000_000;
/// Of all bytes, so many are left out at either end where the rate is told while data flows.
const ENDS_SHARE: f64 = 0.01;

/// One timed step over a link.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinkRun {
    /// The mover, or bare HTTP for comparison.
    pub client: Client,
    /// What was moved.
    pub dataset: Dataset,
    /// Backup (upload) or restore (download).
    pub step: Step,
    /// Counted from 1.
    pub repetition: u32,
    /// Bandwidth of the link; none: as the machine can.
    pub link_bits_per_second: Option<u64>,
    /// The mover's own limit in this direction.
    pub own_limit_bytes_per_second: Option<u64>,
    /// Connections, where not the default.
    pub connections: Option<u32>,
    /// Shards, where not the default.
    #[serde(default)]
    pub shards: Option<u32>,
    /// What the program used.
    #[serde(flatten)]
    pub usage: Usage,
    /// Bytes of the source.
    pub source_bytes: u64,
    /// Bytes of objects that went over the link.
    pub moved_bytes: u64,
    /// Bytes of frames that the link's bucket let pass in this direction.
    pub wire_bytes: Option<u64>,
    /// Payload per second while data flowed (the middle 98 % of it).
    pub flowing_bytes_per_second: Option<f64>,
    /// All windows of five seconds.
    pub windows: Option<Windows>,
}

/// What ran: over a link the mover is measured as a whole, and not its driver alone.
fn title(client: Client) -> &'static str {
    match client {
        Client::Mover => "helios-mover",
        client => client.title(),
    }
}

impl LinkRun {
    /// Name of the program, for tables.
    pub fn title(&self) -> &'static str {
        title(self.client)
    }

    /// Seconds that the objects' bytes take on the link with their headers, if nothing else took time.
    pub fn ideal_seconds(&self) -> Option<f64> {
        let bits = self.link_bits_per_second? as f64;
        Some(self.moved_bytes as f64 * 8.0 * overhead() / bits)
    }

    /// Payload per second from start to exit as a share of what the link can carry of it.
    pub fn share_of_link(&self) -> Option<f64> {
        Some(self.ideal_seconds()? / self.usage.wall_seconds)
    }

    /// The same while data flowed.
    pub fn flowing_share(&self) -> Option<f64> {
        let bits = self.link_bits_per_second? as f64;
        Some(self.flowing_bytes_per_second? * 8.0 * overhead() / bits)
    }
}

/// Bytes of frames per byte of payload.
fn overhead() -> f64 {
    SEGMENT_BYTES.1 as f64 / SEGMENT_BYTES.0 as f64
}

/// What is set up for a pair of runs.
#[derive(Clone, Copy, Debug)]
struct Case {
    client: Client,
    dataset: Dataset,
    link_bits_per_second: Option<u64>,
    own_limit_mib: Option<u64>,
    connections: Option<u32>,
    shards: Option<u32>,
}

const fn case(client: Client, dataset: Dataset, bits: Option<u64>) -> Case {
    Case {
        client,
        dataset,
        link_bits_per_second: bits,
        own_limit_mib: None,
        connections: None,
        shards: None,
    }
}

/// Under a limit of the mover's own, in MiB per second.
const fn limited(own_limit_mib: u64) -> Case {
    Case {
        own_limit_mib: Some(own_limit_mib),
        ..case(Client::Mover, Dataset::Packs, None)
    }
}

const CASES: [Case; 9] = [
    case(Client::Bare, Dataset::Packs, Some(GIGABIT)),
    case(Client::Mover, Dataset::Packs, Some(GIGABIT)),
    Case {
        connections: Some(64),
        ..case(Client::Mover, Dataset::Packs, Some(GIGABIT))
    },
    case(Client::Mover, Dataset::Rows, Some(GIGABIT)),
    case(Client::Mover, Dataset::Rows, Some(GIGABIT / 5)),
    limited(40),
    limited(160),
    // The lower a limit and the more shards there are, the harder it is to keep.
    Case {
        dataset: Dataset::Rows,
        shards: Some(4),
        ..limited(8)
    },
    // Beside what a job takes to begin and to end, the link: of that the other rows take five seconds alone. It comes last: the
    // host has work for a while with the files that it leaves.
    case(Client::Mover, Dataset::Rows10g, Some(GIGABIT)),
];

/// Where the data sets are: packs in memory, rows on the disk.
#[derive(Debug)]
pub struct Sources<'a> {
    /// Files like packs.
    pub packs: &'a Path,
    /// Rows.
    pub rows: &'a Path,
    /// Eight times as many.
    pub rows10g: &'a Path,
    /// Directory on the disk for what is restored from rows.
    pub work: &'a Path,
}

/// All cases in turn.
///
/// # Errors
/// Where the system allows no link; those of the programs; `CheckFailed` where other bytes came back.
pub fn measure(
    places: &Places,
    binary: &Path,
    sources: &Sources<'_>,
    repetitions: u32,
    mut done: impl FnMut(&LinkRun),
) -> Result<Vec<LinkRun>> {
    let mut runs = Vec::new();
    for repetition in 1..=repetitions {
        for case in CASES {
            let setup = Setup {
                places,
                binary,
                sources,
                case,
                repetition,
            };
            for run in setup.run()? {
                done(&run);
                runs.push(run);
            }
        }
    }
    Ok(runs)
}

struct Setup<'a> {
    places: &'a Places,
    binary: &'a Path,
    sources: &'a Sources<'a>,
    case: Case,
    repetition: u32,
}

impl Setup<'_> {
    fn run(&self) -> Result<Vec<LinkRun>> {
        let (source, near) = match self.case.dataset {
            Dataset::Packs => (self.sources.packs, self.places.memory.as_path()),
            Dataset::Rows10g => (self.sources.rows10g, self.sources.work),
            _ => (self.sources.rows, self.sources.work),
        };
        let dir = tempfile::tempdir_in(near).map_err(|e| cannot_make(near, e))?;
        let round = Round::new(self.binary, source, dir.path())?;
        let source_bytes = Files::list(source)?.bytes();
        let link = Link::make()?;
        link.limit(self.case.link_bits_per_second)?;
        let server = Server::behind(&link.host, &self.places.own, source_bytes)?;
        let mut runs = Vec::new();
        for step in [Step::Init, Step::Backup, Step::Restore] {
            let Some(program) = self.program(step, &server, &round)? else {
                continue;
            };
            if step == Step::Init {
                program.output()?;
                continue;
            }
            runs.push(self.step(step, &program, &link, source_bytes)?);
        }
        compare_trees(title(self.case.client), source, &round.target, &[])?;
        Ok(runs)
    }

    fn program(&self, step: Step, server: &Server, round: &Round<'_>) -> Result<Option<Program>> {
        if self.case.client != Client::Mover {
            let job = Job {
                own: &self.places.own,
                peers: &self.places.peers,
                scripts: &self.places.scripts,
                source: round.source,
                target: &round.target,
                access: &server.access,
            };
            let direction = match step {
                Step::Backup => Direction::Upload,
                Step::Restore => Direction::Download,
                _ => return Ok(None),
            };
            return Ok(Some(self.case.client.program(direction, &job)));
        }
        let options = self.case.connections.map(|n| format!("&connections={n}"));
        let url = server.access.url("repo", &options.unwrap_or_default());
        let program = with_keys(mover::program(step, &url, round)?, Some(server));
        let shards = self.case.shards.map(|shards| shards.to_string());
        let program = match &shards {
            Some(shards) if step != Step::Init => program.args(["--shards", shards]),
            _ => program,
        };
        let limit = self.case.own_limit_mib.map(|mib| format!("{mib}MiB/s"));
        Ok(Some(match (limit.as_deref(), step) {
            (Some(limit), Step::Backup) => program.args(["--limit-upload", limit]),
            (Some(limit), Step::Restore) => program.args(["--limit-download", limit]),
            _ => program,
        }))
    }

    fn step(
        &self,
        step: Step,
        program: &Program,
        link: &Link,
        source_bytes: u64,
    ) -> Result<LinkRun> {
        drop_caches()?;
        let passed = |link: &Link| match self.case.link_bits_per_second {
            Some(_) => link.wire_bytes().map(Some),
            None => Ok(None),
        };
        let before = passed(link)?;
        let ((usage, printed), sent, received) = while_sampling(|| program.timed())?;
        let after = passed(link)?;
        let is_upload = step == Step::Backup;
        let samples = if is_upload { sent } else { received };
        let of_direction = |(up, down): (u64, u64)| if is_upload { up } else { down };
        let moved_bytes = match self.case.client {
            Client::Mover => moved_bytes(step, mover::detail(&printed).as_ref())?,
            _ => source_bytes,
        };
        let limit = self.case.own_limit_mib.map(|mib| mib << 20);
        Ok(LinkRun {
            client: self.case.client,
            dataset: self.case.dataset,
            step,
            repetition: self.repetition,
            link_bits_per_second: self.case.link_bits_per_second,
            own_limit_bytes_per_second: limit,
            connections: self.case.connections,
            shards: self.case.shards,
            usage,
            source_bytes,
            moved_bytes,
            wire_bytes: after
                .zip(before)
                .map(|(after, before)| of_direction(after) - of_direction(before)),
            flowing_bytes_per_second: flowing(&samples),
            windows: Windows::of(&samples, limit.map(|limit| limit as f64)),
        })
    }
}

/// The rate of the middle 98 % of all bytes.
fn flowing(samples: &[Sample]) -> Option<f64> {
    let (first, last) = (samples.first()?, samples.last()?);
    let total = last.bytes - first.bytes;
    let reached = |share: f64| {
        let wanted = first.bytes + total * share;
        samples.iter().find(|sample| sample.bytes >= wanted)
    };
    let (begin, end) = (reached(ENDS_SHARE)?, reached(1.0 - ENDS_SHARE)?);
    let seconds = end.seconds - begin.seconds;
    (seconds > 0.0).then(|| (end.bytes - begin.bytes) / seconds)
}
