//! The roofline of a transfer: the same bytes over bare HTTP, without hashing, signing or checking anything. Over TLS they are
//! encrypted, as for everyone.
//!
//! Blocking sockets, one thread per connection, one buffer each: a file is read into it and written to the socket, or the
//! other way round. `sendfile` was tried and cost more (1.2 to 2.0 CPU seconds per GB of a PUT), since it hands the kernel
//! single pages. Requests are allowed by a presigned URL, which a server that checks signatures accepts and the cheap one
//! does not look at.
//!
//! Invariants: every answer is a success of the expected length, or the run fails.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mover_base::{Error, Kind, Result};
use rustls::ClientConfig;
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};

use super::figures::{FIRST_BYTE_READS, Moved, new_histogram, record};
use super::servers::Access;
use super::tls::{self, Tls};
use crate::data::Files;

/// Connections, each with its thread.
const CONNECTIONS: usize = 8;
/// Read at a time from a connection.
const CHUNK_BYTES: usize = 256 << 10;
/// How long a signature holds.
const VALID: Duration = Duration::from_secs(3600);

/// Which way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BareWay {
    /// Files to objects.
    Put,
    /// Objects to files.
    Get,
    /// One byte at a time over one connection.
    FirstByte,
}

struct Plan<'a> {
    way: BareWay,
    /// Host and port.
    address: String,
    /// For TLS.
    tls: Option<Arc<ClientConfig>>,
    bucket: Bucket,
    credentials: Credentials,
    prefix: &'a str,
    files: Vec<(PathBuf, u64)>,
    dir: &'a Path,
    next: AtomicUsize,
}

/// Moves the files of `source` to objects below `prefix`, or back into `dir`.
///
/// # Errors
/// [`Kind::Storage`] where the server answers anything but a success; what the file system says.
pub fn transfer(
    way: BareWay,
    access: &Access,
    prefix: &str,
    source: &Path,
    dir: &Path,
) -> Result<Moved> {
    let failed = |e: &dyn std::fmt::Display| {
        Error::new(Kind::Storage, "a bare transfer failed").cause(e.to_string())
    };
    let url = access.endpoint.parse().map_err(|e| failed(&e))?;
    let bucket = Bucket::new(
        url,
        UrlStyle::Path,
        access.bucket.clone(),
        access.region.clone(),
    );
    let tls = access.ca_file.as_deref().map(tls::client);
    let plan = Plan {
        way,
        address: access.address().to_owned(),
        tls: tls.transpose().map_err(|e| failed(&e))?,
        bucket: bucket.map_err(|e| failed(&e))?,
        credentials: Credentials::new(access.id.as_str(), access.secret.as_str()),
        prefix,
        files: Files::list(source)?.0,
        dir,
        next: AtomicUsize::new(0),
    };
    let threads = match way {
        BareWay::FirstByte => 1,
        _ => CONNECTIONS,
    };
    let start = Instant::now();
    let parts = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| on_connection(&plan)))
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.collect::<Vec<_>>()
    });
    let loop_seconds = start.elapsed().as_secs_f64();
    let mut latency = new_histogram()?;
    let mut bytes = 0;
    for part in parts {
        let part = part.map_err(|_| failed(&"a thread panicked"))?;
        let (moved, times) = part.map_err(|e| failed(&e))?;
        bytes += moved;
        latency.add(&times).map_err(|e| failed(&e))?;
    }
    Moved::new(bytes, loop_seconds, &latency)
}

fn on_connection(plan: &Plan<'_>) -> io::Result<(u64, Histogram<u64>)> {
    let mut stream = TcpStream::connect(&plan.address)?;
    stream.set_nodelay(true)?;
    let Some(config) = &plan.tls else {
        return work(plan, &mut stream);
    };
    let host = plan.address.split(':').next().unwrap_or_default();
    let mut stream = Tls::connect(stream, Arc::clone(config), host)?;
    work(plan, &mut stream)
}

