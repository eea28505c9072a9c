//! Backups of a page store: whatever its history, whatever the type, at whatever moment: what is restored has exactly the
//! rows and pages that the model says there were at the backup's position.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use mover_base::checksum::sha256;
use mover_base::{BackupId, Kind, Lsn, Result};
use mover_jobs::backup::{self, BackupOptions, BackupSummary};
use mover_jobs::progress::Phase;
use mover_jobs::restore::RestoreSummary;
use mover_jobs::{BackupType, Credentials, Engine, JobLimits, RateBudget};
use mover_pagedb::bulk::{Bulk, TABLE};
use mover_pagedb::random::Random;
use mover_pagedb::workload::{Op, accounts};
use mover_pagedb::{Database, Journal, Options, Workload};
use mover_source::disk::{DirDisk, Disk};
use mover_source::page::PAGE_HEADER_BYTES;
use mover_source::pages::{
    Store, TableFile, new_identity, read_catalogue, read_control, table_path,
};
use mover_source::tracker::Capacity;
use mover_source::wal::{Group, Record, SegmentSize, TableKind, segments};

use crate::fixture::*;

mod histories;
mod in_place;
mod log_lost;
mod lost_pages;
mod size;
mod torn;
mod tracker;

const OPTIONS: Options = Options {
    pool_pages: 24,
    journal: true,
};

/// A database in a directory of its own, that can be stopped and started.
struct Site {
    place: Place,
    database: Option<Database>,
    journal: Journal,
    workload: Workload,
    random: Random,
    clients: u64,
    targets: u64,
    /// Whether the database runs with a block change tracker.
    tracked: bool,
}

/// A backup and what the model knew when it ended.
struct Made {
    summary: BackupSummary,
    journal: Journal,
}

impl Made {
    fn end(&self) -> Lsn {
        self.summary.lsn_range.expect("positions").end
    }
}

fn disk(path: &Path) -> Arc<dyn Disk> {
    Arc::new(DirDisk::open(path).unwrap())
}

impl Site {
    fn new(seed: u64, log2: u8) -> Site {
        Site::with(seed, log2, false)
    }

    fn with(seed: u64, log2: u8, tracked: bool) -> Site {
        Site::at(Place::plain(), seed, log2, tracked)
    }

    fn at(place: Place, seed: u64, log2: u8, tracked: bool) -> Site {
        let mut id = [9; 32];
        id[..8].copy_from_slice(&seed.to_le_bytes());
        id[16..24].copy_from_slice(&seed.to_le_bytes());
        let identity = new_identity(id, SegmentSize::new(log2).unwrap());
        Store::create(disk(&place.path("source")), identity).unwrap();
        let mut site = Site {
            place,
            database: None,
            journal: Journal::default(),
            workload: Workload::new(seed, 0),
            random: Random::new(seed),
            clients: 1000,
            targets: 0,
            tracked,
        };
        site.start();
        site.database().commit(&accounts(seed)).unwrap();
        site
    }

    fn database(&self) -> &Database {
        self.database.as_ref().expect("running")
    }

    fn start(&mut self) {
        let path = self.place.path("source");
        let (mut database, end) = Database::open(disk(&path), OPTIONS).unwrap();
        if self.tracked {
            // Its tables are small, and the tracker is made again and again.
            let capacity = Capacity::new(Capacity::LOG2_MIN).unwrap();
            database.track(&path, Some(capacity)).unwrap();
        }
        self.journal.cut(end);
        database.set_journal(self.journal.clone());
        self.database = Some(database);
    }

    /// As a kill: what was not flushed is gone, what is in memory too. The client knows nothing of what was undone, so
    /// another one goes on.
    fn kill(&mut self) {
        self.journal = self.database().journal();
        self.database = None;
        self.clients += 1;
        self.workload = self.workload.clone().renamed(self.clients);
    }

    /// Removes the log's segments before the one that begins at `kept`, as a database does that needs them no more.
    fn trim(&self, kept: Lsn) {
        let disk = disk(&self.place.path("source"));
        let identity = read_control(&*disk).unwrap().identity;
        for start in segments(&*disk, &identity).unwrap().range(..kept) {
            disk.remove(&identity.path(*start)).unwrap();
        }
    }

    fn redo_segment(&self) -> Lsn {
        let control = read_control(&*disk(&self.place.path("source"))).unwrap();
        control.identity.size.start_of(control.redo)
    }

    /// The database in the directory `name` takes the place of this one.
    fn replace_by(&mut self, name: &str) {
        fs::remove_dir_all(self.place.path("source")).unwrap();
        fs::rename(self.place.path(name), self.place.path("source")).unwrap();
    }

