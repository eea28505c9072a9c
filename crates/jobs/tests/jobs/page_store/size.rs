//! What an incremental backup of a page store reads and stores, against what changed by the model or by the files.

use super::*;

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
    // Changed pages, the log from its last checkpoint on, control file and catalogue.
    let most = (changed as u64 + 40) * BLOCK as u64;
    assert!(
        summary.bytes_read < most,
        "{} of {most}",
        summary.bytes_read
    );
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
    let read = summary.bytes_read / BLOCK as u64;
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
