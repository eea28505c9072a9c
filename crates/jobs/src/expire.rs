//! `expire`: deletes the backups that a policy does not keep, and what nobody needs any more. Plan, then execute.
//!
//! Invariants: a plan changes nothing; without any rule nothing is planned, unless backups are named, or none for what others left;
//! what an execution deletes was in its plan, and less of it where holds or running backups came in between.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use mover_base::{BackupId, Error, Kind, Result, SessionId, Timestamp};
use mover_io::Shard;
use mover_repo::expire::Scope;
use mover_repo::{Repository, StageSeconds, catalogue, expire, sessions};
use serde::Serialize;

use crate::backup::only;
use crate::choice::{LATEST, Whose};
use crate::machine::Clock;
use crate::progress::{Phase, Progress};
use crate::report::{EngineReport, ShardFigures, Spent};
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
    /// Of which backups.
    pub scope: ExpireScope,
}

impl ExpireOptions {
    /// Of all backups, those that the policy does not keep.
    pub fn by_rules(repo: RepoAccess, policy: Policy) -> Self {
        ExpireOptions {
            repo,
            policy,
            scope: ExpireScope::default(),
        }
    }
}

/// Which backups an expire is about; all others stay.
#[derive(Debug, Clone)]
pub enum ExpireScope {
    /// Those of a source and host, or of any, by the policy.
    Rules(Whose),
    /// These, by their ids or the beginnings of these, whatever the policy says. None: only what no backup needs.
    Named(Vec<String>),
}

impl Default for ExpireScope {
    fn default() -> Self {
        ExpireScope::Rules(Whose::default())
    }
}

impl ExpireScope {
    /// Finds out which backups are named.
    async fn resolve(&self, shard: &Shard, repository: &Repository) -> Result<Scope> {
        let sets = match self {
            ExpireScope::Rules(Whose { source, host }) => {
                return Ok(Scope::Rules {
                    source: source.clone(),
                    host: host.clone(),
                });
            }
            ExpireScope::Named(sets) => sets,
        };
        let mut named = BTreeSet::new();
        for set in sets {
            // Another one may be by the time it is deleted.
            if set == LATEST {
                let what = "a backup that is to be deleted has to be named";
                return Err(Error::new(Kind::Usage, what)
                    .object(set)
                    .hint("give its id, which `helios-mover list` shows"));
            }
            named.insert(catalogue::find(shard, repository, set).await?);
        }
        Ok(Scope::Named(named))
    }
}

/// What would be deleted.
#[derive(Serialize)]
pub struct ExpirePlan {
    /// URL of the repository.
    pub repository: String,
    /// What to keep.
    pub policy: Policy,
    /// Of this source only.
    pub source: Option<String>,
    /// Of this host only.
    pub host: Option<String>,
    /// The backups that are to go whatever the policy says.
    pub named: Option<Vec<BackupId>>,
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
    /// On planning.
    spent: Spent,
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
    /// Whether those that went were named, and none went by a rule.
    pub named: bool,
    /// What was done.
    #[serde(flatten)]
    pub outcome: expire::Outcome,
    /// The machinery.
    pub engine: EngineReport,
}

impl ExpirePlan {
    /// Refuses to go on where a backup that was named stays: who names one wants it gone, and not what is left of the wish.
    fn require_named(&self) -> Result<()> {
        let named = self.named.iter().flatten();
        let mut verdicts = named.filter_map(|id| {
            let at = self.backups.binary_search_by_key(id, |one| one.backup_id);
            self.backups.get(at.ok()?)
        });
        let Some(kept) = verdicts.find(|one| !one.reasons.is_empty()) else {
            return Ok(());
        };
        let (what, hint) = match kept.reasons.contains(&Reason::Other(OtherReason::Hold)) {
            true => (
                "a backup that is to be deleted is held; nothing was deleted",
                "`helios-mover hold list` says why; `helios-mover hold remove` takes the hold away",
            ),
            false => (
                "a backup that has not ended builds on one that is to be deleted; nothing was deleted",
                self.how_to_end_what_builds_on(kept.backup_id),
            ),
        };
        Err(Error::new(Kind::Conflict, what)
            .object(kept.backup_id.to_string())
            .hint(hint))
    }

