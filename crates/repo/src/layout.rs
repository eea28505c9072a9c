//! Names of the objects of a repository.
//!
//! Invariants: this is the only place that spells a name out, in both directions. A name that stands for nothing
//! here is a stray: whoever lists passes it over, tells it, and never deletes it.

use mover_base::{BackupId, HoldId, PackId, Result, SessionId, SlotId};
use mover_format::record::ANNOTATIONS_MAX;
use mover_store::Key;

/// Name of the header.
const CONFIG: &str = "config";
/// Prefix of the key slots.
pub const KEYS: &str = "keys/";
/// Prefix of the packs.
pub const PACKS: &str = "packs/";
/// Prefix of the manifests.
pub const BACKUPS: &str = "backups/";

/// Prefix of the sessions under way.
pub const SESSIONS: &str = "sessions/";
/// Prefix of the tombstones.
pub const EXPIRED: &str = "expired/";
/// Prefix of the holds.
pub const HOLDS: &str = "holds/";
/// Prefix of the changes of annotations.
pub const ANNOTATIONS: &str = "annotations/";

/// The repository header.
pub fn config() -> Result<Key> {
    Key::new(CONFIG)
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

/// Whether an object of a repository has that name.
pub fn is_name(key: &Key) -> bool {
    let name = key.as_str();
    name == CONFIG
        || slot_of(key).is_some()
        || pack_of(key).is_some()
        || backup_of(key).is_some()
        || session_of(key).is_some()
        || tombstone_of(key).is_some()
        || hold_of(key).is_some()
        || annotation_of(key).is_some()
}

/// A session under way.
pub fn session(id: SessionId) -> Result<Key> {
    Key::new(&format!("{SESSIONS}{id}"))
}

/// The session that a name stands for; none if no session has that name.
pub fn session_of(key: &Key) -> Option<SessionId> {
    key.as_str().strip_prefix(SESSIONS)?.parse().ok()
}

/// The tombstone that a session puts on a backup.
pub fn tombstone(backup: BackupId, session: SessionId) -> Result<Key> {
    Key::new(&format!("{}{session}", tombstones(backup)))
}

/// Prefix of the tombstones of a backup.
pub fn tombstones(backup: BackupId) -> String {
    format!("{EXPIRED}{backup}/")
}

/// Backup and session of a tombstone; none if no tombstone has that name.
pub fn tombstone_of(key: &Key) -> Option<(BackupId, SessionId)> {
    let (backup, session) = key.as_str().strip_prefix(EXPIRED)?.split_once('/')?;
    Some((backup.parse().ok()?, session.parse().ok()?))
}

/// A hold on a backup.
pub fn hold(backup: BackupId, id: HoldId) -> Result<Key> {
    Key::new(&format!("{}{id}", holds(backup)))
}

/// Prefix of the holds on a backup.
pub fn holds(backup: BackupId) -> String {
    format!("{HOLDS}{backup}/")
}

/// Backup and id of a hold; none if no hold has that name.
pub fn hold_of(key: &Key) -> Option<(BackupId, HoldId)> {
    let (backup, id) = key.as_str().strip_prefix(HOLDS)?.split_once('/')?;
    Some((backup.parse().ok()?, id.parse().ok()?))
}

/// A change of a backup's annotations.
pub fn annotation(backup: BackupId, number: u32) -> Result<Key> {
    Key::new(&format!("{}{number}", annotations(backup)))
}

/// Prefix of the changes of a backup's annotations.
pub fn annotations(backup: BackupId) -> String {
    format!("{ANNOTATIONS}{backup}/")
}

/// Backup and number of a change of annotations; none if no change has that name.
pub fn annotation_of(key: &Key) -> Option<(BackupId, u32)> {
    let (backup, number) = key.as_str().strip_prefix(ANNOTATIONS)?.split_once('/')?;
    let (backup, number) = (backup.parse().ok()?, number.parse().ok()?);
    let is_one =
        (1..=ANNOTATIONS_MAX).contains(&number) && annotation(backup, number).ok()? == *key;
    is_one.then_some((backup, number))
}

#[cfg(test)]
mod tests {
    use mover_base::Timestamp;

    use super::*;

    /// Where others read the names up.
    const PAGE: &str = include_str!("../../../docs/repository-format.md");

    #[test]
    fn names_are_those_of_the_page_on_the_format() {
        let start = Timestamp::parse_rfc3339("2026-11-22T18:14:09Z").unwrap();
        let id = BackupId::new(start, 0x7f3a_9c2e);
        let (own, other) = (SlotId([0xa1; 16]), PackId([0xb2; 16]));
        let (at, held) = (SessionId([0xc3; 16]), HoldId([0xd4; 16]));
        let names = [
            config(),
            slot(own),
            pack(other),
            backup(id),
            session(at),
            tombstone(id, at),
            hold(id, held),
            annotation(id, 12),
        ];
        for name in &names {
            assert!(is_name(name.as_ref().unwrap()));
        }
        let rows = PAGE.lines();
        let rows = rows.skip_while(|line| !line.starts_with("| name | object |"));
        let rows = rows.skip(2).map_while(|line| line.strip_prefix("| `"));
        let spelled_out = rows.map(|row| {
            let pattern = row.split('`').next().unwrap();
            pattern
                .replace("<slot id>", &own.to_string())
                .replace("<first two digits>", &other.to_string()[..2])
                .replace("<pack id>", &other.to_string())
                .replace("<backup id>", &id.to_string())
                .replace("<session id>", &at.to_string())
                .replace("<hold id>", &held.to_string())
                .replace("<number>", "12")
        });
        let names = names.map(|name| name.unwrap().as_str().to_owned());
        assert_eq!(spelled_out.collect::<Vec<_>>(), names);

        // The pattern of backup ids, and the example behind it.
        let (_, behind) = PAGE.split_once("A backup id is text, `").unwrap();
        let quoted: Vec<&str> = behind.split('`').step_by(2).take(2).collect();
        assert_eq!(quoted[1], id.to_string());
        let letters = quoted[0]
            .chars()
            .zip(id.to_string().chars().collect::<Vec<_>>());
        for (letter, digit) in letters {
            match letter {
                'Y' | 'M' | 'D' | 'H' | 'S' => assert!(digit.is_ascii_digit()),
                'r' => assert!(digit.is_ascii_hexdigit()),
                other => assert_eq!(other, digit),
            }
        }
        assert_eq!(quoted[0].len(), id.to_string().len());
    }

    /// `expire` takes back unfinished uploads of these names, and of no others.
    #[test]
    fn names_of_other_programs_are_not_of_this_layout() {
        let backup = BackupId::new(Timestamp::from_micros(1_795_371_249_000_000), 7);
        let own = [
            config(),
            slot(SlotId([0xa1; 16])),
            pack(PackId([0xb2; 16])),
            super::backup(backup),
            session(SessionId([0xc3; 16])),
            tombstone(backup, SessionId([0xc3; 16])),
            hold(backup, HoldId([0xd4; 16])),
            annotation(backup, 12),
        ];
        for own in own.map(|name| name.unwrap().as_str().to_owned()) {
            // One part fewer, more, or in capitals is somebody else's.
            let others = [
                format!("{own}x"),
                format!("x{own}"),
                format!("{own}/x"),
                format!("x/{own}"),
                own.to_uppercase(),
                own.replace(char::is_numeric, "z"),
                own[..own.len() - 1].to_owned(),
            ];
            for other in others.into_iter().filter(|other| *other != own) {
                let is_ours = Key::new(&other).is_ok_and(|key| is_name(&key));
                // A shorter number is another annotation of the same backup.
                let is_number = other.rsplit('/').next().is_some_and(|part| part == "1");
                assert_eq!(is_ours, is_number, "{other}");
            }
        }
        for other in ["data/0001", "packs/b2/notes.txt", "packs", "backups/today"] {
            assert!(!is_name(&Key::new(other).unwrap()), "{other}");
        }
        // A pack below the digits of another.
        let pack = pack(PackId([0xb2; 16])).unwrap();
        let moved = pack.as_str().replacen("/b2/", "/b3/", 1);
        assert!(!is_name(&Key::new(&moved).unwrap()), "{moved}");
    }

    #[test]
    fn names_of_records_read_back_and_nothing_else_does() {
        let backup = BackupId::new(Timestamp::from_micros(1_795_371_249_000_000), 7);
        let (session, held) = (SessionId([1; 16]), HoldId([2; 16]));
        let key = tombstone(backup, session).unwrap();
        assert_eq!(tombstone_of(&key), Some((backup, session)));
        assert_eq!(session_of(&super::session(session).unwrap()), Some(session));
        assert_eq!(hold_of(&hold(backup, held).unwrap()), Some((backup, held)));
        let key = annotation(backup, 12).unwrap();
        assert_eq!(annotation_of(&key), Some((backup, 12)));
        for name in ["012", "-12", "x", "4294967296"] {
            let key = Key::new(&format!("{}{name}", annotations(backup))).unwrap();
            assert_eq!(annotation_of(&key), None, "{name}");
        }
        let key = Key::new(&format!("{SESSIONS}{session}/{session}")).unwrap();
        assert_eq!(session_of(&key), None);
    }
}
