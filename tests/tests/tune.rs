//! `tune` shows what the machine has, setting by setting; `tune --apply` sets the sysctls that differ, and no others, and
//! tells how each is undone.
//!
//! What is read is a copy, or made up, and mounted over what the kernel and systemd have in a mount namespace of the tool's own.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use mover_tests::mover::{self, Outcome, exit, isolated};
use mover_tests::run;
use mover_tests::scratch::Scratch;
use mover_tests::workspace;
use serde_json::Value;

/// The settings of a machine.
struct Copy {
    scratch: Scratch,
    dir: PathBuf,
}

impl Copy {
    /// Those that the profile asks for, as they are here.
    fn new() -> Self {
        run::require_root();
        let scratch = Scratch::new("tune");
        let dir = scratch.dir("settings");
        mover::copy_binary(&scratch.join("helios-mover"));
        let copy = Copy { scratch, dir };
        let asked = Outcome::of(mover::command(&copy.scratch.dir("home")).args([
            "tune",
            "--profile",
            "sysctl",
            "--json",
        ]));
        for setting in settings(&asked.expect(exit::OK).document()) {
            if let (name, Some(current)) = (&setting["name"], setting["current"].as_str()) {
                let file = copy.file(name.as_str().expect("a name"));
                fs::create_dir_all(file.parent().expect("a directory")).expect("a directory");
                fs::write(file, format!("{current}\n")).expect("a setting");
            }
        }
        copy
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name.replace('.', "/"))
    }

    /// Runs `tune` with it in the place of the kernel's, as the user with this id.
    fn tune(&self, user: &str, args: &[&str]) -> Outcome {
        let mut unshare = isolated(Command::new("unshare"), &self.scratch.dir("home"));
        let script = "mount --bind \"$1\" /proc/sys && shift && exec setpriv \"$@\"";
        unshare.args(["--mount", "--", "sh", "-c", script, "sh"]);
        unshare.arg(&self.dir);
        unshare.args(["--reuid", user, "--clear-groups", "--"]);
        unshare.arg(self.scratch.join("helios-mover"));
        Outcome::of(
            unshare
                .args(["tune", "--profile", "sysctl", "--json"])
                .args(args),
        )
    }
}

fn settings(document: &Value) -> Vec<Value> {
    document["settings"].as_array().expect("settings").clone()
}

/// All that lies below a directory.
fn contents(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => found.extend(contents(&path)),
            false => drop(found.insert(path.clone(), fs::read_to_string(&path).expect("text"))),
        }
    }
    found
}

#[test]
fn sysctls_that_differ_are_set_and_no_others() {
    let copy = Copy::new();
    let name = "vm.dirty_bytes";
    // Whatever this machine has.
    fs::write(copy.file(name), "0\n").expect("a setting");
    let before = contents(&copy.dir);
    let of_kernel = || fs::read_to_string("/proc/sys/vm/dirty_bytes").expect("a setting");
    let kept = of_kernel();

    let told = copy.tune("0", &[]).expect(exit::OK).document();
    assert_eq!(
        contents(&copy.dir),
        before,
        "without --apply nothing is set"
    );
    let differing: Vec<Value> = settings(&told)
        .into_iter()
        .filter(|one| one["verdict"] == "differs" && one["manual"] == false)
        .map(|one| one["name"].clone())
        .collect();
    assert!(differing.iter().any(|one| one == name), "{told}");

    let done = copy.tune("0", &["--apply"]).expect(exit::OK).document();
    let applied = done["applied"].as_array().expect("applied");
    let names: Vec<Value> = applied.iter().map(|one| one["name"].clone()).collect();
    assert_eq!(names, differing);
    let mut expected = before.clone();
    for one in applied {
        let (name, now) = (one["name"].as_str(), one["now"].as_str());
        let file = copy.file(name.expect("a name"));
        expected.insert(file, now.expect("a value").to_owned());
        let undo = one["undo"].as_str().expect("a command");
        assert!(
            undo.starts_with("sysctl -w vm.") || undo.contains(name.expect("a name")),
            "{one}"
        );
    }
    assert_eq!(contents(&copy.dir), expected);
    assert_ne!(expected, before);
    assert_eq!(of_kernel(), kept, "this machine's own");

    // Then nothing is left to set.
    let again = copy.tune("0", &["--apply"]).expect(exit::OK).document();
    assert_eq!(again["applied"], Value::Array(Vec::new()), "{again}");
    assert_eq!(contents(&copy.dir), expected);
}

