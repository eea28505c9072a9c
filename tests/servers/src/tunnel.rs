//! An HTTP proxy that does nothing but `CONNECT`: it leads encrypted connections to where only it knows the way, and
//! may ask who wants it.
//!
//! Invariants: no name is looked up, a place that the proxy was not given is refused; a head is at most [`HEAD_MAX`]
//! bytes; every head is recorded before it is answered, up to [`RECORDED_MAX`].

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;

use crate::serve::Server;

/// The longest head of a request.
const HEAD_MAX: usize = 16 * 1024;

/// How many requests are remembered.
const RECORDED_MAX: usize = 10_000;

/// A running proxy; it stops when dropped.
#[derive(Debug)]
pub struct Tunnel {
    server: Server,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Addresses by the name and port that clients ask for.
    places: HashMap<String, String>,
    /// What `Proxy-Authorization` has to be.
    authorization: Option<String>,
    seen: Mutex<Vec<(String, u16)>>,
}

impl Tunnel {
    /// Starts a proxy that leads to these places: each a name with a port, and the address behind it.
    pub fn start(places: &[(&str, &str)]) -> Self {
        Self::start_with(places, None)
    }

    /// The same for clients only that send this `Proxy-Authorization`; others get `407`.
    pub fn start_guarded(places: &[(&str, &str)], authorization: &str) -> Self {
        Self::start_with(places, Some(authorization.to_owned()))
    }

    fn start_with(places: &[(&str, &str)], authorization: Option<String>) -> Self {
        let owned = |(name, address): &(&str, &str)| ((*name).to_owned(), (*address).to_owned());
        let shared = Arc::new(Shared {
            places: places.iter().map(owned).collect(),
            authorization,
            seen: Mutex::default(),
        });
        let for_connections = Arc::clone(&shared);
        let server = Server::start("tunnel", move |stream| {
            let shared = Arc::clone(&for_connections);
            async move {
                let _ = connection(stream, &shared).await;
            }
        });
        Tunnel { server, shared }
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        self.server.address().to_string()
    }

    /// The request lines so far and the statuses that answered them, the first 10,000.
    pub fn seen(&self) -> Vec<(String, u16)> {
        self.shared.seen().clone()
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Vec<(String, u16)>> {
        self.seen.lock().expect("nobody panics while it is held")
    }

    /// Where a request is to be led, or the status that refuses it.
    fn decide(&self, head: &str) -> Result<&str, u16> {
        let line = head.lines().next().unwrap_or_default();
        let words: Vec<&str> = line.split(' ').collect();
        let ["CONNECT", place, "HTTP/1.1"] = words[..] else {
            return Err(405);
        };
        let given = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let is_wanted = name.eq_ignore_ascii_case("proxy-authorization");
            is_wanted.then(|| value.trim())
        });
        if self.authorization.is_some() && self.authorization.as_deref() != given {
            return Err(407);
        }
        self.places.get(place).map(String::as_str).ok_or(502)
    }

    fn record(&self, head: &str, status: u16) {
        let mut seen = self.seen();
        if seen.len() < RECORDED_MAX {
            let line = head.lines().next().unwrap_or_default();
            seen.push((line.to_owned(), status));
        }
    }
}

async fn connection(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let head = head(&mut stream).await?;
    let decided = shared.decide(&head);
    shared.record(&head, decided.err().unwrap_or(200));
    let address = match decided {
        Ok(address) => address,
        Err(status) => {
            let challenge = match status {
                407 => "proxy-authenticate: Basic realm=\"tunnel\"\r\n",
                _ => "",
            };
            let refusal = format!("HTTP/1.1 {status} No\r\n{challenge}content-length: 0\r\n\r\n");
            return stream.write_all(refusal.as_bytes()).await;
        }
    };
    let mut upstream = TcpStream::connect(address).await?;
    upstream.set_nodelay(true)?;
    stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await?;
    copy_bidirectional(&mut stream, &mut upstream).await?;
    Ok(())
}

/// The head of a request. A client sends nothing behind it before it is answered.
async fn head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD_MAX {
            return Err(io::Error::other("a head without end"));
        }
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
