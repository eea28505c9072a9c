//! What is asked of a server for the objects that are written: their class, their encryption and their lock.

use std::sync::atomic::{AtomicUsize, Ordering};

use mover_io::BUF_BYTES;
use mover_store::{LinkLimits, Put};
use mover_test_servers::{FilesystemOptions, Reply, Scripted};

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

#[test]
fn objects_are_put_into_a_class_encrypted_and_locked_and_what_is_taken_back_is_encrypted() {
    let scripted = that_takes_all();
    let (kept, subject) = place(FilesystemOptions::default());
    let options = "storage_class=STANDARD_IA&sse=aws:kms&sse_kms_key_id=arn:aws:kms:eu-west-1:111122223333:key%2Fa-b\
        &lock=governance&lock_days=1";
    let store = kept.store_at(&scripted.endpoint(), options, &LinkLimits::default());
    subject.on_shard(async |shard| {
        let put = store.put_if_absent(&shard, &key("x"), b"y").await?;
        assert_eq!(put, Put::Created);
        let long = pattern(17 * BUF_BYTES, 1);
        assert_eq!(
            upload_all(&store, &shard, &key("long"), &long).await?,
            Put::Created
        );
        Ok(())
    });
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
