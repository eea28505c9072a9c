//! Listings: of objects (version 2), and of unfinished uploads.
//!
//! Invariants: a listing is complete or an error: a page that cannot be read, that lies outside what was asked
//! for, or that does not go forward ends it; pages without end are noticed; what the server says is decoded only
//! as it says that it encoded it.

use http::Method;
use mover_base::{Error, Kind, Result, Timestamp};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::answer::{Answer, Operation, not_s3};
use super::client::{Client, Request};
use super::location::Location;
use crate::key::{Key, TEMPORARY_PART, check_prefix};
use crate::{LIST_LIMIT_MAX, ObjectInfo, Page, STRAYS_MAX, TEMPORARIES_MAX};

/// Names that S3 sends at most in one page.
const PAGE_NAMES_MAX: usize = 1000;
/// Pages in a row that bring next to nothing (a twentieth of what was asked for) and promise more, before a listing
/// counts as endless.
const THIN_PAGES_MAX: usize = 100;
const THIN_SHARE: usize = 20;
/// Names that no object of a repository can have, or that are temporary or folders, of which a page of its objects passes over so
/// many.
const FOREIGN_NAMES_MAX: usize = 1_000_000;

/// Counts the pages of a listing that bring next to nothing and promise more.
#[derive(Debug, Default)]
pub(super) struct ThinPages(usize);

impl ThinPages {
    /// Whether so many came in a row, with one that brought `brought` of `asked` entries, that the listing counts as endless.
    pub fn are_too_many(&mut self, brought: usize, asked: usize) -> bool {
        self.0 = match brought * THIN_SHARE < asked {
            true => self.0 + 1,
            false => 0,
        };
        self.0 > THIN_PAGES_MAX
    }
}

/// An object as a listing shows it.
#[derive(Debug)]
pub(super) struct Found {
    /// The full name, prefix included.
    pub name: String,
    pub bytes: u64,
    pub modified: Timestamp,
}

/// One answer of the server.
pub(super) struct Names {
    pub objects: Vec<Found>,
    next: Option<String>,
}

/// Where the next page of a listing of uploads begins: behind this name and id.
type Marker = (String, String);

