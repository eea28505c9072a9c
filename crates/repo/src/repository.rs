//! An open repository: its header, the secret that reads it, and the sessions that write it.
//!
//! Invariants: `init` publishes the header after the key slots, and create-if-absent, so a repository either
//! has a header and a way to open it or does not exist; nothing is ever overwritten. Every object read is
//! checked to be of this repository and of the place it was found at before its content is looked at.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use mover_base::checksum::{Sha256, sha256};
use mover_base::{Error, Kind, ObjectId, RepoId, Result, SessionId, Timestamp};
use mover_format::config::{CONFIG_BYTES_MAX, RepositoryConfig};
use mover_format::preamble::{ObjectType, Preamble};
use mover_format::seal::{Cipher, ObjectSealer, Origin, SessionKey};
use mover_io::{Shard, random_bytes};
use mover_store::{LinkLimits, LinkReport, Put, Store, Temporary};

use crate::keys::{self, Binding, RepoSecret, SlotInfo, SlotOwner};
use crate::layout;
use crate::secret::{Credentials, Secret};
use crate::sessions::OpenSessions;

/// Most session keys kept open at once, some 100 bytes each.
const SESSIONS_MAX: usize = 4096;

/// What `init` is asked to make.
pub struct InitRequest<'a> {
    /// Whether packs and manifests are sealed.
    pub encryption: bool,
    /// A passphrase that shall open the repository.
    pub passphrase: Option<&'a Secret>,
    /// age recipients whose identities shall open the repository.
    pub recipients: &'a [String],
    /// What the operator calls the slots; without that, those of recipients are called by how they begin.
    pub label: Option<&'a str>,
}

/// A repository that was opened.
pub struct Repository {
    store: Store,
    config: RepositoryConfig,
    config_sha256: Sha256,
    secret: Option<RepoSecret>,
    /// Keys of sessions that were unwrapped, by id and wrapped key: others may make objects that name a session of ours.
    sessions: Mutex<HashMap<(SessionId, Sha256), (SessionKey, Origin)>>,
    open_sessions: OpenSessions,
}

/// One writing session: all objects it makes are sealed under its key.
pub struct Session {
    id: SessionId,
    repo_id: RepoId,
    cipher: Cipher,
    key: Option<SessionKey>,
    wrapped_key: Vec<u8>,
}

impl Session {
    /// Its id.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The preamble and the sealer of a new object. Ask once per object.
    pub fn begin_object(
        &self,
        object_type: ObjectType,
        id: ObjectId,
    ) -> Result<(Preamble, ObjectSealer)> {
        let preamble = Preamble {
            object_type,
            cipher: self.cipher,
            repo_id: self.repo_id,
            object_id: id,
            session_id: self.id,
            wrapped_key: self.wrapped_key.clone(),
        };
        let sealer = ObjectSealer::new(&preamble, self.key.as_ref())?;
        Ok((preamble, sealer))
    }
}

impl Repository {
    /// Makes a new repository. Fails with [`Kind::Conflict`] where one exists.
    pub async fn init(
        shard: &Shard,
        url: &str,
        link: &LinkLimits,
        request: &InitRequest<'_>,
    ) -> Result<(Self, Vec<SlotInfo>)> {
        check_request(request)?;
        let store = Store::create_root(url, link)?;
        if store.head(shard, &layout::config()?).await?.is_some() {
            return Err(exists(url));
        }
        let page = store.list(shard, "", None, 1).await?;
        let object = page.objects.first().map(|object| object.key.as_str());
        if let Some(stray) = object.or(page.strays.first().map(String::as_str)) {
            return Err(Error::new(
                Kind::Conflict,
                "the place is not empty and not a repository",
            )
            .object(format!("{url} ({stray})"))
            .hint("choose an empty directory, or remove what an interrupted init left behind"));
        }
        let secret = if request.encryption {
            Some(RepoSecret::generate()?)
        } else {
            None
        };
        let recipient = secret.as_ref().map(RepoSecret::recipient);
        let config = RepositoryConfig::new(RepoId(random_bytes()?), Timestamp::now(), recipient);
        let bytes = config.encode()?;
        let (config, config_sha256) = RepositoryConfig::decode(&bytes)?;
        let repository = Repository {
            store,
            config_sha256,
            config,
            secret,
            sessions: Mutex::default(),
            open_sessions: OpenSessions::default(),
        };
        let mut slots = Vec::new();
        if let Some(passphrase) = request.passphrase {
            let owner = SlotOwner::Passphrase(passphrase);
            let label = request.label.unwrap_or_default();
            slots.push(repository.add_slot(shard, &owner, label).await?);
        }
        for recipient in request.recipients {
            let added = repository.add_recipient(shard, recipient, request.label);
            slots.push(added.await?);
        }
        match repository
            .store
            .put_if_absent(shard, &layout::config()?, &bytes)
            .await?
        {
            Put::Created => Ok((repository, slots)),
            Put::Exists => {
                repository.withdraw(shard, &slots).await?;
                Err(exists(url))
            }
        }
    }

