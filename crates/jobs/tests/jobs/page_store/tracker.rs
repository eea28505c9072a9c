//! Backups of a store whose block change tracker is damaged, in each way that a file can be: while the log tells what the tracker
//! cannot, they are incremental and exact; where it is gone, they are full, and say why. Never is one wrong.
//!
//! Invariant: what is expected of each damage is a row of one table; what the log has left of it is a column.

use mover_base::HistoryId;
use mover_base::checksum::crc32;
use mover_jobs::catalogue;
use mover_pagedb::workload::Op;
use mover_source::tracker::{
    EpochHeader, Kept, LIVE_FILE, LiveHeader, STATE_FILE, TRACKER_DIR, TrackerState, WITNESS_FILE,
    Witness,
};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::lost_pages::damage;
use super::*;

/// What a bitmap takes in an epoch's file: where it belongs, and a bit for each page.
const ENTRY_BYTES: usize = 520;
const EPOCH_HEADER_BYTES: usize = 80;
/// Why a base is none whose log is gone, and which the store has no entry of.
const UNKNOWN_BASE: &str = "the store does not know this backup again (tracker/witness)";

/// How much of the log is left when the backup looks for what changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Log {
    /// All.
    Whole,
    /// What the running epoch is about, and not what the ended ones are.
    SinceSwitch,
    /// What recovery needs.
    SinceRedo,
}

/// A store that was backed up twice, so that what changed since the first backup is in an ended epoch and in the running one.
struct Scene {
    site: Site,
    /// Whether the database still runs, and marks.
    runs: bool,
    first: Made,
    second: Made,
}

