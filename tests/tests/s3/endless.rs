//! Listings that no server of S3 gives: of one directory of a repository without end, of names that lie elsewhere, of the same
//! name twice, of the same page again. Every verb that lists the directory ends with one error that names it.
//!
//! Invariants: whatever else the server is asked for is as in a real repository with one backup, so that only the listing can be
//! the reason; how often it was asked is counted, so that a cap is the one that the error states.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use mover_test_servers::{Access, FilesystemS3, Reply, RequestHead, Scripted};
use mover_tests::bucket::{repo_in, told, variables};
use mover_tests::mover::{AnyRepo, Outcome, Protection, dir_url, exit};
use mover_tests::plant;
use mover_tests::random::Random;
use mover_tests::scratch::Scratch;

use super::{SEED, bytes_of, objects};

/// Where the repositories are in their buckets.
const PLACE: &str = "endless";
/// Names that a server sends in one page.
const PAGE_NAMES: usize = 1000;
/// Requests beside those for the listing: for the header, the other directories, a manifest, a probe, a session.
const OTHERS_MAX: usize = 100;
/// Records of one kind that are listed.
const RECORDS_MAX: usize = 500_000;
const OVER_RECORDS: &str = "over 500000 objects stand there";
/// Objects among the others that are none of a repository's.
const FOREIGN_MAX: usize = 100_000;
const OVER_FOREIGN: &str = "over 100000 objects stand there that are none";
/// Objects among the key slots.
const SLOTS_MAX: usize = 1000;
const OVER_SLOTS: &str = "over 1000 objects stand where the key slots are";
/// What every id but those of backups can begin with, if eight more digits follow.
const ID: &str = "000000000000000000000000";

/// The objects of a repository by their full names.
type Held = BTreeMap<String, Vec<u8>>;

/// A repository with one backup, and what its server holds.
struct Kept {
    scratch: Scratch,
    files: FilesystemS3,
    repo: AnyRepo,
    source: PathBuf,
    backup: String,
    held: Arc<Held>,
}

/// A directory that is listed without end, and what is to be said of it.
struct Endless<'a> {
    directory: &'a str,
    /// How the names there begin.
    stem: &'a str,
    objects_max: usize,
    message: &'a str,
    hint: &'a str,
}

impl Kept {
    fn new(name: &str, protection: Protection) -> Self {
        let scratch = Scratch::new(name);
        let files = FilesystemS3::start(scratch.path());
        let repo = repo_in(files.access(), &scratch, PLACE, protection);
        let source = scratch.dir("source");
        plant::file(&source.join("table"), &mut Random::new(SEED), 4096);
        repo.backup(&source).summary();
        let backup = repo.ids().pop().expect("a backup");
        let held = Arc::new(held(files.access()));
        Kept {
            scratch,
            files,
            repo,
            source,
            backup,
            held,
        }
    }

    /// The repository by way of another server.
    fn at(&self, server: &Scripted) -> AnyRepo {
        let access = self.files.access().at(&server.endpoint());
        self.repo.at(&access.url(PLACE), &variables(&access.key))
    }

    /// A server that holds the same and lists one directory without end.
    fn endless(&self, endless: &Endless<'_>) -> Scripted {
        let directory = format!("{PLACE}/{}", endless.directory);
        let stem = endless.stem.to_owned();
        self.listing(move |head, prefix| {
            (prefix == directory).then(|| page_without_end(head, &stem))
        })
    }

    /// A server that holds the same and answers some listings otherwise: those below a prefix for which `page` gives a page.
    fn listing(
        &self,
        page: impl Fn(&RequestHead, &str) -> Option<Reply> + Send + Sync + 'static,
    ) -> Scripted {
        let (held, bucket) = (Arc::clone(&self.held), self.files.access().bucket.clone());
        let (probes, made) = (AtomicUsize::new(0), Mutex::new(BTreeSet::new()));
        Scripted::start(move |head, _| {
            let prefix = field(head, "prefix").map(|prefix| prefix.replace("%2F", "/"));
            match (head.method.as_str(), prefix) {
                ("GET", Some(prefix)) => {
                    page(head, &prefix).unwrap_or_else(|| page_of(&held, head, &prefix))
                }
                // Who takes a hold back looks first whether it is there.
                ("HEAD", None) if made.lock().expect("no panic").contains(&head.path) => {
                    Reply::new(200, "").with("etag", "\"x\"")
                }
                ("GET" | "HEAD", None) => object(&held, head, &bucket),
                // The second write of a probe is refused, as by a server that keeps conditions.
                ("PUT", _)
                    if head.path.contains("/probe-")
                        && probes.fetch_add(1, Ordering::Relaxed) % 2 == 1 =>
                {
                    Reply::s3_error(412, "PreconditionFailed", "it exists")
                }
                ("PUT", _) => {
                    if head.path.contains("/holds/") {
                        made.lock().expect("no panic").insert(head.path.clone());
                    }
                    Reply::new(200, "").with("etag", "\"x\"")
                }
                ("DELETE", _) => Reply::new(204, ""),
                ("POST", _) => Reply::new(200, "<DeleteResult></DeleteResult>"),
                _ => Reply::s3_error(501, "NotImplemented", "no"),
            }
        })
    }