    fn run(&mut self, transactions: u64) {
        for _ in 0..transactions {
            let ops = self.workload.next_transaction();
            match self.random.below(4) {
                0 => self.database().commit(&ops).unwrap(),
                _ => self.database().append(&ops).unwrap(),
            };
        }
    }

    fn options(&self, backup_type: BackupType) -> BackupOptions {
        BackupOptions {
            source: format!("pages://{}", self.place.path("source").display()),
            backup_type,
            ..self.place.backup_options()
        }
    }

    fn try_backup(&self, backup_type: BackupType) -> Result<BackupSummary> {
        self.place.try_backup(&engine(), &self.options(backup_type))
    }

    fn backup(&self, backup_type: BackupType) -> Made {
        let summary = self.try_backup(backup_type).unwrap();
        let journal = match &self.database {
            Some(database) => database.journal(),
            None => self.journal.clone(),
        };
        Made { summary, journal }
    }

    fn restore_as(&self, id: BackupId, to: &str) -> RestoreSummary {
        let options = self.place.restore_options(&id.to_string(), to, false);
        self.place.try_restore(&engine(), &options).unwrap()
    }

    /// Restores a backup and compares rows and pages with the model.
    fn check(&mut self, made: &Made) {
        self.targets += 1;
        let to = format!("restored-{}", self.targets);
        let summary = self.restore_as(made.summary.backup_id, &to);
        let settled = summary.settled.expect("a page store is recovered");
        assert_eq!(settled.position, made.end().0);
        let path = self.place.path(&to);
        same(&path, &made.journal, made.end());
        fs::remove_dir_all(path).unwrap();
    }
}

/// The store in `path` holds what the model holds at `end`.
fn same(path: &Path, journal: &Journal, end: Lsn) {
    let (database, reached) = Database::open(disk(path), OPTIONS).unwrap();
    assert!(reached >= end, "{reached} {end}");
    let (contents, wanted) = (database.contents().unwrap(), journal.contents_at(end));
    assert!(
        contents.0.keys().eq(wanted.0.keys()),
        "{:?} instead of {:?}",
        contents.0.keys(),
        wanted.0.keys()
    );
    for (name, rows) in &wanted.0 {
        assert!(contents.0[name] == *rows, "{name} differs at {end}");
    }
    for ((table, page), body) in journal.pages_at(end) {
        let file = TableFile::open_read(&*disk(path), table)
            .unwrap()
            .expect("table");
        let (bytes, lsn) = file.read_checked(page).unwrap();
        let same = sha256(&bytes[PAGE_HEADER_BYTES..]) == body;
        assert!(
            same && lsn < end,
            "table {table:08x}, page {page} of {lsn} at {end}"
        );
    }
}

/// Whoever knows the public key and may write can make one whose packs do not hold what they say.
#[test]
fn no_backup_builds_on_a_base_that_nobody_vouches_for() {
    let mut site = Site::at(Place::sealed(), 4, 16, false);
    site.run(50);
    let vouched = site.backup(BackupType::Full);
    let mut options = site.options(BackupType::Full);
    options.repo = site.place.access_with(Credentials::None);
    let open = site.place.try_backup(&engine(), &options).unwrap();
    site.run(50);
    let on = |base: BackupId| BackupOptions {
        base: Some(base.to_string()),
        ..site.options(BackupType::Incremental)
    };
    let refused = site.place.try_backup(&engine(), &on(open.backup_id));
    let error = refused.map(drop).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.message().contains("nobody vouches"), "{error}");
    let made = site
        .place
        .try_backup(&engine(), &on(vouched.summary.backup_id));
    assert_eq!(made.unwrap().parent, Some(vouched.summary.backup_id));
}

#[test]
fn backups_under_load_are_exact_at_their_position() {
    load(Site::new(2, 18));
}

#[test]
fn backups_under_load_are_exact_where_the_log_is_trimmed_at_every_checkpoint() {
    load(Site::with(3, 15, true));
}

