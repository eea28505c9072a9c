//! The bytes of a Helios Mover repository: pure encoders and decoders, specified in `docs/repository-format.md`.
//!
//! Invariants: no I/O, no clock, no randomness (keys and ids come from the caller), so that equal input gives
//! equal bytes (of an encoder: the same frames in the same order). Every decoder takes hostile bytes: it checks each count against its cap and against the bytes
//! at hand before it allocates, refuses what the specification does not allow, trailing bytes included, and
//! answers with [`mover_base::Kind::Corrupt`]; the caller, who knows the key, adds the object's name.

mod children;
pub mod config;
pub mod entry;
pub mod frame;
pub mod manifest;
pub mod node;
pub mod pack;
pub mod preamble;
mod probe;
pub mod record;
pub mod seal;
mod single;
pub mod slot;
mod wire;

pub use children::ChildList;
pub use config::RepositoryConfig;
pub use entry::{EntryPage, EntryPageBuilder, StoredEntry};
pub use frame::{Codec, FrameDecoder, FrameEncoder, FrameHeader, FrameKind};
pub use manifest::{
    BackupMetadata, BackupType, Manifest, PackInfo, ReplicationInfo, SizeInfo, SourceInfo,
    StorageInfo, VerificationInfo,
};
pub use node::{Child, Interior, Leaf, LeafBuilder, NodeKind, NodeRef, Run};
pub use pack::{FrameEntry, PackDirectory, PackTrailer};
pub use preamble::{ObjectType, Preamble};
pub use record::{
    AnnotationRecord, HoldRecord, ProcessInfo, Purpose, Record, SessionRecord, TombstoneRecord,
};
pub use seal::{Cipher, MasterKey, ObjectSealer, Origin, SessionKey, WrappedPayload, session_tag};
pub use slot::{KeySlot, SlotKind, SlotSecret};
