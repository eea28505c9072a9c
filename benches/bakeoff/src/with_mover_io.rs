//! The loop on the mover's own shards.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use mover_base::Result;
use mover_io::{Access, File, Rung, Shard, ShardConfig};

use crate::work::{DEPTH, PIECE_BYTES, SLICE_BYTES, Tally, Work, failed, huge_mib, short_read};

/// Runs the loop with `rung` as the highest to try; the note says what was in use.
pub fn run(work: &Arc<Work>, rung: Rung) -> Result<(Tally, String)> {
    let config = ShardConfig {
        top_rung: rung,
        arena_bytes: DEPTH * PIECE_BYTES,
        ..ShardConfig::default()
    };
    let body = async |shard: Shard| {
        let tally = Rc::new(RefCell::new(Tally::new()));
        let files = work
            .open()?
            .into_iter()
            .map(|file| shard.file(file.into(), Access::Direct))
            .collect::<std::io::Result<Vec<File>>>()
            .map_err(|e| failed("a file cannot be taken over", e))?;
        let files = Rc::new(files);
        let tasks: Vec<_> = (0..DEPTH)
            .map(|_| {
                shard.spawn(task(
                    shard.clone(),
                    Arc::clone(work),
                    Rc::clone(&files),
                    Rc::clone(&tally),
                ))
            })
            .collect();
        for task in tasks {
            task.await.map_err(|e| failed("a task failed", e))??;
        }
        let report = shard.report();
        let note = format!(
            "{:?}, registered {}, huge pages {} MiB",
            report.rung,
            report.buffers_registered,
            huge_mib()
        );
        Ok((tally.replace(Tally::new()), note))
    };
    let mut all = Tally::new();
    let mut notes = Vec::new();
    for (tally, note) in mover_io::run(&config, body, |_| {})? {
        all.add(&tally);
        notes.push(note);
    }
    // One shard's words: the settings are the same, and the process has the most huge pages at the end.
    notes.sort_by_key(String::len);
    Ok((all, notes.pop().unwrap_or_default()))
}

async fn task(
    shard: Shard,
    work: Arc<Work>,
    files: Rc<Vec<File>>,
    tally: Rc<RefCell<Tally>>,
) -> Result<()> {
    while let Some(piece) = work.claim() {
        let buf = shard.buffer().await;
        let start = Instant::now();
        let (read, buf) = files[piece.file]
            .read_at(buf, piece.offset, piece.len)
            .await;
        if read.map_err(|e| failed("a read failed", e))? != piece.len {
            return Err(short_read());
        }
        tally.borrow_mut().count(piece.len, start.elapsed());
        if !work.hash {
            tally.borrow_mut().see(&buf[..piece.len], false);
            continue;
        }
        for slice in buf[..piece.len].chunks(SLICE_BYTES) {
            tally.borrow_mut().see(slice, true);
            shard.turn().await;
        }
    }
    Ok(())
}
