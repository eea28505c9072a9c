//! Backups that meet pages which a write was cut off in. A page whose write ends meanwhile is read again; one that stays torn is
//! left to its image in the log that goes with the backup; where the log has none, nothing is published.
//!
//! Invariant: which pages the log has images of, the model says.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;

use mover_base::LsnRange;
use mover_pagedb::heap;
use mover_pagedb::workload::{ACCOUNTS, Op};
use mover_source::page::{PAGE_BYTES, PageBytes, check};
use rustix::fs::inotify;

use super::*;

/// Table and number of a page.
type At = (u32, u32);

const HALF: usize = PAGE_BYTES / 2;

/// Changes the balance of an account, durably, and says in which page.
fn change(site: &Site, key: u64) -> At {
    let add = Op::Add(ACCOUNTS.to_owned(), key, 7);
    site.database().commit(&[add]).unwrap();
    let journal = site.database().journal();
    journal.0.last().unwrap().pages[0].0
}

/// The account that stands last in each page of their table: in its second half. All were checkpointed.
fn last_rows(site: &Site) -> Vec<u64> {
    let source = disk(&site.place.path("source"));
    let catalogue = read_catalogue(&*source).unwrap();
    let accounts = catalogue
        .tables()
        .iter()
        .find(|(_, table)| table.name == ACCOUNTS);
    let (id, table) = accounts.unwrap();
    let file = TableFile::open_read(&*source, *id).unwrap().unwrap();
    let first_row = |page| heap::row(&file.read(page).unwrap(), 0).map(|(key, _)| key);
    (0..table.pages).filter_map(first_row).collect()
}

fn path_of(site: &Site, at: At) -> std::path::PathBuf {
    site.place.source(&table_path(at.0))
}

/// A page as its file has it; zeros where that ends before.
fn read(site: &Site, at: At) -> PageBytes {
    let source = disk(&site.place.path("source"));
    let file = TableFile::open_read(&*source, at.0).unwrap().unwrap();
    file.read(at.1).unwrap()
}

fn write(site: &Site, at: At, from: usize, bytes: &[u8]) {
    let file = fs::File::options().write(true).open(path_of(site, at));
    let offset = at.1 as usize * PAGE_BYTES + from;
    file.unwrap().write_all_at(bytes, offset as u64).unwrap();
}

/// Leaves a page as a write that was cut off does, in one of several ways. Returns how it was.
fn tear(site: &Site, at: At, how: usize) -> PageBytes {
    let whole = read(site, at);
    let mut bytes = whole;
    let part = match how % 4 {
        0 => HALF..PAGE_BYTES,
        1 => 0..HALF,
        // A sector of another time, a header of one.
        2 => 512..1024,
        _ => 0..8,
    };
    bytes[part].iter_mut().for_each(|byte| *byte ^= 0x55);
    assert!(check(&bytes, at.0, at.1).is_err());
    write(site, at, 0, &bytes);
    whole
}

fn redo(site: &Site) -> Lsn {
    let control = read_control(&*disk(&site.place.path("source")));
    control.unwrap().redo
}

/// The pages, of tables that were not dropped, which the log changes in a range.
fn changed(journal: &Journal, start: Lsn, end: Lsn) -> BTreeSet<At> {
    let tables = journal.changed(LsnRange { start, end }).into_iter();
    let tables = tables.filter(|(_, table)| !table.dropped);
    let pages = |(id, table): (u32, mover_pagedb::model::Changed)| {
        table.pages.into_iter().map(move |page| (id, page))
    };
    tables.flat_map(pages).collect()
}

/// A backup of a store in which somebody is in the middle of writing the page `at`, as `new`, over `old`: he writes the second
/// half when the file was read. Whether that was while the backup ran.
fn backup_beside_a_write(
    site: &Site,
    backup_type: BackupType,
    at: At,
    (old, new): (&PageBytes, &PageBytes),
) -> (Result<BackupSummary>, bool) {
    write(site, at, HALF, &old[HALF..]);
    assert!(check(&read(site, at), at.0, at.1).is_err());
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    let path = path_of(site, at);
    inotify::add_watch(&watch, &path, inotify::WatchFlags::ACCESS).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut buffer = [MaybeUninit::uninit(); 512];
            inotify::Reader::new(&watch, &mut buffer).next().unwrap();
            let meanwhile = !is_over.load(SeqCst);
            write(site, at, HALF, &new[HALF..]);
            meanwhile
        });
        let made = site.try_backup(backup_type);
        is_over.store(true, SeqCst);
        // Who waits for a backup that read nothing waits no longer.
        fs::read(&path).unwrap();
        (made, writer.join().unwrap())
    })
}

/// The log has no image of the page: it was changed before the last checkpoint.
#[test]
fn a_page_whose_write_ends_meanwhile_is_read_again() {
    for backup_type in [BackupType::Full, BackupType::Incremental] {
        let mut site = Site::new(60, 18);
        site.run(100);
        site.database().checkpoint().unwrap();
        let keys = last_rows(&site);
        site.backup(BackupType::Full);
        // The one page of its table that changes: whoever reads the file reads it.
        let at = change(&site, keys[3]);
        let old = read(&site, at);
        site.database().checkpoint().unwrap();
        let new = read(&site, at);
        assert_ne!(old[HALF..], new[HALF..]);
        // A writer that the machine keeps waiting for half a second is given up; not again and again.
        let is_late = |made: &Result<BackupSummary>| match made {
            Err(error) => error.message().contains("no image"),
            Ok(_) => false,
        };
        let attempt = |_| backup_beside_a_write(&site, backup_type, at, (&old, &new));
        let made = (0..3).map(attempt).find(|(made, _)| !is_late(made));
        let (made, meanwhile) = made.expect("the page is read again");
        assert!(meanwhile, "the page was not read: {made:?}");
        let summary = made.unwrap();
        let journal = site.database().journal();
        let made = Made { summary, journal };
        assert_eq!(made.summary.backup_type, backup_type);
        // Nothing is left to the log, which could not help.
        assert_eq!(made.summary.torn_pages, 0);
        site.kill();
        site.check(&made);
    }
}

