//! `check`: would a job work here? Environment, repository and source are looked at. Nothing is changed, but that an object
//! is written to the repository and taken away again: nothing else tells whether that is possible.
//!
//! Invariants: an item fails only if a job would fail; what merely costs speed or comfort is a warning. What is looked at is
//! bounded, however large the source is.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mover_base::units::{count, counted, format_bytes};
use mover_base::{BackupId, Error, Kind, Result, Timestamp};
use mover_io::{Rung, Shard, ShardReport};
use mover_repo::{Repository, catalogue, is_unreadable, require_extents};
use mover_source::pages::{LiveStore, SCHEME, read_control, table_path};
use mover_source::wal::segment::LOG_DIR;
use mover_source::{DirSource, ScanOptions, Skipped, Tree};
use serde::Serialize;

use crate::backup::{only, require_whole};
use crate::choice::future_warning;
use crate::key::{LOCKED_OUT, LOCKED_OUT_HINT, ListedSlot, SlotListing};
use crate::overlap::{owner_warning, refuse_source_around, refuse_source_below};
use crate::settings::{Engine, RepoAccess};

/// What to do about names that none of a repository's objects has.
pub const STRAY_HINT: &str = "every verb but `expire` passes them over, and expire refuses to run where they stand among manifests, sessions or holds: give each its name back or move it out";

/// What it means that key slots cannot be read.
const UNREADABLE_HINT: &str = "leave it so where this host is only to write; whoever is to read has to be able to read what is below keys/ too";

/// Most files of a source that are opened to see whether they can be.
const OPENED_MAX: usize = 10_000;
/// After so long no more of them are.
const OPENING_MAX: Duration = Duration::from_secs(2);
/// What the item says that is about reading a source.
const READABLE: &str = "readable";
/// How many files that cannot be opened are named, and how many names that a backup leaves out.
const NAMED_MAX: usize = 3;

/// What it means that a store keeps what should be deleted.
const UNDELETED_HINT: &str = "backups work and leave small objects behind, and `expire` does not free what it should; leave it so only where deletes are denied on purpose, as beside an object lock";

/// Most manifests that are read to see whether they can be, the newest first, and for how long.
const MANIFESTS_MAX: usize = 100;
const MANIFESTS_TIME_MAX: Duration = Duration::from_secs(2);
/// What to do about one that cannot be.
const MANIFEST_HINT: &str = "the other backups are not hit by that; `helios-mover verify` shows all that is damaged, and `expire` refuses to run until each damaged manifest is put back from a copy or moved out of the repository";

/// What to look at besides the environment.
#[derive(Debug, Default)]
pub struct CheckOptions {
    /// A repository, or why it cannot be opened: its key file cannot be used.
    pub repo: Option<Result<RepoAccess>>,
    /// URL of a source.
    pub source: Option<String>,
    /// Paths that a backup of the source would leave out.
    pub exclude: Vec<String>,
    /// A backup of the source would not descend into other file systems.
    pub one_file_system: bool,
}

/// How an item stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Works, with a drawback.
    Warn,
    /// A job would fail.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct CheckItem {
    /// `environment`, `repository` or `source`.
    pub area: &'static str,
    /// What.
    pub name: &'static str,
    /// How it stands.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Everything that was looked at.
#[derive(Debug, Serialize)]
pub struct CheckReport {
    /// Nothing failed.
    pub ok: bool,
    /// The items.
    pub items: Vec<CheckItem>,
}

/// Looks at everything; a problem is an item, not an error.
pub fn run(engine: &Engine, options: &CheckOptions) -> Result<CheckReport> {
    let mut items = environment(engine);
    let (mut of_source, scanned) = match &options.source {
        Some(url) => source(engine, url, options),
        None => (Vec::new(), None),
    };
    match &options.repo {
        Some(Ok(repo)) => {
            let found = repository(engine, repo, scanned.as_ref());
            items.extend(found.items);
            of_source.extend(found.overlap);
        }
        Some(Err(error)) => items.push(failed("repository", "key file", error)),
        None => {}
    }
    items.append(&mut of_source);
    let ok = items.iter().all(|item| item.status != Status::Fail);
    Ok(CheckReport { ok, items })
}

