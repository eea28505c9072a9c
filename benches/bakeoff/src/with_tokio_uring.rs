//! The loop on tokio-uring, at its best: pinned threads, registered buffers, cooperative task work.
//!
//! Deferred task work is left out because reads never complete under it in tokio-uring 0.5.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mover_base::{Error, Kind, Result};
use tokio_uring::buf::fixed::{FixedBuf, FixedBufRegistry};
use tokio_uring::buf::{BoundedBuf, IoBuf, Slice};
use tokio_uring::fs::File;

use crate::work::{
    BUFFERS, DEPTH, Piece, ROOM_BYTES, SLICE_BYTES, Tally, Work, failed, huge_begin, huge_mib,
    short_read,
};

/// Entries of a shard's ring.
const RING_ENTRIES: u32 = 64;

/// Runs the loop on one thread per core.
pub fn run(work: &Arc<Work>) -> Result<(Tally, String)> {
    let threads: Vec<_> = crate::work::cores()
        .into_iter()
        .map(|core| {
            let work = Arc::clone(work);
            std::thread::spawn(move || {
                core_affinity::set_for_current(core);
                let mut ring = tokio_uring::uring_builder();
                ring.setup_coop_taskrun().setup_taskrun_flag();
                tokio_uring::builder()
                    .entries(RING_ENTRIES)
                    .uring_builder(&ring)
                    .start(shard(work))
            })
        })
        .collect();
    let mut all = Tally::new();
    let mut note = String::new();
    for thread in threads {
        let joined = thread
            .join()
            .map_err(|_| Error::new(Kind::Internal, "a thread panicked"))?;
        let (tally, text) = joined?;
        all.add(&tally);
        note = text;
    }
    Ok((all, note))
}

async fn shard(work: Arc<Work>) -> Result<(Tally, String)> {
    // Vectors are not aligned, so each has room to spare and a window on a huge page is used.
    let registry = FixedBufRegistry::new((0..BUFFERS).map(|_| vec![0_u8; ROOM_BYTES]));
    let registered = registry.register();
    let note = match &registered {
        Ok(()) => "CoopTaskrun, registered true".to_owned(),
        Err(error) => format!("CoopTaskrun, registered false ({error})"),
    };
    registered.map_err(|e| failed("buffers cannot be registered", e))?;
    let files: Rc<Vec<File>> = Rc::new(work.open()?.into_iter().map(File::from_std).collect());
    let mut free = Vec::new();
    for index in 0..BUFFERS {
        let buf = registry.check_out(index);
        free.push(buf.ok_or_else(|| Error::new(Kind::Internal, "a buffer is in use"))?);
    }
    let mut tally = extract(&work, &files, free).await?;
    registry
        .unregister()
        .map_err(|e| failed("buffers cannot be unregistered", e))?;
    tally.huge_mib = huge_mib();
    Ok((tally, note))
}

/// Works on one piece after the other while the reads of the next are under way.
async fn extract(work: &Work, files: &Rc<Vec<File>>, mut free: Vec<FixedBuf>) -> Result<Tally> {
    let mut tally = Tally::new();
    let mut ahead = VecDeque::new();
    let fill = |ahead: &mut VecDeque<_>, free: &mut Vec<FixedBuf>| {
        while ahead.len() < DEPTH
            && !free.is_empty()
            && let Some(piece) = work.claim()
            && let Some(buf) = free.pop()
        {
            ahead.push_back(tokio_uring::spawn(read(buf, Rc::clone(files), piece)));
        }
    };
    fill(&mut ahead, &mut free);
    while let Some(next) = ahead.pop_front() {
        let (window, len, took) = next.await.map_err(|e| failed("a task failed", e))??;
        // The piece at hand waits until the next read is queued, so that the disk has work meanwhile.
        fill(&mut ahead, &mut free);
        tally.count(len, took);
        if work.hash {
            for slice in window[..len].chunks(SLICE_BYTES) {
                tally.see(slice, true);
                tokio::task::yield_now().await;
            }
        } else {
            tally.see(&window[..len], false);
        }
        free.push(window.into_inner());
    }
    Ok(tally)
}

async fn read(
    buf: FixedBuf,
    files: Rc<Vec<File>>,
    piece: Piece,
) -> Result<(Slice<FixedBuf>, usize, Duration)> {
    let begin = huge_begin(IoBuf::stable_ptr(&buf));
    let start = Instant::now();
    let (read, window) = files[piece.file]
        .read_fixed_at(buf.slice(begin..begin + piece.len), piece.offset)
        .await;
    if read.map_err(|e| failed("a read failed", e))? != piece.len {
        return Err(short_read());
    }
    Ok((window, piece.len, start.elapsed()))
}
