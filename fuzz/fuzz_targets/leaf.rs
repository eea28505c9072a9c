//! Leaves: what decodes is the one encoding of its content.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mover_format::Leaf;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(leaf) = Leaf::decode(bytes) {
        assert_eq!(leaf.encode(), bytes);
    }
});
