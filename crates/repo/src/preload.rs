//! Opening the parent's packs before the first block is written: each is looked at once, by one of the shards, several at
//! a time, since opening one is mostly waiting.
//!
//! Invariants: [`Preload::run`] returns on every shard only when all packs that were begun on any were dealt with, so what
//! is found in the parent does not hang on which shard was faster; at most [`OPENS_MAX`] are being opened on a shard at a time; a
//! damaged pack is passed over, counted, and its blocks are stored anew. What was opened stays so, as far as there is room.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use mover_base::{Error, Kind, PackId, Result};
use mover_io::Shard;
use mover_store::Reader;
use tokio::sync::watch;

use crate::dedup::Location;
use crate::parent::Parent;
use crate::reader::PackReader;
use crate::writer::WriteShared;

/// Packs that a shard opens at a time. Their directories take at most 3 MiB each.
const OPENS_MAX: usize = 8;

/// The packs, and how far the shards are.
pub(crate) struct Preload {
    packs: Vec<PackId>,
    /// Whether their blocks go into the index.
    into_index: bool,
    next: AtomicUsize,
    ended: watch::Sender<usize>,
}

/// A pack that a shard has begun with; it is over when this is dropped, however it ended.
struct Begun<'a> {
    pack: PackId,
    ended: &'a watch::Sender<usize>,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.ended.send_modify(|ended| *ended += 1);
    }
}

impl Preload {
    /// Nothing has been opened yet.
    pub fn new(packs: Vec<PackId>, into_index: bool) -> Self {
        Preload {
            packs,
            into_index,
            next: AtomicUsize::new(0),
            ended: watch::Sender::new(0),
        }
    }

    /// Opens what no shard has begun with. Every shard calls this; they share the work.
    ///
    /// # Errors
    /// What reading the repository brings, damage aside; `Cancelled` when the run ends.
    pub async fn run(self: &Arc<Self>, shard: &Shard, shared: &Arc<WriteShared>) -> Result<()> {
        if let Some(parent) = &shared.parent {
            parent.packs.share(shard.count());
        }
        let store = Rc::new(shared.repository.store().reader(shard));
        let opener = || {
            let (preload, shard, shared) = (self.clone(), shard.clone(), shared.clone());
            let store = store.clone();
            async move { preload.open_some(store, &shard, &shared).await }
        };
        let openers: Vec<_> = (0..OPENS_MAX.min(self.packs.len()))
            .map(|_| shard.spawn(opener()))
            .collect();
        for opener in openers {
            opener.await.map_err(|error| {
                Error::new(Kind::Internal, "opening packs ended without a result").cause(error)
            })??;
        }
        let begun = self.next.load(Relaxed).min(self.packs.len());
        // The sender is ours, so this cannot fail.
        let _ = self
            .ended
            .subscribe()
            .wait_for(|ended| *ended >= begun)
            .await;
        shard.stop()
    }

    fn begin(&self) -> Option<Begun<'_>> {
        let at = self.next.fetch_add(1, Relaxed);
        let pack = *self.packs.get(at)?;
        Some(Begun {
            pack,
            ended: &self.ended,
        })
    }

    async fn open_some(
        &self,
        store: Rc<Reader>,
        shard: &Shard,
        shared: &Arc<WriteShared>,
    ) -> Result<()> {
        let Some(parent) = &shared.parent else {
            return Ok(());
        };
        let reader = PackReader::sharing(store, shard, &shared.repository, &parent.infos);
        let mut reader = reader.with_packs(&parent.packs);
        while let Some(begun) = self.begin() {
            shard.stop()?;
            self.open(begun.pack, &mut reader, shared, parent).await?;
            shard.turn().await;
        }
        Ok(())
    }

    async fn open(
        &self,
        id: PackId,
        reader: &mut PackReader,
        shared: &WriteShared,
        parent: &Parent,
    ) -> Result<()> {
        let pack = match reader.open(id).await {
            Ok(pack) => pack,
            Err(error) if error.kind() == Kind::Corrupt => {
                tracing::info!(%error, "a pack of the parent is damaged; its blocks are stored anew");
                parent.damaged_extents.fetch_add(1, Relaxed);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        parent.set_checked(id);
        let number = parent.number(id).filter(|_| self.into_index);
        let Some(number) = number else {
            return Ok(());
        };
        for (ordinal, hash) in (0..).zip(&pack.directory.hashes) {
            let location = Location {
                pack: number,
                ordinal,
            };
            shared.index.find_or_insert(hash, || location);
        }
        Ok(())
    }
}
