//! Claims under faults: on servers that know no conditional writes nothing is lost, doubled or written by two either when
//! requests and replies get lost, are doubled, late or refused; and whoever is cancelled leaves no parts.
//!
//! Invariant: what the server holds in the end is looked at without the code under test.

use std::thread;
use std::time::Duration;

use mover_io::BUF_BYTES;
use mover_store::Put;
use mover_test_servers::{Action, Conditions, Fault, FaultProxy, FilesystemOptions};

use super::conformance::{
    Subject, exactly_one_of_many_writers_creates, key, pattern, push_all, upload_all,
};
use super::s3_servers::{Behind, Place, garage_place, place, upload_ids};
use super::survive_faults;

/// A server that takes a condition in and does not keep to it.
fn heedless() -> (Place, Subject) {
    place(FilesystemOptions {
        conditions: Conditions::Ignored,
        ..FilesystemOptions::default()
    })
}

#[test]
fn a_server_that_ignores_conditions_only_at_the_end_of_uploads_in_parts_is_told() {
    let (_kept, subject) = place(FilesystemOptions {
        conditions: Conditions::AtomicInOne,
        ..FilesystemOptions::default()
    });
    let tried = subject.on_shard(async |shard| subject.store.try_out(&shard).await);
    let [weakness] = &tried.weaknesses[..] else {
        panic!("{:?}", tried.weaknesses);
    };
    let what = &weakness.what;
    assert!(what.contains("at the end of an upload in parts"), "{what}");
}

#[test]
fn faults_are_survived_by_claims() {
    survive_faults(heedless, Behind::plain);
}

#[test]
fn faults_are_survived_by_claims_on_garage() {
    survive_faults(garage_place, Behind::plain);
}

