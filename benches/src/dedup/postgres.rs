//! A PostgreSQL 15 cluster with a database, branches of it made from its files, and a table copied by SQL.
//!
//! Invariants: no TCP port is opened; the server is stopped while its files are counted and backed up, and when dropped.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use mover_base::{Error, Kind, Result};

use super::blocks::BlockSet;
use super::{Backup, Bench, CopiedTable, Plan, Size, Workload, cannot, remove};
use crate::command::Program;
use crate::data::Files;

const BIN: &str = "/usr/lib/postgresql/15/bin";
const PORT: &str = "54329";
const WORKLOAD: Workload = Workload::Postgres;
const LOG_DIR: &str = "pg_wal";
/// What differs from the server's defaults, for readers.
pub(super) const SETTINGS: &str = "The log is kept in proportion to the data (`max_wal_size=128MB`); all else is at the defaults but \
                                   what only costs time";
/// The same for the server.
const OPTIONS: &str = "-c listen_addresses='' -c fsync=off -c synchronous_commit=off -c min_wal_size=64MB -c max_wal_size=128MB";

/// Makes the cluster, backs it up in its four stages and removes it.
pub(super) fn measure(
    bench: &Bench<'_>,
    size: Size,
    keep: &mut impl FnMut(Backup),
) -> Result<CopiedTable> {
    let mut cluster = Cluster::create(bench.work)?;
    let data = cluster.data();
    let transactions = (size.scale * size.transactions_per_scale).to_string();
    let load = |cluster: &Cluster, database: &str, seed: &str| -> Result<()> {
        let program = cluster.tool("pgbench").args(["-n", "-t", &transactions]);
        let program = program.args(["--random-seed", seed, database]);
        program.output().map(drop)
    };
    let backup = |cluster: &mut Cluster, title: &str| -> Result<Backup> {
        cluster.stop()?;
        bench.alone(&Plan::of_dir(WORKLOAD, title, &data, LOG_DIR)?, &data)
    };

    cluster.start()?;
    cluster.sql("postgres", "create database main")?;
    let scale = size.scale.to_string();
    let fill = cluster.tool("pgbench").args(["-i", "-q", "-s", &scale]);
    fill.args(["main"]).output()?;
    load(&cluster, "main", "1")?;
    keep(backup(&mut cluster, "main alone")?);

    for (seed, (databases, title)) in (2..).zip([
        (&["main", "branch"][..], "main and a branch"),
        (&["main", "branch", "branch_2"], "main and two branches"),
    ]) {
        cluster.start()?;
        if let Some(new) = databases.last() {
            let branch = format!("create database {new} template main strategy file_copy");
            cluster.sql("postgres", &branch)?;
        }
        for (number, database) in databases.iter().enumerate() {
            load(&cluster, database, &format!("{seed}{number}"))?;
        }
        keep(backup(&mut cluster, title)?);
    }

    cluster.start()?;
    let copy = "create table accounts_copy as table pgbench_accounts";
    cluster.sql("main", copy)?;
    let file = cluster.sql("main", "select pg_relation_filepath('accounts_copy')")?;
    keep(backup(
        &mut cluster,
        "main, two branches and a copied table",
    )?);
    let copied = copied(&data, &data.join(file.trim()))?;
    remove(&cluster.dir)?;
    Ok(copied)
}

/// What of the relation whose first file is `first` is found elsewhere.
fn copied(data: &Path, first: &Path) -> Result<CopiedTable> {
    // Segments of 1 GiB and the free space and visibility maps: `16390`, `16390.1`, `16390_fsm`.
    let name = first.to_string_lossy().into_owned();
    let is_copy = |path: &Path| {
        let path = path.to_string_lossy();
        path.strip_prefix(&name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '_']))
    };
    let files = Files::list(data)?.0.into_iter();
    let (copy, others): (Vec<_>, Vec<_>) = files.partition(|(path, _)| is_copy(path));
    if copy.is_empty() {
        return Err(Error::new(Kind::Internal, "the copied table has no file").object(name));
    }
    let mut set = BlockSet::default();
    set.add(&Files(others))?;
    Ok(CopiedTable {
        blocks: set.add(&Files(copy))?,
    })
}

/// A cluster and its socket, in a directory of user postgres.
struct Cluster {
    dir: PathBuf,
    /// Or may be: a start that is given up on can still come to its end.
    is_running: bool,
}

impl Cluster {
    fn create(work: &Path) -> Result<Cluster> {
        let cluster = Cluster {
            dir: work.join("cluster"),
            is_running: false,
        };
        let id = |flag: &str| -> Result<u32> {
            let printed = Program::new("id").args([flag, "postgres"]).output()?;
            let missing = |e| Error::new(Kind::CheckFailed, "there is no user postgres").cause(e);
            printed.trim().parse().map_err(missing)
        };
        let (user, group) = (id("-u")?, id("-g")?);
        // The server runs as another user, who has to come in.
        std::fs::set_permissions(work, PermissionsExt::from_mode(0o755))
            .and_then(|()| std::fs::create_dir(&cluster.dir))
            .and_then(|()| chown(&cluster.dir, Some(user), Some(group)))
            .map_err(|error| cannot("no directory for the cluster", &cluster.dir, error))?;
        let initdb = cluster.tool("initdb");
        initdb
            .args(["--no-sync", "-A", "trust", "-E", "UTF8", "--locale=C", "-D"])
            .path(&cluster.data())
            .output()?;
        Ok(cluster)
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn tool(&self, name: &str) -> Program {
        Program::new("runuser")
            .args(["-u", "postgres", "--"])
            .path(&Path::new(BIN).join(name))
            .dir(&self.dir)
            .env("PGHOST", self.dir.display().to_string())
            .env("PGPORT", PORT)
    }

    fn start(&mut self) -> Result<()> {
        let own = format!(
            "{OPTIONS} -c unix_socket_directories='{}' -p {PORT}",
            self.dir.display()
        );
        self.is_running = true;
        // With a file for its log the server keeps nothing open that its starter waits for.
        let start = self.tool("pg_ctl").args(["start", "-w", "-s", "-o", &own]);
        let start = start.args(["-l"]).path(&self.dir.join("server.log"));
        start.args(["-D"]).path(&self.data()).output().map(drop)
    }

    /// Runs SQL and returns its rows, one a line.
    fn sql(&self, database: &str, sql: &str) -> Result<String> {
        let psql = self.tool("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
            .args(["-d", database, "-c", sql])
            .output()
    }

    /// Stops the server, which makes a checkpoint first.
    fn stop(&mut self) -> Result<()> {
        let stop = self.tool("pg_ctl").args(["stop", "-w", "-s", "-t", "300"]);
        let stop = stop.args(["-m", "fast", "-D"]).path(&self.data());
        stop.output()?;
        self.is_running = false;
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.is_running {
            let stop = self.tool("pg_ctl").args(["stop", "-s", "-m", "immediate"]);
            // It is thrown away, whatever becomes of this.
            let _ = stop.args(["-D"]).path(&self.data()).output();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_files_of_the_copy_are_the_copy() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, byte: u8| {
            std::fs::write(dir.path().join(name), [byte; 4096]).unwrap();
        };
        // Of the copy three blocks, of which the second is in another table too.
        write("16390", 1);
        write("16390.1", 2);
        write("16390_vm", 3);
        write("163901", 2);
        write("1639", 4);
        let found = copied(dir.path(), &dir.path().join("16390")).unwrap();
        assert_eq!((found.blocks.blocks, found.blocks.known()), (3, 1));
        assert!(copied(dir.path(), &dir.path().join("5")).is_err());
    }
}
