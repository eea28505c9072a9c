//! `tune --apply` sets the sysctls that differ, and no others, and tells how each is undone.
//!
//! The kernel's settings are a copy, mounted over `/proc/sys` in a mount namespace of the tool's own.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mover_tests::mover::{self, Outcome, exit, isolated};
use mover_tests::run;
use mover_tests::scratch::Scratch;
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
        // Where any user can run it.
        fs::copy(mover::binary(), scratch.join("helios-mover")).expect("a copy of the tool");
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
