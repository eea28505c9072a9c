//! Tests over hundreds of backups and sessions: what is read many at a time comes to what going through it one by one does.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use mover_base::{BackupId, PackId, Result, Timestamp};
use mover_format::frame::{COMPRESSION_LEVEL_DEFAULT, FrameEncoder};
use mover_format::manifest::{Manifest, PackInfo};
use mover_format::pack::TRAILER_BYTES;
use mover_format::preamble::ObjectType;
use mover_format::record::{Purpose, Record};
use mover_io::Shard;

use super::{Scope, execute, manifests, plan};
use crate::policy::Policy;
use crate::repository::Repository;
use crate::sessions::{self, Registration};
use crate::{Credentials, fixture, layout, records};

/// Backups made: no multiple of how many are read at a time.
const BACKUPS: u32 = 150;
/// Sources that they are of, in turn.
const SOURCES: u32 = 3;
/// Packs that each backup needs. The next one of its source needs all of them but the first.
const PACKS: u32 = 4;

fn backup_id(number: u32) -> BackupId {
    let second = 1_790_000_000 + i64::from(number);
    BackupId::new(Timestamp::from_micros(second * 1_000_000), number)
}

/// Behind all of them.
fn now() -> Timestamp {
    backup_id(BACKUPS).started()
}

fn keep(last: u32) -> Policy {
    Policy {
        last,
        ..Policy::default()
    }
}

/// A pack whose length no other one has.
fn pack(source: u32, number: u32) -> PackInfo {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&source.to_be_bytes());
    id[4..8].copy_from_slice(&number.to_be_bytes());
    let directory_offset = 1000 * u64::from(source + 1) + u64::from(number);
    let directory_bytes = 50u32;
    PackInfo {
        id: PackId(id),
        object_type: ObjectType::DataPack,
        bytes: directory_offset + u64::from(directory_bytes) + TRAILER_BYTES as u64,
        directory_offset,
        directory_bytes,
        blocks: 1,
        directory_sha256: [0; 32],
    }
}

fn packs(number: u32) -> Vec<PackInfo> {
    let (source, first) = (number % SOURCES, number / SOURCES);
    (first..first + PACKS).map(|at| pack(source, at)).collect()
}

fn manifest(number: u32) -> Manifest {
    let source = format!("dir:///{}", number % SOURCES);
    Manifest {
        metadata: fixture::metadata(backup_id(number), &source),
        pages: Vec::new(),
        packs: packs(number),
    }
}

/// A backup as a host leaves it that may not delete: its session object, and its manifest.
async fn make(shard: &Shard, repository: &Arc<Repository>, number: u32) -> Result<()> {
    let id = backup_id(number);
    let session = repository.begin_session_as(sessions::id_for(id)?)?;
    Registration::begin(shard, repository, &session, Purpose::Backup, Vec::new()).await?;
    let (preamble, sealer) = session.begin_object(ObjectType::Manifest, id.object_id())?;
    let encoder = &mut FrameEncoder::new(COMPRESSION_LEVEL_DEFAULT)?;
    let bytes = manifest(number).encode_object(&preamble, &sealer, encoder)?;
    let key = layout::backup(id)?;
    repository
        .store()
        .put_if_absent(shard, &key, &bytes)
        .await?;
    Ok(())
}

/// A repository of all these backups.
async fn filled(shard: &Shard, url: &str) -> Result<Arc<Repository>> {
    fixture::init(shard, url, &[]).await?;
    let repository = Arc::new(fixture::open(shard, url, &Credentials::None).await?);
    let make = |number: u32| {
        let (shard, repository) = (shard.clone(), repository.clone());
        async move { make(&shard, &repository, number).await }
    };
    records::at_once(shard, (0..BACKUPS).collect(), make).await?;
    Ok(repository)
}

#[test]
fn a_plan_says_of_each_of_many_backups_what_it_alone_still_needs() {
    fixture::with_place(async |shard, url| {
        let repository = filled(shard, url).await?;
        let plan = plan(shard, &repository, &keep(2), &Scope::default(), now()).await?;
        let mut last_of = BTreeMap::new();
        for number in 0..BACKUPS {
            for pack in packs(number) {
                last_of.insert(pack.id, number);
            }
        }
        assert_eq!(plan.verdicts.len(), BACKUPS as usize);
        for (number, verdict) in (0..).zip(&plan.verdicts) {
            assert_eq!(verdict.backup_id, backup_id(number));
            let stays = number >= BACKUPS - 2 * SOURCES;
            assert_eq!(verdict.reasons.is_empty(), !stays, "{number}");
            let own = packs(number).into_iter();
            let own = own.filter(|pack| !stays && last_of[&pack.id] == number);
            let own_bytes: u64 = own.map(|pack| pack.bytes).sum();
            assert_eq!(verdict.freed_bytes, own_bytes, "{number}");
        }
        Ok(())
    });
}

#[test]
fn what_is_read_many_at_a_time_comes_as_if_one_by_one() {
    fixture::with_place(async |shard, url| {
        let repository = filled(shard, url).await?;
        let (ids, _) = sessions::ids(shard, &repository).await?;
        let standing = sessions::list(shard, &repository).await?;
        assert_eq!((ids.len(), standing.len()), (BACKUPS as usize, ids.len()));
        for (id, one) in ids.into_iter().zip(standing) {
            let key = layout::session(id)?;
            let open = records::get(shard, &repository, &key, ObjectType::Session, id.0).await?;
            let read = (one.id, Record::Session(one.record));
            assert_eq!(read, (id, open.record));
        }

        // In the order asked for, up to one that is not there.
        const LOST: usize = 70;
        let listed = manifests::list(shard, &repository).await?;
        assert_eq!(listed.len(), BACKUPS as usize);
        let mut wanted: Vec<(BackupId, u64)> = listed.into_iter().rev().collect();
        wanted.insert(LOST, (backup_id(BACKUPS), 1));
        let mut given = Vec::new();
        let read = manifests::read_each(shard, &repository, &wanted, |id, read| {
            given.push(id);
            Ok(read.is_ok_and(|open| open.id == id))
        });
        read.await?;
        let expected = wanted[..=LOST].iter().map(|(id, _)| *id);
        assert_eq!(given, expected.collect::<Vec<_>>());
        Ok(())
    });
}

#[test]
fn sessions_that_are_over_go_before_the_manifests_that_say_so() {
    fixture::with_place(async |shard, url| {
        let repository = filled(shard, url).await?;
        let root = repository.store().directory().expect("a directory");
        let directory = root.join("sessions");
        let (policy, all) = (keep(BACKUPS / SOURCES - 1), Scope::default());
        let plan = plan(shard, &repository, &policy, &all, now()).await?;
        assert_eq!(plan.sessions.len(), BACKUPS as usize);
        assert!(plan.sessions.iter().all(|session| session.is_over));
        let most = AtomicUsize::new(0);
        let told = |_: u64| {
            let standing = fs::read_dir(&directory).expect("sessions").count();
            most.fetch_max(standing, Relaxed);
        };
        let done = execute(shard, &repository, plan, &told).await?;
        assert_eq!(done.deleted, [0, 1, 2].map(backup_id));
        assert_eq!(done.sessions_removed, u64::from(BACKUPS));
        assert_eq!(most.into_inner(), 1, "its own");
        assert!(sessions::list(shard, &repository).await?.is_empty());
        Ok(())
    });
}
