//! Tables whose files lost pages that nothing in the log names, and repositories that are damaged beside that: what the base has is
//! taken over and told; what neither has is an error, and never zeros in a backup.
//!
//! Invariant: what was lost is known by the bytes of the file before.

use mover_pagedb::workload::{ACCOUNT_ROWS, ACCOUNTS};
use mover_source::pages::{CATALOGUE_FILE, CONTROL_FILE};

use super::*;

/// Flips a bit in the trailer of each of these packs: they cannot be opened any more.
pub(super) fn damage(place: &Place, packs: &[String]) {
    assert!(!packs.is_empty());
    for name in packs {
        flip(place, name, |len| len - 3);
    }
}

fn flip(place: &Place, name: &str, at: fn(usize) -> usize) {
    let path = place.object(name);
    let mut bytes = fs::read(&path).unwrap();
    let at = at(bytes.len());
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
}

/// A store with a table of so many pages, all full, and nothing in its log behind the redo position.
fn place_with_table(seed: u8, pages: u32) -> Place {
    let place = Place::plain();
    let source = disk(&place.path("source"));
    let identity = new_identity([seed; 32], SegmentSize::new(20).unwrap());
    drop(Bulk::make(&source, identity, u64::from(seed), pages).unwrap());
    place
}

fn options(place: &Place, backup_type: BackupType) -> BackupOptions {
    BackupOptions {
        source: format!("pages://{}", place.path("source").display()),
        backup_type,
        ..place.backup_options()
    }
}

fn back_up(place: &Place, backup_type: BackupType) -> Result<BackupSummary> {
    place.try_backup(&engine(), &options(place, backup_type))
}

fn set_len(path: &Path, bytes: usize) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_len(bytes as u64).unwrap();
}

/// What a backup says of lost pages.
fn told(summary: &BackupSummary) -> Vec<&str> {
    let warnings = summary.warnings.iter().map(String::as_str);
    warnings.filter(|text| text.contains("has lost")).collect()
}

/// The table as the backup gives it back is `sound`.
fn restores_table(place: &Place, made: &BackupSummary, sound: &[u8]) {
    let to = format!("restored-{}", made.backup_id);
    let options = place.restore_options(&made.backup_id.to_string(), &to, false);
    place.try_restore(&engine(), &options).unwrap();
    let restored = fs::read(place.path(&to).join(table_path(TABLE))).unwrap();
    assert!(restored == sound, "the table is another one");
}

#[test]
fn a_table_that_lost_its_end_is_told_by_every_backup() {
    let place = place_with_table(80, 600);
    let first = back_up(&place, BackupType::Full).unwrap();
    let path = place.source(&table_path(TABLE));
    let sound = fs::read(&path).unwrap();
    assert_eq!(sound.len(), 600 * BLOCK);
    set_len(&path, 300 * BLOCK);
    let mut base = first.backup_id;
    for backup_type in [
        BackupType::Incremental,
        BackupType::Incremental,
        BackupType::Differential,
    ] {
        let made = back_up(&place, backup_type).unwrap();
        if backup_type == BackupType::Differential {
            base = first.backup_id;
        }
        assert_eq!((made.backup_type, made.base), (backup_type, Some(base)));
        let [text] = told(&made)[..] else {
            panic!("{:?}", made.warnings);
        };
        let wanted = format!(
            "table 00000001, page 300: from there on the table's file has lost 300 pages that backup {base} has. This backup has them"
        );
        assert!(text.starts_with(&wanted), "{text}");
        restores_table(&place, &made, &sound);
        base = made.backup_id;
    }
    // A full one has nothing to take them from, whether the file ends there, or has a hole or zeros.
    let manifests = place.objects("backups/");
    let mut zeros = sound.clone();
    zeros[300 * BLOCK..].fill(0);
    for damage in 0..3 {
        match damage {
            0 => set_len(&path, 300 * BLOCK),
            1 => set_len(&path, 600 * BLOCK),
            _ => fs::write(&path, &zeros).unwrap(),
        }
        let error = back_up(&place, BackupType::Full).map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{damage}: {error}");
        let lost = format!("lost 300 pages that backup {base} has");
        assert!(error.message().contains(&lost), "{error}");
        assert_eq!(error.object_name(), Some("table 00000001, page 300"));
        assert!(error.hint_text().unwrap().contains("--type incr"));
        assert_eq!(place.objects("backups/"), manifests);
    }
    fs::write(&path, &sound).unwrap();
    for backup_type in [BackupType::Incremental, BackupType::Full] {
        let made = back_up(&place, backup_type).unwrap();
        assert_eq!((made.backup_type, told(&made)), (backup_type, vec![]));
        restores_table(&place, &made, &sound);
    }
}

