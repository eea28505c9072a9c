//! pgBackRest on a stopped cluster: as it comes, and told to store small files together.

use super::{PASSPHRASE, Round, Step};
use crate::command::Program;

/// As many processes as this machine has cores for.
fn processes() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("--process-max={cores}")
}

pub(super) fn program(step: Step, round: &Round<'_>, bundles: bool) -> Program {
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
        Step::Backup | Step::BackupUnchanged => program
            .args([
                "--no-online",
                "--type=full",
                "--compress-type=zst",
                "--compress-level=3",
                "--repo1-retention-full=9",
            ])
            .args(bundles.then_some("--repo1-bundle"))
            .args([processes(), "backup".to_owned()]),
        Step::Restore => program.args([processes(), "restore".to_owned()]),
        Step::Verify => program.args([processes(), "verify".to_owned()]),
    }
}
