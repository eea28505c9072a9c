//! What every S3 server here must do, and races of writers whose outcome differs between servers.

use std::sync::Barrier;
use std::thread;

use mover_test_servers::{Client, Reply};

/// The smallest part that all servers take when it is not the last.
pub const PART: usize = 5 * 1024 * 1024;

pub fn objects_can_be_stored_listed_and_deleted(client: &Client) {
    let keys = ["list/a", "list/b/c", "list/d", "list/e f"];
    for (i, key) in keys.iter().enumerate() {
        let put = client.put(key, &vec![7; i]).expect("a reply");
        assert_eq!(put.status, 200, "{}", put.text());
        let etag = put.header("etag").expect("an ETag");
        assert!(etag.starts_with('"') && etag.len() == 34, "{etag}");
    }
    let (listed, pages) = client.list("list/", 3).expect("a listing");
    let found: Vec<(&str, u64)> = listed
        .iter()
        .map(|object| (object.key.as_str(), object.bytes))
        .collect();
    assert_eq!(
        found,
        [
            ("list/a", 0),
            ("list/b/c", 1),
            ("list/d", 2),
            ("list/e f", 3)
        ]
    );
    assert_eq!(pages, 2);

    let whole: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
    client.put("ranges", &whole).expect("a reply");
    assert_eq!(client.get("ranges").expect("a reply").body, whole);
    let part = client
        .get_with("ranges", &[("range", "bytes=100-199")])
        .expect("a reply");
    assert_eq!(
        (part.status, part.header("content-range")),
        (206, Some("bytes 100-199/200000"))
    );
    assert_eq!(part.body, whole[100..200]);
    let past = client
        .get_with("ranges", &[("range", "bytes=200000-")])
        .expect("a reply");
    assert_eq!(
        (past.status, past.code().as_deref()),
        (416, Some("InvalidRange"))
    );
    let head = client.head("ranges").expect("a reply");
    assert_eq!(
        (head.status, head.header("content-length")),
        (200, Some("200000"))
    );

    assert_eq!(client.delete("ranges").expect("a reply").status, 204);
    assert_eq!(
        client.delete("ranges").expect("a reply").status,
        204,
        "once more"
    );
    let gone = client.get("ranges").expect("a reply");
    assert_eq!(
        (gone.status, gone.code().as_deref()),
        (404, Some("NoSuchKey"))
    );
    assert_eq!(client.head("ranges").expect("a reply").status, 404);
}

pub fn objects_can_be_put_together_of_parts(client: &Client) {
    let upload = client.create_upload("parts").expect("an upload");
    let part = |number: u16, bytes: &[u8]| {
        let put = client
            .put_part("parts", &upload, number, bytes)
            .expect("a reply");
        assert_eq!(put.status, 200, "{}", put.text());
        put.header("etag").expect("an ETag").to_owned()
    };
    let (first, second) = (vec![1; PART], vec![2; 10]);
    // The later upload of a part replaces the earlier.
    let _ = part(1, &second);
    let etags = [part(1, &first), part(2, &second)];
    let etags: Vec<&str> = etags.iter().map(String::as_str).collect();
    assert_eq!(
        client.get("parts").expect("a reply").status,
        404,
        "not before it is complete"
    );
    let done = client
        .complete("parts", &upload, &etags, false)
        .expect("a reply");
    assert_eq!(done.status, 200, "{}", done.text());
    assert!(
        done.tag("ETag").expect("an ETag").contains("-2"),
        "{}",
        done.text()
    );
    assert_eq!(
        client.get("parts").expect("a reply").body,
        [first, second].concat()
    );

    let upload = client.create_upload("given-up").expect("an upload");
    client
        .put_part("given-up", &upload, 1, b"x")
        .expect("a reply");
    assert_eq!(
        client.abort("given-up", &upload).expect("a reply").status,
        204
    );
    assert_eq!(client.get("given-up").expect("a reply").status, 404);
}

/// Lets several writers create the same object at the same time; returns how many were told that they did.
pub fn race(client: &Client, key: &str, writers: usize) -> usize {
    let body = |writer: usize| vec![writer as u8; 300_000];
    let replies = at_once(writers, |writer| {
        client.put_if_absent(key, &body(writer)).expect("a reply")
    });
    let winners = winners(&replies);
    let stored = client.get(key).expect("a reply").body;
    assert!(
        winners.iter().any(|writer| stored == body(*writer)),
        "a winner's object is stored"
    );
    winners.len()
}

/// The same with uploads in parts.
pub fn race_of_uploads(client: &Client, key: &str, writers: usize) -> usize {
    let uploads: Vec<(String, String)> = (0..writers)
        .map(|writer| {
            let upload = client.create_upload(key).expect("an upload");
            let part = client
                .put_part(key, &upload, 1, &[writer as u8; 10])
                .expect("a reply");
            (upload, part.header("etag").expect("an ETag").to_owned())
        })
        .collect();
    let replies = at_once(writers, |writer| {
        let (upload, etag) = &uploads[writer];
        client
            .complete(key, upload, &[etag], true)
            .expect("a reply")
    });
    winners(&replies).len()
}

fn at_once(writers: usize, write: impl Fn(usize) -> Reply + Sync) -> Vec<Reply> {
    let start = Barrier::new(writers);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..writers)
            .map(|writer| {
                let (start, write) = (&start, &write);
                scope.spawn(move || {
                    start.wait();
                    write(writer)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    })
}

fn winners(replies: &[Reply]) -> Vec<usize> {
    for reply in replies {
        // Garage answers 404 to a writer whose upload another one ended.
        assert!(
            matches!(reply.status, 200 | 404 | 412),
            "{}: {}",
            reply.status,
            reply.text()
        );
    }
    (0..replies.len())
        .filter(|writer| replies[*writer].status == 200)
        .collect()
}
