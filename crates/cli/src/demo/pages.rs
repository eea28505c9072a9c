//! Pages of the demo's database: 4 KiB with a header, filled with rows that look like a shop's.
//!
//! Layout: magic `HDB1`, CRC-32 of the page with this field zero (u32), page LSN (u64), table id (u32), page
//! number (u32), rows (u16), bytes used (u16), all little-endian; rows as text from byte 28. Invariants: a
//! page depends on its seed alone, so that every run makes the same database; rows are about as compressible
//! as real ones (names and words repeat, tokens and digests do not).

use std::io::Write;

use mover_base::BLOCK_BYTES;
use mover_base::checksum::crc32;

/// Where the rows begin.
pub const HEADER_BYTES: usize = 28;
/// How a page begins.
const MAGIC: &[u8; 4] = b"HDB1";

const FIRST_NAMES: [&str; 16] = [
    "Anna", "Boris", "Chiara", "Deniz", "Elena", "Farid", "Grace", "Hugo", "Ines", "Jonas",
    "Keiko", "Liam", "Mira", "Noah", "Olga", "Pedro",
];
const LAST_NAMES: [&str; 16] = [
    "Abbott", "Bauer", "Castro", "Dubois", "Eriksen", "Fischer", "Garcia", "Hansen", "Ivanova",
    "Jensen", "Kowalski", "Lindgren", "Moreau", "Nowak", "Okafor", "Petrov",
];
const WORDS: [&str; 24] = [
    "delivery",
    "to",
    "the",
    "back",
    "door",
    "please",
    "ring",
    "twice",
    "gift",
    "wrapped",
    "invoice",
    "by",
    "post",
    "call",
    "before",
    "noon",
    "leave",
    "with",
    "neighbour",
    "fragile",
    "urgent",
    "partial",
    "shipment",
    "accepted",
];
const STATES: [&str; 5] = ["new", "paid", "packed", "shipped", "returned"];

/// A small generator of numbers (splitmix64): good enough to look random, the same on every machine.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Numbers that depend on `seed` alone.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len() as u64) as usize]
    }
}

/// What a table holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// Customers: names, addresses, balances.
    Accounts,
    /// Orders: references, prices, remarks.
    Orders,
    /// Events with tokens, the least compressible.
    Events,
    /// Index entries: sorted keys and row positions.
    Index,
}

/// One page, as it lies on disk.
pub type Page = [u8; BLOCK_BYTES];

/// Fills `page` with rows and seals it.
pub fn fill(page: &mut Page, rows: Rows, table: u32, number: u32, lsn: u64, random: &mut Random) {
    page.fill(0);
    let mut at = HEADER_BYTES;
    let mut count: u16 = 0;
    let mut row = Vec::with_capacity(256);
    loop {
        row.clear();
        let id = u64::from(number) * 64 + u64::from(count);
        write_row(&mut row, rows, id, random);
        if at + row.len() > BLOCK_BYTES {
            break;
        }
        page[at..at + row.len()].copy_from_slice(&row);
        at += row.len();
        count += 1;
    }
    page[..4].copy_from_slice(MAGIC);
    page[16..20].copy_from_slice(&table.to_le_bytes());
    page[20..24].copy_from_slice(&number.to_le_bytes());
    page[24..26].copy_from_slice(&count.to_le_bytes());
    page[26..28].copy_from_slice(&(at as u16).to_le_bytes());
    seal(page, lsn);
}

