//! Ranged reads into the arena's buffers.
//!
//! Invariants: a read brings exactly the bytes that were asked for, or an error; the server's word on which bytes
//! it sent is compared with the question.

use std::rc::Rc;

use http::{Method, StatusCode};
use mover_base::{Error, Kind, Result};

use super::answer::{Answer, Operation};
use super::client::{Client, Request, Sink};
use crate::key::Key;
use crate::{READ_BYTES_MAX, Slice};

/// Reads from one shard; the connections are what is kept from one read to the next.
pub struct S3Reader(pub(super) Result<Rc<Client>>);

impl S3Reader {
    pub(crate) async fn read(&self, key: &Key, offset: u64, len: usize) -> Result<Slice> {
        match &self.0 {
            Ok(client) => read(client, key, offset, len).await,
            // The error is told at each read: there is no other place for it.
            Err(error) => {
                let again = Error::new(error.kind(), error.message());
                let again = match error.object_name() {
                    Some(object) => again.object(object),
                    None => again,
                };
                Err(match error.hint_text() {
                    Some(hint) => again.hint(hint),
                    None => again,
                })
            }
        }
    }
}

/// Reads exactly `len` bytes at `offset`.
pub(super) async fn read(client: &Client, key: &Key, offset: u64, len: usize) -> Result<Slice> {
    if len > READ_BYTES_MAX {
        return Err(Error::new(
            Kind::Limit,
            format!("a read is longer than {READ_BYTES_MAX} bytes"),
        )
        .object(key.as_str()));
    }
    let last = offset
        .checked_add(len as u64)
        .filter(|end| *end <= i64::MAX as u64)
        .ok_or_else(|| too_short(key))?;
    let mut buf = client.shard.buffer().await;
    if len == 0 {
        return Ok(Slice { buf, start: 0, len });
    }
    let last = last - 1;
    let request = Request::new(Operation::Get, Method::GET, client.place.name_of(key))
        .header("range", format!("bytes={offset}-{last}"));
    // The end of the object cuts a range short, which looks like a broken connection unless its size is known.
    let answer = {
        let mut sink = Sink::Range { buf: &mut buf, len };
        client.send(&request, &mut sink).await?
    };
    if answer.status == StatusCode::RANGE_NOT_SATISFIABLE {
        return Err(too_short(key));
    }
    let answer = client.succeeded(&request, answer)?;
    check_range(&answer, key, offset, last)?;
    Ok(Slice { buf, start: 0, len })
}

/// Whether the server sent the range that was asked for.
fn check_range(answer: &Answer, key: &Key, first: u64, last: u64) -> Result<()> {
    let sent = answer.header("content-range").and_then(parse_content_range);
    match sent {
        Some((sent_first, sent_last)) if (sent_first, sent_last) == (first, last) => Ok(()),
        Some((sent_first, sent_last)) if sent_first == first && sent_last < last => {
            Err(too_short(key))
        }
        // Without ranges the whole object comes; from its beginning and of that length it is the same.
        None if answer.status == StatusCode::OK && first == 0 => Ok(()),
        _ => Err(Error::new(
            Kind::Storage,
            "the store sent other bytes than it was asked for",
        )
        .object(key.as_str())
        .hint("the server, or a proxy before it, does not support ranged reads")),
    }
}

/// First and last byte of `bytes 5-9/100`.
pub(super) fn parse_content_range(text: &str) -> Option<(u64, u64)> {
    let (range, _) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
}

/// The error for an object that ends before bytes which must be there.
pub(super) fn too_short(key: &Key) -> Error {
    Error::new(Kind::Corrupt, "object is shorter than expected")
        .object(key.as_str())
        .hint("it was cut off after it was written; verify the repository and restore the object from a replica")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_is_read() {
        assert_eq!(parse_content_range("bytes 5-9/100"), Some((5, 9)));
        assert_eq!(parse_content_range("bytes 0-0/*"), Some((0, 0)));
        for bad in ["", "bytes */100", "items 1-2/3", "bytes 1-2", "bytes a-b/3"] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
