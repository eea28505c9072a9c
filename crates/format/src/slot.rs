//! Key slots: the repository's secrets, sealed with age for one passphrase or one recipient each.
//!
//! Invariants: a slot names its repository and the hash of its config outside and, authenticated by age,
//! inside ([`SlotSecret::check_binding`]), so that a slot of one repository does not open another. Secrets live in
//! memory that is wiped when dropped; sealing them with age is the caller's part.

use std::fmt;

use mover_base::checksum::Sha256;
use mover_base::{Error, Kind, RepoId, Result, SlotId, Timestamp, checksum};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::preamble::FORMAT_VERSION;
use crate::seal::{KEY_BYTES, MasterKey};
use crate::wire::{Reader, corrupt};
use mover_base::hex;

/// First bytes of every key slot.
pub const SLOT_MAGIC: [u8; 8] = *b"HELIOSKS";
/// Longest age file in a slot.
pub const SLOT_AGE_BYTES_MAX: usize = 16 << 10;
/// Longest label.
pub const SLOT_LABEL_BYTES_MAX: usize = 256;
/// Longest key slot.
pub const SLOT_BYTES_MAX: usize =
    SLOT_FIXED_BYTES + 2 + SLOT_LABEL_BYTES_MAX + SLOT_AGE_BYTES_MAX + 4;

const SLOT_FIXED_BYTES: usize = 96;

/// What opens a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum SlotKind {
    /// A passphrase (scrypt).
    Passphrase = 1,
    /// An X25519 identity.
    X25519 = 2,
}

impl SlotKind {
    /// The kind with this code.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(SlotKind::Passphrase),
            2 => Some(SlotKind::X25519),
            _ => None,
        }
    }

    /// The code on storage.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

/// One way to the repository's secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySlot {
    /// What opens it.
    pub kind: SlotKind,
    /// The repository.
    pub repo_id: RepoId,
    /// The slot; its key is named after it.
    pub slot_id: SlotId,
    /// When it was made; not before 1970.
    pub created: Timestamp,
    /// Hash of the config, as [`crate::RepositoryConfig::decode`] gives it.
    pub config_sha256: Sha256,
    /// What the operator calls it; no control characters.
    pub label: String,
    /// The age file that holds [`SlotSecret::encode`].
    pub age: Vec<u8>,
}

impl KeySlot {
    fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(corrupt(format!("key slot: {what}")));
        if self.age.is_empty() || self.age.len() > SLOT_AGE_BYTES_MAX {
            return wrong("the sealed part is empty or too long");
        }
        if self.label.len() > SLOT_LABEL_BYTES_MAX || self.label.chars().any(char::is_control) {
            return wrong("the label is too long or holds control characters");
        }
        if self.created.as_micros() < 0 {
            return wrong("the time is before 1970");
        }
        Ok(())
    }

    /// The slot's bytes; [`Kind::Usage`] if the label is not allowed or the age file too long.
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.check()
            .map_err(|e| Error::new(Kind::Usage, "a key slot cannot be made so").cause(e))?;
        let mut out = Vec::with_capacity(SLOT_BYTES_MAX);
        out.extend_from_slice(&SLOT_MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&[self.kind.code(), 0]);
        out.extend_from_slice(&(self.age.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.repo_id.0);
        out.extend_from_slice(&self.slot_id.0);
        out.extend_from_slice(&self.created.as_micros().to_le_bytes());
        out.extend_from_slice(&self.config_sha256);
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&(self.label.len() as u16).to_le_bytes());
        out.extend_from_slice(self.label.as_bytes());
        out.extend_from_slice(&self.age);
        let crc = checksum::crc32(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        Ok(out)
    }

    /// Reads a slot.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new("key slot", bytes);
        if reader.array::<8>("magic")? != SLOT_MAGIC {
            return Err(reader.wrong("magic", "is missing: this is not a key slot"));
        }
        let version = reader.u16("version")?;
        if version != FORMAT_VERSION {
            return Err(reader.wrong("version", &format!("{version} is unknown")));
        }
        let kind = SlotKind::from_code(reader.u8("kind")?)
            .ok_or_else(|| reader.wrong("kind", "is unknown"))?;
        reader.reserved::<1>()?;
        let age_len = reader.u32("sealed length")? as usize;
        if age_len > SLOT_AGE_BYTES_MAX {
            return Err(reader.wrong("sealed length", "is above its cap"));
        }
        let repo_id = RepoId(reader.array("repository id")?);
        let slot_id = SlotId(reader.array("slot id")?);
        let created = i64::try_from(reader.u64("time")?)
            .map_err(|_| reader.wrong("time", "is out of range"))?;
        let config_sha256 = reader.array("config hash")?;
        reader.reserved::<8>()?;
        let label_len = usize::from(reader.u16("label length")?);
        if label_len > SLOT_LABEL_BYTES_MAX {
            return Err(reader.wrong("label length", "is above its cap"));
        }
        let label = std::str::from_utf8(reader.bytes("label", label_len)?)
            .map_err(|_| reader.wrong("label", "is not UTF-8"))?
            .to_owned();
        let age = reader.bytes("sealed part", age_len)?.to_vec();
        let crc = reader.u32("checksum")?;
        reader.finish()?;
        if crc != checksum::crc32(&bytes[..bytes.len() - 4]) {
            return Err(reader.wrong("checksum", "does not match"));
        }
        let slot = KeySlot {
            kind,
            repo_id,
            slot_id,
            created: Timestamp::from_micros(created),
            config_sha256,
            label,
            age,
        };
        slot.check()?;
        Ok(slot)
    }
}

