//! Pages of realistic rows: customers, orders and events, as a database would lay them out.
//!
//! Invariants: the bytes depend on nothing but (seed, segment index, segment bytes); no two segments share a
//! 4 KiB block. The mix of text, keys, decimals and random ids is tuned so that zstd 3 in frames of 1 MiB shrinks
//! it about 2.4 times, which is what databases of business rows give; a test holds 2.3 to 2.5.

use std::io::Write;

/// Page of the customers table, in bytes.
const SMALL_PAGE_BYTES: usize = 4096;
/// Page of the orders and events tables, in bytes.
const LARGE_PAGE_BYTES: usize = 8192;
/// Page header: LSN, page number, flags, bounds of the free space.
const PAGE_HEADER_BYTES: usize = 24;
/// One line pointer: offset and length of a row.
const LINE_POINTER_BYTES: usize = 4;
/// 2020-01-01T00:00:00Z in microseconds: the first row's time.
const FIRST_ROW_MICROS: u64 = 1_577_836_800_000_000;
/// Entries of a skewed draw table: 16 random bits choose one.
const DRAW_ENTRIES: usize = 1 << 16;

/// SplitMix64: small, seedable and good enough for test data.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator whose output depends on `seed` alone.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(end)) >> 64) as u64
    }
}

/// Draws indexes with a Zipf distribution: the k-th is drawn in proportion to 1/(k+1).
#[derive(Debug)]
struct Zipf(Vec<u16>);

impl Zipf {
    fn new(count: usize) -> Self {
        let total: f64 = (1..=count).map(|k| 1.0 / k as f64).sum();
        let mut table = Vec::with_capacity(DRAW_ENTRIES);
        let mut reached = 0.0;
        for k in 0..count {
            reached += 1.0 / (k + 1) as f64 / total;
            let end = ((reached * DRAW_ENTRIES as f64).round() as usize).min(DRAW_ENTRIES);
            while table.len() < end {
                table.push(k as u16);
            }
        }
        table.resize(DRAW_ENTRIES, 0);
        Zipf(table)
    }

    fn draw(&self, random: &mut Random) -> usize {
        usize::from(self.0[(random.bits() >> 48) as usize])
    }
}

/// The vocabulary from which rows take their text.
#[derive(Debug)]
struct Words {
    words: Vec<String>,
    word: Zipf,
    names: Vec<String>,
    name: Zipf,
    cities: Vec<String>,
    city: Zipf,
    agents: Vec<String>,
    agent: Zipf,
}

const ONSETS: [&str; 20] = [
    "b", "br", "c", "ch", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr",
    "v", "w",
];
const VOWELS: [&str; 8] = ["a", "e", "i", "o", "u", "ea", "ou", "ai"];
const CODAS: [&str; 10] = ["", "", "n", "r", "s", "t", "l", "nd", "ck", "m"];
const DOMAINS: [&str; 8] = [
    "gmail.example",
    "mail.example",
    "outlook.example",
    "proton.example",
    "corp.example.com",
    "uni.example.org",
    "web.example.net",
    "post.example.de",
];
const STATES: [&str; 6] = [
    "delivered",
    "shipped",
    "paid",
    "new",
    "returned",
    "cancelled",
];

fn vocabulary(random: &mut Random, count: usize, syllables_max: u64, capital: bool) -> Vec<String> {
    let mut list: Vec<String> = Vec::with_capacity(count);
    let mut seen = std::collections::HashSet::new();
    while list.len() < count {
        let mut text = String::new();
        for _ in 0..=random.below(syllables_max) {
            text.push_str(ONSETS[random.below(20) as usize]);
            text.push_str(VOWELS[random.below(8) as usize]);
            text.push_str(CODAS[random.below(10) as usize]);
        }
        if capital {
            text[..1].make_ascii_uppercase();
        }
        if seen.insert(text.clone()) {
            list.push(text);
        }
    }
    list
}

impl Words {
    fn new(random: &mut Random) -> Self {
        let agents = (0..40)
            .map(|n| {
                format!(
                    "Mozilla/5.0 (X11; Linux x86_64; rv:{0}.0) Gecko/20100101 Firefox/{0}.{n}",
                    90 + random.below(40)
                )
            })
            .collect();
        Words {
            words: vocabulary(random, 6000, 3, false),
            word: Zipf::new(6000),
            names: vocabulary(random, 3000, 2, true),
            name: Zipf::new(3000),
            cities: vocabulary(random, 800, 3, true),
            city: Zipf::new(800),
            agents,
            agent: Zipf::new(40),
        }
    }

    fn word(&self, random: &mut Random) -> &str {
        &self.words[self.word.draw(random)]
    }

    fn name(&self, random: &mut Random) -> &str {
        &self.names[self.name.draw(random)]
    }
}

/// The tables; a segment holds rows of one of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Table {
    Customers,
    Orders,
    Events,
}

/// Writes segments of rows.
#[derive(Debug)]
pub struct Generator {
    seed: u64,
    words: Words,
}

impl Generator {
    /// A generator whose output depends on `seed` alone.
    pub fn new(seed: u64) -> Self {
        let words = Words::new(&mut Random::new(seed));
        Generator { seed, words }
    }

