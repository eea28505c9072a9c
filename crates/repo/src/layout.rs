//! Names of the objects of a repository.
//!
//! Invariants: this is the only place that spells a name out, in both directions. A name that stands for nothing
//! here is a stray: whoever lists passes it over, tells it, and never deletes it.

use mover_base::{BackupId, PackId, Result, SlotId};
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
pub fn slot(id: SlotId) -> Result<Key> {
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
pub fn slot_of(key: &Key) -> Option<SlotId> {
    key.as_str().strip_prefix(KEYS)?.parse().ok()
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
