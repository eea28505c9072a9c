//! SHA-256 (FIPS 180-4) of content, CRC-32 (ISO-HDLC, as in zlib) of stored bytes.
//!
//! Invariant: what is computed for many messages at once is compared with what one of them gives alone, each time, so that
//! neither a faulty vector unit nor a faulty library goes unseen for long (docs/decisions, 6).

use crate::{Error, Kind, Result};

/// A SHA-256 digest.
pub type Sha256 = [u8; 32];

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> Sha256 {
    let mut out = [0; 32];
    out.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    out
}

/// From so many messages on, computing them at once is the faster way.
const TOGETHER_MIN: usize = 4;

/// SHA-256 of each message, in their order: of several at once, as many as the processor's vectors hold.
///
/// # Errors
/// `Internal` if one of them, which is computed alone as well, gives something else.
pub fn sha256_each(messages: &[&[u8]]) -> Result<Vec<Sha256>> {
    if messages.len() < TOGETHER_MIN {
        return Ok(messages.iter().map(|message| sha256(message)).collect());
    }
    let mut digests = vec![[0; 32]; messages.len()];
    tape_sha256::hash_many(messages, &mut digests);
    // Another one each time, so that every place in a vector has its turn.
    let chosen = usize::from(digests[0][0]) % messages.len();
    match digests[chosen] == sha256(messages[chosen]) {
        true => Ok(digests),
        false => Err(Error::new(
            Kind::Internal,
            "SHA-256 of several blocks at once came out wrong",
        )
        .hint("test the processor and the memory of this machine; if they are sound, this is a bug of the mover: please report it")),
    }
}

/// CRC-32 of `bytes`.
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// CRC-32 of some bytes whose CRC-32 is `before`, followed by `bytes`.
pub fn crc32_continue(before: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(before);
    hasher.update(bytes);
    hasher.finalize()
}

/// SHA-256 of bytes that arrive in pieces.
#[derive(Clone)]
pub struct Sha256Stream(aws_lc_rs::digest::Context);

impl Sha256Stream {
    /// Nothing hashed yet.
    pub fn new() -> Self {
        Sha256Stream(aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256))
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes.
    pub fn finish(self) -> Sha256 {
        let mut out = [0; 32];
        out.copy_from_slice(self.0.finish().as_ref());
        out
    }
}

impl Default for Sha256Stream {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        let abc = sha256(b"abc");
        assert_eq!(abc[..4], [0xba, 0x78, 0x16, 0xbf]);
        assert_eq!(sha256(b"")[..4], [0xe3, 0xb0, 0xc4, 0x42]);
    }

    #[test]
    fn each_of_many_is_what_it_is_alone() {
        let bytes: Vec<u8> = (0u32..300_000)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        // All paddings, whole blocks, and messages of different lengths at once.
        let lengths = [0, 1, 55, 56, 63, 64, 65, 119, 128, 1000, 4095, 4096, 4097];
        for count in (0..70).chain([128, 255, 256, 257]) {
            let same: Vec<&[u8]> = (0..count).map(|n| &bytes[n * 7..n * 7 + 4096]).collect();
            let mixed = (0..count).map(|n| &bytes[n..n + lengths[n * 5 % lengths.len()]]);
            for messages in [same, mixed.collect()] {
                let alone: Vec<Sha256> = messages.iter().map(|message| sha256(message)).collect();
                assert_eq!(sha256_each(&messages).unwrap(), alone, "{count} messages");
            }
        }
    }

    #[test]
    fn pieces_give_what_the_whole_gives() {
        assert_eq!(crc32_continue(crc32(b"12345"), b"6789"), 0xcbf4_3926);
        assert_eq!(crc32_continue(0, b"123456789"), 0xcbf4_3926);
        let mut stream = Sha256Stream::new();
        stream.update(b"a");
        stream.update(b"");
        stream.update(b"bc");
        assert_eq!(stream.finish(), sha256(b"abc"));
    }
}
