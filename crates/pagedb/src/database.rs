//! The database: concurrent transactions over a bounded set of pages in memory.
//!
//! Invariants: a transaction's changes are made, logged and told to the journal in one step under one lock, so that the
//! journal's order is the log's; waiting for the disk happens outside of it. No page is written before the log is
//! durable up to the end of the group that changed it last. The first change of a page since the beginning of redo is
//! logged as an image.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use mover_base::checksum::sha256;
use mover_base::{Lsn, Result, Timestamp};
use mover_client::{Attachment, Capacity, Tracker};
use mover_source::disk::Disk;
use mover_source::page::{BODY_BYTES, PAGE_HEADER_BYTES, PageBytes};
use mover_source::pages::{Catalogue, Recovered, Store, TABLES_DIR, TableFile, table_path};
use mover_source::wal::record::delta_fits;
use mover_source::wal::{Group, LogIdentity, Record, TableKind, Writer, segments};

use crate::bulk;
use crate::heap;
use crate::model::{Commit, Contents, Journal};
use crate::random::Random;
use crate::workload::Op;

/// Pages that a table grows by when it is full.
const GROWTH_PAGES: u32 = 2;

/// How the database is run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Pages that are held in memory between transactions.
    pub pool_pages: usize,
    /// Whether commits are told to a journal.
    pub journal: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            pool_pages: 64,
            journal: true,
        }
    }
}

struct Frame {
    bytes: Box<PageBytes>,
    lsn: Lsn,
    /// Where the group ends that changed it last.
    group_end: Lsn,
    dirty: bool,
}

#[derive(Default)]
struct TableState {
    id: u32,
    /// Page and slot of each row.
    rows: HashMap<u64, (u32, usize)>,
    /// Where the next row goes, if it fits.
    tail: u32,
}

struct State {
    catalogue: Catalogue,
    tables: HashMap<String, TableState>,
    frames: BTreeMap<(u32, u32), Frame>,
    files: HashMap<u32, Arc<TableFile>>,
    redo: Lsn,
    next_transaction: u64,
    dropped: Vec<u32>,
    clock: i64,
    journal: Journal,
}

/// The database.
pub struct Database {
    disk: Arc<dyn Disk>,
    store: Mutex<Store>,
    writer: Writer,
    state: Mutex<State>,
    options: Options,
    tracker: Option<Tracker>,
    marking: MarkingClock,
}

/// What marking takes, timed in place: only when somebody asks, because a look at the clock takes as long as marks do.
#[derive(Default)]
struct MarkingClock {
    is_on: AtomicBool,
    nanos: AtomicI64,
}

impl MarkingClock {
    /// Does `work`, and counts what it takes but for the looks at the clock: what one takes just there is taken off.
    fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        if !self.is_on.load(Relaxed) {
            return work();
        }
        let (look, begun) = (Instant::now(), Instant::now());
        let done = work();
        let took = begun.elapsed().as_nanos() as i64;
        let look = (begun - look).as_nanos() as i64;
        self.nanos.fetch_add(took - look, Relaxed);
        done
    }
}

/// What a transaction has done so far.
#[derive(Default)]
struct Transaction {
    /// The pages that it changed, as they were before.
    before: BTreeMap<(u32, u32), Box<PageBytes>>,
    structure: Group,
    created: Vec<u32>,
    extended: Vec<(u32, u32)>,
    dropped: Vec<u32>,
}

/// Removes the segments of the log that end before `needed`, and returns how many.
pub(crate) fn remove_log(disk: &dyn Disk, identity: &LogIdentity, needed: Lsn) -> Result<usize> {
    let all = segments(disk, identity)?;
    let gone = all.range(..identity.size.start_of(needed));
    for start in gone.clone() {
        let path = identity.path(*start);
        disk.remove(&path)
            .map_err(|error| mover_source::target_error("trim", path.as_bytes(), error))?;
    }
    Ok(gone.count())
}

