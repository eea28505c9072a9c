//! Child processes with their wall time, CPU time and peak memory, and the state of the caches around them.
//!
//! Invariants: wall time is taken around the process alone; CPU time is that of the process and of all its
//! children that it waited for; peak memory is that of the largest single process among them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mover_base::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

/// GNU time, which reports the usage of a process tree.
const TIME: &str = "/usr/bin/time";

/// Let the disk finish what `sync` started (discards of deleted files, journal writes) before the next measurement.
const SETTLE: Duration = Duration::from_millis(500);

/// Most characters of a failed program's own message that are repeated.
const MESSAGE_CHARS_MAX: usize = 600;

/// What a process used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Wall time from start to exit, in seconds.
    pub wall_seconds: f64,
    /// CPU time in user mode, in seconds.
    pub user_seconds: f64,
    /// CPU time in the kernel, in seconds.
    pub system_seconds: f64,
    /// Largest resident set of any one process, in bytes.
    pub rss_bytes: u64,
}

impl Usage {
    /// User and kernel CPU time together, in seconds.
    pub fn cpu_seconds(&self) -> f64 {
        self.user_seconds + self.system_seconds
    }
}

/// A program to run, with what messages call it.
#[derive(Debug)]
pub struct Program {
    name: String,
    binary: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    dir: Option<PathBuf>,
}

impl Program {
    /// The program `binary`, without arguments.
    pub fn new(binary: impl AsRef<Path>) -> Self {
        let binary = binary.as_ref().to_path_buf();
        Program {
            name: binary.display().to_string(),
            binary,
            args: Vec::new(),
            env: Vec::new(),
            dir: None,
        }
    }

    /// Adds arguments.
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds an argument that is a path.
    pub fn path(mut self, path: &Path) -> Self {
        self.args.push(path.display().to_string());
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets the working directory.
    pub fn dir(mut self, dir: &Path) -> Self {
        self.dir = Some(dir.to_path_buf());
        self
    }

    /// The same program, started by another one that takes it as its last arguments (`taskset -c 0`, say).
    pub fn through(self, starter: &str, args: &[&str]) -> Self {
        let own = [self.binary.display().to_string()];
        let args = args.iter().map(|arg| (*arg).to_owned());
        Program {
            binary: PathBuf::from(starter),
            args: args.chain(own).chain(self.args).collect(),
            ..self
        }
    }

    fn command(&self, binary: &Path) -> Command {
        let mut command = Command::new(binary);
        command
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null());
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command
    }

    fn cannot_start(&self, error: std::io::Error) -> Error {
        Error::new(Kind::CheckFailed, "a program could not be started")
            .object(&self.name)
            .hint("install it, or let benches/run install it")
            .cause(error)
    }

    fn failed(&self, code: Option<i32>, output: &[u8]) -> Error {
        let said = String::from_utf8_lossy(output);
        let skip = said.chars().count().saturating_sub(MESSAGE_CHARS_MAX);
        let said: String = said.trim().chars().skip(skip).collect();
        let verb = self.args.join(" ");
        Error::new(
            Kind::CheckFailed,
            format!("`{verb}` ended with {code:?}: {said}"),
        )
        .object(&self.name)
    }

