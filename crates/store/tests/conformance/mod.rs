//! What every store promises, one function per promise. A driver's tests run all of them.
//!
//! Invariants: a promise is checked against bytes and models made here, never against another answer of
//! the store alone; each works below a prefix of its own, so that all can share one store.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::Poll;

use mover_base::{Kind, Result};
use mover_io::{BUF_BYTES, Shard, ShardConfig, run};
use mover_store::{
    Key, LIST_LIMIT_MAX, PIECE_BYTES_MAX, Page, Put, READ_BYTES_MAX, Slice, Store, Upload,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// A store and the shards to use it from.
pub struct Subject {
    pub store: Store,
    pub config: ShardConfig,
}

impl Subject {
    /// Runs `body` on each of `shards` shards.
    pub fn on_shards<T: Send>(
        &self,
        shards: usize,
        body: impl AsyncFn(Shard) -> Result<T> + Sync,
    ) -> Vec<T> {
        let config = ShardConfig {
            shards,
            ..self.config.clone()
        };
        run(&config, body, |_| {}).expect("the shards end without error")
    }

    /// Runs `body` on one shard.
    pub fn on_shard<T: Send>(&self, body: impl AsyncFn(Shard) -> Result<T> + Sync) -> T {
        self.on_shards(1, body)
            .pop()
            .expect("one shard has one result")
    }
}

pub fn key(text: &str) -> Key {
    Key::new(text).expect("a test uses valid keys")
}

/// `len` bytes that differ by `seed` and do not repeat within a page.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Pushes all of `bytes`.
pub async fn push_all(shard: &Shard, upload: &mut Upload, bytes: &[u8]) -> Result<()> {
    for piece in bytes.chunks(BUF_BYTES) {
        let mut buf = shard.buffer().await;
        buf[..piece.len()].copy_from_slice(piece);
        upload.push(buf, piece.len()).await?;
    }
    Ok(())
}

/// Uploads `bytes` as `key`, in pieces from the arena and from the store in turns.
pub async fn upload_all(store: &Store, shard: &Shard, key: &Key, bytes: &[u8]) -> Result<Put> {
    let mut upload = store.upload(shard, key).await?;
    for (at, bytes) in bytes.chunks(BUF_BYTES).enumerate() {
        let mut piece = match at % 2 {
            0 => store.piece(shard).await?,
            _ => shard.buffer().await.into(),
        };
        piece[..bytes.len()].copy_from_slice(bytes);
        upload.push(piece, bytes.len()).await?;
    }
    upload.commit().await
}

/// All pages of a listing.
pub async fn list_all(
    store: &Store,
    shard: &Shard,
    prefix: &str,
    limit: usize,
) -> Result<Vec<(String, u64)>> {
    let mut all = Vec::new();
    let mut after: Option<Key> = None;
    loop {
        let Page { objects, next, .. } = store.list(shard, prefix, after.as_ref(), limit).await?;
        assert!(objects.len() <= limit, "a page keeps its limit");
        if let Some(next) = &next {
            assert_eq!(
                Some(next),
                objects.last().map(|object| &object.key),
                "a page ends where the next begins"
            );
        }
        all.extend(
            objects
                .into_iter()
                .map(|object| (object.key.as_str().to_owned(), object.bytes)),
        );
        match next {
            Some(next) => after = Some(next),
            None => return Ok(all),
        }
    }
}

fn kind<T>(result: Result<T>) -> Kind {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error.kind(),
    }
}

/// Lengths at which block, piece and allocation arithmetic turn.
const LENGTHS: [usize; 12] = [
    0,
    1,
    511,
    4095,
    4096,
    4097,
    BUF_BYTES - 1,
    BUF_BYTES,
    BUF_BYTES + 1,
    3 * BUF_BYTES + 17,
    16 * BUF_BYTES,
    17 * BUF_BYTES + 4097,
];

pub fn every_length_comes_back_exactly(subject: &Subject) {
    let store = &subject.store;
    subject.on_shard(async |shard| {
        for (index, len) in LENGTHS.into_iter().enumerate() {
            let bytes = pattern(len, index as u64);
            let put = key(&format!("length/put-{len}"));
            assert_eq!(
                store.put_if_absent(&shard, &put, &bytes).await?,
                Put::Created
            );
            let uploaded = key(&format!("length/up-{len}"));
            assert_eq!(
                upload_all(store, &shard, &uploaded, &bytes).await?,
                Put::Created
            );
            for key in [put, uploaded] {
                let info = store.head(&shard, &key).await?.expect("the object exists");
                assert_eq!((info.bytes, &info.key), (len as u64, &key));
                assert!(
                    store.get(&shard, &key, len as u64).await? == bytes,
                    "{key} came back changed"
                );
                store.delete(&shard, &key).await?;
            }
        }
        Ok(())
    });
}