    /// Takes the slots of an init back that lost against another: beside the winner's own, each would open nothing
    /// and be told as damage.
    async fn withdraw(&self, shard: &Shard, slots: &[SlotInfo]) -> Result<()> {
        for slot in slots {
            let key = layout::slot(slot.slot_id)?;
            self.store.delete(shard, &key).await.map_err(|error| {
                Error::new(
                    Kind::Conflict,
                    "a repository was made here at the same time, and a key slot of this one is left in it",
                )
                .object(key.as_str())
                .hint("delete that object, which opens nothing; use the repository that is there")
                .cause(error)
            })?;
        }
        Ok(())
    }

    /// Opens a repository. Without credentials an encrypted one can be written and not read.
    pub async fn open(
        shard: &Shard,
        url: &str,
        link: &LinkLimits,
        credentials: &Credentials,
    ) -> Result<Self> {
        let store = Store::open(url, link)?;
        let key = layout::config()?;
        let damaged = |error: Error| {
            error
                .object(key.as_str())
                .hint("the repository's header is damaged; copy it back from a replica")
        };
        let bytes = store
            .get(shard, &key, CONFIG_BYTES_MAX as u64)
            .await
            .map_err(|error| {
                if !error.is_absence() {
                    return over_cap(error, damaged);
                }
                Error::new(Kind::NotFound, "there is no repository")
                    .object(url)
                    .hint("check the URL, or make one with `helios-mover init --repo URL`")
                    .cause(error)
            })?;
        let (config, config_sha256) = RepositoryConfig::decode(&bytes).map_err(damaged)?;
        let mut repository = Repository {
            store,
            config_sha256,
            config,
            secret: None,
            sessions: Mutex::default(),
            open_sessions: OpenSessions::default(),
        };
        if !matches!(credentials, Credentials::None) {
            // Whoever gives a key expects a seal: a header that was replaced must not take it away.
            if repository.config.cipher == Cipher::None {
                return Err(Error::new(
                    Kind::Key,
                    "a key was given, and the repository's header says that it is not encrypted",
                )
                .object(url)
                .hint("leave the key out if that is right; else `config` was replaced: copy it back from a replica"));
            }
            repository.secret = Some(repository.unlock(shard, credentials).await?);
        }
        Ok(repository)
    }

    /// Begins a writing session.
    pub fn begin_session(&self) -> Result<Session> {
        self.begin_session_as(SessionId(random_bytes()?))
    }

    /// The same under an id that nobody else can have chosen.
    pub(crate) fn begin_session_as(&self, id: SessionId) -> Result<Session> {
        let repo_id = self.config.repository_id;
        let (key, wrapped_key) = match &self.config.recipient {
            Some(recipient) if self.config.cipher != Cipher::None => {
                let key = SessionKey::new(random_bytes()?);
                let wrapped = keys::wrap(recipient, self.secret.as_ref(), repo_id, id, &key)?;
                (Some(key), wrapped)
            }
            _ => (None, Vec::new()),
        };
        Ok(Session {
            id,
            repo_id,
            cipher: self.config.cipher,
            key,
            wrapped_key,
        })
    }

    /// Checks that a preamble belongs to this repository, this kind and this id, and gives the sealer that
    /// opens the object and who wrote it.
    pub fn open_object(
        &self,
        preamble: &Preamble,
        object_type: ObjectType,
        id: ObjectId,
    ) -> Result<(ObjectSealer, Origin)> {
        preamble.check_place(
            object_type,
            self.config.cipher,
            &self.config.repository_id,
            &id,
        )?;
        if preamble.cipher == Cipher::None {
            return Ok((ObjectSealer::new(preamble, None)?, Origin::WriteOnly));
        }
        let (key, origin) = self.session_key(preamble)?;
        Ok((ObjectSealer::new(preamble, Some(&key))?, origin))
    }

    fn session_key(&self, preamble: &Preamble) -> Result<(SessionKey, Origin)> {
        let lock = || self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let known_by = (preamble.session_id, sha256(&preamble.wrapped_key));
        if let Some(known) = lock().get(&known_by) {
            return Ok(known.clone());
        }
        let opened = self.require_secret()?.unwrap(
            self.config.repository_id,
            preamble.session_id,
            &preamble.wrapped_key,
        )?;
        let mut sessions = lock();
        if sessions.len() >= SESSIONS_MAX {
            sessions.clear();
        }
        sessions.insert(known_by, opened.clone());
        Ok(opened)
    }

