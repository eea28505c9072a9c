//! The S3 driver against real servers: every promise of a store on Garage and on a file system behind S3, over TLS
//! too, with servers that keep conditional writes and servers that ignore them; behind a proxy that breaks
//! connections, encrypted or not; over connections of which one is slow; and with endpoints, keys and clocks that are wrong.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

mod conformance;
mod s3_claims;
mod s3_crowd;
mod s3_deletions;
mod s3_headers;
mod s3_hedging;
mod s3_keys;
mod s3_listings;
mod s3_pace;
mod s3_refusals;
mod s3_runs;
mod s3_servers;
mod s3_tls;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use conformance::{Subject, key, list_all, pattern, push_all, upload_all};
use mover_base::{Error, Kind, Result};
use mover_io::{BUF_BYTES, RateBudget, Shard};
use mover_store::{Key, LinkLimits, Put, Store};
use mover_test_servers::{
    AccessKey, Action, Conditions, Fault, FaultProxy, FilesystemOptions, Reply, Scripted, Tls,
};
use s3_servers::{Behind, Place, garage_place, place, upload_ids};

fn refused<T>(result: Result<T>) -> Error {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error,
    }
}

conformance!(at once on_garage, super::garage_place());
conformance!(
    on_a_file_system,
    super::place(super::FilesystemOptions::default())
);
conformance!(
    over_tls,
    super::place(super::FilesystemOptions {
        tls: super::Tls::Signed,
        ..super::FilesystemOptions::default()
    })
);
conformance!(
    without_conditional_writes,
    super::place(super::FilesystemOptions {
        conditions: super::Conditions::Ignored,
        ..super::FilesystemOptions::default()
    })
);
conformance!(
    with_conditions_on_objects_in_one_piece,
    super::place(super::FilesystemOptions {
        conditions: super::Conditions::AtomicInOne,
        ..super::FilesystemOptions::default()
    })
);

#[test]
fn faults_that_pass_are_survived_and_nothing_is_lost_or_doubled() {
    survive_faults(|| place(FilesystemOptions::default()), Behind::plain);
}

#[test]
fn faults_are_survived_by_bodies_in_chunks() {
    survive_faults(
        || place(FilesystemOptions::default()),
        |kept| Behind::with(kept, "sign=chunks"),
    );
}

/// What each fault does to a request, and that the work of a store goes on over it.
fn survive_faults(server: impl Fn() -> (Place, Subject), before: impl Fn(&Place) -> Behind) {
    let faults = [
        ("reset before", Action::ResetBeforeRequest),
        ("reset within", Action::ResetAfterRequestBytes(100_000)),
        ("lost reply", Action::LostReply),
        ("slow down", Action::slow_down()),
        ("internal error", Action::error(500, "InternalError")),
        ("conflict", Action::error(409, "ConditionalRequestConflict")),
        ("error in 200", Action::ErrorIn200("InternalError".into())),
        ("truncated", Action::TruncateReply(100)),
        ("twice", Action::Duplicate),
        ("late", Action::Delay(Duration::from_millis(300))),
    ];
    for (name, action) in faults {
        let (kept, subject) = server();
        let Behind { proxy, store } = before(&kept);
        // The probe has its own answer to a doubled request, so it runs without faults.
        subject.on_shard(async |shard| store.put_if_absent(&shard, &key("first"), b"x").await);
        let fault = proxy.inject(Fault::new(action).chance(0.3, 7).times(60));
        let objects: Vec<(String, Vec<u8>)> = (0..12)
            .map(|at| (format!("o/{at:02}"), pattern(200_000 * (at + 1), at as u64)))
            .collect();
        subject.on_shard(async |shard| {
            for (name_of, bytes) in &objects {
                let put = upload_all(&store, &shard, &key(name_of), bytes).await?;
                assert_eq!(put, Put::Created, "{name}: {name_of}");
                let again = upload_all(&store, &shard, &key(name_of), b"other").await?;
                assert_eq!(again, Put::Exists, "{name}: {name_of}");
            }
            for (name_of, bytes) in &objects {
                assert!(
                    store.get(&shard, &key(name_of), u64::MAX).await? == *bytes,
                    "{name}: {name_of}"
                );
                let slice = store.read(&shard, &key(name_of), 1000, 150_000).await?;
                assert!(*slice == bytes[1000..151_000], "{name}: {name_of}");
            }
            let listed = list_all(&store, &shard, "o/", 5).await?;
            assert_eq!(listed.len(), objects.len(), "{name}");
            Ok(())
        });
        assert!(proxy.hits(fault) > 0, "{name} happened");
        // What the server holds, seen without the code under test.
        for (name_of, bytes) in &objects {
            assert!(
                kept.client().get(name_of).expect("stored").body == *bytes,
                "{name}: {name_of}"
            );
        }
    }
}

