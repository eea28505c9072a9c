//! Names in a local store that no object can have: listings tell them, once, and are complete without them.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs;
use std::os::unix::fs::symlink;

use mover_base::Result;
use mover_io::{Shard, ShardConfig};
use mover_store::{LinkLimits, STRAYS_MAX, Store};
use tempfile::TempDir;

/// All pages of a listing.
#[derive(Default)]
struct Listed {
    objects: Vec<(String, u64)>,
    strays: Vec<String>,
}

async fn list_all(store: &Store, shard: &Shard, prefix: &str, limit: usize) -> Result<Listed> {
    let mut all = Listed::default();
    let mut after = None;
    loop {
        let page = store.list(shard, prefix, after.as_ref(), limit).await?;
        let objects = page.objects.into_iter();
        all.objects
            .extend(objects.map(|object| (object.key.as_str().to_owned(), object.bytes)));
        all.strays.extend(page.strays);
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(all),
        }
    }
}

#[test]
fn a_name_that_no_object_has_is_told_once_and_hides_no_object() {
    let directory = TempDir::new().expect("a temporary directory");
    let root = directory.path();
    let store = Store::open(
        &format!("file://{}", root.display()),
        &LinkLimits::default(),
    )
    .expect("an absolute path");
    for made in [
        "tmp",
        "lost+found",
        "packs/.d",
        "other/Sub",
        "d/d/d/d/d/d/d/d/d",
    ] {
        fs::create_dir_all(root.join(made)).expect("writable");
    }
    for (file, bytes) in [
        ("tmp/x.part", "t"),
        ("lost+found/#1", "l"),
        ("packs/.d/inside", "i"),
        ("packs/UPPER", "u"),
        ("packs/ok", "1"),
        ("packs/with space", "w"),
        ("packs/zz\n", "z"),
        ("other/a", "22"),
        ("README", "r"),
        // Removed, and still open somewhere.
        (".nfs0000000000a1b2c3", "n"),
        ("packs/.nfs0000000000a1b2c300000004", "n"),
        ("packs/.fuse_hidden0000000500000001", "f"),
        ("packs/.nfs", "d"),
        ("packs/.nfs-notes", "d"),
    ] {
        fs::write(root.join(file), bytes).expect("writable");
    }
    symlink("/", root.join("packs/Link")).expect("a link");
    let told = [
        "README",
        "d/d/d/d/d/d/d/d/",
        "other/Sub/",
        "packs/.d/",
        "packs/.nfs",
        "packs/.nfs-notes",
        "packs/Link",
        "packs/UPPER",
        "packs/with space",
        "packs/zz\\n",
    ];
    let body = async |shard: Shard| {
        let packs = list_all(&store, &shard, "packs/", 10).await?;
        assert_eq!(packs.objects, [("packs/ok".to_owned(), 1)]);
        let both = [("other/a".to_owned(), 2), ("packs/ok".to_owned(), 1)];
        for limit in [1, 2, 10] {
            let all = list_all(&store, &shard, "", limit).await?;
            assert_eq!(all.objects, both);
            assert_eq!(all.strays, told);
        }
        for more in 0..2 * STRAYS_MAX {
            fs::write(root.join(format!("packs/S{more}")), b"").expect("writable");
        }
        let all = list_all(&store, &shard, "", 10).await?;
        assert_eq!(all.objects, both);
        assert!(all.strays.len() <= STRAYS_MAX);
        Ok(())
    };
    let config = ShardConfig {
        shards: 1,
        pin: false,
        ..ShardConfig::default()
    };
    mover_io::run(&config, body, |_| {}).expect("a run");
}
