//! The proxy: that each fault does to a client, and to the server behind, what it says.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use mover_test_servers::{
    Action, Client, Fault, FaultId, FaultProxy, FilesystemS3, Reply, Scripted,
};
use tempfile::TempDir;

/// An upstream that echoes bodies, before a proxy with one fault.
struct Broken {
    upstream: Scripted,
    proxy: FaultProxy,
    fault: FaultId,
}

/// What a client of a raw socket got: all bytes until the end, and how it ended.
struct Raw {
    bytes: Vec<u8>,
    end: std::io::Result<()>,
}

fn broken(fault: Fault) -> Broken {
    let upstream = Scripted::start(|_, body| Reply::new(200, body));
    let proxy = FaultProxy::start(&upstream.endpoint());
    let fault = proxy.inject(fault);
    Broken {
        upstream,
        proxy,
        fault,
    }
}

impl Broken {
    fn connect(&self) -> TcpStream {
        let address = self.proxy.endpoint().replace("http://", "");
        let stream = TcpStream::connect(address).expect("the proxy listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a timeout");
        stream
    }

    /// Sends a request whose body is of this length.
    fn put(&self, bytes: usize) -> Raw {
        let mut stream = self.connect();
        let head = format!("PUT /b/k HTTP/1.1\r\nhost: x\r\ncontent-length: {bytes}\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("the proxy reads");
        let _ = stream.write_all(&vec![b'x'; bytes]);
        read_to_end(stream)
    }

    fn hits(&self) -> u64 {
        self.proxy.hits(self.fault)
    }

    /// The lengths of the bodies that upstream got whole.
    fn arrived(&self) -> Vec<usize> {
        self.upstream
            .requests()
            .iter()
            .map(|request| request.body.len())
            .collect()
    }
}

/// Reads until the connection ends; a reply after which nothing more comes ends it too.
fn read_to_end(mut stream: TcpStream) -> Raw {
    stream
        .set_read_timeout(Some(Duration::from_secs(1)))
        .expect("a timeout");
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Raw { bytes, end: Ok(()) },
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
            Err(error) => {
                return Raw {
                    bytes,
                    end: Err(error),
                };
            }
        }
    }
}

impl Raw {
    fn was_reset(&self) -> bool {
        matches!(&self.end, Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset)
    }