/// Clients that commit all the time, checkpoints one after the other, each followed by the removal of what the log need not
/// keep where the store is tracked, and backups beside them.
fn load(mut site: Site) {
    site.run(300);
    let (stop, trimmed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut made = Vec::new();
    std::thread::scope(|scope| {
        let (database, tracked) = (site.database(), site.tracked);
        let (stop, trimmed) = (&stop, &trimmed);
        for client in 1..3 {
            scope.spawn(move || {
                let mut workload = Workload::new(2, client);
                while !stop.load(SeqCst) {
                    database.commit(&workload.next_transaction()).unwrap();
                }
            });
        }
        scope.spawn(move || {
            while !stop.load(SeqCst) {
                database.checkpoint().unwrap();
                if tracked {
                    trimmed.fetch_add(database.trim().unwrap(), SeqCst);
                }
            }
        });
        made.push(site.backup(BackupType::Full));
        for _ in 0..4 {
            made.push(site.backup(BackupType::Incremental));
        }
        made.push(site.backup(BackupType::Differential));
        stop.store(true, SeqCst);
    });
    assert_eq!(trimmed.into_inner() > 0, site.tracked);
    for made in &made[1..] {
        assert_ne!(
            made.summary.backup_type,
            BackupType::Full,
            "{:?}",
            made.summary.reason
        );
    }
    for pair in made[..5].windows(2) {
        assert!(pair[0].end() < pair[1].end());
    }
    site.kill();
    for made in &made {
        site.check(made);
    }
}

/// A log that grows faster than its limit lets it be read has no end that could be reached.
#[test]
fn a_backup_ends_whose_limit_is_below_what_is_committed_meanwhile() {
    const TRANSACTIONS: usize = 200_000;
    let mut site = Site::new(5, 16);
    site.run(300);
    site.database().checkpoint().unwrap();
    let limited = Engine {
        limits: JobLimits {
            read: RateBudget::new(Some(1 << 20)),
            ..JobLimits::default()
        },
        gentle: true,
        ..engine()
    };
    let options = site.options(BackupType::Full);
    let (stop, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    let made = std::thread::scope(|scope| {
        let database = site.database();
        let (stop, written) = (&stop, &written);
        for client in 1..5 {
            scope.spawn(move || {
                let mut workload = Workload::new(5, client);
                while !stop.load(SeqCst) && written.fetch_add(1, SeqCst) < TRANSACTIONS {
                    database.commit(&workload.next_transaction()).unwrap();
                }
            });
        }
        let before = database
            .commit(&Workload::new(5, 9).next_transaction())
            .unwrap();
        let summary = site.place.try_backup(&limited, &options).unwrap();
        stop.store(true, SeqCst);
        assert!(before <= summary.lsn_range.expect("positions").end);
        let journal = database.journal();
        Made { summary, journal }
    });
    assert!(
        written.into_inner() < TRANSACTIONS,
        "it ended with the load"
    );
    site.kill();
    site.check(&made);
}

/// Killed after a flush was written over the end of a segment, and before that was sealed. The log's end is before that
/// flush then, which nobody was told of: behind it the segments could not be told to belong together, as the backup
/// leaves out what lies before the redo position.
#[test]
fn a_flush_whose_segment_is_not_sealed_yet_is_not_in_the_backup() {
    let place = Place::plain();
    let path = place.path("source");
    let identity = new_identity([6; 32], SegmentSize::new(15).unwrap());
    let mut store = Store::create(disk(&path), identity).unwrap();
    let recovered = store.recover(16).unwrap();
    let (writer, time) = (recovered.writer, mover_base::Timestamp::from_micros(1));
    let mut group = Group::new();
    group.create(1, TableKind::Rows, "rows").unwrap();
    group.extend(1, 20).unwrap();
    let first = writer.append(&group, 1, time).unwrap();
    writer.flush_to(first.end).unwrap();
    let mut catalogue = store.catalogue().clone();
    let create = Record::Create {
        table: 1,
        kind: TableKind::Rows,
        name: "rows",
    };
    catalogue.apply(first.records[0], &create).unwrap();
    let extend = Record::Extend {
        table: 1,
        pages: 20,
    };
    catalogue.apply(first.records[1], &extend).unwrap();
    TableFile::open_write(&*disk(&path), 1)
        .unwrap()
        .sync()
        .unwrap();
    // Redo begins behind the first block of records.
    writer.switch_segment().unwrap();
    let checkpoint = |store: &mut Store, mut catalogue: mover_source::pages::Catalogue| {
        catalogue.lsn = writer.end();
        store.checkpoint(&writer, catalogue, 2, time).unwrap()
    };
    for _ in 0..3 {
        checkpoint(&mut store, catalogue.clone());
    }
    let before = writer.end();
    let mut group = Group::new();
    for page in 0..5 {
        group.image(1, page, &[5; 4072]).unwrap();
    }
    let end = writer.append(&group, 2, time).unwrap().end;
    writer.flush_to(end).unwrap();
    drop(writer);
    let size = identity.size;
    let sealed = size.start_of(before);
    assert_eq!(
        size.start_of(end),
        size.next_of(sealed),
        "the flush crosses"
    );
    let control = read_control(&*disk(&path)).unwrap();
    assert!(
        control.redo.0 - sealed.0 >= 8192,
        "the beginning is left out"
    );
    let segment = place.source(&identity.path(sealed));
    let mut bytes = fs::read(&segment).unwrap();
    let footer = bytes.len() - BLOCK;
    bytes[footer..].fill(0);
    fs::write(&segment, bytes).unwrap();
    let options = BackupOptions {
        source: format!("pages://{}", path.display()),
        ..place.backup_options()
    };
    let made = place.try_backup(&engine(), &options).unwrap();
    assert_eq!(made.lsn_range.unwrap().end, before);
    let to = place.restore_options(&made.backup_id.to_string(), "restored", false);
    let restored = place.try_restore(&engine(), &to).unwrap();
    assert_eq!(restored.settled.unwrap().position, before.0);
    // The database itself finds it whole, and keeps it.
    let mut store = Store::open(disk(&path)).unwrap();
    assert_eq!(store.recover(16).unwrap().log.end, end);
}

/// The log is gone up to the redo position, the base's end with it; the tracker knows what it said, and that the base was
/// taken of it.
#[test]
fn the_tracker_tells_what_the_log_does_not() {
    for tracked in [true, false] {
        let mut site = Site::with(50, 14, tracked);
        site.run(40);
        let full = site.backup(BackupType::Full);
        site.run(40);
        site.database().checkpoint().unwrap();
        assert!(full.end() < site.redo_segment());
        site.trim(site.redo_segment());
        let made = site.backup(BackupType::Incremental);
        if tracked {
            assert_eq!(made.summary.reason, None);
            assert_eq!(made.summary.base, Some(full.summary.backup_id));
        } else {
            assert!(made.summary.reason.as_ref().unwrap().contains("missing"));
        }
        site.check(&full);
        site.check(&made);
    }
}

/// A database that asks before it removes segments keeps what a planned backup will copy, whatever checkpoints come between;
/// one that does not ask makes the backup fail.
#[test]
fn a_running_backup_keeps_the_log_of_who_asks() {
    for tracked in [true, false] {
        let mut site = Site::with(52, 14, tracked);
        site.run(40);
        site.database().checkpoint().unwrap();
        assert!(site.database().trim().unwrap() > 0);
        let redo = read_control(&*disk(&site.place.path("source"))).unwrap();
        let engine = engine();
        let options = site.options(BackupType::Full);
        let plan = backup::plan(&engine, &options, &mut |_, _| {}).unwrap();
        for _ in 0..3 {
            site.run(40);
            site.database().checkpoint().unwrap();
            assert_eq!(site.database().trim().unwrap() == 0, tracked);
        }
        assert!(redo.redo < site.redo_segment());
        let done = backup::execute(&engine, plan, &mut |_, _| {});
        if !tracked {
            let error = done.unwrap_err();
            assert_eq!(error.kind(), Kind::SourceChanged, "{error}");
            let hint = error.hint_text().expect("a hint");
            assert!(hint.contains("keep the log"), "{hint}");
            continue;
        }
        let made = Made {
            summary: done.unwrap(),
            journal: site.database().journal(),
        };
        assert_eq!(made.summary.lsn_range.unwrap().start, redo.redo);
        // It has ended, and holds nothing.
        assert!(site.database().trim().unwrap() > 0);
        site.check(&made);
    }
}

/// A copy of a store at its own path is another source: it builds on the original's blocks, and never stands on its log.
#[test]
fn another_source_lends_its_blocks_and_is_no_base() {
    let mut site = Site::new(53, 14);
    site.run(60);
    site.database().checkpoint().unwrap();
    let of_main = site.backup(BackupType::Full);
    site.kill();
    copy_tree(&site.place.path("source"), &site.place.path("branch"));
    let branch = |site: &Site, backup_type| {
        let options = BackupOptions {
            source: format!("pages://{}", site.place.path("branch").display()),
            ..site.options(backup_type)
        };
        site.place.try_backup(&engine(), &options).unwrap()
    };
    for backup_type in [BackupType::Incremental, BackupType::Differential] {
        let made = branch(&site, backup_type);
        assert_eq!((made.backup_type, made.base), (BackupType::Full, None));
        assert!(made.reason.unwrap().contains("of this source"));
        assert_eq!(made.parent, Some(of_main.summary.backup_id));
        let main = format!("pages://{}", site.place.path("source").display());
        assert_eq!(made.parent_source, Some(main));
        assert!(made.deduplicated_share > 0.9, "{}", made.deduplicated_share);
        let restored = site.restore_as(made.backup_id, "restored-branch");
        assert_eq!(restored.settled.unwrap().position, of_main.end().0);
        same(
            &site.place.path("restored-branch"),
            &of_main.journal,
            of_main.end(),
        );
        fs::remove_dir_all(site.place.path("restored-branch")).unwrap();
        let manifests = site.place.path("repo/backups");
        fs::remove_file(manifests.join(made.backup_id.to_string())).unwrap();
    }
    // Its own full backup is what it stands on.
    let full = branch(&site, BackupType::Full);
    let made = branch(&site, BackupType::Incremental);
    assert_eq!((made.reason, made.base), (None, Some(full.backup_id)));
    assert_eq!(made.parent_source, None);
}

/// A copy of a tracked store that was made before its last backup is put back and goes on; then its log is trimmed. It
/// has an epoch from before, and would answer; what it says is of another line.
#[test]
fn a_line_that_does_not_know_the_base_gets_a_full_backup() {
    let mut site = Site::with(51, 14, true);
    site.run(20);
    site.database().checkpoint().unwrap();
    site.backup(BackupType::Full);
    site.kill();
    copy_tree(&site.place.path("source"), &site.place.path("copy"));
    site.start();
    site.run(30);
    site.database().checkpoint().unwrap();
    let base = site.backup(BackupType::Incremental);
    assert_eq!(base.summary.reason, None);
    site.kill();
    site.replace_by("copy");
    let made = went_on_past(&mut site, &base);
    assert!(made.summary.reason.as_ref().unwrap().contains("missing"));
    site.check(&made);
}

/// Starts a stopped store, goes on until its log has passed the end of `base`, trims the log to there, and backs up what changed.
fn went_on_past(site: &mut Site, base: &Made) -> Made {
    site.start();
    site.run(60);
    site.database().checkpoint().unwrap();
    assert!(base.end() < site.redo_segment());
    site.trim(site.redo_segment());
    site.backup(BackupType::Incremental)
}

/// As before, but what is put back is the store without its tracker, which so knows the base, and notices that the log went back.
#[test]
fn a_log_that_went_back_beneath_its_tracker_is_no_more_the_one_that_the_base_is_of() {
    let mut site = Site::with(52, 14, true);
    let cold = |key| Op::Insert("cold".to_owned(), key, vec![key as u8; 100]);
    let create = Op::Create("cold".to_owned());
    site.database().commit(&[create, cold(0)]).unwrap();
    site.run(20);
    site.database().checkpoint().unwrap();
    site.backup(BackupType::Full);
    site.kill();
    copy_tree(&site.place.path("source"), &site.place.path("copy"));
    site.start();
    site.database().commit(&[cold(1)]).unwrap();
    site.run(30);
    site.database().checkpoint().unwrap();
    let base = site.backup(BackupType::Incremental);
    assert_eq!(base.summary.reason, None);
    site.kill();
    fs::remove_dir_all(site.place.path("copy/tracker")).unwrap();
    fs::rename(
        site.place.source("tracker"),
        site.place.path("copy/tracker"),
    )
    .unwrap();
    site.replace_by("copy");
    let made = went_on_past(&mut site, &base);
    assert_eq!(made.summary.backup_type, BackupType::Full);
    site.check(&made);
}

/// Whatever breaks a chain makes the next backup a full one that says why, and restores.
#[test]
fn every_broken_chain_heals() {
    let site = |seed| {
        let mut site = Site::new(seed, 15);
        site.run(60);
        site.database().checkpoint().unwrap();
        let full = site.backup(BackupType::Full);
        assert_eq!(full.summary.reason, None);
        site.run(40);
        site.database().checkpoint().unwrap();
        (site, full)
    };
    let heals = |site: &mut Site, backup_type, why: &str| {
        let made = site.backup(backup_type);
        let reason = made.summary.reason.clone().expect("a reason");
        assert_eq!(made.summary.backup_type, BackupType::Full);
        assert!(reason.contains(why), "{reason}");
        assert!(made.summary.warnings.iter().any(|w| w.contains(why)));
        site.check(&made);
        // And the next one stands on it.
        let next = site.backup(BackupType::Incremental);
        assert_eq!(next.summary.base, Some(made.summary.backup_id));
        site.check(&next);
    };
    // The segment that the base begins with, which the next backup needs only to know what changed.
    let first = |site: &Site, base: &Made| {
        let disk = disk(&site.place.path("source"));
        let control = read_control(&*disk).unwrap();
        let size = control.identity.size;
        let start = size.start_of(base.summary.lsn_range.unwrap().start);
        assert!(start < size.start_of(control.redo));
        site.place.source(&control.identity.path(start))
    };

    let mut none = Site::new(20, 15);
    none.run(5);
    heals(&mut none, BackupType::Incremental, "no earlier backup");
    let mut none = Site::new(21, 15);
    none.run(5);
    heals(&mut none, BackupType::Differential, "no full backup");

    let (mut gone, full) = site(22);
    fs::remove_file(first(&gone, &full)).unwrap();
    heals(&mut gone, BackupType::Incremental, "missing");

    let (mut damaged, full) = site(23);
    let path = first(&damaged, &full);
    let mut bytes = fs::read(&path).unwrap();
    let at = full.summary.lsn_range.unwrap().start.0 as usize % bytes.len();
    bytes[at + 5000] ^= 1;
    fs::write(&path, bytes).unwrap();
    heals(&mut damaged, BackupType::Incremental, "log");

    // Sound, and of another database.
    let (mut foreign, full) = site(27);
    let (other, _) = site(28);
    let start = full.summary.lsn_range.unwrap().start;
    let of = |site: &Site| {
        let identity = read_control(&*disk(&site.place.path("source")))
            .unwrap()
            .identity;
        site.place
            .source(&identity.path(identity.size.start_of(start)))
    };
    fs::copy(of(&other), of(&foreign)).unwrap();
    heals(
        &mut foreign,
        BackupType::Incremental,
        "is not the one that it was made of",
    );

    // The control file's newer slot is damaged: redo begins before the base does.
    let (mut control, _) = site(31);
    control.backup(BackupType::Full);
    let sequence = read_control(&*disk(&control.place.path("source")))
        .unwrap()
        .sequence;
    let slot = control.place.source("control");
    let mut bytes = fs::read(&slot).unwrap();
    bytes[(sequence % 2) as usize * BLOCK + 100] ^= 1;
    fs::write(&slot, bytes).unwrap();
    let reason = control.backup(BackupType::Incremental);
    assert!(
        reason
            .summary
            .reason
            .as_ref()
            .unwrap()
            .contains("behind the redo position")
    );
    control.check(&reason);

    // The base is gone from the repository, and nothing else is there.
    let (mut expired, full) = site(29);
    let manifest = format!("repo/backups/{}", full.summary.backup_id);
    fs::remove_file(expired.place.path(&manifest)).unwrap();
    heals(&mut expired, BackupType::Incremental, "no earlier backup");

    let (mut past, full) = site(24);
    past.kill();
    past.restore_as(full.summary.backup_id, "past");
    past.replace_by("past");
    past.journal.cut(full.end());
    past.start();
    heals(&mut past, BackupType::Incremental, "history");

    // A copy of the directory was put back, behind everybody's back.
    let (mut copied, _) = site(25);
    copied.kill();
    copy_tree(&copied.place.path("source"), &copied.place.path("copy"));
    copied.start();
    copied.run(30);
    let end = copied.database().writer().end();
    copied.database().writer().flush_to(end).unwrap();
    let on_it = copied.backup(BackupType::Incremental);
    assert_eq!(on_it.summary.reason, None);
    copied.kill();
    copied.replace_by("copy");
    copied.start();
    copied.run(60);
    let end = copied.database().writer().end();
    copied.database().writer().flush_to(end).unwrap();
    copied.database().checkpoint().unwrap();
    heals(&mut copied, BackupType::Incremental, "put back");

    // A pack of the base is gone.
    let (mut lost, _) = site(26);
    let packs = lost.place.path("repo").join("packs");
    let prefix = fs::read_dir(&packs)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let pack = fs::read_dir(prefix)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    fs::remove_file(pack).unwrap();
    heals(&mut lost, BackupType::Incremental, "missing");
}

#[test]
fn a_named_base_must_exist_and_be_of_this_source() {
    let mut site = Site::new(30, 15);
    site.run(10);
    let full = site.backup(BackupType::Full);
    let with_base = |site: &Site, backup_type, base: &str| {
        let options = BackupOptions {
            base: Some(base.to_owned()),
            ..site.options(backup_type)
        };
        site.place.try_backup(&engine(), &options)
    };
    let id = full.summary.backup_id.to_string();
    let made = with_base(&site, BackupType::Incremental, &id).unwrap();
    assert_eq!(made.base, Some(full.summary.backup_id));
    let error = with_base(&site, BackupType::Full, &id).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    let error = with_base(&site, BackupType::Incremental, "19990101T000000-00000000").unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    fs::create_dir(site.place.path("other")).unwrap();
    let other = BackupOptions {
        source: format!("dir://{}", site.place.path("other").display()),
        ..site.place.backup_options()
    };
    let other = site.place.try_backup(&engine(), &other).unwrap();
    let error =
        with_base(&site, BackupType::Incremental, &other.backup_id.to_string()).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
}

#[test]
fn who_names_a_source_that_is_none_is_told_what_would_be_one() {
    let place = Place::plain();
    let refusal = |source: String| {
        let options = BackupOptions {
            source,
            ..place.backup_options()
        };
        place.try_backup(&engine(), &options).unwrap_err()
    };
    let no_store = place.path("source");
    let error = refusal(format!("pages://{}", no_store.display()));
    assert_eq!(error.kind(), Kind::Source, "{error}");
    let control = no_store.join("control").display().to_string();
    assert_eq!(error.object_name(), Some(&control[..]));
    assert!(error.hint_text().unwrap().contains("dir:///"), "{error:?}");
    let error = refusal("s3://bucket".to_owned());
    assert_eq!(error.kind(), Kind::Usage, "{error}");
    for scheme in ["dir:///", "pages:///"] {
        assert!(error.hint_text().unwrap().contains(scheme), "{error:?}");
    }
}

#[test]
fn damage_that_the_log_cannot_mend_is_an_error_and_nothing_is_published() {
    let mut site = Site::new(40, 18);
    site.run(200);
    site.database().checkpoint().unwrap();
    site.kill();
    let table = site
        .journal
        .pages_at(Lsn(u64::MAX))
        .into_keys()
        .next()
        .unwrap();
    let path = site.place.source(&table_path(table.0));
    let sound = fs::read(&path).unwrap();
    let mut bytes = sound.clone();
    bytes[table.1 as usize * BLOCK + 3000] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = site.try_backup(BackupType::Full).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    let object = format!("table {:08x}, page {}", table.0, table.1);
    assert_eq!(error.object_name(), Some(&object[..]));
    // The last page of the file is there in part.
    let last = sound.len() / BLOCK - 1;
    fs::write(&path, &sound[..sound.len() - 3000]).unwrap();
    let error = site.try_backup(BackupType::Full).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    let object = format!("table {:08x}, page {last}", table.0);
    assert_eq!(error.object_name(), Some(&object[..]));
    // A page of a later log: the log has lost its end.
    let mut later = sound.clone();
    let page = &mut later[table.1 as usize * BLOCK..][..BLOCK];
    let header = mover_source::page::PageHeader {
        lsn: Lsn(1 << 40),
        table: table.0,
        page: table.1,
    };
    mover_source::page::seal(page.first_chunk_mut().unwrap(), header);
    fs::write(&path, later).unwrap();
    let error = site.try_backup(BackupType::Full).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.message().contains("ends before"), "{error}");
    // Who does not want to wait until that is certain ends it.
    let plan = backup::plan(&engine(), &site.options(BackupType::Full), &mut |_, _| {}).unwrap();
    let result = backup::execute(&engine(), plan, &mut |progress, stop| {
        if progress.read().phase == Phase::Log {
            stop.raise();
        }
    });
    assert_eq!(result.map(drop).unwrap_err().kind(), Kind::Cancelled);
    assert_eq!(site.place.objects("sessions/"), [""; 0]);
    fs::remove_file(&path).unwrap();
    let error = site.try_backup(BackupType::Full).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert_eq!(error.object_name(), Some(&table_path(table.0)[..]));
    let listing = mover_jobs::catalogue::list(&engine(), &site.place.access()).unwrap();
    assert!(listing.backups.is_empty());
    fs::write(&path, sound).unwrap();
    let made = site.backup(BackupType::Full);
    site.check(&made);
}

#[test]
fn a_table_that_lost_its_end_is_not_filled_up_from_the_base() {
    let place = Place::plain();
    let source = disk(&place.path("source"));
    let identity = new_identity([4; 32], SegmentSize::new(20).unwrap());
    let mut bulk = Bulk::make(&source, identity, 4, 100).unwrap();
    let options = |backup_type| BackupOptions {
        source: format!("pages://{}", place.path("source").display()),
        backup_type,
        ..place.backup_options()
    };
    let full = options(BackupType::Full);
    place.try_backup(&engine(), &full).unwrap();
    let path = place.source(&table_path(TABLE));
    let before = fs::read(&path).unwrap();
    bulk.change(100).unwrap();
    drop(bulk);
    let sound = fs::read(&path).unwrap();
    let last = 99 * BLOCK;
    let zeros = [&sound[..last], &[0; BLOCK]].concat();
    let stale = [&sound[..last], &before[last..]].concat();
    for (damage, bytes) in [
        ("cut", &sound[..last]),
        ("cut, and grown again", &zeros),
        ("a write was lost", &stale),
    ] {
        fs::write(&path, bytes).unwrap();
        let incremental = options(BackupType::Incremental);
        let error = place.try_backup(&engine(), &incremental).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{damage}: {error}");
        assert_eq!(error.object_name(), Some("table 00000001, page 99"));
    }
    fs::write(&path, &sound).unwrap();
    let made = place.try_backup(&engine(), &options(BackupType::Incremental));
    assert_eq!(made.unwrap().backup_type, BackupType::Incremental);
}

/// What the base has not may be lost as well: the end of a table that grew since, and all of one that was made since.
#[test]
fn what_was_written_since_the_base_and_is_gone_is_damage() {
    let rows = |table: &str, keys: std::ops::Range<u64>| -> Vec<Op> {
        let insert = |key| Op::Insert(table.to_owned(), key, vec![key as u8; 100]);
        keys.map(insert).collect()
    };
    let mut site = Site::new(42, 14);
    let create = |name: &str| Op::Create(name.to_owned());
    site.database().commit(&[create("grows")]).unwrap();
    site.database().commit(&rows("grows", 0..1)).unwrap();
    site.database().checkpoint().unwrap();
    let base = site.backup(BackupType::Full);
    let before = base.journal.pages_at(Lsn(u64::MAX));
    site.database().commit(&rows("grows", 1..70)).unwrap();
    site.database().commit(&[create("new")]).unwrap();
    site.database().commit(&rows("new", 0..70)).unwrap();
    site.database().checkpoint().unwrap();
    site.kill();
    let pages = site.journal.pages_at(Lsn(u64::MAX)).into_keys();
    let lost: Vec<(u32, u32)> = pages.filter(|at| !before.contains_key(at)).collect();
    assert!(lost.iter().any(|(_, page)| *page > 0), "one that grew");
    assert!(lost.iter().any(|(_, page)| *page == 0), "one that is new");
    for (table, page) in lost {
        let path = site.place.source(&table_path(table));
        let sound = fs::read(&path).unwrap();
        let at = page as usize * BLOCK;
        let mut zeros = sound.clone();
        zeros[at..at + BLOCK].fill(0);
        // The file ends there, has a hole there, or zeros.
        for damage in 0..3 {
            match damage {
                0 => fs::write(&path, &sound[..at]).unwrap(),
                1 => {
                    fs::write(&path, &sound[..at]).unwrap();
                    let file = fs::File::options().write(true).open(&path).unwrap();
                    file.set_len(sound.len() as u64).unwrap();
                    file.write_all_at(&sound[at + BLOCK..], (at + BLOCK) as u64)
                        .unwrap();
                }
                _ => fs::write(&path, &zeros).unwrap(),
            }
            let error = site.try_backup(BackupType::Incremental).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{damage}: {error}");
            let object = format!("table {table:08x}, page {page}");
            assert_eq!(error.object_name(), Some(&object[..]), "{damage}");
        }
        fs::write(&path, &sound).unwrap();
    }
    let made = site.backup(BackupType::Incremental);
    assert_eq!(made.summary.backup_type, BackupType::Incremental);
    site.check(&made);
}

#[test]
fn what_is_no_file_is_refused_and_not_waited_for() {
    let mut site = Site::new(41, 18);
    site.run(20);
    site.database().checkpoint().unwrap();
    site.kill();
    let table = *site.journal.pages_at(Lsn(u64::MAX)).keys().next().unwrap();
    let path = site.place.source(&table_path(table.0));
    fs::remove_file(&path).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.unwrap().success());
    let error = site.try_backup(BackupType::Full).unwrap_err();
    assert_eq!(error.kind(), Kind::Source);
    assert_eq!(error.object_name(), Some(&table_path(table.0)[..]));
}

