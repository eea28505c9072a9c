//! SHA-256 (FIPS 180-4) of content, CRC-32 (ISO-HDLC, as in zlib) of stored bytes.

/// A SHA-256 digest.
pub type Sha256 = [u8; 32];

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> Sha256 {
    let mut out = [0; 32];
    out.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    out
}

/// SHA-256 of each of `blocks` into the same place of `hashes` (as long as `blocks`).
///
/// Several blocks are hashed interleaved, which hides the latency of the CPU's SHA instructions: nearly twice
/// as fast as one after the other. It is another implementation than [`sha256`], and one block of each call,
/// chosen by the content, is hashed by both; false means that they differ, and none may be used.
#[must_use]
pub fn sha256_blocks(blocks: &[&[u8]], hashes: &mut [Sha256]) -> bool {
    debug_assert_eq!(blocks.len(), hashes.len());
    tape_sha256::hash_many(blocks, hashes);
    let Some(first) = hashes.first() else {
        return true;
    };
    let checked = usize::from(first[0]) % blocks.len();
    hashes[checked] == sha256(blocks[checked])
}

/// CRC-32 of `bytes`.
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_hashes_are_those_of_each_block_alone() {
        let data: Vec<u8> = (0..64 * 4096_u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        for count in 0..64 {
            let blocks: Vec<&[u8]> = data.chunks(4096).take(count).collect();
            let mut hashes = vec![[0; 32]; count];
            assert!(sha256_blocks(&blocks, &mut hashes));
            let alone: Vec<Sha256> = blocks.iter().map(|block| sha256(block)).collect();
            assert_eq!(hashes, alone);
        }
    }

    #[test]
    fn known_answers() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        let abc = sha256(b"abc");
        assert_eq!(abc[..4], [0xba, 0x78, 0x16, 0xbf]);
        assert_eq!(sha256(b"")[..4], [0xe3, 0xb0, 0xc4, 0x42]);
    }
}
