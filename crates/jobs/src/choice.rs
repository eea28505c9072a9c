//! Which backup is meant: an id, or the latest, of everything or of one source and host.
//!
//! Invariants: a backup of another source or host than the one asked for is never chosen; one that cannot be read is passed over
//! with a warning only; what replaces data is not left to `latest` in silence where that may be somebody else's.

use mover_base::{BackupId, Error, Kind, Result};
use mover_io::Shard;
use mover_repo::{Repository, SourceInfo, catalogue, is_unreadable};

/// What names the newest backup.
pub const LATEST: &str = "latest";
/// So many of the newest backups are looked at to see whether they are of one source and host.
const LOOKED_MAX: usize = 100;

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

/// The backup that `choice` names, and what to know about that. `replaces` says that it takes the place of data.
pub(crate) async fn choose(
    shard: &Shard,
    repository: &Repository,
    choice: &Choice,
    replaces: bool,
) -> Result<(BackupId, Vec<String>)> {
    let set = choice.set.as_deref().unwrap_or(LATEST);
    if set == LATEST && !choice.whose.is_anybody() {
        return latest_of(shard, repository, &choice.whose).await;
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
    if set == LATEST && replaces {
        let is_said = choice.set.is_some();
        warnings.extend(one_of_several(shard, repository, id, is_said).await?);
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
    for id in ids.into_iter().rev().take(LOOKED_MAX) {
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

async fn source_of(shard: &Shard, repository: &Repository, id: BackupId) -> Result<SourceInfo> {
    let open = catalogue::load(shard, repository, id).await?;
    Ok(open.manifest.metadata.source)
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
