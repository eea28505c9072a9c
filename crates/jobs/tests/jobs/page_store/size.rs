//! What an incremental backup of a page store reads and stores, against what changed by the model or by the files; and what its
//! manifest says of sizes, against what lies on disk.

use mover_jobs::catalogue;
use mover_jobs::expire::{self, ExpireOptions, Policy};

use super::*;

/// What a backup read to copy it, and not to find out what to copy.
fn copied(summary: &BackupSummary) -> u64 {
    summary.bytes_read - summary.log_bytes_read
}

#[test]
fn an_incremental_reads_and_stores_what_changed() {
    let mut site = Site::new(1, 20);
    site.run(600);
    site.database().checkpoint().unwrap();
    let full = site.backup(BackupType::Full);
    assert_eq!(full.summary.backup_type, BackupType::Full);
    assert_eq!(full.summary.base, None);
    let before = site.database().journal();
    for _ in 0..3 {
        let ops = site.workload.next_transaction();
        site.database().commit(&ops).unwrap();
    }
    site.database().checkpoint().unwrap();
    let incremental = site.backup(BackupType::Incremental);
    let summary = &incremental.summary;
    assert_eq!(summary.backup_type, BackupType::Incremental);
    assert_eq!(summary.base, Some(full.summary.backup_id));
    assert_eq!(summary.reason, None);
    let changed: usize = incremental.journal.0[before.0.len()..]
        .iter()
        .map(|commit| commit.pages.len())
        .sum();
    assert!(changed > 0);
    // Changed pages, the log from its last checkpoint on, control file and catalogue, the tracker if there is one.
    let most = (changed as u64 + 40) * BLOCK as u64;
    let pages_read = copied(summary);
    assert!(pages_read < most, "{pages_read} of {most}");
    // The log since the base's redo position; of a segment more than that, and once more what lies behind the redo position.
    let size = SegmentSize::new(20).unwrap();
    let range = summary.lsn_range.unwrap();
    let since = full.summary.lsn_range.unwrap().start;
    let least = range.end.0 - since.0;
    let segments = (size.start_of(range.end).0 - size.start_of(since).0) / size.bytes() + 1;
    let most = (segments + 2) * size.bytes();
    assert!(
        (least..=most).contains(&summary.log_bytes_read),
        "{} of {least} to {most}",
        summary.log_bytes_read
    );
    // A full one looks for the end alone.
    let range = full.summary.lsn_range.unwrap();
    let (least, most) = (range.end.0 - range.start.0, 3 * size.bytes());
    assert!((least..=most).contains(&full.summary.log_bytes_read));
    let catalogue = read_catalogue(&*disk(&site.place.path("source"))).unwrap();
    let pages: u32 = catalogue.tables().values().map(|table| table.pages).sum();
    assert!(summary.bytes_kept > u64::from(pages) * BLOCK as u64 / 2);
    site.check(&full);
    site.check(&incremental);
    // Differential: since the full one, whatever came between.
    let differential = site.backup(BackupType::Differential);
    assert_eq!(differential.summary.base, Some(full.summary.backup_id));
    site.check(&differential);
}

/// The pages that a backup copies now, by table and number: as the files have them, and as many as the last checkpoint
/// says.
fn table_pages(site: &Site) -> BTreeMap<(u32, usize), Vec<u8>> {
    let source = site.place.path("source");
    let catalogue = read_catalogue(&*disk(&source)).unwrap();
    let mut pages = BTreeMap::new();
    for (table, kept) in catalogue.tables() {
        let bytes = fs::read(source.join(table_path(*table))).unwrap();
        let blocks = bytes.chunks(BLOCK).take(kept.pages as usize);
        pages.extend(
            (0..)
                .zip(blocks)
                .map(|(page, bytes)| ((*table, page), bytes.to_vec())),
        );
    }
    pages
}

