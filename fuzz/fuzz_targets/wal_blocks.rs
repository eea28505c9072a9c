//! The structures of one block (segment header and footer, control slot, page, the tracker's state and headers), also with
//! the checksum set right.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mover_base::checksum;
use mover_source::page;
use mover_source::pages::Control;
use mover_source::tracker::{EpochHeader, LiveHeader, TrackerState, Witness};
use mover_source::wal::segment::{SegmentFooter, SegmentHeader};

fn check(block: &[u8; 4096]) {
    if let Ok(header) = SegmentHeader::decode(block) {
        assert_eq!(header.encode(), *block);
        let name = header.identity.path(header.start);
        assert_eq!(header.identity.parse_name(&name[4..]), Some(header.start));
    }
    if let Ok(footer) = SegmentFooter::decode(block) {
        assert_eq!(footer.encode(), *block);
    }
    if let Ok(control) = Control::decode(block) {
        assert_eq!(control.encode(), *block);
    }
    if let Ok(state) = TrackerState::decode(block) {
        assert_eq!(state.encode(), *block);
    }
    if let Ok(header) = LiveHeader::decode(block) {
        assert_eq!(header.encode(), *block);
    }
    if let Ok(witness) = Witness::decode(block) {
        assert_eq!(witness.encode(), *block);
    }
    let mut head = [0; 80];
    head.copy_from_slice(&block[..80]);
    let crc = checksum::crc32(&head[..72]);
    head[72..76].copy_from_slice(&crc.to_le_bytes());
    if let Ok(header) = EpochHeader::decode(&head) {
        assert_eq!(header.encode(), head);
    }
    if let Ok(Some(header)) = page::decode(block) {
        let mut again = *block;
        page::seal(&mut again, header);
        assert_eq!(again, *block);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut block = [0; 4096];
    let len = bytes.len().min(4096);
    block[..len].copy_from_slice(&bytes[..len]);
    check(&block);
    let crc = checksum::crc32(&block[..4092]);
    block[4092..].copy_from_slice(&crc.to_le_bytes());
    check(&block);
    let crc = checksum::crc32(&[&block[..16], &block[20..]].concat());
    block[16..20].copy_from_slice(&crc.to_le_bytes());
    check(&block);
});
