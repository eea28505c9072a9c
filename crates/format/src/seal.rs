//! Keys and seals: how a session key gives each object its own key, and how each piece is sealed with it.
//!
//! Invariants: a key never seals two pieces under one nonce: the object key is derived from the session key
//! and the object's type and id, the nonce is the piece index, and [`ObjectSealer`] refuses to seal any piece
//! but the next one. The associated data binds each piece to its object, its index and its header. Keys are
//! wiped when dropped and never printed.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{constant_time, hkdf, hmac};
use mover_base::{Error, Kind, RepoId, Result, SessionId};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::frame::HEADER_SEALED_BYTES;
use crate::preamble::{BOUND_BYTES, ObjectType, Preamble};
use crate::wire::corrupt;

/// Length of the session, master and object keys.
pub const KEY_BYTES: usize = 32;
/// What a seal adds to a piece: the GCM tag.
pub const TAG_BYTES: usize = 16;
/// Length of [`WrappedPayload::encode`].
pub const WRAPPED_PAYLOAD_BYTES: usize = 64;

const SESSION_CONTEXT: &[u8] = b"helios-mover v1 session";
const OBJECT_CONTEXT: &[u8] = b"helios-mover v1 object";
const AAD_BYTES: usize = BOUND_BYTES + 4 + HEADER_SEALED_BYTES;

/// How the pieces of an object are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
pub enum Cipher {
    /// Not at all (`--no-encryption`).
    #[serde(rename = "none")]
    None = 0,
    /// AES-256-GCM with a 96-bit nonce and a 128-bit tag.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm = 1,
}

impl Cipher {
    /// The cipher with this code.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Cipher::None),
            1 => Some(Cipher::Aes256Gcm),
            _ => None,
        }
    }

    /// The code on storage.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// What the seal adds to each piece, in bytes.
    pub const fn overhead_bytes(self) -> usize {
        match self {
            Cipher::None => 0,
            Cipher::Aes256Gcm => TAG_BYTES,
        }
    }
}

macro_rules! secret_key {
    ($name:ident, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Zeroize, ZeroizeOnDrop)]
        pub struct $name([u8; KEY_BYTES]);

        impl $name {
            /// Takes over 32 bytes from the caller's random source or from storage.
            pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
                $name(bytes)
            }

            /// The key itself. Never log or print it.
            pub fn expose(&self) -> &[u8; KEY_BYTES] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    };
}

secret_key!(
    SessionKey,
    "The key that one writing session draws and derives the keys of its objects from."
);
secret_key!(
    MasterKey,
    "The repository's master key: whoever holds it can vouch for a session."
);

fn session_mac(
    master: &MasterKey,
    repo_id: &RepoId,
    session_id: &SessionId,
    key: &SessionKey,
) -> hmac::Tag {
    let mut mac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, master.expose()));
    mac.update(SESSION_CONTEXT);
    mac.update(&repo_id.0);
    mac.update(&session_id.0);
    mac.update(key.expose());
    mac.sign()
}

/// HMAC-SHA256 by which a writer who holds the master key vouches for its session.
pub fn session_tag(
    master: &MasterKey,
    repo_id: &RepoId,
    session_id: &SessionId,
    key: &SessionKey,
) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(session_mac(master, repo_id, session_id, key).as_ref());
    out
}

/// Who wrote a session, as far as its tag tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A writer that held the master key.
    Vouched,
    /// Someone who knew the public recipient only: a write-only host, or a forger.
    WriteOnly,
}

/// What a wrapped key holds: the session key and the tag that vouches for it.
#[derive(Debug, Clone)]
pub struct WrappedPayload {
    /// The session key.
    pub session_key: SessionKey,
    /// [`session_tag`], or zeros from a write-only host.
    pub tag: [u8; 32],
}

