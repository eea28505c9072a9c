//! Maps of every height and shape.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use mover_jobs::{Engine, restore};
use rustix::fs::{FallocateFlags, XattrFlags};

use crate::fixture::{
    BLOCK, MIB, Place, Random, assert_same_bytes, copy_tree, data_map, engine, punch, write_sparse,
};

#[test]
fn a_file_of_65_gib_and_a_byte_has_two_levels_of_nodes() {
    let place = Place::plain();
    let len = (65 << 30) + 1;
    let mut random = Random(1);
    let (first, middle) = (random.bytes(BLOCK), random.bytes(BLOCK));
    write_sparse(
        &place.source("large"),
        len,
        &[
            (0, &first),
            (32 << 30, &middle),
            (64 << 30, &middle),
            (len - 1, b"x"),
        ],
    );
    let summary = place.backup();
    assert_eq!(summary.bytes_new, 3 * BLOCK as u64);
    place.restore_is_exact("latest", "out");
    assert_eq!(
        data_map(&place.source("large")),
        data_map(&place.path("out/large"))
    );
    let again = place.backup();
    assert_eq!(again.bytes_new, 0);
    assert_eq!(again.packs, 0, "an unchanged map was written again");
    // One block in the middle: the path to it is new, the rest of the map is not.
    let file = fs::OpenOptions::new()
        .write(true)
        .open(place.source("large"))
        .unwrap();
    file.write_all_at(&random.bytes(BLOCK), 40 << 30).unwrap();
    let third = place.backup();
    assert_eq!(third.bytes_new, BLOCK as u64);
    place.restore_is_exact("latest", "third");
    place.verify_is_ok(None);
}

#[test]
fn files_around_one_extent_and_one_block_come_back() {
    let place = Place::sealed();
    let mut random = Random(2);
    let extent = 64 * MIB as u64;
    let sizes = [
        0,
        1,
        BLOCK as u64 - 1,
        BLOCK as u64,
        BLOCK as u64 + 1,
        MIB as u64 - 1,
        MIB as u64,
        MIB as u64 + 1,
        extent - 1,
        extent,
        extent + 1,
        2 * extent - 1,
        2 * extent,
        2 * extent + 1,
    ];
    for size in sizes {
        let head = random.bytes((2 * BLOCK as u64).min(size) as usize);
        let tail = random.bytes((3 * BLOCK as u64).min(size) as usize);
        let at = size - tail.len() as u64;
        write_sparse(
            &place.source(&format!("{size}")),
            size,
            &[(0, &head), (at, &tail)],
        );
    }
    place.backup();
    place.restore_is_exact("latest", "out");
    for size in sizes {
        let name = format!("{size}");
        let restored = place.path("out").join(&name);
        assert_eq!(
            data_map(&place.source(&name)),
            data_map(&restored),
            "{name}"
        );
    }
    assert_eq!(place.backup().bytes_new, 0);
    place.verify_is_ok(None);
}

/// What a file takes on the disk is more than its contents: space that is kept behind its end, and attributes.
#[test]
fn holes_come_back_where_as_much_is_allocated_for_something_else() {
    let place = Place::plain();
    let len = 16 * MIB as u64;
    let block = Random(4).bytes(BLOCK);
    let (kept, tagged) = (place.source("kept"), place.source("tagged"));
    write_sparse(&kept, len, &[(0, &block)]);
    let file = fs::OpenOptions::new().write(true).open(&kept).unwrap();
    rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, len, len).unwrap();
    write_sparse(&tagged, 2 * BLOCK as u64, &[(0, &block)]);
    rustix::fs::setxattr(&tagged, "user.long", &[7; 3_000], XattrFlags::empty()).unwrap();
    for path in [&kept, &tagged] {
        fs::File::open(path).unwrap().sync_all().unwrap();
    }
    let taken = |path: &Path| path.metadata().unwrap().blocks() * 512;
    assert!(taken(&kept) >= len, "nothing is kept behind the end");

    let summary = place.backup();
    assert_eq!(summary.bytes_read, 2 * BLOCK as u64);
    assert_eq!(summary.hole_bytes, len);
    let options = place.restore_options("latest", "out", false);
    let planned = restore::plan(&engine(), &options, &mut |_, _| {}).unwrap();
    assert_eq!(
        planned.data_bytes,
        2 * BLOCK as u64,
        "what is made room for"
    );
    drop(planned);
    place.restore_is_exact("latest", "out");
    let (kept_out, tagged_out) = (place.path("out/kept"), place.path("out/tagged"));
    for (source, restored) in [(&kept, &kept_out), (&tagged, &tagged_out)] {
        assert_eq!(data_map(restored), [(0, BLOCK as u64)]);
        assert_eq!(data_map(source), data_map(restored));
    }
    assert!(taken(&kept_out) < MIB as u64, "{}", taken(&kept_out));
    assert!(
        taken(&tagged_out) <= taken(&tagged),
        "{}",
        taken(&tagged_out)
    );
}

/// Known, new, zero and hole blocks in turn, so that every frame is gathered from pieces and every leaf has
/// thousands of runs.
#[test]
fn fragmented_generations_all_come_back_with_the_smallest_arena() {
    let place = Place::sealed();
    let small = Engine {
        shards: 1,
        arena_bytes: 12 * MIB,
        index_bytes: 1 << 16,
        ..engine()
    };
    let blocks = 6000;
    let mut random = Random(3);
    let path = place.source("a");
    fs::write(&path, random.bytes(blocks * BLOCK)).unwrap();
    fs::write(place.source("b"), random.bytes(MIB)).unwrap();
    let mut ids = Vec::new();
    for generation in 0..4 {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        if generation > 0 {
            for block in 0..blocks as u64 {
                let at = block * BLOCK as u64;
                match random.next() % 8 {
                    0 | 1 => file.write_all_at(&random.bytes(BLOCK), at).unwrap(),
                    2 => file.write_all_at(&[0; BLOCK], at).unwrap(),
                    3 => punch(&file, at, BLOCK as u64),
                    4 => {
                        // A block from elsewhere.
                        let mut other = vec![0; BLOCK];
                        let from = random.next() % blocks as u64;
                        file.read_exact_at(&mut other, from * BLOCK as u64).unwrap();
                        file.write_all_at(&other, at).unwrap();
                    }
                    _ => {}
                }
            }
        }
        file.sync_all().unwrap();
        drop(file);
        copy_tree(
            &place.path("source"),
            &place.path(&format!("truth{generation}")),
        );
        let summary = place.try_backup(&small, &place.backup_options()).unwrap();
        ids.push(summary.backup_id.to_string());
    }
    for (generation, id) in ids.iter().enumerate() {
        let to = format!("out{generation}");
        place
            .try_restore(&small, &place.restore_options(id, &to, false))
            .unwrap();
        for name in ["a", "b"] {
            assert_same_bytes(
                &place.path(&format!("truth{generation}")).join(name),
                &place.path(&to).join(name),
            );
        }
    }
    let last = ids.len() - 1;
    assert_eq!(
        data_map(&path),
        data_map(&place.path(&format!("out{last}/a")))
    );
    // Back through the generations in place.
    for (generation, id) in ids.iter().enumerate() {
        place
            .try_restore(&small, &place.restore_options(id, "out0", true))
            .unwrap();
        assert_same_bytes(
            &place.path(&format!("truth{generation}/a")),
            &place.path("out0/a"),
        );
    }
    assert_eq!(data_map(&path), data_map(&place.path("out0/a")));
    place.verify_is_ok(None);
}
