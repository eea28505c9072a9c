//! Reading a file forward on a thread of its own, while what was read is worked on: past the page cache nobody else does.
//!
//! Invariants: bytes come in order and none is left out; at most [`PIECES`] pieces are in memory; an error comes where the
//! bytes would, and nothing behind it; the thread ends with the reader, and the reader waits for that.

use std::io;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use mover_base::BLOCK_BYTES;

use crate::aligned::AlignedBytes;

/// Bytes of one read: more than the kernel makes one request of, so that a disk has several at a time.
pub const AHEAD_BYTES: usize = 2 << 20;
/// Pieces that are being read, wait, or are worked on.
const PIECES: usize = 3;

/// A part of a file.
struct Piece {
    bytes: AlignedBytes,
    /// Place in the file of its first byte.
    first: u64,
    /// How much of it there is: less than a whole piece ends the file.
    filled: usize,
}

struct Channels {
    full: Receiver<io::Result<Piece>>,
    empty: SyncSender<AlignedBytes>,
}

/// A file that is read ahead.
pub struct Ahead {
    /// None only while it ends.
    channels: Option<Channels>,
    thread: Option<JoinHandle<()>>,
    piece: Option<Piece>,
}

impl Ahead {
    /// Begins to read `range` of a file, from the block on that it begins in. `read` fills an aligned buffer from an offset on,
    /// and returns how much there was: less than asked for means that the file ends there.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn begin(
        read: impl Fn(&mut [u8], u64) -> io::Result<usize> + Send + 'static,
        range: Range<u64>,
    ) -> io::Result<Self> {
        let (full_in, full) = sync_channel(PIECES);
        let (empty, empty_out) = sync_channel(PIECES);
        for _ in 0..PIECES {
            // Both ends are here, and there is room for all.
            let _ = empty.send(AlignedBytes::new(AHEAD_BYTES));
        }
        let from = range.start - range.start % BLOCK_BYTES as u64;
        let thread = std::thread::Builder::new()
            .name("read-ahead".to_owned())
            .spawn(move || read_all(&read, from..range.end, &full_in, &empty_out))?;
        Ok(Ahead {
            channels: Some(Channels { full, empty }),
            thread: Some(thread),
            piece: None,
        })
    }

    /// Fills `into` from `at` on, which is where the last call ended or, at the first, in the range. Returns how much there was:
    /// less than asked for means that the file or the range ends there.
    pub fn read(&mut self, into: &mut [u8], at: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            let Some(piece) = self.piece_at(at + done as u64)? else {
                break;
            };
            let skipped = (at + done as u64 - piece.first) as usize;
            let bytes = (piece.filled - skipped).min(into.len() - done);
            into[done..done + bytes].copy_from_slice(&piece.bytes[skipped..skipped + bytes]);
            done += bytes;
        }
        Ok(done)
    }

    /// The piece that holds the byte at `at`, if there is one.
    fn piece_at(&mut self, at: u64) -> io::Result<Option<&Piece>> {
        let holds = |piece: &Piece| at < piece.first + piece.filled as u64;
        while !self.piece.as_ref().is_some_and(holds) {
            let Some(channels) = &self.channels else {
                return Ok(None);
            };
            if let Some(read) = self.piece.take() {
                // A thread that has ended needs none.
                let _ = channels.empty.send(read.bytes);
            }
            match channels.full.recv() {
                Ok(next) => self.piece = Some(next?),
                Err(_) => return Ok(None),
            }
        }
        Ok(self.piece.as_ref())
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.channels = None;
        if let Some(thread) = self.thread.take() {
            // If it panicked, that was reported, and nothing is missing that anybody took.
            let _ = thread.join();
        }
    }
}

