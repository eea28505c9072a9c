//! Settings of one call, resolved from flags, environment, file and defaults.
//!
//! Invariants: verbs read settings from here and never from the environment; a secret is read from its file
//! only when a verb needs it.

pub mod layers;
pub mod secrets;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{CommandFactory, FromArgMatches};
use mover_base::units::format_bytes;
use mover_base::{Error, Kind, Result};
use mover_jobs::{Credentials, Engine, JobLimits, LinkLimits, RateBudget, RepoAccess, Rung};

use crate::args::{ColorWhen, GlobalArgs, RawArgs, RungArg, Verb};
use crate::values::Rate;
use layers::{Environment, Layered, Layers};
use secrets::SecretFile;

/// A file that opens the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyFile {
    /// Nobody named one.
    None,
    /// It holds a passphrase.
    Passphrase(PathBuf),
    /// It holds an age identity.
    Identity(PathBuf),
}

/// What every verb needs.
#[derive(Debug)]
pub struct Settings {
    /// URL of the repository.
    pub repo: Option<String>,
    /// What opens it.
    pub key_file: KeyFile,
    /// Shards, memory and limits.
    pub engine: Engine,
    /// Limits on the link to the repository.
    pub link: LinkLimits,
    /// JSON instead of text.
    pub json: bool,
    /// Errors only.
    pub quiet: bool,
    /// How much more to tell.
    pub verbose: u8,
    /// When to colour.
    pub color: ColorWhen,
    /// Where each option came from.
    pub layers: Layers,
}

/// A call, resolved.
#[derive(Debug)]
pub struct Call {
    /// What every verb needs.
    pub settings: Settings,
    /// The verb as it is typed: `key add`.
    pub name: String,
    /// The verb and its own options.
    pub verb: Verb,
    /// What to tell before beginning.
    pub warnings: Vec<String>,
    /// The command line that it came of.
    pub argv: Vec<OsString>,
}

/// A limit that can change while a job runs.
struct Limit<'a> {
    name: &'static str,
    budget: &'a RateBudget,
    /// How an amount of its unit is shown.
    shown: fn(u64) -> String,
}

/// Why there is no call.
#[derive(Debug)]
pub enum Refusal {
    /// clap has the text: help, version or a wrong command line.
    Clap(clap::Error),
    /// A lower layer or a combination is wrong.
    Wrong(Error),
}

/// Parses the command line and resolves all layers.
pub fn resolve(argv: &[OsString], environment: &Environment) -> Result<Call, Refusal> {
    let command = RawArgs::command();
    let first = command
        .clone()
        .try_get_matches_from(argv)
        .map_err(Refusal::Clap)?;
    let layered = layers::layer(command, argv, &first, environment).map_err(Refusal::Wrong)?;
    let raw = RawArgs::from_arg_matches(&layered.matches).map_err(Refusal::Clap)?;
    let settings = settings(&raw.global, &layered, environment).map_err(Refusal::Wrong)?;
    Ok(Call {
        settings,
        name: layers::verb(&layered.matches),
        verb: raw.verb,
        warnings: layered.warnings,
        argv: argv.to_vec(),
    })
}

fn settings(raw: &GlobalArgs, layered: &Layered, environment: &Environment) -> Result<Settings> {
    let defaults = Engine::default();
    let engine = Engine {
        shards: raw.shards.map_or(defaults.shards, usize::from),
        pin: raw.pin.unwrap_or(defaults.pin),
        arena_bytes: raw
            .arena
            .map_or(defaults.arena_bytes, |bytes| bytes as usize),
        top_rung: raw.rung.map_or(defaults.top_rung, rung),
        direct: defaults.direct && !raw.no_direct,
        register_buffers: defaults.register_buffers,
        gentle: raw.gentle.unwrap_or_else(|| limits_disks(raw)),
        histograms: environment.asks_for_histograms()?,
        index_bytes: raw
            .index
            .map_or(defaults.index_bytes, |bytes| bytes as usize),
        names_bytes: raw
            .names
            .map_or(defaults.names_bytes, |bytes| bytes as usize),
        limits: JobLimits {
            read: budget(raw.limit_read),
            write: budget(raw.limit_write),
        },
    };
    Ok(Settings {
        repo: raw.repo.clone(),
        key_file: key_file(raw, layered)?,
        engine,
        link: LinkLimits {
            upload: budget(raw.limit_upload),
            download: budget(raw.limit_download),
            requests: budget(raw.limit_requests),
        },
        json: raw.json,
        quiet: raw.quiet,
        verbose: raw.verbose,
        color: raw.color.unwrap_or(ColorWhen::Auto),
        layers: layered.layers.clone(),
    })
}

