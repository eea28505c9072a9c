//! Creating objects on a server that knows no conditional writes: a claim decides who may write.
//!
//! Who wants to create an object first writes a claim of its own beside it, then lists the claims. Alone, it may
//! write the object if that is still absent; in company it withdraws and comes back after a random pause. Of two
//! writers at least one sees the other, since each lists after it has written and listings show what was written
//! before, so never do both believe to be alone.
//!
//! Invariants: no clock is asked that anybody sets. A holder names the object within half of a claim's life from before it
//! wrote the claim, or not at all: it looks at the claim's age once more right before each try leaves, by a clock that runs on
//! while the machine sleeps, since it may have been stopped meanwhile. (One that is stopped behind that look, before the kernel
//! has the request, or whose machine's clock was stopped with it, is not told.) What the kernel was handed by then it gives up
//! in the other half, if nobody takes it in ([`IN_KERNEL_MAX`]). What takes long (sending the bytes) happens before the claim. A
//! rival's claim is dead when it was seen here for the whole life, which is longer than its holder has
//! it. Where the write failed it may still arrive, so its claim stays until its life is over, and only then is it looked
//! for and, if it is not there, sent again. The end of an upload in parts, which a server may work at for longer than a claim
//! is used, then finds the upload gone: that, too, is looked at again until the patience is over. This leans on consistent
//! listings, which the probe cannot prove: `check` says that the store is of the weaker kind.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use mover_base::checksum::sha256;
use mover_base::{Error, Kind, Result, hex};
use mover_io::random_bytes;

use super::answer::Operation;
use super::body::Payload;
use super::client::{Client, PATIENCE, Request, Sink};
use super::list;
use super::multipart;
use super::put::{self, new_mark, put_request};
use crate::Put;
use crate::key::TEMPORARY_PART;

/// What the names of claims begin with, behind [`TEMPORARY_PART`].
pub(super) const CLAIM: &str = "claim-";
/// How long a claim keeps others away when its holder dies.
const LIFE_S: u64 = 60;
/// How long the kernel may go on with what was sent under a claim, which is used for the first half of its life.
pub(super) const IN_KERNEL_MAX: Duration = Duration::from_secs(LIFE_S / 2);
/// How long claims hold.
const TERMS: Terms = Terms {
    life: Duration::from_secs(LIFE_S),
    patience: PATIENCE,
};
/// Payloads up to this are written under the claim; longer ones are sent first and named under it.
const INLINE_BYTES_MAX: u64 = 64 << 10;
/// Pauses between tries to be alone double up to 6 s.
const PAUSE_FIRST_MS: u64 = 50;
const PAUSE_DOUBLINGS_MAX: u32 = 7;
/// How often whoever waits looks whether the job is to end.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Writes `payload` as the object `name` unless that exists.
pub(super) async fn put(client: &Client, name: &str, payload: Payload) -> Result<Put> {
    if payload.bytes <= INLINE_BYTES_MAX {
        let mark = new_mark()?;
        let request = put_request(client, name, payload, &mark);
        return claimed(client, name, &request, &mark).await;
    }
    if put::head(client, name).await?.is_some() {
        return Ok(Put::Exists);
    }
    let parts = multipart::Parts::begin(client, name, new_mark()?).await?;
    let mut upload = multipart::Guarded::new(client, parts);
    upload.parts.send(client, payload).await?;
    let put = upload.parts.complete(client).await?;
    if put == Put::Created {
        upload.settle();
    }
    Ok(put)
}

/// Sends `request`, which names the object, as the only one who may. `mark` is that of the object.
pub(super) async fn claimed(
    client: &Client,
    name: &str,
    request: &Request,
    mark: &str,
) -> Result<Put> {
    let creation = Creation::new(client, name, request, mark, TERMS);
    creation.run().await
}

/// How long claims hold, and how long their writers go on.
#[derive(Debug, Clone, Copy)]
struct Terms {
    /// How long a claim keeps others away when its holder dies.
    life: Duration,
    /// How long one object is tried; the last try may last longer.
    patience: Duration,
}

impl Terms {
    /// How long its holder may use a claim.
    fn use_max(&self) -> Duration {
        self.life / 2
    }

    /// How much of that has to be left when the object is sent: what breaks off in the middle costs the claim's life.
    fn use_min(&self) -> Duration {
        self.use_max() / 3
    }
}

