//! Signals that end the tool at once, and it prints nothing more: the first one a query, the second one a job.

use rustix::process::Signal;

use super::full_pipe::is_in;
use super::*;

/// Starts a command that finds no room for its first line, and waits until it hangs.
fn hanging(command: &mut Command) -> (Job, FullPipe) {
    let (pipe, end) = FullPipe::new(true);
    let mut job = Job::start_into(command, end, Stdio::piped());
    let id = job.id();
    wait_until(|| hangs(id));
    (job, pipe)
}

#[test]
fn the_first_signal_ends_a_query_at_once() {
    let scratch = Scratch::new("ended-query");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    for signal in [Signal::INT, Signal::TERM] {
        let (mut query, pipe) = hanging(repo.command("list").arg("--json"));
        query.signal(signal);
        let code = query.status().code();
        assert_eq!(code, Some(exit::CANCELLED), "{signal:?}");
        assert_eq!(pipe.rest(), "", "{signal:?}");
    }
}

#[test]
fn the_second_signal_ends_a_job_at_once() {
    let scratch = Scratch::new("ended-job");
    let source = small_source(&scratch);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    for signal in [Signal::INT, Signal::TERM] {
        // It cannot end in order, since it hangs before it looks whether a signal has come.
        let (mut job, pipe) = hanging(&mut repo.backup_command(&source));
        let id = job.id();
        job.signal(signal);
        // Taken, and it hangs again: the first one has not ended it, and the second one is not taken for the same.
        wait_until(|| !is_in(id, "ShdPnd:", signal) && hangs(id));
        job.signal(signal);
        let code = job.status().code();
        assert_eq!(code, Some(exit::CANCELLED), "{signal:?}");
        assert_eq!(pipe.rest(), "", "{signal:?}");
    }
    assert!(repo.ids().is_empty());
}