    /// File name of segment `index`.
    pub fn segment_name(index: u64) -> String {
        let table = match Self::table(index) {
            Table::Customers => "customers",
            Table::Orders => "orders",
            Table::Events => "events",
        };
        format!("{table}.{index:04}")
    }

    fn table(index: u64) -> Table {
        match index % 5 {
            0 => Table::Customers,
            1 | 2 => Table::Orders,
            _ => Table::Events,
        }
    }

    /// Starts segment `index`; pages follow from [`Segment::page`].
    pub fn segment(&self, index: u64) -> Segment<'_> {
        let mut random = Random::new(self.seed ^ index.wrapping_mul(0xd6e8_feb8_6659_fd93));
        Segment {
            table: Self::table(index),
            row: index << 32,
            micros: FIRST_ROW_MICROS + (index << 40),
            session: (random.bits(), random.bits()),
            random,
            words: &self.words,
            page: index << 24,
            scratch: Vec::with_capacity(2048),
        }
    }
}

/// One segment in the making.
#[derive(Debug)]
pub struct Segment<'a> {
    table: Table,
    row: u64,
    micros: u64,
    session: (u64, u64),
    random: Random,
    words: &'a Words,
    page: u64,
    scratch: Vec<u8>,
}

impl Segment<'_> {
    /// Appends whole pages to `out` until it holds at least `bytes` (a multiple of 8192 gives exactly that).
    pub fn fill(&mut self, out: &mut Vec<u8>, bytes: usize) {
        while out.len() < bytes {
            self.page(out);
        }
    }

    /// Appends one page: header, line pointers growing up, rows growing down, zeros between.
    pub fn page(&mut self, out: &mut Vec<u8>) {
        let page_bytes = match self.table {
            Table::Customers => SMALL_PAGE_BYTES,
            Table::Orders | Table::Events => LARGE_PAGE_BYTES,
        };
        let start = out.len();
        out.resize(start + page_bytes, 0);
        let (mut lower, mut upper) = (PAGE_HEADER_BYTES, page_bytes);
        loop {
            let mut row = std::mem::take(&mut self.scratch);
            row.clear();
            let before = (self.random.clone(), self.row, self.micros, self.session);
            match self.table {
                Table::Customers => self.customer(&mut row),
                Table::Orders => self.order(&mut row),
                Table::Events => self.event(&mut row),
            }
            let fits = lower + LINE_POINTER_BYTES + row.len() <= upper;
            if fits {
                upper -= row.len();
                let page = &mut out[start..];
                page[upper..upper + row.len()].copy_from_slice(&row);
                page[lower..lower + 2].copy_from_slice(&(upper as u16).to_le_bytes());
                page[lower + 2..lower + 4].copy_from_slice(&(row.len() as u16).to_le_bytes());
                lower += LINE_POINTER_BYTES;
            } else {
                (self.random, self.row, self.micros, self.session) = before;
            }
            self.scratch = row;
            if !fits {
                break;
            }
        }
        let header = &mut out[start..start + PAGE_HEADER_BYTES];
        header[..8].copy_from_slice(&(self.page * 8192 + 0x16_b374).to_le_bytes());
        header[8..16].copy_from_slice(&self.page.to_le_bytes());
        header[16..18].copy_from_slice(&(lower as u16).to_le_bytes());
        header[18..20].copy_from_slice(&(upper as u16).to_le_bytes());
        self.page += 1;
    }

    fn customer(&mut self, row: &mut Vec<u8>) {
        let random = &mut self.random;
        self.row += 1;
        self.micros += 1 + random.below(180_000_000);
        row.extend_from_slice(&self.row.to_le_bytes());
        row.extend_from_slice(&random.bits().to_le_bytes());
        row.extend_from_slice(&random.bits().to_le_bytes());
        row.extend_from_slice(&self.micros.to_le_bytes());
        let cents = 1_u64 << random.below(24);
        row.extend_from_slice(&(cents + random.below(cents)).to_le_bytes());
        let (first, last) = (self.words.name(random), self.words.name(random));
        let domain = DOMAINS[(random.below(8) * random.below(8) / 8) as usize];
        let city = &self.words.cities[self.words.city.draw(random)];
        let number = random.below(10_000);
        put(row, format_args!("{first}"));
        put(row, format_args!("{last}"));
        put(row, format_args!("{first}.{last}{number}@{domain}"));
        put(
            row,
            format_args!("+44 {:010}", random.below(10_000_000_000)),
        );
        let street = self.words.name(random);
        put(
            row,
            format_args!("{} {street} Street", 1 + random.below(250)),
        );
        put(row, format_args!("{city}"));
        put(row, format_args!("{:05}", random.below(100_000)));
        let words = random.below(NOTE_WORDS_MAX);
        text(row, self.words, random, words);
    }

    fn order(&mut self, row: &mut Vec<u8>) {
        let random = &mut self.random;
        self.row += 1;
        self.micros += 1 + random.below(2_000_000);
        row.extend_from_slice(&self.row.to_le_bytes());
        row.extend_from_slice(&((random.below(4000) * random.below(4000)) as u32).to_le_bytes());
        row.extend_from_slice(&self.micros.to_le_bytes());
        row.extend_from_slice(&(self.micros + random.below(1 << 38)).to_le_bytes());
        let state = STATES[(random.below(6) * random.below(6) / 6) as usize];
        put(row, format_args!("{state}"));
        put(row, format_args!("EUR"));
        put(
            row,
            format_args!(
                "1Z{:08X}{:08}",
                random.bits() as u32,
                self.row % 100_000_000
            ),
        );
        let items = 1 + random.below(5);
        row.push(items as u8);
        for _ in 0..items {
            let article = self.words.word.draw(random) as u32;
            row.extend_from_slice(&(article * 7919).to_le_bytes());
            row.extend_from_slice(&(1 + random.below(3) as u16).to_le_bytes());
            row.extend_from_slice(&((random.below(20_000) * 5 + 99) as u32).to_le_bytes());
        }
        let words = random.below(NOTE_WORDS_MAX / 2);
        text(row, self.words, random, words);
    }

    fn event(&mut self, row: &mut Vec<u8>) {
        let random = &mut self.random;
        self.row += 1;
        self.micros += 1 + random.below(50_000);
        if random.below(6) == 0 {
            self.session = (random.bits(), random.bits());
        }
        row.extend_from_slice(&self.row.to_le_bytes());
        row.extend_from_slice(&self.micros.to_le_bytes());
        row.extend_from_slice(&random.bits().to_le_bytes());
        row.extend_from_slice(&random.bits().to_le_bytes());
        // Identifiers of the trace and of the span in it, as tracing systems attach them.
        for _ in 0..3 {
            row.extend_from_slice(&random.bits().to_le_bytes());
        }
        let (high, low) = self.session;
        put(
            row,
            format_args!(
                "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
                high >> 32,
                high >> 16 & 0xffff,
                high & 0xfff,
                low >> 48 & 0xfff,
                low & 0xffff_ffff_ffff
            ),
        );
        put(
            row,
            format_args!("10.{}.{}.{}", low & 0xff, low >> 8 & 0xff, low >> 16 & 0xff),
        );
        let agent = &self.words.agents[self.words.agent.draw(random)];
        put(row, format_args!("{agent}"));
        let (a, b, c) = (
            self.words.word(random),
            self.words.word(random),
            self.words.word(random),
        );
        put(row, format_args!("/{a}/{b}/{}", random.below(1_000_000)));
        put(
            row,
            format_args!(
                "{{\"duration_ms\":{},\"user\":{},\"token\":\"{:016x}{:016x}\",\"tag\":\"{c}\"}}",
                random.below(4000),
                random.below(2_000_000),
                random.bits(),
                random.bits()
            ),
        );
    }
}