#[test]
fn who_may_not_set_sysctls_is_told_and_sets_none() {
    let copy = Copy::new();
    fs::write(copy.file("vm.dirty_bytes"), "0\n").expect("a setting");
    let before = contents(&copy.dir);
    let refused = copy.tune("65534", &["--apply"]).expect(exit::TARGET);
    let error = refused.error();
    let hint = error["hint"].as_str().unwrap_or_default();
    assert!(hint.contains("as root"), "{error}");
    assert_eq!(contents(&copy.dir), before);
}

/// Of each setting that one file says: its name, the file, and what stands there on a machine as wished and on another. Of
/// several words, the one in brackets rules.
const FILES: &str = "
kernel.io_uring_disabled     | /proc/sys/kernel/io_uring_disabled     | 0          | 2
vm.dirty_background_bytes    | /proc/sys/vm/dirty_background_bytes    | 268435456  | 0
vm.dirty_bytes               | /proc/sys/vm/dirty_bytes               | 1073741824 | 0
vm.dirty_expire_centisecs    | /proc/sys/vm/dirty_expire_centisecs    | 3000       | 6000
vm.dirty_writeback_centisecs | /proc/sys/vm/dirty_writeback_centisecs | 500        | 0
vm.swappiness                | /proc/sys/vm/swappiness                | 10         | 60
kernel.numa_balancing        | /proc/sys/kernel/numa_balancing        | 0          | 1
vm.zone_reclaim_mode         | /proc/sys/vm/zone_reclaim_mode         | 0          | 1
fs.aio-max-nr                | /proc/sys/fs/aio-max-nr                | 1048576    | 65536
fs.nr_open                   | /proc/sys/fs/nr_open                   | 1048576    | 1024
transparent_hugepage/enabled | /sys/kernel/mm/transparent_hugepage/enabled | always [madvise] never | [always] madvise never
cpu/isolated                 | /sys/devices/system/cpu/isolated       |            | 2-3
";

/// The same of the queue of each disk.
const QUEUE: &str = "
scheduler      | queue/scheduler      | [none] mq-deadline kyber | none [mq-deadline] kyber
nr_requests    | queue/nr_requests    | 256  | 64
max_sectors_kb | queue/max_sectors_kb | 1280 | 128
read_ahead_kb  | queue/read_ahead_kb  | 128  | 4096
rq_affinity    | queue/rq_affinity    | 2    | 1
nomerges       | queue/nomerges       | 1    | 0
rotational     | queue/rotational     | 0    | 1
";

/// The same of each core.
const CORE: &str = "
cpufreq/scaling_governor              | cpufreq/scaling_governor              | performance         | powersave
cpufreq/energy_performance_preference | cpufreq/energy_performance_preference | balance_performance | power
";

/// The disks, where they are below /sys, and how their interrupts are spread. The second is a path to a disk that has several:
/// its controller is the number behind the letter c.
const DISKS: [[&str; 3]; 4] = [
    [
        "nvme0n1",
        "devices/pci0000:00/0000:00:1d.0/nvme/nvme0/nvme0n1",
        "2 queues on core 0, 1",
    ],
    [
        "nvme2c1n1",
        "devices/pci0000:00/0000:00:1e.0/nvme/nvme1/nvme2c1n1",
        "1 queue on core 7",
    ],
    [
        "sda",
        "devices/pci0000:00/0000:00:17.0/ata1/host0/target0:0:0/0:0:0:0/block/sda",
        "its interrupts have no name that tells them",
    ],
    [
        "vdb",
        "devices/pci0000:00/0000:00:02.0/virtio3/block/vdb",
        "1 queue on core 1",
    ],
];

/// Neither disks nor with queues of their own.
const NOT_DISKS: [&str; 7] = ["dm-0", "loop0", "md127", "nbd0", "ram0", "sr0", "zram0"];

/// Besides those of the disks: an administration queue, and interrupts of others whose names begin almost like theirs.
const INTERRUPTS: &str = "           CPU0       CPU1
 36:          1          0 PCI-MSIX-0000:00:02.0   0-edge      virtio3-config
 37:          0       1577 PCI-MSIX-0000:00:02.0   1-edge      virtio3-req.0
 40:         12          0 PCI-MSIX-0000:00:1d.0   0-edge      nvme0q0
 41:        877          0 PCI-MSIX-0000:00:1d.0   1-edge      nvme0q1
 42:          0        901 PCI-MSIX-0000:00:1d.0   2-edge      nvme0q2
 43:          9          0 PCI-MSIX-0000:00:1e.0   1-edge      nvme1q1
 44:          9          0 PCI-MSIX-0000:00:06.0   1-edge      virtio30-req.0
 45:          9          0 PCI-MSIX-0000:00:1f.0   1-edge      nvme2q1
 46:          9          0 PCI-MSIX-0000:00:20.0   1-edge      nvme10q1
