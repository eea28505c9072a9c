//! What a second backup stores, and what it does when the first one is damaged.

use std::fs;
use std::os::unix::fs::FileExt;

use mover_jobs::Engine;

use crate::fixture::{BLOCK, MIB, Place, Random, engine, write_sparse};

/// Without an index beyond its smallest size.
fn no_index() -> Engine {
    Engine {
        index_bytes: 0,
        ..engine()
    }
}

fn place_with_random_bytes(bytes: usize) -> Place {
    let place = Place::plain();
    fs::write(place.source("a"), Random(1).bytes(bytes)).unwrap();
    place
}

#[test]
fn an_unchanged_source_stores_under_a_thousandth_without_an_index() {
    let place = place_with_random_bytes(64 * MIB);
    let options = place.backup_options();
    let first = place.try_backup(&no_index(), &options).unwrap();
    let second = place.try_backup(&no_index(), &options).unwrap();
    assert_eq!(second.parent, Some(first.backup_id));
    assert_eq!(second.bytes_new, 0);
    assert!(
        second.bytes_stored < first.bytes_stored / 1000,
        "{} of {}",
        second.bytes_stored,
        first.bytes_stored
    );
    assert_eq!(second.packs, 0);
    place.restore_is_exact("latest", "out");
    place.verify_is_ok(None);
}

#[test]
fn one_changed_block_stores_one_block() {
    let place = place_with_random_bytes(20 * MIB);
    let options = place.backup_options();
    place.try_backup(&no_index(), &options).unwrap();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(place.source("a"))
        .unwrap();
    file.write_all_at(&Random(2).bytes(BLOCK), 10 * MIB as u64)
        .unwrap();
    let second = place.try_backup(&no_index(), &options).unwrap();
    assert_eq!(second.bytes_new, BLOCK as u64);
    assert!(
        second.bytes_stored < 16 * BLOCK as u64,
        "{}",
        second.bytes_stored
    );
    place.restore_is_exact("latest", "out");
    place.verify_is_ok(None);
}

#[test]
fn moved_content_is_found_by_the_index() {
    let place = place_with_random_bytes(20 * MIB);
    place.backup();
    let bytes = fs::read(place.source("a")).unwrap();
    // Another name, and another place in it.
    let moved = [&Random(3).bytes(3 * BLOCK), bytes.as_slice()].concat();
    fs::write(place.source("b"), moved).unwrap();
    fs::remove_file(place.source("a")).unwrap();
    let second = place.backup();
    assert_eq!(second.bytes_new, 3 * BLOCK as u64);
    place.restore_is_exact("latest", "out");
}

#[test]
fn a_copy_in_the_same_source_is_stored_once() {
    let place = place_with_random_bytes(8 * MIB);
    fs::copy(place.source("a"), place.source("copy")).unwrap();
    let summary = place.backup();
    assert_eq!(summary.bytes_new, 8 * MIB as u64);
    place.restore_is_exact("latest", "out");
    place.verify_is_ok(None);
}

#[test]
fn one_block_many_times_in_one_piece_is_stored_once() {
    let place = Place::plain();
    let block = Random(4).bytes(BLOCK);
    let other = Random(5).bytes(BLOCK);
    // Whole pieces of repeats, and a repeat behind others of the same piece.
    let bytes = [block.repeat(700), other, block.repeat(3)].concat();
    fs::write(place.source("a"), bytes).unwrap();
    let summary = place.backup();
    assert_eq!(summary.bytes_new, 2 * BLOCK as u64);
    place.restore_is_exact("latest", "out");
}

#[test]
fn grown_and_shrunk_files_store_only_what_is_new() {
    let place = place_with_random_bytes(5 * MIB + 100);
    let options = place.backup_options();
    place.try_backup(&no_index(), &options).unwrap();
    let bytes = fs::read(place.source("a")).unwrap();
    for len in [5 * MIB + 100 + 3 * BLOCK, 2 * MIB + 1, 0, 5 * MIB] {
        let mut now = bytes.clone();
        now.resize(len, 7);
        fs::write(place.source("a"), &now).unwrap();
        let summary = place.try_backup(&no_index(), &options).unwrap();
        assert!(summary.bytes_source == len as u64);
        if len == 2 * MIB + 1 {
            // The cut block is another one now.
            assert_eq!(summary.bytes_new, BLOCK as u64);
        }
        let to = format!("out{len}");
        place.restore_is_exact(&summary.backup_id.to_string(), &to);
    }
    place.verify_is_ok(None);
}