/// Reads `range` of the file piece by piece, until nobody takes them any more.
fn read_all(
    read: &dyn Fn(&mut [u8], u64) -> io::Result<usize>,
    range: Range<u64>,
    full: &SyncSender<io::Result<Piece>>,
    empty: &Receiver<AlignedBytes>,
) {
    for first in range.clone().step_by(AHEAD_BYTES) {
        let Ok(mut bytes) = empty.recv() else { return };
        let len = (range.end - first).min(AHEAD_BYTES as u64) as usize;
        let read = read(&mut bytes[..len], first);
        let is_last = !matches!(read, Ok(filled) if filled == len);
        let piece = read.map(|filled| Piece {
            bytes,
            first,
            filled,
        });
        if full.send(piece).is_err() || is_last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A file of numbered blocks that may fail from a place on, and remembers how far it was read.
    struct Numbered {
        len: u64,
        fails_at: Option<u64>,
        read_to: Mutex<u64>,
    }

    fn byte_at(at: u64) -> u8 {
        (at / 7 % 251) as u8
    }

    impl Numbered {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            assert_eq!(offset % BLOCK_BYTES as u64, 0);
            assert_eq!(buffer.as_ptr().align_offset(BLOCK_BYTES), 0);
            let end = self.len.min(offset + buffer.len() as u64);
            if self.fails_at.is_some_and(|at| end > at) {
                return Err(io::Error::other("bad sector"));
            }
            *self.read_to.lock().unwrap() = end;
            let bytes = end.saturating_sub(offset) as usize;
            for (at, byte) in (offset..end).zip(&mut *buffer) {
                *byte = byte_at(at);
            }
            Ok(bytes)
        }
    }

    fn numbered(len: u64, fails_at: Option<u64>) -> Arc<Numbered> {
        Arc::new(Numbered {
            len,
            fails_at,
            read_to: Mutex::new(0),
        })
    }

    fn begin(file: &Arc<Numbered>, range: Range<u64>) -> Ahead {
        let file = Arc::clone(file);
        Ahead::begin(move |buffer, at| file.read_at(buffer, at), range).unwrap()
    }

    const PIECE: u64 = AHEAD_BYTES as u64;

    #[test]
    fn bytes_come_in_order_from_any_place_to_any_end_in_steps_of_any_size() {
        let file = numbered(9 * PIECE, None);
        let ends = [PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 4096];
        for (start, end) in ends.iter().flat_map(|end| [(0, *end), (4099, *end)]) {
            for step in [4096, 100_003, 3 * AHEAD_BYTES] {
                let mut ahead = begin(&file, start..end);
                let mut buffer = vec![0; step];
                let mut at = start;
                loop {
                    let bytes = ahead.read(&mut buffer, at).unwrap();
                    let right = (at..).zip(&buffer[..bytes]);
                    assert!(right.into_iter().all(|(at, byte)| *byte == byte_at(at)));
                    at += bytes as u64;
                    if bytes < step {
                        break;
                    }
                }
                assert_eq!(at, end, "from {start} in steps of {step}");
            }
        }
    }

    #[test]
    fn a_file_that_ends_early_gives_what_it_has() {
        let mut ahead = begin(&numbered(PIECE + 10, None), 0..4 * PIECE);
        let mut buffer = vec![0; 3 * AHEAD_BYTES];
        assert_eq!(ahead.read(&mut buffer, 0).unwrap() as u64, PIECE + 10);
        assert_eq!(ahead.read(&mut buffer, PIECE + 10).unwrap(), 0);
    }

    #[test]
    fn an_error_comes_in_its_place_and_nothing_behind_it() {
        let mut ahead = begin(&numbered(9 * PIECE, Some(2 * PIECE)), 0..9 * PIECE);
        let mut buffer = vec![0; 2 * AHEAD_BYTES];
        assert_eq!(ahead.read(&mut buffer, 0).unwrap(), buffer.len());
        let error = ahead.read(&mut buffer[..1], 2 * PIECE).unwrap_err();
        assert_eq!(error.to_string(), "bad sector");
        assert_eq!(ahead.read(&mut buffer[..1], 2 * PIECE).unwrap(), 0);
    }

    #[test]
    fn no_more_is_read_than_was_asked_for_and_there_are_pieces() {
        let file = numbered(99 * PIECE, None);
        let mut ahead = begin(&file, 0..99 * PIECE);
        let mut buffer = vec![0; 10];
        assert_eq!(ahead.read(&mut buffer, 0).unwrap(), 10);
        drop(ahead);
        assert_eq!(Arc::strong_count(&file), 1, "the thread has ended");
        assert!(*file.read_to.lock().unwrap() <= PIECES as u64 * PIECE);
    }
}
