//! `demo`: a small database is made, backed up while its clients commit, backed up again by what they changed, destroyed,
//! restored, compared and started again, through the same jobs as every other verb.
//!
//! Invariants: everything lies in one new temporary directory, which is removed at the end whatever happens,
//! unless `--keep` says otherwise; what is compared with comes from the reference database's model, never from the
//! repository; a difference found by the comparison is an error, never a remark.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mover_base::units::format_bytes;
use mover_base::{Error, Kind, Lsn, Result, hex};
use mover_jobs::backup::{self, BackupOptions, BackupSummary};
use mover_jobs::init::{self, InitOptions};
use mover_jobs::restore::{self, RestoreOptions, RestoreSummary};
use mover_jobs::verify::{self, Level, VerifyOptions, VerifySummary};
use mover_jobs::{
    BackupType, COMPRESSION_LEVEL_DEFAULT, Credentials, LinkLimits, RepoAccess, Secret,
};
use mover_pagedb::{Comparison, Shop, Truth};
use serde::Serialize;

use crate::args::DemoArgs;
use crate::config::secrets::{self, SecretFile};
use crate::figures;
use crate::output::{BOLD, GREEN};
use crate::table::{Cell, Table, clean};
use crate::verbs::{Context, figures_of};

/// Free space that the demo needs: database, repository and two restored copies, with room to spare.
const FREE_BYTES_MIN: u64 = 700 << 20;
/// What to do where that is not there.
const ELSEWHERE: &str = "name another directory with TMPDIR";
/// Clients that commit while backups run.
const CLIENTS: u64 = 4;
/// Pages of the table that nobody changes: 128 MiB.
const ARCHIVE_PAGES: u32 = 32_768;
/// How long clients commit between the two backups, and after the restore.
const WORK: Duration = Duration::from_secs(1);
/// Between two looks at whether a signal has come, meanwhile.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(20);

/// What the demo measured.
#[derive(Serialize)]
struct Summary {
    ok: bool,
    first_backup: BackupSummary,
    second_backup: BackupSummary,
    commits: Commits,
    verify: VerifySummary,
    restore: RestoreSummary,
    comparison: Compared,
    restore_of_first: RestoreSummary,
    comparison_of_first: Compared,
    seconds: f64,
    kept_in: Option<PathBuf>,
    warnings: Vec<String>,
}

/// How many transactions were committed, and when.
#[derive(Serialize)]
struct Commits {
    beside_first_backup: u64,
    between_backups: u64,
    beside_second_backup: u64,
    after_restore: u64,
}

/// What a restored database was compared in, and found equal.
#[derive(Serialize)]
struct Compared {
    position: Lsn,
    transactions: u64,
    tables: u64,
    rows: u64,
    pages: u64,
}

struct Demo<'a, 'b> {
    context: &'a mut Context<'b>,
    dir: PathBuf,
    step: u32,
    steps: Table,
}

/// Runs the verb.
pub fn run(context: &mut Context<'_>, args: DemoArgs) -> Result<()> {
    let began = Instant::now();
    context.signals.in_order();
    let parent = std::env::temp_dir();
    need_space(&parent)?;
    let mut dir = tempfile::Builder::new()
        .prefix("helios-mover-demo-")
        .tempdir_in(&parent)
        .map_err(|error| {
            failed("the temporary directory cannot be made", &parent, error).hint(ELSEWHERE)
        })?;
    dir.disable_cleanup(args.keep);
    let mut demo = Demo {
        dir: dir.path().to_owned(),
        step: 0,
        context,
        steps: Table::pairs().indent(3),
    };
    let played = demo.play(args.seed.unwrap_or(1));
    if played.is_err() && args.keep {
        context
            .out
            .note(&format!("kept in {}", dir.path().display()));
    }
    let mut summary = played?;
    summary.seconds = began.elapsed().as_secs_f64();
    summary.kept_in = args.keep.then(|| dir.path().to_owned());
    context.out.merge_warnings(&mut summary.warnings);
    tell_end(context, &summary);
    if !args.keep {
        let path = dir.path().to_owned();
        dir.close()
            .map_err(|error| failed("the demo's files cannot be removed", &path, error))?;
    }
    let kept = summary.kept_in.as_ref();
    let kept = kept.map_or(String::new(), |path| {
        format!("; its files are kept in {}", path.display())
    });
    context
        .out
        .done(format!("the demo is over, and everything came back{kept}"));
    context.out.summary(&summary);
    Ok(())
}

