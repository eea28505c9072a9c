//! Runs of bytes from S3: one request for many pieces, which goes on where an answer broke off; and servers that send
//! more than was asked for, less, or the whole object.

use std::time::Duration;

use mover_base::{Error, Kind, Result};
use mover_io::{BUF_BYTES, RateBudget, Shard};
use mover_store::{LinkLimits, READ_BYTES_MAX, RUN_BYTES_MAX, Slice, Store};
use mover_test_servers::{
    Action, Fault, FaultProxy, FilesystemOptions, Reply, RequestHead, Scripted,
};

use crate::conformance::{Subject, key, pattern};
use crate::refused;
use crate::s3_servers::{Place, place};

/// Pieces of the runs here: fewer than the shard has buffers.
const PIECES: usize = 6;
/// Where they begin.
const OFFSET: usize = 1001;

/// A server with the object `x`, behind a proxy.
struct Behind {
    kept: Place,
    subject: Subject,
    proxy: FaultProxy,
    bytes: Vec<u8>,
}

impl Behind {
    fn new() -> Self {
        let (kept, subject) = place(FilesystemOptions::default());
        let proxy = FaultProxy::start(&kept.endpoint());
        let bytes = pattern(PIECES * READ_BYTES_MAX + 2 * OFFSET, 3);
        kept.client().put("x", &bytes).expect("stored");
        Behind {
            kept,
            subject,
            proxy,
            bytes,
        }
    }

    fn store(&self, options: &str) -> Store {
        let limits = LinkLimits::default();
        self.kept.store_at(&self.proxy.endpoint(), options, &limits)
    }

    /// The bytes of the run, as the server has them.
    fn run(&self) -> &[u8] {
        &self.bytes[OFFSET..OFFSET + PIECES * READ_BYTES_MAX]
    }

    /// How the run is asked for if so many of its bytes are there.
    fn range_from(&self, there: usize) -> String {
        let end = OFFSET + PIECES * READ_BYTES_MAX;
        format!("bytes={}-{}", OFFSET + there, end - 1)
    }
}

/// The pieces of a run of the object `x`.
async fn read_run(store: &Store, shard: &Shard, offset: usize, lens: &[usize]) -> Result<Vec<u8>> {
    let mut got = Vec::new();
    let mut take = |piece: Slice| got.extend_from_slice(&piece);
    let reader = store.reader(shard);
    reader
        .read_run(&key("x"), offset as u64, lens, &mut take)
        .await?;
    Ok(got)
}

async fn whole_run(store: &Store, shard: &Shard) -> Result<Vec<u8>> {
    read_run(store, shard, OFFSET, &[READ_BYTES_MAX; PIECES]).await
}

#[test]
fn a_run_is_one_request_and_more_only_where_buffers_are_short() {
    let behind = Behind::new();
    let store = behind.store("");
    behind.subject.on_shard(async |shard| {
        assert!(whole_run(&store, &shard).await? == behind.run());
        Ok(())
    });
    assert_eq!(behind.proxy.ranges(), [behind.range_from(0)]);
    behind.subject.on_shard(async |shard| {
        let mut held = Vec::new();
        for _ in 0..shard.buffers_total() - 2 {
            held.push(shard.buffer().await);
        }
        assert!(whole_run(&store, &shard).await? == behind.run());
        Ok(())
    });
    assert_eq!(behind.proxy.ranges().len(), 1 + PIECES / 2);
}

#[test]
fn a_run_on_a_link_with_a_limit_is_short() {
    let behind = Behind::new();
    let limits = LinkLimits {
        download: RateBudget::new(Some(1 << 30)),
        ..LinkLimits::default()
    };
    let endpoint = behind.proxy.endpoint();
    let limited = behind.kept.store_at(&endpoint, "", &limits);
    behind.subject.on_shard(async |shard| {
        let reader = limited.reader(&shard);
        assert_eq!(reader.run_bytes_max(), READ_BYTES_MAX as u64);
        limits.download.set(None);
        assert_eq!(reader.run_bytes_max(), RUN_BYTES_MAX);
        Ok(())
    });
}