impl Database {
    /// Opens the store and recovers it; also says what recovery found.
    pub fn open(disk: Arc<dyn Disk>, options: Options) -> Result<(Database, Lsn)> {
        let mut store = Store::open(Arc::clone(&disk))?;
        let recovered = store.recover(options.pool_pages)?;
        let end = recovered.log.end;
        Ok((Database::run(disk, store, recovered, options)?, end))
    }

    /// Runs on a recovered store.
    pub fn run(
        disk: Arc<dyn Disk>,
        store: Store,
        recovered: Recovered,
        options: Options,
    ) -> Result<Database> {
        let mut state = State {
            catalogue: store.catalogue().clone(),
            tables: HashMap::new(),
            frames: BTreeMap::new(),
            files: HashMap::new(),
            redo: store.control().redo,
            next_transaction: recovered.next_transaction,
            dropped: Vec::new(),
            clock: 1_790_000_000_000_000,
            journal: Journal::default(),
        };
        for (id, table) in store.catalogue().tables() {
            let file = TableFile::open_write(&*disk, *id)?;
            let mut rows = HashMap::new();
            let mut tail = 0;
            for page in 0..table.pages {
                let (bytes, _) = file.read_checked(page)?;
                for slot in 0..heap::slots(&bytes) {
                    if let Some((key, _)) = heap::row(&bytes, slot) {
                        rows.insert(key, (page, slot));
                    }
                    tail = page;
                }
            }
            let known = TableState {
                id: *id,
                rows,
                tail,
            };
            state.tables.insert(table.name.clone(), known);
            state.files.insert(*id, Arc::new(file));
        }
        Ok(Database {
            disk,
            store: Mutex::new(store),
            writer: recovered.writer,
            state: Mutex::new(state),
            options,
            tracker: None,
            marking: MarkingClock::default(),
        })
    }

    /// Takes up the block change tracker of the store, which is in `directory`: before the first transaction. `capacity` is
    /// for tests that want it small.
    pub fn track(&mut self, directory: &Path, capacity: Option<Capacity>) -> Result<Attachment> {
        let (identity, end) = (*self.writer.identity(), self.writer.end());
        let capacity = capacity.unwrap_or_else(|| Capacity::of(&self.lock().catalogue));
        let (tracker, found) = Tracker::with_capacity(directory, identity, end, capacity)?;
        self.tracker = Some(tracker);
        Ok(found)
    }

    /// Makes the log durable and gives the tracker up, if there is one: the database goes on without, and may take it up again.
    pub fn untrack(&mut self) -> Result<()> {
        let end = self.writer.end();
        self.writer.flush_to(end)?;
        match self.tracker.take() {
            Some(tracker) => tracker.close(end),
            None => Ok(()),
        }
    }

    /// Whether marking is timed from now on. It makes transactions slower.
    pub fn time_marking(&self, is_on: bool) {
        self.marking.is_on.store(is_on, Relaxed);
    }

    /// Seconds that transactions have spent on marking while it was timed, all threads together.
    pub fn marking_seconds(&self) -> f64 {
        self.marking.nanos.load(Relaxed) as f64 / 1e9
    }

    /// The log's writer.
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// All commits since the database was opened.
    pub fn journal(&self) -> Journal {
        self.lock().journal.clone()
    }

    /// Goes on with what an earlier run told.
    pub fn set_journal(&self, journal: Journal) {
        self.lock().journal = journal;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("lock")
    }

    /// Runs a transaction and returns where it ends, when it is durable.
    pub fn commit(&self, ops: &[Op]) -> Result<Lsn> {
        let end = self.append(ops)?;
        self.writer.flush_to(end)?;
        if let Some(tracker) = &self.tracker {
            self.marking.time(|| tracker.durable(end));
        }
        Ok(end)
    }

