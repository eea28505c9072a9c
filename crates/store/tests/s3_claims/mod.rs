//! Claims under faults: on servers that know no conditional writes nothing is lost, doubled or written by two either when
//! requests and replies get lost, are doubled, late or refused.
//!
//! Invariant: what the server holds in the end is looked at without the code under test.

use std::thread;
use std::time::Duration;

use mover_store::Put;
use mover_test_servers::{Action, Conditions, Fault, FilesystemOptions};

use super::conformance::{Subject, exactly_one_of_many_writers_creates, key};
use super::s3_servers::{Behind, Place, garage_place, place};
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
