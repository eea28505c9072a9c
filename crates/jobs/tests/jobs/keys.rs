//! Key slots: who can be let in, who is kept out, and objects that were swapped.

use std::fs;

use mover_base::Kind;
use mover_jobs::{Credentials, LinkLimits, catalogue, key};

use crate::fixture::{Place, engine, secret};

fn passphrase(text: &str) -> Credentials {
    Credentials::Passphrase(secret(text))
}

fn opens(place: &Place, credentials: Credentials) -> Result<(), Kind> {
    catalogue::list(&engine(), &place.access_with(credentials))
        .map(drop)
        .map_err(|error| error.kind())
}

#[test]
fn slots_come_and_go_and_the_last_one_stays() {
    let place = Place::bare(passphrase("first"));
    let made = place.init(Some("first"), &[]).unwrap();
    assert_eq!(made.slots.len(), 1);
    assert_eq!(opens(&place, passphrase("first")), Ok(()));
    assert_eq!(opens(&place, passphrase("second")), Err(Kind::Key));

    let (identity, recipient) = key::generate_identity();
    let access = place.access();
    let second = key::add_passphrase(&engine(), &access, &secret("second"), "two").unwrap();
    let third = key::add_recipient(&engine(), &access, &recipient, Some("three")).unwrap();
    let identity = Credentials::Identity(identity);
    let nothing = place.access_with(Credentials::None);
    let listed = key::list(&engine(), &place.url(), &LinkLimits::default()).unwrap();
    let mut kinds: Vec<&str> = listed.slots.iter().filter_map(|slot| slot.kind).collect();
    kinds.sort();
    assert_eq!(kinds, ["passphrase", "passphrase", "x25519"]);
    for credentials in [passphrase("first"), passphrase("second"), identity.clone()] {
        assert_eq!(opens(&place, credentials), Ok(()));
    }
    let (stranger, _) = key::generate_identity();
    assert_eq!(
        opens(&place, Credentials::Identity(stranger)),
        Err(Kind::Key)
    );

    // Without a key nothing is added or removed.
    let kind = |result: mover_base::Result<key::ListedSlot>| result.map(drop).unwrap_err().kind();
    let added = key::add_recipient(&engine(), &nothing, &recipient, None);
    assert_eq!(added.map(drop).unwrap_err().kind(), Kind::Key);
    assert_eq!(
        kind(key::remove(
            &engine(),
            &nothing,
            &second.slot_id.to_string()
        )),
        Kind::Key
    );
    // A name must be one slot's.
    assert_eq!(kind(key::remove(&engine(), &access, "zz")), Kind::NotFound);
    assert_eq!(kind(key::remove(&engine(), &access, "")), Kind::Usage);

    // By the key of a slot that stays: else it is not certain that there is one.
    let first = made.slots[0].slot_id.to_string();
    let refused = key::remove(&engine(), &access, &first).unwrap_err();
    assert_eq!(refused.kind(), Kind::Conflict, "{refused}");
    let hint = refused.hint_text().unwrap_or_default();
    assert!(hint.contains("a slot that stays"), "{hint}");
    assert_eq!(opens(&place, passphrase("first")), Ok(()));
    let access = place.access_with(passphrase("second"));
    key::remove(&engine(), &access, &first).unwrap();
    assert_eq!(opens(&place, passphrase("first")), Err(Kind::Key));
    let access = place.access_with(identity.clone());
    key::remove(&engine(), &access, &second.slot_id.to_string()[..12]).unwrap();
    let last = key::remove(&engine(), &access, &third.slot_id.to_string());
    assert_eq!(kind(last), Kind::Conflict);
    assert_eq!(opens(&place, identity), Ok(()));
}

#[test]
fn a_key_that_opens_two_slots_can_remove_one_of_them() {
    let place = Place::bare(passphrase("first"));
    let made = place.init(Some("first"), &[]).unwrap();
    let access = place.access();
    key::add_passphrase(&engine(), &access, &secret("first"), "again").unwrap();
    key::remove(&engine(), &access, &made.slots[0].slot_id.to_string()).unwrap();
    assert_eq!(opens(&place, passphrase("first")), Ok(()));
}

