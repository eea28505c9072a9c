//! What a request carries: pieces of bytes that a retry can send again, at the pace of a budget.
//!
//! Invariants: a payload never changes once made, so every try sends the same bytes and the same checksums; a
//! body reports each step it hands over, so that a request which stands still can be told from a slow one.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use mover_base::checksum::Sha256;
use mover_io::{RateBudget, Shard};
use tokio::sync::mpsc;

use super::location::Checksum;

/// Bytes that a body hands over at a time.
const STEP_BYTES: usize = 256 << 10;
/// The same under a rate limit: small enough that many connections share a slow link evenly.
const STEP_LIMITED_BYTES: usize = 16 << 10;

/// The bytes of an object or of a part of one, with what is known about them.
#[derive(Debug, Clone, Default)]
pub(super) struct Payload {
    pub pieces: Vec<Bytes>,
    pub bytes: u64,
    /// Where it was computed, over all pieces.
    pub sha256: Option<Sha256>,
    /// Where it was computed, over all pieces.
    pub crc32c: Option<u32>,
}

impl Payload {
    /// A checksum of it as S3 writes them, where it was computed.
    pub fn sum(&self, checksum: Checksum) -> Option<String> {
        match checksum {
            Checksum::None => None,
            Checksum::Crc32c => self.crc32c.map(|crc| BASE64.encode(crc.to_be_bytes())),
            Checksum::Sha256 => self.sha256.map(|sha256| BASE64.encode(sha256)),
        }
    }
}

/// How far one try has come. Shared by the body, which the connection owns, and the one who waits.
#[derive(Debug, Default)]
pub(super) struct Progress {
    steps: AtomicU64,
    /// The budget holds the body back: standing still is no fault now.
    held_back: AtomicBool,
    all_handed_over: AtomicBool,
}

impl Progress {
    pub fn step(&self) {
        self.steps.fetch_add(1, Relaxed);
    }

    pub fn hold_back(&self, yes: bool) {
        self.held_back.store(yes, Relaxed);
    }

    /// Steps so far, or `None` while the budget holds the request back.
    pub fn steps(&self) -> Option<u64> {
        (!self.held_back.load(Relaxed)).then(|| self.steps.load(Relaxed))
    }

    /// Whether the whole body was given to the connection.
    pub fn is_handed_over(&self) -> bool {
        self.all_handed_over.load(Relaxed)
    }
}

/// A body of known length.
pub(super) struct PayloadBody {
    source: Source,
    bytes_left: u64,
    progress: Arc<Progress>,
}

enum Source {
    Pieces(VecDeque<Bytes>),
    Paced(mpsc::Receiver<Bytes>),
}

impl PayloadBody {
    /// A body of `payload`, slowed down to `budget` where that has a limit.
    pub fn new(
        shard: &Shard,
        payload: &Payload,
        budget: &Arc<RateBudget>,
        progress: &Arc<Progress>,
    ) -> Self {
        let pieces: VecDeque<Bytes> = payload.pieces.iter().cloned().collect();
        let source = match budget.is_unlimited() {
            true => Source::Pieces(pieces),
            false => Source::Paced(pace(shard, pieces, budget, progress)),
        };
        if payload.bytes == 0 {
            progress.all_handed_over.store(true, Relaxed);
        }
        PayloadBody {
            source,
            bytes_left: payload.bytes,
            progress: Arc::clone(progress),
        }
    }
}

/// A task that hands pieces over as the budget allows. It ends with the body that listens to it.
fn pace(
    shard: &Shard,
    pieces: VecDeque<Bytes>,
    budget: &Arc<RateBudget>,
    progress: &Arc<Progress>,
) -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(1);
    let (own, budget, progress) = (shard.clone(), Arc::clone(budget), Arc::clone(progress));
    shard.spawn(async move {
        for mut piece in pieces {
            while !piece.is_empty() {
                let step = piece.split_to(piece.len().min(STEP_LIMITED_BYTES));
                progress.hold_back(true);
                own.throttle(&budget, step.len() as u64).await;
                progress.hold_back(false);
                if sender.send(step).await.is_err() {
                    return;
                }
            }
        }
    });
    receiver
}

impl Body for PayloadBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let step = match &mut self.source {
            Source::Paced(receiver) => match receiver.poll_recv(cx) {
                Poll::Ready(step) => step,
                Poll::Pending => return Poll::Pending,
            },
            Source::Pieces(pieces) => {
                while pieces.front().is_some_and(Bytes::is_empty) {
                    pieces.pop_front();
                }
                pieces
                    .front_mut()
                    .map(|piece| piece.split_to(piece.len().min(STEP_BYTES)))
            }
        };
        self.progress.step();
        let Some(step) = step else {
            return Poll::Ready(None);
        };
        self.bytes_left = self.bytes_left.saturating_sub(step.len() as u64);
        if self.bytes_left == 0 {
            self.progress.all_handed_over.store(true, Relaxed);
        }
        Poll::Ready(Some(Ok(Frame::data(step))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes_left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes_left)
    }
}
