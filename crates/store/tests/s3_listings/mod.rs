//! Listings that no server of S3 gives: out of order, of names outside of what was asked for, of the same name or the same page
//! twice, and without end where only few names were asked for. None of it is taken for a listing.
//!
//! Invariant: each server comes to an end by itself, some time after the driver should have given up, so that a driver that
//! does not is told from one that does.

use std::sync::atomic::{AtomicUsize, Ordering};

use mover_base::{Error, Kind, Result};
use mover_io::Shard;
use mover_store::Store;
use mover_test_servers::{Reply, RequestHead, Scripted};

use crate::asked;
use crate::conformance::key;

/// Pages after which a server says that there are no more.
const PAGES_END: usize = 3000;
/// Requests after which a listing of pages that bring nothing counts as endless.
const THIN_PAGES_MAX: usize = 101;
/// Requests that a million names take, and some.
const FULL_PAGES_MAX: usize = 1100;

/// A page of these names, and the token of the next, if there is one.
fn page<N: AsRef<str>>(names: impl IntoIterator<Item = N>, next: Option<&str>) -> Reply {
    let mut text = format!(
        "<ListBucketResult><IsTruncated>{}</IsTruncated>",
        next.is_some()
    );
    if let Some(next) = next {
        text.push_str(&format!(
            "<NextContinuationToken>{next}</NextContinuationToken>"
        ));
    }
    for name in names {
        text.push_str(&format!(
            "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00Z</LastModified><Size>0</Size></Contents>",
            name.as_ref()
        ));
    }
    Reply::new(200, text + "</ListBucketResult>").with("content-type", "application/xml")
}