/// Faults that pass, each of which leaves it open what the server did.
fn unclear() -> [(&'static str, Action); 6] {
    [
        ("reset before", Action::ResetBeforeRequest),
        ("lost reply", Action::LostReply),
        ("error in 200", Action::ErrorIn200("InternalError".into())),
        ("internal error", Action::error(500, "InternalError")),
        ("twice", Action::Duplicate),
        ("late", Action::Delay(Duration::from_millis(50))),
    ]
}

#[test]
fn one_of_many_writers_creates_over_faults() {
    for (name, action) in unclear() {
        let (kept, subject) = heedless();
        let Behind { proxy, store } = Behind::plain(&kept);
        let fault = proxy.inject(Fault::new(action).chance(0.05, 11).times(200));
        let subject = Subject { store, ..subject };
        exactly_one_of_many_writers_creates(&subject);
        assert!(proxy.hits(fault) > 0, "{name} happened");
        let (objects, _) = kept.client().list("race/", 1000).expect("a listing");
        assert_eq!(objects.len(), 12, "{name}: one object for each round");
    }
}

/// Two servers of a cluster have two clocks, so how old another's claim is cannot be told by what they say.
#[test]
fn a_claim_holds_whatever_time_a_server_says_that_it_is() {
    let (kept, subject) = heedless();
    let (first, late) = (Behind::plain(&kept), Behind::plain(&kept));
    late.proxy.inject(Fault::new(Action::Dated(
        "Fri, 01 Jan 2100 00:00:00 GMT".into(),
    )));
    let held = Fault::new(Action::Hold).method("PUT").path("/x");
    first.proxy.inject(held.times(1));
    let write = |of: &Behind, bytes: &[u8]| {
        subject.on_shard(async |shard| of.store.put_if_absent(&shard, &key("x"), bytes).await)
    };
    let (write, first, late) = (&write, &first, &late);
    let (of_first, of_late) = thread::scope(|scope| {
        let of_first = scope.spawn(move || write(first, b"first"));
        while first.proxy.held() == 0 {
            assert!(!of_first.is_finished(), "its write is held");
            thread::sleep(Duration::from_millis(10));
        }
        let of_late = scope.spawn(move || write(late, b"late"));
        // Time to claim, to look, and to come back.
        thread::sleep(Duration::from_secs(2));
        assert!(!of_late.is_finished(), "the first may write yet");
        first.proxy.release();
        let join = |of: thread::ScopedJoinHandle<'_, Put>| of.join().expect("no panic");
        (join(of_first), join(of_late))
    });
    assert_eq!((of_first, of_late), (Put::Created, Put::Exists));
    let stored = kept.client().get("x").expect("stored").body;
    assert_eq!(stored, b"first");
}

/// What one write asks of a server without conditions, by method and in order; `docs/s3.md` says how many requests that are.
#[test]
fn a_claimed_object_takes_eight_or_twelve_requests_and_a_pack_two() {
    let (kept, subject) = heedless();
    let Behind { proxy, store } = Behind::plain(&kept);
    let asked = subject.on_shard(async |shard| {
        // By it the server is found out.
        upload_all(&store, &shard, &key("first"), b"x").await?;
        let mut asked = Vec::new();
        for (name, bytes, is_pack) in [
            ("small", 64 << 10, false),
            ("longer", 1 + (64 << 10), false),
            ("pack", 3 * BUF_BYTES, true),
        ] {
            let before = proxy.seen().len();
            let mut upload = match is_pack {
                true => store.upload_unique(&shard, &key(name)).await?,
                false => store.upload(&shard, &key(name)).await?,
            };
            push_all(&shard, &mut upload, &pattern(bytes, 1)).await?;
            assert_eq!(upload.commit().await?, Put::Created, "{name}");
            let seen = proxy.seen();
            let methods = seen[before..]
                .iter()
                .filter_map(|line| line.split(' ').next());
            asked.push(methods.collect::<Vec<_>>().join(" "));
        }
        Ok(asked)
    });
    // A look at the object, the claim, the claims, a look again, the object, and the claim's end.
    let claimed = |object: &str| format!("HEAD GET PUT GET HEAD GET {object} DELETE");
    let longer = format!("HEAD GET POST PUT {}", claimed("POST"));
    assert_eq!(asked, [claimed("PUT"), longer, "HEAD PUT".to_owned()]);
}

/// Drops `work` where the first request that `of` says is never answered.
async fn drop_at<T>(proxy: &FaultProxy, of: Fault, work: impl Future<Output = T>) {
    let stalled = proxy.inject(of.times(1));
    let mut work = Box::pin(work);
    while proxy.hits(stalled) == 0 {
        let early = tokio::time::timeout(Duration::from_millis(20), &mut work).await;
        assert!(early.is_err(), "it ended");
    }
}

/// Drops the commit of the object `cancelled` where the first request that `of` says is never answered, and then writes
/// another object, which throws away what was left.
fn cancel_commit(subject: &Subject, behind: &Behind, bytes: &[u8], of: Fault) {
    let Behind { proxy, store } = behind;
    subject.on_shard(async |shard| {
        let mut upload = store.upload(&shard, &key("cancelled")).await?;
        push_all(&shard, &mut upload, bytes).await?;
        drop_at(proxy, of.clone(), upload.commit()).await;
        upload_all(store, &shard, &key("next"), b"x").await
    });
}

#[test]
fn an_upload_in_parts_of_a_cancelled_claim_is_thrown_away() {
    let stalled = |method: &str| Fault::new(Action::Stall).method(method);
    let bytes = pattern(100_000, 4);
    for (what, fault) in [
        ("its part", stalled("PUT").path("/cancelled")),
        ("the claim", stalled("PUT").path("/tmp/claim-")),
        ("the claims' listing", stalled("GET").query("claim-")),
        (
            "its end",
            stalled("POST").path("/cancelled").query("uploadId="),
        ),
    ] {
        let (kept, subject) = heedless();
        let behind = Behind::plain(&kept);
        cancel_commit(&subject, &behind, &bytes, fault);
        let begun = upload_ids(&behind.proxy, "PUT", "/cancelled?partNumber=1&");
        assert_eq!(begun.len(), 1, "{what}");
        let aborted = upload_ids(&behind.proxy, "DELETE", "/cancelled?");
        assert_eq!(aborted, begun, "{what}");
    }
}

#[test]
fn an_upload_in_parts_of_a_cancelled_probe_is_thrown_away() {
    let (kept, subject) = place(FilesystemOptions::default());
    let behind = Behind::plain(&kept);
    let end = Fault::new(Action::Stall).method("POST").path("/probe-");
    let bytes = pattern(17 * BUF_BYTES, 4);
    cancel_commit(&subject, &behind, &bytes, end.query("uploadId="));
    let begun = upload_ids(&behind.proxy, "PUT", "/probe-");
    assert_eq!(begun.len(), 1);
    assert_eq!(upload_ids(&behind.proxy, "DELETE", "/probe-"), begun);
}

/// Whoever throws it away is cancelled, and so is the next one.
#[test]
fn an_upload_in_parts_is_thrown_away_whoever_is_cancelled_at_it() {
    let (kept, subject) = place(FilesystemOptions::default());
    let Behind { proxy, store } = Behind::plain(&kept);
    let abort = Fault::new(Action::Stall).method("DELETE").path("/left");
    let bytes = pattern(17 * BUF_BYTES, 4);
    subject.on_shard(async |shard| {
        let mut upload = store.upload(&shard, &key("left")).await?;
        push_all(&shard, &mut upload, &bytes).await?;
        drop_at(&proxy, abort.clone(), upload.abort()).await;
        let other = key("other");
        drop_at(&proxy, abort.clone(), store.upload(&shard, &other)).await;
        for name in ["next", "last"] {
            upload_all(&store, &shard, &key(name), b"x").await?;
        }
        Ok(())
    });
    let begun = upload_ids(&proxy, "PUT", "/left?partNumber=1&");
    assert_eq!(begun.len(), 1);
    assert_eq!(upload_ids(&proxy, "DELETE", "/left?"), begun);
    let seen = proxy.seen();
    let aborts = seen
        .iter()
        .filter(|line| line.starts_with("DELETE") && line.contains("/left?"));
    assert_eq!(aborts.count(), 3, "{seen:#?}");
}
