//! What the tests' clients do: seeded streams of transactions that depend on nothing but seed and client.
//!
//! Invariants: the n-th transaction of a client is the same in every run, whatever other clients do, because it touches
//! tables of its own, and of the shared accounts only sums; transfers never change the sum of all balances.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::random::Random;

/// The table that all clients share.
pub const ACCOUNTS: &str = "accounts";
/// Rows of it.
pub const ACCOUNT_ROWS: u64 = 400;
/// Balance of each account at first.
pub const BALANCE: i64 = 10_000;
/// Tables that a client has at most beside its own two.
const EXTRA_TABLES_MAX: usize = 2;

/// A change of rows or tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// A new table.
    Create(String),
    /// A table goes.
    Drop(String),
    /// A new row.
    Insert(String, u64, Vec<u8>),
    /// Another content of a row.
    Update(String, u64, Vec<u8>),
    /// A row goes.
    Delete(String, u64),
    /// A number is added to the balance that a row begins with.
    Add(String, u64, i64),
}

const WORDS: [&str; 32] = [
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
    "returned",
    "express",
    "customs",
    "paid",
    "new",
    "cancelled",
    "packed",
    "shipped",
];
const NAMES: [&str; 16] = [
    "Abbott", "Bauer", "Castro", "Dubois", "Eriksen", "Fischer", "Garcia", "Hansen", "Ivanova",
    "Jensen", "Kowalski", "Lindgren", "Moreau", "Nowak", "Okafor", "Petrov",
];

/// A row as a shop's database has it: a time, a random token, names, an address, free text.
pub fn row(random: &mut Random, words_max: u64) -> Vec<u8> {
    let mut row = Vec::with_capacity(160);
    row.extend_from_slice(&(1_700_000_000_000_000 + random.below(1 << 44)).to_le_bytes());
    row.extend_from_slice(&random.bits().to_le_bytes());
    let mut text = String::new();
    let name = NAMES[random.below(16) as usize];
    write!(
        text,
        "{name}|{}@{}.example|{} {} Street|",
        name.to_lowercase(),
        WORDS[random.below(32) as usize],
        random.below(250),
        NAMES[random.below(16) as usize]
    )
    .expect("a string grows");
    for _ in 0..random.below(words_max + 1) {
        text.push_str(WORDS[random.below(32) as usize]);
        text.push(' ');
    }
    row.extend_from_slice(text.as_bytes());
    row
}

/// The transaction that makes the shared table; the first in every database.
pub fn accounts(seed: u64) -> Vec<Op> {
    let mut random = Random::new(seed ^ 0xacc0);
    let mut ops = vec![Op::Create(ACCOUNTS.to_owned())];
    for key in 0..ACCOUNT_ROWS {
        let mut content = BALANCE.to_le_bytes().to_vec();
        content.extend_from_slice(&row(&mut random, 8));
        ops.push(Op::Insert(ACCOUNTS.to_owned(), key, content));
    }
    ops
}

/// One client's transactions.
#[derive(Debug, Clone)]
pub struct Workload {
    client: u64,
    random: Random,
    /// The rows of its tables.
    tables: BTreeMap<String, Vec<u64>>,
    next_key: u64,
    done: u64,
}

impl Workload {
    /// The transactions of `client`.
    pub fn new(seed: u64, client: u64) -> Self {
        Workload {
            client,
            random: Random::new(seed.wrapping_mul(31).wrapping_add(client)),
            tables: BTreeMap::new(),
            next_key: 0,
            done: 0,
        }
    }

    /// Goes on as another client, with tables of its own: for a database that has forgotten what this one did.
    pub fn renamed(self, client: u64) -> Self {
        Workload {
            client,
            random: self.random,
            tables: BTreeMap::new(),
            next_key: self.next_key,
            done: 0,
        }
    }

    /// The table in which the client counts its transactions, as the one row 0.
    pub fn counter(client: u64) -> String {
        format!("client-{client}")
    }

    /// The next transaction; its last change counts it.
    pub fn next_transaction(&mut self) -> Vec<Op> {
        let counter = Workload::counter(self.client);
        let mut ops = Vec::new();
        if self.done == 0 {
            ops.push(Op::Create(counter.clone()));
            ops.push(Op::Insert(counter.clone(), 0, vec![0; 8]));
            let orders = format!("orders-{}", self.client);
            self.tables.insert(orders.clone(), Vec::new());
            ops.push(Op::Create(orders));
        }
        match self.random.below(100) {
            0..45 => self.transfer(&mut ops),
            45..95 => self.rows(&mut ops),
            95..98 => self.create(&mut ops),
            _ => self.drop_table(&mut ops),
        }
        ops.push(Op::Add(counter, 0, 1));
        self.done += 1;
        ops
    }

    /// The transaction with which the client leaves: its tables go.
    pub fn leave(self) -> Vec<Op> {
        let counter = (self.done > 0).then(|| Workload::counter(self.client));
        let tables = self.tables.into_keys().chain(counter);
        tables.map(Op::Drop).collect()
    }

    fn transfer(&mut self, ops: &mut Vec<Op>) {
        for _ in 0..1 + self.random.below(3) {
            let from = self.random.below(ACCOUNT_ROWS);
            let to = (from + 1 + self.random.below(ACCOUNT_ROWS - 1)) % ACCOUNT_ROWS;
            let amount = self.random.below(500) as i64;
            ops.push(Op::Add(ACCOUNTS.to_owned(), from, -amount));
            ops.push(Op::Add(ACCOUNTS.to_owned(), to, amount));
        }
    }

    fn rows(&mut self, ops: &mut Vec<Op>) {
        let names: Vec<String> = self.tables.keys().cloned().collect();
        let name = names[self.random.below(names.len() as u64) as usize].clone();
        for _ in 0..1 + self.random.below(12) {
            let keys = self.tables.get_mut(&name).expect("table");
            let draw = self.random.below(10);
            if keys.is_empty() || draw < 6 {
                let key = self.next_key;
                self.next_key += 1;
                keys.push(key);
                let row = row(&mut self.random, 30);
                ops.push(Op::Insert(name.clone(), key, row));
                continue;
            }
            let at = self.random.below(keys.len() as u64) as usize;
            if draw < 9 {
                let key = keys[at];
                let row = row(&mut self.random, 30);
                ops.push(Op::Update(name.clone(), key, row));
            } else {
                ops.push(Op::Delete(name.clone(), keys.swap_remove(at)));
            }
        }
    }

    fn create(&mut self, ops: &mut Vec<Op>) {
        if self.tables.len() > EXTRA_TABLES_MAX {
            return self.rows(ops);
        }
        let name = format!("events-{}-{}", self.client, self.done);
        self.tables.insert(name.clone(), Vec::new());
        ops.push(Op::Create(name.clone()));
        let rows = self.random.below(60);
        for _ in 0..rows {
            let key = self.next_key;
            self.next_key += 1;
            self.tables.get_mut(&name).expect("table").push(key);
            let row = row(&mut self.random, 30);
            ops.push(Op::Insert(name.clone(), key, row));
        }
    }

    fn drop_table(&mut self, ops: &mut Vec<Op>) {
        let extra = self.tables.keys().find(|name| name.starts_with("events"));
        match extra.cloned() {
            Some(name) => {
                self.tables.remove(&name);
                ops.push(Op::Drop(name));
            }
            None => self.rows(ops),
        }
    }
}