fn write_row(row: &mut Vec<u8>, rows: Rows, id: u64, random: &mut Random) {
    // Writing into a Vec does not fail.
    let _ = match rows {
        Rows::Accounts => {
            let (first, last) = (random.pick(&FIRST_NAMES), random.pick(&LAST_NAMES));
            let (street, cents) = (random.below(200), random.below(10_000_000));
            writeln!(
                row,
                "{id:010}|{first} {last}|{}.{}{}@example.com|{street} {} Street|{}.{:02}|active",
                first.to_ascii_lowercase(),
                last.to_ascii_lowercase(),
                random.below(1000),
                random.pick(&LAST_NAMES),
                cents / 100,
                cents % 100
            )
        }
        Rows::Orders => {
            let (account, item, price) = (
                random.below(1 << 20),
                random.below(50_000),
                random.below(100_000),
            );
            let _ = write!(
                row,
                "{id:010}|{account:07}|SKU-{item:05}|{}|{price}|{}|",
                1 + random.below(9),
                random.pick(&STATES)
            );
            for _ in 0..3 + random.below(6) {
                let _ = write!(row, "{} ", random.pick(&WORDS));
            }
            writeln!(row)
        }
        Rows::Events => {
            let seconds = 1_790_000_000 + id;
            writeln!(
                row,
                "{{\"id\":{id},\"at\":{seconds},\"kind\":\"{}\",\"session\":\"{:016x}\",\"ip\":\"10.{}.{}.{}\",\"ms\":{}}}",
                random.pick(&STATES),
                random.next(),
                random.below(4),
                random.below(256),
                random.below(256),
                random.below(900)
            )
        }
        Rows::Index => {
            let _ = row.write_all(&(id * 8).to_be_bytes());
            row.write_all(&(random.below(1 << 24) as u32).to_le_bytes())
        }
    };
}

/// Changes one row of `page`, as an update does, and seals it at a newer position.
pub fn update(page: &mut Page, lsn: u64, random: &mut Random) {
    let used =
        usize::from(u16::from_le_bytes([page[26], page[27]])).clamp(HEADER_BYTES + 16, BLOCK_BYTES);
    let at = HEADER_BYTES + random.below((used - HEADER_BYTES - 8) as u64) as usize;
    let digits = format!("{:08}", random.below(100_000_000));
    page[at..at + 8].copy_from_slice(digits.as_bytes());
    seal(page, lsn);
}

fn seal(page: &mut Page, lsn: u64) {
    page[8..16].copy_from_slice(&lsn.to_le_bytes());
    page[4..8].fill(0);
    let crc = crc32(page);
    page[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Whether `page` is a sealed page, or one never used.
pub fn is_sound(page: &Page) -> bool {
    if page.iter().all(|byte| *byte == 0) {
        return true;
    }
    let mut copy = *page;
    copy[4..8].fill(0);
    &page[..4] == MAGIC && crc32(&copy).to_le_bytes() == page[4..8]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_depend_on_the_seed_alone() {
        let make = |seed| {
            let mut page = [0xff; BLOCK_BYTES];
            fill(&mut page, Rows::Events, 3, 9, 77, &mut Random::new(seed));
            page
        };
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
    }

    #[test]
    fn every_kind_of_page_is_full_and_sound_and_any_flipped_byte_shows() {
        for rows in [Rows::Accounts, Rows::Orders, Rows::Events, Rows::Index] {
            let mut page = [0; BLOCK_BYTES];
            fill(&mut page, rows, 1, 2, 3, &mut Random::new(5));
            assert!(is_sound(&page), "{rows:?}");
            assert!(
                page[..BLOCK_BYTES - 256]
                    .iter()
                    .rev()
                    .take(64)
                    .any(|byte| *byte != 0),
                "{rows:?}"
            );
            for at in [0, 4, 8, 16, HEADER_BYTES, BLOCK_BYTES - 1] {
                let mut flipped = page;
                flipped[at] ^= 1;
                assert!(!is_sound(&flipped), "{rows:?} {at}");
            }
        }
        assert!(is_sound(&[0; BLOCK_BYTES]));
    }

    #[test]
    fn an_update_leaves_a_sound_page_that_differs() {
        let mut random = Random::new(5);
        for rows in [Rows::Accounts, Rows::Index] {
            let mut page = [0; BLOCK_BYTES];
            fill(&mut page, rows, 1, 2, 3, &mut random);
            let before = page;
            update(&mut page, 4, &mut random);
            assert!(is_sound(&page));
            assert_ne!(page, before);
        }
        // A page with next to nothing on it must not be written beyond.
        update(&mut [0; BLOCK_BYTES], 4, &mut random);
    }

    #[test]
    fn numbers_stay_below_their_bound() {
        let mut random = Random::new(0);
        assert!((0..1000).all(|_| random.below(7) < 7));
        assert_eq!(random.below(1), 0);
    }
}