#[test]
fn pages_that_the_base_has_already_are_not_stored_again_though_the_log_names_them() {
    let mut site = Site::new(3, 20);
    site.run(4000);
    site.database().checkpoint().unwrap();
    // More pages than the database holds in memory: most are in the files before the next checkpoint.
    site.run(400);
    let full = site.backup(BackupType::Full);
    let before = table_pages(&site);
    site.database().checkpoint().unwrap();
    let after = table_pages(&site);
    let incremental = site.backup(BackupType::Incremental);
    let summary = &incremental.summary;
    assert_eq!(summary.base, Some(full.summary.backup_id));
    let differs = after
        .iter()
        .filter(|(at, page)| before.get(*at) != Some(page));
    let changed = differs.count() as u64;
    let log_and_lists = 12;
    let read = copied(summary) / BLOCK as u64;
    let new = summary.bytes_new / BLOCK as u64;
    assert!(
        read > 2 * (changed + log_and_lists),
        "read {read}, {changed} changed"
    );
    assert!(
        new <= changed + log_and_lists,
        "new {new}, {changed} changed"
    );
    site.check(&incremental);
}

/// 2 GB in full, 100 MB of them changed in blocks at random: what the incremental backup takes follows what changed.
#[test]
fn an_incremental_takes_little_more_than_what_changed_compressed() {
    const PAGES: u32 = 2_000_000_000 / BLOCK as u32;
    let place = Place::plain();
    let source = disk(&place.path("source"));
    let identity = new_identity([5; 32], SegmentSize::DEFAULT);
    let mut bulk = Bulk::make(&source, identity, 5, PAGES).unwrap();
    let options = |backup_type| BackupOptions {
        source: format!("pages://{}", place.path("source").display()),
        backup_type,
        level: 3,
        ..place.backup_options()
    };
    let make = |backup_type| place.try_backup(&engine(), &options(backup_type)).unwrap();
    let full = make(BackupType::Full);
    let changed = bulk.change(100_000_000 / BLOCK).unwrap();
    let made = make(BackupType::Incremental);
    assert_eq!(
        (made.backup_type, made.base),
        (BackupType::Incremental, Some(full.backup_id))
    );
    // What changed is read once, and little else is copied; the log since the base is looked through, and all of the segment
    // that it ends in, each a few pieces too far.
    let pages = (changed.len() * BLOCK) as u64;
    assert!((pages..pages + 16 * BLOCK as u64).contains(&copied(&made)));
    let range = made.lsn_range.unwrap();
    let log = range.end.0 - full.lsn_range.unwrap().start.0;
    let most = log + SegmentSize::DEFAULT.bytes() + 16 * MIB as u64;
    assert!((log..most).contains(&made.log_bytes_read), "{made:?}");
    // Promised: under 5 % of the full backup's source.
    assert!(
        made.bytes_stored * 20 < full.bytes_source,
        "{}",
        made.bytes_stored
    );
    // And under 1.05 of what the changed blocks take, compressed 256 at a time.
    let mut compressed = 0;
    let mut frame = Vec::new();
    for (at, page) in (1..).zip(&changed) {
        frame.extend_from_slice(&bulk.file().read(*page).unwrap());
        if at % 256 == 0 || at == changed.len() {
            compressed += zstd::bulk::compress(&frame, 3).unwrap().len() as u64;
            frame.clear();
        }
    }
    let ratio = made.bytes_stored as f64 / compressed as f64;
    assert!(
        ratio < 1.05,
        "{ratio}: {} of {compressed}",
        made.bytes_stored
    );
    let half = compressed as f64 / (changed.len() * BLOCK) as f64;
    assert!((0.3..0.7).contains(&half), "rows compress to {half}");
    let options = place.restore_options(&made.backup_id.to_string(), "restored", false);
    place.try_restore(&engine(), &options).unwrap();
    let same = std::process::Command::new("cmp")
        .arg(place.source(&table_path(TABLE)))
        .arg(place.path("restored").join(table_path(TABLE)))
        .status();
    assert!(same.unwrap().success());
}

/// Names and lengths of the repository's packs.
fn packs(place: &Place) -> BTreeMap<String, u64> {
    let length = |name: &String| fs::metadata(place.object(name)).unwrap().len();
    let names = place.objects("packs/").into_iter();
    names.map(|name| (name.clone(), length(&name))).collect()
}