/// An unfinished multipart upload.
#[derive(Debug)]
pub(super) struct Unfinished {
    pub name: String,
    pub id: String,
    pub begun: Timestamp,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListBucketResult {
    is_truncated: bool,
    #[serde(default)]
    next_continuation_token: Option<String>,
    #[serde(default)]
    encoding_type: Option<String>,
    #[serde(default)]
    contents: Vec<Contents>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Contents {
    key: String,
    size: u64,
    last_modified: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListMultipartUploadsResult {
    is_truncated: bool,
    #[serde(default)]
    next_key_marker: Option<String>,
    #[serde(default)]
    next_upload_id_marker: Option<String>,
    #[serde(default)]
    upload: Vec<UploadEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UploadEntry {
    key: String,
    upload_id: String,
    initiated: String,
}

/// What a listing brought.
#[derive(Default)]
struct Gathered {
    objects: Vec<ObjectInfo>,
    /// Names that no object of a repository can have, before the last of the objects that are wanted, and behind it.
    strays: Vec<String>,
    behind: Vec<String>,
    /// How many names were passed over: these, temporary ones, and folders.
    foreign: usize,
}

impl Gathered {
    /// Takes in a name, where so many objects are wanted.
    fn take(&mut self, name: &str, bytes: u64, limit: usize) {
        if is_folder(name, bytes) || name.split('/').next() == Some(TEMPORARY_PART) {
            self.foreign += 1;
            return;
        }
        if let Ok(key) = Key::new(name) {
            self.objects.push(ObjectInfo { key, bytes });
            return;
        }
        self.foreign += 1;
        // Those behind the last object are of this page if it is the last, and of the next otherwise.
        let list = match self.objects.len() < limit {
            true => &mut self.strays,
            false => &mut self.behind,
        };
        if list.len() < STRAYS_MAX {
            list.push(super::answer::escaped(name));
        }
    }
}

/// Whether an object only stands for a folder, as consoles and mounts make them: it is passed over as an empty directory is. That of
/// the whole place has no name below it.
fn is_folder(name: &str, bytes: u64) -> bool {
    bytes == 0 && (name.is_empty() || name.ends_with('/'))
}

/// A page of the repository's objects; see [`crate::Store::list`].
pub(super) async fn list(
    client: &Client,
    prefix: &str,
    after: Option<&Key>,
    limit: usize,
) -> Result<Page> {
    check_prefix(prefix)?;
    if limit == 0 {
        return Err(Error::new(
            Kind::Internal,
            "a listing of no objects was asked for",
        ));
    }
    let limit = limit.min(LIST_LIMIT_MAX);
    let place = &client.place.location.prefix;
    let mut walk = Walk::new(
        client,
        format!("{place}{prefix}"),
        after.map(|after| format!("{place}{after}")),
    );
    let mut found = Gathered::default();
    // One more than asked for tells whether there are more.
    while found.objects.len() <= limit {
        // Among names that are passed over, pages of the few that are wanted would take as many requests.
        let names_max = match found.foreign {
            0 => (limit + 1 - found.objects.len()).min(PAGE_NAMES_MAX),
            _ => PAGE_NAMES_MAX,
        };
        let Some(names) = walk.next(names_max).await? else {
            break;
        };
        for one in names.objects {
            if let Some(name) = one.name.strip_prefix(place) {
                found.take(name, one.bytes, limit);
            }
        }
        if found.foreign > FOREIGN_NAMES_MAX {
            let message = format!(
                "over {FOREIGN_NAMES_MAX} names in a row are temporary or none of a repository's"
            );
            return Err(Error::new(Kind::Limit, message)
                .object(walk.prefix)
                .hint("delete those below tmp/ while no job runs, and move others out of the repository; if there are none, the server, or a proxy before it, lists what is not there"));
        }
    }
    let Gathered {
        mut objects,
        mut strays,
        mut behind,
        ..
    } = found;
    let has_more = objects.len() > limit;
    if !has_more {
        strays.append(&mut behind);
        strays.truncate(STRAYS_MAX);
    }
    objects.truncate(limit);
    let next = objects
        .last()
        .filter(|_| has_more)
        .map(|object| object.key.clone());
    Ok(Page {
        objects,
        strays,
        next,
    })
}

/// All objects whose full names begin with `prefix`, [`LIST_LIMIT_MAX`] at most.
pub(super) async fn all(client: &Client, prefix: &str) -> Result<Names> {
    let mut walk = Walk::new(client, prefix.to_owned(), None);
    let mut all: Option<Names> = None;
    while let Some(names) = walk.next(PAGE_NAMES_MAX).await? {
        match &mut all {
            Some(all) => all.objects.extend(names.objects),
            None => all = Some(names),
        }
        if all
            .as_ref()
            .is_some_and(|all| all.objects.len() > LIST_LIMIT_MAX)
        {
            return Err(Error::new(
                Kind::Limit,
                format!("more than {LIST_LIMIT_MAX} temporary objects"),
            )
            .object(prefix)
            .hint("delete them by other means while no job runs; if there are none, the server, or a proxy before it, lists what is not there"));
        }
    }
    all.ok_or_else(|| Error::new(Kind::Internal, "a listing brought no page"))
}

/// A listing, page by page.
struct Walk<'a> {
    client: &'a Client,
    prefix: String,
    /// Names up to this one were seen.
    seen: Option<String>,
    start_after: Option<String>,
    token: Option<String>,
    is_ended: bool,
    thin_pages: ThinPages,
}

impl<'a> Walk<'a> {
    fn new(client: &'a Client, prefix: String, after: Option<String>) -> Self {
        // Some servers answer a start before the prefix with nothing.
        let after = after.filter(|after| *after >= prefix);
        Walk {
            client,
            prefix,
            seen: after.clone(),
            start_after: after,
            token: None,
            is_ended: false,
            thin_pages: ThinPages::default(),
        }
    }

    /// The next page, of `names_max` names at most, or `None` after the last.
    async fn next(&mut self, names_max: usize) -> Result<Option<Names>> {
        if self.is_ended {
            return Ok(None);
        }
        let mut request = Request::new(Operation::List, Method::GET, String::new())
            .query("list-type", "2")
            .query("prefix", self.prefix.clone())
            .query("max-keys", names_max.to_string())
            .query("encoding-type", "url");
        match (&self.token, &self.start_after) {
            (Some(token), _) => request = request.query("continuation-token", token.clone()),
            (None, Some(after)) => request = request.query("start-after", after.clone()),
            (None, None) => {}
        }
        let answer = self.client.send_small(&request).await?;
        let names = parse(&self.client.place.location, &answer)?;
        for found in &names.objects {
            let is_inside = found.name.starts_with(&self.prefix);
            if !is_inside || self.seen.as_ref().is_some_and(|seen| *seen >= found.name) {
                return Err(self.disorder("the store's listing is out of order"));
            }
            self.seen = Some(found.name.clone());
        }
        if self.thin_pages.are_too_many(names.objects.len(), names_max) {
            return Err(self.disorder("the store's listing does not end"));
        }
        self.token.clone_from(&names.next);
        self.is_ended = names.next.is_none();
        Ok(Some(names))
    }

    fn disorder(&self, message: &str) -> Error {
        disorder(&self.client.place.location, message, "ListObjectsV2")
    }
}

/// The error for a listing that cannot be one: `request` is what S3 calls it.
pub(super) fn disorder(location: &Location, message: &str, request: &str) -> Error {
    Error::new(Kind::Storage, message)
        .object(format!("{} at {}", location.url, location.server()))
        .hint(format!(
            "the server, or a proxy before it, does not keep to S3's {request}; nothing was changed"
        ))
}

/// A page of a listing of objects.
pub(super) fn parse(location: &Location, answer: &Answer) -> Result<Names> {
    let result: ListBucketResult = document(location, answer)?;
    let is_encoded = result
        .encoding_type
        .is_some_and(|encoding| encoding.eq_ignore_ascii_case("url"));
    let decoded = |name: String| match is_encoded {
        // A name that is not UTF-8 is none of ours, and stays one that no key can have.
        true => percent_decode_str(&name.replace('+', " "))
            .decode_utf8_lossy()
            .into_owned(),
        false => name,
    };
    let mut objects = Vec::with_capacity(result.contents.len().min(PAGE_NAMES_MAX));
    for entry in result.contents {
        let modified = Timestamp::parse_rfc3339(&entry.last_modified)
            .ok_or_else(|| not_s3(location, "a listing with an unknown date"))?;
        objects.push(Found {
            name: decoded(entry.key),
            bytes: entry.size,
            modified,
        });
    }
    let next = match result.is_truncated {
        false => None,
        true => Some(
            result
                .next_continuation_token
                .filter(|token| !token.is_empty())
                .ok_or_else(|| {
                    not_s3(location, "a listing that is cut off without a way to go on")
                })?,
        ),
    };
    Ok(Names { objects, next })
}

/// A page of a listing of unfinished uploads: those, and where the next page begins, if it says that there is one.
pub(super) fn parse_uploads(
    location: &Location,
    answer: &Answer,
) -> Result<(Vec<Unfinished>, Option<Marker>)> {
    let result: ListMultipartUploadsResult = document(location, answer)?;
    let mut uploads = Vec::with_capacity(result.upload.len().min(PAGE_NAMES_MAX));
    for entry in result.upload {
        let begun = Timestamp::parse_rfc3339(&entry.initiated)
            .ok_or_else(|| not_s3(location, "a listing with an unknown date"))?;
        uploads.push(Unfinished {
            name: entry.key,
            id: entry.upload_id,
            begun,
        });
    }
    let next = (
        result.next_key_marker.unwrap_or_default(),
        result.next_upload_id_marker.unwrap_or_default(),
    );
    Ok((uploads, result.is_truncated.then_some(next)))
}

/// The unfinished uploads whose full names begin with `prefix`, `TEMPORARIES_MAX` at most, and the server's time.
pub(super) async fn uploads(client: &Client, prefix: &str) -> Result<(Vec<Unfinished>, Timestamp)> {
    let location = &client.place.location;
    let disorder = |message| disorder(location, message, "ListMultipartUploads");
    let mut all = Vec::new();
    let mut marker: Option<Marker> = None;
    let mut thin_pages = ThinPages::default();
    loop {
        let mut request = Request::new(Operation::Uploads, Method::GET, String::new())
            .query("uploads", "")
            .query("prefix", prefix);
        if let Some((name, id)) = &marker {
            request = request
                .query("key-marker", name.clone())
                .query("upload-id-marker", id.clone());
        }
        let answer = client.send_small(&request).await?;
        let (uploads, next) = parse_uploads(location, &answer)?;
        // The server sends as many as it can, since it was not told how many.
        let is_endless = thin_pages.are_too_many(uploads.len(), PAGE_NAMES_MAX);
        all.extend(uploads);
        let now = server_time(&answer);
        let Some(next) = next.filter(|_| all.len() < TEMPORARIES_MAX) else {
            all.truncate(TEMPORARIES_MAX);
            return Ok((all, now));
        };
        if next.0.is_empty() || marker.as_ref() == Some(&next) {
            return Err(disorder(
                "the store's listing of uploads does not go forward",
            ));
        }
        if is_endless {
            return Err(disorder("the store's listing of uploads does not end"));
        }
        marker = Some(next);
    }
}

/// An answer's document of a known form. What is told of two kinds may come mixed, as by servers that answer in the order of
/// what was asked.
pub(super) fn document<T: DeserializeOwned>(location: &Location, answer: &Answer) -> Result<T> {
    let text = std::str::from_utf8(&answer.body)
        .map_err(|_| not_s3(location, "an answer that is not text"))?;
    quick_xml::de::from_str(text).map_err(|error| {
        let said = format!("an answer that is not understood: {error}");
        not_s3(location, &super::answer::escaped(&said))
    })
}

/// When the server answered by its own clock; this machine's where it does not say.
fn server_time(answer: &Answer) -> Timestamp {
    answer.server_time().unwrap_or_else(Timestamp::now)
}
