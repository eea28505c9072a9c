//! Objects as files below one directory: `<root>/<key>`, unfinished ones in `<root>/tmp/`.
//!
//! Invariants: an object appears whole, synced and once (see `upload`); its name is durable before a
//! writer is told so (see `durable`); no path leads out of the root (see `root`). The store itself is
//! shared by all shards and holds no data path: files and buffers belong to the shard that works on them.

mod durable;
mod errno;
mod list;
mod reader;
mod root;
mod upload;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mover_base::{BLOCK_BYTES, Error, Kind, Result, Timestamp, hex};
use mover_io::{BUF_BYTES, Shard};
use rustix::fs::{AtFlags, Dir, FileType};
use rustix::io::Errno;

pub use self::reader::LocalReader;
pub use self::upload::LocalUpload;

use self::durable::Durability;
use self::errno::{explain, explain_read, not_found};
use self::root::{Root, object_bytes};
use crate::bounds::{is_stale, too_large, too_short};
use crate::key::{Key, TEMPORARY_PART};
use crate::{ObjectInfo, Page, Put, Slice, TEMPORARIES_MAX, Temporary};

/// End of the names of temporary files.
const TEMPORARY_SUFFIX: &str = ".part";

/// A repository's directory. Cheap to clone; clones share one descriptor of the root.
#[derive(Debug, Clone)]
pub struct LocalStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    url: String,
    root: Root,
    durability: Durability,
}

impl LocalStore {
    /// From the part of the URL behind `file://`, which is taken literally (nothing is percent-decoded).
    pub(crate) fn open(path: &str) -> Result<LocalStore> {
        if !path.starts_with('/') || path.contains('\0') {
            return Err(
                Error::new(Kind::Usage, "the repository's URL holds no absolute path")
                    .object(format!("file://{}", path.escape_debug()))
                    .hint("write file:// and the absolute path, as in file:///srv/backup"),
            );
        }
        let trimmed = path.trim_end_matches('/');
        let path = if trimmed.is_empty() { "/" } else { trimmed };
        Ok(LocalStore(Arc::new(Inner {
            url: format!("file://{path}"),
            root: Root::new(PathBuf::from(path)),
            durability: Durability::default(),
        })))
    }

    pub(crate) fn create_root(&self) -> Result<()> {
        root::create(self.root().path())
    }

    pub(crate) fn url(&self) -> &str {
        &self.0.url
    }

    pub(crate) fn directory(&self) -> &Path {
        self.root().path()
    }

    fn root(&self) -> &Root {
        &self.0.root
    }

    fn durability(&self) -> &Durability {
        &self.0.durability
    }

    pub(crate) async fn put_if_absent(
        &self,
        shard: &Shard,
        key: &Key,
        bytes: &[u8],
    ) -> Result<Put> {
        // Spares writing what is there already; the rename decides all the same.
        if let Some(stat) = self.root().stat(key.as_str())? {
            upload::check_existing(FileType::from_raw_mode(stat.st_mode), key)?;
            self.durability()
                .settle(self.root(), shard, key.parent())
                .await?;
            return Ok(Put::Exists);
        }
        let mut upload = LocalUpload::begin(self, shard, key, Some(bytes.len() as u64)).await?;
        for piece in bytes.chunks(BUF_BYTES) {
            let mut buf = shard.buffer().await;
            buf[..piece.len()].copy_from_slice(piece);
            upload.push(buf, piece.len()).await?;
        }
        upload.commit().await
    }

    pub(crate) async fn upload(&self, shard: &Shard, key: &Key) -> Result<LocalUpload> {
        LocalUpload::begin(self, shard, key, None).await
    }

    pub(crate) fn reader(&self, shard: &Shard) -> LocalReader {
        LocalReader::new(self, shard)
    }