#[test]
fn lost_pages_of_a_base_that_lacks_a_pack_are_told_with_what_ends_that() {
    let place = place_with_table(86, 600);
    let base = back_up(&place, BackupType::Full).unwrap().backup_id;
    let path = place.source(&table_path(TABLE));
    let mut zeros = fs::read(&path).unwrap();
    zeros[300 * BLOCK..].fill(0);
    set_len(&path, 300 * BLOCK);
    fs::remove_file(place.object(&place.packs(true)[0])).unwrap();
    let manifests = place.objects("backups/");
    // The one asked for first can only be a full one, too.
    for backup_type in [BackupType::Incremental, BackupType::Full] {
        let error = back_up(&place, backup_type).map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        let lost = format!("lost 300 pages that backup {base} has");
        assert!(error.message().contains(&lost), "{error}");
        let hint = error.hint_text().unwrap();
        let otherwise = "if no incremental backup can be made, restore that backup to another place, and `--no-parent` backs up the table as it is";
        assert!(hint.ends_with(otherwise), "{hint}");
        assert_eq!(place.objects("backups/"), manifests);
    }
    let full = options(&place, BackupType::Full);
    let plan = backup::plan_anew(&engine(), &full, &mut |_, _| {}).unwrap();
    let made = backup::execute(&engine(), plan, &mut |_, _| {}).unwrap();
    assert_eq!((made.parent, told(&made)), (None, vec![]));
    restores_table(&place, &made, &zeros);
    // That is what later ones are compared with.
    for backup_type in [BackupType::Incremental, BackupType::Full] {
        let next = back_up(&place, backup_type).unwrap();
        assert_eq!((next.backup_type, told(&next)), (backup_type, vec![]));
    }
}

/// The log is gone at the base's end, and nobody vouches for it: the store may be one that was put back, whose table was shorter.
#[test]
fn a_full_backup_tells_what_may_be_lost_where_the_log_is_not_known_again() {
    let mut site = Site::new(81, 14);
    site.run(40);
    site.database().checkpoint().unwrap();
    let base = site.backup(BackupType::Full);
    site.run(60);
    site.database().checkpoint().unwrap();
    assert!(base.end() < site.redo_segment());
    site.trim(site.redo_segment());
    site.kill();
    let (table, path, pages) = accounts_file(&site);
    let kept = pages / 2;
    set_len(&path, kept * BLOCK);
    let made = site.backup(BackupType::Full);
    let lost = pages - kept;
    let id = base.summary.backup_id;
    let [text] = told(&made.summary)[..] else {
        panic!("{:?}", made.summary.warnings);
    };
    let wanted = format!(
        "table {table:08x}, page {kept}: from there on the table's file has lost {lost} pages that backup {id} has, and this backup lacks them"
    );
    assert!(text.starts_with(&wanted), "{text}");
}

/// The table of the accounts, its file, and how many pages that has.
fn accounts_file(site: &Site) -> (u32, std::path::PathBuf, usize) {
    let catalogue = read_catalogue(&*disk(&site.place.path("source"))).unwrap();
    let mut tables = catalogue.tables().iter();
    let accounts = tables.find(|(_, table)| table.name == ACCOUNTS);
    let table = *accounts.unwrap().0;
    let path = site.place.source(&table_path(table));
    let pages = fs::metadata(&path).unwrap().len() as usize / BLOCK;
    assert!(pages >= 4, "{pages}");
    (table, path, pages)
}

