//! Objects written in parts: begun, filled, and named by one small request at the end.
//!
//! Invariants: parts are numbered from 1 without a gap, each of [`PART_BYTES`] but the last; nothing is visible
//! before the end; an upload that is given up is aborted, by the next request of its shard where nobody can wait (its
//! writer was cancelled: whoever holds one has a drop that sees to it, see [`Guarded`]), unless its writer will come back;
//! a part of an earlier try is taken for sent only where length and checksum match.

use std::collections::BTreeMap;

use http::Method;
use mover_base::{Error, Kind, Result};
use serde::Deserialize;

use super::answer::Operation;
use super::body::Payload;
use super::claim;
use super::client::{Client, Request, Sink};
use super::list::{self, ThinPages, disorder, document};
use super::location::Checksum;
use super::put::{
    self, Conditions, NO_SUCH_UPLOAD, new_mark, new_probe_name, object_headers, put_request,
    withdraw_probe,
};
use crate::{Put, Weakness};

/// Bytes of a part: more than any pack, so that packs are written by one request each.
pub(super) const PART_BYTES: usize = 16 << 20;
/// Parts of one object (a limit of S3).
const PARTS_MAX: usize = 10_000;
/// Parts in one page of their listing (a limit of S3).
const PAGE_PARTS_MAX: usize = 1000;

/// An upload under way.
pub(super) struct Parts {
    name: String,
    id: String,
    mark: String,
    /// In order.
    sent: Vec<Part>,
    /// What an earlier try has sent, by number.
    found: BTreeMap<usize, FoundPart>,
}

