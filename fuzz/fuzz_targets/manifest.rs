//! Manifest bodies: what decodes is written and read again the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mover_format::Manifest;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = Manifest::decode(bytes) {
        let encoded = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(&encoded).unwrap(), manifest);
    }
});
