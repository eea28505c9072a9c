//! One shard's side of an S3 store: its connections, and requests that are tried until they end.
//!
//! Invariants: everything runs on the shard's own runtime, over HTTP/1.1; every wait ends (connecting, sending,
//! the first byte, each piece of the answer); a request is tried again only after a fault that may pass, within
//! the shard's budget of tries and the patience with one request; a redirect is never followed, since a signature
//! is good for one place; an answer's body is taken in within the bound of who asked.

use std::cell::RefCell;
use std::error::Error as _;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, header};
use mover_base::{Error, Kind, Result};
use mover_io::{Shard, random_bytes};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::Place;
use super::answer::{Answer, Operation, is_html, not_s3};
use super::body::{Payload, PayloadBody, Progress};
use super::chunked::{self, SealSlot};
use super::claim::{self, BootTime};
use super::credentials::{Outlook, SignedBy, Unsigned};
use super::flow::{Class, Flow, LONG_BYTES_MIN, Permit, pause_before};
use super::location::Checksum;
use super::pace::{Pace, is_worth};
use super::run::{BodyEnd, Run, request_bytes_max};
use super::tls;
use super::trust;
use super::upload::UploadMemory;
use crate::bounds::too_large;

/// How long a new connection may take.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(5);
/// Idle connections are given up before servers usually do, at 60 s or more: a request into a closing connection
/// would be lost.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a waiting request is looked at.
const WATCH_EVERY: Duration = Duration::from_millis(250);
/// How long one request is tried, from its first failure since it brought a byte on: time to restart a server, or to fail over.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// The same where the server has never answered: the address is wrong more often than the server is down.
const PATIENCE_AT_FIRST: Duration = Duration::from_secs(8);
/// What a connection has to bring or take, where nothing better is known.
const BODY_BYTES_PER_SECOND_MIN: u64 = 64 << 10;
/// A body that was handed over may still lie in the kernel: this many bytes, at that rate, are waited for.
const SENT_BYTES_MAX: u64 = 8 << 20;
/// Longest answer that is no object: a listing of 1000 names of 1 KiB, each with its other facts.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Memory taken for an object before its bytes arrive.
const RESERVED_BYTES_MAX: u64 = 1 << 20;
/// Uploads whose abort waits for the next request.
const ABANDONED_MAX: usize = 1000;

