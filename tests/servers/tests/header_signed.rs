//! What the servers make of requests that are signed in the `Authorization` header: payloads that are not signed,
//! clocks that go wrong, checksums in `x-amz-content-sha256`.
//!
//! The signature is computed here step by step, so that every part of it can be wrong on purpose.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use mover_test_servers::{Access, FilesystemS3, Garage};
use tempfile::TempDir;

const HOUR: u64 = 3600;

/// Signs as who reaches a server this way.
struct Signer(Access);

/// The status of the reply and the error code in it.
type Outcome = (u16, Option<String>);

impl Signer {
    /// Puts `body` to `/mover/k`, signed at `time` with this value of `x-amz-content-sha256`.
    fn put(&self, body: &str, payload: &str, time: SystemTime) -> Outcome {
        let host = self.0.endpoint.replace("http://", "");
        let stamp = stamp(time);
        let day = &stamp[..8];
        let canonical = format!(
            "PUT\n/mover/k\n\nhost:{host}\nx-amz-content-sha256:{payload}\nx-amz-date:{stamp}\n\n\
             host;x-amz-content-sha256;x-amz-date\n{payload}"
        );
        let scope = format!("{day}/{}/s3/aws4_request", self.0.region);
        let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}", sha256(&canonical));
        let mut key = format!("AWS4{}", self.0.key.secret).into_bytes();
        for part in [day, &self.0.region, "s3", "aws4_request"] {
            key = hmac_sha256(&key, part);
        }
        let signature = hex(&hmac_sha256(&key, &text));
        let request = format!(
            "PUT /mover/k HTTP/1.1\r\nhost: {host}\r\nx-amz-date: {stamp}\r\n\
             x-amz-content-sha256: {payload}\r\nauthorization: AWS4-HMAC-SHA256 \
             Credential={}/{scope},SignedHeaders=host;x-amz-content-sha256;x-amz-date,\
             Signature={signature}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            self.0.key.id,
            body.len(),
        );
        outcome(&host, &request)
    }
}

fn outcome(host: &str, request: &str) -> Outcome {
    let mut stream = TcpStream::connect(host).expect("the server listens");
    stream
        .write_all(request.as_bytes())
        .expect("the server reads");
    let mut reply = String::new();
    stream
        .read_to_string(&mut reply)
        .expect("the server answers");
    let status = reply.get(9..12).and_then(|status| status.parse().ok());
    let code = reply
        .split_once("<Code>")
        .and_then(|(_, rest)| rest.split_once("</Code>"));
    (
        status.expect("a status"),
        code.map(|(code, _)| code.to_owned()),
    )
}

fn sha256(text: &str) -> String {
    hex(digest(&SHA256, text.as_bytes()).as_ref())
}

fn hmac_sha256(key: &[u8], text: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The time as `20260101T000000Z`.
fn stamp(time: SystemTime) -> String {
    let time = jiff::Timestamp::try_from(time).expect("a time of this age");
    time.strftime("%Y%m%dT%H%M%SZ").to_string()
}

fn hours_ago(hours: u64) -> SystemTime {
    SystemTime::now() - Duration::from_secs(hours * HOUR)
}

fn in_hours(hours: u64) -> SystemTime {
    SystemTime::now() + Duration::from_secs(hours * HOUR)
}

fn failed(status: u16, code: &str) -> Outcome {
    (status, Some(code.to_owned()))
}

#[test]
fn stamps_have_the_form_that_signatures_want() {
    let time = UNIX_EPOCH + Duration::from_secs(1_440_938_160);
    assert_eq!(stamp(time), "20150830T123600Z");
}

#[test]
fn the_server_in_process_takes_unsigned_payloads_and_minds_the_clock() {
    let dir = TempDir::new().expect("a temporary directory");
    let server = FilesystemS3::start(dir.path());
    let signer = Signer(server.access().clone());
    let now = SystemTime::now();
    assert_eq!(signer.put("body", &sha256("body"), now), (200, None));
    assert_eq!(signer.put("body", "UNSIGNED-PAYLOAD", now), (200, None));
    let wrong = signer.put("body", &sha256("other"), now);
    // S3 answers 400 XAmzContentSHA256Mismatch.
    assert_eq!(wrong, failed(500, "InternalError"));
    let skewed = failed(403, "RequestTimeTooSkewed");
    assert_eq!(signer.put("body", "UNSIGNED-PAYLOAD", hours_ago(1)), skewed);
    assert_eq!(signer.put("body", "UNSIGNED-PAYLOAD", in_hours(1)), skewed);
}

#[test]
fn garage_takes_unsigned_payloads_and_minds_the_day_only() {
    let dir = TempDir::new().expect("a temporary directory");
    let server = Garage::start(dir.path());
    let signer = Signer(server.access().clone());
    let now = SystemTime::now();
    assert_eq!(signer.put("body", &sha256("body"), now), (200, None));
    assert_eq!(signer.put("body", "UNSIGNED-PAYLOAD", now), (200, None));
    let wrong = signer.put("body", &sha256("other"), now);
    assert_eq!(wrong, failed(400, "InvalidDigest"));
    assert_eq!(
        signer.put("body", "UNSIGNED-PAYLOAD", hours_ago(1)),
        (200, None)
    );
    assert_eq!(
        signer.put("body", "UNSIGNED-PAYLOAD", in_hours(1)),
        (200, None)
    );
    let old = signer.put("body", "UNSIGNED-PAYLOAD", hours_ago(25));
    assert_eq!(old, failed(400, "InvalidRequest"));
}
