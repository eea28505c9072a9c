//! What is asked of a server for the objects that are written: their class, their encryption and their lock; and the checksums by
//! which it can tell whether they arrived as they were.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mover_base::hex;
use mover_io::BUF_BYTES;
use mover_store::{LinkLimits, Put};
use mover_test_servers::{FilesystemOptions, Reply, Scripted};
use tempfile::NamedTempFile;

use crate::conformance::{key, pattern, upload_all};
use crate::s3_servers::place;

/// Headers of what is written: which class it is put into, how it is encrypted, and how long it is locked.
const WISHES: [(&str, Option<&str>); 5] = [
    ("x-amz-storage-class", Some("STANDARD_IA")),
    ("x-amz-server-side-encryption", Some("aws:kms")),
    (
        "x-amz-server-side-encryption-aws-kms-key-id",
        Some("arn:aws:kms:eu-west-1:111122223333:key/a-b"),
    ),
    ("x-amz-object-lock-mode", Some("GOVERNANCE")),
    // A time, which is other each time.
    ("x-amz-object-lock-retain-until-date", None),
];
/// The wishes that hold for what is taken back soon as well.
const ENCRYPTION: std::ops::Range<usize> = 1..3;

/// A server that keeps conditions and takes uploads in parts.
fn that_takes_all() -> Scripted {
    let written = AtomicUsize::new(0);
    let xml = |text: &str| Reply::new(200, text).with("etag", "\"x\"");
    Scripted::start(move |head, _| {
        match (head.method.as_str(), head.query.split('=').next()) {
            ("POST", Some("uploads")) => xml(
                "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>",
            ),
            // The end of the probe's upload is refused, and its second write: it is there.
            ("POST", _) if head.path.contains("/probe-") => {
                Reply::s3_error(412, "PreconditionFailed", "it exists")
            }
            ("POST", _) => {
                xml("<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>")
            }
            ("DELETE", _) => Reply::new(204, ""),
            ("GET" | "HEAD", _) if head.path.ends_with("/x") || head.path.ends_with("/long") => {
                Reply::s3_error(404, "NoSuchKey", "nothing is here")
            }
            ("PUT", _) if written.fetch_add(1, Ordering::Relaxed) == 1 => {
                Reply::s3_error(412, "PreconditionFailed", "it exists")
            }
            _ => xml(""),
        }
    })
}

/// What an object in one piece holds here: what checksums are shown of in their definitions.
const CHECKED: &[u8] = b"123456789";

/// Writes an object in one piece, `x`, and one in parts, `long`, to a store with these options.
fn write_both(scripted: &Scripted, options: &str) {
    let (kept, subject) = place(FilesystemOptions::default());
    let store = kept.store_at(&scripted.endpoint(), options, &LinkLimits::default());
    subject.on_shard(async |shard| {
        let put = store.put_if_absent(&shard, &key("x"), CHECKED).await?;
        assert_eq!(put, Put::Created);
        let long = pattern(17 * BUF_BYTES, 1);
        let put = upload_all(&store, &shard, &key("long"), &long).await?;
        assert_eq!(put, Put::Created);
        Ok(())
    });
}

#[test]
fn objects_are_put_into_a_class_encrypted_and_locked_and_what_is_taken_back_is_encrypted() {
    let scripted = that_takes_all();
    let options = "storage_class=STANDARD_IA&sse=aws:kms&sse_kms_key_id=arn:aws:kms:eu-west-1:111122223333:key%2Fa-b\
        &lock=governance&lock_days=1";
    write_both(&scripted, options);
    let (mut temporary, mut kept, mut parts) = (0, 0, 0);
    for request in scripted.requests() {
        let head = request.head;
        let wished = match (head.method.as_str(), head.query.split('=').next()) {
            ("PUT", Some("partNumber")) => (&mut parts, 0..0),
            ("PUT", _) | ("POST", Some("uploads")) if head.path.contains("/probe-") => {
                (&mut temporary, ENCRYPTION)
            }
            ("PUT", _) | ("POST", Some("uploads")) => (&mut kept, 0..WISHES.len()),
            _ => continue,
        };
        *wished.0 += 1;
        let signed = head.header("authorization").expect("a signature");
        for (at, (name, value)) in WISHES.into_iter().enumerate() {
            let sent = head.header(name);
            let what = format!("{name} of {} {}?{}", head.method, head.path, head.query);
            assert_eq!(sent.is_some(), wished.1.contains(&at), "{what}");
            if let (Some(sent), Some(value)) = (sent, value) {
                assert_eq!(sent, value, "{what}");
            }
            assert_eq!(
                sent.is_some(),
                signed.contains(&format!("{name};")) || signed.contains(&format!("{name},")),
                "{what}: {signed}"
            );
        }
    }
    assert_eq!((temporary, kept), (4, 2));
    assert!(parts >= 2, "{parts}");
}

