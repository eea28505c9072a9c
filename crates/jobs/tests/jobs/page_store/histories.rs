//! Random histories of a page store: transactions, checkpoints, kills, restores to the past, backups of any type at any moment,
//! and policies by which some of them expire. What a policy keeps restores exactly, whatever it was made on; what it does not
//! keep is gone; and the next backup stands on what is there, unless the history is a reason against it.
//!
//! `HELIOS_MOVER_HISTORIES=100000 cargo test --release -p mover-jobs --test jobs random_histories` runs for hours;
//! `HELIOS_MOVER_FIRST_SEED` says where it begins.

use std::sync::Mutex;

use mover_jobs::expire::{self, ExpireOptions, Policy};
use mover_jobs::{catalogue, restore};
use mover_source::tracker::LIVE_FILE;

use super::*;

/// What happened in histories, so that none of it is left out by chance.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    backups: u64,
    /// Incremental and differential ones.
    on_a_base: u64,
    expired: u64,
    /// Kept ones that stood on one which expired.
    bereft: u64,
    /// Differential ones that became full, since no full one was left.
    healed: u64,
    /// Planned on one that expired before they were made.
    overtaken: u64,
    /// Became full, since the database was put back behind its base.
    went_back: u64,
    /// Stood on one from whose log on the log was trimmed, by what the tracker told.
    tracker_told: u64,
    /// Losses of what the tracker has in memory.
    lost_live: u64,
}

/// What the history did to a backup that another one shall stand on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Nothing: all log since is there.
    Whole,
    /// The database was put back to an earlier state since.
    WentBack,
    /// The log was trimmed behind its beginning.
    Trimmed,
}

impl Counts {
    fn add(&mut self, other: Counts) {
        self.backups += other.backups;
        self.on_a_base += other.on_a_base;
        self.expired += other.expired;
        self.bereft += other.bereft;
        self.healed += other.healed;
        self.overtaken += other.overtaken;
        self.went_back += other.went_back;
        self.tracker_told += other.tracker_told;
        self.lost_live += other.lost_live;
    }
}

fn any_type(random: &mut Random) -> BackupType {
    match random.below(5) {
        0 => BackupType::Full,
        1 => BackupType::Differential,
        _ => BackupType::Incremental,
    }
}

fn any_policy(random: &mut Random) -> Policy {
    let none = Policy::default();
    match random.below(6) {
        0 => Policy { daily: 1, ..none },
        1 => Policy {
            within_seconds: Some(0),
            ..none
        },
        _ => Policy {
            last: 1 + random.below(3) as u32,
            ..none
        },
    }
}

/// How many of `ids`, the newest of which stand last, one of these policies keeps.
fn kept(policy: Policy, ids: &[BackupId]) -> usize {
    let newest = ids.last().expect("a backup").started();
    match policy.within_seconds {
        // Those of the newest one's second, and the one before.
        Some(_) => 1 + ids.iter().filter(|id| id.started() == newest).count(),
        None => policy.last.max(policy.daily) as usize,
    }
}

struct History {
    site: Site,
    /// What is there, the oldest first.
    made: Vec<Made>,
    counts: Counts,
    /// How often the database was put back to an earlier state, and how often it had been when each backup was made.
    line: u64,
    lines: BTreeMap<BackupId, u64>,
    /// From where on all of this line's log is there.
    log_from: Lsn,
}

impl History {
    fn id(made: &Made) -> BackupId {
        made.summary.backup_id
    }

    fn keep(&mut self, made: Made) {
        self.counts.backups += 1;
        self.counts.on_a_base += u64::from(made.summary.base.is_some());
        self.lines.insert(History::id(&made), self.line);
        self.made.push(made);
        // One that was planned before another began is named before it.
        self.made.sort_by_key(History::id);
    }

    fn fate(&self, base: &Made) -> Fate {
        let range = base.summary.lsn_range.expect("positions");
        let control = read_control(&*disk(&self.site.place.path("source"))).unwrap();
        let first = control.identity.size.start_of(range.start);
        if self.lines[&History::id(base)] != self.line {
            Fate::WentBack
        } else if first < self.log_from {
            Fate::Trimmed
        } else {
            Fate::Whole
        }
    }

