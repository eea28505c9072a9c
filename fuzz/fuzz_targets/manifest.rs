//! Manifest bodies: what decodes is written and read again the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mover_format::Manifest;
use mover_format::manifest::ManifestHead;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = Manifest::decode(bytes) {
        let encoded = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(&encoded).unwrap(), manifest);
        let head = ManifestHead::decode(bytes).unwrap();
        assert_eq!(
            (head.metadata, head.packs),
            (manifest.metadata, manifest.packs)
        );
    } else {
        assert!(ManifestHead::decode(bytes).is_err());
    }
});
