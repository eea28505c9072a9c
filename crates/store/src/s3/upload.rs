//! An object being written piece by piece: gathered in memory, sent in one request, or in parts where it is long.
//!
//! Invariants: what is gathered is bounded per shard; an upload that has begun never waits for memory again, and one that
//! begins waits only for uploads that are being committed, which end by themselves: so neither uploads that are half gathered
//! nor two of one task can wait for each other; no buffer of the arena is held; the bytes of a request stay until it is
//! answered, for another try.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use mover_base::Result;
use mover_io::BUF_BYTES;
use tokio::sync::Notify;

use super::body::Payload;
use super::chunked;
use super::client::Client;
use super::location::Signing;
use super::multipart::{self, PART_BYTES, Parts};
use super::put::{self, Checksums, new_mark};
use crate::key::Key;
use crate::piece::{Memory, OwnMemory, Piece, Pool};
use crate::{Put, Rivals};

/// Memory of objects being sent, all shards together, above which no further upload begins before one that is committed has
/// ended. Each that has begun may go on to gather [`PART_BYTES`].
const GATHERED_BYTES_MAX: u64 = 48 << 20;

/// The memory of a shard's uploads.
pub(super) struct UploadMemory {
    gate: Rc<Gate>,
    pool: Pool,
}

struct Gate {
    bytes_max: u64,
    bytes: Cell<u64>,
    /// Those of `bytes` whose uploads are being committed.
    committed_bytes: Cell<u64>,
    freed: Notify,
}

impl Gate {
    /// Whether there is too much, and less of it soon.
    fn is_closed(&self) -> bool {
        self.bytes.get() >= self.bytes_max && self.committed_bytes.get() > 0
    }
}

impl UploadMemory {
    pub fn new(shards: usize) -> Self {
        let bytes_max = GATHERED_BYTES_MAX / shards.max(1) as u64;
        UploadMemory {
            gate: Rc::new(Gate {
                bytes_max,
                bytes: Cell::new(0),
                committed_bytes: Cell::new(0),
                freed: Notify::new(),
            }),
            pool: Pool::new(bytes_max.div_ceil(BUF_BYTES as u64) as usize),
        }
    }

    /// Memory to gather a piece in. It counts once it is pushed.
    pub fn piece(&self) -> Piece {
        Piece(Memory::Own(self.pool.take()))
    }

    /// Waits until another upload may begin.
    async fn enter(&self) -> Held {
        while self.gate.is_closed() {
            self.gate.freed.notified().await;
        }
        // Others who wait may find room too.
        self.gate.freed.notify_one();
        Held {
            gate: Rc::clone(&self.gate),
            bytes: 0,
            is_committed: false,
        }
    }
}

/// What one upload holds.
struct Held {
    gate: Rc<Gate>,
    bytes: u64,
    /// Whether nothing is added any more, and all of it is freed without anybody's doing.
    is_committed: bool,
}

impl Held {
    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.gate.bytes.set(self.gate.bytes.get() + bytes);
    }

    fn commit(&mut self) {
        let committed = &self.gate.committed_bytes;
        committed.set(committed.get() + self.bytes);
        self.is_committed = true;
    }

    fn release(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.gate.bytes.set(self.gate.bytes.get() - bytes);
        if self.is_committed {
            let committed = &self.gate.committed_bytes;
            committed.set(committed.get() - bytes);
        }
        self.gate.freed.notify_one();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}

/// An object being written.
pub struct S3Upload {
    client: Rc<Client>,
    key: Key,
    rivals: Rivals,
    held: Held,
    pieces: Vec<Bytes>,
    bytes: u64,
    /// How its payloads are signed.
    signing: Signing,
    sums: Checksums,
    parts: Option<Parts>,
}

impl S3Upload {
    pub(super) async fn begin(client: Rc<Client>, key: &Key, rivals: Rivals) -> Result<Self> {
        multipart::abort_abandoned(&client).await;
        let signing = chunked::signing(&client).await;
        let held = client.memory.enter().await;
        let sums = Checksums::new(&client, signing);
        Ok(S3Upload {
            client,
            key: key.clone(),
            rivals,
            held,
            pieces: Vec::new(),
            bytes: 0,
            signing,
            sums,
            parts: None,
        })
    }

    /// Appends a copy of these bytes.
    pub(crate) async fn push(&mut self, piece: &[u8]) -> Result<()> {
        self.append(Bytes::copy_from_slice(piece), piece.len())
            .await
    }

