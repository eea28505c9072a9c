//! `demo`: a small database is made, backed up, changed, backed up again, destroyed, restored and compared,
//! through the same jobs as every other verb.
//!
//! Invariants: everything lies in one new temporary directory, which is removed at the end whatever happens,
//! unless `--keep` says otherwise; a difference found by the comparison is an error, never a remark.

mod database;
mod pages;

use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use mover_base::units::format_bytes;
use mover_base::{BackupId, Error, Kind, Result};
use mover_jobs::backup::{self, BackupOptions, BackupSummary};
use mover_jobs::init::{self, InitOptions};
use mover_jobs::restore::{self, RestoreOptions, RestoreSummary};
use mover_jobs::verify::{self, Level, VerifyOptions, VerifySummary};
use mover_jobs::{
    BackupType, COMPRESSION_LEVEL_DEFAULT, Credentials, LinkLimits, RepoAccess, Secret,
};
use serde::Serialize;

use crate::args::DemoArgs;
use crate::config::secrets;
use crate::figures;
use crate::output::{BOLD, GREEN};
use crate::signals::Signals;
use crate::table::{Cell, Table};
use crate::verbs::{Context, figures_of};
use database::{Comparison, Database, Expected};

/// Free space that the demo needs: database, repository and a restored copy, with room to spare.
const FREE_BYTES_MIN: u64 = 700 << 20;

