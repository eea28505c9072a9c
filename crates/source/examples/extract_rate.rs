//! How fast changes are extracted from a log: `extract_rate DIRECTORY [MIB]` writes a log there, of small changes with
//! some images, and reads it back three times, from the page cache, with one thread.
#![allow(clippy::expect_used, clippy::print_stdout)] // A measurement says what it expects and found.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use mover_base::{Lsn, LsnRange, Timestamp};
use mover_source::delta::{BUDGET_BYTES_DEFAULT, extract};
use mover_source::disk::{DirDisk, Disk};
use mover_source::page::BODY_BYTES;
use mover_source::pages::{Store, new_identity};
use mover_source::wal::{Group, SegmentSize};

/// Pages of the table: 10 GB.
const PAGES: u64 = 10_000_000_000 / 4096;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let directory = args.first().expect("extract_rate DIRECTORY [MIB]");
    let mib: u64 = args
        .get(1)
        .map_or(1024, |mib| mib.parse().expect("a number"));
    let disk = DirDisk::open_locked(Path::new(directory)).expect("directory");
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let identity = new_identity([1; 32], SegmentSize::DEFAULT);
    let mut store = Store::create(Arc::clone(&disk), identity).expect("store");
    let writer = store.recover(16).expect("recovery").writer;
    let mut state = 1u64;
    let mut below = |end: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        ((u128::from(state) * u128::from(end)) >> 64) as u64
    };
    let (mut group, mut number) = (Group::new(), 0);
    let bytes: [u8; BODY_BYTES] = std::array::from_fn(|i| (i * 7) as u8);
    let begun = Instant::now();
    while writer.end().0 < mib << 20 {
        group.clear();
        for _ in 0..4 {
            let (page, len) = (below(PAGES) as u32, 40 + below(160) as usize);
            group
                .delta(1, page, &[(100, &bytes[..8]), (1000, &bytes[..len])])
                .expect("delta");
        }
        if below(40) == 0 {
            group.image(1, below(PAGES) as u32, &bytes).expect("image");
        }
        writer
            .append(&group, number, Timestamp::from_micros(0))
            .expect("append");
        number += 1;
    }
    writer.flush_to(writer.end()).expect("flush");
    let range = LsnRange {
        start: Lsn(4096),
        end: writer.durable(),
    };
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "written: {number} transactions, {:.0} MB/s",
        range.end.0 as f64 / 1e6 / seconds
    );
    for _ in 0..3 {
        let begun = Instant::now();
        let delta =
            extract(Arc::clone(&disk), identity, range, BUDGET_BYTES_DEFAULT).expect("extraction");
        let seconds = begun.elapsed().as_secs_f64();
        println!(
            "extracted: {} pages of {} transactions, {:.0} MB/s",
            delta
                .tables
                .values()
                .map(|table| table.pages.len())
                .sum::<u64>(),
            delta.transactions,
            range.end.0 as f64 / 1e6 / seconds
        );
    }
}