    /// Runs a transaction and returns where it ends; it is durable later.
    pub fn append(&self, ops: &[Op]) -> Result<Lsn> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut transaction = Transaction::default();
        for op in ops {
            self.change(state, &mut transaction, op)?;
        }
        let (group, places) = state.group(&transaction)?;
        state.clock += 1;
        let number = state.next_transaction;
        let time = Timestamp::from_micros(state.clock);
        let marking = self.tracker.as_ref().map(|tracker| {
            self.marking.time(|| {
                let mut marking = tracker.begin();
                marking.mark_many(places.iter().copied());
                marking
            })
        });
        let appended = self.writer.append(&group, number, time)?;
        if let Some(marking) = marking {
            self.marking.time(|| marking.end(appended.end));
        }
        state.next_transaction += 1;
        let first_page = appended.records.len() - places.len() - transaction.dropped.len();
        for (place, lsn) in places.iter().zip(&appended.records[first_page..]) {
            let frame = state.frames.get_mut(place).expect("frame");
            (frame.lsn, frame.group_end, frame.dirty) = (*lsn, appended.end, true);
        }
        if self.options.journal {
            let pages = places.iter().map(|place| {
                let body = &state.frames[place].bytes[PAGE_HEADER_BYTES..];
                (*place, sha256(body))
            });
            let commit = Commit {
                end: appended.end,
                ops: ops.to_vec(),
                pages: pages.collect(),
                created: transaction.created,
                dropped: transaction.dropped,
                extended: transaction.extended,
            };
            state.journal.0.push(commit);
        }
        self.evict(state)?;
        Ok(appended.end)
    }

    fn change(&self, state: &mut State, transaction: &mut Transaction, op: &Op) -> Result<()> {
        match op {
            Op::Create(name) => {
                let id = state.catalogue.next_table();
                transaction.structure.create(id, TableKind::Rows, name)?;
                let record = Record::Create {
                    table: id,
                    kind: TableKind::Rows,
                    name,
                };
                state.catalogue.apply(Lsn(u64::MAX), &record)?;
                let table = TableState {
                    id,
                    ..TableState::default()
                };
                state.tables.insert(name.clone(), table);
                let file = TableFile::open_write(&*self.disk, id)?;
                state.files.insert(id, Arc::new(file));
                transaction.created.push(id);
            }
            Op::Drop(name) => {
                let table = state.tables.remove(name).expect("table").id;
                let record = Record::Drop { table };
                state.catalogue.apply(Lsn(u64::MAX), &record)?;
                state.frames.retain(|(of, _), _| *of != table);
                transaction.before.retain(|(of, _), _| *of != table);
                state.files.remove(&table);
                state.dropped.push(table);
                transaction.dropped.push(table);
            }
            Op::Insert(name, key, row) => state.insert(transaction, name, *key, row)?,
            Op::Update(name, key, row) => {
                let (id, (page, slot)) = state.find(name, *key);
                if !heap::replace(state.page(transaction, id, page)?, slot, row) {
                    heap::delete(state.page(transaction, id, page)?, slot);
                    state.insert(transaction, name, *key, row)?;
                }
            }
            Op::Delete(name, key) => {
                let (id, (page, slot)) = state.find(name, *key);
                heap::delete(state.page(transaction, id, page)?, slot);
                let table = state.tables.get_mut(name).expect("table");
                table.rows.remove(key);
            }
            Op::Add(name, key, amount) => {
                let (id, (page, slot)) = state.find(name, *key);
                let bytes = state.page(transaction, id, page)?;
                let mut row = heap::row(bytes, slot).expect("row").1.to_vec();
                let sum = crate::model::balance(&row) + amount;
                row[..8].copy_from_slice(&sum.to_le_bytes());
                assert!(heap::replace(bytes, slot, &row));
            }
        }
        Ok(())
    }

    /// Writes pages out until few enough are in memory.
    fn evict(&self, state: &mut State) -> Result<()> {
        while state.frames.len() > self.options.pool_pages {
            let at = state.clock as usize % state.frames.len();
            let place = *state.frames.keys().nth(at).expect("frame");
            self.write_out(state, place)?;
            state.frames.remove(&place);
        }
        Ok(())
    }

    /// Writes a page if it is dirty, after the log.
    fn write_out(&self, state: &mut State, place: (u32, u32)) -> Result<()> {
        let Some(frame) = state.frames.get_mut(&place) else {
            return Ok(());
        };
        if frame.dirty {
            self.writer.flush_to(frame.group_end)?;
            let file = state.files.get(&place.0).expect("file");
            file.write(place.1, frame.lsn, &mut frame.bytes)?;
            frame.dirty = false;
        }
        Ok(())
    }

    /// A fuzzy checkpoint: transactions run on while pages are written.
    pub fn checkpoint(&self) -> Result<Lsn> {
        let mut store = self.store.lock().expect("lock");
        let (catalogue, dirty, dropped, next, time) = {
            let mut state = self.lock();
            state.redo = self.writer.end();
            let mut catalogue = state.catalogue.clone();
            catalogue.lsn = state.redo;
            let dirty = state.frames.iter().filter(|(_, frame)| frame.dirty);
            let dirty: Vec<(u32, u32)> = dirty.map(|(place, _)| *place).collect();
            let dropped = std::mem::take(&mut state.dropped);
            (
                catalogue,
                dirty,
                dropped,
                state.next_transaction,
                Timestamp::from_micros(state.clock),
            )
        };
        for place in dirty {
            self.write_out(&mut self.lock(), place)?;
        }
        // Outside of the lock: commits do not wait for these syncs.
        let files: Vec<Arc<TableFile>> = self.lock().files.values().cloned().collect();
        for file in files {
            file.sync()?;
        }
        let at = store.checkpoint(&self.writer, catalogue, next, time)?;
        // What it says may go from the log is known without the log.
        if let Some(tracker) = &self.tracker {
            tracker.durable(self.writer.durable());
        }
        for table in dropped {
            let path = table_path(table);
            self.disk
                .remove(&path)
                .and_then(|()| self.disk.sync_dir(TABLES_DIR))
                .map_err(|error| mover_source::target_error("drop", path.as_bytes(), error))?;
        }
        Ok(at)
    }

    /// Makes a table of `pages` pages full of rows, and a checkpoint. The rows go past log and pool, so that it is quick
    /// and takes no memory. No transaction finds them and no journal hears of them: they are there to be backed up.
    /// Nothing else may run meanwhile.
    pub fn fill(&self, name: &str, pages: u32, seed: u64) -> Result<()> {
        let (id, lsn) = {
            let mut state = self.lock();
            let id = state.catalogue.next_table();
            let create = Record::Create {
                table: id,
                kind: TableKind::Rows,
                name,
            };
            let mut group = Group::new();
            group.create(id, TableKind::Rows, name)?;
            group.extend(id, pages)?;
            state.clock += 1;
            let time = Timestamp::from_micros(state.clock);
            let appended = self.writer.append(&group, state.next_transaction, time)?;
            self.writer.flush_to(appended.end)?;
            state.next_transaction += 1;
            state.catalogue.apply(Lsn(u64::MAX), &create)?;
            let extend = Record::Extend { table: id, pages };
            state.catalogue.apply(Lsn(u64::MAX), &extend)?;
            (id, appended.records[1])
        };
        let file = TableFile::open_write(&*self.disk, id)?;
        bulk::fill(&file, &mut Random::new(seed), pages, lsn)?;
        file.sync()?;
        let table = TableState {
            id,
            tail: pages,
            ..TableState::default()
        };
        let mut state = self.lock();
        state.tables.insert(name.to_owned(), table);
        state.files.insert(id, Arc::new(file));
        drop(state);
        self.checkpoint().map(drop)
    }

    /// Removes the segments of the log that neither recovery nor a running backup needs. Returns how many.
    pub fn trim(&self) -> Result<usize> {
        let control = *self.store.lock().expect("lock").control();
        let held = match &self.tracker {
            Some(tracker) => tracker.log_held_from()?,
            None => None,
        };
        let needed = held.map_or(control.redo, |held| held.min(control.redo));
        remove_log(&*self.disk, &control.identity, needed)
    }

    /// All rows, as they are in memory and on disk now.
    pub fn contents(&self) -> Result<Contents> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut contents = Contents::default();
        let tables = state.catalogue.tables().clone();
        for (id, table) in tables {
            let rows = contents.0.entry(table.name).or_default();
            for page in 0..table.pages {
                let bytes = match state.frames.get(&(id, page)) {
                    Some(frame) => *frame.bytes,
                    None => state.files[&id].read_checked(page)?.0,
                };
                for slot in 0..heap::slots(&bytes) {
                    if let Some((key, row)) = heap::row(&bytes, slot) {
                        assert!(rows.insert(key, row.to_vec()).is_none(), "row {key} twice");
                    }
                }
            }
        }
        Ok(contents)
    }

    /// Stops the database in order, but for pages in memory, which redo brings back. Returns where the log ends.
    pub fn close(mut self) -> Result<Lsn> {
        self.untrack()?;
        Ok(self.writer.end())
    }
}

