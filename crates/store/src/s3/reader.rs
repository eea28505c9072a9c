//! Ranged reads into the arena's buffers.
//!
//! Invariants: a read brings exactly the bytes that were asked for, or an error; the server's word on which bytes
//! it sent is compared with the question.

use http::{Method, StatusCode};
use mover_base::{Error, Kind, Result};
use mover_io::Shard;

use super::S3Store;
use super::answer::{Answer, Operation};
use super::client::{Client, Request, Sink};
use crate::Slice;
use crate::bounds::{read_end, too_short};
use crate::key::Key;

/// Reads from one shard, over the connections that the shard keeps.
pub struct S3Reader {
    pub(super) store: S3Store,
    pub(super) shard: Shard,
}

impl S3Reader {
    pub(crate) async fn read(&self, key: &Key, offset: u64, len: usize) -> Result<Slice> {
        self.store.read(&self.shard, key, offset, len).await
    }
}

/// Reads exactly `len` bytes at `offset`.
pub(super) async fn read(client: &Client, key: &Key, offset: u64, len: usize) -> Result<Slice> {
    let end = read_end(key, offset, len)?;
    let mut buf = client.shard.buffer().await;
    if len == 0 {
        return Ok(Slice { buf, start: 0, len });
    }
    let last = end - 1;
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
