//! A source that lies in the repository into which it is to be backed up: it would change while it is read.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use mover_base::Kind;
use mover_jobs::backup;
use mover_jobs::check::{self, CheckOptions, Status};
use mover_pagedb::workload::accounts;
use mover_pagedb::{Database, Options};
use mover_source::disk::{DirDisk, Disk};
use mover_source::pages::{Store, new_identity};
use mover_source::wal::SegmentSize;

use crate::fixture::{Place, engine};

/// The source of that URL, which lies at `path`, is refused by a backup and by `check`.
fn is_refused(place: &Place, source: &str, path: &str) {
    let mut options = place.backup_options();
    options.source = source.to_owned();
    let refused = backup::plan(&engine(), &options, &mut |_, _| {}).map(drop);
    let error = refused.unwrap_err();
    assert_eq!(error.kind(), Kind::Usage, "{error}");
    assert_eq!(error.message(), "the source lies in the repository");
    assert_eq!(error.object_name(), Some(path));

    let options = CheckOptions {
        repo: Some(Ok(place.access())),
        source: Some(source.to_owned()),
        ..CheckOptions::default()
    };
    let report = check::run(&engine(), &options).unwrap();
    assert!(!report.ok, "{path}");
    let mut items = report.items.iter();
    let item = items.find(|item| item.name == "in the repository");
    let item = item.unwrap_or_else(|| panic!("{path}: {:?}", report.items));
    assert_eq!(item.status, Status::Fail, "{item:?}");
}

#[test]
fn a_source_in_the_repository_is_refused_by_whatever_path_it_is_named() {
    let place = Place::plain();
    fs::write(place.source("a"), b"content").unwrap();
    place.backup();
    let before = place.objects("");
    let link = place.path("link");
    symlink(place.path("repo"), &link).unwrap();
    for source in [
        place.path("repo"),
        place.object("packs"),
        place.object("backups"),
        link.clone(),
        link.join("packs"),
    ] {
        let path = source.display().to_string();
        is_refused(&place, &format!("dir://{path}"), &path);
    }
    assert_eq!(place.objects(""), before);
    // Beside it, and with the same beginning of its name, is not in it.
    let mut options = place.backup_options();
    let beside = place.path("repository");
    fs::create_dir(&beside).unwrap();
    fs::write(beside.join("a"), b"content").unwrap();
    options.source = format!("dir://{}", beside.display());
    place.try_backup(&engine(), &options).unwrap();
}

#[test]
fn a_page_store_in_the_repository_is_refused() {
    let place = Place::plain();
    let path = place.object("database");
    fs::create_dir(&path).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(&path).unwrap());
    let identity = new_identity([7; 32], SegmentSize::new(16).unwrap());
    Store::create(Arc::clone(&disk), identity).unwrap();
    let (database, _) = Database::open(disk, Options::default()).unwrap();
    database.commit(&accounts(7)).unwrap();
    let path = path.display().to_string();
    is_refused(&place, &format!("pages://{path}"), &path);
}
