//! SHA-256 of blocks, several at a time.
//!
//! One message is one chain of dependent steps, and the processor's SHA instructions take several cycles each but can
//! begin the next before they end. So three blocks are hashed side by side, step by step: 1.6 times as fast as one
//! after the other. It stands in this crate because calling code for a feature that was found at run time is
//! `unsafe`.
//!
//! Invariants: the result is that of FIPS 180-4, however it was computed; where the instructions are missing, and
//! for blocks left over, aws-lc computes it.

use mover_base::checksum::{Sha256, sha256};

use mover_base::BLOCK_BYTES;

/// One block.
type Block = [u8; BLOCK_BYTES];

/// Puts the SHA-256 of each block into the place that comes with it.
pub fn sha256_blocks<'a>(work: impl Iterator<Item = (&'a Block, &'a mut Sha256)>) {
    #[cfg(target_arch = "x86_64")]
    if side_by_side::is_supported() {
        return side_by_side::hash_all(work);
    }
    for (block, hash) in work {
        *hash = sha256(block);
    }
}

#[cfg(target_arch = "x86_64")]
mod side_by_side {
    #![allow(unsafe_code)]

    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi32, _mm_set_epi32, _mm_set_epi64x,
        _mm_setzero_si128, _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32,
        _mm_shuffle_epi8, _mm_shuffle_epi32,
    };

    use mover_base::checksum::{Sha256, sha256};

    use super::{BLOCK_BYTES, Block};

    /// Messages hashed side by side: a fourth finds no registers left and makes it slower than one alone.
    const LANES: usize = 3;
    /// Bytes that one application of the compression function takes.
    const CHUNK_BYTES: usize = 64;
    /// What follows a message of [`BLOCK_BYTES`]: a set bit, zeros, its length in bits.
    const PADDING: [u8; CHUNK_BYTES] = padding();

    /// Round constants: the first 32 bits of the fractional parts of the cube roots of the first 64 primes.
    #[rustfmt::skip]
    const K: [u32; 64] = [
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
    ];
    /// The state before the first chunk, in the order in which the instructions want it: (F, E, B, A), (H, G, D, C).
    const ABEF: [u32; 4] = [0x9b05688c, 0x510e527f, 0xbb67ae85, 0x6a09e667];
    const CDGH: [u32; 4] = [0x5be0cd19, 0x1f83d9ab, 0xa54ff53a, 0x3c6ef372];

    const fn padding() -> [u8; CHUNK_BYTES] {
        let mut out = [0; CHUNK_BYTES];
        out[0] = 0x80;
        let bits = (BLOCK_BYTES as u32 * 8).to_be_bytes();
        let mut at = 0;
        while at < bits.len() {
            out[CHUNK_BYTES - bits.len() + at] = bits[at];
            at += 1;
        }
        out
    }

    /// Whether the processor has the instructions.
    pub(super) fn is_supported() -> bool {
        is_x86_feature_detected!("sha")
            && is_x86_feature_detected!("ssse3")
            && is_x86_feature_detected!("sse4.1")
    }

    /// Hashes all, if [`is_supported`].
    pub(super) fn hash_all<'a>(work: impl Iterator<Item = (&'a Block, &'a mut Sha256)>) {
        assert!(is_supported());
        let mut work = work.fuse();
        loop {
            match (work.next(), work.next(), work.next()) {
                (Some(a), Some(b), Some(c)) => {
                    // SAFETY: the processor has the features that hash() is compiled for.
                    [*a.1, *b.1, *c.1] = unsafe { hash([a.0, b.0, c.0]) };
                }
                (a, b, _) => {
                    for (block, hash) in a.into_iter().chain(b) {
                        *hash = sha256(block);
                    }
                    return;
                }
            }
        }
    }

    /// The registers of one message.
    #[derive(Clone, Copy)]
    struct Lane {
        abef: __m128i,
        cdgh: __m128i,
        /// Four words of the message schedule each, the oldest at the place of the next.
        words: [__m128i; 4],
    }

    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn hash(blocks: [&Block; LANES]) -> [Sha256; LANES] {
        let begin = Lane {
            abef: four(ABEF),
            cdgh: four(CDGH),
            words: [_mm_setzero_si128(); 4],
        };
        let mut lanes = [begin; LANES];
        for chunk in 0..BLOCK_BYTES / CHUNK_BYTES {
            compress(
                &mut lanes,
                blocks.map(|block| &block.as_chunks::<CHUNK_BYTES>().0[chunk]),
            );
        }
        compress(&mut lanes, [&PADDING; LANES]);
        lanes.map(|lane| digest(lane.abef, lane.cdgh))
    }

    /// One application of the compression function to each lane.
    #[inline]
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn compress(lanes: &mut [Lane; LANES], chunks: [&[u8; CHUNK_BYTES]; LANES]) {
        let before = lanes.map(|lane| (lane.abef, lane.cdgh));
        for (lane, chunk) in lanes.iter_mut().zip(chunks) {
            for (words, bytes) in lane.words.iter_mut().zip(chunk.as_chunks::<16>().0) {
                *words = big_endian(bytes);
            }
        }
        for quad in 0..4 {
            rounds(lanes, quad, &K.as_chunks::<4>().0[quad]);
        }
        for begin in (16..64).step_by(16) {
            for quad in 0..4 {
                for lane in lanes.iter_mut() {
                    lane.words[quad] = next_words(&lane.words, quad);
                }
                rounds(lanes, quad, &K.as_chunks::<4>().0[begin / 4 + quad]);
            }
        }
        for (lane, (abef, cdgh)) in lanes.iter_mut().zip(before) {
            lane.abef = _mm_add_epi32(lane.abef, abef);
            lane.cdgh = _mm_add_epi32(lane.cdgh, cdgh);
        }
    }

    /// Four rounds in each lane, with the words at `quad`.
    #[inline]
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn rounds(lanes: &mut [Lane; LANES], quad: usize, constants: &[u32; 4]) {
        let constants = four(*constants);
        for lane in lanes {
            let words = _mm_add_epi32(lane.words[quad], constants);
            lane.cdgh = _mm_sha256rnds2_epu32(lane.cdgh, lane.abef, words);
            let words = _mm_shuffle_epi32(words, 0b00_00_11_10);
            lane.abef = _mm_sha256rnds2_epu32(lane.abef, lane.cdgh, words);
        }
    }

    /// The four words of the schedule that follow the sixteen in `words`, of which those at `quad` are the oldest.
    #[inline]
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn next_words(words: &[__m128i; 4], quad: usize) -> __m128i {
        let at = |after: usize| words[(quad + after) % 4];
        let sum = _mm_sha256msg1_epu32(at(0), at(1));
        let sum = _mm_add_epi32(sum, _mm_alignr_epi8(at(3), at(2), 4));
        _mm_sha256msg2_epu32(sum, at(3))
    }

    /// Four words, the first one lowest.
    #[inline]
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn four([a, b, c, d]: [u32; 4]) -> __m128i {
        _mm_set_epi32(
            d.cast_signed(),
            c.cast_signed(),
            b.cast_signed(),
            a.cast_signed(),
        )
    }

    /// Four words of a message.
    #[inline]
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn big_endian(bytes: &[u8; 16]) -> __m128i {
        let both = i128::from_le_bytes(*bytes);
        let words = _mm_set_epi64x((both >> 64) as i64, both as i64);
        let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        _mm_shuffle_epi8(words, swap)
    }

    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn digest(abef: __m128i, cdgh: __m128i) -> Sha256 {
        let words = [
            _mm_extract_epi32(abef, 3),
            _mm_extract_epi32(abef, 2),
            _mm_extract_epi32(cdgh, 3),
            _mm_extract_epi32(cdgh, 2),
            _mm_extract_epi32(abef, 1),
            _mm_extract_epi32(abef, 0),
            _mm_extract_epi32(cdgh, 1),
            _mm_extract_epi32(cdgh, 0),
        ];
        let mut out = [0; 32];
        // The result stands in the order A to H.
        for (bytes, word) in out.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *bytes = word.to_be_bytes();
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hashes(blocks: &[Block]) -> Vec<Sha256> {
        let mut out = vec![[0; 32]; blocks.len()];
        sha256_blocks(blocks.iter().zip(&mut out));
        out
    }

    /// Known answers: 4096 zeros, 4096 times the letter a.
    #[test]
    fn known_answers() {
        let [zeros, letters, ones] =
            hashes(&[[0; BLOCK_BYTES], [b'a'; BLOCK_BYTES], [1; BLOCK_BYTES]])
                .try_into()
                .expect("three");
        assert_eq!(zeros[..4], [0xad, 0x7f, 0xac, 0xb2]);
        assert_eq!(letters[..4], [0xc9, 0x3e, 0xee, 0x2d]);
        assert_eq!(ones, sha256(&[1; BLOCK_BYTES]));
    }

    proptest! {
        #[test]
        fn every_hash_is_that_of_aws_lc(seeds in prop::collection::vec(any::<[u8; 32]>(), 0..9)) {
            // What the generator makes of a seed is random enough, and much faster than drawing every byte.
            let blocks: Vec<Block> = seeds.iter().map(|seed| expand(*seed)).collect();
            let expected: Vec<Sha256> = blocks.iter().map(|block| sha256(block)).collect();
            prop_assert_eq!(hashes(&blocks), expected);
        }
    }

    fn expand(seed: [u8; 32]) -> Block {
        let mut block = [0; BLOCK_BYTES];
        let mut state = seed;
        for piece in block.as_chunks_mut::<32>().0 {
            state = sha256(&state);
            *piece = state;
        }
        block
    }
}
