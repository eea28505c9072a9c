//! One error type for the whole mover: what happened, to which object, and what to do next.
//!
//! Invariants: a [`Kind`] names the remedy, not the origin, and fixes the exit code; the codes are frozen
//! and documented in `docs/exit-codes.md` (a test compares that table with [`Kind::ALL`]). No message ever
//! holds a secret. Errors travel up unlogged and are reported once, where they are consumed.

use std::fmt;

/// Result with the mover's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller can do about an error. The discriminant is the exit code of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A bug in the mover: an invariant did not hold.
    Internal = 1,
    /// The command line, configuration file or environment is wrong.
    Usage = 2,
    /// The source cannot be read (missing, no permission, I/O error).
    Source = 10,
    /// The source changed while it was read.
    SourceChanged = 11,
    /// The restore target cannot be written (not empty, full, no permission, I/O error).
    Target = 20,
    /// The repository's storage failed (full, no permission, I/O error).
    Storage = 30,
    /// The storage did not answer; trying again later may help.
    Unreachable = 31,
    /// The named repository, backup or key does not exist.
    NotFound = 32,
    /// Something of that name exists already, or another writer won a race.
    Conflict = 33,
    /// The key is missing or wrong.
    Key = 40,
    /// Stored data is damaged, forged or of an unknown version.
    Corrupt = 50,
    /// Verification ended and found damage; the findings were printed.
    VerifyFailed = 51,
    /// `check` ended and found something that would make a job fail.
    CheckFailed = 52,
    /// A limit that the mover states was exceeded.
    Limit = 60,
    /// The job was cancelled by a signal.
    Cancelled = 130,
}

impl Kind {
    /// Every kind, in the order of the exit codes.
    pub const ALL: [Kind; 15] = [
        Kind::Internal,
        Kind::Usage,
        Kind::Source,
        Kind::SourceChanged,
        Kind::Target,
        Kind::Storage,
        Kind::Unreachable,
        Kind::NotFound,
        Kind::Conflict,
        Kind::Key,
        Kind::Corrupt,
        Kind::VerifyFailed,
        Kind::CheckFailed,
        Kind::Limit,
        Kind::Cancelled,
    ];

    /// The process exit code.
    pub const fn exit_code(self) -> u8 {
        self as u8
    }

    /// What to do next where nothing better is known: the last column of the documented table in short.
    pub const fn remedy(self) -> &'static str {
        match self {
            Kind::Internal => {
                "this is a fault of helios-mover: report it with this line and the log; what was committed before is intact"
            }
            Kind::Usage => {
                "correct it; --help of the verb shows how it is called, and nothing was begun"
            }
            Kind::Source => {
                "look whether the source exists, may be read by this user and lies on a disk without errors"
            }
            Kind::SourceChanged => "run it again, on a quiet source or a snapshot of it",
            Kind::Target => {
                "look whether the target's disk has room and no errors and this user may write there, or name another target"
            }
            Kind::Storage => {
                "look whether the repository's disk or bucket has room and may be used; backups made before are intact"
            }
            Kind::Unreachable => "try again later; the server and the network to it have to be up",
            Kind::NotFound => "`helios-mover list` and `helios-mover key list` show what there is",
            Kind::Conflict => "run it again, or choose another name",
            Kind::Key => "give the right passphrase or identity file",
            Kind::Corrupt => {
                "`helios-mover verify` shows all that is damaged; do not restore from what it names"
            }
            Kind::VerifyFailed => {
                "put the objects that the findings name back from a copy, or make a backup with --no-parent"
            }
            Kind::CheckFailed => "follow the hints of what failed, and check again",
            Kind::Limit => {
                "keep below the limit that the message names, or raise it where an option does"
            }
            Kind::Cancelled => "run it again; nothing half-done is visible as a backup",
        }
    }

    /// The stable name, as printed in JSON and in the documentation.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Internal => "internal",
            Kind::Usage => "usage",
            Kind::Source => "source",
            Kind::SourceChanged => "source_changed",
            Kind::Target => "target",
            Kind::Storage => "storage",
            Kind::Unreachable => "unreachable",
            Kind::NotFound => "not_found",
            Kind::Conflict => "conflict",
            Kind::Key => "key",
            Kind::Corrupt => "corrupt",
            Kind::VerifyFailed => "verify_failed",
            Kind::CheckFailed => "check_failed",
            Kind::Limit => "limit",
            Kind::Cancelled => "cancelled",
        }
    }
}

/// An error that a person can act on.
///
/// `Display` gives one line: what happened, then the object, then the cause.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    message: String,
    object: Option<String>,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A new error: `message` says in one clause what happened.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind,
            message: message.into(),
            object: None,
            hint: None,
            source: None,
        }))
    }

    /// Names the object concerned: a path, a repository key, an option. The innermost name wins.
    pub fn object(mut self, object: impl Into<String>) -> Self {
        self.0.object.get_or_insert_with(|| object.into());
        self
    }

    /// Says what to do next. The innermost hint wins.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Attaches the underlying cause.
    pub fn cause(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Whether this says that the object which was asked for, and nothing else, is missing. What names a remedy is about more,
    /// such as a bucket or a disk that is not there: then nothing is known of the object.
    pub fn is_absence(&self) -> bool {
        self.0.kind == Kind::NotFound && self.0.hint.is_none()
    }

    /// The same error seen as another kind, where a caller knows better what can be done.
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self
    }

    /// What can be done about it.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// What happened, without object and cause.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The object concerned.
    pub fn object_name(&self) -> Option<&str> {
        self.0.object.as_deref()
    }

    /// What to do next: the hint, or what the kind says.
    pub fn advice(&self) -> &str {
        self.hint_text().unwrap_or(self.0.kind.remedy())
    }

    /// What to do next.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        if let Some(object) = &self.0.object {
            write!(f, ": {object}")?;
        }
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0.source {
            Some(source) => Some(source.as_ref()),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn innermost_object_and_hint_win() {
        let error = Error::new(Kind::Corrupt, "frame does not match its checksum")
            .object("packs/ab/abcd")
            .object("outer")
            .hint("inner")
            .hint("outer");
        assert_eq!(error.object_name(), Some("packs/ab/abcd"));
        assert_eq!(error.hint_text(), Some("inner"));
        assert_eq!(
            error.to_string(),
            "frame does not match its checksum: packs/ab/abcd"
        );
    }

    #[test]
    fn exit_codes_are_distinct_and_never_zero() {
        let mut codes: Vec<u8> = Kind::ALL.iter().map(|k| k.exit_code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Kind::ALL.len());
        assert!(!codes.contains(&0));
    }

    #[test]
    fn every_kind_has_a_remedy_of_its_own_and_a_hint_is_preferred() {
        let mut remedies: Vec<&str> = Kind::ALL.iter().map(|kind| kind.remedy()).collect();
        assert!(remedies.iter().all(|remedy| !remedy.is_empty()));
        remedies.sort_unstable();
        remedies.dedup();
        assert_eq!(remedies.len(), Kind::ALL.len());
        let bare = Error::new(Kind::Key, "the passphrase is wrong");
        assert_eq!(bare.advice(), Kind::Key.remedy());
        assert_eq!(bare.hint("try another").advice(), "try another");
    }
}
