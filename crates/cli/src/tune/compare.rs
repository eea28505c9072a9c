//! Wishes against current values, and setting the sysctls among them.
//!
//! Invariants: only sysctls that no profile reserves for people are ever set; each is read back, and what was
//! there before is told so that it can be undone.

use std::fs;
use std::io;

use mover_base::{Error, Kind, Result};
use serde::Serialize;

use super::probe::{self, Compared, sysctl_path};
use super::profile::{Probe, Profile, Setting, Want};

/// How a value compares with its wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As wanted.
    Ok,
    /// Not as wanted.
    Differs,
    /// Only shown: there is no wish, or nothing that could be compared with it.
    Information,
    /// Cannot be read here.
    NotAvailable,
}

/// One value of this machine beside its wish.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// The profile it belongs to.
    pub profile: String,
    /// `vda/scheduler`, `vm.swappiness`
    pub name: String,
    /// The current value.
    pub current: Option<String>,
    /// Why there is none.
    pub unavailable: Option<String>,
    /// What it should be.
    pub wanted: String,
    /// How the two compare.
    pub verdict: Verdict,
    /// Why it should be that.
    pub reason: String,
    /// The command that sets it.
    pub apply: String,
    /// How it survives a restart.
    pub persist: String,
    /// Whether `--apply` leaves it to people.
    pub manual: bool,
    #[serde(skip)]
    sysctl: Option<(String, String)>,
}

/// Compares a profile with the machine.
pub fn compare(profile: &Profile) -> Vec<Finding> {
    profile
        .settings
        .iter()
        .flat_map(|setting| findings(profile, setting))
        .collect()
}

fn findings(profile: &Profile, setting: &Setting) -> Vec<Finding> {
    let finding = |current: probe::Current| {
        let verdict = match &current.value {
            Err(_) => Verdict::NotAvailable,
            Ok(_) if setting.want == Want::Information => Verdict::Information,
            Ok(value) => {
                let compared = match &current.compared {
                    Compared::Whole => Some(value.as_str()),
                    Compared::Part(part) => Some(part.as_str()),
                    Compared::Nothing => None,
                };
                match compared.map(|text| setting.want.fits(text)) {
                    Some(true) => Verdict::Ok,
                    Some(false) => Verdict::Differs,
                    None => Verdict::Information,
                }
            }
        };
        let device = current.device.as_deref();
        Finding {
            profile: profile.name.clone(),
            name: name(setting, device),
            unavailable: current.value.as_ref().err().cloned(),
            current: current.value.ok(),
            wanted: setting.want.to_string(),
            verdict,
            reason: setting.reason.clone(),
            apply: setting
                .apply
                .replace("{device}", device.unwrap_or("<device>")),
            persist: setting.persist.clone(),
            manual: setting.manual,
            sysctl: (setting.probe == Probe::Sysctl)
                .then(|| Some((setting.key.clone(), sysctl_value(setting)?)))
                .flatten(),
        }
    };
    probe::read(setting.probe, &setting.key)
        .into_iter()
        .map(finding)
        .collect()
}

/// What people call it: a file by its last two names, a value of a disk after the disk.
fn name(setting: &Setting, device: Option<&str>) -> String {
    let key = &setting.key;
    match (setting.probe, device) {
        (_, Some(device)) => format!("{device}/{key}"),
        (Probe::File, None) => {
            let parts: Vec<&str> = key.rsplitn(3, '/').collect();
            parts
                .iter()
                .take(2)
                .rev()
                .copied()
                .collect::<Vec<_>>()
                .join("/")
        }
        _ => key.clone(),
    }
}

/// The value in the command of a sysctl.
pub fn sysctl_value(setting: &Setting) -> Option<String> {
    let prefix = format!("sysctl -w {}=", setting.key);
    setting.apply.strip_prefix(&prefix).map(str::to_owned)
}

/// A sysctl that was set.
#[derive(Debug, Clone, Serialize)]
pub struct Applied {
    /// Its name.
    pub name: String,
    /// What was there.
    pub before: String,
    /// What is there now.
    pub now: String,
    /// The command that undoes it.
    pub undo: String,
}

/// Sets the sysctls among `findings` that differ, up to the first that cannot be set. What was set is told in either case, with
/// the command that undoes it.
pub fn apply(findings: &[Finding]) -> (Vec<Applied>, Result<()>) {
    apply_with(findings, |key, value| {
        let path = sysctl_path(key);
        fs::write(&path, value)?;
        Ok(fs::read_to_string(&path)?.trim().to_owned())
    })
}

