//! Creating objects: exactly one of many writers is told that it did, also when answers get lost.
//!
//! Invariants: each write bears a random mark in its metadata; wherever an answer leaves open whose object it is
//! that now exists (a lost reply, a request that arrived twice), the mark decides. A server that was not seen to
//! refuse a second write of an object is never trusted with the decision: there a claim (see `claim`) is. That an upload in
//! parts is gone is told by the answer's own code, and counts as a failure only where its object does not come to be seen either.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use mover_base::checksum::{Sha256Stream, sha256};
use mover_base::{Error, Kind, Result, Timestamp, hex};
use mover_io::random_bytes;

use super::answer::{Answer, Operation, not_s3};
use super::body::{ContentHash, Payload};
use super::chunked::ChunkHashes;
use super::claim;
use super::client::{Client, Request, Sink};
use super::location::{Checksum, STORAGE_CLASS_HEADER, Signing};
use crate::key::TEMPORARY_PART;
use crate::{Put, Rivals, Weakness};

/// The metadata that tells whose object it is.
pub(super) const MARK_HEADER: &str = "x-amz-meta-helios-mover-writer";
/// Writes of one object whose outcome stays unknown (created by us, deleted by others, and again).
const OUTCOMES_MAX: usize = 4;
/// How often the object of an upload that is gone is looked for again, and the pause before the first time. Each pause is twice
/// the one before, 8 s together: an earlier try whose answer got lost may have ended the upload, and its object be seen later.
const LOOKS_AGAIN_MAX: u32 = 5;
const LOOK_AGAIN_FIRST: Duration = Duration::from_millis(250);
/// What the server says of an upload in parts that was ended or thrown away.
pub(super) const NO_SUCH_UPLOAD: &str = "NoSuchUpload";

/// Whether a server keeps the promise of conditional writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Conditions {
    /// `If-None-Match: *` is refused where an object exists.
    Kept,
    /// It is not understood, or ignored.
    Ignored,
}

/// A random mark for one write.
pub(super) fn new_mark() -> Result<String> {
    Ok(hex::encode(&random_bytes::<16>()?))
}

/// Headers of the new object `name`. What is taken back soon (probes, claims) is encrypted as all objects are, and
/// neither locked nor put into a class of storage that charges for a minimal age.
pub(super) fn object_headers(
    client: &Client,
    name: &str,
    mark: &str,
) -> Vec<(&'static str, String)> {
    let location = &client.place.location;
    let own = name.strip_prefix(&location.prefix).unwrap_or(name);
    let is_temporary = own.split('/').next() == Some(TEMPORARY_PART);
    let mut headers = location.object_headers.clone();
    headers.retain(|(name, _)| !is_temporary || *name != STORAGE_CLASS_HEADER);
    headers.push((MARK_HEADER, mark.to_owned()));
    headers.push(("content-type", "application/octet-stream".to_owned()));
    if let Some((mode, days)) = location.lock.filter(|_| !is_temporary) {
        let until = Timestamp::from_micros(
            Timestamp::now()
                .as_micros()
                .saturating_add(i64::from(days) * 86_400_000_000),
        );
        headers.push(("x-amz-object-lock-mode", mode.to_owned()));
        headers.push(("x-amz-object-lock-retain-until-date", until.to_string()));
    }
    headers
}

/// A request that writes `payload` whole.
pub(super) fn put_request(client: &Client, name: &str, payload: Payload, mark: &str) -> Request {
    Request::new(Operation::Put, Method::PUT, name.to_owned())
        .headers(&object_headers(client, name, mark))
        .summed_payload(payload, client.place.location.checksum)
}

/// The mark of an object that one writer writes, as often as it takes: each of its tries bears the same.
pub(super) fn mark_of_copies(name: &str) -> String {
    hex::encode(&sha256(format!("copies of {name}").as_bytes())[..16])
}

/// Writes `payload` as the object `name` unless that exists.
pub(super) async fn put(
    client: &Client,
    name: &str,
    payload: Payload,
    rivals: Rivals,
) -> Result<Put> {
    let mark = match rivals {
        Rivals::Possible | Rivals::None => new_mark()?,
        Rivals::OwnTries => mark_of_copies(name),
    };
    match (conditions(client).await?, rivals) {
        (Conditions::Kept, _) => {}
        (Conditions::Ignored, Rivals::Possible) => return claim::put(client, name, payload).await,
        (Conditions::Ignored, Rivals::None | Rivals::OwnTries) => {
            return put_alone(client, name, payload, &mark).await;
        }
    }
    let request = put_request(client, name, payload, &mark);
    settle(client, &request.header("if-none-match", "*"), &mark).await
}

/// Sends a write that is conditional until it is known whether it created its object.
pub(super) async fn settle(client: &Client, request: &Request, mark: &str) -> Result<Put> {
    for _ in 0..OUTCOMES_MAX {
        let answer = client.send(request, &mut Sink::Answer).await?;
        if let Some(put) = outcome(client, request, answer, mark).await? {
            return Ok(put);
        }
    }
    Err(unsettled(&request.name))
}