impl Scene {
    fn new(seed: u64, runs: bool) -> Scene {
        let mut site = Site::with(seed, 14, true);
        let mut backup = |backup_type| {
            work(&mut site);
            site.backup(backup_type)
        };
        let first = backup(BackupType::Full);
        let second = backup(BackupType::Incremental);
        assert_eq!(second.summary.reason, None);
        work(&mut site);
        site.run(10);
        let end = site.database().writer().end();
        site.database().writer().flush_to(end).unwrap();
        if !runs {
            site.kill();
        }
        Scene {
            site,
            runs,
            first,
            second,
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.site.place.source(name)
    }

    /// Takes away what is not to be left of the log.
    fn trim(&self, log: Log) {
        let start = self.second.summary.lsn_range.unwrap().start;
        let size = SegmentSize::new(14).unwrap();
        let (switch, redo) = (size.start_of(start), self.site.redo_segment());
        assert!(self.first.end() < switch && self.second.end() < redo);
        match log {
            Log::Whole => {}
            Log::SinceSwitch => self.site.trim(switch),
            Log::SinceRedo => self.site.trim(redo),
        }
    }

    /// A segment before the redo position, in which the first backup's log ends.
    fn old_segment(&self) -> std::path::PathBuf {
        let control = read_control(&*disk(&self.path(""))).unwrap();
        let identity = control.identity;
        let last = Lsn(self.first.end().0 - 1);
        self.path(&identity.path(identity.size.start_of(last)))
    }

    fn state(&self) -> TrackerState {
        TrackerState::decode(&fs::read(self.path(STATE_FILE)).unwrap()).unwrap()
    }

    fn edit_state(&self, change: impl FnOnce(&mut TrackerState)) {
        let mut state = self.state();
        change(&mut state);
        fs::write(self.path(STATE_FILE), state.encode()).unwrap();
    }

    /// The ended epoch that was begun by the first backup.
    fn ended(&self) -> Kept {
        *self.state().kept.last().unwrap()
    }

    fn epoch_path(&self) -> std::path::PathBuf {
        self.path(&self.ended().path())
    }

    /// Makes the epoch's file another one, whose checksum is right; with `known` the state says so, too.
    fn forge(&self, known: bool, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.epoch_path();
        let mut bytes = fs::read(&path).unwrap();
        bytes.truncate(bytes.len() - 4);
        change(&mut bytes);
        let crc = crc32(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        fs::write(path, bytes).unwrap();
        if known {
            self.edit_state(|state| state.kept.last_mut().unwrap().crc = crc);
        }
    }

    /// Changes the length of a file. In place, unless the database has it mapped, which may not lose what it touches.
    fn resize(&self, name: &str, len: impl FnOnce(u64) -> u64) {
        let path = self.path(name);
        if self.runs {
            copy_anew(&path);
        }
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_len(len(file.metadata().unwrap().len())).unwrap();
    }

    fn edit_live(&self, change: impl FnOnce(&mut LiveHeader)) {
        edit(&self.path(LIVE_FILE), |bytes| {
            let block = bytes.first_chunk_mut::<BLOCK>().unwrap();
            let mut header = LiveHeader::decode(block).unwrap();
            change(&mut header);
            *block = header.encode();
        });
    }
}

/// Transactions, and a checkpoint behind one that was waited for: the tracker was told that the log is durable so far.
fn work(site: &mut Site) {
    site.run(30);
    let ops = site.workload.next_transaction();
    let end = site.database().commit(&ops).unwrap();
    site.database().checkpoint().unwrap();
    let redo = read_control(&*disk(&site.place.path("source")));
    assert_eq!(redo.unwrap().redo, end);
}

/// A file of the same name and content, and another inode.
fn copy_anew(path: &Path) {
    let copy = path.with_extension("copy");
    fs::copy(path, &copy).unwrap();
    fs::rename(copy, path).unwrap();
}

/// Changes bytes of a file in place: its number stays, and what is mapped sees it.
fn edit(path: &Path, change: impl FnOnce(&mut [u8])) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    let mut file = fs::File::options().write(true).open(path).unwrap();
    std::io::Write::write_all(&mut file, &bytes).unwrap();
}

fn flip(path: &Path, at: impl FnOnce(usize) -> usize) {
    edit(path, |bytes| bytes[at(bytes.len())] ^= 0x10);
}

/// Marks all pages of all runs that are marked at all, and pages of a table that nobody made.
fn mark_more(scene: &Scene) {
    edit(&scene.path(LIVE_FILE), |bytes| {
        let header = LiveHeader::decode(bytes.first_chunk().unwrap()).unwrap();
        let entries = 1usize << header.capacity.log2();
        let directories = 3 * BLOCK;
        let maps = directories + 2 * entries * 8;
        let mut stranger = Some(0xfffu64 << 20);
        for at in 0..2 * entries {
            let word = &mut bytes[directories + 8 * at..][..8];
            let is_free = word == [0; 8];
            if is_free && stranger.is_none() {
                continue;
            }
            if is_free {
                word.copy_from_slice(&stranger.take().unwrap().to_le_bytes());
            }
            bytes[maps + 512 * at..][..512].fill(0xff);
        }
    });
}

/// What a backup makes of a damage, where the log is gone as far as the ended epochs are about it, or the running one, too;
/// and the next backup, when the database was started again: nothing, or a full backup with a reason that says this.
struct Row {
    what: &'static str,
    harm: fn(&Scene),
    since_switch: Option<&'static str>,
    since_redo: Option<&'static str>,
    next: Option<&'static str>,
}

/// The log since the switch tells what the live file does not.
const fn live(what: &'static str, harm: fn(&Scene)) -> Row {
    Row {
        what,
        harm,
        since_switch: None,
        since_redo: Some("the tracker is in doubt, and the log cannot be read"),
        next: None,
    }
}

/// Nothing but the log tells what an ended epoch does not.
const fn epoch(what: &'static str, harm: fn(&Scene)) -> Row {
    lost(what, harm, "the tracker's epoch 2 is damaged")
}

const fn lost(what: &'static str, harm: fn(&Scene), why: &'static str) -> Row {
    Row {
        what,
        harm,
        since_switch: Some(why),
        since_redo: Some(why),
        next: None,
    }
}

const fn harmless(what: &'static str, harm: fn(&Scene)) -> Row {
    Row {
        what,
        harm,
        since_switch: None,
        since_redo: None,
        next: None,
    }
}

const ROWS: [Row; 33] = [
    harmless("nothing", |_| {}),
    // As an I/O error: it can be removed, and not be read.
    harmless("log: an old segment is unreadable", |s| {
        let path = s.old_segment();
        fs::remove_file(&path).unwrap();
        mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
    }),
    live("live: a block less", |s| {
        s.resize(LIVE_FILE, |len| len - BLOCK as u64);
    }),
    live("live: a block more", |s| {
        s.resize(LIVE_FILE, |len| len + BLOCK as u64);
    }),
    live("live: less than a block", |s| s.resize(LIVE_FILE, |_| 100)),
    live("live: empty", |s| s.resize(LIVE_FILE, |_| 0)),
    live("live: gone", |s| {
        fs::remove_file(s.path(LIVE_FILE)).unwrap();
    }),
    live("live: a bit of its header", |s| {
        flip(&s.path(LIVE_FILE), |_| 20);
    }),
    live("live: a copy", |s| copy_anew(&s.path(LIVE_FILE))),
    live("live: another one's", |s| {
        s.edit_live(|header| header.id[0] ^= 1);
    }),
    live("live: of another history", |s| {
        s.edit_live(|header| header.history.0[0] ^= 1);
    }),
    live("live: from before the machine was started", |s| {
        s.edit_live(|header| header.boot[0] ^= 1);
    }),
    live("live: another epoch", |s| {
        flip(&s.path(LIVE_FILE), |_| BLOCK + 1);
    }),
    harmless("live: marks too many", mark_more),
    epoch("epoch: a bit of a bitmap", |s| {
        flip(&s.epoch_path(), |_| EPOCH_HEADER_BYTES + 8);
    }),
    epoch("epoch: a bit of a bitmap's place", |s| {
        flip(&s.epoch_path(), |_| EPOCH_HEADER_BYTES + 4);
    }),
    epoch("epoch: a bit of its header", |s| {
        flip(&s.epoch_path(), |_| 60);
    }),
    epoch("epoch: a bit of its checksum", |s| {
        flip(&s.epoch_path(), |len| len - 1);
    }),
    epoch("epoch: gone", |s| {
        fs::remove_file(s.epoch_path()).unwrap();
    }),
    epoch("epoch: empty", |s| fs::write(s.epoch_path(), []).unwrap()),
    epoch("epoch: half a bitmap less", |s| {
        s.resize(&s.ended().path(), |len| len - ENTRY_BYTES as u64 / 2);
    }),
    epoch("epoch: a bitmap less", |s| {
        s.resize(&s.ended().path(), |len| len - ENTRY_BYTES as u64);
    }),
    epoch("epoch: a bitmap less, and its checksum right", |s| {
        s.forge(false, |bytes| bytes.truncate(bytes.len() - ENTRY_BYTES));
    }),
    epoch("epoch: a mark less, and its checksum right", |s| {
        s.forge(false, |bytes| {
            let marks = &mut bytes[EPOCH_HEADER_BYTES + 8..];
            let byte = marks.iter_mut().find(|byte| **byte != 0).unwrap();
            *byte &= *byte - 1;
        });
    }),
    epoch("epoch: of another history, as the state knows it", |s| {
        s.forge(true, |bytes| {
            let header = bytes.first_chunk_mut::<EPOCH_HEADER_BYTES>().unwrap();
            let mut of = EpochHeader::decode(header).unwrap();
            of.history = HistoryId([7; 16]);
            *header = of.encode();
        });
    }),
    epoch("epoch: the one before, as the state knows it", |s| {
        let before = s.path(&s.state().kept[0].path());
        s.forge(true, |bytes| {
            *bytes = fs::read(before).unwrap();
            bytes.truncate(bytes.len() - 4);
        });
    }),
    harmless("epoch: one that nobody asks for is gone", |s| {
        fs::remove_file(s.path(&s.state().kept[0].path())).unwrap();
    }),
    lost(
        "state: a bit",
        |s| flip(&s.path(STATE_FILE), |_| 75),
        "the tracker's state is damaged",
    ),
    lost(
        "state: gone",
        |s| fs::remove_file(s.path(STATE_FILE)).unwrap(),
        "the tracker has no state",
    ),
    lost(
        "state: of another history",
        |s| s.edit_state(|state| state.history = HistoryId([7; 16])),
        "the tracker is that of another history",
    ),
    // Without it the store does not know the base again whose log is gone.
    lost(
        "witness: a bit",
        |s| flip(&s.path(WITNESS_FILE), |_| 60),
        UNKNOWN_BASE,
    ),
    lost(
        "witness: of another history",
        |s| {
            edit(&s.path(WITNESS_FILE), |bytes| {
                let mut witness = Witness::decode(bytes).unwrap();
                witness.history = HistoryId([7; 16]);
                bytes.copy_from_slice(&witness.encode());
            });
        },
        UNKNOWN_BASE,
    ),
    Row {
        // The database makes a new one, which knows nothing of what was before.
        next: Some("a log segment is missing"),
        ..lost(
            "all of it is gone",
            |s| fs::remove_dir_all(s.path(TRACKER_DIR)).unwrap(),
            UNKNOWN_BASE,
        )
    },
];

/// The backup is what it should be, says why, also in its manifest, and restores exactly.
fn made_as(site: &mut Site, made: &Made, base: &Made, wanted: Option<&str>, what: &str) {
    let summary = &made.summary;
    match wanted {
        None => {
            assert_eq!(summary.reason, None, "{what}");
            assert_ne!(summary.backup_type, BackupType::Full, "{what}");
            assert_eq!(summary.base, Some(base.summary.backup_id), "{what}");
        }
        Some(why) => {
            assert_eq!(summary.backup_type, BackupType::Full, "{what}");
            let reason = summary.reason.as_ref().expect(what);
            assert!(reason.contains(why), "{what}: {reason}");
            let is_told = |warning: &String| warning.contains(why);
            assert!(summary.warnings.iter().any(is_told), "{what}");
        }
    }
    let id = summary.backup_id.to_string();
    let shown = catalogue::show(&engine(), &site.place.access(), &id).unwrap();
    let metadata = shown.metadata;
    assert_eq!(
        (metadata.backup_type, &metadata.reason, metadata.base_id),
        (summary.backup_type, &summary.reason, summary.base),
        "{what}"
    );
    site.check(made);
}

/// Does a damage to a store, and backs it up: whatever changed since the first backup, then whatever changed since that.
fn meet(row: &Row, log: Log, runs: bool, seed: u64) {
    let what = format!("{}, log {log:?}, runs: {runs}", row.what);
    let scene = Scene::new(seed, runs);
    (row.harm)(&scene);
    scene.trim(log);
    let Scene {
        mut site, first, ..
    } = scene;
    let made = site.backup(BackupType::Differential);
    let wanted = match log {
        Log::Whole => None,
        Log::SinceSwitch => row.since_switch,
        Log::SinceRedo => row.since_redo,
    };
    made_as(&mut site, &made, &first, wanted, &what);
    if !runs {
        site.start();
    }
    work(&mut site);
    site.trim(site.redo_segment());
    let next = site.backup(BackupType::Incremental);
    if !runs {
        return made_as(&mut site, &next, &made, row.next, &what);
    }
    // It marks on in what nobody looks at any more. So the next one may be full, and not wrong; when the database is started
    // again, all is well.
    let full = next.summary.backup_type == BackupType::Full;
    made_as(&mut site, &next, &made, full.then_some(""), &what);
    site.kill();
    site.start();
    work(&mut site);
    site.trim(site.redo_segment());
    let last = site.backup(BackupType::Incremental);
    made_as(&mut site, &last, &next, row.next, &what);
}

#[test]
fn whatever_happens_to_the_tracker_no_backup_is_wrong() {
    let situations = [
        (Log::Whole, false),
        (Log::SinceSwitch, false),
        (Log::SinceRedo, false),
        (Log::SinceRedo, true),
    ];
    let cases: Vec<_> = ROWS
        .iter()
        .flat_map(|row| situations.map(|(log, runs)| (row, log, runs)))
        .collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        // They mostly wait for the disk.
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some((row, log, runs)) = cases.get(next.fetch_add(1, SeqCst)) {
                    meet(row, *log, *runs, 70);
                }
            });
        }
    });
}

