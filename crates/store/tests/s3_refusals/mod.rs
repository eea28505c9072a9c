//! Servers that answer with pages, in listings without end or with refusals, and servers that take in what is sent slowly:
//! what the driver makes of it, and that it comes to an end.

use std::sync::atomic::{AtomicUsize, Ordering};

use mover_base::{Error, Kind, Result};
use mover_io::{BUF_BYTES, Shard};
use mover_store::{LinkLimits, Put, Store};
use mover_test_servers::{
    Action, Fault, FaultProxy, FilesystemOptions, Reply, RequestHead, Scripted,
};

use crate::conformance::{key, pattern, push_all, upload_all};
use crate::s3_servers::{Behind, place};
use crate::{asked, list, read, refusal, write};

const PAGE: &str = "<!DOCTYPE html><html><body><h1>Not here</h1></body></html>";

/// Requests after which a listing counts as endless, and some.
const PAGES_MAX: usize = 120;

fn with_page(status: u16) -> Scripted {
    Scripted::start(move |head, _| {
        let body = if head.method == "HEAD" { "" } else { PAGE };
        Reply::new(status, body).with("content-type", "text/html; charset=utf-8")
    })
}

/// Looks at the object `x`, which HEAD alone cannot tell about.
async fn look(store: &Store, shard: &Shard) -> Result<()> {
    store.head(shard, &key("x")).await.map(|_| ())
}

fn is_told_as_page(error: &Error, kind: Kind) {
    assert_eq!(error.kind(), kind, "{error}");
    let text = error.to_string();
    for part in ["does not answer as an S3 server", "with a web page"] {
        assert!(text.contains(part), "{text}");
    }
    let hint = error.hint_text().expect("a hint");
    assert!(hint.contains("check the endpoint"), "{hint}");
}

#[test]
fn a_web_page_with_an_error_is_told_as_one() {
    for status in [403, 404] {
        let page = with_page(status);
        for error in [
            asked(&page, read),
            asked(&page, list),
            asked(&page, look),
            asked(&page, write),
        ] {
            is_told_as_page(&error, Kind::Storage);
        }
    }
    // A busy server, or a proxy before it, may send one too: it is asked again.
    let page = with_page(524);
    is_told_as_page(&asked(&page, list), Kind::Unreachable);
    assert!(page.requests().len() > 1);
    // What a server does not know it does not learn.
    for status in [501, 505] {
        let page = with_page(status);
        is_told_as_page(&asked(&page, list), Kind::Storage);
        assert_eq!(page.requests().len(), 1, "{status}");
    }
}

/// They have numbers of their own for a server that is gone, late or overloaded.
#[test]
fn what_proxies_say_of_a_server_that_is_away_is_outlived() {
    let (kept, subject) = place(FilesystemOptions::default());
    for status in [508, 511, 520, 522, 524, 529, 530, 599] {
        let answers = AtomicUsize::new(0);
        let scripted = Scripted::start(move |_, _| match answers.fetch_add(1, Ordering::Relaxed) {
            0 => Reply::new(status, PAGE).with("content-type", "text/html"),
            1 => Reply::new(status, "error code: 1016"),
            _ => Reply::new(200, "y").with("etag", "\"x\""),
        });
        let store = kept.store_at(&scripted.endpoint(), "", &LinkLimits::default());
        let got = subject.on_shard(async |shard| store.get(&shard, &key("x"), 10).await);
        assert_eq!(got, b"y", "{status}");
        assert_eq!(scripted.requests().len(), 3, "{status}");
    }
}

