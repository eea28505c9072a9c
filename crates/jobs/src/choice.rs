//! Which backup is meant: an id, or the latest, of everything or of one source and host.
//!
//! Invariants: a backup of another source or host than the one asked for is never chosen; one that cannot be read is passed over
//! with a warning only; what replaces data is not left to `latest` in silence where that may be somebody else's.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mover_base::{BackupId, Error, Kind, Result, Timestamp};
use mover_io::Shard;
use mover_repo::{BackupMetadata, Repository, SourceInfo, catalogue, host_name, is_unreadable};

/// What names the newest backup.
pub const LATEST: &str = "latest";
/// So many of the newest backups are looked at to see whether they are of one source and host.
const LOOKED_MAX: usize = 100;
/// And so long at most where that is no more than a precaution: behind a link each takes a request.
const LOOKING_MAX: Duration = Duration::from_secs(2);
/// So far ahead of this machine's clock may a backup's id be before that is told: the clocks of hosts differ.
const AHEAD_SECONDS_MAX: f64 = 3600.0;

/// Whose backups are meant; what is not named may be anything.
#[derive(Debug, Clone, Default)]
pub struct Whose {
    /// URL of the source.
    pub source: Option<String>,
    /// Name of the machine.
    pub host: Option<String>,
}

impl Whose {
    /// Whether a backup of `source` is meant.
    pub fn is_of(&self, source: &SourceInfo) -> bool {
        let fits = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|one| one == is);
        fits(&self.source, &source.url) && fits(&self.host, &source.host)
    }

    fn is_anybody(&self) -> bool {
        self.source.is_none() && self.host.is_none()
    }
}

/// Which backup is meant.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// An id, the beginning of one, or `latest`; the latest if nothing is said.
    pub set: Option<String>,
    /// Whose.
    pub whose: Whose,
}

impl From<&str> for Choice {
    fn from(set: &str) -> Self {
        Choice {
            set: Some(set.to_owned()),
            whose: Whose::default(),
        }
    }
}

/// A source and its machine, as people read them.
pub fn source_on(url: &str, host: &str) -> String {
    format!("{url} on {host}")
}

fn told(source: &SourceInfo) -> String {
    source_on(&source.url, &source.host)
}

/// What to know of `latest` where its id is of a time to come.
pub(crate) fn future_warning(latest: BackupId, now: Timestamp) -> Option<String> {
    let named = latest.started();
    (named.seconds_since(now) > AHEAD_SECONDS_MAX).then(|| {
        format!(
            "the id of backup {latest} says that it began at {named}, which is in the future: a clock was wrong, here or where it was made. Until then it may be the latest while others were made later, which `helios-mover list` shows"
        )
    })
}

/// The backup that `choice` names, and what to know about that. `replaces` says that it takes the place of data.
pub(crate) async fn choose(
    shard: &Shard,
    repository: &Repository,
    choice: &Choice,
    replaces: bool,
) -> Result<(BackupId, Vec<String>)> {
    let set = choice.set.as_deref().unwrap_or(LATEST);
    if set == LATEST && !choice.whose.is_anybody() {
        let (id, mut warnings) = latest_of(shard, repository, &choice.whose).await?;
        warnings.extend(future_warning(id, Timestamp::now()));
        return Ok((id, warnings));
    }
    let id = catalogue::find(shard, repository, set).await?;
    if !choice.whose.is_anybody() {
        let source = source_of(shard, repository, id).await?;
        if !choice.whose.is_of(&source) {
            let what = format!("backup {id} is of another source or host");
            return Err(Error::new(Kind::Usage, what)
                .object(told(&source))
                .hint("`helios-mover list` shows whose backups there are"));
        }
    }
    let mut warnings = Vec::new();
    if set == LATEST {
        warnings.extend(future_warning(id, Timestamp::now()));
        if replaces {
            let is_said = choice.set.is_some();
            warnings.extend(one_of_several(shard, repository, id, is_said).await?);
        }
    }
    Ok((id, warnings))
}

/// That the latest backup is one of several sources or hosts: refused if nobody said that it shall be that one.
async fn one_of_several(
    shard: &Shard,
    repository: &Repository,
    latest: BackupId,
    is_said: bool,
) -> Result<Option<String>> {
    let latest_source = source_of(shard, repository, latest).await?;
    let ids = catalogue::list(shard, repository).await?;
    let mut another = None;
    let others = ids.into_iter().rev().filter(|id| *id != latest);
    for id in others.take(LOOKED_MAX) {
        shard.stop()?;
        let source = readable(source_of(shard, repository, id).await)?;
        another = source.filter(|source| {
            (&source.url, &source.host) != (&latest_source.url, &latest_source.host)
        });
        if another.is_some() {
            break;
        }
    }
    let Some(another) = another else {
        return Ok(None);
    };
    let (is, other) = (told(&latest_source), told(&another));
    if is_said {
        return Ok(Some(format!(
            "the repository holds backups of several sources or hosts, {other} among them; the latest one is of {is}"
        )));
    }
    let what = "the repository holds backups of several sources or hosts, and none is named";
    Err(Error::new(Kind::Usage, what)
        .object(format!("the latest is of {is}, others are of {other}"))
        .hint("say which one shall take the place of what is there: --set ID, or --source and --host for the latest of those"))
}

