//! Ranged reads into the arena's buffers.
//!
//! Invariants: a read brings exactly the bytes that were asked for, or an error; one request brings as many
//! neighbouring pieces as there is room for (see `run`).

use http::{Method, StatusCode};
use mover_base::Result;
use mover_io::Shard;

use super::S3Store;
use super::answer::Operation;
use super::client::{Client, Request, Sink};
use super::run::{Run, room};
use crate::bounds::{read_end, run_end, too_short};
use crate::key::Key;
use crate::{READ_BYTES_MAX, RUN_BYTES_MAX, Slice};

/// Reads from one shard, over the connections that the shard keeps.
pub struct S3Reader {
    pub(super) store: S3Store,
    pub(super) shard: Shard,
}

impl S3Reader {
    pub(crate) async fn read(&self, key: &Key, offset: u64, len: usize) -> Result<Slice> {
        self.store.read(&self.shard, key, offset, len).await
    }

    pub(crate) async fn read_run(
        &self,
        key: &Key,
        offset: u64,
        lens: &[usize],
        take: &mut dyn FnMut(Slice),
    ) -> Result<()> {
        run_end(key, offset, lens)?;
        let client = self.store.client(&self.shard)?;
        let (mut offset, mut lens) = (offset, lens);
        while !lens.is_empty() {
            let pieces = room(&self.shard, lens).await;
            let later = lens.split_off(pieces.len()..).unwrap_or_default();
            let bytes: u64 = lens.iter().map(|len| *len as u64).sum();
            fetch(&client, Run::new(key, offset, pieces, take)).await?;
            offset += bytes;
            lens = later;
        }
        Ok(())
    }

    /// A limit on the link is paid before a range is asked for, and holds the better the shorter that is.
    pub(crate) fn run_bytes_max(&self) -> u64 {
        match self.store.0.limits.download.is_unlimited() {
            true => RUN_BYTES_MAX,
            false => READ_BYTES_MAX as u64,
        }
    }
}

/// Reads exactly `len` bytes at `offset`.
pub(super) async fn read(client: &Client, key: &Key, offset: u64, len: usize) -> Result<Slice> {
    read_end(key, offset, len)?;
    let pieces = room(&client.shard, &[len]).await;
    let mut slice = None;
    let mut take = |piece| slice = Some(piece);
    fetch(client, Run::new(key, offset, pieces, &mut take)).await?;
    slice.ok_or_else(|| too_short(key))
}

/// Asks for a run until all of it is there.
async fn fetch(client: &Client, run: Run<'_>) -> Result<()> {
    let (key, name) = (run.key(), client.place.name_of(run.key()));
    let request = Request::new(Operation::Get, Method::GET, name);
    let mut sink = Sink::Run(run);
    // A server may answer with less than it was asked for: then the rest is a question of its own.
    while sink.left() > 0 {
        let answer = client.send(&request, &mut sink).await?;
        if answer.status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Err(too_short(key));
        }
        client.succeeded(&request, answer)?;
    }
    Ok(())
}