/// By a rule of the bucket's, or by hand, while a part of it or its end was on the way.
#[test]
fn an_upload_that_others_threw_away_is_no_object_that_does_not_exist() {
    let (kept, subject) = place(FilesystemOptions::default());
    let bytes = pattern(17 * BUF_BYTES, 1);
    for (method, query) in [("PUT", "partNumber="), ("POST", "uploadId=")] {
        let Behind { proxy, store } = Behind::plain(&kept);
        let gone = Fault::new(Action::error(404, "NoSuchUpload")).method(method);
        let gone = proxy.inject(gone.path("/long").query(query));
        let error = refusal(&subject, &store, async |store, shard| {
            let put = upload_all(store, shard, &key("long"), &bytes).await;
            put.map(|_| ())
        });
        assert_eq!(error.kind(), Kind::Storage, "{method}: {error}");
        assert!(error.message().contains("thrown away"), "{method}: {error}");
        assert_eq!(error.object_name(), Some("long"), "{method}: {error}");
        let hint = error.hint_text().expect("a hint");
        assert!(hint.contains("lifecycle rules"), "{method}: {hint}");
        assert_eq!(proxy.hits(gone), 1, "{method}");
    }
}

#[test]
fn only_what_is_told_in_the_words_of_s3_is_absent() {
    let scripted = Scripted::start(|_, _| Reply::s3_error(404, "NoSuchKey", "no"));
    assert!(asked(&scripted, read).is_absence());
    // A proxy whose server is being restarted.
    for reply in [
        Reply::new(404, ""),
        Reply::new(404, "404 page not found\n").with("content-type", "text/plain"),
    ] {
        let scripted = Scripted::start(move |_, _| reply.clone());
        let error = asked(&scripted, read);
        assert_eq!(error.kind(), Kind::Storage, "{error}");
        let hint = error.hint_text().expect("a hint");
        assert!(hint.contains("check the endpoint"), "{hint}");
        assert!(scripted.requests().len() > 1, "it may pass");
    }
}

/// While a proxy says of everything that it is not there, an object is neither read as absent nor deleted as if it were.
#[test]
fn an_object_that_a_proxy_does_not_find_for_a_moment_is_found() {
    let (kept, subject) = place(FilesystemOptions::default());
    let proxy = FaultProxy::start(&kept.endpoint());
    let store = kept.store_at(&proxy.endpoint(), "", &LinkLimits::default());
    subject.on_shard(async |shard| {
        assert_eq!(
            store.put_if_absent(&shard, &key("x"), b"y").await?,
            Put::Created
        );
        for method in ["GET", "HEAD", "DELETE"] {
            let lost = Fault::new(Action::Answer(Reply::new(404, "404 page not found")));
            let fault = proxy.inject(lost.path("/x").times(2));
            match method {
                "GET" => assert_eq!(store.get(&shard, &key("x"), 10).await?, b"y"),
                "HEAD" => assert!(store.head(&shard, &key("x")).await?.is_some()),
                _ => store.delete(&shard, &key("x")).await?,
            }
            assert_eq!(proxy.hits(fault), 2, "{method}");
        }
        Ok(())
    });
    assert_eq!(
        kept.client().get("x").expect("a reply").status,
        404,
        "it was deleted"
    );
}

#[test]
fn a_write_to_a_bucket_of_another_region_is_told_with_its_region() {
    let moved = Scripted::other_region("eu-north-7");
    let malformed = Scripted::start(|_, _| {
        Reply::new(
            400,
            "<Error><Code>AuthorizationHeaderMalformed</Code><Message>no</Message><Region>eu-north-7</Region></Error>",
        )
    });
    for server in [moved, malformed] {
        let error = asked(&server, write);
        assert_eq!(error.kind(), Kind::Usage, "{error}");
        assert!(error.to_string().contains("region"), "{error}");
        let hint = error.hint_text().expect("a hint");
        assert!(hint.contains("region=eu-north-7"), "{hint}");
        assert!(
            !format!("{error} {hint}").contains("credentials"),
            "{error} {hint}"
        );
        let requests = server.requests();
        assert_eq!(requests[0].head.method, "PUT");
        assert!(
            requests.len() <= 2,
            "a redirect is not followed: {requests:?}"
        );
    }
}