/// One request after another, until all of them are claimed.
fn work(plan: &Plan<'_>, stream: &mut (impl Read + Write)) -> io::Result<(u64, Histogram<u64>)> {
    let mut latency = new_histogram().map_err(io::Error::other)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut bytes = 0;
    loop {
        let claimed = plan.next.fetch_add(1, Ordering::Relaxed);
        let is_over = plan.way == BareWay::FirstByte && claimed >= FIRST_BYTE_READS;
        let at = match plan.way {
            BareWay::FirstByte => claimed % plan.files.len().max(1),
            _ => claimed,
        };
        let Some((path, len)) = plan.files.get(at).filter(|_| !is_over) else {
            return Ok((bytes, latency));
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let key = format!("{}{name}", plan.prefix);
        let start = Instant::now();
        bytes += match plan.way {
            BareWay::Put => put(plan, stream, &key, path, *len, &mut chunk)?,
            BareWay::Get => {
                let path = plan.dir.join(&*name);
                get(plan, stream, &key, &path, *len, &mut chunk)?
            }
            BareWay::FirstByte => first_byte(plan, stream, &key)?,
        };
        record(&mut latency, start.elapsed()).map_err(io::Error::other)?;
    }
}

/// Path and query of a presigned URL.
fn target(url: &str, address: &str) -> String {
    let behind = url.split_once(address).map_or("/", |(_, path)| path);
    behind.to_owned()
}

fn send(
    stream: &mut impl Write,
    plan: &Plan<'_>,
    method: &str,
    url: &str,
    more: &str,
) -> io::Result<()> {
    let head = format!(
        "{method} {} HTTP/1.1\r\nhost: {}\r\n{more}\r\n",
        target(url, &plan.address),
        plan.address
    );
    stream.write_all(head.as_bytes())
}

fn put(
    plan: &Plan<'_>,
    stream: &mut (impl Read + Write),
    key: &str,
    path: &Path,
    len: u64,
    chunk: &mut [u8],
) -> io::Result<u64> {
    let url = plan
        .bucket
        .put_object(Some(&plan.credentials), key)
        .sign(VALID);
    send(
        stream,
        plan,
        "PUT",
        url.as_str(),
        &format!("content-length: {len}\r\n"),
    )?;
    let mut file = File::open(path)?;
    let mut sent = 0;
    loop {
        let read = file.read(chunk)?;
        if read == 0 {
            break;
        }
        stream.write_all(&chunk[..read])?;
        sent += read as u64;
    }
    let (_, rest) = answer(stream)?;
    if sent != len || !rest.is_empty() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(len)
}

/// Asks for an object, with more fields in the head: what [`answer`] says.
fn ask(
    plan: &Plan<'_>,
    stream: &mut (impl Read + Write),
    key: &str,
    more: &str,
) -> io::Result<(u64, Vec<u8>)> {
    let url = plan
        .bucket
        .get_object(Some(&plan.credentials), key)
        .sign(VALID);
    send(stream, plan, "GET", url.as_str(), more)?;
    answer(stream)
}

fn get(
    plan: &Plan<'_>,
    stream: &mut (impl Read + Write),
    key: &str,
    path: &Path,
    len: u64,
    chunk: &mut [u8],
) -> io::Result<u64> {
    let (length, rest) = ask(plan, stream, key, "")?;
    if length != len {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut file = File::create(path)?;
    file.write_all(&rest)?;
    let mut left = len - rest.len() as u64;
    while left > 0 {
        let now = chunk.len().min(left as usize);
        let read = stream.read(&mut chunk[..now])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.write_all(&chunk[..read])?;
        left -= read as u64;
    }
    Ok(len)
}

fn first_byte(plan: &Plan<'_>, stream: &mut (impl Read + Write), key: &str) -> io::Result<u64> {
    let (length, rest) = ask(plan, stream, key, "range: bytes=0-0\r\n")?;
    match (length, rest.len()) {
        (1, 1) => Ok(1),
        (1, 0) => stream.read_exact(&mut [0]).map(|()| 1),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The head of an answer that is a success: the length of its body, and what of the body came with it.
fn answer(stream: &mut impl Read) -> io::Result<(u64, Vec<u8>)> {
    let mut got = Vec::with_capacity(4096);
    let mut chunk = [0; 4096];
    loop {
        let read = stream.read(&mut chunk)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        got.extend_from_slice(&chunk[..read]);
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut fields);
        let parsed = response.parse(&got).map_err(io::Error::other)?;
        let httparse::Status::Complete(head) = parsed else {
            continue;
        };
        let code = response.code.unwrap_or(0);
        let length = response
            .headers
            .iter()
            .find(|field| field.name.eq_ignore_ascii_case("content-length"))
            .and_then(|field| std::str::from_utf8(field.value).ok()?.trim().parse().ok())
            .unwrap_or(0);
        if !(200..300).contains(&code) {
            return Err(io::Error::other(format!(
                "HTTP {code}: {}",
                String::from_utf8_lossy(&got)
            )));
        }
        return Ok((length, got.split_off(head)));
    }
}
