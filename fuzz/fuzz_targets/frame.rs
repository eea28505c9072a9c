//! Frames of every kind without a seal: header, checksum, zstd; the checksum is set right so that zstd is reached.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mover_base::{RepoId, SessionId, checksum};
use mover_format::{
    Cipher, FrameDecoder, FrameHeader, FrameKind, ObjectSealer, ObjectType, Preamble,
};

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    if let Some((head, payload)) = bytes.split_at_mut_checked(16) {
        let crc = checksum::crc32(&[&head[..12], payload].concat());
        head[12..].copy_from_slice(&crc.to_le_bytes());
    }
    if let Ok(header) = FrameHeader::decode(&bytes) {
        assert_eq!(header.encode(), bytes[..16]);
    }
    let preamble = Preamble {
        object_type: ObjectType::DataPack,
        cipher: Cipher::None,
        repo_id: RepoId([0; 16]),
        object_id: [0; 16],
        session_id: SessionId([0; 16]),
        wrapped_key: Vec::new(),
    };
    let sealer = ObjectSealer::new(&preamble, None).unwrap();
    let mut decoder = FrameDecoder::new();
    for kind in [
        FrameKind::Blocks,
        FrameKind::Nodes,
        FrameKind::Directory,
        FrameKind::Manifest,
        FrameKind::Record,
    ] {
        if let Ok(plain) = decoder.open_vec(&sealer, 0, kind, &bytes, 4 << 20) {
            assert!(kind.allows_plain_bytes(plain.len()));
        }
    }
});
