//! Trailers: what decodes is the one encoding of its content.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mover_format::{ObjectType, PackTrailer};

fuzz_target!(|bytes: &[u8]| {
    if let Some((length, bytes)) = bytes.split_first_chunk::<8>() {
        for object_type in [ObjectType::DataPack, ObjectType::Manifest] {
            let length = u64::from_le_bytes(*length);
            if let Ok(trailer) = PackTrailer::decode(object_type, bytes, length) {
                assert_eq!(trailer.encode(object_type), bytes);
                assert_eq!(trailer.object_bytes(), length);
            }
        }
    }
});