    pub(crate) async fn get(&self, shard: &Shard, key: &Key, bytes_max: u64) -> Result<Vec<u8>> {
        let (file, bytes) = reader::open_object(self, shard, key)?;
        let len = match usize::try_from(bytes) {
            Ok(len) if bytes <= bytes_max => len,
            _ => {
                return Err(too_large(key.as_str(), bytes, bytes_max));
            }
        };
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            let rest = len - out.len();
            let span = rest.min(BUF_BYTES).next_multiple_of(BLOCK_BYTES);
            let buf = shard.buffer().await;
            let (result, buf) = file.read_at(buf, out.len() as u64, span).await;
            let got = result.map_err(|error| explain_read(error, key.as_str()))?;
            if got < rest.min(BUF_BYTES) {
                return Err(too_short(key));
            }
            out.extend_from_slice(&buf[..rest.min(BUF_BYTES)]);
        }
        Ok(out)
    }

    pub(crate) async fn read(
        &self,
        shard: &Shard,
        key: &Key,
        offset: u64,
        len: usize,
    ) -> Result<Slice> {
        let (file, _) = reader::open_object(self, shard, key)?;
        reader::read_range(shard, &file, key, offset, len).await
    }

    pub(crate) async fn head(&self, key: &Key) -> Result<Option<ObjectInfo>> {
        let Some(stat) = self.root().stat(key.as_str())? else {
            return Ok(None);
        };
        let bytes = object_bytes(&stat, key.as_str())?;
        Ok(bytes.map(|bytes| ObjectInfo {
            key: key.clone(),
            bytes,
        }))
    }

    pub(crate) async fn list(
        &self,
        shard: &Shard,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Page> {
        list::list(self.root(), shard, prefix, after, limit).await
    }

    pub(crate) async fn delete(&self, shard: &Shard, key: &Key) -> Result<()> {
        if !self.unlink(key).await? {
            return Err(not_found(key.as_str()));
        }
        self.durability()
            .settle(self.root(), shard, key.parent())
            .await
    }

    /// Directories are synced once each, also those whose objects were absent: another writer may have removed them
    /// and not have synced yet.
    pub(crate) async fn delete_all(&self, shard: &Shard, keys: &[Key]) -> Result<()> {
        let mut directories = BTreeSet::new();
        let mut unlinked = Ok(());
        for key in keys {
            unlinked = self.unlink(key).await.map(drop);
            if unlinked.is_err() {
                break;
            }
            directories.insert(key.parent());
        }
        for directory in directories {
            if self.root().open_directory(directory)?.is_some() {
                self.durability()
                    .settle(self.root(), shard, directory)
                    .await?;
            }
        }
        unlinked
    }

    /// Removes the name of the object `key`, not durably yet; false where there is none.
    async fn unlink(&self, key: &Key) -> Result<bool> {
        // Looked at first, so that neither a directory nor a planted link is taken for the object.
        if self.head(key).await?.is_none() {
            return Ok(false);
        }
        let Some(directory) = self.root().open_directory(key.parent())? else {
            return Ok(false);
        };
        match rustix::fs::unlinkat(&directory, key.name(), AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(explain(errno, "delete an object", key.as_str())),
        }
    }

    /// Writes what an object would hold, waits until that is durable, gives it a name as objects get theirs, though among the
    /// temporary files, and throws it away. 1 MiB: a full file system may have room for a block or two.
    pub(crate) async fn try_out(&self, shard: &Shard) -> Result<()> {
        let key = Key::new("try-out")?;
        let mut upload = self.upload(shard, &key).await?;
        let written = match upload.push(shard.buffer().await, BUF_BYTES).await {
            Ok(()) => upload.sync().await,
            Err(error) => Err(error),
        };
        let tried = written.and_then(|()| upload.try_name());
        upload.abort().await?;
        tried
    }

    pub(crate) async fn stale_temporaries(&self) -> Result<Vec<Temporary>> {
        let Some(directory) = self.root().open_directory(TEMPORARY_PART)? else {
            return Ok(Vec::new());
        };
        let told = |errno| {
            explain(
                errno,
                "read the directory of temporary files",
                TEMPORARY_PART,
            )
        };
        let mut stale = Vec::new();
        for entry in Dir::read_from(&directory).map_err(told)? {
            let entry = entry.map_err(told)?;
            let name = entry.file_name();
            if name == c"." || name == c".." || is_removed_while_open(name.to_bytes()) {
                continue;
            }
            let stat = match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(told(errno)),
            };
            let shown = name.to_bytes().escape_ascii().to_string();
            let path = format!("{TEMPORARY_PART}/{shown}");
            let bytes = object_bytes(&stat, &path)?;
            let Some(bytes) = bytes.filter(|_| is_temporary_name(&shown)) else {
                return Err(Error::new(Kind::Storage, "something that is no temporary file stands among them")
                    .object(path)
                    .hint("move it out of the repository's directory: only the mover may keep files there"));
            };
            let modified = Timestamp::from_micros(
                stat.st_mtime
                    .saturating_mul(1_000_000)
                    .saturating_add((stat.st_mtime_nsec / 1000) as i64),
            );
            if is_stale(modified, Timestamp::now()) {
                stale.push(Temporary {
                    name: shown,
                    bytes,
                    modified,
                });
            }
            if stale.len() >= TEMPORARIES_MAX {
                break;
            }
        }
        stale.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(stale)
    }

    pub(crate) async fn remove_temporary(&self, temporary: &Temporary) -> Result<()> {
        let path = format!("{TEMPORARY_PART}/{}", temporary.name);
        let told = |errno| explain(errno, "remove a temporary file", &path);
        let stat = match self.root().stat(&path)? {
            Some(stat) if is_temporary_name(&temporary.name) => stat,
            _ => return Err(not_found(&path)),
        };
        // Looked at again: an upload may have gone on since the listing.
        let modified = Timestamp::from_micros(stat.st_mtime.saturating_mul(1_000_000));
        if !is_stale(modified, Timestamp::now()) {
            return Err(Error::new(Kind::Conflict, "a temporary file is in use").object(path));
        }
        let directory = self
            .root()
            .open_directory(TEMPORARY_PART)?
            .ok_or_else(|| not_found(&path))?;
        rustix::fs::unlinkat(&directory, temporary.name.as_str(), AtFlags::empty()).map_err(told)
    }
}

/// Whether `name` is one that uploads give.
fn is_temporary_name(name: &str) -> bool {
    let stem = name.strip_suffix(TEMPORARY_SUFFIX);
    stem.is_some_and(|stem| hex::decode::<16>(stem).is_some())
}

/// Whether `name` is what NFS or FUSE call a file that was removed while somebody had it open. They take it away when it is closed.
fn is_removed_while_open(name: &[u8]) -> bool {
    let beginnings = [b".nfs".as_slice(), b".fuse_hidden"];
    let mut numbers = beginnings
        .into_iter()
        .filter_map(|beginning| name.strip_prefix(beginning));
    numbers.any(|number| !number.is_empty() && number.iter().all(u8::is_ascii_hexdigit))
}
