//! Frozen samples of format version 1: what was once written must be read for ever, and is written the same.
//!
//! The files under `golden/v1` were made by this test from `samples.rs`, with WRITE_GOLDEN=1 in the
//! environment, which writes what is missing and never replaces a file. Later versions get their own folder.

use std::path::Path;

use mover_base::checksum::sha256;
use mover_format::*;

use crate::samples::{self, *};

/// zstd promises to read its old output, not to write the same bytes for ever.
const ZSTD_OF_GOLDEN: u32 = 10_507;

fn golden(name: &str, encoded: &[u8]) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden/v1")
        .join(name);
    if !path.exists() && std::env::var_os("WRITE_GOLDEN").is_some() {
        std::fs::write(&path, encoded).unwrap();
    }
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Reads the frozen bytes and checks that they are what is written today.
fn frozen(name: &str, encoded: &[u8]) -> Vec<u8> {
    let golden = golden(name, encoded);
    assert!(golden == encoded, "{name} is written differently now");
    golden
}

fn frozen_zstd(name: &str, encoded: &[u8]) -> Vec<u8> {
    if zstd::zstd_safe::version_number() == ZSTD_OF_GOLDEN {
        frozen(name, encoded)
    } else {
        golden(name, encoded)
    }
}

#[test]
fn preambles_are_frozen() {
    for (name, cipher) in [
        ("preamble-sealed.bin", Cipher::Aes256Gcm),
        ("preamble-plain.bin", Cipher::None),
    ] {
        let sample = preamble(ObjectType::DataPack, cipher);
        let bytes = frozen(name, &sample.encode().unwrap());
        assert_eq!(Preamble::decode(&bytes).unwrap(), (sample, bytes.len()));
    }
}

#[test]
fn packs_are_frozen() {
    for (name, object_type, cipher) in [
        (
            "pack-data-sealed.bin",
            ObjectType::DataPack,
            Cipher::Aes256Gcm,
        ),
        ("pack-data-plain.bin", ObjectType::DataPack, Cipher::None),
        (
            "pack-meta-sealed.bin",
            ObjectType::MetaPack,
            Cipher::Aes256Gcm,
        ),
    ] {
        let preamble = preamble(object_type, cipher);
        let frames = samples::frames(object_type);
        let bytes = frozen_zstd(name, &build_pack(&preamble, &frames));
        assert_eq!(open_pack(&preamble, &bytes).unwrap(), frames, "{name}");
    }
}

#[test]
fn nodes_are_frozen() {
    let bytes = frozen("leaf.bin", &leaf().encode());
    assert_eq!(Leaf::decode(&bytes).unwrap(), leaf());
    let bytes = frozen("interior.bin", &interior().encode().unwrap());
    assert_eq!(Interior::decode(&bytes).unwrap(), interior());
    let bytes = frozen("entry-page.bin", &entry_page().encode().unwrap());
    assert_eq!(EntryPage::decode(&bytes).unwrap(), entry_page());
}

#[test]
fn manifests_are_frozen() {
    let body = frozen("manifest-body.bin", &manifest().encode().unwrap());
    assert_eq!(Manifest::decode(&body).unwrap(), manifest());
    for (name, cipher) in [
        ("manifest-sealed.bin", Cipher::Aes256Gcm),
        ("manifest-plain.bin", Cipher::None),
    ] {
        let bytes = frozen_zstd(name, &manifest_object(cipher));
        let preamble = preamble(ObjectType::Manifest, cipher);
        assert_eq!(open_manifest(&preamble, &bytes).unwrap(), manifest());
    }
}

#[test]
fn records_are_frozen() {
    let names = ["session", "tombstone", "hold", "annotation"];
    for (name, record) in names.into_iter().zip(records()) {
        let body = frozen(&format!("{name}-body.json"), &record.encode().unwrap());
        let object_type = record.object_type();
        assert_eq!(Record::decode(object_type, &body).unwrap(), record);
        for (form, cipher) in [("sealed", Cipher::Aes256Gcm), ("plain", Cipher::None)] {
            let object = record_object(&record, cipher);
            let bytes = frozen_zstd(&format!("{name}-{form}.bin"), &object);
            let preamble = preamble(object_type, cipher);
            assert_eq!(open_record(&preamble, &bytes).unwrap(), record);
        }
    }
}

#[test]
fn config_and_slots_are_frozen() {
    let bytes = frozen("config.txt", &config().encode().unwrap());
    let (decoded, hash) = RepositoryConfig::decode(&bytes).unwrap();
    assert_eq!(decoded, config());
    let line = bytes.split(|b| *b == b'\n').next().unwrap();
    assert_eq!(hash, sha256(line));
    let bytes = frozen("key-slot.bin", &key_slot().encode().unwrap());
    assert_eq!(KeySlot::decode(&bytes).unwrap(), key_slot());
    let bytes = frozen("slot-secret.json", &slot_secret().encode().unwrap());
    let secret = SlotSecret::decode(&bytes).unwrap();
    assert_eq!(secret.master_key.expose(), master_key().expose());
    assert_eq!(*secret.identity, *slot_secret().identity);
    secret
        .check_binding(&REPO, &key_slot().config_sha256)
        .unwrap();
    let bytes = frozen("wrapped-payload.bin", &wrapped_payload().encode()[..]);
    let payload = WrappedPayload::decode(&bytes).unwrap();
    assert_eq!(
        payload.origin(&master_key(), &REPO, &SESSION).unwrap(),
        Origin::Vouched
    );
}

/// Computed with other implementations of HKDF, AES-GCM and HMAC (Python's `cryptography` and `hmac`) from the
/// specification alone: were a context string, a field or its order changed, both directions would still agree.
#[test]
fn seals_and_tags_match_another_implementation() {
    let sealer = sealer(&preamble(ObjectType::DataPack, Cipher::Aes256Gcm));
    let mut sealed = [0; 32];
    sealer.seal(0, &[0; 12], &[0; 16], &mut sealed).unwrap();
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
    assert_eq!(
        hex(&sealed),
        "153756da3640655073c50452f14c5aeed9643d0827aa74419c2ed0b56fc8ff41"
    );
    assert_eq!(
        hex(&wrapped_payload().tag),
        "b3f67c0cde6ae7aeb51e341add9a89a411f22f4085a39bc42619bbb5887c44e6"
    );
}
