//! No decoder asks for memory on the word of a count or a length: only for what the bytes at hand can hold, or for as much as a
//! stated cap allows.
//!
//! How much that is, the kernel tells: the allocator of a process of its own is set so that all it is asked for in pieces of
//! 64 KiB and more, by C code too, becomes a mapping of its own.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

#[allow(dead_code)] // The other tests use the rest.
#[path = "format/samples.rs"]
mod samples;

use std::hint::black_box;
use std::process::Command;

use mover_base::tree::PATH_BYTES_MAX;
use mover_base::{Kind, Result, checksum};
use mover_format::config::CONFIG_BYTES_MAX;
use mover_format::entry::{
    PAGE_ENTRIES_MAX, XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX, XATTRS_MAX,
};
use mover_format::frame::{MANIFEST_PLAIN_BYTES_MAX, RECORD_PLAIN_BYTES_MAX};
use mover_format::manifest::{
    MANIFEST_PACKS_MAX, MANIFEST_PAGES_MAX, METADATA_BYTES_MAX, ManifestHead,
};
use mover_format::node::{CHILDREN_MAX, INLINE_BYTES_MAX, LEAF_BLOCKS_MAX};
use mover_format::pack::{PACK_BLOCKS_MAX, PACK_FRAMES_MAX};
use mover_format::preamble::WRAPPED_KEY_BYTES_MAX;
use mover_format::record::{PARENTS_MAX, TEXT_BYTES_MAX};
use mover_format::slot::{SLOT_AGE_BYTES_MAX, SLOT_LABEL_BYTES_MAX};
use mover_format::*;

/// The smallest piece that becomes a mapping of its own.
const PIECE_KIB: u64 = 64;

/// What glibc reads at the start of a process: the size of that piece, which then stays, and to keep next to nothing that is
/// free, from which a piece could be taken instead.
const ALLOCATOR: [(&str, &str); 3] = [
    ("MALLOC_MMAP_THRESHOLD_", "65536"),
    ("MALLOC_TOP_PAD_", "0"),
    ("MALLOC_TRIM_THRESHOLD_", "65536"),
];

/// How many bytes one byte may become: a leaf's run of one byte, for instance, is 28 bytes in memory.
const GROWTH_MAX: u64 = 32;

type Decode = fn(&[u8], &mut FrameDecoder) -> Result<()>;

/// Bytes that are right up to a count or a length, and what the error names that is wrong.
struct Case {
    wrong: &'static str,
    bytes: Vec<u8>,
    decode: Decode,
    /// What a cap allows to be asked for besides what the bytes hold.
    stated_bytes: usize,
}

