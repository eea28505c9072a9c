//! A cheap S3 server to measure clients against: what a client can do shows only where the server does little.
//!
//! It receives every byte and keeps it in memory that was touched before it listens, and serves it back; it hashes
//! nothing, checks no signature (nor those of chunks, which it takes out of their frames) and makes nothing durable. One
//! blocking thread per connection: no cheaper way is known that keeps the bytes. Conditional writes (`If-None-Match: *`)
//! are kept, as on Amazon's server. It speaks plain HTTP or TLS; every connection's type tells which, so that plain HTTP pays
//! nothing for the other.
//!
//! Invariants: objects never take more memory than it was given; an object appears whole or not at all; what it does not
//! know (parts, bodies of unknown length) is refused and never taken for something else.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Take, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;

use super::request::{Head, Method, read_head};
use super::tls::{self, Tls};

/// Objects are kept in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;
/// Names in one page of a listing (a limit of S3).
const PAGE_NAMES_MAX: usize = 1000;
/// Longest body that is not an object's.
const SMALL_BODY_BYTES_MAX: u64 = 1 << 20;
/// Most connections at a time.
const CONNECTIONS_MAX: u64 = 512;
/// Longest line before a signed chunk: its length, and a signature of 64 digits.
const CHUNK_LINE_BYTES: usize = 128;
/// The server's clock, which stands still: no client here depends on it.
const DATE: &str = "Thu, 01 Jan 2026 00:00:00 GMT";
/// The same moment in listings.
const DATE_ISO: &str = "2026-01-01T00:00:00.000Z";

type Piece = Box<[u8]>;

/// An object: its bytes, and the headers that came with it and go out again.
struct Object {
    pieces: Vec<Piece>,
    bytes: u64,
    kept_headers: Vec<(String, String)>,
    memory: Arc<Memory>,
}

impl Drop for Object {
    fn drop(&mut self) {
        self.memory.give(std::mem::take(&mut self.pieces));
    }
}

/// Pieces that hold nothing now.
struct Memory(Mutex<Vec<Piece>>);

impl Memory {
    fn new(bytes: u64) -> Arc<Self> {
        let count = bytes.div_ceil(PIECE_BYTES as u64) as usize;
        // Ones, so that every page is touched now and not while a client waits.
        let pieces = (0..count).map(|_| vec![1; PIECE_BYTES].into_boxed_slice());
        Arc::new(Memory(Mutex::new(pieces.collect())))
    }

    fn take(&self) -> Option<Piece> {
        locked(&self.0).pop()
    }

    fn give(&self, pieces: Vec<Piece>) {
        locked(&self.0).extend(pieces);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What all connections share.
struct Shared {
    objects: Mutex<BTreeMap<String, Arc<Object>>>,
    memory: Arc<Memory>,
    connections: AtomicU64,
    /// For TLS.
    tls: Option<Arc<ServerConfig>>,
}

/// Serves `listener` for ever, with `memory_bytes` for objects: by TLS if there is a `ca_file`, into which the certificate
/// is written that clients are to trust.
///
/// # Errors
/// Where no connection can be taken any more.
pub fn serve(listener: &TcpListener, memory_bytes: u64, ca_file: Option<&Path>) -> io::Result<()> {
    let shared = Arc::new(Shared {
        objects: Mutex::default(),
        memory: Memory::new(memory_bytes),
        connections: AtomicU64::new(0),
        tls: ca_file.map(tls::server),
    });
    println_ready(listener)?;
    loop {
        let (stream, _) = listener.accept()?;
        if shared.connections.fetch_add(1, Relaxed) >= CONNECTIONS_MAX {
            shared.connections.fetch_sub(1, Relaxed);
            continue;
        }
        let own = Arc::clone(&shared);
        std::thread::Builder::new()
            .stack_size(256 << 10)
            .spawn(move || {
                // A client that breaks off is its own affair.
                let _ = connection(&own, stream);
                own.connections.fetch_sub(1, Relaxed);
            })?;
    }
}

/// One line tells the starter the address and that memory is ready.
fn println_ready(listener: &TcpListener) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", listener.local_addr()?)?;
    out.flush()
}

fn connection(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(300)))?;
    match &shared.tls {
        None => converse(shared, &mut stream),
        Some(config) => converse(shared, &mut Tls::accept(stream, Arc::clone(config))?),
    }
}

