//! A run of neighbouring bytes that one request asks for, cut into the pieces that it fills one after another.
//!
//! Invariants: all room is there before the request is sent, so an answer never waits for memory, and whoever waits for
//! memory holds no request; each piece is handed out once, in order, as soon as it is full; a try asks for what no try
//! before it brought; bytes are taken only from an answer that says it brings what comes next.

use std::collections::VecDeque;

use http::StatusCode;
use mover_base::{Error, Kind, Result};
use mover_io::{BUF_BYTES, Shard};

use super::answer::Answer;
use crate::bounds::too_short;
use crate::key::Key;
use crate::{READ_BYTES_MAX, RUN_BYTES_MAX, Slice};

/// With a limit so low that it would be less, a request still asks for so many bytes.
const LIMITED_BYTES_MIN: u64 = 64 << 10;

/// What is still missing of a run, and who gets it.
pub(super) struct Run<'a> {
    key: &'a Key,
    /// Of the first byte that was asked for.
    begin: u64,
    /// Of the byte that comes next.
    next: u64,
    end: u64,
    /// Up to there the next request asks.
    asked_end: u64,
    /// Those that are not full yet.
    pieces: VecDeque<Slice>,
    /// Bytes of the first of them that are there.
    filled: usize,
    take: &'a mut dyn FnMut(Slice),
    /// Where the answer ends that is being taken in.
    answer_end: u64,
    /// Bytes at its beginning that were not asked for.
    skip: u64,
}

/// How an answer's body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyEnd {
    /// It brought what its head said.
    Complete,
    /// It broke off.
    Early,
}

/// Room for as many of the first pieces as there are buffers for. One is waited for while none is held, so runs cannot
/// wait for each other. What is longer than a buffer lies on the heap.
pub(super) async fn room(shard: &Shard, lens: &[usize]) -> VecDeque<Slice> {
    let mut pieces = VecDeque::new();
    let mut bytes = 0;
    for &len in lens {
        bytes += len as u64;
        if bytes > RUN_BYTES_MAX && !pieces.is_empty() {
            break;
        }
        if len > BUF_BYTES {
            pieces.push_back(Slice::on_heap(len));
            continue;
        }
        let buf = match pieces.is_empty() {
            true => Some(shard.buffer().await),
            false => shard.try_buffer(),
        };
        match buf {
            Some(buf) => pieces.push_back(Slice::in_buffer(buf, 0, len)),
            None => break,
        }
    }
    pieces
}

/// How many bytes one request may ask for where a download has a limit, in bytes per second: they are paid for before they are
/// asked for and then come as fast as the link is. As many as each of the shards may bring in a seventh of a second stay within 3 % of
/// the limit over 5 s. Less than [`LIMITED_BYTES_MIN`] is not worth a request.
pub(super) fn request_bytes_max(limit: Option<u64>, shards: usize) -> u64 {
    limit.map_or(u64::MAX, |limit| {
        let share = limit / shards.max(1) as u64;
        (share / 7).clamp(LIMITED_BYTES_MIN, READ_BYTES_MAX as u64)
    })
}

impl<'a> Run<'a> {
    pub fn new(
        key: &'a Key,
        offset: u64,
        pieces: VecDeque<Slice>,
        take: &'a mut dyn FnMut(Slice),
    ) -> Self {
        let bytes: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        let mut run = Run {
            key,
            begin: offset,
            next: offset,
            end: offset + bytes,
            asked_end: offset + bytes,
            pieces,
            filled: 0,
            take,
            answer_end: offset,
            skip: 0,
        };
        run.hand_out();
        run
    }

