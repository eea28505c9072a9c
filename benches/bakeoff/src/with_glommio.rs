//! The loop on glommio: one pinned executor per core, its own registered buffers.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use glommio::io::{DmaFile, ReadResult};
use glommio::{LocalExecutorPoolBuilder, PoolPlacement};
use mover_base::Result;

use crate::work::{
    DEPTH, PIECE_BYTES, Piece, SLICE_BYTES, Tally, Work, failed, huge_mib, short_read,
};

/// Memory for buffers of an executor: twice what is in flight, because its allocator splits it in powers of two.
const IO_MEMORY_BYTES: usize = 2 * DEPTH * PIECE_BYTES;

/// Runs the loop on one executor per core.
pub fn run(work: &Arc<Work>) -> Result<(Tally, String)> {
    let cores = crate::work::cores().len();
    let shared = Arc::clone(work);
    let handles = LocalExecutorPoolBuilder::new(PoolPlacement::MaxSpread(cores, None))
        .io_memory(IO_MEMORY_BYTES)
        .on_all_shards(move || shard(shared))
        .map_err(|e| failed("glommio did not start", e.to_string()))?;
    let mut all = Tally::new();
    for joined in handles.join_all() {
        let joined = joined.map_err(|e| failed("an executor failed", e.to_string()))?;
        all.add(&joined?);
    }
    Ok((all, "its own ring flags and buffers".to_owned()))
}

async fn shard(work: Arc<Work>) -> Result<Tally> {
    let mut files = Vec::new();
    for path in &work.paths {
        let file = DmaFile::open(path).await;
        files.push(file.map_err(|e| failed("a file cannot be opened", e.to_string()))?);
    }
    let files = Rc::new(files);
    let mut tally = extract(&work, &files).await?;
    for file in Rc::into_inner(files).unwrap_or_default() {
        file.close()
            .await
            .map_err(|e| failed("a file cannot be closed", e.to_string()))?;
    }
    tally.huge_mib = huge_mib();
    Ok(tally)
}

/// Works on one piece after the other while the reads of the next are under way.
async fn extract(work: &Work, files: &Rc<Vec<DmaFile>>) -> Result<Tally> {
    let mut tally = Tally::new();
    let mut ahead = VecDeque::new();
    let fill = |ahead: &mut VecDeque<_>| {
        while ahead.len() < DEPTH
            && let Some(piece) = work.claim()
        {
            ahead.push_back(glommio::spawn_local(read(Rc::clone(files), piece)));
        }
    };
    fill(&mut ahead);
    while let Some(next) = ahead.pop_front() {
        let (buf, took) = next.await?;
        // The piece at hand waits until the next read is queued, so that the disk has work meanwhile.
        fill(&mut ahead);
        tally.count(buf.len(), took);
        if !work.hash {
            tally.see(&buf, false);
            continue;
        }
        for slice in buf.chunks(SLICE_BYTES) {
            tally.see(slice, true);
            glommio::yield_if_needed().await;
        }
    }
    Ok(tally)
}

async fn read(files: Rc<Vec<DmaFile>>, piece: Piece) -> Result<(ReadResult, Duration)> {
    let start = Instant::now();
    let read = files[piece.file]
        .read_at_aligned(piece.offset, piece.len)
        .await;
    let read = read.map_err(|e| failed("a read failed", e.to_string()))?;
    if read.len() != piece.len {
        return Err(short_read());
    }
    Ok((read, start.elapsed()))
}