pub fn an_empty_last_piece_is_allowed_and_nothing_after_a_short_one(subject: &Subject) {
    let store = &subject.store;
    subject.on_shard(async |shard| {
        let name = key("pieces/empty-last");
        let mut upload = store.upload(&shard, &name).await?;
        push_all(&shard, &mut upload, &pattern(BUF_BYTES, 1)).await?;
        upload.push(shard.buffer().await, 0).await?;
        assert_eq!(upload.commit().await?, Put::Created);
        assert!(store.get(&shard, &name, u64::MAX).await? == pattern(BUF_BYTES, 1));

        let name = key("pieces/misused");
        for (first, second) in [
            (1, 1),
            (0, BUF_BYTES),
            (BUF_BYTES - 1, 0),
            (BUF_BYTES, BUF_BYTES + 1),
        ] {
            let mut upload = store.upload(&shard, &name).await?;
            upload.push(shard.buffer().await, first).await?;
            let refused = upload.push(shard.buffer().await, second).await;
            assert_eq!(kind(refused), Kind::Internal, "{first} then {second}");
            drop(upload);
        }
        assert_eq!(store.head(&shard, &name).await?, None);
        Ok(())
    });
}

pub fn exactly_one_of_many_writers_creates(subject: &Subject) {
    const ROUNDS: usize = 12;
    const WRITERS_PER_SHARD: usize = 3;
    let store = &subject.store;
    let name = |round: usize| key(&format!("race/{round:02}/object"));
    let told = subject.on_shards(2, async |shard| {
        let mut won = Vec::new();
        for round in 0..ROUNDS {
            let writers: Vec<_> = (0..WRITERS_PER_SHARD)
                .map(|writer| {
                    let (store, own, name) = (store.clone(), shard.clone(), name(round));
                    let seed = (shard.index() * WRITERS_PER_SHARD + writer + 1) as u64;
                    shard.spawn(async move {
                        let bytes = pattern(5000 * seed as usize, seed);
                        let put = if writer % 2 == 0 {
                            store.put_if_absent(&own, &name, &bytes).await
                        } else {
                            upload_all(&store, &own, &name, &bytes).await
                        };
                        put.map(|put| (put == Put::Created).then_some((round, seed)))
                    })
                })
                .collect();
            for writer in writers {
                won.extend(writer.await.expect("the writer does not panic")?);
            }
        }
        Ok(won)
    });
    let mut winners: Vec<(usize, u64)> = told.into_iter().flatten().collect();
    winners.sort_unstable();
    let rounds: Vec<usize> = winners.iter().map(|(round, _)| *round).collect();
    assert_eq!(
        rounds,
        (0..ROUNDS).collect::<Vec<_>>(),
        "each key has exactly one creator"
    );
    subject.on_shard(async |shard| {
        for (round, seed) in &winners {
            let bytes = store.get(&shard, &name(*round), u64::MAX).await?;
            assert!(
                bytes == pattern(5000 * *seed as usize, *seed),
                "round {round} holds another writer's bytes"
            );
        }
        Ok(())
    });
}

pub fn an_object_is_never_replaced(subject: &Subject) {
    let store = &subject.store;
    subject.on_shard(async |shard| {
        let name = key("fixed/object");
        let first = pattern(10_000, 1);
        assert_eq!(
            store.put_if_absent(&shard, &name, &first).await?,
            Put::Created
        );
        for other in [&first[..], &[], &pattern(BUF_BYTES + 5, 2)[..]] {
            assert_eq!(
                store.put_if_absent(&shard, &name, other).await?,
                Put::Exists
            );
            assert_eq!(upload_all(store, &shard, &name, other).await?, Put::Exists);
            assert!(store.get(&shard, &name, u64::MAX).await? == first);
        }
        // The object comes into being while the upload is under way.
        let name = key("fixed/late");
        let mut upload = store.upload(&shard, &name).await?;
        push_all(&shard, &mut upload, &pattern(BUF_BYTES * 2, 3)).await?;
        assert_eq!(
            store.put_if_absent(&shard, &name, &first).await?,
            Put::Created
        );
        assert_eq!(upload.commit().await?, Put::Exists);
        assert!(store.get(&shard, &name, u64::MAX).await? == first);
        Ok(())
    });
}

