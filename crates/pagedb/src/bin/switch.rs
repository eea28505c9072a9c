//! The backup side of the tracker as a process, to be killed: `pagedb-switch DIRECTORY LSN` ends an epoch of the store there
//! at a position up to which its log is durable, and lets the store remember a backup that ended there. With `for-ever` as a
//! third argument it says `ready`, and ends one epoch after the other until it is killed.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.
#![allow(clippy::print_stdout)] // Its output is its interface.

use std::path::Path;
use std::sync::Arc;

use mover_base::Lsn;
use mover_source::delta::BUDGET_BYTES_DEFAULT;
use mover_source::disk::DirDisk;
use mover_source::pages::read_control;
use mover_source::tracker::Epochs;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [directory, end, rest @ ..] = &args[..] else {
        panic!("usage: pagedb-switch DIRECTORY LSN [for-ever]");
    };
    let end = Lsn(end.parse().expect("a position"));
    let disk = Arc::new(DirDisk::open(Path::new(directory)).expect("a store"));
    let identity = read_control(&*disk).expect("a control file").identity;
    let epochs = Epochs::open(disk, identity).expect("the tracker opens");
    let epochs = epochs.expect("a tracker");
    let switch = || {
        let done = epochs.switch(end, BUDGET_BYTES_DEFAULT);
        assert_eq!(done.expect("a switch").reset, None);
    };
    if rest.is_empty() {
        switch();
        epochs.testify(end, [7; 32]).expect("a witness");
        return;
    }
    println!("ready");
    loop {
        switch();
    }
}
