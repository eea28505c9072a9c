//! The S3 driver against real servers: every promise of a store on Garage and on a file system behind S3, over TLS
//! too, with servers that keep conditional writes and servers that ignore them; behind a proxy that breaks
//! connections; and with endpoints, keys and clocks that are wrong.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

mod conformance;
mod s3_servers;

use std::sync::Arc;
use std::time::Duration;

use conformance::{key, list_all, pattern, upload_all};
use mover_base::{Error, Kind, Result};
use mover_io::{BUF_BYTES, RateBudget, Shard};
use mover_store::{LinkLimits, Put, Store};
use mover_test_servers::{
    Action, Conditions, Fault, FaultProxy, FilesystemOptions, Reply, Scripted,
};
use s3_servers::{Place, garage_place, place};

fn refused<T>(result: Result<T>) -> Error {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error,
    }
}

conformance!(at once on_garage, super::garage_place());
conformance!(
    on_a_file_system,
    super::place(super::FilesystemOptions::default())
);
conformance!(
    over_tls,
    super::place(super::FilesystemOptions {
        tls: true,
        ..super::FilesystemOptions::default()
    })
);
conformance!(
    without_conditional_writes,
    super::place(super::FilesystemOptions {
        conditions: super::Conditions::Ignored,
        ..super::FilesystemOptions::default()
    })
);

/// What each fault does to a request, and that the work of a store goes on over it.
#[test]
fn faults_that_pass_are_survived_and_nothing_is_lost_or_doubled() {
    let faults = [
        ("reset before", Action::ResetBeforeRequest),
        ("reset within", Action::ResetAfterRequestBytes(100_000)),
        ("lost reply", Action::LostReply),
        ("slow down", Action::slow_down()),
        ("internal error", Action::error(500, "InternalError")),
        ("conflict", Action::error(409, "ConditionalRequestConflict")),
        ("error in 200", Action::ErrorIn200("InternalError".into())),
        ("truncated", Action::TruncateReply(100)),
        ("twice", Action::Duplicate),
        ("late", Action::Delay(Duration::from_millis(300))),
    ];
    for (name, action) in faults {
        let (kept, subject) = place(FilesystemOptions::default());
        let proxy = FaultProxy::start(&kept.endpoint());
        let store = kept.store_at(&proxy.endpoint(), "", &LinkLimits::default());
        // The probe has its own answer to a doubled request, so it runs without faults.
        subject.on_shard(async |shard| store.put_if_absent(&shard, &key("first"), b"x").await);
        let fault = proxy.inject(Fault::new(action).chance(0.3, 7).times(60));
        let objects: Vec<(String, Vec<u8>)> = (0..12)
            .map(|at| (format!("o/{at:02}"), pattern(200_000 * (at + 1), at as u64)))
            .collect();
        subject.on_shard(async |shard| {
            for (name_of, bytes) in &objects {
                let put = upload_all(&store, &shard, &key(name_of), bytes).await?;
                assert_eq!(put, Put::Created, "{name}: {name_of}");
                let again = upload_all(&store, &shard, &key(name_of), b"other").await?;
                assert_eq!(again, Put::Exists, "{name}: {name_of}");
            }
            for (name_of, bytes) in &objects {
                assert!(
                    store.get(&shard, &key(name_of), u64::MAX).await? == *bytes,
                    "{name}: {name_of}"
                );
                let slice = store.read(&shard, &key(name_of), 1000, 150_000).await?;
                assert!(*slice == bytes[1000..151_000], "{name}: {name_of}");
            }
            let listed = list_all(&store, &shard, "o/", 5).await?;
            assert_eq!(listed.len(), objects.len(), "{name}");
            Ok(())
        });
        assert!(proxy.hits(fault) > 0, "{name} happened");
        // What the server holds, seen without the code under test.
        for (name_of, bytes) in &objects {
            assert!(
                kept.client().get(name_of).expect("stored").body == *bytes,
                "{name}: {name_of}"
            );
        }
    }
}