/// One object on its way into being.
struct Creation<'a> {
    client: &'a Client,
    name: &'a str,
    request: &'a Request,
    mark: &'a str,
    terms: Terms,
    /// What the names of all claims to the object begin with.
    prefix: String,
    sightings: Sightings,
    /// Whether the object was sent: then it may be there by our hand.
    is_sent: bool,
}

/// What a claim comes to.
enum Turn {
    /// The object is there.
    Ended(Put),
    /// Nothing was sent that could create the object, and why.
    NotSent(Error),
    /// It was sent, and may arrive yet.
    Unclear(Error),
    /// It was sent and refused, or what became of it is not known and does not become known by waiting.
    Failed(Error),
}

impl<'a> Creation<'a> {
    fn new(
        client: &'a Client,
        name: &'a str,
        request: &'a Request,
        mark: &'a str,
        terms: Terms,
    ) -> Self {
        let prefix = format!(
            "{}{TEMPORARY_PART}/{CLAIM}{}/",
            client.place.location.prefix,
            &hex::encode(&sha256(name.as_bytes()))[..32]
        );
        Creation {
            client,
            name,
            request,
            mark,
            terms,
            prefix,
            sightings: Sightings::default(),
            is_sent: false,
        }
    }

    async fn run(mut self) -> Result<Put> {
        let begun = Instant::now();
        let (mut attempt, mut failed) = (0, None);
        loop {
            if let Some(put) = self.standing().await? {
                return Ok(put);
            }
            if let Some(error) = failed.filter(|_| begun.elapsed() > self.terms.patience) {
                return Err(error);
            }
            let claim = format!("{}{}", self.prefix, new_mark()?);
            // What is waited for is waited for awake.
            let since = Instant::now();
            let turn = self.turn(&claim, BootTime::now()).await;
            if let Ok(Turn::Unclear(error)) = &turn {
                tracing::debug!(name = self.name, %error, "waiting for what may still arrive");
                self.wait_until(since + self.terms.life).await?;
            }
            let withdrawn = match &turn {
                // It may still arrive, and would overwrite what others create without the claim.
                Ok(Turn::Failed(_)) => Ok(()),
                // Left behind it would keep others away for a minute.
                _ => put::delete(self.client, &claim).await,
            };
            failed = match turn? {
                Turn::Ended(put) => return Ok(put),
                Turn::Failed(error) => return Err(error),
                Turn::NotSent(error) | Turn::Unclear(error) => Some(error),
            };
            withdrawn?;
            let bound = PAUSE_FIRST_MS << attempt.min(PAUSE_DOUBLINGS_MAX);
            let pause = u64::from_ne_bytes(random_bytes()?) % bound;
            self.wait_until(Instant::now() + Duration::from_millis(pause))
                .await?;
            attempt += 1;
        }
    }

    /// Claims the object, and sends it if nobody else may.
    async fn turn(&mut self, claim: &str, since: BootTime) -> Result<Turn> {
        if let Some(why) = self.is_kept_away(claim, since).await? {
            return Ok(Turn::NotSent(why));
        }
        if let Some(put) = self.standing().await? {
            return Ok(Turn::Ended(put));
        }
        let deadline = since.after(self.terms.use_max());
        if deadline.left() < self.terms.use_min() {
            return Ok(Turn::NotSent(too_slow(self.name)));
        }
        let was_sent = std::mem::replace(&mut self.is_sent, true);
        // The server may still put together what was ended under an earlier claim, and knows the upload no more.
        let is_perhaps_ending = was_sent && self.request.operation == Operation::Multipart;
        Ok(match self.write(deadline).await {
            Ok(put) => Turn::Ended(put),
            Err(error) if is_perhaps_ending || error.kind() == Kind::Unreachable => {
                Turn::Unclear(error)
            }
            Err(error) => Turn::Failed(error),
        })
    }

    /// Writes our claim and looks whether there are others: then, why the object may not be written now.
    async fn is_kept_away(&mut self, claim: &str, since: BootTime) -> Result<Option<Error>> {
        let payload = put::payload_of(self.client, b"claim")?;
        let request = put_request(self.client, claim, payload, "claim");
        self.client.send_small(&request).await?;
        let found = list::all(self.client, &self.prefix).await?;
        let names = found.objects.iter().map(|object| object.name.as_str());
        let rivals: Vec<&str> = names.filter(|name| *name != claim).collect();
        let is_shown = rivals.len() < found.objects.len();
        let dead = self
            .sightings
            .dead(&rivals, Instant::now(), self.terms.life);
        for name in &dead {
            put::delete(self.client, name).await?;
        }
        // A server that does not show what was just written gives no protection. What is no longer new others may
        // have taken for dead.
        if !is_shown && since.elapsed() < self.terms.use_max() {
            return Err(Error::new(
                Kind::Storage,
                "the store neither supports conditional writes nor lists what was just written",
            )
            .object(self.client.place.location.server())
            .hint("a repository needs one of the two; use another store"));
        }
        Ok(match rivals.len() - dead.len() {
            _ if !is_shown => Some(too_slow(self.name)),
            0 => None,
            _ => Some(self.crowd()),
        })
    }