/// Answers one connection's requests.
fn converse(shared: &Shared, stream: &mut (impl Read + Write)) -> io::Result<()> {
    let mut rest = Vec::with_capacity(64 << 10);
    while let Some(head) = read_head(stream, &mut rest)? {
        if head.is_of_unknown_length() {
            answer(stream, 501, &[], b"a body of unknown length")?;
            return Ok(());
        }
        if head.header("expect").is_some() {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let is_object = head.method == Method::Put && head.name().is_some();
        if is_object {
            put(shared, stream, &head, &mut rest)?;
            continue;
        }
        if head.body_bytes > SMALL_BODY_BYTES_MAX {
            answer(stream, 413, &[], b"")?;
            return Ok(());
        }
        let mut body = vec![0; head.body_bytes as usize];
        Body::new(stream, &mut rest).read_exact(&mut body)?;
        match (head.method, head.name()) {
            (Method::Get | Method::Head, Some(_)) => get(shared, stream, &head)?,
            (Method::Delete, Some(name)) => {
                locked(&shared.objects).remove(name);
                answer(stream, 204, &[], b"")?;
            }
            (Method::Get, None) if head.parameter("uploads").is_some() => {
                let text = "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>";
                answer(stream, 200, &[], text.as_bytes())?;
            }
            (Method::Get, None) => {
                let text = list(shared, &head);
                answer(stream, 200, &[], text.as_bytes())?;
            }
            (Method::Head | Method::Put, None) => answer(stream, 200, &[], b"")?,
            _ => answer(stream, 501, &[], b"not known here")?,
        }
    }
    Ok(())
}

/// What of a body came with the head, then the connection.
struct Body<'a, S> {
    stream: &'a mut S,
    rest: &'a mut Vec<u8>,
}

impl<'a, S> Body<'a, S> {
    fn new(stream: &'a mut S, rest: &'a mut Vec<u8>) -> Self {
        Body { stream, rest }
    }
}

impl<S: Read> Read for Body<'_, S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            return self.stream.read(into);
        }
        let early = self.rest.len().min(into.len());
        into[..early].copy_from_slice(&self.rest[..early]);
        self.rest.drain(..early);
        Ok(early)
    }
}

/// The bytes of an object in its body.
enum Content<'a, S> {
    Plain(Body<'a, S>),
    /// In signed chunks, whose signatures nobody looks at.
    Chunks {
        body: BufReader<Take<Body<'a, S>>>,
        left: u64,
    },
}

impl<'a, S: Read> Content<'a, S> {
    fn new(head: &Head, body: Body<'a, S>) -> Self {
        match head.decoded_bytes {
            None => Content::Plain(body),
            Some(_) => Content::Chunks {
                body: BufReader::with_capacity(CHUNK_LINE_BYTES, body.take(head.body_bytes)),
                left: 0,
            },
        }
    }

    /// Reads what is left once all bytes of the object were read: of chunks, the one without bytes.
    fn finish(&mut self) -> io::Result<()> {
        let is_over = match self {
            Content::Plain(_) => true,
            Content::Chunks { body, left } => *left == 0 && next_chunk(body)? == 0,
        };
        match is_over {
            true => Ok(()),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

impl<S: Read> Read for Content<'_, S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let (body, left) = match self {
            Content::Plain(body) => return body.read(into),
            Content::Chunks { body, left } => (body, left),
        };
        if *left == 0 {
            *left = next_chunk(body)?;
        }
        if *left == 0 {
            return Ok(0);
        }
        let now = (into.len() as u64).min(*left) as usize;
        let read = body.read(&mut into[..now])?;
        *left -= read as u64;
        Ok(read)
    }
}

