//! A HeliosDB Nano database that was lost comes back with every row, and lives on.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use mover_tests::mover::{Protection, Repo, exit};
use mover_tests::nano::Nano;
use mover_tests::random::Random;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;

const ROWS: usize = 3000;

const DUMPS: [&str; 4] = [
    "select id, owner, balance, rate, open, note from accounts order by id",
    "select id, account_id, amount, booked from bookings order by id",
    "select * from nothing order by id",
    "select count(*), sum(balance), min(id), max(id) from accounts",
];

#[test]
fn lost_database_comes_back_with_every_row() {
    let scratch = Scratch::new("nano");
    let logs = scratch.dir("logs");
    let data = scratch.join("data");

    let server = Nano::start(&data, &logs);
    fill(&server, &scratch.join("fill.sql"));
    let before = dump(&server);
    assert_eq!(
        before[0].lines().count(),
        ROWS,
        "the truth itself is incomplete"
    );
    assert_eq!(
        before[1].lines().count(),
        ROWS,
        "the truth itself is incomplete"
    );
    assert_eq!(before[2].trim(), "");
    server.stop();

    let repo = Repo::create(&scratch, "repo", Protection::Passphrase);
    let files = Tree::read(&data);
    repo.backup(&data).summary();
    fs::remove_dir_all(&data).expect("the database is lost");

    repo.restore("latest", &data).summary();
    files.assert_same(&Tree::read(&data), "restored files");

    let server = Nano::start(&data, &logs);
    let after = dump(&server);
    for (i, query) in DUMPS.iter().enumerate() {
        assert_eq!(before[i], after[i], "{query}");
    }
    server.query("insert into accounts values (1000001, 'new', 5, 0.5, true, 'after the restore')");
    server.query("insert into nothing values (1, 'no longer empty')");
    assert_eq!(
        server
            .query("select note from accounts where id = 1000001")
            .trim(),
        "after the restore"
    );
    assert_eq!(server.query("select count(*) from nothing").trim(), "1");
    assert_eq!(
        server.query("select count(*) from accounts").trim(),
        (ROWS + 1).to_string()
    );
    server.stop();
    repo.verify().expect(exit::OK);
}

fn fill(server: &Nano, script: &Path) {
    let mut random = Random::new(0x4e61_6e6f);
    let mut sql = String::from(
        "create table accounts (id integer primary key, owner text, balance bigint, rate double precision, open boolean, note varchar(200));\n\
         create table bookings (id integer primary key, account_id integer, amount numeric(12,2), booked timestamp);\n\
         create table nothing (id integer primary key, note text);\n\
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

fn booking(id: usize, random: &mut Random) -> String {
    let (whole, cents) = (random.below(1_000_000), random.below(100));
    format!(
        "({id}, {}, {whole}.{cents:02}, '2026-01-{:02} 12:34:{:02}')",
        random.below(ROWS as u64),
        1 + id % 28,
        id % 60
    )
}

fn dump(server: &Nano) -> Vec<String> {
    DUMPS.iter().map(|query| server.query(query)).collect()
}
