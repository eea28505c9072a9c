//! Properties: what is encoded decodes to itself; what decodes is the one encoding of its content; no nonce repeats.

use std::collections::HashSet;

use mover_base::tree::{Entry, EntryKind, FileTime};
use mover_base::{BLOCK_BYTES, Kind, PackId, RepoId, SessionId};
use mover_format::entry::{EntryPageBuilder, PAGE_ENTRIES_MAX};
use mover_format::frame::FRAME_STORED_BYTES_MAX;
use mover_format::node::{LEAF_BLOCKS_MAX, level_blocks, root_level};
use mover_format::*;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::samples::*;

fn any_run() -> impl Strategy<Value = Run> {
    let blocks = prop_oneof![4 => 1u32..20, 1 => 1u32..3000];
    prop_oneof![
        blocks.clone().prop_map(|blocks| Run::Hole { blocks }),
        blocks.clone().prop_map(|blocks| Run::Zeros { blocks }),
        // Few packs and low ordinals, so that runs often follow each other.
        (blocks, 0u8..4, 0u32..40).prop_map(|(blocks, pack, ordinal)| Run::Stored {
            blocks,
            pack: PackId([pack; 16]),
            ordinal,
        }),
    ]
}

/// What each block of the runs is: the truth that merging must not change.
fn spelled_out(runs: &[Run]) -> Vec<Run> {
    let one = |run: &Run, i: u32| match *run {
        Run::Hole { .. } => Run::Hole { blocks: 1 },
        Run::Zeros { .. } => Run::Zeros { blocks: 1 },
        Run::Stored { pack, ordinal, .. } => Run::Stored {
            blocks: 1,
            pack,
            ordinal: ordinal + i,
        },
    };
    runs.iter()
        .flat_map(|run| (0..run.blocks()).map(move |i| one(run, i)))
        .collect()
}

fn any_child() -> impl Strategy<Value = Child> {
    let place = (
        any::<[u8; 32]>(),
        any::<[u8; 16]>(),
        0u32..65_536,
        0u32..1000,
        193u32..100_000,
    );
    prop_oneof![
        Just(Child::Inline(leaf().encode())),
        place.prop_map(|(sha256, pack, frame, offset, len)| Child::Node(NodeRef {
            sha256,
            pack: PackId(pack),
            frame,
            offset,
            len,
        })),
    ]
}