#[test]
fn init_needs_a_key_that_fits_and_a_free_place() {
    let place = Place::bare(Credentials::None);
    let kind = |result: mover_base::Result<_>| {
        result
            .map(|_: mover_jobs::init::InitSummary| ())
            .unwrap_err()
            .kind()
    };
    assert_eq!(
        kind(place.init(None, &["age1nonsense".to_owned()])),
        Kind::Usage
    );
    assert!(
        !place.path("repo").exists(),
        "something was made before the request was looked at"
    );
    place.init(None, &[]).unwrap();
    assert_eq!(kind(place.init(None, &[])), Kind::Conflict);
    let full = Place::bare(Credentials::None);
    fs::create_dir(full.path("repo")).unwrap();
    fs::write(full.path("repo/stray"), b"x").unwrap();
    assert_eq!(kind(full.init(None, &[])), Kind::Conflict);
}

#[test]
fn a_slot_of_another_repository_opens_nothing() {
    let (place, other) = (Place::sealed(), Place::sealed());
    let foreign = other.objects("keys/").remove(0);
    fs::copy(other.object(&foreign), place.object(&foreign)).unwrap();
    // The place's own slot refuses it, so that it is the key that is wrong, whatever lies beside that slot.
    assert_eq!(opens(&place, other.credentials.clone()), Err(Kind::Key));
    // The right key still does.
    assert_eq!(opens(&place, place.credentials.clone()), Ok(()));
    let verified = place.try_verify(None).unwrap();
    assert_eq!(verified.findings.len(), 1, "{:?}", verified.findings);
    assert_eq!(verified.findings[0].object, foreign);
}

#[test]
fn a_damaged_slot_is_listed_and_can_be_removed_by_the_id_in_its_name() {
    let place = Place::sealed();
    let first = place.objects("keys/").remove(0);
    let (_, recipient) = key::generate_identity();
    let access = place.access();
    let second = key::add_recipient(&engine(), &access, &recipient, Some("two")).unwrap();
    let broken = place.object(&format!("keys/{}", second.slot_id));
    let mut bytes = fs::read(&broken).unwrap();
    bytes[100] ^= 1;
    fs::write(&broken, &bytes).unwrap();
    // One that is too long to be read at all, and one that is empty.
    let (long, empty) = ("a".repeat(32), "b".repeat(32));
    fs::write(place.object(&format!("keys/{long}")), vec![0; 1 << 20]).unwrap();
    fs::write(place.object(&format!("keys/{empty}")), b"").unwrap();

    let listed = key::list(&engine(), &place.url(), &LinkLimits::default()).unwrap();
    assert_eq!(listed.slots.len(), 4);
    for slot in &listed.slots {
        assert_eq!(slot.object, format!("keys/{}", slot.slot_id));
        let is_intact = slot.object == first;
        assert_eq!(slot.damaged, !is_intact, "{slot:?}");
        assert_eq!(slot.kind.is_some(), is_intact, "{slot:?}");
        assert_eq!(slot.problem.is_none(), is_intact, "{slot:?}");
    }
    // Damaged slots do not count: the one intact slot stays, whatever lies beside it.
    let last = first.strip_prefix("keys/").unwrap();
    let refused = key::remove(&engine(), &access, last).map(drop).unwrap_err();
    assert_eq!(refused.kind(), Kind::Conflict, "{refused}");
    for id in [&second.slot_id.to_string(), &long, &empty] {
        let removed = key::remove(&engine(), &access, id).unwrap();
        assert!(removed.damaged && removed.slot_id.to_string() == *id);
    }
    assert_eq!(place.objects("keys/"), [first]);
    assert_eq!(opens(&place, place.credentials.clone()), Ok(()));
}

/// Whoever may write to a repository can put damaged slots into it.
#[test]
fn a_wrong_key_is_told_as_wrong_whatever_lies_beside_the_slots() {
    let place = Place::bare(passphrase("first"));
    let (identity, recipient) = key::generate_identity();
    place.init(Some("first"), &[recipient]).unwrap();
    let garbage = format!("keys/{}", "f".repeat(32));
    fs::write(place.object(&garbage), b"no slot").unwrap();
    let (stranger, _) = key::generate_identity();
    for wrong in [passphrase("second"), Credentials::Identity(stranger)] {
        let error = catalogue::list(&engine(), &place.access_with(wrong));
        let error = error.map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::Key, "{error}");
        assert_eq!(error.object_name(), Some(place.url().as_str()));
        let told = "3 key slots, 1 of which cannot be used";
        assert!(error.message().contains(told), "{error}");
        assert!(error.hint_text().unwrap_or_default().contains("key list"));
    }
    for right in [passphrase("first"), Credentials::Identity(identity)] {
        assert_eq!(opens(&place, right), Ok(()));
    }
}