    /// An error that says what to do if earlier backups cannot be read.
    pub fn require_reading(&self) -> Result<()> {
        if self.can_read() {
            Ok(())
        } else {
            self.require_secret().map(|_| ())
        }
    }

    /// Whether earlier backups can be read with the credentials given.
    pub fn can_read(&self) -> bool {
        self.config.cipher == Cipher::None || self.secret.is_some()
    }

    /// Whether objects are sealed.
    pub fn is_encrypted(&self) -> bool {
        self.config.cipher != Cipher::None
    }

    /// Whether it lies behind a link ([`Store::has_link`]).
    pub fn has_link(&self) -> bool {
        self.store.has_link()
    }

    /// What went over that link so far ([`Store::link_report`]).
    pub fn link_report(&self) -> Option<LinkReport> {
        self.store.link_report()
    }

    /// Unfinished uploads of this repository's objects that killed jobs left ([`Store::stale_temporaries`]).
    pub async fn leftovers(&self, shard: &Shard) -> Result<Vec<Temporary>> {
        self.store.stale_temporaries(shard, layout::is_name).await
    }

    /// Sessions that this process began and may have to take back.
    pub(crate) fn open_sessions(&self) -> &OpenSessions {
        &self.open_sessions
    }

    /// The store below.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Where the repository is.
    pub fn url(&self) -> &str {
        self.store.url()
    }

    /// Its id.
    pub fn id(&self) -> RepoId {
        self.config.repository_id
    }

    /// The public recipient that sessions are wrapped to.
    pub fn recipient(&self) -> Option<&str> {
        self.config.recipient.as_deref()
    }

    pub(crate) fn binding(&self) -> Binding {
        Binding {
            repo_id: self.config.repository_id,
            config_sha256: self.config_sha256,
        }
    }

    pub(crate) fn require_secret(&self) -> Result<&RepoSecret> {
        self.secret.as_ref().ok_or_else(|| {
            let error = Error::new(Kind::Key, "this needs a key that reads the repository")
                .object(self.url());
            match self.config.cipher {
                Cipher::None => error.hint("the repository is not encrypted, so it has no keys"),
                Cipher::Aes256Gcm => error.hint("give --passphrase-file or --identity-file"),
            }
        })
    }
}

/// An error of reading a whole object. One that is longer than the format lets it be is `damaged`, like one of wrong content: no
/// writer made it so, and no option helps.
pub(crate) fn over_cap(error: Error, damaged: impl FnOnce(Error) -> Error) -> Error {
    match error.kind() {
        Kind::Limit => damaged(error.with_kind(Kind::Corrupt)),
        _ => error,
    }
}

fn check_request(request: &InitRequest<'_>) -> Result<()> {
    for recipient in request.recipients {
        keys::check_recipient(recipient)?;
    }
    let has_key = request.passphrase.is_some() || !request.recipients.is_empty();
    if request.encryption && !has_key {
        return Err(
            Error::new(Kind::Usage, "an encrypted repository needs a key").hint(
                "give --passphrase-file FILE or --recipient age1..., or choose --no-encryption",
            ),
        );
    }
    if !request.encryption && has_key {
        return Err(
            Error::new(Kind::Usage, "a key and --no-encryption exclude each other")
                .hint("leave one of the two out"),
        );
    }
    Ok(())
}

fn exists(url: &str) -> Error {
    Error::new(Kind::Conflict, "a repository exists already")
        .object(url)
        .hint("use it as it is, or choose another place")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fixture, generate_identity};

    /// Who knows the public key and the id of a session can name it in objects of their own.
    #[test]
    fn a_forged_object_does_not_change_what_a_genuine_one_of_its_session_says() {
        fixture::with_place(async |shard, url| {
            let (identity, recipient) = generate_identity();
            fixture::init(shard, url, &[recipient]).await?;
            let reader = fixture::open(shard, url, &Credentials::Identity(identity)).await?;
            let stranger = fixture::open(shard, url, &Credentials::None).await?;
            let genuine = reader.begin_session()?;
            let forged = stranger.begin_session_as(genuine.id())?;
            let origin = |session: &Session, byte: u8| {
                let id: ObjectId = [byte; 16];
                let (preamble, _) = session.begin_object(ObjectType::Hold, id)?;
                let (_, origin) = reader.open_object(&preamble, ObjectType::Hold, id)?;
                Ok::<Origin, Error>(origin)
            };
            assert_eq!(origin(&forged, 1)?, Origin::WriteOnly);
            assert_eq!(origin(&genuine, 2)?, Origin::Vouched);
            assert_eq!(origin(&forged, 3)?, Origin::WriteOnly);
            Ok(())
        });
    }
}
