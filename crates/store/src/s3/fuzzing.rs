//! Answers of a server as fuzzing gives them, read as whatever they may be an answer to.
//!
//! Invariants, which are asserted here: nothing that a server sends makes reading it panic; no control character of it gets
//! into a message; a run of bytes takes no byte that it did not ask for.

use std::collections::VecDeque;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use mover_base::Error;

use super::answer::{Answer, Operation};
use super::list::{document, parse, parse_uploads};
use super::location::{Location, Surroundings};
use super::multipart::{InitiateMultipartUploadResult, ListPartsResult};
use super::remove::DeleteResult;
use super::run::{BodyEnd, Run};
use crate::Slice;
use crate::key::Key;

const OPERATIONS: [Operation; 8] = [
    Operation::Put,
    Operation::Get,
    Operation::Head,
    Operation::List,
    Operation::Delete,
    Operation::Multipart,
    Operation::Abort,
    Operation::Uploads,
];

/// Where the answers come from.
const PLACE: &str = "bucket/prefix?endpoint=http://host&region=here";

/// Offsets and pieces of the runs that answers are to bring: whole objects may come in place of the first only.
const RUN_BEGINS: [u64; 2] = [0, 100];
const RUN_PIECES: [usize; 3] = [10, 1, 20];

/// An answer of a status, headers and a body; none where these make none.
fn answer(status: u16, headers: &[(&str, &[u8])], body: &[u8]) -> Option<Answer> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        map.insert(name, HeaderValue::from_bytes(value).ok()?);
    }
    let status = StatusCode::from_u16(status).ok()?;
    Some(Answer::new(status, map, Bytes::copy_from_slice(body)))
}

fn check(error: &Error) {
    assert!(!error.to_string().contains(char::is_control), "{error:?}");
}

/// Reads an answer in every way that one is read.
pub fn read_answer(status: u16, headers: &[(&str, &[u8])], body: &[u8]) {
    let Ok(location) = Location::parse(PLACE, &Surroundings::default()) else {
        return;
    };
    for operation in OPERATIONS {
        let Some(answer) = answer(status, headers, body) else {
            return;
        };
        let _ = (answer.is_hidden_error(), answer.may_pass(operation));
        let _ = (answer.asks_to_slow_down(), answer.is_expired());
        check(&answer.into_error(operation, "object", &location));
    }
    let Some(answer) = answer(status, headers, body) else {
        return;
    };
    let names = parse(&location, &answer).map(drop);
    let uploads = parse_uploads(&location, &answer).map(drop);
    let begun = document::<InitiateMultipartUploadResult>(&location, &answer).map(drop);
    let parts = document::<ListPartsResult>(&location, &answer).map(drop);
    let deleted = document::<DeleteResult>(&location, &answer).map(drop);
    for error in [names, uploads, begun, parts, deleted] {
        let _ = error.inspect_err(check);
    }
    for begin in RUN_BEGINS {
        fill(&answer, begin);
    }
}

/// Takes an answer's body for the bytes of a run, twice: the second one as what a first one left.
fn fill(answer: &Answer, begin: u64) {
    let Ok(key) = Key::new("object") else { return };
    let mut taken = Vec::new();
    let mut take = |piece: Slice| taken.push(piece.len());
    let pieces: VecDeque<Slice> = RUN_PIECES.map(Slice::on_heap).into();
    let mut run = Run::new(&key, begin, pieces, &mut take);
    for _ in 0..2 {
        if run.begin_answer(answer).inspect_err(check).is_err() {
            continue;
        }
        let left = run.left();
        for bytes in answer.body.chunks(7) {
            if run.fill(bytes).inspect_err(check).is_err() {
                break;
            }
        }
        assert!(run.left() <= left);
        assert!(run.left() == 0 || run.end_answer() == BodyEnd::Early || run.left() < left);
    }
    let all = run.left() == 0;
    drop(run);
    assert!(RUN_PIECES.starts_with(&taken));
    assert_eq!(all, taken.len() == RUN_PIECES.len());
}

/// Reads the part of a repository's URL behind `s3://`.
pub fn read_place(text: &str) {
    let _ = Location::parse(text, &Surroundings::default());
}
