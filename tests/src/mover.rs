//! The tool under test, as its users reach it: `helios-mover` with flags, files and environment.
//!
//! Invariants: nothing of the machine's environment reaches the tool but PATH; its configuration directory is
//! the test's own; every outcome keeps all that was printed, so that a failed assertion shows it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use age::secrecy::ExposeSecret;
use serde_json::Value;

use crate::run;
use crate::scratch::Scratch;
use crate::workspace;

/// Exit codes, as documented; written out here so that the tests notice when the tool's change.
pub mod exit {
    /// Done.
    pub const OK: i32 = 0;
    /// The command line, configuration file or environment is wrong.
    pub const USAGE: i32 = 2;
    /// The source cannot be read.
    pub const SOURCE: i32 = 10;
    /// The source changed while it was read.
    pub const SOURCE_CHANGED: i32 = 11;
    /// The target cannot be written.
    pub const TARGET: i32 = 20;
    /// The repository's storage failed.
    pub const STORAGE: i32 = 30;
    /// The storage did not answer.
    pub const UNREACHABLE: i32 = 31;
    /// The named thing does not exist.
    pub const NOT_FOUND: i32 = 32;
    /// It exists already.
    pub const CONFLICT: i32 = 33;
    /// The key is missing or wrong.
    pub const KEY: i32 = 40;
    /// Stored data is damaged, forged or of an unknown version.
    pub const CORRUPT: i32 = 50;
    /// Verification found damage.
    pub const VERIFY_FAILED: i32 = 51;
    /// `check` found something that would make a job fail.
    pub const CHECK_FAILED: i32 = 52;
    /// A stated limit was exceeded.
    pub const LIMIT: i32 = 60;
    /// Cancelled by a signal.
    pub const CANCELLED: i32 = 130;
}

/// The release binary under test: `HELIOS_MOVER_BIN`, or built here once.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("HELIOS_MOVER_BIN") {
            return PathBuf::from(path);
        }
        let cargo = env!("CARGO");
        run::checked(
            Command::new(cargo)
                .args(["build", "--release", "-p", "helios-mover"])
                .current_dir(workspace::root()),
        );
        let metadata = workspace::metadata();
        let target = metadata["target_directory"]
            .as_str()
            .expect("cargo metadata names the target directory");
        Path::new(target).join("release/helios-mover")
    })
}

/// Puts a copy of the tool where any user can run it. Another process writes it: a descriptor of this one that is open for writing
/// may be in a child that another thread starts at that moment, and until that runs its program the copy cannot be run.
pub fn copy_binary(to: &Path) {
    run::run("cp", [binary(), to]);
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).expect("mode can be set");
}

/// A command that runs the tool with `home` as its home and nothing else of the environment but PATH.
pub fn command(home: &Path) -> Command {
    isolated(Command::new(binary()), home)
}

/// `command` with `home` as its home and nothing else of the environment but PATH.
pub fn isolated(mut command: Command, home: &Path) -> Command {
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", home)
        .env("LC_ALL", "C.UTF-8")
        .current_dir(home);
    command
}

/// A command line without its environment, for messages.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// What a run of the tool printed and how it ended.
#[derive(Debug)]
pub struct Outcome {
    /// The command line, for messages.
    pub shown: String,
    /// Exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// Runs `command` to its end.
    pub fn of(command: &mut Command) -> Self {
        let output = run::output(command);
        Outcome::new(shown(command), &output)
    }

