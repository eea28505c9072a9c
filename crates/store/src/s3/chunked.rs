//! Bodies that are signed chunk by chunk (`STREAMING-AWS4-HMAC-SHA256-PAYLOAD`), for servers without TLS, where `sign=chunks` asks for it.
//!
//! One SHA-256 is a chain, which no vector unit speeds up; those of a body's chunks are computed many at once.
//!
//! Invariants: every chunk but the last has [`CHUNK_BYTES`]; a chunk's signature covers its bytes and all signatures before
//! it, so none can be changed, moved or left out; bodies go this way only to a server that was seen to take the frames
//! off again.
//!
//! Source: <https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html>

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::{HeaderMap, Method, header};
use mover_base::checksum::{Sha256, Sha256Stream, sha256, sha256_each};
use mover_base::{Result, hex};
use reqsign_core::hash::{hex_hmac_sha256, hmac_sha256};

use super::answer::Operation;
use super::body::{ContentHash, EMPTY_SHA256, Payload};
use super::client::{Client, Request, Sink};
use super::location::{Checksum, Location, Signing};
use super::put::{self, new_mark, new_probe_name, put_request, withdraw_probe};

/// Bytes of a chunk: a buffer of the arena makes as many as the widest vectors hold lanes, and a frame adds 0.14 %.
pub(super) const CHUNK_BYTES: usize = 64 << 10;
/// What stands for the hash of a body that is signed this way.
pub(super) const CONTENT_SHA256: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
/// Bytes of a frame beside the digits of its length and the chunk: name, signature, two ends of lines.
const FRAME_BYTES: u64 = ";chunk-signature=".len() as u64 + 64 + 4;
/// What the probe holds, and most that is read of it.
const PROBE: &[u8] = b"helios-mover";
const PROBE_BYTES_MAX: u64 = 4096;

/// SHA-256 of each chunk of bytes that arrive in pieces.
#[derive(Default)]
pub(super) struct ChunkHashes {
    done: Vec<Sha256>,
    /// The chunk that has begun, and its bytes so far.
    open: Sha256Stream,
    open_bytes: usize,
}

impl ChunkHashes {
    /// Adds the next bytes.
    ///
    /// # Errors
    /// Where the hashes come out wrong, as of [`sha256_each`].
    pub fn update(&mut self, bytes: &[u8]) -> Result<()> {
        let mut bytes = bytes;
        if self.open_bytes > 0 {
            let (of_open, rest) = bytes.split_at(bytes.len().min(CHUNK_BYTES - self.open_bytes));
            self.extend_open(of_open);
            bytes = rest;
        }
        let (chunks, rest) = bytes.as_chunks::<CHUNK_BYTES>();
        let chunks: Vec<&[u8]> = chunks.iter().map(<[u8; CHUNK_BYTES]>::as_slice).collect();
        self.done.extend(sha256_each(&chunks)?);
        self.extend_open(rest);
        Ok(())
    }

    fn extend_open(&mut self, bytes: &[u8]) {
        self.open.update(bytes);
        self.open_bytes += bytes.len();
        if self.open_bytes == CHUNK_BYTES {
            self.close();
        }
    }

    fn close(&mut self) {
        self.done.push(std::mem::take(&mut self.open).finish());
        self.open_bytes = 0;
    }

    /// The hashes, in order. What has no second chunk is spared the frames: the one hash is that of all.
    pub fn finish(mut self) -> ContentHash {
        if self.open_bytes > 0 || self.done.is_empty() {
            self.close();
        }
        match self.done[..] {
            [only] => ContentHash::Whole(only),
            _ => ContentHash::Chunks(self.done),
        }
    }
}

/// What the chunks of one request are signed with. It holds a key, so it has no debug text.
pub(super) struct Seal {
    key: Vec<u8>,
    time: String,
    scope: String,
    /// Signature of the request's head.
    seed: String,
}

/// Where a request's signer leaves its seal.
pub(super) type SealSlot = Arc<OnceLock<Seal>>;

impl Seal {
    /// The seal of a request with these headers, which are signed. `None` where they are not.
    pub fn new(secret: &str, region: &str, headers: &HeaderMap) -> Option<Seal> {
        let text = |name| headers.get(name)?.to_str().ok();
        let time = text(header::HeaderName::from_static("x-amz-date"))?;
        let (_, seed) = text(header::AUTHORIZATION)?.rsplit_once("Signature=")?;
        let date = time.get(..8)?;
        let key = [date, region, "s3", "aws4_request"]
            .into_iter()
            .fold(format!("AWS4{secret}").into_bytes(), |key, part| {
                hmac_sha256(&key, part.as_bytes())
            });
        Some(Seal {
            key,
            time: time.to_owned(),
            scope: format!("{date}/{region}/s3/aws4_request"),
            seed: seed.to_owned(),
        })
    }