#[test]
fn long_objects_in_parts_survive_faults() {
    for action in [
        Action::LostReply,
        Action::ErrorIn200("InternalError".into()),
        Action::Duplicate,
        Action::slow_down(),
    ] {
        let (kept, subject) = place(FilesystemOptions::default());
        let proxy = FaultProxy::start(&kept.endpoint());
        let store = kept.store_at(&proxy.endpoint(), "", &LinkLimits::default());
        let bytes = pattern(33 * BUF_BYTES + 5, 3);
        subject.on_shard(async |shard| {
            upload_all(&store, &shard, &key("probes"), &pattern(17 * BUF_BYTES, 1)).await
        });
        let fault = proxy.inject(Fault::new(action.clone()).query("uploadId").times(2));
        let put =
            subject.on_shard(async |shard| upload_all(&store, &shard, &key("long"), &bytes).await);
        assert_eq!(put, Put::Created, "{action:?}");
        assert!(proxy.hits(fault) > 0);
        assert!(
            kept.client().get("long").expect("stored").body == bytes,
            "{action:?}"
        );
    }
}

#[test]
fn a_server_that_never_answers_ends_in_a_retryable_error() {
    let (kept, subject) = place(FilesystemOptions::default());
    let proxy = FaultProxy::start(&kept.endpoint());
    let store = kept.store_at(&proxy.endpoint(), "timeout=1", &LinkLimits::default());
    proxy.inject(Fault::new(Action::Stall));
    let error = subject.on_shard(async |shard| Ok(refused(store.get(&shard, &key("x"), 10).await)));
    assert_eq!(error.kind(), Kind::Unreachable);
    assert!(error.hint_text().is_some());
}

#[test]
fn a_server_that_is_not_there_is_told_soon() {
    let (kept, subject) = place(FilesystemOptions::default());
    let store = kept.store_at("http://127.0.0.1:9", "", &LinkLimits::default());
    let error = subject.on_shard(async |shard| Ok(refused(store.get(&shard, &key("x"), 10).await)));
    assert_eq!(error.kind(), Kind::Unreachable, "{error}");
}

#[test]
fn an_answer_that_stops_midway_is_asked_for_again() {
    let (kept, subject) = place(FilesystemOptions::default());
    let proxy = FaultProxy::start(&kept.endpoint());
    let store = kept.store_at(&proxy.endpoint(), "timeout=1", &LinkLimits::default());
    let bytes = pattern(500_000, 5);
    subject.on_shard(async |shard| store.put_if_absent(&shard, &key("x"), &bytes).await);
    let fault = proxy.inject(Fault::new(Action::StallReply(1000)).method("GET").times(2));
    let got = subject.on_shard(async |shard| store.get(&shard, &key("x"), 1 << 20).await);
    assert!(got == bytes);
    assert_eq!(proxy.hits(fault), 2);
}

/// Runs `question` against a scripted endpoint and returns the error.
fn asked(
    scripted: &Scripted,
    question: impl AsyncFn(&Store, &Shard) -> Result<()> + Sync,
) -> Error {
    let (kept, subject) = place(FilesystemOptions::default());
    let store = kept.store_at(&scripted.endpoint(), "", &LinkLimits::default());
    subject.on_shard(async |shard| Ok(refused(question(&store, &shard).await)))
}

#[test]
fn an_endpoint_that_answers_a_web_page_is_told() {
    let page = Scripted::html_page();
    let questions: [&(dyn Fn(&Scripted) -> Error + Sync); 3] = [
        &|page| {
            asked(page, async |store, shard| {
                store.get(shard, &key("x"), 100).await.map(|_| ())
            })
        },
        &|page| {
            asked(page, async |store, shard| {
                store.list(shard, "", None, 10).await.map(|_| ())
            })
        },
        &|page| {
            asked(page, async |store, shard| {
                store
                    .put_if_absent(shard, &key("x"), b"y")
                    .await
                    .map(|_| ())
            })
        },
    ];
    for question in questions {
        let error = question(&page);
        assert_eq!(error.kind(), Kind::Storage, "{error}");
        assert!(
            error
                .to_string()
                .contains("does not answer as an S3 server"),
            "{error}"
        );
    }
}

#[test]
fn a_bucket_of_another_region_is_told_with_its_region() {
    let moved = Scripted::other_region("eu-north-7");
    let error = asked(&moved, async |store, shard| {
        store.get(shard, &key("x"), 100).await.map(|_| ())
    });
    assert_eq!(error.kind(), Kind::Usage);
    assert!(
        error.hint_text().expect("a hint").contains("eu-north-7"),
        "{error}"
    );
    assert_eq!(moved.requests().len(), 1, "a redirect is not followed");
}