fn asks_for(head: &RequestHead, what: &str) -> bool {
    let mut pairs = head.query.split('&');
    pairs.any(|pair| pair.split('=').next() == Some(what))
}

fn xml(text: String) -> Reply {
    Reply::new(200, text).with("content-type", "application/xml")
}

/// Full pages of names that no key can have, each with a promise of more.
#[test]
fn a_listing_of_foreign_names_without_end_is_an_error() {
    const NAMES: usize = 1000;
    let pages = AtomicUsize::new(0);
    let endless = Scripted::start(move |_, _| {
        let page = pages.fetch_add(1, Ordering::Relaxed);
        let mut text = format!(
            "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t{page}</NextContinuationToken>"
        );
        for at in page * NAMES..(page + 1) * NAMES {
            text.push_str(&format!(
                "<Contents><Key>NO KEY {at:012}</Key><LastModified>2026-01-01T00:00:00Z</LastModified><Size>0</Size></Contents>"
            ));
        }
        xml(text + "</ListBucketResult>")
    });
    let error = asked(&endless, list);
    assert_eq!(error.kind(), Kind::Limit, "{error}");
    assert!(
        error.to_string().contains("none of a repository's"),
        "{error}"
    );
    assert!(error.hint_text().is_some());
}

/// A listing of uploads whose every page promises another, with a new marker or always the same.
fn endless_uploads(has_new_markers: bool) -> Scripted {
    let pages = AtomicUsize::new(0);
    Scripted::start(move |head, _| {
        if !asks_for(head, "uploads") {
            return xml(
                "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>".into(),
            );
        }
        let page = pages.fetch_add(usize::from(has_new_markers), Ordering::Relaxed);
        xml(format!(
            "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated><NextKeyMarker>k{page:09}</NextKeyMarker>\
             <NextUploadIdMarker>u</NextUploadIdMarker></ListMultipartUploadsResult>"
        ))
    })
}

#[test]
fn a_listing_of_uploads_without_end_is_an_error() {
    for (has_new_markers, part) in [(true, "does not end"), (false, "does not go forward")] {
        let endless = endless_uploads(has_new_markers);
        let error = asked(&endless, async |store, shard| {
            store.stale_temporaries(shard, |_| true).await.map(|_| ())
        });
        assert_eq!(error.kind(), Kind::Storage, "{error}");
        assert!(error.to_string().contains(part), "{error}");
        let hint = error.hint_text().expect("a hint");
        assert!(hint.contains("ListMultipartUploads"), "{hint}");
        assert!(endless.requests().len() < PAGES_MAX);
    }
}

/// What is not known of an upload that was cut off is sent again, so the object comes into being all the same.
#[test]
fn a_listing_of_parts_without_end_is_passed_over() {
    const UPLOADS: &str = "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated><Upload><Key>long</Key>\
        <UploadId>old</UploadId><Initiated>2026-01-01T00:00:00.000Z</Initiated></Upload></ListMultipartUploadsResult>";
    let (pages, writes) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let scripted = Scripted::start(move |head, _| {
        match head.method.as_str() {
        "GET" if asks_for(head, "uploads") => xml(UPLOADS.into()),
        "GET" if asks_for(head, "uploadId") => {
            let next = pages.fetch_add(1, Ordering::Relaxed) + 1;
            xml(format!(
                "<ListPartsResult><IsTruncated>true</IsTruncated><NextPartNumberMarker>{next}</NextPartNumberMarker>\
                 </ListPartsResult>"
            ))
        }
        "POST" if asks_for(head, "uploads") => xml(
            "<InitiateMultipartUploadResult><UploadId>new</UploadId></InitiateMultipartUploadResult>".into(),
        ),
        "DELETE" => Reply::new(204, ""),
        // The second write of a probe is refused, as by a server that keeps conditions.
        "PUT" if head.path.contains("/tmp/") && writes.fetch_add(1, Ordering::Relaxed) % 2 == 1 => {
            Reply::s3_error(412, "PreconditionFailed", "it exists")
        }
        "PUT" => Reply::new(200, "").with("etag", "\"x\""),
        _ => Reply::new(200, "<x/>").with("etag", "\"x\""),
    }
    });
    let (kept, subject) = place(FilesystemOptions::default());
    let store = kept.store_at(&scripted.endpoint(), "", &LinkLimits::default());
    subject.on_shard(async |shard| {
        let mut upload = store.upload_again(&shard, &key("long")).await?;
        push_all(&shard, &mut upload, &pattern(17 * BUF_BYTES, 3)).await?;
        upload.abort().await
    });
    let requests = scripted.requests();
    let of = |method: &str, what: &str| {
        let of = |head: &&RequestHead| head.method == method && head.query.contains(what);
        requests
            .iter()
            .map(|request| &request.head)
            .filter(of)
            .count()
    };
    let asked = of("GET", "uploadId=old");
    assert!((2..PAGES_MAX).contains(&asked), "{asked} pages of parts");
    assert_eq!(
        of("PUT", "uploadId=new"),
        1,
        "the part is sent to an upload of its own"
    );
}