#[test]
fn long_objects_in_parts_survive_faults() {
    let actions = [
        Action::LostReply,
        Action::ErrorIn200("InternalError".into()),
        Action::Duplicate,
        Action::slow_down(),
    ];
    // A part, the end and the beginning of an upload.
    let requests = [
        ("PUT", "partNumber="),
        ("POST", "uploadId="),
        ("POST", "uploads"),
    ];
    let (kept, subject) = place(FilesystemOptions::default());
    let bytes = pattern(33 * BUF_BYTES + 5, 3);
    for (at, action) in actions.iter().enumerate() {
        for (of, (method, query)) in requests.into_iter().enumerate() {
            let what = format!("{action:?} on {method} ?{query}");
            let proxy = FaultProxy::start(&kept.endpoint());
            let store = kept.store_at(&proxy.endpoint(), "", &LinkLimits::default());
            let probes = key(&format!("probes/{at}-{of}"));
            let long = key(&format!("long/{at}-{of}"));
            // A probe has its own answer to a doubled request, so it runs without faults.
            subject.on_shard(async |shard| {
                upload_all(&store, &shard, &probes, &pattern(17 * BUF_BYTES, 1)).await
            });
            let fault = Fault::new(action.clone()).method(method).query(query);
            let fault = proxy.inject(fault.times(2));
            let put =
                subject.on_shard(async |shard| upload_all(&store, &shard, &long, &bytes).await);
            assert_eq!(put, Put::Created, "{what}");
            assert!(proxy.hits(fault) > 0, "{what} happened");
            let stored = kept.client().get(long.as_str()).expect("stored");
            assert!(stored.body == bytes, "{what}");
        }
    }
}

#[test]
fn a_server_that_never_answers_ends_in_a_retryable_error() {
    let (kept, subject) = place(FilesystemOptions::default());
    let proxy = FaultProxy::start(&kept.endpoint());
    let store = kept.store_at(&proxy.endpoint(), "timeout=1", &LinkLimits::default());
    proxy.inject(Fault::new(Action::Stall));
    let error = refusal(&subject, &store, read);
    assert_eq!(error.kind(), Kind::Unreachable);
    assert!(error.hint_text().is_some());
}

#[test]
fn a_server_that_is_not_there_is_told_soon() {
    let (kept, subject) = place(FilesystemOptions::default());
    let store = kept.store_at("http://127.0.0.1:9", "", &LinkLimits::default());
    let error = refusal(&subject, &store, read);
    assert_eq!(error.kind(), Kind::Unreachable, "{error}");
}

#[test]
fn an_answer_that_stops_midway_is_asked_for_again() {
    let (kept, subject) = place(FilesystemOptions::default());
    let proxy = FaultProxy::start(&kept.endpoint());
    let store = kept.store_at(&proxy.endpoint(), "timeout=1", &LinkLimits::default());
    let bytes = pattern(500_000, 5);
    subject.on_shard(async |shard| store.put_if_absent(&shard, &key("x"), &bytes).await);
    let fault = proxy.inject(Fault::new(Action::StallReply(1000)).method("GET").times(2));
    let got = subject.on_shard(async |shard| store.get(&shard, &key("x"), 1 << 20).await);
    assert!(got == bytes);
    assert_eq!(proxy.hits(fault), 2);
}

/// Runs `question` against a scripted endpoint and returns the error.
fn asked(
    scripted: &Scripted,
    question: impl AsyncFn(&Store, &Shard) -> Result<()> + Sync,
) -> Error {
    let (kept, subject) = place(FilesystemOptions::default());
    let store = kept.store_at(&scripted.endpoint(), "", &LinkLimits::default());
    refusal(&subject, &store, question)
}

/// Asks `question` of a store that refuses it and returns the error.
fn refusal(
    subject: &Subject,
    store: &Store,
    question: impl AsyncFn(&Store, &Shard) -> Result<()> + Sync,
) -> Error {
    subject.on_shard(async |shard| Ok(refused(question(store, &shard).await)))
}

/// Reads the object `x`.
async fn read(store: &Store, shard: &Shard) -> Result<()> {
    store.get(shard, &key("x"), 100).await.map(|_| ())
}

/// Writes the object `x`.
async fn write(store: &Store, shard: &Shard) -> Result<()> {
    let put = store.put_if_absent(shard, &key("x"), b"y").await;
    put.map(|_| ())
}

/// Lists everything.
async fn list(store: &Store, shard: &Shard) -> Result<()> {
    store.list(shard, "", None, 10_000).await.map(|_| ())
}

#[test]
fn an_endpoint_that_answers_a_web_page_is_told() {
    let page = Scripted::html_page();
    for error in [asked(&page, read), asked(&page, list), asked(&page, write)] {
        assert_eq!(error.kind(), Kind::Storage, "{error}");
        assert!(
            error
                .to_string()
                .contains("does not answer as an S3 server"),
            "{error}"
        );
    }
}

