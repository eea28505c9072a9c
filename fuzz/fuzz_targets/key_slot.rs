//! Key slots and what they hold; the checksum is set right so that the fields are reached.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mover_base::checksum;
use mover_format::{KeySlot, SlotSecret, WrappedPayload};

fuzz_target!(|bytes: &[u8]| {
    let mut sealed = bytes.to_vec();
    sealed.extend_from_slice(&checksum::crc32(bytes).to_le_bytes());
    if let Ok(slot) = KeySlot::decode(&sealed) {
        assert_eq!(slot.encode().unwrap(), sealed);
    }
    let _ = SlotSecret::decode(bytes);
    let _ = WrappedPayload::decode(bytes);
});
