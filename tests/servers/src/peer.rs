//! Programs that tests run beside the tool's, and ports for them.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// The ports that are given out: below those that the system gives to clients (32768 and up), so that a server which
/// was killed finds its port free when it comes back.
const PORT_FIRST: u16 = 20_000;
const PORTS: u32 = 12_000;

/// The program `name` in this version; `tests/run` installs it.
pub fn peer(name: &str, version: &str) -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache");
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
    let path = cache.join(format!("helios-mover/peers/{name}-{version}/bin/{name}"));
    assert!(
        path.exists(),
        "{} is missing: tests/run installs it",
        path.display()
    );
    path
}

/// Different ports that nobody listens on.
pub fn free_ports<const N: usize>() -> [u16; N] {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Processes that test at the same time begin at different places.
    let first = std::process::id().wrapping_mul(37);
    let next = || {
        let next = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        PORT_FIRST + (next % PORTS) as u16
    };
    let mut free = std::iter::repeat_with(next)
        .take(PORTS as usize)
        .filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    std::array::from_fn(|_| free.next().expect("a port is free"))
}