#[test]
fn a_listing_without_end_is_an_error() {
    for same_token in [true, false] {
        let endless = Scripted::endless_list(same_token);
        let error = asked(&endless, async |store, shard| {
            store.list(shard, "", None, 10_000).await.map(|_| ())
        });
        assert_eq!(error.kind(), Kind::Storage, "{error}");
        assert!(endless.requests().len() < 200);
    }
}

#[test]
fn refusals_name_what_is_wrong_and_what_to_do() {
    for (status, code, kind, part) in [
        (403, "RequestTimeTooSkewed", Kind::Storage, "clock"),
        (400, "ExpiredToken", Kind::Storage, "expired"),
        (403, "InvalidAccessKeyId", Kind::Storage, "credentials"),
        (403, "SignatureDoesNotMatch", Kind::Storage, "credentials"),
        (403, "AccessDenied", Kind::Storage, "does not allow"),
        (404, "NoSuchBucket", Kind::NotFound, "bucket"),
        (507, "QuotaExceeded", Kind::Storage, "full"),
    ] {
        let scripted = Scripted::start(move |_, _| Reply::s3_error(status, code, "no"));
        let error = asked(&scripted, async |store, shard| {
            store.get(shard, &key("x"), 100).await.map(|_| ())
        });
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(part), "{code}: {error}");
        assert!(error.hint_text().is_some(), "{code}");
    }
}

#[test]
fn a_certificate_of_an_unknown_authority_is_refused_with_a_way_out() {
    let (kept, subject) = place(FilesystemOptions {
        tls: true,
        ..FilesystemOptions::default()
    });
    let store = kept.store_untrusting();
    let error = subject.on_shard(async |shard| Ok(refused(store.get(&shard, &key("x"), 10).await)));
    assert_eq!(error.kind(), Kind::Storage, "{error}");
    assert!(
        error.hint_text().expect("a hint").contains("ca="),
        "{error}"
    );
}

#[test]
fn wrong_keys_and_missing_rights_are_told_by_a_real_server() {
    let (kept, subject) = garage_place();
    let garage = kept.garage();
    let told = |store: &Store, question: &(dyn Fn(Store, Shard) -> Asked + Sync)| -> Error {
        subject.on_shard(async |shard| Ok(refused(question(store.clone(), shard).await)))
    };
    let read_only = garage.read_only_key();
    let store = kept.store_with(&read_only.id, &read_only.secret);
    let error = told(&store, &|store, shard| {
        Box::pin(async move {
            store
                .put_if_absent(&shard, &key("x"), b"y")
                .await
                .map(|_| ())
        })
    });
    assert_eq!(error.kind(), Kind::Storage);
    assert!(
        error.hint_text().expect("a hint").contains("s3:PutObject"),
        "{error}"
    );

    let store = kept.store_with(&read_only.id, &"0".repeat(64));
    let error = told(&store, &|store, shard| {
        Box::pin(async move { store.get(&shard, &key("x"), 10).await.map(|_| ()) })
    });
    assert_eq!(error.kind(), Kind::Storage, "{error}");
    assert!(!format!("{error} {error:?}").contains(&read_only.secret));

    let store = kept.store_in("no-such-bucket-here");
    let error = told(&store, &|store, shard| {
        Box::pin(async move { store.head(&shard, &key("x")).await.map(|_| ()) })
    });
    assert!(
        matches!(error.kind(), Kind::NotFound | Kind::Storage),
        "{error}"
    );
    assert!(error.hint_text().is_some());
}

type Asked = std::pin::Pin<Box<dyn Future<Output = Result<()>>>>;

#[test]
fn a_server_that_is_killed_and_restarted_is_waited_for() {
    let (kept, subject) = garage_place();
    let garage = kept.garage();
    let bytes = pattern(3 * BUF_BYTES, 9);
    let store = &subject.store;
    subject.on_shard(async |shard| store.put_if_absent(&shard, &key("before"), &bytes).await);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2 {
                std::thread::sleep(Duration::from_millis(300));
                garage.kill();
                std::thread::sleep(Duration::from_millis(1500));
                garage.restart();
            }
        });
        subject.on_shard(async |shard| {
            for at in 0..40 {
                let name = key(&format!("during/{at:02}"));
                assert_eq!(
                    upload_all(store, &shard, &name, &bytes).await?,
                    Put::Created
                );
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(())
        });
    });
    for at in 0..40 {
        assert!(
            kept.client()
                .get(&format!("during/{at:02}"))
                .expect("stored")
                .body
                == bytes
        );
    }
}