/// A server that answers with one page of names after the other, by whatever token it is asked, and then that there are no more.
fn pages(all: &'static [&'static [&'static str]], token: &'static str) -> Scripted {
    let asked = AtomicUsize::new(0);
    Scripted::start(move |_, _| {
        let at = asked.fetch_add(1, Ordering::Relaxed);
        let names = all.get(at).copied().unwrap_or_default();
        page(names, (at + 1 < all.len()).then_some(token))
    })
}

/// A server whose pages are as full as they were asked for, of `stem` and a number.
fn full_pages(stem: &'static str) -> Scripted {
    let (asked, given) = (AtomicUsize::new(0), AtomicUsize::new(0));
    Scripted::start(move |head, _| {
        if asks_for_uploads(head) {
            return Reply::new(
                200,
                "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>",
            );
        }
        let wanted = head
            .query
            .split('&')
            .find_map(|pair| pair.strip_prefix("max-keys="));
        let wanted: usize = wanted.and_then(|max| max.parse().ok()).expect("a number");
        let first = given.fetch_add(wanted, Ordering::Relaxed);
        let names = (first..first + wanted).map(|at| format!("{stem}{at:012}"));
        let has_more = asked.fetch_add(1, Ordering::Relaxed) < PAGES_END;
        page(names, has_more.then_some("more"))
    })
}

fn asks_for_uploads(head: &RequestHead) -> bool {
    head.query
        .split('&')
        .any(|pair| pair.starts_with("uploads"))
}

/// Lists what is below `o/`.
async fn list_below(store: &Store, shard: &Shard) -> Result<()> {
    store.list(shard, "o/", None, 10_000).await.map(|_| ())
}

/// Lists what is below `o/` and behind `o/2`.
async fn list_behind(store: &Store, shard: &Shard) -> Result<()> {
    let after = key("o/2");
    let listed = store.list(shard, "o/", Some(&after), 10_000).await;
    listed.map(|_| ())
}

/// Looks whether there is anything, as `init` does.
async fn look(store: &Store, shard: &Shard) -> Result<()> {
    store.list(shard, "", None, 1).await.map(|_| ())
}

/// Lists what killed jobs left.
async fn leftovers(store: &Store, shard: &Shard) -> Result<()> {
    store.stale_temporaries(shard, |_| true).await.map(|_| ())
}

#[track_caller]
fn is_disorder(error: &Error, what: &str, part: &str) {
    assert_eq!(error.kind(), Kind::Storage, "{what}: {error}");
    assert!(error.to_string().contains(part), "{what}: {error}");
    let hint = error.hint_text().expect("a hint");
    assert!(hint.contains("ListObjectsV2"), "{what}: {hint}");
}

#[test]
fn a_listing_of_names_outside_of_what_was_asked_for_is_an_error() {
    let all: [&'static [&'static [&'static str]]; 4] =
        [&[&["a/1"]], &[&["o"]], &[&["o/1", "p/2"]], &[&["O/1"]]];
    for names in all {
        let server = pages(names, "t");
        is_disorder(
            &asked(&server, list_below),
            &format!("{names:?}"),
            "out of order",
        );
        assert_eq!(server.requests().len(), 1, "{names:?}");
    }
}

#[test]
fn a_listing_with_the_same_name_twice_is_an_error() {
    let all: [&'static [&'static [&'static str]]; 4] = [
        &[&["o/1", "o/1"]],
        &[&["o/1", "o/2", "o/1"]],
        &[&["o/1", "o/2"], &["o/2", "o/3"]],
        &[&["o/2"], &["o/1"]],
    ];
    for names in all {
        let server = pages(names, "t");
        is_disorder(
            &asked(&server, list_below),
            &format!("{names:?}"),
            "out of order",
        );
        assert_eq!(server.requests().len(), names.len(), "{names:?}");
    }
}

/// It does not know where to begin, or was not told by a proxy.
#[test]
fn a_listing_that_begins_before_what_was_asked_for_is_an_error() {
    let server = pages(&[&["o/1", "o/2", "o/3"]], "t");
    is_disorder(&asked(&server, list_behind), "before", "out of order");
    let server = pages(&[&["o/2", "o/3"]], "t");
    is_disorder(
        &asked(&server, list_behind),
        "the last again",
        "out of order",
    );
}

#[test]
fn a_listing_whose_token_comes_again_with_the_same_page_is_an_error() {
    let again = Scripted::start(|_, _| page(["o/1", "o/2"], Some("again")));
    is_disorder(&asked(&again, list_below), "the same page", "out of order");
    let tokens: Vec<bool> = again
        .requests()
        .iter()
        .map(|request| request.head.query.contains("continuation-token=again"))
        .collect();
    assert_eq!(tokens, [false, true]);
}

#[test]
fn a_listing_whose_token_comes_again_and_brings_nothing_is_an_error() {
    for of_leftovers in [false, true] {
        let asked_for = AtomicUsize::new(0);
        let again = Scripted::start(move |head, _| {
            if asks_for_uploads(head) {
                return Reply::new(
                    200,
                    "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>",
                );
            }
            let has_more = asked_for.fetch_add(1, Ordering::Relaxed) < PAGES_END;
            page([""; 0], has_more.then_some("again"))
        });
        let error = match of_leftovers {
            false => asked(&again, list_below),
            true => asked(&again, leftovers),
        };
        is_disorder(&error, "nothing", "does not end");
        let requests = again.requests();
        let lists = requests
            .iter()
            .filter(|request| !asks_for_uploads(&request.head));
        assert!(lists.count() <= THIN_PAGES_MAX, "{}", requests.len());
    }
}

#[test]
fn a_listing_that_goes_on_and_does_not_say_where_is_an_error() {
    let cut = Scripted::start(|_, _| {
        Reply::new(
            200,
            "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
        )
    });
    let error = asked(&cut, list_below);
    assert_eq!(error.kind(), Kind::Storage, "{error}");
    assert!(
        error.to_string().contains("without a way to go on"),
        "{error}"
    );
    assert_eq!(cut.requests().len(), 1);
}

#[test]
fn temporary_objects_without_end_are_an_error_that_names_where_they_are() {
    let endless = full_pages("tmp/probe-");
    let error = asked(&endless, leftovers);
    assert_eq!(error.kind(), Kind::Limit, "{error}");
    assert_eq!(error.message(), "more than 10000 temporary objects");
    assert_eq!(error.object_name(), Some("tmp/"));
    assert!(
        error
            .hint_text()
            .is_some_and(|hint| hint.contains("delete them"))
    );
    // One for uploads, and pages of a thousand.
    assert!(
        endless.requests().len() <= 12,
        "{}",
        endless.requests().len()
    );
}

/// Whoever looks whether anything is there asks for two names. By pages of two, a bucket of others' objects takes hours.
#[test]
fn names_of_others_and_temporary_ones_without_end_are_an_error_also_where_one_name_was_asked_for() {
    for stem in ["IMG_", "tmp/probe-"] {
        let endless = full_pages(stem);
        let error = asked(&endless, look);
        assert_eq!(error.kind(), Kind::Limit, "{stem}: {error}");
        assert_eq!(
            error.message(),
            "over 1000000 names in a row are temporary or none of a repository's",
            "{stem}"
        );
        let hint = error.hint_text().expect("a hint");
        for part in ["delete those below tmp/", "move others out"] {
            assert!(hint.contains(part), "{stem}: {hint}");
        }
        let requests = endless.requests().len();
        assert!(requests < FULL_PAGES_MAX, "{stem}: {requests} requests");
    }
}