/// A checksum that goes along with what is written, by other code than that under test.
struct Sum {
    header: &'static str,
    /// Its name where it is announced, and in a list of parts.
    algorithm: &'static str,
    of: fn(&[u8]) -> Vec<u8>,
    /// That of [`CHECKED`].
    known: &'static str,
}

const CRC32C: Sum = Sum {
    header: "x-amz-checksum-crc32c",
    algorithm: "CRC32C",
    of: crc32c,
    known: "4waSgw==",
};
const SHA256: Sum = Sum {
    header: "x-amz-checksum-sha256",
    algorithm: "SHA256",
    of: sha256,
    known: "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=",
};

impl Sum {
    fn text_of(&self, body: &[u8]) -> String {
        BASE64.encode((self.of)(body))
    }
}

/// CRC-32C as RFC 3720 defines it, byte by byte.
fn crc32c(bytes: &[u8]) -> Vec<u8> {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let table: [u32; 256] = std::array::from_fn(|byte| {
        (0..8).fold(byte as u32, |crc, _| match crc & 1 {
            0 => crc >> 1,
            _ => (crc >> 1) ^ POLYNOMIAL,
        })
    });
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        let at = (crc as u8 ^ byte) as usize;
        (crc >> 8) ^ table[at]
    });
    (!crc).to_be_bytes().to_vec()
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    let file = NamedTempFile::new().expect("a file");
    fs::write(file.path(), bytes).expect("a file");
    let output = Command::new("sha256sum").arg(file.path()).output();
    let text = String::from_utf8(output.expect("sha256sum runs").stdout).expect("digits");
    let digits = text.split(' ').next().unwrap_or_default();
    let digest: [u8; 32] = hex::decode(digits).expect("64 digits");
    digest.to_vec()
}

#[test]
fn what_is_written_bears_the_checksum_that_is_asked_for_and_no_other() {
    for (options, sum) in [
        ("", Some(&CRC32C)),
        ("checksum=crc32c", Some(&CRC32C)),
        ("checksum=sha256", Some(&SHA256)),
        ("checksum=none", None),
    ] {
        let scripted = that_takes_all();
        write_both(&scripted, options);
        let (mut whole, mut parts, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for request in scripted.requests() {
            let (head, body) = (request.head, request.body);
            let what = format!("{options}: {} {}?{}", head.method, head.path, head.query);
            let query = head.query.split('=').next().unwrap_or_default();
            let text = match (sum, head.method.as_str(), query) {
                // A probe's body and a part's too.
                (Some(sum), "PUT", _) => Some((sum.header, sum.text_of(&body))),
                (Some(sum), "POST", "uploads") => {
                    Some(("x-amz-checksum-algorithm", sum.algorithm.to_owned()))
                }
                // At the end of an upload it would be taken for that of the object.
                _ => None,
            };
            let expected = text.iter().map(|(name, text)| (*name, text.as_str()));
            let expected: Vec<(&str, &str)> = expected.collect();
            let sent = head.headers.iter();
            let sent = sent.map(|(name, value)| (name.as_str(), value.as_str()));
            let sent = sent.filter(|(name, _)| name.starts_with("x-amz-checksum"));
            let sent: Vec<(&str, &str)> = sent.collect();
            assert_eq!(sent, expected, "{what}");
            let signed = head.header("authorization").expect("a signature");
            for (name, _) in &sent {
                assert!(signed.contains(&format!(";{name};")), "{what}: {signed}");
            }
            let text = text.map(|(_, text)| text);
            match (head.method.as_str(), query) {
                ("PUT", "") if head.path.ends_with("/x") => whole.push((body, text)),
                ("PUT", "partNumber") if head.path.ends_with("/long") => {
                    parts.push((body.len(), text));
                }
                ("POST", "uploadId") if head.path.ends_with("/long") => {
                    ends.push(String::from_utf8(body).expect("a list of parts"));
                }
                _ => {}
            }
        }
        let known = sum.map(|sum| sum.known.to_owned());
        assert_eq!(whole, [(CHECKED.to_vec(), known)], "{options}");
        let lens: Vec<usize> = parts.iter().map(|(len, _)| *len).collect();
        assert_eq!(lens, [16 * BUF_BYTES, BUF_BYTES], "{options}");
        let [end] = &ends[..] else {
            panic!("{options}: {ends:?}");
        };
        let listed: Vec<String> = end
            .split("<Checksum")
            .skip(1)
            .map(|element| element.split("</").next().unwrap_or_default().to_owned())
            .collect();
        let of_parts: Vec<String> = parts
            .iter()
            .filter_map(|(_, text)| Some(format!("{}>{}", sum?.algorithm, text.as_ref()?)))
            .collect();
        assert_eq!(listed, of_parts, "{options}");
    }
}
