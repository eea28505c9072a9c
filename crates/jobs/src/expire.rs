//! `expire`: deletes the backups that a policy does not keep, and what nobody needs any more. Plan, then execute.
//!
//! Invariants: a plan changes nothing; without any rule nothing is planned; what an execution deletes was in its plan, and
//! less of it where holds or running backups came in between.

use std::sync::{Arc, Mutex, PoisonError};

use mover_base::{Error, Kind, Result, SessionId, Timestamp};
use mover_io::Shard;
use mover_repo::{Repository, StageSeconds, expire, sessions};
use serde::Serialize;

use crate::backup::only;
use crate::machine::Clock;
use crate::progress::{Phase, Progress};
use crate::report::{EngineReport, ShardFigures};
use crate::session::SessionGuard;
use crate::settings::{Engine, RepoAccess, Tick};

pub use mover_repo::Life;
pub use mover_repo::expire::{
    Leftovers, OtherReason, PutOff, Reason, Refusal, SessionInfo, Verdict,
};
pub use mover_repo::policy::{Policy, Rule};

/// What to keep, and where.
#[derive(Debug, Clone)]
pub struct ExpireOptions {
    /// Which repository.
    pub repo: RepoAccess,
    /// What to keep.
    pub policy: Policy,
}

/// What would be deleted.
#[derive(Serialize)]
pub struct ExpirePlan {
    /// URL of the repository.
    pub repository: String,
    /// What to keep.
    pub policy: Policy,
    /// One verdict per backup, oldest first.
    pub backups: Vec<Verdict>,
    /// Backups that stay.
    pub kept: u64,
    /// Backups that go.
    pub expired: u64,
    /// Bytes of packs that nothing needs any more then, leftovers included.
    pub freed_bytes: u64,
    /// Packs that no manifest names.
    pub leftovers: Leftovers,
    /// Session objects that stand.
    pub sessions: Vec<SessionInfo>,
    /// Things to know.
    pub warnings: Vec<String>,
    #[serde(skip)]
    prepared: Prepared,
}

struct Prepared {
    repository: Arc<Repository>,
    plan: expire::Plan,
}

/// What was deleted.
#[derive(Debug, Serialize)]
pub struct ExpireSummary {
    /// Whether all that was to go and could go is gone.
    pub ok: bool,
    /// URL of the repository.
    pub repository: String,
    /// What became of each backup by the plan, oldest first.
    pub backups: Vec<Verdict>,
    /// What was done.
    #[serde(flatten)]
    pub outcome: expire::Outcome,
    /// The machinery.
    pub engine: EngineReport,
}

/// Looks at all backups and says which the policy deletes. Changes nothing.
pub fn plan(engine: &Engine, options: &ExpireOptions, tick: Tick<'_>) -> Result<ExpirePlan> {
    let policy = options.policy;
    if policy.is_empty() {
        return Err(Error::new(Kind::Usage, "nothing is said to be kept").hint(
            "give at least one of --keep-last, --keep-daily, --keep-weekly, --keep-monthly, --keep-within",
        ));
    }
    let progress = Progress::default();
    progress.begin(Phase::Prepare, 0, 0);
    let body = async |shard: Shard| {
        let repository = Arc::new(options.repo.open(&shard).await?);
        let plan = expire::plan(&shard, &repository, &policy, Timestamp::now()).await?;
        Ok((repository, plan))
    };
    let (repository, mut plan) = only(mover_io::run(&engine.single(), body, |stop| {
        tick(&progress, stop)
    })?)?;
    let backups = std::mem::take(&mut plan.verdicts);
    let expired = backups.iter().filter(|one| one.reasons.is_empty()).count() as u64;
    let freed: u64 = backups.iter().map(|one| one.freed_bytes).sum();
    Ok(ExpirePlan {
        repository: repository.url().to_owned(),
        policy,
        kept: backups.len() as u64 - expired,
        expired,
        freed_bytes: freed.saturating_add(plan.leftovers.bytes),
        leftovers: plan.leftovers,
        sessions: std::mem::take(&mut plan.sessions),
        warnings: std::mem::take(&mut plan.warnings),
        backups,
        prepared: Prepared { repository, plan },
    })
}

/// Deletes what was planned. Objects that the store keeps are in the summary.
pub fn execute(engine: &Engine, plan: ExpirePlan, tick: Tick<'_>) -> Result<ExpireSummary> {
    let clock = Clock::start();
    let progress = Progress::default();
    progress.begin(Phase::Delete, plan.freed_bytes, 0);
    let Prepared {
        repository,
        plan: prepared,
    } = plan.prepared;
    // The shard's body may be called once per shard, and there is one shard.
    let work = Mutex::new(Some(prepared));
    let told = |bytes| {
        progress.add_bytes(bytes);
        progress.add_files(1);
    };
    let _session = SessionGuard::new(engine, &repository);
    let body = async |shard: Shard| {
        let taken = work.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(plan) = taken else {
            return Err(Error::new(Kind::Internal, "an expire was executed twice"));
        };
        let outcome = expire::execute(&shard, &repository, plan, &told).await?;
        let figures = ShardFigures {
            report: shard.report(),
            // None of the stages of backups and restores is part of it.
            stages: StageSeconds::default(),
        };
        Ok((outcome, figures))
    };
    let (outcome, shard) = only(mover_io::run(&engine.single(), body, |stop| {
        tick(&progress, stop)
    })?)?;
    let mut summary = ExpireSummary {
        ok: outcome.refused == 0,
        repository: plan.repository,
        backups: plan.backups,
        outcome,
        engine: clock.report(vec![shard], repository.link_report()),
    };
    // Those of the plan were told with it, or are told now.
    summary.outcome.warnings.splice(0..0, plan.warnings);
    Ok(summary)
}

/// Takes a session object away whose process is known to be dead by whoever asks for it.
pub fn forget_session(engine: &Engine, repo: &RepoAccess, session: &str) -> Result<SessionId> {
    let body = async |shard: Shard| {
        let repository = repo.open(&shard).await?;
        sessions::forget(&shard, &repository, session).await
    };
    only(mover_io::run(&engine.single(), body, |_| {})?)
}