#[test]
fn a_store_that_refuses_to_delete_says_so_when_it_is_tried_out() {
    let (kept, subject) = place(FilesystemOptions::default());
    let tried = subject.on_shard(async |shard| subject.store.try_out(&shard).await);
    assert_eq!((tried.undeleted, tried.weaknesses.len()), (None, 0));
    let Behind { proxy, store } = Behind::plain(&kept);
    let denied = Fault::new(Action::error(403, "AccessDenied")).method("DELETE");
    let denied = proxy.inject(denied);
    let tried = subject.on_shard(async |shard| store.try_out(&shard).await);
    let told = tried.undeleted.expect("a reason");
    for part in ["does not allow to delete an object", "AccessDenied"] {
        assert!(told.what.contains(part), "{told:?}");
    }
    assert!(
        told.hint
            .is_some_and(|hint| hint.contains("s3:DeleteObject"))
    );
    // The object that is written twice; the one of the upload in parts, and that upload.
    assert_eq!(proxy.hits(denied), 3);
}

/// A server that keeps conditions, takes every part, and answers so to the end of an upload in parts.
fn that_completes_with(completion: &'static str) -> Scripted {
    let probes = AtomicUsize::new(0);
    let tagged = |text: &str| Reply::new(200, text).with("etag", "\"x\"");
    Scripted::start(move |head, _| {
        let is_probe = head.path.contains("/probe-");
        match head.method.as_str() {
            "POST" if asks_for(head, "uploads") => tagged(
                "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>",
            ),
            "POST" if is_probe => Reply::s3_error(412, "PreconditionFailed", "it exists"),
            "POST" => xml(completion.to_owned()),
            "PUT" if is_probe && probes.fetch_add(1, Ordering::Relaxed) == 1 => {
                Reply::s3_error(412, "PreconditionFailed", "it exists")
            }
            "PUT" => tagged(""),
            "DELETE" => Reply::new(204, ""),
            _ => Reply::s3_error(404, "NoSuchKey", "nothing is here"),
        }
    })
}

/// The head of that answer is sent before the server knows how it ends, with white space behind it for as long as it takes.
#[test]
fn an_upload_in_parts_is_stored_only_where_its_result_says_so() {
    const LATE_ERROR: &str = "<?xml version=\"1.0\"?>                                                                                \
        \n                                                                                                                     \
        \n                                                                                                                     \
        <Error><Code>AccessDenied</Code><Message>no</Message></Error>";
    const RESULT: &str =
        "\n\n<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>";
    let (kept, subject) = place(FilesystemOptions::default());
    for (completion, is_stored) in [
        ("", false),
        ("<x/>", false),
        ("ok", false),
        (LATE_ERROR, false),
        (RESULT, true),
    ] {
        let scripted = that_completes_with(completion);
        let store = kept.store_at(&scripted.endpoint(), "", &LinkLimits::default());
        let put = subject.on_shard(async |shard| {
            let long = pattern(17 * BUF_BYTES, 1);
            Ok(upload_all(&store, &shard, &key("long"), &long).await)
        });
        match put {
            Ok(put) => assert!(is_stored && put == Put::Created, "{completion:?}: {put:?}"),
            Err(error) => {
                assert!(!is_stored, "{completion:?}: {error}");
                assert_eq!(error.kind(), Kind::Storage, "{completion:?}: {error}");
                assert!(error.hint_text().is_some(), "{completion:?}: {error}");
            }
        }
    }
}