impl Case {
    fn new(wrong: &'static str, bytes: Vec<u8>, decode: Decode) -> Self {
        Case {
            wrong,
            bytes,
            decode,
            stated_bytes: 0,
        }
    }
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A count or length of four bytes in the place of the one at `at`: its cap, more, and all that it can say.
fn words(sample: &[u8], at: usize, cap: usize, wrong: &'static str, decode: Decode) -> Vec<Case> {
    [cap as u32, cap as u32 + 1, u32::MAX]
        .map(|value| {
            let bytes = [&sample[..at], &value.to_le_bytes(), &sample[at + 4..]].concat();
            Case::new(wrong, bytes, decode)
        })
        .into()
}

/// A varint behind `head`, with nothing behind it: more than its cap, all that it can say, and its cap, where `then` ends early.
fn varints(head: &[u8], cap: usize, [wrong, then]: [&'static str; 2], decode: Decode) -> Vec<Case> {
    let case = |value: u64, wrong| Case::new(wrong, [head, &varint(value)].concat(), decode);
    let cap = cap as u64;
    vec![case(cap + 1, wrong), case(u64::MAX, wrong), case(cap, then)]
}

fn objects() -> Vec<Case> {
    let sample = samples::preamble(ObjectType::DataPack, Cipher::Aes256Gcm);
    let sample = sample.encode().unwrap();
    let decode: Decode = |bytes, _| Preamble::decode(bytes).map(drop);
    let mut cases = words(&sample, 12, WRAPPED_KEY_BYTES_MAX, "wrapped key", decode);
    let trailer = PackTrailer {
        directory_offset: 100,
        directory_bytes: u32::MAX,
        directory_piece: 0,
    };
    let trailer = trailer.encode(ObjectType::Manifest).to_vec();
    cases.push(Case::new("length", trailer, |bytes, _| {
        PackTrailer::decode(ObjectType::Manifest, bytes, 10_000).map(drop)
    }));
    let sample = samples::key_slot().encode().unwrap();
    let decode: Decode = |bytes, _| KeySlot::decode(bytes).map(drop);
    cases.extend(words(&sample, 12, SLOT_AGE_BYTES_MAX, "sealed", decode));
    let cap = SLOT_LABEL_BYTES_MAX as u16;
    for len in [cap, cap + 1, u16::MAX] {
        let bytes = [&sample[..96], &len.to_le_bytes()].concat();
        cases.push(Case::new("label", bytes, decode));
    }
    let secret = samples::slot_secret().encode().unwrap().to_vec();
    let secret = String::from_utf8(secret).unwrap();
    let secret = secret.replace("SAMPLE", &"S".repeat(5000)).into_bytes();
    cases.push(Case::new("sealed part", secret, |bytes, _| {
        SlotSecret::decode(bytes).map(drop)
    }));
    let long = vec![b' '; CONFIG_BYTES_MAX + 1];
    cases.push(Case::new("its cap", long, |bytes, _| {
        RepositoryConfig::decode(bytes).map(drop)
    }));
    cases
}

fn directories() -> Vec<Case> {
    let mut sample = PackDirectory::new();
    sample.push(100, 500, 8192, &[[1; 32], [2; 32]]).unwrap();
    let sample = sample.encode(ObjectType::DataPack).unwrap();
    let decode: Decode = |bytes, _| PackDirectory::decode(ObjectType::DataPack, bytes).map(drop);
    let mut cases = words(&sample, 0, PACK_FRAMES_MAX, "count", decode);
    cases.extend(words(&sample, 4, PACK_BLOCKS_MAX, "count", decode));
    // As many as there is room for, and none of them is one.
    let nonsense = [&4096_u32.to_le_bytes()[..], &[0; 4], &[0xff; 4096 * 16]].concat();
    cases.push(Case::new("first frame", nonsense, decode));
    cases
}

fn nodes() -> Vec<Case> {
    let leaf: Decode = |bytes, _| Leaf::decode(bytes).map(drop);
    let blocks = LEAF_BLOCKS_MAX as usize;
    let mut cases = varints(&[1], blocks, ["pack count"; 2], leaf);
    cases.extend(varints(&[1, 0], blocks, ["run count"; 2], leaf));
    let one_pack = [&[1_u8, 1][..], &[0x33; 16]].concat();
    cases.extend(varints(&one_pack, blocks, ["run count"; 2], leaf));
    let nonsense = [&[1_u8, 0][..], &varint(blocks as u64), &vec![0xff; blocks]].concat();
    cases.push(Case::new("run length", nonsense, leaf));
    let interior: Decode = |bytes, _| Interior::decode(bytes).map(drop);
    let fields = ["child count", "child tag"];
    cases.extend(varints(&[2, 1], CHILDREN_MAX, fields, interior));
    let fields = ["inline node"; 2];
    cases.extend(varints(&[2, 1, 1, 0], INLINE_BYTES_MAX, fields, interior));
    cases
}

fn entry_pages() -> Vec<Case> {
    /// A page of one entry of this kind, up to its extended attributes.
    fn page(kind: u8, rest: &[u8]) -> Vec<u8> {
        [&[3, 1, 1, b'a', kind, 0, 0, 0, 0, 0][..], rest].concat()
    }
    let file = [&[0_u8][..], &varint(4096), &[0]].concat();
    let fields: [(Vec<u8>, usize, [&'static str; 2]); 8] = [
        (vec![3], PAGE_ENTRIES_MAX, ["entry count", "path"]),
        (vec![3, 1], PATH_BYTES_MAX, ["path"; 2]),
        (
            page(0, &[]),
            XATTRS_MAX,
            ["attribute count", "attribute name"],
        ),
        (page(0, &[1]), XATTR_NAME_BYTES_MAX, ["attribute name"; 2]),
        (
            page(0, &[1, 1, b'n']),
            XATTR_VALUE_BYTES_MAX,
            ["attribute value"; 2],
        ),
        (page(1, &file), INLINE_BYTES_MAX, ["inline node"; 2]),
        (page(2, &[0]), PATH_BYTES_MAX, ["link target"; 2]),
        (page(3, &[0]), PATH_BYTES_MAX, ["first name"; 2]),
    ];
    let decode: Decode = |bytes, _| EntryPage::decode(bytes).map(drop);
    let cases = fields.map(|(head, cap, fields)| varints(&head, cap, fields, decode));
    cases.into_iter().flatten().collect()
}

fn manifests() -> Vec<Case> {
    let sample = samples::manifest();
    let pages = sample.pages.len();
    let sample = sample.encode().unwrap();
    let metadata_bytes = u32::from_le_bytes(*sample.first_chunk().unwrap());
    let pages_at = 4 + metadata_bytes as usize;
    // Each page is a tag and a reference.
    let packs_at = pages_at + 4 + pages * (1 + node::NODE_REF_BYTES);
    let decode: Decode = |bytes, _| Manifest::decode(bytes).map(drop);
    let mut cases = words(&sample, 0, METADATA_BYTES_MAX, "metadata", decode);
    let cap = MANIFEST_PAGES_MAX;
    cases.extend(words(&sample, pages_at, cap, "page count", decode));
    let cap = MANIFEST_PACKS_MAX;
    cases.extend(words(&sample, packs_at, cap, "pack count", decode));
    let inline = [&sample[..pages_at], &[1, 0, 0, 0, 0]].concat();
    let fields = ["inline node"; 2];
    cases.extend(varints(&inline, INLINE_BYTES_MAX, fields, decode));
    // As many as there is room for, and none of them is one.
    for (at, bytes_each, wrong) in [(pages_at, 3, "child tag"), (packs_at, 80, "pack type")] {
        let count = 2000_u32.to_le_bytes();
        let nonsense = [&sample[..at], &count, &vec![0xff; 2000 * bytes_each]].concat();
        cases.push(Case::new(wrong, nonsense, decode));
    }
    cases
}

fn records() -> Vec<Case> {
    let [session, _, hold, annotation] = samples::records().map(|record| {
        let body = record.encode().unwrap();
        String::from_utf8(body).unwrap()
    });
    let long = "x".repeat(TEXT_BYTES_MAX + 1);
    let id = format!("\"{}\"", samples::backup_id());
    let parents = [id.as_str(); PARENTS_MAX + 1].join(",");
    let of_session: Decode = |bytes, _| Record::decode(ObjectType::Session, bytes).map(drop);
    let of_hold: Decode = |bytes, _| Record::decode(ObjectType::Hold, bytes).map(drop);
    let of_annotation: Decode = |bytes, _| Record::decode(ObjectType::Annotation, bytes).map(drop);
    let cases = [
        ("host", session.replace("db-1", &long), of_session),
        ("backups", session.replace(&id, &parents), of_session),
        (
            "its cap",
            " ".repeat(RECORD_PLAIN_BYTES_MAX + 1),
            of_session,
        ),
        ("reason", hold.replace("audit", &long), of_hold),
        ("a key", annotation.replace("old", &long), of_annotation),
        ("a key", annotation.replace("ticket", &long), of_annotation),
    ];
    let case = |(wrong, body, decode): (_, String, _)| Case::new(wrong, body.into_bytes(), decode);
    cases.map(case).into()
}

/// A frame with the checksum that belongs there.
fn frame(kind: FrameKind, plain_bytes: usize, payload_bytes: usize, payload: &[u8]) -> Vec<u8> {
    let mut header = FrameHeader {
        payload_bytes: payload_bytes as u32,
        plain_bytes: plain_bytes as u32,
        kind,
        codec: Codec::Zstd,
        crc: 0,
    };
    header.crc = checksum::crc32(&[&header.encode()[..12], payload].concat());
    [&header.encode()[..], payload].concat()
}

fn open(decoder: &mut FrameDecoder, kind: FrameKind, bytes: &[u8], max: usize) -> Result<()> {
    let sealer = samples::sealer(&samples::preamble(ObjectType::Manifest, Cipher::None));
    decoder.open_vec(&sealer, 0, kind, bytes, max).map(drop)
}

fn frames() -> Vec<Case> {
    let header: Decode = |bytes, _| FrameHeader::decode(bytes).map(drop);
    let kinds = [
        FrameKind::Blocks,
        FrameKind::Nodes,
        FrameKind::Directory,
        FrameKind::Manifest,
        FrameKind::Record,
    ];
    let mut cases = Vec::new();
    for kind in kinds {
        let cap = kind.plain_bytes_max();
        for plain in [cap + 4096, u32::MAX as usize] {
            let bytes = frame(kind, plain, 100, &[0; 100]);
            cases.push(Case::new("plain length", bytes, header));
        }
        for payload in [cap + 17, u32::MAX as usize] {
            let bytes = frame(kind, cap, payload, &[0; 100]);
            cases.push(Case::new("payload length", bytes, header));
        }
    }
    let record: Decode = |bytes, decoder| {
        let kind = FrameKind::Record;
        open(decoder, kind, bytes, RECORD_PLAIN_BYTES_MAX)
    };
    let short = frame(FrameKind::Record, 65_536, 65_536, &[0; 100]);
    cases.push(Case::new("the length", short, record));
    let magic = 0xfd2f_b528_u32.to_le_bytes();
    // One segment whose length takes eight bytes; a window of 4 TiB.
    let says = |bytes: u64| [&magic[..], &[0xe0], &bytes.to_le_bytes()].concat();
    let window = [&magic[..], &[0x40, 0xff, 0, 0]].concat();
    for (wrong, zstd) in [
        ("the plain length", says(1 << 40)),
        ("the plain length", says(u64::MAX - 2)),
        ("window", window),
    ] {
        let bytes = frame(FrameKind::Record, 8192, zstd.len(), &zstd);
        cases.push(Case::new(wrong, bytes, record));
    }
    let cap = MANIFEST_PLAIN_BYTES_MAX;
    let zstd = says(cap as u64);
    let manifest = frame(FrameKind::Manifest, cap, zstd.len(), &zstd);
    cases.push(Case::new(
        "expected here",
        manifest.clone(),
        |bytes, decoder| open(decoder, FrameKind::Manifest, bytes, 64 << 10),
    ));
    // The one length that is believed, since what a frame holds is known only when it was decoded.
    let mut believed = Case::new("ends early", manifest, |bytes, decoder| {
        open(
            decoder,
            FrameKind::Manifest,
            bytes,
            MANIFEST_PLAIN_BYTES_MAX,
        )
    });
    believed.stated_bytes = cap;
    cases.push(believed);
    cases
}

/// A line of this process's status.
fn status_kib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.unwrap().split_whitespace().next();
    number.unwrap().parse().unwrap()
}

/// Asks for a piece of memory that nobody touches.
fn ask_for(kib: u64) -> Vec<u8> {
    black_box(Vec::with_capacity((kib as usize) << 10))
}

/// What `step` returns, and how much it asked for at most at a time, in pieces of 64 KiB and more.
fn asked_for<T>(step: impl FnOnce() -> T) -> (T, u64) {
    // With this the process is as large as it ever was, so that its peak shows all that is more.
    let gap = status_kib("VmPeak:") - status_kib("VmSize:");
    let filler = ask_for(gap.max(PIECE_KIB));
    let before = status_kib("VmPeak:");
    let done = step();
    let grown = status_kib("VmPeak:") - before;
    drop(filler);
    (done, grown)
}

fn check(cases: &[Case]) {
    let shows = || {
        assert_eq!(asked_for(|| drop(ask_for(1))).1, 0);
        let (_, grown) = asked_for(|| drop(ask_for(96)));
        assert!((96..=104).contains(&grown), "96 KiB are seen as {grown}");
    };
    let mut decoder = FrameDecoder::new();
    shows();
    for case in cases {
        let (ended, grown) = asked_for(|| (case.decode)(&case.bytes, &mut decoder));
        let error = ended.expect_err(case.wrong);
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        let named = error.message().contains(case.wrong);
        assert!(named, "{} is wrong, and this said: {error}", case.wrong);
        let held = case.bytes.len() as u64 * GROWTH_MAX + case.stated_bytes as u64;
        let allowed = PIECE_KIB + held.div_ceil(1024);
        assert!(grown <= allowed, "{error}: {grown} KiB were asked for");
    }
    shows();
}

/// Whether this process is one of its own for the test of this name; else the test is run in one.
fn is_alone(test: &str) -> bool {
    if std::env::var_os(ALLOCATOR[0].0).is_some() {
        return true;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", test, "--nocapture"]);
    let ended = again.envs(ALLOCATOR).status().unwrap();
    assert!(ended.success(), "see above: {ended}");
    false
}

/// The body of a manifest of as many entry pages as it may have, of one byte each.
fn manifest_of_tiny_pages() -> Vec<u8> {
    let mut sample = samples::manifest();
    let packs = sample.packs.len() * 80;
    sample.pages.clear();
    let sample = sample.encode().unwrap();
    // No page, and the packs.
    let pages_at = sample.len() - packs - 2 * 4;
    let count = (MANIFEST_PAGES_MAX as u32).to_le_bytes();
    let pages = [0_u8, 1, 3].repeat(MANIFEST_PAGES_MAX);
    [&sample[..pages_at], &count, &pages, &sample[pages_at + 4..]].concat()
}

#[test]
fn a_million_tiny_pages_take_no_memory_where_no_page_is_needed() {
    if !is_alone("a_million_tiny_pages_take_no_memory_where_no_page_is_needed") {
        return;
    }
    let body = manifest_of_tiny_pages();
    let looked = std::thread::spawn(move || {
        let (head, grown) = asked_for(|| ManifestHead::decode(&body).unwrap());
        assert_eq!(head.packs, samples::manifest().packs);
        assert!(grown <= PIECE_KIB, "{grown} KiB were asked for");
        let whole = Manifest::decode(&body).unwrap();
        assert_eq!(whole.pages.len(), MANIFEST_PAGES_MAX);
    });
    looked.join().expect("all is as it should be");
}

#[test]
fn no_count_is_taken_at_its_word() {
    if !is_alone("no_count_is_taken_at_its_word") {
        return;
    }
    let cases: Vec<Case> = [
        objects(),
        directories(),
        nodes(),
        entry_pages(),
        manifests(),
        records(),
        frames(),
    ]
    .into_iter()
    .flatten()
    .collect();
    // A thread of its own has nothing free yet.
    let checked = std::thread::spawn(move || check(&cases));
    checked.join().expect("every case is as it should be");
}