    pub fn key(&self) -> &'a Key {
        self.key
    }

    /// Bytes that are missing.
    pub fn left(&self) -> u64 {
        self.end - self.next
    }

    /// Has the next request ask for so many of them at most, and returns how many it will ask for.
    pub fn ask(&mut self, bytes_max: u64) -> u64 {
        let asked = self.left().min(bytes_max);
        self.asked_end = self.next + asked;
        asked
    }

    /// Those that are asked for, as a request names them.
    pub fn header(&self) -> String {
        format!("bytes={}-{}", self.next, self.asked_end.saturating_sub(1))
    }

    /// Whether an answer brings what comes next, by the server's word. It may bring less than all of it; where the
    /// object ends before the run does, no answer can bring the rest.
    pub fn begin_answer(&mut self, answer: &Answer) -> Result<()> {
        (self.skip, self.answer_end) = (0, self.end);
        let Some(told) = answer.header("content-range") else {
            return self.begin_whole(answer);
        };
        let Some((first, last, total)) = parse_content_range(told) else {
            return Err(other_bytes(self.key));
        };
        if first != self.next || last >= self.asked_end {
            return Err(other_bytes(self.key));
        }
        let is_object_end = match total {
            Some(total) => last + 1 < self.end && total <= last + 1,
            None => last + 1 < self.asked_end,
        };
        if is_object_end {
            return Err(too_short(self.key));
        }
        self.answer_end = last + 1;
        Ok(())
    }

    /// Without ranges the whole object comes. Where the run is all of it, that is the same.
    fn begin_whole(&mut self, answer: &Answer) -> Result<()> {
        if answer.status != StatusCode::OK || self.begin != 0 {
            return Err(other_bytes(self.key));
        }
        let told = answer.header("content-length");
        if let Some(bytes) = told.and_then(|bytes| bytes.parse::<u64>().ok()) {
            if bytes > self.end {
                return Err(self.more_than_asked());
            }
            if bytes < self.end {
                return Err(too_short(self.key));
            }
        }
        self.skip = self.next;
        Ok(())
    }

    /// Takes in what comes next of the answer.
    pub fn fill(&mut self, bytes: &[u8]) -> Result<()> {
        let skipped = self.skip.min(bytes.len() as u64);
        self.skip -= skipped;
        let mut bytes = &bytes[skipped as usize..];
        if bytes.len() as u64 > self.answer_end - self.next {
            return Err(self.more_than_asked());
        }
        while let Some(piece) = self.pieces.front_mut().filter(|_| !bytes.is_empty()) {
            let now = bytes.len().min(piece.len() - self.filled);
            let (new, later) = bytes.split_at(now);
            piece[self.filled..][..now].copy_from_slice(new);
            self.filled += now;
            self.next += now as u64;
            bytes = later;
            self.hand_out();
        }
        Ok(())
    }

    /// No more comes of this answer.
    pub fn end_answer(&self) -> BodyEnd {
        match self.next == self.answer_end && self.skip == 0 {
            true => BodyEnd::Complete,
            false => BodyEnd::Early,
        }
    }

    fn hand_out(&mut self) {
        while let Some(piece) = self.pieces.pop_front_if(|piece| piece.len() == self.filled) {
            self.filled = 0;
            (self.take)(piece);
        }
    }

    fn more_than_asked(&self) -> Error {
        Error::new(Kind::Storage, "the store sends more than it was asked for")
            .object(self.key.as_str())
            .hint(NO_RANGES)
    }
}

const NO_RANGES: &str = "the server, or a proxy before it, does not support ranged reads";

fn other_bytes(key: &Key) -> Error {
    Error::new(
        Kind::Storage,
        "the store sent other bytes than it was asked for",
    )
    .object(key.as_str())
    .hint(NO_RANGES)
}

