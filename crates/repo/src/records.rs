//! Records: writing, reading and listing the small objects beside the manifests.
//!
//! Invariants: a record is created if absent and never changed; whoever can read checks it before it is written; a host
//! that cannot read can write any of them, and list their names.

use mover_base::checksum::{Sha256, sha256};
use mover_base::{Error, Kind, ObjectId, Result};
use mover_format::frame::{COMPRESSION_LEVEL_DEFAULT, FrameDecoder, FrameEncoder};
use mover_format::preamble::{ObjectType, Preamble};
use mover_format::record::{RECORD_BYTES_MAX, Record};
use mover_format::seal::Origin;
use mover_io::Shard;
use mover_store::{Key, ObjectInfo, Put, STRAYS_MAX};

use crate::layout;
use crate::reader::damaged;
use crate::repository::{Repository, Session, over_cap};

/// Names listed per request.
const LIST_LIMIT: usize = 1000;
/// Objects that are looked up at a time.
const LOOKUPS_AT_ONCE: usize = 16;
/// Most records of one kind that are listed at once; some 100 bytes each.
const RECORDS_MAX: usize = 500_000;
/// Most objects that a listing passes over because they do not belong there: a directory that was copied to the wrong place has
/// fewer, and a listing that never ends more.
const FOREIGN_MAX: usize = 100_000;

/// A record that was read.
pub(crate) struct OpenRecord {
    pub record: Record,
    pub origin: Origin,
    /// SHA-256 of the wrapped key of the session that wrote it.
    pub wrapped_key_sha256: Sha256,
}

/// Names below a prefix.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub keys: Vec<Key>,
    /// Names that no object can have, at most [`STRAYS_MAX`].
    pub strays: Vec<String>,
}

/// The bytes of a record under `id`. Ask once per id in a session.
pub(crate) fn encode(
    repository: &Repository,
    session: &Session,
    id: ObjectId,
    record: &Record,
) -> Result<Vec<u8>> {
    let (preamble, sealer) = session.begin_object(record.object_type(), id)?;
    let encoder = &mut FrameEncoder::new(COMPRESSION_LEVEL_DEFAULT)?;
    let bytes = record.encode_object(&preamble, &sealer, encoder)?;
    if repository.can_read()
        && decode(repository, record.object_type(), id, &bytes)?.record != *record
    {
        return Err(Error::new(
            Kind::Internal,
            "a record does not decode to what was encoded",
        ));
    }
    Ok(bytes)
}

/// Creates a record whose name nobody else can have chosen.
pub(crate) async fn create_unique(
    shard: &Shard,
    repository: &Repository,
    key: &Key,
    bytes: &[u8],
) -> Result<()> {
    let mut upload = repository.store().upload_unique(shard, key).await?;
    let mut buf = shard.buffer().await;
    // A record is far smaller than a buffer.
    buf[..bytes.len()].copy_from_slice(bytes);
    upload.push(buf, bytes.len()).await?;
    match upload.commit().await? {
        Put::Created => Ok(()),
        Put::Exists => Err(
            Error::new(Kind::Conflict, "another writer used the same random id")
                .object(key.as_str())
                .hint("try again"),
        ),
    }
}

/// Reads a record of this type and id.
pub(crate) async fn get(
    shard: &Shard,
    repository: &Repository,
    key: &Key,
    object_type: ObjectType,
    id: ObjectId,
) -> Result<OpenRecord> {
    let store = repository.store();
    let bytes = store
        .get(shard, key, RECORD_BYTES_MAX as u64)
        .await
        .map_err(|error| over_cap(error, |error| damaged(key, error)))?;
    decode(repository, object_type, id, &bytes).map_err(|error| damaged(key, error))
}

fn decode(
    repository: &Repository,
    object_type: ObjectType,
    id: ObjectId,
    bytes: &[u8],
) -> Result<OpenRecord> {
    let (preamble, _) = Preamble::decode(bytes)?;
    let (sealer, origin) = repository.open_object(&preamble, object_type, id)?;
    let record = Record::decode_object(bytes, &preamble, &sealer, &mut FrameDecoder::new())?;
    Ok(OpenRecord {
        record,
        origin,
        wrapped_key_sha256: sha256(&preamble.wrapped_key),
    })
}

/// Takes down a name that is a key and that no object of its kind has, unless there are as many as are told.
pub(crate) fn keep_stray(strays: &mut Vec<String>, key: &Key) {
    if strays.len() < STRAYS_MAX {
        strays.push(key.as_str().to_owned());
    }
}