#[test]
fn a_bucket_of_another_region_is_told_with_its_region() {
    let moved = Scripted::other_region("eu-north-7");
    let error = asked(&moved, read);
    assert_eq!(error.kind(), Kind::Usage);
    assert!(
        error.hint_text().expect("a hint").contains("eu-north-7"),
        "{error}"
    );
    assert_eq!(moved.requests().len(), 1, "a redirect is not followed");
}

#[test]
fn a_listing_without_end_is_an_error() {
    for same_token in [true, false] {
        let endless = Scripted::endless_list(same_token);
        let error = asked(&endless, list);
        assert_eq!(error.kind(), Kind::Storage, "{error}");
        assert!(endless.requests().len() < 200);
    }
}

#[test]
fn refusals_name_what_is_wrong_and_what_to_do() {
    for (status, code, kind, part) in [
        (403, "RequestTimeTooSkewed", Kind::Storage, "clock"),
        (400, "ExpiredToken", Kind::Storage, "expired"),
        (
            403,
            "InvalidAccessKeyId",
            Kind::Storage,
            "does not accept the credentials",
        ),
        (
            403,
            "SignatureDoesNotMatch",
            Kind::Storage,
            "does not accept the credentials",
        ),
        (403, "AccessDenied", Kind::Storage, "does not allow"),
        (404, "NoSuchBucket", Kind::NotFound, "bucket"),
        (507, "QuotaExceeded", Kind::Storage, "full"),
    ] {
        let scripted = Scripted::start(move |_, _| Reply::s3_error(status, code, "no"));
        let error = asked(&scripted, read);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(part), "{code}: {error}");
        assert!(error.hint_text().is_some(), "{code}");
    }
}

#[test]
fn a_certificate_of_an_unknown_authority_is_refused_with_a_way_out() {
    let (kept, subject) = place(FilesystemOptions {
        tls: Tls::Signed,
        ..FilesystemOptions::default()
    });
    let store = kept.store_untrusting();
    let error = refusal(&subject, &store, read);
    assert_eq!(error.kind(), Kind::Storage, "{error}");
    assert!(
        error.hint_text().expect("a hint").contains("ca="),
        "{error}"
    );
}

#[test]
fn wrong_keys_and_missing_rights_are_told_by_a_real_server() {
    let (kept, subject) = garage_place();
    let read_only = kept.garage().read_only_key();
    let error = refusal(&subject, &kept.store_with(read_only.clone()), write);
    assert_eq!(error.kind(), Kind::Storage);
    assert!(
        error.hint_text().expect("a hint").contains("s3:PutObject"),
        "{error}"
    );

    // Garage says of a wrong secret what it says of a missing right.
    let wrong = AccessKey::new(&read_only.id, &"0a".repeat(32));
    let error = refusal(&subject, &kept.store_with(wrong.clone()), read);
    assert_eq!(error.kind(), Kind::Storage, "{error}");
    assert!(error.to_string().contains("does not allow"), "{error}");
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains(&wrong.secret), "{shown}");

    let error = refusal(&subject, &kept.store_in("no-such-bucket-here"), read);
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    assert!(error.to_string().contains("bucket"), "{error}");
    assert!(error.hint_text().is_some());
}

#[test]
fn a_wrong_secret_is_told_and_not_shown() {
    let (kept, subject) = place(FilesystemOptions::default());
    let wrong = AccessKey::new(&kept.access().key.id, "not/the+secret");
    let error = refusal(&subject, &kept.store_with(wrong.clone()), read);
    assert_eq!(error.kind(), Kind::Storage, "{error}");
    assert!(
        error
            .to_string()
            .contains("does not accept the credentials"),
        "{error}"
    );
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains(&wrong.secret), "{shown}");
    // The same store with the right one, so the secret is what was wrong.
    let error = refusal(&subject, &subject.store, read);
    assert!(error.to_string().contains("no such object"), "{error}");
}

#[test]
fn a_server_that_is_killed_and_restarted_is_waited_for() {
    let (kept, subject) = garage_place();
    let garage = kept.garage();
    let bytes = pattern(3 * BUF_BYTES, 9);
    let store = &subject.store;
    subject.on_shard(async |shard| store.put_if_absent(&shard, &key("before"), &bytes).await);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2 {
                std::thread::sleep(Duration::from_millis(300));
                garage.kill();
                std::thread::sleep(Duration::from_millis(1500));
                garage.restart();
            }
        });
        subject.on_shard(async |shard| {
            for at in 0..40 {
                let name = key(&format!("during/{at:02}"));
                assert_eq!(
                    upload_all(store, &shard, &name, &bytes).await?,
                    Put::Created
                );
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(())
        });
    });
    for at in 0..40 {
        assert!(
            kept.client()
                .get(&format!("during/{at:02}"))
                .expect("stored")
                .body
                == bytes
        );
    }
}