/// What an upload in parts was asked for at its end, and how it is told where that fails.
#[test]
fn a_completion_that_fails_behind_a_head_of_success_is_understood() {
    let bytes = pattern(17 * BUF_BYTES, 1);
    for (code, is_rival_there, put) in [
        ("PreconditionFailed", true, Put::Exists),
        ("ConditionalRequestConflict", false, Put::Created),
    ] {
        let (kept, subject) = place(FilesystemOptions::default());
        let Behind { proxy, store } = Behind::plain(&kept);
        if is_rival_there {
            kept.client().put("long", b"theirs").expect("stored");
        }
        let failed = Fault::new(Action::Answer(Reply::s3_error(200, code, "no")));
        let failed = failed.method("POST").path("/long").query("uploadId=");
        let failed = proxy.inject(failed.times(1));
        let told =
            subject.on_shard(async |shard| upload_all(&store, &shard, &key("long"), &bytes).await);
        assert_eq!((told, proxy.hits(failed)), (put, 1), "{code}");
        let stored = kept.client().get("long").expect("stored").body;
        assert_eq!(stored == bytes, put == Put::Created, "{code}");
    }
}

/// Google's XML interface says so of what it writes and deletes.
#[test]
fn an_answer_without_a_body_is_no_page_whatever_it_says_that_it_is() {
    let writes = AtomicUsize::new(0);
    let html = |status| Reply::new(status, "").with("content-type", "text/html; charset=UTF-8");
    let scripted = Scripted::start(move |head, _| match head.method.as_str() {
        "PUT" if writes.fetch_add(1, Ordering::Relaxed) == 1 => {
            Reply::s3_error(412, "PreconditionFailed", "it exists")
        }
        "PUT" => html(200).with("etag", "\"x\""),
        "DELETE" => html(204),
        _ => Reply::new(200, "").with("etag", "\"x\""),
    });
    let (kept, subject) = place(FilesystemOptions::default());
    let store = kept.store_at(&scripted.endpoint(), "", &LinkLimits::default());
    subject.on_shard(async |shard| {
        let put = store.put_if_absent(&shard, &key("x"), b"y").await?;
        assert_eq!(put, Put::Created);
        store.delete(&shard, &key("x")).await
    });
    let deleted = |path: &str| {
        let requests = scripted.requests();
        let mut heads = requests.iter().map(|request| &request.head);
        heads.any(|head| head.method == "DELETE" && head.path.contains(path))
    };
    assert!(deleted("/probe-") && deleted("/x"));
}

#[test]
fn a_success_that_bears_no_tag_stores_nothing() {
    let scripted = Scripted::start(|_, _| Reply::new(200, "{\"status\":\"ok\"}"));
    let error = asked(&scripted, write);
    assert_eq!(error.kind(), Kind::Storage, "{error}");
    assert!(error.to_string().contains("without an ETag"), "{error}");
}

