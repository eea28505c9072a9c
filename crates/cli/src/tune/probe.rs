//! Current values of the machine, read from /proc, /sys and the process itself.
//!
//! Invariants: nothing is changed; nothing is guessed: a value is either what the kernel says or a reason why
//! there is none.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

use super::profile::Probe;

/// The systemd unit. Its drop-ins are in a directory that is named after it; what a later one says wins.
const UNIT_FILE: &str = "/etc/systemd/system/helios-mover.service";
/// Block devices that are no disks, or whose queue is that of the disks below.
const NOT_DISKS: [&str; 7] = ["loop", "ram", "zram", "dm-", "md", "sr", "nbd"];

/// A value of one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Current {
    /// The disk, where a setting has a value per disk.
    pub device: Option<String>,
    /// The value as it is shown, or why there is none.
    pub value: Result<String, String>,
    /// What of it a wish is compared with.
    pub compared: Compared,
}

/// What of a value a wish is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compared {
    /// The value as it is shown.
    Whole,
    /// This part of it.
    Part(String),
    /// Nothing: what it comes to is not known from the value alone.
    Nothing,
}

fn single(value: Result<String, String>) -> Vec<Current> {
    vec![Current {
        device: None,
        value,
        compared: Compared::Whole,
    }]
}

/// Reads the values of `key`.
pub fn read(probe: Probe, key: &str) -> Vec<Current> {
    match probe {
        Probe::Sysctl => single(read_text(&sysctl_path(key))),
        Probe::File => single(read_text(Path::new(key))),
        Probe::Queue => queues(key),
        Probe::Cpu => single(cores(key)),
        Probe::Limit => single(limit(key)),
        Probe::Irq => interrupts(),
        Probe::Process => single(process(key)),
        Probe::Unit => vec![unit(key)],
    }
}

/// The file of a sysctl.
pub fn sysctl_path(key: &str) -> PathBuf {
    Path::new("/proc/sys").join(key.replace('.', "/"))
}

fn read_text(path: &Path) -> Result<String, String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(chosen(text.trim())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err("not on this machine".into())
        }
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

/// Of `a [b] c`, the value in brackets; any other text as it is.
fn chosen(text: &str) -> String {
    let inside = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or(text, |(value, _)| value).to_owned()
}

/// The names of the machine's disks.
fn disks() -> Vec<String> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !NOT_DISKS.iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    names.sort();
    names
}

fn per_disk(read: impl Fn(&str) -> Result<String, String>) -> Vec<Current> {
    let disks = disks();
    if disks.is_empty() {
        return single(Err("no disks are visible".into()));
    }
    let current = |device: String| Current {
        value: read(&device),
        device: Some(device),
        compared: Compared::Whole,
    };
    disks.into_iter().map(current).collect()
}

fn queues(key: &str) -> Vec<Current> {
    per_disk(|device| read_text(&Path::new("/sys/block").join(device).join("queue").join(key)))
}

/// The value that all cores share, or each distinct value.
fn cores(key: &str) -> Result<String, String> {
    let entries = fs::read_dir("/sys/devices/system/cpu")
        .map_err(|error| format!("cannot be read: {error}"))?;
    let mut values = BTreeSet::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_core = name
            .strip_prefix("cpu")
            .is_some_and(|rest| rest.parse::<u32>().is_ok());
        if is_core && let Ok(value) = read_text(&entry.path().join(key)) {
            values.insert(value);
        }
    }
    if values.is_empty() {
        return Err("not on this machine".into());
    }
    Ok(values.into_iter().collect::<Vec<_>>().join(", "))
}

fn limit(key: &str) -> Result<String, String> {
    let resource = match key {
        "memlock" => Resource::Memlock,
        "nofile" => Resource::Nofile,
        "core" => Resource::Core,
        _ => return Err("no such limit".into()),
    };
    Ok(getrlimit(resource)
        .current
        .map_or("unlimited".into(), |value| value.to_string()))
}

fn process(name: &str) -> Result<String, String> {
    let entries = fs::read_dir("/proc").map_err(|error| format!("cannot be read: {error}"))?;
    let runs = entries.flatten().any(|entry| {
        fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
    });
    Ok(if runs { "running" } else { "not running" }.into())
}

/// How the queue interrupts of each disk are spread over the cores.
fn interrupts() -> Vec<Current> {
    let table = fs::read_to_string("/proc/interrupts");
    per_disk(|device| {
        let table = table
            .as_ref()
            .map_err(|error| format!("cannot be read: {error}"))?;
        let driver = interrupt_prefix(device)?;
        let numbers = queue_interrupts(table, &driver);
        if numbers.is_empty() {
            return Err("no queue interrupts are named for it".into());
        }
        let mut cores = BTreeSet::new();
        for number in &numbers {
            let path = format!("/proc/irq/{number}/effective_affinity_list");
            cores.insert(read_text(Path::new(&path))?);
        }
        let lists = cores.into_iter().collect::<Vec<_>>().join(", ");
        Ok(format!(
            "{} on core {lists}",
            crate::figures::counted(numbers.len() as u64, "queue")
        ))
    })
}

/// How the interrupts of `device` begin in /proc/interrupts.
fn interrupt_prefix(device: &str) -> Result<String, String> {
    const UNNAMED: &str = "its interrupts have no name that tells them";
    if let Some(numbers) = device.strip_prefix("nvme") {
        let controller = nvme_controller(numbers).ok_or(UNNAMED)?;
        return Ok(format!("nvme{controller}q"));
    }
    // A virtio disk is below its virtio device: .../virtio1/block/vda
    let path = fs::canonicalize(Path::new("/sys/block").join(device))
        .map_err(|error| format!("cannot be read: {error}"))?;
    let names = path
        .components()
        .filter_map(|part| part.as_os_str().to_str());
    let virtio = names.rev().find(|name| {
        name.strip_prefix("virtio")
            .is_some_and(|rest| rest.parse::<u32>().is_ok())
    });
    virtio
        .map(|name| format!("{name}-req"))
        .ok_or(UNNAMED.into())
}