fn item(
    area: &'static str,
    name: &'static str,
    status: Status,
    detail: impl Into<String>,
) -> CheckItem {
    CheckItem {
        area,
        name,
        status,
        detail: detail.into(),
        hint: None,
    }
}

fn failed(area: &'static str, name: &'static str, error: &Error) -> CheckItem {
    CheckItem {
        hint: Some(error.advice().to_owned()),
        ..item(area, name, Status::Fail, error.to_string())
    }
}

fn environment(engine: &Engine) -> Vec<CheckItem> {
    const AREA: &str = "environment";
    let reports = engine
        .wide()
        .and_then(|config| mover_io::run(&config, async |shard: Shard| Ok(shard.report()), |_| {}));
    let reports: Vec<ShardReport> = match reports {
        Ok(reports) => reports,
        Err(error) => return vec![failed(AREA, "shards", &error)],
    };
    let mut items = vec![item(
        AREA,
        "shards",
        Status::Ok,
        counted(reports.len() as u64, "shard"),
    )];
    if let Some(report) = reports.first() {
        let is_best = report.rung == Rung::DeferTaskrun;
        items.push(CheckItem {
            hint: report.rung_reason.clone(),
            ..item(
                AREA,
                "I/O rung",
                if is_best { Status::Ok } else { Status::Warn },
                rung_name(report.rung),
            )
        });
        items.push(CheckItem {
            hint: (!report.buffers_registered)
                .then(|| "raise the memlock limit: `helios-mover tune` shows how".to_owned()),
            ..item(
                AREA,
                "registered buffers",
                if report.buffers_registered {
                    Status::Ok
                } else {
                    Status::Warn
                },
                if report.buffers_registered {
                    "yes"
                } else {
                    "no"
                },
            )
        });
    }
    items
}

fn rung_name(rung: Rung) -> &'static str {
    match rung {
        Rung::DeferTaskrun => "io_uring, deferred task work",
        Rung::CoopTaskrun => "io_uring, cooperative task work",
        Rung::PlainRing => "io_uring, plain",
        Rung::Threads => "threads",
    }
}

/// What was found of a repository.
struct RepositoryFound {
    items: Vec<CheckItem>,
    /// That it lies in the source, or the source in it.
    overlap: Option<CheckItem>,
}

fn repository(engine: &Engine, repo: &RepoAccess, scanned: Option<&Scanned>) -> RepositoryFound {
    const AREA: &str = "repository";
    let body = async |shard: Shard| {
        let repository = repo.open(&shard).await?;
        let listed = catalogue::list_all(&shard, &repository).await?;
        let slots = key_slots(repository.slots(&shard).await)?;
        let leftovers = repository.leftovers(&shard).await;
        let detail = match (repository.is_encrypted(), repository.can_read()) {
            (false, _) => "not encrypted",
            (true, true) => "encrypted; the key opens it",
            (true, false) => "encrypted; without a key it can be written and not read",
        };
        let mut items = vec![item(AREA, "header and key", Status::Ok, detail)];
        items.extend(backups(&shard, &repository, &listed.ids).await?);
        let owner = owner_warning(&repository);
        items.extend(owner.map(|told| item(AREA, "owner", Status::Warn, told)));
        items.extend(slots.items);
        items.extend(stray_names(&[listed.strays, slots.strays].concat()));
        match leftovers {
            Ok(leftovers) if leftovers.is_empty() => {}
            Ok(leftovers) => {
                let text = format!(
                    "{} unfinished uploads of jobs that were killed over a day ago",
                    leftovers.len()
                );
                items.push(item(AREA, "leftovers", Status::Warn, text));
            }
            // Not every store lists them, and no job needs the list.
            Err(error) => items.push(CheckItem {
                status: Status::Warn,
                ..failed(AREA, "leftovers", &error)
            }),
        }
        match repository.store().try_out(&shard).await {
            Ok(tried) => {
                let detail = match tried.undeleted {
                    None => "an object can be written and thrown away",
                    Some(_) => "an object can be written",
                };
                items.push(item(AREA, "writable", Status::Ok, detail));
                items.extend(tried.undeleted.map(|weakness| {
                    let hint = weakness.hint.into_iter();
                    let hint: Vec<String> = hint.chain([UNDELETED_HINT.to_owned()]).collect();
                    CheckItem {
                        hint: Some(hint.join("; ")),
                        ..item(AREA, "deletes", Status::Warn, weakness.what)
                    }
                }));
                items.extend(tried.weaknesses.into_iter().map(|weakness| CheckItem {
                    hint: weakness.hint,
                    ..item(AREA, "store", Status::Warn, weakness.what)
                }));
            }
            Err(error) => items.push(failed(AREA, "writable", &error)),
        }
        let overlap = scanned.and_then(|scanned| overlap(&repository, scanned));
        Ok(RepositoryFound { items, overlap })
    };
    match mover_io::run(&engine.single(), body, |_| {}).and_then(only) {
        Ok(found) => found,
        Err(error) => RepositoryFound {
            items: vec![failed(AREA, "header and key", &error)],
            overlap: None,
        },
    }
}