pub fn an_unfinished_upload_is_invisible_and_gives_its_buffers_back(subject: &Subject) {
    let store = &subject.store;
    let buffers = subject.config.arena_bytes / BUF_BYTES;
    subject.on_shard(async |shard| {
        let name = key("unfinished/object");
        for (pieces, dropped) in [(0, true), (1, true), (6, true), (0, false), (6, false)] {
            let mut upload = store.upload(&shard, &name).await?;
            push_all(&shard, &mut upload, &pattern(pieces * BUF_BYTES, 1)).await?;
            assert_eq!(
                store.head(&shard, &name).await?,
                None,
                "visible before commit"
            );
            assert!(
                list_all(store, &shard, "unfinished/", 10).await?.is_empty(),
                "listed before commit"
            );
            if dropped {
                drop(upload);
            } else {
                upload.abort().await?;
            }
            assert_eq!(store.head(&shard, &name).await?, None);
            let mut all = Vec::new();
            while all.len() < buffers {
                all.push(shard.buffer().await);
            }
        }
        // The key is still free.
        assert_eq!(upload_all(store, &shard, &name, b"x").await?, Put::Created);
        Ok(())
    });
}

pub fn a_cancelled_commit_leaves_all_or_nothing(subject: &Subject) {
    let store = &subject.store;
    subject.on_shard(async |shard| {
        let bytes = pattern(3 * BUF_BYTES + 99, 4);
        for polls in 0..12 {
            let name = key(&format!("cancelled/{polls:02}"));
            let mut upload = store.upload(&shard, &name).await?;
            push_all(&shard, &mut upload, &bytes).await?;
            let mut commit = Box::pin(upload.commit());
            for _ in 0..polls {
                let ready = poll_fn(|cx| Poll::Ready(commit.as_mut().poll(cx).is_ready())).await;
                if ready {
                    break;
                }
                shard.turn().await;
            }
            drop(commit);
            if store.head(&shard, &name).await?.is_some() {
                assert!(
                    store.get(&shard, &name, u64::MAX).await? == bytes,
                    "half an object after {polls} polls"
                );
            } else {
                assert_eq!(
                    upload_all(store, &shard, &name, &bytes).await?,
                    Put::Created
                );
            }
        }
        Ok(())
    });
}

pub fn ranges_of_any_alignment_are_exact(subject: &Subject) {
    let store = &subject.store;
    subject.on_shard(async |shard| {
        for (index, total) in [1_usize, 4095, 4096, 4097, 12_388, 2 * BUF_BYTES + 123]
            .into_iter()
            .enumerate()
        {
            let bytes = pattern(total, index as u64);
            let name = key(&format!("range/{total}"));
            assert_eq!(
                store.put_if_absent(&shard, &name, &bytes).await?,
                Put::Created
            );
            let reader = store.reader(&shard);
            let around = |at: usize| [at.saturating_sub(1), at, at + 1];
            let mut points: Vec<usize> = [0, 512, 4096, 8192, BUF_BYTES, total]
                .into_iter()
                .flat_map(around)
                .collect();
            points.sort_unstable();
            points.dedup();
            for &offset in &points {
                for &len in &points {
                    if len > READ_BYTES_MAX {
                        continue;
                    }
                    let read = reader.read(&name, offset as u64, len).await;
                    if offset + len <= total {
                        let slice = read?;
                        assert!(
                            *slice == bytes[offset..offset + len],
                            "{total}: {offset}+{len}"
                        );
                    } else if len > 0 {
                        assert_eq!(
                            kind(read),
                            Kind::Corrupt,
                            "{total}: {offset}+{len} is past the end"
                        );
                    }
                }
            }
        }
        Ok(())
    });
}

