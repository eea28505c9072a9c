//! Damaged and swapped objects: `verify` names them, and a restore is exact or an error, never wrong bytes.

use std::fs;
use std::os::unix::fs::FileExt;

use mover_base::Kind;
use mover_base::checksum::{crc32, sha256};
use mover_jobs::expire::{self, ExpireOptions, Policy};
use mover_jobs::hold;

use crate::fixture::{BLOCK, MIB, Place, Random, assert_same_trees, engine, write_sparse};

/// A small repository with two sources' worth of every kind of object.
fn small_repository(place: &Place) {
    let mut random = Random(1);
    fs::write(place.source("random"), random.bytes(40 * BLOCK + 5)).unwrap();
    fs::write(place.source("text"), b"some text ".repeat(5000)).unwrap();
    let pieces: Vec<(u64, Vec<u8>)> = (0..80)
        .map(|i| (i * 2 * BLOCK as u64, random.bytes(BLOCK)))
        .collect();
    let pieces: Vec<(u64, &[u8])> = pieces.iter().map(|(at, b)| (*at, b.as_slice())).collect();
    write_sparse(&place.source("holes"), MIB as u64, &pieces);
    for i in 0..30 {
        let name = format!("small-{i}");
        fs::write(place.source(&name), random.bytes(i)).unwrap();
    }
    place.backup();
}

/// Every way an object is damaged: its name, and what becomes of the bytes (`None` = the object is lost).
fn damages(bytes: &[u8]) -> Vec<(String, Option<Vec<u8>>)> {
    let len = bytes.len();
    let mut all = vec![
        ("lost".to_owned(), None),
        ("empty".to_owned(), Some(Vec::new())),
        ("cut in half".to_owned(), Some(bytes[..len / 2].to_vec())),
        ("last byte cut".to_owned(), Some(bytes[..len - 1].to_vec())),
        ("a byte more".to_owned(), Some([bytes, b"x"].concat())),
        ("all zeros".to_owned(), Some(vec![0; len])),
        ("twice".to_owned(), Some(bytes.repeat(2))),
    ];
    let mut offsets: Vec<usize> = (0..16).map(|i| i * len / 16).collect();
    offsets.extend([
        9,
        11,
        15,
        40,
        70,
        96,
        len - 1,
        len - 5,
        len - 20,
        len - 30,
        len - 60,
    ]);
    for at in offsets {
        let mut flipped = bytes.to_vec();
        flipped[at.min(len - 1)] ^= 0x40;
        all.push((format!("bit of byte {at} of {len}"), Some(flipped)));
    }
    all
}

fn put(place: &Place, name: &str, bytes: Option<&[u8]>) {
    let path = place.object(name);
    match bytes {
        Some(bytes) => fs::write(path, bytes).unwrap(),
        None => fs::remove_file(path).unwrap(),
    }
}

/// The repository is as damaged as `what` says.
fn check(place: &Place, set: &str, name: &str, what: &str) {
    let told = format!("{name}, {what}");
    match place.try_verify(None) {
        Ok(summary) => {
            // A manifest that is lost takes its backup with it: nothing is left to be found.
            let gone = name.starts_with("backups/") && what == "lost";
            assert!(gone || !summary.ok, "{told}: verify found nothing");
            assert!(
                gone || summary.findings.iter().any(|found| found.object == name),
                "{told}: {:?}",
                summary.findings
            );
        }
        Err(error) => {
            let is_opening = name == "config" || name.starts_with("keys/");
            assert!(is_opening, "{told}: verify gave up: {error}");
            assert!(
                matches!(error.kind(), Kind::Corrupt | Kind::Key | Kind::NotFound),
                "{told}: {error}"
            );
        }
    }
    let _ = fs::remove_dir_all(place.path("out"));
    match place.try_restore(&engine(), &place.restore_options(set, "out", false)) {
        Ok(_) => assert_same_trees(&place.path("source"), &place.path("out")),
        Err(error) => {
            let kinds = [Kind::Corrupt, Kind::Key, Kind::NotFound];
            assert!(kinds.contains(&error.kind()), "{told}: {error}");
            assert!(
                !place.path("out").exists(),
                "{told}: a wrong target appeared"
            );
        }
    }
}