/// The backups: how many, whether the newest ones can be read, as far as the key that is given opens them, and whether the clock of a
/// host was ahead.
async fn backups(
    shard: &Shard,
    repository: &Repository,
    ids: &[BackupId],
) -> Result<Vec<CheckItem>> {
    const AREA: &str = "repository";
    let readable = match repository.can_read() {
        true => ids,
        false => &[],
    };
    let (begun, mut tried, mut unreadable) = (Instant::now(), 0_u64, Vec::new());
    for id in readable.iter().rev().take(MANIFESTS_MAX) {
        if tried > 0 && begun.elapsed() >= MANIFESTS_TIME_MAX {
            break;
        }
        tried += 1;
        match catalogue::load_head(shard, repository, *id).await {
            Ok(_) => {}
            Err(error) if error.kind() == Kind::Cancelled => return Err(error),
            // It was deleted since it was listed.
            Err(error) if error.is_absence() => {}
            Err(error) if is_unreadable(&error) => unreadable.push(error.to_string()),
            // Of the storage, not of the manifest.
            Err(error) => return Ok(vec![failed(AREA, "backups", &error)]),
        }
    }
    let all = ids.len().to_string();
    let mut items = vec![match unreadable.len() {
        0 => item(AREA, "backups", Status::Ok, all),
        some => {
            let more = if some > NAMED_MAX { "; ..." } else { "" };
            unreadable.truncate(NAMED_MAX);
            let named = unreadable.join("; ");
            let detail = format!(
                "{all}, and of the newest {} of them {some} cannot be read: {named}{more}",
                count(tried)
            );
            CheckItem {
                hint: Some(MANIFEST_HINT.to_owned()),
                ..item(AREA, "backups", Status::Warn, detail)
            }
        }
    }];
    let newest = ids.last();
    let ahead = newest.and_then(|id| future_warning(*id, Timestamp::now()));
    items.extend(ahead.map(|told| item(AREA, "clock", Status::Warn, told)));
    Ok(items)
}

/// What to say if the source lies in the repository, or the other way about.
fn overlap(repository: &Repository, scanned: &Scanned) -> Option<CheckItem> {
    const AREA: &str = "source";
    if let Err(error) = refuse_source_below(repository, &scanned.path) {
        return Some(failed(AREA, "in the repository", &error));
    }
    let around = refuse_source_around(repository, scanned.tree.as_ref()?).err()?;
    Some(failed(AREA, "repository in it", &around))
}

/// What was found of the key slots.
struct SlotsFound {
    items: Vec<CheckItem>,
    strays: Vec<String>,
}