NMI:          0          0   Non-maskable interrupts
";

/// The core that each of these interrupts goes to.
const AFFINITY: [(u32, &str); 9] = [
    (36, "0"),
    (37, "1"),
    (40, "0-1"),
    (41, "0"),
    (42, "1"),
    (43, "7"),
    (44, "7"),
    (45, "6"),
    (46, "6"),
];

/// The unit and its drop-in, as wished and otherwise. What a drop-in says comes last.
const UNIT: [[&str; 2]; 2] = [
    [
        "[Unit]\nNice=5\n[Service]\nLimitMEMLOCK=128M\nLimitNOFILE=65536\nLimitCORE=0\nMemoryMax=512M\nNice=0\n\
         UMask=0077\nNoNewPrivileges=true\n",
        "[Service]\nNice=10\n",
    ],
    [
        "[Service]\nLimitMEMLOCK=8M\nLimitNOFILE=1024\nLimitCORE=infinity\nMemoryMax=infinity\nNice=10\nUMask=0022\n",
        "[Service]\nNice=0\n",
    ],
];

/// What is read of them.
const UNIT_VALUES: [(&str, [&str; 2]); 7] = [
    ("Service.LimitMEMLOCK", ["128M", "8M"]),
    ("Service.LimitNOFILE", ["65536", "1024"]),
    ("Service.LimitCORE", ["0", "infinity"]),
    ("Service.MemoryMax", ["512M", "infinity"]),
    ("Service.Nice", ["10", "0"]),
    ("Service.UMask", ["0077", "0022"]),
    ("Service.NoNewPrivileges", ["true", "not set"]),
];

/// Where the unit is, and the directory of its drop-ins.
const UNIT_FILE: &str = "/etc/systemd/system/helios-mover.service";

/// Of each name, the value or why there is none, and how it compares.
type Found = BTreeMap<String, (String, String)>;

/// The columns of a table's rows.
fn rows(table: &'static str) -> impl Iterator<Item = [&'static str; 4]> {
    let columns = |line: &'static str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let cells: [&str; 4] = cells.try_into().expect("four columns");
        cells
    };
    let rows = table.lines().filter(|line| !line.is_empty());
    rows.map(columns)
}

/// Of several words, the one in brackets.
fn ruling(text: &str) -> &str {
    text.split(['[', ']']).nth(1).unwrap_or(text)
}

/// A machine that is made up: what the kernel and systemd have there.
struct Machine {
    scratch: Scratch,
    root: PathBuf,
    /// What `tune` should find.
    expected: Found,
}

impl Machine {
    /// One on which nothing can be read but what belongs to every process.
    fn bare() -> Self {
        run::require_root();
        let scratch = Scratch::new("machine");
        let root = scratch.dir("root");
        for dir in ["sys", "proc", "etc/systemd/system"] {
            fs::create_dir_all(root.join(dir)).expect("a directory");
        }
        Machine {
            scratch,
            root,
            expected: Found::new(),
        }
    }

    /// One that has all there is to be read: as wished (0), or not (1).
    fn complete(kind: usize) -> Self {
        let mut machine = Machine::bare();
        let verdict = ["ok", "differs"][kind];
        for [name, path, wished, other] in rows(FILES) {
            let text = [wished, other][kind];
            machine.put(path, text);
            let verdict = match name {
                "cpu/isolated" => "information",
                _ => verdict,
            };
            machine.expect(name, ruling(text), verdict);
        }
        for [name, path, wished, other] in rows(CORE) {
            let cores = "/sys/devices/system/cpu";
            // One core as wished is not enough.
            machine.put(&format!("{cores}/cpu0/{path}"), wished);
            machine.put(&format!("{cores}/cpu1/{path}"), [wished, other][kind]);
            let both = format!("{wished}, {other}");
            machine.expect(name, [wished, &both][kind], verdict);
        }
        machine.add_disks(kind);
        machine.put("/proc/1/comm", "systemd");
        machine.put("/proc/77/comm", ["postgres", "irqbalance"][kind]);
        machine.expect("irqbalance", ["not running", "running"][kind], verdict);
        machine.put(UNIT_FILE, UNIT[kind][0]);
        machine.drop_in("override.conf", UNIT[kind][1]);
        for (name, values) in UNIT_VALUES {
            machine.expect(name, values[kind], verdict);
        }
        machine
    }

