//! Creating objects on a server that knows no conditional writes: a claim decides who may write.
//!
//! Who wants to create an object first writes a claim of its own beside it, then lists the claims. Alone, it may
//! write the object if that is still absent; in company it withdraws and comes back after a random pause. Of two
//! writers at least one sees the other, since each lists after it has written and listings show what was written
//! before, so never do both believe to be alone.
//!
//! Invariants: a claim counts for [`CLAIM_MS`] by the server's clock, and its holder names the object within half
//! of that by its own, or not at all; what takes long (sending the bytes) happens before the claim. Where the write
//! failed it may still arrive, so its claim is not withdrawn and runs out. This leans on consistent listings, which the
//! probe cannot prove: `check` says that the store is of the weaker kind.

use std::time::{Duration, Instant};

use mover_base::checksum::sha256;
use mover_base::{Error, Kind, Result, hex};
use mover_io::random_bytes;

use super::body::Payload;
use super::client::{Client, Request, Sink};
use super::list;
use super::multipart;
use super::put::{self, new_mark, put_request};
use crate::Put;
use crate::key::TEMPORARY_PART;

/// What the names of claims begin with, behind [`TEMPORARY_PART`].
pub(super) const CLAIM: &str = "claim-";
/// How long a claim keeps others away when its holder dies.
const CLAIM_MS: i64 = 60_000;
/// How long its holder may use it.
const USE_MAX: Duration = Duration::from_millis(CLAIM_MS as u64 / 2);
/// Payloads up to this are written under the claim; longer ones are sent first and named under it.
const INLINE_BYTES_MAX: u64 = 64 << 10;
/// Tries to be alone. With pauses that double up to 6 s they go on for about two minutes.
const TRIES_MAX: u32 = 40;
const PAUSE_FIRST_MS: u64 = 50;
const PAUSE_DOUBLINGS_MAX: u32 = 7;

/// Writes `payload` as the object `name` unless that exists.
pub(super) async fn put(client: &Client, name: &str, payload: Payload) -> Result<Put> {
    if payload.bytes <= INLINE_BYTES_MAX {
        let mark = new_mark()?;
        let request = put_request(client, name, payload, &mark);
        return claimed(client, name, &request, &mark).await;
    }
    if put::head(client, name).await?.is_some() {
        return Ok(Put::Exists);
    }
    let mut parts = multipart::Parts::begin(client, name, new_mark()?).await?;
    let put = match parts.send(client, payload).await {
        Ok(()) => parts.complete(client).await,
        Err(error) => Err(error),
    };
    if !matches!(put, Ok(Put::Created)) {
        parts.abandon(client);
    }
    put
}

/// Sends `request`, which names the object, as the only one who may. `mark` is that of the object.
pub(super) async fn claimed(
    client: &Client,
    name: &str,
    request: &Request,
    mark: &str,
) -> Result<Put> {
    let prefix = format!(
        "{}{TEMPORARY_PART}/{CLAIM}{}/",
        client.place.location.prefix,
        &hex::encode(&sha256(name.as_bytes()))[..32]
    );
    for attempt in 0..TRIES_MAX {
        if put::head(client, name).await?.is_some() {
            return Ok(Put::Exists);
        }
        let claim = format!("{prefix}{}", new_mark()?);
        let since = Instant::now();
        let ended = match turn(client, name, &prefix, &claim).await {
            // What failed here may still arrive, and would overwrite what others create without the claim.
            Ok(Turn::Write) => Ok(Some(write(client, name, request, mark, since).await?)),
            Ok(Turn::Exists) => Ok(Some(Put::Exists)),
            Ok(Turn::Wait) => Ok(None),
            Err(error) => Err(error),
        };
        // Left behind it would keep others away for a minute.
        let withdrawn = put::delete(client, &claim).await;
        if let Some(put) = ended? {
            return Ok(put);
        }
        withdrawn?;
        let bound = PAUSE_FIRST_MS << attempt.min(PAUSE_DOUBLINGS_MAX);
        tokio::time::sleep(Duration::from_millis(
            u64::from_ne_bytes(random_bytes()?) % bound,
        ))
        .await;
    }
    Err(Error::new(
        Kind::Conflict,
        "too many writers want to create the same object",
    )
    .object(name)
    .hint("let them run one after the other, or use a store that supports If-None-Match"))
}

/// What a claim comes to.
enum Turn {
    /// Ours alone: the object may be written.
    Write,
    /// The object was written meanwhile.
    Exists,
    /// There are others.
    Wait,
}

/// Claims the object `name`, and sends nothing yet that could create it.
async fn turn(client: &Client, name: &str, prefix: &str, claim: &str) -> Result<Turn> {
    if !is_alone(client, prefix, claim).await? {
        return Ok(Turn::Wait);
    }
    Ok(match put::head(client, name).await? {
        Some(_) => Turn::Exists,
        None => Turn::Write,
    })
}

/// Writes our claim and looks whether there are others.
async fn is_alone(client: &Client, prefix: &str, claim: &str) -> Result<bool> {
    let payload = put::payload_of(client, b"claim")?;
    let request = put_request(client, claim, payload, "claim");
    client.send_small(&request).await?;
    let found = list::all(client, prefix).await?;
    let mut is_alone = true;
    for object in &found.objects {
        if object.name == claim {
            continue;
        }
        let age_us = found
            .server_time
            .as_micros()
            .saturating_sub(object.modified.as_micros());
        match age_us / 1000 > CLAIM_MS {
            true => put::delete(client, &object.name).await?,
            false => is_alone = false,
        }
    }
    // A server that does not show what was just written gives no protection.
    match found.objects.iter().any(|object| object.name == claim) {
        true => Ok(is_alone),
        false => Err(Error::new(
            Kind::Storage,
            "the store neither supports conditional writes nor lists what was just written",
        )
        .object(client.place.location.server())
        .hint("a repository needs one of the two; use another store")),
    }
}

/// The step that decides, under a claim held since `since`.
async fn write(
    client: &Client,
    name: &str,
    request: &Request,
    mark: &str,
    since: Instant,
) -> Result<Put> {
    let left = USE_MAX.saturating_sub(since.elapsed());
    let late = || {
        Error::new(
            Kind::Unreachable,
            "the store was too slow to create an object safely",
        )
        .object(name)
        .hint("try again later")
    };
    let sent = tokio::time::timeout(left, client.send(request, &mut Sink::Answer)).await;
    let answer = sent.map_err(|_| late())??;
    // A try that was answered late may have been preceded by one that arrived.
    match put::outcome(client, request, answer, mark).await? {
        Some(put) => Ok(put),
        None => Err(put::unsettled(name)),
    }
}