fn need_space(parent: &Path) -> Result<()> {
    let stat = rustix::fs::statvfs(parent).map_err(|error| {
        failed(
            "the temporary directory cannot be used",
            parent,
            error.into(),
        )
        .hint(ELSEWHERE)
    })?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < FREE_BYTES_MIN {
        return Err(Error::new(
            Kind::Target,
            format!(
                "the demo needs {} of free space and finds {}",
                format_bytes(FREE_BYTES_MIN),
                format_bytes(free)
            ),
        )
        .object(parent.display().to_string())
        .hint(ELSEWHERE));
    }
    Ok(())
}

fn failed(what: &str, path: &Path, error: io::Error) -> Error {
    let kind = if error.kind() == io::ErrorKind::Interrupted {
        Kind::Cancelled
    } else {
        Kind::Target
    };
    Error::new(kind, what)
        .object(path.display().to_string())
        .cause(error)
}

impl Demo<'_, '_> {
    fn play(&mut self, seed: u64) -> Result<Summary> {
        let repo = self.dir.join("repository");
        let home = self.dir.join("database");
        let mut shop = self.make_database(&home, seed)?;
        let access = self.make_repository(&repo)?;
        self.say("back it up, while its clients commit");
        let full = BackupType::Full;
        let (first_backup, beside_first_backup) = self.back_up(&access, &home, full, &mut shop)?;
        self.say("let them work on");
        let between_backups = self.work(&mut shop)?;
        self.say("back up what they changed, while they go on");
        let incremental = BackupType::Incremental;
        let (second_backup, beside_second_backup) =
            self.back_up(&access, &home, incremental, &mut shop)?;
        let verify = self.verify(&access)?;

        self.say("kill the database and remove its directory");
        let truth = shop.truth();
        let clients = shop.kill();
        std::fs::remove_dir_all(&home)
            .map_err(|error| failed("the database cannot be removed", &home, error))?;
        self.say("restore the second backup");
        let (restore, comparison) = self.bring_back(&access, &home, &second_backup, &truth)?;
        self.say("restore the first backup, beside it");
        let elsewhere = self.dir.join("database-as-of-first");
        let (restore_of_first, comparison_of_first) =
            self.bring_back(&access, &elsewhere, &first_backup, &truth)?;
        drop(truth);
        self.say("start the restored database");
        let mut shop = Shop::start(&home, clients)?;
        let after_restore = self.work(&mut shop)?;
        Ok(Summary {
            ok: true,
            first_backup,
            second_backup,
            commits: Commits {
                beside_first_backup,
                between_backups,
                beside_second_backup,
                after_restore,
            },
            verify,
            restore,
            comparison,
            restore_of_first,
            comparison_of_first,
            seconds: 0.0,
            kept_in: None,
            warnings: Vec::new(),
        })
    }

    fn say(&mut self, what: &str) {
        self.step += 1;
        let number = self.context.out.paint(&format!("{}.", self.step), BOLD);
        self.context.out.line(format!("{number} {what}"));
    }

    fn pair(&mut self, name: &str, value: impl Into<Cell>) -> &mut Self {
        self.steps.pair(name, value);
        self
    }

    fn flush(&mut self) {
        self.context.out.table(&self.steps);
        self.steps = Table::pairs().indent(3);
    }

