//! Credentials that are not there, or that others have followed: what is looked for again, and what is said.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mover_base::{Error, Kind};
use mover_store::{LinkLimits, Store};
use mover_test_servers::{FilesystemOptions, Reply, Scripted};
use tempfile::TempDir;

use crate::conformance::{Subject, key};
use crate::s3_servers::place;
use crate::{read, refusal};

const SECRET: &str = "s3cret-of-a-session";

/// A file of credentials, and what may be done with it.
struct Keys {
    directory: TempDir,
    subject: Subject,
}

impl Keys {
    fn new() -> Self {
        let (_, subject) = place(FilesystemOptions::default());
        let directory = TempDir::new().expect("a temporary directory");
        Keys { directory, subject }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("keys")
    }

    fn write(&self, text: &str) {
        fs::write(self.path(), text).expect("a file of credentials");
    }

    /// Session credentials with this token.
    fn write_session(&self, token: &str) {
        self.write(&format!(
            "[default]\naws_access_key_id = id\naws_secret_access_key = {SECRET}\naws_session_token = {token}\n"
        ));
    }
}

/// The store at a scripted server.
fn store_at(server: &Scripted, keys: &Path, options: &str) -> Store {
    let url = format!(
        "s3://mover?endpoint={}&credentials={}{options}",
        server.endpoint(),
        keys.display()
    );
    Store::open(&url, &LinkLimits::default()).expect("the URL is right")
}

/// A server with the object `x`, which lets in who bears the session token of that number, and refuses others so.
fn that_lets_in(number: &Arc<AtomicUsize>, code: &'static str) -> Scripted {
    let number = Arc::clone(number);
    Scripted::start(move |head, _| {
        let let_in = format!("token-{}", number.load(Ordering::Relaxed));
        match head.header("x-amz-security-token") == Some(&let_in) {
            true => Reply::new(200, "y").with("etag", "\"x\""),
            false => Reply::s3_error(403, code, "no"),
        }
    })
}

#[test]
fn session_credentials_that_others_have_followed_are_looked_for_once_more() {
    for code in [
        "AccessDenied",
        "InvalidAccessKeyId",
        "InvalidToken",
        "InvalidTokenId",
    ] {
        let (keys, number) = (Keys::new(), Arc::new(AtomicUsize::new(0)));
        let server = that_lets_in(&number, code);
        let store = store_at(&server, &keys.path(), "");
        keys.write_session("token-0");
        keys.subject.on_shard(async |shard| {
            let x = key("x");
            assert_eq!(store.get(&shard, &x, 10).await?, b"y");
            // They are renewed by others in the middle of a job.
            keys.write_session("token-1");
            number.store(1, Ordering::Relaxed);
            assert_eq!(store.get(&shard, &x, 10).await?, b"y");
            assert_eq!(server.requests().len(), 3, "{code}");
            // There are no others.
            number.store(2, Ordering::Relaxed);
            let error = store.get(&shard, &x, 10).await.expect_err("no key fits");
            assert_eq!(error.kind(), Kind::Storage, "{error}");
            assert!(error.to_string().contains(code), "{error}");
            assert_eq!(server.requests().len(), 4, "{code}");
            Ok(())
        });
    }
}

/// A server that deletes `x` for who bears the session token of that number, and refuses it to others so beside the object.
fn that_deletes_for(number: &Arc<AtomicUsize>, code: &'static str) -> Scripted {
    let number = Arc::clone(number);
    Scripted::start(move |head, _| {
        let let_in = format!("token-{}", number.load(Ordering::Relaxed));
        let said = match head.header("x-amz-security-token") == Some(&let_in) {
            true => "<Deleted><Key>x</Key></Deleted>".to_owned(),
            false => {
                format!("<Error><Key>x</Key><Code>{code}</Code><Message>no</Message></Error>")
            }
        };
        Reply::new(200, format!("<DeleteResult>{said}</DeleteResult>"))
            .with("content-type", "application/xml")
    })
}

