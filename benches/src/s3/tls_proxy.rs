//! HAProxy in front of a server that speaks no TLS, which is how such servers are reached.
//!
//! Invariants: it does nothing but TLS, with the one suite that everyone is measured with; it is gone when it is dropped.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mover_base::{Error, Kind, Result};
use mover_test_servers::{certificate_file_for_loopback, free_ports};

/// How long it may take to start.
const START_MAX: Duration = Duration::from_secs(10);

/// A running proxy.
pub(super) struct TlsProxy {
    child: Child,
    /// `127.0.0.1:PORT`.
    pub address: String,
    /// The certificate to trust, PEM.
    pub ca_file: PathBuf,
}

impl TlsProxy {
    /// Starts one for the server at `address`, its files below `dir`.
    pub fn start(dir: &Path, address: &str) -> Result<TlsProxy> {
        let [port] = free_ports();
        let (ca_file, certificate_file) = (dir.join("ca.pem"), dir.join("proxy.pem"));
        write(&certificate_file, &certificate_file_for_loopback(&ca_file))?;
        let config_file = dir.join("proxy.cfg");
        write(&config_file, &config(port, &certificate_file, address))?;
        let child = Command::new("haproxy")
            .arg("-db")
            .arg("-f")
            .arg(&config_file)
            .stdin(Stdio::null())
            .spawn()
            .map_err(|e| no_proxy("haproxy cannot be started").cause(e))?;
        let mut proxy = TlsProxy {
            child,
            address: format!("127.0.0.1:{port}"),
            ca_file,
        };
        proxy.wait()?;
        Ok(proxy)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait(&mut self) -> Result<()> {
        let begun = Instant::now();
        while TcpStream::connect(&self.address).is_err() {
            let has_ended = !matches!(self.child.try_wait(), Ok(None));
            if has_ended || begun.elapsed() > START_MAX {
                return Err(no_proxy("haproxy does not answer"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for TlsProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Its defaults, but for what it must be told and the suite.
fn config(port: u16, certificate_file: &Path, address: &str) -> String {
    format!(
        "\
global
    ssl-default-bind-options ssl-min-ver TLSv1.3
    ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend clients
    bind 127.0.0.1:{port} ssl crt {}
    default_backend store
backend store
    server store {address}
",
        certificate_file.display()
    )
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| no_proxy("its files cannot be written").cause(e))
}

fn no_proxy(text: &str) -> Error {
    Error::new(Kind::CheckFailed, text)
}