    /// Appends the first `len` bytes of a piece. All of its memory is held until they are sent.
    pub(crate) async fn push_owned(&mut self, piece: OwnMemory, len: usize) -> Result<()> {
        self.append(piece.filled(len), BUF_BYTES).await
    }

    /// Appends a piece that takes so much memory.
    async fn append(&mut self, piece: Bytes, memory_bytes: usize) -> Result<()> {
        // The object goes on, so what is gathered is a part and not the whole.
        if self.bytes as usize == PART_BYTES {
            self.send_part().await?;
        }
        self.sums.update(&piece)?;
        self.bytes += piece.len() as u64;
        self.held.add(memory_bytes as u64);
        self.pieces.push(piece);
        Ok(())
    }

    pub(crate) async fn commit(mut self) -> Result<Put> {
        self.held.commit();
        if self.parts.is_some() {
            self.send_part().await?;
        }
        let committed = match &self.parts {
            Some(parts) => {
                let committed = parts.complete(&self.client).await;
                match committed {
                    Ok(Put::Created) => self.parts = None,
                    // Nobody needs the parts any more, also those that would be kept for another try.
                    Ok(Put::Exists) => self.abandon_parts(),
                    // Whatever else ends here, be it by a drop, leaves them to the drop of this.
                    Err(_) => {}
                }
                committed
            }
            None => {
                let payload = self.take_payload();
                let name = self.client.place.name_of(&self.key);
                put::put(&self.client, &name, payload, self.rivals).await
            }
        };
        committed.map_err(|error| error.object(self.key.as_str()))
    }

    pub(crate) async fn abort(mut self) -> Result<()> {
        if let Some(parts) = &self.parts {
            let aborted = parts.abort(&self.client).await;
            // Up to here a drop leaves them to the next. Whoever refused that would refuse it again.
            self.parts = None;
            aborted?;
        }
        Ok(())
    }

    /// Sends what is gathered as a part.
    async fn send_part(&mut self) -> Result<()> {
        let payload = self.take_payload();
        let parts = match &mut self.parts {
            Some(parts) => parts,
            none => {
                let name = self.client.place.name_of(&self.key);
                none.insert(match self.rivals {
                    Rivals::Possible | Rivals::None => {
                        Parts::begin(&self.client, &name, new_mark()?).await?
                    }
                    Rivals::OwnTries => Parts::resume(&self.client, &name).await?,
                })
            }
        };
        parts.send(&self.client, payload).await?;
        self.held.release();
        Ok(())
    }

    fn abandon_parts(&mut self) {
        if let Some(parts) = self.parts.take() {
            parts.abandon(&self.client);
        }
    }

    fn take_payload(&mut self) -> Payload {
        let sums = std::mem::replace(&mut self.sums, Checksums::new(&self.client, self.signing));
        let bytes = std::mem::take(&mut self.bytes);
        sums.finish(std::mem::take(&mut self.pieces), bytes)
    }
}

impl Drop for S3Upload {
    fn drop(&mut self) {
        // The parts of a copy are taken up by the next try.
        if self.rivals != Rivals::OwnTries {
            self.abandon_parts();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Runs `body`, which must not stand still.
    fn ends(body: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let ended = runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(60), body)
                .await
                .is_ok()
        });
        assert!(ended, "it stands still");
    }

    /// A shard's writer has a pack of data and one of nodes open at a time, and waits for either.
    #[test]
    fn two_uploads_of_one_task_never_wait_for_each_other() {
        for shards in [1, 5, 8, 64] {
            let memory = UploadMemory::new(shards);
            ends(async {
                let mut data = memory.enter().await;
                data.add(PART_BYTES as u64);
                let mut nodes = memory.enter().await;
                nodes.add(PART_BYTES as u64);
                drop(data);
                memory.enter().await.add(1);
            });
        }
    }

    #[test]
    fn an_upload_begins_when_those_that_are_committed_leave_room() {
        let memory = UploadMemory::new(8);
        ends(async {
            let mut open = memory.enter().await;
            open.add(4 << 20);
            let mut committed = memory.enter().await;
            committed.add(4 << 20);
            committed.commit();
            let (_, ()) = tokio::join!(memory.enter(), async {
                tokio::task::yield_now().await;
                assert!(memory.gate.is_closed());
                drop(committed);
            });
            assert_eq!(memory.gate.committed_bytes.get(), 0);
            assert_eq!(memory.gate.bytes.get(), 4 << 20);
        });
    }
}
