//! Requests whose answer is late, and which are asked for anew on another connection.
//!
//! The driver's time-out is an hour here, so whoever ends has not waited for the slow connection; only the end of an
//! upload in parts, which is not asked for anew before the time-out, has one that is reached. What was sent on that
//! one is done by the server before, after, or never; in each case there is one object, whole, and its writer knows whose
//! it is.

use std::time::Duration;

use mover_io::{BUF_BYTES, Shard};
use mover_store::{Put, READ_BYTES_MAX, Slice, Store};
use mover_test_servers::{Action, Conditions, Fault, FilesystemOptions};

use crate::conformance::{Subject, key, pattern, push_all, upload_all};
use crate::noticed;
use crate::s3_servers::{Behind, Place, place};

/// Answers that the driver wants to have seen before it calls another one late.
const ANSWERS: usize = 32;
const PATIENT: &str = "timeout=3600";

fn server(conditions: Conditions) -> (Place, Subject) {
    place(FilesystemOptions {
        conditions,
        ..FilesystemOptions::default()
    })
}

/// Waits until the proxy holds so many requests back.
async fn held(behind: &Behind, requests: usize) {
    while behind.proxy.held() < requests {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How often `method` was asked of the object at `path`.
fn asked(behind: &Behind, method: &str, path: &str) -> usize {
    let seen = behind.proxy.seen();
    let is_it = |line: &&String| line.starts_with(method) && line.contains(path);
    seen.iter().filter(is_it).count()
}

/// What the driver knows of usual answers: that reads, small writes and uploads take no time.
async fn usual(store: &Store, shard: &Shard) -> mover_base::Result<()> {
    let long = pattern(BUF_BYTES + 1, 1);
    for at in 0..ANSWERS {
        let name = key(&format!("usual/{at:02}"));
        store.put_if_absent(shard, &name, b"small").await?;
        store.get(shard, &name, 100).await?;
        upload_all(store, shard, &key(&format!("{name}-long")), &long).await?;
    }
    Ok(())
}

#[test]
fn a_read_whose_answer_is_late_is_asked_for_on_another_connection() {
    const LENS: [usize; 3] = [READ_BYTES_MAX; 3];
    let (kept, subject) = server(Conditions::Atomic);
    let behind = Behind::with(&kept, PATIENT);
    let store = &behind.store;
    let bytes = pattern(LENS.iter().sum(), 4);
    kept.client().put("pack", &bytes).expect("stored");
    subject.on_shard(async |shard| {
        usual(store, &shard).await?;
        for action in [Action::Stall, Action::SilentReply] {
            let fault = Fault::new(action).method("GET").path("/pack").times(1);
            let fault = behind.proxy.inject(fault);
            let mut got = Vec::new();
            let mut take = |piece: Slice| got.extend_from_slice(&piece);
            let reader = store.reader(&shard);
            let pack = key("pack");
            noticed(reader.read_run(&pack, 0, &LENS, &mut take)).await?;
            assert!(got == bytes);
            assert_eq!(behind.proxy.hits(fault), 1);
        }
        Ok(())
    });
    let whole = format!("bytes=0-{}", bytes.len() - 1);
    assert_eq!(
        behind.proxy.ranges(),
        [whole.as_str(); 4],
        "each run, twice"
    );
}

/// A connection that brings some of a pack and then hardly anything, or nothing more: 100 bytes a second would take days.
#[test]
fn the_rest_of_a_body_that_comes_slowly_is_asked_for_on_another_connection() {
    const LENS: [usize; 5] = [READ_BYTES_MAX; 5];
    const BROUGHT: u64 = 1_500_000;
    let (kept, subject) = server(Conditions::Atomic);
    let behind = Behind::with(&kept, PATIENT);
    let store = &behind.store;
    let bytes = pattern(LENS.iter().sum(), 4);
    kept.client().put("pack", &bytes).expect("stored");
    for action in [Action::SlowReply(100), Action::StallReply(BROUGHT)] {
        let from = behind.proxy.ranges().len();
        subject.on_shard(async |shard| {
            let reader = store.reader(&shard);
            let pack = key("pack");
            let run = async |got: &mut Vec<u8>| {
                let mut take = |piece: Slice| got.extend_from_slice(&piece);
                reader.read_run(&pack, 0, &LENS, &mut take).await
            };
            for _ in 0..ANSWERS {
                run(&mut Vec::new()).await?;
            }
            let fault = Fault::new(action.clone()).method("GET").times(1);
            let fault = behind.proxy.inject(fault);
            let mut got = Vec::new();
            noticed(run(&mut got)).await?;
            assert!(got == bytes, "{action:?}");
            assert_eq!(behind.proxy.hits(fault), 1);
            Ok(())
        });
        let ranges = &behind.proxy.ranges()[from..];
        let [slow, rest] = &ranges[ANSWERS..] else {
            panic!("{action:?}: {ranges:?}");
        };
        let last = bytes.len() - 1;
        assert_eq!(*slow, format!("bytes=0-{last}"));
        assert!(rest.ends_with(&format!("-{last}")), "{rest}");
        // What the slow connection brought is not brought again. At 100 bytes a second that may be nothing.
        if action == Action::StallReply(BROUGHT) {
            assert_eq!(*rest, format!("bytes={BROUGHT}-{last}"));
        }
    }
}

/// A pack, a small object; the first try of each is done by the server before the second, after it, or never.
#[test]
fn a_write_whose_answer_is_late_makes_one_object_whichever_try_comes_first() {
    let actions = [Action::Stall, Action::SilentReply, Action::Hold];
    for conditions in [Conditions::Atomic, Conditions::Ignored] {
        let (kept, subject) = server(conditions);
        for (at, action) in actions.clone().into_iter().enumerate() {
            for (of, len) in [100, 9 * BUF_BYTES + 7].into_iter().enumerate() {
                let what = format!("{len} bytes, {action:?}, {conditions:?}");
                let behind = Behind::with(&kept, PATIENT);
                let store = &behind.store;
                let name = format!("late/{at}-{of}");
                let bytes = pattern(len, at as u64);
                // A place of its own for what is usual: each driver learns anew.
                let usual_bytes = &bytes[..len.min(BUF_BYTES + 1)];
                let put = subject.on_shard(async |shard| {
                    for usual in 0..ANSWERS {
                        let usual = key(&format!("usual-{at}-{of}/{usual:02}"));
                        let mut upload = store.upload_unique(&shard, &usual).await?;
                        push_all(&shard, &mut upload, usual_bytes).await?;
                        upload.commit().await?;
                    }
                    let fault = Fault::new(action.clone()).method("PUT").path(&name);
                    behind.proxy.inject(fault.times(1));
                    let name = key(&name);
                    let mut upload = store.upload_unique(&shard, &name).await?;
                    push_all(&shard, &mut upload, &bytes).await?;
                    noticed(upload.commit()).await
                });
                assert_eq!(put, Put::Created, "{what}");
                assert_eq!(asked(&behind, "PUT", &name), 2, "{what}");
                let is_whole = || kept.client().get(&name).expect("stored").body == bytes;
                assert!(is_whole(), "{what}");
                let late = behind.proxy.release();
                let expected: &[u16] = match (&action, conditions) {
                    (Action::Hold, Conditions::Atomic) => &[412],
                    (Action::Hold, Conditions::Ignored) => &[200],
                    _ => &[],
                };
                assert_eq!(late, expected, "{what}");
                assert!(is_whole(), "{what}: after the late try");
                let (listed, _) = kept.client().list(&name, 1000).expect("a listing");
                assert_eq!(listed.len(), 1, "{what}");
                let other = subject
                    .on_shard(async |shard| upload_all(store, &shard, &key(&name), b"other").await);
                assert_eq!(other, Put::Exists, "{what}");
            }
        }
    }
}

/// Before either try of a write has arrived somebody else writes the same object.
#[test]
fn a_rival_that_comes_before_both_tries_keeps_its_object() {
    let (kept, subject) = server(Conditions::Atomic);
    let behind = Behind::with(&kept, PATIENT);
    let store = &behind.store;
    let (own, others) = (pattern(3 * BUF_BYTES, 1), pattern(2 * BUF_BYTES, 2));
    let put = subject.on_shard(async |shard| {
        usual(store, &shard).await?;
        let fault = Fault::new(Action::Hold).method("PUT").path("/contested");
        behind.proxy.inject(fault.times(2));
        let contested = key("contested");
        let rival = async {
            held(&behind, 2).await;
            let reply = kept.client().put_if_absent("contested", &others);
            assert_eq!(reply.expect("a reply").status, 200);
            assert_eq!(behind.proxy.release(), [412, 412]);
        };
        let own = upload_all(store, &shard, &contested, &own);
        let (put, ()) = noticed(async { tokio::join!(own, rival) }).await;
        put
    });
    assert_eq!(put, Put::Exists);
    assert_eq!(asked(&behind, "PUT", "/contested"), 2);
    let stored = kept.client().get("contested").expect("stored");
    assert!(stored.body == others);
}

/// The end of an upload in parts is waited for: a second one would find the upload gone, and perhaps no object yet.
#[test]
fn the_end_of_an_upload_in_parts_is_not_asked_for_anew_because_it_is_late() {
    let (kept, subject) = server(Conditions::Atomic);
    let behind = Behind::with(&kept, PATIENT);
    let store = &behind.store;
    let bytes = pattern(17 * BUF_BYTES, 6);
    let put = subject.on_shard(async |shard| {
        usual(store, &shard).await?;
        // Six times as long as the shortest time that is late.
        let late = Action::Delay(Duration::from_secs(3));
        let fault = Fault::new(late).method("POST").path("/long");
        behind.proxy.inject(fault.query("uploadId="));
        noticed(upload_all(store, &shard, &key("long"), &bytes)).await
    });
    assert_eq!(put, Put::Created);
    let seen = behind.proxy.seen();
    let ends = |line: &&String| line.starts_with("POST /mover/long?uploadId=");
    assert_eq!(seen.iter().filter(ends).count(), 1, "{seen:?}");
    assert!(kept.client().get("long").expect("stored").body == bytes);
}

/// The end of an upload in parts, named by both tries.
#[test]
fn parts_that_are_joined_twice_make_one_object() {
    for action in [Action::Stall, Action::SilentReply, Action::Hold] {
        let (kept, subject) = server(Conditions::Atomic);
        let behind = Behind::with(&kept, "timeout=5");
        let store = &behind.store;
        let bytes = pattern(17 * BUF_BYTES, 6);
        let put = subject.on_shard(async |shard| {
            // The probe of uploads in parts is over before.
            let probe = key("probe");
            upload_all(store, &shard, &probe, &bytes).await?;
            let fault = Fault::new(action.clone()).method("POST").query("uploadId=");
            behind.proxy.inject(fault.times(1));
            noticed(upload_all(store, &shard, &key("long"), &bytes)).await
        });
        assert_eq!(put, Put::Created, "{action:?}");
        let late = behind.proxy.release();
        assert!(late.iter().all(|status| *status >= 400), "{late:?}");
        let stored = kept.client().get("long").expect("stored");
        assert!(stored.body == bytes, "{action:?}");
    }
}
