//! Makes the trees that are backed up: every shape of file that a restore has been known to get wrong.
//!
//! Invariants: the same seed plants the same tree; each function plants below a directory that exists.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mknodat, utimensat};

use crate::random::Random;
use crate::run;

/// One mebibyte.
pub const MIB: u64 = 1 << 20;

/// Plants one tree below a directory.
pub type Planter = fn(&Path, &mut Random);

/// The named trees that every way of backing up must bring back exactly.
pub const SHAPES: [(&str, Planter); 9] = [
    ("empty", |_, _| {}),
    ("boundaries", boundaries),
    ("sparse", sparse),
    ("links", links),
    ("attributes", attributes),
    ("names", names),
    ("times", times),
    ("small_files", |root, random| {
        small_files(root, random, 5_000)
    }),
    ("repeats", repeats),
];

/// A file of incompressible bytes.
pub fn file(path: &Path, random: &mut Random, bytes: usize) {
    fs::write(path, random.bytes(bytes))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// A file of `bytes` bytes with holes everywhere but in the given pieces.
pub fn holes(path: &Path, bytes: u64, pieces: &[(u64, &[u8])]) {
    let file = File::create(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.set_len(bytes).expect("size can be set");
    for (at, piece) in pieces {
        file.write_all_at(piece, *at).expect("piece can be written");
    }
    file.sync_all().expect("file can be synced");
}

/// Sizes around everything that the tool counts in: blocks, buffers, frames, packs and leaves of the map.
fn boundaries(root: &Path, random: &mut Random) {
    for bytes in [
        0,
        1,
        2,
        4095,
        4096,
        4097,
        8191,
        8192,
        8193,
        (1 << 20) - 1,
        1 << 20,
        (1 << 20) + 1,
    ] {
        file(&root.join(format!("dense-{bytes}")), random, bytes);
    }
    // Where a leaf of the map (64 MiB) and an extent of any usual size end; sparse, so that it is cheap.
    for mib in [64, 128, 256] {
        for bytes in [
            mib * MIB - 1,
            mib * MIB,
            mib * MIB + 1,
            mib * MIB + 4096,
            mib * MIB + 4097,
        ] {
            let tail = random.bytes(5000);
            let at = bytes - tail.len() as u64;
            let edge = random.bytes(8192);
            holes(
                &root.join(format!("sparse-{bytes}")),
                bytes,
                &[(0, &edge), (mib * MIB - 3 * 8192, &edge), (at, &tail)],
            );
        }
    }
}

/// Holes at the start, in the middle and at the end; nothing but holes; zeros that are allocated.
fn sparse(root: &Path, random: &mut Random) {
    let piece = random.bytes(12_288);
    holes(
        &root.join("hole-first"),
        3 * MIB,
        &[(3 * MIB - 12_288, &piece)],
    );
    holes(
        &root.join("hole-middle"),
        3 * MIB,
        &[(0, &piece), (2 * MIB, &piece)],
    );
    holes(&root.join("hole-last"), 3 * MIB, &[(0, &piece)]);
    holes(&root.join("hole-last-odd"), 3 * MIB + 1, &[(0, &piece)]);
    holes(&root.join("all-hole"), 5 * MIB + 17, &[]);
    holes(&root.join("one-byte-hole"), 1, &[]);
    holes(
        &root.join("terabyte"),
        1 << 40,
        &[((1 << 40) - 1, b"z"), (1 << 39, &piece)],
    );
    let zeros = vec![0; 3 * MIB as usize + 5];
    fs::write(root.join("zeros"), &zeros).expect("file can be written");
    holes(
        &root.join("zeros-and-holes"),
        4 * MIB,
        &[
            (0, &zeros[..8192]),
            (MIB, &piece),
            (2 * MIB, &zeros[..65_536]),
        ],
    );
    let mut checkered = Vec::new();
    for i in 0..200 {
        checkered.push((i * 8192, &piece[..4096]));
    }
    holes(&root.join("checkered"), 200 * 8192, &checkered);
}

/// Symbolic links of every kind, hard links across directories, a named pipe.
fn links(root: &Path, random: &mut Random) {
    fs::create_dir_all(root.join("a/b")).expect("directory");
    fs::create_dir(root.join("z")).expect("directory");
    file(&root.join("a/first"), random, 10_000);
    fs::hard_link(root.join("a/first"), root.join("a/b/second")).expect("hard link");
    fs::hard_link(root.join("a/first"), root.join("third")).expect("hard link");
    file(&root.join("z/early"), random, 0);
    fs::hard_link(root.join("z/early"), root.join("0-empty-link")).expect("hard link");
    holes(&root.join("z/sparse"), MIB, &[(4096, b"x")]);
    fs::hard_link(root.join("z/sparse"), root.join("a/sparse")).expect("hard link");
    let long = "x/".repeat(2000);
    for (name, target) in [
        ("to-file", "a/first"),
        ("to-dir", "a"),
        ("dangling", "nowhere/at all"),
        ("absolute", "/etc/passwd"),
        ("upwards", "../../.."),
        ("itself", "itself"),
        ("long", long.as_str()),
    ] {
        symlink(target, root.join(name)).expect("symbolic link");
    }
    symlink(OsStr::from_bytes(b"\xff\xfe\n"), root.join("bytes")).expect("symbolic link");
    std::os::unix::fs::lchown(root.join("dangling"), Some(1), Some(2)).expect("owner");
    mknodat(
        CWD,
        root.join("pipe"),
        FileType::Fifo,
        Mode::from_raw_mode(0o640),
        0,
    )
    .expect("named pipe");
}

/// Modes, owners, extended attributes and ACLs.
fn attributes(root: &Path, random: &mut Random) {
    for mode in [
        0o000, 0o200, 0o400, 0o644, 0o777, 0o4755, 0o2755, 0o1777, 0o7777,
    ] {
        let path = root.join(format!("mode-{mode:04o}"));
        file(&path, random, 100);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
        let dir = root.join(format!("dir-{mode:04o}"));
        fs::create_dir(&dir).expect("directory");
        file(&dir.join("inside"), random, 10);
        fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).expect("mode");
    }
    // A change of owner takes setuid and setgid away: both must be there in the end.
    let owned = root.join("owned-setuid");
    file(&owned, random, 10);
    std::os::unix::fs::chown(&owned, Some(12_345), Some(54_321)).expect("owner");
    fs::set_permissions(&owned, fs::Permissions::from_mode(0o6751)).expect("mode");
    symlink("owned-setuid", root.join("owned-link")).expect("symbolic link");
    std::os::unix::fs::lchown(root.join("owned-link"), Some(65_534), Some(7)).expect("owner");
    let high = root.join("owned-high");
    file(&high, random, 10);
    std::os::unix::fs::chown(&high, Some(u32::MAX - 2), Some(u32::MAX - 2)).expect("owner");

    let tagged = root.join("xattrs");
    file(&tagged, random, 5000);
    for (name, value) in [
        ("user.text", &b"value"[..]),
        ("user.empty", b""),
        ("user.binary", b"\0\xff\n\0"),
        ("user.k\u{fc}rzel", b"1"),
        ("trusted.mover", b"root only"),
    ] {
        xattr::set(&tagged, name, value).expect("xattr");
    }
    xattr::set(&tagged, "user.large", &random.bytes(2500)).expect("xattr");
    // Another name of the same file, which has the attributes too.
    fs::hard_link(&tagged, root.join("xattrs-again")).expect("a further name");
    let dir = root.join("xattr-dir");
    fs::create_dir(&dir).expect("directory");
    xattr::set(&dir, "user.on-dir", b"yes").expect("xattr");
    symlink("xattrs", root.join("xattr-link")).expect("symbolic link");
    xattr::set(root.join("xattr-link"), "trusted.on-link", b"yes").expect("xattr");
    run::run(
        "setfacl",
        [
            "-m".as_ref(),
            "u:nobody:rw,g:4711:x".as_ref(),
            tagged.as_os_str(),
        ],
    );
    run::run(
        "setfacl",
        [
            "-d".as_ref(),
            "-m".as_ref(),
            "u:nobody:rwx".as_ref(),
            dir.as_os_str(),
        ],
    );
    xattr::set(root, "user.on-root", b"yes").expect("xattr");
    std::os::unix::fs::chown(root, Some(33), Some(44)).expect("owner");
    fs::set_permissions(root, fs::Permissions::from_mode(0o2711)).expect("mode");
}

/// Names that are awkward for shells, JSON, UTF-8 and sorting, and paths that are long.
fn names(root: &Path, random: &mut Random) {
    let long = [b'n'; 255];
    for name in [
        &b" "[..],
        b"-rf",
        b"...",
        b".hidden",
        b"a b",
        b"a\nb",
        b"a\tb",
        b"*?[",
        b"$(id)",
        b"'\"\\",
        b"\x1b[31m",
        b"\xff\x80",
        "gr\u{fc}n".as_bytes(),
        "gru\u{308}n".as_bytes(),
        "\u{1f980}".as_bytes(),
        b"tmp",
        b"latest",
        b"config",
        b"A",
        b"B",
        &long,
    ] {
        let len = random.below(6000) as usize;
        file(&root.join(OsStr::from_bytes(name)), random, len);
    }
    // "a", "a-", "a/b" and "a.b" sort differently as strings and as paths.
    fs::create_dir(root.join("a")).expect("directory");
    for name in ["a-", "a.b", "a0", "a/b", "a/-", "a/0"] {
        file(&root.join(name), random, 64);
    }
    let mut deep = root.to_path_buf();
    for _ in 0..14 {
        deep.push("d".repeat(200));
    }
    fs::create_dir_all(&deep).expect("directories");
    file(&deep.join("bottom"), random, 4097);
}

/// Modification times before 1970, in the far future, and to the nanosecond; those of directories too.
fn times(root: &Path, random: &mut Random) {
    fs::create_dir_all(root.join("dir/inner")).expect("directories");
    symlink("dir", root.join("link")).expect("symbolic link");
    for (i, (seconds, nanos)) in TIMES.iter().enumerate() {
        let path = root.join(format!("dir/t{i}"));
        file(&path, random, 10 * i);
        set_mtime(&path, *seconds, *nanos);
    }
    for (i, name) in ["link", "dir/inner", "dir", ""].iter().enumerate() {
        set_mtime(&root.join(name), 1_000_000_000 + i as i64, 123_456_789);
    }
}

const TIMES: [(i64, i64); 8] = [
    (0, 0),
    (0, 1),
    (-1, 999_999_999),
    (-2_000_000_000, 0),
    (1, 999_999_999),
    (2_147_483_647, 500),
    (2_147_483_648, 0),
    (9_000_000_000, 7),
];

fn set_mtime(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanos,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("times can be set");
}

/// `count` small files in 50 directories.
pub fn small_files(root: &Path, random: &mut Random, count: usize) {
    for i in 0..count {
        let dir = root.join(format!("d{:02}", i % 50));
        if i < 50 {
            fs::create_dir(&dir).expect("directory");
        }
        let bytes = random.below(3000) as usize;
        file(&dir.join(format!("f{i:05}")), random, bytes);
    }
}

/// The same blocks again and again: in one file, in several files, and at offsets that no block starts at.
fn repeats(root: &Path, random: &mut Random) {
    let block = random.bytes(4096);
    let run = random.bytes(65_536);
    fs::write(root.join("one-block"), block.repeat(1000)).expect("file");
    fs::write(root.join("copy-1"), run.repeat(16)).expect("file");
    fs::write(root.join("copy-2"), run.repeat(16)).expect("file");
    fs::write(root.join("shifted"), [&b"x"[..], &run, &run].concat()).expect("file");
    fs::write(root.join("short-tail"), [&run[..], &block[..100]].concat()).expect("file");
    fs::write(
        root.join("zero-tail"),
        [&run[..], &[0; 4096], &block[..1]].concat(),
    )
    .expect("file");
}

/// A small tree with something of everything, and `bytes` bytes of rows: for tests that are about something else.
pub fn mixed(root: &Path, random: &mut Random, bytes: usize) {
    fs::create_dir_all(root.join("base/1")).expect("directories");
    fs::write(root.join("base/1/table"), random.rows(bytes)).expect("file");
    file(&root.join("base/1/index"), random, bytes / 4 + 77);
    file(&root.join("one-byte"), random, 1);
    file(&root.join("empty"), random, 0);
    holes(
        &root.join("sparse"),
        2 * MIB + 3,
        &[(4096, b"x"), (MIB, b"y")],
    );
    symlink("base/1/table", root.join("link")).expect("symbolic link");
    fs::hard_link(root.join("one-byte"), root.join("again")).expect("hard link");
    xattr::set(root.join("one-byte"), "user.note", b"kept").expect("xattr");
}
