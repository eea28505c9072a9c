//! Random bytes for ids, nonces and names.
//!
//! Invariant: they come from the kernel, filled whole or an error.

use mover_base::{Error, Kind, Result};
use rustix::rand::{GetRandomFlags, getrandom};

fn none(cause: String) -> Error {
    Error::new(Kind::Internal, "the system gave no random bytes").cause(cause)
}

/// `N` bytes of the kernel's random source. Not of aws-lc's generator: that one gathers entropy of its own first, for
/// 40 to 60 ms of each process, in which a job's shards wait.
///
/// # Errors
/// [`Kind::Internal`] where the kernel gives fewer.
pub fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(filled) if filled == N => Ok(bytes),
        Ok(filled) => Err(none(format!("{filled} of {N} bytes"))),
        Err(errno) => Err(none(errno.to_string())),
    }
}
