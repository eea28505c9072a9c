//! The control file: which database and history this is, and where redo begins.
//!
//! Invariants: two slots of 4 KiB take turns, so that a torn write leaves the other one; the sound slot with the larger
//! sequence number counts. The layout is in docs/wal-format.md, section 8.

use mover_base::checksum::crc32;
use mover_base::{BLOCK_BYTES, HistoryId, Lsn, Result, SystemId};

use crate::wal::segment::{LOG_VERSION, LogBlock};
use crate::wal::{Fork, LSN_MAX, LogIdentity, SegmentSize};
use crate::wire::{array_at, corrupt, is_zero, u16_at, u32_at, u64_at};

const MAGIC: [u8; 8] = *b"HELIOSCT";
/// Far from the end of its type, so that nobody counts beyond that.
const SEQUENCE_MAX: u64 = 1 << 62;
const CRC_AT: usize = BLOCK_BYTES - 4;

/// What a slot of the control file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// Counts up with every write; the slot is its remainder by 2.
    pub sequence: u64,
    /// Which log belongs to the store.
    pub identity: LogIdentity,
    /// Where the record of the last checkpoint begins; 0 before the first of this history.
    pub checkpoint: Lsn,
    /// Where redo begins: pages are on disk as far as the log went there.
    pub redo: Lsn,
    /// No transaction before the checkpoint has this number or a larger one.
    pub next_transaction: u64,
}

impl Control {
    /// A control file in which only this slot is sound.
    pub fn file(&self) -> Vec<u8> {
        let mut file = vec![0; 2 * BLOCK_BYTES];
        let slot = (self.sequence % 2) as usize * BLOCK_BYTES;
        file[slot..slot + BLOCK_BYTES].copy_from_slice(&self.encode());
        file
    }

    /// The bytes of the slot.
    pub fn encode(&self) -> LogBlock {
        let mut out = [0; BLOCK_BYTES];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&LOG_VERSION.to_le_bytes());
        out[10] = self.identity.size.log2();
        out[16..32].copy_from_slice(&self.identity.system.0);
        out[32..48].copy_from_slice(&self.identity.history.0);
        if let Some(fork) = self.identity.fork {
            out[48..64].copy_from_slice(&fork.parent.0);
            out[64..72].copy_from_slice(&fork.at.0.to_le_bytes());
        }
        out[72..80].copy_from_slice(&self.sequence.to_le_bytes());
        out[80..88].copy_from_slice(&self.checkpoint.0.to_le_bytes());
        out[88..96].copy_from_slice(&self.redo.0.to_le_bytes());
        out[96..104].copy_from_slice(&self.next_transaction.to_le_bytes());
        let crc = crc32(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a slot.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged or breaks a rule; so is a slot of zeros, which was never written.
    pub fn decode(bytes: &LogBlock) -> Result<Self> {
        if bytes[..8] != MAGIC {
            return Err(corrupt("the control file does not begin as one"));
        }
        if u32_at(bytes, CRC_AT) != crc32(&bytes[..CRC_AT]) {
            return Err(corrupt("the control file does not match its checksum"));
        }
        let version = u16_at(bytes, 8);
        if version != LOG_VERSION {
            return Err(corrupt(format!(
                "the control file is of the unknown version {version}"
            )));
        }
        let (parent, at) = (array_at::<16>(bytes, 48), Lsn(u64_at(bytes, 64)));
        let rules = || corrupt("the control file breaks a rule of its layout");
        let identity = LogIdentity {
            system: SystemId(array_at(bytes, 16)),
            history: HistoryId(array_at(bytes, 32)),
            fork: (parent != [0; 16]).then_some(Fork {
                parent: HistoryId(parent),
                at,
            }),
            size: SegmentSize::new(bytes[10]).map_err(|_| rules())?,
        };
        let control = Control {
            sequence: u64_at(bytes, 72),
            identity,
            checkpoint: Lsn(u64_at(bytes, 80)),
            redo: Lsn(u64_at(bytes, 88)),
            next_transaction: u64_at(bytes, 96),
        };
        let sound = identity.system.0 != [0; 16]
            && identity.history.0 != [0; 16]
            && at <= LSN_MAX
            && (identity.fork.is_some() || at == Lsn(0))
            && is_zero(&bytes[11..16])
            && is_zero(&bytes[104..CRC_AT])
            && identity.holds_records_at(control.redo)
            && (control.checkpoint == Lsn(0)
                || (control.checkpoint >= control.redo
                    && identity.holds_records_at(control.checkpoint)))
            && control.sequence <= SEQUENCE_MAX;
        if sound { Ok(control) } else { Err(rules()) }
    }
}
