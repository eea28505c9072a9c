//! Deleting many objects by few requests (DeleteObjects).
//!
//! Invariants: an object counts as deleted where the server says so by name, or where it is looked for and not
//! found; a server that does not take the request as such is asked object by object, which says what is wrong if it is
//! not that; what an answer says beside an object counts as if it were said of a whole request: a fault that may pass is waited
//! out, as long as nothing else goes either, and the object asked for again without those that are gone; where a session is
//! refused or has expired, its credentials are renewed.

use std::collections::HashSet;
use std::time::Instant;

use http::Method;
use mover_base::{Error, Kind, Result};
use serde::Deserialize;

use super::answer::{
    Answer, Operation, escaped, expired, failed_again, is_expiry, is_passing_code,
    is_refusal_of_signer, is_slow_down,
};
use super::client::{Client, PATIENCE, Request, Sink};
use super::credentials::SignedBy;
use super::list::document;
use super::location::Checksum;
use super::put::{self, Checksums};
use crate::key::Key;

/// Objects of one request (a limit of S3).
const KEYS_MAX: usize = 1000;

#[derive(Deserialize)]
pub(super) struct DeleteResult {
    #[serde(rename = "Deleted", default)]
    deleted: Vec<Deleted>,
    #[serde(rename = "Error", default)]
    refused: Vec<Refused>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Deleted {
    key: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Refused {
    #[serde(default)]
    key: String,
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl DeleteResult {
    /// What stays, and why. What was absent is no object that stays.
    fn errors(&self) -> impl Iterator<Item = &Refused> {
        let errors = self.refused.iter();
        errors.filter(|one| one.code != "NoSuchKey")
    }

    /// Whether one of the errors has a code that is so.
    fn says(&self, is_so: fn(&str) -> bool) -> bool {
        self.errors().any(|one| is_so(&one.code))
    }
}

impl Refused {
    /// Whether the same may succeed later.
    fn may_pass(&self) -> bool {
        is_passing_code(&self.code)
    }

    /// What the server said, for people.
    fn said(&self) -> String {
        format!("{}: {}", escaped(&self.code), escaped(&self.message))
    }

    /// The object's name as the rest of the mover knows it.
    fn told(&self, client: &Client) -> String {
        let prefix = &client.place.location.prefix;
        escaped(self.key.strip_prefix(prefix).unwrap_or(&self.key))
    }

    /// The error that it is, where it does not pass.
    fn to_error(&self, client: &Client) -> Error {
        let object = self.told(client);
        match is_expiry(&self.code) {
            true => expired(&object, self.said()),
            false => stayed(&object).cause(self.said()),
        }
    }
}

/// Deletes the objects `keys`, whichever of them exist.
pub(super) async fn delete_all(client: &Client, keys: &[Key]) -> Result<()> {
    for keys in keys.chunks(KEYS_MAX) {
        delete_some(client, keys).await?;
    }
    Ok(())
}

/// Deletes as many objects as one request may name. What is refused for good is told when nothing else is left.
async fn delete_some(client: &Client, keys: &[Key]) -> Result<()> {
    let mut left: Vec<&Key> = keys.iter().collect();
    let (mut first_failure, mut retry) = (None, 0);
    let (mut is_again, mut may_be_doubted) = (false, true);
    let mut refusal = None;
    while !left.is_empty() {
        let before = left.len();
        let signed_by = client.place.signature.at_present().await;
        let Some(result) = ask(client, &left, is_again).await? else {
            one_by_one(client, &left).await?;
            left.clear();
            break;
        };
        is_again = true;
        let gone = result.deleted.iter().map(|one| one.key.as_str());
        strike_out(client, &mut left, gone);
        if may_be_doubted
            && (result.says(is_expiry) || result.says(is_refusal_of_signer))
            && let Some(signed_by) = signed_by
        {
            may_be_doubted = false;
            if may_others_sign(client, &result, &signed_by).await {
                continue;
            }
        }
        let refused = || result.errors().filter(|one| !one.may_pass());
        if let Some(one) = refused().next() {
            refusal.get_or_insert_with(|| one.to_error(client));
        }
        strike_out(client, &mut left, refused().map(|one| one.key.as_str()));
        let Some(failed) = result.errors().find(|one| one.may_pass()) else {
            break;
        };
        // A try that brought a part of it was none in vain.
        if left.len() < before {
            (first_failure, retry) = (None, 0);
        }
        let since = *first_failure.get_or_insert_with(Instant::now);
        let is_overload = result.says(is_slow_down);
        let next = client.wait_for_next_try(since, retry, is_overload, PATIENCE);
        if !next.await? {
            let object = failed.told(client);
            return Err(failed_again(Operation::Delete, &object, failed.said()));
        }
        tracing::debug!(retry, "trying again what has failed in a part of an answer");
        retry += 1;
    }
    match refusal {
        Some(refusal) => Err(refusal),
        // Some servers say nothing of what was absent.
        None => are_absent(client, &left).await,
    }
}

/// Whether others may sign from now on, since an answer says beside an object that who signed is not let in any more.
async fn may_others_sign(client: &Client, result: &DeleteResult, signed_by: &SignedBy) -> bool {
    let signature = &client.place.signature;
    if result.says(is_expiry) {
        signature.forget(signed_by);
        return true;
    }
    signed_by.is_for_a_time() && signature.renew(signed_by).await
}

/// What the server says of these objects. None: it wants no such request.
async fn ask(client: &Client, keys: &[&Key], is_again: bool) -> Result<Option<DeleteResult>> {
    let request = request(client, keys)?.again(is_again);
    let answer = client.send(&request, &mut Sink::Answer).await?;
    if is_not_taken(&answer) {
        return Ok(None);
    }
    let answer = client.succeeded(&request, answer)?;
    document(&client.place.location, &answer).map(Some)
}

/// Takes the objects of these names out.
fn strike_out<'n>(client: &Client, left: &mut Vec<&Key>, names: impl Iterator<Item = &'n str>) {
    let names: HashSet<&str> = names.collect();
    left.retain(|key| !names.contains(client.place.name_of(key).as_str()));
}

/// Fails where one of the objects, of which an answer says nothing, is there.
async fn are_absent(client: &Client, keys: &[&Key]) -> Result<()> {
    for key in keys {
        let found = put::head(client, &client.place.name_of(key)).await?;
        if found.is_some() {
            return Err(stayed(key.as_str()).cause("its answer leaves the object out"));
        }
    }
    Ok(())
}

/// Whether a server wants no such request, whatever objects it names: some know none, and some want another checksum.
fn is_not_taken(answer: &Answer) -> bool {
    match answer.status.as_u16() {
        405 | 501 => true,
        400 => matches!(
            answer.error_code(),
            "NotImplemented"
                | "MethodNotAllowed"
                | "InvalidRequest"
                | "InvalidArgument"
                | "MalformedXML"
                | "MissingContentMD5"
        ),
        _ => answer.is_not_implemented(),
    }
}

async fn one_by_one(client: &Client, keys: &[&Key]) -> Result<()> {
    for key in keys {
        put::delete(client, &client.place.name_of(key))
            .await
            .map_err(|error| error.object(key.as_str()))?;
    }
    Ok(())
}

fn request(client: &Client, keys: &[&Key]) -> Result<Request> {
    let mut text = String::from("<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for key in keys {
        let name = client.place.name_of(key);
        let name = quick_xml::escape::escape(name.as_str());
        text.push_str(&format!("<Object><Key>{name}</Key></Object>"));
    }
    text.push_str("</Delete>");
    // Amazon takes no such request without a checksum, whatever objects are written with.
    let mut sums = Checksums::for_deletion(client);
    sums.update(text.as_bytes())?;
    let bytes = text.len() as u64;
    Ok(Request::new(Operation::Delete, Method::POST, String::new())
        .query("delete", "")
        .header("content-type", "application/xml")
        .summed_payload(sums.finish(vec![text.into()], bytes), Checksum::Crc32c))
}

fn stayed(object: &str) -> Error {
    Error::new(Kind::Storage, "the store did not delete an object")
        .object(object)
        .hint("the credentials need s3:DeleteObject, and a locked object stays until its lock ends; others may be gone already")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, StatusCode};

    use super::super::location::{Location, Surroundings};
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        let status = StatusCode::from_u16(status).unwrap();
        Answer::new(status, HeaderMap::new(), Bytes::from(body.to_owned()))
    }