#[test]
fn empty_stores_and_tables_come_back() {
    let place = Place::plain();
    let identity = new_identity([3; 32], SegmentSize::new(14).unwrap());
    Store::create(disk(&place.path("source")), identity).unwrap();
    let options = BackupOptions {
        source: format!("pages://{}", place.path("source").display()),
        backup_type: BackupType::Incremental,
        ..place.backup_options()
    };
    let empty = place.try_backup(&engine(), &options).unwrap();
    let to = place.restore_options(&empty.backup_id.to_string(), "empty", false);
    place.try_restore(&engine(), &to).unwrap();
    same(&place.path("empty"), &Journal::default(), Lsn(4096));
    // A table without rows, made before and after the checkpoint.
    let (database, _) = Database::open(disk(&place.path("source")), OPTIONS).unwrap();
    let create = |name: &str| Op::Create(name.to_owned());
    database.commit(&[create("before")]).unwrap();
    database.checkpoint().unwrap();
    let end = database.commit(&[create("after")]).unwrap();
    let made = place.try_backup(&engine(), &options).unwrap();
    assert_eq!(made.backup_type, BackupType::Incremental);
    assert_eq!(made.lsn_range.unwrap().end, end);
    let to = place.restore_options(&made.backup_id.to_string(), "tables", false);
    place.try_restore(&engine(), &to).unwrap();
    same(&place.path("tables"), &database.journal(), end);
}
