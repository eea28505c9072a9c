//! Stores in S3 for the tests of the driver: a server, the file with its credentials, URLs that name both, and what went to a
//! proxy before them.
//!
//! Invariants: each test has a server of its own, which ends with it; the driver finds credentials only in the file
//! that the URL names, so tests do not depend on the environment; no such file is written twice.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use mover_io::{BUF_BYTES, ShardConfig};
use mover_store::{LinkLimits, Store};
use mover_test_servers::{
    Access, AccessKey, Client, FaultProxy, FilesystemOptions, FilesystemS3, Garage,
};
use tempfile::TempDir;

use crate::conformance::Subject;

/// A server and its directory.
pub struct Place {
    directory: TempDir,
    server: Server,
    key_files: AtomicUsize,
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
    let place = Place {
        directory,
        server,
        key_files: AtomicUsize::new(0),
    };
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
    /// How the server is reached.
    pub fn access(&self) -> &Access {
        match &self.server {
            Server::Garage(garage) => garage.access(),
            Server::Filesystem(filesystem) => filesystem.access(),
        }
    }

    pub fn endpoint(&self) -> String {
        self.access().endpoint.clone()
    }

    pub fn garage(&self) -> &Garage {
        match &self.server {
            Server::Garage(garage) => garage,
            Server::Filesystem(_) => panic!("this place is no Garage"),
        }
    }

    pub fn filesystem(&self) -> &FilesystemS3 {
        match &self.server {
            Server::Filesystem(filesystem) => filesystem,
            Server::Garage(_) => panic!("this place is no file system"),
        }
    }

    /// A client that sees what the server holds without the code under test.
    pub fn client(&self) -> Client {
        self.access().client()
    }

    /// The store through another endpoint, with further options.
    pub fn store_at(&self, endpoint: &str, options: &str, limits: &LinkLimits) -> Store {
        self.open(&self.access().at(endpoint), options, limits)
    }

    /// The store without its authority's certificate.
    pub fn store_untrusting(&self) -> Store {
        let access = Access {
            ca_file: None,
            ..self.access().clone()
        };
        self.open(&access, "", &LinkLimits::default())
    }

    /// The store with another key.
    pub fn store_with(&self, key: AccessKey) -> Store {
        let access = self.access().with_key(key);
        self.open(&access, "", &LinkLimits::default())
    }

    /// Another bucket of the server.
    pub fn store_in(&self, bucket: &str) -> Store {
        let access = self.access().in_bucket(bucket);
        self.open(&access, "", &LinkLimits::default())
    }

    fn open(&self, access: &Access, options: &str, limits: &LinkLimits) -> Store {
        let ca = access.ca_file.as_ref();
        let ca = ca.map_or(String::new(), |path| format!("&ca={}", path.display()));
        let options = match options.is_empty() {
            true => String::new(),
            false => format!("&{options}"),
        };
        let url = format!(
            "s3://{}?endpoint={}&region={}&credentials={}{ca}{options}",
            access.bucket,
            access.endpoint,
            access.region,
            self.key_file(&access.key).display()
        );
        Store::open(&url, limits).expect("the URL is right")
    }

    /// A new file with this key.
    fn key_file(&self, key: &AccessKey) -> PathBuf {
        let number = self.key_files.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.path().join(format!("credentials-{number}"));
        let AccessKey { id, secret } = key;
        let text =
            format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
        fs::write(&path, text).expect("a file of credentials");
        path
    }
}

/// A store behind a proxy that breaks what a test says.
pub struct Behind {
    pub proxy: FaultProxy,
    pub store: Store,
}

impl Behind {
    /// In plain words.
    pub fn plain(kept: &Place) -> Self {
        Behind::with(kept, "")
    }

    /// In plain words, with further options.
    pub fn with(kept: &Place, options: &str) -> Self {
        let proxy = FaultProxy::start(&kept.endpoint());
        let store = kept.store_at(&proxy.endpoint(), options, &LinkLimits::default());
        Behind { proxy, store }
    }

    /// Over TLS, with further options.
    pub fn tls(kept: &Place, options: &str) -> Self {
        let ca_file = kept.directory.path().join("proxy-ca.pem");
        let proxy = FaultProxy::start_tls(&kept.endpoint(), &ca_file);
        let access = Access {
            ca_file: Some(ca_file),
            ..kept.access().at(&proxy.endpoint())
        };
        let store = kept.open(&access, options, &LinkLimits::default());
        Behind { proxy, store }
    }
}

/// The ids of uploads in parts that such requests named.
pub fn upload_ids(proxy: &FaultProxy, method: &str, path: &str) -> BTreeSet<String> {
    let seen = proxy.seen();
    let of = |line: &&String| line.starts_with(method) && line.contains(path);
    let id = |line: &String| {
        let (_, id) = line.split_once("uploadId=")?;
        Some(id.split('&').next().unwrap_or(id).to_owned())
    };
    seen.iter().filter(of).filter_map(id).collect()
}
