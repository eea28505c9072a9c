//! A place on disk with a source, a repository and targets; jobs with few words; and the independent truth.
//!
//! Invariant: nothing here asks the mover what a file holds.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use mover_base::Result;
use mover_jobs::backup::{self, BackupOptions, BackupSummary};
use mover_jobs::init::{self, InitOptions};
use mover_jobs::restore::{self, RestoreOptions, RestoreSummary};
use mover_jobs::verify::{self, Level, VerifyOptions, VerifySummary};
use mover_jobs::{BackupType, Credentials, Engine, LinkLimits, RepoAccess, Secret, key};
use rustix::fs::{FallocateFlags, SeekFrom};

pub const BLOCK: usize = 4096;
pub const MIB: usize = 1 << 20;

/// A directory of its own with `source`, `repo` and any targets; gone when dropped.
pub struct Place {
    dir: tempfile::TempDir,
    pub credentials: Credentials,
}

impl Place {
    /// With an unencrypted repository.
    pub fn plain() -> Place {
        let place = Place::bare(Credentials::None);
        place.init(None, &[]).unwrap();
        place
    }

    /// With a repository that one identity opens (passphrases cost scrypt's time at every job).
    pub fn sealed() -> Place {
        let (identity, recipient) = key::generate_identity();
        let place = Place::bare(Credentials::Identity(identity));
        place.init(None, &[recipient]).unwrap();
        place
    }

    /// Without a repository.
    pub fn bare(credentials: Credentials) -> Place {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::create_dir(dir.path().join("source")).unwrap();
        Place { dir, credentials }
    }

    pub fn init(
        &self,
        passphrase: Option<&str>,
        recipients: &[String],
    ) -> Result<init::InitSummary> {
        let options = InitOptions {
            url: self.url(),
            encryption: passphrase.is_some() || !recipients.is_empty(),
            passphrase: passphrase.map(secret),
            recipients: recipients.to_vec(),
            label: Some("first".to_owned()),
            link: LinkLimits::default(),
        };
        init::run(&engine(), &options)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn source(&self, name: &str) -> PathBuf {
        self.path("source").join(name)
    }

    pub fn url(&self) -> String {
        format!("file://{}", self.path("repo").display())
    }

    pub fn access(&self) -> RepoAccess {
        self.access_with(self.credentials.clone())
    }

    pub fn access_with(&self, credentials: Credentials) -> RepoAccess {
        RepoAccess {
            url: self.url(),
            credentials,
            link: LinkLimits::default(),
        }
    }

    pub fn backup_options(&self) -> BackupOptions {
        BackupOptions {
            repo: self.access(),
            source: format!("dir://{}", self.path("source").display()),
            host: None,
            backup_type: BackupType::Full,
            base: None,
            level: 1,
            annotations: BTreeMap::new(),
            exclude: Vec::new(),
            one_file_system: false,
            estimate: false,
        }
    }

    pub fn backup(&self) -> BackupSummary {
        self.try_backup(&engine(), &self.backup_options()).unwrap()
    }

    pub fn try_backup(&self, engine: &Engine, options: &BackupOptions) -> Result<BackupSummary> {
        let plan = backup::plan(engine, options, &mut |_, _| {})?;
        backup::execute(engine, plan, &mut |_, _| {})
    }

    pub fn restore_options(&self, set: &str, to: &str, delta: bool) -> RestoreOptions {
        RestoreOptions {
            repo: self.access(),
            choice: set.into(),
            to: self.path(to),
            delta,
            estimate: false,
        }
    }

    pub fn try_restore(&self, engine: &Engine, options: &RestoreOptions) -> Result<RestoreSummary> {
        let plan = restore::plan(engine, options, &mut |_, _| {})?;
        restore::execute(engine, plan, &mut |_, _| {})
    }

    /// Restores and compares with the source as it is now.
    pub fn restore_is_exact(&self, set: &str, to: &str) {
        self.try_restore(&engine(), &self.restore_options(set, to, false))
            .unwrap();
        assert_same_trees(&self.path("source"), &self.path(to));
    }

    /// Restores and compares with a copy.
    pub fn restore_is_exact_of(&self, set: &str, to: &str, truth: &Path) {
        self.try_restore(&engine(), &self.restore_options(set, to, false))
            .unwrap();
        assert_same_trees(truth, &self.path(to));
    }

    pub fn verify_options(&self, set: Option<&str>) -> VerifyOptions {
        VerifyOptions {
            repo: self.access(),
            level: Level::Checksum,
            set: set.map(str::to_owned),
        }
    }

    pub fn try_verify(&self, set: Option<&str>) -> Result<VerifySummary> {
        verify::execute(&engine(), &self.verify_options(set), &mut |_, _| {})
    }

    pub fn verify_is_ok(&self, set: Option<&str>) {
        let summary = self.try_verify(set).unwrap();
        assert!(summary.ok, "{:?}", summary.findings);
    }

    /// Names of the repository's objects below `prefix`, sorted.
    pub fn objects(&self, prefix: &str) -> Vec<String> {
        let root = self.path("repo");
        let mut names: Vec<String> = walk(&root)
            .into_iter()
            .filter(|path| path.is_file() && !path.starts_with(root.join("tmp")))
            .map(|path| path.strip_prefix(&root).unwrap().display().to_string())
            .filter(|name| name.starts_with(prefix))
            .collect();
        names.sort();
        names
    }

    pub fn object(&self, name: &str) -> PathBuf {
        self.path("repo").join(name)
    }

    /// Packs of blocks (`true`) or of map nodes (`false`), by the type in their preambles.
    pub fn packs(&self, of_blocks: bool) -> Vec<String> {
        let mut packs = self.objects("packs/");
        packs.retain(|name| (fs::read(self.object(name)).unwrap()[10] == 1) == of_blocks);
        packs
    }

    /// Copies the whole repository aside.
    pub fn save_repo(&self, to: &str) {
        copy_tree(&self.path("repo"), &self.path(to));
    }

    /// Puts a copy back.
    pub fn reset_repo(&self, from: &str) {
        fs::remove_dir_all(self.path("repo")).unwrap();
        copy_tree(&self.path(from), &self.path("repo"));
    }
}

pub fn secret(text: &str) -> Secret {
    Secret::new(text.to_owned())
}

/// Two shards that take whatever core is free: tests run beside each other.
pub fn engine() -> Engine {
    Engine {
        shards: 2,
        pin: false,
        ..Engine::default()
    }
}

/// Numbers that are the same in every run (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        for piece in out.chunks_mut(8) {
            piece.copy_from_slice(&self.next().to_le_bytes()[..piece.len()]);
        }
        out
    }
}

