//! Names of the objects of a repository.
//!
//! Invariant: this is the only place that spells a name out, in both directions.

use mover_base::{BackupId, Error, Kind, PackId, Result};
use mover_store::Key;

/// Prefix of the key slots.
pub const KEYS: &str = "keys/";
/// Prefix of the packs.
pub const PACKS: &str = "packs/";
/// Prefix of the manifests.
pub const BACKUPS: &str = "backups/";

/// The repository header.
pub fn config() -> Result<Key> {
    Key::new("config")
}

/// A key slot.
pub fn slot(id: &str) -> Result<Key> {
    Key::new(&format!("{KEYS}{id}"))
}

/// A pack. The first byte of the id spreads packs over 256 prefixes.
pub fn pack(id: PackId) -> Result<Key> {
    Key::new(&format!("{PACKS}{:02x}/{id}", id.0[0]))
}

/// A manifest.
pub fn backup(id: BackupId) -> Result<Key> {
    Key::new(&format!("{BACKUPS}{id}"))
}

/// The backup that a manifest's name stands for.
pub fn backup_of(key: &Key) -> Result<BackupId> {
    let name = key.as_str().strip_prefix(BACKUPS).unwrap_or_default();
    name.parse().map_err(|_| foreign(key))
}

/// The pack that a pack's name stands for.
pub fn pack_of(key: &Key) -> Result<PackId> {
    let name = key.as_str().rsplit('/').next().unwrap_or_default();
    let id: PackId = name.parse().map_err(|_| foreign(key))?;
    if pack(id)?.as_str() == key.as_str() {
        Ok(id)
    } else {
        Err(foreign(key))
    }
}

fn foreign(key: &Key) -> Error {
    Error::new(
        Kind::Corrupt,
        "the repository holds an object with an unknown name",
    )
    .object(key.as_str())
    .hint("move the object out of the repository if it does not belong there")
}