/// As where power failed: the file is shorter than it was, and what was in it comes back from the log.
#[test]
fn lost_pages_that_the_log_has_images_of_are_no_damage_and_not_told() {
    for (backup_type, damaged, zeros) in [
        (BackupType::Incremental, false, false),
        (BackupType::Incremental, true, false),
        (BackupType::Full, false, false),
        (BackupType::Full, false, true),
    ] {
        let mut site = Site::new(82, 20);
        site.run(100);
        site.database().checkpoint().unwrap();
        let base = site.backup(BackupType::Full);
        let add = |key| Op::Add(ACCOUNTS.to_owned(), key, 7);
        let adds: Vec<Op> = (0..ACCOUNT_ROWS).map(add).collect();
        site.database().commit(&adds).unwrap();
        site.kill();
        let (_, path, pages) = accounts_file(&site);
        let kept = pages / 2;
        set_len(&path, kept * BLOCK);
        if zeros {
            let file = fs::File::options().write(true).open(&path).unwrap();
            let lost = vec![0u8; (pages - kept) * BLOCK];
            file.write_all_at(&lost, (kept * BLOCK) as u64).unwrap();
        }
        if damaged {
            damage(&site.place, &site.place.packs(true));
        }
        let made = site.backup(backup_type);
        assert_eq!(made.summary.backup_type, backup_type);
        assert_eq!(made.summary.parent, Some(base.summary.backup_id));
        assert_eq!(told(&made.summary), [""; 0]);
        // What is not taken over is left to the log.
        let torn = if damaged { pages - kept } else { 0 };
        assert_eq!(made.summary.torn_pages, torn as u64);
        site.check(&made);
    }
}

#[test]
fn what_neither_the_base_nor_the_file_has_is_damage_and_not_zeros() {
    let place = place_with_table(83, 600);
    let base = back_up(&place, BackupType::Full).unwrap();
    damage(&place, &place.packs(true));
    let path = place.source(&table_path(TABLE));
    let sound = fs::read(&path).unwrap();
    let manifests = place.objects("backups/");
    // The file ends there, or has a hole there, or zeros.
    for damage in 0..3 {
        let mut zeros = sound.clone();
        zeros[300 * BLOCK..].fill(0);
        fs::write(&path, zeros).unwrap();
        if damage < 2 {
            set_len(&path, 300 * BLOCK);
        }
        if damage == 1 {
            set_len(&path, 600 * BLOCK);
        }
        let made = back_up(&place, BackupType::Incremental);
        let error = made.map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{damage}: {error}");
        assert!(error.message().contains("no image of it"), "{error}");
        assert_eq!(error.object_name(), Some("table 00000001, page 300"));
        assert_eq!(place.objects("backups/"), manifests);
    }
    fs::write(&path, &sound).unwrap();
    let made = back_up(&place, BackupType::Incremental).unwrap();
    let kind = (made.backup_type, made.base);
    assert_eq!(kind, (BackupType::Incremental, Some(base.backup_id)));
    let is_damage = |text: &String| text.contains("parent backup are damaged");
    assert!(made.warnings.iter().any(is_damage), "{:?}", made.warnings);
    restores_table(&place, &made, &sound);
}

