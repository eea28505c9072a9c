//! What breaks below or within an encrypted connection: the proxy speaks TLS to the driver, so a reset, a body that ends
//! early and a peer that falls silent come without the words by which TLS ends a connection in order.

use std::net::TcpListener;
use std::thread;

use mover_base::Kind;
use mover_io::BUF_BYTES;
use mover_store::{LinkLimits, Put, READ_BYTES_MAX, Slice};
use mover_test_servers::{Action, Fault, FilesystemOptions};

use crate::conformance::{key, pattern, upload_all};
use crate::s3_servers::{Behind, place};
use crate::{read, refusal, survive_faults};

#[test]
fn over_tls_faults_that_pass_are_survived_and_nothing_is_lost_or_doubled() {
    survive_faults(
        || place(FilesystemOptions::default()),
        |kept| Behind::tls(kept, ""),
    );
}

/// All that is asked for at the same time is refused, several times over; then the server is well again.
#[test]
fn a_storm_of_refusals_over_tls_is_waited_out() {
    const OBJECTS: usize = 8;
    const REFUSALS: u64 = 40;
    let (kept, subject) = place(FilesystemOptions::default());
    let Behind { proxy, store } = Behind::tls(&kept, "");
    let bytes = |at: usize| pattern(3 * BUF_BYTES + at, at as u64);
    let name = |at: usize| key(&format!("storm/{at}"));
    subject.on_shard(async |shard| store.put_if_absent(&shard, &key("first"), b"x").await);
    let storm = |of: &str| {
        let storm = Fault::new(Action::slow_down()).method(of);
        proxy.inject(storm.path("storm/").times(REFUSALS))
    };
    let (puts, gets) = (storm("PUT"), storm("GET"));
    subject.on_shard(async |shard| {
        let all: Vec<_> = (0..OBJECTS)
            .map(|at| {
                let (own, store) = (shard.clone(), store.clone());
                shard.spawn(async move {
                    let put = upload_all(&store, &own, &name(at), &bytes(at)).await?;
                    let got = store.get(&own, &name(at), u64::MAX).await?;
                    mover_base::Result::Ok((put, got))
                })
            })
            .collect();
        for (at, one) in all.into_iter().enumerate() {
            let (put, got) = one.await.expect("no panic")?;
            assert_eq!(put, Put::Created, "{at}");
            assert!(got == bytes(at), "{at}");
        }
        Ok(())
    });
    assert_eq!((proxy.hits(puts), proxy.hits(gets)), (REFUSALS, REFUSALS));
    for at in 0..OBJECTS {
        let stored = kept.client().get(name(at).as_str()).expect("stored");
        assert!(stored.body == bytes(at), "{at}");
    }
}

/// A body that ends early over TLS ends without a word: what was there before is taken, the rest is asked for.
#[test]
fn a_run_that_breaks_off_or_stands_still_over_tls_goes_on_at_the_byte() {
    const PIECES: usize = 4;
    const BROUGHT: usize = READ_BYTES_MAX + 12_345;
    for (action, options) in [
        (Action::TruncateReply(BROUGHT as u64), ""),
        (Action::StallReply(BROUGHT as u64), "timeout=2"),
    ] {
        let (kept, subject) = place(FilesystemOptions::default());
        let Behind { proxy, store } = Behind::tls(&kept, options);
        let bytes = pattern(PIECES * READ_BYTES_MAX, 8);
        kept.client().put("x", &bytes).expect("stored");
        proxy.inject(Fault::new(action.clone()).method("GET").times(2));
        let got = subject.on_shard(async |shard| {
            let mut got = Vec::new();
            let mut take = |piece: Slice| got.extend_from_slice(&piece);
            let reader = store.reader(&shard);
            let lens = [READ_BYTES_MAX; PIECES];
            reader.read_run(&key("x"), 0, &lens, &mut take).await?;
            Ok(got)
        });
        assert!(got == bytes, "{action:?}");
        let first = |range: &String| {
            let (first, last) = range["bytes=".len()..].split_once('-').expect("a range");
            assert_eq!(last, (bytes.len() - 1).to_string());
            first.parse::<usize>().expect("a number")
        };
        let ranges = proxy.ranges();
        // TLS hands over whole records: what a broken connection brought may end before the byte that was sent last.
        let firsts: Vec<usize> = ranges.iter().map(first).collect();
        assert_eq!(firsts[0], 0, "{firsts:?}");
        // On a loaded machine the third may stand still for as long as the proxy makes the first two.
        match action {
            Action::TruncateReply(_) => assert_eq!(firsts.len(), 3, "{firsts:?}"),
            _ => assert!(firsts.len() >= 3, "{firsts:?}"),
        }
        for two in firsts[..3].windows(2) {
            assert!((1..=BROUGHT).contains(&(two[1] - two[0])), "{firsts:?}");
        }
    }
}

#[test]
fn a_peer_that_never_answers_over_tls_ends_in_a_retryable_error() {
    let (kept, subject) = place(FilesystemOptions::default());
    let Behind { proxy, store } = Behind::tls(&kept, "timeout=1");
    proxy.inject(Fault::new(Action::Stall));
    let error = refusal(&subject, &store, read);
    assert_eq!(error.kind(), Kind::Unreachable, "{error}");
    assert!(error.hint_text().is_some());
}

/// A port that takes connections and says nothing: no handshake, no refusal.
#[test]
fn a_handshake_that_never_ends_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
    let address = silent.local_addr().expect("it is bound");
    thread::spawn(move || {
        let taken: Vec<_> = silent.incoming().take(1000).collect();
        drop(taken);
    });
    let (kept, subject) = place(FilesystemOptions::default());
    let endpoint = format!("https://{address}");
    let store = kept.store_at(&endpoint, "timeout=1", &LinkLimits::default());
    let error = refusal(&subject, &store, read);
    assert_eq!(error.kind(), Kind::Unreachable, "{error}");
    assert!(error.to_string().contains("cannot be reached"), "{error}");
}

/// `https` in the URL of a server that speaks `http`.
#[test]
fn a_server_without_tls_is_told() {
    let (kept, subject) = place(FilesystemOptions::default());
    let endpoint = kept.endpoint().replace("http://", "https://");
    let store = kept.store_at(&endpoint, "", &LinkLimits::default());
    let error = refusal(&subject, &store, read);
    assert_eq!(error.kind(), Kind::Usage, "{error}");
    assert!(
        error
            .hint_text()
            .is_some_and(|hint| hint.contains("http://")),
        "{error}"
    );
}
