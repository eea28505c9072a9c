//! Object stores: where a repository keeps its objects.
//!
//! An object is a run of bytes under a [`Key`]. It is written once and whole, never changed, and deleted
//! whole. [`Store`] is the closed set of drivers; each keeps the same promises, which the conformance suite
//! under `tests/` holds them to:
//!
//! - **Created only if absent.** Of any number of writers of a key exactly one is told [`Put::Created`]; what
//!   it wrote is never replaced.
//! - **Durable on return.** What [`Store::put_if_absent`] or [`Upload::commit`] reports survives a power cut,
//!   and [`Put::Exists`] is as durable as [`Put::Created`].
//! - **All or nothing.** Before `commit` nothing is visible under the key; after an error, an abort or a drop
//!   nothing ever will be, save where only the last step of durability failed.
//! - **An error is never "empty" or "absent".** A listing is complete or an error.
//!
//! Everything runs on the calling [`Shard`]: no threads, no runtime of its own. Data moves in the buffers of
//! that shard's arena.

mod bounds;
mod key;
pub mod local;
mod piece;
pub mod s3;
mod slice;
mod traffic;

use std::path::Path;
use std::sync::Arc;

use mover_base::{Error, Kind, Result, Timestamp};
use mover_io::{BUF_BYTES, RateBudget, Shard};

pub use key::{Key, LOST_AND_FOUND, TEMPORARY_PART};
use piece::Memory;
pub use piece::Piece;
pub use slice::Slice;
pub use traffic::LinkReport;

/// Longest single [`Store::read`] in bytes: a buffer less a block at either end, so that a range of any
/// alignment fits with the blocks around it.
pub const READ_BYTES_MAX: usize = BUF_BYTES - 8192;
/// Longest piece of a [`Reader::read_run`] in bytes: more than the longest frame or directory of a pack.
pub const PIECE_BYTES_MAX: usize = 8 << 20;
/// Most bytes that one request asks for: more than a pack has.
pub const RUN_BYTES_MAX: u64 = 16 << 20;
/// Most objects in one [`Page`]: about 1.5 MiB of names and sizes.
pub const LIST_LIMIT_MAX: usize = 10_000;
/// Most strays told by one [`Page`]; more say nothing more, and names may be long.
pub const STRAYS_MAX: usize = 100;
/// Most leftovers told by one call of [`Store::stale_temporaries`].
pub(crate) const TEMPORARIES_MAX: usize = 10_000;
/// Age from which an unfinished upload, or a temporary object, counts as left over by a killed job, in milliseconds. In a
/// directory every write renews it, and no job pauses for a day between two; in a bucket it counts from where an upload began,
/// and none takes a day.
pub const STALE_AFTER_MS: i64 = 24 * 3600 * 1000;

/// What a repository's URL looks like.
const URL_FORMS: &str = "write file:///srv/backup for a directory, or s3://bucket/prefix?region=eu-central-1 for a bucket";

/// How a conditional write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// This call created the object.
    Created,
    /// An object of that name existed; it was left as it is. It may hold other bytes.
    Exists,
}

/// Whether anybody else may want to write the same object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rivals {
    /// Others may choose the same key at the same time.
    Possible,
    /// Nobody else can have chosen it.
    None,
    /// Only earlier tries of the same writer with the same bytes.
    OwnTries,
}

/// An object as seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its name.
    pub key: Key,
    /// Its length in bytes.
    pub bytes: u64,
}

/// A part of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// In byte order of their keys.
    pub objects: Vec<ObjectInfo>,
    /// Names in this part that no object can have, escaped and in order, [`STRAYS_MAX`] at most. What has them
    /// was passed over.
    pub strays: Vec<String>,
    /// Where there are more: the `after` of the next page.
    pub next: Option<Key>,
}

/// How it went to try a store out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tried {
    /// Why what was written, or an upload in parts that was begun, is still there, if it could not be deleted.
    pub undeleted: Option<Weakness>,
    /// What works, and not as well as in other stores.
    pub weaknesses: Vec<Weakness>,
}

/// What a store does not do as well as others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weakness {
    /// What it is.
    pub what: String,
    /// What would help.
    pub hint: Option<String>,
}

impl From<&Error> for Weakness {
    fn from(error: &Error) -> Self {
        Weakness {
            what: error.to_string(),
            hint: error.hint_text().map(str::to_owned),
        }
    }
}

/// An unfinished upload that nobody seems to work on any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Temporary {
    /// Its name in the store's area for unfinished uploads.
    pub name: String,
    /// Bytes it occupies.
    pub bytes: u64,
    /// When it was last written.
    pub modified: Timestamp,
}

