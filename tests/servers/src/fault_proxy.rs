//! A proxy between a client and a server which does to requests what the network and overloaded servers do.
//!
//! It understands HTTP/1.1 and nothing of S3. The `Host` field goes upstream as it came, so signatures made for the
//! proxy's address hold. Each request travels upstream on a connection of its own. Towards clients it may speak TLS, so
//! that what breaks is the encrypted connection.
//!
//! Invariants: a request that no fault hits passes unchanged, streamed; a fault that hits is counted; if upstream cannot
//! be reached or breaks off, the client's connection is reset; what is held of a body is at most [`HELD_MAX`]; no more
//! than [`HOLDS_MAX`] requests are held back at a time.

use std::fmt;
use std::future::pending;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, CONTENT_LENGTH, HeaderName, RANGE, TRANSFER_ENCODING};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use crate::certificate::{self, Tls};
use crate::exchange::exchange;
use crate::fault::{Action, Armed, Fault};
use crate::message::{Reply, error_xml};
use crate::pipe::{AnyBody, Cut, boxed, cut, slowed};
use crate::serve::{Line, Scissors, Server};

/// The longest body that is held whole, which only [`Action::Duplicate`], [`Action::Hold`] and [`Action::Hide`] need.
const HELD_MAX: usize = 64 * 1024 * 1024;

/// How many requests are held back at a time; further ones break.
const HOLDS_MAX: usize = 16;

/// How many requests [`FaultProxy::seen`] remembers.
const SEEN_MAX: usize = 100_000;

/// A running proxy; it stops when dropped.
#[derive(Debug)]
pub struct FaultProxy {
    server: Server,
    scheme: &'static str,
    shared: Arc<Shared>,
}

/// Names a fault that was injected into a proxy: its place in the order of injection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultId(usize);

#[derive(Debug)]
struct Shared {
    upstream: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    faults: Vec<Armed>,
    seen: Vec<String>,
    ranges: Vec<String>,
    signed: Vec<String>,
    /// Requests that are held back: each wants to know where its answer's status is to go.
    held: Vec<oneshot::Sender<Sender<u16>>>,
}

/// The client's connection is to be reset.
#[derive(Debug)]
struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection is broken on purpose")
    }
}

impl std::error::Error for Broken {}

impl FaultProxy {
    /// Starts a proxy without faults before `upstream`, which is `host:port` or `http://host:port`.
    pub fn start(upstream: &str) -> Self {
        Self::start_with(upstream, None)
    }

    /// The same with TLS towards clients, who may trust the authority whose certificate is written to `ca_file`.
    pub fn start_tls(upstream: &str, ca_file: &Path) -> Self {
        let tls = TlsAcceptor::from(certificate::for_loopback(Tls::Signed, ca_file));
        Self::start_with(upstream, Some(tls))
    }

    fn start_with(upstream: &str, tls: Option<TlsAcceptor>) -> Self {
        let shared = Arc::new(Shared {
            upstream: host_and_port(upstream),
            state: Mutex::default(),
        });
        let scheme = if tls.is_some() { "https" } else { "http" };
        let for_connections = Arc::clone(&shared);
        let server = Server::start("fault-proxy", move |stream| {
            connection(stream, tls.clone(), Arc::clone(&for_connections))
        });
        FaultProxy {
            server,
            scheme,
            shared,
        }
    }

    /// `http://127.0.0.1:PORT`, or `https://` with TLS.
    pub fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.server.address())
    }

    /// Adds a fault. Of several that match a request, the one that was added first hits.
    pub fn inject(&self, fault: Fault) -> FaultId {
        let mut state = self.shared.state();
        state.faults.push(Armed::new(fault));
        FaultId(state.faults.len() - 1)
    }

    /// How many requests a fault has hit.
    pub fn hits(&self, id: FaultId) -> u64 {
        self.shared.state().faults[id.0].hits
    }

    /// The requests that have arrived, as `METHOD /path?query`, the first 100,000 of them.
    pub fn seen(&self) -> Vec<String> {
        self.shared.state().seen.clone()
    }

    /// The `Range` fields of those of them that have one.
    pub fn ranges(&self) -> Vec<String> {
        self.shared.state().ranges.clone()
    }

    /// What the signatures of those of them that say it cover: their `x-amz-content-sha256` fields.
    pub fn signed(&self) -> Vec<String> {
        self.shared.state().signed.clone()
    }

    /// How many requests are held back.
    pub fn held(&self) -> usize {
        self.shared.state().held.len()
    }

    /// Lets the requests that are held back go upstream, and waits until each was answered there, or broke. Returns the
    /// statuses of the answers.
    pub fn release(&self) -> Vec<u16> {
        let held = std::mem::take(&mut self.shared.state().held);
        let (sender, statuses) = channel();
        for request in held {
            let _ = request.send(sender.clone());
        }
        drop(sender);
        statuses.iter().collect()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while it is held")
    }

    /// Remembers a request and says what happens to it.
    fn decide(&self, request: &Request<Incoming>) -> Option<Action> {
        let mut state = self.state();
        if state.seen.len() < SEEN_MAX {
            let seen = format!("{} {}", request.method(), request.uri());
            state.seen.push(seen);
            let text = |name| {
                let field = request.headers().get(name)?;
                Some(String::from_utf8_lossy(field.as_bytes()).into_owned())
            };
            state.ranges.extend(text(RANGE));
            let content = HeaderName::from_static("x-amz-content-sha256");
            state.signed.extend(text(content));
        }
        let method = request.method().as_str();
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or(""));
        let mut faults = state.faults.iter_mut();
        faults.find_map(|armed| armed.action(method, path, query))
    }
}

