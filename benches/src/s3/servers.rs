//! The servers that clients are measured against: Garage, a real store, and the cheap one, which shows the client's limit.
//!
//! Invariants: a server is a process of its own, so its CPU time is never counted as a client's, but read beside it; it
//! and its data are gone when it is dropped; its data lies in memory (tmpfs), so no disk of this machine has a say.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use mover_base::{Error, Kind, Result};
use mover_test_servers::Garage;
use serde::{Deserialize, Serialize};

use super::link::{LinkedHost, inside};
use super::tls_proxy::TlsProxy;

/// Clock ticks per second in `/proc` (`getconf CLK_TCK` is 100 on every Linux that this was made for).
const TICKS_PER_SECOND: f64 = 100.0;
/// Where `benches/run` installs Garage, below this project's cache: a build by the release profile, unlike that of tests.
pub const GARAGE: &str = "peers/garage-2.5.0-release/bin/garage";
/// What that build is called in results. Those from before it do not name it: they are of the build that tests have.
pub const GARAGE_BUILD: &str = "Garage 2.5.0, release profile";
/// Bucket and prefix on the cheap server, which makes them as they are named.
const SINK_BUCKET: &str = "bench";

/// Which server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerKind {
    /// The cheap server.
    Sink,
    /// The same over TLS.
    SinkTls,
    /// Garage 2.5, one node.
    Garage,
    /// The same behind HAProxy, which does TLS for it.
    GarageTls,
}

impl ServerKind {
    /// Name for tables.
    pub fn title(self) -> &'static str {
        match self {
            ServerKind::Sink => "sink",
            ServerKind::SinkTls => "sink over TLS",
            ServerKind::Garage => "Garage 2.5",
            ServerKind::GarageTls => "Garage 2.5 behind TLS (HAProxy)",
        }
    }

    /// Whether clients reach it by TLS.
    pub fn is_tls(self) -> bool {
        matches!(self, ServerKind::SinkTls | ServerKind::GarageTls)
    }
}

/// Where a client finds a server, and as whom.
#[derive(Clone, Debug)]
pub struct Access {
    /// `http://HOST:PORT`, or `https://`.
    pub endpoint: String,
    /// For TLS: the certificate to trust, PEM.
    pub ca_file: Option<PathBuf>,
    /// Region.
    pub region: String,
    /// Bucket.
    pub bucket: String,
    /// Key.
    pub id: String,
    /// Secret.
    pub secret: String,
}

impl Access {
    /// The mover's URL of a repository below `prefix`, with further options.
    pub fn url(&self, prefix: &str, options: &str) -> String {
        let ca = match &self.ca_file {
            Some(path) => format!("&ca={}", path.display()),
            None => String::new(),
        };
        format!(
            "s3://{}/{prefix}?endpoint={}&region={}{ca}{options}",
            self.bucket, self.endpoint, self.region
        )
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        let (_, address) = self.endpoint.split_once("://").unwrap_or_default();
        address
    }

    /// What clients find in their environment.
    pub fn variables(&self) -> [(&'static str, String); 4] {
        [
            ("AWS_ACCESS_KEY_ID", self.id.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.secret.clone()),
            ("AWS_REGION", self.region.clone()),
            // No client waits for a metadata service that is not there.
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ]
    }
}

/// The programs that serve.
#[derive(Clone, Copy, Debug)]
pub struct Programs<'a> {
    /// This package's own for S3, which is the cheap server.
    pub own: &'a Path,
    /// Garage.
    pub garage: &'a Path,
}

/// A running server.
pub struct Server {
    process: Process,
    /// How it is reached.
    pub access: Access,
}

enum Process {
    Sink(Child),
    Garage {
        server: Box<Garage>,
        pid: u32,
        proxy: Option<TlsProxy>,
    },
}

impl Server {
    /// Starts a server with room for `bytes` of objects, its data below `dir`. The cheap server can be held to one core.
    ///
    /// # Errors
    /// [`Kind::CheckFailed`] where it does not start.
    pub fn start(
        kind: ServerKind,
        programs: Programs<'_>,
        dir: &Path,
        bytes: u64,
        core: Option<&str>,
    ) -> Result<Server> {
        match kind {
            ServerKind::Sink | ServerKind::SinkTls => {
                let mut command = match core {
                    Some(_) => Command::new("taskset"),
                    None => Command::new(programs.own),
                };
                if let Some(core) = core {
                    command.args(["-c", core]).arg(programs.own);
                }
                let ca_file = kind.is_tls().then(|| dir.join("ca.pem"));
                Server::sink(command, "127.0.0.1:0", bytes, ca_file)
            }
            ServerKind::Garage | ServerKind::GarageTls => {
                Server::garage(programs.garage, dir, kind.is_tls())
            }
        }
    }