/// Where nothing happens, each backup ends where the one before did.
#[test]
fn a_store_remembers_the_backups_of_one_position_as_one() {
    let mut site = Site::with(74, 14, true);
    work(&mut site);
    let first = site.backup(BackupType::Full);
    for _ in 0..3 {
        let idle = site.backup(BackupType::Incremental);
        assert_eq!(idle.end(), first.end());
        assert_eq!(idle.summary.reason, None);
        let disk = disk(&site.place.path("source"));
        let identity = read_control(&*disk).unwrap().identity;
        let ends = Witness::read(&*disk, &identity).unwrap().ends;
        assert!(ends.iter().map(|(end, _)| *end).eq([first.end()]));
    }
}

/// What is marked need not be in the log yet, and dies with a database that is killed then. A page that would have been
/// written for the first time is not in its file, and nothing is lost.
#[test]
fn a_page_that_is_marked_and_was_never_written_is_no_damage() {
    let rows = |keys: std::ops::Range<u64>| -> Vec<Op> {
        let insert = |key| Op::Insert("growing".to_owned(), key, vec![key as u8; 100]);
        keys.map(insert).collect()
    };
    // To what length the table's file grows again after it was cut to nothing, and whether the base's packs are damaged.
    for (runs, grown, damaged) in [
        (false, None, false),
        (true, None, false),
        (false, None, true),
        (false, Some(0), false),
        (false, Some(BLOCK as u64), false),
        (false, Some(0), true),
    ] {
        let mut site = Site::with(71, 14, true);
        work(&mut site);
        // It is made with two pages, and the second is nowhere until it gets a row.
        let mut first = vec![Op::Create("growing".to_owned())];
        first.extend(rows(0..1));
        site.database().commit(&first).unwrap();
        let at = site.database().journal().0.last().unwrap().pages[0].0;
        work(&mut site);
        let base = site.backup(BackupType::Full);
        site.database().commit(&rows(1..2)).unwrap();
        work(&mut site);
        let path = site.place.source(&table_path(at.0));
        assert_eq!(fs::metadata(&path).unwrap().len(), BLOCK as u64);
        assert!(base.end() < site.redo_segment());
        site.trim(site.redo_segment());
        let end = site.database().writer().end();
        if let Some(len) = grown {
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_len(0).unwrap();
            file.set_len(len).unwrap();
        } else {
            site.database().append(&rows(2..70)).unwrap();
            let journal = site.database().journal();
            let pages = journal.0.last().unwrap().pages.iter();
            assert!(pages.map(|(at, _)| *at).eq([at, (at.0, 1)]));
        }
        if !runs {
            site.kill();
        }
        if damaged {
            damage(&site.place, &site.place.packs(true));
        }
        let made = site.try_backup(BackupType::Incremental);
        if grown.is_some() {
            // What the base has is gone from the file: that is damage, whoever says that the page changed.
            let error = made.unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{error}");
            let object = format!("table {:08x}, page 0", at.0);
            assert_eq!(error.object_name(), Some(&object[..]));
            continue;
        }
        let summary = made.unwrap();
        let journal = match &site.database {
            Some(database) => database.journal(),
            None => site.journal.clone(),
        };
        let made = Made { summary, journal };
        assert!(made.end() <= end, "the transaction was flushed");
        made_as(&mut site, &made, &base, None, "marked alone");
    }
}