/// The same, with `set` to set one and to say what is there then.
fn apply_with(
    findings: &[Finding],
    mut set: impl FnMut(&str, &str) -> io::Result<String>,
) -> (Vec<Applied>, Result<()>) {
    let mut out = Vec::new();
    for finding in findings {
        let (Some((key, value)), Some(before), Verdict::Differs, false) = (
            &finding.sysctl,
            &finding.current,
            finding.verdict,
            finding.manual,
        ) else {
            continue;
        };
        // The undo of a byte limit is the ratio that ruled before: the kernel zeroes one when the other is set.
        let undo = undo(key, before);
        let now = match set(key, value) {
            Ok(now) => now,
            Err(error) => {
                let error = Error::new(Kind::Target, "the sysctl cannot be set")
                    .object(key)
                    .hint("run it as root, where /proc/sys can be written")
                    .cause(error);
                return (out, Err(error));
            }
        };
        let taken = now == *value;
        let what = format!("the kernel took {now} instead of {value}");
        out.push(Applied {
            name: key.clone(),
            before: before.clone(),
            now,
            undo,
        });
        if !taken {
            return (out, Err(Error::new(Kind::Target, what).object(key)));
        }
    }
    (out, Ok(()))
}

fn undo(key: &str, before: &str) -> String {
    if let Some(stem) = key
        .strip_suffix("_bytes")
        .filter(|_| before == "0" && key.starts_with("vm.dirty"))
    {
        let ratio = format!("{stem}_ratio");
        if let Ok(text) = fs::read_to_string(sysctl_path(&ratio)) {
            return format!("sysctl -w {ratio}={}", text.trim());
        }
    }
    format!("sysctl -w {key}={before}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::profile;

    /// What each of them says is held by tests/tests/tune.rs, on machines that are made up.
    #[test]
    fn every_setting_yields_at_least_one_finding() {
        for profile in profile::all().unwrap() {
            for setting in &profile.settings {
                let found = findings(&profile, setting);
                assert!(!found.is_empty(), "{}", setting.key);
                let of_every_linux = matches!(setting.probe, Probe::Limit | Probe::Process)
                    || setting.key.starts_with("vm.dirty");
                for finding in found {
                    let available = finding.verdict != Verdict::NotAvailable;
                    assert!(available || !of_every_linux, "{}", finding.name);
                    assert_eq!(finding.current.is_some(), available, "{}", finding.name);
                    assert_eq!(finding.unavailable.is_none(), available, "{}", finding.name);
                }
            }
        }
    }

    fn differing(key: &str) -> Finding {
        Finding {
            profile: "sysctl".to_owned(),
            name: key.to_owned(),
            current: Some("60".to_owned()),
            unavailable: None,
            wanted: "1".to_owned(),
            verdict: Verdict::Differs,
            reason: String::new(),
            apply: String::new(),
            persist: String::new(),
            manual: false,
            sysctl: Some((key.to_owned(), "1".to_owned())),
        }
    }

    #[test]
    fn what_was_set_can_be_undone_when_a_later_one_fails() {
        let findings = ["vm.a", "vm.b", "vm.c"].map(differing);
        let undone = |refuse: &str, answer: &str| {
            let (applied, ended) = apply_with(&findings, |key, _| match key == refuse {
                true => Err(io::ErrorKind::PermissionDenied.into()),
                false => Ok(answer.to_owned()),
            });
            let undo: Vec<String> = applied.into_iter().map(|one| one.undo).collect();
            (
                undo,
                ended.map_err(|error| error.object_name().map(str::to_owned)),
            )
        };
        let undo = |keys: &[&str]| -> Vec<String> {
            keys.iter()
                .map(|key| format!("sysctl -w {key}=60"))
                .collect()
        };
        let failed = |key: &str| Err(Some(key.to_owned()));
        assert_eq!(
            undone("none", "1"),
            (undo(&["vm.a", "vm.b", "vm.c"]), Ok(()))
        );
        assert_eq!(
            undone("vm.c", "1"),
            (undo(&["vm.a", "vm.b"]), failed("vm.c"))
        );
        // One that has another value now was changed too.
        assert_eq!(undone("none", "2"), (undo(&["vm.a"]), failed("vm.a")));
    }

    #[test]
    fn undoing_a_byte_limit_brings_the_ratio_back() {
        assert!(undo("vm.dirty_bytes", "0").starts_with("sysctl -w vm.dirty_ratio="));
        assert_eq!(
            undo("vm.dirty_bytes", "4096"),
            "sysctl -w vm.dirty_bytes=4096"
        );
        assert_eq!(undo("vm.swappiness", "60"), "sysctl -w vm.swappiness=60");
    }
}
