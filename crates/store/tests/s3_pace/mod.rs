//! Answers that come slowly: by our own limit, and by a server that crawls.

use mover_io::RateBudget;
use mover_store::LinkLimits;
use mover_test_servers::{Action, Fault, FaultProxy, FilesystemOptions};

use crate::conformance::{key, pattern};
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
    assert_eq!(of("GET /mover/x"), 5, "{seen:#?}");
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