    fn make_database(&mut self, home: &Path, seed: u64) -> Result<Shop> {
        self.say("make a database: tables of 4 KiB pages and a write-ahead log");
        let began = Instant::now();
        let shop = Shop::create(home, seed, CLIENTS, ARCHIVE_PAGES)?;
        self.context.signals.check()?;
        let rows = format!(
            "{} of rows, made in {}",
            format_bytes(u64::from(ARCHIVE_PAGES) * mover_base::BLOCK_BYTES as u64),
            figures::duration(began.elapsed().as_secs_f64())
        );
        self.pair("database", rows);
        let clients =
            "transfers between accounts, new, changed and deleted rows, new and dropped tables";
        self.pair("clients", format!("{}: {clients}", figures::count(CLIENTS)))
            .flush();
        Ok(shop)
    }

    fn make_repository(&mut self, repo: &Path) -> Result<RepoAccess> {
        self.say("create an encrypted repository");
        let path = self.dir.join("passphrase");
        write_passphrase(&path)?;
        let passphrase = secrets::read_passphrase(
            &SecretFile {
                path: &path,
                place: None,
            },
            &mut |_| {},
        )?;
        let url = format!("file://{}", repo.display());
        let options = InitOptions {
            url: url.clone(),
            encryption: true,
            passphrase: Some(Secret::new(passphrase.expose().to_owned())),
            recipients: Vec::new(),
            label: Some("demo".into()),
            link: LinkLimits::default(),
        };
        let summary = init::run(&self.context.settings.engine, &options)?;
        self.pair("cipher", summary.cipher);
        self.pair("key", "a passphrase drawn at random, in a file")
            .flush();
        Ok(RepoAccess {
            url,
            credentials: Credentials::Passphrase(passphrase),
            link: LinkLimits::default(),
        })
    }

    fn back_up(
        &mut self,
        access: &RepoAccess,
        home: &Path,
        backup_type: BackupType,
        shop: &mut Shop,
    ) -> Result<(BackupSummary, u64)> {
        let options = BackupOptions {
            repo: access.clone(),
            source: format!("pages://{}", home.display()),
            host: None,
            backup_type,
            base: None,
            level: COMPRESSION_LEVEL_DEFAULT,
            annotations: [("made-by".to_owned(), "demo".to_owned())].into(),
            exclude: Vec::new(),
            one_file_system: false,
            estimate: false,
        };
        let (summary, commits) = shop.work_beside(|| {
            self.context.watch(Some("backup"), |engine, tick| {
                let plan = backup::plan(engine, &options, &mut *tick)?;
                backup::execute(engine, plan, tick)
            })
        })?;
        let summary = summary?;
        if summary.backup_type != backup_type {
            let reason = summary.reason.clone().unwrap_or_default();
            return Err(Error::new(Kind::Internal, "the backup became a full one").object(reason));
        }
        self.pair("backup", summary.backup_id.to_string());
        self.pair("read", figures_of::read(&summary));
        self.pair("new", figures_of::new(&summary));
        self.pair("stored", figures_of::stored(&summary));
        self.pair("position", position(&summary)?.to_string());
        self.pair("meanwhile", figures::counted(commits, "transaction"));
        let engine = figures_of::engine_line(&summary.engine);
        self.pair("engine", engine).flush();
        Ok((summary, commits))
    }

    /// The clients commit for a while, and nothing else happens.
    fn work(&mut self, shop: &mut Shop) -> Result<u64> {
        let signals = self.context.signals;
        let ((), commits) = shop.work_beside(|| {
            let began = Instant::now();
            while began.elapsed() < WORK && !signals.raised() {
                std::thread::sleep(SIGNAL_INTERVAL);
            }
        })?;
        signals.check()?;
        self.pair("committed", figures::counted(commits, "transaction"))
            .flush();
        Ok(commits)
    }