/// Whether a job is not to take what it can get of the disks.
fn limits_disks(raw: &GlobalArgs) -> bool {
    let mut limits = [raw.limit_read, raw.limit_write].into_iter().flatten();
    limits.any(|rate| rate.0.is_some())
}

fn budget(typed: Option<Rate>) -> Arc<RateBudget> {
    RateBudget::new(typed.and_then(|rate| rate.0))
}

fn rung(typed: RungArg) -> Rung {
    match typed {
        RungArg::DeferTaskrun => Rung::DeferTaskrun,
        RungArg::CoopTaskrun => Rung::CoopTaskrun,
        RungArg::PlainRing => Rung::PlainRing,
        RungArg::Threads => Rung::Threads,
    }
}

/// The stronger layer wins, so that a flag can replace the kind of key that a file names.
fn key_file(raw: &GlobalArgs, layered: &Layered) -> Result<KeyFile> {
    let passphrase = raw.passphrase_file.clone().map(KeyFile::Passphrase);
    let identity = raw.identity_file.clone().map(KeyFile::Identity);
    match (passphrase, identity) {
        (Some(passphrase), Some(identity)) => {
            let layers = &layered.layers;
            match layers
                .of("passphrase-file")
                .cmp(&layers.of("identity-file"))
            {
                std::cmp::Ordering::Greater => Ok(passphrase),
                std::cmp::Ordering::Less => Ok(identity),
                std::cmp::Ordering::Equal => Err(Error::new(
                    Kind::Usage,
                    "both a passphrase file and an identity file are given",
                )
                .hint("one of them opens the repository: drop the other")),
            }
        }
        (Some(key), None) | (None, Some(key)) => Ok(key),
        (None, None) => Ok(KeyFile::None),
    }
}

impl Settings {
    /// The repository's URL, which this verb cannot do without.
    pub fn repo_url(&self) -> Result<String> {
        let url = self.repo.clone().ok_or_else(|| {
            Error::new(Kind::Usage, "no repository is given").hint(
                "use --repo file:///path or s3://bucket/prefix, HELIOS_MOVER_REPO, or `repo` in the configuration file",
            )
        })?;
        absolute("repository", "file://", &url)
    }

    /// The file at `path`, which the option `key` names.
    pub fn secret_file<'a>(&self, key: &str, path: &'a Path) -> SecretFile<'a> {
        SecretFile {
            path,
            place: self.layers.place(key),
        }
    }

    /// Resolves the call of `argv` again, with the environment and the file as they are now, and takes its limits
    /// over into the job that runs. Returns what they are.
    pub fn take_new_limits(&self, argv: &[OsString], environment: &Environment) -> Result<String> {
        let new = match resolve(argv, environment) {
            Ok(call) => call.settings,
            Err(Refusal::Wrong(error)) => return Err(error),
            Err(Refusal::Clap(error)) => {
                return Err(Error::new(Kind::Usage, error.to_string()));
            }
        };
        let told: Vec<String> = self
            .limits()
            .into_iter()
            .zip(new.limits())
            .map(|(running, new)| {
                running.budget.set(new.budget.get());
                match new.budget.get() {
                    Some(rate) => format!("{} {}/s", running.name, (running.shown)(rate)),
                    None => format!("{} none", running.name),
                }
            })
            .collect();
        Ok(told.join(", "))
    }

    fn limits(&self) -> [Limit<'_>; 5] {
        let bytes = |name, budget| Limit {
            name,
            budget,
            shown: format_bytes,
        };
        [
            bytes("read", &self.engine.limits.read),
            bytes("write", &self.engine.limits.write),
            bytes("upload", &self.link.upload),
            bytes("download", &self.link.download),
            Limit {
                name: "requests",
                budget: &self.link.requests,
                shown: |count| count.to_string(),
            },
        ]
    }

    /// The repository with the key that opens it; `warn` is told about careless file permissions.
    pub fn repo_access(&self, warn: &mut dyn FnMut(String)) -> Result<RepoAccess> {
        let url = self.repo_url()?;
        let credentials = match &self.key_file {
            KeyFile::None => Credentials::None,
            KeyFile::Passphrase(path) => {
                let file = self.secret_file("passphrase-file", path);
                Credentials::Passphrase(secrets::read_passphrase(&file, warn)?)
            }
            KeyFile::Identity(path) => {
                let file = self.secret_file("identity-file", path);
                Credentials::Identity(secrets::read_identity(&file, warn)?)
            }
        };
        Ok(RepoAccess {
            url,
            credentials,
            link: self.link.clone(),
        })
    }
}

