//! The proxy for encrypted connections: whom it leads where.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::io::{Read, Write};
use std::net::TcpStream;

use mover_test_servers::{Reply, Scripted, Tunnel};

/// What a client gets that sends `head` and, if it is led somewhere, a request.
fn answered(tunnel: &Tunnel, head: &str) -> String {
    let mut stream = TcpStream::connect(tunnel.address()).expect("it listens");
    write!(stream, "{head}\r\n\r\n").expect("it reads");
    let mut reply = Vec::new();
    while !reply.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("more of the reply");
        reply.push(byte[0]);
    }
    let reply = String::from_utf8(reply).expect("text");
    if !reply.starts_with("HTTP/1.1 200 ") {
        return reply;
    }
    let request = b"GET /x HTTP/1.1\r\nhost: far\r\nconnection: close\r\n\r\n";
    stream.write_all(request).expect("it is open");
    let mut body = String::new();
    stream.read_to_string(&mut body).expect("a reply");
    body
}

#[test]
fn connections_are_led_to_where_the_proxy_knows_the_way() {
    let far = Scripted::start(|head, _| Reply::new(200, format!("far{}", head.path)));
    let address = far.endpoint().replace("http://", "");
    let tunnel = Tunnel::start(&[("far.invalid:443", &address)]);
    let connect = |place: &str| answered(&tunnel, &format!("CONNECT {place} HTTP/1.1\r\nhost: x"));
    assert!(connect("far.invalid:443").ends_with("far/x"));
    assert!(connect("far.invalid:80").starts_with("HTTP/1.1 502 "));
    // Not even where it could.
    assert!(connect(&address).starts_with("HTTP/1.1 502 "));
    let get = answered(&tunnel, "GET http://far.invalid/ HTTP/1.1\r\nhost: x");
    assert!(get.starts_with("HTTP/1.1 405 "), "{get}");
    let statuses = tunnel.seen().into_iter().map(|(_, status)| status);
    assert_eq!(statuses.collect::<Vec<_>>(), [200, 502, 502, 405]);
    assert_eq!(far.requests().len(), 1);
}

#[test]
fn a_guarded_proxy_leads_only_whom_it_knows() {
    let far = Scripted::start(|_, _| Reply::new(200, "far"));
    let address = far.endpoint().replace("http://", "");
    let tunnel = Tunnel::start_guarded(&[("far:1", &address)], "Basic eDp5");
    let with = |field: &str| answered(&tunnel, &format!("CONNECT far:1 HTTP/1.1\r\n{field}"));
    for field in ["host: x", "proxy-authorization: Basic eDp6"] {
        assert!(with(field).starts_with("HTTP/1.1 407 "), "{field}");
    }
    assert_eq!(far.requests().len(), 0);
    assert!(with("Proxy-Authorization: Basic eDp5").ends_with("far"));
}