    /// Fails the test unless this verb ends at the stated limit. Returns what it asked for, as `METHOD path`.
    #[track_caller]
    fn is_given_up(&self, verb: &str, args: &[&str], endless: &Endless<'_>) -> Vec<String> {
        let server = self.endless(endless);
        let mut command: Command = self.at(&server).command(verb);
        let outcome = Outcome::of(command.args(args).arg("--json"));
        let directory = endless.directory;
        let shown = format!("{verb} of {directory}: {outcome}");
        let error = outcome.told(exit::LIMIT, directory);
        for (field, part) in [("message", endless.message), ("hint", endless.hint)] {
            let text = error[field].as_str().unwrap_or_default();
            assert!(text.contains(part), "{field} without {part:?}\n{shown}");
        }
        let requests = server.requests();
        // Pages of a thousand, and one more name after each to see whether there are more.
        let most = endless.objects_max.div_ceil(PAGE_NAMES) * 2 + OTHERS_MAX;
        assert!(
            requests.len() < most,
            "{} requests\n{shown}",
            requests.len()
        );
        let line = |head: &RequestHead| format!("{} {}", head.method, head.path);
        requests.iter().map(|request| line(&request.head)).collect()
    }
}

/// All that a server holds below [`PLACE`].
fn held(access: &Access) -> Held {
    let client = access.client();
    let listed = objects(access, PLACE).into_iter();
    let read = |key: String| {
        let body = client.get(&key).expect("an object").body;
        (key, body)
    };
    listed.map(|object| read(object.key)).collect()
}

/// The value of a query's field, as it was sent.
pub(super) fn field<'a>(head: &'a RequestHead, name: &str) -> Option<&'a str> {
    let mut pairs = head
        .query
        .split('&')
        .filter_map(|pair| pair.split_once('='));
    pairs.find_map(|(key, value)| (key == name).then_some(value))
}

/// An object, or the part of it that is asked for.
fn object(held: &Held, head: &RequestHead, bucket: &str) -> Reply {
    let name = head.path.strip_prefix(&format!("/{bucket}/"));
    let Some(body) = name.and_then(|name| held.get(name)) else {
        return Reply::s3_error(404, "NoSuchKey", "nothing is here");
    };
    let reply = match head.header("range") {
        None => Reply::new(200, body.clone()),
        Some(range) => {
            let (first, last) = bytes_of(range);
            let end = body.len().min(last as usize + 1);
            let range = format!("bytes {first}-{}/{}", end - 1, body.len());
            Reply::new(206, &body[first as usize..end]).with("content-range", &range)
        }
    };
    reply.with("etag", "\"x\"")
}

/// What a listing says of an object.
fn entry(name: &str, bytes: usize) -> String {
    format!(
        "<Contents><Key>{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>{bytes}</Size></Contents>"
    )
}

/// A page with these entries, and where the next begins, if there is one.
fn page(entries: &str, next: Option<&str>) -> Reply {
    let token = next.map_or(String::new(), |next| {
        format!("<NextContinuationToken>{next}</NextContinuationToken>")
    });
    let is_truncated = next.is_some();
    Reply::new(
        200,
        format!(
            "<ListBucketResult><IsTruncated>{is_truncated}</IsTruncated>{token}{entries}</ListBucketResult>"
        ),
    )
}

/// The objects below a prefix, as the server has them, in one page.
fn page_of(held: &Held, head: &RequestHead, prefix: &str) -> Reply {
    let after = field(head, "start-after").map(|after| after.replace("%2F", "/"));
    let is_wanted =
        |name: &str| name.starts_with(prefix) && after.as_deref().is_none_or(|after| name > after);
    let wanted = held.iter().filter(|(name, _)| is_wanted(name));
    let entries: String = wanted.map(|(name, body)| entry(name, body.len())).collect();
    page(&entries, None)
}