/// A request, before it is signed.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub operation: Operation,
    pub method: Method,
    /// Name of the object, prefix included; empty for the bucket.
    pub name: String,
    pub query: Vec<(&'static str, String)>,
    pub headers: Vec<(&'static str, String)>,
    pub payload: Payload,
    /// From then on no try of it is sent: the claim that it needs may be another's.
    pub deadline: Option<BootTime>,
    /// Whether it asks again for what an earlier one was not given, and so counts as another try of that.
    pub is_again: bool,
}

impl Request {
    pub fn new(operation: Operation, method: Method, name: String) -> Self {
        Request {
            operation,
            method,
            name,
            query: Vec::new(),
            headers: Vec::new(),
            payload: Payload::default(),
            deadline: None,
            is_again: false,
        }
    }

    pub fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn headers(mut self, headers: &[(&'static str, String)]) -> Self {
        self.headers.extend_from_slice(headers);
        self
    }

    pub fn payload(mut self, payload: Payload) -> Self {
        self.payload = payload;
        self
    }

    /// Sent before `deadline` or not at all.
    pub fn before(mut self, deadline: BootTime) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Another try of an earlier one, where `is_again`.
    pub fn again(mut self, is_again: bool) -> Self {
        self.is_again = is_again;
        self
    }

    /// The payload, with its checksum for the server to compare.
    pub fn summed_payload(mut self, payload: Payload, checksum: Checksum) -> Self {
        if let (Some(header), Some(sum)) = (checksum.header(), payload.sum(checksum)) {
            self = self.header(header, sum);
        }
        self.payload(payload)
    }

    /// Whether it may be sent a second time while the first is under way. The beginning of an upload in parts would
    /// leave one behind; after its end the upload is gone, perhaps before its object can be seen.
    fn may_be_doubled(&self) -> bool {
        self.operation != Operation::Multipart || self.method != Method::POST
    }

    /// Whether it ends an upload in parts.
    fn ends_upload(&self) -> bool {
        let names_upload = self.query.iter().any(|(name, _)| *name == "uploadId");
        !self.may_be_doubled() && names_upload
    }

    fn class(&self) -> Class {
        match self.operation {
            Operation::Get | Operation::Head | Operation::List | Operation::Uploads => Class::Read,
            Operation::Put | Operation::Delete | Operation::Multipart | Operation::Abort => {
                Class::of_write(self.payload.bytes)
            }
        }
    }
}

/// Where the bytes of a successful answer go.
pub(super) enum Sink<'a> {
    /// Into the answer.
    Answer,
    /// An object of at most so many bytes.
    Whole {
        out: &'a mut Vec<u8>,
        bytes_max: u64,
    },
    /// Nowhere: an object's headers are all that is asked for.
    Headers,
    /// A run of an object's bytes, as far as it is still missing.
    Run(Run<'a>),
}

impl Sink<'_> {
    /// Bytes of a run that are missing.
    pub fn left(&self) -> u64 {
        match self {
            Sink::Run(run) => run.left(),
            Sink::Answer | Sink::Headers | Sink::Whole { .. } => 0,
        }
    }

    /// Has the next request ask for so many of them at most, and returns how many it will ask for.
    fn ask(&mut self, bytes_max: u64) -> u64 {
        match self {
            Sink::Run(run) => run.ask(bytes_max),
            Sink::Answer | Sink::Headers | Sink::Whole { .. } => 0,
        }
    }
}

/// How one try ended, if not with an answer.
enum Failure {
    /// It may go better next time.
    Passing { error: Error, is_overload: bool },
    /// The answer is late, or comes slowly; another connection may be faster.
    Slow(Error),
    /// The credentials that signed it ran out.
    Expired(Error, SignedBy),
    /// It is refused; perhaps other credentials have taken the place of those that signed it.
    Doubted(Error, SignedBy),
    /// It will not.
    Final(Error),
}

/// A shard's connections to one place.
pub(super) struct Client {
    pub shard: Shard,
    pub place: Arc<Place>,
    pub memory: UploadMemory,
    /// Unfinished multipart uploads that were dropped: name and id.
    pub abandoned: RefCell<Vec<(String, String)>>,
    http: reqwest::Client,
    /// The same for what is sent under claims, where the time-out is too long for that.
    http_of_claims: Option<reqwest::Client>,
    flow: Rc<Flow>,
}

impl Client {
    pub fn new(shard: &Shard, place: &Arc<Place>) -> Result<Self> {
        let timeout = place.location.timeout;
        let share = share(place.location.connections, shard.count(), shard.index());
        let of_claims = timeout > claim::IN_KERNEL_MAX;
        let of_claims = of_claims.then(|| http_client(place, share, claim::IN_KERNEL_MAX));
        Ok(Client {
            shard: shard.clone(),
            place: Arc::clone(place),
            memory: UploadMemory::new(shard.count()),
            abandoned: RefCell::default(),
            http: http_client(place, share, timeout)?,
            http_of_claims: of_claims.transpose()?,
            flow: Flow::new(share),
        })
    }

    /// Sends a request until it is answered. The answer may be a refusal, which the caller understands.
    pub async fn send(&self, request: &Request, sink: &mut Sink<'_>) -> Result<Answer> {
        let mut first_failure = None;
        let (mut retry, mut is_again) = (0, request.is_again);
        let (mut may_be_slow, mut may_be_expired) = (request.may_be_doubled(), true);
        loop {
            self.shard.stop()?;
            let left = sink.left();
            let permit = self.turn(sink).await;
            // Who is only late must not use up what others need who failed.
            let may_be_slow_now = may_be_slow && self.flow.has_tries_to_spare();
            let again = std::mem::replace(&mut is_again, true);
            self.place.traffic.count_request(again);
            let begun = Instant::now();
            let outcome = self.attempt(request, sink, may_be_slow_now).await;
            let now = Instant::now();
            let (error, is_overload) = match outcome {
                Ok(answer) => return Ok(answer),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Expired(error, signed_by)) => {
                    if !std::mem::take(&mut may_be_expired) {
                        return Err(error);
                    }
                    self.place.signature.forget(&signed_by);
                    continue;
                }
                Err(Failure::Doubted(error, signed_by)) => {
                    let may_be_doubted = std::mem::take(&mut may_be_expired);
                    if !may_be_doubted || !self.place.signature.renew(&signed_by).await {
                        return Err(error);
                    }
                    continue;
                }
                Err(Failure::Slow(error)) => {
                    may_be_slow = false;
                    tracing::debug!(name = request.name, "asked again: the answer is late");
                    if self.flow.pay_for_try(now) {
                        continue;
                    }
                    (error, false)
                }
                Err(Failure::Passing { error, is_overload }) => (error, is_overload),
            };
            // Whoever waits to try again leaves its place to others.
            drop(permit);
            // A try that brought a part of a run was none in vain: the rest is a request of its own.
            if is_worth(left - sink.left(), now.saturating_duration_since(begun)) {
                (first_failure, retry) = (None, 0);
                (may_be_slow, may_be_expired) = (true, true);
            }
            let since = *first_failure.get_or_insert(now);
            let patience = match self.place.has_answered() {
                true => PATIENCE,
                false => PATIENCE_AT_FIRST,
            };
            let next = self.wait_for_next_try(since, retry, is_overload, patience);
            if !next.await? {
                return Err(error);
            }
            tracing::debug!(name = request.name, %error, retry, "trying again");
            retry += 1;
        }
    }

    /// A place in the flow for a request, and the request paid for.
    async fn turn(&self, sink: &mut Sink<'_>) -> Permit {
        let permit = self.flow.permit().await;
        let limits = &self.place.limits;
        self.shard.throttle(&limits.requests, 1).await;
        // The kernel takes a range in as fast as it comes, so its bytes are paid for before it is asked for.
        let asked = sink.ask(request_bytes_max(limits.download.get(), self.shard.count()));
        if asked > 0 {
            self.shard.throttle(&limits.download, asked).await;
        }
        permit
    }

    /// Sends a request whose answer is small, and returns it if it is a success.
    pub async fn send_small(&self, request: &Request) -> Result<Answer> {
        let answer = self.send(request, &mut Sink::Answer).await?;
        self.succeeded(request, answer)
    }

    /// Waits before what has failed, `since` then, is asked for again. False: it was asked for as long as the patience with it
    /// lasts, or too much is.
    pub async fn wait_for_next_try(
        &self,
        since: Instant,
        retry: u32,
        is_overload: bool,
        patience: Duration,
    ) -> Result<bool> {
        let now = Instant::now();
        if is_overload {
            self.flow.cut(now);
        }
        let pause = pause_before(retry, u64::from_ne_bytes(random_bytes()?));
        let is_over = now.saturating_duration_since(since) + pause > patience;
        if is_over || !self.flow.pay_for_try(now) {
            return Ok(false);
        }
        tokio::time::sleep(pause).await;
        Ok(true)
    }

    /// The answer, if it is a success.
    pub fn succeeded(&self, request: &Request, answer: Answer) -> Result<Answer> {
        if answer.status.is_success() && !answer.is_hidden_error() {
            return Ok(answer);
        }
        Err(self.refusal(request, answer))
    }

    /// The error that an answer is.
    fn refusal(&self, request: &Request, answer: Answer) -> Error {
        answer.into_error(request.operation, self.told(request), &self.place.location)
    }

    /// The object's name as the rest of the mover knows it.
    fn told<'a>(&'a self, request: &'a Request) -> &'a str {
        let name = &request.name;
        match name.strip_prefix(&self.place.location.prefix) {
            Some(key) if !key.is_empty() => key,
            _ => &self.place.location.url,
        }
    }

    /// Remembers an upload to abort.
    pub fn abandon(&self, name: String, id: String) {
        let mut abandoned = self.abandoned.borrow_mut();
        if abandoned.len() < ABANDONED_MAX {
            abandoned.push((name, id));
        }
    }

    /// How long the kernel goes on with what was handed to it of a request and is not taken in.
    fn in_kernel_max(&self, request: &Request) -> Duration {
        let timeout = self.place.location.timeout;
        match request.deadline {
            Some(_) => timeout.min(claim::IN_KERNEL_MAX),
            None => timeout,
        }
    }

    /// The connections for a request.
    fn http_for(&self, request: &Request) -> &reqwest::Client {
        match (&self.http_of_claims, request.deadline) {
            (Some(of_claims), Some(_)) => of_claims,
            _ => &self.http,
        }
    }

    async fn attempt(
        &self,
        request: &Request,
        sink: &mut Sink<'_>,
        may_be_slow: bool,
    ) -> Result<Answer, Failure> {
        let slow_after = self.flow.slow_after(request.class());
        let slow_after = slow_after.filter(|_| may_be_slow);
        let slow_body_after = self.slow_body_after(sink).filter(|_| may_be_slow);
        let progress = Arc::new(Progress::default());
        let http = self.http_for(request);
        let (call, signed_by) = self.prepare(request, sink, &progress).await?;
        // The last look before it leaves: this process may have stood still since another was taken.
        if request.deadline.is_some_and(BootTime::has_passed) {
            return Err(Failure::Final(claim::too_slow(&request.name)));
        }
        let started = Instant::now();
        let sent = self
            .watch(request, http.execute(call), &progress, slow_after)
            .await?;
        let response = sent.map_err(|error| self.transport(request, error))?;
        let latency = started.elapsed();
        let answer = self
            .take_in(request, response, sink, slow_body_after)
            .await?;
        if answer.is_expired() {
            return Err(Failure::Expired(self.refusal(request, answer), signed_by));
        }
        if signed_by.is_for_a_time() && answer.is_refusal_of_signer() {
            return Err(Failure::Doubted(self.refusal(request, answer), signed_by));
        }
        // A server of S3 that is busy has answered; a proxy whose server is gone has not.
        if answer.asks_to_slow_down() && !answer.error_code().is_empty() {
            self.place.has_answered.store(true, Relaxed);
        }
        if answer.may_pass(request.operation) {
            let is_overload = answer.asks_to_slow_down();
            return Err(Failure::Passing {
                error: self.refusal(request, answer),
                is_overload,
            });
        }
        self.place.has_answered.store(true, Relaxed);
        self.flow
            .answered(request.class(), latency, started + latency);
        Ok(answer)
    }

    /// How long the body of an answer may take before its rest is better asked for on another connection.
    fn slow_body_after(&self, sink: &Sink<'_>) -> Option<Duration> {
        let left = sink.left();
        // Before it is known what is usual, a long one that crawls is told by its pace.
        let crawling = || {
            let time = Duration::from_secs(left / BODY_BYTES_PER_SECOND_MIN);
            (left >= LONG_BYTES_MIN).then_some(self.place.location.timeout + time)
        };
        self.flow.slow_body_after().or_else(crawling)
    }

    /// A request with body and signature.
    async fn prepare(
        &self,
        request: &Request,
        sink: &Sink<'_>,
        progress: &Arc<Progress>,
    ) -> Result<(reqwest::Request, SignedBy), Failure> {
        let place = &self.place;
        let failed = |error: &dyn std::fmt::Display| {
            let error = Error::new(Kind::Internal, "a request to the store could not be made")
                .object(self.told(request))
                .cause(error.to_string());
            Failure::Final(error)
        };
        let query: Vec<(&str, &str)> = request
            .query
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let mut call = http::Request::new(());
        *call.method_mut() = request.method.clone();
        let uri = place.location.uri(&request.name, &query);
        *call.uri_mut() = uri
            .parse()
            .map_err(|error: http::uri::InvalidUri| failed(&error))?;
        let headers = call.headers_mut();
        for (name, value) in &request.headers {
            let value = HeaderValue::from_str(value).map_err(|error| failed(&error))?;
            headers.insert(HeaderName::from_static(name), value);
        }
        if let Sink::Run(run) = sink {
            let value = HeaderValue::from_str(&run.header()).map_err(|error| failed(&error))?;
            headers.insert(header::RANGE, value);
        }
        let payload = &request.payload;
        let has_length = request.method == Method::PUT || request.method == Method::POST;
        payload.announce(has_length, place.location.is_tls(), headers);
        let (mut parts, ()) = call.into_parts();
        let seal = SealSlot::default();
        if payload.chunks().is_some() {
            parts.extensions.insert(Arc::clone(&seal));
        }
        let signed = place.signature.sign(&mut parts).await;
        let signed_by = signed.map_err(|unsigned| self.unsigned(unsigned))?;
        // The seal holds a key that belongs into no request.
        parts.extensions.clear();
        let pieces = match (payload.chunks(), seal.get()) {
            (None, _) => payload.pieces.iter().cloned().collect(),
            (Some(hashes), Some(seal)) => chunked::framed(payload, hashes, seal),
            (Some(_), None) => return Err(failed(&"it has no seal")),
        };
        let body = PayloadBody::new(&self.shard, pieces, place, progress);
        let call = http::Request::from_parts(parts, reqwest::Body::wrap(body));
        let call =
            reqwest::Request::try_from(call).map_err(|error| failed(&error.without_url()))?;
        Ok((call, signed_by))
    }

    /// What it means that there are no credentials: where there were some before, they are being renewed, and whoever
    /// gives them may do so in a moment, unless that was refused.
    fn unsigned(&self, Unsigned { error, outlook }: Unsigned) -> Failure {
        let error = match error.kind() {
            // A setting that did before has not been wrong from the first: the job is under way.
            Kind::Usage if self.place.has_answered() => error.with_kind(Kind::Storage),
            _ => error,
        };
        let may_pass = match outlook {
            Outlook::Passing => true,
            Outlook::Unclear => self.place.has_answered(),
            Outlook::Refused => false,
        };
        match may_pass {
            true => Failure::Passing {
                error,
                is_overload: false,
            },
            false => Failure::Final(error),
        }
    }

    /// Waits for `work` as long as it moves.
    async fn watch<T>(
        &self,
        request: &Request,
        work: impl Future<Output = T>,
        progress: &Progress,
        slow_after: Option<Duration>,
    ) -> Result<T, Failure> {
        let timeout = self.place.location.timeout;
        let lost_bytes = request.payload.bytes.min(SENT_BYTES_MAX);
        let in_kernel = Duration::from_secs(lost_bytes / BODY_BYTES_PER_SECOND_MIN);
        // How long uploads take, all of their bytes' way included, is known by then.
        let slow_after = match request.class() {
            Class::Upload(_) => slow_after,
            Class::Read | Class::Write => slow_after.map(|slow_after| slow_after + in_kernel),
        };
        let mut work = std::pin::pin!(work);
        let (mut seen, mut seen_at) = (progress.steps(), Instant::now());
        let mut handed_over = None;
        loop {
            if let Ok(done) = tokio::time::timeout(WATCH_EVERY, &mut work).await {
                return Ok(done);
            }
            self.shard.stop().map_err(Failure::Final)?;
            let (steps, now) = (progress.steps(), Instant::now());
            if steps.is_none() || steps != seen {
                (seen, seen_at) = (steps, now);
            }
            let mut allowed = timeout;
            if progress.is_handed_over() {
                let since = now.saturating_duration_since(*handed_over.get_or_insert(now));
                if slow_after.is_some_and(|slow_after| since > slow_after) {
                    return Err(Failure::Slow(self.no_answer(request, since)));
                }
                allowed += in_kernel;
            }
            let still = now.saturating_duration_since(seen_at);
            if still > allowed {
                let error = match progress.is_handed_over() {
                    true => self.no_answer(request, still),
                    false => self.not_taken(request, still),
                };
                return Err(Failure::Passing {
                    error,
                    is_overload: true,
                });
            }
        }
    }

    fn no_answer(&self, request: &Request, after: Duration) -> Error {
        Error::new(
            Kind::Unreachable,
            format!("the store does not answer, for {} s now", after.as_secs()),
        )
        .object(format!("{} ({})", self.told(request), self.place.way()))
        .hint("check the server and the network, then try again; what was committed is safe")
    }

    /// The error for a body that the server does not take in: it is alive and slow, or gone.
    fn not_taken(&self, request: &Request, after: Duration) -> Error {
        let message = format!(
            "the store takes in nothing of what is sent, for {} s now",
            after.as_secs()
        );
        Error::new(Kind::Unreachable, message)
            .object(format!("{} ({})", self.told(request), self.place.way()))
            .hint("check the server and the network, which have to take 64 KiB/s of each request; a larger timeout= in the repository's URL waits longer; what was committed is safe")
    }

    /// What a failed exchange means.
    fn transport(&self, request: &Request, error: reqwest::Error) -> Failure {
        let error = error.without_url();
        let object = self.place.location.server();
        if let Some(told) = tls::of_certificate(&error) {
            return Failure::Final(told.object(object).cause(innermost(&error)));
        }
        if !self.place.has_answered() && tls::is_no_tls(&error) {
            return Failure::Final(
                Error::new(Kind::Usage, "the server does not speak TLS")
                    .object(object)
                    .hint("if that is meant so, write http:// in endpoint=")
                    .cause(innermost(&error)),
            );
        }
        // The kernel gives up on a peer that is gone, and on one that answers and has no room: it tells no difference.
        if !error.is_connect() && request.payload.bytes > 0 && is_given_up(&error) {
            return Failure::Passing {
                error: self.not_taken(request, self.in_kernel_max(request)),
                is_overload: true,
            };
        }
        let message = match error.is_connect() {
            true => "the store cannot be reached",
            false => "the connection to the store broke",
        };
        Failure::Passing {
            error: Error::new(Kind::Unreachable, message)
                .object(format!("{} ({})", self.told(request), self.place.way()))
                .hint("check endpoint, server, proxy and network, then try again; what was committed is safe")
                .cause(innermost(&error)),
            is_overload: error.is_timeout(),
        }
    }

    /// Takes the body in: an object's bytes into the sink, anything else into the answer.
    async fn take_in(
        &self,
        request: &Request,
        mut response: reqwest::Response,
        sink: &mut Sink<'_>,
        slow_body_after: Option<Duration>,
    ) -> Result<Answer, Failure> {
        let status = response.status();
        let headers = std::mem::take(response.headers_mut());
        let answer = |body| Answer::new(status, headers.clone(), body);
        let is_object = status.is_success() && request.operation == Operation::Get;
        let is_tagged = matches!(request.operation, Operation::Head | Operation::Put);
        if (is_object || status.is_success() && is_tagged) && !headers.contains_key(header::ETAG) {
            let body = self.small_body(request, &mut response).await?;
            return self.without_tag(request, answer(body));
        }
        match sink {
            // A server that does not know ranges would send all of it.
            Sink::Headers if is_object => return Ok(answer(Bytes::new())),
            Sink::Whole { out, bytes_max } if is_object => {
                self.whole(request, &mut response, out, *bytes_max).await?;
                return Ok(answer(Bytes::new()));
            }
            Sink::Run(run) if is_object => {
                let answer = answer(Bytes::new());
                run.begin_answer(&answer).map_err(Failure::Final)?;
                self.run(request, &mut response, run, slow_body_after)
                    .await?;
                return Ok(answer);
            }
            _ => {}
        }
        let body = self.small_body(request, &mut response).await?;
        // Some servers say of an answer without a body that it is a page. One to HEAD tells of a body.
        let is_page = request.operation == Operation::Head || !body.is_empty();
        if status.is_success() && is_page && is_html(&headers) {
            let said = format!("HTTP {} with a page of HTML", status.as_u16());
            return Err(Failure::Final(not_s3(&self.place.location, &said)));
        }
        Ok(answer(body))
    }

    /// An object of at most `bytes_max` bytes.
    async fn whole(
        &self,
        request: &Request,
        response: &mut reqwest::Response,
        out: &mut Vec<u8>,
        bytes_max: u64,
    ) -> Result<(), Failure> {
        let too_large = |bytes| Failure::Final(too_large(self.told(request), bytes, bytes_max));
        out.clear();
        let expected = response.content_length().unwrap_or(bytes_max);
        if expected > bytes_max {
            return Err(too_large(expected));
        }
        // More only as it arrives: a length is the server's word.
        out.reserve_exact(expected.min(RESERVED_BYTES_MAX) as usize);
        let mut pace = Pace::default();
        while let Some(chunk) = self.chunk(request, response, &mut pace).await? {
            let got = (out.len() + chunk.len()) as u64;
            if got > bytes_max {
                return Err(too_large(got));
            }
            out.extend_from_slice(&chunk);
        }
        Ok(())
    }

    /// What the answer brings of a run. What came before it broke off, or turned out to be slow, stays.
    async fn run(
        &self,
        request: &Request,
        response: &mut reqwest::Response,
        run: &mut Run<'_>,
        slow_after: Option<Duration>,
    ) -> Result<(), Failure> {
        let (begun, left) = (Instant::now(), run.left());
        let mut pace = Pace::default();
        loop {
            let next = self.paid_chunk(request, response, &mut pace);
            let next = match slow_after {
                Some(slow_after) => {
                    let rest = slow_after.saturating_sub(begun.elapsed());
                    tokio::time::timeout(rest, next)
                        .await
                        .map_err(|_| Failure::Slow(self.no_answer(request, begun.elapsed())))?
                }
                None => next.await,
            };
            let Some(chunk) = next? else { break };
            run.fill(&chunk).map_err(Failure::Final)?;
            self.shard.stop().map_err(Failure::Final)?;
            // What has come stays. Of a run that is whole nothing is left to ask for.
            if run.left() > 0 {
                self.check_pace(request, &pace)?;
            }
        }
        match run.end_answer() {
            BodyEnd::Complete => {
                self.flow.brought(left - run.left(), begun.elapsed());
                Ok(())
            }
            BodyEnd::Early => Err(self.broken_off(request)),
        }
    }

    /// A success that does not bear what every object has: an error in disguise, or no S3 server's.
    fn without_tag(&self, request: &Request, answer: Answer) -> Result<Answer, Failure> {
        if answer.may_pass(request.operation) || answer.is_hidden_error() {
            return Ok(answer);
        }
        let said = format!("HTTP {} without an ETag", answer.status.as_u16());
        let error = not_s3(&self.place.location, &said);
        // The answer to HEAD has no body that could say more.
        Err(match request.operation {
            Operation::Head => Failure::Passing {
                error,
                is_overload: false,
            },
            _ => Failure::Final(error),
        })
    }

    async fn small_body(
        &self,
        request: &Request,
        response: &mut reqwest::Response,
    ) -> Result<Bytes, Failure> {
        let mut body = BytesMut::new();
        let mut pace = Pace::default();
        while let Some(chunk) = self.chunk(request, response, &mut pace).await? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                let said = format!("an answer of more than {ANSWER_BYTES_MAX} bytes");
                return Err(Failure::Final(not_s3(&self.place.location, &said)));
            }
            body.extend_from_slice(&chunk);
            // White space may come for minutes.
            if request.ends_upload() {
                self.shard.stop().map_err(Failure::Final)?;
            }
        }
        Ok(body.freeze())
    }

    /// Fails where an answer has brought so little that it might go on for ever.
    fn check_pace(&self, request: &Request, pace: &Pace) -> Result<(), Failure> {
        let is_too_slow = match request.ends_upload() {
            true => pace.is_too_slow_for_ending(),
            false => pace.is_too_slow(self.place.location.timeout),
        };
        match is_too_slow {
            false => Ok(()),
            true => Err(Failure::Passing {
                error: self.no_answer(request, pace.waited()),
                is_overload: true,
            }),
        }
    }

    /// The next piece of an answer, at the pace of the budget.
    async fn chunk(
        &self,
        request: &Request,
        response: &mut reqwest::Response,
        pace: &mut Pace,
    ) -> Result<Option<Bytes>, Failure> {
        let chunk = self.paid_chunk(request, response, pace).await?;
        if let Some(chunk) = &chunk {
            self.check_pace(request, pace)?;
            let download = &self.place.limits.download;
            self.shard.throttle(download, chunk.len() as u64).await;
        }
        Ok(chunk)
    }

    /// The next piece of an answer that was paid for.
    async fn paid_chunk(
        &self,
        request: &Request,
        response: &mut reqwest::Response,
        pace: &mut Pace,
    ) -> Result<Option<Bytes>, Failure> {
        let (timeout, asked) = (self.place.location.timeout, Instant::now());
        let next = tokio::time::timeout(timeout, response.chunk()).await;
        let chunk = next
            .map_err(|_| Failure::Passing {
                error: self.no_answer(request, timeout),
                is_overload: true,
            })?
            .map_err(|error| self.transport(request, error))?;
        let bytes = chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        pace.add(asked.elapsed(), bytes);
        self.place.traffic.add_received(bytes);
        Ok(chunk)
    }

    fn broken_off(&self, request: &Request) -> Failure {
        Failure::Passing {
            error: Error::new(Kind::Unreachable, "the store's answer broke off")
                .object(self.told(request))
                .hint("try again; if it stays so, check the server and what stands before it"),
            is_overload: false,
        }
    }
}

