//! Bodies that are passed on while they arrive: as they are, or only in part.
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

/// How long what was passed on may take to reach the socket before the connection is closed.
const FLUSH_TIME: Duration = Duration::from_millis(50);

/// How many pieces of a slowed body come in a second, if it has so many bytes in one.
const SLOW_PIECES: u64 = 8;

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

/// The first `bytes` of a body, which then ends in this way. Must be called in a runtime.
pub(crate) fn cut<B>(body: B, bytes: u64, how: Cut) -> AnyBody
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (to, from) = mpsc::channel(1);
    tokio::spawn(pump(boxed(body), to, bytes, how));
    Piped(from).boxed_unsync()
}

/// The whole of a body at so many bytes a second. Must be called in a runtime.
pub(crate) fn slowed<B>(body: B, bytes_per_second: u64) -> AnyBody
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (to, from) = mpsc::channel(1);
    tokio::spawn(trickle(boxed(body), to, bytes_per_second));
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

async fn pump(
    mut body: AnyBody,
    to: mpsc::Sender<Result<Frame<Bytes>, BoxError>>,
    mut left: u64,
    how: Cut,
) {
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
        data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left -= data.len() as u64;
        if !data.is_empty() && to.send(Ok(Frame::data(data))).await.is_err() {
            return;
        }
    }
    match how {
        Cut::Close => {
            tokio::time::sleep(FLUSH_TIME).await;
            let _ = to.send(Err("the body was cut off on purpose".into())).await;
        }
        Cut::Hang => to.closed().await,
    }
}

async fn trickle(
    mut body: AnyBody,
    to: mpsc::Sender<Result<Frame<Bytes>, BoxError>>,
    bytes_per_second: u64,
) {
    let piece = usize::try_from(bytes_per_second / SLOW_PIECES).unwrap_or(usize::MAX);
    let piece = piece.max(1);
    let seconds = piece as f64 / bytes_per_second as f64;
    let pause = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    while let Some(frame) = body.frame().await {
        let mut data = match frame {
            Ok(frame) => frame.into_data().unwrap_or_default(),
            Err(error) => {
                let _ = to.send(Err(error)).await;
                return;
            }
        };
        while !data.is_empty() {
            let next = data.split_to(data.len().min(piece));
            tokio::time::sleep(pause).await;
            if to.send(Ok(Frame::data(next))).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use tokio::time::Instant;

    use super::*;

    /// By a clock that moves only where everybody waits for it, so the times are exact.
    #[tokio::test(start_paused = true)]
    async fn a_slowed_body_comes_whole_in_even_pieces_at_its_rate() {
        const RATE: u64 = 8000;
        let whole: Vec<u8> = (0..4500_u32).map(|at| at as u8).collect();
        let begun = Instant::now();
        let mut body = slowed(Full::new(Bytes::from(whole.clone())), RATE);
        let (mut got, mut pieces) = (Vec::new(), Vec::new());
        while let Some(frame) = body.frame().await {
            let data = frame.expect("a piece").into_data().expect("data");
            got.extend_from_slice(&data);
            pieces.push((data.len(), begun.elapsed().as_millis()));
        }
        assert_eq!(got, whole);
        let expected = [
            (1000, 125),
            (1000, 250),
            (1000, 375),
            (1000, 500),
            (500, 625),
        ];
        assert_eq!(pieces, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_slower_than_its_pieces_comes_byte_by_byte() {
        let begun = Instant::now();
        let mut body = slowed(Full::new(Bytes::from_static(b"abc")), 2);
        let mut times = Vec::new();
        while let Some(frame) = body.frame().await {
            let data = frame.expect("a piece").into_data().expect("data");
            assert_eq!(data.len(), 1);
            times.push(begun.elapsed().as_millis());
        }
        assert_eq!(times, [500, 1000, 1500]);
    }
}