fn any_entry() -> impl Strategy<Value = StoredEntry> {
    let name = vec(prop_oneof![b'a'..=b'd', Just(b'/'), Just(0xffu8)], 1..12);
    let kind = prop_oneof![
        Just(EntryKind::Dir),
        (0u64..=u64::from(LEAF_BLOCKS_MAX) * 4096).prop_map(|bytes| EntryKind::File { bytes }),
        vec(1u8.., 1..50).prop_map(|target| EntryKind::Symlink { target }),
        Just(EntryKind::Hardlink {
            first: b"a".to_vec()
        }),
        Just(EntryKind::Fifo),
    ];
    let xattrs = proptest::collection::btree_map(vec(1u8.., 1..20), vec(any::<u8>(), 0..50), 0..4);
    let numbers = (
        0u32..=0o7777,
        any::<u32>(),
        any::<u32>(),
        any::<i64>(),
        0u32..1_000_000_000,
    );
    (name, kind, xattrs, numbers, any_child()).prop_map(|(path, kind, xattrs, numbers, child)| {
        let (mode, uid, gid, seconds, nanos) = numbers;
        let entry = Entry {
            path,
            kind,
            mode,
            uid,
            gid,
            mtime: FileTime { seconds, nanos },
            xattrs: xattrs.into_iter().collect(),
        };
        let map = (entry.content_bytes() > 0).then_some(child);
        StoredEntry { entry, map }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn leaves_round_trip_and_merging_changes_no_block(runs in vec(any_run(), 1..60)) {
        let mut builder = LeafBuilder::new();
        let mut pushed = Vec::new();
        for run in runs {
            if run.blocks() <= builder.room() {
                builder.push(run).unwrap();
                pushed.push(run);
            }
        }
        let leaf = builder.finish().unwrap();
        prop_assert_eq!(spelled_out(leaf.runs()), spelled_out(&pushed));
        let bytes = leaf.encode();
        prop_assert_eq!(&Leaf::decode(&bytes).unwrap(), &leaf);
        prop_assert_eq!(leaf.blocks() as usize, spelled_out(&pushed).len());
    }

    #[test]
    fn equal_blocks_give_equal_leaves_however_they_were_pushed(runs in vec(any_run(), 1..20)) {
        let (mut whole, mut single) = (LeafBuilder::new(), LeafBuilder::new());
        for run in runs.into_iter().filter(|run| run.blocks() < 500) {
            whole.push(run).unwrap();
            for block in spelled_out(&[run]) {
                single.push(block).unwrap();
            }
        }
        prop_assert_eq!(whole.finish().map(|l| l.encode()), single.finish().map(|l| l.encode()));
    }

    #[test]
    fn a_leaf_joined_from_parts_is_the_leaf_made_at_once(
        runs in vec(any_run(), 1..20),
        cuts in vec(any::<bool>(), 1..100),
    ) {
        let (mut whole, mut part, mut joined) = (LeafBuilder::new(), LeafBuilder::new(), LeafBuilder::new());
        let runs: Vec<Run> = runs.into_iter().filter(|run| run.blocks() < 500).collect();
        for (block, cut) in spelled_out(&runs).into_iter().zip(cuts.into_iter().cycle()) {
            whole.push(block).unwrap();
            part.push(block).unwrap();
            if cut {
                joined.append(&part.finish().unwrap()).unwrap();
            }
        }
        if let Some(last) = part.finish() {
            joined.append(&last).unwrap();
        }
        prop_assert_eq!(whole.finish().map(|l| l.encode()), joined.finish().map(|l| l.encode()));
    }

    #[test]
    fn interior_nodes_round_trip(children in vec(any_child(), 1..40)) {
        let node = Interior { level: 1, children };
        prop_assert_eq!(Interior::decode(&node.encode().unwrap()).unwrap(), node);
    }

    #[test]
    fn entry_pages_round_trip(mut entries in vec(any_entry(), 1..30)) {
        entries.retain(|stored| {
            let entry = &stored.entry;
            let link_ok = !matches!(&entry.kind, EntryKind::Hardlink { first } if *first >= entry.path);
            mover_base::tree::is_safe_path(&entry.path) && link_ok
        });
        entries.sort_by(|a, b| a.entry.path.cmp(&b.entry.path));
        entries.dedup_by(|a, b| a.entry.path == b.entry.path);
        prop_assume!(!entries.is_empty());
        let page = EntryPage { entries };
        prop_assert_eq!(EntryPage::decode(&page.encode().unwrap()).unwrap(), page);
    }

    #[test]
    fn frames_round_trip_whatever_they_hold(
        seed in vec(any::<u8>(), 1..200),
        blocks in 1usize..=256,
        sealed in any::<bool>(),
    ) {
        let plain: Vec<u8> = seed.iter().copied().cycle().take(blocks * BLOCK_BYTES).collect();
        let cipher = if sealed { Cipher::Aes256Gcm } else { Cipher::None };
        let preamble = preamble(ObjectType::DataPack, cipher);
        prop_assert_eq!(open_pack(&preamble, &build_pack(&preamble, std::slice::from_ref(&plain))).unwrap(), vec![plain]);
    }

    #[test]
    fn noise_frames_round_trip(len in 1usize..100_000) {
        let preamble = preamble(ObjectType::MetaPack, Cipher::Aes256Gcm);
        let plain = noise(len);
        prop_assert_eq!(open_pack(&preamble, &build_pack(&preamble, std::slice::from_ref(&plain))).unwrap(), vec![plain]);
    }

    #[test]
    fn directories_find_every_block(sizes in vec(1u32..=256, 1..30)) {
        let mut directory = PackDirectory::new();
        let mut offset = 100u64;
        let mut truth = Vec::new();
        for (frame, &blocks) in sizes.iter().enumerate() {
            let hashes = vec![[frame as u8; 32]; blocks as usize];
            let first = directory.push(offset, 100, blocks as usize * BLOCK_BYTES, &hashes).unwrap();
            prop_assert_eq!(first as usize, truth.len());
            truth.extend((0..blocks as usize).map(|slot| (frame, slot)));
            offset += 100;
        }
        for (ordinal, place) in truth.iter().enumerate() {
            prop_assert_eq!(directory.frame_of(ordinal as u32), Some(*place));
        }
        prop_assert_eq!(directory.frame_of(truth.len() as u32), None);
        let bytes = directory.encode(ObjectType::DataPack).unwrap();
        prop_assert_eq!(PackDirectory::decode(ObjectType::DataPack, &bytes).unwrap(), directory);
    }

    #[test]
    fn no_piece_index_is_sealed_twice(pieces in vec(0u32..6, 1..40)) {
        let sealer = sealer(&preamble(ObjectType::DataPack, Cipher::Aes256Gcm));
        let mut sealed = Vec::new();
        for piece in pieces {
            if sealer.seal(piece, &[0; 12], b"x", &mut [0; 17]).is_ok() {
                sealed.push(piece);
            }
        }
        let expected: Vec<u32> = (0..sealed.len() as u32).collect();
        prop_assert_eq!(sealed, expected);
    }
}

proptest! {
    #[test]
    fn annotations_decode_to_what_was_encoded(
        number in 1u32..=9999,
        set in proptest::collection::btree_map(".{0,20}", ".{0,60}", 0..6),
        remove in proptest::collection::btree_set(".{0,20}", 0..6),
        host in ".{0,30}",
        micros in 0i64..4_000_000_000_000_000,
    ) {
        let record = Record::Annotation(AnnotationRecord {
            backup_id: backup_id(),
            number,
            remove,
            set,
            host,
            created: mover_base::Timestamp::from_micros(micros),
        });
        let body = record.encode().unwrap();
        prop_assert_eq!(Record::decode(ObjectType::Annotation, &body).unwrap(), record);
        // None of the others takes it for its own.
        for object_type in [ObjectType::Session, ObjectType::Hold, ObjectType::Manifest] {
            prop_assert!(Record::decode(object_type, &body).is_err());
        }
    }
}

#[test]
fn no_keystream_repeats_over_objects_and_pieces() {
    // Sealing zeros shows the keystream itself; 16 bytes of it identify a (key, nonce) pair.
    let mut seen = HashSet::new();
    let mut variants = Vec::new();
    for object_type in [
        ObjectType::DataPack,
        ObjectType::MetaPack,
        ObjectType::Manifest,
        ObjectType::Session,
        ObjectType::Tombstone,
        ObjectType::Hold,
        ObjectType::Annotation,
    ] {
        for object_id in [[1; 16], [2; 16]] {
            for repo in [1, 2] {
                for key in [1, 2] {
                    variants.push((
                        object_type,
                        object_id,
                        RepoId([repo; 16]),
                        SessionKey::new([key; 32]),
                    ));
                }
            }
        }
    }
    for (object_type, object_id, repo_id, key) in &variants {
        let mut preamble = preamble(*object_type, Cipher::Aes256Gcm);
        (preamble.object_id, preamble.repo_id) = (*object_id, *repo_id);
        let sealer = ObjectSealer::new(&preamble, Some(key)).unwrap();
        for piece in 0..50 {
            let mut sealed = [0; 32];
            sealer.seal(piece, &[0; 12], &[0; 16], &mut sealed).unwrap();
            assert!(
                seen.insert(sealed[..16].to_vec()),
                "{object_type:?} piece {piece}"
            );
        }
    }
    assert_eq!(seen.len(), variants.len() * 50);
}

#[test]
fn session_tags_depend_on_every_input() {
    let tag = |master, repo, session, key| {
        session_tag(
            &MasterKey::new([master; 32]),
            &RepoId([repo; 16]),
            &SessionId([session; 16]),
            &SessionKey::new([key; 32]),
        )
    };
    let tags = [
        tag(1, 1, 1, 1),
        tag(2, 1, 1, 1),
        tag(1, 2, 1, 1),
        tag(1, 1, 2, 1),
        tag(1, 1, 1, 2),
    ];
    assert_eq!(HashSet::from(tags).len(), tags.len());
}

#[test]
fn frame_sizes_at_their_boundaries() {
    let sealer = sealer(&preamble(ObjectType::DataPack, Cipher::Aes256Gcm));
    let mut encoder = FrameEncoder::new(1).unwrap();
    for (kind, len, allowed) in [
        (FrameKind::Blocks, 0, false),
        (FrameKind::Blocks, 4095, false),
        (FrameKind::Blocks, 4097, false),
        (FrameKind::Blocks, (1 << 20) + 4096, false),
        (FrameKind::Nodes, 0, false),
        (FrameKind::Nodes, (1 << 20) + 1, false),
        (FrameKind::Directory, (4 << 20) + 1, false),
        (FrameKind::Blocks, 4096, true),
        (FrameKind::Blocks, 1 << 20, true),
        (FrameKind::Nodes, 1, true),
        (FrameKind::Nodes, 1 << 20, true),
    ] {
        assert_eq!(
            encoder.compress(kind, &vec![0; len]).is_ok(),
            allowed,
            "{kind:?} {len}"
        );
    }
    let plain = noise(1 << 20);
    let mut out = b"before".to_vec();
    assert_eq!(
        encoder.compress(FrameKind::Blocks, &plain).unwrap(),
        Codec::Raw
    );
    encoder.compare(&plain).unwrap();
    assert_eq!(
        encoder.seal(&sealer, 0, &plain, &mut out).unwrap(),
        FRAME_STORED_BYTES_MAX
    );
    let mut opened = vec![0; 1 << 20];
    FrameDecoder::new()
        .open(&sealer, 0, FrameKind::Blocks, &out[6..], &mut opened)
        .unwrap();
    assert!(opened == plain && out.starts_with(b"before"));
}

#[test]
fn a_frame_that_was_not_compared_is_not_sealed() {
    let sealer = sealer(&preamble(ObjectType::DataPack, Cipher::Aes256Gcm));
    let mut encoder = FrameEncoder::new(3).unwrap();
    let plain = lines(BLOCK_BYTES);
    let mut out = Vec::new();
    assert!(encoder.seal(&sealer, 0, &plain, &mut out).is_err());
    assert!(encoder.compare(&plain).is_err());
    encoder.compress(FrameKind::Blocks, &plain).unwrap();
    let error = encoder.seal(&sealer, 0, &plain, &mut out).unwrap_err();
    assert_eq!(error.kind(), Kind::Internal);
    assert!(out.is_empty());
    assert_eq!(sealer.next_piece(), 0);
}

#[test]
fn compare_finds_a_single_wrong_byte() {
    let mut encoder = FrameEncoder::new(3).unwrap();
    let plain = lines(BLOCK_BYTES);
    for at in [0, 1, 2048, 4095] {
        encoder.compress(FrameKind::Blocks, &plain).unwrap();
        let mut other = plain.clone();
        other[at] ^= 1;
        assert!(encoder.compare(&other).is_err(), "byte {at}");
        let sealer = sealer(&preamble(ObjectType::DataPack, Cipher::None));
        assert!(encoder.seal(&sealer, 0, &other, &mut Vec::new()).is_err());
    }
}

#[test]
fn every_level_makes_frames_that_readers_accept() {
    let plain = lines(1 << 20);
    for level in [-7, -1, 0, 1, 3, 9, 19] {
        let sealer = sealer(&preamble(ObjectType::DataPack, Cipher::None));
        let mut encoder = FrameEncoder::new(level).unwrap();
        encoder.compress(FrameKind::Blocks, &plain).unwrap();
        encoder.compare(&plain).unwrap();
        let mut out = Vec::new();
        encoder.seal(&sealer, 0, &plain, &mut out).unwrap();
        let mut opened = vec![0; 1 << 20];
        FrameDecoder::new()
            .open(&sealer, 0, FrameKind::Blocks, &out, &mut opened)
            .unwrap();
        assert!(opened == plain, "level {level}");
    }
    assert_eq!(FrameEncoder::new(20).err().unwrap().kind(), Kind::Usage);
    assert_eq!(FrameEncoder::new(-8).err().unwrap().kind(), Kind::Usage);
}

#[test]
fn a_large_manifest_frame_needs_no_window_above_the_cap() {
    let plain = [lines(5 << 20), noise(1 << 20), lines(5 << 20)].concat();
    let sealer = sealer(&preamble(ObjectType::Manifest, Cipher::Aes256Gcm));
    let mut encoder = FrameEncoder::new(3).unwrap();
    encoder.compress(FrameKind::Manifest, &plain).unwrap();
    encoder.compare(&plain).unwrap();
    let mut out = Vec::new();
    encoder.seal(&sealer, 0, &plain, &mut out).unwrap();
    let opened = FrameDecoder::new()
        .open_vec(&sealer, 0, FrameKind::Manifest, &out, 64 << 20)
        .unwrap();
    assert!(opened == plain);
    assert!(
        FrameDecoder::new()
            .open_vec(&sealer, 0, FrameKind::Manifest, &out, plain.len() - 1)
            .is_err()
    );
}

#[test]
fn root_levels_change_at_full_nodes() {
    assert_eq!(root_level(0), None);
    for level in 0..4 {
        assert_eq!(root_level(level_blocks(level)), Some(level));
        assert_eq!(root_level(level_blocks(level) + 1), Some(level + 1));
    }
    assert_eq!(root_level(u64::MAX / 4096 + 1), Some(4));
    assert_eq!(root_level(u64::MAX), None);
}

#[test]
fn pages_end_at_their_caps() {
    let stored = |path: String, value_bytes: usize, values: usize| StoredEntry {
        entry: Entry {
            path: path.into_bytes(),
            kind: EntryKind::Fifo,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: FileTime::default(),
            xattrs: (0..values)
                .map(|i| (format!("user.{i:04}").into_bytes(), vec![0; value_bytes]))
                .collect(),
        },
        map: None,
    };
    let mut page = EntryPageBuilder::new();
    for i in 0..PAGE_ENTRIES_MAX {
        assert!(page.push(&stored(format!("{i:05}"), 0, 0)).unwrap());
    }
    assert!(!page.push(&stored("99999".into(), 0, 0)).unwrap());
    assert_eq!(
        EntryPage::decode(&page.finish().unwrap())
            .unwrap()
            .entries
            .len(),
        PAGE_ENTRIES_MAX
    );
    // Sixteen values of 64 KiB exceed a node; fifteen fit, but not twice.
    assert_eq!(
        page.push(&stored("a".into(), 65_536, 16))
            .unwrap_err()
            .kind(),
        Kind::Limit
    );
    assert!(page.push(&stored("b".into(), 65_536, 15)).unwrap());
    assert!(!page.push(&stored("c".into(), 65_536, 15)).unwrap());
    assert_eq!(
        page.push(&stored("a".into(), 0, 0)).unwrap_err().kind(),
        Kind::Internal
    );
    assert_eq!(
        EntryPage::decode(&page.finish().unwrap())
            .unwrap()
            .entries
            .len(),
        1
    );
}
