//! Who can read: the repository's secret, the slots that hold it, and the wrapping of session keys.
//!
//! A repository has one secret: an age X25519 identity and a 32-byte master key. Each key slot holds that
//! secret sealed for one passphrase (scrypt) or one recipient (X25519), by crate `age`. Every writing
//! session draws its own key and wraps it to the repository's public recipient, so that a host without the
//! secret can write. A writer that holds the secret also proves it with a tag under the master key.
//!
//! Invariants: secrets live in types that wipe themselves and reach no message; a slot's content is bound to
//! the repository's id and to the checksum of its header, so a slot or a header of another repository is
//! refused.

use std::str::FromStr;

use age::secrecy::{ExposeSecret, SecretString};
use mover_base::checksum::Sha256;
use mover_base::{Error, Kind, RepoId, Result, SessionId, SlotId, Timestamp};
use mover_format::seal::{MasterKey, Origin, SessionKey, WrappedPayload, session_tag};
use mover_format::slot::{KeySlot, SlotKind, SlotSecret};
use mover_io::random_bytes;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::secret::{Credentials, Secret};

/// scrypt's log2 N for passphrase slots: 64 MiB of memory and about 0.2 s, which keeps the whole process
/// inside its memory bound (age's own default of 2^18 would take 256 MiB).
pub(crate) const SCRYPT_LOG_N: u8 = 16;
/// Largest log2 N accepted from a slot: 128 MiB of memory.
const SCRYPT_LOG_N_MAX: u8 = 17;

/// So many characters tell recipients apart.
const RECIPIENT_SHOWN: usize = 12;

/// What only those who can read a repository hold.
pub(crate) struct RepoSecret {
    identity: age::x25519::Identity,
    master_key: MasterKey,
}

