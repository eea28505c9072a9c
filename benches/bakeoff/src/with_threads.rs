//! The loop on plain threads that call `pread`: as many as the other engines have reads in flight.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use mover_base::{Error, Kind, Result};

use crate::work::{DEPTH, ROOM_BYTES, Tally, Work, failed, huge_begin, huge_mib, short_read};

/// Runs the loop on [`DEPTH`] threads per core.
pub fn run(work: &Arc<Work>) -> Result<(Tally, String)> {
    let count = crate::work::cores().len() * DEPTH;
    let threads: Vec<_> = (0..count)
        .map(|_| {
            let work = Arc::clone(work);
            std::thread::spawn(move || one(&work))
        })
        .collect();
    let mut all = Tally::new();
    for thread in threads {
        let joined = thread
            .join()
            .map_err(|_| Error::new(Kind::Internal, "a thread panicked"))?;
        all.add(&joined?);
    }
    Ok((all, format!("{count} threads")))
}

/// One thread's share.
fn one(work: &Work) -> Result<Tally> {
    let files = work.open()?;
    let mut tally = Tally::new();
    let mut room = vec![0_u8; ROOM_BYTES];
    let begin = huge_begin(room.as_ptr());
    while let Some(piece) = work.claim() {
        let buf = &mut room[begin..begin + piece.len];
        let start = Instant::now();
        let read = files[piece.file].read_at(buf, piece.offset);
        if read.map_err(|e| failed("a read failed", e))? != piece.len {
            return Err(short_read());
        }
        tally.count(piece.len, start.elapsed());
        tally.see(buf, work.hash);
    }
    tally.huge_mib = huge_mib();
    Ok(tally)
}
