//! Answers that come slowly: by our own limit, by a server that crawls, and by one that takes its time for the end of an
//! upload in parts.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use mover_io::{BUF_BYTES, RateBudget};
use mover_store::{LinkLimits, Put};
use mover_test_servers::{
    Action, Fault, FaultProxy, FilesystemOptions, Reply, RequestHead, Scripted,
};

use crate::conformance::{key, pattern, upload_all};
use crate::s3_servers::{Behind, place};

/// The ranges take ten seconds, and what is asked meanwhile comes behind them.
#[test]
fn the_wait_for_our_own_limit_is_no_silence_of_the_server() {
    const RATE: usize = 64 << 10;
    const RANGE: usize = 2 * RATE;
    let (kept, subject) = place(FilesystemOptions::default());
    let bytes = pattern(5 * RANGE, 1);
    kept.client().put("x", &bytes).expect("stored");
    let proxy = FaultProxy::start(&kept.endpoint());
    let limits = LinkLimits {
        download: RateBudget::new(Some(RATE as u64)),
        ..LinkLimits::default()
    };
    let store = kept.store_at(&proxy.endpoint(), "timeout=1", &limits);
    subject.on_shard(async |shard| {
        let (x, absent) = (key("x"), key("absent"));
        let range = |at: usize| store.read(&shard, &x, (at * RANGE) as u64, RANGE);
        let (first, second, third, fourth, fifth, absent) = tokio::join!(
            range(0),
            range(1),
            range(2),
            range(3),
            range(4),
            store.head(&shard, &absent)
        );
        let ranges = [first?, second?, third?, fourth?, fifth?];
        for (at, range) in ranges.iter().enumerate() {
            assert!(range[..] == bytes[at * RANGE..][..RANGE], "{at}");
        }
        assert!(absent?.is_none());
        Ok(())
    });
    let seen = proxy.seen();
    let of = |part: &str| seen.iter().filter(|line| line.starts_with(part)).count();
    assert_eq!(of("GET /mover/absent"), 1, "{seen:#?}");
    // Under so low a limit a request asks for 64 KiB.
    assert_eq!(of("GET /mover/x"), 5 * RANGE / RATE, "{seen:#?}");
}

#[test]
fn the_rest_of_a_range_that_crawls_is_asked_for_anew() {
    let (kept, subject) = place(FilesystemOptions::default());
    let bytes = pattern(4096, 1);
    kept.client().put("x", &bytes).expect("stored");
    let Behind { proxy, store } = Behind::with(&kept, "timeout=1");
    let crawling = Fault::new(Action::SlowReply(16)).method("GET").path("/x");
    proxy.inject(crawling.times(1));
    subject.on_shard(async |shard| {
        let got = store.read(&shard, &key("x"), 0, bytes.len()).await?;
        assert!(got[..] == bytes[..]);
        Ok(())
    });
    let ranges = proxy.ranges();
    assert_eq!(ranges.len(), 2, "{ranges:?}");
    assert_eq!(ranges[0], "bytes=0-4095");
    assert_ne!(ranges[1], ranges[0], "what has come is not asked for again");
}

/// What the server says of an upload in parts that has become its object.
const COMPLETED: &str = "<CompleteMultipartUploadResult/>";