    /// The cheap server at the far end of a link.
    ///
    /// # Errors
    /// [`Kind::CheckFailed`] where it does not start.
    pub fn behind(host: &LinkedHost, program: &Path, bytes: u64) -> Result<Server> {
        let bind = format!("{}:0", host.address);
        Server::sink(inside(host, program), &bind, bytes, None)
    }

    fn sink(
        mut command: Command,
        bind: &str,
        bytes: u64,
        ca_file: Option<PathBuf>,
    ) -> Result<Server> {
        let memory_mib = (bytes >> 20) + 256;
        command
            .args(["serve", "--bind", bind, "--memory-mib"])
            .arg(memory_mib.to_string());
        if let Some(path) = &ca_file {
            command.arg("--tls-ca").arg(path);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| no_server("the cheap server cannot be started").cause(e))?;
        let mut line = String::new();
        let told = child
            .stdout
            .take()
            .map(|out| BufReader::new(out).read_line(&mut line));
        let address = line.trim();
        if !matches!(told, Some(Ok(_))) || address.is_empty() {
            end(&mut child);
            return Err(no_server("the cheap server did not tell its address"));
        }
        let scheme = if ca_file.is_some() { "https" } else { "http" };
        let access = Access {
            endpoint: format!("{scheme}://{address}"),
            ca_file,
            region: "us-east-1".to_owned(),
            bucket: SINK_BUCKET.to_owned(),
            id: "bench".to_owned(),
            secret: "benchmark data is no secret".to_owned(),
        };
        Ok(Server {
            process: Process::Sink(child),
            access,
        })
    }

    fn garage(program: &Path, dir: &Path, is_tls: bool) -> Result<Server> {
        let server = Garage::start_program(program, dir);
        let endpoint = &server.access().endpoint;
        let proxy = match endpoint.split_once("://") {
            Some((_, address)) if is_tls => Some(TlsProxy::start(dir, address)?),
            _ => None,
        };
        let through = proxy
            .as_ref()
            .map(|proxy| format!("https://{}", proxy.address));
        let access = Access {
            endpoint: through.unwrap_or_else(|| endpoint.clone()),
            ca_file: proxy.as_ref().map(|proxy| proxy.ca_file.clone()),
            region: server.access().region.clone(),
            bucket: server.access().bucket.clone(),
            id: server.access().key.id.clone(),
            secret: server.access().key.secret.clone(),
        };
        let pid = pid_with(dir)?;
        Ok(Server {
            process: Process::Garage {
                server: Box::new(server),
                pid,
                proxy,
            },
            access,
        })
    }

    /// CPU seconds that it has used so far, with what stands in front of it.
    ///
    /// # Errors
    /// [`Kind::CheckFailed`] where it runs no more.
    pub fn cpu_seconds(&self) -> Result<f64> {
        match &self.process {
            Process::Sink(child) => cpu_seconds_of(child.id()),
            Process::Garage { pid, proxy, .. } => {
                let proxy = proxy.as_ref().map(|proxy| cpu_seconds_of(proxy.pid()));
                Ok(cpu_seconds_of(*pid)? + proxy.transpose()?.unwrap_or_default())
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        match &mut self.process {
            Process::Sink(child) => end(child),
            Process::Garage { server, .. } => server.kill(),
        }
    }
}

fn cpu_seconds_of(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .map_err(|e| no_server("the server has ended").cause(e))?;
    ticks(&stat)
        .map(|ticks| ticks / TICKS_PER_SECOND)
        .ok_or_else(|| no_server("the server's CPU time cannot be read"))
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn no_server(text: &str) -> Error {
    Error::new(Kind::CheckFailed, text)
}

/// User and kernel ticks of a line of `/proc/PID/stat`. The name, which may hold blanks, ends with the last bracket.
fn ticks(stat: &str) -> Option<f64> {
    let (_, behind) = stat.rsplit_once(')')?;
    let mut fields = behind.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<f64>().ok();
    Some(next()? + next()?)
}

/// The process whose arguments name `dir`: Garage, by its configuration.
fn pid_with(dir: &Path) -> Result<u32> {
    let needle = dir.display().to_string();
    let found = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    found
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .find(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            line.contains(&needle) && line.contains("garage") && line.contains("server")
        })
        .ok_or_else(|| no_server("the process of Garage was not found"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_read_behind_a_name_with_blanks() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 100 0 0 0 120 30 0 0 20 0 4 0 1";
        assert_eq!(ticks(stat), Some(150.0));
        assert_eq!(ticks("7 (a"), None);
    }
}
