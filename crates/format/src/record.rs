//! Records: small objects that stand beside the manifests and say who works on the repository and what shall become of
//! its backups.
//!
//! Invariants: a record is laid out as a manifest is, with one frame; its kind is the object type in its preamble; the
//! object id binds it to its name, and where the name holds a backup id, the body holds the same. The body is JSON in
//! which a reader passes over members that it does not know; what it cannot pass over (a purpose, say) it refuses.

use std::collections::{BTreeMap, BTreeSet};

use mover_base::{BackupId, Error, Kind, ObjectId, Result, SessionId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::frame::{
    FRAME_HEADER_BYTES, FrameDecoder, FrameEncoder, FrameKind, RECORD_PLAIN_BYTES_MAX,
};
use crate::pack::TRAILER_BYTES;
use crate::preamble::{ObjectType, PREAMBLE_BYTES_MAX, Preamble};
use crate::seal::{ObjectSealer, TAG_BYTES};
use crate::single;
use crate::wire::corrupt;

/// Longest record object that the caps of its parts allow.
pub const RECORD_BYTES_MAX: usize =
    PREAMBLE_BYTES_MAX + FRAME_HEADER_BYTES + RECORD_PLAIN_BYTES_MAX + TAG_BYTES + TRAILER_BYTES;
/// Most backups that a session may build on.
pub const PARENTS_MAX: usize = 64;
/// Longest text of a hold's reason, of a key of an annotation, and of a host's name.
pub const TEXT_BYTES_MAX: usize = 4096;
/// Annotations of one backup are numbered from 1 to here.
pub const ANNOTATIONS_MAX: u32 = 9999;

/// What a session does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// It makes a backup.
    Backup,
    /// It deletes backups.
    Expire,
}

/// Which process it is, so that others on the same machine can tell when it has died.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// The kernel's id of this boot.
    pub boot_id: String,
    /// The namespaces in which id and start have a meaning.
    pub namespaces: String,
    /// Process id.
    pub pid: u32,
    /// Start of the process in clock ticks since the boot; tells it from a later one of the same id.
    pub start_ticks: u64,
}

/// That a session is under way. It protects the backups it builds on and the packs it writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// What it does.
    pub purpose: Purpose,
    /// The backups whose packs it may take over.
    pub parents: Vec<BackupId>,
    /// The machine it runs on.
    pub host: String,
    /// Its process; absent where the system does not tell.
    pub process: Option<ProcessInfo>,
    /// When it began, by the clock of that machine. For people: nothing is decided by it.
    pub started: Timestamp,
    /// Version of the program.
    pub tool_version: String,
}

/// That a session is about to delete a backup: nobody may build on it any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TombstoneRecord {
    /// The backup.
    pub backup_id: BackupId,
}

/// That a backup must not be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldRecord {
    /// The backup.
    pub backup_id: BackupId,
    /// Why.
    pub reason: String,
    /// The machine it was made on.
    pub host: String,
    /// When, by the clock of that machine.
    pub created: Timestamp,
}

/// A change to the annotations of a backup, on top of those with lower numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnotationRecord {
    /// The backup.
    pub backup_id: BackupId,
    /// Its place in the order of changes, from 1.
    pub number: u32,
    /// Keys to take away.
    pub remove: BTreeSet<String>,
    /// Keys and values to put in.
    pub set: BTreeMap<String, String>,
    /// The machine it was made on.
    pub host: String,
    /// When, by the clock of that machine. The number decides the order, not this.
    pub created: Timestamp,
}

/// Any record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// `sessions/<session id>`
    Session(SessionRecord),
    /// `expired/<backup id>/<session id>`
    Tombstone(TombstoneRecord),
    /// `holds/<backup id>/<hold id>`
    Hold(HoldRecord),
    /// `annotations/<backup id>/<number>`
    Annotation(AnnotationRecord),
}

impl AnnotationRecord {
    /// The object id of change `number` of a backup's annotations: that of the backup with the number in the bytes that
    /// are zero there.
    pub fn object_id(backup_id: BackupId, number: u32) -> ObjectId {
        let mut out = backup_id.object_id();
        out[8..12].copy_from_slice(&number.to_be_bytes());
        out
    }

    /// Applies the change.
    pub fn apply(&self, annotations: &mut BTreeMap<String, String>) {
        annotations.retain(|key, _| !self.remove.contains(key));
        let set = self.set.iter();
        annotations.extend(set.map(|(key, value)| (key.clone(), value.clone())));
    }
}

impl Record {
    /// The type of its object.
    pub fn object_type(&self) -> ObjectType {
        match self {
            Record::Session(_) => ObjectType::Session,
            Record::Tombstone(_) => ObjectType::Tombstone,
            Record::Hold(_) => ObjectType::Hold,
            Record::Annotation(_) => ObjectType::Annotation,
        }
    }

    /// Whether the body may stand under this object id in this session.
    fn fits(&self, object_id: ObjectId, session_id: SessionId) -> bool {
        match self {
            Record::Session(_) => object_id == session_id.0,
            Record::Tombstone(tombstone) => object_id == tombstone.backup_id.object_id(),
            Record::Hold(_) => true,
            Record::Annotation(change) => {
                object_id == AnnotationRecord::object_id(change.backup_id, change.number)
            }
        }
    }

