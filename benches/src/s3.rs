//! The S3 part: servers, clients and links to measure the mover's S3 driver beside its peers and its limits.
//!
//! Invariants: CPU time is that of client processes alone; data and servers' objects are in memory wherever a disk is not
//! what is measured; servers, links and directories are gone when a measurement ends, also by an error.

pub mod backups;
pub mod bare;
pub mod figures;
pub mod link;
pub mod link_runs;
pub mod packs;
pub mod peers;
mod request;
pub mod servers;
pub mod sink;
pub(crate) mod tables;
mod tls;
mod tls_proxy;
pub mod transfer;
pub mod transfers;
pub mod windows;