fn host_and_port(upstream: &str) -> String {
    let bare = upstream.trim_start_matches("http://").trim_end_matches('/');
    assert!(
        !bare.contains('/'),
        "{upstream} is neither host:port nor http://host:port"
    );
    bare.to_owned()
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let (line, scissors) = Line::new(stream);
    match tls {
        None => serve(line, scissors, shared).await,
        Some(tls) => {
            if let Ok(stream) = tls.accept(line).await {
                serve(stream, scissors, shared).await;
            }
        }
    }
}

async fn serve<S>(stream: S, scissors: Scissors, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| answer(Arc::clone(&shared), scissors.clone(), request));
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    shared: Arc<Shared>,
    scissors: Scissors,
    request: Request<Incoming>,
) -> Result<Response<AnyBody>, Broken> {
    let upstream = &shared.upstream;
    let outcome = match shared.decide(&request) {
        None => forward(upstream, request.map(boxed))
            .await
            .map(|reply| reply.map(boxed)),
        Some(action) => carry_out(&shared, action, request).await,
    };
    if outcome.is_err() {
        scissors.reset_at_end();
    }
    outcome
}

async fn carry_out(
    shared: &Shared,
    action: Action,
    request: Request<Incoming>,
) -> Result<Response<AnyBody>, Broken> {
    let upstream = &shared.upstream;
    match action {
        Action::ResetBeforeRequest => Err(Broken),
        Action::ResetAfterRequestBytes(bytes) => {
            let request = request.map(|body| cut(body, bytes, Cut::Close));
            // If the body was shorter, there may be a reply; it is lost.
            let _ = forward_whole(upstream, request).await;
            Err(Broken)
        }
        Action::LostReply => {
            forward_whole(upstream, request.map(boxed)).await?;
            Err(Broken)
        }
        Action::Answer(reply) => {
            drain(request).await?;
            Ok(reply.into_response().map(boxed))
        }
        Action::ErrorIn200(code) => {
            forward_whole(upstream, request.map(boxed)).await?;
            let reply = Reply::new(200, error_xml(&code, "injected by a test"));
            Ok(reply
                .with("content-type", "application/xml")
                .into_response()
                .map(boxed))
        }
        Action::TruncateReply(bytes) => cut_reply(upstream, request, bytes, Cut::Close).await,
        Action::SlowRequest(rate) => {
            let request = request.map(|body| slowed(body, rate));
            Ok(forward(upstream, request).await?.map(boxed))
        }
        Action::SlowReply(rate) => {
            let reply = forward(upstream, request.map(boxed)).await?;
            Ok(reply.map(|body| slowed(body, rate)))
        }
        Action::StallReply(bytes) => cut_reply(upstream, request, bytes, Cut::Hang).await,
        Action::Duplicate => duplicate(upstream, request).await,
        Action::Stall => {
            drain(request).await?;
            pending().await
        }
        Action::SilentReply => {
            forward_whole(upstream, request.map(boxed)).await?;
            pending().await
        }
        Action::Hold => {
            let answered = hold(shared, request).await?;
            let status = answered.await.map_err(|_| Broken)?;
            // No success of S3 is without one.
            let reply = Reply::new(status, "").with("etag", "\"held\"");
            Ok(reply.into_response().map(boxed))
        }
        Action::Hide(keys) => hide(upstream, request, &keys).await,
        Action::Dated(date) => {
            let mut reply = forward(upstream, request.map(boxed)).await?;
            let date = date.parse().map_err(|_| Broken)?;
            reply.headers_mut().insert(hyper::header::DATE, date);
            Ok(reply.map(boxed))
        }
        Action::Delay(time) => {
            let forwarded = forward(upstream, request.map(boxed));
            Ok(after(time, forwarded).await?.map(boxed))
        }
    }
}

/// Passes a request on and returns the reply while its body is still on its way.
async fn forward(
    upstream: &str,
    mut request: Request<AnyBody>,
) -> Result<Response<Incoming>, Broken> {
    // They concern the connection to the client only.
    request.headers_mut().remove(CONNECTION);
    let mut reply = exchange(upstream, request).await.map_err(|_| Broken)?;
    reply.headers_mut().remove(CONNECTION);
    reply.headers_mut().remove(TRANSFER_ENCODING);
    Ok(reply)
}

