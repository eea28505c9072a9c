//! Deleting many objects by few requests (DeleteObjects).
//!
//! Invariants: an object counts as deleted where the server says so by name, or where it is looked for and not
//! found; a server that does not take the request as such is asked object by object, which says what is wrong if it is
//! not that.

use http::Method;
use mover_base::{Error, Kind, Result};
use serde::Deserialize;

use super::answer::{Answer, Operation, escaped};
use super::client::{Client, Request, Sink};
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

/// Deletes the objects `keys`, whichever of them exist.
pub(super) async fn delete_all(client: &Client, keys: &[Key]) -> Result<()> {
    for keys in keys.chunks(KEYS_MAX) {
        let request = request(client, keys)?;
        let answer = client.send(&request, &mut Sink::Answer).await?;
        if is_not_taken(&answer) {
            one_by_one(client, keys.iter()).await?;
            continue;
        }
        let answer = client.succeeded(&request, answer)?;
        let result: DeleteResult = document(&client.place.location, &answer)?;
        // What was absent is no object that stays.
        let mut refused = result.refused.iter();
        if let Some(refused) = refused.find(|one| one.code != "NoSuchKey") {
            return Err(refusal(client, refused));
        }
        let mut told: Vec<&str> = result.deleted.iter().map(|one| one.key.as_str()).collect();
        told.sort_unstable();
        let untold = keys.iter().filter(|key| {
            told.binary_search(&client.place.name_of(key).as_str())
                .is_err()
        });
        // Some servers say nothing of what was absent.
        for key in untold {
            if put::head(client, &client.place.name_of(key))
                .await?
                .is_some()
            {
                return Err(stayed(key.as_str()).cause("its answer leaves the object out"));
            }
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

async fn one_by_one(client: &Client, keys: impl Iterator<Item = &Key>) -> Result<()> {
    for key in keys {
        put::delete(client, &client.place.name_of(key))
            .await
            .map_err(|error| error.object(key.as_str()))?;
    }
    Ok(())
}

fn request(client: &Client, keys: &[Key]) -> Result<Request> {
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

fn refusal(client: &Client, refused: &Refused) -> Error {
    let prefix = &client.place.location.prefix;
    let object = refused.key.strip_prefix(prefix).unwrap_or(&refused.key);
    stayed(&escaped(object)).cause(format!(
        "{}: {}",
        escaped(&refused.code),
        escaped(&refused.message)
    ))
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