    /// Only the first disk is ever not as wished.
    fn add_disks(&mut self, kind: usize) {
        let block = self.root.join("sys/block");
        for name in NOT_DISKS {
            fs::create_dir_all(block.join(name)).expect("a directory");
        }
        for (number, [disk, place, spread]) in DISKS.into_iter().enumerate() {
            fs::create_dir_all(self.root.join("sys").join(place)).expect("a directory");
            symlink(Path::new("..").join(place), block.join(disk)).expect("a link");
            let kind = if number == 0 { kind } else { 0 };
            for [name, path, wished, other] in rows(QUEUE) {
                let text = [wished, other][kind];
                self.put(&format!("/sys/block/{disk}/{path}"), text);
                let name = format!("{disk}/{name}");
                self.expect(&name, ruling(text), ["ok", "differs"][kind]);
            }
            let verdict = match disk {
                "sda" => "not_available",
                _ => "information",
            };
            self.expect(&format!("{disk}/spread"), spread, verdict);
        }
        self.put("/proc/interrupts", INTERRUPTS);
        for (number, cores) in AFFINITY {
            let path = format!("/proc/irq/{number}/effective_affinity_list");
            self.put(&path, cores);
        }
    }

    /// Puts a file where the kernel or systemd has it.
    fn put(&self, path: &str, text: &str) {
        let file = self.root.join(path.trim_start_matches('/'));
        fs::create_dir_all(file.parent().expect("a directory")).expect("a directory");
        fs::write(file, format!("{text}\n")).expect("a file");
    }

    fn drop_in(&self, name: &str, text: &str) {
        self.put(&format!("{UNIT_FILE}.d/{name}"), text);
    }

    /// Expects something else of what was put there before.
    fn expect_instead(&mut self, name: &str, value: &str, verdict: &str) {
        assert!(self.expected.remove(name).is_some(), "{name}");
        self.expect(name, value, verdict);
    }

    fn expect(&mut self, name: &str, value: &str, verdict: &str) {
        let found = (value.to_owned(), verdict.to_owned());
        let known = self.expected.insert(name.to_owned(), found);
        assert_eq!(known, None, "{name}");
    }

    /// What `tune` finds there, in a process that may have this many files open.
    fn tune(&mut self, files: u32) -> Value {
        // No more than any process may have locked.
        self.expect("memlock", "4194304", "differs");
        let enough = if files < 4096 { "differs" } else { "ok" };
        self.expect("nofile", &files.to_string(), enough);
        self.expect("core", "0", "ok");
        let mut unshare = isolated(Command::new("unshare"), &self.scratch.dir("home"));
        // /proc comes last, because `mount` reads it.
        let script = "mount --bind \"$1/sys\" /sys \
                      && mount --bind \"$1/etc/systemd/system\" /etc/systemd/system \
                      && mount --bind \"$1/proc\" /proc && shift && exec prlimit \"$@\"";
        unshare.args(["--mount", "--", "sh", "-c", script, "sh"]);
        unshare.arg(&self.root);
        unshare.args(["--memlock=4194304", "--core=0"]);
        unshare.args([format!("--nofile={files}"), "--".to_owned()]);
        unshare.arg(mover::binary()).args(["tune", "--json"]);
        let document = Outcome::of(&mut unshare).expect(exit::OK).document();
        assert_eq!(found(&document), self.expected, "{document}");
        document
    }
}

fn found(document: &Value) -> Found {
    let settings = settings(document);
    let text = |one: &Value, field: &str| one[field].as_str().map(str::to_owned);
    let entry = |one: &Value| {
        let value = text(one, "current").xor(text(one, "unavailable"));
        let value = value.expect("a value, or why there is none");
        let verdict = text(one, "verdict").expect("a verdict");
        (text(one, "name").expect("a name"), (value, verdict))
    };
    let found: Found = settings.iter().map(entry).collect();
    assert_eq!(found.len(), settings.len(), "a name stands twice");
    found
}