#[test]
fn a_run_that_breaks_off_goes_on_at_the_byte() {
    const BROUGHT: usize = READ_BYTES_MAX + READ_BYTES_MAX / 2 + 3;
    let (close, hang) = (
        Action::TruncateReply(BROUGHT as u64),
        Action::StallReply(BROUGHT as u64),
    );
    for action in [close, hang] {
        let behind = Behind::new();
        let store = behind.store("timeout=1");
        let fault = Fault::new(action.clone()).method("GET").times(2);
        behind.proxy.inject(fault);
        behind.subject.on_shard(async |shard| {
            assert!(whole_run(&store, &shard).await? == behind.run());
            Ok(())
        });
        let asked = [0, BROUGHT, 2 * BROUGHT].map(|there| behind.range_from(there));
        assert_eq!(behind.proxy.ranges(), asked, "{action:?}");
    }
}

#[test]
fn a_run_that_breaks_off_again_and_again_comes_to_its_end() {
    const BROUGHT: usize = 40_000;
    const BREAKS: usize = 20;
    let behind = Behind::new();
    let store = behind.store("");
    let fault = Fault::new(Action::TruncateReply(BROUGHT as u64)).method("GET");
    behind.proxy.inject(fault.times(BREAKS as u64));
    behind.subject.on_shard(async |shard| {
        assert!(whole_run(&store, &shard).await? == behind.run());
        Ok(())
    });
    let asked: Vec<String> = (0..=BREAKS)
        .map(|breaks| behind.range_from(breaks * BROUGHT))
        .collect();
    assert_eq!(behind.proxy.ranges(), asked);
}

#[test]
fn a_slow_answer_that_moves_is_waited_for() {
    let behind = Behind::new();
    let store = behind.store("timeout=1");
    let fault = behind.proxy.inject(Fault::new(Action::SlowReply(1024)));
    behind.subject.on_shard(async |shard| {
        assert!(read_run(&store, &shard, 7, &[2000, 1000]).await? == behind.bytes[7..3007]);
        Ok(())
    });
    assert_eq!(
        behind.proxy.hits(fault),
        1,
        "it took longer than the time-out, and was not silent"
    );
}

/// Nothing is known of what is usual: the first run of a job may be the one whose connection crawls, for hours.
#[test]
fn a_first_run_that_crawls_is_asked_for_on_another_connection() {
    let behind = Behind::new();
    let store = behind.store("timeout=1");
    let crawl = Fault::new(Action::SlowReply(1024)).method("GET");
    let crawl = behind.proxy.inject(crawl.times(1));
    behind.subject.on_shard(async |shard| {
        // Long enough to count as long.
        let lens = [READ_BYTES_MAX, 16 << 10];
        let run = read_run(&store, &shard, OFFSET, &lens).await?;
        assert!(run == behind.run()[..READ_BYTES_MAX + lens[1]]);
        Ok(())
    });
    assert_eq!(behind.proxy.hits(crawl), 1);
    assert_eq!(
        behind.proxy.ranges().len(),
        2,
        "{:?}",
        behind.proxy.ranges()
    );
}

#[test]
fn a_cancelled_run_gives_its_buffers_back() {
    let behind = Behind::new();
    let store = behind.store("");
    behind.proxy.inject(
        Fault::new(Action::StallReply(5_000_000))
            .method("GET")
            .times(1),
    );
    behind.subject.on_shard(async |shard| {
        let run = whole_run(&store, &shard);
        assert!(
            tokio::time::timeout(Duration::from_millis(300), run)
                .await
                .is_err()
        );
        assert_eq!(shard.buffers_free(), shard.buffers_total());
        assert!(whole_run(&store, &shard).await? == behind.run());
        Ok(())
    });
}