    /// Runs it and returns what it printed on standard output.
    pub fn output(&self) -> Result<String> {
        let out = self
            .command(&self.binary)
            .args(&self.args)
            .output()
            .map_err(|e| self.cannot_start(e))?;
        if !out.status.success() {
            return Err(self.failed(out.status.code(), &out.stderr));
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Runs it under GNU time. Returns what it used and what it printed on standard output.
    pub fn timed(&self) -> Result<(Usage, String)> {
        let figures = tempfile::NamedTempFile::new().map_err(|e| {
            Error::new(Kind::CheckFailed, "no temporary file could be made").cause(e)
        })?;
        let mut command = self.command(Path::new(TIME));
        command
            .args(["--quiet", "-f", "%U %S %M", "-o"])
            .arg(figures.path())
            .arg(&self.binary)
            .args(&self.args);
        let start = Instant::now();
        let out = command.output().map_err(|e| self.cannot_start(e))?;
        let wall_seconds = start.elapsed().as_secs_f64();
        if !out.status.success() {
            let said = [&out.stdout[..], &out.stderr[..]].concat();
            return Err(self.failed(out.status.code(), &said));
        }
        let text = std::fs::read_to_string(figures.path()).unwrap_or_default();
        let usage = parse_figures(&text, wall_seconds).ok_or_else(|| {
            Error::new(
                Kind::Internal,
                "GNU time printed something else than three figures",
            )
            .object(&text)
        })?;
        Ok((usage, String::from_utf8_lossy(&out.stdout).into_owned()))
    }
}

fn parse_figures(text: &str, wall_seconds: f64) -> Option<Usage> {
    let mut fields = text.lines().last()?.split(' ');
    let mut next = || fields.next()?.parse::<f64>().ok();
    let (user_seconds, system_seconds, kib) = (next()?, next()?, next()?);
    Some(Usage {
        wall_seconds,
        user_seconds,
        system_seconds,
        rss_bytes: kib as u64 * 1024,
    })
}

/// Fails unless two directories hold the same names and bytes, but for names in `left_out`: a program that brings back
/// something else than it was given is not worth timing.
///
/// # Errors
/// [`Kind::CheckFailed`] with `who` brought it back.
pub fn compare_trees(who: &str, source: &Path, target: &Path, left_out: &[&str]) -> Result<()> {
    let left_out = left_out.iter().map(|name| format!("--exclude={name}"));
    let diff = Program::new("diff").args(["-r", "-q", "--no-dereference"]);
    let diff = diff.args(left_out).path(source).path(target);
    diff.output().map(drop).map_err(|e| {
        let what = format!("{who} brought back something else than it was given");
        Error::new(Kind::CheckFailed, what).cause(e)
    })
}

/// Writes everything dirty to the disk and returns how long that took, in seconds.
pub fn sync() -> f64 {
    let start = Instant::now();
    rustix::fs::sync();
    start.elapsed().as_secs_f64()
}

/// Empties the page cache, so that the next reader reads the disk.
pub fn drop_caches() -> Result<()> {
    sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").map_err(|e| {
        Error::new(Kind::CheckFailed, "the page cache could not be emptied")
            .object("/proc/sys/vm/drop_caches")
            .hint("run as root on a machine of your own")
            .cause(e)
    })?;
    std::thread::sleep(SETTLE);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_gnu_time_are_read() {
        let usage = parse_figures("1.50 0.25 2048\n", 3.0).unwrap();
        assert_eq!(usage.cpu_seconds(), 1.75);
        assert_eq!((usage.rss_bytes, usage.wall_seconds), (2 << 20, 3.0));
        for wrong in ["", "1.5", "a b c", "Command exited with non-zero status 1"] {
            assert!(parse_figures(wrong, 1.0).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_failing_program_is_an_error_with_its_own_words() {
        let program = Program::new("/bin/sh").args(["-c", "echo out of luck >&2; exit 3"]);
        let error = program.output().expect_err("fails");
        assert!(error.to_string().contains("out of luck"), "{error}");
        assert!(Program::new("/nonexistent/program").output().is_err());
    }

    #[test]
    fn trees_are_the_same_in_names_and_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        for tree in [&one, &other] {
            std::fs::create_dir_all(tree.join("sub")).unwrap();
            std::fs::write(tree.join("sub/file"), "same").unwrap();
        }
        let compare = |left_out: &[&str]| compare_trees("it", &one, &other, left_out);
        compare(&[]).unwrap();
        std::fs::write(other.join("sub/cache"), "more").unwrap();
        let error = compare(&[]).expect_err("a name more");
        assert!(error.to_string().contains("it brought back"), "{error}");
        compare(&["cache"]).unwrap();
        std::fs::write(other.join("sub/file"), "gone").unwrap();
        assert!(compare(&["cache"]).is_err());
    }
}
