//! A small ext4 file system on a loop device, so that a disk can really be full or read-only.
//!
//! Invariant: it is unmounted when dropped, whatever the test did.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// An ext4 of `mib` MiB on a loop device, unmounted when dropped.
pub struct SmallDisk {
    kept: TempDir,
}

impl SmallDisk {
    pub fn new(mib: u64) -> SmallDisk {
        let kept = TempDir::new().expect("a temporary directory");
        let image = kept.path().join("image");
        fs::File::create(&image)
            .and_then(|file| file.set_len(mib << 20))
            .expect("an image");
        let disk = SmallDisk { kept };
        fs::DirBuilder::new()
            .mode(0o755)
            .create(disk.path())
            .expect("a mount point");
        run_tool(
            Command::new("mkfs.ext4")
                .args(["-q", "-F", "-m", "0"])
                .arg(&image),
        );
        run_tool(
            Command::new("mount")
                .args(["-o", "loop"])
                .arg(&image)
                .arg(disk.path()),
        );
        disk
    }

    pub fn path(&self) -> PathBuf {
        self.kept.path().join("mounted")
    }

    /// Waits until what was deleted is free. ext4 gives freed blocks back in a callback that runs just after
    /// the commit of its journal was announced; commits follow one another, so a second one waits for it.
    pub fn settle(&self) {
        let root = fs::File::open(self.path()).expect("the mounted directory");
        for mode in [0o700, 0o755] {
            root.set_permissions(fs::Permissions::from_mode(mode))
                .expect("something to commit");
            rustix::fs::syncfs(&root).expect("a commit");
        }
    }

    pub fn remount(&self, options: &str) {
        run_tool(
            Command::new("mount")
                .arg("-o")
                .arg(format!("remount,{options}"))
                .arg(self.path()),
        );
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, so that a failed test which still holds a descriptor leaves no mount behind.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn run_tool(command: &mut Command) {
    let output = command.output().expect("the tool runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "this test needs root, loop devices and e2fsprogs: {error}"
    );
}