fn every_damage_of_every_object(place: &Place) {
    small_repository(place);
    for name in place.objects("") {
        let bytes = fs::read(place.object(&name)).unwrap();
        for (what, damaged) in damages(&bytes) {
            put(place, &name, damaged.as_deref());
            check(place, "latest", &name, &what);
        }
        put(place, &name, Some(&bytes));
    }
    place.verify_is_ok(None);
    let _ = fs::remove_dir_all(place.path("out"));
    place.restore_is_exact("latest", "out");
}

#[test]
fn damage_to_a_sealed_repository_is_found_and_never_restored() {
    every_damage_of_every_object(&Place::sealed());
}

#[test]
fn damage_to_a_plain_repository_is_found_and_never_restored() {
    every_damage_of_every_object(&Place::plain());
}

#[test]
fn swapped_objects_are_found_and_never_restored() {
    for place in [Place::sealed(), Place::plain()] {
        small_repository(&place);
        fs::remove_dir_all(place.path("source")).unwrap();
        fs::create_dir(place.path("source")).unwrap();
        fs::write(place.source("other"), Random(9).bytes(90 * BLOCK)).unwrap();
        let set = place.backup().backup_id.to_string();
        place.save_repo("saved");
        let objects: Vec<String> = place
            .objects("")
            .into_iter()
            .filter(|name| name.starts_with("packs/") || name.starts_with("backups/"))
            .collect();
        for a in &objects {
            for b in objects.iter().filter(|b| *b > a) {
                let (x, y) = (
                    fs::read(place.object(a)).unwrap(),
                    fs::read(place.object(b)).unwrap(),
                );
                put(&place, a, Some(&y));
                put(&place, b, Some(&x));
                check(&place, &set, a, &format!("swapped with {b}"));
                place.reset_repo("saved");
            }
        }
        place.verify_is_ok(None);
    }
}

#[test]
fn an_older_object_of_another_repository_is_not_taken() {
    let (place, other) = (Place::sealed(), Place::sealed());
    small_repository(&place);
    small_repository(&other);
    let ours = place.packs(true).remove(0);
    let theirs = other.packs(true).remove(0);
    fs::copy(other.object(&theirs), place.object(&ours)).unwrap();
    check(&place, "latest", &ours, "from another repository");
}

#[test]
fn an_oversized_object_is_a_finding_and_takes_no_memory() {
    let place = Place::sealed();
    small_repository(&place);
    place.save_repo("saved");
    for name in place.objects("") {
        if name == "config" {
            continue;
        }
        let file = fs::OpenOptions::new()
            .write(true)
            .open(place.object(&name))
            .unwrap();
        // Sparse, so that it costs nothing but the reader's patience.
        file.set_len(1 << 40).unwrap();
        file.write_all_at(b"x", (1 << 40) - 1).unwrap();
        drop(file);
        check_oversized(&place, &name);
        fs::remove_file(place.object(&name)).unwrap();
        fs::copy(place.path("saved").join(&name), place.object(&name)).unwrap();
    }
}

fn check_oversized(place: &Place, name: &str) {
    match place.try_verify(None) {
        Ok(summary) => assert!(
            summary.findings.iter().any(|found| found.object == name),
            "{name}: {:?}",
            summary.findings
        ),
        Err(error) => assert!(
            name.starts_with("keys/") && error.kind() == Kind::Corrupt,
            "{name}: {error}"
        ),
    }
}