pub fn the_longest_read_works_at_every_alignment_and_no_longer_one(subject: &Subject) {
    let store = &subject.store;
    subject.on_shard(async |shard| {
        let bytes = pattern(2 * BUF_BYTES, 9);
        let name = key("longest/object");
        store.put_if_absent(&shard, &name, &bytes).await?;
        for offset in [0, 1, 4095, 4096, 4097, BUF_BYTES, BUF_BYTES + 8191] {
            let slice = store
                .read(&shard, &name, offset as u64, READ_BYTES_MAX)
                .await?;
            assert!(
                *slice == bytes[offset..offset + READ_BYTES_MAX],
                "at {offset}"
            );
        }
        assert_eq!(
            kind(store.read(&shard, &name, 0, READ_BYTES_MAX + 1).await),
            Kind::Limit
        );
        for offset in [
            2 * BUF_BYTES as u64,
            u64::from(u32::MAX),
            i64::MAX as u64,
            u64::MAX - 1,
            u64::MAX,
        ] {
            assert_eq!(
                kind(store.read(&shard, &name, offset, 1).await),
                Kind::Corrupt,
                "at {offset}"
            );
        }
        Ok(())
    });
}

pub fn runs_come_in_pieces_that_are_exact(subject: &Subject) {
    let store = &subject.store;
    subject.on_shard(async |shard| {
        let bytes = pattern(12 * BUF_BYTES + 321, 4);
        let name = key("run/object");
        upload_all(store, &shard, &name, &bytes).await?;
        let reader = store.reader(&shard);
        let many = [READ_BYTES_MAX; 11];
        // Pieces that are kept hold buffers, so no more than the shard has.
        for (offset, lens, kept_max) in [
            (0, &[][..], 0),
            (5, &[0], 1),
            (4095, &[1], 1),
            (0, &[0, 7, 0, 0, 5000, READ_BYTES_MAX, 0], 7),
            (777, &many, 0),
            (1, &many, 5),
            (12, &[BUF_BYTES - 1, BUF_BYTES, BUF_BYTES + 1], 2),
            (3, &[100, 3 * BUF_BYTES + 5, 100, PIECE_BYTES_MAX], 2),
        ] {
            let mut kept = Vec::new();
            let mut at = offset;
            let mut came = Vec::new();
            let mut take = |piece: Slice| {
                assert!(*piece == bytes[at..at + piece.len()], "{offset}: {lens:?}");
                at += piece.len();
                came.push(piece.len());
                if kept.len() < kept_max {
                    kept.push(piece);
                }
            };
            let name = &name;
            reader
                .read_run(name, offset as u64, lens, &mut take)
                .await?;
            assert_eq!(came, lens, "at {offset}");
        }
        assert_eq!(shard.buffers_free(), shard.buffers_total());
        let mut none = |_: Slice| {};
        let past = [READ_BYTES_MAX, READ_BYTES_MAX];
        let end = (bytes.len() - READ_BYTES_MAX - 1) as u64;
        let past = reader.read_run(&name, end, &past, &mut none).await;
        assert_eq!(kind(past), Kind::Corrupt);
        let long = [1, PIECE_BYTES_MAX + 1];
        let long = reader.read_run(&name, 0, &long, &mut none).await;
        assert_eq!(kind(long), Kind::Limit);
        let absent = key("run/absent");
        let absent = reader.read_run(&absent, 0, &[1, 1], &mut none).await;
        assert_eq!(kind(absent), Kind::NotFound);
        assert_eq!(shard.buffers_free(), shard.buffers_total());
        Ok(())
    });
}

/// Each run wants more buffers than there are for it.
pub fn runs_at_the_same_time_share_the_buffers(subject: &Subject) {
    let store = &subject.store;
    subject.on_shard(async |shard| {
        const PIECES: usize = 7;
        let bytes = pattern(PIECES * READ_BYTES_MAX, 8);
        let name = key("run/shared");
        upload_all(store, &shard, &name, &bytes).await?;
        let (name, bytes) = (std::rc::Rc::new(name), std::rc::Rc::new(bytes));
        let runs: Vec<_> = (0..6)
            .map(|_| {
                let (name, bytes) = (name.clone(), bytes.clone());
                let reader = store.reader(&shard);
                shard.spawn(async move {
                    let mut at = 0;
                    let mut take = |piece: Slice| {
                        assert!(*piece == bytes[at..at + piece.len()]);
                        at += piece.len();
                    };
                    let lens = [READ_BYTES_MAX; PIECES];
                    reader.read_run(&name, 0, &lens, &mut take).await?;
                    assert_eq!(at, bytes.len());
                    Ok::<_, mover_base::Error>(())
                })
            })
            .collect();
        for run in runs {
            run.await.expect("the run does not panic")?;
        }
        Ok(())
    });
}

