//! Whether one `syncfs` makes durable, or tells of, all that was written to a file system.
//!
//! Invariant: of the file systems that are known to keep data elsewhere, and of kernels that tell too little, the answer is no;
//! then each file is synced by itself, which costs time alone.

use std::os::fd::BorrowedFd;
use std::sync::LazyLock;

/// File systems whose data is kept by a server or a program, to which `syncfs` says nothing, or not all: FUSE (fuse.h), SMB of three
/// kinds (magic.h), 9p, Ceph and AFS.
const ELSEWHERE: [i64; 7] = [
    0x6573_5546,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x0102_1997,
    0x00c3_6400,
    0x5346_414f,
];

/// Since then `syncfs` returns the errors of writing back (its manual page).
const TELLS_SINCE: (u32, u32) = (5, 8);

/// Whether the kernel that runs tells: asked once, and not for each file.
static TELLS: LazyLock<bool> =
    LazyLock::new(|| tells(&rustix::system::uname().release().to_string_lossy()));

/// Whether `syncfs` vouches for the file system of `fd`.
pub(crate) fn syncfs_vouches(fd: BorrowedFd<'_>) -> bool {
    // Of some machines the type has 32 bits, whose highest is no sign.
    #[allow(clippy::unnecessary_cast, reason = "the type differs between machines")]
    let is_here =
        |found: rustix::fs::StatFs| !ELSEWHERE.contains(&((found.f_type as i64) & 0xffff_ffff));
    *TELLS && rustix::fs::fstatfs(fd).is_ok_and(is_here)
}

fn tells(release: &str) -> bool {
    version(release).is_some_and(|version| version >= TELLS_SINCE)
}

/// The first two numbers of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some((next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_tell_of_errors_are_known_by_their_version() {
        for (release, expected) in [
            ("6.1.0-18-amd64", true),
            ("5.8.0", true),
            ("10.0", true),
            ("5.7.19", false),
            ("4.18.0-553.el8_10", false),
            ("unknown", false),
        ] {
            assert_eq!(tells(release), expected, "{release}");
        }
    }
}