    fn verify(&mut self, access: &RepoAccess) -> Result<VerifySummary> {
        self.say("verify the repository: read, unseal, decompress and hash everything");
        let options = VerifyOptions {
            repo: access.clone(),
            level: Level::Checksum,
            set: None,
        };
        let summary = self.context.watch(Some("verify"), |engine, tick| {
            verify::execute(engine, &options, tick)
        })?;
        if !summary.ok {
            let what = summary
                .findings
                .first()
                .map(|finding| format!("{}: {}", finding.object, finding.what));
            return Err(
                Error::new(Kind::VerifyFailed, "the demo's repository is damaged")
                    .object(what.unwrap_or_default()),
            );
        }
        self.pair(
            "verified",
            format!(
                "{} in {}, {}",
                figures::counted(summary.blocks, "block"),
                figures::counted(summary.objects, "object"),
                figures::duration(summary.engine.seconds)
            ),
        )
        .flush();
        Ok(summary)
    }

    fn bring_back(
        &mut self,
        access: &RepoAccess,
        to: &Path,
        backup: &BackupSummary,
        truth: &Truth,
    ) -> Result<(RestoreSummary, Compared)> {
        let options = RestoreOptions {
            repo: access.clone(),
            choice: backup.backup_id.to_string().as_str().into(),
            to: to.to_owned(),
            delta: false,
            estimate: false,
        };
        let summary = self.context.watch(Some("restore"), |engine, tick| {
            let plan = restore::plan(engine, &options, &mut *tick)?;
            restore::execute(engine, plan, tick)
        })?;
        self.context.signals.check()?;
        self.pair("restored", figures_of::restored(&summary));
        let position = position(backup)?;
        let settled = summary.settled.as_ref().map(|settled| settled.position);
        if settled != Some(position.0) {
            return Err(
                Error::new(Kind::Internal, "the restored database stands elsewhere")
                    .object(format!("{settled:?} instead of {position}")),
            );
        }
        let compared = compare(truth, to, position)?;
        self.pair("position", position.to_string());
        let equal = format!(
            "{} in {}, {}: all as they were after {}",
            figures::counted(compared.rows, "row"),
            figures::counted(compared.tables, "table"),
            figures::counted(compared.pages, "page"),
            figures::counted(compared.transactions, "transaction")
        );
        self.pair("compared", Cell::styled(equal, GREEN)).flush();
        Ok((summary, compared))
    }
}

/// The position at which a backup is consistent.
fn position(backup: &BackupSummary) -> Result<Lsn> {
    let range = backup.lsn_range.as_ref().map(|range| range.end);
    range.ok_or_else(|| Error::new(Kind::Internal, "the backup has no position"))
}

fn compare(truth: &Truth, root: &Path, end: Lsn) -> Result<Compared> {
    let Comparison {
        tables,
        rows,
        pages,
        transactions,
        differences,
    } = truth.compare(root, end)?;
    if !differences.is_empty() {
        return Err(Error::new(
            Kind::Internal,
            "the restored database differs from what was backed up",
        )
        .object(differences.join("; "))
        .hint("this must not happen: please report it"));
    }
    Ok(Compared {
        position: end,
        transactions,
        tables,
        rows,
        pages,
    })
}

/// 32 random bytes as hex, in a file for the owner alone.
fn write_passphrase(path: &Path) -> Result<()> {
    let text = hex::encode(&mover_io::random_bytes::<32>()?);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    file.and_then(|mut file| writeln!(file, "{text}"))
        .map_err(|error| failed("the passphrase cannot be written", path, error))
}

fn tell_end(context: &mut Context<'_>, summary: &Summary) {
    let (first, second) = (&summary.first_backup, &summary.second_backup);
    let title = context.out.paint("everything came back", GREEN);
    let share = second.bytes_stored as f64 / first.bytes_stored.max(1) as f64;
    context.out.line(format!(
        "{title} in {}; the second backup took {} of the first one's space",
        figures::duration(summary.seconds),
        figures::percent(share)
    ));
    match &summary.kept_in {
        Some(path) => {
            let path = clean(&path.display().to_string());
            context.out.line(format!("kept in {path}"));
        }
        None => context
            .out
            .line("removed everything; use --keep to look at it"),
    }
}
