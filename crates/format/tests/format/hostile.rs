//! Hostile bytes: no decoder panics, accepts a second encoding of the same content, or misses a change.

use mover_base::Kind;
use mover_format::pack::PACK_BYTES_MAX;
use mover_format::*;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::samples::{self, *};

/// Decodes `bytes` as everything; whatever decodes must encode to the very same bytes.
fn decode_all(bytes: &[u8]) {
    if let Ok((preamble, len)) = Preamble::decode(bytes) {
        assert_eq!(preamble.encode().unwrap(), bytes[..len]);
    }
    if let Ok(header) = FrameHeader::decode(bytes) {
        assert_eq!(header.encode(), bytes[..16]);
    }
    for object_type in [
        ObjectType::DataPack,
        ObjectType::MetaPack,
        ObjectType::Manifest,
        ObjectType::Session,
        ObjectType::Tombstone,
        ObjectType::Hold,
        ObjectType::Annotation,
    ] {
        // JSON has many spellings: this must only read what it wrote.
        if let Ok(record) = Record::decode(object_type, bytes) {
            let again = Record::decode(object_type, &record.encode().unwrap());
            assert_eq!(again.unwrap(), record);
        }
        if let Ok(directory) = PackDirectory::decode(object_type, bytes) {
            assert_eq!(directory.encode(object_type).unwrap(), bytes);
        }
        if let Ok(trailer) = PackTrailer::decode(object_type, bytes, 10_000_000) {
            assert_eq!(trailer.encode(object_type), bytes);
        }
    }
    if let Ok(leaf) = Leaf::decode(bytes) {
        assert_eq!(leaf.encode(), bytes);
    }
    if let Ok(node) = Interior::decode(bytes) {
        assert_eq!(node.encode().unwrap(), bytes);
    }
    if let Ok(page) = EntryPage::decode(bytes) {
        assert_eq!(page.encode().unwrap(), bytes);
    }
    if let Ok(slot) = KeySlot::decode(bytes) {
        assert_eq!(slot.encode().unwrap(), bytes);
    }
    if let Ok(payload) = WrappedPayload::decode(bytes) {
        assert_eq!(payload.encode()[..], *bytes);
    }
    // JSON has many spellings: these must only read what they wrote.
    if let Ok(manifest) = Manifest::decode(bytes) {
        assert_eq!(
            Manifest::decode(&manifest.encode().unwrap()).unwrap(),
            manifest
        );
    }
    if let Ok((config, _)) = RepositoryConfig::decode(bytes) {
        assert_eq!(
            RepositoryConfig::decode(&config.encode().unwrap())
                .unwrap()
                .0,
            config
        );
    }
    let _ = SlotSecret::decode(bytes);
}

fn valid_samples() -> Vec<Vec<u8>> {
    let directory = {
        let mut directory = PackDirectory::new();
        directory.push(100, 500, 8192, &[[1; 32], [2; 32]]).unwrap();
        directory.encode(ObjectType::DataPack).unwrap()
    };
    let trailer = PackTrailer {
        directory_offset: 9_999_000,
        directory_bytes: 968,
        directory_piece: 7,
    };
    vec![
        preamble(ObjectType::DataPack, Cipher::Aes256Gcm)
            .encode()
            .unwrap(),
        preamble(ObjectType::DataPack, Cipher::None)
            .encode()
            .unwrap(),
        build_pack(
            &preamble(ObjectType::DataPack, Cipher::None),
            &samples::frames(ObjectType::DataPack),
        )[100..]
            .to_vec(),
        directory,
        trailer.encode(ObjectType::DataPack).to_vec(),
        leaf().encode(),
        interior().encode().unwrap(),
        entry_page().encode().unwrap(),
        manifest().encode().unwrap(),
        config().encode().unwrap(),
        key_slot().encode().unwrap(),
        slot_secret().encode().unwrap().to_vec(),
        wrapped_payload().encode().to_vec(),
    ]
    .into_iter()
    .chain(records().map(|record| record.encode().unwrap()))
    .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..300)) {
        decode_all(&bytes);
    }

    #[test]
    fn small_bytes_do_no_harm(bytes in vec(0u8..8, 0..60)) {
        decode_all(&bytes);
    }

    #[test]
    fn mutated_samples_do_no_harm(
        sample in 0usize..17,
        changes in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let mut bytes = valid_samples().swap_remove(sample);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        decode_all(&bytes);
    }
}

#[test]
fn every_byte_of_every_sample_may_take_extreme_values() {
    for sample in valid_samples() {
        for at in 0..sample.len().min(4096) {
            for value in [
                0,
                1,
                0x7f,
                0x80,
                0xff,
                sample[at] ^ 1,
                sample[at].wrapping_add(1),
            ] {
                let mut bytes = sample.clone();
                bytes[at] = value;
                decode_all(&bytes);
            }
            decode_all(&sample[..at]);
        }
    }
}

