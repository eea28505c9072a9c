//! Interior nodes: what decodes is the one encoding of its content.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mover_format::Interior;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(node) = Interior::decode(bytes) {
        assert_eq!(node.encode().unwrap(), bytes);
        let _ = node.check_shape(1, 20_000);
    }
});
