//! What a backup of a page store does not find as it should be, and what the log then has to make good: torn pages, tables without a
//! file, pages that an earlier backup has and the files have not.
//!
//! Invariants: lost pages are kept as bits of at most [`LOST_WORDS_MAX`] words, of all tables, and what is beyond is counted; nothing is
//! struck out but by a record of the log.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use mover_base::{BackupId, Error, Kind, Result};
use mover_source::wal::Record;

/// What to do about pages that a full backup would lack.
const LOST_HINT: &str = "the database is damaged there; back it up with `--type incr`, which takes over from that backup what was lost, and restore what that makes; if no incremental backup can be made, restore that backup to another place, and `--no-parent` backs up the table as it is";
/// Pages in a word of lost ones.
const WORD_PAGES: u32 = u64::BITS;
/// Words of lost pages that are kept, of all tables: some 5 MB, 64 GiB of pages in a row, or so many that are scattered.
const LOST_WORDS_MAX: usize = 1 << 18;
/// Tables that lost pages and are told one by one; of the others, how many they are.
const LOSERS_TOLD_MAX: usize = 20;

/// What was found while reading that the log has to make good.
#[derive(Clone, Default)]
pub(super) struct Odd {
    /// Table and page of what is not whole.
    pub torn: BTreeSet<(u32, u32)>,
    /// Tables without a file.
    pub gone: BTreeSet<u32>,
    /// What the earlier backup has and the file has not.
    pub lost: LostTables,
    /// What the file has not, and nobody knows of the earlier backup.
    pub doubtful: LostTables,
}

/// What the files of tables lost, by table.
#[derive(Clone, Default)]
pub(super) struct LostTables {
    tables: BTreeMap<u32, Lost>,
    /// Words in all of them.
    words: usize,
}

impl LostTables {
    /// Each page is added once.
    pub fn add(&mut self, table: u32, pages: Range<u32>) {
        let lost = self.tables.entry(table).or_default();
        let mut at = pages.start;
        while at < pages.end {
            let word = at / WORD_PAGES;
            let end = pages.end.min((word + 1).saturating_mul(WORD_PAGES));
            let bits = (u64::MAX >> (WORD_PAGES - (end - at))) << (at % WORD_PAGES);
            match lost.words.get_mut(&word) {
                Some(known) => *known |= bits,
                None if self.words < LOST_WORDS_MAX => {
                    lost.words.insert(word, bits);
                    self.words += 1;
                }
                None => lost.more += u64::from(end - at),
            }
            at = end;
        }
    }

    /// Strikes out a page of which the log has an image. One whose word is not kept may be one of those that are only counted: so no
    /// more are left of these in the end than the log has no image of.
    fn strike(&mut self, table: u32, page: u32) {
        let Some(lost) = self.tables.get_mut(&table) else {
            return;
        };
        match lost.words.get_mut(&(page / WORD_PAGES)) {
            Some(word) => *word &= !(1u64 << (page % WORD_PAGES)),
            None => lost.more = lost.more.saturating_sub(1),
        }
    }

    fn forget(&mut self, table: u32) {
        self.tables.remove(&table);
    }

    /// The first table of which something is left.
    pub fn first_table(&self) -> Option<u32> {
        self.tables.keys().next().copied()
    }

    /// Refuses to make a full backup that lacks pages which the one before certainly has.
    pub fn refuse(&self, before: Predecessor) -> Result<()> {
        let first = self.tables.first_key_value();
        let Some((table, lost)) = first.filter(|_| before.is_certain) else {
            return Ok(());
        };
        Err(Error::new(
            Kind::Corrupt,
            format!(
                "a table's file has lost {} that backup {} has, and the log holds no image of what was there",
                lost.count_text(),
                before.id
            ),
        )
        .object(lost_object(*table, lost))
        .hint(LOST_HINT))
    }

