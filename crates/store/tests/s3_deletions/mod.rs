//! Deleting many objects by one request: what the server says beside each of them, and what it leaves out.

use std::sync::atomic::{AtomicUsize, Ordering};

use mover_base::Kind;
use mover_io::Shard;
use mover_store::LinkLimits;
use mover_test_servers::{Action, Fault, FaultProxy, FilesystemOptions, Reply, Scripted};

use crate::conformance::key;
use crate::refusal;
use crate::s3_servers::place;

/// The names in a request that deletes objects.
fn named(body: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(body).into_owned();
    let behind = text.split("<Key>").skip(1);
    let names = behind.filter_map(|rest| rest.split("</Key>").next());
    names.map(str::to_owned).collect()
}

/// A server that says of each object in its answer of that number the code that `says` gives, or that it is gone.
fn that_says(
    says: impl Fn(usize, &str) -> Option<&'static str> + Send + Sync + 'static,
) -> Scripted {
    let answers = AtomicUsize::new(0);
    Scripted::start(move |head, body| {
        if head.method != "POST" {
            return Reply::s3_error(404, "NoSuchKey", "nothing is here");
        }
        let answer = answers.fetch_add(1, Ordering::Relaxed);
        let of_each = named(body)
            .into_iter()
            .map(|name| match says(answer, &name) {
                None => format!("<Deleted><Key>{name}</Key></Deleted>"),
                Some(code) => format!(
                    "<Error><Key>{name}</Key><Code>{code}</Code><Message>no</Message></Error>"
                ),
            });
        let of_each: String = of_each.collect();
        Reply::new(200, format!("<DeleteResult>{of_each}</DeleteResult>"))
            .with("content-type", "application/xml")
    })
}

/// What was asked for, request by request.
fn asked_for(server: &Scripted) -> Vec<Vec<String>> {
    let requests = server.requests().into_iter();
    requests.map(|request| named(&request.body)).collect()
}

#[test]
fn what_a_server_fails_to_delete_for_a_moment_is_asked_for_again_without_the_rest() {
    let (kept, subject) = place(FilesystemOptions::default());
    let keys = ["a", "b", "c"].map(key);
    for code in [
        "InternalError",
        "SlowDown",
        "SlowDownWrite",
        "ServiceUnavailable",
        "RequestTimeout",
        "OperationAborted",
    ] {
        let server = that_says(move |answer, name| {
            let fails = match name {
                "b" => answer < 1,
                "c" => answer < 2,
                _ => false,
            };
            fails.then_some(code)
        });
        let store = kept.store_at(&server.endpoint(), "", &LinkLimits::default());
        subject.on_shard(async |shard| store.delete_all(&shard, &keys).await);
        let wanted = [vec!["a", "b", "c"], vec!["b", "c"], vec!["c"]];
        assert_eq!(asked_for(&server), wanted, "{code}");
        let link = store.link_report().expect("a link");
        assert_eq!((link.requests, link.retries), (3, 2), "{code}");
    }
}

/// With pauses that grow from one answer to the next, it would go on for longer than anything is tried.
#[test]
fn a_server_that_deletes_some_of_them_each_time_is_asked_until_all_are_gone() {
    const KEYS: usize = 60;
    let (kept, subject) = place(FilesystemOptions::default());
    let name = |number: usize| format!("x{number:02}");
    let keys: Vec<_> = (0..KEYS).map(|number| key(&name(number))).collect();
    let server = that_says(move |answer, of| (of != name(answer)).then_some("InternalError"));
    let store = kept.store_at(&server.endpoint(), "", &LinkLimits::default());
    subject.on_shard(async |shard| store.delete_all(&shard, &keys).await);
    assert_eq!(asked_for(&server).len(), KEYS);
}

