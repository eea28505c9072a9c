//! The loop on the mover's own shards.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mover_base::Result;
use mover_io::{Access, Buf, File, Rung, Shard, ShardConfig};

use crate::work::{
    BUFFERS, DEPTH, PIECE_BYTES, Piece, SLICE_BYTES, Tally, Work, failed, huge_mib, short_read,
};

/// Runs the loop with `rung` as the highest to try; the note says what was in use.
pub fn run(work: &Arc<Work>, rung: Rung) -> Result<(Tally, String)> {
    let config = ShardConfig {
        top_rung: rung,
        arena_bytes: BUFFERS * PIECE_BYTES,
        ..ShardConfig::default()
    };
    let body = async |shard: Shard| {
        let files = work
            .open()?
            .into_iter()
            .map(|file| shard.file(file.into(), Access::Direct))
            .collect::<std::io::Result<Vec<File>>>()
            .map_err(|e| failed("a file cannot be taken over", e))?;
        let mut tally = extract(&shard, work, &Rc::new(files)).await?;
        tally.huge_mib = huge_mib();
        let report = shard.report();
        let note = format!(
            "{:?}, registered {}",
            report.rung, report.buffers_registered
        );
        Ok((tally, note))
    };
    let mut all = Tally::new();
    let mut note = String::new();
    for (tally, text) in mover_io::run(&config, body, |_| {})? {
        all.add(&tally);
        // One shard's words: the settings are the same.
        note = text;
    }
    Ok((all, note))
}

/// Works on one piece after the other while the reads of the next are under way.
async fn extract(shard: &Shard, work: &Work, files: &Rc<Vec<File>>) -> Result<Tally> {
    let mut tally = Tally::new();
    let mut ahead = VecDeque::new();
    let fill = |ahead: &mut VecDeque<_>| {
        while ahead.len() < DEPTH
            && let Some(piece) = work.claim()
        {
            ahead.push_back(shard.spawn(read(shard.clone(), Rc::clone(files), piece)));
        }
    };
    fill(&mut ahead);
    while let Some(next) = ahead.pop_front() {
        let (buf, len, took) = next.await.map_err(|e| failed("a task failed", e))??;
        // The piece at hand waits until the next read is queued, so that the disk has work meanwhile.
        fill(&mut ahead);
        tally.count(len, took);
        if !work.hash {
            tally.see(&buf[..len], false);
            continue;
        }
        for slice in buf[..len].chunks(SLICE_BYTES) {
            tally.see(slice, true);
            shard.turn().await;
        }
    }
    Ok(tally)
}

async fn read(shard: Shard, files: Rc<Vec<File>>, piece: Piece) -> Result<(Buf, usize, Duration)> {
    let buf = shard.buffer().await;
    let start = Instant::now();
    let (read, buf) = files[piece.file]
        .read_at(buf, piece.offset, piece.len)
        .await;
    if read.map_err(|e| failed("a read failed", e))? != piece.len {
        return Err(short_read());
    }
    Ok((buf, piece.len, start.elapsed()))
}