    /// Why the body is not one, if so.
    fn fault(&self) -> Option<&'static str> {
        let long = |text: &str| text.len() > TEXT_BYTES_MAX;
        match self {
            Record::Session(session) if session.parents.len() > PARENTS_MAX => {
                Some("it builds on too many backups")
            }
            Record::Session(session) if long(&session.host) => Some("the host's name is too long"),
            Record::Hold(hold) if long(&hold.reason) => Some("the reason is too long"),
            Record::Annotation(change) if !(1..=ANNOTATIONS_MAX).contains(&change.number) => {
                Some("the number is not allowed")
            }
            Record::Annotation(change)
                if change.set.keys().chain(&change.remove).any(|key| long(key)) =>
            {
                Some("a key is too long")
            }
            _ => None,
        }
    }

    /// The plain bytes of the body.
    ///
    /// # Errors
    /// [`Kind::Limit`] where it is longer than a record can be.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let limit = |what: &str| Error::new(Kind::Limit, format!("a record is too large: {what}"));
        if let Some(fault) = self.fault() {
            return Err(limit(fault));
        }
        let json = match self {
            Record::Session(body) => serde_json::to_vec(body),
            Record::Tombstone(body) => serde_json::to_vec(body),
            Record::Hold(body) => serde_json::to_vec(body),
            Record::Annotation(body) => serde_json::to_vec(body),
        };
        let json =
            json.map_err(|e| Error::new(Kind::Internal, "a record was not written").cause(e))?;
        if json.len() > RECORD_PLAIN_BYTES_MAX {
            return Err(limit("it takes over 64 KiB").hint("give fewer or shorter texts"));
        }
        Ok(json)
    }

    /// Reads the plain bytes of a body of this type.
    pub fn decode(object_type: ObjectType, bytes: &[u8]) -> Result<Self> {
        if bytes.len() > RECORD_PLAIN_BYTES_MAX {
            return Err(corrupt("record: it is above its cap"));
        }
        let record = match object_type {
            ObjectType::Session => serde_json::from_slice(bytes).map(Record::Session),
            ObjectType::Tombstone => serde_json::from_slice(bytes).map(Record::Tombstone),
            ObjectType::Hold => serde_json::from_slice(bytes).map(Record::Hold),
            ObjectType::Annotation => serde_json::from_slice(bytes).map(Record::Annotation),
            ObjectType::DataPack | ObjectType::MetaPack | ObjectType::Manifest => {
                return Err(corrupt("record: the object is of another type"));
            }
        };
        let record =
            record.map_err(|e| corrupt("record: the body is not what it should be").cause(e))?;
        match record.fault() {
            Some(fault) => Err(corrupt(format!("record: {fault}"))),
            None => Ok(record),
        }
    }

    /// The whole object: preamble, body, trailer. `sealer` must be new and made from `preamble`.
    pub fn encode_object(
        &self,
        preamble: &Preamble,
        sealer: &ObjectSealer,
        encoder: &mut FrameEncoder,
    ) -> Result<Vec<u8>> {
        if preamble.object_type != self.object_type()
            || !self.fits(preamble.object_id, preamble.session_id)
        {
            return Err(Error::new(
                Kind::Internal,
                "a record's preamble is not that of its body",
            ));
        }
        let body = self.encode()?;
        single::encode(preamble, sealer, encoder, FrameKind::Record, &body)
    }

    /// Reads a whole object whose preamble was decoded, checked with [`Preamble::check_place`] and used to make
    /// `sealer`.
    pub fn decode_object(
        bytes: &[u8],
        preamble: &Preamble,
        sealer: &ObjectSealer,
        decoder: &mut FrameDecoder,
    ) -> Result<Self> {
        let body = (FrameKind::Record, RECORD_PLAIN_BYTES_MAX, "record");
        let body = single::decode(bytes, preamble, sealer, decoder, body)?;
        let record = Self::decode(preamble.object_type, &body)?;
        if !record.fits(preamble.object_id, preamble.session_id) {
            return Err(corrupt("record: the body is of another object"));
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(number: u32, remove: &[&str], set: &[(&str, &str)]) -> AnnotationRecord {
        AnnotationRecord {
            backup_id: BackupId::new(Timestamp::from_micros(0), 7),
            number,
            remove: remove.iter().map(|key| (*key).to_owned()).collect(),
            set: set
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            host: "host".into(),
            created: Timestamp::from_micros(0),
        }
    }

    #[test]
    fn a_change_removes_before_it_sets() {
        let mut annotations = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        change(1, &["a", "b"], &[("b", "2")]).apply(&mut annotations);
        assert_eq!(annotations, BTreeMap::from([("b".into(), "2".into())]));
    }

    #[test]
    fn numbers_and_texts_have_caps() {
        for number in [0, ANNOTATIONS_MAX + 1] {
            let record = Record::Annotation(change(number, &[], &[]));
            assert_eq!(record.encode().unwrap_err().kind(), Kind::Limit);
        }
        let long = "k".repeat(TEXT_BYTES_MAX + 1);
        let record = Record::Annotation(change(1, &[&long], &[]));
        assert_eq!(record.encode().unwrap_err().kind(), Kind::Limit);
        let value = "v".repeat(RECORD_PLAIN_BYTES_MAX);
        let record = Record::Annotation(change(1, &[], &[("k", &value)]));
        assert_eq!(record.encode().unwrap_err().kind(), Kind::Limit);
    }

    #[test]
    fn each_number_has_an_object_id_of_its_own() {
        let id = BackupId::new(Timestamp::from_micros(5_000_000), 7);
        assert_eq!(AnnotationRecord::object_id(id, 0), id.object_id());
        assert_ne!(
            AnnotationRecord::object_id(id, 1),
            AnnotationRecord::object_id(id, 2)
        );
    }
}
