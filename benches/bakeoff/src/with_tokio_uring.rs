//! The loop on tokio-uring, at its best: pinned threads, registered buffers, cooperative task work.
//!
//! Deferred task work is left out because reads never complete under it in tokio-uring 0.5.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use mover_base::{Error, Kind, Result};
use tokio_uring::buf::fixed::{FixedBuf, FixedBufRegistry};
use tokio_uring::buf::{BoundedBuf, IoBuf};
use tokio_uring::fs::File;

use crate::work::{
    DEPTH, ROOM_BYTES, SLICE_BYTES, Tally, Work, failed, huge_begin, huge_mib, short_read,
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
    let registry = FixedBufRegistry::new((0..DEPTH).map(|_| vec![0_u8; ROOM_BYTES]));
    let registered = registry.register();
    let note = match &registered {
        Ok(()) => "CoopTaskrun, registered true".to_owned(),
        Err(error) => format!("CoopTaskrun, registered false ({error})"),
    };
    registered.map_err(|e| failed("buffers cannot be registered", e))?;
    let files: Rc<Vec<File>> = Rc::new(work.open()?.into_iter().map(File::from_std).collect());
    let tally = Rc::new(RefCell::new(Tally::new()));
    let tasks: Vec<_> = (0..DEPTH)
        .map(|index| {
            let buf = registry.check_out(index);
            tokio_uring::spawn(task(
                buf,
                Arc::clone(&work),
                Rc::clone(&files),
                Rc::clone(&tally),
            ))
        })
        .collect();
    for task in tasks {
        task.await.map_err(|e| failed("a task failed", e))??;
    }
    registry
        .unregister()
        .map_err(|e| failed("buffers cannot be unregistered", e))?;
    let note = format!("{note}, huge pages {} MiB", huge_mib());
    Ok((tally.replace(Tally::new()), note))
}

async fn task(
    buf: Option<FixedBuf>,
    work: Arc<Work>,
    files: Rc<Vec<File>>,
    tally: Rc<RefCell<Tally>>,
) -> Result<()> {
    let mut buf = buf.ok_or_else(|| Error::new(Kind::Internal, "a buffer is in use"))?;
    let begin = huge_begin(IoBuf::stable_ptr(&buf));
    while let Some(piece) = work.claim() {
        let start = Instant::now();
        let (read, window) = files[piece.file]
            .read_fixed_at(buf.slice(begin..begin + piece.len), piece.offset)
            .await;
        if read.map_err(|e| failed("a read failed", e))? != piece.len {
            return Err(short_read());
        }
        tally.borrow_mut().count(piece.len, start.elapsed());
        if work.hash {
            for slice in window[..piece.len].chunks(SLICE_BYTES) {
                tally.borrow_mut().see(slice, true);
                tokio::task::yield_now().await;
            }
        } else {
            tally.borrow_mut().see(&window[..piece.len], false);
        }
        buf = window.into_inner();
    }
    Ok(())
}
