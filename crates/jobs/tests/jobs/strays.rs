//! Names in a repository that none of its objects has: they are told, they stop nothing, they stay. Packs that none of its
//! backups needs: they say who wrote them, and one that cannot say so stays too.

use std::collections::BTreeSet;
use std::fs;

use mover_base::Kind;
use mover_jobs::check::{self, CheckOptions, Status};
use mover_jobs::expire::{self, ExpireOptions, Policy};
use mover_jobs::{Credentials, LinkLimits, catalogue, hold, key};

use crate::fixture::{MIB, Place, Random, engine};

/// Names that no key can have, and names that are keys and no objects of ours.
const STRAYS: [&str; 9] = [
    "backups/README",
    "backups/notes.txt",
    "backups/old copy/20261122-181409-7f3a9c2e",
    "backups/20261122-181409-7f3a9c2e.bak",
    "packs/.DS_Store",
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
    let slots = key::list(&engine(), &place.url(), &LinkLimits::default()).unwrap();
    assert!(slots.slots.len() == 1 && !slots.slots[0].damaged);
    assert_eq!(sorted(slots.strays), below("keys/"));

    let summary = place.try_verify(None).unwrap();
    assert!(summary.ok, "{:?}", summary.findings);
    assert_eq!(sorted(summary.strays), told);
    place.verify_is_ok(Some("latest"));
    let options = CheckOptions {
        repo: Some(Ok(place.access())),
        ..CheckOptions::default()
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
fn a_stray_name_among_the_holds_stops_an_expire_and_nobody_else() {
    let place = Place::plain();
    fs::write(place.source("a"), b"first").unwrap();
    let id = place.backup().backup_id.to_string();
    let held = hold::add(&engine(), &place.access(), &id, "audit").unwrap();
    let strays = [
        format!("holds/{id}/notes"),
        "holds/Old".to_owned(),
        "holds/x".to_owned(),
    ];
    for stray in &strays {
        fs::write(place.object(stray), b"not ours").unwrap();
    }
    let list = || hold::list(&engine(), &place.access()).unwrap();
    let mut listed = list();
    assert_eq!(listed.holds.len(), 1);
    assert_eq!(listed.holds[0].hold_id, held.hold_id);
    listed.strays.sort();
    assert_eq!(listed.strays, strays);
    let shown = catalogue::show(&engine(), &place.access(), &id).unwrap();
    assert_eq!(shown.holds.len(), 1);

    // It puts a hold of its own on, and takes that away.
    place.restore_is_exact(&id, "out");
    let options = place.restore_options(&id, "out", true);
    let restored = place.try_restore(&engine(), &options).unwrap();
    assert_eq!(restored.warnings, [""; 0]);
    assert_eq!(list().holds.len(), 1);

    let policy = Policy {
        last: 1,
        ..Policy::default()
    };
    let options = ExpireOptions::by_rules(place.access(), policy);
    let refused = expire::plan(&engine(), &options, &mut |_, _| {}).map(drop);
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), Kind::Corrupt, "{refused}");
    let named = refused.object_name().unwrap_or_default();
    assert!(strays.iter().any(|stray| stray == named), "{refused}");
    hold::remove(&engine(), &place.access(), &held.hold_id.to_string()).unwrap();
    assert!(list().holds.is_empty());
    assert_eq!(place.objects("holds/"), strays);
}

