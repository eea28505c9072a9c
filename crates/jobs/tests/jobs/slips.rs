//! What is told of a source of another kind than it is named as, of manifests that cannot be read, and of backups that are to build on
//! nothing.

use std::fs;
use std::sync::Arc;

use mover_base::Kind;
use mover_jobs::backup::{self, BackupOptions};
use mover_jobs::check::{self, CheckItem, CheckOptions, Status};
use mover_jobs::{BackupType, Credentials};
use mover_pagedb::workload::accounts;
use mover_pagedb::{Database, Options};
use mover_source::disk::{DirDisk, Disk};
use mover_source::pages::{Store, new_identity};
use mover_source::wal::SegmentSize;

use crate::fixture::{Place, engine};

#[test]
fn a_page_store_that_is_named_as_a_directory_is_told_by_backup_and_check() {
    let place = Place::plain();
    let path = place.path("source");
    let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(&path).unwrap());
    let identity = new_identity([7; 32], SegmentSize::new(16).unwrap());
    Store::create(Arc::clone(&disk), identity).unwrap();
    let (database, _) = Database::open(disk, Options::default()).unwrap();
    database.commit(&accounts(7)).unwrap();
    drop(database);
    let said = format!("this is a page store: pages://{} backs", path.display());
    let told = || {
        let plan = backup::plan(&engine(), &place.backup_options(), &mut |_, _| {}).unwrap();
        let options = CheckOptions {
            source: Some(place.backup_options().source),
            ..CheckOptions::default()
        };
        let items = check::run(&engine(), &options).unwrap().items;
        let mut items = items.iter();
        (
            plan.warnings.iter().any(|told| told.starts_with(&said)),
            items.any(|item| item.status == Status::Warn && item.detail.starts_with(&said)),
        )
    };
    assert_eq!(told(), (true, true));
    // What only has the names of one is a directory.
    fs::write(path.join("control"), "x").unwrap();
    assert_eq!(told(), (false, false));
}

#[test]
fn a_backup_that_builds_on_nothing_is_a_full_one_behind_the_one_before() {
    let place = Place::plain();
    fs::write(place.source("a"), b"content").unwrap();
    let first = place.backup();
    for (backup_type, base) in [
        (BackupType::Incremental, None),
        (BackupType::Differential, None),
        (BackupType::Full, Some("latest")),
    ] {
        let options = BackupOptions {
            backup_type,
            base: base.map(str::to_owned),
            ..place.backup_options()
        };
        let refused = backup::plan_anew(&engine(), &options, &mut |_, _| {}).map(drop);
        assert_eq!(refused.unwrap_err().kind(), Kind::Usage);
    }
    let plan = backup::plan_anew(&engine(), &place.backup_options(), &mut |_, _| {}).unwrap();
    assert_eq!(plan.parent, None);
    let second = backup::execute(&engine(), plan, &mut |_, _| {}).unwrap();
    assert_eq!((second.parent, second.bytes_new), (None, 4096));
    assert!(second.backup_id > first.backup_id);
}

#[test]
fn a_manifest_that_cannot_be_read_is_told_by_check() {
    let place = Place::sealed();
    fs::write(place.source("a"), b"content").unwrap();
    for _ in 0..3 {
        place.backup();
    }
    let checked = |credentials: Credentials| -> CheckItem {
        let options = CheckOptions {
            repo: Some(Ok(place.access_with(credentials))),
            ..CheckOptions::default()
        };
        let report = check::run(&engine(), &options).unwrap();
        assert!(report.ok, "{:?}", report.items);
        let mut items = report.items.into_iter();
        items.find(|item| item.name == "backups").unwrap()
    };
    let whole = checked(place.credentials.clone());
    assert_eq!((whole.status, &whole.detail[..]), (Status::Ok, "3"));
    let name = place.objects("backups/").remove(1);
    let mut bytes = fs::read(place.object(&name)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(place.object(&name), bytes).unwrap();
    let damaged = checked(place.credentials.clone());
    assert_eq!(damaged.status, Status::Warn, "{damaged:?}");
    let begin = "3, and of the newest 3 of them 1 cannot be read: ";
    assert!(damaged.detail.starts_with(begin), "{damaged:?}");
    assert!(damaged.detail.contains(&name), "{damaged:?}");
    // Who only writes cannot know.
    assert_eq!(checked(Credentials::None).status, Status::Ok);
}
