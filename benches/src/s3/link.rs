//! A link of limited bandwidth: a network namespace behind a pair of virtual interfaces, each with a token bucket (tbf).
//!
//! What the bucket counts is frames: TCP's payload and, for each segment, 66 bytes of Ethernet, IP and TCP headers. Of
//! 1,514 bytes 1,448 are payload, so a link of 1 Gbit/s carries 119.6 MB/s of it at best.
//!
//! Invariants: namespace, interfaces and everything in them are gone when the link is dropped; one link at a time.

use std::path::Path;
use std::process::Command;

use mover_base::{Error, Kind, Result};
use serde_json::Value;

use crate::command::Program;

const NAMESPACE: &str = "mover-bench";
const NEAR: &str = "mvb-near";
const FAR: &str = "mvb-far";
const NEAR_ADDRESS: &str = "10.213.77.1";
const FAR_ADDRESS: &str = "10.213.77.2";
/// Bytes that pass at once after a pause: 2 ms at 1 Gbit/s, and more than the largest packet that TCP hands over.
const BURST: &str = "256kb";
/// Longest stay in the bucket's queue.
const QUEUE: &str = "20ms";
/// Headers of a segment on Ethernet: 14 + 20 (IPv4) + 32 (TCP with time stamps).
pub const HEADER_BYTES: u64 = 66;
/// Payload of a full segment, and bytes of its frame.
pub const SEGMENT_BYTES: (u64, u64) = (1448, 1514);

/// The far end of a link.
#[derive(Clone, Copy, Debug)]
pub struct LinkedHost {
    /// Its namespace.
    pub namespace: &'static str,
    /// Its address.
    pub address: &'static str,
}

/// A link that exists.
#[derive(Debug)]
pub struct Link {
    /// The other side.
    pub host: LinkedHost,
}

/// Bytes and packets that went over the near end of the link since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes of frames, towards the far end.
    pub sent_bytes: u64,
    /// Packets as handed to the interface, which may be many segments in one.
    pub sent_packets: u64,
    /// Bytes of frames, from the far end.
    pub received_bytes: u64,
    /// Packets from there.
    pub received_packets: u64,
}

impl Link {
    /// Makes a link without a limit.
    ///
    /// # Errors
    /// [`Kind::CheckFailed`] where the system does not allow it, or has no `ip`.
    pub fn make() -> Result<Link> {
        // What a killed run left.
        remove();
        let link = Link {
            host: LinkedHost {
                namespace: NAMESPACE,
                address: FAR_ADDRESS,
            },
        };
        ip(&["netns", "add", NAMESPACE])?;
        ip(&[
            "link", "add", NEAR, "type", "veth", "peer", "name", FAR, "netns", NAMESPACE,
        ])?;
        ip(&["addr", "add", &format!("{NEAR_ADDRESS}/30"), "dev", NEAR])?;
        ip(&["link", "set", NEAR, "up"])?;
        let far = format!("{FAR_ADDRESS}/30");
        ip(&["-n", NAMESPACE, "addr", "add", &far, "dev", FAR])?;
        ip(&["-n", NAMESPACE, "link", "set", FAR, "up"])?;
        ip(&["-n", NAMESPACE, "link", "set", "lo", "up"])?;
        Ok(link)
    }

    /// Limits both directions to `bits_per_second`, or lifts the limit.
    ///
    /// # Errors
    /// [`Kind::CheckFailed`] where the system refuses.
    pub fn limit(&self, bits_per_second: Option<u64>) -> Result<()> {
        for side in [&["-n", NAMESPACE][..], &[]] {
            let dev = if side.is_empty() { NEAR } else { FAR };
            let with = |args: &[&str]| {
                let all = side.iter().chain(args).copied();
                Program::new("tc").args(all).output().map(drop)
            };
            // There is none at first.
            let _ = with(&["qdisc", "del", "dev", dev, "root"]);
            if let Some(bits) = bits_per_second {
                let rate = format!("{bits}bit");
                with(&[
                    "qdisc", "add", "dev", dev, "root", "tbf", "rate", &rate, "burst", BURST,
                    "latency", QUEUE,
                ])?;
            }
        }
        Ok(())
    }

    /// Bytes of frames that the bucket of a direction has let pass since the limit was set, headers of every segment
    /// counted: towards the far end, and from there.
    ///
    /// # Errors
    /// [`Kind::CheckFailed`] where there is no limit.
    pub fn wire_bytes(&self) -> Result<(u64, u64)> {
        let near = Program::new("tc").args(["-s", "-j", "qdisc", "show", "dev", NEAR]);
        let far = Program::new("tc").args(["-n", NAMESPACE, "-s", "-j", "qdisc", "show"]);
        let far = far.args(["dev", FAR]);
        Ok((
            bucket_bytes(&near.output()?)?,
            bucket_bytes(&far.output()?)?,
        ))
    }
}

/// What the near end of the link has counted.
pub(super) fn counters() -> Result<Counters> {
    let read = |name: &str| {
        let path = format!("/sys/class/net/{NEAR}/statistics/{name}");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        text.trim().parse::<u64>().map_err(|e| {
            Error::new(Kind::CheckFailed, "the link's counters cannot be read")
                .object(path)
                .cause(e)
        })
    };
    Ok(Counters {
        sent_bytes: read("tx_bytes")?,
        sent_packets: read("tx_packets")?,
        received_bytes: read("rx_bytes")?,
        received_packets: read("rx_packets")?,
    })
}

impl Drop for Link {
    fn drop(&mut self) {
        remove();
    }
}

/// A command that runs `program` at the far end.
pub fn inside(host: &LinkedHost, program: &Path) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", host.namespace]).arg(program);
    command
}

/// The interfaces go with the namespace, and with whatever of them was made before an error.
fn remove() {
    let _ = ip(&["link", "del", NEAR]);
    let _ = ip(&["netns", "del", NAMESPACE]);
}

fn ip(args: &[&str]) -> Result<()> {
    let program = Program::new("ip").args(args.iter().copied());
    program.output().map(drop)
}

fn bucket_bytes(printed: &str) -> Result<u64> {
    let parsed: Option<Value> = serde_json::from_str(printed).ok();
    let bytes = parsed.as_ref().and_then(|all| {
        let mut all = all.as_array()?.iter();
        all.find(|one| one["kind"] == "tbf")?["bytes"].as_u64()
    });
    bytes.ok_or_else(|| {
        Error::new(
            Kind::CheckFailed,
            "the token bucket's figures cannot be read",
        )
        .object(printed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_is_found_among_queues() {
        let text =
            r#"[{"kind":"noqueue","bytes":1},{"kind":"tbf","options":{},"bytes":77,"packets":2}]"#;
        assert_eq!(bucket_bytes(text).unwrap(), 77);
        assert!(bucket_bytes("[]").is_err());
    }
}