#[test]
fn limits_on_the_link_hold() {
    let (kept, subject) = place(FilesystemOptions::default());
    let limits = LinkLimits {
        upload: RateBudget::new(Some(4 << 20)),
        download: RateBudget::new(Some(4 << 20)),
        ..LinkLimits::default()
    };
    let store = kept.store_at(&kept.endpoint(), "", &limits);
    let bytes = pattern(8 * BUF_BYTES, 2);
    subject.on_shard(async |shard| {
        let started = std::time::Instant::now();
        upload_all(&store, &shard, &key("slow"), &bytes).await?;
        // Eight seconds' worth at 1 MiB/s take two at 4: never faster than the limit allows, but for what it lets pass at once.
        assert!(started.elapsed() > Duration::from_millis(1900));
        let started = std::time::Instant::now();
        assert!(store.get(&shard, &key("slow"), u64::MAX).await? == bytes);
        assert!(started.elapsed() > Duration::from_millis(1900));
        let started = std::time::Instant::now();
        let range = BUF_BYTES / 2;
        for at in 0..16 {
            let offset = (at * range) as u64;
            let slice = store.read(&shard, &key("slow"), offset, range).await?;
            assert!(slice[..] == bytes[at * range..][..range]);
        }
        assert!(started.elapsed() > Duration::from_millis(1900));
        Ok(())
    });
}

/// What `work` comes to once what held it back is noticed. A loaded machine may take minutes; who does not notice takes
/// an hour, or for ever.
async fn noticed<T>(work: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(Duration::from_secs(600), work).await;
    ended.expect("what held it back is noticed")
}

/// With a limit of zero nothing moves, so whoever comes to an end has noticed that it was lifted.
#[test]
fn limits_on_the_link_change_under_a_job() {
    let (kept, subject) = place(FilesystemOptions::default());
    let limits = LinkLimits {
        upload: RateBudget::new(Some(0)),
        download: RateBudget::new(Some(0)),
        ..LinkLimits::default()
    };
    let store = kept.store_at(&kept.endpoint(), "", &limits);
    let bytes = pattern(8 * BUF_BYTES, 2);
    kept.client().put("download", &bytes).expect("stored");
    let while_closed = Duration::from_millis(700);
    subject.on_shard(async |shard| {
        let (upload, download) = (key("upload"), key("download"));
        let mut work = Box::pin(upload_all(&store, &shard, &upload, &bytes));
        let early = tokio::time::timeout(while_closed, &mut work).await;
        assert!(early.is_err(), "sent though nothing may be sent");
        assert_eq!(kept.client().get("upload").expect("a reply").status, 404);
        limits.upload.set(None);
        limits.download.set(None);
        assert_eq!(noticed(work).await?, Put::Created);

        limits.download.set(Some(0));
        let mut work = Box::pin(store.get(&shard, &download, u64::MAX));
        let early = tokio::time::timeout(while_closed, &mut work).await;
        assert!(early.is_err(), "received though nothing may be received");
        limits.download.set(None);
        assert!(noticed(work).await? == bytes);

        limits.requests.set(Some(0));
        let mut work = Box::pin(store.head(&shard, &download));
        let early = tokio::time::timeout(while_closed, &mut work).await;
        assert!(early.is_err(), "asked though nothing may be asked");
        limits.requests.set(Some(10));
        assert!(noticed(work).await?.is_some());
        let started = std::time::Instant::now();
        for _ in 0..20 {
            store.head(&shard, &download).await?;
        }
        // Two seconds' worth: never faster than the limit allows.
        assert!(started.elapsed() > Duration::from_millis(1800));
        Ok(())
    });
}