    /// From the output of a process that ended.
    pub fn new(shown: String, output: &Output) -> Self {
        Outcome {
            shown,
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Fails the test unless the tool ended with `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "exit code\n{self}");
        self
    }

    /// The single JSON document that a query printed.
    #[track_caller]
    pub fn document(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("not one JSON document: {error}\n{self}"))
    }

    /// All JSON lines of a job.
    #[track_caller]
    pub fn lines(&self) -> Vec<Value> {
        let parse = |line: &str| -> Value {
            let value: Value = serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("not JSON: {error}\n{self}"));
            assert!(
                matches!(
                    value["message_type"].as_str(),
                    Some("status" | "warning" | "summary" | "error")
                ),
                "unknown message type in {line}\n{self}"
            );
            value
        };
        self.stdout.lines().map(parse).collect()
    }

    /// The summary of a job that succeeded.
    #[track_caller]
    pub fn summary(&self) -> Value {
        assert_eq!(self.code, Some(exit::OK), "exit code\n{self}");
        self.last("summary")
    }

    /// The error document of a job that ended with `code`: it names the object, and says what to do next.
    #[track_caller]
    pub fn told(self, code: i32, object: &str) -> Value {
        let outcome = self.expect(code);
        let error = outcome.error();
        let text = |field: &str| error[field].as_str().unwrap_or_default();
        assert!(
            text("object").contains(object),
            "the object is not named: {object}\n{outcome}"
        );
        assert!(
            !text("object").is_empty() && !text("hint").is_empty(),
            "{outcome}"
        );
        error
    }

    /// The error document of a job that failed; its exit code must be that of the process.
    #[track_caller]
    pub fn error(&self) -> Value {
        let error = self.last("error");
        assert_eq!(
            error["exit_code"].as_i64(),
            self.code.map(i64::from),
            "exit code in the document\n{self}"
        );
        assert!(
            error["kind"].is_string() && error["message"].is_string(),
            "incomplete error document\n{self}"
        );
        assert!(
            error["hint"].as_str().is_some_and(|hint| !hint.is_empty()),
            "no word of what to do next\n{self}"
        );
        error
    }

    /// The summary of a job that came to its end and found something bad, which is before the error document.
    #[track_caller]
    pub fn bad_summary(&self) -> Value {
        self.error();
        let mut lines = self.lines().into_iter();
        let summary = lines.find(|line| line["message_type"] == "summary");
        summary.unwrap_or_else(|| panic!("no summary before the error\n{self}"))
    }

    /// The last line, which is of this type. A success has one summary and no error; a failure has one error, and a summary
    /// before it only where the verb came to its end and found something bad.
    #[track_caller]
    fn last(&self, message_type: &str) -> Value {
        let lines = self.lines();
        let of = |wanted: &str| -> Vec<&Value> {
            let is_wanted = |line: &&Value| line["message_type"] == wanted;
            lines.iter().filter(is_wanted).collect()
        };
        let (summaries, errors) = (of("summary"), of("error"));
        if message_type == "summary" {
            assert_eq!((summaries.len(), errors.len()), (1, 0), "ends\n{self}");
        } else {
            assert_eq!(errors.len(), 1, "errors\n{self}");
            assert!(summaries.len() <= 1, "summaries\n{self}");
            let is_good = |summary: &&Value| summary["ok"] == true;
            assert!(!summaries.iter().any(is_good), "a good summary\n{self}");
        }
        let last = lines
            .last()
            .unwrap_or_else(|| panic!("printed nothing\n{self}"));
        assert_eq!(last["message_type"], message_type, "last line\n{self}");
        last.clone()
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tail = |text: &str| -> String {
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(30)..].join("\n")
        };
        write!(
            f,
            "{}\nexit code {:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.shown,
            self.code,
            tail(&self.stdout),
            tail(&self.stderr)
        )
    }
}

/// The passphrase of repositories that have one.
pub const PASSPHRASE: &str = "correct horse battery staple";

/// How a repository is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// Not at all.
    None,
    /// By a passphrase.
    Passphrase,
    /// For an X25519 identity.
    Identity,
}

impl Protection {
    /// All of them.
    pub const ALL: [Protection; 3] = [
        Protection::None,
        Protection::Passphrase,
        Protection::Identity,
    ];
}

/// A repository anywhere, with what opens it.
#[derive(Debug, Clone)]
pub struct AnyRepo {
    url: String,
    home: PathBuf,
    environment: Vec<(String, String)>,
    key_args: Vec<OsString>,
}

impl AnyRepo {
    /// Initialises the repository at `url`, which is reached with the help of `environment`. Its keys lie in
    /// `scratch`, in files that begin with `name`.
    pub fn create(
        scratch: &Scratch,
        name: &str,
        url: &str,
        environment: &[(&str, &str)],
        protection: Protection,
    ) -> Self {
        let (repo, init) = AnyRepo::prepare(scratch, name, url, environment, protection);
        Outcome::of(&mut repo.init_command(&init)).expect(exit::OK);
        repo
    }

    /// What [`create`](Self::create) does but for running `init`: the repository that will be, and the flags of
    /// `init` that protect it.
    pub fn prepare(
        scratch: &Scratch,
        name: &str,
        url: &str,
        environment: &[(&str, &str)],
        protection: Protection,
    ) -> (Self, Vec<OsString>) {
        let (key_args, init) = match protection {
            Protection::None => (Vec::new(), vec!["--no-encryption".into()]),
            Protection::Passphrase => {
                let file = scratch.join(format!("{name}.passphrase"));
                secret_file(&file, &format!("{PASSPHRASE}\n"));
                let key: Vec<OsString> = vec!["--passphrase-file".into(), file.into()];
                (key.clone(), key)
            }
            Protection::Identity => {
                let (file, recipient) = identity(scratch, name);
                let key = vec!["--identity-file".into(), file.into()];
                (key, vec!["--recipient".into(), recipient.into()])
            }
        };
        let repo = AnyRepo {
            url: url.to_owned(),
            home: scratch.dir("home"),
            environment: owned(environment),
            key_args,
        };
        (repo, init)
    }

    /// The same repository opened by other means, such as a wrong key.
    pub fn opened_with(&self, key_args: &[&OsStr]) -> Self {
        AnyRepo {
            key_args: key_args.iter().map(|arg| arg.into()).collect(),
            ..self.clone()
        }
    }

    /// The same keys with another place, and another way to reach it.
    pub fn at(&self, url: &str, environment: &[(&str, &str)]) -> Self {
        AnyRepo {
            url: url.to_owned(),
            environment: owned(environment),
            ..self.clone()
        }
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The flags that open it.
    pub fn key_args(&self) -> &[OsString] {
        &self.key_args
    }

    /// The flags that name it and open it.
    fn access(&self) -> Vec<OsString> {
        let mut out = vec!["--repo".into(), self.url().into()];
        out.extend_from_slice(&self.key_args);
        out
    }

    /// A command of these words that can reach the repository and does not name it.
    fn reaching(&self, words: &[&str]) -> Command {
        let mut command = command(&self.home);
        let environment = self.environment.iter().map(|(name, value)| (name, value));
        command.args(words).envs(environment);
        command
    }

    /// `init` of this repository with flags that protect it.
    pub fn init_command(&self, protection: &[OsString]) -> Command {
        let mut command = self.reaching(&["init", "--repo", &self.url, "--json"]);
        command.args(protection);
        command
    }

    /// A command `verb` (of one word or two) on this repository.
    pub fn command(&self, verb: &str) -> Command {
        let words: Vec<&str> = verb.split(' ').collect();
        let mut command = self.reaching(&words);
        command.args(self.access());
        command
    }

    /// `backup --json` of a directory.
    pub fn backup(&self, source: &Path) -> Outcome {
        Outcome::of(&mut self.backup_command(source))
    }

    /// The command that [`backup`](Self::backup) runs.
    pub fn backup_command(&self, source: &Path) -> Command {
        let mut command = self.command("backup");
        command.args(["--source", &dir_url(source), "--type", "full", "--json"]);
        command
    }

    /// `restore --json` of a backup into `target`.
    pub fn restore(&self, set: &str, target: &Path) -> Outcome {
        Outcome::of(&mut self.restore_command(set, target))
    }

    /// The command that [`restore`](Self::restore) runs.
    pub fn restore_command(&self, set: &str, target: &Path) -> Command {
        let mut command = self.command("restore");
        command.args(["--set", set, "--json", "--to"]).arg(target);
        command
    }

    /// `verify --level checksum --json` of everything.
    pub fn verify(&self) -> Outcome {
        Outcome::of(
            self.command("verify")
                .args(["--level", "checksum", "--json"]),
        )
    }

    /// `list --json`.
    pub fn list(&self) -> Outcome {
        Outcome::of(self.command("list").arg("--json"))
    }

    /// The ids that `list` shows, oldest first.
    #[track_caller]
    pub fn ids(&self) -> Vec<String> {
        let outcome = self.list().expect(exit::OK);
        let document = outcome.document();
        let items = list_items(&document);
        let items = items.unwrap_or_else(|| panic!("no array of backups\n{outcome}"));
        let id = |item: &Value| {
            item["backup_id"]
                .as_str()
                .expect("every backup has an id")
                .to_string()
        };
        items.iter().map(id).collect()
    }
}

/// A repository in a local directory, with what opens it.
#[derive(Debug, Clone)]
pub struct Repo {
    /// Its directory.
    pub dir: PathBuf,
    any: AnyRepo,
}

impl Deref for Repo {
    type Target = AnyRepo;

    fn deref(&self) -> &AnyRepo {
        &self.any
    }
}

impl Repo {
    /// Initialises a repository `name` in `scratch`.
    pub fn create(scratch: &Scratch, name: &str, protection: Protection) -> Self {
        Repo::create_at(scratch, &scratch.join(name), protection)
    }

    /// Initialises a repository in `dir`; its keys lie in `scratch`.
    pub fn create_at(scratch: &Scratch, dir: &Path, protection: Protection) -> Self {
        let name = dir.file_name().expect("a repository has a name");
        let name = name.to_string_lossy();
        Repo {
            dir: dir.to_path_buf(),
            any: AnyRepo::create(scratch, &name, &file_url(dir), &[], protection),
        }
    }

    /// The same repository in another place, such as a copy of its directory.
    pub fn moved_to(&self, dir: &Path) -> Self {
        Repo {
            dir: dir.to_path_buf(),
            any: self.any.at(&file_url(dir), &[]),
        }
    }

    /// Every object of the repository, as (path below its directory, bytes), sorted.
    pub fn objects(&self) -> Vec<(PathBuf, Vec<u8>)> {
        Repo::objects_of(&self.dir)
    }

    /// Every object of the repository in `root`, as (path below it, bytes), sorted. What a job that runs takes away meanwhile is
    /// none any more.
    pub fn objects_of(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let mut out = Vec::new();
        let mut open = vec![root.to_path_buf()];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir).expect("repository is readable") {
                let path = entry.expect("repository is readable").path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    let name = path
                        .strip_prefix(root)
                        .expect("below the repository")
                        .to_path_buf();
                    match fs::read(&path) {
                        Ok(bytes) => out.push((name, bytes)),
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        Err(error) => panic!("{} cannot be read: {error}", path.display()),
                    }
                }
            }
        }
        out.sort();
        out
    }

    /// Bytes that the repository's objects take.
    pub fn stored_bytes(&self) -> u64 {
        self.objects()
            .iter()
            .map(|(_, bytes)| bytes.len() as u64)
            .sum()
    }
}

/// The backups in the document that `list` prints: an array, or an object that holds it as `backups`.
fn list_items(document: &Value) -> Option<&Vec<Value>> {
    document
        .as_array()
        .or_else(|| document["backups"].as_array())
}

fn owned(environment: &[(&str, &str)]) -> Vec<(String, String)> {
    let variables = environment.iter();
    variables
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn file_url(dir: &Path) -> String {
    format!("file://{}", dir.display())
}

/// `dir://` URL of a directory.
pub fn dir_url(path: &Path) -> String {
    format!(
        "dir://{}",
        path.to_str().expect("test directories have UTF-8 names")
    )
}

/// Writes a file that only its owner may read.
pub fn secret_file(path: &Path, text: &str) {
    fs::write(path, text).expect("secret can be written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("mode can be set");
}

/// A new X25519 identity: its file and its recipient.
pub fn identity(scratch: &Scratch, name: &str) -> (PathBuf, String) {
    let identity = age::x25519::Identity::generate();
    let file = scratch.join(format!("{name}.identity"));
    secret_file(
        &file,
        &format!("{}\n", identity.to_string().expose_secret()),
    );
    (file, identity.to_public().to_string())
}
