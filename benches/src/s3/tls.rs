//! TLS on blocking connections, for the cheap server and the bare client.
//!
//! One suite for everyone, TLS_AES_128_GCM_SHA256: every client of TLS 1.3 knows it (RFC 8446, 9.1), so what is measured is
//! not which one a client likes best.
//!
//! Invariants: a connection that is handed out has shaken hands; the server is who its certificate says, or there is none;
//! what was written is with the kernel, or the next call fails.

use std::io::{self, BufReader, IoSlice, Read, Write};
use std::net::TcpStream;
use std::ops::DerefMut;
use std::path::Path;
use std::sync::Arc;

use mover_test_servers::certificate_for_loopback;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite::TLS13_AES_128_GCM_SHA256, default_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConfig,
    ServerConnection, SideData, Stream,
};

/// Read from the socket and written to it at a time. rustls alone reads up to one record and writes up to four, and so many
/// more calls of the kernel cost more than the copy that this takes.
const CHUNK_BYTES: usize = 256 << 10;

/// A connection of a client or a server. `rustls::StreamOwned` would send the head of an answer in a record of its own.
pub(super) struct Tls<C> {
    connection: C,
    socket: Socket,
}

/// A socket that is read in large pieces, and written to as rustls likes.
struct Socket(BufReader<TcpStream>);

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.get_mut().write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.get_mut().write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Tls<ServerConnection> {
    /// The server's end.
    pub fn accept(socket: TcpStream, config: Arc<ServerConfig>) -> io::Result<Self> {
        let connection = ServerConnection::new(config).map_err(io::Error::other)?;
        Tls::new(connection, socket)
    }
}

impl Tls<ClientConnection> {
    /// The client's end, to a server with a certificate for `host`.
    pub fn connect(socket: TcpStream, config: Arc<ClientConfig>, host: &str) -> io::Result<Self> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
        Tls::new(connection, socket)
    }
}

impl<C, S> Tls<C>
where
    C: DerefMut<Target = ConnectionCommon<S>>,
    S: SideData,
{
    fn new(mut connection: C, socket: TcpStream) -> io::Result<Self> {
        let mut socket = Socket(BufReader::with_capacity(CHUNK_BYTES, socket));
        connection.set_buffer_limit(Some(CHUNK_BYTES));
        connection.complete_io(&mut socket)?;
        Ok(Tls { connection, socket })
    }

    fn stream(&mut self) -> Stream<'_, C, Socket> {
        Stream::new(&mut self.connection, &mut self.socket)
    }
}

impl<C, S> Read for Tls<C>
where
    C: DerefMut<Target = ConnectionCommon<S>>,
    S: SideData,
{
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream().read(into)
    }
}

impl<C, S> Write for Tls<C>
where
    C: DerefMut<Target = ConnectionCommon<S>>,
    S: SideData,
{
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream().write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.stream().write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream().flush()
    }
}

fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![TLS13_AES_128_GCM_SHA256],
        ..default_provider()
    }
}

/// A server on loopback, whose authority's certificate is written to `ca_file`.
pub(super) fn server(ca_file: &Path) -> Arc<ServerConfig> {
    certificate_for_loopback(ca_file, provider())
}

/// A client that trusts the authorities in `ca_file`, and nobody else.
pub(super) fn client(ca_file: &Path) -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca_file).map_err(io::Error::other)? {
        let certificate = certificate.map_err(io::Error::other)?;
        roots.add(certificate).map_err(io::Error::other)?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