/// Looks at the key slots. Whoever only writes need not be allowed to list or to read them; with a key, the repository was opened by
/// one of them already.
fn key_slots(listed: Result<SlotListing>) -> Result<SlotsFound> {
    const AREA: &str = "repository";
    const ALL: &str = "key slots";
    let listed = match listed {
        Ok(listed) => listed,
        Err(error) if error.kind() == Kind::Cancelled => return Err(error),
        Err(error) => {
            let item = CheckItem {
                status: Status::Warn,
                ..failed(AREA, ALL, &error)
            };
            return Ok(SlotsFound {
                items: vec![item],
                strays: Vec::new(),
            });
        }
    };
    let mut items: Vec<CheckItem> = listed.slots.iter().filter_map(key_slot).collect();
    let mut unreadable = listed.slots.iter().filter(|slot| slot.unreadable);
    if let Some(first) = unreadable.next() {
        let detail = format!(
            "{} {} ({} of {})",
            first.object,
            first.problem.as_deref().unwrap_or_default(),
            unreadable.count() + 1,
            counted(listed.slots.len() as u64, "key slot")
        );
        items.push(CheckItem {
            hint: Some(UNREADABLE_HINT.to_owned()),
            ..item(AREA, ALL, Status::Warn, detail)
        });
    }
    if listed.is_locked_out() {
        items.push(CheckItem {
            hint: Some(LOCKED_OUT_HINT.to_owned()),
            ..item(AREA, ALL, Status::Fail, LOCKED_OUT)
        });
    }
    Ok(SlotsFound {
        items,
        strays: listed.strays,
    })
}

/// What to say of one key slot, if that is not as it should be.
fn key_slot(slot: &ListedSlot) -> Option<CheckItem> {
    let (what, hint) = match (slot.damaged, slot.is_going()) {
        (true, _) => (
            format!(
                "cannot be used: {}",
                slot.problem.as_deref().unwrap_or_default()
            ),
            "copy it back, or remove it with `helios-mover key remove`",
        ),
        (false, true) => (
            "still opens the repository: its removal is under way, was broken off or was taken back".to_owned(),
            "if none is under way, and another key opens the repository, remove it with `helios-mover key remove`",
        ),
        (false, false) => return None,
    };
    let detail = format!("{} {what}", slot.object);
    Some(CheckItem {
        hint: Some(hint.to_owned()),
        ..item("repository", "key slot", Status::Warn, detail)
    })
}

/// What stands in the repository and is none of its objects. Packs are not listed here: that takes time.
fn stray_names(strays: &[String]) -> Option<CheckItem> {
    (!strays.is_empty()).then(|| CheckItem {
        hint: Some(STRAY_HINT.to_owned()),
        ..item("repository", "stray names", Status::Warn, strays.join(", "))
    })
}

/// What was looked at of a source.
struct Scanned {
    path: PathBuf,
    /// Of a directory: what a backup with the same options would read.
    tree: Option<Tree>,
}

/// The items of a source, and where it is and what was scanned of it if it could be opened.
fn source(engine: &Engine, url: &str, options: &CheckOptions) -> (Vec<CheckItem>, Option<Scanned>) {
    const AREA: &str = "source";
    if url.starts_with(SCHEME) {
        let whole = require_whole(url, &options.exclude, options.one_file_system);
        let refused = whole.err().map(|error| failed(AREA, "left out", &error));
        let store = LiveStore::open(url);
        let scanned = store.as_ref().ok().map(|store| Scanned {
            path: store.path().to_owned(),
            tree: None,
        });
        let items = std::iter::once(page_store(AREA, store)).chain(refused);
        return (items.collect(), scanned);
    }
    let scan_options = ScanOptions {
        exclude: options.exclude.clone(),
        one_file_system: options.one_file_system,
        names_bytes_max: engine.names_bytes as u64,
    };
    let opened = DirSource::open(url).and_then(|source| {
        let tree = source.scan(&scan_options)?;
        let opened = open_files(&source, &tree);
        Ok((source.path().to_owned(), tree, opened))
    });
    match opened {
        Ok((path, tree, opened)) => {
            let told = tree.warnings.iter().cloned();
            let told = page_store_warning(&path).into_iter().chain(told);
            let told = told.map(|warning| item(AREA, "as it would be read", Status::Warn, warning));
            let too_large = require_extents(tree.entries()).err();
            let too_large = too_large.map(|error| failed(AREA, "size", &error));
            let items = std::iter::once(readable(AREA, &tree, &opened)).chain(told);
            let items = items.chain(too_large).collect();
            let tree = Some(tree);
            (items, Some(Scanned { path, tree }))
        }
        Err(error) => (vec![failed(AREA, READABLE, &error)], None),
    }
}

/// How opening the files of a source went.
#[derive(Debug, Default)]
struct Opened {
    tried: usize,
    /// How many cannot be opened.
    closed: usize,
    /// The first of those.
    named: Vec<Error>,
    /// The first that was not as it had been listed a moment before.
    changed: Option<Error>,
}