impl WrappedPayload {
    /// The 64 bytes to wrap; wiped when dropped.
    pub fn encode(&self) -> Zeroizing<[u8; WRAPPED_PAYLOAD_BYTES]> {
        let mut out = Zeroizing::new([0; WRAPPED_PAYLOAD_BYTES]);
        out[..KEY_BYTES].copy_from_slice(self.session_key.expose());
        out[KEY_BYTES..].copy_from_slice(&self.tag);
        out
    }

    /// Reads what was unwrapped.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let bytes: &[u8; WRAPPED_PAYLOAD_BYTES] = bytes
            .try_into()
            .map_err(|_| corrupt("wrapped key: the payload is not 64 bytes long"))?;
        let mut payload = WrappedPayload {
            session_key: SessionKey([0; KEY_BYTES]),
            tag: [0; 32],
        };
        payload.session_key.0.copy_from_slice(&bytes[..KEY_BYTES]);
        payload.tag.copy_from_slice(&bytes[KEY_BYTES..]);
        Ok(payload)
    }

    /// Checks the tag. A tag that is neither zero nor right is an error: someone altered it.
    pub fn origin(
        &self,
        master: &MasterKey,
        repo_id: &RepoId,
        session_id: &SessionId,
    ) -> Result<Origin> {
        if self.tag == [0; 32] {
            return Ok(Origin::WriteOnly);
        }
        let mac = session_mac(master, repo_id, session_id, &self.session_key);
        constant_time::verify_slices_are_equal(mac.as_ref(), &self.tag)
            .map(|()| Origin::Vouched)
            .map_err(|_| corrupt("wrapped key: the session's tag does not match"))
    }
}

struct ObjectKeyLen;

impl hkdf::KeyType for ObjectKeyLen {
    fn len(&self) -> usize {
        KEY_BYTES
    }
}

fn object_key(
    session: &SessionKey,
    repo_id: &RepoId,
    object_type: ObjectType,
    object_id: &[u8; 16],
) -> Result<Zeroizing<[u8; KEY_BYTES]>> {
    let failed = |_| Error::new(Kind::Internal, "an object key could not be derived");
    let info = [OBJECT_CONTEXT, &[object_type.code()], object_id];
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    hkdf::Salt::new(hkdf::HKDF_SHA256, &repo_id.0)
        .extract(session.expose())
        .expand(&info, ObjectKeyLen)
        .and_then(|okm| okm.fill(&mut key[..]))
        .map_err(failed)?;
    Ok(key)
}

/// Seals and opens the pieces of one object.
///
/// For writing, make one per object and use it for all of its pieces: it hands out each piece index once.
/// For reading, it may be shared freely. Without a cipher it copies.
pub struct ObjectSealer {
    bound: [u8; BOUND_BYTES],
    key: Option<LessSafeKey>,
    next_piece: AtomicU32,
}

impl fmt::Debug for ObjectSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectSealer")
            .field("sealed", &self.key.is_some())
            .field("next_piece", &self.next_piece)
            .finish_non_exhaustive()
    }
}

impl ObjectSealer {
    /// The sealer of the object that begins with `preamble`.
    ///
    /// Fails with [`Kind::Key`] if the object is sealed and no key is given, and with [`Kind::Corrupt`] if a
    /// key is given for an object that claims to have no seal (that would be a downgrade).
    pub fn new(preamble: &Preamble, session_key: Option<&SessionKey>) -> Result<Self> {
        preamble.check()?;
        let key = match (preamble.cipher, session_key) {
            (Cipher::None, None) => None,
            (Cipher::None, Some(_)) => {
                return Err(corrupt(
                    "preamble: the object is not sealed although its repository is",
                ));
            }
            (Cipher::Aes256Gcm, None) => {
                return Err(
                    Error::new(Kind::Key, "the object is sealed and no key is at hand")
                        .hint("give a key or passphrase that opens this repository"),
                );
            }
            (Cipher::Aes256Gcm, Some(session)) => {
                let key = object_key(
                    session,
                    &preamble.repo_id,
                    preamble.object_type,
                    &preamble.object_id,
                )?;
                let unbound = UnboundKey::new(&AES_256_GCM, &key[..])
                    .map_err(|_| Error::new(Kind::Internal, "an object key was refused"))?;
                Some(LessSafeKey::new(unbound))
            }
        };
        Ok(ObjectSealer {
            bound: preamble.bound(),
            key,
            next_piece: AtomicU32::new(0),
        })
    }