/// The page on the format says of each how long it may be.
#[test]
fn an_object_over_its_cap_is_told_as_damaged_and_not_as_a_limit() {
    let place = Place::sealed();
    small_repository(&place);
    let held = hold::add(&engine(), &place.access(), "latest", "audit").unwrap();
    place.save_repo("saved");
    let grow = |name: &str, bytes: u64| {
        let file = fs::OpenOptions::new().write(true).open(place.object(name));
        file.unwrap().set_len(bytes).unwrap();
    };
    let entrances = ["config".to_owned(), place.objects("keys/").remove(0)];
    let manifest = place.objects("backups/").remove(0);
    for name in entrances.iter().chain([&manifest]) {
        grow(name, 128 << 20);
        let options = place.restore_options("latest", "never", false);
        let refused = place.try_restore(&engine(), &options).map(drop);
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{name}: {error}");
        assert_eq!(error.object_name(), Some(name.as_str()), "{error}");
        assert!(error.hint_text().is_some(), "{name}: {error}");
        place.reset_repo("saved");
    }
    // One byte more is too much.
    grow("config", (64 << 10) + 1);
    let error = hold::list(&engine(), &place.access()).map(drop);
    assert_eq!(error.unwrap_err().kind(), Kind::Corrupt);
    place.reset_repo("saved");

    let session = "sessions/00000000000000000000000000000000";
    fs::create_dir_all(place.object("sessions")).unwrap();
    fs::write(place.object(session), b"").unwrap();
    grow(session, 1 << 20);
    let policy = Policy {
        last: 1,
        ..Policy::default()
    };
    let options = ExpireOptions::by_rules(place.access(), policy);
    let error = expire::plan(&engine(), &options, &mut |_, _| {}).map(drop);
    let error = error.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    assert_eq!(error.object_name(), Some(session), "{error}");
    // A hold holds all the same.
    grow(&place.objects("holds/").remove(0), 1 << 20);
    let listed = hold::list(&engine(), &place.access()).unwrap().holds;
    assert_eq!(listed[0].hold_id, held.hold_id);
    assert!(listed[0].problem.is_some(), "{listed:?}");
}

/// Changes a byte of the first block of a plain data pack, and every checksum in the pack that covers it: what
/// somebody does who may write to the storage and has read the format.
fn forge(pack: &mut [u8]) {
    const HEADER: usize = 16;
    let word = |bytes: &[u8], at: usize| {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    };
    let seal = |frame: &mut [u8]| {
        let crc = crc32(&[&frame[..12], &frame[HEADER..]].concat());
        frame[12..HEADER].copy_from_slice(&crc.to_le_bytes());
    };
    let trailer = pack.len() - 32;
    let (directory, directory_bytes) = (word(pack, trailer), word(pack, trailer + 8));
    let entries = directory + HEADER;
    let frames = word(pack, entries);
    let (frame, frame_bytes) = (word(pack, entries + 8), word(pack, entries + 16));
    assert_eq!(pack[frame + 9], 0, "random bytes are stored as they are");
    pack[frame + HEADER + 77] ^= 1;
    let block = sha256(&pack[frame + HEADER..][..BLOCK]);
    pack[entries + 8 + 16 * frames..][..32].copy_from_slice(&block);
    seal(&mut pack[frame..frame + frame_bytes]);
    seal(&mut pack[directory..directory + directory_bytes]);
}

#[test]
fn a_forged_pack_whose_own_checksums_hold_is_found_and_never_restored() {
    let place = Place::plain();
    let content = Random(4).bytes(20 * BLOCK);
    fs::write(place.source("a"), &content).unwrap();
    let set = place.backup().backup_id.to_string();
    let packs = place.objects("packs/");
    let holds_content =
        |name: &String| fs::metadata(place.object(name)).unwrap().len() > content.len() as u64;
    let name = packs.into_iter().find(holds_content).unwrap();
    let mut pack = fs::read(place.object(&name)).unwrap();
    forge(&mut pack);
    put(&place, &name, Some(&pack));
    check(&place, &set, &name, "forged");
    // What it pretends to hold is not built upon either.
    place.backup();
    place.restore_is_exact("latest", "after");
}
