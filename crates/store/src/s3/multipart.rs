//! Objects written in parts: begun, filled, and named by one small request at the end.
//!
//! Invariants: parts are numbered from 1 without a gap, each of [`PART_BYTES`] but the last; nothing is visible
//! before the end; an upload that is given up is aborted, by the next request of its shard where nobody can wait.

use http::Method;
use mover_base::{Error, Kind, Result};
use serde::Deserialize;

use super::answer::Operation;
use super::body::Payload;
use super::claim;
use super::client::{Client, Request, Sink};
use super::list::document;
use super::put::{
    self, Conditions, new_mark, new_probe_name, object_headers, put_request, withdraw_probe,
};
use crate::Put;

/// Bytes of a part: more than any pack, so that packs are written by one request each.
pub(super) const PART_BYTES: usize = 16 << 20;
/// Parts of one object (a limit of S3).
const PARTS_MAX: usize = 10_000;

/// An upload under way.
pub(super) struct Parts {
    name: String,
    id: String,
    mark: String,
    /// Their tags, in order.
    tags: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InitiateMultipartUploadResult {
    upload_id: String,
}

impl Parts {
    pub async fn begin(client: &Client, name: &str) -> Result<Self> {
        let mark = new_mark()?;
        let request = Request::new(Operation::Multipart, Method::POST, name.to_owned())
            .query("uploads", "")
            .headers(&object_headers(client, name, &mark));
        let answer = client.send_small(&request).await?;
        let result: InitiateMultipartUploadResult = document(client, &answer)?;
        Ok(Parts {
            name: name.to_owned(),
            id: result.upload_id,
            mark,
            tags: Vec::new(),
        })
    }

    /// Sends the next part.
    pub async fn send(&mut self, client: &Client, payload: Payload) -> Result<()> {
        let number = self.tags.len() + 1;
        if number > PARTS_MAX {
            return Err(Error::new(
                Kind::Limit,
                format!("an object of more than {PARTS_MAX} parts"),
            )
            .object(self.name.as_str()));
        }
        let request = Request::new(Operation::Multipart, Method::PUT, self.name.clone())
            .query("partNumber", number.to_string())
            .query("uploadId", self.id.clone())
            .payload(payload);
        let answer = client.send_small(&request).await?;
        let tag = answer.header("etag").ok_or_else(|| {
            super::answer::not_s3(&client.place.location, "a part was taken without an ETag")
        })?;
        self.tags.push(tag.to_owned());
        Ok(())
    }

    /// Names the object unless that exists. An upload that did not become the object is the caller's to throw away.
    pub async fn complete(&self, client: &Client) -> Result<Put> {
        if conditions(client).await? == Conditions::Ignored {
            let request = self.complete_request(client);
            return claim::claimed(client, &self.name, &request, &self.mark).await;
        }
        let request = self.complete_request(client).header("if-none-match", "*");
        put::settle(client, &request, &self.mark).await
    }

    /// The same on a server without conditional writes.
    pub async fn complete_claimed(self, client: &Client) -> Result<Put> {
        let request = self.complete_request(client);
        let put = claim::claimed(client, &self.name, &request, &self.mark).await;
        if !matches!(put, Ok(Put::Created)) {
            self.abandon(client);
        }
        put
    }

    fn complete_request(&self, client: &Client) -> Request {
        let mut text = String::from("<CompleteMultipartUpload>");
        for (at, tag) in self.tags.iter().enumerate() {
            let tag = quick_xml::escape::escape(tag);
            text.push_str(&format!(
                "<Part><PartNumber>{}</PartNumber><ETag>{tag}</ETag></Part>",
                at + 1
            ));
        }
        text.push_str("</CompleteMultipartUpload>");
        let mut payload = put::payload_of(client, text.as_bytes());
        // A checksum here would be taken for that of the object.
        payload.crc32c = None;
        Request::new(Operation::Multipart, Method::POST, self.name.clone())
            .query("uploadId", self.id.clone())
            .header("content-type", "application/xml")
            .payload(payload)
    }

    /// Throws the upload away.
    pub async fn abort(self, client: &Client) -> Result<()> {
        abort(client, &self.name, &self.id).await
    }

    /// Throws the upload away later, where nobody can wait.
    pub fn abandon(&self, client: &Client) {
        client.abandon(self.name.clone(), self.id.clone());
    }
}

/// Throws an upload away, whether it exists or not.
pub(super) async fn abort(client: &Client, name: &str, id: &str) -> Result<()> {
    let request = Request::new(Operation::Multipart, Method::DELETE, name.to_owned())
        .query("uploadId", id.to_owned());
    let answer = client.send(&request, &mut Sink::Answer).await?;
    match client.succeeded(&request, answer) {
        Ok(_) => Ok(()),
        Err(error) if put::is_absent(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Aborts what was dropped. Its failure harms nobody: the leftovers are found by their age.
pub(super) async fn abort_abandoned(client: &Client) {
    let abandoned = std::mem::take(&mut *client.abandoned.borrow_mut());
    for (name, id) in abandoned {
        if let Err(error) = abort(client, &name, &id).await {
            tracing::debug!(name, %error, "an unfinished upload was not aborted");
        }
    }
}

/// Whether the server keeps conditions at the end of an upload too; asked once per job that needs it.
async fn conditions(client: &Client) -> Result<Conditions> {
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
    let payload = put::payload_of(client, b"helios-mover");
    let request = put_request(client, name, payload.clone(), &new_mark()?);
    client.send_small(&request).await?;
    let mut parts = Parts::begin(client, name).await?;
    parts.send(client, payload).await?;
    let request = parts.complete_request(client).header("if-none-match", "*");
    let answer = client.send(&request, &mut Sink::Answer).await?;
    if answer.status.is_success() && !answer.is_hidden_error() {
        return Ok(Conditions::Ignored);
    }
    let is_kept = answer.status == http::StatusCode::PRECONDITION_FAILED;
    parts.abort(client).await?;
    Ok(match is_kept {
        true => Conditions::Kept,
        false => Conditions::Ignored,
    })
}