/// What a killed job leaves is an upload that was begun and not ended: here one that is dropped. On Garage, which
/// tells the checksums of parts; what it tells is checked against what was sent.
#[test]
fn an_upload_that_was_cut_off_is_taken_up_where_its_parts_match() {
    const PIECES: usize = 41;
    let (kept, subject) = garage_place();
    let bytes = pattern(PIECES * BUF_BYTES + 77, 6);
    // A part of which the other try knows nothing.
    let mut changed = bytes.clone();
    changed[BUF_BYTES] ^= 1;
    let (none, crc32c, sha256) = ("checksum=none", "checksum=crc32c", "checksum=sha256");
    for (at, (options, then_options, then, sent_again)) in [
        (crc32c, crc32c, &bytes, &[3][..]),
        (sha256, sha256, &bytes, &[3]),
        (crc32c, crc32c, &changed, &[1, 3]),
        // Without checksums nothing is known to match.
        (none, none, &bytes, &[1, 2, 3]),
        (crc32c, sha256, &bytes, &[1, 2, 3]),
        (crc32c, none, &bytes, &[1, 2, 3]),
    ]
    .into_iter()
    .enumerate()
    {
        let what = format!("{options}, then {then_options}, {sent_again:?}");
        let proxy = FaultProxy::start(&kept.endpoint());
        let store = kept.store_at(&proxy.endpoint(), options, &LinkLimits::default());
        let then_store = kept.store_at(&proxy.endpoint(), then_options, &LinkLimits::default());
        let name = key(&format!("again/{at}"));
        let sent = || -> Vec<String> {
            let part = |line: &String| {
                let (_, query) = line.split_once("partNumber=")?;
                Some(query.split(['&', ' ']).next()?.to_owned())
            };
            proxy.seen().iter().filter_map(part).collect()
        };
        subject.on_shard(async |shard| {
            let mut upload = store.upload_again(&shard, &name).await?;
            for piece in bytes.chunks(BUF_BYTES).take(PIECES) {
                let mut buf = shard.buffer().await;
                buf[..piece.len()].copy_from_slice(piece);
                upload.push(buf, piece.len()).await?;
            }
            drop(upload);
            // What is dropped is usually thrown away by the next upload.
            upload_all(&store, &shard, &key(&format!("{name}.other")), b"x").await
        });
        assert_eq!(sent(), ["1", "2"], "{what}");
        subject.on_shard(async |shard| {
            let mut upload = then_store.upload_again(&shard, &name).await?;
            push_all(&shard, &mut upload, then).await?;
            upload.commit().await
        });
        let again: Vec<String> = sent_again.iter().map(ToString::to_string).collect();
        assert_eq!(sent()[2..], again, "{what}");
        let stored = kept.client().get(name.as_str()).expect("stored");
        assert!(stored.body == *then, "{what}");
    }
}

/// The uploads that were thrown away by way of `proxy`.
fn aborted(proxy: &FaultProxy) -> usize {
    let seen = proxy.seen();
    let is_abort = |line: &&String| line.starts_with("DELETE") && line.contains("uploadId=");
    seen.iter().filter(is_abort).count()
}

#[test]
fn an_upload_that_is_gone_is_begun_anew_and_one_of_what_exists_is_thrown_away() {
    let (kept, subject) = garage_place();
    let proxy = FaultProxy::start(&kept.endpoint());
    let store = kept.store_at(&proxy.endpoint(), "", &LinkLimits::default());
    let (name, bytes) = (key("copy"), pattern(17 * BUF_BYTES, 6));
    let begin = async |shard: &Shard| {
        let mut upload = store.upload_again(shard, &name).await?;
        push_all(shard, &mut upload, &bytes).await?;
        Ok(upload)
    };
    subject.on_shard(async |shard| begin(&shard).await.map(drop));
    // It is listed still, and its parts are not.
    let gone = Action::error(404, "NoSuchUpload");
    let fault = proxy.inject(Fault::new(gone).method("GET").query("uploadId=").times(1));
    subject.on_shard(async |shard| {
        assert_eq!(begin(&shard).await?.commit().await?, Put::Created);
        assert_eq!(begin(&shard).await?.commit().await?, Put::Exists);
        // The next request of the shard throws away what nobody will take up.
        let before = aborted(&proxy);
        upload_all(&store, &shard, &key("next"), b"x").await?;
        assert_eq!(aborted(&proxy), before + 1);
        Ok(())
    });
    assert_eq!(proxy.hits(fault), 1);
    assert!(kept.client().get("copy").expect("stored").body == bytes);
}

/// s3s-fs knows no listing of uploads.
#[test]
fn a_copy_is_written_where_uploads_cannot_be_listed() {
    let (kept, subject) = place(FilesystemOptions::default());
    let bytes = pattern(17 * BUF_BYTES, 6);
    let put = subject.on_shard(async |shard| {
        let mut upload = subject.store.upload_again(&shard, &key("copy")).await?;
        push_all(&shard, &mut upload, &bytes).await?;
        upload.commit().await
    });
    assert_eq!(put, Put::Created);
    assert!(kept.client().get("copy").expect("stored").body == bytes);
}