/// A part that the server has.
struct Part {
    tag: String,
    /// Where one was sent with it.
    sum: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct InitiateMultipartUploadResult {
    upload_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListPartsResult {
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_part_number_marker: Option<usize>,
    #[serde(default)]
    part: Vec<FoundPart>,
}

/// A part as a listing shows it.
#[derive(Deserialize)]
struct FoundPart {
    #[serde(rename = "PartNumber")]
    number: usize,
    #[serde(rename = "Size")]
    bytes: u64,
    #[serde(rename = "ETag", default)]
    tag: String,
    #[serde(rename = "ChecksumCRC32C", default)]
    crc32c: Option<String>,
    #[serde(rename = "ChecksumSHA256", default)]
    sha256: Option<String>,
}

impl FoundPart {
    /// Its checksum of that kind.
    fn sum(&self, checksum: Checksum) -> Option<&String> {
        match checksum {
            Checksum::None => None,
            Checksum::Crc32c => self.crc32c.as_ref(),
            Checksum::Sha256 => self.sha256.as_ref(),
        }
    }

    /// The part, if it holds what `payload` does by length and checksum.
    fn holding(self, payload: &Payload, checksum: Checksum) -> Option<Part> {
        let sum = self.sum(checksum).cloned();
        let is_same = sum.is_some() && sum == payload.sum(checksum) && self.bytes == payload.bytes;
        (is_same && !self.tag.is_empty()).then_some(Part { tag: self.tag, sum })
    }
}

impl Parts {
    /// Begins an upload of the object `name`, which will bear `mark`.
    pub async fn begin(client: &Client, name: &str, mark: String) -> Result<Self> {
        let mut request = Request::new(Operation::Multipart, Method::POST, name.to_owned())
            .query("uploads", "")
            .headers(&object_headers(client, name, &mark));
        // Amazon takes no checksum of a part that was not announced here.
        if let Some(algorithm) = client.place.location.checksum.algorithm() {
            request = request.header("x-amz-checksum-algorithm", algorithm);
        }
        let answer = client.send_small(&request).await?;
        let result: InitiateMultipartUploadResult = document(&client.place.location, &answer)?;
        Ok(Parts {
            name: name.to_owned(),
            id: result.upload_id,
            mark,
            sent: Vec::new(),
            found: BTreeMap::new(),
        })
    }

    /// Takes up what an earlier try of the same writer has begun last, or begins.
    pub async fn resume(client: &Client, name: &str) -> Result<Self> {
        let mark = put::mark_of_copies(name);
        // Not every server lists uploads, and not every key may. What is not known is sent again.
        let uploads = list::uploads(client, name).await;
        let uploads = uploads.map_or_else(|error| unknown(&error), |(uploads, _)| uploads);
        let own = uploads.into_iter().filter(|upload| upload.name == name);
        let Some(last) = own.max_by_key(|upload| upload.begun) else {
            return Parts::begin(client, name, mark).await;
        };
        let found = found_parts(client, name, &last.id).await;
        let found = found.unwrap_or_else(|error| unknown(&error));
        if found.is_empty() {
            // Perhaps it was begun for another kind of checksum, and would take none of our parts.
            client.abandon(name.to_owned(), last.id);
            return Parts::begin(client, name, mark).await;
        }
        Ok(Parts {
            name: name.to_owned(),
            id: last.id,
            mark,
            sent: Vec::new(),
            found,
        })
    }

    /// Sends the next part, unless the server has it.
    pub async fn send(&mut self, client: &Client, payload: Payload) -> Result<()> {
        let number = self.sent.len() + 1;
        if number > PARTS_MAX {
            return Err(Error::new(
                Kind::Limit,
                format!("an object of more than {PARTS_MAX} parts"),
            )
            .object(self.name.as_str()));
        }
        let checksum = client.place.location.checksum;
        let found = self.found.remove(&number);
        if let Some(part) = found.and_then(|found| found.holding(&payload, checksum)) {
            self.sent.push(part);
            return Ok(());
        }
        let sum = payload.sum(checksum);
        let request = Request::new(Operation::Multipart, Method::PUT, self.name.clone())
            .query("partNumber", number.to_string())
            .query("uploadId", self.id.clone())
            .summed_payload(payload, checksum);
        let answer = client.send_small(&request).await?;
        let tag = answer.header("etag").ok_or_else(|| {
            super::answer::not_s3(&client.place.location, "a part was taken without an ETag")
        })?;
        self.sent.push(Part {
            tag: tag.to_owned(),
            sum,
        });
        Ok(())
    }

    /// Names the object unless that exists. An upload that did not become the object is the caller's to throw away.
    pub async fn complete(&self, client: &Client) -> Result<Put> {
        let request = self.complete_request(client)?;
        if conditions(client).await? == Conditions::Ignored {
            return claim::claimed(client, &self.name, &request, &self.mark).await;
        }
        let request = request.header("if-none-match", "*");
        put::settle(client, &request, &self.mark).await
    }

    fn complete_request(&self, client: &Client) -> Result<Request> {
        let element = client.place.location.checksum.algorithm();
        let mut text = String::from("<CompleteMultipartUpload>");
        for (at, part) in self.sent.iter().enumerate() {
            let tag = quick_xml::escape::escape(&part.tag);
            let sum = match (element, &part.sum) {
                (Some(name), Some(sum)) => format!("<Checksum{name}>{sum}</Checksum{name}>"),
                _ => String::new(),
            };
            text.push_str(&format!(
                "<Part><PartNumber>{}</PartNumber><ETag>{tag}</ETag>{sum}</Part>",
                at + 1
            ));
        }
        text.push_str("</CompleteMultipartUpload>");
        // No checksum goes along: here it would be taken for that of the object.
        let payload = put::payload_of(client, text.as_bytes())?;
        let request = Request::new(Operation::Multipart, Method::POST, self.name.clone());
        Ok(request
            .query("uploadId", self.id.clone())
            .header("content-type", "application/xml")
            .payload(payload))
    }

    /// Throws the upload away.
    pub async fn abort(&self, client: &Client) -> Result<()> {
        abort(client, &self.name, &self.id).await
    }

    /// Throws the upload away later, where nobody can wait.
    pub fn abandon(&self, client: &Client) {
        client.abandon(self.name.clone(), self.id.clone());
    }
}

/// An upload that is thrown away, later, unless it was [settled](Guarded::settle): also where its writer is cancelled.
pub(super) struct Guarded<'a> {
    client: &'a Client,
    pub parts: Parts,
    is_settled: bool,
}

impl<'a> Guarded<'a> {
    pub fn new(client: &'a Client, parts: Parts) -> Self {
        Guarded {
            client,
            parts,
            is_settled: false,
        }
    }

    /// It has become its object, or was thrown away.
    pub fn settle(mut self) {
        self.is_settled = true;
    }
}

impl Drop for Guarded<'_> {
    fn drop(&mut self) {
        if !self.is_settled {
            self.parts.abandon(self.client);
        }
    }
}

/// What stands for a listing that could not be had.
fn unknown<T: Default>(error: &Error) -> T {
    tracing::debug!(%error, "what an earlier try has sent is not known");
    T::default()
}