    /// What sealing adds to a piece, in bytes.
    pub fn overhead_bytes(&self) -> usize {
        if self.key.is_some() { TAG_BYTES } else { 0 }
    }

    /// The cipher in use.
    pub fn cipher(&self) -> Cipher {
        match self.key {
            Some(_) => Cipher::Aes256Gcm,
            None => Cipher::None,
        }
    }

    /// The index that the next piece must have.
    pub fn next_piece(&self) -> u32 {
        self.next_piece.load(Ordering::Relaxed)
    }

    fn aad(&self, piece: u32, header: &[u8; HEADER_SEALED_BYTES]) -> Aad<[u8; AAD_BYTES]> {
        let mut aad = [0; AAD_BYTES];
        aad[..BOUND_BYTES].copy_from_slice(&self.bound);
        aad[BOUND_BYTES..BOUND_BYTES + 4].copy_from_slice(&piece.to_le_bytes());
        aad[BOUND_BYTES + 4..].copy_from_slice(header);
        Aad::from(aad)
    }

    fn nonce(piece: u32) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&u64::from(piece).to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    /// Seals `plain` into `sealed`, which is longer by [`overhead_bytes`](Self::overhead_bytes).
    ///
    /// `piece` must be the next index; an index is spent even if the caller then drops the piece.
    pub fn seal(
        &self,
        piece: u32,
        header: &[u8; HEADER_SEALED_BYTES],
        plain: &[u8],
        sealed: &mut [u8],
    ) -> Result<()> {
        if sealed.len() != plain.len() + self.overhead_bytes() {
            return Err(Error::new(
                Kind::Internal,
                "a seal's buffer has the wrong length",
            ));
        }
        // The claim comes first: a nonce is never used twice, whatever happens after.
        let next = piece
            .checked_add(1)
            .ok_or_else(|| Error::new(Kind::Internal, "an object has too many pieces"))?;
        self.next_piece
            .compare_exchange(piece, next, Ordering::Relaxed, Ordering::Relaxed)
            .map_err(|_| Error::new(Kind::Internal, "a piece was sealed out of order or twice"))?;
        let Some(key) = &self.key else {
            sealed.copy_from_slice(plain);
            return Ok(());
        };
        let (ciphertext, tag) = sealed.split_at_mut(plain.len());
        key.seal_out_of_place_scatter(
            Self::nonce(piece),
            self.aad(piece, header),
            plain,
            ciphertext,
            &[],
            tag,
        )
        .map_err(|_| Error::new(Kind::Internal, "a piece could not be sealed"))
    }

    /// Opens `sealed` into `plain`, which is shorter by [`overhead_bytes`](Self::overhead_bytes).
    ///
    /// On failure nothing in `plain` may be used.
    pub fn open(
        &self,
        piece: u32,
        header: &[u8; HEADER_SEALED_BYTES],
        sealed: &[u8],
        plain: &mut [u8],
    ) -> Result<()> {
        if sealed.len() != plain.len() + self.overhead_bytes() {
            return Err(corrupt("a sealed piece has the wrong length"));
        }
        let Some(key) = &self.key else {
            plain.copy_from_slice(sealed);
            return Ok(());
        };
        let (ciphertext, tag) = sealed.split_at(plain.len());
        key.open_separate_gather(
            Self::nonce(piece),
            self.aad(piece, header),
            ciphertext,
            tag,
            plain,
        )
        .map_err(|_| {
            corrupt("a sealed piece does not authenticate: it is damaged, forged or out of place")
        })
    }
}
