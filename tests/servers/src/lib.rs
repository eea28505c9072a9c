//! Servers that the tests of the S3 driver and the end-to-end tests run against: a real store that is a program
//! of its own ([`Garage`]), a store in the test's process ([`FilesystemS3`]), a proxy that breaks connections on
//! purpose ([`FaultProxy`]), one that leads to where only it knows the way ([`Tunnel`]), endpoints that answer what a script says ([`Scripted`]), a client that sees what a
//! store holds without the code under test ([`Client`]), and what a server on loopback needs for TLS ([`certificate_for_loopback`]).
//!
//! Invariants: everything listens on loopback only and is stopped when dropped; no crate of the workspace is used;
//! every random choice comes from a seed that the test gives; whatever is missing is a panic, never a skip.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

mod access;
mod certificate;
mod client;
mod crowd;
mod exchange;
mod fault;
mod fault_proxy;
mod filesystem;
mod garage;
mod message;
mod peer;
mod pipe;
mod serve;
mod strange;
mod tunnel;

pub use access::{Access, AccessKey};
pub use certificate::{Tls, certificate_file_for_loopback, certificate_for_loopback};
pub use client::{Client, Listed};
pub use fault::{Action, Fault};
pub use fault_proxy::{FaultId, FaultProxy};
pub use filesystem::{Conditions, FilesystemOptions, FilesystemS3};
pub use garage::{Garage, GarageCluster};
pub use message::{Reply, RequestHead};
pub use peer::{free_ports, peer};
pub use strange::{Answered, Scripted, SessionCredentials};
pub use tunnel::Tunnel;
