//! A server that has time for a few requests only, and a driver that could send many.

use std::task::Poll;
use std::time::Duration;

use mover_base::Result;
use mover_store::LinkLimits;
use mover_test_servers::FilesystemOptions;

use crate::conformance::{key, pattern};
use crate::s3_servers::place;

/// Drives all of them at the same time, to their ends.
async fn all<T>(futures: impl Iterator<Item = impl Future<Output = Result<T>>>) -> Result<()> {
    let mut pending: Vec<_> = futures.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        let mut outcome = Ok(());
        pending.retain_mut(|future| match future.as_mut().poll(context) {
            Poll::Pending => true,
            Poll::Ready(done) => {
                outcome = std::mem::replace(&mut outcome, Ok(())).and(done.map(drop));
                false
            }
        });
        match (&outcome, pending.is_empty()) {
            (Ok(()), false) => Poll::Pending,
            _ => Poll::Ready(outcome),
        }
    })
    .await
}

/// It begins with all of its connections, and comes down to about what the server has time for.
#[test]
fn a_server_that_serves_few_at_a_time_gets_fewer_requests_and_in_the_end_everything() {
    const OBJECTS: usize = 160;
    const CONNECTIONS: usize = 32;
    const SERVED: usize = 4;
    let (kept, subject) = place(FilesystemOptions::default());
    let options = format!("connections={CONNECTIONS}");
    let store = kept.store_at(&kept.endpoint(), &options, &LinkLimits::default());
    let server = kept.filesystem();
    server.serve_few(SERVED, Duration::from_millis(100));
    let bytes = pattern(1000, 5);
    subject.on_shard(async |shard| {
        let names: Vec<_> = (0..OBJECTS).map(|at| key(&format!("many/{at}"))).collect();
        let puts = names
            .iter()
            .map(|name| store.put_if_absent(&shard, name, &bytes));
        all(puts).await
    });
    let arrivals = server.arrivals();
    let most = |part: &[usize]| part.iter().copied().max().unwrap_or_default();
    let (begin, end) = (
        &arrivals[..CONNECTIONS],
        &arrivals[arrivals.len() * 2 / 3..],
    );
    assert!(most(&arrivals) <= CONNECTIONS, "{arrivals:?}");
    assert!(most(begin) >= CONNECTIONS / 2, "{arrivals:?}");
    assert!(most(end) <= CONNECTIONS / 2 + SERVED, "{arrivals:?}");
    let stored = std::fs::read_dir(server.objects().join("many")).expect("a directory");
    assert_eq!(stored.count(), OBJECTS);
}
