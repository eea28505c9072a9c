//! Stores in S3 for the tests of the driver: a server, the file with its credentials, and URLs that name both.
//!
//! Invariants: each test has a server of its own, which ends with it; the driver finds credentials only in the file
//! that the URL names, so tests do not depend on the environment.

use std::fs;
use std::path::PathBuf;

use mover_io::{BUF_BYTES, ShardConfig};
use mover_store::{LinkLimits, Store};
use mover_test_servers::{Client, FilesystemOptions, FilesystemS3, Garage};
use tempfile::TempDir;

use crate::conformance::Subject;

/// A server and its directory.
pub struct Place {
    directory: TempDir,
    server: Server,
}

enum Server {
    Garage(Garage),
    Filesystem(FilesystemS3),
}

/// A store on a Garage server.
pub fn garage_place() -> (Place, Subject) {
    with_subject(|directory| Server::Garage(Garage::start(directory)))
}

/// A store on a file system behind S3.
pub fn place(options: FilesystemOptions) -> (Place, Subject) {
    with_subject(|directory| Server::Filesystem(FilesystemS3::start_with(directory, options)))
}

fn with_subject(server: impl FnOnce(&std::path::Path) -> Server) -> (Place, Subject) {
    let directory = TempDir::new().expect("a temporary directory");
    let server = server(directory.path());
    let place = Place { directory, server };
    let store = place.store_at(&place.endpoint(), "", &LinkLimits::default());
    let config = ShardConfig {
        shards: 1,
        pin: false,
        arena_bytes: 8 * BUF_BYTES,
        ..ShardConfig::default()
    };
    (place, Subject { store, config })
}

impl Place {
    pub fn endpoint(&self) -> String {
        match &self.server {
            Server::Garage(garage) => garage.endpoint(),
            Server::Filesystem(filesystem) => filesystem.endpoint(),
        }
    }

    pub fn garage(&self) -> &Garage {
        match &self.server {
            Server::Garage(garage) => garage,
            Server::Filesystem(_) => panic!("this place is no Garage"),
        }
    }

    /// A client that sees what the server holds without the code under test.
    pub fn client(&self) -> Client {
        match &self.server {
            Server::Garage(garage) => garage.client(),
            Server::Filesystem(filesystem) => filesystem.client(),
        }
    }

    /// The store through another endpoint, with further options.
    pub fn store_at(&self, endpoint: &str, options: &str, limits: &LinkLimits) -> Store {
        let ca = match &self.server {
            Server::Filesystem(filesystem) => filesystem
                .ca_file()
                .map(|path| format!("&ca={}", path.display())),
            Server::Garage(_) => None,
        };
        let options = match options.is_empty() {
            true => String::new(),
            false => format!("&{options}"),
        };
        let more = format!("{}{options}", ca.unwrap_or_default());
        self.open(
            endpoint,
            self.bucket(),
            &self.own_credentials(),
            &more,
            limits,
        )
    }

    /// The store without its authority's certificate.
    pub fn store_untrusting(&self) -> Store {
        let credentials = self.own_credentials();
        self.open(
            &self.endpoint(),
            self.bucket(),
            &credentials,
            "",
            &LinkLimits::default(),
        )
    }

    /// The store with another key.
    pub fn store_with(&self, id: &str, secret: &str) -> Store {
        let credentials = self.credentials(id, secret);
        self.open(
            &self.endpoint(),
            self.bucket(),
            &credentials,
            "",
            &LinkLimits::default(),
        )
    }

    /// Another bucket of the server.
    pub fn store_in(&self, bucket: &str) -> Store {
        let credentials = self.own_credentials();
        self.open(
            &self.endpoint(),
            bucket,
            &credentials,
            "",
            &LinkLimits::default(),
        )
    }

    fn open(
        &self,
        endpoint: &str,
        bucket: &str,
        credentials: &std::path::Path,
        more: &str,
        limits: &LinkLimits,
    ) -> Store {
        let url = format!(
            "s3://{bucket}?endpoint={endpoint}&region={}&credentials={}{more}",
            self.region(),
            credentials.display()
        );
        Store::open(&url, limits).expect("the URL is right")
    }

    fn own_credentials(&self) -> PathBuf {
        match &self.server {
            Server::Garage(garage) => {
                self.credentials(garage.access_key_id(), garage.secret_access_key())
            }
            Server::Filesystem(filesystem) => {
                self.credentials(filesystem.access_key_id(), filesystem.secret_access_key())
            }
        }
    }

    fn credentials(&self, id: &str, secret: &str) -> PathBuf {
        let path = self
            .directory
            .path()
            .join(format!("credentials-{id}-{}", secret.len()));
        let text =
            format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
        fs::write(&path, text).expect("a file of credentials");
        path
    }

    fn bucket(&self) -> &str {
        match &self.server {
            Server::Garage(garage) => garage.bucket(),
            Server::Filesystem(filesystem) => filesystem.bucket(),
        }
    }

    fn region(&self) -> &str {
        match &self.server {
            Server::Garage(garage) => garage.region(),
            Server::Filesystem(filesystem) => filesystem.region(),
        }
    }
}