    fn is_open(&self) -> bool {
        matches!(&self.end, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    fn body_bytes(&self) -> usize {
        self.text().split_once("\r\n\r\n").expect("a head").1.len()
    }
}

#[test]
fn without_a_fault_signed_requests_pass() {
    let dir = TempDir::new().expect("a temporary directory");
    let server = FilesystemS3::start(dir.path());
    let proxy = FaultProxy::start(&server.endpoint());
    let (id, secret) = (server.access_key_id(), server.secret_access_key());
    let client = Client::new(
        &proxy.endpoint(),
        server.region(),
        server.bucket(),
        id,
        secret,
    );
    let body = vec![5; 3_000_000];
    assert_eq!(client.put("k", &body).expect("a reply").status, 200);
    assert_eq!(client.get("k").expect("a reply").body, body);
    assert_eq!(
        client.head("k").expect("a reply").header("content-length"),
        Some("3000000")
    );
    assert_eq!((proxy.requests(), proxy.hits_of_all()), (3, 0));
    assert!(
        proxy.seen()[0].starts_with("PUT /mover/k?"),
        "{:?}",
        proxy.seen()
    );
}

#[test]
fn a_connection_carries_several_requests() {
    let broken = broken(Fault::new(Action::Stall).times(0));
    let mut stream = broken.connect();
    for _ in 0..3 {
        stream
            .write_all(b"PUT /k HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi")
            .expect("open");
        let mut reply = Vec::new();
        while !reply.ends_with(b"hi") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("more of the reply");
            reply.push(byte[0]);
        }
    }
    assert_eq!(broken.arrived(), [2, 2, 2]);
}

#[test]
fn a_reset_before_the_request_keeps_it_from_upstream() {
    let broken = broken(Fault::new(Action::ResetBeforeRequest).times(1));
    let raw = broken.put(0);
    assert!(raw.was_reset() && raw.bytes.is_empty(), "{:?}", raw.end);
    assert_eq!((broken.hits(), broken.arrived().len()), (1, 0));
    assert!(broken.put(3).text().ends_with("xxx"), "the fault is spent");
}

#[test]
fn a_reset_in_the_request_gives_upstream_a_part_of_it() {
    let broken = broken(Fault::new(Action::ResetAfterRequestBytes(1000)));
    let raw = broken.put(100_000);
    assert!(raw.was_reset() && raw.bytes.is_empty(), "{:?}", raw.end);
    assert_eq!((broken.hits(), broken.arrived().len()), (1, 0));
    let raw = broken.put(10);
    assert!(raw.was_reset() && raw.bytes.is_empty(), "{:?}", raw.end);
    assert_eq!(broken.arrived(), [10], "a shorter request arrives whole");
}

#[test]
fn a_lost_reply_leaves_the_request_done() {
    let broken = broken(Fault::new(Action::LostReply));
    let raw = broken.put(1000);
    assert!(raw.was_reset() && raw.bytes.is_empty(), "{:?}", raw.end);
    assert_eq!((broken.hits(), broken.arrived()), (1, vec![1000]));
}

#[test]
fn an_answer_of_the_proxy_keeps_the_request_from_upstream() {
    let broken = broken(Fault::new(Action::slow_down()));
    let raw = broken.put(1000);
    assert!(raw.text().starts_with("HTTP/1.1 503 "), "{}", raw.text());
    assert!(
        raw.text().contains("<Code>SlowDown</Code>") && raw.is_open(),
        "{}",
        raw.text()
    );
    assert_eq!((broken.hits(), broken.arrived().len()), (1, 0));
}

#[test]
fn an_error_in_200_comes_after_the_request_was_done() {
    let broken = broken(Fault::new(Action::ErrorIn200("InternalError".to_owned())));
    let raw = broken.put(1000);
    assert!(raw.text().starts_with("HTTP/1.1 200 "), "{}", raw.text());
    assert!(
        raw.text().contains("<Error><Code>InternalError</Code>"),
        "{}",
        raw.text()
    );
    assert_eq!((broken.hits(), broken.arrived()), (1, vec![1000]));
}

#[test]
fn a_truncated_reply_ends_early_and_in_order() {
    let broken = broken(Fault::new(Action::TruncateReply(500)));
    let raw = broken.put(1000);
    assert!(
        raw.text().contains("content-length: 1000"),
        "{}",
        raw.text()
    );
    assert_eq!(
        (raw.body_bytes(), raw.end.is_ok()),
        (500, true),
        "{:?}",
        raw.end
    );
    let short = broken.put(100);
    assert_eq!(
        (short.body_bytes(), short.end.is_ok()),
        (99, true),
        "always before the end"
    );
    assert!(broken.put(0).was_reset(), "no body to truncate");
    assert_eq!((broken.hits(), broken.arrived()), (3, vec![1000, 100, 0]));
}

#[test]
fn a_stalled_reply_stays_open() {
    let broken = broken(Fault::new(Action::StallReply(500)));
    let raw = broken.put(1000);
    assert_eq!(
        (raw.body_bytes(), raw.is_open()),
        (500, true),
        "{:?}",
        raw.end
    );
    assert_eq!((broken.hits(), broken.arrived()), (1, vec![1000]));
}

#[test]
fn a_stalled_request_gets_no_reply() {
    let broken = broken(Fault::new(Action::Stall));
    let raw = broken.put(1000);
    assert!(raw.is_open() && raw.bytes.is_empty(), "{:?}", raw.end);
    assert_eq!((broken.hits(), broken.arrived().len()), (1, 0));
}

#[test]
fn a_duplicated_request_arrives_twice_and_is_answered_once() {
    let broken = broken(Fault::new(Action::Duplicate));
    let raw = broken.put(1000);
    assert_eq!(
        (raw.body_bytes(), raw.is_open()),
        (1000, true),
        "{:?}",
        raw.end
    );
    assert_eq!((broken.hits(), broken.arrived()), (1, vec![1000, 1000]));
}

#[test]
fn a_throttled_request_takes_its_time() {
    let broken = broken(Fault::new(Action::Throttle(200_000)));
    let start = Instant::now();
    let raw = broken.put(60_000);
    assert_eq!(raw.body_bytes(), 60_000);
    assert!(
        start.elapsed() > Duration::from_millis(590),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_delayed_request_passes() {
    let broken = broken(Fault::new(Action::Delay(Duration::from_millis(300))));
    let start = Instant::now();
    assert_eq!(broken.put(10).body_bytes(), 10);
    assert!(
        start.elapsed() > Duration::from_millis(300),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn faults_and_upstream_change_while_it_runs() {
    let broken = broken(Fault::new(Action::error(500, "InternalError")));
    assert!(broken.put(1).text().starts_with("HTTP/1.1 500 "));
    broken.proxy.remove(broken.fault);
    let conflict = broken
        .proxy
        .inject(Fault::new(Action::error(409, "OperationAborted")));
    assert!(broken.put(1).text().starts_with("HTTP/1.1 409 "));
    broken.proxy.clear();
    let elsewhere = Scripted::html_page();
    broken.proxy.set_upstream(&elsewhere.endpoint());
    assert!(broken.put(1).text().contains("It works!"));
    drop(elsewhere);
    assert!(broken.put(1).was_reset(), "no upstream");
    assert_eq!((broken.hits(), broken.proxy.hits(conflict)), (1, 1));
    assert_eq!(
        (broken.proxy.requests(), broken.proxy.hits_of_all()),
        (4, 2)
    );
}

#[test]
fn dropping_the_proxy_ends_its_connections() {
    let Broken { proxy, .. } = broken(Fault::new(Action::Stall));
    let address = proxy.endpoint().replace("http://", "");
    let mut stream = TcpStream::connect(&address).expect("the proxy listens");
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .expect("the proxy reads");
    drop(proxy);
    let raw = read_to_end(stream);
    assert!(raw.bytes.is_empty() && !raw.is_open(), "{:?}", raw.end);
    TcpStream::connect(&address).expect_err("nobody listens");
}
