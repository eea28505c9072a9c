//! A repository: packs, deduplication, catalogue, keys and atomic commit. Hides the bytes (`mover-format`) and
//! the place (`mover-store`) from everyone above.
//!
//! ```text
//! config            who the repository is, and the public recipient that writers wrap their keys to
//! keys/<slot>       the repository's secret, sealed for one passphrase or one recipient
//! packs/<xx>/<id>   blocks, or the nodes of maps: immutable, about 10 MB
//! backups/<id>      manifests; a backup exists when its manifest does
//! sessions/<id>     who writes or deletes now: what they build on and write is protected
//! expired/, holds/, annotations/    what shall become of backups, and what was noted of them later
//! ```
//!
//! Invariants: every object is created if absent and never overwritten; a manifest is published only after
//! every pack it names is durable; what was not checked is not handed out.

pub mod annotations;
mod backup;
pub mod catalogue;
mod dedup;
pub mod expire;
#[cfg(test)]
mod fixture;
pub mod holds;
mod items;
mod keys;
mod layout;
mod map;
mod open_packs;
mod pack;
mod parent;
mod parent_names;
pub mod policy;
mod preload;
mod process;
mod reader;
mod records;
mod repository;
mod restore;
mod sample;
mod search;
mod secret;
pub mod sessions;
mod slots;
mod timing;
mod tombstones;
mod tree;
pub mod verify;
mod writer;

pub use backup::{BackupRequest, BackupRun, Committed};
pub use items::ItemList;
pub use keys::{SlotInfo, generate_identity};
pub use map::{MapNodes, require_extents};
pub use mover_format::frame::{COMPRESSION_LEVEL_DEFAULT, COMPRESSION_LEVELS};
pub use mover_format::manifest::{
    BackupMetadata, BackupType, LogMark, PackInfo, ReplicationInfo, SizeInfo, SourceInfo,
    StorageInfo, VerificationInfo,
};
pub use mover_format::seal::Origin;
pub use mover_store::{LinkLimits, LinkReport};
pub use process::{Life, host_name};
pub use reader::READS_AHEAD;
pub use records::is_unreadable;
pub use repository::{InitRequest, Repository};
pub use restore::{BackupView, Content, ExtentReader, Segment, Sought, block_bytes};
pub use sample::SampleEncoder;
pub use search::{Earlier, SourceName, find_latest, find_parent, is_vouched, too_many_packs};
pub use secret::{Credentials, Secret};
pub use slots::{ListedSlot, SlotListing};
pub use timing::{StageSeconds, lap};
pub use tree::EXTENT_BYTES;
pub use writer::{LeafPart, MapNode, ShardWriter, WriteCounts, WriteShared, WriterOutcome};