/// For whom a slot is made.
pub(crate) enum SlotOwner<'a> {
    /// Whoever knows this passphrase.
    Passphrase(&'a Secret),
    /// Whoever holds the identity of this recipient.
    Recipient(&'a str),
}

/// A key that slots are tried with, made of the credentials once for all of them.
pub(crate) enum SlotKey<'a> {
    /// None, which opens nothing.
    None,
    /// A passphrase.
    Passphrase(&'a Secret),
    /// A private age identity.
    Identity(age::x25519::Identity),
}

/// What a key does to an intact slot.
pub(crate) enum Tried {
    /// It opens the slot. In that is the repository's secret, or what is wrong with it.
    Opened(Result<RepoSecret>),
    /// It is of the slot's kind, and not the one that the slot was made for.
    Refused,
    /// It is of another kind.
    OtherKind,
}

/// A key slot, as listings show it.
#[derive(Debug, Clone, Serialize)]
pub struct SlotInfo {
    /// Its id, which names the object.
    pub slot_id: SlotId,
    /// `passphrase` or `x25519`.
    pub kind: &'static str,
    /// What the operator called it.
    pub label: String,
    /// When it was made.
    pub created: Timestamp,
}

/// What a slot is bound to.
#[derive(Clone, Copy)]
pub(crate) struct Binding {
    pub repo_id: RepoId,
    pub config_sha256: Sha256,
}

/// A new identity and its public recipient, as age writes them.
pub fn generate_identity() -> (Secret, String) {
    let identity = age::x25519::Identity::generate();
    (
        Secret::new(identity.to_string().expose_secret().to_owned()),
        identity.to_public().to_string(),
    )
}

fn parse_identity(text: &str) -> Result<age::x25519::Identity> {
    age::x25519::Identity::from_str(text.trim()).map_err(|_| {
        Error::new(Kind::Key, "the identity is not an age X25519 identity")
            .hint("the file must hold one line that begins with AGE-SECRET-KEY-1")
    })
}

impl<'a> SlotKey<'a> {
    /// The key of these credentials; an error names no slot, since none has anything to do with it.
    pub fn of(credentials: &'a Credentials) -> Result<Self> {
        Ok(match credentials {
            Credentials::None => SlotKey::None,
            Credentials::Passphrase(passphrase) => SlotKey::Passphrase(passphrase),
            Credentials::Identity(text) => SlotKey::Identity(parse_identity(text.expose())?),
        })
    }
}

fn parse_recipient(text: &str) -> Result<age::x25519::Recipient> {
    let text = text.trim();
    age::x25519::Recipient::from_str(text).map_err(|_| {
        let is_begun_with = |start: &str| {
            let begun = text.get(..start.len());
            begun.is_some_and(|begun| begun.eq_ignore_ascii_case(start))
        };
        if is_begun_with("AGE-SECRET-KEY-") || is_begun_with("AGE-PLUGIN-") {
            return Error::new(Kind::Usage, "a secret identity was given as the recipient")
                .hint("give the line that begins with age1; this identity stood on a command line or in a setting, so make another one: `helios-mover key generate`");
        }
        let error = Error::new(Kind::Usage, "not an age X25519 recipient");
        // Anything else may be a secret too.
        let error = match is_begun_with("age1") {
            true => error.object(text),
            false => error,
        };
        error.hint("a recipient begins with age1; `helios-mover key generate` makes one")
    })
}

impl RepoSecret {
    /// A fresh secret for a new repository.
    pub fn generate() -> Result<Self> {
        Ok(RepoSecret {
            identity: age::x25519::Identity::generate(),
            master_key: MasterKey::new(random_bytes()?),
        })
    }

    /// The public recipient, which stands in the header.
    pub fn recipient(&self) -> String {
        self.identity.to_public().to_string()
    }

    /// The key that proves a writer to be one who can read.
    pub fn master_key(&self) -> &MasterKey {
        &self.master_key
    }

    /// Opens what [`wrap`] made, and tells whether the writer held the master key.
    pub fn unwrap(
        &self,
        repo_id: RepoId,
        session_id: SessionId,
        wrapped: &[u8],
    ) -> Result<(SessionKey, Origin)> {
        let damaged = || {
            Error::new(
                Kind::Corrupt,
                "the session key in the object's preamble cannot be opened",
            )
        };
        let plain = Zeroizing::new(age::decrypt(&self.identity, wrapped).map_err(|_| damaged())?);
        let payload = WrappedPayload::decode(&plain).map_err(|_| damaged())?;
        let origin = payload.origin(&self.master_key, &repo_id, &session_id)?;
        Ok((payload.session_key, origin))
    }

    /// Seals the secret into a slot.
    pub fn seal_slot(
        &self,
        binding: Binding,
        owner: &SlotOwner<'_>,
        label: &str,
    ) -> Result<KeySlot> {
        let payload = SlotSecret {
            repo_id: binding.repo_id,
            config_sha256: binding.config_sha256,
            identity: Zeroizing::new(self.identity.to_string().expose_secret().to_owned()),
            master_key: self.master_key.clone(),
        };
        let plain = payload.encode()?;
        let failed = |_| Error::new(Kind::Internal, "the key slot could not be sealed");
        let (kind, age) = match owner {
            SlotOwner::Passphrase(passphrase) => {
                let text = SecretString::from(passphrase.expose().to_owned());
                let mut recipient = age::scrypt::Recipient::new(text);
                recipient.set_work_factor(SCRYPT_LOG_N);
                (
                    SlotKind::Passphrase,
                    age::encrypt(&recipient, &plain).map_err(failed)?,
                )
            }
            SlotOwner::Recipient(text) => {
                let recipient = parse_recipient(text)?;
                (
                    SlotKind::X25519,
                    age::encrypt(&recipient, &plain).map_err(failed)?,
                )
            }
        };
        Ok(KeySlot {
            kind,
            repo_id: binding.repo_id,
            slot_id: SlotId(random_bytes()?),
            created: Timestamp::now(),
            config_sha256: binding.config_sha256,
            label: label.to_owned(),
            age,
        })
    }

    /// Tries a key on a slot. An error means that no key can open this slot.
    pub fn try_slot(slot: &KeySlot, binding: Binding, key: &SlotKey<'_>) -> Result<Tried> {
        let opened = match (key, slot.kind) {
            (SlotKey::Passphrase(passphrase), SlotKind::Passphrase) => {
                let text = SecretString::from(passphrase.expose().to_owned());
                let mut identity = age::scrypt::Identity::new(text);
                identity.set_max_work_factor(SCRYPT_LOG_N_MAX);
                age::decrypt(&identity, &slot.age)
            }
            (SlotKey::Identity(identity), SlotKind::X25519) => age::decrypt(identity, &slot.age),
            _ => return Ok(Tried::OtherKind),
        };
        use age::DecryptError::{
            DecryptionFailed, ExcessiveWork, InvalidMac, KeyDecryptionFailed, NoMatchingKeys,
        };
        match opened {
            Ok(plain) => {
                let plain = Zeroizing::new(plain);
                Ok(Tried::Opened(RepoSecret::of_slot(&plain, binding)))
            }
            // age tells a wrong passphrase and a damaged header apart only in part; both are "not this one".
            Err(DecryptionFailed | NoMatchingKeys | KeyDecryptionFailed | InvalidMac) => {
                Ok(Tried::Refused)
            }
            Err(ExcessiveWork { required, .. }) => Err(Error::new(
                Kind::Limit,
                format!(
                    "the key slot asks for scrypt work 2^{required}, over 2^{SCRYPT_LOG_N_MAX}"
                ),
            )),
            Err(other) => {
                Err(Error::new(Kind::Corrupt, "the key slot cannot be opened").cause(other))
            }
        }
    }

    /// The secret in what a slot was sealed around.
    fn of_slot(plain: &[u8], binding: Binding) -> Result<Self> {
        let payload = SlotSecret::decode(plain)?;
        payload
            .check_binding(&binding.repo_id, &binding.config_sha256)
            .map_err(|error| {
                error.hint("`config` or the slot was replaced; bring the original object back")
            })?;
        // What is wrong with the identity in a slot says nothing of the one that opened it.
        let identity = parse_identity(&payload.identity).map_err(|_| {
            Error::new(
                Kind::Corrupt,
                "the key slot holds no identity of a repository",
            )
        })?;
        Ok(RepoSecret {
            identity,
            master_key: payload.master_key.clone(),
        })
    }
}

/// What a recipient's slot is called if nobody names it: a slot does not say whose it is.
pub(crate) fn label_of(recipient: &str) -> String {
    let begin: String = recipient.trim().chars().take(RECIPIENT_SHOWN).collect();
    format!("{begin}...")
}

/// Checks that a text is a recipient.
pub(crate) fn check_recipient(text: &str) -> Result<()> {
    parse_recipient(text).map(|_| ())
}

/// Wraps a session key to the repository's recipient; with the master key it also carries the proof.
pub(crate) fn wrap(
    recipient: &str,
    secret: Option<&RepoSecret>,
    repo_id: RepoId,
    session_id: SessionId,
    key: &SessionKey,
) -> Result<Vec<u8>> {
    let tag = match secret {
        Some(secret) => session_tag(secret.master_key(), &repo_id, &session_id, key),
        None => [0; 32],
    };
    let plain = WrappedPayload {
        session_key: key.clone(),
        tag,
    }
    .encode();
    age::encrypt(&parse_recipient(recipient)?, plain.as_slice())
        .map_err(|_| Error::new(Kind::Internal, "the session key could not be wrapped"))
}

/// How a listing shows a slot.
pub(crate) fn slot_info(slot: &KeySlot) -> SlotInfo {
    SlotInfo {
        slot_id: slot.slot_id,
        kind: match slot.kind {
            SlotKind::Passphrase => "passphrase",
            SlotKind::X25519 => "x25519",
        },
        label: slot.label.clone(),
        created: slot.created,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_given_as_the_recipient_is_in_no_error() {
        let (identity, recipient) = generate_identity();
        let secret = identity.expose().to_owned();
        for text in [
            secret.clone(),
            secret.to_lowercase(),
            format!(" {secret}"),
            "a passphrase".into(),
        ] {
            let error = check_recipient(&text).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage);
            let told = format!("{error:?} {error} {:?}", error.hint_text());
            assert!(!told.contains(text.trim()), "{told}");
        }
        let mistyped = recipient.replace('q', "p");
        let error = check_recipient(&mistyped[..20]).unwrap_err();
        assert_eq!(error.object_name(), Some(&mistyped[..20]));
    }
}