    /// What there is to say of it. A backup that is not full has the pages, taken over from its base.
    pub fn warnings(&self, before: Predecessor, is_full: bool) -> Vec<String> {
        let told = self.tables.iter().take(LOSERS_TOLD_MAX);
        let mut warnings: Vec<String> = told
            .map(|(table, lost)| {
                let what = format!(
                    "{}: from there on the table's file has lost {} that backup {} has",
                    lost_object(*table, lost),
                    lost.count_text(),
                    before.id
                );
                match is_full {
                    false => format!("{what}. This backup has them, taken over from there: restore it to have them again, and find out what made the file shorter"),
                    true => format!("{what}, and this backup lacks them. Unless the database was put back to an earlier state, hold that backup (`helios-mover hold add`): it is where they are left"),
                }
            })
            .collect();
        if self.tables.len() > LOSERS_TOLD_MAX {
            let more = self.tables.len() - LOSERS_TOLD_MAX;
            warnings.push(format!("tables that lost pages as well: {more}"));
        }
        warnings
    }

    /// Forgets the tables of which nothing is left.
    pub fn forget_mended(&mut self) {
        self.tables.retain(|_, lost| lost.count() > 0);
    }
}

/// What a table's file lost.
#[derive(Clone, Default)]
struct Lost {
    /// A bit for each page, by the page's number divided by [`WORD_PAGES`]. A word that is there has all of its lost pages.
    words: BTreeMap<u32, u64>,
    /// How many more there are at least.
    more: u64,
}

impl Lost {
    fn count(&self) -> u64 {
        let bits = self.words.values().map(|word| word.count_ones());
        bits.map(u64::from).sum::<u64>() + self.more
    }

    /// The first of those that are known one by one.
    fn first(&self) -> Option<u32> {
        let (at, word) = self.words.iter().find(|(_, word)| **word != 0)?;
        Some(at * WORD_PAGES + word.trailing_zeros())
    }

    fn count_text(&self) -> String {
        match self.count() {
            1 => "1 page".to_owned(),
            count => format!("{count} pages"),
        }
    }
}

/// The earlier backup of the same store and history that this one is compared with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Predecessor {
    /// Its id.
    pub id: BackupId,
    /// Whether the store's log is the one that it was made of. If not, the store may have been put back to an earlier state.
    pub is_certain: bool,
}

impl Odd {
    pub fn is_empty(&self) -> bool {
        let absent = [&self.lost, &self.doubtful];
        self.torn.is_empty()
            && self.gone.is_empty()
            && absent.iter().all(|pages| pages.tables.is_empty())
    }

    /// Strikes out what `record` makes good. Only what is listed is asked for, so that memory does not depend on how much
    /// the log changed elsewhere.
    pub fn mend(&mut self, record: &Record<'_>) {
        match *record {
            // The first change of a page behind the redo position is an image of it. Redo mends nothing by another.
            Record::Image { table, page, .. } => {
                self.torn.remove(&(table, page));
                self.lost.strike(table, page);
                self.doubtful.strike(table, page);
            }
            // All that was ever in it is in the log.
            Record::Create { table, .. } => {
                self.gone.remove(&table);
                self.lost.forget(table);
                self.doubtful.forget(table);
            }
            Record::Drop { table } => {
                self.gone.remove(&table);
                self.torn.retain(|(of, _)| *of != table);
                self.lost.forget(table);
                self.doubtful.forget(table);
            }
            _ => {}
        }
    }
}

/// How the first page that a table lost is called.
fn lost_object(table: u32, lost: &Lost) -> String {
    match lost.first() {
        Some(page) => format!("table {table:08x}, page {page}"),
        None => format!("table {table:08x}"),
    }
}

#[cfg(test)]
mod tests {
    use mover_base::Timestamp;
    use mover_source::{page, wal};

    use super::*;