/// A source whose maps have stored nodes: a leaf of many runs, and a root above inline leaves.
fn place_with_maps() -> Place {
    let place = Place::sealed();
    let mut random = Random(6);
    let mut fragments = Vec::new();
    for i in 0..300 {
        fragments.push((i * 3 * BLOCK as u64, random.bytes(BLOCK)));
    }
    let pieces: Vec<(u64, &[u8])> = fragments
        .iter()
        .map(|(at, b)| (*at, b.as_slice()))
        .collect();
    write_sparse(&place.source("fragments"), 4 * MIB as u64, &pieces);
    let spread: Vec<(u64, Vec<u8>)> = (0..9)
        .map(|i| (i * 64 * MIB as u64, random.bytes(2 * BLOCK)))
        .collect();
    let pieces: Vec<(u64, &[u8])> = spread.iter().map(|(at, b)| (*at, b.as_slice())).collect();
    write_sparse(&place.source("spread"), 600 * MIB as u64, &pieces);
    fs::write(place.source("small"), b"small").unwrap();
    place
}

fn damage_and_back_up(what: &str, damage: impl Fn(&Place)) {
    let place = place_with_maps();
    place.backup();
    damage(&place);
    assert!(!place.try_verify(None).unwrap().ok, "{what}");
    let second = place.backup();
    assert!(!second.warnings.is_empty(), "{what}: no word of the damage");
    let id = second.backup_id.to_string();
    place.restore_is_exact(&id, "out");
    place.verify_is_ok(Some(&id));
}

fn flip(place: &Place, name: &str, at_from_end: usize) {
    let path = place.object(name);
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() - at_from_end;
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
}

#[test]
fn damaged_maps_of_the_parent_are_written_anew() {
    damage_and_back_up("first byte of a node frame", |place| {
        for name in place.packs(false) {
            let path = place.object(&name);
            let mut bytes = fs::read(&path).unwrap();
            // Behind the preamble of about 400 bytes and before the directory.
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
            fs::write(path, bytes).unwrap();
        }
    });
    damage_and_back_up("every meta pack is lost", |place| {
        for name in place.packs(false) {
            fs::remove_file(place.object(&name)).unwrap();
        }
    });
}

/// The pages can be read, the roots of some maps cannot, and the leaves stand in the roots: the new roots have
/// the very same content and must be written all the same.
#[test]
fn an_equal_node_that_cannot_be_read_is_not_referred_to() {
    let place = Place::plain();
    let mut random = Random(7);
    let extents = 900;
    for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        let blocks: Vec<(u64, Vec<u8>)> = (0..extents)
            .map(|i| (i * 64 * MIB as u64, random.bytes(BLOCK)))
            .collect();
        let pieces: Vec<(u64, &[u8])> = blocks.iter().map(|(at, b)| (*at, b.as_slice())).collect();
        let len = extents * 64 * MIB as u64;
        write_sparse(&place.source(name), len, &pieces);
    }
    place.backup();
    // The shards' leaves are inline, so the one meta pack is the commit's: roots first, pages last.
    let metas = place.packs(false);
    assert_eq!(metas.len(), 1);
    let path = place.object(&metas[0]);
    let mut bytes = fs::read(&path).unwrap();
    bytes[2000] ^= 1;
    fs::write(&path, bytes).unwrap();
    let second = place.backup();
    assert!(
        second.parent.is_some(),
        "the pages are in the damaged frame too"
    );
    assert_eq!(second.bytes_new, 0);
    assert!(!second.warnings.is_empty());
    let id = second.backup_id.to_string();
    place.restore_is_exact(&id, "out");
    // Sound frames of the damaged pack are still referred to, so the pack is still reported.
    let verified = place.try_verify(Some(&id)).unwrap();
    assert!(
        verified
            .findings
            .iter()
            .all(|found| found.object == metas[0]),
        "{:?}",
        verified.findings
    );
}

#[test]
fn damaged_packs_of_the_parent_are_stored_anew() {
    damage_and_back_up("trailer", |place| {
        flip(place, &place.packs(true)[0], 3);
    });
    damage_and_back_up("directory", |place| {
        flip(place, &place.packs(true)[0], 100);
    });
    damage_and_back_up("lost", |place| {
        for name in place.packs(true) {
            fs::remove_file(place.object(&name)).unwrap();
        }
    });
    damage_and_back_up("cut", |place| {
        let path = place.object(&place.packs(true)[0]);
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    });
}

#[test]
fn a_damaged_manifest_is_passed_over_with_a_warning() {
    damage_and_back_up("manifest", |place| {
        flip(place, &place.objects("backups/")[0], 50);
    });
    damage_and_back_up("empty manifest", |place| {
        fs::write(place.object(&place.objects("backups/")[0]), b"").unwrap();
    });
    damage_and_back_up("a manifest over its cap", |place| {
        let path = place.object(&place.objects("backups/")[0]);
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(200 << 20).unwrap();
    });
}
