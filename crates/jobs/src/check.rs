//! `check`: would a job work here? Environment, repository and source are looked at, nothing is changed.
//!
//! Invariant: an item fails only if a job would fail; what merely costs speed or comfort is a warning.

use mover_base::units::format_bytes;
use mover_base::{Error, Result};
use mover_io::{Rung, Shard, ShardReport};
use mover_repo::catalogue;
use mover_source::pages::{LiveStore, SCHEME};
use mover_source::{DirSource, ScanOptions};
use serde::Serialize;

use crate::backup::only;
use crate::settings::{Engine, RepoAccess};

/// What to do about names that none of a repository's objects has.
pub const STRAY_HINT: &str =
    "they are passed over; move them out of the repository if they do not belong there";

/// What to look at besides the environment.
#[derive(Debug, Clone)]
pub struct CheckOptions {
    /// A repository.
    pub repo: Option<RepoAccess>,
    /// URL of a source.
    pub source: Option<String>,
}

/// How an item stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Works, with a drawback.
    Warn,
    /// A job would fail.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct CheckItem {
    /// `environment`, `repository` or `source`.
    pub area: &'static str,
    /// What.
    pub name: &'static str,
    /// How it stands.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Everything that was looked at.
#[derive(Debug, Serialize)]
pub struct CheckReport {
    /// Nothing failed.
    pub ok: bool,
    /// The items.
    pub items: Vec<CheckItem>,
}

/// Looks at everything; a problem is an item, not an error.
pub fn run(engine: &Engine, options: &CheckOptions) -> Result<CheckReport> {
    let mut items = environment(engine);
    if let Some(repo) = &options.repo {
        items.extend(repository(engine, repo));
    }
    if let Some(url) = &options.source {
        items.push(source(url));
    }
    let ok = items.iter().all(|item| item.status != Status::Fail);
    Ok(CheckReport { ok, items })
}

fn item(
    area: &'static str,
    name: &'static str,
    status: Status,
    detail: impl Into<String>,
) -> CheckItem {
    CheckItem {
        area,
        name,
        status,
        detail: detail.into(),
        hint: None,
    }
}

fn failed(area: &'static str, name: &'static str, error: &Error) -> CheckItem {
    CheckItem {
        hint: error.hint_text().map(str::to_owned),
        ..item(area, name, Status::Fail, error.to_string())
    }
}

fn environment(engine: &Engine) -> Vec<CheckItem> {
    const AREA: &str = "environment";
    let reports = engine
        .wide()
        .and_then(|config| mover_io::run(&config, async |shard: Shard| Ok(shard.report()), |_| {}));
    let reports: Vec<ShardReport> = match reports {
        Ok(reports) => reports,
        Err(error) => return vec![failed(AREA, "shards", &error)],
    };
    let mut items = vec![item(
        AREA,
        "shards",
        Status::Ok,
        format!("{} shards", reports.len()),
    )];
    if let Some(report) = reports.first() {
        let is_best = report.rung == Rung::DeferTaskrun;
        items.push(CheckItem {
            hint: report.rung_reason.clone(),
            ..item(
                AREA,
                "I/O rung",
                if is_best { Status::Ok } else { Status::Warn },
                rung_name(report.rung),
            )
        });
        items.push(CheckItem {
            hint: (!report.buffers_registered)
                .then(|| "raise the memlock limit: `helios-mover tune` shows how".to_owned()),
            ..item(
                AREA,
                "registered buffers",
                if report.buffers_registered {
                    Status::Ok
                } else {
                    Status::Warn
                },
                if report.buffers_registered {
                    "yes"
                } else {
                    "no"
                },
            )
        });
    }
    items
}

fn rung_name(rung: Rung) -> &'static str {
    match rung {
        Rung::DeferTaskrun => "io_uring, deferred task work",
        Rung::CoopTaskrun => "io_uring, cooperative task work",
        Rung::PlainRing => "io_uring, plain",
        Rung::Threads => "threads",
    }
}

