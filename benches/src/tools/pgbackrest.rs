//! pgBackRest on a stopped cluster.

use super::{PASSPHRASE, Round, Step};
use crate::command::Program;

/// As many processes as the reference machine has cores.
const PROCESSES: &str = "--process-max=2";

pub(super) fn program(step: Step, round: &Round<'_>) -> Program {
    let cluster = match step {
        Step::Restore => &round.target,
        _ => round.source,
    };
    let program = Program::new("pgbackrest")
        .args([
            "--stanza=bench",
            "--log-level-console=warn",
            "--log-level-file=off",
            "--config=/dev/null",
        ])
        .args([
            format!("--pg1-path={}", cluster.display()),
            format!("--repo1-path={}", round.repo.display()),
            format!("--lock-path={}", round.scratch.display()),
        ])
        .args(["--repo1-cipher-type=aes-256-cbc"])
        .env("PGBACKREST_REPO1_CIPHER_PASS", PASSPHRASE);
    match step {
        Step::Init => program.args(["--no-online", "stanza-create"]),
        Step::Backup | Step::BackupUnchanged => program.args([
            "--no-online",
            "--type=full",
            "--compress-type=zst",
            "--compress-level=3",
            "--repo1-retention-full=9",
            PROCESSES,
            "backup",
        ]),
        Step::Restore => program.args([PROCESSES, "restore"]),
        Step::Verify => program.args([PROCESSES, "verify"]),
    }
}
