//! Manifests that somebody forges who may write to the storage: what they claim hurts no other backup, and what they hold is told
//! with its backup and file.

use std::fs;
use std::process::Command;

use mover_base::checksum::crc32;
use mover_base::{BackupId, Kind, Timestamp};
use mover_jobs::{backup, catalogue, expire};

use crate::expire::{backup_beside, keep, options};
use crate::fixture::{BLOCK, MIB, Place, Random, assert_same_trees, engine, write_sparse};

const PREAMBLE: usize = 100;
const HEADER: usize = 16;
const TRAILER: usize = 32;

fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

fn put_word(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The plain body of a manifest of a repository without encryption.
fn body_of(manifest: &[u8]) -> Vec<u8> {
    let frame = &manifest[PREAMBLE..];
    let (payload, plain) = (word(frame, 0), word(frame, 4));
    let payload = &frame[HEADER..HEADER + payload];
    match frame[9] {
        0 => payload.to_vec(),
        _ => zstd::bulk::decompress(payload, plain).unwrap(),
    }
}

/// The manifest of the backup `id` with another body, all of whose checksums hold.
fn forged(manifest: &[u8], id: BackupId, body: &[u8]) -> Vec<u8> {
    forged_of(manifest, id, body.len(), (0, body))
}

/// The same, compressed: a body of one pattern is a thousandth then.
fn forged_small(manifest: &[u8], id: BackupId, body: &[u8]) -> Vec<u8> {
    let payload = zstd::bulk::compress(body, 3).unwrap();
    forged_of(manifest, id, body.len(), (1, &payload))
}

/// A body of `plain` bytes, as it is encoded by a codec.
fn forged_of(manifest: &[u8], id: BackupId, plain: usize, (codec, body): (u8, &[u8])) -> Vec<u8> {
    let mut out = manifest[..PREAMBLE].to_vec();
    out[32..48].copy_from_slice(&id.object_id());
    let crc = crc32(&out[..96]);
    put_word(&mut out, 96, crc);
    let mut frame = manifest[PREAMBLE..PREAMBLE + HEADER].to_vec();
    put_word(&mut frame, 0, body.len() as u32);
    put_word(&mut frame, 4, plain as u32);
    frame[9] = codec;
    let crc = crc32(&[&frame[..12], body].concat());
    put_word(&mut frame, 12, crc);
    out.extend(frame);
    out.extend(body);
    let mut trailer = manifest[manifest.len() - TRAILER..].to_vec();
    put_word(&mut trailer, 8, (HEADER + body.len()) as u32);
    let crc = crc32(&trailer[..28]);
    put_word(&mut trailer, 28, crc);
    out.extend(trailer);
    out
}

/// A body whose metadata is changed.
fn with_metadata(body: &[u8], change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let behind = 4 + word(body, 0);
    let mut metadata = serde_json::from_slice(&body[4..behind]).unwrap();
    change(&mut metadata);
    let json = serde_json::to_vec(&metadata).unwrap();
    let len = (json.len() as u32).to_le_bytes();
    [&len[..], &json, &body[behind..]].concat()
}

/// A body whose `packs` packs are those of `body`, and whose entry pages are a million of one byte.
fn with_tiny_pages(body: &[u8], packs: usize) -> Vec<u8> {
    const PAGES: usize = 1 << 20;
    let pages_at = 4 + word(body, 0);
    let begin = packs_at(body, packs) - 4;
    let count = (PAGES as u32).to_le_bytes();
    let pages = [0_u8, 1, 3].repeat(PAGES);
    [&body[..pages_at], &count, &pages, &body[begin..]].concat()
}

/// Where the packs of a body begin.
fn packs_at(body: &[u8], packs: usize) -> usize {
    let at = body.len() - 80 * packs;
    assert_eq!(word(body, at - 4), packs);
    at
}

/// Puts `to` in the place of `from`, which is as long and stands in `body` once or more.
fn replace(body: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let starts: Vec<usize> = (0..body.len())
        .filter(|&at| body[at..].starts_with(from.as_bytes()))
        .collect();
    assert!(!starts.is_empty(), "{from} is not there");
    for at in starts {
        body[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
}

/// Every backup that a finding concerns, with the object.
fn charged(place: &Place) -> Vec<(String, Vec<BackupId>)> {
    let summary = place.try_verify(None).unwrap();
    for backup in &summary.backups {
        let concerned =
            |finding: &&mover_jobs::verify::Finding| finding.backups.contains(&backup.backup_id);
        assert_eq!(backup.ok, summary.findings.iter().find(concerned).is_none());
    }
    let findings = summary.findings.into_iter();
    findings
        .map(|found| (found.object, found.backups))
        .collect()
}

#[test]
fn a_manifest_that_states_other_packs_under_their_names_discredits_no_other_backup() {
    let place = Place::plain();
    fs::write(place.source("a"), Random(1).bytes(40 * BLOCK)).unwrap();
    let first = place.backup().backup_id;
    let shared = place.objects("packs/");
    fs::write(place.source("b"), Random(2).bytes(40 * BLOCK)).unwrap();
    let second = place.backup().backup_id;
    let mut own = place.objects("packs/");
    own.retain(|name| !shared.contains(name));

    // Older than all, so that it is read first, with another directory for each pack.
    let manifest = fs::read(place.object(&format!("backups/{first}"))).unwrap();
    let old = BackupId::new(Timestamp::from_micros(0), 7);
    let mut body = body_of(&manifest);
    let text = first.to_string();
    let at = body
        .windows(text.len())
        .position(|part| part == text.as_bytes());
    let at = at.unwrap();
    body[at..at + text.len()].copy_from_slice(old.to_string().as_bytes());
    let packs = packs_at(&body, shared.len());
    for pack in body[packs..].chunks_mut(80) {
        pack[79] ^= 1;
    }
    let name = format!("backups/{old}");
    fs::write(place.object(&name), forged(&manifest, old, &body)).unwrap();
    let expected: Vec<_> = shared
        .iter()
        .map(|name| (name.clone(), vec![old]))
        .collect();
    assert_eq!(charged(&place), expected);

    // Damage to what is shared concerns all, and damage to what the second has alone only that.
    let harm = |name: &String| {
        let mut bytes = fs::read(place.object(name)).unwrap();
        bytes[PREAMBLE + HEADER + 1] ^= 1;
        fs::write(place.object(name), bytes).unwrap();
    };
    harm(&shared[0]);
    harm(&own[0]);
    let mut found = charged(&place);
    found.retain(|(_, backups)| *backups != [old]);
    let mut expected = vec![
        (shared[0].clone(), vec![first, second]),
        (own[0].clone(), vec![second]),
    ];
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn a_map_that_is_wrong_is_told_with_its_backup_and_file() {
    let place = Place::plain();
    write_sparse(&place.source("holes"), 2 * BLOCK as u64, &[]);
    let id = place.backup().backup_id;
    let object = format!("backups/{id}");
    let manifest = fs::read(place.object(&object)).unwrap();
    let mut body = body_of(&manifest);
    // An inline leaf of four bytes: one run of two blocks that are a hole.
    let leaf = [0, 4, 1, 0, 1, 2 << 2];
    let found: Vec<usize> = (0..body.len())
        .filter(|&at| body[at..].starts_with(&leaf))
        .collect();
    assert_eq!(found.len(), 1);
    body[found[0] + 5] = 1 << 2;
    fs::write(place.object(&object), forged(&manifest, id, &body)).unwrap();

    let summary = place.try_verify(None).unwrap();
    let [finding] = &summary.findings[..] else {
        panic!("{:?}", summary.findings)
    };
    assert_eq!((&finding.object, &finding.backups), (&object, &vec![id]));
    assert!(finding.what.contains("the file holes"), "{finding:?}");
    let options = place.restore_options("latest", "out", false);
    let error = place
        .try_restore(&engine(), &options)
        .map(drop)
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert_eq!(error.object_name(), Some(object.as_str()));
    assert!(error.message().contains("the file holes"), "{error}");
    assert!(error.hint_text().is_some());
}

/// Whoever can write manifests can name any pack in them, and have them go by a newer one of the same source. What a backup that
/// runs has stored stays all the same, or it would end well and could not be restored.
#[test]
fn packs_of_a_running_backup_outlast_a_forged_manifest_that_names_them() {
    let place = Place::plain();
    fs::write(place.source("a"), Random(1).bytes(8 * BLOCK)).unwrap();
    let first = place.backup().backup_id;
    let template = fs::read(place.object(&format!("backups/{first}"))).unwrap();
    let known = place.objects("packs/");
    fs::write(place.source("much"), Random(2).bytes(24 * MIB)).unwrap();
    let planned = backup::plan(&engine(), &place.backup_options(), &mut |_, _| {}).unwrap();
    let url = format!("dir://{}", place.path("source").display());
    let foreign = format!("{}z", &url[..url.len() - 1]);
    let forge = |at: i64, packs: &[String]| {
        let id = BackupId::new(Timestamp::from_micros(at * 1_000_000), 7);
        let mut body = body_of(&template);
        replace(&mut body, &first.to_string(), &id.to_string());
        replace(&mut body, &url, &foreign);
        let begin = packs_at(&body, known.len());
        let mut infos: Vec<[u8; 80]> = body[begin..].as_chunks().0.to_vec();
        for name in packs {
            let mut info = infos[0];
            let id: mover_base::PackId = name.rsplit('/').next().unwrap().parse().unwrap();
            info[..16].copy_from_slice(&id.0);
            infos.push(info);
        }
        infos.sort_unstable();
        put_word(&mut body, begin - 4, infos.len() as u32);
        body.truncate(begin);
        body.extend(infos.concat());
        let name = format!("backups/{id}");
        fs::write(place.object(&name), forged(&template, id, &body)).unwrap();
        id
    };
    let done = backup_beside(&place, planned, || {
        let mut making = place.objects("packs/");
        making.retain(|name| !known.contains(name));
        let older = forge(10, &making);
        forge(20, &[]);
        let plan = expire::plan(&engine(), &options(&place, keep(1)), &mut |_, _| {}).unwrap();
        let summary = expire::execute(&engine(), plan, &mut |_, _| {}).unwrap();
        assert_eq!(summary.outcome.deleted, [older]);
        let left = place.objects("packs/");
        assert!(making.iter().all(|name| left.contains(name)), "{left:?}");
    });
    let id = done.unwrap().backup_id.to_string();
    let restore = place.restore_options(&id, "out", false);
    place.try_restore(&engine(), &restore).unwrap();
    assert_same_trees(&place.path("source"), &place.path("out"));
}

/// The most memory that this process ever had, in MiB.
fn peak_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    kib / 1024
}

/// Writes manifests of other hosts behind the backup `last`, each with the body that `forge` makes of the last one's.
fn put_behind(
    place: &Place,
    last: BackupId,
    count: u32,
    forge: impl Fn(&[u8]) -> Vec<u8>,
) -> Vec<BackupId> {
    let template = fs::read(place.object(&format!("backups/{last}"))).unwrap();
    let at = last.started().as_micros() + 1_000_000;
    let ids = (0..count).map(|number| BackupId::new(Timestamp::from_micros(at), number));
    let ids: Vec<BackupId> = ids.collect();
    for &id in &ids {
        let body = with_metadata(&body_of(&template), |metadata| {
            metadata["backup_id"] = id.to_string().into();
            metadata["source"]["host"] = "elsewhere".into();
        });
        let bytes = forged_small(&template, id, &forge(&body));
        fs::write(place.object(&format!("backups/{id}")), bytes).unwrap();
    }
    ids
}

/// Each is 3 MiB when it is decompressed, and a hundred with each page in its place. They are read, and no more than one at a time:
/// of the one that would serve best so far nothing is kept but its id, or it would stand beside the next.
#[test]
fn manifests_of_a_million_tiny_pages_exhaust_no_memory() {
    const ALONE: &str = "MOVER_TEST_ALONE";
    const TEST: &str = "forged::manifests_of_a_million_tiny_pages_exhaust_no_memory";
    if std::env::var_os(ALONE).is_none() {
        let mut again = Command::new(std::env::current_exe().unwrap());
        let ended = again.args(["--exact", TEST, "--nocapture"]).env(ALONE, "1");
        let ended = ended.status().unwrap();
        assert!(ended.success(), "see above: {ended}");
        return;
    }
    let place = Place::plain();
    fs::write(place.source("a"), Random(1).bytes(8 * BLOCK)).unwrap();
    let plan = || expire::plan(&engine(), &options(&place, keep(1)), &mut |_, _| {}).unwrap();
    let listed = || catalogue::list(&engine(), &place.access()).unwrap().backups;
    let last = place.backup().backup_id;
    assert_eq!((plan().expired, listed().len()), (0, 1));
    let usual = peak_mib();

    let packs = place.objects("packs/").len();
    let forged = put_behind(&place, last, 20, |body| with_tiny_pages(body, packs));
    let length = |id: &BackupId| {
        fs::metadata(place.object(&format!("backups/{id}")))
            .unwrap()
            .len()
    };
    assert!(forged.iter().map(length).sum::<u64>() < MIB as u64);
    assert_eq!(plan().expired, 19);
    assert!(listed().iter().all(|item| item.readable));
    let grown = peak_mib() - usual;
    assert!(grown < 64, "expire and list took {grown} MiB more");
    assert_eq!(place.backup().parent, Some(last));
    let grown = peak_mib() - usual;
    assert!(grown < 176, "a backup took {grown} MiB more");
}

#[test]
fn a_listing_of_more_notes_than_memory_is_for_names_the_backup_that_has_most() {
    let place = Place::plain();
    fs::write(place.source("a"), b"a").unwrap();
    let last = place.backup().backup_id;
    let note = |number: u32| (number.to_string(), serde_json::Value::from(""));
    let forged = put_behind(&place, last, 24, |body| {
        with_metadata(body, |metadata| {
            let notes: serde_json::Map<String, serde_json::Value> = (0..70_000).map(note).collect();
            metadata["annotations"] = notes.into();
        })
    });
    let error = catalogue::list(&engine(), &place.access()).map(drop);
    let error = error.unwrap_err();
    assert_eq!(error.kind(), Kind::Limit, "{error}");
    let named = error.object_name().unwrap();
    assert!(forged.iter().any(|id| id.to_string() == named), "{error}");
    assert!(error.hint_text().is_some());
    // What is asked for by its id is shown all the same, and an expire has no use for notes.
    let shown = catalogue::show(&engine(), &place.access(), &last.to_string());
    assert_eq!(shown.unwrap().metadata.backup_id, last);
    let plan = expire::plan(&engine(), &options(&place, keep(1)), &mut |_, _| {}).unwrap();
    assert_eq!(plan.expired, 23);
}

/// Room at the target is looked for by what the manifest says.
#[test]
fn figures_that_the_entries_do_not_come_to_are_told_before_a_restore_begins() {
    let place = Place::plain();
    fs::write(place.source("a"), Random(1).bytes(8 * BLOCK)).unwrap();
    let id = place.backup().backup_id;
    let object = format!("backups/{id}");
    let manifest = fs::read(place.object(&object)).unwrap();
    for (member, figure) in [
        ("original_bytes", 8 * BLOCK as u64 - 1),
        ("original_bytes", u64::MAX),
        ("files", 2),
    ] {
        let body = with_metadata(&body_of(&manifest), |metadata| {
            metadata["size_info"][member] = figure.into();
        });
        fs::write(place.object(&object), forged(&manifest, id, &body)).unwrap();
        let options = place.restore_options("latest", "out", false);
        let refused = place.try_restore(&engine(), &options).map(drop);
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{member}: {error}");
        assert_eq!(error.object_name(), Some(object.as_str()), "{error}");
        assert!(error.hint_text().is_some());
        assert!(!place.path("out").exists());
    }
    fs::write(place.object(&object), &manifest).unwrap();
    place.restore_is_exact("latest", "out");
}

/// Hosts without a key can claim to be each other.
#[test]
fn a_plan_warns_where_backups_go_of_which_nobody_vouches_whose_they_are() {
    let place = Place::sealed();
    let mut written = place.backup_options();
    written.repo = place.access_with(mover_jobs::Credentials::None);
    let warnings = |last: u32| {
        let plan = expire::plan(&engine(), &options(&place, keep(last)), &mut |_, _| {});
        let plan = plan.unwrap();
        let said = "can claim any source and host";
        let about = plan.warnings.iter().filter(|one| one.contains(said));
        (plan.expired, about.count())
    };
    for number in 0..3 {
        fs::write(place.source("a"), Random(number).bytes(BLOCK)).unwrap();
        place.backup();
    }
    assert_eq!(warnings(1), (2, 0), "those of a host with the key");
    for number in 0..2 {
        fs::write(place.source("a"), Random(7 + number).bytes(BLOCK)).unwrap();
        place.try_backup(&engine(), &written).unwrap();
    }
    assert_eq!(warnings(3), (0, 0), "nothing goes");
    assert_eq!(warnings(2), (1, 0), "only one of a host with the key");
    assert_eq!(warnings(1), (3, 1));
}