/// The controller in the numbers of an NVMe disk, which its interrupts are named after: that of `0n1` is 0, and that of
/// `2c1n1`, one of the paths by which the kernel reaches a disk with several (native multipath), is 1.
fn nvme_controller(numbers: &str) -> Option<u32> {
    let (before, _namespace) = numbers.rsplit_once('n')?;
    let controller = before.rsplit_once('c').map_or(before, |(_, path)| path);
    controller.parse().ok()
}

/// Numbers of the interrupts whose name begins with `prefix` and is a queue; `nvme0q0` is for administration.
fn queue_interrupts(table: &str, prefix: &str) -> Vec<u32> {
    let queue = |line: &str| {
        let (number, rest) = line.trim().split_once(':')?;
        let name = rest.split_whitespace().next_back()?;
        let queue = name.strip_prefix(prefix)?;
        let administration = prefix.starts_with("nvme") && queue == "0";
        (!administration).then(|| number.parse().ok())?
    };
    table.lines().filter_map(queue).collect()
}

fn unit(key: &str) -> Current {
    let value = unit_assignment(key);
    let (value, compared) = match value {
        Ok(value) => {
            let (shown, compared) = unit_compared(key, value);
            (Ok(shown), compared)
        }
        Err(why) => (Err(why), Compared::Whole),
    };
    Current {
        device: None,
        value,
        compared,
    }
}

/// How a unit's value is shown, and what of it is compared.
fn unit_compared(key: &str, value: String) -> (String, Compared) {
    // A share of the machine's memory.
    if value.ends_with('%') {
        return (value, Compared::Nothing);
    }
    // Of a limit that is given as soft:hard, the soft one rules; a process may raise it up to the other, and the mover does not.
    match value.split_once(':') {
        Some((soft, _)) if key.contains(".Limit") => {
            let soft = soft.trim().to_owned();
            let shown = format!("{soft} (the soft one of {value})");
            (shown, Compared::Part(soft))
        }
        _ => (value, Compared::Whole),
    }
}

/// What the unit and its drop-ins assign last.
fn unit_assignment(key: &str) -> Result<String, String> {
    let (section, name) = key.split_once('.').ok_or("no such key")?;
    let mut files = vec![PathBuf::from(UNIT_FILE)];
    let mut drop_ins: Vec<PathBuf> = fs::read_dir(format!("{UNIT_FILE}.d"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        // systemd reads no others.
        .filter(|path| path.extension().is_some_and(|end| end == "conf"))
        .collect();
    drop_ins.sort();
    files.extend(drop_ins);
    let texts: Vec<String> = files
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .collect();
    if texts.is_empty() {
        return Err("the unit is not installed".into());
    }
    let value = texts
        .iter()
        .filter_map(|text| unit_value(text, section, name))
        .next_back()
        // An empty assignment takes back what was assigned before it.
        .filter(|value| !value.is_empty());
    Ok(value.unwrap_or_else(|| "not set".into()))
}

/// The last value of `name` in `section`.
fn unit_value(text: &str, section: &str, name: &str) -> Option<String> {
    let mut here = false;
    let mut found = None;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            here = line == format!("[{section}]");
        } else if here
            && let Some((key, value)) = line.split_once('=')
            && key.trim() == name
        {
            found = Some(value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_in_brackets_is_the_chosen_one() {
        assert_eq!(chosen("none [mq-deadline] kyber"), "mq-deadline");
        assert_eq!(chosen("[none]"), "none");
        assert_eq!(chosen("128"), "128");
    }

    #[test]
    fn queue_interrupts_leave_the_administration_queue_out() {
        let table = "           CPU0       CPU1\n\
             36:          0      76566 PCI-MSIX-0000:00:02.0   1-edge      virtio1-req.0\n\
             40:          1          0 PCI-MSIX-0000:00:05.0   0-edge      nvme0q0\n\
             41:          1          0 PCI-MSIX-0000:00:05.0   1-edge      nvme0q1\n\
             42:          1          0 PCI-MSIX-0000:00:05.0   2-edge      nvme0q10\n\
             NMI:         0          0   Non-maskable interrupts\n";
        assert_eq!(queue_interrupts(table, "virtio1-req"), [36]);
        assert_eq!(queue_interrupts(table, "nvme0q"), [41, 42]);
        assert_eq!(queue_interrupts(table, "nvme1q"), [] as [u32; 0]);
    }

    #[test]
    fn paths_to_an_nvme_disk_belong_to_their_own_controllers() {
        assert_eq!(nvme_controller("0n1"), Some(0));
        assert_eq!(nvme_controller("12n3"), Some(12));
        assert_eq!(nvme_controller("0c0n1"), Some(0));
        assert_eq!(nvme_controller("2c10n1"), Some(10));
        for other in ["", "0", "n1", "cn1"] {
            assert_eq!(nvme_controller(other), None, "{other}");
        }
    }

    #[test]
    fn the_last_value_of_the_section_counts() {
        let text = "[Unit]\nNice=1\n[Service]\nNice = 5\nNice=10\n[Install]\nNice=2\n";
        assert_eq!(unit_value(text, "Service", "Nice").as_deref(), Some("10"));
        assert_eq!(unit_value(text, "Service", "UMask"), None);
    }

    #[test]
    fn limits_of_this_process_can_be_read() {
        for key in ["memlock", "nofile", "core"] {
            assert!(limit(key).is_ok(), "{key}");
        }
        assert!(limit("other").is_err());
    }
}