/// Limits on the link to a store; they may change while a job runs. A directory has no link.
#[derive(Debug, Clone)]
pub struct LinkLimits {
    /// On what is sent, in bytes per second.
    pub upload: Arc<RateBudget>,
    /// On what is received, in bytes per second.
    pub download: Arc<RateBudget>,
    /// On what is asked for, in requests per second, tries after the first included.
    pub requests: Arc<RateBudget>,
}

impl Default for LinkLimits {
    fn default() -> Self {
        LinkLimits {
            upload: RateBudget::new(None),
            download: RateBudget::new(None),
            requests: RateBudget::new(None),
        }
    }
}

/// A place that keeps objects. Cheap to clone, shared by all shards.
#[derive(Debug, Clone)]
pub enum Store {
    /// A directory of a local or mounted file system.
    Local(local::LocalStore),
    /// A bucket of an S3-compatible store, or a prefix in it.
    S3(s3::S3Store),
}

impl Store {
    /// Opens the store at `url`: `file:///absolute/path`, taken literally behind `file://`, or
    /// `s3://bucket/prefix?region=...`. Nothing is read or created yet.
    ///
    /// # Errors
    /// [`Kind::Usage`] where the URL is not one of a supported store.
    pub fn open(url: &str, limits: &LinkLimits) -> Result<Store> {
        let Some((scheme, rest)) = url.split_once("://") else {
            let mut error = Error::new(Kind::Usage, "the repository is not named by a URL");
            if url.starts_with('/') {
                error = error.object(url).hint(format!("write file://{url}"));
            }
            return Err(error.hint(URL_FORMS));
        };
        match scheme {
            "file" => Ok(Store::Local(local::LocalStore::open(rest)?)),
            "s3" => Ok(Store::S3(s3::S3Store::open(rest, limits)?)),
            // Only the scheme is shown: what follows may hold a password.
            _ => Err(
                Error::new(Kind::Usage, "this kind of repository URL is not supported")
                    .object(format!(
                        "{}://",
                        scheme.chars().take(20).collect::<String>().escape_debug()
                    ))
                    .hint(URL_FORMS),
            ),
        }
    }

    /// Opens the store at `url` and creates the place that holds it, durably: the directory and its missing
    /// ancestors, entered by the owner alone. One that exists is left as it is, whatever it holds. A bucket is not
    /// created: where it lies and who may use it is for its owner to say.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`Kind::Usage`] where something else has that name; [`Kind::Storage`].
    pub fn create_root(url: &str, limits: &LinkLimits) -> Result<Store> {
        let store = Store::open(url, limits)?;
        match &store {
            Store::Local(local) => local.create_root()?,
            Store::S3(_) => {}
        }
        Ok(store)
    }

    /// The URL, without trailing slashes.
    pub fn url(&self) -> &str {
        match self {
            Store::Local(local) => local.url(),
            Store::S3(s3) => s3.url(),
        }
    }