impl Opened {
    /// What to say if something cannot be opened.
    fn failure(&self, area: &'static str) -> Option<CheckItem> {
        let Opened { tried, closed, .. } = *self;
        let first = self.named.first()?;
        let named: Vec<String> = self.named.iter().map(Error::to_string).collect();
        let more = if closed > named.len() { "; ..." } else { "" };
        let detail = format!(
            "{closed} of {} that were tried cannot be opened: {}{more}",
            counted(tried as u64, "file"),
            named.join("; ")
        );
        Some(CheckItem {
            detail,
            ..failed(area, READABLE, first)
        })
    }

    /// The item, with what changed meanwhile. A job may be luckier, so that is no failure.
    fn warn(&self, item: CheckItem) -> CheckItem {
        let Some(changed) = &self.changed else {
            return item;
        };
        CheckItem {
            status: Status::Warn,
            detail: format!("{}; {changed}", item.detail),
            hint: Some(changed.advice().to_owned()),
            ..item
        }
    }
}

/// Opens files for reading: at most `max` of them, spread over all, and none more after `time`. A listing needs no right to read
/// a file, so it does not tell.
fn open_some<T>(
    files: &[T],
    open: impl Fn(&T) -> Result<()>,
    max: usize,
    time: Duration,
) -> Opened {
    let begun = Instant::now();
    let step = files.len().div_ceil(max).max(1);
    let mut opened = Opened::default();
    for file in files.iter().step_by(step) {
        if opened.tried > 0 && begun.elapsed() >= time {
            break;
        }
        opened.tried += 1;
        let Err(error) = open(file) else { continue };
        if error.kind() == Kind::SourceChanged {
            opened.changed.get_or_insert(error);
            continue;
        }
        opened.closed += 1;
        if opened.named.len() < NAMED_MAX {
            opened.named.push(error);
        }
    }
    opened
}

fn open_files(source: &DirSource, tree: &Tree) -> Opened {
    let all = 0..tree.entries().len();
    let files: Vec<usize> = all.filter(|at| tree.entries().is_file(*at)).collect();
    let open = |at: &usize| match tree.item(*at) {
        Some(item) => source.open_file(&item).map(drop),
        None => Ok(()),
    };
    open_some(&files, open, OPENED_MAX, OPENING_MAX)
}

fn readable(area: &'static str, tree: &Tree, opened: &Opened) -> CheckItem {
    if let Some(failure) = opened.failure(area) {
        return failure;
    }
    let mut detail = format!(
        "{}, {}, {} of them opened",
        counted(tree.totals.files, "file"),
        format_bytes(tree.totals.bytes),
        count(opened.tried as u64)
    );
    if !tree.skipped.is_empty() {
        detail += &format!("; {}", left_out(&tree.skipped));
    }
    let status = match tree.skipped.is_empty() {
        true => Status::Ok,
        false => Status::Warn,
    };
    opened.warn(item(area, READABLE, status, detail))
}

/// What a backup leaves out without having been told to, and why.
fn left_out(skipped: &[Skipped]) -> String {
    let named = skipped.iter().take(NAMED_MAX);
    let named: Vec<String> = named
        .map(|skipped| format!("{} ({})", skipped.path, skipped.reason))
        .collect();
    let more = match skipped.len() > named.len() {
        true => ", ...",
        false => "",
    };
    let names = counted(skipped.len() as u64, "name");
    format!("{names} will be left out: {}{more}", named.join(", "))
}

/// What to say of a directory that would be backed up as such and is a page store, whose database may be running.
pub(crate) fn page_store_warning(path: &Path) -> Option<String> {
    if !path.join(LOG_DIR).is_dir() {
        return None;
    }
    let url = format!("{SCHEME}{}", path.to_str()?);
    let store = LiveStore::open(&url).ok()?;
    read_control(&*store.disk()).ok()?;
    Some(format!(
        "this is a page store: {url} backs it up while it runs, and by what changed"
    ))
}

/// The log may say that the table was dropped, and a backup reads that; a look that is bounded does not.
fn missing_table(path: String) -> Error {
    Error::new(Kind::SourceChanged, "a table's file is missing")
        .object(path)
        .hint("where the table was not just made or dropped, the database is damaged, and backups fail: restore it from one")
}

