//! Facts of the machine that a figure depends on.
//!
//! Invariants: nothing that names the host or its users; a fact that cannot be read is "unknown", never a guess.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::command::Program;

/// What a result was measured on and with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Model of the processor.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Instruction sets that the stages depend on.
    pub cpu_flags: Vec<String>,
    /// Main memory, in bytes.
    pub memory_bytes: u64,
    /// Kernel release.
    pub kernel: String,
    /// Distribution.
    pub system: String,
    /// File system of data, repositories and targets, with its mount options.
    pub mount: String,
    /// Block device below it: name, size, scheduler, rotational or not.
    pub disk: String,
    /// Compiler of the mover.
    pub rustc: String,
    /// Commit of the mover, with `+changes` if the tree differs from it.
    pub commit: String,
    /// Versions of the programs compared.
    pub versions: Vec<String>,
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn first_line(program: &Program) -> Option<String> {
    let text = program.output().ok()?;
    text.lines()
        .find(|line| !line.trim().is_empty())
        .map(|line| line.trim().to_owned())
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .trim_start()
                .strip_prefix([':', '='])
        })
        .map(|value| value.trim().trim_matches('"'))
}

const UNKNOWN: &str = "unknown";

impl Machine {
    /// Of this machine, for data in `dir`; `root` is the checkout.
    pub fn read(dir: &Path, root: &Path) -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let flags = field(&cpuinfo, "flags").unwrap_or_default();
        let wished = [
            "sha_ni",
            "aes",
            "vaes",
            "avx2",
            "avx512f",
            "pclmulqdq",
            "vpclmulqdq",
        ];
        let kib = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|v| v.split(' ').next()?.parse::<u64>().ok())
            .unwrap_or(0);
        let (mount, device) = mount_of(dir);
        Machine {
            cpu: field(&cpuinfo, "model name").unwrap_or(UNKNOWN).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            cpu_flags: wished
                .into_iter()
                .filter(|flag| flags.split(' ').any(|f| f == *flag))
                .map(str::to_owned)
                .collect(),
            memory_bytes: kib * 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            system: field(&read("/etc/os-release"), "PRETTY_NAME")
                .unwrap_or(UNKNOWN)
                .to_owned(),
            mount,
            disk: disk(&device),
            rustc: first_line(&Program::new("rustc").args(["--version"]).dir(root))
                .unwrap_or_else(|| UNKNOWN.into()),
            commit: commit(root),
            versions: versions(),
        }
    }
}

fn commit(root: &Path) -> String {
    let git = |args: &[&str]| {
        Program::new("git")
            .args(args.iter().copied())
            .dir(root)
            .output()
            .ok()
    };
    let Some(id) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return UNKNOWN.into();
    };
    let changed = git(&[
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        "crates",
        "benches/src",
        "benches/scripts",
        "benches/bakeoff",
        "Cargo.lock",
    ])
    .is_none_or(|text| !text.trim().is_empty());
    format!("{}{}", id.trim(), if changed { "+changes" } else { "" })
}

fn versions() -> Vec<String> {
    [
        ("restic", "version"),
        ("borg", "--version"),
        ("pgbackrest", "version"),
    ]
    .into_iter()
    .filter_map(|(name, arg)| first_line(&Program::new(name).args([arg])))
    .chain(first_line(
        &Program::new("/usr/lib/postgresql/15/bin/postgres").args(["--version"]),
    ))
    .chain(s3_versions())
    .collect()
}

/// Versions of the S3 clients in the peers' environment and of Garage: those that `benches/run` installs.
fn s3_versions() -> Vec<String> {
    let clients = crate::s3::peers::VERSIONS.into_iter();
    let all = clients.chain([crate::s3::servers::GARAGE_BUILD]);
    all.map(str::to_owned).collect()
}

/// Mount options of the file system of `dir`, and the device's name.
fn mount_of(dir: &Path) -> (String, String) {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    let mounts = read("/proc/self/mounts");
    let mut best: Option<(usize, String, String)> = None;
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [device, point, kind, options, ..] = fields[..] else {
            continue;
        };
        let longer = best.as_ref().is_none_or(|(len, ..)| point.len() >= *len);
        if dir.starts_with(point) && longer {
            best = Some((
                point.len(),
                format!("{kind} ({options})"),
                device.to_owned(),
            ));
        }
    }
    best.map_or((UNKNOWN.into(), String::new()), |(_, text, device)| {
        (text, device)
    })
}

fn disk(device: &str) -> String {
    let name = device.rsplit('/').next().unwrap_or_default();
    let base = Path::new("/sys/class/block").join(name);
    // A partition has no queue of its own; its parent directory is the disk.
    let queue = match base.join("queue").exists() {
        true => base.join("queue"),
        false => base.canonicalize().unwrap_or_default().join("../queue"),
    };
    let sectors: u64 = read(base.join("size")).trim().parse().unwrap_or(0);
    if name.is_empty() || sectors == 0 {
        return UNKNOWN.into();
    }
    let scheduler = read(queue.join("scheduler"));
    let scheduler = scheduler
        .split(['[', ']'])
        .nth(1)
        .unwrap_or(UNKNOWN)
        .to_owned();
    let size = mover_base::units::format_bytes(sectors * 512);
    let rotational = read(queue.join("rotational"));
    format!(
        "{name}, {size}, scheduler {scheduler}, rotational {}",
        rotational.trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc_files_are_found() {
        let text = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: aes sha_ni\n";
        assert_eq!(field(text, "model name"), Some("Some CPU"));
        assert_eq!(
            field("PRETTY_NAME=\"Linux 1\"\n", "PRETTY_NAME"),
            Some("Linux 1")
        );
        assert_eq!(field(text, "cache"), None);
    }
}