/// All names below `prefix`.
pub(crate) async fn names(shard: &Shard, repository: &Repository, prefix: &str) -> Result<Names> {
    let mut keys = Vec::new();
    let strays = each_object(shard, repository, prefix, |object| {
        if keys.len() == RECORDS_MAX {
            return Err(too_many(prefix));
        }
        keys.push(object.key.clone());
        Ok(true)
    })
    .await?;
    Ok(Names { keys, strays })
}

/// The error for more records below `prefix` than are listed. Each verb that would take some away lists them first, so that is left
/// to the operator.
fn too_many(prefix: &str) -> Error {
    let hint = if prefix.starts_with(layout::SESSIONS) {
        "delete the oldest of them, of hosts that run no backup meanwhile, with the storage's own tools; then run `expire --confirm` \
         more often, which takes away those whose backups stand"
    } else if prefix.starts_with(layout::EXPIRED) {
        "while no `expire` runs anywhere they mean nothing: delete them then, with the storage's own tools"
    } else if prefix.starts_with(layout::HOLDS) {
        "delete those that are not needed with the storage's own tools; the first part of each name is the backup that it holds"
    } else {
        "delete those that are not needed with the storage's own tools; the first part of each name is the backup that it belongs to"
    };
    let what = format!("over {RECORDS_MAX} objects stand there");
    Error::new(Kind::Limit, what).object(prefix).hint(hint)
}

/// Gives every object below `prefix` to `each`, which says whether it is one of those that belong there. Returns the names
/// of those that do not, and names that no object can have, [`STRAYS_MAX`] at most.
///
/// # Errors
/// Those of the store and of `each`; `Limit` for over [`FOREIGN_MAX`] objects that do not belong there.
pub(crate) async fn each_object(
    shard: &Shard,
    repository: &Repository,
    prefix: &str,
    mut each: impl FnMut(&ObjectInfo) -> Result<bool>,
) -> Result<Vec<String>> {
    let (mut strays, mut foreign, mut after) = (Vec::new(), 0, None);
    loop {
        shard.stop()?;
        let store = repository.store();
        let page = store
            .list(shard, prefix, after.as_ref(), LIST_LIMIT)
            .await?;
        strays.extend(page.strays);
        for object in page.objects {
            if !each(&object)? {
                foreign += 1;
                strays.push(object.key.as_str().to_owned());
            }
        }
        strays.truncate(STRAYS_MAX);
        if foreign > FOREIGN_MAX {
            let what =
                format!("over {FOREIGN_MAX} objects stand there that are none of a repository");
            return Err(Error::new(Kind::Limit, what).object(prefix).hint(
                "move them elsewhere; if they are not there, the repository's storage, or a proxy before it, lists what it has not",
            ));
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(strays),
        }
    }
}

/// Asks `ask` of each item, [`LOOKUPS_AT_ONCE`] of them at a time; the answers come in the order of the items.
pub(crate) async fn at_once<T, R: 'static, F>(
    shard: &Shard,
    items: Vec<T>,
    ask: impl Fn(T) -> F,
) -> Result<Vec<R>>
where
    F: Future<Output = Result<R>> + 'static,
{
    let mut answers = Vec::with_capacity(items.len());
    let mut items = items.into_iter().fuse();
    loop {
        shard.stop()?;
        let some = items.by_ref().take(LOOKUPS_AT_ONCE);
        let asked: Vec<_> = some.map(|item| shard.spawn(ask(item))).collect();
        if asked.is_empty() {
            return Ok(answers);
        }
        for one in asked {
            let answer = one.await.map_err(|error| {
                Error::new(Kind::Internal, "a look-up ended without a result").cause(error)
            })?;
            answers.push(answer?);
        }
    }
}

/// Whether an error says that an object is there and cannot be read: for want of a key, or because it is damaged or too long.
pub fn is_unreadable(error: &Error) -> bool {
    matches!(error.kind(), Kind::Key | Kind::Corrupt | Kind::Limit)
}

/// The only listed id that begins with `text`.
pub(crate) fn only_match<T: ToString>(
    ids: impl Iterator<Item = T>,
    text: &str,
    what: &str,
) -> Result<T> {
    let mut matching = ids.filter(|id| id.to_string().starts_with(text));
    let missing = |problem: String| Err(Error::new(Kind::NotFound, problem).object(text));
    match (matching.next(), matching.next()) {
        (Some(id), None) if !text.is_empty() => Ok(id),
        (Some(first), Some(second)) => {
            let candidates = [first, second].into_iter().chain(matching);
            Err(ambiguous(text, what, candidates.map(|id| id.to_string())))
        }
        _ => missing(format!("there is no such {what}")),
    }
}

