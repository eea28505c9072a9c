//! Small ext4 file systems on loop devices, so that a disk can really be full, and what stands in a directory of one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::run::{require_root, run};
use crate::scratch::Scratch;

/// A mounted file system of its own; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    mount: PathBuf,
}

impl SmallDisk {
    /// Makes and mounts an ext4 of `bytes` bytes without blocks reserved for root.
    pub fn new(scratch: &Scratch, name: &str, bytes: u64) -> Self {
        require_root();
        let image = scratch.join(format!("{name}.ext4"));
        File::create(&image)
            .and_then(|file| file.set_len(bytes))
            .expect("cannot create the disk image");
        run(
            "mkfs.ext4",
            [
                "-q".as_ref(),
                "-F".as_ref(),
                "-m".as_ref(),
                "0".as_ref(),
                image.as_os_str(),
            ],
        );
        let mount = scratch.dir(name);
        run(
            "mount",
            [
                "-o".as_ref(),
                "loop".as_ref(),
                image.as_os_str(),
                mount.as_os_str(),
            ],
        );
        SmallDisk { mount }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Bytes that can still be written.
    pub fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.mount).expect("cannot ask the file system");
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let done = std::process::Command::new("umount")
            .arg(&self.mount)
            .status();
        if !done.is_ok_and(|status| status.success()) {
            // A process that a failed test left behind may still stand in it: detach what cannot be unmounted.
            let _ = std::process::Command::new("umount")
                .arg("-l")
                .arg(&self.mount)
                .status();
        }
    }
}

/// The names in a directory, but for the one that a new file system has.
pub fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| name != "lost+found").collect()
}