impl State {
    fn find(&self, name: &str, key: u64) -> (u32, (u32, usize)) {
        let table = &self.tables[name];
        (table.id, table.rows[&key])
    }

    /// A page to be changed by the transaction.
    fn page(
        &mut self,
        transaction: &mut Transaction,
        table: u32,
        page: u32,
    ) -> Result<&mut PageBytes> {
        let place = (table, page);
        if !self.frames.contains_key(&place) {
            let (bytes, lsn) = self.files[&table].read_checked(page)?;
            let frame = Frame {
                bytes: Box::new(bytes),
                lsn,
                group_end: Lsn(0),
                dirty: false,
            };
            self.frames.insert(place, frame);
        }
        let frame = self.frames.get_mut(&place).expect("frame");
        transaction
            .before
            .entry(place)
            .or_insert_with(|| frame.bytes.clone());
        Ok(&mut frame.bytes)
    }

    fn insert(
        &mut self,
        transaction: &mut Transaction,
        name: &str,
        key: u64,
        row: &[u8],
    ) -> Result<()> {
        let (id, mut tail) = (self.tables[name].id, self.tables[name].tail);
        loop {
            let pages = self.catalogue.tables()[&id].pages;
            if tail < pages {
                if let Some(slot) = heap::insert(self.page(transaction, id, tail)?, key, row) {
                    let table = self.tables.get_mut(name).expect("table");
                    table.rows.insert(key, (tail, slot));
                    table.tail = tail;
                    return Ok(());
                }
                tail += 1;
                continue;
            }
            let pages = pages + GROWTH_PAGES;
            transaction.structure.extend(id, pages)?;
            let record = Record::Extend { table: id, pages };
            self.catalogue.apply(Lsn(u64::MAX), &record)?;
            transaction.extended.push((id, pages));
        }
    }

