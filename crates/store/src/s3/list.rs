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
use crate::key::{Key, TEMPORARY_PART, check_prefix};
use crate::{LIST_LIMIT_MAX, ObjectInfo, Page, STRAYS_MAX, TEMPORARIES_MAX};

/// Names that S3 sends at most in one page.
const PAGE_NAMES_MAX: usize = 1000;
/// Pages in a row that bring next to nothing (a twentieth of what was asked for) and promise more, before a listing
/// counts as endless.
const THIN_PAGES_MAX: usize = 100;
const THIN_SHARE: usize = 20;

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
    /// When the server answered, by its clock.
    pub server_time: Timestamp,
    next: Option<String>,
}

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
    let (mut objects, mut strays) = (Vec::new(), Vec::new());
    // One more than asked for tells whether there are more.
    while objects.len() <= limit {
        let Some(names) = walk
            .next((limit + 1 - objects.len()).min(PAGE_NAMES_MAX))
            .await?
        else {
            break;
        };
        for found in names.objects {
            let Some(name) = found.name.strip_prefix(place) else {
                continue;
            };
            if name.split('/').next() == Some(TEMPORARY_PART) {
                continue;
            }
            match Key::new(name) {
                Ok(key) => objects.push(ObjectInfo {
                    key,
                    bytes: found.bytes,
                }),
                Err(_) if strays.len() < STRAYS_MAX && objects.len() < limit => {
                    strays.push(super::answer::escaped(name));
                }
                Err(_) => {}
            }
        }
    }
    let has_more = objects.len() > limit;
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
            .object(prefix));
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
    thin_pages: usize,
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
            thin_pages: 0,
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
        let names = parse(self.client, &answer)?;
        for found in &names.objects {
            let is_inside = found.name.starts_with(&self.prefix);
            if !is_inside || self.seen.as_ref().is_some_and(|seen| *seen >= found.name) {
                return Err(self.disorder("the store's listing is out of order"));
            }
            self.seen = Some(found.name.clone());
        }
        self.thin_pages = match names.objects.len() * THIN_SHARE < names_max {
            true => self.thin_pages + 1,
            false => 0,
        };
        if self.thin_pages > THIN_PAGES_MAX {
            return Err(self.disorder("the store's listing does not end"));
        }
        self.token.clone_from(&names.next);
        self.is_ended = names.next.is_none();
        Ok(Some(names))
    }

    fn disorder(&self, message: &str) -> Error {
        Error::new(Kind::Storage, message)
            .object(format!("{} at {}", self.client.place.location.url, self.client.place.location.server()))
            .hint("the server, or a proxy before it, does not keep to S3's ListObjectsV2; nothing was changed")
    }
}

fn parse(client: &Client, answer: &Answer) -> Result<Names> {
    let result: ListBucketResult = document(client, answer)?;
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
            .ok_or_else(|| not_s3(&client.place.location, "a listing with an unknown date"))?;
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
                    not_s3(
                        &client.place.location,
                        "a listing that is cut off without a way to go on",
                    )
                })?,
        ),
    };
    Ok(Names {
        objects,
        server_time: server_time(answer),
        next,
    })
}

/// The unfinished uploads whose full names begin with `prefix`, [`TEMPORARIES_MAX`] at most, and the server's time.
pub(super) async fn uploads(client: &Client, prefix: &str) -> Result<(Vec<Unfinished>, Timestamp)> {
    let mut all = Vec::new();
    let mut marker: Option<(String, String)> = None;
    loop {
        let mut request = Request::new(Operation::Multipart, Method::GET, String::new())
            .query("uploads", "")
            .query("prefix", prefix);
        if let Some((name, id)) = &marker {
            request = request
                .query("key-marker", name.clone())
                .query("upload-id-marker", id.clone());
        }
        let answer = client.send_small(&request).await?;
        let result: ListMultipartUploadsResult = document(client, &answer)?;
        for entry in result.upload {
            let begun = Timestamp::parse_rfc3339(&entry.initiated)
                .ok_or_else(|| not_s3(&client.place.location, "a listing with an unknown date"))?;
            all.push(Unfinished {
                name: entry.key,
                id: entry.upload_id,
                begun,
            });
        }
        let now = server_time(&answer);
        let next = (
            result.next_key_marker.unwrap_or_default(),
            result.next_upload_id_marker.unwrap_or_default(),
        );
        if !result.is_truncated || all.len() >= TEMPORARIES_MAX {
            all.truncate(TEMPORARIES_MAX);
            return Ok((all, now));
        }
        if next.0.is_empty() || marker.as_ref() == Some(&next) {
            return Err(not_s3(
                &client.place.location,
                "a listing of uploads that does not go forward",
            ));
        }
        marker = Some(next);
    }
}

/// An answer's document of a known form.
pub(super) fn document<T: DeserializeOwned>(client: &Client, answer: &Answer) -> Result<T> {
    let text = std::str::from_utf8(&answer.body)
        .map_err(|_| not_s3(&client.place.location, "an answer that is not text"))?;
    quick_xml::de::from_str(text).map_err(|error| {
        let said = format!("an answer that is not understood: {error}");
        not_s3(&client.place.location, &super::answer::escaped(&said))
    })
}

/// When the server answered by its own clock; this machine's where it does not say.
fn server_time(answer: &Answer) -> Timestamp {
    answer
        .header("date")
        .and_then(Timestamp::parse_http_date)
        .unwrap_or_else(Timestamp::now)
}