fn repository(engine: &Engine, repo: &RepoAccess) -> Vec<CheckItem> {
    const AREA: &str = "repository";
    let body = async |shard: Shard| {
        let repository = repo.open(&shard).await?;
        let listed = catalogue::list_all(&shard, &repository).await?;
        let slots = repository.slots(&shard).await?;
        let leftovers = repository.store().stale_temporaries(&shard).await;
        let detail = match (repository.is_encrypted(), repository.can_read()) {
            (false, _) => "not encrypted",
            (true, true) => "encrypted; the key opens it",
            (true, false) => "encrypted; without a key it can be written and not read",
        };
        let mut items = vec![
            item(AREA, "header and key", Status::Ok, detail),
            item(AREA, "backups", Status::Ok, listed.ids.len().to_string()),
        ];
        let damaged = slots.slots.iter().filter(|slot| slot.damaged);
        items.extend(damaged.map(|slot| {
            let problem = slot.problem.as_deref().unwrap_or_default();
            CheckItem {
                hint: Some("copy it back, or remove it with `helios-mover key remove`".to_owned()),
                ..item(
                    AREA,
                    "key slot",
                    Status::Warn,
                    format!("{} cannot be used: {problem}", slot.object),
                )
            }
        }));
        items.extend(stray_names(&[listed.strays, slots.strays].concat()));
        match leftovers {
            Ok(leftovers) if leftovers.is_empty() => {}
            Ok(leftovers) => {
                let text = format!(
                    "{} unfinished uploads of jobs that were killed over a day ago",
                    leftovers.len()
                );
                items.push(item(AREA, "leftovers", Status::Warn, text));
            }
            // Not every store lists them, and no job needs the list.
            Err(error) => items.push(item(AREA, "leftovers", Status::Warn, error.to_string())),
        }
        match repository.store().try_out(&shard).await {
            Ok(weaknesses) => {
                let detail = "an object can be written and thrown away";
                items.push(item(AREA, "writable", Status::Ok, detail));
                let told = |weakness| item(AREA, "store", Status::Warn, weakness);
                items.extend(weaknesses.into_iter().map(told));
            }
            Err(error) => items.push(failed(AREA, "writable", &error)),
        }
        Ok(items)
    };
    match mover_io::run(&engine.single(), body, |_| {}).and_then(only) {
        Ok(items) => items,
        Err(error) => vec![failed(AREA, "header and key", &error)],
    }
}

/// What stands in the repository and is none of its objects. Packs are not listed here: that takes time.
fn stray_names(strays: &[String]) -> Option<CheckItem> {
    (!strays.is_empty()).then(|| CheckItem {
        hint: Some(STRAY_HINT.to_owned()),
        ..item("repository", "stray names", Status::Warn, strays.join(", "))
    })
}

fn source(url: &str) -> CheckItem {
    const AREA: &str = "source";
    if url.starts_with(SCHEME) {
        return page_store(AREA, url);
    }
    let scanned = DirSource::open(url).and_then(|source| source.scan(&ScanOptions::default()));
    match scanned {
        Ok(tree) => {
            let detail = format!(
                "{} files, {}; {} names will be left out",
                tree.totals.files,
                format_bytes(tree.totals.bytes),
                tree.skipped.len()
            );
            let status = if tree.skipped.is_empty() {
                Status::Ok
            } else {
                Status::Warn
            };
            item(AREA, "readable", status, detail)
        }
        Err(error) => failed(AREA, "readable", &error),
    }
}

fn page_store(area: &'static str, url: &str) -> CheckItem {
    match LiveStore::open(url).and_then(|store| store.checkpoint()) {
        Ok(checkpoint) => {
            let tables = checkpoint.catalogue.tables();
            let pages: u64 = tables.values().map(|table| u64::from(table.pages)).sum();
            let detail = format!(
                "{} tables, {}, in history {}",
                tables.len(),
                format_bytes(mover_repo::block_bytes(pages)),
                checkpoint.control.identity.history
            );
            item(area, "readable", Status::Ok, detail)
        }
        Err(error) => failed(area, "readable", &error),
    }
}