/// Writes an object that nobody else can want to write. So the plainest look is enough: one that is wrong leads to the same bytes
/// once more, and what is refused besides is told by the write itself.
async fn put_alone(client: &Client, name: &str, payload: Payload, mark: &str) -> Result<Put> {
    let look = Request::new(Operation::Head, Method::HEAD, name.to_owned());
    let looked = client.send(&look, &mut Sink::Answer).await?;
    if looked.status.is_success() {
        return Ok(Put::Exists);
    }
    let request = put_request(client, name, payload, mark);
    client.send_small(&request).await?;
    Ok(Put::Created)
}

/// What the answer to a conditional write means; `None` where the object is gone again and the write may be repeated.
pub(super) async fn outcome(
    client: &Client,
    request: &Request,
    answer: Answer,
    mark: &str,
) -> Result<Option<Put>> {
    let is_gone = answer.error_code() == NO_SUCH_UPLOAD;
    let is_taken = answer.is_unmet_condition() || answer.status == StatusCode::CONFLICT || is_gone;
    let is_in_parts = request.operation == Operation::Multipart;
    let is_success = match is_in_parts {
        // Its head is sent before the server knows how it ends.
        true => answer.is_completion(),
        false => answer.status.is_success() && !answer.is_hidden_error(),
    };
    // An upload that was named by a try whose answer got lost is gone, and servers differ in how they say so.
    let is_named_perhaps = is_in_parts && !is_success;
    if !is_taken && !is_named_perhaps {
        client.succeeded(request, answer)?;
        return Ok(Some(Put::Created));
    }
    let may_come = is_gone || is_in_parts && answer.status == StatusCode::NOT_FOUND;
    let found = match may_come {
        true => mark_in_a_while(client, &request.name).await,
        false => mark_of(client, &request.name).await,
    };
    match found {
        Ok(Some(found)) if found == mark => Ok(Some(Put::Created)),
        // It is not ours, so the refusal stands.
        _ if !is_taken => {
            client.succeeded(request, answer)?;
            let said = "an upload was completed without its result";
            Err(not_s3(&client.place.location, said).object(request.name.as_str()))
        }
        Ok(Some(_)) => Ok(Some(Put::Exists)),
        Ok(None) if is_gone => client.succeeded(request, answer).map(|_| None),
        Ok(None) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The mark of the object `name`, which may come to be seen only in a while.
async fn mark_in_a_while(client: &Client, name: &str) -> Result<Option<String>> {
    let mut pause = LOOK_AGAIN_FIRST;
    for _ in 0..LOOKS_AGAIN_MAX {
        if let Some(found) = mark_of(client, name).await? {
            return Ok(Some(found));
        }
        client.shard.stop()?;
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    mark_of(client, name).await
}

/// The mark of the object `name`, empty for one without, or `None` where there is no object.
pub(super) async fn mark_of(client: &Client, name: &str) -> Result<Option<String>> {
    let found = head(client, name).await?;
    Ok(found.map(|answer| answer.header(MARK_HEADER).unwrap_or_default().to_owned()))
}

/// The headers of the object `name`, or `None` where there is none.
pub(super) async fn head(client: &Client, name: &str) -> Result<Option<Answer>> {
    let request = Request::new(Operation::Head, Method::HEAD, name.to_owned());
    let answer = client.send(&request, &mut Sink::Answer).await?;
    if answer.status.is_success() {
        return Ok(Some(answer));
    }
    // The answer to HEAD has no body, so it does not say what is missing: the object, or the bucket, or a right.
    let request = Request::new(Operation::Get, Method::GET, name.to_owned());
    let request = request.header("range", "bytes=0-0");
    let answer = client.send(&request, &mut Sink::Headers).await?;
    // An empty object has no first byte.
    if answer.status == StatusCode::RANGE_NOT_SATISFIABLE {
        return Ok(Some(answer));
    }
    match client.succeeded(&request, answer) {
        // It came into being between the two, or the answer to HEAD was a fault that has passed.
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.is_absence() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the server keeps conditional writes; asked once per job, by writing an object of our own twice.
pub(super) async fn conditions(client: &Client) -> Result<Conditions> {
    let known = &client.place.conditions;
    known
        .get_or_try_init(|| async {
            let name = new_probe_name(client)?;
            let found = probe(client, &name).await;
            withdraw_probe(client, &name).await;
            if found.as_ref().is_ok_and(|found| *found == Conditions::Ignored) {
                // `check` tells it to people.
                tracing::info!(
                    server = client.place.location.server(),
                    "the store ignores conditional writes; new objects are claimed first, which takes more requests"
                );
            }
            found
        })
        .await
        .copied()
}

/// What the names of objects begin with that only try out the server, behind [`TEMPORARY_PART`].
pub(super) const PROBE: &str = "probe-";

/// A name for an object that only tries out the server.
pub(super) fn new_probe_name(client: &Client) -> Result<String> {
    let prefix = &client.place.location.prefix;
    Ok(format!("{prefix}{TEMPORARY_PART}/{PROBE}{}", new_mark()?))
}

/// Deletes a probe. One that stays is small, hidden, and told by the leftovers; why it stays is kept for whoever tries the
/// store out.
pub(super) async fn withdraw_probe(client: &Client, name: &str) {
    if let Err(error) = delete(client, name).await {
        tracing::debug!(%error, "a probe was not deleted");
        let _ = client.place.undeleted.set(Weakness::from(&error));
    }
}

async fn probe(client: &Client, name: &str) -> Result<Conditions> {
    let payload = payload_of(client, b"helios-mover")?;
    let mark = new_mark()?;
    let first = put_request(client, name, payload.clone(), &mark).header("if-none-match", "*");
    let answer = client.send(&first, &mut Sink::Answer).await?;
    if answer.status == StatusCode::NOT_IMPLEMENTED {
        return Ok(Conditions::Ignored);
    }
    outcome(client, &first, answer, &mark).await?;
    let other = new_mark()?;
    let second = put_request(client, name, payload, &other).header("if-none-match", "*");
    let answer = client.send(&second, &mut Sink::Answer).await?;
    tried(client, &second, answer)
}

/// What the answer to a conditional write of what exists says of the server.
///
/// # Errors
/// A refusal for another reason: whoever took it for a server without conditions would write where others rely on them.
pub(super) fn tried(client: &Client, request: &Request, answer: Answer) -> Result<Conditions> {
    if answer.is_unmet_condition() {
        return Ok(Conditions::Kept);
    }
    if answer.is_not_implemented() {
        return Ok(Conditions::Ignored);
    }
    let taken = client.succeeded(request, answer);
    taken.map(|_| Conditions::Ignored)
}

/// Deletes the object `name`, whether it exists or not.
pub(super) async fn delete(client: &Client, name: &str) -> Result<()> {
    let request = Request::new(Operation::Delete, Method::DELETE, name.to_owned());
    let answer = client.send(&request, &mut Sink::Answer).await?;
    match client.succeeded(&request, answer) {
        Ok(_) => Ok(()),
        Err(error) if error.is_absence() => Ok(()),
        Err(error) => Err(error),
    }
}

/// A payload of bytes that are at hand, with the checksums that the place asks for.
pub(super) fn payload_of(client: &Client, bytes: &[u8]) -> Result<Payload> {
    let mut sums = Checksums::new(client, Signing::Whole);
    sums.update(bytes)?;
    Ok(sums.finish(vec![Bytes::copy_from_slice(bytes)], bytes.len() as u64))
}

/// What is computed over a payload while it is gathered.
pub(super) struct Checksums {
    hashes: Hashes,
    crc32c: Option<crc_fast::Digest>,
}

enum Hashes {
    None,
    Whole(Sha256Stream),
    Chunks(ChunkHashes),
}

impl Checksums {
    pub fn new(client: &Client, signing: Signing) -> Self {
        let location = &client.place.location;
        // Without TLS the signature has to cover the bytes; with it the transport does.
        let is_hashed = !location.is_tls() || location.checksum == Checksum::Sha256;
        let is_summed = location.checksum == Checksum::Crc32c;
        Checksums {
            hashes: match signing {
                _ if !is_hashed => Hashes::None,
                Signing::Whole => Hashes::Whole(Sha256Stream::new()),
                Signing::Chunks => Hashes::Chunks(ChunkHashes::default()),
            },
            crc32c: is_summed.then(|| crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi)),
        }
    }

    /// For the request that deletes objects.
    pub fn for_deletion(client: &Client) -> Self {
        let crc32c = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        Checksums {
            crc32c: Some(crc32c),
            ..Checksums::new(client, Signing::Whole)
        }
    }

    /// Adds the next bytes.
    ///
    /// # Errors
    /// Where the hashes of chunks come out wrong.
    pub fn update(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.hashes {
            Hashes::None => {}
            Hashes::Whole(sha256) => sha256.update(bytes),
            Hashes::Chunks(chunks) => chunks.update(bytes)?,
        }
        if let Some(crc32c) = &mut self.crc32c {
            crc32c.update(bytes);
        }
        Ok(())
    }

    pub fn finish(self, pieces: Vec<Bytes>, bytes: u64) -> Payload {
        Payload {
            pieces,
            bytes,
            hash: match self.hashes {
                Hashes::None => ContentHash::None,
                Hashes::Whole(sha256) => ContentHash::Whole(sha256.finish()),
                Hashes::Chunks(chunks) => chunks.finish(),
            },
            crc32c: self.crc32c.map(|crc32c| crc32c.finalize() as u32),
        }
    }
}

pub(super) fn unsettled(name: &str) -> Error {
    Error::new(
        Kind::Conflict,
        "an object comes and goes while it is written",
    )
    .object(name)
    .hint("something else deletes objects of this repository; stop it, then try again")
}