/// The machine is lost and with it the live file; the database recovers, marks anew what the log has, and is backed up before
/// it commits anything, at the redo position of the backup before: between that and the end of the log lies what only the
/// epoch knows that ends there.
#[test]
fn what_the_database_marked_from_its_log_is_in_the_backup_after_the_next() {
    let mut site = Site::with(72, 14, true);
    work(&mut site);
    let base = site.backup(BackupType::Full);
    let redo = site.redo_segment();
    let ops: Vec<_> = (0..60).map(|_| site.workload.next_transaction()).collect();
    let ends = ops.iter().map(|ops| site.database().commit(ops).unwrap());
    let end = ends.last().unwrap();
    site.kill();
    fs::remove_file(site.place.source(LIVE_FILE)).unwrap();
    site.start();
    let first = site.backup(BackupType::Incremental);
    assert_eq!((first.end(), site.redo_segment()), (end, redo));
    made_as(&mut site, &first, &base, None, "nothing was committed");
    // None of what was marked changes again, and its log goes.
    let mut ops = vec![Op::Create("later".to_owned())];
    for key in 0.. {
        ops.push(Op::Insert("later".to_owned(), key, vec![1; 1000]));
        site.database().commit(&ops).unwrap();
        site.database().checkpoint().unwrap();
        ops.clear();
        if site.redo_segment() > end {
            break;
        }
    }
    site.trim(site.redo_segment());
    let second = site.backup(BackupType::Incremental);
    made_as(&mut site, &second, &first, None, "the log is gone");
}

