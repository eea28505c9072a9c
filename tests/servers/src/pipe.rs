//! Bodies that are passed on while they arrive: as they are, slowly, or only in part.
//!
//! Invariants: no more than one piece is held; who passes on stops when nobody reads any more.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame};
use tokio::sync::mpsc;

/// What ends a body before its end.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Any body.
pub(crate) type AnyBody = UnsyncBoxBody<Bytes, BoxError>;

/// The most that a slowed body passes on at a time.
const PIECE_BYTES: usize = 16 * 1024;

/// How long what was passed on may take to reach the socket before the connection is closed.
const FLUSH_TIME: Duration = Duration::from_millis(50);

/// How a body is passed on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Shape {
    /// Bytes a second; none: as fast as they come.
    pub(crate) rate: Option<u64>,
    /// After how many bytes it ends early, and how.
    pub(crate) cut: Option<(u64, Cut)>,
}

/// How a body ends early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// With an error, which closes the connection.
    Close,
    /// Never: nothing more comes.
    Hang,
}

/// Any body as the one type that all share.
pub(crate) fn boxed<B>(body: B) -> AnyBody
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

/// The same body in another shape. Must be called in a runtime.
pub(crate) fn shaped<B>(body: B, shape: Shape) -> AnyBody
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (to, from) = mpsc::channel(1);
    tokio::spawn(pump(boxed(body), to, shape));
    Piped(from).boxed_unsync()
}

/// A body that a task fills.
struct Piped(mpsc::Receiver<Result<Frame<Bytes>, BoxError>>);

impl Body for Piped {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.poll_recv(cx)
    }
}

async fn pump(mut body: AnyBody, to: mpsc::Sender<Result<Frame<Bytes>, BoxError>>, shape: Shape) {
    let mut left = shape.cut.map_or(u64::MAX, |(bytes, _)| bytes);
    while left > 0 {
        let mut data = match body.frame().await {
            None => return,
            Some(Err(error)) => {
                let _ = to.send(Err(error)).await;
                return;
            }
            // Trailers are of no use to S3.
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
        };
        while !data.is_empty() && left > 0 {
            let most = if shape.rate.is_some() {
                PIECE_BYTES
            } else {
                data.len()
            };
            let most = most.min(usize::try_from(left).unwrap_or(usize::MAX));
            let piece = data.split_to(most.min(data.len()));
            let bytes = piece.len() as u64;
            left -= bytes;
            if to.send(Ok(Frame::data(piece))).await.is_err() {
                return;
            }
            if let Some(rate) = shape.rate {
                let micros = bytes.saturating_mul(1_000_000) / rate.max(1);
                tokio::time::sleep(Duration::from_micros(micros)).await;
            }
        }
    }
    match shape.cut {
        Some((_, Cut::Close)) => {
            tokio::time::sleep(FLUSH_TIME).await;
            let _ = to.send(Err("the body was cut off on purpose".into())).await;
        }
        Some((_, Cut::Hang)) => to.closed().await,
        None => {}
    }
}