/// A commit that is dropped while the server works on it, before and after the server has made the object.
#[test]
fn a_cancelled_commit_leaves_all_or_nothing_and_no_parts() {
    let lengths = [3 * BUF_BYTES + 99, 17 * BUF_BYTES];
    let ends = [(Action::Stall, false), (Action::StallReply(0), true)];
    for (long, len) in lengths.into_iter().enumerate() {
        for (action, arrives) in ends.clone() {
            let what = format!("{len} bytes, {action:?}");
            let (kept, subject) = place(FilesystemOptions::default());
            let proxy = FaultProxy::start(&kept.endpoint());
            let store = kept.store_at(&proxy.endpoint(), "", &LinkLimits::default());
            let bytes = pattern(len, 4);
            let first = pattern(17 * BUF_BYTES, 5);
            subject.on_shard(async |shard| upload_all(&store, &shard, &key("first"), &first).await);
            // The last request: that which makes the object.
            let fault = match long {
                0 => Fault::new(action).method("PUT"),
                _ => Fault::new(action).method("POST").query("uploadId="),
            };
            let fault = proxy.inject(fault.times(1));
            let name = key("cancelled");
            let is_stored = || kept.client().get("cancelled").expect("a reply").status == 200;
            subject.on_shard(async |shard| {
                let mut upload = store.upload(&shard, &name).await?;
                push_all(&shard, &mut upload, &bytes).await?;
                let mut commit = Box::pin(upload.commit());
                while proxy.hits(fault) == 0 || is_stored() != arrives {
                    let early = tokio::time::timeout(Duration::from_millis(20), &mut commit).await;
                    assert!(early.is_err(), "{what}: it ended");
                }
                drop(commit);
                assert_eq!(
                    store.head(&shard, &name).await?.is_some(),
                    arrives,
                    "{what}"
                );
                let again = upload_all(&store, &shard, &name, &bytes).await?;
                let expected = if arrives { Put::Exists } else { Put::Created };
                assert_eq!(again, expected, "{what}");
                assert!(store.get(&shard, &name, u64::MAX).await? == bytes, "{what}");
                // The next upload has thrown the parts away; another finds nothing left to do.
                upload_all(&store, &shard, &key("next"), b"x").await?;
                Ok(())
            });
            let seen = proxy.seen();
            let begun = upload_ids(&proxy, "PUT", "/cancelled?partNumber=1&");
            assert_eq!(
                begun.len(),
                if long == 0 { 0 } else { 2 },
                "{what}: {seen:#?}"
            );
            let aborted = upload_ids(&proxy, "DELETE", "/cancelled?");
            // Ended by being named: with a success, or, where the reply was lost, unknown to this side.
            let named = if long == 0 || arrives { 0 } else { 1 };
            assert_eq!(aborted.len(), begun.len() - named, "{what}: {seen:#?}");
        }
    }
}

#[test]
fn a_dropped_upload_is_aborted_by_the_next_and_a_young_one_is_not_told() {
    let (kept, subject) = garage_place();
    let proxy = FaultProxy::start(&kept.endpoint());
    let store = kept.store_at(&proxy.endpoint(), "", &LinkLimits::default());
    subject.on_shard(async |shard| {
        let mut upload = store.upload(&shard, &key("left/long")).await?;
        push_all(&shard, &mut upload, &pattern(20 * BUF_BYTES, 1)).await?;
        // It may belong to a running job.
        assert!(store.stale_temporaries(&shard, |_| true).await?.is_empty());
        drop(upload);
        upload_all(&store, &shard, &key("left/other"), b"x").await?;
        Ok(())
    });
    let aborts = proxy
        .seen()
        .into_iter()
        .filter(|seen| seen.contains("DELETE") && seen.contains("uploadId"));
    assert_eq!(aborts.count(), 1);
}

/// Where conditions are ignored, what arrives late overwrites: nobody may create the object while it may.
#[test]
fn a_claim_is_taken_back_unless_what_was_sent_under_it_may_still_arrive() {
    let (kept, subject) = place(FilesystemOptions {
        conditions: Conditions::Ignored,
        ..FilesystemOptions::default()
    });
    let Behind { proxy, store } = Behind::plain(&kept);
    let denied = |method: &str| Fault::new(Action::error(403, "AccessDenied")).method(method);
    for (fault, claims) in [
        (denied("GET").query("claim-"), 0),
        (denied("PUT").path("/x"), 1),
    ] {
        let hit = proxy.inject(fault.clone().times(1));
        refusal(&subject, &store, write);
        assert_eq!(proxy.hits(hit), 1, "{fault:?}");
        let (left, _) = kept.client().list("tmp/", 1000).expect("a listing");
        assert_eq!(left.len(), claims, "{fault:?}: {left:?}");
        assert!(left.iter().all(|left| left.key.starts_with("tmp/claim-")));
    }
    assert_eq!(kept.client().get("x").expect("a reply").status, 404);
}

#[test]
fn old_uploads_probes_and_claims_are_told_and_removed() {
    let scripted = Scripted::start(|head, _| match head.method.as_str() {
        "DELETE" => Reply::new(204, ""),
        _ if head
            .query
            .split('&')
            .any(|pair| pair.trim_end_matches('=') == "uploads") =>
        {
            Reply::new(200, UPLOADS).with("content-type", "application/xml")
        }
        _ => Reply::new(200, temporaries()).with("content-type", "application/xml"),
    });
    let (kept, subject) = place(FilesystemOptions::default());
    let store = kept.store_at(&scripted.endpoint(), "", &LinkLimits::default());
    subject.on_shard(async |shard| {
        let is_own = |key: &Key| key.as_str().starts_with("left/");
        let stale = store.stale_temporaries(&shard, is_own).await?;
        let names: Vec<&str> = stale.iter().map(|found| found.name.as_str()).collect();
        assert_eq!(names, ["left/long:u1", OLD_CLAIM]);
        for temporary in &stale {
            store.remove_temporary(&shard, temporary).await?;
        }
        Ok(())
    });
    let removed: Vec<String> = scripted
        .requests()
        .into_iter()
        .filter(|request| request.head.method == "DELETE")
        .map(|request| format!("{}?{}", request.head.path, request.head.query))
        .collect();
    assert_eq!(
        removed,
        [
            "/mover/left/long?uploadId=u1".to_owned(),
            format!("/mover/{OLD_CLAIM}?")
        ]
    );
}

