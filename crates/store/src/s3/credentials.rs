//! Where credentials come from, and the signature of a request.
//!
//! Invariants: the chain is that of Amazon's tools (environment, profile, SSO, web identity, container, instance
//! metadata v2) and is walked once for all shards, again only when the credentials run out; no error, log or
//! debug text holds a secret, because none of them is made from a request's headers.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use mover_base::{Error, Kind, Result};
use reqsign_aws_v4::{
    Credential, DefaultCredentialProvider, ProfileCredentialProvider, RequestSigner,
};
use reqsign_core::{Context, ErrorKind, FileRead, HttpSend, OsEnv, Signer};

use super::location::Location;

/// Time-outs towards the services that give credentials: they are near, or not there at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest file or answer that may hold credentials, in bytes.
const CREDENTIALS_BYTES_MAX: u64 = 1 << 20;

/// Signs requests for one location; shared by all shards.
pub(super) struct Signature {
    region: String,
    profile: Option<String>,
    file: Option<String>,
    signer: Mutex<Signer<Credential>>,
}

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signature")
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

impl Signature {
    pub fn new(location: &Location) -> Self {
        let file = location
            .credentials
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned());
        let (region, profile) = (location.region.clone(), location.profile.clone());
        let signer = Mutex::new(signer(&region, profile.as_deref(), file.as_deref()));
        Signature {
            region,
            profile,
            file,
            signer,
        }
    }

    /// Adds date, token and signature to a request's headers.
    pub async fn sign(&self, parts: &mut Parts) -> Result<()> {
        let signer = self
            .signer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        signer.sign(parts, None).await.map_err(|error| {
            let message = match error.kind() {
                ErrorKind::CredentialInvalid => "no usable credentials for the store were found",
                _ => "the credentials for the store could not be loaded",
            };
            Error::new(Kind::Storage, message)
                .hint("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where a role is attached")
                .cause(first_line(&error.to_string()))
        })
    }

    /// Walks the chain anew for the next request: the server says that what we have is expired.
    pub fn forget(&self) {
        let fresh = signer(&self.region, self.profile.as_deref(), self.file.as_deref());
        *self.signer.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
    }
}

fn signer(region: &str, profile: Option<&str>, file: Option<&str>) -> Signer<Credential> {
    let context = Context::new()
        .with_env(OsEnv)
        .with_file_read(Files)
        .with_http_send(MetadataServices);
    // A credential process would be a program of someone else's choice run with this one's rights.
    let mut chain = DefaultCredentialProvider::builder().no_process();
    if let Some(profile) = profile {
        // Who names a profile does not mean what happens to stand in the environment.
        chain = chain.with_profile(profile).no_env();
    }
    if let Some(file) = file {
        // Who names a file means that file: nothing else is asked.
        let mut only = ProfileCredentialProvider::new()
            .with_credentials_file(file)
            .with_config_file(file);
        if let Some(profile) = profile {
            only = only.with_profile(profile);
        }
        chain = DefaultCredentialProvider::builder()
            .no_env()
            .no_sso()
            .no_web_identity()
            .no_process()
            .no_ecs()
            .no_imds()
            .profile(only);
    }
    Signer::new(
        context,
        chain.build(),
        RequestSigner::new("s3", region).with_standard_session_token(),
    )
}

/// An error's text without the context that follows it.
fn first_line(text: &str) -> String {
    text.lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(300)
        .collect()
}

/// Small local files: reading one blocks for less than the switch to another thread would take.
#[derive(Debug)]
struct Files;

impl FileRead for Files {
    async fn file_read(&self, path: &str) -> reqsign_core::Result<Vec<u8>> {
        let failed = |error: std::io::Error| {
            reqsign_core::Error::unexpected("a file with credentials cannot be read")
                .with_source(error)
        };
        let bytes = std::fs::metadata(path).map_err(failed)?.len();
        if bytes > CREDENTIALS_BYTES_MAX {
            return Err(reqsign_core::Error::unexpected(
                "a file with credentials is longer than 1 MiB",
            ));
        }
        std::fs::read(path).map_err(failed)
    }
}

/// Requests to metadata and token services. A client of its own each time: they are rare, and a client belongs
/// to the runtime that it was made on.
#[derive(Debug)]
struct MetadataServices;

impl HttpSend for MetadataServices {
    async fn http_send(
        &self,
        request: http::Request<Bytes>,
    ) -> reqsign_core::Result<http::Response<Bytes>> {
        let failed = |error: reqwest::Error| {
            reqsign_core::Error::unexpected("a service for credentials does not answer")
                .with_source(error.without_url())
        };
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(failed)?;
        let request = reqwest::Request::try_from(request).map_err(failed)?;
        let mut response = client.execute(request).await.map_err(failed)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if (body.len() + chunk.len()) as u64 > CREDENTIALS_BYTES_MAX {
                return Err(reqsign_core::Error::unexpected(
                    "a service for credentials answers without end",
                ));
            }
            body.extend_from_slice(&chunk);
        }
        let mut answer = http::Response::new(Bytes::from(body));
        *answer.status_mut() = response.status();
        *answer.headers_mut() = std::mem::take(response.headers_mut());
        Ok(answer)
    }
}