#[test]
fn a_name_at_the_top_of_the_repository_is_told_by_a_verification() {
    let place = Place::plain();
    fs::write(place.source("a"), b"first").unwrap();
    place.backup();
    assert_eq!(place.try_verify(None).unwrap().strays, [""; 0]);
    // The file system's own.
    fs::create_dir(place.object("lost+found")).unwrap();
    fs::write(place.object("qux"), b"not ours").unwrap();
    fs::create_dir_all(place.object("Old copy/packs")).unwrap();
    let summary = place.try_verify(None).unwrap();
    assert!(summary.ok, "{:?}", summary.findings);
    assert_eq!(summary.strays, ["Old copy/", "qux"]);
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

#[test]
fn a_pack_leads_to_the_manifest_of_the_backup_that_wrote_it() {
    for (place, credentials) in [
        (Place::plain(), None),
        (Place::sealed(), None),
        // Whoever can only write, too.
        (Place::sealed(), Some(Credentials::None)),
    ] {
        let mut known = BTreeSet::new();
        for seed in 0..3 {
            fs::write(place.source("a"), Random(seed).bytes(MIB)).unwrap();
            let mut options = place.backup_options();
            if let Some(credentials) = credentials.clone() {
                options.repo = place.access_with(credentials);
            }
            let made = place.try_backup(&engine(), &options).unwrap();
            let read = |name: &str| fs::read(place.object(name)).unwrap();
            let manifest = read(&format!("backups/{}", made.backup_id));
            let packs: BTreeSet<String> = place.objects("packs/").into_iter().collect();
            let new: Vec<&String> = packs.difference(&known).collect();
            assert!(!new.is_empty());
            for pack in new {
                let session = &read(pack)[48..64];
                assert_eq!(session, &manifest[48..64], "{pack}");
                // Seconds and second half of the backup's id, as its manifest's object id has them.
                assert_eq!(session[7..12], manifest[35..40], "{pack}");
                assert_eq!(session[12..], manifest[44..48], "{pack}");
            }
            known = packs;
        }
    }
}

#[test]
fn a_pack_that_is_left_over_and_cannot_be_read_stays_and_is_told() {
    let place = Place::plain();
    fs::write(place.source("a"), Random(1).bytes(MIB)).unwrap();
    place.backup();
    let kept = place.objects("packs/");
    for seed in [2, 3] {
        fs::write(place.source("b"), Random(seed).bytes(MIB)).unwrap();
        let given_up = place.backup().backup_id;
        fs::remove_file(place.object(&format!("backups/{given_up}"))).unwrap();
    }
    fs::remove_file(place.source("b")).unwrap();
    let mut left = place.objects("packs/");
    left.retain(|pack| !kept.contains(pack));
    let sound = fs::read(place.object(&left[0])).unwrap();
    let harms: [&[u8]; 3] = [b"", b"damaged", &[&sound[..16], &[0; 200]].concat()];
    let policy = Policy {
        last: 1,
        ..Policy::default()
    };
    let options = ExpireOptions::by_rules(place.access(), policy);
    let plan = || expire::plan(&engine(), &options, &mut |_, _| {}).unwrap();
    for harm in harms {
        fs::write(place.object(&left[0]), harm).unwrap();
        let planned = plan();
        assert_eq!(planned.leftovers.packs, left.len() as u64 - 1);
        assert_eq!(planned.leftovers.owned_packs, 1);
        let told = |warning: &String| warning.starts_with("1 packs that no backup needs");
        assert!(planned.warnings.iter().any(told), "{:?}", planned.warnings);
    }
    let done = expire::execute(&engine(), plan(), &mut |_, _| {}).unwrap();
    assert_eq!(done.outcome.leftover_packs, left.len() as u64 - 1);
    assert!(place.object(&left[0]).exists());
    fs::write(place.object(&left[0]), &sound).unwrap();
    let done = expire::execute(&engine(), plan(), &mut |_, _| {}).unwrap();
    assert_eq!(done.outcome.leftover_packs, 1);
    assert_eq!(place.objects("packs/"), kept);
    place.verify_is_ok(None);
}

/// As in a repository of more backups than can be listed.
#[test]
fn a_backup_is_found_by_its_whole_id_where_no_listing_is_to_be_had() {
    let place = Place::plain();
    fs::write(place.source("a"), b"first").unwrap();
    let id = place.backup().backup_id.to_string();
    // What has the name of a manifest and is none ends every listing.
    let link = place.object("backups/19700101-000000-00000000");
    std::os::unix::fs::symlink("nowhere", link).unwrap();
    catalogue::list(&engine(), &place.access())
        .map(drop)
        .unwrap_err();
    for unlisted in ["latest", &id[..id.len() - 1]] {
        let options = place.restore_options(unlisted, "not found", false);
        place
            .try_restore(&engine(), &options)
            .map(drop)
            .unwrap_err();
    }
    place.restore_is_exact(&id, "by id");
    place.verify_is_ok(Some(&id));
    let details = catalogue::show(&engine(), &place.access(), &id).unwrap();
    assert_eq!(details.metadata.backup_id.to_string(), id);
    let missing = "19700101-000000-00000001";
    let error = place.try_verify(Some(missing)).map(drop).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!(error.object_name(), Some(missing));
}