    /// In the order of the request, as some servers tell them.
    #[test]
    fn what_was_deleted_and_what_was_not_may_be_told_in_any_order() {
        let mixed = answer(
            200,
            "<?xml version=\"1.0\"?><DeleteResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
             <Error><Key>b</Key><Code>AccessDenied</Code><Message>no</Message></Error>\
             <Deleted><Key>a</Key></Deleted>\
             <Error><Key>c</Key><Code>InternalError</Code><Message>no</Message></Error>\
             <Deleted><Key>d</Key><DeleteMarker>true</DeleteMarker></Deleted></DeleteResult>",
        );
        let location = Location::parse("b?endpoint=http://h", &Surroundings::default()).unwrap();
        let result: DeleteResult = document(&location, &mixed).unwrap();
        let deleted = result.deleted.iter().map(|one| one.key.as_str());
        assert_eq!(deleted.collect::<Vec<_>>(), ["a", "d"]);
        let refused = result.refused.iter();
        let refused = refused.map(|one| (one.key.as_str(), one.code.as_str()));
        assert_eq!(
            refused.collect::<Vec<_>>(),
            [("b", "AccessDenied"), ("c", "InternalError")]
        );
    }

    #[test]
    fn a_server_that_wants_no_such_request_is_told_from_one_that_refuses() {
        let document = |code: &str| format!("<Error><Code>{code}</Code></Error>");
        for (status, code, is_so) in [
            (501, "NotImplemented", true),
            (405, "MethodNotAllowed", true),
            (400, "InvalidRequest", true),
            (400, "MissingContentMD5", true),
            (400, "ExpiredToken", false),
            (403, "AccessDenied", false),
            (200, "NotImplemented", true),
            (200, "AccessDenied", false),
        ] {
            let answer = answer(status, &document(code));
            assert_eq!(is_not_taken(&answer), is_so, "{status} {code}");
        }
    }
}
