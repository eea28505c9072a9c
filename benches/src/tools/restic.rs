//! restic with a repository of version 2, which compresses.

use super::{PASSPHRASE, Round, Step};
use crate::command::Program;

pub(super) fn program(step: Step, round: &Round<'_>) -> Program {
    let program = Program::new("restic")
        .args(["--no-cache", "--quiet", "--repo"])
        .path(&round.repo)
        .env("RESTIC_PASSWORD", PASSPHRASE);
    match step {
        Step::Init => program.args(["init", "--repository-version", "2"]),
        Step::Backup | Step::BackupUnchanged => program
            .args(["backup", "--compression", "auto"])
            .path(round.source),
        Step::Restore => program
            .args(["restore", "latest", "--target"])
            .path(&round.target),
        Step::Verify => program.args(["check", "--read-data"]),
    }
}