    /// Signature of a chunk with this hash that follows one signed `before`.
    fn sign(&self, before: &str, hash: &str) -> String {
        let (time, scope) = (&self.time, &self.scope);
        let text =
            format!("AWS4-HMAC-SHA256-PAYLOAD\n{time}\n{scope}\n{before}\n{EMPTY_SHA256}\n{hash}");
        hex_hmac_sha256(&self.key, text.as_bytes())
    }
}

/// Bytes that a payload of `bytes` has in its frames.
pub(super) fn framed_bytes(bytes: u64) -> u64 {
    let digits = |bytes: u64| u64::from(bytes.max(1).ilog2() / 4 + 1);
    let frame = |bytes: u64| digits(bytes) + FRAME_BYTES + bytes;
    let (whole, rest) = (bytes / CHUNK_BYTES as u64, bytes % CHUNK_BYTES as u64);
    let last = if rest > 0 { frame(rest) } else { 0 };
    whole * frame(CHUNK_BYTES as u64) + last + frame(0)
}

/// The payload in the frames of its chunks, which have these `hashes`, ready to be sent: [`framed_bytes`] of them.
pub(super) fn framed(payload: &Payload, hashes: &[Sha256], seal: &Seal) -> VecDeque<Bytes> {
    let mut pieces: VecDeque<Bytes> = payload.pieces.iter().cloned().collect();
    let mut out = VecDeque::with_capacity(2 * hashes.len() + pieces.len() + 1);
    let (mut left, mut before, mut signature) = (payload.bytes, "", seal.seed.clone());
    for hash in hashes {
        let bytes = left.min(CHUNK_BYTES as u64);
        signature = seal.sign(&signature, &hex::encode(hash));
        out.push_back(format!("{before}{bytes:x};chunk-signature={signature}\r\n").into());
        pass(bytes as usize, &mut pieces, &mut out);
        left -= bytes;
        before = "\r\n";
    }
    signature = seal.sign(&signature, EMPTY_SHA256);
    out.push_back(format!("{before}0;chunk-signature={signature}\r\n\r\n").into());
    out
}

/// Moves `bytes` from the front of `from` to the end of `to`.
fn pass(bytes: usize, from: &mut VecDeque<Bytes>, to: &mut VecDeque<Bytes>) {
    let mut left = bytes;
    while left > 0
        && let Some(front) = from.front_mut()
    {
        let part = front.split_to(front.len().min(left));
        if front.is_empty() {
            from.pop_front();
        }
        left -= part.len();
        to.push_back(part);
    }
}

/// Whether chunks are asked for, a body's bytes have to be covered by the signature, and nothing else wants one hash over
/// all of them.
fn is_wanted(location: &Location) -> bool {
    let is_asked_for = location.signing == Signing::Chunks;
    is_asked_for && !location.is_tls() && location.checksum != Checksum::Sha256
}

/// How bodies are signed whose length is not known yet. Whether the server can take chunks is tried once per job: one that
/// does not know the frames may store them as part of the object, so what it stored is read back. Whatever goes wrong
/// means that bodies are signed whole, which every server knows.
pub(super) async fn signing(client: &Client) -> Signing {
    if !is_wanted(&client.place.location) {
        return Signing::Whole;
    }
    let known = &client.place.signing;
    *known
        .get_or_init(|| async {
            match probe(client).await {
                Ok(true) => Signing::Chunks,
                Ok(false) => Signing::Whole,
                Err(error) => {
                    tracing::debug!(%error, "bodies signed in chunks were not tried");
                    Signing::Whole
                }
            }
        })
        .await
}

async fn probe(client: &Client) -> Result<bool> {
    let name = new_probe_name(client)?;
    let found = is_taken_apart(client, &name).await;
    withdraw_probe(client, &name).await;
    found
}

