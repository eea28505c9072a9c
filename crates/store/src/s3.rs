//! Objects in a bucket of an S3-compatible store, over raw HTTP.
//!
//! Invariants: an object appears whole and once (see `put`, and `claim` for servers that cannot promise it);
//! each shard has its own connections, on its own runtime (see `client`); what all shards share is settings,
//! credentials and what was found out about the server. An answer of 200 is the server's word that the object is
//! durable.

mod answer;
mod body;
mod chunked;
mod claim;
mod client;
mod credentials;
mod flow;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod list;
mod location;
mod multipart;
mod pace;
mod put;
mod reader;
mod remove;
mod run;
mod sources;
mod tls;
mod trust;
mod upload;

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use http::Method;
use hyper_util::client::proxy::matcher::Matcher;
use mover_base::{Error, Kind, Result, hex};
use mover_io::{BUF_BYTES, Shard, random_bytes};
use tokio::sync::OnceCell;

pub use self::reader::S3Reader;
pub use self::upload::S3Upload;

use self::answer::Operation;
use self::client::{Client, Request, Sink};
use self::credentials::Signature;
use self::location::{Checksum, Location, Signing, Surroundings};
use self::put::Conditions;
use crate::bounds::is_stale;
use crate::key::{Key, TEMPORARY_PART};
use crate::traffic::Traffic;
use crate::{
    LinkLimits, LinkReport, ObjectInfo, Page, Piece, Put, Rivals, Slice, TEMPORARIES_MAX,
    Temporary, Tried, Weakness,
};

/// A repository's place in a bucket. Cheap to clone.
#[derive(Debug, Clone)]
pub struct S3Store(Arc<Place>);

/// What all shards share.
#[derive(Debug)]
struct Place {
    location: Location,
    /// Host and port of the environment's proxy by which the server is reached.
    proxy: Option<String>,
    signature: Signature,
    limits: LinkLimits,
    conditions: OnceCell<Conditions>,
    multipart_conditions: OnceCell<Conditions>,
    /// How bodies are signed, where it was asked for more than every server knows.
    signing: OnceCell<Signing>,
    /// Why the first probe that was not deleted stays.
    undeleted: OnceLock<Weakness>,
    has_answered: AtomicBool,
    /// Which of the server's addresses the next connection goes to first; it may be more than there are.
    next_address: Arc<AtomicUsize>,
    traffic: Traffic,
}

impl Place {
    /// Whether the server has ever answered, no matter which shard.
    fn has_answered(&self) -> bool {
        self.has_answered.load(Relaxed)
    }

    /// The server as a person knows it, and the way there.
    fn way(&self) -> String {
        let server = self.location.server();
        match &self.proxy {
            Some(proxy) => format!("{server} by way of the proxy {proxy}"),
            None => server.to_owned(),
        }
    }

    /// The full name of an object.
    fn name_of(&self, key: &Key) -> String {
        format!("{}{key}", self.location.prefix)
    }
}

/// The proxy that the environment names for this server, chosen as the connections choose theirs.
fn proxy_to(location: &Location) -> Option<String> {
    let server: http::Uri = location.uri("", &[]).parse().ok()?;
    let proxy = Matcher::from_system().intercept(&server)?;
    host_and_port(proxy.uri())
}

