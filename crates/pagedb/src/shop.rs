//! A shop's database in a directory, with clients that work while something else runs.
//!
//! Invariants: clients stop when what they work beside has ended, however it ended; they pause between transactions, so
//! that journal and log stay small; a checkpoint removes the log that neither recovery nor a running backup needs.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use mover_base::Result;
use mover_source::disk::{DirDisk, Disk};
use mover_source::pages::{Store, new_identity};
use mover_source::wal::SegmentSize;

use crate::truth::{ARCHIVE, Truth};
use crate::workload::accounts;
use crate::{Database, Options, Workload};

/// Binary logarithm of a log segment's bytes.
const SEGMENT_LOG2: u8 = 22;
/// Between two transactions of a client.
const PAUSE: Duration = Duration::from_micros(500);
/// Between two checkpoints.
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(200);
const OPTIONS: Options = Options {
    pool_pages: 256,
    journal: true,
};

/// Who works on the database, and what they found there when it was made.
pub struct Clients {
    workloads: Vec<Workload>,
    seed: u64,
    archive_pages: u32,
}

/// The database, tracked, and its clients.
pub struct Shop {
    database: Database,
    clients: Clients,
}

impl Shop {
    /// Makes a store in `directory`: a large table that nobody changes, the accounts that all clients share, and the
    /// clients' own tables from their first transaction on.
    pub fn create(directory: &Path, seed: u64, clients: u64, archive_pages: u32) -> Result<Shop> {
        std::fs::create_dir_all(directory).map_err(|error| {
            mover_source::target_error("the store's directory cannot be made", b"", error)
        })?;
        let disk: Arc<dyn Disk> = Arc::new(DirDisk::open_locked(directory)?);
        let mut id = [0x5e; 32];
        id[..8].copy_from_slice(&seed.to_le_bytes());
        let size = SegmentSize::new(SEGMENT_LOG2).expect("a size");
        Store::create(Arc::clone(&disk), new_identity(id, size))?;
        let workloads = (0..clients).map(|client| Workload::new(seed, client));
        let shop = Shop {
            database: open(disk, directory)?,
            clients: Clients {
                workloads: workloads.collect(),
                seed,
                archive_pages,
            },
        };
        shop.database.fill(ARCHIVE, archive_pages, seed)?;
        shop.database.commit(&accounts(seed))?;
        Ok(shop)
    }

    /// Starts the database that was restored to `directory`. Its clients know nothing of what was undone, and go on with
    /// tables of their own.
    pub fn start(directory: &Path, mut clients: Clients) -> Result<Shop> {
        let disk: Arc<dyn Disk> = Arc::new(DirDisk::open_locked(directory)?);
        let before = clients.workloads.len() as u64;
        let others = (before..).zip(clients.workloads);
        clients.workloads = others.map(|(id, client)| client.renamed(id)).collect();
        Ok(Shop {
            database: open(disk, directory)?,
            clients,
        })
    }

    /// Stops the database as a kill does: what was not flushed is gone, and what is in memory too.
    pub fn kill(self) -> Clients {
        self.clients
    }

    /// What the database holds at each commit since it was made.
    pub fn truth(&self) -> Truth {
        Truth::new(
            self.database.journal(),
            self.clients.seed,
            self.clients.archive_pages,
        )
    }

    /// All clients commit, and checkpoints are made, until `job` has ended. Returns also how many commits there were.
    pub fn work_beside<T>(&mut self, job: impl FnOnce() -> T) -> Result<(T, u64)> {
        let (database, stop) = (&self.database, &AtomicBool::new(false));
        thread::scope(|scope| {
            let stopping = Stop(stop);
            let workloads = self.clients.workloads.iter_mut();
            let clients: Vec<_> = workloads
                .map(|client| scope.spawn(|| work(database, client, stop)))
                .collect();
            let checkpoints = scope.spawn(|| checkpoints(database, stop));
            let done = job();
            drop(stopping);
            let mut commits = 0;
            for client in clients {
                commits += client.join().expect("a client")?;
            }
            checkpoints.join().expect("checkpoints")?;
            Ok((done, commits))
        })
    }
}

/// Ends the threads also when the job panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

fn open(disk: Arc<dyn Disk>, directory: &Path) -> Result<Database> {
    let (mut database, _) = Database::open(disk, OPTIONS)?;
    database.track(directory, None)?;
    Ok(database)
}

