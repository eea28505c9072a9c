//! A small bank in a HeliosDB Nano database: every type and every awkward value that a restore must bring back.
//!
//! Invariant: the same seed plants the same rows.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::nano::Nano;
use crate::random::Random;

/// Rows of each table that is not empty.
pub const ROWS: usize = 3000;

/// What the truth consists of.
const DUMPS: [&str; 5] = [
    "select id, owner, balance, rate, open, note from accounts order by id",
    "select id, account_id, amount, booked from bookings order by id",
    "select * from nothing order by id",
    "select count(*), sum(balance), min(id), max(id) from accounts",
    "select id, scan from receipts order by id",
];

/// Creates the tables and fills them by the statements in `script`, a file that is written for it.
///
/// `receipts` rows of 8 KiB that do not compress come on top, for who needs a database that takes its time.
pub fn fill(server: &Nano, script: &Path, receipts: usize) {
    let mut random = Random::new(0x4e61_6e6f);
    let mut sql = String::from(
        "create table accounts (id integer primary key, owner text, balance bigint, rate double precision, open boolean, note varchar(200));\n\
         create table bookings (id integer primary key, account_id integer, amount numeric(12,2), booked timestamp);\n\
         create table nothing (id integer primary key, note text);\n\
         create table receipts (id integer primary key, scan text);\n\
         create index bookings_account on bookings (account_id);\n",
    );
    for start in (0..ROWS).step_by(100) {
        let accounts: Vec<String> = (start..start + 100)
            .map(|id| account(id, &mut random))
            .collect();
        let bookings: Vec<String> = (start..start + 100)
            .map(|id| booking(id, &mut random))
            .collect();
        writeln!(sql, "insert into accounts values {};", accounts.join(", "))
            .expect("a string grows");
        writeln!(sql, "insert into bookings values {};", bookings.join(", "))
            .expect("a string grows");
    }
    for id in 0..receipts {
        let scan = receipt(&mut random);
        writeln!(sql, "insert into receipts values ({id}, '{scan}');").expect("a string grows");
    }
    fs::write(script, sql).expect("script can be written");
    server.script(script);
}

fn account(id: usize, random: &mut Random) -> String {
    let note = match id % 4 {
        0 => "null".to_string(),
        1 => "''".to_string(),
        2 => format!("'gr\u{fc}n \u{1f980} it''s {:x}'", random.number()),
        _ => format!("'{}'", "long ".repeat(1 + random.below(30) as usize)),
    };
    let rate = random.below(1000) as f64 / 8.0;
    let balance = random.number() as i64 >> 8;
    format!(
        "({id}, 'owner {:x}', {balance}, {rate}, {}, {note})",
        random.number(),
        id.is_multiple_of(3)
    )
}

/// Letters and digits of which each holds 6 random bits.
fn receipt(random: &mut Random) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let letter = |byte: u8| char::from(LETTERS[usize::from(byte & 63)]);
    random.bytes(8192).into_iter().map(letter).collect()
}

fn booking(id: usize, random: &mut Random) -> String {
    let (whole, cents) = (random.below(1_000_000), random.below(100));
    format!(
        "({id}, {}, {whole}.{cents:02}, '2026-01-{:02} 12:34:{:02}')",
        random.below(ROWS as u64),
        1 + id % 28,
        id % 60
    )
}

/// Everything that is in the tables, one text for each query.
pub fn dump(server: &Nano) -> Vec<String> {
    let dumps: Vec<String> = DUMPS.iter().map(|query| server.query(query)).collect();
    for (table, dump, rows) in [
        ("accounts", &dumps[0], ROWS),
        ("bookings", &dumps[1], ROWS),
        ("nothing", &dumps[2], 0),
    ] {
        assert_eq!(dump.trim().lines().count(), rows, "rows of {table}");
    }
    dumps
}

/// Fails the test unless the database holds what `before` holds, and takes new rows.
pub fn lives_on(server: &Nano, before: &[String]) {
    let after = dump(server);
    for (i, query) in DUMPS.iter().enumerate() {
        assert!(before[i] == after[i], "other rows: {query}");
    }
    server.query("insert into accounts values (1000001, 'new', 5, 0.5, true, 'after the restore')");
    server.query("insert into nothing values (1, 'no longer empty')");
    let ask = |sql: &str| server.query(sql).trim().to_owned();
    assert_eq!(
        ask("select note from accounts where id = 1000001"),
        "after the restore"
    );
    assert_eq!(ask("select count(*) from nothing"), "1");
    assert_eq!(ask("select count(*) from accounts"), (ROWS + 1).to_string());
}