/// First and last byte that a request asks for.
fn range_of(head: &RequestHead) -> (usize, usize) {
    let range = head.header("range").expect("a range");
    let (first, last) = range
        .strip_prefix("bytes=")
        .expect("bytes")
        .split_once('-')
        .expect("a range");
    (
        first.parse().expect("a number"),
        last.parse().expect("a number"),
    )
}

/// What `store` says of a server that answers a question for a range by `answer`.
fn asked(
    lens: &[usize],
    offset: usize,
    answer: impl Fn(usize, usize) -> Reply + Send + Sync + 'static,
) -> (Result<Vec<u8>>, usize) {
    let scripted = Scripted::start(move |head, _| {
        let (first, last) = range_of(head);
        answer(first, last).with("etag", "\"x\"")
    });
    let (kept, subject) = place(FilesystemOptions::default());
    let store = kept.store_at(&scripted.endpoint(), "", &LinkLimits::default());
    let got = subject.on_shard(async |shard| Ok(read_run(&store, &shard, offset, lens).await));
    (got, scripted.requests().len())
}

fn part(object: &[u8], first: usize, last: usize) -> Reply {
    let range = format!("bytes {first}-{last}/{}", object.len());
    Reply::new(206, &object[first..=last]).with("content-range", &range)
}

fn refusal(answered: (Result<Vec<u8>>, usize)) -> Error {
    refused(answered.0)
}

#[test]
fn what_a_server_leaves_out_is_asked_for() {
    const PART: usize = 700_000;
    let object = pattern(4 * BUF_BYTES, 1);
    let truth = object[5..3_000_005].to_vec();
    let answer = move |first, last: usize| part(&object, first, last.min(first + PART - 1));
    let (got, requests) = asked(&[1_000_000; 3], 5, answer);
    assert!(got.expect("the run") == truth);
    assert_eq!(requests, 3_000_000_usize.div_ceil(PART));
}

#[test]
fn bytes_that_were_not_asked_for_are_refused() {
    let object = pattern(100_000, 1);
    let lens = [10_000, 10_000];
    let of = |answer: fn(&[u8], usize, usize) -> Reply| {
        let object = object.clone();
        move |first, last| answer(&object, first, last)
    };
    // Later bytes, more bytes, a range and more than it, no word on which.
    type Answer = fn(&[u8], usize, usize) -> Reply;
    let answers: [Answer; 4] = [
        |object, first, last| part(object, first + 1, last),
        |object, first, last| part(object, first, last + 1),
        |object, first, last| {
            let range = format!("bytes {first}-{last}/{}", object.len());
            Reply::new(206, &object[first..=last + 1]).with("content-range", &range)
        },
        |object, first, last| Reply::new(206, &object[first..=last]),
    ];
    for answer in answers {
        let error = refusal(asked(&lens, 50, of(answer)));
        assert_eq!(error.kind(), Kind::Storage, "{error}");
        assert!(error.hint_text().is_some(), "{error}");
    }
    let error = refusal(asked(
        &lens,
        90_000,
        of(|object, first, _| part(object, first, 99_999)),
    ));
    assert_eq!(error.kind(), Kind::Corrupt, "the object ends: {error}");
}

#[test]
fn a_server_without_ranges_serves_a_run_that_is_the_whole_object() {
    let object = pattern(20_000, 1);
    let of = |object: &[u8]| {
        let object = object.to_vec();
        move |_, _| Reply::new(200, object.clone())
    };
    let lens = [15_000, 5000];
    let (got, requests) = asked(&lens, 0, of(&object));
    assert!(got.expect("the run") == object);
    assert_eq!(requests, 1);
    for (offset, object, kind) in [
        (1, &object[..], Kind::Storage),
        (0, &pattern(20_001, 1), Kind::Storage),
        (0, &object[1..], Kind::Corrupt),
    ] {
        let error = refusal(asked(&lens, offset, of(object)));
        assert_eq!(
            error.kind(),
            kind,
            "{} from {offset}: {error}",
            object.len()
        );
    }
}
