//! A run of the tool that is under way, and what is done to it meanwhile.
//!
//! Invariants: a job that a failed test leaves behind is killed; what ought to happen soon is waited for a minute, and
//! not for ever.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::mover::{Outcome, shown};
use crate::random::Random;

/// How often, and how many times, something that happens soon is looked for: a minute in all.
const POLL: Duration = Duration::from_millis(10);
const POLLS: u32 = 6000;
/// How often something is looked for that must be met while it is so.
const CLOSE_POLL: Duration = Duration::from_micros(500);

/// A run of the tool. What it prints is read when it has ended, so it must be less than a pipe holds (64 KiB).
#[derive(Debug)]
pub struct Job {
    shown: String,
    child: Option<Child>,
    /// Where its output goes, if that is a file.
    printed: Option<PathBuf>,
}

/// The most that was seen of a job while it ran.
#[derive(Debug, Default, Clone, Copy)]
pub struct Peaks {
    /// Its resident set, in bytes.
    pub rss_bytes: u64,
    /// Its open sockets.
    pub sockets: usize,
}

impl Job {
    /// Starts `command`.
    pub fn start(command: &mut Command) -> Self {
        Job::start_into(command, Stdio::piped(), Stdio::piped())
    }

    /// Starts `command`, whose output goes elsewhere and so is not in the outcome.
    pub fn start_into(command: &mut Command, stdout: Stdio, stderr: Stdio) -> Self {
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let child = command.spawn().expect("the tool starts");
        Job {
            shown: shown(command),
            child: Some(child),
            printed: None,
        }
    }

    /// Starts `command`, whose output goes into a new file, where it is seen while the job runs; the outcome has it too.
    pub fn start_printing(command: &mut Command, printed: PathBuf) -> Self {
        let stdout = File::create(&printed).expect("a file").into();
        let mut job = Job::start_into(command, stdout, Stdio::piped());
        job.printed = Some(printed);
        job
    }

    /// Starts `command`, which prints into a new file (see [`start_printing`](Self::start_printing)), and waits until it says that it
    /// is in `phase`: before that it may not listen to signals yet.
    #[track_caller]
    pub fn start_until(command: &mut Command, printed: PathBuf, phase: &str) -> Self {
        let mut job = Job::start_printing(command, printed);
        let begun = format!("\"phase\":\"{phase}\"");
        wait_until(|| job.has_said(&begun) || !job.is_running());
        assert!(job.is_running(), "ended too early\n{}", job.outcome());
        job
    }

    /// Whether a job that prints into a file has said this by now.
    pub fn has_said(&self, text: &str) -> bool {
        let printed = self.printed.as_deref().expect("it prints into a file");
        fs::read_to_string(printed).is_ok_and(|said| said.contains(text))
    }

    fn child(&mut self) -> &mut Child {
        self.child
            .as_mut()
            .expect("a job has a process until it is asked for its outcome")
    }

    /// Its process id.
    pub fn id(&mut self) -> u32 {
        self.child().id()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        let ended = self.child().try_wait().expect("a child can be waited for");
        ended.is_none()
    }

    /// Sends it a signal; it must be running.
    pub fn signal(&mut self, signal: Signal) {
        kill_process(Pid::from_child(self.child()), signal).expect("the tool still runs");
    }

    /// Waits for its end; returns also the most that was seen of it from outside.
    pub fn outcome_and_peaks(mut self) -> (Outcome, Peaks) {
        let id = self.id();
        let mut peaks = Peaks::default();
        while self.is_running() {
            let line = status_of(id, "VmHWM:");
            let kib = line.as_deref().and_then(|line| line.strip_suffix(" kB"));
            let rss_bytes = kib.map_or(0, |kib| kib.parse::<u64>().expect("a number") * 1024);
            peaks.rss_bytes = peaks.rss_bytes.max(rss_bytes);
            peaks.sockets = peaks.sockets.max(sockets_of(id));
            std::thread::sleep(POLL);
        }
        (self.outcome(), peaks)
    }

    /// Waits for its end, which is near.
    #[track_caller]
    pub fn status(mut self) -> ExitStatus {
        wait_until(|| !self.is_running());
        self.child().wait().expect("a child can be waited for")
    }

    /// Waits for its end.
    pub fn outcome(mut self) -> Outcome {
        let child = self.child.take().expect("a job ends once");
        let output = child.wait_with_output().expect("the tool ends");
        let mut outcome = Outcome::new(self.shown.clone(), &output);
        if let Some(printed) = self.printed.as_deref() {
            outcome.stdout = fs::read_to_string(printed).expect("what it printed");
        }
        outcome
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What `/proc` says of a process under `field`; none of one that has just ended.
pub fn status_of(id: u32, field: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(field))?;
    Some(value.trim().to_owned())
}

/// How many sockets a process has open; none if it has just ended.
fn sockets_of(id: u32) -> usize {
    let Ok(open) = fs::read_dir(format!("/proc/{id}/fd")) else {
        return 0;
    };
    let leads = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    leads
        .filter(|lead| lead.to_string_lossy().starts_with("socket:"))
        .count()
}

/// Waits for something that happens soon; a minute of waiting means that it never will.
#[track_caller]
pub fn wait_until(mut happened: impl FnMut() -> bool) {
    for _ in 0..POLLS {
        if happened() {
            return;
        }
        std::thread::sleep(POLL);
    }
    panic!("waited in vain");
}

/// Runs `command` and kills it after a random part of `usual`; returns whether it had ended before.
pub fn kill_within(command: &mut Command, usual: Duration, random: &mut Random) -> bool {
    let job = Job::start_into(command, Stdio::null(), Stdio::null());
    // A little more than usual, so that the very end is hit as well.
    let micros = random.below(usual.as_micros() as u64 * 5 / 4 + 1);
    std::thread::sleep(Duration::from_micros(micros));
    kill(job)
}

/// Kills a job; returns whether it had ended before.
fn kill(mut job: Job) -> bool {
    // Dropping it kills it.
    !job.is_running()
}

/// Runs `command` and kills it as soon as `happened` says so; returns whether it had ended before.
#[track_caller]
pub fn kill_when(command: &mut Command, mut happened: impl FnMut() -> bool) -> bool {
    let mut job = Job::start_into(command, Stdio::null(), Stdio::null());
    let give_up = Instant::now() + POLL * POLLS;
    while job.is_running() {
        if happened() {
            return kill(job);
        }
        assert!(Instant::now() < give_up, "waited in vain");
        std::thread::sleep(CLOSE_POLL);
    }
    true
}

/// How long `job` takes.
pub fn time_of(job: impl FnOnce()) -> Duration {
    let start = Instant::now();
    job();
    start.elapsed()
}