    /// The transaction's records, and the pages in the order of theirs: structure first, then pages, then drops.
    fn group(&self, transaction: &Transaction) -> Result<(Group, Vec<(u32, u32)>)> {
        let mut group = transaction.structure.clone();
        let mut places = Vec::new();
        for (place, before) in &transaction.before {
            let frame = &self.frames[place];
            let ranges = differences(before, &frame.bytes);
            if ranges.is_empty() {
                continue;
            }
            let fits = delta_fits(ranges.iter().map(|(_, bytes)| bytes.len()));
            if frame.lsn < self.redo || frame.lsn == Lsn(0) || !fits {
                let body = frame.bytes[PAGE_HEADER_BYTES..].first_chunk::<BODY_BYTES>();
                group.image(place.0, place.1, body.expect("body"))?;
            } else {
                group.delta(place.0, place.1, &ranges)?;
            }
            places.push(*place);
        }
        for table in &transaction.dropped {
            group.drop_table(*table)?;
        }
        Ok((group, places))
    }
}

/// The ranges of the body in which two pages differ; ranges with little between them are joined.
fn differences<'a>(before: &PageBytes, after: &'a PageBytes) -> Vec<(usize, &'a [u8])> {
    const JOIN_BYTES: usize = 8;
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for at in PAGE_HEADER_BYTES..after.len() {
        if before[at] != after[at] {
            match ranges.last_mut() {
                Some((_, end)) if at - *end <= JOIN_BYTES => *end = at + 1,
                _ => ranges.push((at, at + 1)),
            }
        }
    }
    let bytes = |(start, end): (usize, usize)| (start, &after[start..end]);
    ranges.into_iter().map(bytes).collect()
}