/// Every single bit flip, every cut and every appended byte of whole objects must be noticed.
fn every_change_is_noticed(bytes: &[u8], opens: impl Fn(&[u8]) -> bool) {
    assert!(opens(bytes));
    let mut changed = bytes.to_vec();
    for at in 0..bytes.len() {
        let flip = 1 << (at % 8);
        changed[at] ^= flip;
        assert!(!opens(&changed), "byte {at} was changed unnoticed");
        changed[at] ^= flip;
    }
    for len in (0..bytes.len()).rev().step_by(7) {
        assert!(!opens(&bytes[..len]), "a cut to {len} bytes went unnoticed");
    }
    changed.push(0);
    assert!(!opens(&changed));
}

#[test]
fn every_change_of_an_object_is_noticed() {
    for cipher in [Cipher::Aes256Gcm, Cipher::None] {
        for object_type in [ObjectType::DataPack, ObjectType::MetaPack] {
            let preamble = preamble(object_type, cipher);
            let pack = build_pack(&preamble, &samples::frames(object_type));
            every_change_is_noticed(&pack, |bytes| open_pack(&preamble, bytes).is_ok());
        }
        let preamble = preamble(ObjectType::Manifest, cipher);
        let object = manifest_object(cipher);
        every_change_is_noticed(&object, |bytes| open_manifest(&preamble, bytes).is_ok());
        for record in records() {
            let preamble = samples::preamble(record.object_type(), cipher);
            let object = record_object(&record, cipher);
            every_change_is_noticed(&object, |bytes| open_record(&preamble, bytes).is_ok());
        }
    }
    let slot = key_slot().encode().unwrap();
    every_change_is_noticed(&slot, |bytes| KeySlot::decode(bytes).is_ok());
    let config = config().encode().unwrap();
    every_change_is_noticed(&config, |bytes| RepositoryConfig::decode(bytes).is_ok());
}

#[test]
fn an_object_in_the_place_of_another_is_noticed() {
    let data = preamble(ObjectType::DataPack, Cipher::Aes256Gcm);
    let frames = samples::frames(ObjectType::DataPack);
    let original = build_pack(&data, &frames);
    let variants = [
        Preamble {
            object_id: [9; 16],
            ..data.clone()
        },
        Preamble {
            repo_id: mover_base::RepoId([9; 16]),
            ..data.clone()
        },
        Preamble {
            cipher: Cipher::None,
            wrapped_key: Vec::new(),
            ..data.clone()
        },
    ];
    for variant in variants {
        let other = build_pack(&variant, &frames);
        assert!(open_pack(&variant, &other).is_ok());
        assert!(open_pack(&data, &other).is_err(), "{variant:?}");
    }
    // A preamble that claims the right place, before pieces sealed for another one, fixes nothing.
    let stranger = Preamble {
        object_id: [9; 16],
        ..data.clone()
    };
    let mut forged = build_pack(&stranger, &frames);
    let head = data.encode().unwrap();
    forged[..head.len()].copy_from_slice(&head);
    assert!(open_pack(&data, &forged).is_err());
    assert_eq!(original.len(), forged.len());
}

#[test]
fn a_record_under_another_name_is_noticed() {
    for record in records() {
        let right = preamble(record.object_type(), Cipher::None);
        let wrong = Preamble {
            object_id: [9; 16],
            ..right.clone()
        };
        let encoder = &mut FrameEncoder::new(3).unwrap();
        let forged = record.encode_object(&wrong, &sealer(&wrong), encoder);
        // Only a hold's id is its own.
        assert_eq!(forged.is_ok(), matches!(record, Record::Hold(_)));
        let object = record_object(&record, Cipher::None);
        assert!(open_record(&wrong, &object).is_err());
        for other in records() {
            let place = preamble(other.object_type(), Cipher::None);
            assert_eq!(open_record(&place, &object).is_ok(), place == right);
        }
    }
}

#[test]
fn pieces_that_changed_places_are_noticed() {
    let data = preamble(ObjectType::DataPack, Cipher::Aes256Gcm);
    let (first, second) = (noise(4096), noise(8192)[4096..].to_vec());
    let pack = build_pack(&data, &[first, second]);
    let begin = data.encoded_bytes();
    let frame = FrameHeader::decode(&pack[begin..]).unwrap().stored_bytes();
    let mut swapped = pack.clone();
    swapped[begin..begin + frame].copy_from_slice(&pack[begin + frame..begin + 2 * frame]);
    swapped[begin + frame..begin + 2 * frame].copy_from_slice(&pack[begin..begin + frame]);
    let error = open_pack(&data, &swapped).unwrap_err();
    assert!(error.message().contains("authenticate"), "{error}");
}

#[test]
fn a_seal_is_no_shield_for_a_key_of_another_session() {
    let data = preamble(ObjectType::DataPack, Cipher::Aes256Gcm);
    assert_eq!(
        ObjectSealer::new(&data, None).unwrap_err().kind(),
        Kind::Key
    );
    let plain = preamble(ObjectType::DataPack, Cipher::None);
    assert_eq!(
        ObjectSealer::new(&plain, Some(&session_key()))
            .unwrap_err()
            .kind(),
        Kind::Corrupt
    );
    let payload = wrapped_payload();
    let other = MasterKey::new([1; 32]);
    assert_eq!(
        payload.origin(&other, &REPO, &SESSION).unwrap_err().kind(),
        Kind::Corrupt
    );
    let unsigned = WrappedPayload {
        session_key: session_key(),
        tag: [0; 32],
    };
    assert_eq!(
        unsigned.origin(&master_key(), &REPO, &SESSION).unwrap(),
        Origin::WriteOnly
    );
}

