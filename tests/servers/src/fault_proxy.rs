//! A proxy between a client and a server which does to requests what the network and overloaded servers do.
//!
//! It understands HTTP/1.1 and nothing of S3. The `Host` field goes upstream as it came, so signatures made for the
//! proxy's address hold. Each request travels upstream on a connection of its own.
//!
//! Invariants: a request that no fault hits passes unchanged, streamed; a fault that hits is counted; if upstream cannot
//! be reached or breaks off, the client's connection is reset; what is held of a body is at most [`HELD_MAX`].

use std::fmt;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, TRANSFER_ENCODING};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::exchange::exchange;
use crate::fault::{Action, Armed, Fault};
use crate::message::{Reply, error_xml};
use crate::pipe::{AnyBody, Cut, Shape, boxed, shaped};
use crate::serve::{Line, Scissors, Server};

/// The longest body that is held whole, which only [`Action::Duplicate`] needs.
const HELD_MAX: usize = 64 * 1024 * 1024;

/// How many requests [`FaultProxy::seen`] remembers.
const SEEN_MAX: usize = 100_000;

/// A running proxy; it stops when dropped.
#[derive(Debug)]
pub struct FaultProxy {
    server: Server,
    shared: Arc<Shared>,
}

/// Names a fault that was injected into a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultId(u64);

#[derive(Debug)]
struct Shared(Mutex<State>);

#[derive(Debug)]
struct State {
    upstream: String,
    faults: Vec<(FaultId, Armed)>,
    /// Faults that were removed keep their count.
    spent: Vec<(FaultId, u64)>,
    next: u64,
    requests: u64,
    seen: Vec<String>,
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
        let shared = Arc::new(Shared(Mutex::new(State {
            upstream: host_and_port(upstream),
            faults: Vec::new(),
            spent: Vec::new(),
            next: 0,
            requests: 0,
            seen: Vec::new(),
        })));
        let for_connections = Arc::clone(&shared);
        let server = Server::start("fault-proxy", move |stream| {
            connection(stream, Arc::clone(&for_connections))
        });
        FaultProxy { server, shared }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Sends requests elsewhere from now on.
    pub fn set_upstream(&self, upstream: &str) {
        self.shared.state().upstream = host_and_port(upstream);
    }

    /// Adds a fault. Of several that match a request, the one that was added first hits.
    pub fn inject(&self, fault: Fault) -> FaultId {
        let mut state = self.shared.state();
        let id = FaultId(state.next);
        state.next += 1;
        state.faults.push((id, Armed::new(fault)));
        id
    }

    /// Takes a fault away; its count stays.
    pub fn remove(&self, id: FaultId) {
        let mut state = self.shared.state();
        if let Some(at) = state.faults.iter().position(|(other, _)| *other == id) {
            let (_, armed) = state.faults.remove(at);
            state.spent.push((id, armed.hits));
        }
    }

    /// Takes all faults away; their counts stay.
    pub fn clear(&self) {
        let mut state = self.shared.state();
        let faults: Vec<_> = state.faults.drain(..).collect();
        let counts = faults.into_iter().map(|(id, armed)| (id, armed.hits));
        state.spent.extend(counts);
    }

    /// How many requests a fault has hit.
    pub fn hits(&self, id: FaultId) -> u64 {
        let state = self.shared.state();
        let at_work = state.faults.iter().find(|(other, _)| *other == id);
        let spent = state.spent.iter().find(|(other, _)| *other == id);
        at_work
            .map(|(_, armed)| armed.hits)
            .or(spent.map(|(_, hits)| *hits))
            .expect("the fault is one of this proxy's")
    }

    /// How many requests all faults together have hit.
    pub fn hits_of_all(&self) -> u64 {
        let state = self.shared.state();
        let at_work: u64 = state.faults.iter().map(|(_, armed)| armed.hits).sum();
        let spent: u64 = state.spent.iter().map(|(_, hits)| hits).sum();
        at_work + spent
    }

    /// How many requests have arrived.
    pub fn requests(&self) -> u64 {
        self.shared.state().requests
    }

    /// The requests that have arrived, as `METHOD /path?query`, the first 100,000 of them.
    pub fn seen(&self) -> Vec<String> {
        self.shared.state().seen.clone()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nobody panics while it is held")
    }

    /// Counts a request and says where it goes and what happens to it.
    fn decide(&self, request: &Request<Incoming>) -> (String, Option<Action>) {
        let mut state = self.state();
        state.requests += 1;
        if state.seen.len() < SEEN_MAX {
            let seen = format!("{} {}", request.method(), request.uri());
            state.seen.push(seen);
        }
        let method = request.method().as_str();
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or(""));
        let hit = state.faults.iter_mut().find_map(|(_, armed)| {
            armed
                .hit(method, path, query)
                .then(|| armed.fault.action.clone())
        });
        (state.upstream.clone(), hit)
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

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let (line, scissors) = Line::new(stream);
    let service = service_fn(move |request| answer(Arc::clone(&shared), scissors.clone(), request));
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(line), service)
        .await;
}

async fn answer(
    shared: Arc<Shared>,
    scissors: Scissors,
    request: Request<Incoming>,
) -> Result<Response<AnyBody>, Broken> {
    let (upstream, action) = shared.decide(&request);
    let outcome = match action {
        None => forward(&upstream, request.map(boxed))
            .await
            .map(|reply| reply.map(boxed)),
        Some(action) => carry_out(&upstream, action, request).await,
    };
    if outcome.is_err() {
        scissors.reset_at_end();
    }
    outcome
}

async fn carry_out(
    upstream: &str,
    action: Action,
    request: Request<Incoming>,
) -> Result<Response<AnyBody>, Broken> {
    match action {
        Action::ResetBeforeRequest => Err(Broken),
        Action::ResetAfterRequestBytes(bytes) => {
            let shape = Shape {
                cut: Some((bytes, Cut::Close)),
                ..Shape::default()
            };
            // If the body was shorter, there may be a reply; it is lost.
            let _ = forward_whole(upstream, request.map(|body| shaped(body, shape))).await;
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
        Action::StallReply(bytes) => cut_reply(upstream, request, bytes, Cut::Hang).await,
        Action::Duplicate => duplicate(upstream, request).await,
        Action::Throttle(rate) => {
            let shape = Shape {
                rate: Some(rate),
                ..Shape::default()
            };
            let reply = forward(upstream, request.map(|body| shaped(body, shape))).await?;
            Ok(reply.map(|body| shaped(body, shape)))
        }
        Action::Stall => {
            drain(request).await?;
            pending().await
        }
        Action::Delay(time) => {
            tokio::time::sleep(time).await;
            Ok(forward(upstream, request.map(boxed)).await?.map(boxed))
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
    let shape = Shape {
        cut: Some((bytes, how)),
        ..Shape::default()
    };
    Ok(reply.map(|body| shaped(body, shape)))
}

async fn duplicate(
    upstream: &str,
    request: Request<Incoming>,
) -> Result<Response<AnyBody>, Broken> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, HELD_MAX)
        .collect()
        .await
        .map_err(|_| Broken)?
        .to_bytes();
    let again = || Request::from_parts(parts.clone(), boxed(Full::new(body.clone())));
    forward_whole(upstream, again()).await?;
    Ok(forward(upstream, again()).await?.map(boxed))
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
