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
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body, Frame, SizeHint};
use mover_base::checksum::Sha256;
use mover_base::hex;
use mover_io::{RateBudget, Shard};
use tokio::sync::mpsc;

use super::Place;
use super::chunked;
use super::location::Checksum;

/// Bytes that a body hands over at a time.
const STEP_BYTES: usize = 256 << 10;
/// The same under a rate limit: small enough that many connections share a slow link evenly.
const STEP_LIMITED_BYTES: usize = 16 << 10;
/// SHA-256 of nothing.
pub(super) const EMPTY_SHA256: &str =
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// The bytes of an object or of a part of one, with what is known about them.
#[derive(Debug, Clone, Default)]
pub(super) struct Payload {
    pub pieces: Vec<Bytes>,
    pub bytes: u64,
    pub hash: ContentHash,
    /// Where it was computed, over all pieces.
    pub crc32c: Option<u32>,
}

/// What is known of a payload that a signature can cover.
#[derive(Debug, Clone, Default)]
pub(super) enum ContentHash {
    /// Nothing: the transport protects it.
    #[default]
    None,
    /// SHA-256 over all pieces.
    Whole(Sha256),
    /// SHA-256 of each chunk; it travels in their frames.
    Chunks(Vec<Sha256>),
}

impl Payload {
    /// A checksum of it as S3 writes them, where it was computed.
    pub fn sum(&self, checksum: Checksum) -> Option<String> {
        match checksum {
            Checksum::None => None,
            Checksum::Crc32c => self.crc32c.map(|crc| BASE64.encode(crc.to_be_bytes())),
            Checksum::Sha256 => match &self.hash {
                ContentHash::Whole(sha256) => Some(BASE64.encode(sha256)),
                ContentHash::None | ContentHash::Chunks(_) => None,
            },
        }
    }

    /// The hashes of its chunks, if it travels in their frames.
    pub fn chunks(&self) -> Option<&[Sha256]> {
        match &self.hash {
            ContentHash::Chunks(hashes) => Some(hashes),
            ContentHash::None | ContentHash::Whole(_) => None,
        }
    }

    /// Announces it in a request's headers: how long it is, where the method allows for a body, and what binds it to the
    /// signature. Over TLS the transport does that already.
    pub fn announce(&self, has_length: bool, is_tls: bool, headers: &mut HeaderMap) {
        let (sent_bytes, content) = match &self.hash {
            ContentHash::Chunks(_) => {
                let encoding = HeaderValue::from_static("aws-chunked");
                headers.insert(header::CONTENT_ENCODING, encoding);
                headers.insert("x-amz-decoded-content-length", self.bytes.into());
                (
                    chunked::framed_bytes(self.bytes),
                    HeaderValue::from_static(chunked::CONTENT_SHA256),
                )
            }
            _ if self.bytes == 0 => (0, HeaderValue::from_static(EMPTY_SHA256)),
            ContentHash::Whole(sha256) => (self.bytes, hashed(sha256)),
            ContentHash::None => {
                debug_assert!(is_tls, "an unsigned body without TLS");
                (self.bytes, HeaderValue::from_static("UNSIGNED-PAYLOAD"))
            }
        };
        if has_length {
            headers.insert(header::CONTENT_LENGTH, sent_bytes.into());
        }
        headers.insert("x-amz-content-sha256", content);
    }
}

/// A hash as the value of a header.
fn hashed(sha256: &Sha256) -> HeaderValue {
    // Digits are always valid; were they not, the server would refuse what does not match.
    HeaderValue::from_str(&hex::encode(sha256)).unwrap_or(HeaderValue::from_static(EMPTY_SHA256))
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
    place: Arc<Place>,
}

enum Source {
    Pieces(VecDeque<Bytes>),
    Paced(mpsc::Receiver<Bytes>),
}

impl PayloadBody {
    /// A body of `pieces`, slowed down to the place's limit where it has one.
    pub fn new(
        shard: &Shard,
        pieces: VecDeque<Bytes>,
        place: &Arc<Place>,
        progress: &Arc<Progress>,
    ) -> Self {
        let budget = &place.limits.upload;
        let bytes: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        let source = match budget.is_unlimited() {
            true => Source::Pieces(pieces),
            false => Source::Paced(pace(shard, pieces, budget, progress)),
        };
        if bytes == 0 {
            progress.all_handed_over.store(true, Relaxed);
        }
        PayloadBody {
            source,
            bytes_left: bytes,
            progress: Arc::clone(progress),
            place: Arc::clone(place),
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
        self.place.traffic.add_sent(step.len() as u64);
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