/// What of a proxy's URL may be told. Its name and password were taken from it at the first `@`: where a password has one that is
/// not percent-encoded, the rest of it still stands before the host.
fn host_and_port(proxy: &http::Uri) -> Option<String> {
    let host = proxy.host()?;
    Some(match proxy.port_u16() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

impl S3Store {
    /// From the part of the URL behind `s3://`.
    pub(crate) fn open(rest: &str, limits: &LinkLimits) -> Result<S3Store> {
        let location = Location::parse(rest, &Surroundings::of_process())?;
        let signature = Signature::new(&location);
        let proxy = proxy_to(&location);
        Ok(S3Store(Arc::new(Place {
            location,
            proxy,
            signature,
            limits: limits.clone(),
            conditions: OnceCell::new(),
            multipart_conditions: OnceCell::new(),
            signing: OnceCell::new(),
            undeleted: OnceLock::new(),
            has_answered: AtomicBool::new(false),
            // Another one in each process.
            next_address: Arc::new(AtomicUsize::new(usize::from_le_bytes(random_bytes()?))),
            traffic: Traffic::default(),
        })))
    }

    pub(crate) fn url(&self) -> &str {
        &self.0.location.url
    }

    pub(crate) fn link_report(&self) -> LinkReport {
        self.0.traffic.report()
    }

    /// This shard's connections.
    fn client(&self, shard: &Shard) -> Result<Rc<Client>> {
        shard.keep(&self.0, || Client::new(shard, &self.0))
    }

    pub(crate) async fn put_if_absent(
        &self,
        shard: &Shard,
        key: &Key,
        bytes: &[u8],
    ) -> Result<Put> {
        let mut upload = self.upload(shard, key, Rivals::Possible).await?;
        for piece in bytes.chunks(BUF_BYTES) {
            upload.push(piece).await?;
        }
        upload.commit().await
    }

    pub(crate) async fn upload(
        &self,
        shard: &Shard,
        key: &Key,
        rivals: Rivals,
    ) -> Result<S3Upload> {
        S3Upload::begin(self.client(shard)?, key, rivals).await
    }

    /// Memory that is sent from without a copy.
    pub(crate) fn piece(&self, shard: &Shard) -> Result<Piece> {
        Ok(self.client(shard)?.memory.piece())
    }

    pub(crate) fn reader(&self, shard: &Shard) -> S3Reader {
        S3Reader {
            store: self.clone(),
            shard: shard.clone(),
        }
    }

    pub(crate) async fn get(&self, shard: &Shard, key: &Key, bytes_max: u64) -> Result<Vec<u8>> {
        let client = self.client(shard)?;
        let request = Request::new(Operation::Get, Method::GET, self.0.name_of(key));
        let mut out = Vec::new();
        let answer = {
            let mut sink = Sink::Whole {
                out: &mut out,
                bytes_max,
            };
            client.send(&request, &mut sink).await?
        };
        client.succeeded(&request, answer)?;
        Ok(out)
    }

    pub(crate) async fn read(
        &self,
        shard: &Shard,
        key: &Key,
        offset: u64,
        len: usize,
    ) -> Result<Slice> {
        reader::read(&*self.client(shard)?, key, offset, len).await
    }

    pub(crate) async fn head(&self, shard: &Shard, key: &Key) -> Result<Option<ObjectInfo>> {
        let client = self.client(shard)?;
        let Some(answer) = put::head(&client, &self.0.name_of(key)).await? else {
            return Ok(None);
        };
        // The answer to a ranged GET, which may stand in for HEAD, tells the size of the whole in its range.
        let total = match answer.header("content-range") {
            Some(range) => range.rsplit_once('/').map(|(_, total)| total),
            None => answer.header("content-length"),
        };
        let bytes = total.and_then(|total| total.parse().ok()).ok_or_else(|| {
            answer::not_s3(&self.0.location, "an object without a length").object(key.as_str())
        })?;
        Ok(Some(ObjectInfo {
            key: key.clone(),
            bytes,
        }))
    }

    pub(crate) async fn list(
        &self,
        shard: &Shard,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Page> {
        list::list(&*self.client(shard)?, prefix, after, limit).await
    }

    pub(crate) async fn delete(&self, shard: &Shard, key: &Key) -> Result<()> {
        let client = self.client(shard)?;
        let name = self.0.name_of(key);
        // S3 does not tell whether there was something to delete.
        if put::head(&client, &name).await?.is_none() {
            return Err(Error::new(Kind::NotFound, "no such object").object(key.as_str()));
        }
        put::delete(&client, &name)
            .await
            .map_err(|error| error.object(key.as_str()))
    }

    pub(crate) async fn delete_all(&self, shard: &Shard, keys: &[Key]) -> Result<()> {
        remove::delete_all(&*self.client(shard)?, keys).await
    }

    /// Writes, writes again and deletes a small object of our own.
    pub(crate) async fn try_out(&self, shard: &Shard) -> Result<Tried> {
        let client = self.client(shard)?;
        const CLAIMED: &str = "claimed first, which takes more requests and relies on listings that show what was just written";
        let told = |what: String| Weakness { what, hint: None };
        let mut weaknesses = match put::conditions(&client).await? {
            Conditions::Ignored => vec![told(format!(
                "the server ignores conditional writes (If-None-Match): objects that two writers may want are {CLAIMED}"
            ))],
            Conditions::Kept => match multipart::conditions(&client).await {
                Ok(Conditions::Kept) => Vec::new(),
                Ok(Conditions::Ignored) => vec![told(format!(
                    "the server ignores the condition (If-None-Match) at the end of an upload in parts: objects of more than 16 MiB that two writers may want are {CLAIMED}"
                ))],
                Err(error) if error.kind() == Kind::Cancelled => return Err(error),
                Err(error) => vec![Weakness {
                    what: format!(
                        "objects of more than 16 MiB cannot be written, which is done in parts: {error}"
                    ),
                    ..Weakness::from(&error)
                }],
            },
        };
        if chunked::signing(&client).await != self.0.location.signing {
            let reason = match self.0.location.is_tls() {
                true => "over TLS no body is signed",
                false if self.0.location.checksum == Checksum::Sha256 => {
                    "checksum=sha256 needs one hash anyway"
                }
                false => "the server does not take such bodies as it should",
            };
            weaknesses.push(told(format!("sign=chunks has no effect: {reason}")));
        }
        Ok(Tried {
            undeleted: self.0.undeleted.get().cloned(),
            weaknesses,
        })
    }

    /// Unfinished uploads, and probes and claims that were not taken back.
    pub(crate) async fn stale_temporaries(
        &self,
        shard: &Shard,
        is_own: impl Fn(&Key) -> bool,
    ) -> Result<Vec<Temporary>> {
        let client = self.client(shard)?;
        let (uploads, now) = list::uploads(&client, &self.0.location.prefix).await?;
        let place = &self.0.location.prefix;
        let uploads = uploads.into_iter().filter_map(|upload| {
            let name = upload.name.strip_prefix(place)?;
            let is_ours = is_own_temporary(name) || Key::new(name).is_ok_and(|key| is_own(&key));
            is_ours.then(|| Temporary {
                name: format!("{name}:{}", upload.id),
                bytes: 0,
                modified: upload.begun,
            })
        });
        let found = list::all(&client, &format!("{place}{TEMPORARY_PART}/")).await?;
        let objects = found.objects.into_iter().filter_map(|object| {
            let name = object.name.strip_prefix(place)?;
            is_own_temporary(name).then(|| Temporary {
                name: name.to_owned(),
                bytes: object.bytes,
                modified: object.modified,
            })
        });
        let mut stale: Vec<Temporary> = uploads
            .chain(objects)
            .filter(|temporary| is_stale(temporary.modified, now))
            .collect();
        stale.sort_by(|a, b| a.name.cmp(&b.name));
        stale.truncate(TEMPORARIES_MAX);
        Ok(stale)
    }

    pub(crate) async fn remove_temporary(
        &self,
        shard: &Shard,
        temporary: &Temporary,
    ) -> Result<()> {
        let client = self.client(shard)?;
        let name = |key: &str| format!("{}{key}", self.0.location.prefix);
        match temporary.name.split_once(':') {
            Some((key, id)) => multipart::abort(&client, &name(key), id).await,
            None if temporary.name.starts_with(&format!("{TEMPORARY_PART}/")) => {
                put::delete(&client, &name(&temporary.name)).await
            }
            None => Err(Error::new(Kind::NotFound, "no such temporary object")
                .object(temporary.name.as_str())),
        }
    }
}

/// Whether a name below the place is one of a probe or a claim: what others keep below the same prefix is theirs.
fn is_own_temporary(name: &str) -> bool {
    let is_mark = |text: &str| hex::decode::<16>(text).is_some();
    let own = name.strip_prefix(TEMPORARY_PART);
    let Some(own) = own.and_then(|own| own.strip_prefix('/')) else {
        return false;
    };
    match own.split_once('/') {
        None => own.strip_prefix(put::PROBE).is_some_and(is_mark),
        Some((object, mark)) => {
            object.strip_prefix(claim::CLAIM).is_some_and(is_mark) && is_mark(mark)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_proxy_only_host_and_port_are_told() {
        for (url, told) in [
            ("http://proxy:3128/", "proxy:3128"),
            ("http://proxy/", "proxy"),
            ("http://ss@proxy:3128/", "proxy:3128"),
            ("http://s:s@proxy/", "proxy"),
            ("http://[::1]:3128/", "[::1]:3128"),
            ("http://[::1]/", "[::1]"),
            ("http://ss@[fd00::1]:3128/", "[fd00::1]:3128"),
        ] {
            let url: http::Uri = url.parse().expect("a URL");
            assert_eq!(host_and_port(&url).as_deref(), Some(told), "{url}");
        }
    }

    #[test]
    fn probes_and_claims_are_told_from_what_others_call_temporary() {
        let mark = "0123456789abcdef0123456789abcdef";
        assert!(is_own_temporary(&format!("tmp/probe-{mark}")));
        assert!(is_own_temporary(&format!("tmp/claim-{mark}/{mark}")));
        for other in [
            format!("tmp/{mark}"),
            format!("tmp/probe-{mark}x"),
            format!("tmp/probe-{mark}/{mark}"),
            format!("tmp/claim-{mark}"),
            format!("tmp/claim-{mark}/{mark}/x"),
            format!("tmpprobe-{mark}"),
            format!("other/tmp/probe-{mark}"),
            "tmp/probe-".to_owned(),
            "tmp/".to_owned(),
        ] {
            assert!(!is_own_temporary(&other), "{other}");
        }
    }
}