    /// A backup is what was asked for unless the history is a reason against it, and then says that.
    fn check_reason(&mut self, fate: Fate, reason: Option<&str>) {
        match (fate, reason) {
            (Fate::Whole, None) => {}
            (Fate::WentBack, Some(why)) if why.contains("the database is in history") => {
                self.counts.went_back += 1;
            }
            (Fate::Trimmed, None) if self.site.tracked => self.counts.tracker_told += 1,
            (Fate::Trimmed, Some(why)) if why.contains("a log segment is missing") => {
                // Why the store itself did not tell: it has no tracker, or that is in doubt.
                let tells = ["(tracker/witness)", "the block change tracker: "];
                let is_told = tells.iter().any(|tell| why.contains(tell));
                assert!(is_told || !self.site.tracked, "{why}");
            }
            _ => panic!("{fate:?}: {reason:?}"),
        }
    }

    /// A backup stands on the latest that serves, or on none.
    fn backup(&mut self, backup_type: BackupType) {
        let serves = |made: &&Made| match backup_type {
            BackupType::Differential => made.summary.backup_type == BackupType::Full,
            _ => true,
        };
        let base = self.made.iter().rfind(serves);
        let fate = base.map(|base| self.fate(base));
        let base = base.map(History::id);
        let made = self.site.backup(backup_type);
        let summary = &made.summary;
        if summary.backup_type == BackupType::Full {
            assert_eq!(summary.base, None);
        } else {
            assert_eq!((summary.backup_type, summary.base), (backup_type, base));
        }
        if backup_type == BackupType::Full {
            assert_eq!(summary.reason, None);
        } else if let Some(fate) = fate {
            self.check_reason(fate, summary.reason.as_deref());
        } else {
            assert_eq!(summary.backup_type, BackupType::Full);
            let reason = summary.reason.as_ref().expect("a reason");
            let there_is_no = match backup_type {
                BackupType::Differential => "there is no full backup",
                _ => "there is no earlier backup",
            };
            assert!(reason.contains(there_is_no), "{reason}");
            self.counts.healed += u64::from(!self.made.is_empty());
        }
        self.keep(made);
    }

    /// Exactly what the policy keeps is there afterwards, and nothing that only others needed.
    fn expire(&mut self, policy: Policy) {
        let place = &self.site.place;
        let repo = place.access();
        let options = ExpireOptions::by_rules(repo, policy);
        let plan = expire::plan(&engine(), &options, &mut |_, _| {}).unwrap();
        let done = expire::execute(&engine(), plan, &mut |_, _| {}).unwrap();
        assert!(done.ok, "{done:?}");
        let mut ids: Vec<BackupId> = self.made.iter().map(History::id).collect();
        ids.truncate(ids.len().saturating_sub(kept(policy, &ids)));
        assert_eq!(done.outcome.deleted, ids);
        self.made.drain(..ids.len());
        self.is_there();
        if let Some(id) = ids.last() {
            let place = &self.site.place;
            let options = place.restore_options(&id.to_string(), "gone", false);
            let error = restore::plan(&engine(), &options, &mut |_, _| {}).map(drop);
            assert_eq!(error.unwrap_err().kind(), Kind::NotFound);
        }
        let verified = self.site.place.try_verify(None).unwrap();
        assert!(verified.ok, "{:?}", verified.findings);
        assert_eq!(verified.unreferenced_packs, Some(0));
        let bases = self.made.iter().filter_map(|made| made.summary.base);
        self.counts.bereft += bases.filter(|base| ids.contains(base)).count() as u64;
        self.counts.expired += ids.len() as u64;
    }

    /// What is listed is what was made and did not expire.
    fn is_there(&self) {
        let listed = catalogue::list(&engine(), &self.site.place.access()).unwrap();
        let ids = listed.backups.iter().map(|item| item.backup_id);
        assert!(ids.eq(self.made.iter().map(History::id)));
    }

    /// A backup that is planned, and overtaken by another one that has all before it expire.
    fn backup_overtaken(&mut self) {
        let engine = engine();
        let options = self.site.options(BackupType::Incremental);
        let plan = backup::plan(&engine, &options, &mut |_, _| {}).unwrap();
        let planned = plan.base;
        self.backup(BackupType::Incremental);
        let last = Policy {
            last: 1,
            ..Policy::default()
        };
        self.expire(last);
        let summary = backup::execute(&engine, plan, &mut |_, _| {}).unwrap();
        assert_eq!(
            (summary.backup_type, summary.base),
            (BackupType::Full, None)
        );
        if planned.is_some() {
            let reason = summary.reason.as_ref().expect("a reason");
            assert!(reason.contains("deleted"), "{reason}");
            self.counts.overtaken += 1;
        }
        let journal = self.site.database().journal();
        self.keep(Made { summary, journal });
    }