pub fn concurrent_reads_of_one_reader_do_not_mix(subject: &Subject) {
    let store = &subject.store;
    subject.on_shard(async |shard| {
        const OBJECTS: u64 = 40;
        for object in 0..OBJECTS {
            store
                .put_if_absent(
                    &shard,
                    &key(&format!("mix/{object:02}")),
                    &pattern(9000, object),
                )
                .await?;
        }
        let reader = std::rc::Rc::new(store.reader(&shard));
        let reads: Vec<_> = (0..OBJECTS * 3)
            .map(|read| {
                let reader = std::rc::Rc::clone(&reader);
                shard.spawn(async move {
                    let object = (read * 7) % OBJECTS;
                    let slice = reader
                        .read(&key(&format!("mix/{object:02}")), read, 5000)
                        .await?;
                    assert!(*slice == pattern(9000, object)[read as usize..read as usize + 5000]);
                    Ok::<_, mover_base::Error>(())
                })
            })
            .collect();
        for read in reads {
            read.await.expect("the read does not panic")?;
        }
        Ok(())
    });
}

pub fn what_is_absent_is_told_as_absent(subject: &Subject) {
    let store = &subject.store;
    subject.on_shard(async |shard| {
        store
            .put_if_absent(&shard, &key("absent/dir/object"), b"x")
            .await?;
        // Nothing; below nothing; a prefix of other objects; below an object.
        for name in [
            "absent/other",
            "absent/no/such/object",
            "absent/dir",
            "absent/dir/object/below",
        ] {
            let name = key(name);
            assert_eq!(store.head(&shard, &name).await?, None, "{name}");
            assert_eq!(
                kind(store.get(&shard, &name, 100).await),
                Kind::NotFound,
                "{name}"
            );
            assert_eq!(
                kind(store.read(&shard, &name, 0, 1).await),
                Kind::NotFound,
                "{name}"
            );
            assert_eq!(
                kind(store.reader(&shard).read(&name, 0, 1).await),
                Kind::NotFound,
                "{name}"
            );
            assert_eq!(
                kind(store.delete(&shard, &name).await),
                Kind::NotFound,
                "{name}"
            );
        }
        assert_eq!(store.get(&shard, &key("absent/dir/object"), 1).await?, b"x");
        Ok(())
    });
}

pub fn get_refuses_what_is_larger_than_allowed(subject: &Subject) {
    let store = &subject.store;
    subject.on_shard(async |shard| {
        let name = key("cap/object");
        store
            .put_if_absent(&shard, &name, &pattern(5000, 1))
            .await?;
        assert!(store.get(&shard, &name, 5000).await? == pattern(5000, 1));
        for cap in [0, 1, 4999] {
            assert_eq!(kind(store.get(&shard, &name, cap).await), Kind::Limit);
        }
        Ok(())
    });
}

pub fn a_deleted_object_is_gone_and_its_key_free(subject: &Subject) {
    let store = &subject.store;
    subject.on_shard(async |shard| {
        let (name, kept) = (key("deleted/a/object"), key("deleted/a/objec"));
        store.put_if_absent(&shard, &kept, b"kept").await?;
        for round in 0..3_u8 {
            assert_eq!(
                store.put_if_absent(&shard, &name, &[round]).await?,
                Put::Created
            );
            assert_eq!(store.get(&shard, &name, 1).await?, [round]);
            store.delete(&shard, &name).await?;
            assert_eq!(store.head(&shard, &name).await?, None);
            assert_eq!(kind(store.delete(&shard, &name).await), Kind::NotFound);
            let listed = list_all(store, &shard, "deleted/", 10).await?;
            assert_eq!(listed, [("deleted/a/objec".to_owned(), 4)]);
        }
        Ok(())
    });
}

pub fn many_objects_are_deleted_at_once_and_no_others(subject: &Subject) {
    const OBJECTS: usize = 25;
    let store = &subject.store;
    subject.on_shard(async |shard| {
        let name = |at: usize| key(&format!("purge/{}/object-{at}", at % 3));
        for at in 0..OBJECTS {
            store.put_if_absent(&shard, &name(at), &[at as u8]).await?;
        }
        store.delete_all(&shard, &[]).await?;
        assert_eq!(list_all(store, &shard, "purge/", 10).await?.len(), OBJECTS);
        // Every other one, some twice, and one that was never there.
        let mut doomed: Vec<Key> = (0..OBJECTS).step_by(2).map(name).collect();
        doomed.extend([name(4), key("purge/0/never"), key("purge/nowhere/never")]);
        store.delete_all(&shard, &doomed).await?;
        let mut left: Vec<(String, u64)> = (1..OBJECTS)
            .step_by(2)
            .map(|at| (name(at).to_string(), 1))
            .collect();
        left.sort();
        assert_eq!(list_all(store, &shard, "purge/", 10).await?, left);
        store.delete_all(&shard, &doomed).await?;
        // More than one request takes, nearly all of them absent.
        let many: Vec<Key> = (0..1500).map(name).collect();
        store.delete_all(&shard, &many).await?;
        assert!(list_all(store, &shard, "purge/", 10).await?.is_empty());
        assert_eq!(
            store.put_if_absent(&shard, &name(4), b"anew").await?,
            Put::Created
        );
        Ok(())
    });
}