/// What the profiles ask for, as (probe, key).
fn asked() -> Vec<(String, String)> {
    let value = |line: &str, field: &str| {
        let text = line.strip_prefix(field)?.strip_prefix(" = \"")?;
        Some(text.strip_suffix('"')?.to_owned())
    };
    let mut asked = Vec::new();
    for (path, text) in contents(&workspace::root().join("tuning")) {
        if path.extension().is_none_or(|end| end != "toml") {
            continue;
        }
        let each = |field| text.lines().filter_map(move |line| value(line, field));
        let (probes, keys): (Vec<_>, Vec<_>) = (each("probe").collect(), each("key").collect());
        assert_eq!(probes.len(), keys.len(), "{}", path.display());
        asked.extend(probes.into_iter().zip(keys));
    }
    assert!(!asked.is_empty());
    asked
}

/// A file is called by its last two names.
fn name_of(probe: &str, key: &str) -> String {
    let parts: Vec<&str> = key.split('/').collect();
    match probe {
        "file" => parts[parts.len() - 2..].join("/"),
        _ => key.to_owned(),
    }
}

#[test]
fn a_machine_as_wished_is_shown_as_it_is() {
    let mut machine = Machine::complete(0);
    let document = machine.tune(4096);
    // All but the limit that this test cannot raise.
    assert_eq!(document["differs"], 1, "{document}");
    // Everything that the profiles ask for, and nothing else.
    let mut names = BTreeSet::new();
    for (probe, key) in asked() {
        match probe.as_str() {
            "queue" | "irq" => names.extend(DISKS.map(|disk| format!("{}/{key}", disk[0]))),
            _ => {
                names.insert(name_of(&probe, &key));
            }
        }
    }
    let shown: BTreeSet<String> = found(&document).into_keys().collect();
    assert_eq!(shown, names);
}

#[test]
fn a_machine_that_differs_everywhere_is_shown_as_it_is() {
    Machine::complete(1).tune(1024);
}

#[test]
fn what_a_machine_does_not_have_is_told_with_the_reason() {
    let mut machine = Machine::bare();
    for (probe, key) in asked() {
        let (value, verdict) = match probe.as_str() {
            "limit" => continue,
            "process" => ("not running", "ok"),
            "queue" | "irq" => ("no disks are visible", "not_available"),
            "cpu" => (
                "cannot be read: No such file or directory (os error 2)",
                "not_available",
            ),
            "unit" => ("the unit is not installed", "not_available"),
            _ => ("not on this machine", "not_available"),
        };
        machine.expect(&name_of(&probe, &key), value, verdict);
    }
    machine.tune(4096);
}

#[test]
fn only_drop_ins_that_systemd_reads_are_read() {
    let mut machine = Machine::complete(0);
    // What editors and packages leave beside the others; they come last by their names.
    for name in ["override.conf~", "zz.conf.dpkg-old", "zz.txt", "zzconf"] {
        machine.drop_in(name, "[Service]\nNice=0\nLimitCORE=infinity\n");
    }
    machine.tune(4096);
}

#[test]
fn an_empty_assignment_takes_back_what_was_assigned_before() {
    let mut machine = Machine::complete(0);
    machine.drop_in(
        "zz.conf",
        "[Service]\nUMask=\nNice =\nLimitCORE=\nLimitCORE=0\n",
    );
    machine.expect_instead("Service.UMask", "not set", "differs");
    machine.expect_instead("Service.Nice", "not set", "differs");
    machine.tune(4096);
}

#[test]
fn of_a_limit_with_two_parts_the_soft_one_is_compared() {
    let mut machine = Machine::complete(0);
    machine.drop_in(
        "zz.conf",
        "[Service]\nLimitMEMLOCK=8M:infinity\nLimitNOFILE=65536:1048576\nLimitCORE=0:infinity\n",
    );
    let soft = |part: &str, whole: &str| format!("{part} (the soft one of {whole})");
    machine.expect_instead(
        "Service.LimitMEMLOCK",
        &soft("8M", "8M:infinity"),
        "differs",
    );
    machine.expect_instead("Service.LimitNOFILE", &soft("65536", "65536:1048576"), "ok");
    machine.expect_instead("Service.LimitCORE", &soft("0", "0:infinity"), "ok");
    machine.tune(4096);
}

#[test]
fn a_share_of_the_memory_is_shown_and_compared_with_nothing() {
    let mut machine = Machine::complete(0);
    machine.drop_in("zz.conf", "[Service]\nMemoryMax=10%\n");
    machine.expect_instead("Service.MemoryMax", "10%", "information");
    machine.tune(4096);
}