#[test]
fn what_a_server_refuses_to_delete_is_told_when_what_failed_beside_it_is_gone() {
    let (kept, subject) = place(FilesystemOptions::default());
    let keys = ["a", "b", "c"].map(key);
    let server = that_says(|answer, name| match name {
        "a" => Some("AccessDenied"),
        "b" if answer == 0 => Some("InternalError"),
        _ => None,
    });
    let store = kept.store_at(&server.endpoint(), "", &LinkLimits::default());
    let error = refusal(&subject, &store, async |store, shard| {
        store.delete_all(shard, &keys).await
    });
    assert_eq!(error.kind(), Kind::Storage, "{error}");
    assert_eq!(error.object_name(), Some("a"), "{error}");
    let hint = error.hint_text().expect("a hint");
    assert!(hint.contains("s3:DeleteObject"), "{hint}");
    assert_eq!(asked_for(&server), [vec!["a", "b", "c"], vec!["b"]]);
}

/// Nor is it asked whether they are there.
#[test]
fn a_fault_without_a_name_is_of_whatever_is_not_told_to_be_gone() {
    let (kept, subject) = place(FilesystemOptions::default());
    let proxy = FaultProxy::start(&kept.endpoint());
    let store = kept.store_at(&proxy.endpoint(), "", &LinkLimits::default());
    let keys = ["a", "b"].map(key);
    let unnamed = "<DeleteResult><Deleted><Key>a</Key></Deleted><Error><Code>InternalError</Code></Error></DeleteResult>";
    let fault = Fault::new(Action::Answer(Reply::new(200, unnamed))).method("POST");
    let fault = proxy.inject(fault.query("delete").times(2));
    for name in ["a", "b"] {
        kept.client().put(name, b"x").expect("stored");
    }
    subject.on_shard(async |shard| store.delete_all(&shard, &keys).await);
    assert_eq!(proxy.hits(fault), 2);
    assert_eq!(kept.client().get("b").expect("a reply").status, 404);
    let seen = proxy.seen();
    assert!(seen.iter().all(|line| line.starts_with("POST")), "{seen:?}");
}

#[test]
fn deleting_many_tells_what_stays_and_does_without_the_request() {
    let (kept, subject) = place(FilesystemOptions::default());
    let proxy = FaultProxy::start(&kept.endpoint());
    let store = kept.store_at(&proxy.endpoint(), "", &LinkLimits::default());
    let keys: Vec<_> = ["a", "b", "c"].map(key).into();
    let write = async |shard: Shard| {
        for key in &keys {
            store.put_if_absent(&shard, key, b"x").await?;
        }
        Ok(())
    };
    let answer = |status, text: &str| {
        let answer = Action::Answer(Reply::new(status, text));
        let fault = Fault::new(answer).method("POST").query("delete");
        proxy.inject(fault.times(1))
    };
    subject.on_shard(write);
    answer(
        200,
        "<DeleteResult><Error><Key>b</Key><Code>AccessDenied</Code><Message>no</Message></Error><Deleted><Key>a</Key></Deleted><Error><Key>c</Key></Error></DeleteResult>",
    );
    let error = refusal(&subject, &store, async |store, shard| {
        store.delete_all(shard, &keys).await
    });
    assert_eq!(error.kind(), Kind::Storage);
    assert_eq!(error.object_name(), Some("b"), "{error}");
    assert!(
        error
            .hint_text()
            .is_some_and(|hint| hint.contains("s3:DeleteObject"))
    );
    // A server that says nothing of what it kept.
    answer(
        200,
        "<DeleteResult><Deleted><Key>a</Key></Deleted></DeleteResult>",
    );
    let error = refusal(&subject, &store, async |store, shard| {
        store.delete_all(shard, &keys).await
    });
    assert_eq!(error.object_name(), Some("b"), "{error}");
    const UNKNOWN: &str = "<Error><Code>InvalidRequest</Code></Error>";
    for (status, text) in [(501, ""), (405, ""), (400, UNKNOWN)] {
        subject.on_shard(write);
        let fault = answer(status, text);
        subject.on_shard(async |shard| store.delete_all(&shard, &keys).await);
        assert_eq!(proxy.hits(fault), 1);
        for key in &keys {
            assert_eq!(
                kept.client().get(key.as_str()).expect("a reply").status,
                404
            );
        }
    }
}