/// The newest backup of them.
async fn latest_of(
    shard: &Shard,
    repository: &Repository,
    whose: &Whose,
) -> Result<(BackupId, Vec<String>)> {
    let mut warnings = Vec::new();
    let ids = catalogue::list(shard, repository).await?;
    for id in ids.into_iter().rev() {
        shard.stop()?;
        match readable(source_of(shard, repository, id).await)? {
            Some(source) if whose.is_of(&source) => return Ok((id, warnings)),
            Some(_) => {}
            None => warnings.push(format!(
                "backup {id} cannot be read, and may be a later one of the same source"
            )),
        }
    }
    let any = "any";
    let (source, host) = (whose.source.as_deref(), whose.host.as_deref());
    let asked = format!(
        "source {}, host {}",
        source.unwrap_or(any),
        host.unwrap_or(any)
    );
    Err(Error::new(
        Kind::NotFound,
        "the repository holds no backup of this source and host",
    )
    .object(asked)
    .hint("`helios-mover list` shows whose backups there are"))
}

/// The source that `target` is by its path and this machine's name, if the repository holds backups of it among the newest and `chosen`
/// is of another one.
pub(crate) async fn source_at(
    shard: &Shard,
    repository: &Repository,
    target: &Path,
    chosen: &BackupMetadata,
) -> Result<Option<String>> {
    let host = host_name();
    let paths: Vec<PathBuf> = [std::path::absolute(target), target.canonicalize()]
        .into_iter()
        .flatten()
        .collect();
    if is_at(&chosen.source, &paths, &host) {
        return Ok(None);
    }
    let begun = Instant::now();
    let ids = catalogue::list(shard, repository).await?;
    let others = ids.into_iter().rev().filter(|id| *id != chosen.backup_id);
    for id in others.take(LOOKED_MAX) {
        shard.stop()?;
        if begun.elapsed() > LOOKING_MAX {
            break;
        }
        match source_of(shard, repository, id).await {
            Ok(source) if is_at(&source, &paths, &host) => return Ok(Some(told(&source))),
            Ok(_) => {}
            Err(error) if error.kind() == Kind::Cancelled => return Err(error),
            // What is asked for is another one.
            Err(_) => {}
        }
    }
    Ok(None)
}

/// Whether a source is that of one of these paths on `host`.
fn is_at(source: &SourceInfo, paths: &[PathBuf], host: &str) -> bool {
    let path = source.url.split_once("://").map(|(_, path)| path);
    source.host == host && path.is_some_and(|path| paths.iter().any(|at| at == Path::new(path)))
}

async fn source_of(shard: &Shard, repository: &Repository, id: BackupId) -> Result<SourceInfo> {
    let open = catalogue::load_head(shard, repository, id).await?;
    Ok(open.head.metadata.source)
}

/// None of what is damaged, or was deleted since it was listed.
fn readable(source: Result<SourceInfo>) -> Result<Option<SourceInfo>> {
    match source {
        Ok(source) => Ok(Some(source)),
        Err(error) if is_unreadable(&error) || error.is_absence() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latest_backup_of_a_time_to_come_is_told() {
        let now = Timestamp::from_micros(1_795_371_249_000_000);
        let ahead = |seconds: i64| {
            let named = Timestamp::from_micros(now.as_micros() + seconds * 1_000_000);
            future_warning(BackupId::new(named, 0), now)
        };
        assert_eq!(ahead(-86_400), None);
        assert_eq!(ahead(3600), None, "as clocks differ");
        assert!(ahead(3601).unwrap().contains("is in the future"));
    }

    #[test]
    fn a_target_is_a_source_by_its_path_and_host_whatever_kind_it_is() {
        let paths = [PathBuf::from("/srv/db"), PathBuf::from("/data/db")];
        let is = |url: &str, host: &str| {
            let source = SourceInfo {
                url: url.to_owned(),
                kind: "dir".to_owned(),
                host: host.to_owned(),
            };
            is_at(&source, &paths, "db7")
        };
        assert!(is("dir:///srv/db", "db7") && is("pages:///data/db", "db7"));
        assert!(!is("dir:///srv/db", "db8"));
        assert!(!is("dir:///srv", "db7") && !is("dir:///srv/db/base", "db7"));
        assert!(!is("/srv/db", "db7"), "no URL");
    }

    #[test]
    fn whose_a_backup_is_goes_by_source_and_host_exactly() {
        let source = SourceInfo {
            url: "dir:///srv/db".to_owned(),
            kind: "dir".to_owned(),
            host: "db7".to_owned(),
        };
        let is_of = |source_url: Option<&str>, host: Option<&str>| {
            let whose = Whose {
                source: source_url.map(str::to_owned),
                host: host.map(str::to_owned),
            };
            whose.is_of(&source)
        };
        assert!(is_of(None, None));
        assert!(is_of(Some("dir:///srv/db"), Some("db7")));
        assert!(!is_of(Some("dir:///srv"), None));
        assert!(!is_of(None, Some("db")));
        assert!(!is_of(Some("dir:///srv/db"), Some("db8")));
    }
}