/// A server that keeps conditions and takes every part. It gives these answers to the ends of an upload in parts, one after the
/// other and then the last, and does not find the object when it is looked for the first `unseen` times.
fn that_ends(answers: Vec<Reply>, unseen: usize) -> Scripted {
    const BEGUN: &str =
        "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>";
    const MARK: &str = "x-amz-meta-helios-mover-writer";
    let [probes, ends, looks] = [0; 3].map(AtomicUsize::new);
    let mark = Mutex::new(String::new());
    let mark_of = move |head: &RequestHead| {
        let mut mark = mark.lock().expect("nobody panics while it is held");
        if let Some(new) = head.header(MARK) {
            *mark = new.to_owned();
        }
        mark.clone()
    };
    let tagged = |text: &str| Reply::new(200, text).with("etag", "\"x\"");
    let exists = || Reply::s3_error(412, "PreconditionFailed", "it exists");
    Scripted::start(move |head, _| {
        let is_probe = head.path.contains("/probe-");
        match head.method.as_str() {
            "POST" if head.query.starts_with("uploads") => {
                if !is_probe {
                    mark_of(head);
                }
                tagged(BEGUN)
            }
            "POST" if is_probe => exists(),
            "POST" => {
                let end = ends.fetch_add(1, Ordering::Relaxed);
                answers[end.min(answers.len() - 1)].clone()
            }
            "PUT" if is_probe && probes.fetch_add(1, Ordering::Relaxed) == 1 => exists(),
            "PUT" => tagged(""),
            "HEAD" if looks.fetch_add(1, Ordering::Relaxed) >= unseen => {
                tagged("").with(MARK, &mark_of(head))
            }
            "DELETE" => Reply::new(204, ""),
            _ => Reply::s3_error(404, "NoSuchKey", "nothing is here"),
        }
    })
}

/// How often the object `long` was asked for by this method.
fn asked_for_long(scripted: &Scripted, method: &str) -> usize {
    let requests = scripted.requests();
    let of = |head: &&RequestHead| {
        head.method == method && head.path.ends_with("/long") && !head.query.starts_with("uploads")
    };
    let heads = requests.iter().map(|request| &request.head);
    heads.filter(of).count()
}

/// It is sent in pieces of two bytes, for six seconds: much less than an answer has to bring otherwise.
#[test]
fn the_end_of_an_upload_in_parts_is_waited_for_while_white_space_comes() {
    let late = format!("{}{COMPLETED}", " ".repeat(64));
    let scripted = that_ends(vec![Reply::new(200, late)], usize::MAX);
    let proxy = FaultProxy::start(&scripted.endpoint());
    let slow = Fault::new(Action::SlowReply(16)).method("POST");
    let slow = proxy.inject(slow.path("/long").query("uploadId="));
    let (kept, subject) = place(FilesystemOptions::default());
    let store = kept.store_at(&proxy.endpoint(), "timeout=2", &LinkLimits::default());
    let bytes = pattern(17 * BUF_BYTES, 1);
    let put =
        subject.on_shard(async |shard| upload_all(&store, &shard, &key("long"), &bytes).await);
    assert_eq!(put, Put::Created);
    assert_eq!(proxy.hits(slow), 1, "it is asked for once");
}

/// The answer to the first end was lost, and the server has not yet shown what it made of it when it is asked again.
#[test]
fn an_upload_that_is_gone_is_given_up_only_where_its_object_does_not_appear() {
    let (kept, subject) = place(FilesystemOptions::default());
    for (unseen, is_stored) in [(0, true), (2, true), (usize::MAX, false)] {
        let answers = vec![
            Reply::s3_error(500, "InternalError", "try again"),
            Reply::s3_error(404, "NoSuchUpload", "it is gone"),
        ];
        let scripted = that_ends(answers, unseen);
        let store = kept.store_at(&scripted.endpoint(), "", &LinkLimits::default());
        let bytes = pattern(17 * BUF_BYTES, 1);
        let put = subject
            .on_shard(async |shard| Ok(upload_all(&store, &shard, &key("long"), &bytes).await));
        match put {
            Ok(put) => assert!(is_stored && put == Put::Created, "{unseen}: {put:?}"),
            Err(error) => assert!(!is_stored, "{unseen}: {error}"),
        }
        assert_eq!(asked_for_long(&scripted, "POST"), 2, "{unseen}");
        let looks = asked_for_long(&scripted, "HEAD");
        match is_stored {
            true => assert_eq!(looks, unseen + 1),
            false => assert!((3..20).contains(&looks), "{looks}"),
        }
    }
}
