//! The S3 server in the test's process: that it stores, checks signatures, speaks TLS, and treats conditions in each
//! of the ways that it offers; and what else a driver meets in it.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

mod promises;

use std::fs;

use mover_test_servers::{Access, AccessKey, Conditions, FilesystemOptions, FilesystemS3, Tls};
use tempfile::TempDir;

fn with(conditions: Conditions) -> (TempDir, FilesystemS3) {
    let dir = TempDir::new().expect("a temporary directory");
    let options = FilesystemOptions {
        conditions,
        ..FilesystemOptions::default()
    };
    let server = FilesystemS3::start_with(dir.path(), options);
    (dir, server)
}

#[test]
fn it_stores_lists_and_deletes() {
    let (_dir, server) = with(Conditions::Atomic);
    promises::objects_can_be_stored_listed_and_deleted(&server.access().client());
    promises::objects_can_be_put_together_of_parts(&server.access().client());
}

#[test]
fn objects_are_files_that_a_test_may_damage() {
    let (_dir, server) = with(Conditions::Atomic);
    server
        .access()
        .client()
        .put("a/b", b"whole")
        .expect("a reply");
    let path = server.objects().join("a/b");
    assert_eq!(fs::read(&path).expect("the object's file"), b"whole");
    fs::write(&path, b"hole").expect("the object's file");
    assert_eq!(
        server.access().client().get("a/b").expect("a reply").body,
        b"hole"
    );
}

#[test]
fn what_is_signed_by_another_is_refused() {
    let (_dir, server) = with(Conditions::Atomic);
    let access = server.access();
    let stranger = |id, secret| access.with_key(AccessKey::new(id, secret)).client();
    let wrong = stranger(&access.key.id, "wrong");
    let wrong = wrong.put("k", b"x").expect("a reply");
    assert_eq!(
        (wrong.status, wrong.code().as_deref()),
        (403, Some("SignatureDoesNotMatch"))
    );
    let unknown = stranger("NOBODY", "wrong").put("k", b"x").expect("a reply");
    assert_eq!(unknown.status, 403, "{}", unknown.text());
}

#[test]
fn whose_token_is_not_the_one_demanded_is_expired() {
    let (_dir, server) = with(Conditions::Atomic);
    server.demand_token("fresh");
    let client = server.access().client();
    // Not at all, a wrong one, and the right one outside of the signature.
    for headers in [
        &[][..],
        &[("x-amz-security-token", "stale")],
        &[("x-amz-security-token", "fresh")],
    ] {
        let refused = client.put_with("k", b"x", headers).expect("a reply");
        assert_eq!(
            (refused.status, refused.code().as_deref()),
            (400, Some("ExpiredToken")),
            "{headers:?}"
        );
    }
}

#[test]
fn over_tls_it_is_trusted_through_its_own_authority_only() {
    let (dir, other) = (
        TempDir::new().expect("a directory"),
        TempDir::new().expect("a directory"),
    );
    let options = FilesystemOptions {
        tls: Tls::Signed,
        ..FilesystemOptions::default()
    };
    let server = FilesystemS3::start_with(dir.path(), options);
    let stranger = FilesystemS3::start_with(other.path(), options);
    assert!(server.access().endpoint.starts_with("https://127.0.0.1:"));
    promises::objects_can_be_stored_listed_and_deleted(&server.access().client());

    let deceived = Access {
        ca_file: stranger.access().ca_file.clone(),
        ..server.access().clone()
    };
    let error = deceived
        .client()
        .get("k")
        .expect_err("another authority's certificate");
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[test]
fn with_atomic_conditions_one_of_many_writers_wins() {
    let (_dir, server) = with(Conditions::Atomic);
    let client = server.access().client();
    for round in 0..20 {
        let wins = promises::race(&client, &format!("race-{round}"), 8);
        assert_eq!(wins, 1, "round {round}");
    }
    let late = client.put_if_absent("race-0", b"late").expect("a reply");
    assert_eq!(
        (late.status, late.code().as_deref()),
        (412, Some("PreconditionFailed"))
    );
    assert_eq!(promises::race_of_uploads(&client, "upload", 4), 1);
    // Who overwrites on purpose may.
    assert_eq!(client.put("race-0", b"over").expect("a reply").status, 200);
}

#[test]
fn ignored_conditions_overwrite() {
    let (_dir, server) = with(Conditions::Ignored);
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
    assert_eq!(promises::race_of_uploads(&client, "upload", 3), 3);
}

#[test]
fn a_new_server_finds_what_an_earlier_one_stored() {
    let dir = TempDir::new().expect("a temporary directory");
    let first = FilesystemS3::start(dir.path());
    first.access().client().put("k", b"kept").expect("a reply");
    drop(first);
    let second = FilesystemS3::start(dir.path());
    assert_eq!(
        second.access().client().get("k").expect("a reply").body,
        b"kept"
    );
}