/// The server answers a request for many objects, and refuses each of them.
#[test]
fn session_credentials_that_are_refused_beside_an_object_are_looked_for_once_more() {
    let (denied, expired) = ("s3:DeleteObject", "renew the credentials");
    // Those that have expired are looked for by asking again, whether there are others or not.
    for (code, hint, requests) in [
        ("AccessDenied", denied, 4),
        ("ExpiredToken", expired, 5),
        ("TokenRefreshRequired", expired, 5),
    ] {
        let (keys, number) = (Keys::new(), Arc::new(AtomicUsize::new(0)));
        let server = that_deletes_for(&number, code);
        let store = store_at(&server, &keys.path(), "");
        keys.write_session("token-0");
        keys.subject.on_shard(async |shard| {
            let doomed = [key("x")];
            store.delete_all(&shard, &doomed).await?;
            // They are renewed by others in the middle of a job.
            keys.write_session("token-1");
            number.store(1, Ordering::Relaxed);
            store.delete_all(&shard, &doomed).await?;
            assert_eq!(server.requests().len(), 3, "{code}");
            // There are no others.
            number.store(2, Ordering::Relaxed);
            let refused = store.delete_all(&shard, &doomed).await;
            let error = refused.expect_err("no key fits");
            assert_eq!(error.kind(), Kind::Storage, "{error}");
            assert_eq!(error.object_name(), Some("x"), "{error}");
            assert!(error.to_string().contains(code), "{error}");
            let told = error.hint_text();
            assert!(told.is_some_and(|told| told.contains(hint)), "{told:?}");
            assert_eq!(server.requests().len(), requests, "{code}");
            Ok(())
        });
    }
}

/// Without a token they hold until somebody takes them away.
#[test]
fn lasting_credentials_that_are_refused_are_not_looked_for_again() {
    let (keys, number) = (Keys::new(), Arc::new(AtomicUsize::new(0)));
    let server = that_lets_in(&number, "AccessDenied");
    keys.write("[default]\naws_access_key_id = id\naws_secret_access_key = secret\n");
    let store = store_at(&server, &keys.path(), "");
    let error = refusal(&keys.subject, &store, read);
    assert!(error.to_string().contains("AccessDenied"), "{error}");
    assert_eq!(server.requests().len(), 1);
}

fn assert_told(error: &Error, kind: Kind, message: &str, object: &str, hint: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.message().contains(message), "{error}");
    let (named, told) = (error.object_name(), error.hint_text());
    assert!(named.is_some_and(|named| named.contains(object)), "{error}");
    assert!(told.is_some_and(|told| told.contains(hint)), "{told:?}");
    let all = format!("{error} {error:?} {told:?}");
    assert!(!all.contains(SECRET), "{all}");
}

#[test]
fn a_file_of_credentials_is_named_with_what_it_lacks() {
    let keys = Keys::new();
    let server = Scripted::start(|_, _| Reply::new(200, "y").with("etag", "\"x\""));
    let told = |options: &str| {
        let store = store_at(&server, &keys.path(), options);
        refusal(&keys.subject, &store, read)
    };
    let path = keys.path().display().to_string();
    let absent = told("");
    assert_told(
        &absent,
        Kind::Usage,
        "cannot be read",
        &path,
        "credentials=",
    );
    keys.write_session("token");
    let other = told("&profile=other");
    let hint = "below [other]";
    assert_told(
        &other,
        Kind::Storage,
        "no usable keys",
        "profile other",
        hint,
    );
    keys.write("[default]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = base\n");
    let role = told("");
    assert_told(&role, Kind::Storage, "no usable keys", &path, "role_arn");
    keys.write(&format!("[default\naws_secret_access_key = {SECRET}\n"));
    let broken = told("");
    assert_told(&broken, Kind::Storage, "no usable keys", &path, "[default]");
    assert_eq!(server.requests().len(), 0);
}
