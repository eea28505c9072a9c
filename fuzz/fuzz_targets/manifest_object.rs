//! Whole manifest objects without a seal, from the preamble to the metadata.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mover_format::manifest::ManifestHead;
use mover_format::{FrameDecoder, Manifest, ObjectSealer, Preamble};

fuzz_target!(|bytes: &[u8]| {
    let Ok((preamble, _)) = Preamble::decode(bytes) else {
        return;
    };
    if let Ok(sealer) = ObjectSealer::new(&preamble, None) {
        let mut decoder = FrameDecoder::new();
        let _ = Manifest::decode_object(bytes, &preamble, &sealer, &mut decoder);
        let _ = ManifestHead::decode_object(bytes, &preamble, &sealer, &mut decoder);
    }
});
