//! The proxy: that each fault does to a client, and to the server behind, what it says.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use mover_test_servers::{
    Access, Action, Fault, FaultId, FaultProxy, FilesystemS3, Reply, Scripted,
};
use tempfile::TempDir;

/// An upstream that echoes bodies, before a proxy with one fault.
struct Broken {
    upstream: Scripted,
    proxy: FaultProxy,
    fault: FaultId,
}

/// What a client of a raw socket got, and how it ended.
struct Raw {
    bytes: Vec<u8>,
    end: End,
}

/// How what a client got ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The whole reply is there, and the connection open as far as can be told.
    Whole,
    /// The connection was closed in order.
    Closed,
    /// It was reset.
    Reset,
    /// Nothing more came, for [`SILENCE`].
    Silent,
}

/// How long nothing comes before a test that waits for nothing believes it.
const SILENCE: Duration = Duration::from_millis(500);

/// How long something may take that has to come: much longer than it does.
const PATIENCE: Duration = Duration::from_secs(60);

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
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    /// Sends a request whose body is of this length and reads its reply, as far as it comes.
    fn put(&self, bytes: usize) -> Raw {
        read_reply(self.send(bytes))
    }

    /// The same where the reply is to stop, without an end, after so many bytes of its body.
    fn put_until_silent(&self, bytes: usize, expected: usize) -> Raw {
        let mut stream = self.send(bytes);
        let mut raw = Vec::new();
        while expected > 0 && body_bytes(&raw) < Some(expected) {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("more of the reply");
            raw.push(byte[0]);
        }
        stream.set_read_timeout(Some(SILENCE)).expect("a timeout");
        let mut rest = read_reply(stream);
        raw.append(&mut rest.bytes);
        Raw { bytes: raw, ..rest }
    }

    fn send(&self, bytes: usize) -> TcpStream {
        let mut stream = self.connect();
        let head = format!("PUT /b/k HTTP/1.1\r\nhost: x\r\ncontent-length: {bytes}\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("the proxy reads");
        // A proxy that breaks the connection takes only a part.
        let _ = stream.write_all(&vec![b'x'; bytes]);
        stream
    }

    /// Waits until something has come about that comes about soon.
    fn until(&self, is_so: impl Fn() -> bool) {
        const POLL: Duration = Duration::from_millis(5);
        for _ in 0..PATIENCE.as_millis() / POLL.as_millis() {
            if is_so() {
                return;
            }
            std::thread::sleep(POLL);
        }
        panic!("it does not come about");
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

/// Reads until the reply or the connection ends, or nothing more comes.
fn read_reply(mut stream: TcpStream) -> Raw {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    let end = loop {
        if body_bytes(&bytes).is_some_and(|got| Some(got) == content_length(&bytes)) {
            break End::Whole;
        }
        match stream.read(&mut buffer).map_err(|error| error.kind()) {
            Ok(0) => break End::Closed,
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
            Err(ErrorKind::ConnectionReset) => break End::Reset,
            Err(ErrorKind::WouldBlock) => break End::Silent,
            Err(error) => panic!("{error}"),
        }
    };
    Raw { bytes, end }
}

fn split(reply: &[u8]) -> Option<(String, usize)> {
    let end = reply.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&reply[..end]).to_lowercase();
    Some((head, reply.len() - end))
}

/// How much of its body is there; none while the head is not.
fn body_bytes(reply: &[u8]) -> Option<usize> {
    split(reply).map(|(_, bytes)| bytes)
}

fn content_length(reply: &[u8]) -> Option<usize> {
    let (head, _) = split(reply)?;
    let (_, rest) = head.split_once("content-length: ")?;
    rest.lines().next()?.trim().parse().ok()
}

impl Raw {
    /// Reset before anything came.
    fn was_reset(&self) -> bool {
        self.end == End::Reset && self.bytes.is_empty()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// How much of the body came, and how it ended.
    fn body(&self) -> (usize, &End) {
        (body_bytes(&self.bytes).expect("a head"), &self.end)
    }
}

#[test]
fn without_a_fault_signed_requests_pass() {
    let dir = TempDir::new().expect("a temporary directory");
    let server = FilesystemS3::start(dir.path());
    let proxy = FaultProxy::start(&server.access().endpoint);
    let client = server.access().at(&proxy.endpoint()).client();
    let body = vec![5; 3_000_000];
    assert_eq!(client.put("k", &body).expect("a reply").status, 200);
    assert_eq!(client.get("k").expect("a reply").body, body);
    assert_eq!(
        client.head("k").expect("a reply").header("content-length"),
        Some("3000000")
    );
    let seen = proxy.seen();
    let heads = ["PUT", "GET", "HEAD"].map(|method| format!("{method} /mover/k?"));
    assert_eq!(seen.len(), heads.len(), "{seen:?}");
    for (request, head) in seen.iter().zip(&heads) {
        assert!(request.starts_with(head), "{seen:?}");
    }
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
    assert!(raw.was_reset(), "{:?}", raw.end);
    assert_eq!((broken.hits(), broken.arrived().len()), (1, 0));
    assert!(broken.put(3).text().ends_with("xxx"), "the fault is spent");
}

#[test]
fn a_reset_in_the_request_gives_upstream_a_part_of_it() {
    let broken = broken(Fault::new(Action::ResetAfterRequestBytes(1000)));
    let raw = broken.put(100_000);
    assert!(raw.was_reset(), "{:?}", raw.end);
    assert_eq!((broken.hits(), broken.arrived().len()), (1, 0));
    let raw = broken.put(10);
    assert!(raw.was_reset(), "{:?}", raw.end);
    assert_eq!(broken.arrived(), [10], "a shorter request arrives whole");
}

#[test]
fn a_lost_reply_leaves_the_request_done() {
    let broken = broken(Fault::new(Action::LostReply));
    let raw = broken.put(1000);
    assert!(raw.was_reset(), "{:?}", raw.end);
    assert_eq!((broken.hits(), broken.arrived()), (1, vec![1000]));
}

#[test]
fn an_answer_of_the_proxy_keeps_the_request_from_upstream() {
    let broken = broken(Fault::new(Action::slow_down()));
    let raw = broken.put(1000);
    assert!(raw.text().starts_with("HTTP/1.1 503 "), "{}", raw.text());
    assert!(
        raw.text().contains("<Code>SlowDown</Code>") && raw.end == End::Whole,
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
    assert_eq!(raw.body(), (500, &End::Closed));
    let short = broken.put(100);
    assert_eq!(short.body(), (99, &End::Closed), "always before the end");
    assert!(broken.put(0).was_reset(), "no body to truncate");
    assert_eq!((broken.hits(), broken.arrived()), (3, vec![1000, 100, 0]));
}

#[test]
fn a_stalled_reply_stays_open() {
    let broken = broken(Fault::new(Action::StallReply(500)));
    let raw = broken.put_until_silent(1000, 500);
    assert_eq!(raw.body(), (500, &End::Silent));
    assert_eq!((broken.hits(), broken.arrived()), (1, vec![1000]));
}

#[test]
fn a_stalled_request_gets_no_reply() {
    let broken = broken(Fault::new(Action::Stall));
    let raw = broken.put_until_silent(1000, 0);
    assert_eq!((raw.bytes.len(), &raw.end), (0, &End::Silent));
    assert_eq!((broken.hits(), broken.arrived().len()), (1, 0));
}

#[test]
fn a_duplicated_request_arrives_twice_and_is_answered_once() {
    let broken = broken(Fault::new(Action::Duplicate));
    let raw = broken.put_until_silent(1000, 1000);
    assert_eq!(raw.body(), (1000, &End::Silent));
    assert_eq!((broken.hits(), broken.arrived()), (1, vec![1000, 1000]));
}

#[test]
fn hidden_keys_are_missing_from_the_listing_and_nothing_else_is() {
    let dir = TempDir::new().expect("a directory");
    let server = FilesystemS3::start(dir.path());
    let proxy = FaultProxy::start(&server.access().endpoint);
    let client = server.access().at(&proxy.endpoint()).client();
    let keys = ["list/a", "list/b", "list/bb", "list/c"];
    for key in keys {
        client.put(key, key.as_bytes()).expect("a reply");
    }
    let listed = || -> Vec<String> {
        let (listed, _) = client.list("list/", 1000).expect("a listing");
        listed.into_iter().map(|object| object.key).collect()
    };
    assert_eq!(listed(), keys);
    let hidden = vec!["list/b".to_owned()];
    let hide = Fault::new(Action::Hide(hidden)).query("prefix=");
    let hit = proxy.inject(hide.times(1));
    assert_eq!(listed(), ["list/a", "list/c"]);
    assert_eq!(listed(), keys, "it was to be hidden once");
    assert_eq!(proxy.hits(hit), 1);
    let read = client.get("list/b").expect("a reply");
    assert_eq!((read.status, read.body), (200, b"list/b".to_vec()));
}

#[test]
fn a_request_whose_reply_is_withheld_is_done() {
    let broken = broken(Fault::new(Action::SilentReply));
    let stream = broken.send(1000);
    broken.until(|| broken.arrived() == [1000]);
    stream.set_read_timeout(Some(SILENCE)).expect("a timeout");
    let raw = read_reply(stream);
    assert_eq!((raw.bytes.len(), &raw.end), (0, &End::Silent));
    assert_eq!((broken.hits(), broken.arrived()), (1, vec![1000]));
}

#[test]
fn a_held_request_goes_upstream_when_it_is_let_go_and_not_before() {
    let broken = broken(Fault::new(Action::Hold).times(1));
    let stream = broken.send(1000);
    broken.until(|| broken.proxy.held() == 1);
    assert_eq!(broken.put(2).body(), (2, &End::Whole));
    assert_eq!(broken.arrived(), [2], "what came later arrived alone");
    // Its client is gone by then.
    drop(stream);
    assert_eq!(broken.proxy.release(), [200]);
    assert_eq!(broken.arrived(), [2, 1000]);
    assert!(broken.proxy.release().is_empty(), "once");
}

#[test]
fn who_waits_for_a_held_request_is_told_how_it_was_answered() {
    let broken = broken(Fault::new(Action::Hold).times(1));
    let stream = broken.send(1000);
    broken.until(|| broken.proxy.held() == 1);
    assert_eq!(broken.proxy.release(), [200]);
    let raw = read_reply(stream);
    assert!(raw.bytes.starts_with(b"HTTP/1.1 200 "), "{:?}", raw.bytes);
    assert_eq!(broken.arrived(), [1000]);
}

/// One that waits for longer than any test runs, and one that waits for a moment.
#[test]
fn a_delayed_request_waits_and_then_passes() {
    let delay = |seconds| Fault::new(Action::Delay(Duration::from_secs_f64(seconds))).times(1);
    let broken = broken(delay(100_000.0));
    let _waits = broken.send(1000);
    broken.until(|| broken.hits() == 1);
    assert_eq!(broken.put(2).body(), (2, &End::Whole));
    assert_eq!(broken.arrived(), [2], "what came later arrived alone");
    let short = broken.proxy.inject(delay(0.01));
    assert_eq!(broken.put(10).body(), (10, &End::Whole));
    assert_eq!(
        (broken.proxy.hits(short), broken.arrived()),
        (1, vec![2, 10])
    );
}

/// How slow it is, its pieces say (`pipe.rs`). Here: all of it arrives, and one that would take days brings some and
/// not all while another reply comes whole.
#[test]
fn a_slowed_reply_arrives_whole_and_piece_by_piece() {
    let quick = broken(Fault::new(Action::SlowReply(8000)));
    let raw = quick.put(4000);
    assert_eq!(raw.body(), (4000, &End::Whole));
    assert!(raw.bytes.ends_with(&[b'x'; 4000]), "the body is changed");
    assert_eq!((quick.hits(), quick.arrived()), (1, vec![4000]));

    const LONG: usize = 10_000_000;
    let slow = broken(Fault::new(Action::SlowReply(80)).times(1));
    let mut stream = slow.send(LONG);
    let mut raw = Vec::new();
    while body_bytes(&raw).is_none_or(|got| got == 0) {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("more of the reply");
        raw.push(byte[0]);
    }
    assert_eq!(slow.put(2000).body(), (2000, &End::Whole));
    stream.set_nonblocking(true).expect("a socket");
    // What is there now, in its last piece at most.
    let rest = read_reply(stream);
    let got = body_bytes(&raw).unwrap_or(0) + rest.bytes.len();
    assert_eq!(rest.end, End::Silent);
    assert!(got < LONG, "{got}");
}

/// As a slowed reply is, the other way round: one that would take days is not taken in whole, and the sender is held back.
#[test]
fn a_slowed_request_arrives_whole_and_holds_its_sender_back() {
    let quick = broken(Fault::new(Action::SlowRequest(8000)));
    let raw = quick.put(4000);
    assert_eq!(raw.body(), (4000, &End::Whole));
    assert_eq!((quick.hits(), quick.arrived()), (1, vec![4000]));

    // More than all buffers on the way hold.
    const LONG: usize = 256 << 20;
    let slow = broken(Fault::new(Action::SlowRequest(80)).times(1));
    let mut stream = slow.connect();
    let head = format!("PUT /b/k HTTP/1.1\r\nhost: h\r\ncontent-length: {LONG}\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("a socket");
    stream.set_write_timeout(Some(SILENCE)).expect("a timeout");
    let piece = vec![b'x'; 1 << 20];
    let held_back = (0..LONG >> 20).find_map(|_| stream.write_all(&piece).err());
    let held_back = held_back.expect("it was taken in whole").kind();
    assert_eq!(held_back, ErrorKind::WouldBlock);
    assert_eq!(slow.put(2000).body(), (2000, &End::Whole));
    assert_eq!(slow.arrived(), [2000]);
}

#[test]
fn over_tls_requests_pass_and_faults_break_what_is_encrypted() {
    let dir = TempDir::new().expect("a temporary directory");
    let server = FilesystemS3::start(dir.path());
    let ca_file = dir.path().join("proxy-ca.pem");
    let proxy = FaultProxy::start_tls(&server.access().endpoint, &ca_file);
    assert!(proxy.endpoint().starts_with("https://"));
    let access = Access {
        ca_file: Some(ca_file),
        ..server.access().at(&proxy.endpoint())
    };
    let client = access.client();
    let body = vec![5; 300_000];
    assert_eq!(client.put("k", &body).expect("a reply").status, 200);
    assert_eq!(client.get("k").expect("a reply").body, body);
    for (action, kind) in [
        (Action::ResetBeforeRequest, None),
        (Action::TruncateReply(1000), None),
        (Action::slow_down(), Some(503)),
    ] {
        let fault = proxy.inject(Fault::new(action.clone()).times(1));
        let reply = client.get("k");
        assert_eq!(reply.ok().map(|reply| reply.status), kind, "{action:?}");
        assert_eq!(proxy.hits(fault), 1);
    }
    // In plain words it does not answer.
    let plain = proxy.endpoint().replace("https://", "http://");
    let seen = proxy.seen().len();
    let reply = server.access().at(&plain).client().get("k");
    assert!(reply.is_err(), "TLS is spoken here");
    assert_eq!(proxy.seen().len(), seen);
}

#[test]
fn the_ranges_that_were_asked_for_are_told_in_order() {
    let dir = TempDir::new().expect("a temporary directory");
    let server = FilesystemS3::start(dir.path());
    let proxy = FaultProxy::start(&server.access().endpoint);
    let client = server.access().at(&proxy.endpoint()).client();
    client.put("k", b"0123456789").expect("a reply");
    assert_eq!(proxy.ranges(), [""; 0]);
    for (range, expected) in [("bytes=2-4", &b"234"[..]), ("bytes=0-0", b"0")] {
        let reply = client.get_with("k", &[("range", range)]);
        assert_eq!(reply.expect("a reply").body, expected, "{range}");
    }
    client.get("k").expect("a reply");
    assert_eq!(proxy.ranges(), ["bytes=2-4", "bytes=0-0"]);
    assert_eq!(proxy.seen().len(), 4);
}

#[test]
fn of_several_faults_the_first_that_matches_hits_until_it_is_spent() {
    let broken = broken(Fault::new(Action::error(500, "InternalError")).times(1));
    let conflict = Fault::new(Action::error(409, "OperationAborted")).times(1);
    let conflict = broken.proxy.inject(conflict);
    assert!(broken.put(1).text().starts_with("HTTP/1.1 500 "));
    assert_eq!((broken.hits(), broken.proxy.hits(conflict)), (1, 0));
    assert!(broken.put(1).text().starts_with("HTTP/1.1 409 "));
    assert_eq!((broken.hits(), broken.proxy.hits(conflict)), (1, 1));
    assert!(broken.put(1).text().starts_with("HTTP/1.1 200 "));
}

#[test]
fn without_upstream_connections_are_reset() {
    let Broken {
        upstream, proxy, ..
    } = broken(Fault::new(Action::Stall).times(0));
    drop(upstream);
    let address = proxy.endpoint().replace("http://", "");
    let mut stream = TcpStream::connect(address).expect("the proxy listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .expect("the proxy reads");
    assert!(read_reply(stream).was_reset());
}

#[test]
fn dropping_the_proxy_ends_its_connections() {
    let Broken { proxy, .. } = broken(Fault::new(Action::Stall));
    let address = proxy.endpoint().replace("http://", "");
    let mut stream = TcpStream::connect(&address).expect("the proxy listens");
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .expect("the proxy reads");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    drop(proxy);
    let raw = read_reply(stream);
    assert!(
        raw.bytes.is_empty() && raw.end != End::Silent,
        "{:?}",
        raw.end
    );
    TcpStream::connect(&address).expect_err("nobody listens");
}