/// First and last byte of `bytes 5-9/100`, and the object's length where it is told.
fn parse_content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = total.trim().parse().ok();
    (first <= last && last < u64::MAX).then_some((first, last, total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::{HeaderMap, HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn answer(status: u16, header: &'static str, value: &str) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert(
            HeaderName::from_static(header),
            HeaderValue::from_str(value).unwrap(),
        );
        let status = StatusCode::from_u16(status).unwrap();
        Answer::new(status, headers, Bytes::new())
    }

    fn ranged(value: &str) -> Answer {
        answer(206, "content-range", value)
    }

    fn pieces(lens: &[usize]) -> VecDeque<Slice> {
        lens.iter().map(|len| Slice::on_heap(*len)).collect()
    }

    /// What a run of 30 bytes from 100 on says to an answer.
    fn said(answer: &Answer) -> Result<()> {
        let key = Key::new("object").unwrap();
        Run::new(&key, 100, pieces(&[10, 20]), &mut |_| {}).begin_answer(answer)
    }

    #[test]
    fn a_content_range_is_read() {
        assert_eq!(
            parse_content_range("bytes 5-9/100"),
            Some((5, 9, Some(100)))
        );
        assert_eq!(parse_content_range("bytes 0-0/*"), Some((0, 0, None)));
        for bad in [
            "",
            "bytes */100",
            "items 1-2/3",
            "bytes 1-2",
            "bytes a-b/3",
            "bytes 9-5/100",
            "bytes 0-18446744073709551615/*",
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_answer_is_taken_only_where_it_brings_what_comes_next() {
        for good in [
            "bytes 100-129/1000",
            "bytes 100-129/130",
            "bytes 100-101/500",
        ] {
            said(&ranged(good)).unwrap();
        }
        // The object ends within the run, or may end there.
        for short in ["bytes 100-119/120", "bytes 100-119/*"] {
            assert_eq!(
                said(&ranged(short)).unwrap_err().kind(),
                Kind::Corrupt,
                "{short}"
            );
        }
        for other in [
            "bytes 99-129/1000",
            "bytes 101-129/1000",
            "bytes 100-130/1000",
            "x",
        ] {
            assert_eq!(
                said(&ranged(other)).unwrap_err().kind(),
                Kind::Storage,
                "{other}"
            );
        }
        let whole = answer(200, "content-length", "130");
        assert_eq!(said(&whole).unwrap_err().kind(), Kind::Storage);
    }

    #[test]
    fn a_request_brings_a_seventh_of_what_a_shard_may_in_a_second() {
        assert_eq!(request_bytes_max(None, 2), u64::MAX);
        assert_eq!(request_bytes_max(Some(7 << 20), 2), 512 << 10);
        for high in [16 << 20, u64::MAX - 1] {
            assert_eq!(request_bytes_max(Some(high), 2), READ_BYTES_MAX as u64);
        }
        for low in [0, 1, 7 << 16] {
            assert_eq!(request_bytes_max(Some(low), 2), LIMITED_BYTES_MIN);
        }
    }

    #[test]
    fn a_request_for_a_part_is_answered_by_that_part_or_by_the_whole_object() {
        let key = Key::new("object").unwrap();
        let mut take = |_| {};
        let mut run = Run::new(&key, 100, pieces(&[10, 20]), &mut take);
        assert_eq!((run.ask(12), run.header()), (12, "bytes=100-111".into()));
        for good in ["bytes 100-111/130", "bytes 100-111/*", "bytes 100-105/130"] {
            run.begin_answer(&ranged(good)).unwrap();
        }
        for (bad, kind) in [
            ("bytes 100-112/130", Kind::Storage),
            ("bytes 100-111/112", Kind::Corrupt),
            ("bytes 100-110/*", Kind::Corrupt),
        ] {
            let error = run.begin_answer(&ranged(bad)).unwrap_err();
            assert_eq!(error.kind(), kind, "{bad}");
        }
        run.begin_answer(&ranged("bytes 100-111/130")).unwrap();
        run.fill(&[0; 12]).unwrap();
        assert_eq!(run.end_answer(), BodyEnd::Complete);
        assert_eq!((run.ask(100), run.header()), (18, "bytes=112-129".into()));

        let mut run = Run::new(&key, 0, pieces(&[30]), &mut take);
        assert_eq!(run.ask(12), 12);
        run.begin_answer(&answer(200, "content-length", "30"))
            .unwrap();
        run.fill(&[0; 30]).unwrap();
        assert_eq!((run.end_answer(), run.ask(12)), (BodyEnd::Complete, 0));
    }

    #[test]
    fn a_whole_object_is_taken_where_the_run_is_all_of_it() {
        let key = Key::new("object").unwrap();
        for (bytes, kind) in [
            ("29", Some(Kind::Corrupt)),
            ("30", None),
            ("31", Some(Kind::Storage)),
        ] {
            let mut take = |_| {};
            let mut run = Run::new(&key, 0, pieces(&[30]), &mut take);
            let begun = run.begin_answer(&answer(200, "content-length", bytes));
            assert_eq!(begun.err().map(|error| error.kind()), kind, "{bytes}");
        }
    }

    #[test]
    fn a_whole_object_that_comes_again_is_passed_over_up_to_what_is_there() {
        let key = Key::new("object").unwrap();
        let object: Vec<u8> = (0..30).collect();
        let mut taken = Vec::new();
        let mut take = |piece: Slice| taken.push(piece.to_vec());
        let mut run = Run::new(&key, 0, pieces(&[10, 20]), &mut take);
        let whole = answer(200, "content-length", "30");
        run.begin_answer(&whole).unwrap();
        run.fill(&object[..13]).unwrap();
        assert_eq!(run.end_answer(), BodyEnd::Early);
        run.begin_answer(&whole).unwrap();
        assert_eq!(run.end_answer(), BodyEnd::Early);
        for chunk in object.chunks(4) {
            run.fill(chunk).unwrap();
        }
        assert_eq!(run.end_answer(), BodyEnd::Complete);
        assert_eq!(taken.concat(), object);
    }

    #[test]
    fn more_than_an_answer_announced_is_refused() {
        let key = Key::new("object").unwrap();
        let mut take = |_| {};
        let mut run = Run::new(&key, 0, pieces(&[30]), &mut take);
        run.begin_answer(&ranged("bytes 0-9/100")).unwrap();
        run.fill(&[0; 10]).unwrap();
        assert_eq!(run.end_answer(), BodyEnd::Complete);
        assert_eq!(run.left(), 20);
        assert_eq!(run.fill(&[0]).unwrap_err().kind(), Kind::Storage);
    }

    proptest! {
        /// However the answers are cut, and wherever they break off, each byte arrives once and in its place.
        #[test]
        fn pieces_come_in_order_whatever_breaks(
            lens in proptest::collection::vec(0..50_usize, 1..8),
            tries in proptest::collection::vec((0..80_usize, 1..30_usize, 1..90_u64), 0..12),
            offset in 0..1000_u64,
        ) {
            let key = Key::new("object").unwrap();
            let total: usize = lens.iter().sum();
            let object: Vec<u8> = (0..offset as usize + total).map(|at| (at * 7 + at / 256) as u8).collect();
            let mut taken = Vec::new();
            let mut take = |piece: Slice| taken.push(piece.to_vec());
            let mut run = Run::new(&key, offset, pieces(&lens), &mut take);
            for (bytes, chunk, asked_max) in tries.into_iter().chain([(usize::MAX, 17, u64::MAX)]) {
                if run.left() == 0 {
                    break;
                }
                let asked = run.ask(asked_max);
                prop_assert_eq!(asked, asked_max.min(run.left()));
                let header = run.header();
                let (first, last) = header.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
                let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
                run.begin_answer(&ranged(&format!("bytes {first}-{last}/{}", object.len()))).unwrap();
                let body = &object[first..=last];
                prop_assert_eq!(body.len() as u64, asked);
                for chunk in body[..bytes.min(body.len())].chunks(chunk) {
                    run.fill(chunk).unwrap();
                }
                let is_complete = bytes >= body.len();
                prop_assert_eq!(run.end_answer() == BodyEnd::Complete, is_complete);
            }
            prop_assert_eq!(run.left(), 0);
            prop_assert_eq!(taken.iter().map(Vec::len).collect::<Vec<_>>(), lens);
            prop_assert_eq!(&taken.concat()[..], &object[offset as usize..]);
        }
    }
}