    /// The step that decides, which ends by then.
    async fn write(&self, deadline: BootTime) -> Result<Put> {
        let request = self.request.clone().before(deadline);
        let mut sink = Sink::Answer;
        let sent = self.client.send(&request, &mut sink);
        // After a stop this still goes on with sending before it looks at its own time, so the request has to look too.
        let sent = tokio::time::timeout(deadline.left(), sent).await;
        let answer = sent.map_err(|_| too_slow(self.name))??;
        // A try that was answered late may have been preceded by one that arrived.
        match put::outcome(self.client, self.request, answer, self.mark).await? {
            Some(put) => Ok(put),
            None => Err(put::unsettled(self.name)),
        }
    }

    /// What it means for us that the object is there, if it is.
    async fn standing(&self) -> Result<Option<Put>> {
        let found = put::mark_of(self.client, self.name).await?;
        Ok(found.map(|mark| match self.is_sent && mark == self.mark {
            true => Put::Created,
            false => Put::Exists,
        }))
    }

    async fn wait_until(&self, then: Instant) -> Result<()> {
        loop {
            self.client.shard.stop()?;
            let left = then.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            tokio::time::sleep(left.min(LOOK_EVERY)).await;
        }
    }

    fn crowd(&self) -> Error {
        Error::new(
            Kind::Conflict,
            "too many writers want to create the same object",
        )
        .object(self.name)
        .hint("let them run one after the other, or use a store that supports If-None-Match")
    }
}

/// The error for an object whose claim may be another's by now.
pub(super) fn too_slow(name: &str) -> Error {
    Error::new(
        Kind::Unreachable,
        "the store was too slow to create an object safely",
    )
    .object(name)
    .hint("try again later")
}

/// A time by the kernel's clock that runs on while this process is stopped or the machine sleeps, and that nobody sets.
#[derive(Debug, Clone, Copy)]
pub(super) struct BootTime(Duration);

impl BootTime {
    pub fn now() -> Self {
        let since_boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        // It is never negative.
        BootTime(Duration::try_from(since_boot).unwrap_or_default())
    }

    pub fn after(self, time: Duration) -> Self {
        BootTime(self.0.saturating_add(time))
    }

    /// How long it is ahead.
    pub fn left(self) -> Duration {
        self.0.saturating_sub(BootTime::now().0)
    }

    pub fn has_passed(self) -> bool {
        self.left().is_zero()
    }

    /// How long it is past.
    fn elapsed(self) -> Duration {
        BootTime::now().0.saturating_sub(self.0)
    }
}

/// Since when which claims of rivals are seen; of those that are there no more nothing is kept.
#[derive(Debug, Default)]
struct Sightings(HashMap<String, Instant>);