/// The parts of an unfinished upload that bear our kind of checksum, by number.
async fn found_parts(client: &Client, name: &str, id: &str) -> Result<BTreeMap<usize, FoundPart>> {
    let checksum = client.place.location.checksum;
    let mut all = BTreeMap::new();
    let mut marker = 0;
    let mut thin_pages = ThinPages::default();
    loop {
        let request = Request::new(Operation::Multipart, Method::GET, name.to_owned())
            .query("uploadId", id.to_owned())
            .query("max-parts", PAGE_PARTS_MAX.to_string())
            .query("part-number-marker", marker.to_string());
        let answer = client.send_small(&request).await?;
        let result: ListPartsResult = document(&client.place.location, &answer)?;
        let is_endless = thin_pages.are_too_many(result.part.len(), PAGE_PARTS_MAX);
        let summed = result.part.into_iter();
        let summed = summed.filter(|part| part.sum(checksum).is_some());
        all.extend(summed.map(|part| (part.number, part)));
        let next = result.next_part_number_marker.unwrap_or(0);
        // Pages that do not go forward bring nothing more; what is not known is sent again.
        if !result.is_truncated || next <= marker || all.len() > PARTS_MAX {
            return Ok(all);
        }
        // Parts are numbered up to a limit, so full pages come to their end.
        if is_endless || next > PARTS_MAX {
            let message = "the store's listing of parts does not end";
            return Err(disorder(&client.place.location, message, "ListParts"));
        }
        marker = next;
    }
}

/// Throws an upload away, whether it exists or not.
pub(super) async fn abort(client: &Client, name: &str, id: &str) -> Result<()> {
    let request = Request::new(Operation::Abort, Method::DELETE, name.to_owned())
        .query("uploadId", id.to_owned());
    let answer = client.send(&request, &mut Sink::Answer).await?;
    if answer.error_code() == NO_SUCH_UPLOAD {
        return Ok(());
    }
    match client.succeeded(&request, answer) {
        Ok(_) => Ok(()),
        // Servers differ in how they say so.
        Err(error) if error.is_absence() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Aborts what was dropped. Its failure harms nobody: the leftovers are found by their age.
pub(super) async fn abort_abandoned(client: &Client) {
    loop {
        // Who is cancelled in the middle leaves the rest to the next, also the one that is under way.
        let next = client.abandoned.borrow().last().cloned();
        let Some((name, id)) = next else { return };
        if let Err(error) = abort(client, &name, &id).await {
            tracing::debug!(name, %error, "an unfinished upload was not aborted");
        }
        client.abandoned.borrow_mut().retain(|(_, of)| *of != id);
    }
}

/// Whether the server keeps conditions at the end of an upload too; asked once per job that needs it.
pub(super) async fn conditions(client: &Client) -> Result<Conditions> {
    if put::conditions(client).await? == Conditions::Ignored {
        return Ok(Conditions::Ignored);
    }
    let known = &client.place.multipart_conditions;
    known
        .get_or_try_init(|| async {
            let name = new_probe_name(client)?;
            let found = probe(client, &name).await;
            withdraw_probe(client, &name).await;
            found
        })
        .await
        .copied()
}

async fn probe(client: &Client, name: &str) -> Result<Conditions> {
    let payload = put::payload_of(client, b"helios-mover")?;
    let request = put_request(client, name, payload.clone(), &new_mark()?);
    client.send_small(&request).await?;
    let parts = Parts::begin(client, name, new_mark()?).await?;
    let mut upload = Guarded::new(client, parts);
    let found = completed_twice(client, &mut upload.parts, payload).await;
    // After a completion there is nothing left, which is no error.
    let aborted = abort(client, name, &upload.parts.id).await;
    // Whoever refused that would refuse it again.
    upload.settle();
    if let Err(error) = aborted {
        tracing::debug!(%error, "the upload of a probe was not aborted");
        let _ = client.place.undeleted.set(Weakness::from(&error));
    }
    found
}

/// Completes an upload of an object that exists.
async fn completed_twice(
    client: &Client,
    parts: &mut Parts,
    payload: Payload,
) -> Result<Conditions> {
    parts.send(client, payload).await?;
    let request = parts.complete_request(client)?;
    let request = request.header("if-none-match", "*");
    let answer = client.send(&request, &mut Sink::Answer).await?;
    put::tried(client, &request, answer)
}