/// How many of a job's connections are a shard's: each has one at least.
fn share(connections: usize, shards: usize, index: usize) -> usize {
    let shards = shards.max(1);
    let is_among_first = index < connections % shards;
    (connections / shards + usize::from(is_among_first)).max(1)
}

/// The connections of a shard, which give up what nobody takes in for so long.
fn http_client(
    place: &Place,
    connections: usize,
    in_kernel_max: Duration,
) -> Result<reqwest::Client> {
    let location = &place.location;
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("helios-mover/", env!("CARGO_PKG_VERSION")))
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .connect_timeout(location.timeout.min(CONNECT_TIMEOUT_MAX))
        .tcp_keepalive(location.timeout)
        // Who takes in nothing for so long counts as lost, also where a long body lies in the kernel, for whose bytes the
        // watch over a request waits longer.
        .tcp_user_timeout(in_kernel_max)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(connections)
        .dns_resolver(Addresses {
            next: Arc::clone(&place.next_address),
        });
    if let Some(path) = &location.ca {
        builder = builder.tls_backend_preconfigured(trust::config(path)?);
    }
    builder.build().map_err(|error| {
        Error::new(Kind::Storage, "connections to the store cannot be made")
            .object(location.server())
            .hint("TLS needs the system's certificates (package ca-certificates), or ca=FILE in the URL")
            .cause(innermost(&error))
    })
}

