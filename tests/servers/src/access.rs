//! How a server is reached: where it is, which bucket, whose key.

use std::path::PathBuf;

use crate::client::Client;

/// An access key and its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessKey {
    /// The public part.
    pub id: String,
    /// The secret part.
    pub secret: String,
}

impl AccessKey {
    /// A key of these parts.
    pub fn new(id: &str, secret: &str) -> Self {
        AccessKey {
            id: id.to_owned(),
            secret: secret.to_owned(),
        }
    }
}

/// What a client has to know of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// `http://127.0.0.1:PORT`, or `https://` with TLS.
    pub endpoint: String,
    /// The region that signatures name.
    pub region: String,
    /// The bucket.
    pub bucket: String,
    /// Who asks.
    pub key: AccessKey,
    /// The certificates to trust, as PEM; none without TLS.
    pub ca_file: Option<PathBuf>,
}

impl Access {
    /// The same by way of another endpoint, such as that of a proxy.
    #[must_use]
    pub fn at(&self, endpoint: &str) -> Self {
        Access {
            endpoint: endpoint.to_owned(),
            ..self.clone()
        }
    }

    /// The same with another key.
    #[must_use]
    pub fn with_key(&self, key: AccessKey) -> Self {
        Access {
            key,
            ..self.clone()
        }
    }

    /// The same for another bucket.
    #[must_use]
    pub fn in_bucket(&self, bucket: &str) -> Self {
        Access {
            bucket: bucket.to_owned(),
            ..self.clone()
        }
    }

    /// The address of a store below `prefix`, in the form that the mover takes. It holds neither key nor certificates.
    pub fn url(&self, prefix: &str) -> String {
        let Access {
            endpoint,
            region,
            bucket,
            ..
        } = self;
        format!("s3://{bucket}/{prefix}?endpoint={endpoint}&region={region}&path_style=true")
    }

    /// A client that sees the bucket without the code under test.
    pub fn client(&self) -> Client {
        Client::new(self)
    }
}