/// A sparse file of `len` bytes that holds `pieces` at their offsets and nothing else.
pub fn write_sparse(path: &Path, len: u64, pieces: &[(u64, &[u8])]) {
    let file = fs::File::create(path).unwrap();
    file.set_len(len).unwrap();
    for (offset, bytes) in pieces {
        file.write_all_at(bytes, *offset).unwrap();
    }
    file.sync_all().unwrap();
}

pub fn punch(file: &fs::File, offset: u64, bytes: u64) {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file.as_fd(), flags, offset, bytes).unwrap();
}

/// Where the file system says that data is, as (first byte, last byte + 1).
pub fn data_map(path: &Path) -> Vec<(u64, u64)> {
    let file = fs::File::open(path).unwrap();
    file.sync_all().unwrap();
    let mut found = Vec::new();
    let mut at = 0;
    while let Ok(begin) = rustix::fs::seek(file.as_fd(), SeekFrom::Data(at)) {
        at = rustix::fs::seek(file.as_fd(), SeekFrom::Hole(begin)).unwrap();
        found.push((begin, at));
    }
    found
}

/// Every path below `root`, without it.
pub fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() {
            found.extend(walk(&path));
        }
        found.push(path);
    }
    found
}

pub fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_tree(&path, &copy);
        } else {
            fs::copy(&path, &copy).unwrap();
        }
    }
}

/// Names, kinds, metadata and every byte; sparse files are read where one of the two holds data.
pub fn assert_same_trees(a: &Path, b: &Path) {
    let names = |root: &Path| {
        let mut names: Vec<PathBuf> = walk(root)
            .into_iter()
            .map(|path| path.strip_prefix(root).unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(a), names(b));
    for name in names(a) {
        let (left, right) = (a.join(&name), b.join(&name));
        let (l, r) = (
            left.symlink_metadata().unwrap(),
            right.symlink_metadata().unwrap(),
        );
        assert_eq!(l.mode(), r.mode(), "{}", name.display());
        assert_eq!(
            (l.mtime(), l.mtime_nsec()),
            (r.mtime(), r.mtime_nsec()),
            "{}",
            name.display()
        );
        if l.is_symlink() {
            assert_eq!(
                fs::read_link(&left).unwrap(),
                fs::read_link(&right).unwrap()
            );
        }
        if l.is_file() {
            assert_eq!(l.len(), r.len(), "{}", name.display());
            assert_eq!(l.nlink(), r.nlink(), "{}", name.display());
            assert_same_bytes(&left, &right);
        }
    }
}

pub fn assert_same_bytes(a: &Path, b: &Path) {
    let mut ranges = data_map(a);
    ranges.extend(data_map(b));
    let (left, right) = (fs::File::open(a).unwrap(), fs::File::open(b).unwrap());
    let (mut x, mut y) = (vec![0; MIB], vec![0; MIB]);
    for (begin, end) in ranges {
        let mut at = begin;
        while at < end {
            let len = (end - at).min(MIB as u64) as usize;
            left.read_exact_at(&mut x[..len], at).unwrap();
            right.read_exact_at(&mut y[..len], at).unwrap();
            assert!(
                x[..len] == y[..len],
                "{} differs near byte {at}",
                a.display()
            );
            at += len as u64;
        }
    }
}
