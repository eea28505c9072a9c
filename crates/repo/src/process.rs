//! Which process this is, and whether another one of this machine has died.
//!
//! Invariants: a process counts as dead only if the same kernel, in the same boot and the same namespaces, says that it is
//! gone; of any other process nothing is said. No clock of another host and no host name decides.

use std::fs;

use mover_format::record::ProcessInfo;
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

/// What can be said of the process of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// It runs on this machine.
    Running,
    /// It ran on this machine and has died.
    Dead,
    /// It belongs to another machine, an earlier boot, or another container.
    Unknown,
}

/// The name of this host, as it stands in manifests and records.
pub fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// This process; none where the system does not tell enough to recognise it later.
pub fn this_process() -> Option<ProcessInfo> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespaces: Option<Vec<String>> = ["pid", "time"]
        .iter()
        .map(|name| {
            let link = fs::read_link(format!("/proc/self/ns/{name}")).ok()?;
            link.into_os_string().into_string().ok()
        })
        .collect();
    let pid = std::process::id();
    Some(ProcessInfo {
        boot_id: boot_id.trim().to_owned(),
        namespaces: namespaces?.join(" "),
        pid,
        start_ticks: start_ticks(pid)?,
    })
}

/// What this process can say of the one in a record.
pub fn life(recorded: Option<&ProcessInfo>) -> Life {
    match (recorded, this_process()) {
        (Some(recorded), Some(own)) => life_beside(recorded, &own),
        _ => Life::Unknown,
    }
}

fn life_beside(recorded: &ProcessInfo, own: &ProcessInfo) -> Life {
    if recorded.boot_id != own.boot_id || recorded.namespaces != own.namespaces {
        return Life::Unknown;
    }
    let Some(pid) = i32::try_from(recorded.pid).ok().and_then(Pid::from_raw) else {
        return Life::Unknown;
    };
    match test_kill_process(pid) {
        Err(Errno::SRCH) => Life::Dead,
        // Where the start cannot be read, the id alone has to do: better one too many alive.
        _ => match start_ticks(recorded.pid) {
            Some(start) if start != recorded.start_ticks => Life::Dead,
            _ => Life::Running,
        },
    }
}

/// Field 22 of `/proc/<pid>/stat`: start in clock ticks since the boot. A process that has died and was not waited for is
/// told as if it ran.
fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; behind it come the fields from the third on.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_lives_until_it_has_ended() {
        let own = this_process().unwrap();
        assert_eq!(life(Some(&own)), Life::Running);
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let recorded = ProcessInfo {
            pid: child.id(),
            start_ticks: start_ticks(child.id()).unwrap(),
            ..own.clone()
        };
        assert_eq!(life(Some(&recorded)), Life::Running);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(life(Some(&recorded)), Life::Dead);
    }

    #[test]
    fn a_later_process_of_the_same_id_is_another() {
        let mut recorded = this_process().unwrap();
        recorded.start_ticks += 1;
        assert_eq!(life(Some(&recorded)), Life::Dead);
    }

    #[test]
    fn nothing_is_said_of_other_machines() {
        let own = this_process().unwrap();
        let strangers = [
            ProcessInfo {
                boot_id: "another".into(),
                ..own.clone()
            },
            ProcessInfo {
                namespaces: "pid:[1] time:[2]".into(),
                ..own.clone()
            },
            ProcessInfo {
                pid: 0,
                ..own.clone()
            },
            ProcessInfo {
                pid: u32::MAX,
                ..own
            },
        ];
        for stranger in strangers {
            assert_eq!(life(Some(&stranger)), Life::Unknown, "{stranger:?}");
        }
        assert_eq!(life(None), Life::Unknown);
    }
}
