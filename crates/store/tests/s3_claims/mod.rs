//! Claims under faults: on servers that know no conditional writes nothing is lost, doubled or written by two either when
//! requests and replies get lost, are doubled, late or refused.
//!
//! Invariant: what the server holds in the end is looked at without the code under test.

use std::time::Duration;

use mover_test_servers::{Action, Conditions, Fault, FilesystemOptions};

use super::conformance::{Subject, exactly_one_of_many_writers_creates};
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