/// What the demo measured.
#[derive(Serialize)]
struct Summary {
    ok: bool,
    database_bytes: u64,
    pages_changed: u64,
    first_backup: BackupSummary,
    second_backup: BackupSummary,
    verify: VerifySummary,
    restore: RestoreSummary,
    comparison: Comparison,
    restore_of_first: RestoreSummary,
    comparison_of_first: Comparison,
    seconds: f64,
    kept_in: Option<PathBuf>,
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
        .map_err(|error| failed("the temporary directory cannot be made", &parent, error))?;
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
    tell_end(context, &summary);
    if !args.keep {
        let path = dir.path().to_owned();
        dir.close()
            .map_err(|error| failed("the demo's files cannot be removed", &path, error))?;
    }
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
        .hint("name another directory with TMPDIR"));
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
        let mut database = self.make_database(&home, seed)?;
        let access = self.make_repository(&repo)?;
        let as_of_first = database.expected();
        let first_backup = self.back_up(&access, &home, "back it up")?;
        let pages_changed = self.change(&mut database)?;
        let as_of_second = database.expected();
        let database_bytes = database.bytes();
        let second_backup = self.back_up(
            &access,
            &home,
            "back it up again: only what changed is stored",
        )?;
        let verify = self.verify(&access)?;

        self.say("destroy the database");
        database
            .destroy()
            .map_err(|error| failed("the database cannot be removed", &home, error))?;
        drop(database);
        let (restore, comparison) = self.bring_back(
            &access,
            &home,
            second_backup.backup_id,
            &as_of_second,
            "restore the second backup",
        )?;
        let elsewhere = self.dir.join("database-as-of-first");
        let (restore_of_first, comparison_of_first) = self.bring_back(
            &access,
            &elsewhere,
            first_backup.backup_id,
            &as_of_first,
            "restore the first backup, beside it",
        )?;
        Ok(Summary {
            ok: true,
            database_bytes,
            pages_changed,
            first_backup,
            second_backup,
            verify,
            restore,
            comparison,
            restore_of_first,
            comparison_of_first,
            seconds: 0.0,
            kept_in: None,
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

    fn make_database(&mut self, home: &Path, seed: u64) -> Result<Database> {
        self.say("make a database of 4 KiB pages, each with its position (LSN) and CRC");
        let mut go_on = go_on(self.context.signals);
        let began = Instant::now();
        let database = Database::create(home, seed, 1, &mut go_on)
            .map_err(|error| failed("the database cannot be made", home, error))?;
        let text = format!(
            "{} in {}, made in {}",
            format_bytes(database.bytes()),
            figures::counted(database.files(), "file"),
            figures::duration(began.elapsed().as_secs_f64())
        );
        self.pair("database", text).flush();
        Ok(database)
    }

    fn make_repository(&mut self, repo: &Path) -> Result<RepoAccess> {
        self.say("create an encrypted repository");
        let path = self.dir.join("passphrase");
        write_passphrase(&path)
            .map_err(|error| failed("the passphrase cannot be written", &path, error))?;
        let passphrase = secrets::read_passphrase(&path, &mut |_| {})?;
        let url = format!("file://{}", repo.display());
        let options = InitOptions {
            url: url.clone(),
            encryption: true,
            passphrase: Some(Secret::new(passphrase.expose().to_owned())),
            recipients: Vec::new(),
            label: "demo".into(),
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
        what: &'static str,
    ) -> Result<BackupSummary> {
        self.say(what);
        let options = BackupOptions {
            repo: access.clone(),
            source: format!("dir://{}", home.display()),
            backup_type: BackupType::Full,
            base: None,
            level: COMPRESSION_LEVEL_DEFAULT,
            annotations: [("made-by".to_owned(), "demo".to_owned())].into(),
            exclude: Vec::new(),
            one_file_system: false,
            estimate: false,
        };
        let summary = self.context.watch(Some("backup"), |engine, tick| {
            let plan = backup::plan(engine, &options, &mut *tick)?;
            backup::execute(engine, plan, tick)
        })?;
        self.pair("backup", summary.backup_id.to_string());
        let read = format_bytes(summary.bytes_read);
        let read = figures_of::timed(&read, &summary.engine, summary.bytes_per_second);
        self.pair("read", read);
        self.pair("new", figures_of::new(&summary));
        self.pair("stored", figures_of::stored(&summary));
        let engine = figures_of::engine_line(&summary.engine);
        self.pair("engine", engine).flush();
        Ok(summary)
    }

    fn change(&mut self, database: &mut Database) -> Result<u64> {
        self.say("change it: update rows on about 2 % of the pages, append some");
        let home = self.dir.join("database");
        let touched = database
            .change()
            .map_err(|error| failed("the database cannot be changed", &home, error))?;
        let total = database.bytes() / mover_base::BLOCK_BYTES as u64;
        self.pair(
            "touched",
            format!(
                "{} of {}",
                figures::count(touched),
                figures::counted(total, "page")
            ),
        )
        .flush();
        self.context.signals.check()?;
        Ok(touched)
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
        set: BackupId,
        truth: &Expected,
        what: &str,
    ) -> Result<(RestoreSummary, Comparison)> {
        self.say(what);
        let options = RestoreOptions {
            repo: access.clone(),
            set: set.to_string(),
            to: to.to_owned(),
            delta: false,
        };
        let summary = self.context.watch(Some("restore"), |engine, tick| {
            let plan = restore::plan(engine, &options, &mut *tick)?;
            restore::execute(engine, plan, tick)
        })?;
        self.pair("restored", figures_of::restored(&summary));
        let comparison = self.compare(to, truth)?;
        let equal = format!(
            "{} in {}: every byte as it was",
            format_bytes(comparison.bytes),
            figures::counted(comparison.files, "file")
        );
        self.pair("compared", Cell::styled(equal, GREEN)).flush();
        Ok((summary, comparison))
    }

    fn compare(&mut self, root: &Path, truth: &Expected) -> Result<Comparison> {
        let mut go_on = go_on(self.context.signals);
        let comparison = truth
            .compare(root, &mut go_on)
            .map_err(|error| failed("the restored database cannot be read", root, error))?;
        if comparison.differences.is_empty() {
            return Ok(comparison);
        }
        Err(Error::new(
            Kind::Internal,
            "the restored database differs from what was backed up",
        )
        .object(comparison.differences.join("; "))
        .hint("this must not happen: please report it"))
    }
}

/// For the demo's own reading and writing: fails once a signal has come.
fn go_on(signals: &Signals) -> impl FnMut() -> io::Result<()> + use<> {
    let signals = signals.clone();
    move || match signals.raised() {
        true => Err(io::ErrorKind::Interrupted.into()),
        false => Ok(()),
    }
}

/// 32 random bytes as hex, in a file for the owner alone.
fn write_passphrase(path: &Path) -> io::Result<()> {
    use std::io::{Read, Write};
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    writeln!(file, "{text}")
}

fn tell_end(context: &mut Context<'_>, summary: &Summary) {
    let (first, second) = (&summary.first_backup, &summary.second_backup);
    let title = context.out.paint("everything came back", GREEN);
    let share = second.bytes_stored as f64 / first.bytes_stored.max(1) as f64;
    context.out.line(format!(
        "{title}  in {}; the second backup took {} of the first one's space",
        figures::duration(summary.seconds),
        figures::percent(share)
    ));
    match &summary.kept_in {
        Some(path) => context.out.line(format!("kept in {}", path.display())),
        None => context
            .out
            .line("removed everything; use --keep to look at it"),
    }
}