/// Whatever part of a page a crash left unwritten: its image is in the backup, and in the base of the next one.
#[test]
fn pages_that_stay_torn_are_left_to_their_images_in_the_log() {
    for backup_type in [BackupType::Full, BackupType::Incremental] {
        let mut site = Site::new(61, 18);
        site.run(100);
        site.database().checkpoint().unwrap();
        let base = site.backup(BackupType::Full);
        site.run(60);
        site.database().checkpoint().unwrap();
        site.run(60);
        let end = site.database().writer().end();
        site.database().writer().flush_to(end).unwrap();
        site.kill();
        let redo = redo(&site);
        let mut torn = changed(&site.journal, redo, end);
        // Of a table that was made or grew behind the redo position the backup has the log alone.
        let catalogue = read_catalogue(&*disk(&site.place.path("source"))).unwrap();
        let pages_of = |table: u32| {
            catalogue
                .tables()
                .get(&table)
                .map_or(0, |table| table.pages)
        };
        torn.retain(|at| at.1 < pages_of(at.0) && read(&site, *at) != [0; PAGE_BYTES]);
        if backup_type == BackupType::Incremental {
            // Of those that the base has it reads what changed before the redo position, too.
            let start = base.summary.lsn_range.unwrap().start;
            let read = changed(&site.journal, start, redo);
            torn.retain(|at| read.contains(at));
            // Each is waited for on its own.
            torn = torn.into_iter().take(4).collect();
        }
        assert!(torn.len() >= 4, "{torn:?}");
        for (how, at) in torn.iter().enumerate() {
            tear(&site, *at, how);
        }
        let made = site.backup(backup_type);
        assert_eq!(made.summary.backup_type, backup_type);
        assert_eq!(made.end(), end);
        assert_eq!(made.summary.torn_pages, torn.len() as u64);
        site.check(&made);
        // They are whole again, and what of them the base has is read anew.
        site.start();
        site.run(20);
        site.database().checkpoint().unwrap();
        let next = site.backup(BackupType::Incremental);
        assert_eq!(next.summary.base, Some(made.summary.backup_id));
        assert_eq!(next.summary.torn_pages, 0);
        site.kill();
        site.check(&next);
    }
}

/// One transaction before the redo position or behind it makes the difference.
#[test]
fn a_torn_page_whose_image_lies_before_the_redo_position_is_an_error() {
    let mut site = Site::new(62, 18);
    site.run(100);
    let gone = [
        Op::Create("gone".to_owned()),
        Op::Insert("gone".to_owned(), 1, vec![7; 50]),
    ];
    site.database().commit(&gone).unwrap();
    let dropped = site.database().journal().0.last().unwrap().pages[0].0;
    site.database().checkpoint().unwrap();
    let keys = last_rows(&site);
    let base = site.backup(BackupType::Full);
    let before = change(&site, keys[1]);
    site.database().checkpoint().unwrap();
    let redo = redo(&site);
    let last_before = site.database().journal().0.last().unwrap().end;
    assert_eq!(last_before, redo);
    let behind = change(&site, keys[2]);
    let drop = Op::Drop("gone".to_owned());
    site.database().commit(&[drop]).unwrap();
    let last = change(&site, keys[3]);
    site.kill();
    // All in one segment: it is not the segment that counts.
    let size = SegmentSize::new(18).unwrap();
    let started = base.summary.lsn_range.unwrap().start;
    assert_eq!(size.start_of(started), size.start_of(redo));
    let unchanged = (before.0, 0);
    assert!(![before, behind, last].contains(&unchanged));
    let (full, incremental) = (BackupType::Full, BackupType::Incremental);
    // How many torn pages the backup finds, if it is made.
    let cases = [
        (unchanged, full, None),
        (before, full, None),
        (behind, full, Some(1)),
        (last, full, Some(1)),
        (dropped, full, Some(1)),
        (before, incremental, None),
        // They are as the base has them, and are not read; nor is the file of what is dropped.
        (unchanged, incremental, Some(0)),
        (behind, incremental, Some(0)),
        (last, incremental, Some(0)),
        (dropped, incremental, Some(0)),
    ];
    for (how, (at, backup_type, found)) in cases.into_iter().enumerate() {
        let whole = tear(&site, at, how);
        let manifests = site.place.objects("backups/");
        let options = BackupOptions {
            base: (backup_type == incremental).then(|| base.summary.backup_id.to_string()),
            ..site.options(backup_type)
        };
        let made = site.place.try_backup(&engine(), &options);
        match found {
            Some(torn_pages) => {
                let summary = made.unwrap();
                assert_eq!(summary.backup_type, backup_type, "{:?}", summary.reason);
                assert_eq!(summary.torn_pages, torn_pages, "{at:?} {backup_type:?}");
                let journal = site.journal.clone();
                site.check(&Made { summary, journal });
            }
            None => {
                let error = made.unwrap_err();
                assert_eq!(error.kind(), Kind::Corrupt, "{error}");
                assert!(error.message().contains("no image of it"), "{error}");
                let object = format!("table {:08x}, page {}", at.0, at.1);
                assert_eq!(error.object_name(), Some(&object[..]));
                assert_eq!(site.place.objects("backups/"), manifests);
                assert_eq!(site.place.objects("sessions/"), [""; 0]);
            }
        }
        write(&site, at, 0, &whole);
    }
}
