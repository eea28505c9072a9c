//! What the tracker cannot vouch for, and why.
//!
//! Invariants: every reason is one of these lists; a [`Doubt`] heals by reading the log and is only told, a [`Reset`] cost
//! what was known before a position, an [`Invalid`] is an answer that there is none.

use std::fmt;

use mover_base::{Error, Kind, Lsn, Result};

use super::TRACKER_DIR;

/// Why the live file does not count: the log is read instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doubt {
    /// There is none, or the state names none.
    Missing,
    /// It cannot be opened, locked or mapped.
    Unreadable(String),
    /// What was marked cannot be written, so some of it may be lost.
    Unwritten(String),
    /// Its header is damaged or breaks a rule.
    Header(String),
    /// It is not as long as its header says.
    Size,
    /// It is not the one that the state names.
    Another,
    /// It lies elsewhere than it was made: a copy, of which nobody knows how much was marked by then.
    Copied,
    /// The machine was started anew since it was made: marks that were not on disk yet are lost.
    Restarted,
    /// Its epoch is neither the state's nor the next.
    Epoch,
    /// More of the tables changed than it has room for.
    Full,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self {
            Doubt::Missing => "there is no live file",
            Doubt::Unreadable(why) => return write!(f, "the live file cannot be used ({why})"),
            Doubt::Unwritten(why) => {
                return write!(f, "what was marked cannot be written ({why})");
            }
            Doubt::Header(why) => return write!(f, "the live file is damaged ({why})"),
            Doubt::Size => "the live file has another size than it says",
            Doubt::Another => "the live file is another one than the state names",
            Doubt::Copied => "the live file is a copy",
            Doubt::Restarted => "the machine was started anew",
            Doubt::Epoch => "the live file's epoch does not follow the state's",
            Doubt::Full => "more changed than the live file has room for",
        };
        f.write_str(why)
    }
}

/// Why nothing is known of what was before a position. The discriminant is the code in the state file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reset {
    /// The tracker was made there.
    New = 0,
    /// The state, or an epoch's file, was damaged.
    Damaged = 1,
    /// The state was that of another database.
    OtherDatabase = 2,
    /// The state was that of another history of the database.
    OtherHistory = 3,
    /// The log ended before a position that it had reached.
    LogBehind = 4,
    /// The marks were in doubt, and the log that would have told could not be read.
    LogGone = 5,
    /// The marks were in doubt, and what the log told took more memory than allowed.
    Limit = 6,
}

impl Reset {
    /// The reason with this code.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Reset::New,
            1 => Reset::Damaged,
            2 => Reset::OtherDatabase,
            3 => Reset::OtherHistory,
            4 => Reset::LogBehind,
            5 => Reset::LogGone,
            6 => Reset::Limit,
            _ => return None,
        })
    }
}

impl fmt::Display for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reset::New => "the tracker was made there",
            Reset::Damaged => "its files were damaged",
            Reset::OtherDatabase => "it was that of another database",
            Reset::OtherHistory => "it was that of another history",
            Reset::LogBehind => "the log ended before a position that it had reached",
            Reset::LogGone => "it was in doubt, and the log that would have told was gone",
            Reset::Limit => "it was in doubt, and what the log told took too much memory",
        })
    }
}

/// Why the tracker has no answer: the next backup must find out otherwise what changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invalid {
    /// There is no state.
    Missing,
    /// The state is damaged or breaks a rule.
    State(String),
    /// Something cannot be read.
    Unreadable(String),
    /// It is another database's.
    OtherDatabase,
    /// It is that of another history of the database.
    OtherHistory,
    /// The range begins before what is known.
    Before {
        /// From here on changes are known.
        known_from: Lsn,
        /// Why not before.
        reset: Reset,
    },
    /// The range ends before it begins.
    Backwards,
    /// What was marked in an ended epoch is damaged.
    Epoch {
        /// The epoch.
        number: u64,
        /// What is wrong with it.
        why: String,
    },
    /// The marks are in doubt, and the log that would tell cannot be read.
    Log(String),
    /// The answer would take more memory than the caller allows.
    Limit,
    /// Whoever asks is to end.
    Cancelled,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Invalid::Missing => f.write_str("the tracker has no state"),
            Invalid::State(why) => write!(f, "the tracker's state is damaged ({why})"),
            Invalid::Unreadable(why) => write!(f, "the tracker cannot be read ({why})"),
            Invalid::OtherDatabase => f.write_str("the tracker is that of another database"),
            Invalid::OtherHistory => f.write_str("the tracker is that of another history"),
            Invalid::Before { known_from, reset } => {
                write!(
                    f,
                    "the tracker knows changes from {known_from} on only ({reset})"
                )
            }
            Invalid::Backwards => f.write_str("the range ends before it begins"),
            Invalid::Epoch { number, why } => {
                write!(f, "the tracker's epoch {number} is damaged ({why})")
            }
            Invalid::Log(why) => write!(
                f,
                "the tracker is in doubt, and the log cannot be read ({why})"
            ),
            Invalid::Limit => f.write_str("the changes take more memory than is allowed"),
            Invalid::Cancelled => f.write_str("the job was cancelled"),
        }
    }
}

impl std::error::Error for Invalid {}

impl Invalid {
    /// What is recorded where the tracker begins anew because of it.
    ///
    /// # Errors
    /// `Source` if the tracker cannot be read now, `Cancelled` if it is not to be: it may be sound, and is left as it is.
    pub(crate) fn reset(self) -> Result<Reset> {
        Ok(match self {
            Invalid::Missing => Reset::New,
            Invalid::OtherDatabase => Reset::OtherDatabase,
            Invalid::OtherHistory => Reset::OtherHistory,
            Invalid::Limit => Reset::Limit,
            Invalid::Log(_) => Reset::LogGone,
            Invalid::Cancelled => return Err(Error::new(Kind::Cancelled, self.to_string())),
            Invalid::Unreadable(_) => {
                return Err(Error::new(Kind::Source, self.to_string())
                    .object(TRACKER_DIR)
                    .hint("run as the owner of the store's files, or as root"));
            }
            _ => Reset::Damaged,
        })
    }
}
