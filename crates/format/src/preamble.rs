//! The preamble: what stands at the beginning of every pack, every manifest and every record.
//!
//! Invariants: the first 64 bytes bind each sealed piece to the object's type, cipher, repository, id and
//! session, because they are part of the associated data of each seal; an object is wrapped exactly if it is
//! sealed; reserved bytes are zero. [`Preamble::check_place`] is the one check that an object is what its key says.

use mover_base::{ObjectId, RepoId, Result, SessionId, checksum};

use crate::frame::FrameKind;
use crate::seal::Cipher;
use crate::wire::{Reader, corrupt};

/// First bytes of every pack, manifest and record.
pub const OBJECT_MAGIC: [u8; 8] = *b"HELIOSMV";
/// The one version of the repository format that there is.
pub const FORMAT_VERSION: u16 = 1;
/// Bytes before the wrapped key.
pub const PREAMBLE_FIXED_BYTES: usize = 96;
/// Longest wrapped session key: an age file for one X25519 recipient takes about 300 bytes.
pub const WRAPPED_KEY_BYTES_MAX: usize = 1024;
/// Shortest preamble, that of an object without a seal.
pub const PREAMBLE_BYTES_MIN: usize = PREAMBLE_FIXED_BYTES + 4;
/// Longest preamble: a reader that fetches so many bytes (or the whole object, if shorter) has all of it.
pub const PREAMBLE_BYTES_MAX: usize = PREAMBLE_FIXED_BYTES + WRAPPED_KEY_BYTES_MAX + 4;
/// Bytes of the preamble that are part of the associated data of every seal.
pub(crate) const BOUND_BYTES: usize = 64;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ObjectType {
    /// A pack of blocks.
    DataPack = 1,
    /// A pack of map nodes and entry pages.
    MetaPack = 2,
    /// The manifest of one backup.
    Manifest = 3,
    /// That a session is under way.
    Session = 4,
    /// That a backup is about to be deleted.
    Tombstone = 5,
    /// That a backup must not be deleted.
    Hold = 6,
    /// A change to the annotations of a backup.
    Annotation = 7,
}

impl ObjectType {
    /// The type with this code.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(ObjectType::DataPack),
            2 => Some(ObjectType::MetaPack),
            3 => Some(ObjectType::Manifest),
            4 => Some(ObjectType::Session),
            5 => Some(ObjectType::Tombstone),
            6 => Some(ObjectType::Hold),
            7 => Some(ObjectType::Annotation),
            _ => None,
        }
    }

    /// The code on storage.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The kind of the frame that ends such an object.
    pub const fn last_frame(self) -> FrameKind {
        match self {
            ObjectType::DataPack | ObjectType::MetaPack => FrameKind::Directory,
            ObjectType::Manifest => FrameKind::Manifest,
            ObjectType::Session
            | ObjectType::Tombstone
            | ObjectType::Hold
            | ObjectType::Annotation => FrameKind::Record,
        }
    }
}

/// The first part of a pack, manifest or record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preamble {
    /// What the object is.
    pub object_type: ObjectType,
    /// How its pieces are sealed.
    pub cipher: Cipher,
    /// The repository that it belongs to.
    pub repo_id: RepoId,
    /// Pack id, [`mover_base::BackupId::object_id`] of a manifest, or what the specification says for the record.
    pub object_id: ObjectId,
    /// The session that wrote it.
    pub session_id: SessionId,
    /// The session key, wrapped for the repository's recipient; empty exactly if `cipher` is none.
    pub wrapped_key: Vec<u8>,
}

impl Preamble {
    /// Bytes that [`encode`](Self::encode) gives; the first frame begins there.
    pub fn encoded_bytes(&self) -> usize {
        PREAMBLE_BYTES_MIN + self.wrapped_key.len()
    }