/// Reads what stands between chunks, and returns how long the next is. Behind the last there is only an end of line.
fn next_chunk(body: &mut impl BufRead) -> io::Result<u64> {
    let mut line = String::new();
    // The end of the chunk before, if there was one.
    while line.trim().is_empty() {
        line.clear();
        if body.take(CHUNK_LINE_BYTES as u64).read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let digits = line.split(';').next().unwrap_or_default();
    let bytes =
        u64::from_str_radix(digits, 16).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    if bytes == 0 {
        line.clear();
        body.take(CHUNK_LINE_BYTES as u64).read_line(&mut line)?;
    }
    Ok(bytes)
}

fn put(
    shared: &Shared,
    stream: &mut (impl Read + Write),
    head: &Head,
    rest: &mut Vec<u8>,
) -> io::Result<()> {
    let name = head.name().unwrap_or_default().to_owned();
    let mut object = Object {
        pieces: Vec::new(),
        bytes: head.decoded_bytes.unwrap_or(head.body_bytes),
        kept_headers: head.kept_headers(),
        memory: Arc::clone(&shared.memory),
    };
    let mut content = Content::new(head, Body::new(stream, rest));
    let mut left = object.bytes;
    while left > 0 {
        let Some(mut piece) = shared.memory.take() else {
            answer(stream, 507, &[], b"the memory for objects is used up")?;
            return Err(io::ErrorKind::StorageFull.into());
        };
        let now = left.min(PIECE_BYTES as u64) as usize;
        let read = content.read_exact(&mut piece[..now]);
        object.pieces.push(piece);
        read?;
        left -= now as u64;
    }
    content.finish()?;
    let refused = {
        let mut objects = locked(&shared.objects);
        let is_taken = head.header("if-none-match").is_some() && objects.contains_key(&name);
        if !is_taken {
            objects.insert(name, Arc::new(object));
        }
        is_taken
    };
    if refused {
        let text = error_text("PreconditionFailed");
        return answer(stream, 412, &[], text.as_bytes());
    }
    answer(stream, 200, &[("etag", ETAG)], b"")
}

/// Not the form of a single write's, so that no client takes it for an MD5.
const ETAG: &str = "\"00000000000000000000000000000000-1\"";

fn error_text(code: &str) -> String {
    format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>")
}

fn get(shared: &Shared, stream: &mut impl Write, head: &Head) -> io::Result<()> {
    let found = locked(&shared.objects)
        .get(head.name().unwrap_or_default())
        .cloned();
    let Some(object) = found else {
        let text = error_text("NoSuchKey");
        let body = if head.method == Method::Head {
            ""
        } else {
            &text
        };
        return answer(stream, 404, &[], body.as_bytes());
    };
    let (status, first, end) = match head.range() {
        None => (200, 0, object.bytes),
        Some((first, last)) if first < object.bytes => {
            (206, first, last.saturating_add(1).min(object.bytes))
        }
        Some(_) => {
            let text = error_text("InvalidRange");
            return answer(stream, 416, &[], text.as_bytes());
        }
    };
    let mut text = format!(
        "HTTP/1.1 {status} OK\r\ncontent-length: {}\r\netag: {ETAG}\r\nlast-modified: {DATE}\r\ndate: {DATE}\r\naccept-ranges: bytes\r\ncontent-type: application/octet-stream\r\n",
        end - first
    );
    if status == 206 {
        let last = end - 1;
        text.push_str(&format!(
            "content-range: bytes {first}-{last}/{}\r\n",
            object.bytes
        ));
    }
    for (name, value) in &object.kept_headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    if head.method == Method::Head {
        return stream.write_all(text.as_bytes());
    }
    send_range(stream, text.as_bytes(), &object, first, end)
}

/// The head and bytes `first..end` of an object, the first piece in one call with the head.
fn send_range(
    stream: &mut impl Write,
    head: &[u8],
    object: &Object,
    first: u64,
    end: u64,
) -> io::Result<()> {
    let (mut at, mut head) = (first, head);
    while at < end || !head.is_empty() {
        let (index, inside) = (
            (at / PIECE_BYTES as u64) as usize,
            (at % PIECE_BYTES as u64) as usize,
        );
        let now = (end - at).min((PIECE_BYTES - inside) as u64) as usize;
        let piece = object.pieces.get(index).map_or(&[][..], |piece| piece);
        let bytes = piece.get(inside..inside + now).unwrap_or_default();
        let sent = match head.is_empty() {
            true => stream.write(bytes)?,
            false => stream.write_vectored(&[IoSlice::new(head), IoSlice::new(bytes)])?,
        };
        if sent == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let of_head = sent.min(head.len());
        head = &head[of_head..];
        at += (sent - of_head) as u64;
    }
    Ok(())
}

/// A page of the bucket's names (ListObjectsV2).
fn list(shared: &Shared, head: &Head) -> String {
    let prefix = head.parameter("prefix").unwrap_or_default();
    let is_flat = head.parameter("delimiter").as_deref() != Some("/");
    let after = head
        .parameter("continuation-token")
        .or_else(|| head.parameter("start-after"))
        .unwrap_or_default();
    let limit = head
        .parameter("max-keys")
        .and_then(|text| text.parse().ok())
        .unwrap_or(PAGE_NAMES_MAX)
        .min(PAGE_NAMES_MAX);
    let bucket = format!("{}/", head.bucket());
    let objects = locked(&shared.objects);
    let (mut text, mut groups) = (String::new(), Vec::new());
    let (mut count, mut last, mut is_cut) = (0, String::new(), false);
    for (name, object) in objects.range(format!("{bucket}{prefix}")..) {
        let Some(key) = name
            .strip_prefix(&bucket)
            .filter(|key| key.starts_with(&prefix))
        else {
            break;
        };
        if key <= after.as_str() {
            continue;
        }
        if let Some(slash) = key[prefix.len()..].find('/').filter(|_| !is_flat) {
            let group = &key[..=prefix.len() + slash];
            if groups.last().map(String::as_str) != Some(group) && !after.starts_with(group) {
                groups.push(group.to_owned());
            }
            last = key.to_owned();
            continue;
        }
        if count == limit {
            is_cut = true;
            break;
        }
        text.push_str(&format!(
            "<Contents><Key>{key}</Key><LastModified>{DATE_ISO}</LastModified><ETag>{ETAG}</ETag><Size>{}</Size><StorageClass>STANDARD</StorageClass></Contents>",
            object.bytes
        ));
        last = key.to_owned();
        count += 1;
    }
    for group in &groups {
        text.push_str(&format!(
            "<CommonPrefixes><Prefix>{group}</Prefix></CommonPrefixes>"
        ));
    }
    let next = match is_cut {
        true => format!("<NextContinuationToken>{last}</NextContinuationToken>"),
        false => String::new(),
    };
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult><Name>{}</Name><Prefix>{prefix}</Prefix><KeyCount>{count}</KeyCount><MaxKeys>{limit}</MaxKeys><IsTruncated>{is_cut}</IsTruncated>{next}{text}</ListBucketResult>",
        head.bucket()
    )
}

fn answer(
    stream: &mut impl Write,
    status: u16,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<()> {
    let mut text = format!(
        "HTTP/1.1 {status} OK\r\ncontent-length: {}\r\ndate: {DATE}\r\n",
        body.len()
    );
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        text.push_str("content-type: application/xml\r\n");
    }
    text.push_str("\r\n");
    let mut all = text.into_bytes();
    all.extend_from_slice(body);
    stream.write_all(&all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_chunks_are_taken_out_of_their_frames() {
        let text = "5;chunk-signature=ab\r\nhello\r\n3;chunk-signature=cd\r\n\r\nx\r\n0;chunk-signature=ef\r\n\r\n";
        let mut body = BufReader::new(text.as_bytes());
        let mut found = Vec::new();
        loop {
            let bytes = next_chunk(&mut body).unwrap();
            if bytes == 0 {
                break;
            }
            (&mut body).take(bytes).read_to_end(&mut found).unwrap();
        }
        assert_eq!(found, b"hello\r\nx");
        assert!(body.fill_buf().unwrap().is_empty(), "all of it was read");
        assert!(next_chunk(&mut &b"zz;\r\n"[..]).is_err());
        assert!(next_chunk(&mut &b"\r\n"[..]).is_err());
    }
}