fn work(database: &Database, client: &mut Workload, stop: &AtomicBool) -> Result<u64> {
    let mut commits = 0;
    while !stop.load(SeqCst) {
        database.commit(&client.next_transaction())?;
        commits += 1;
        thread::sleep(PAUSE);
    }
    Ok(commits)
}

fn checkpoints(database: &Database, stop: &AtomicBool) -> Result<()> {
    while !stop.load(SeqCst) {
        database.checkpoint()?;
        database.trim()?;
        thread::sleep(CHECKPOINT_INTERVAL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;

    use mover_base::Lsn;
    use mover_source::page::{BODY_BYTES, PAGE_BYTES, PageHeader, decode, seal};
    use mover_source::pages::{read_catalogue, table_path};

    use super::*;

    const PAGES: u32 = 300;

    /// A store that stands, with everything in its files, at the position that is returned.
    fn store(directory: &Path) -> (Truth, Lsn) {
        let mut shop = Shop::create(directory, 3, 2, PAGES).unwrap();
        let (at_work, commits) = shop
            .work_beside(|| {
                thread::sleep(Duration::from_millis(200));
                "done"
            })
            .unwrap();
        assert!(at_work == "done" && commits > 2);
        let end = shop.database.writer().end();
        shop.database.checkpoint().unwrap();
        (shop.truth(), end)
    }

    fn table(directory: &Path, name: &str) -> (u32, std::path::PathBuf) {
        let catalogue = read_catalogue(&DirDisk::open(directory).unwrap()).unwrap();
        let found = catalogue.tables().iter().find(|(_, t)| t.name == name);
        let id = *found.unwrap().0;
        (id, directory.join(table_path(id)))
    }

    #[test]
    fn a_store_is_compared_in_rows_pages_and_tables() {
        let place = tempfile::tempdir().unwrap();
        let home = place.path().join("home");
        let (truth, end) = store(&home);
        let clean = truth.compare(&home, end).unwrap();
        assert_eq!(clean.differences, [] as [String; 0]);
        assert!(clean.pages > u64::from(PAGES) && clean.rows > u64::from(PAGES));
        assert_eq!(
            clean.tables,
            read_catalogue(&DirDisk::open(&home).unwrap())
                .unwrap()
                .tables()
                .len() as u64
        );
        // The position matters to the byte: one transaction less is another state.
        let before = truth.compare(&home, Lsn(end.0 - 1)).unwrap();
        assert_eq!(before.transactions, clean.transactions - 1);
        assert!(!before.differences.is_empty());
    }

    #[test]
    fn a_changed_byte_is_found_whatever_its_checksum_says() {
        let place = tempfile::tempdir().unwrap();
        let home = place.path().join("home");
        let (truth, end) = store(&home);
        for name in [crate::truth::ARCHIVE, crate::workload::ACCOUNTS] {
            let (_, path) = table(&home, name);
            let file = fs::File::options()
                .read(true)
                .write(true)
                .open(&path)
                .unwrap();
            let mut page = [0; PAGE_BYTES];
            file.read_exact_at(&mut page, 0).unwrap();
            for sealed in [false, true] {
                let mut changed = page;
                changed[PAGE_BYTES - BODY_BYTES / 64] ^= 1;
                if sealed {
                    let header: PageHeader = decode(&page).unwrap().unwrap();
                    seal(&mut changed, header);
                }
                file.write_all_at(&changed, 0).unwrap();
                let found = truth.compare(&home, end).unwrap().differences;
                assert_eq!(found.len(), 1, "{name}, sealed: {sealed}: {found:?}");
                assert!(found[0].contains(name), "{found:?}");
            }
            file.write_all_at(&page, 0).unwrap();
        }
        assert!(truth.compare(&home, end).unwrap().differences.is_empty());
    }

    #[test]
    fn a_store_that_was_killed_starts_with_other_clients() {
        let place = tempfile::tempdir().unwrap();
        let home = place.path().join("home");
        let mut shop = Shop::create(&home, 4, 2, 8).unwrap();
        shop.work_beside(|| thread::sleep(Duration::from_millis(50)))
            .unwrap();
        let clients = shop.kill();
        let mut shop = Shop::start(&home, clients).unwrap();
        let ((), commits) = shop
            .work_beside(|| thread::sleep(Duration::from_millis(50)))
            .unwrap();
        assert!(commits > 0);
    }
}