async fn is_taken_apart(client: &Client, name: &str) -> Result<bool> {
    let mut payload = put::payload_of(client, PROBE)?;
    payload.hash = ContentHash::Chunks(vec![sha256(PROBE)]);
    let request = put_request(client, name, payload, &new_mark()?);
    let answer = client.send(&request, &mut Sink::Answer).await?;
    if !answer.status.is_success() || answer.is_hidden_error() {
        return Ok(false);
    }
    let request = Request::new(Operation::Get, Method::GET, name.to_owned());
    let mut stored = Vec::new();
    let mut sink = Sink::Whole {
        out: &mut stored,
        bytes_max: PROBE_BYTES_MAX,
    };
    let answer = client.send(&request, &mut sink).await?;
    Ok(answer.status.is_success() && stored == PROBE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Payload of `bytes`, cut into pieces after each of `cuts` bytes in turn.
    fn payload(bytes: &[u8], cuts: &[usize]) -> Payload {
        let mut hashes = ChunkHashes::default();
        let (mut pieces, mut rest, mut cuts) = (Vec::new(), bytes, cuts.iter().cycle());
        while !rest.is_empty() {
            let cut = cuts.next().map_or(rest.len(), |cut| rest.len().min(*cut));
            let (piece, behind) = rest.split_at(cut);
            hashes.update(piece).unwrap();
            pieces.push(Bytes::copy_from_slice(piece));
            rest = behind;
        }
        Payload {
            pieces,
            bytes: bytes.len() as u64,
            hash: hashes.finish(),
            ..Payload::default()
        }
    }

    /// The example in Amazon's documentation (see the source above), whose chunks happen to be as long as ours.
    #[test]
    fn the_documented_example_is_signed_as_documented() {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-date", "20130524T000000Z".parse().unwrap());
        let seed = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9";
        let authorization = format!("AWS4-HMAC-SHA256 Credential=a/b, Signature={seed}");
        headers.insert(header::AUTHORIZATION, authorization.parse().unwrap());
        let secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
        let seal = Seal::new(secret, "us-east-1", &headers).unwrap();
        let payload = payload(&[b'a'; 66_560], &[1 << 20]);
        let out = framed(&payload, payload.chunks().unwrap(), &seal);
        let text: Vec<&[u8]> = out.iter().map(|piece| &piece[..]).collect();
        let signatures = [
            "10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n",
            "\r\n400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n",
            "\r\n0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n",
        ];
        assert_eq!([text[0], text[2], text[4]], signatures.map(str::as_bytes));
        assert_eq!(text.concat().len(), 66_824);
        assert_eq!(framed_bytes(66_560), 66_824);
    }

    #[test]
    fn what_has_no_second_chunk_is_signed_whole() {
        for length in [0, 1, CHUNK_BYTES] {
            let bytes = vec![7; length];
            let found = payload(&bytes, &[1000]).hash;
            assert!(matches!(found, ContentHash::Whole(hash) if hash == sha256(&bytes)));
        }
        let found = payload(&[7; CHUNK_BYTES + 1], &[1000]);
        assert_eq!(found.chunks().map(<[Sha256]>::len), Some(2));
    }

    #[test]
    fn without_a_signature_there_is_no_seal() {
        assert!(Seal::new("secret", "us-east-1", &HeaderMap::new()).is_none());
    }

    /// Takes the frames off again, without a look at their signatures.
    fn unframed(framed: &[u8]) -> Vec<u8> {
        let (mut rest, mut found) = (framed, Vec::new());
        loop {
            let end = rest.iter().position(|byte| *byte == b'\n').unwrap() + 1;
            let (line, behind) = rest.split_at(end);
            let digits = std::str::from_utf8(line)
                .unwrap()
                .split(';')
                .next()
                .unwrap();
            let bytes = usize::from_str_radix(digits, 16).unwrap();
            found.extend_from_slice(&behind[..bytes]);
            assert_eq!(&behind[bytes..bytes + 2], b"\r\n");
            rest = &behind[bytes + 2..];
            if bytes == 0 {
                assert!(rest.is_empty());
                return found;
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn frames_hold_the_bytes_and_as_many_as_announced(
            length in prop_oneof![65_537usize..65_600, 131_060usize..131_080, 65_537usize..1_200_000],
            cuts in prop::collection::vec(prop_oneof![100usize..300, 65_530usize..65_545, 60_000usize..1_100_000], 1..4),
        ) {
            let bytes: Vec<u8> = (0..length).map(|at| ((at * 31) >> 3) as u8).collect();
            let payload = payload(&bytes, &cuts);
            let alone: Vec<Sha256> = bytes.chunks(CHUNK_BYTES).map(sha256).collect();
            prop_assert_eq!(payload.chunks(), Some(&alone[..]));
            let seal = Seal { key: vec![1], time: "t".into(), scope: "s".into(), seed: "0".repeat(64) };
            let framed: Vec<u8> = framed(&payload, &alone, &seal).into_iter().flatten().collect();
            prop_assert_eq!(framed.len() as u64, framed_bytes(bytes.len() as u64));
            prop_assert!(unframed(&framed) == bytes);
        }
    }
}