    /// The bytes up to the reserved ones, which every seal of the object covers.
    pub(crate) fn bound(&self) -> [u8; BOUND_BYTES] {
        let mut out = [0; BOUND_BYTES];
        out[0..8].copy_from_slice(&OBJECT_MAGIC);
        out[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[10] = self.object_type.code();
        out[11] = self.cipher.code();
        out[12..16].copy_from_slice(&(self.wrapped_key.len() as u32).to_le_bytes());
        out[16..32].copy_from_slice(&self.repo_id.0);
        out[32..48].copy_from_slice(&self.object_id);
        out[48..64].copy_from_slice(&self.session_id.0);
        out
    }

    /// The wrapped key's length must fit the cipher: a writer that breaks this is wrong, stored bytes are damaged.
    pub(crate) fn check(&self) -> Result<()> {
        let len = self.wrapped_key.len();
        match self.cipher {
            Cipher::None if len != 0 => Err(corrupt(
                "preamble: an object without seal has a wrapped key",
            )),
            Cipher::Aes256Gcm if len == 0 || len > WRAPPED_KEY_BYTES_MAX => Err(corrupt(format!(
                "preamble: wrapped key length {len} is not 1 to {WRAPPED_KEY_BYTES_MAX}"
            ))),
            _ => Ok(()),
        }
    }

    /// The bytes of the preamble; fails if the wrapped key does not fit the cipher.
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.check()?;
        let mut out = Vec::with_capacity(self.encoded_bytes());
        out.extend_from_slice(&self.bound());
        out.resize(PREAMBLE_FIXED_BYTES, 0);
        out.extend_from_slice(&self.wrapped_key);
        let crc = checksum::crc32(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        Ok(out)
    }

    /// Reads the preamble from the first bytes of an object (more may follow) and says how long it is.
    pub fn decode(bytes: &[u8]) -> Result<(Preamble, usize)> {
        let mut reader = Reader::new("preamble", bytes);
        if reader.array::<8>("magic")? != OBJECT_MAGIC {
            return Err(corrupt("preamble: this is not a Helios Mover object"));
        }
        let version = reader.u16("version")?;
        if version != FORMAT_VERSION {
            return Err(reader.wrong("version", &format!("{version} is unknown")));
        }
        let object_type = ObjectType::from_code(reader.u8("object type")?)
            .ok_or_else(|| reader.wrong("object type", "is unknown"))?;
        let cipher = Cipher::from_code(reader.u8("cipher")?)
            .ok_or_else(|| reader.wrong("cipher", "is unknown"))?;
        let wrapped_len = reader.u32("wrapped key length")? as usize;
        if wrapped_len > WRAPPED_KEY_BYTES_MAX {
            return Err(reader.wrong("wrapped key length", "is above its cap"));
        }
        let repo_id = RepoId(reader.array("repository id")?);
        let object_id = reader.array("object id")?;
        let session_id = SessionId(reader.array("session id")?);
        reader.reserved::<{ PREAMBLE_FIXED_BYTES - BOUND_BYTES }>()?;
        let wrapped_key = reader.bytes("wrapped key", wrapped_len)?.to_vec();
        let crc_at = PREAMBLE_FIXED_BYTES + wrapped_len;
        if reader.u32("checksum")? != checksum::crc32(&bytes[..crc_at]) {
            return Err(reader.wrong("checksum", "does not match"));
        }
        let preamble = Preamble {
            object_type,
            cipher,
            repo_id,
            object_id,
            session_id,
            wrapped_key,
        };
        preamble.check()?;
        Ok((preamble, crc_at + 4))
    }

    /// Checks that the object is the one its key names, of this repository and sealed as its config says.
    ///
    /// Call this before the session key is unwrapped: without it a stored object could be put in another's
    /// place, or an unsealed forgery in place of a sealed object.
    pub fn check_place(
        &self,
        object_type: ObjectType,
        cipher: Cipher,
        repo_id: &RepoId,
        object_id: &ObjectId,
    ) -> Result<()> {
        if self.object_type != object_type {
            return Err(corrupt("preamble: the object is of another type"));
        }
        if self.cipher != cipher {
            return Err(corrupt(
                "preamble: the object's cipher is not that of the repository",
            ));
        }
        if self.repo_id != *repo_id {
            return Err(corrupt("preamble: the object is of another repository"));
        }
        if self.object_id != *object_id {
            return Err(corrupt("preamble: the object's id is not that of its key"));
        }
        Ok(())
    }
}