/// A page of as many objects as are asked for, which promises more. Their names are `stem` and a number.
pub(super) fn page_without_end(head: &RequestHead, stem: &str) -> Reply {
    let number = |text: &str| usize::from_str_radix(text, 16).expect("a number");
    let first = match (
        field(head, "continuation-token"),
        field(head, "start-after"),
    ) {
        (Some(token), _) => number(token),
        (None, Some(name)) => number(&name[name.len() - 8..]) + 1,
        (None, None) => 0,
    };
    let count = field(head, "max-keys").and_then(|count| count.parse::<usize>().ok());
    let next = first + count.expect("a number");
    let name = |at: usize| format!("{PLACE}/{stem}{at:08x}");
    let entries: String = (first..next).map(|at| entry(&name(at), 1)).collect();
    page(&entries, Some(&format!("{next:08x}")))
}

#[test]
fn records_of_all_backups_that_are_listed_without_end_are_given_up_by_every_verb() {
    let kept = Kept::new("s3-endless-records", Protection::None);
    let backup = kept.backup.as_str();
    let below = |directory: &str| format!("{directory}{backup}/{ID}");
    let (tombstones, holds) = (below("expired/"), below("holds/"));
    let (sessions, notes) = (format!("sessions/{ID}"), "annotations/copy-");
    let of = |directory, stem, hint| Endless {
        directory,
        stem,
        objects_max: RECORDS_MAX,
        message: OVER_RECORDS,
        hint,
    };
    let tombstones = of("expired/", &tombstones, "while no `expire` runs anywhere");
    let holds = of("holds/", &holds, "is the backup that it holds");
    let notes = of("annotations/", notes, "is the backup that it belongs to");
    let sessions = of("sessions/", &sessions, "`expire --confirm`");
    let expire: &[&str] = &["--keep-last", "1"];
    for endless in [&tombstones, &holds, &notes] {
        kept.is_given_up("list", &[], endless);
    }
    for endless in [&tombstones, &holds, &notes, &sessions] {
        kept.is_given_up("verify", &[], endless);
        let asked = kept.is_given_up("expire", expire, endless);
        let is_write = |line: &&String| !line.starts_with("GET") && !line.starts_with("HEAD");
        assert_eq!(asked.iter().find(is_write), None, "{}", endless.directory);
    }
    let forget: &[&str] = &["--forget-session", "5f0c", "--confirm"];
    kept.is_given_up("expire", forget, &sessions);
    kept.is_given_up("hold list", &[], &holds);
    kept.is_given_up("hold remove", &["5f0c"], &holds);
    let source = dir_url(&kept.source);
    kept.is_given_up("backup", &["--source", &source], &tombstones);
}

/// It may have come too late, and that cannot be known.
#[test]
fn a_hold_is_taken_back_where_tombstones_or_sessions_are_listed_without_end() {
    let kept = Kept::new("s3-endless-hold", Protection::None);
    let add: &[&str] = &[kept.backup.as_str(), "--reason", "audit"];
    for directory in ["expired/", "sessions/"] {
        let endless = Endless {
            directory,
            stem: &format!("{directory}copy-"),
            objects_max: RECORDS_MAX,
            message: OVER_RECORDS,
            hint: "with the storage's own tools",
        };
        let asked = kept.is_given_up("hold add", add, &endless);
        let of = |method: &str| {
            let line = format!("{method} /{}/{PLACE}/holds/", kept.files.access().bucket);
            let of = asked
                .iter()
                .filter_map(move |asked| asked.strip_prefix(&line));
            of.map(str::to_owned).collect::<Vec<String>>()
        };
        let made = of("PUT");
        assert_eq!(made.len(), 1, "{asked:?}");
        assert_eq!(of("DELETE"), made, "{directory}");
    }
}

#[test]
fn records_of_one_backup_that_are_listed_without_end_are_given_up_by_every_verb() {
    let kept = Kept::new("s3-endless-one", Protection::None);
    let backup = kept.backup.as_str();
    let (holds, notes) = (format!("holds/{backup}/"), format!("annotations/{backup}/"));
    let (held, noted) = (format!("{holds}{ID}"), format!("{notes}copy-"));
    let of = |directory, stem, hint| Endless {
        directory,
        stem,
        objects_max: RECORDS_MAX,
        message: OVER_RECORDS,
        hint,
    };
    let holds = of(&holds, &held, "is the backup that it holds");
    let notes = of(&notes, &noted, "is the backup that it belongs to");
    for endless in [&holds, &notes] {
        kept.is_given_up("show", &[backup], endless);
        kept.is_given_up("verify", &["--set", backup], endless);
    }
    let asked = kept.is_given_up("annotate", &[backup, "ticket=4711"], &notes);
    assert!(
        !asked.iter().any(|line| line.starts_with("PUT")),
        "{asked:?}"
    );
}

