//! Tuning profiles: the files of `tuning/`, held in the binary.
//!
//! Invariants: every profile parses and every wish is well formed, which a test holds; names are distinct.

use std::fmt;

use mover_base::units::parse_bytes;
use mover_base::{Error, Kind, Result};
use serde::Deserialize;

/// The files, in the order of printing.
const FILES: [&str; 6] = [
    include_str!("../../../../tuning/sysctl.toml"),
    include_str!("../../../../tuning/nvme.toml"),
    include_str!("../../../../tuning/irq.toml"),
    include_str!("../../../../tuning/limits.toml"),
    include_str!("../../../../tuning/cpu.toml"),
    include_str!("../../../../tuning/systemd.toml"),
];

/// One file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// What `--profile` takes.
    pub name: String,
    /// What it is about, in a few words.
    pub title: String,
    /// Who needs it.
    pub about: String,
    /// The values.
    #[serde(rename = "setting")]
    pub settings: Vec<Setting>,
}

/// Where a current value is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// `/proc/sys`
    Sysctl,
    /// The queue of each disk.
    Queue,
    /// A file below `/sys` or `/proc/sys`.
    File,
    /// A file of each core.
    Cpu,
    /// A limit of this process.
    Limit,
    /// Interrupts of each disk.
    Irq,
    /// Whether a process runs.
    Process,
    /// The systemd unit.
    Unit,
}

/// One value that a host should have.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// Where the current value is read.
    pub probe: Probe,
    /// What is read there.
    pub key: String,
    /// What it should be.
    pub want: Want,
    /// Why.
    pub reason: String,
    /// The command that sets it; `{device}` stands for the disk.
    pub apply: String,
    /// How it survives a restart.
    pub persist: String,
    /// Whether `tune --apply` leaves it to people.
    #[serde(default)]
    pub manual: bool,
}

/// What a value should be.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Want {
    /// This text.
    Equals(String),
    /// One of these texts.
    OneOf(Vec<String>),
    /// This number or a larger one.
    AtLeast(String),
    /// This number or a smaller one.
    AtMost(String),
    /// A number between these two, both included.
    Between([String; 2]),
    /// Nothing: the value is only shown.
    Information,
}

impl Want {
    /// Whether `current` is as wanted.
    pub fn fits(&self, current: &str) -> bool {
        let compare =
            |bound: &str, fits: fn(f64, f64) -> bool| match (number(current), number(bound)) {
                (Some(current), Some(bound)) => fits(current, bound),
                _ => false,
            };
        match self {
            Want::Equals(text) => current == text,
            Want::OneOf(texts) => texts.iter().any(|text| current == text),
            Want::AtLeast(bound) => compare(bound, |current, bound| current >= bound),
            Want::AtMost(bound) => compare(bound, |current, bound| current <= bound),
            Want::Between([low, high]) => {
                compare(low, |current, bound| current >= bound)
                    && compare(high, |current, bound| current <= bound)
            }
            Want::Information => true,
        }
    }
}

impl fmt::Display for Want {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Want::Equals(text) => f.write_str(text),
            Want::OneOf(texts) => f.write_str(&texts.join(" or ")),
            Want::AtLeast(bound) => write!(f, "at least {bound}"),
            Want::AtMost(bound) => write!(f, "at most {bound}"),
            Want::Between([low, high]) => write!(f, "{low} to {high}"),
            Want::Information => f.write_str("(for information)"),
        }
    }
}

/// A number with an optional unit; no limit is larger than every number.
fn number(text: &str) -> Option<f64> {
    match text {
        "unlimited" | "infinity" => Some(f64::INFINITY),
        _ => match text.strip_prefix('-') {
            Some(rest) => parse_bytes(rest).ok().map(|bytes| -(bytes as f64)),
            None => parse_bytes(text).ok().map(|bytes| bytes as f64),
        },
    }
}

/// All profiles.
pub fn all() -> Result<Vec<Profile>> {
    FILES
        .iter()
        .map(|text| {
            toml::from_str(text).map_err(|error| {
                Error::new(Kind::Internal, "a tuning profile is malformed").cause(error)
            })
        })
        .collect()
}

/// The profiles called `names`, or all of them.
pub fn choose(names: &[String]) -> Result<Vec<Profile>> {
    let profiles = all()?;
    let known = profiles
        .iter()
        .map(|profile| profile.name.as_str())
        .collect::<Vec<_>>()
        .join(", ");
    if let Some(wrong) = names
        .iter()
        .find(|name| !profiles.iter().any(|profile| profile.name == **name))
    {
        return Err(Error::new(Kind::Usage, "no such tuning profile")
            .object(wrong)
            .hint(format!("profiles: {known}")));
    }
    Ok(profiles
        .into_iter()
        .filter(|profile| names.is_empty() || names.contains(&profile.name))
        .collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_profile_parses_and_is_complete() {
        let profiles = all().unwrap();
        let names: BTreeSet<&str> = profiles
            .iter()
            .map(|profile| profile.name.as_str())
            .collect();
        assert_eq!(names.len(), profiles.len());
        for profile in &profiles {
            assert!(
                !profile.title.is_empty() && !profile.about.is_empty(),
                "{}",
                profile.name
            );
            let mut keys = BTreeSet::new();
            for setting in &profile.settings {
                let what = format!("{}: {}", profile.name, setting.key);
                assert!(setting.reason.len() > 30, "{what}: a reason is an argument");
                assert!(
                    !setting.apply.is_empty() && !setting.persist.is_empty(),
                    "{what}"
                );
                assert!(keys.insert(&setting.key), "{what} stands twice");
                let bounds: Vec<&String> = match &setting.want {
                    Want::AtLeast(bound) | Want::AtMost(bound) => vec![bound],
                    Want::Between(bounds) => bounds.iter().collect(),
                    _ => vec![],
                };
                assert!(bounds.iter().all(|bound| number(bound).is_some()), "{what}");
            }
        }
    }

    #[test]
    fn every_file_of_the_directory_is_held() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tuning");
        let files = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let files = files
            .filter(|path| path.extension().is_some_and(|end| end == "toml"))
            .count();
        assert_eq!(files, FILES.len());
    }

    #[test]
    fn sysctls_that_apply_sets_give_the_wanted_value() {
        for setting in all().unwrap().iter().flat_map(|profile| &profile.settings) {
            if setting.probe == Probe::Sysctl {
                let value = super::super::compare::sysctl_value(setting).unwrap();
                assert!(setting.want.fits(&value), "{}={value}", setting.key);
            }
        }
    }

    #[test]
    fn wishes_compare_numbers_with_units() {
        let at_least = Want::AtLeast("128MiB".into());
        assert!(at_least.fits("134217728") && at_least.fits("unlimited") && at_least.fits("128M"));
        assert!(!at_least.fits("134217727") && !at_least.fits("") && !at_least.fits("much"));
        let between = Want::Between(["1".into(), "500".into()]);
        assert!(
            between.fits("1") && between.fits("500") && !between.fits("0") && !between.fits("501")
        );
        assert!(!between.fits("-5"));
        assert!(
            Want::Equals("none".into()).fits("none")
                && !Want::Equals("none".into()).fits("mq-deadline")
        );
        assert!(Want::Information.fits("anything"));
    }

    #[test]
    fn an_unknown_profile_is_refused_with_the_names() {
        let error = choose(&["nvm".into()]).unwrap_err();
        assert!(error.hint_text().unwrap().contains("nvme"));
        assert_eq!(choose(&["nvme".into()]).unwrap().len(), 1);
        assert_eq!(choose(&[]).unwrap().len(), FILES.len());
    }
}