/// A page of zeros was never written, or is lost, which the base's map would tell.
#[test]
fn a_base_whose_map_is_damaged_is_told_as_that_and_not_as_a_damaged_database() {
    let place = place_with_table(84, 1200);
    let path = place.source(&table_path(TABLE));
    let file = fs::File::options().write(true).open(&path).unwrap();
    // So many runs that the map of the table is an object of its own.
    for page in (1..1200).step_by(2) {
        punch(&file, page * BLOCK as u64, BLOCK as u64);
    }
    back_up(&place, BackupType::Full).unwrap();
    let sound = fs::read(&path).unwrap();
    place.save_repo("saved");
    let mut told = 0;
    for name in place.packs(false) {
        place.reset_repo("saved");
        flip(&place, &name, |len| len / 2);
        match back_up(&place, BackupType::Incremental) {
            Err(error) => {
                told += 1;
                assert_eq!(error.kind(), Kind::Corrupt, "{error}");
                assert!(error.message().contains("map of the backup"), "{error}");
                assert_eq!(error.object_name(), Some(&name[..]));
                let hint = error.hint_text().unwrap();
                assert!(hint.contains("--type full"), "{hint}");
                let full = back_up(&place, BackupType::Full).unwrap();
                restores_table(&place, &full, &sound);
            }
            // The list of the base's files cannot be read, and so it is none.
            Ok(made) => {
                assert_eq!(made.backup_type, BackupType::Full);
                restores_table(&place, &made, &sound);
            }
        }
    }
    assert_eq!(told, 1, "the map of one table");
}

/// As where the machine stopped before a checkpoint, and the files lost what was written since the one before. Whether the base has
/// these pages is not asked of its damaged map, since the log brings them.
#[test]
fn pages_that_the_log_has_images_of_need_no_map_of_the_base() {
    let place = place_with_table(87, 1200);
    back_up(&place, BackupType::Full).unwrap();
    let mut bulk = Bulk::open(&disk(&place.path("source")), 87).unwrap();
    // So many runs that the map of the table is an object of its own.
    bulk.change(600).unwrap();
    let base = back_up(&place, BackupType::Incremental).unwrap();
    assert_eq!(base.backup_type, BackupType::Incremental);
    let before = [CONTROL_FILE, CATALOGUE_FILE].map(|name| place.source(name));
    let before = before.map(|path| (fs::read(&path).unwrap(), path));
    let changed = bulk.change(40).unwrap();
    drop(bulk);
    for (bytes, path) in before {
        fs::write(path, bytes).unwrap();
    }
    let path = place.source(&table_path(TABLE));
    let sound = fs::read(&path).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    for page in &changed {
        punch(&file, u64::from(*page) * BLOCK as u64, BLOCK as u64);
    }
    place.save_repo("saved");
    let mut damaged = 0;
    for name in place.packs(false) {
        place.reset_repo("saved");
        flip(&place, &name, |len| len / 2);
        let made = back_up(&place, BackupType::Incremental).unwrap();
        let is_damage = |text: &String| text.contains("parent backup are damaged");
        if made.backup_type == BackupType::Incremental && made.warnings.iter().any(is_damage) {
            damaged += 1;
            assert_eq!(made.base, Some(base.backup_id));
        }
        assert_eq!(told(&made), [""; 0]);
        restores_table(&place, &made, &sound);
    }
    assert!(damaged > 0, "the map of the table is an object of its own");
}

#[test]
fn what_is_read_in_the_place_of_a_damaged_base_is_paid_to_the_limit() {
    const TICKS: u32 = 10;
    let place = place_with_table(85, 600);
    back_up(&place, BackupType::Full).unwrap();
    damage(&place, &place.packs(true));
    let budget = RateBudget::new(None);
    let limited = Engine {
        limits: JobLimits {
            read: budget.clone(),
            ..JobLimits::default()
        },
        ..engine()
    };
    let incremental = options(&place, BackupType::Incremental);
    let plan = backup::plan(&limited, &incremental, &mut |_, _| {}).unwrap();
    // Nothing may pass: the tables are not left behind before it may.
    budget.set(Some(0));
    let (mut ticks, mut passed) = (0, false);
    let made = backup::execute(&limited, plan, &mut |progress, _| {
        match progress.read().phase {
            Phase::Copy => ticks += 1,
            Phase::Log if (1..TICKS).contains(&ticks) => passed = true,
            _ => {}
        }
        if passed || ticks >= TICKS {
            budget.set(None);
        }
    });
    assert!(!passed, "tables were read without paying");
    let made = made.unwrap();
    assert_eq!(made.backup_type, BackupType::Incremental);
    assert!(made.bytes_read - made.log_bytes_read >= (600 * BLOCK) as u64);
}
