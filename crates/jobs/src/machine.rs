//! What the operating system tells about this process and this host.

use std::time::Instant;

use mover_repo::{LinkReport, StageSeconds};

use crate::report::{EngineReport, ShardFigures};

/// Largest resident set of this process so far, in bytes (`VmHWM` of proc(5)); 0 where it is not told.
pub fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// CPU seconds of this process so far, user and system, all threads (`CLOCK_PROCESS_CPUTIME_ID`).
pub fn cpu_seconds() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
}

pub use mover_repo::host_name;

/// Measures a job from here on.
pub(crate) struct Clock {
    wall: Instant,
    cpu_seconds: f64,
}

impl Clock {
    pub fn start() -> Self {
        Clock {
            wall: Instant::now(),
            cpu_seconds: cpu_seconds(),
        }
    }

    /// Wall seconds so far.
    pub fn seconds(&self) -> f64 {
        self.wall.elapsed().as_secs_f64()
    }

    /// CPU seconds of the process so far.
    pub fn cpu_seconds(&self) -> f64 {
        cpu_seconds() - self.cpu_seconds
    }

    /// The report of the job that ends now.
    pub fn report(&self, shards: Vec<ShardFigures>, link: Option<LinkReport>) -> EngineReport {
        let mut stages = StageSeconds::default();
        shards.iter().for_each(|shard| stages.add(&shard.stages));
        EngineReport {
            seconds: self.seconds(),
            cpu_seconds: self.cpu_seconds(),
            peak_rss_bytes: peak_rss_bytes(),
            stages,
            shards,
            link,
        }
    }
}
