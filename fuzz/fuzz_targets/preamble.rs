//! Preambles: what decodes is the one encoding of its content.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mover_format::Preamble;

fuzz_target!(|bytes: &[u8]| {
    if let Ok((preamble, len)) = Preamble::decode(bytes) {
        assert_eq!(preamble.encode().unwrap(), bytes[..len]);
    }
});
