//! What an S3 server may answer: documents, errors, ranges and the headers that are looked at; and URLs of repositories. The
//! input is a status, headers in lines up to an empty one, and a body.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mover_store::s3::fuzzing::{read_answer, read_place};

/// Headers that something is read from.
const NAMES: [&str; 6] = [
    "content-range",
    "content-length",
    "date",
    "etag",
    "content-type",
    "x-amz-bucket-region",
];

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        read_place(text);
    }
    let Some((status, mut rest)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let status = 100 + u16::from_le_bytes(*status) % 500;
    let mut headers = Vec::new();
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, after) = (&rest[..end], &rest[end + 1..]);
        rest = after;
        let Some((name, value)) = line.split_first() else {
            break;
        };
        headers.push((NAMES[usize::from(*name) % NAMES.len()], value));
    }
    read_answer(status, &headers, rest);
});