/// Unfinished uploads: one that was left behind, one that may belong to a running job, and another program's.
const UPLOADS: &str = "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>\
    <Upload><Key>left/long</Key><UploadId>u1</UploadId><Initiated>2020-01-01T00:00:00.000Z</Initiated></Upload>\
    <Upload><Key>left/young</Key><UploadId>u2</UploadId><Initiated>2099-01-01T00:00:00.000Z</Initiated></Upload>\
    <Upload><Key>others/long</Key><UploadId>u3</UploadId><Initiated>2020-01-01T00:00:00.000Z</Initiated></Upload>\
    <Upload><Key>tmp/others</Key><UploadId>u4</UploadId><Initiated>2020-01-01T00:00:00.000Z</Initiated></Upload>\
    </ListMultipartUploadsResult>";

const OLD_CLAIM: &str =
    "tmp/claim-0123456789abcdef0123456789abcdef/0123456789abcdef0123456789abcdef";
const YOUNG_CLAIM: &str =
    "tmp/claim-0123456789abcdef0123456789abcdef/00000000000000000000000000000000";

/// Claims: one that was left behind and one that may belong to a running job; and another program's temporary file.
fn temporaries() -> String {
    let (old, young) = ("2020-01-01T00:00:00.000Z", "2099-01-01T00:00:00.000Z");
    let found = [(YOUNG_CLAIM, young), (OLD_CLAIM, old), ("tmp/others", old)];
    let contents = found.map(|(name, modified)| {
        format!("<Contents><Key>{name}</Key><LastModified>{modified}</LastModified><Size>5</Size></Contents>")
    });
    let contents = contents.concat();
    format!("<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>")
}

#[test]
fn names_that_no_object_can_have_are_strays_and_hide_nothing() {
    let (kept, subject) = garage_place();
    let client = kept.client();
    for name in ["a/ok", "a/Not a key", "a/ümlaut+&<>", "a/z", "a/full/"] {
        client.put(name, b"1").expect("stored");
    }
    // As consoles and mounts make them for folders.
    for folder in ["a/", "a/sub/", "a/Of theirs/"] {
        client.put(folder, b"").expect("stored");
    }
    let whole = kept.store_in(&kept.access().bucket);
    // The folder of the whole place has no name below it.
    let within = kept.store_in(&format!("{}/a", kept.access().bucket));
    for (store, below, prefix) in [(whole, "a/", "a/"), (within, "", "")] {
        let page = subject.on_shard(async |shard| store.list(&shard, prefix, None, 10).await);
        let keys = page.objects.iter().map(|object| object.key.as_str());
        let named = |names: [&str; 2]| names.map(|name| format!("{below}{name}"));
        assert_eq!(keys.collect::<Vec<_>>(), named(["ok", "z"]));
        let told = ["Not a key", "full/", "ümlaut+&<>"].map(|name| format!("{below}{name}"));
        assert_eq!(page.strays, told);
    }
}