/// Schemes whose URLs name a path on this machine and nothing else: a backup's source is told by its URL, so that one path must
/// have one.
const SOURCE_SCHEMES: [&str; 2] = ["dir://", "pages://"];

/// A plain path becomes a URL of `scheme`; of what has a scheme, only the path of a source is brought into its plain form.
pub fn absolute(what: &str, scheme: &str, text: &str) -> Result<String> {
    if text.contains("://") {
        let source = |scheme| Some((scheme, text.strip_prefix(scheme)?));
        return Ok(match SOURCE_SCHEMES.into_iter().find_map(source) {
            Some((scheme, path)) => format!("{scheme}{}", plain(path)),
            None => text.to_owned(),
        });
    }
    if text.is_empty() {
        let message = format!("no {what} is given: its text is empty");
        return Err(Error::new(Kind::Usage, message).hint("is a variable unset?"));
    }
    let wrong = |message: String| Error::new(Kind::Usage, message).object(text);
    if let Some(begin) = like_scheme(text) {
        let urls = match scheme {
            "file://" => ["file://", "s3://"],
            _ => SOURCE_SCHEMES,
        };
        let meant = urls.iter().find(|url| url.starts_with(begin));
        let url = match meant {
            Some(url) => format!("write {url}... for a URL"),
            None => format!("a URL begins with {} here", urls.join(" or ")),
        };
        return Err(
            wrong(format!("the {what} is neither a URL nor a path")).hint(format!(
                "{url}; write ./{text} for a path with a colon in it"
            )),
        );
    }
    let path = std::path::absolute(text)
        .map_err(|error| wrong(format!("the {what} is not a path")).cause(error))?;
    let path = path
        .to_str()
        .ok_or_else(|| wrong(format!("the path of the {what} is not UTF-8")))?;
    Ok(format!("{scheme}{}", plain(path)))
}

/// An absolute path without doubled or trailing slashes and without `.`, as far as its text goes: what `..` leads to, the
/// file system alone knows. Another one stays for its scheme to refuse.
fn plain(path: &str) -> String {
    if !path.starts_with('/') {
        return path.to_owned();
    }
    let names = path.split('/').filter(|name| !matches!(*name, "" | "."));
    format!("/{}", names.collect::<Vec<_>>().join("/"))
}

/// A restore's target, which is a directory and takes no scheme: `file:///srv` would become a directory called `file:`.
pub fn target(to: PathBuf) -> Result<PathBuf> {
    let text = to.to_string_lossy().into_owned();
    let Some(begin) = like_scheme(&text) else {
        return Ok(to);
    };
    let path = text[begin.len()..].trim_start_matches('/');
    Err(Error::new(Kind::Usage, "the target is not a directory")
        .object(text.as_str())
        .hint(format!(
            "a target is a path without a scheme: /{path}, or ./{text} for a path with a colon in it"
        )))
}

/// The beginning of a URL, such as `s3:`, which is a slip in what should be a path.
fn like_scheme(text: &str) -> Option<&str> {
    let end = text.find(':')?;
    let begins = |c: u8| c.is_ascii_lowercase();
    let goes_on = |c: u8| begins(c) || c.is_ascii_digit() || b"+.-".contains(&c);
    let scheme = &text.as_bytes()[..end];
    (scheme.first().copied().is_some_and(begins) && scheme.iter().copied().all(goes_on))
        .then(|| &text[..=end])
}

#[cfg(test)]
mod tests;
