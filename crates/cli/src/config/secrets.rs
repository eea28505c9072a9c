//! Secrets, from files only.
//!
//! Invariants: a secret never comes from the command line or the environment, never reaches a message, and
//! its bytes in memory are wiped. Files that others can read are used, with a warning: refusing would make
//! people put the secret somewhere worse.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mover_base::{Error, Kind, Result};
use mover_jobs::Secret;

/// Longest file of a secret; a larger one is the wrong file.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// How an age identity begins.
const IDENTITY_PREFIX: &str = "AGE-SECRET-KEY-1";

/// A file that holds a secret.
#[derive(Debug, Clone)]
pub struct SecretFile<'a> {
    /// Where it is.
    pub path: &'a Path,
    /// The variable or configuration file that named it, if nobody typed it.
    pub place: Option<String>,
}

impl SecretFile<'_> {
    /// As errors name it: who did not type the path must know where to correct it.
    fn shown(&self) -> String {
        let path = self.path.display();
        match &self.place {
            Some(place) => format!("{path} (from {place})"),
            None => path.to_string(),
        }
    }
}

/// The passphrase in `path`, less one trailing newline.
pub fn read_passphrase(path: &SecretFile<'_>, warn: &mut dyn FnMut(String)) -> Result<Secret> {
    let text = read(path, "the passphrase file", warn)?;
    let passphrase = strip_newline(&text);
    if passphrase.is_empty() {
        return Err(wrong(path, "the passphrase file is empty")
            .hint("write a passphrase into it, on one line"));
    }
    if passphrase
        .lines()
        .any(|line| line.starts_with(IDENTITY_PREFIX))
    {
        return Err(wrong(path, "the passphrase file holds an age identity")
            .with_kind(Kind::Key)
            .hint("use --identity-file"));
    }
    if passphrase.contains(['\n', '\r', '\0']) {
        return Err(
            wrong(path, "the passphrase file has more than one line").hint(
                "the passphrase is the file's only line; an age identity goes with --identity-file",
            ),
        );
    }
    Ok(Secret::new(passphrase.to_owned()))
}

/// The one identity in `path`; lines that begin with `#` and empty lines are passed over.
pub fn read_identity(path: &SecretFile<'_>, warn: &mut dyn FnMut(String)) -> Result<Secret> {
    let text = read(path, "the identity file", warn)?;
    let mut lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    match (lines.next(), lines.next()) {
        (Some(line), None) if line.starts_with(IDENTITY_PREFIX) => Ok(Secret::new(line.to_owned())),
        (Some(_), Some(_)) => Err(wrong(path, "the identity file holds more than one identity")
            .hint("name a file that holds only the identity to use")),
        _ => Err(wrong(path, "the identity file holds no age identity")
            .hint("a line that begins with AGE-SECRET-KEY-1 is wanted; `helios-mover key generate` makes one")),
    }
}

/// `text` without one trailing newline, of either kind.
fn strip_newline(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

fn wrong(path: &SecretFile<'_>, what: &str) -> Error {
    Error::new(Kind::Usage, what).object(path.shown())
}

/// The bits of a secret file's mode that say that others can read it. To a service systemd gives the right to its credentials by an
/// ACL, and then those of the group are the ACL's mask.
fn rights_of_others(path: &Path) -> u32 {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|dir| !dir.is_empty());
    match credentials.is_some_and(|dir| path.starts_with(dir)) {
        true => 0o007,
        false => 0o077,
    }
}

fn read(
    path: &SecretFile<'_>,
    what: &str,
    warn: &mut dyn FnMut(String),
) -> Result<zeroize::Zeroizing<String>> {
    let cannot = |error: std::io::Error| {
        Error::new(Kind::Key, format!("{what} cannot be read"))
            .object(path.shown())
            .hint(match &path.place {
                Some(place) => format!("correct {place}, or name another file on the command line"),
                None => "name a file that is there and can be read".to_owned(),
            })
            .cause(error)
    };
    let file = std::fs::File::open(path.path).map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    let mode = metadata.permissions().mode();
    if metadata.is_file() && mode & rights_of_others(path.path) != 0 {
        warn(format!(
            "{what} {} can be read by others (mode {:04o}): chmod 600",
            path.path.display(),
            mode & 0o7777
        ));
    }
    // Room for the whole file at once: growing would leave copies of the secret behind in freed memory.
    let mut text = zeroize::Zeroizing::new(String::with_capacity(FILE_BYTES_MAX as usize + 1));
    file.take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => wrong(path, &format!("{what} is not UTF-8 text")),
            _ => cannot(error),
        })?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(wrong(path, &format!("{what} is larger than 64 KiB")));
    }
    Ok(text)
}