    #[test]
    fn other_tables_of_the_log_do_not_matter_to_what_it_has_to_make_good() {
        let mut odd = Odd {
            torn: BTreeSet::from([(1, 4), (1, 5), (2, 7), (3, 9)]),
            gone: BTreeSet::from([3, 4, 5]),
            ..Odd::default()
        };
        for table in 1..4 {
            odd.lost.add(table, 5..6);
            odd.doubtful.add(table, 5..6);
        }
        let body = &[0; page::BODY_BYTES];
        // More tables and pages than any budget of a whole extraction allows.
        for table in 10..1_000_000 {
            let page = table * 4096;
            odd.mend(&Record::Image { table, page, body });
        }
        odd.mend(&Record::Drop { table: 10 });
        let (kind, name) = (wal::TableKind::Rows, "x");
        odd.mend(&Record::Create {
            table: 11,
            kind,
            name,
        });
        assert_eq!((odd.torn.len(), odd.gone.len()), (4, 3));
        assert_eq!(counts(&odd.lost), [(1, 1), (2, 1), (3, 1)]);

        let (table, page) = (1, 5);
        let ranges = wal::record::Ranges::decode(&[100, 0, 1, 0, 7]).unwrap();
        odd.mend(&Record::Delta {
            table,
            page,
            ranges,
        });
        assert!(odd.torn.contains(&(table, page)), "redo needs an image");
        odd.mend(&Record::Image { table, page, body });
        odd.mend(&Record::Drop { table: 3 });
        assert_eq!(odd.torn, BTreeSet::from([(1, 4), (2, 7)]));
        assert_eq!(odd.gone, BTreeSet::from([4, 5]));
        assert_eq!(counts(&odd.lost), [(1, 0), (2, 1)]);
        assert_eq!(counts(&odd.doubtful), [(1, 0), (2, 1)]);
        // A table that was made behind the redo position is in the log as a whole: its file may come later.
        odd.mend(&Record::Create {
            table: 5,
            kind,
            name,
        });
        assert_eq!(odd.gone, BTreeSet::from([4]));
        odd.mend(&Record::Create {
            table: 2,
            kind,
            name,
        });
        assert_eq!(counts(&odd.lost), [(1, 0)]);
        assert_eq!(counts(&odd.doubtful), [(1, 0)]);
    }

    fn counts(lost: &LostTables) -> Vec<(u32, u64)> {
        let tables = lost.tables.iter();
        tables.map(|(table, lost)| (*table, lost.count())).collect()
    }

    #[test]
    fn lost_pages_are_known_one_by_one_across_words() {
        let mut lost = LostTables::default();
        for pages in [60..64, 64..130, 191..192, 193..194] {
            lost.add(1, pages);
        }
        assert_eq!(counts(&lost), [(1, 72)]);
        assert_eq!(lost.tables[&1].first(), Some(60));
        for page in 60..130 {
            lost.strike(1, page);
        }
        assert_eq!(counts(&lost), [(1, 2)]);
        assert_eq!(lost.tables[&1].first(), Some(191));
        for page in [191, 192, 193, 193] {
            lost.strike(1, page);
        }
        assert_eq!(lost.tables[&1].first(), None);
        lost.forget_mended();
        assert!(lost.tables.is_empty());
    }

    #[test]
    fn only_the_first_tables_that_lost_pages_are_told_one_by_one() {
        let before = Predecessor {
            id: BackupId::new(Timestamp::from_micros(1_795_371_249_000_000), 7),
            is_certain: true,
        };
        let mut lost = LostTables::default();
        for table in 1..=LOSERS_TOLD_MAX as u32 {
            lost.add(table, 3..5);
        }
        assert_eq!(lost.warnings(before, false).len(), LOSERS_TOLD_MAX);
        (21..24).for_each(|table| lost.add(table, 3..5));
        let warnings = lost.warnings(before, false);
        let (last, each) = warnings.split_last().unwrap();
        assert_eq!(last, "tables that lost pages as well: 3");
        assert_eq!(each.len(), LOSERS_TOLD_MAX);
        assert!(
            each.iter().all(|told| told.contains("has lost 2 pages")),
            "{each:?}"
        );
    }

    /// A table that was dropped has taken all the room, and what power took of another one is in the log as a whole.
    #[test]
    fn more_lost_pages_than_are_kept_are_no_damage_where_the_log_has_images_of_all() {
        let (mut odd, scattered) = (Odd::default(), LOST_WORDS_MAX as u32);
        for word in 0..scattered {
            odd.lost.add(1, word * WORD_PAGES..word * WORD_PAGES + 1);
        }
        odd.lost.add(2, 30..130);
        let all = u64::from(scattered);
        assert_eq!(counts(&odd.lost), [(1, all), (2, 100)]);
        assert_eq!(odd.lost.tables[&2].first(), None);
        let body = &[0; page::BODY_BYTES];
        let image = |page| Record::Image {
            table: 2,
            page,
            body,
        };
        odd.mend(&Record::Drop { table: 1 });
        (30..129).for_each(|page| odd.mend(&image(page)));
        odd.lost.forget_mended();
        assert_eq!(counts(&odd.lost), [(2, 1)]);
        // And one that is not lost, as most images are of.
        for page in [129, 7] {
            odd.mend(&image(page));
        }
        odd.lost.forget_mended();
        assert!(odd.is_empty());
    }
}