/// No key would open it.
#[test]
fn a_key_is_not_blamed_where_no_slot_is_left() {
    let place = Place::sealed();
    let (stranger, _) = key::generate_identity();
    let refused = |credentials: Credentials| {
        let listed = catalogue::list(&engine(), &place.access_with(credentials));
        let error = listed.map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::Key, "{error}");
        assert_eq!(error.object_name(), Some(place.url().as_str()));
        error
    };
    let wrong = refused(Credentials::Identity(stranger));
    assert!(wrong.message().ends_with("1 key slot"), "{wrong}");
    fs::remove_file(place.object(&place.objects("keys/")[0])).unwrap();
    let right = refused(place.credentials.clone());
    assert_eq!(right.message(), key::LOCKED_OUT);
    assert_eq!(right.hint_text(), Some(key::LOCKED_OUT_HINT));
}

/// What is wrong with an identity is no slot's fault.
#[test]
fn a_mistyped_identity_is_told_as_that_and_names_no_slot() {
    let place = Place::sealed();
    let (identity, _) = key::generate_identity();
    let mut text = identity.expose().to_owned();
    let last = text.pop();
    text.push(if last == Some('Q') { 'P' } else { 'Q' });
    let mistyped = place.access_with(Credentials::Identity(secret(&text)));
    let first = place.objects("keys/").remove(0);
    let first = &first["keys/".len()..];
    for error in [
        catalogue::list(&engine(), &mistyped).map(drop).unwrap_err(),
        key::remove(&engine(), &mistyped, first)
            .map(drop)
            .unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::Key, "{error}");
        assert!(error.message().contains("not an age X25519 identity"));
        let told = format!("{error} {:?}", error.hint_text());
        assert!(!told.contains("keys/") && !told.contains(&text), "{told}");
    }
}

#[test]
fn a_renamed_slot_is_refused() {
    let place = Place::sealed();
    let name = place.objects("keys/").remove(0);
    let wrong = format!("keys/{}", "0".repeat(32));
    fs::rename(place.object(&name), place.object(&wrong)).unwrap();
    assert_eq!(opens(&place, place.credentials.clone()), Err(Kind::Corrupt));
}

#[test]
fn a_header_of_another_repository_is_refused() {
    let (place, other, plain) = (Place::sealed(), Place::sealed(), Place::plain());
    fs::write(place.source("a"), b"a").unwrap();
    place.backup();
    for from in [&other, &plain] {
        fs::copy(from.object("config"), place.object("config")).unwrap();
        let result = opens(&place, place.credentials.clone());
        assert!(
            matches!(result, Err(Kind::Corrupt | Kind::Key)),
            "{result:?}: a header was swapped unnoticed"
        );
        let options = place.backup_options();
        assert!(place.try_backup(&engine(), &options).is_err());
    }
    // Another header together with its slots: the old packs do not belong to it.
    fs::copy(other.object("config"), place.object("config")).unwrap();
    for slot in place.objects("keys/") {
        fs::remove_file(place.object(&slot)).unwrap();
    }
    let slot = other.objects("keys/").remove(0);
    fs::copy(other.object(&slot), place.object(&slot)).unwrap();
    let access = place.access_with(other.credentials.clone());
    let listed = catalogue::list(&engine(), &access).unwrap();
    assert!(listed.backups.iter().all(|item| !item.readable));
}

#[test]
fn messages_hold_no_secret() {
    let place = Place::bare(passphrase("correct horse"));
    place.init(Some("correct horse"), &[]).unwrap();
    let wrong = place.access_with(passphrase("battery staple"));
    let error = catalogue::list(&engine(), &wrong).map(drop).unwrap_err();
    let shown = format!("{error} {error:?} {:?}", wrong);
    assert!(!shown.contains("battery"), "{shown}");
    let broken = place.access_with(Credentials::Identity(secret("AGE-SECRET-KEY-1XYZZY")));
    let error = catalogue::list(&engine(), &broken).map(drop).unwrap_err();
    let shown = format!("{error} {error:?} {:?}", broken);
    assert!(!shown.contains("XYZZY"), "{shown}");
}
