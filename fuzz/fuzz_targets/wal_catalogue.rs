//! Catalogues, as they are and with the checksum set right: what decodes is the one encoding of its content.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mover_base::checksum;
use mover_source::pages::Catalogue;

fn check(bytes: &[u8]) {
    if let Ok(catalogue) = Catalogue::decode(bytes) {
        assert_eq!(catalogue.encode(), bytes);
    }
}

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    let mut bytes = bytes.to_vec();
    if let Some(body) = bytes.len().checked_sub(4) {
        let crc = checksum::crc32(&bytes[..body]);
        bytes[body..].copy_from_slice(&crc.to_le_bytes());
        check(&bytes);
    }
});