/// Who may write to the store's directory can put a pipe in the place of a file. Nobody waits for who would write into it.
#[test]
fn a_pipe_in_the_place_of_a_file_holds_no_backup_up() {
    let mut site = Site::with(73, 14, true);
    work(&mut site);
    let base = site.backup(BackupType::Full);
    work(&mut site);
    site.kill();
    for name in ["control", "catalogue", STATE_FILE] {
        let (path, aside) = (site.place.source(name), site.place.path("aside"));
        fs::rename(&path, &aside).unwrap();
        mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let is_told = |text: String| text.contains("not a regular file");
        match site.try_backup(BackupType::Incremental) {
            Err(error) => {
                assert_eq!(error.kind(), Kind::Source, "{error}");
                assert_ne!(name, STATE_FILE, "{error}");
                assert_eq!(error.object_name(), Some(name), "{error}");
                assert!(is_told(error.to_string()), "{error}");
            }
            Ok(summary) => {
                assert_eq!(name, STATE_FILE);
                assert_eq!(summary.base, Some(base.summary.backup_id));
                let warnings = &summary.warnings;
                assert!(warnings.iter().cloned().any(is_told), "{warnings:?}");
                let journal = site.journal.clone();
                site.check(&Made { summary, journal });
            }
        }
        fs::rename(&aside, &path).unwrap();
    }
}