#[test]
fn limits_on_the_link_hold_and_can_change() {
    let (kept, subject) = place(FilesystemOptions::default());
    let limits = LinkLimits {
        upload: RateBudget::new(Some(4 << 20)),
        download: RateBudget::new(Some(4 << 20)),
    };
    let store = kept.store_at(&kept.endpoint(), "", &limits);
    let bytes = pattern(8 * BUF_BYTES, 2);
    let upload = Arc::clone(&limits.upload);
    subject.on_shard(async |shard| {
        let started = std::time::Instant::now();
        upload_all(&store, &shard, &key("slow"), &bytes).await?;
        // Eight seconds' worth at 1 MiB/s took two at 4: never faster than the limit allows.
        assert!(started.elapsed() > Duration::from_millis(1500));
        let started = std::time::Instant::now();
        assert!(store.get(&shard, &key("slow"), u64::MAX).await? == bytes);
        assert!(started.elapsed() > Duration::from_millis(1500));
        upload.set(None);
        upload_all(&store, &shard, &key("fast"), &bytes).await?;
        Ok(())
    });
}

#[test]
fn a_dropped_upload_is_aborted_by_the_next_and_a_young_one_is_not_told() {
    let (kept, subject) = garage_place();
    let proxy = FaultProxy::start(&kept.endpoint());
    let store = kept.store_at(&proxy.endpoint(), "", &LinkLimits::default());
    subject.on_shard(async |shard| {
        let mut upload = store.upload(&shard, &key("left/long")).await?;
        conformance::push_all(&shard, &mut upload, &pattern(20 * BUF_BYTES, 1)).await?;
        // It may belong to a running job.
        assert!(store.stale_temporaries(&shard).await?.is_empty());
        drop(upload);
        upload_all(&store, &shard, &key("left/other"), b"x").await?;
        Ok(())
    });
    let aborts = proxy
        .seen()
        .into_iter()
        .filter(|seen| seen.contains("DELETE") && seen.contains("uploadId"));
    assert_eq!(aborts.count(), 1);
}

#[test]
fn names_that_no_object_can_have_are_strays_and_hide_nothing() {
    let (kept, subject) = garage_place();
    let client = kept.client();
    for name in ["a/ok", "a/Not a key", "a/ümlaut+&<>", "a/z"] {
        client.put(name, b"1").expect("stored");
    }
    let store = &subject.store;
    let page = subject.on_shard(async |shard| store.list(&shard, "a/", None, 10).await);
    let keys: Vec<&str> = page
        .objects
        .iter()
        .map(|object| object.key.as_str())
        .collect();
    assert_eq!(keys, ["a/ok", "a/z"]);
    assert_eq!(page.strays.len(), 2, "{:?}", page.strays);
    let _: &Place = &kept;
}

#[test]
fn only_what_stays_is_locked_and_put_into_a_class() {
    let seen = Arc::new(std::sync::Mutex::new(Vec::<(String, bool, bool)>::new()));
    let noted = Arc::clone(&seen);
    let scripted = Scripted::start(move |head, _| {
        let class = head.header("x-amz-storage-class").is_some();
        let lock = head.header("x-amz-object-lock-mode").is_some();
        if head.method == "PUT" {
            let first = !noted
                .lock()
                .expect("a list")
                .iter()
                .any(|(path, ..)| *path == head.path);
            noted
                .lock()
                .expect("a list")
                .push((head.path.clone(), class, lock));
            return match first {
                true => Reply::new(200, "").with("etag", "\"x\""),
                false => Reply::s3_error(412, "PreconditionFailed", "it exists"),
            };
        }
        match head.method.as_str() {
            "DELETE" => Reply::new(204, ""),
            _ => Reply::new(200, "").with("etag", "\"x\""),
        }
    });
    let (kept, subject) = place(FilesystemOptions::default());
    let options = "storage_class=STANDARD_IA&lock=governance&lock_days=1";
    let store = kept.store_at(&scripted.endpoint(), options, &LinkLimits::default());
    let put = subject.on_shard(async |shard| store.put_if_absent(&shard, &key("x"), b"y").await);
    assert_eq!(put, Put::Created);
    let seen = seen.lock().expect("a list");
    assert_eq!(
        seen.len(),
        3,
        "a probe written twice, and the object: {seen:?}"
    );
    for (path, class, lock) in seen.iter() {
        let stays = path.ends_with("/x");
        assert_eq!((*class, *lock), (stays, stays), "{path}");
    }
}