impl Sightings {
    /// Takes in the rivals of a listing that had come by `now`; returns those of them that were seen for `life`.
    fn dead<'n>(&mut self, rivals: &[&'n str], now: Instant, life: Duration) -> Vec<&'n str> {
        let known = std::mem::take(&mut self.0);
        for &rival in rivals {
            let first = known.get(rival).copied().unwrap_or(now);
            self.0.insert(rival.to_owned(), first);
        }
        let is_dead = |rival: &&&str| now.saturating_duration_since(self.0[**rival]) > life;
        rivals.iter().filter(is_dead).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use mover_io::{BUF_BYTES, Shard, ShardConfig};
    use mover_test_servers::{Action, Fault, FaultProxy, FilesystemS3};
    use tempfile::TempDir;

    use super::super::S3Store;
    use super::*;
    use crate::LinkLimits;

    const SHORT: Terms = Terms {
        life: Duration::from_secs(2),
        patience: Duration::from_secs(20),
    };
    const NAME: &str = "x";
    const MARK: &str = "ours";
    /// How often a test looks for what it waits for: much longer than it takes.
    const LOOKS_MAX: usize = 3000;

    /// A server behind a proxy that breaks what a test says.
    struct Scene {
        _directory: TempDir,
        server: FilesystemS3,
        proxy: FaultProxy,
        store: S3Store,
    }

    impl Scene {
        fn new() -> Self {
            let directory = TempDir::new().unwrap();
            let server = FilesystemS3::start(directory.path());
            let proxy = FaultProxy::start(&server.access().endpoint);
            let (access, keys) = (server.access(), directory.path().join("keys"));
            let text = format!(
                "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
                access.key.id, access.key.secret
            );
            std::fs::write(&keys, text).unwrap();
            let url = format!(
                "{}?endpoint={}&region={}&credentials={}",
                access.bucket,
                proxy.endpoint(),
                access.region,
                keys.display()
            );
            let store = S3Store::open(&url, &LinkLimits::default()).unwrap();
            Scene {
                _directory: directory,
                server,
                proxy,
                store,
            }
        }

        fn on_shard<T: Send>(&self, body: impl AsyncFn(Shard) -> Result<T> + Sync) -> T {
            let config = ShardConfig {
                shards: 1,
                pin: false,
                arena_bytes: 8 * BUF_BYTES,
                ..ShardConfig::default()
            };
            let ended = mover_io::run(&config, body, |_| {}).unwrap().pop();
            ended.unwrap()
        }

        /// Creates the object under claims of a short life, and does `meanwhile` at the same time.
        fn create(&self, meanwhile: impl AsyncFn() + Sync) -> (Put, Duration) {
            let whole = |client: &Client, payload| put_request(client, NAME, payload, MARK);
            self.create_by(whole, meanwhile)
        }

        /// The same by the request that `request_of` makes.
        fn create_by(
            &self,
            request_of: impl Fn(&Client, Payload) -> Request + Sync,
            meanwhile: impl AsyncFn() + Sync,
        ) -> (Put, Duration) {
            self.on_shard(async |shard: Shard| {
                let client = self.store.client(&shard)?;
                let payload = put::payload_of(&client, b"ours")?;
                let request = request_of(&client, payload);
                let begun = Instant::now();
                let creation = Creation::new(&client, NAME, &request, MARK, SHORT);
                let (put, ()) = tokio::join!(creation.run(), meanwhile());
                Ok((put?, begun.elapsed()))
            })
        }

        /// Sends the object's write, which has this long, and returns whether it was answered, or why not.
        fn write_within(&self, time: Duration) -> Result<()> {
            self.on_shard(async |shard: Shard| {
                let client = self.store.client(&shard)?;
                let payload = put::payload_of(&client, b"ours")?;
                let request = put_request(&client, NAME, payload, MARK);
                let request = request.before(BootTime::now().after(time));
                Ok(client.send(&request, &mut Sink::Answer).await.map(|_| ()))
            })
        }

        fn seen(&self, method: &str, part: &str) -> usize {
            let seen = self.proxy.seen();
            let is_so = |line: &&String| line.starts_with(method) && line.contains(part);
            seen.iter().filter(is_so).count()
        }

        fn writes_of_object(&self) -> usize {
            self.seen("PUT", "/x")
        }

        fn assert_holds(&self, body: &[u8]) {
            let client = self.server.access().client();
            assert_eq!(client.get(NAME).unwrap().body, body);
            let (claims, _) = client.list("tmp/", 100).unwrap();
            assert_eq!(claims.len(), 0, "claims that stay keep others away");
        }
    }

    fn of_object(action: Action) -> Fault {
        Fault::new(action).method("PUT").path("/x").times(1)
    }

    #[test]
    fn a_rival_is_dead_when_it_was_seen_for_the_life_of_a_claim() {
        let (mut sightings, begin) = (Sightings::default(), Instant::now());
        let mut at = |seconds, rivals: &[&'static str]| {
            let now = begin + Duration::from_secs(seconds);
            sightings.dead(rivals, now, Duration::from_secs(60))
        };
        assert!(at(0, &["a"]).is_empty());
        assert!(at(60, &["a", "b"]).is_empty());
        assert_eq!(at(61, &["a", "b"]), ["a"]);
        assert_eq!(at(121, &["b"]), ["b"]);
        // What went away and came back is new.
        assert!(at(122, &["a"]).is_empty());
        assert_eq!(sightings.0.len(), 1);
    }

    /// As after a stop of the process, within which others may have taken the claim for dead.
    #[test]
    fn a_write_whose_time_is_over_is_not_sent() {
        let scene = Scene::new();
        let error = scene.write_within(Duration::ZERO).unwrap_err();
        assert_eq!(error.message(), too_slow(NAME).message());
        assert_eq!(scene.writes_of_object(), 0);
        scene.write_within(SHORT.patience).unwrap();
        assert_eq!(scene.writes_of_object(), 1);
    }

    #[test]
    fn a_write_whose_time_is_over_is_not_sent_again() {
        let scene = Scene::new();
        let broken = Fault::new(Action::ResetBeforeRequest).path("/x");
        scene.proxy.inject(broken);
        let error = scene.write_within(SHORT.use_min()).unwrap_err();
        assert_eq!(error.message(), too_slow(NAME).message());
    }

    #[test]
    fn a_claim_that_was_left_behind_is_taken_away_after_its_life() {
        let scene = Scene::new();
        let prefix = format!("tmp/{CLAIM}{}", &hex::encode(&sha256(b"x"))[..32]);
        let left = format!("{prefix}/{}", "0".repeat(32));
        let client = scene.server.access().client();
        client.put(&left, b"claim").unwrap();
        let (put, after) = scene.create(async || {});
        assert_eq!(put, Put::Created);
        assert!(after > SHORT.life, "{after:?}");
        scene.assert_holds(b"ours");
    }

    #[test]
    fn a_write_whose_answer_is_lost_for_good_is_found_by_its_mark() {
        let scene = Scene::new();
        scene.proxy.inject(of_object(Action::SilentReply));
        let (put, after) = scene.create(async || {});
        assert_eq!(put, Put::Created);
        assert!(after > SHORT.life, "{after:?}: it may still arrive");
        assert_eq!(scene.writes_of_object(), 1);
        scene.assert_holds(b"ours");
    }

    #[test]
    fn a_write_that_does_not_arrive_is_sent_again_when_it_cannot_arrive_any_more() {
        let scene = Scene::new();
        scene.proxy.inject(of_object(Action::Stall));
        let (put, after) = scene.create(async || {});
        assert_eq!(put, Put::Created);
        assert!(after > SHORT.life, "{after:?}");
        assert_eq!(scene.writes_of_object(), 2);
        scene.assert_holds(b"ours");
    }

    #[test]
    fn an_object_that_is_anothers_after_a_failed_write_exists() {
        let scene = Scene::new();
        let stalled = scene.proxy.inject(of_object(Action::Stall));
        let (put, _) = scene.create(async || {
            while scene.proxy.hits(stalled) == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let theirs = || scene.server.access().client().put(NAME, b"theirs").unwrap();
            // Their client blocks, which this thread's runtime does not allow.
            std::thread::scope(|scope| scope.spawn(theirs).join().unwrap());
        });
        assert_eq!(put, Put::Exists);
        scene.assert_holds(b"theirs");
    }

    /// As on a server that puts an object together for longer than a claim holds.
    #[test]
    fn an_upload_that_is_gone_when_its_end_is_sent_again_may_yet_become_the_object() {
        let scene = Scene::new();
        let end = |action| Fault::new(action).method("POST").path("/x");
        let stalled = scene.proxy.inject(end(Action::Stall).times(1));
        scene.proxy.inject(end(Action::error(404, "NoSuchUpload")));
        let end_of_upload = |_: &Client, payload| {
            let request = Request::new(Operation::Multipart, Method::POST, NAME.to_owned());
            request.query("uploadId", "u").payload(payload)
        };
        let (put, _) = scene.create_by(end_of_upload, async || {
            // Two claims are given back: that of the end which was not answered, and that of the one which was refused.
            for _ in 0..LOOKS_MAX {
                if scene.seen("DELETE", CLAIM) == 2 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let made = || {
                let client = scene.server.access().client();
                let mark = [(put::MARK_HEADER, MARK)];
                client.put_with(NAME, b"ours", &mark).unwrap();
            };
            std::thread::scope(|scope| scope.spawn(made).join().unwrap());
        });
        assert_eq!(put, Put::Created);
        assert_eq!(scene.proxy.hits(stalled), 1);
        assert_eq!(scene.seen("DELETE", CLAIM), scene.seen("PUT", CLAIM));
        scene.assert_holds(b"ours");
    }

    #[test]
    fn an_object_is_not_sent_at_the_end_of_a_claim() {
        let scene = Scene::new();
        let slow = Fault::new(Action::Delay(SHORT.use_max()));
        scene.proxy.inject(slow.query("list-type=2").times(1));
        let (put, _) = scene.create(async || {});
        assert_eq!(put, Put::Created);
        assert_eq!(scene.writes_of_object(), 1);
        assert_eq!(scene.seen("PUT", CLAIM), 2, "one claim was given back");
        scene.assert_holds(b"ours");
    }
}