/// Passes a request on and waits until all of the reply has come.
async fn forward_whole(upstream: &str, request: Request<AnyBody>) -> Result<(), Broken> {
    let reply = forward(upstream, request).await?;
    drain_body(reply.into_body()).await
}

async fn cut_reply(
    upstream: &str,
    request: Request<Incoming>,
    bytes: u64,
    how: Cut,
) -> Result<Response<AnyBody>, Broken> {
    let head = request.method() == hyper::Method::HEAD;
    let reply = forward(upstream, request.map(boxed)).await?;
    let whole = reply.body().size_hint().exact();
    if head || whole == Some(0) {
        // There is no body to end early: the whole reply is what does not come.
        return match how {
            Cut::Close => Err(Broken),
            Cut::Hang => pending().await,
        };
    }
    let bytes = whole.map_or(bytes, |whole| bytes.min(whole - 1));
    Ok(reply.map(|body| cut(body, bytes, how)))
}

async fn duplicate(
    upstream: &str,
    request: Request<Incoming>,
) -> Result<Response<AnyBody>, Broken> {
    let request = whole(request).await?;
    let again = || request.clone().map(boxed);
    forward_whole(upstream, again()).await?;
    Ok(forward(upstream, again()).await?.map(boxed))
}

/// Passes a request on, and leaves the entries of these keys out of the listing that comes back.
async fn hide(
    upstream: &str,
    request: Request<Incoming>,
    keys: &[String],
) -> Result<Response<AnyBody>, Broken> {
    let (mut head, body) = forward(upstream, request.map(boxed)).await?.into_parts();
    let body = Limited::new(body, HELD_MAX).collect().await;
    let body = body.map_err(|_| Broken)?.to_bytes();
    head.headers.remove(CONTENT_LENGTH);
    let left = without(&String::from_utf8_lossy(&body), keys);
    Ok(Response::from_parts(head, boxed(Full::new(left.into()))))
}

/// A listing without the entries whose keys contain one of these.
fn without(listing: &str, keys: &[String]) -> String {
    const END: &str = "</Contents>";
    let is_hidden = |entry: &str| {
        let key = entry.split_once("<Key>").map_or("", |(_, rest)| rest);
        let key = key.split("</Key>").next().unwrap_or("");
        keys.iter().any(|hidden| key.contains(hidden.as_str()))
    };
    let mut left = String::new();
    let mut rest = listing;
    while let Some(begin) = rest.find("<Contents>") {
        let entry = &rest[begin..];
        let end = entry.find(END).map_or(entry.len(), |at| at + END.len());
        left.push_str(&rest[..begin]);
        if !is_hidden(&entry[..end]) {
            left.push_str(&entry[..end]);
        }
        rest = &entry[end..];
    }
    left + rest
}

/// Takes a request and leaves it with a task that waits to be told to send it. Returns where the status of its answer
/// will come from.
async fn hold(
    shared: &Shared,
    request: Request<Incoming>,
) -> Result<oneshot::Receiver<u16>, Broken> {
    let request = whole(request).await?;
    let (sender, told) = oneshot::channel::<Sender<u16>>();
    {
        let mut state = shared.state();
        if state.held.len() >= HOLDS_MAX {
            return Err(Broken);
        }
        state.held.push(sender);
    }
    let upstream = shared.upstream.clone();
    let (answered, status_of_answer) = oneshot::channel();
    // The client's connection may end before.
    tokio::spawn(async move {
        let Ok(statuses) = told.await else { return };
        let Ok(reply) = forward(&upstream, request.map(boxed)).await else {
            return;
        };
        let status = reply.status().as_u16();
        if drain_body(reply.into_body()).await.is_ok() {
            let _ = statuses.send(status);
            let _ = answered.send(status);
        }
    });
    Ok(status_of_answer)
}

/// A request with all of its body.
async fn whole(request: Request<Incoming>) -> Result<Request<Full<Bytes>>, Broken> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, HELD_MAX).collect().await;
    let body = body.map_err(|_| Broken)?.to_bytes();
    Ok(Request::from_parts(parts, Full::new(body)))
}

/// Does `work` when `time` has passed.
async fn after<T>(time: Duration, work: impl Future<Output = T>) -> T {
    tokio::time::sleep(time).await;
    work.await
}

async fn drain(request: Request<Incoming>) -> Result<(), Broken> {
    drain_body(request.into_body()).await
}

async fn drain_body(mut body: Incoming) -> Result<(), Broken> {
    while let Some(frame) = body.frame().await {
        frame.map_err(|_| Broken)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    /// By a clock that moves only where everybody waits for it, so the time is exact.
    #[tokio::test(start_paused = true)]
    async fn a_delay_is_as_long_as_it_says() {
        let begun = Instant::now();
        let waited = after(Duration::from_millis(300), async { begun.elapsed() }).await;
        assert_eq!(waited, Duration::from_millis(300));
    }
}
