//! Scratch directories on a real disk: holes, xattrs, direct I/O and a full disk behave otherwise on tmpfs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// `f_type` of tmpfs, see statfs(2).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// A directory that lives as long as the test; every user may enter it. With `HELIOS_MOVER_KEEP` set, that of
/// a failed test stays.
#[derive(Debug)]
pub struct Scratch(Option<tempfile::TempDir>);

impl Scratch {
    /// A fresh directory under `TMPDIR`, or under `/var/tmp` where that is in memory.
    pub fn new(name: &str) -> Self {
        let base = [std::env::temp_dir(), PathBuf::from("/var/tmp")]
            .into_iter()
            .find(|dir| !in_memory(dir))
            .expect("no temporary directory on a disk: set TMPDIR");
        let dir = tempfile::Builder::new()
            .prefix(&format!("mover-{name}-"))
            .tempdir_in(base)
            .expect("cannot create a scratch directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))
            .expect("cannot open the scratch directory");
        Scratch(Some(dir))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.as_ref().expect("present until dropped").path()
    }

    /// A name in it; nothing is created.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// A new directory in it.
    pub fn dir(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(&path).expect("cannot create a directory");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking()
            && std::env::var_os("HELIOS_MOVER_KEEP").is_some()
            && let Some(dir) = self.0.take()
        {
            eprintln!("kept {}", dir.keep().display());
        }
    }
}

fn in_memory(dir: &Path) -> bool {
    rustix::fs::statfs(dir).is_ok_and(|stat| stat.f_type == TMPFS_MAGIC)
}