    /// A session that has died protects what it builds on until an execution clears it, which one that is refused does not come to.
    fn how_to_end_what_builds_on(&self, backup: BackupId) -> &'static str {
        let builds = |one: &&SessionInfo| !one.is_over && one.parents.contains(&backup);
        let processes = self.sessions.iter().filter(builds).map(|one| one.process);
        let processes: Vec<Life> = processes.collect();
        if processes.contains(&Life::Running) {
            return "run this again when it has ended";
        }
        match processes.contains(&Life::Unknown) {
            true => {
                "it runs on another host, or has died: run this again when it has ended; if it is dead, give its session up, which this shows without --confirm: `helios-mover expire --forget-session ID --confirm`"
            }
            false => {
                "it has died: `helios-mover expire --leftovers --confirm` clears it; run this again after that"
            }
        }
    }
}

/// Looks at all backups and says which of those that it is about the policy deletes. Changes nothing.
pub fn plan(engine: &Engine, options: &ExpireOptions, tick: Tick<'_>) -> Result<ExpirePlan> {
    let policy = options.policy;
    if policy.is_empty() && matches!(options.scope, ExpireScope::Rules(_)) {
        return Err(Error::new(Kind::Usage, "nothing is said to be kept").hint(
            "give at least one of --keep-last, --keep-daily, --keep-weekly, --keep-monthly, --keep-within; or the backup that shall go (--set ID); or --leftovers for what no backup needs",
        ));
    }
    let clock = Clock::start();
    let progress = Progress::default();
    progress.begin(Phase::Prepare, 0, 0);
    let body = async |shard: Shard| {
        let repository = Arc::new(options.repo.open(&shard).await?);
        let scope = options.scope.resolve(&shard, &repository).await?;
        let plan = expire::plan(&shard, &repository, &policy, &scope, Timestamp::now()).await?;
        Ok((repository, scope, plan))
    };
    let (repository, scope, mut plan) = only(mover_io::run(&engine.single(), body, |stop| {
        tick(&progress, stop)
    })?)?;
    let backups = std::mem::take(&mut plan.verdicts);
    plan.warnings
        .extend(nobodys_warning(&options.scope, &backups));
    let expired = backups.iter().filter(|one| one.reasons.is_empty()).count() as u64;
    let freed: u64 = backups.iter().map(|one| one.freed_bytes).sum();
    let (source, host, named) = match scope {
        Scope::Rules { source, host } => (source, host, None),
        Scope::Named(named) => (None, None, Some(named.into_iter().collect())),
    };
    Ok(ExpirePlan {
        repository: repository.url().to_owned(),
        policy,
        source,
        host,
        named,
        kept: backups.len() as u64 - expired,
        expired,
        freed_bytes: freed.saturating_add(plan.leftovers.bytes),
        leftovers: plan.leftovers,
        sessions: std::mem::take(&mut plan.sessions),
        warnings: std::mem::take(&mut plan.warnings),
        backups,
        prepared: Prepared {
            repository,
            plan,
            spent: Spent::since(&clock),
        },
    })
}

/// That the rules are for the backups of a source or host that has none, as where either is misspelt.
fn nobodys_warning(scope: &ExpireScope, backups: &[Verdict]) -> Option<String> {
    let ExpireScope::Rules(whose) = scope else {
        return None;
    };
    let is_other = |one: &Verdict| one.reasons.contains(&Reason::Other(OtherReason::NotAsked));
    (!backups.is_empty() && backups.iter().all(is_other)).then(|| {
        let any = "any";
        let source = whose.source.as_deref().unwrap_or(any);
        let host = whose.host.as_deref().unwrap_or(any);
        format!(
            "none of the repository's backups is of source {source}, host {host}, so no rule is applied to any: `helios-mover list` shows whose there are"
        )
    })
}

/// Deletes what was planned. Objects that the store keeps are in the summary.
pub fn execute(engine: &Engine, plan: ExpirePlan, tick: Tick<'_>) -> Result<ExpireSummary> {
    let clock = Clock::start();
    plan.require_named()?;
    let progress = Progress::default();
    progress.begin(Phase::Delete, plan.freed_bytes, 0);
    let Prepared {
        repository,
        plan: prepared,
        spent,
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
    let report = clock.report(vec![shard], repository.link_report());
    let mut summary = ExpireSummary {
        ok: outcome.refused == 0,
        repository: plan.repository,
        backups: plan.backups,
        named: plan.named.is_some(),
        outcome,
        engine: report.with_plan(spent),
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