/// Upper end of the number of words in a free-text column.
const NOTE_WORDS_MAX: u64 = 40;

fn put(row: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let at = row.len();
    row.push(0);
    // Writing to a vector cannot fail.
    let _ = row.write_fmt(text);
    row[at] = (row.len() - at - 1).min(255) as u8;
}

fn text(row: &mut Vec<u8>, words: &Words, random: &mut Random, count: u64) {
    let at = row.len();
    row.extend_from_slice(&[0, 0]);
    for n in 0..count {
        if n > 0 {
            row.push(b' ');
        }
        row.extend_from_slice(words.word(random).as_bytes());
    }
    let bytes = (row.len() - at - 2) as u16;
    row[at..at + 2].copy_from_slice(&bytes.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME_BYTES: usize = 1 << 20;

    fn frames(generator: &Generator, index: u64, count: usize) -> Vec<u8> {
        let mut out = Vec::new();
        generator.segment(index).fill(&mut out, count * FRAME_BYTES);
        out
    }

    #[test]
    fn same_seed_gives_same_bytes_and_segments_share_no_block() {
        let one = frames(&Generator::new(7), 1, 1);
        assert_eq!(one.len(), FRAME_BYTES);
        assert_eq!(one, frames(&Generator::new(7), 1, 1));
        assert_ne!(one, frames(&Generator::new(8), 1, 1));
        let mut blocks = std::collections::HashSet::new();
        let generator = Generator::new(7);
        for index in 0..5 {
            for block in frames(&generator, index, 1).chunks(4096) {
                assert!(
                    blocks.insert(block.to_vec()),
                    "segment {index} repeats a block"
                );
            }
        }
    }

    #[test]
    fn zstd_shrinks_rows_as_it_shrinks_business_data() {
        let generator = Generator::new(7);
        let (mut plain, mut stored) = (0, 0);
        for index in 0..5 {
            let data = frames(&generator, index, 4);
            let mut part = 0;
            for frame in data.chunks(FRAME_BYTES) {
                part += zstd::bulk::compress(frame, 3).unwrap().len();
            }
            eprintln!(
                "{} ratio {:.3}",
                Generator::segment_name(index),
                data.len() as f64 / part as f64
            );
            plain += data.len();
            stored += part;
        }
        let ratio = plain as f64 / stored as f64;
        assert!((2.3..=2.5).contains(&ratio), "ratio {ratio:.3}");
    }
}