    /// The directory that holds the objects, if they are on this machine.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Store::Local(local) => Some(local.directory()),
            Store::S3(_) => None,
        }
    }

    /// What its file system can still take, in bytes, without what is reserved for root. None of a store that has no file system,
    /// or where it does not say.
    pub fn free_bytes(&self) -> Option<u64> {
        let found = rustix::fs::statvfs(self.directory()?).ok()?;
        Some(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Whether objects go over a link, where each request costs something: there [`Reader::read_run`] asks for more than a
    /// buffer at a time, and buffers make it faster.
    pub fn has_link(&self) -> bool {
        match self {
            Store::Local(_) => false,
            Store::S3(_) => true,
        }
    }

    /// What went over its link so far, by all shards; none of a directory.
    pub fn link_report(&self) -> Option<LinkReport> {
        match self {
            Store::Local(_) => None,
            Store::S3(s3) => Some(s3.link_report()),
        }
    }

    /// Writes `bytes` as the object `key` unless that exists. Durable on return.
    ///
    /// # Errors
    /// [`Kind::Storage`] where the store is full, forbids it or fails; [`Kind::Conflict`] where the key lies
    /// below an object or names a whole prefix; [`Kind::NotFound`] where the store itself does not exist.
    pub async fn put_if_absent(&self, shard: &Shard, key: &Key, bytes: &[u8]) -> Result<Put> {
        match self {
            Store::Local(local) => local.put_if_absent(shard, key, bytes).await,
            Store::S3(s3) => s3.put_if_absent(shard, key, bytes).await,
        }
    }

    /// Begins to write the object `key` piece by piece.
    ///
    /// # Errors
    /// As [`put_if_absent`](Self::put_if_absent).
    pub async fn upload(&self, shard: &Shard, key: &Key) -> Result<Upload> {
        self.upload_with(shard, key, Rivals::Possible).await
    }

    /// The same for a key that nobody else can have chosen, since it holds 128 random bits of this writer's. A store
    /// that cannot decide between rivals (no conditional writes) is then not made to, which takes several requests;
    /// that nothing exists under the key is looked at all the same.
    ///
    /// # Errors
    /// As [`put_if_absent`](Self::put_if_absent).
    pub async fn upload_unique(&self, shard: &Shard, key: &Key) -> Result<Upload> {
        self.upload_with(shard, key, Rivals::None).await
    }

    /// The same for a key that only this caller writes, and always with the same bytes (a copy of an object elsewhere,
    /// made under a lease). What an earlier try that was killed has sent already is not sent again where the store
    /// keeps it: on S3 the parts of an object of more than 16 MiB that match by length and checksum. So an upload
    /// that is dropped keeps its parts for the next try; [`Upload::abort`] throws them away.
    ///
    /// # Errors
    /// As [`put_if_absent`](Self::put_if_absent).
    pub async fn upload_again(&self, shard: &Shard, key: &Key) -> Result<Upload> {
        self.upload_with(shard, key, Rivals::OwnTries).await
    }

    /// Memory for the next piece of an upload to this store. Where that is a buffer of the arena, it is waited for.
    ///
    /// # Errors
    /// [`Kind::Storage`] where connections cannot be made at all.
    pub async fn piece(&self, shard: &Shard) -> Result<Piece> {
        match self {
            Store::Local(_) => Ok(shard.buffer().await.into()),
            Store::S3(s3) => s3.piece(shard),
        }
    }

    async fn upload_with(&self, shard: &Shard, key: &Key, rivals: Rivals) -> Result<Upload> {
        let any = match self {
            Store::Local(local) => AnyUpload::Local(local.upload(shard, key).await?),
            Store::S3(s3) => AnyUpload::S3(Box::new(s3.upload(shard, key, rivals).await?)),
        };
        Ok(Upload {
            any,
            key: key.clone(),
            state: UploadState::Open,
        })
    }

    /// The whole object `key`, of `bytes_max` bytes at most.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Limit`] where it is larger, before anything is allocated; [`Kind::Storage`].
    pub async fn get(&self, shard: &Shard, key: &Key, bytes_max: u64) -> Result<Vec<u8>> {
        match self {
            Store::Local(local) => local.get(shard, key, bytes_max).await,
            Store::S3(s3) => s3.get(shard, key, bytes_max).await,
        }
    }

    /// Bytes `offset..offset + len` of the object `key`, at any alignment, [`READ_BYTES_MAX`] at most. For many
    /// reads from few objects a [`reader`](Self::reader) is faster.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Corrupt`] where the object ends earlier; [`Kind::Limit`] where `len` is too
    /// large; [`Kind::Storage`].
    pub async fn read(&self, shard: &Shard, key: &Key, offset: u64, len: usize) -> Result<Slice> {
        match self {
            Store::Local(local) => local.read(shard, key, offset, len).await,
            Store::S3(s3) => s3.read(shard, key, offset, len).await,
        }
    }

    /// A reader for this shard that keeps what it needs (open files, connections) from one read to the next.
    pub fn reader(&self, shard: &Shard) -> Reader {
        match self {
            Store::Local(local) => Reader(AnyReader::Local(local.reader(shard))),
            Store::S3(s3) => Reader(AnyReader::S3(s3.reader(shard))),
        }
    }

    /// Name and size of the object `key`, or `None` where there is none.
    ///
    /// # Errors
    /// [`Kind::Storage`], and [`Kind::NotFound`] where the store itself does not exist.
    pub async fn head(&self, shard: &Shard, key: &Key) -> Result<Option<ObjectInfo>> {
        match self {
            Store::Local(local) => local.head(key).await,
            Store::S3(s3) => s3.head(shard, key).await,
        }
    }

    /// The first `limit` objects (from 1 to [`LIST_LIMIT_MAX`], larger is taken as that) whose keys begin with
    /// `prefix` and are greater than `after`, in byte order of their keys. Objects created or deleted while a
    /// listing runs may or may not appear; all others do.
    ///
    /// # Errors
    /// Any error means that the listing is incomplete and must not be used. [`Kind::Corrupt`] for a prefix
    /// that no key can have; also where a link or a device has an object's name. [`Kind::Storage`].
    pub async fn list(
        &self,
        shard: &Shard,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Page> {
        match self {
            Store::Local(local) => local.list(shard, prefix, after, limit).await,
            Store::S3(s3) => s3.list(shard, prefix, after, limit).await,
        }
    }

    /// Deletes the object `key`. Durable on return.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Storage`].
    pub async fn delete(&self, shard: &Shard, key: &Key) -> Result<()> {
        match self {
            Store::Local(local) => local.delete(shard, key).await,
            Store::S3(s3) => s3.delete(shard, key).await,
        }
    }

    /// Deletes the objects `keys`, whichever of them exist, by few requests. Durable on return. After an error any
    /// of them may be gone; called again it goes on.
    ///
    /// # Errors
    /// [`Kind::Storage`], naming an object that was refused; [`Kind::Unreachable`], where the store failed again and again: it
    /// names an object where that happened to one, and the store's place where it happened to a whole request.
    pub async fn delete_all(&self, shard: &Shard, keys: &[Key]) -> Result<()> {
        match self {
            Store::Local(local) => local.delete_all(shard, keys).await,
            Store::S3(s3) => s3.delete_all(shard, keys).await,
        }
    }

    /// Tries whether objects can be written, and leaves none behind where it may delete. Returns what the store's owner should
    /// know about it.
    ///
    /// # Errors
    /// As [`put_if_absent`](Self::put_if_absent).
    pub async fn try_out(&self, shard: &Shard) -> Result<Tried> {
        match self {
            Store::Local(local) => local.try_out(shard).await.map(|()| Tried::default()),
            Store::S3(s3) => s3.try_out(shard).await,
        }
    }

    /// Unfinished uploads not written to for [`STALE_AFTER_MS`], by name, ten thousand at most: what
    /// killed jobs left. Younger ones may belong to a running job and are not told. Others may use the same bucket: of
    /// uploads, only those of objects that `is_own` knows are told.
    ///
    /// # Errors
    /// [`Kind::Storage`], and [`Kind::NotFound`] where the store itself does not exist.
    pub async fn stale_temporaries(
        &self,
        shard: &Shard,
        is_own: impl Fn(&Key) -> bool,
    ) -> Result<Vec<Temporary>> {
        match self {
            Store::Local(local) => local.stale_temporaries().await,
            Store::S3(s3) => s3.stale_temporaries(shard, is_own).await,
        }
    }

    /// Removes a leftover that [`stale_temporaries`](Self::stale_temporaries) told.
    ///
    /// # Errors
    /// [`Kind::NotFound`] where it is gone; [`Kind::Conflict`] where it was written to meanwhile;
    /// [`Kind::Storage`].
    pub async fn remove_temporary(&self, shard: &Shard, temporary: &Temporary) -> Result<()> {
        match self {
            Store::Local(local) => local.remove_temporary(temporary).await,
            Store::S3(s3) => s3.remove_temporary(shard, temporary).await,
        }
    }
}

/// An object being written. Nothing is visible under its key before [`commit`](Self::commit). Dropped, it is
/// aborted as well as that can be done without waiting.
#[must_use = "an upload that is not committed is thrown away"]
pub struct Upload {
    any: AnyUpload,
    key: Key,
    state: UploadState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UploadState {
    Open,
    /// A short piece was pushed, which is the last one.
    Ended,
    Failed,
}

enum AnyUpload {
    Local(local::LocalUpload),
    S3(Box<s3::S3Upload>),
}

impl Upload {
    /// Appends `piece[..len]`. Every piece but the last is exactly [`BUF_BYTES`] long, an empty one is a last
    /// one. Best is memory that [`Store::piece`] gave; other is copied where need be. Returns when the write is accepted,
    /// which may wait for earlier ones; an error of an earlier write may come out here. After an error the upload can
    /// only be aborted or dropped.
    ///
    /// # Errors
    /// [`Kind::Storage`] as for [`Store::put_if_absent`]; [`Kind::Internal`] for a piece after a short one.
    pub async fn push(&mut self, piece: impl Into<Piece>, len: usize) -> Result<()> {
        let piece = piece.into();
        match self.state {
            UploadState::Open => {}
            UploadState::Ended => return Err(self.misuse("a piece was pushed after a short one")),
            UploadState::Failed => return Err(self.misuse("a piece was pushed after an error")),
        }
        if len > piece.len() {
            return Err(self.misuse("a piece is longer than its buffer"));
        }
        if len < BUF_BYTES {
            self.state = UploadState::Ended;
        }
        if len == 0 {
            return Ok(());
        }
        let pushed = match (&mut self.any, piece) {
            (AnyUpload::Local(local), Piece(Memory::Buffer(buf))) => local.push(buf, len).await,
            (AnyUpload::Local(local), own) => local.push_copy(&own[..len]).await,
            (AnyUpload::S3(s3), Piece(Memory::Own(own))) => s3.push_owned(own, len).await,
            (AnyUpload::S3(s3), buffer) => s3.push(&buffer[..len]).await,
        };
        if pushed.is_err() {
            self.state = UploadState::Failed;
        }
        pushed
    }

    /// Ends the object and names it, unless its key exists. Durable on return.
    ///
    /// # Errors
    /// As [`Store::put_if_absent`]. The object is not visible then, except where only making its name durable
    /// failed: it may be visible then, whole, and may or may not survive a power cut.
    pub async fn commit(self) -> Result<Put> {
        if self.state == UploadState::Failed {
            return Err(self.misuse("an upload was committed after an error"));
        }
        match self.any {
            AnyUpload::Local(local) => local.commit().await,
            AnyUpload::S3(s3) => s3.commit().await,
        }
    }

    /// Throws the upload away.
    ///
    /// # Errors
    /// [`Kind::Storage`] where its bytes could not be removed.
    pub async fn abort(self) -> Result<()> {
        match self.any {
            AnyUpload::Local(local) => local.abort().await,
            AnyUpload::S3(s3) => s3.abort().await,
        }
    }

    fn misuse(&self, what: &str) -> Error {
        Error::new(Kind::Internal, what).object(self.key.as_str())
    }
}

/// Ranged reads from one shard; see [`Store::reader`]. Several reads may run at once.
pub struct Reader(AnyReader);

enum AnyReader {
    Local(local::LocalReader),
    S3(s3::S3Reader),
}

impl Reader {
    /// As [`Store::read`].
    ///
    /// # Errors
    /// As [`Store::read`].
    pub async fn read(&self, key: &Key, offset: u64, len: usize) -> Result<Slice> {
        match &self.0 {
            AnyReader::Local(local) => local.read(key, offset, len).await,
            AnyReader::S3(s3) => s3.read(key, offset, len).await,
        }
    }

    /// Bytes from `offset` on, cut into neighbouring pieces of these lengths, each [`PIECE_BYTES_MAX`] at most. They are
    /// handed to `take` in order, each as soon as it is there; after an error those that were are good. One request
    /// brings as many pieces as there are buffers for, so who keeps pieces holds buffers. Pieces of more than
    /// [`READ_BYTES_MAX`] may lie on the heap.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub async fn read_run(
        &self,
        key: &Key,
        offset: u64,
        lens: &[usize],
        take: &mut dyn FnMut(Slice),
    ) -> Result<()> {
        match &self.0 {
            AnyReader::Local(local) => local.read_run(key, offset, lens, take).await,
            AnyReader::S3(s3) => s3.read_run(key, offset, lens, take).await,
        }
    }

    /// How many bytes are best asked for at a time: more takes fewer requests where each costs something. It may
    /// change with the limits on the link.
    pub fn run_bytes_max(&self) -> u64 {
        match &self.0 {
            AnyReader::Local(_) => READ_BYTES_MAX as u64,
            AnyReader::S3(s3) => s3.run_bytes_max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_url_is_taken_literally_and_without_trailing_slashes() {
        for (url, kept) in [
            ("file:///srv/backup", "file:///srv/backup"),
            ("file:///srv/backup//", "file:///srv/backup"),
            ("file:///srv/my disk%20", "file:///srv/my disk%20"),
            ("file:///", "file:///"),
        ] {
            assert_eq!(
                Store::open(url, &LinkLimits::default()).unwrap().url(),
                kept
            );
        }
    }

    #[test]
    fn a_wrong_url_is_a_usage_error_with_a_hint() {
        for url in [
            "",
            "backup",
            "/srv/backup",
            "file://",
            "file://srv/backup",
            "file:///a\0b",
            "ftp://h/p",
        ] {
            let error = Store::open(url, &LinkLimits::default()).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{url:?}");
            assert!(error.hint_text().is_some(), "{url:?}");
        }
    }

    #[test]
    fn a_password_in_an_unsupported_url_is_not_shown() {
        let error = Store::open("s9://key:geheim@host/bucket", &LinkLimits::default()).unwrap_err();
        assert!(!format!("{error} {:?}", error).contains("geheim"));
    }

    #[test]
    fn a_store_is_shared_by_shards() {
        fn shared<T: Send + Sync + Clone>() {}
        shared::<Store>();
    }
}