/// The error for the beginning of an id that several have.
pub(crate) fn ambiguous(text: &str, what: &str, candidates: impl Iterator<Item = String>) -> Error {
    const NAMED_MAX: usize = 5;
    let mut named: Vec<String> = candidates.take(NAMED_MAX + 1).collect();
    if named.len() > NAMED_MAX {
        named.truncate(NAMED_MAX);
        named.push("...".to_owned());
    }
    let named = named.join(", ");
    Error::new(
        Kind::Usage,
        format!("several {what}s begin with this id: {named}"),
    )
    .object(text)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use mover_io::ShardConfig;

    use super::*;

    #[test]
    fn an_id_is_found_by_a_beginning_that_only_it_has() {
        let find = |text: &str| only_match(["12ab", "12cd", "3"].into_iter(), text, "thing");
        assert_eq!(find("12a").unwrap(), "12ab");
        assert_eq!(find("12ab").unwrap(), "12ab");
        assert_eq!(find("3").unwrap(), "3");
        for (text, problem) in [
            ("12", "several things begin with this id: 12ab, 12cd"),
            ("", "several things begin with this id: 12ab, 12cd, 3"),
            ("4", "there is no such thing"),
            ("12abc", "there is no such thing"),
        ] {
            let error = find(text).unwrap_err();
            let kind = match problem.contains("several") {
                true => Kind::Usage,
                false => Kind::NotFound,
            };
            assert_eq!(error.kind(), kind, "{text}");
            assert!(error.to_string().contains(problem), "{text}: {error}");
        }
        assert!(only_match(["3"].into_iter(), "", "thing").is_err());
        let many = only_match(10..20, "1", "thing").unwrap_err();
        assert!(
            many.message().ends_with(": 10, 11, 12, 13, 14, ..."),
            "{many}"
        );
    }

    #[test]
    fn whatever_there_is_too_much_of_the_error_says_what_to_do() {
        let hint = |prefix: &str| {
            let error = too_many(prefix);
            assert_eq!(
                (error.kind(), error.object_name()),
                (Kind::Limit, Some(prefix))
            );
            error.hint_text().map(str::to_owned).unwrap()
        };
        assert!(hint(layout::SESSIONS).contains("`expire --confirm`"));
        assert!(hint(layout::EXPIRED).contains("while no `expire` runs"));
        for prefix in [
            layout::HOLDS,
            layout::ANNOTATIONS,
            "holds/20261122-181409-7f3a9c2e/",
        ] {
            assert!(hint(prefix).contains("is the backup that it"), "{prefix}");
        }
    }

    #[test]
    fn what_is_missing_or_out_of_reach_is_not_unreadable() {
        let is = |kind| is_unreadable(&Error::new(kind, "x"));
        assert!([Kind::Key, Kind::Corrupt, Kind::Limit].into_iter().all(is));
        let others = [
            Kind::NotFound,
            Kind::Storage,
            Kind::Unreachable,
            Kind::Cancelled,
        ];
        assert!(!others.into_iter().any(is));
    }

    #[test]
    fn so_many_are_asked_at_a_time_and_answered_in_order() {
        let config = ShardConfig {
            shards: 1,
            pin: false,
            ..ShardConfig::default()
        };
        let body = async |shard: Shard| {
            let (asked, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
            let ask = |item: usize| {
                let (shard, asked, most) = (shard.clone(), asked.clone(), most.clone());
                async move {
                    asked.set(asked.get() + 1);
                    most.set(most.get().max(asked.get()));
                    // The later ones are answered first.
                    for _ in item..200 {
                        shard.turn().await;
                    }
                    asked.set(asked.get() - 1);
                    Ok(item)
                }
            };
            let items: Vec<usize> = (0..100).collect();
            assert_eq!(at_once(&shard, items.clone(), ask).await?, items);
            assert_eq!(most.get(), LOOKUPS_AT_ONCE);
            let fail = |item: usize| async move {
                match item {
                    7 => Err(Error::new(Kind::Storage, "one fails")),
                    _ => Ok(item),
                }
            };
            let failed = at_once(&shard, items, fail).await;
            assert_eq!(failed.map(drop).unwrap_err().kind(), Kind::Storage);
            Ok(())
        };
        mover_io::run(&config, body, |_| {}).unwrap();
    }
}
