//! The repository's config: what anyone must know before the first key is at hand.
//!
//! Invariants: one line of JSON and one line with its SHA-256; the hash names this very line, and key slots
//! carry it, so that a config that was swapped or edited is noticed by whoever opens a slot.

use mover_base::checksum::{Sha256, sha256};
use mover_base::{Error, Kind, RepoId, Result, Timestamp, hex};
use serde::{Deserialize, Serialize};

use crate::preamble::FORMAT_VERSION;
use crate::seal::Cipher;
use crate::wire::corrupt;

/// Longest config.
pub const CONFIG_BYTES_MAX: usize = 64 << 10;

const HASH_PREFIX: &str = "sha256 ";

/// The header of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryConfig {
    /// Version of the format: 1.
    pub format: u16,
    /// The repository.
    pub repository_id: RepoId,
    /// When it was made.
    pub created: Timestamp,
    /// How its objects are sealed.
    pub cipher: Cipher,
    /// The public recipient that session keys are wrapped for; null exactly if there is no cipher.
    pub recipient: Option<String>,
    /// What the operator wants to be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl RepositoryConfig {
    /// The config of a new repository of this version.
    pub fn new(repository_id: RepoId, created: Timestamp, recipient: Option<String>) -> Self {
        RepositoryConfig {
            format: FORMAT_VERSION,
            repository_id,
            created,
            cipher: match recipient {
                Some(_) => Cipher::Aes256Gcm,
                None => Cipher::None,
            },
            recipient,
            note: None,
        }
    }

    fn check(&self) -> Result<()> {
        if self.format != FORMAT_VERSION {
            return Err(
                corrupt(format!("config: format {} is unknown", self.format))
                    .hint("a newer helios-mover may read this repository"),
            );
        }
        match (&self.recipient, self.cipher) {
            (None, Cipher::None) => Ok(()),
            (Some(recipient), Cipher::Aes256Gcm)
                if recipient.starts_with("age1")
                    && recipient.bytes().all(|b| b.is_ascii_alphanumeric()) =>
            {
                Ok(())
            }
            _ => Err(corrupt("config: the recipient does not fit the cipher")),
        }
    }

    /// The text of the config.
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.check()
            .map_err(|e| Error::new(Kind::Internal, "a config is inconsistent").cause(e))?;
        let line = serde_json::to_string(self)
            .map_err(|e| Error::new(Kind::Internal, "a config could not be written").cause(e))?;
        let text = format!(
            "{line}\n{HASH_PREFIX}{}\n",
            hex::encode(&sha256(line.as_bytes()))
        );
        if text.len() > CONFIG_BYTES_MAX {
            return Err(
                Error::new(Kind::Limit, "the config exceeds 64 KiB").hint("shorten the note")
            );
        }
        Ok(text.into_bytes())
    }

    /// Reads a config and gives, with it, the hash that key slots refer to it by.
    pub fn decode(bytes: &[u8]) -> Result<(Self, Sha256)> {
        if bytes.len() > CONFIG_BYTES_MAX {
            return Err(corrupt("config: it is longer than its cap"));
        }
        let parts = std::str::from_utf8(bytes).ok().and_then(|text| {
            let (line, rest) = text.split_once('\n')?;
            let hash = rest.strip_prefix(HASH_PREFIX)?.strip_suffix('\n')?;
            Some((line, hash))
        });
        let (line, hash) = parts
            .ok_or_else(|| corrupt("config: it is not a line of JSON and a line with its hash"))?;
        let sha256 = sha256(line.as_bytes());
        if hash != hex::encode(&sha256) {
            return Err(corrupt("config: the hash does not match"));
        }
        // The version is looked at alone first: the members of another version may be other ones.
        #[derive(Deserialize)]
        struct Version {
            format: u64,
        }
        let wrong = |e| corrupt("config: the JSON is not what it should be").cause(e);
        let version: Version = serde_json::from_str(line).map_err(wrong)?;
        if version.format != u64::from(FORMAT_VERSION) {
            return Err(
                corrupt(format!("config: format {} is unknown", version.format))
                    .hint("a newer helios-mover may read this repository"),
            );
        }
        let config: RepositoryConfig = serde_json::from_str(line).map_err(wrong)?;
        config.check()?;
        Ok((config, sha256))
    }
}
