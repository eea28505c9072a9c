//! Identifiers: repositories, sessions, packs, backups, databases and their histories.
//!
//! Invariants: every id is 16 bytes on storage; text forms parse back to the same bytes and nothing else
//! parses. Randomness comes from the caller, so that encoders stay pure.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Kind};
use crate::hex;
use crate::time::Timestamp;

/// The 16 bytes by which an object is bound to its place (part of the associated data of its seal).
pub type ObjectId = [u8; 16];

macro_rules! hex_id {
    ($name:ident, $what:literal, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub ObjectId);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(&self.0))
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                hex::decode(text).map($name).ok_or_else(|| {
                    Error::new(Kind::Usage, concat!("not a ", $what, " (32 hex digits)"))
                        .object(text)
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_id!(
    RepoId,
    "repository id",
    "A repository, drawn at random by `init`."
);
hex_id!(
    SessionId,
    "session id",
    "One writing session; all that it writes is sealed under one session key."
);
hex_id!(
    PackId,
    "pack id",
    "A pack, drawn at random when it is begun."
);

hex_id!(
    SlotId,
    "key slot id",
    "A key slot, drawn at random when it is sealed."
);

hex_id!(
    HoldId,
    "hold id",
    "A hold on a backup, drawn at random when it is made."
);

hex_id!(
    SystemId,
    "system id",
    "A database, drawn at random when it is created; all its histories share it."
);
hex_id!(
    HistoryId,
    "history id",
    "One history of a database's log, drawn at random when the history begins."
);

/// A backup: its start in whole seconds (UTC) and 32 random bits, as `20261122-181409-7f3a9c2e`.
///
/// The text form sorts by time. As an [`ObjectId`] it is the seconds since 1970 (u64, big-endian), four
/// zero bytes and the random part (u32, big-endian).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackupId {
    seconds: u64,
    random: u32,
}

impl BackupId {
    /// The largest second whose text form still has a year of four digits: 9999-12-30T22:00:00Z, jiff's limit.
    const SECONDS_MAX: u64 = 253_402_207_200;

    /// An id for a backup that began at `start`.
    pub fn new(start: Timestamp, random: u32) -> Self {
        let seconds = (start.as_micros() / 1_000_000).clamp(0, Self::SECONDS_MAX as i64) as u64;
        BackupId { seconds, random }
    }

    /// Its second half.
    pub fn random(self) -> u32 {
        self.random
    }

    /// The second in which the backup began, as the id says it.
    pub fn started(self) -> Timestamp {
        Timestamp::from_micros(self.seconds as i64 * 1_000_000)
    }

    /// The bytes that bind the manifest to its place.
    pub fn object_id(self) -> ObjectId {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.seconds.to_be_bytes());
        out[12..].copy_from_slice(&self.random.to_be_bytes());
        out
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:08x}", self.started().compact(), self.random)
    }
}

impl fmt::Debug for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for BackupId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parse = || {
            let (time, random) = text.rsplit_once('-')?;
            let random = u32::from_be_bytes(hex::decode::<4>(random)?);
            let start = Timestamp::parse_compact(time)?;
            let id = BackupId::new(start, random);
            (id.to_string() == text).then_some(id)
        };
        parse().ok_or_else(|| {
            Error::new(
                Kind::Usage,
                "not a backup id (such as 20261122-181409-7f3a9c2e)",
            )
            .object(text)
        })
    }
}

impl Serialize for BackupId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BackupId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backup_id_text_round_trips_and_sorts_by_time() {
        let early = BackupId::new(Timestamp::from_micros(1_790_000_000_000_000), 0xffff_ffff);
        let late = BackupId::new(Timestamp::from_micros(1_790_000_001_000_000), 0);
        assert!(early.to_string() < late.to_string());
        assert_eq!(early.to_string().parse::<BackupId>().unwrap(), early);
        assert_eq!(late.object_id()[4..8], 1_790_000_001_u32.to_be_bytes());
    }

    #[test]
    fn boundary_seconds_round_trip() {
        for micros in [0, 1, 999_999, 1_000_000, i64::MAX, i64::MIN] {
            let id = BackupId::new(Timestamp::from_micros(micros), 7);
            assert_eq!(id.to_string().parse::<BackupId>().unwrap(), id);
        }
    }

    #[test]
    fn malformed_ids_are_refused() {
        for text in [
            "",
            "latest",
            "20261122-181409",
            "20261122-181409-7F3A9C2E",
            "20261322-181409-7f3a9c2e",
            "20261122-181409-7f3a9c2e ",
            "../20261122-181409-7f3a9c2e",
        ] {
            assert!(text.parse::<BackupId>().is_err(), "{text}");
        }
        assert!("00".parse::<PackId>().is_err());
        assert!("é".repeat(16).parse::<PackId>().is_err());
        let id = PackId([0xab; 16]);
        assert_eq!(id.to_string().parse::<PackId>().unwrap(), id);
    }
}
