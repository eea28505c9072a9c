//! Names in a repository that none of its objects has: they are told, they stop nothing, they stay.

use std::fs;

use mover_jobs::check::{self, CheckOptions, Status};
use mover_jobs::{catalogue, key};

use crate::fixture::{Place, engine};

/// Names that no key can have, and names that are keys and no objects of ours.
const STRAYS: [&str; 9] = [
    "backups/README",
    "backups/notes.txt",
    "backups/old copy/20261122-181409-7f3a9c2e",
    "backups/20261122-181409-7f3a9c2e.bak",
    "packs/.nfs0000",
    "packs/00/lost",
    "packs/zz/readme",
    "keys/Old",
    "keys/note",
];

fn plant(place: &Place) {
    for stray in STRAYS {
        let path = place.object(stray);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"not ours").unwrap();
    }
}

#[test]
fn a_stray_name_stops_no_job_and_is_told_and_kept() {
    let place = Place::sealed();
    fs::write(place.source("a"), b"first").unwrap();
    place.backup();
    plant(&place);
    fs::write(place.source("b"), b"second").unwrap();
    place.backup();
    place.restore_is_exact("latest", "target");

    let mut told: Vec<String> = STRAYS.map(str::to_owned).to_vec();
    told[2] = "backups/old copy/".to_owned();
    told.sort();
    let listed = catalogue::list(&engine(), &place.access()).unwrap();
    assert!(listed.backups.len() == 2 && listed.backups.iter().all(|item| item.readable));
    let below = |prefix: &str| -> Vec<String> {
        let mut names = told.clone();
        names.retain(|name| name.starts_with(prefix));
        names
    };
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    assert_eq!(sorted(listed.strays), below("backups/"));
    let slots = key::list(&engine(), &place.url()).unwrap();
    assert!(slots.slots.len() == 1 && !slots.slots[0].damaged);
    assert_eq!(sorted(slots.strays), below("keys/"));

    let summary = place.try_verify(None).unwrap();
    assert!(summary.ok, "{:?}", summary.findings);
    assert_eq!(sorted(summary.strays), told);
    place.verify_is_ok(Some("latest"));
    let options = CheckOptions {
        repo: Some(place.access()),
        source: None,
    };
    let report = check::run(&engine(), &options).unwrap();
    assert!(report.ok, "{:?}", report.items);
    let item = |item: &&check::CheckItem| item.name == "stray names";
    let item = report.items.iter().find(item).unwrap();
    assert!(item.status == Status::Warn && item.detail.contains("backups/README"));
    for stray in STRAYS {
        assert_eq!(fs::read(place.object(stray)).unwrap(), b"not ours");
    }
}

#[test]
fn a_renamed_pack_is_a_stray_and_still_damage() {
    let place = Place::plain();
    fs::write(place.source("a"), b"first").unwrap();
    place.backup();
    let pack = place.packs(true).remove(0);
    let renamed = format!("{pack}.bak");
    fs::rename(place.object(&pack), place.object(&renamed)).unwrap();
    let summary = place.try_verify(None).unwrap();
    assert_eq!(summary.strays, [renamed]);
    assert!(
        !summary.ok
            && summary
                .findings
                .iter()
                .any(|finding| finding.object == pack)
    );
}