#[test]
fn backups_and_packs_among_which_others_stand_without_end_are_given_up_by_every_verb() {
    let kept = Kept::new("s3-endless-foreign", Protection::None);
    let of = |directory, stem| Endless {
        directory,
        stem,
        objects_max: FOREIGN_MAX,
        message: OVER_FOREIGN,
        hint: "move them elsewhere",
    };
    let (backups, packs) = (of("backups/", "backups/copy-"), of("packs/", "packs/copy-"));
    let target = kept.scratch.join("target");
    let to = target.display().to_string();
    let source = dir_url(&kept.source);
    let expire: &[&str] = &["--keep-last", "1"];
    let verbs: [(&str, &[&str]); 5] = [
        ("backup", &["--source", source.as_str()]),
        ("expire", expire),
        ("show", &["latest"]),
        ("restore", &["--set", "latest", "--to", to.as_str()]),
        ("verify", &[]),
    ];
    for (verb, args) in verbs {
        kept.is_given_up(verb, args, &backups);
    }
    assert!(!target.exists(), "nothing was restored");
    kept.is_given_up("expire", expire, &packs);
}

#[test]
fn key_slots_that_are_listed_without_end_are_given_up_by_every_verb() {
    let kept = Kept::new("s3-endless-keys", Protection::Passphrase);
    let slots = Endless {
        directory: "keys/",
        stem: "keys/copy-",
        objects_max: SLOTS_MAX,
        message: OVER_SLOTS,
        hint: "`helios-mover key add`",
    };
    let source = dir_url(&kept.source);
    let verbs: [(&str, &[&str]); 4] = [
        ("list", &[]),
        ("verify", &[]),
        ("backup", &["--source", source.as_str()]),
        ("key list", &[]),
    ];
    for (verb, args) in verbs {
        kept.is_given_up(verb, args, &slots);
    }
}

#[test]
fn a_place_that_is_listed_without_end_is_not_empty_and_no_repository_is_made_there() {
    let kept = Kept::new("s3-endless-init", Protection::None);
    let server = Scripted::start(|head, _| match field(head, "prefix") {
        Some(_) => page_without_end(head, "data/"),
        None => Reply::s3_error(404, "NoSuchKey", "nothing is here"),
    });
    let there = kept.at(&server);
    let init = Outcome::of(&mut there.init_command(&["--no-encryption".into()]));
    assert!(init.stdout.contains("data/00000000"), "{init}");
    told(
        init,
        exit::CONFLICT,
        "not empty",
        "choose an empty directory",
    );
    let requests = server.requests();
    assert!(requests.len() < OTHERS_MAX, "{} requests", requests.len());
    let mut methods = requests.iter().map(|request| &request.head.method);
    assert!(!methods.any(|method| method == "PUT"), "{requests:?}");
}

/// Whoever took them would take a backup for one that is elsewhere, count one twice, or ask for ever.
#[test]
fn a_listing_that_is_none_ends_a_verb_with_the_request_that_the_server_does_not_keep_to() {
    let kept = Kept::new("s3-disorder", Protection::None);
    let own = format!("{PLACE}/backups/{}", kept.backup);
    let (one, elsewhere) = (entry(&own, 1), entry("elsewhere/backups/x", 1));
    let twice = format!("{one}{one}");
    for (what, entries, next) in [
        ("a name of another place", elsewhere, None),
        ("the same name twice", twice, None),
        ("the same page again", one, Some("again")),
    ] {
        let server = kept
            .listing(move |_, prefix| prefix.ends_with("/backups/").then(|| page(&entries, next)));
        let there = kept.at(&server);
        let mut expire = there.command("expire");
        let expire = Outcome::of(expire.args(["--keep-last", "1", "--confirm", "--json"]));
        for outcome in [there.list(), there.backup(&kept.source), expire] {
            let shown = format!("{what}: {outcome}");
            let error = outcome.error();
            let object = error["object"].as_str().unwrap_or_default();
            assert!(object.contains(&server.endpoint()), "{shown}");
            told(outcome, exit::STORAGE, "out of order", "ListObjectsV2");
        }
        let requests = server.requests();
        let mut heads = requests.iter().map(|request| &request.head);
        let is_lost = |head: &RequestHead| head.method == "DELETE" && !head.path.contains("/tmp/");
        assert!(
            !heads.any(|head| is_lost(head) && !head.path.contains("/sessions/")),
            "{what}: {requests:?}"
        );
    }
}
