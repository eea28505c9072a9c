//! A pipe without room as the tool's standard output, and whether the tool hangs on that.

use std::io::{ErrorKind, PipeReader, Read, Write};
use std::process::Stdio;

use mover_tests::job::status_of;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::Signal;

/// The end to read of a pipe that was filled, so that nothing fits into it until somebody reads.
pub struct FullPipe {
    reader: PipeReader,
    bytes: usize,
}

impl FullPipe {
    /// Fills a new one. Writes to the end that is returned with it wait for room where it `blocks`, and fail where it does not.
    pub fn new(blocks: bool) -> (Self, Stdio) {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let flags = fcntl_getfl(&writer).expect("flags");
        fcntl_setfl(&writer, flags | OFlags::NONBLOCK).expect("flags");
        let mut bytes = 0;
        let full = loop {
            match writer.write(&[b'.'; 4096]) {
                Ok(written) => bytes += written,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        if blocks {
            fcntl_setfl(&writer, flags).expect("flags");
        }
        (FullPipe { reader, bytes }, writer.into())
    }

    /// What was written behind the filling. Reads until nobody is left who could write.
    pub fn rest(mut self) -> String {
        let mut text = String::new();
        self.reader.read_to_string(&mut text).expect("UTF-8");
        let rest = text.split_off(self.bytes);
        assert!(text.bytes().all(|byte| byte == b'.'), "the filling changed");
        rest
    }
}

/// Whether a process has this signal in a mask of its status.
pub fn is_in(id: u32, mask: &str, signal: Signal) -> bool {
    let mask = status_of(id, mask).and_then(|mask| u64::from_str_radix(&mask, 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal.as_raw() - 1)) != 0)
}

/// Whether the tool has its signals and waits: before a job has begun, that is for its standard output and for nothing else.
pub fn hangs(id: u32) -> bool {
    let waits = || status_of(id, "State:").is_some_and(|state| state.starts_with('S'));
    is_in(id, "SigCgt:", Signal::USR2) && waits()
}