pub fn a_listing_of_nothing_is_empty_and_of_a_bad_prefix_an_error(subject: &Subject) {
    let store = &subject.store;
    subject.on_shard(async |shard| {
        store
            .put_if_absent(&shard, &key("nothing/there"), b"x")
            .await?;
        for prefix in [
            "nothing/no",
            "nothing/there/",
            "nothing/thereafter",
            "nowhere/at/all/",
        ] {
            assert!(
                list_all(store, &shard, prefix, 10).await?.is_empty(),
                "{prefix}"
            );
        }
        for prefix in ["/", "../", "nothing/../", "tmp/", "Nothing", "nothing//"] {
            assert_eq!(
                kind(store.list(&shard, prefix, None, 10).await),
                Kind::Corrupt,
                "{prefix}"
            );
        }
        assert_eq!(kind(store.list(&shard, "", None, 0).await), Kind::Internal);
        let page = store.list(&shard, "nothing/", None, usize::MAX).await?;
        assert!(page.objects.len() == 1 && page.objects.len() <= LIST_LIMIT_MAX);
        Ok(())
    });
}

pub fn writers_of_one_directory_all_become_visible(subject: &Subject) {
    let store = &subject.store;
    subject.on_shards(2, async |shard| {
        let writers: Vec<_> = (0..16)
            .map(|writer| {
                let (store, own) = (store.clone(), shard.clone());
                let name = key(&format!("together/x/{}-{writer:02}", shard.index()));
                shard.spawn(async move { store.put_if_absent(&own, &name, b"x").await })
            })
            .collect();
        for writer in writers {
            assert_eq!(
                writer.await.expect("the writer does not panic")?,
                Put::Created
            );
        }
        Ok(())
    });
    let listed = subject.on_shard(async |shard| list_all(store, &shard, "together/", 5).await);
    let expected: Vec<_> = (0..2)
        .flat_map(|shard| (0..16).map(move |writer| (format!("together/x/{shard}-{writer:02}"), 1)))
        .collect();
    assert_eq!(listed, expected);
}

/// Keys whose order by whole bytes differs from the order by parts, and where no key lies below another.
fn keys() -> impl Strategy<Value = BTreeMap<String, u8>> {
    let part = prop_oneof!["[ab]", "a[-.0_]", "[ab][-.][ab]", "a-b"];
    let name = prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"));
    prop::collection::btree_map(name, 0..9_u8, 0..24).prop_map(|names| {
        let all: Vec<String> = names.keys().cloned().collect();
        let below = |name: &str| {
            all.iter()
                .any(|other| other.starts_with(&format!("{name}/")))
        };
        names.into_iter().filter(|(name, _)| !below(name)).collect()
    })
}