fn page_store(area: &'static str, store: Result<LiveStore>) -> CheckItem {
    let opened = store.and_then(|store| {
        let checkpoint = store.checkpoint()?;
        let tables: Vec<u32> = checkpoint.catalogue.tables().keys().copied().collect();
        let open = |table: &u32| {
            let path = table_path(*table);
            let is_empty = checkpoint.catalogue.tables()[table].pages == 0;
            match store.open_file(&path)? {
                None if !is_empty => Err(missing_table(path)),
                _ => Ok(()),
            }
        };
        let opened = open_some(&tables, open, OPENED_MAX, OPENING_MAX);
        Ok((checkpoint, opened))
    });
    let (checkpoint, opened) = match opened {
        Ok(opened) => opened,
        Err(error) => return failed(area, READABLE, &error),
    };
    if let Some(failure) = opened.failure(area) {
        return failure;
    }
    let tables = checkpoint.catalogue.tables();
    let pages: u64 = tables.values().map(|table| u64::from(table.pages)).sum();
    let detail = format!(
        "{}, {}, {} of them opened, in history {}",
        counted(tables.len() as u64, "table"),
        format_bytes(mover_repo::block_bytes(pages)),
        opened.tried,
        checkpoint.control.identity.history
    );
    opened.warn(item(area, READABLE, Status::Ok, detail))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;

    use mover_source::Item;

    use super::*;

    #[test]
    fn files_are_opened_within_bounds_and_spread_over_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        for file in 0..25 {
            fs::write(dir.path().join(format!("file-{file:02}")), "x").unwrap();
        }
        let source = DirSource::open(&format!("dir://{}", dir.path().display())).unwrap();
        let tree = source.scan(&ScanOptions::default()).unwrap();
        let files: Vec<Item> = tree.items().collect();
        let tried = |max, time| open_some(&files, |_| Ok(()), max, time).tried;
        assert_eq!(tried(OPENED_MAX, OPENING_MAX), 26, "the root is one");
        assert_eq!(tried(26, OPENING_MAX), 26);
        assert_eq!(tried(10, OPENING_MAX), 9, "every third");
        assert_eq!(tried(10, Duration::ZERO), 1, "the time is over at once");

        // What changes between the two looks is no reason to say that a job would fail.
        fs::write(dir.path().join("file-03"), "longer").unwrap();
        fs::remove_file(dir.path().join("file-06")).unwrap();
        let opened = open_files(&source, &tree);
        assert_eq!((opened.tried, opened.closed), (25, 0));
        let told = readable("source", &tree, &opened);
        assert_eq!(told.status, Status::Warn, "{told:?}");
        assert!(told.detail.contains("25 of them opened"), "{told:?}");
    }

    #[test]
    fn what_will_be_left_out_is_named_and_nothing_is_said_where_nothing_will_be() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("dir://{}", dir.path().display());
        let told = |sockets: usize| {
            for socket in 0..sockets {
                UnixListener::bind(dir.path().join(format!("s{socket}"))).unwrap();
            }
            let source = DirSource::open(&url).unwrap();
            let tree = source.scan(&ScanOptions::default()).unwrap();
            assert_eq!(tree.skipped.len(), sockets);
            for socket in 0..sockets {
                fs::remove_file(dir.path().join(format!("s{socket}"))).unwrap();
            }
            readable("source", &tree, &Opened::default())
        };
        let none = told(0);
        assert_eq!(none.status, Status::Ok, "{none:?}");
        assert!(none.detail.ends_with("0 of them opened"), "{none:?}");
        let one = told(1);
        assert_eq!(one.status, Status::Warn, "{one:?}");
        let end = "; 1 name will be left out: s0 (a socket)";
        assert!(one.detail.ends_with(end), "{one:?}");
        let more = told(NAMED_MAX + 1).detail;
        assert!(more.contains("; 4 names will be left out: s"), "{more}");
        assert_eq!(more.matches("(a socket)").count(), NAMED_MAX, "{more}");
        assert!(more.ends_with("(a socket), ..."), "{more}");
    }
}
