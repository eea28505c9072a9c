//! Whether a frame of blocks is worth compressing, after others were not: sorted tables, images and ciphertext come in
//! long runs, and zstd looks through every byte of them to find nothing.
//!
//! Invariants: a frame is left plain untried only behind one that did not shrink, only if a sample of itself does not
//! shrink either, and never more than [`UNTRIED_IN_A_ROW_MAX`] times in a row; so a run that the sample misjudges costs
//! room until then and no more. Whatever it answers, the frame can be read: this decides about room and time alone
//! (docs/decisions, 15).

use mover_base::{BLOCK_BYTES, Error, Kind, Result};
use zstd::bulk::Compressor;
use zstd::zstd_safe;

/// Blocks in a sample; they lie evenly spread over the frame.
const SAMPLE_BLOCKS: usize = 16;
/// Frames shorter than this are compressed without a question, which costs little more than the sample.
const PROBED_BYTES_MIN: usize = 4 * SAMPLE_BLOCKS * BLOCK_BYTES;
/// So many frames may follow a fruitless attempt before the next is tried as a whole.
const UNTRIED_IN_A_ROW_MAX: u32 = 15;

/// Remembers how the last frames fared. One for each encoder; takes about 150 KiB once it was asked.
pub(crate) struct ShrinkProbe {
    compressor: Compressor<'static>,
    sample: Vec<u8>,
    compressed: Vec<u8>,
    /// Frames that may still be left untried; none after one that shrank.
    untried_left: u32,
}

impl ShrinkProbe {
    /// A probe that compresses its samples at this level; nothing was seen yet.
    pub(crate) fn new(level: i32) -> std::io::Result<Self> {
        Ok(ShrinkProbe {
            compressor: Compressor::new(level)?,
            sample: Vec::new(),
            compressed: Vec::new(),
            untried_left: 0,
        })
    }

    /// Whether to compress these blocks; if so, [`tried`](Self::tried) has to hear what came of it.
    pub(crate) fn is_worth_trying(&mut self, plain: &[u8]) -> Result<bool> {
        if plain.len() < PROBED_BYTES_MIN || self.untried_left == 0 {
            return Ok(true);
        }
        let blocks = plain.len() / BLOCK_BYTES;
        self.sample.clear();
        for at in 0..SAMPLE_BLOCKS {
            let begin = at * blocks / SAMPLE_BLOCKS * BLOCK_BYTES;
            self.sample
                .extend_from_slice(&plain[begin..begin + BLOCK_BYTES]);
        }
        self.compressed.clear();
        self.compressed
            .reserve(zstd_safe::compress_bound(self.sample.len()));
        let bytes = self
            .compressor
            .compress_to_buffer(&self.sample, &mut self.compressed)
            .map_err(|e| Error::new(Kind::Internal, "zstd failed to compress a sample").cause(e))?;
        if bytes < self.sample.len() {
            return Ok(true);
        }
        self.untried_left -= 1;
        Ok(false)
    }

    /// Takes note of a frame that was compressed as a whole.
    pub(crate) fn tried(&mut self, plain_bytes: usize, shrank: bool) {
        if shrank {
            self.untried_left = 0;
        } else if plain_bytes >= PROBED_BYTES_MIN {
            self.untried_left = UNTRIED_IN_A_ROW_MAX;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Codec, FRAME_PLAIN_BYTES_MAX, FrameEncoder, FrameKind};

    fn noise(seed: u64) -> Vec<u8> {
        let mut state = seed;
        let mut bytes = Vec::with_capacity(FRAME_PLAIN_BYTES_MAX);
        while bytes.len() < FRAME_PLAIN_BYTES_MAX {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = state;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
        }
        bytes
    }

    /// Noise with one block of zeros between two blocks of the sample.
    fn shrinks_where_the_sample_does_not_look(seed: u64) -> Vec<u8> {
        let mut bytes = noise(seed);
        bytes[BLOCK_BYTES..2 * BLOCK_BYTES].fill(0);
        bytes
    }

    fn codec(encoder: &mut FrameEncoder, plain: &[u8]) -> Codec {
        encoder.compress(FrameKind::Blocks, plain).unwrap()
    }

    #[test]
    fn without_a_fruitless_attempt_before_every_frame_is_tried() {
        let mut encoder = FrameEncoder::new(3).unwrap();
        for seed in 0..3 {
            let plain = shrinks_where_the_sample_does_not_look(seed);
            assert_eq!(codec(&mut encoder, &plain), Codec::Zstd);
        }
    }

    #[test]
    fn behind_a_fruitless_attempt_the_sample_decides_but_not_for_ever() {
        let mut encoder = FrameEncoder::new(3).unwrap();
        assert_eq!(codec(&mut encoder, &noise(1)), Codec::Raw);
        let hidden = shrinks_where_the_sample_does_not_look(2);
        for _ in 0..UNTRIED_IN_A_ROW_MAX {
            assert_eq!(codec(&mut encoder, &hidden), Codec::Raw);
        }
        // This one was tried, and so are those behind it.
        for _ in 0..3 {
            assert_eq!(codec(&mut encoder, &hidden), Codec::Zstd);
        }
    }

    #[test]
    fn what_the_sample_sees_shrink_is_compressed_at_once() {
        let mut encoder = FrameEncoder::new(3).unwrap();
        assert_eq!(codec(&mut encoder, &noise(1)), Codec::Raw);
        assert_eq!(codec(&mut encoder, &noise(2)), Codec::Raw);
        let mut last_block_of_the_sample = noise(3);
        let begin = 15 * FRAME_PLAIN_BYTES_MAX / SAMPLE_BLOCKS;
        last_block_of_the_sample[begin..begin + BLOCK_BYTES].fill(7);
        assert_eq!(codec(&mut encoder, &last_block_of_the_sample), Codec::Zstd);
    }

    #[test]
    fn short_frames_and_other_kinds_are_tried_whatever_was_before() {
        let mut encoder = FrameEncoder::new(3).unwrap();
        assert_eq!(codec(&mut encoder, &noise(1)), Codec::Raw);
        let mut short = noise(2);
        short.truncate(PROBED_BYTES_MIN - BLOCK_BYTES);
        short[BLOCK_BYTES..2 * BLOCK_BYTES].fill(0);
        assert_eq!(codec(&mut encoder, &short), Codec::Zstd);
        assert_eq!(codec(&mut encoder, &noise(3)), Codec::Raw);
        let nodes = shrinks_where_the_sample_does_not_look(4);
        let kind = FrameKind::Nodes;
        assert_eq!(encoder.compress(kind, &nodes).unwrap(), Codec::Zstd);
    }
}