/// Also where the objects before it fill the last page to the last place.
#[test]
fn a_stray_behind_the_last_object_is_told_on_the_last_page() {
    let (kept, subject) = garage_place();
    let client = kept.client();
    for name in ["a/1", "a/2", "a/3", "a/4", "a/8 no key"] {
        client.put(name, b"1").expect("stored");
    }
    let store = &subject.store;
    for limit in [1, 2, 3, 4, 5] {
        let (mut strays, mut count, mut after) = (Vec::new(), 0, None);
        loop {
            let page = subject
                .on_shard(async |shard| store.list(&shard, "a/", after.as_ref(), limit).await);
            strays.extend(page.strays);
            count += page.objects.len();
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        assert_eq!(
            (count, strays),
            (4, vec!["a/8 no key".to_owned()]),
            "{limit}"
        );
    }
}

/// Jobs that many hosts begin at once meet a server that sheds load from their first request on: it is there, and is waited for.
#[test]
fn a_server_that_is_busy_from_the_first_request_on_is_waited_for() {
    const BUSY: Duration = Duration::from_secs(10);
    let began = std::time::Instant::now();
    let scripted = Scripted::start(move |_, _| match began.elapsed() < BUSY {
        true => Reply::s3_error(503, "SlowDown", "later"),
        false => Reply::s3_error(404, "NoSuchKey", "it is not here"),
    });
    assert!(asked(&scripted, read).is_absence());
    assert!(began.elapsed() >= BUSY);
}

/// A server that has `body` for whoever reads back what was sent in chunks, and keeps conditions.
fn that_stores(body: &'static str) -> Scripted {
    let writes = AtomicUsize::new(0);
    Scripted::start(move |head, _| match head.method.as_str() {
        "DELETE" => Reply::new(204, ""),
        "GET" => Reply::new(200, body).with("etag", "\"x\""),
        // The second write of the probe for conditions is refused, as by a server that keeps them.
        "PUT" if writes.fetch_add(1, Ordering::Relaxed) == 2 => {
            Reply::s3_error(412, "PreconditionFailed", "it exists")
        }
        _ => Reply::new(200, "").with("etag", "\"x\""),
    })
}

#[test]
fn a_server_that_would_store_the_frames_of_chunks_gets_none() {
    let frames = "c;chunk-signature=0\r\nhelios-mover\r\n0;chunk-signature=0\r\n\r\n";
    for (stored, is_in_chunks) in [("helios-mover", true), (frames, false), ("", false)] {
        let scripted = that_stores(stored);
        let (kept, subject) = place(FilesystemOptions::default());
        let limits = LinkLimits::default();
        let store = kept.store_at(&scripted.endpoint(), "sign=chunks", &limits);
        let bytes = pattern(BUF_BYTES + 5, 1);
        let (put, warnings) = subject.on_shard(async |shard| {
            let put = store.put_if_absent(&shard, &key("x"), &bytes).await?;
            Ok((put, store.try_out(&shard).await?.weaknesses))
        });
        assert_eq!(put, Put::Created);
        let is_told = warnings
            .iter()
            .any(|weakness| weakness.what.contains("in parts"));
        assert!(is_told, "it takes no uploads in parts: {warnings:?}");
        let is_told = warnings
            .iter()
            .any(|weakness| weakness.what.contains("sign=chunks has no effect"));
        assert_eq!(is_told, !is_in_chunks, "{warnings:?}");
        let requests = scripted.requests();
        let mut writes = requests.iter().map(|request| &request.head);
        let write = writes.find(|head| head.method == "PUT" && head.path.ends_with("/x"));
        let write = write.expect("the object was written");
        let signed = write.header("x-amz-content-sha256").expect("a signed body");
        let length = (BUF_BYTES + 5).to_string();
        match is_in_chunks {
            true => {
                assert_eq!(signed, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD");
                assert_eq!(write.header("x-amz-decoded-content-length"), Some(&*length));
            }
            false => {
                assert_eq!(signed.len(), 64, "{stored}: one hash of all");
                assert_eq!(write.header("content-length"), Some(&*length));
            }
        }
    }
}

/// Writes objects of lengths around the ends of chunks and buffers, the longest in parts, and returns how many bodies went
/// in chunks.
fn bodies_in_chunks(kept: &Place, subject: &Subject, options: &str) -> usize {
    let proxy = FaultProxy::start(&kept.endpoint());
    let store = kept.store_at(&proxy.endpoint(), options, &LinkLimits::default());
    let chunk = 64 << 10;
    let lengths = [
        0,
        1,
        chunk,
        chunk + 1,
        2 * chunk,
        BUF_BYTES - 1,
        BUF_BYTES,
        BUF_BYTES + chunk,
        17 * BUF_BYTES + 3,
    ];
    for length in lengths {
        let name = key(&format!("of/{length}"));
        let bytes = pattern(length, 7);
        let put = subject.on_shard(async |shard| upload_all(&store, &shard, &name, &bytes).await);
        assert_eq!(put, Put::Created, "{length} bytes, {options}");
        let stored = kept.client().get(name.as_str()).expect("stored");
        assert!(stored.body == bytes, "{length} bytes, {options}");
    }
    let signed = proxy.signed().into_iter();
    signed.filter(|what| what.starts_with("STREAMING-")).count()
}

/// Both servers check every signature.
#[test]
fn long_bodies_go_in_chunks_and_arrive_as_they_were() {
    // The probe, all that have more than a chunk, and the two parts of the longest.
    for (options, expected) in [
        ("", 0),
        ("sign=whole", 0),
        ("sign=chunks", 8),
        ("sign=chunks&checksum=none", 8),
        ("sign=chunks&checksum=sha256", 0),
    ] {
        let (kept, subject) = place(FilesystemOptions::default());
        assert_eq!(
            bodies_in_chunks(&kept, &subject, options),
            expected,
            "{options}"
        );
    }
    let (kept, subject) = garage_place();
    assert_eq!(
        bodies_in_chunks(&kept, &subject, "sign=chunks"),
        8,
        "Garage"
    );
}
