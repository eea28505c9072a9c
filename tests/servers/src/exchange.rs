//! One request and its reply over a connection of their own.

use std::io;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::message::Reply;
use crate::pipe::{AnyBody, boxed};

/// Sends a request to `address` and returns the reply, whose body is still on its way.
pub(crate) async fn exchange(
    address: &str,
    request: Request<AnyBody>,
) -> io::Result<Response<Incoming>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    exchange_over(stream, request).await
}

/// The same over a connection that exists.
pub(crate) async fn exchange_over<S>(
    stream: S,
    request: Request<AnyBody>,
) -> io::Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // Ends when the reply was read or dropped.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(io::Error::other)
}

/// Sends a request and waits for the whole reply.
pub(crate) async fn exchange_all<S>(stream: S, request: Request<Full<Bytes>>) -> io::Result<Reply>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let reply = exchange_over(stream, request.map(boxed)).await?;
    let (parts, body) = reply.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    Ok(Reply::of(&parts, &body))
}
