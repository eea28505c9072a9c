//! Garage: that it starts, keeps its data over a kill, obeys permissions; and what a driver must know of it.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

mod promises;

use mover_test_servers::{Access, Garage, GarageCluster};
use tempfile::TempDir;

fn garage() -> (TempDir, Garage) {
    let dir = TempDir::new().expect("a temporary directory");
    let server = Garage::start(dir.path());
    (dir, server)
}

#[test]
fn it_stores_lists_and_deletes() {
    let (_dir, server) = garage();
    promises::objects_can_be_stored_listed_and_deleted(&server.access().client());
    promises::objects_can_be_put_together_of_parts(&server.access().client());
}

#[test]
fn it_keeps_data_and_address_over_a_kill() {
    let (_dir, server) = garage();
    let client = server.access().client();
    client.put("k", b"kept").expect("a reply");
    server.kill();
    client.get("k").expect_err("nobody listens");
    server.restart();
    assert_eq!(client.get("k").expect("a reply").body, b"kept");
}

#[test]
fn keys_may_do_what_they_are_allowed() {
    let (_dir, server) = garage();
    server.access().client().put("k", b"x").expect("a reply");

    let access = server.access();
    let reader = access.with_key(server.read_only_key()).client();
    assert_eq!(reader.get("k").expect("a reply").body, b"x");
    let refused = reader.put("k", b"y").expect("a reply");
    assert_eq!(
        (refused.status, refused.code().as_deref()),
        (403, Some("AccessDenied"))
    );

    let absent = access.in_bucket("absent").client();
    let refused = absent.put("k", b"y").expect("a reply");
    assert_eq!(
        (refused.status, refused.code().as_deref()),
        (404, Some("NoSuchBucket"))
    );
    let elsewhere = Access {
        region: "elsewhere".to_owned(),
        ..access.clone()
    };
    let refused = elsewhere.client().put("k", b"y").expect("a reply");
    assert_eq!(
        (refused.status, refused.code().as_deref()),
        (400, Some("AuthorizationHeaderMalformed"))
    );
    assert_eq!(refused.tag("Region").as_deref(), Some("garage"));
}

#[test]
fn conditions_are_ignored() {
    let (_dir, server) = garage();
    let client = server.access().client();
    assert_eq!(
        client.put_if_absent("k", b"first").expect("a reply").status,
        200
    );
    assert_eq!(
        client
            .put_if_absent("k", b"second")
            .expect("a reply")
            .status,
        200
    );
    assert_eq!(client.get("k").expect("a reply").body, b"second");
    assert_eq!(promises::race(&client, "race", 8), 8);
    // Some uploads may be ended by others, see below; none by the condition.
    assert!(promises::race_of_uploads(&client, "upload", 4) >= 1);
    let upload = client.create_upload("k").expect("an upload");
    let part = client.put_part("k", &upload, 1, b"third").expect("a reply");
    let etag = part.header("etag").expect("an ETag");
    let done = client
        .complete("k", &upload, &[etag], true)
        .expect("a reply");
    assert_eq!(done.status, 200, "{}", done.text());
    assert_eq!(client.get("k").expect("a reply").body, b"third");
}

#[test]
fn parts_may_be_small_and_must_be_those_that_were_uploaded() {
    let (_dir, server) = garage();
    let client = server.access().client();
    let upload = client.create_upload("k").expect("an upload");
    let etag = |number, body: &[u8]| {
        let put = client
            .put_part("k", &upload, number, body)
            .expect("a reply");
        put.header("etag").expect("an ETag").to_owned()
    };
    let (first, second) = (etag(1, b"one"), etag(2, b"two"));
    let wrong = client
        .complete("k", &upload, &[&second, &first], false)
        .expect("a reply");
    assert_eq!(
        (wrong.status, wrong.code().as_deref()),
        (400, Some("InvalidPart"))
    );
    let done = client
        .complete("k", &upload, &[&first, &second], false)
        .expect("a reply");
    assert_eq!(done.status, 200, "{}", done.text());
    assert_eq!(client.get("k").expect("a reply").body, b"onetwo");
    let again = client
        .complete("k", &upload, &[&first, &second], false)
        .expect("a reply");
    assert_eq!(
        (again.status, again.code().as_deref()),
        (404, Some("NoSuchUpload"))
    );
}

#[test]
fn checksums_are_checked() {
    let (_dir, server) = garage();
    let client = server.access().client();
    // Of `123456789`; the values are the published check values of the algorithms.
    for (name, right) in [
        ("x-amz-checksum-crc32", "y/Q5Jg=="),
        ("x-amz-checksum-crc32c", "4waSgw=="),
        (
            "x-amz-checksum-sha256",
            "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=",
        ),
    ] {
        let put = client
            .put_with("k", b"123456789", &[(name, right)])
            .expect("a reply");
        assert_eq!(
            (put.status, put.header(name)),
            (200, Some(right)),
            "{}",
            put.text()
        );
        let put = client
            .put_with("k", b"12345678", &[(name, right)])
            .expect("a reply");
        assert_eq!(
            (put.status, put.code().as_deref()),
            (400, Some("InvalidDigest")),
            "{name}"
        );
    }
}

#[test]
fn what_is_completed_ends_uploads_that_began_earlier() {
    let (_dir, server) = garage();
    let client = server.access().client();
    let upload = |key| {
        let upload = client.create_upload(key).expect("an upload");
        let part = client.put_part(key, &upload, 1, b"part").expect("a reply");
        (upload, part.header("etag").expect("an ETag").to_owned())
    };
    let complete = |key, (upload, etag): &(String, String)| {
        client
            .complete(key, upload, &[etag], false)
            .expect("a reply")
    };
    let (first, second) = (upload("k"), upload("k"));
    assert_eq!(complete("k", &second).status, 200);
    let late = complete("k", &first);
    assert_eq!(
        (late.status, late.code().as_deref()),
        (404, Some("NoSuchUpload"))
    );

    let early = upload("l");
    assert_eq!(client.put("l", b"whole").expect("a reply").status, 200);
    let late = complete("l", &early);
    assert_eq!(
        (late.status, late.code().as_deref()),
        (404, Some("NoSuchUpload"))
    );

    let (first, second) = (upload("m"), upload("m"));
    assert_eq!(complete("m", &first).status, 200);
    assert_eq!(
        complete("m", &second).status,
        200,
        "that which began later replaces"
    );
}

#[test]
fn a_cluster_works_on_without_one_of_its_nodes() {
    let dir = TempDir::new().expect("a temporary directory");
    let cluster = GarageCluster::start(dir.path());
    cluster
        .access(0)
        .client()
        .put("k", &[3; 100_000])
        .expect("a reply");
    assert_eq!(
        cluster.access(1).client().get("k").expect("a reply").body,
        [3; 100_000]
    );
    cluster.kill(2);
    assert_eq!(
        cluster
            .access(0)
            .client()
            .put("l", b"two of three")
            .expect("a reply")
            .status,
        200
    );
    assert_eq!(
        cluster.access(1).client().get("l").expect("a reply").body,
        b"two of three"
    );
    cluster.kill(1);
    let alone = cluster
        .access(0)
        .client()
        .put("m", b"one of three")
        .expect("a reply");
    assert_eq!(alone.status, 503, "{}", alone.text());
    cluster.restart(1);
    cluster.restart(2);
    assert_eq!(
        cluster.access(2).client().get("l").expect("a reply").body,
        b"two of three"
    );
}
