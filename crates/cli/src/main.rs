//! The `helios-mover` binary.
fn main() {}