#[test]
fn what_a_manifest_says_of_sizes_is_what_lies_there() {
    let mut site = Site::new(4, 16);
    let mut before = BTreeMap::new();
    for backup_type in [
        BackupType::Full,
        BackupType::Incremental,
        BackupType::Differential,
    ] {
        // Most pages are as the full backup has them.
        site.run(match backup_type {
            BackupType::Full => 1000,
            _ => 5,
        });
        site.database().checkpoint().unwrap();
        site.run(5);
        let made = site.backup(backup_type);
        let summary = &made.summary;
        let id = summary.backup_id.to_string();
        let shown = catalogue::show(&engine(), &site.place.access(), &id).unwrap();
        let sizes = &shown.metadata.size_info;
        assert_eq!(shown.metadata.backup_type, backup_type);
        // The files that the backup has: of the log the segments of its range.
        let source = disk(&site.place.path("source"));
        let control = read_control(&*source).unwrap();
        let tables = read_catalogue(&*source).unwrap();
        let pages = tables.tables().values().map(|table| u64::from(table.pages));
        let size = control.identity.size;
        let range = summary.lsn_range.unwrap();
        let segments =
            1 + (size.start_of(range.end).0 - size.start_of(range.start).0) / size.bytes();
        let length = |name: &str| fs::metadata(site.place.source(name)).unwrap().len();
        let lists = [length("control"), length("catalogue")];
        let bytes = pages.sum::<u64>() * BLOCK as u64 + segments * size.bytes();
        let bytes = bytes + lists.iter().sum::<u64>();
        let files = 2 + tables.tables().len() as u64 + segments;
        assert_eq!(
            (sizes.original_bytes, sizes.files, sizes.dirs),
            (bytes, files, 3)
        );
        assert_eq!((sizes.symlinks, sizes.hardlinks), (0, 0));
        assert_eq!(summary.bytes_source, bytes);
        assert!(sizes.data_bytes < bytes);
        // Each block is new, known, or nothing; only the catalogue does not end with one.
        let whole = bytes.div_ceil(BLOCK as u64);
        assert_eq!(sizes.blocks + sizes.hole_blocks, whole);
        let new = sizes.new_bytes / BLOCK as u64;
        assert_eq!(
            sizes.blocks,
            new + sizes.deduplicated_blocks + sizes.zero_blocks
        );
        assert!(new > 0 && sizes.compressed_bytes < sizes.new_bytes);
        // What came to the repository: packs, and the manifest.
        let now = packs(&site.place);
        let came = now.iter().filter(|(name, _)| !before.contains_key(*name));
        let came: u64 = came.map(|(_, bytes)| bytes).sum();
        assert_eq!(sizes.encrypted_bytes, came);
        let manifest = format!("repo/backups/{id}");
        let manifest = fs::metadata(site.place.path(&manifest)).unwrap().len();
        assert_eq!(summary.bytes_stored, came + manifest);
        // The packs that it needs are those that are left when it is alone.
        let needed = if backup_type == BackupType::Differential {
            let policy = Policy {
                last: 1,
                ..Policy::default()
            };
            let repo = site.place.access();
            let options = ExpireOptions::by_rules(repo, policy);
            let plan = expire::plan(&engine(), &options, &mut |_, _| {}).unwrap();
            expire::execute(&engine(), plan, &mut |_, _| {}).unwrap();
            let needed = packs(&site.place);
            assert!(needed.len() < now.len());
            needed
        } else {
            now.clone()
        };
        let count = shown.metadata.storage_info.pack_count;
        if backup_type == BackupType::Incremental {
            assert!(count <= needed.len() as u64);
        } else {
            assert_eq!(count, needed.len() as u64);
            assert_eq!(shown.pack_bytes, needed.values().sum::<u64>());
        }
        assert_eq!(shown.packs, count);
        // Those that it wrote are not all of them, unless it is full.
        let of_others = count - summary.packs;
        assert_eq!(of_others > 0, backup_type != BackupType::Full);
        before = now;
        site.check(&made);
    }
}
