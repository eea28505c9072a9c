//! borg with keys in the repository and zstd 3.

use super::{PASSPHRASE, Round, Step};
use crate::command::Program;

pub(super) fn program(step: Step, round: &Round<'_>) -> Program {
    let archive = format!("{}::backup", round.repo.display());
    let program = Program::new("borg")
        .env("BORG_PASSPHRASE", PASSPHRASE)
        .env("BORG_BASE_DIR", round.scratch.display().to_string());
    match step {
        Step::Init => program
            .args(["init", "--encryption", "repokey-blake2"])
            .path(&round.repo),
        Step::Backup | Step::BackupUnchanged => program
            .args(["create", "--compression", "zstd,3"])
            .args([archive, ".".into()])
            .dir(round.source),
        Step::Restore => program.args(["extract"]).args([archive]).dir(&round.target),
        Step::Verify => program.args(["check", "--verify-data"]).path(&round.repo),
    }
}