/// Whoever took it for a server without conditions would write where others rely on them.
#[test]
fn a_probe_that_is_refused_for_another_reason_does_not_unlearn_conditions() {
    let writes = AtomicUsize::new(0);
    let scripted = Scripted::start(move |head, _| match head.method.as_str() {
        "PUT" if writes.fetch_add(1, Ordering::Relaxed) == 0 => {
            Reply::new(200, "").with("etag", "\"x\"")
        }
        "PUT" => Reply::s3_error(403, "AccessDenied", "no"),
        "DELETE" => Reply::new(204, ""),
        _ => Reply::s3_error(404, "NoSuchKey", "nothing is here"),
    });
    let error = asked(&scripted, write);
    assert_eq!(error.kind(), Kind::Storage, "{error}");
    assert!(error.to_string().contains("AccessDenied"), "{error}");
    let wrote = |head: &RequestHead| head.method == "PUT" && !head.path.contains("/probe-");
    assert!(
        !scripted
            .requests()
            .iter()
            .any(|request| wrote(&request.head))
    );
}

/// Where HEAD is not answered, an object's first byte is asked for, and all of it may come.
#[test]
fn an_object_is_not_read_to_be_looked_at() {
    const BYTES: usize = 32 << 20;
    let scripted = Scripted::start(|head, _| match head.method.as_str() {
        "HEAD" => Reply::new(403, ""),
        _ => Reply::new(200, "x".repeat(BYTES)).with("etag", "\"x\""),
    });
    let (kept, subject) = place(FilesystemOptions::default());
    let store = kept.store_at(&scripted.endpoint(), "", &LinkLimits::default());
    let found = subject.on_shard(async |shard| store.head(&shard, &key("x")).await);
    assert_eq!(found.expect("it is there").bytes, BYTES as u64);
    let received = store.link_report().expect("a link").received_bytes;
    assert!(received < BYTES as u64 / 4, "{received} bytes were read");
}

/// A small body is waited for as long as its last byte may take, and is sent once.
#[test]
fn a_server_that_takes_a_small_object_slowly_is_waited_for() {
    const RATE: u64 = 1024;
    let bytes = pattern(5 * RATE as usize, 4);
    let (kept, subject) = place(FilesystemOptions::default());
    let Behind { proxy, store } = Behind::plain(&kept);
    let slow = proxy.inject(
        Fault::new(Action::SlowRequest(RATE))
            .method("PUT")
            .path("/x"),
    );
    let put = subject.on_shard(async |shard| {
        let begun = std::time::Instant::now();
        let put = store.put_if_absent(&shard, &key("x"), &bytes).await?;
        assert!(begun.elapsed().as_secs() >= 4, "it was slow");
        Ok(put)
    });
    assert_eq!(put, Put::Created);
    assert_eq!(proxy.hits(slow), 1);
    assert!(kept.client().get("x").expect("stored").body == bytes);
}

/// The rest of a long body that is taken in as slowly would take hours: it is sent on another connection.
#[test]
fn a_server_that_stops_taking_a_long_object_is_given_up() {
    let bytes = pattern(15 * BUF_BYTES, 4);
    let (kept, subject) = place(FilesystemOptions::default());
    let Behind { proxy, store } = Behind::with(&kept, "timeout=2");
    let slow = Fault::new(Action::SlowRequest(1024))
        .method("PUT")
        .path("/x");
    let slow = proxy.inject(slow.times(1));
    let put = subject.on_shard(async |shard| upload_all(&store, &shard, &key("x"), &bytes).await);
    assert_eq!(put, Put::Created);
    assert_eq!(proxy.hits(slow), 1);
    assert!(kept.client().get("x").expect("stored").body == bytes);
}

#[test]
fn a_server_that_never_takes_anything_in_ends_in_a_retryable_error() {
    let (kept, subject) = place(FilesystemOptions::default());
    let Behind { proxy, store } = Behind::with(&kept, "timeout=1");
    proxy.inject(Fault::new(Action::SlowRequest(1)).method("PUT"));
    let error = refusal(&subject, &store, write);
    assert_eq!(error.kind(), Kind::Unreachable, "{error}");
    assert!(error.to_string().contains("for 1 s now"), "{error}");
    assert!(error.hint_text().is_some());
}