    /// The database is put back to what one of the backups has.
    fn go_back(&mut self) {
        let site = &mut self.site;
        let at = site.random.below(self.made.len() as u64) as usize;
        let made = &self.made[at];
        site.kill();
        site.restore_as(History::id(made), "past");
        site.replace_by("past");
        site.journal = made.journal.clone();
        site.journal.cut(made.end());
        site.start();
        (self.line, self.log_from) = (self.line + 1, Lsn(0));
    }

    /// Removes what the log need not keep behind a checkpoint.
    fn trim(&mut self) {
        self.site.database().checkpoint().unwrap();
        self.log_from = self.site.redo_segment();
        self.site.trim(self.log_from);
    }

    /// The database is killed, or the machine is lost and with it what the tracker has in memory. Where it is backed up before
    /// it commits anything, that is at the redo position of an earlier backup, with the log behind it.
    fn crash(&mut self) {
        self.site.kill();
        let live_file = self.site.place.source(LIVE_FILE);
        if self.site.random.below(2) == 0 && live_file.exists() {
            fs::remove_file(live_file).unwrap();
            self.counts.lost_live += 1;
        }
        self.site.start();
        if self.site.random.below(2) == 0 {
            self.backup(BackupType::Incremental);
        }
    }

    fn step(&mut self) {
        let transactions = self.site.random.below(25);
        self.site.run(transactions);
        match self.site.random.below(14) {
            0..3 => {
                self.site.database().checkpoint().unwrap();
            }
            3 => self.crash(),
            4 => {
                // Also what was killed and not started again can be backed up.
                self.site.kill();
                self.backup(BackupType::Incremental);
                self.site.start();
            }
            5 if !self.made.is_empty() => self.go_back(),
            6 => self.trim(),
            7 if !self.made.is_empty() => {
                let policy = any_policy(&mut self.site.random);
                self.expire(policy);
                // On what is left, be it what it needs or not.
                let transactions = self.site.random.below(25);
                self.site.run(transactions);
                let backup_type = match self.site.random.below(2) {
                    0 => BackupType::Differential,
                    _ => BackupType::Incremental,
                };
                self.backup(backup_type);
            }
            8 => self.backup_overtaken(),
            _ => {
                let backup_type = any_type(&mut self.site.random);
                self.backup(backup_type);
            }
        }
    }
}

fn history(seed: u64) -> Counts {
    let mut history = History {
        site: Site::with(seed, 15 + (seed % 3) as u8, seed % 2 == 1),
        made: Vec::new(),
        counts: Counts::default(),
        line: 0,
        lines: BTreeMap::new(),
        log_from: Lsn(0),
    };
    let steps = 8 + history.site.random.below(10);
    for _ in 0..steps {
        history.step();
    }
    history.is_there();
    history.site.kill();
    for made in &history.made {
        history.site.check(made);
    }
    history.counts
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn random_histories_restore_exactly_at_every_backup() {
    let first = number("HELIOS_MOVER_FIRST_SEED", 1);
    let histories = number("HELIOS_MOVER_HISTORIES", 200);
    let (next, counts) = (AtomicU64::new(first), Mutex::new(Counts::default()));
    std::thread::scope(|scope| {
        // They mostly wait for the disk.
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, SeqCst);
                    if seed >= first + histories {
                        return;
                    }
                    let outcome = std::panic::catch_unwind(|| history(seed));
                    let counted = outcome.unwrap_or_else(|_| panic!("the history of seed {seed}"));
                    counts.lock().unwrap().add(counted);
                }
            });
        }
    });
    let counts = counts.into_inner().unwrap();
    assert!(counts.backups > 3 * histories, "{counts:?}");
    assert!(counts.on_a_base > counts.backups / 4, "{counts:?}");
    let Counts {
        expired,
        bereft,
        healed,
        overtaken,
        went_back,
        tracker_told,
        lost_live,
        ..
    } = counts;
    let rare = [
        expired / 5,
        bereft,
        healed,
        overtaken,
        went_back,
        tracker_told,
        lost_live,
    ];
    assert!(
        rare.iter().all(|count| 20 * count > histories),
        "{counts:?}"
    );
}
