//! Names of the objects of a repository.
//!
//! Invariants: this is the only place that spells a name out, in both directions. A name that stands for nothing
//! here is a stray: whoever lists passes it over, tells it, and never deletes it.

use mover_base::{BackupId, PackId, Result};
use mover_store::Key;

/// Prefix of the key slots.
pub const KEYS: &str = "keys/";
/// Prefix of the packs.
pub const PACKS: &str = "packs/";
/// Prefix of the manifests.
pub const BACKUPS: &str = "backups/";
/// 16 bytes in hex.
const SLOT_ID_CHARS: usize = 32;

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

/// The id of the slot that a name stands for; none if no slot has that name.
pub fn slot_of(key: &Key) -> Option<String> {
    let id = key.as_str().strip_prefix(KEYS)?;
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (id.len() == SLOT_ID_CHARS && id.bytes().all(is_hex)).then(|| id.to_owned())
}

/// The backup that a manifest's name stands for; none if no manifest has that name.
pub fn backup_of(key: &Key) -> Option<BackupId> {
    let id: BackupId = key.as_str().strip_prefix(BACKUPS)?.parse().ok()?;
    (backup(id).ok()? == *key).then_some(id)
}

/// The pack that a pack's name stands for; none if no pack has that name.
pub fn pack_of(key: &Key) -> Option<PackId> {
    let name = key.as_str().rsplit('/').next()?;
    let id: PackId = name.parse().ok()?;
    (pack(id).ok()? == *key).then_some(id)
}