/// What they ask for until then is in tests/allocations.rs.
#[test]
fn counts_beyond_their_caps_are_refused() {
    for bytes in [
        [1, 0xff, 0xff, 0xff, 0xff, 0x0f].as_slice(),
        &[1, 0x80, 0x80, 0x01],
        &[2, 1, 0xff, 0xff, 0xff, 0xff, 0x0f],
        &[3, 0xff, 0xff, 0xff, 0xff, 0x0f],
        &[0xff; 64],
    ] {
        decode_all(bytes);
        assert!(Leaf::decode(bytes).is_err());
        assert!(Interior::decode(bytes).is_err());
        assert!(EntryPage::decode(bytes).is_err());
        assert!(PackDirectory::decode(ObjectType::DataPack, bytes).is_err());
        assert!(Manifest::decode(bytes).is_err());
    }
}

#[test]
fn secrets_are_not_printed() {
    let printed = format!(
        "{:?} {:?} {:?} {:?}",
        session_key(),
        master_key(),
        slot_secret(),
        sealer(&preamble(ObjectType::DataPack, Cipher::Aes256Gcm)),
    );
    for secret in ["SAMPLE", "80", "129", "0, 1, 2"] {
        assert!(!printed.contains(secret), "{printed}");
    }
    let mut json = slot_secret().encode().unwrap().to_vec();
    let at = json.len() - 5;
    json[at] = b'X';
    let error = SlotSecret::decode(&json).unwrap_err().to_string();
    assert!(
        !error.contains("SAMPLE") && !error.contains("8081"),
        "{error}"
    );
}

#[test]
fn a_zstd_frame_that_says_less_than_it_must_is_refused() {
    let sealer = sealer(&preamble(ObjectType::DataPack, Cipher::None));
    let plain = lines(8192);
    let frame = |payload: &[u8]| {
        let mut header = FrameHeader {
            payload_bytes: payload.len() as u32,
            plain_bytes: plain.len() as u32,
            kind: FrameKind::Blocks,
            codec: Codec::Zstd,
            crc: 0,
        };
        let sealed = header.encode();
        header.crc = mover_base::checksum::crc32(&[&sealed[..12], payload].concat());
        [&header.encode()[..], payload].concat()
    };
    let opens = |payload: &[u8]| {
        let mut out = vec![0; plain.len()];
        FrameDecoder::new().open(&sealer, 0, FrameKind::Blocks, &frame(payload), &mut out)
    };
    let compress = |set: &[zstd::zstd_safe::CParameter], pieces: &[&[u8]]| -> Vec<u8> {
        let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
        set.iter()
            .for_each(|p| compressor.set_parameter(*p).unwrap());
        pieces
            .iter()
            .flat_map(|piece| compressor.compress(piece).unwrap())
            .collect()
    };
    use zstd::zstd_safe::CParameter::{ChecksumFlag, ContentSizeFlag};
    let good = compress(&[], &[&plain]);
    assert_eq!(opens(&good).unwrap(), plain.len());
    assert!(opens(&compress(&[ChecksumFlag(true)], &[&plain])).is_err());
    assert!(opens(&compress(&[ContentSizeFlag(false)], &[&plain])).is_err());
    assert!(opens(&compress(&[], &[&plain[..4096], &plain[4096..]])).is_err());
    assert!(opens(&compress(&[], &[&plain[..4096]])).is_err());
    assert!(opens(&[&good[..], &[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]].concat()).is_err());
    // A window descriptor of 16 MiB instead of a single segment.
    let wide = [
        &good[..4],
        &[0x60 & !0x20, 14 << 3],
        &8192u16.wrapping_sub(256).to_le_bytes(),
        &good[7..],
    ]
    .concat();
    let error = opens(&wide).unwrap_err();
    assert!(error.message().contains("window"), "{error}");
}

#[test]
fn a_pack_longer_than_its_parts_allow_is_refused() {
    let encoded = manifest().encode().unwrap();
    let honest = 10_000_000u64.to_le_bytes();
    let at = encoded.windows(8).position(|w| w == honest).unwrap();
    let with_bytes = |bytes: u64| {
        let mut changed = encoded.clone();
        changed[at..at + 8].copy_from_slice(&bytes.to_le_bytes());
        changed[at + 8..at + 16].copy_from_slice(&(bytes - 1000).to_le_bytes());
        Manifest::decode(&changed)
    };
    assert!(with_bytes(PACK_BYTES_MAX).is_ok());
    for bytes in [PACK_BYTES_MAX + 1, u64::MAX] {
        assert_eq!(with_bytes(bytes).unwrap_err().kind(), Kind::Corrupt);
    }
}