/// All addresses of a name, each time from another one on, so that connections spread over the server's machines: those of
/// all shards together, since each may need only one.
struct Addresses {
    next: Arc<AtomicUsize>,
}

impl Resolve for Addresses {
    fn resolve(&self, name: Name) -> Resolving {
        let next = Arc::clone(&self.next);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let mut addresses: Vec<SocketAddr> = found.collect();
            if !addresses.is_empty() {
                let first = next.fetch_add(1, Relaxed) % addresses.len();
                addresses.rotate_left(first);
            }
            let addresses: Addrs = Box::new(addresses.into_iter());
            Ok(addresses)
        })
    }
}

/// Whether the kernel gave a connection up because nothing that was sent arrives.
fn is_given_up(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |&error| error.source());
    causes.any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        io.and_then(std::io::Error::raw_os_error)
            == Some(rustix::io::Errno::TIMEDOUT.raw_os_error())
    })
}

/// The cause that says most.
pub(super) fn innermost(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = error.to_string();
        next = error.source();
    }
    super::answer::escaped(&text)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::TcpListener;

    use mover_io::{BUF_BYTES, ShardConfig};

    use super::super::{S3Store, put};
    use super::*;
    use crate::LinkLimits;

    fn one_shard() -> ShardConfig {
        ShardConfig {
            shards: 1,
            pin: false,
            arena_bytes: 8 * BUF_BYTES,
            ..ShardConfig::default()
        }
    }

    /// What is handed over in the first half of a claim's life has the other half to arrive in.
    #[test]
    fn what_is_sent_under_a_claim_lies_in_the_kernel_no_longer_than_the_claim_holds() {
        for (timeout_s, in_kernel_s) in [(1, 1), (30, 30), (31, 30), (3600, 30)] {
            let url = format!("bucket?endpoint=http://127.0.0.1:9&timeout={timeout_s}");
            let store = S3Store::open(&url, &LinkLimits::default()).unwrap();
            let look = async |shard: Shard| {
                let client = store.client(&shard)?;
                let request = Request::new(Operation::Put, Method::PUT, "x".to_owned());
                let claimed = request.clone().before(BootTime::now());
                let in_kernel = [&request, &claimed].map(|one| client.in_kernel_max(one).as_secs());
                assert_eq!(in_kernel, [timeout_s, in_kernel_s]);
                assert!(std::ptr::eq(client.http_for(&request), &client.http));
                let is_same = std::ptr::eq(client.http_for(&claimed), &client.http);
                assert_eq!(is_same, timeout_s == in_kernel_s, "{timeout_s}");
                Ok(())
            };
            mover_io::run(&one_shard(), look, |_| {}).unwrap();
        }
    }

    #[test]
    fn credentials_that_are_lost_in_the_middle_of_a_job_are_no_wrong_setting() {
        let url = "bucket?endpoint=http://127.0.0.1:9";
        let store = S3Store::open(url, &LinkLimits::default()).unwrap();
        let look = async |shard: Shard| {
            let client = store.client(&shard)?;
            let without = |outlook| {
                let error = Error::new(Kind::Usage, "the file cannot be read");
                client.unsigned(Unsigned { error, outlook })
            };
            let told = |failure: Failure| match failure {
                Failure::Final(error) => ("at once", error.kind()),
                Failure::Passing { error, .. } => ("in the end", error.kind()),
                _ => panic!("a failure of credentials is none of the answer's"),
            };
            for outlook in [Outlook::Unclear, Outlook::Refused] {
                assert_eq!(told(without(outlook)), ("at once", Kind::Usage));
            }
            client.place.has_answered.store(true, Relaxed);
            for (outlook, when) in [
                (Outlook::Unclear, "in the end"),
                (Outlook::Refused, "at once"),
            ] {
                assert_eq!(told(without(outlook)), (when, Kind::Storage));
            }
            Ok(())
        };
        mover_io::run(&one_shard(), look, |_| {}).unwrap();
    }

    /// A server whose port takes connections and of which nobody reads. The first body fits into the kernel, which gives up;
    /// the second does not, and the watch may be first.
    #[test]
    fn a_body_that_is_not_taken_in_is_told_whoever_notices() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let keys = directory.path().join("keys");
        let text = "[default]\naws_access_key_id = id\naws_secret_access_key = secret\n";
        std::fs::write(&keys, text).unwrap();
        let url = format!(
            "bucket?endpoint=http://{}&credentials={}&timeout=1",
            silent.local_addr().unwrap(),
            keys.display()
        );
        let store = S3Store::open(&url, &LinkLimits::default()).unwrap();
        let config = one_shard();
        // Not as long as a body in the kernel is waited for that is on its way: some 17 s, and 128 s.
        for (bytes, bound_s) in [(1 << 20, 16), (64 << 20, 100)] {
            let attempt = async |shard: Shard| {
                let client = store.client(&shard)?;
                let payload = put::payload_of(&client, &vec![0; bytes])?;
                let request = put::put_request(&client, "x", payload, "mark");
                let begun = Instant::now();
                match client.attempt(&request, &mut Sink::Answer, false).await {
                    Err(Failure::Passing { error, is_overload }) => {
                        Ok((error, is_overload, begun.elapsed()))
                    }
                    _ => panic!("it did not fail, or for good"),
                }
            };
            let ended = mover_io::run(&config, attempt, |_| {}).unwrap().pop();
            let (error, is_overload, after) = ended.unwrap();
            assert_eq!(error.kind(), Kind::Unreachable, "{error}");
            let text = error.to_string();
            assert!(
                text.contains("takes in nothing of what is sent"),
                "{bytes}: {text}"
            );
            assert!(error.hint_text().unwrap().contains("timeout="), "{error}");
            assert!(is_overload, "fewer requests at a time may help");
            let bound = Duration::from_secs(bound_s);
            assert!(after < bound, "{bytes}: {after:?}");
        }
    }

    #[test]
    fn shards_share_the_connections_and_have_one_at_least() {
        for (connections, shares) in [
            (9, vec![2, 1, 1, 1, 1, 1, 1, 1]),
            (32, vec![4; 8]),
            (2, vec![1; 3]),
            (5, vec![3, 2]),
        ] {
            let of = |index| share(connections, shares.len(), index);
            let all: Vec<usize> = (0..shares.len()).map(of).collect();
            assert_eq!(all, shares, "{connections}");
        }
    }

    #[test]
    fn what_the_kernel_gives_up_is_told_from_what_breaks() {
        let given_up = || io::Error::from_raw_os_error(rustix::io::Errno::TIMEDOUT.raw_os_error());
        assert!(is_given_up(&given_up()));
        for other in [
            io::Error::from_raw_os_error(rustix::io::Errno::CONNRESET.raw_os_error()),
            io::Error::from(io::ErrorKind::TimedOut),
        ] {
            assert!(!is_given_up(&other), "{other}");
        }
    }
}