/// What a slot keeps: whoever has it can read everything and vouch for sessions.
pub struct SlotSecret {
    /// The repository it belongs to.
    pub repo_id: RepoId,
    /// Hash of that repository's config.
    pub config_sha256: Sha256,
    /// The repository's age identity, `AGE-SECRET-KEY-1...`.
    pub identity: Zeroizing<String>,
    /// The repository's master key.
    pub master_key: MasterKey,
}

impl fmt::Debug for SlotSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlotSecret({}, ..)", self.repo_id)
    }
}

/// The JSON of a secret. Text is borrowed, so that parsing leaves no copies behind.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SecretText<'a> {
    #[serde(borrow)]
    repository_id: &'a str,
    config_sha256: &'a str,
    identity: &'a str,
    master_key: &'a str,
}

impl SlotSecret {
    /// The JSON to seal with age; wiped when dropped.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>> {
        if !is_identity(&self.identity) {
            return Err(Error::new(
                Kind::Internal,
                "an identity is not in age's text form",
            ));
        }
        let mut out = Zeroizing::new(Vec::with_capacity(512 + self.identity.len()));
        let master_key = Zeroizing::new(hex::encode(self.master_key.expose()));
        for part in [
            "{\"repository_id\":\"",
            &self.repo_id.to_string(),
            "\",\"config_sha256\":\"",
            &hex::encode(&self.config_sha256),
            "\",\"identity\":\"",
            &self.identity,
            "\",\"master_key\":\"",
            &master_key,
            "\"}",
        ] {
            out.extend_from_slice(part.as_bytes());
        }
        Ok(out)
    }

    /// Reads what age opened. Errors say nothing about the content.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let wrong = || corrupt("key slot: the sealed part is not what it should be");
        let text: SecretText<'_> = serde_json::from_slice(bytes).map_err(|_| wrong())?;
        if !is_identity(text.identity) {
            return Err(wrong());
        }
        let master: Zeroizing<[u8; KEY_BYTES]> =
            Zeroizing::new(hex::decode(text.master_key).ok_or_else(wrong)?);
        Ok(SlotSecret {
            repo_id: text.repository_id.parse().map_err(|_| wrong())?,
            config_sha256: hex::decode(text.config_sha256).ok_or_else(wrong)?,
            identity: Zeroizing::new(text.identity.to_owned()),
            master_key: MasterKey::new(*master),
        })
    }

    /// Checks that the secret is that of this repository and of this config.
    pub fn check_binding(&self, repo_id: &RepoId, config_sha256: &Sha256) -> Result<()> {
        if self.repo_id != *repo_id {
            return Err(corrupt("key slot: it is of another repository"));
        }
        if self.config_sha256 != *config_sha256 {
            return Err(corrupt("key slot: the repository's config was altered"));
        }
        Ok(())
    }
}

fn is_identity(text: &str) -> bool {
    const IDENTITY_BYTES_MAX: usize = 256;
    text.starts_with("AGE-SECRET-KEY-1")
        && text.len() <= IDENTITY_BYTES_MAX
        && text
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'-')
}
