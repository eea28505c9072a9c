//! Pack directories: what decodes is the one encoding of its content, and finds its blocks.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mover_format::{ObjectType, PackDirectory};

fuzz_target!(|bytes: &[u8]| {
    for object_type in [ObjectType::DataPack, ObjectType::MetaPack] {
        if let Ok(directory) = PackDirectory::decode(object_type, bytes) {
            assert_eq!(directory.encode(object_type).unwrap(), bytes);
            for ordinal in 0..directory.hashes.len() as u32 {
                let (frame, slot) = directory.frame_of(ordinal).unwrap();
                assert!(slot < directory.frames[frame].blocks() as usize);
            }
        }
    }
});