pub fn listings_agree_with_a_sorted_map(subject: &Subject) {
    let store = &subject.store;
    let prefixes = prop_oneof![
        Just(""),
        Just("a"),
        Just("a/"),
        Just("a-"),
        Just("a/a"),
        Just("b/a."),
        Just("a/b/")
    ];
    let cases = (
        keys(),
        prop::collection::vec((prefixes, "[ab][-./]?[ab]?", 1..6_usize), 6),
    );
    let mut runner = TestRunner::new(Config {
        cases: 40,
        failure_persistence: None,
        ..Config::default()
    });
    let number = std::cell::Cell::new(0);
    let outcome = runner.run(&cases, |(objects, questions)| {
        // A fresh place per case: shrinking replays cases in the same store.
        number.set(number.get() + 1);
        let place = format!("model/{:04}/", number.get());
        subject.on_shard(async |shard| {
            let model: BTreeMap<String, u64> = objects
                .iter()
                .map(|(name, bytes)| (format!("{place}{name}"), u64::from(*bytes)))
                .collect();
            for (name, bytes) in &model {
                store
                    .put_if_absent(&shard, &key(name), &vec![7; *bytes as usize])
                    .await?;
            }
            for (prefix, after, limit) in &questions {
                let prefix = format!("{place}{prefix}");
                let wanted: Vec<(String, u64)> = model
                    .iter()
                    .filter(|(name, _)| name.starts_with(&prefix))
                    .map(|(name, bytes)| (name.clone(), *bytes))
                    .collect();
                assert_eq!(
                    list_all(store, &shard, &prefix, *limit).await?,
                    wanted,
                    "{prefix}"
                );
                let Ok(after) = Key::new(&format!("{place}{after}")) else {
                    continue;
                };
                let page = store.list(&shard, &prefix, Some(&after), *limit).await?;
                let told: Vec<_> = page
                    .objects
                    .iter()
                    .map(|o| (o.key.as_str().to_owned(), o.bytes))
                    .collect();
                let rest = wanted
                    .iter()
                    .filter(|(name, _)| name.as_str() > after.as_str());
                let (rest, more): (Vec<_>, bool) = {
                    let all: Vec<_> = rest.cloned().collect();
                    (
                        all.iter().take(*limit).cloned().collect(),
                        all.len() > *limit,
                    )
                };
                assert_eq!(told, rest, "{prefix} after {after}");
                assert_eq!(page.next.is_some(), more, "{prefix} after {after}");
            }
            Ok(())
        });
        Ok(())
    });
    outcome.expect("listings agree with the model");
}

pub fn a_directory_larger_than_the_page_is_listed_whole(subject: &Subject) {
    let store = &subject.store;
    subject.on_shard(async |shard| {
        let mut expected = Vec::new();
        for object in 0..60 {
            // In an order that is not the listing's.
            let name = format!("large/{:03}", (object * 37) % 60);
            store.put_if_absent(&shard, &key(&name), &[]).await?;
            expected.push((name, 0));
        }
        expected.sort();
        for limit in [1, 7, 59, 60, 61] {
            assert_eq!(
                list_all(store, &shard, "large/", limit).await?,
                expected,
                "limit {limit}"
            );
        }
        Ok(())
    });
}

/// Runs every promise over what `$subject` makes: as a test of its own each, or, where a server takes long to start,
/// all in one test on one server.
#[macro_export]
macro_rules! conformance {
    ($name:ident, $subject:expr) => {
        $crate::conformance!(@promises each $name, $subject);
    };
    (at once $name:ident, $subject:expr) => {
        $crate::conformance!(@promises once $name, $subject);
    };
    (@promises $how:ident $name:ident, $subject:expr) => {
        mod $name {
            $crate::conformance!(@$how $subject,
                every_length_comes_back_exactly,
                an_empty_last_piece_is_allowed_and_nothing_after_a_short_one,
                exactly_one_of_many_writers_creates,
                an_object_is_never_replaced,
                an_unfinished_upload_is_invisible_and_gives_its_buffers_back,
                a_cancelled_commit_leaves_all_or_nothing,
                ranges_of_any_alignment_are_exact,
                the_longest_read_works_at_every_alignment_and_no_longer_one,
                runs_come_in_pieces_that_are_exact,
                runs_at_the_same_time_share_the_buffers,
                concurrent_reads_of_one_reader_do_not_mix,
                what_is_absent_is_told_as_absent,
                get_refuses_what_is_larger_than_allowed,
                a_deleted_object_is_gone_and_its_key_free,
                many_objects_are_deleted_at_once_and_no_others,
                a_listing_of_nothing_is_empty_and_of_a_bad_prefix_an_error,
                writers_of_one_directory_all_become_visible,
                listings_agree_with_a_sorted_map,
                a_directory_larger_than_the_page_is_listed_whole
            );
        }
    };
    (@once $subject:expr, $($promise:ident),*) => {
        #[test]
        fn keeps_every_promise() {
            let (_kept, subject) = $subject;
            $(
                eprintln!("promise: {}", stringify!($promise));
                $crate::conformance::$promise(&subject);
            )*
        }
    };
    (@each $subject:expr, $($promise:ident),*) => {
        $(
            #[test]
            fn $promise() {
                let (_kept, subject) = $subject;
                $crate::conformance::$promise(&subject);
            }
        )*
    };
}
