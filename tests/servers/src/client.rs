//! A small S3 client that shares no code with the one under test: it tells what a store really holds.
//!
//! It signs by query parameters (crate rusty-s3) and opens a connection for each request. Replies are returned as
//! they came, whatever their status; only a broken connection is an error.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use rusty_s3::actions::{CompleteMultipartUpload, CreateMultipartUpload, ListObjectsV2};
use rusty_s3::{Bucket, Credentials, Method, S3Action, UrlStyle};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::access::Access;
use crate::exchange::exchange_all;
use crate::message::Reply;

/// How long a signature holds.
const VALID: Duration = Duration::from_secs(600);

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// The whole key.
    pub key: String,
    /// Its length.
    pub bytes: u64,
    /// Its ETag as the listing has it, quotes included.
    pub etag: String,
}

/// A client for one bucket.
#[derive(Debug, Clone)]
pub struct Client {
    bucket: Bucket,
    credentials: Credentials,
    ca_file: Option<PathBuf>,
}

impl Client {
    /// A client for a bucket that is addressed by path. With a file of certificates it trusts these and no others.
    pub(crate) fn new(access: &Access) -> Self {
        let endpoint = access.endpoint.parse().expect("an endpoint is a URL");
        let bucket = Bucket::new(
            endpoint,
            UrlStyle::Path,
            access.bucket.clone(),
            access.region.clone(),
        );
        Client {
            bucket: bucket.expect("the endpoint has a host"),
            credentials: Credentials::new(&access.key.id, &access.key.secret),
            ca_file: access.ca_file.clone(),
        }
    }

    /// Writes an object, whether or not it exists.
    pub fn put(&self, key: &str, body: &[u8]) -> io::Result<Reply> {
        self.put_with(key, body, &[])
    }

    /// Writes an object if none exists (`If-None-Match: *`).
    pub fn put_if_absent(&self, key: &str, body: &[u8]) -> io::Result<Reply> {
        self.put_with(key, body, &[("if-none-match", "*")])
    }

    /// Writes an object with further header fields, which are signed.
    pub fn put_with(&self, key: &str, body: &[u8], headers: &[(&str, &str)]) -> io::Result<Reply> {
        let mut put = self.bucket.put_object(Some(&self.credentials), key);
        for (name, value) in headers {
            put.headers_mut()
                .insert((*name).to_owned(), (*value).to_owned());
        }
        self.send(&put, headers, body)
    }

    /// Reads an object.
    pub fn get(&self, key: &str) -> io::Result<Reply> {
        self.get_with(key, &[])
    }

    /// Reads an object with further header fields, such as `range`, which are not signed.
    pub fn get_with(&self, key: &str, headers: &[(&str, &str)]) -> io::Result<Reply> {
        let get = self.bucket.get_object(Some(&self.credentials), key);
        self.send(&get, headers, b"")
    }

    /// Asks for an object's head.
    pub fn head(&self, key: &str) -> io::Result<Reply> {
        let head = self.bucket.head_object(Some(&self.credentials), key);
        self.send(&head, &[], b"")
    }

    /// Removes an object.
    pub fn delete(&self, key: &str) -> io::Result<Reply> {
        let delete = self.bucket.delete_object(Some(&self.credentials), key);
        self.send(&delete, &[], b"")
    }

    /// All objects whose key begins with `prefix`, in the server's order, and how many pages they came in.
    pub fn list(&self, prefix: &str, page: usize) -> io::Result<(Vec<Listed>, usize)> {
        let (mut all, mut pages, mut token) = (Vec::new(), 0, None);
        loop {
            let mut list = self.bucket.list_objects_v2(Some(&self.credentials));
            list.with_prefix(prefix.to_owned());
            list.with_max_keys(page);
            if let Some(token) = token.take() {
                list.with_continuation_token(token);
            }
            let reply = self.send(&list, &[], b"")?;
            if reply.status != 200 {
                return Err(io::Error::other(format!(
                    "{}: {}",
                    reply.status,
                    reply.text()
                )));
            }
            let parsed = ListObjectsV2::parse_response(&reply.text()).map_err(io::Error::other)?;
            pages += 1;
            all.extend(parsed.contents.into_iter().map(|object| Listed {
                key: object.key,
                bytes: object.size.unwrap_or(0),
                etag: object.etag.unwrap_or_default(),
            }));
            match parsed.next_continuation_token {
                Some(next) => token = Some(next),
                None => return Ok((all, pages)),
            }
        }
    }

    /// Begins an upload in parts and returns its id.
    pub fn create_upload(&self, key: &str) -> io::Result<String> {
        let create = self
            .bucket
            .create_multipart_upload(Some(&self.credentials), key);
        let reply = self.send(&create, &[], b"")?;
        let parsed = CreateMultipartUpload::parse_response(&reply.text())
            .map_err(|error| io::Error::other(format!("{error}: {}", reply.text())))?;
        Ok(parsed.upload_id().to_owned())
    }

    /// Uploads a part, numbered from 1; the ETag is in the reply's head.
    pub fn put_part(&self, key: &str, upload: &str, number: u16, body: &[u8]) -> io::Result<Reply> {
        let put = self
            .bucket
            .upload_part(Some(&self.credentials), key, number, upload);
        self.send(&put, &[], body)
    }

    /// Makes an object of the parts 1, 2, 3 and so on with these ETags; `if_absent` adds `If-None-Match: *`.
    pub fn complete(
        &self,
        key: &str,
        upload: &str,
        etags: &[&str],
        if_absent: bool,
    ) -> io::Result<Reply> {
        let parts = etags.iter().copied();
        let mut complete =
            CompleteMultipartUpload::new(&self.bucket, Some(&self.credentials), key, upload, parts);
        let mut headers = Vec::new();
        if if_absent {
            complete.headers_mut().insert("if-none-match", "*");
            headers.push(("if-none-match", "*"));
        }
        let url = complete.sign(VALID);
        let body = complete.body();
        self.request("POST", url.as_str(), &headers, body.as_bytes())
    }

    /// Gives an upload in parts up.
    pub fn abort(&self, key: &str, upload: &str) -> io::Result<Reply> {
        let abort = self
            .bucket
            .abort_multipart_upload(Some(&self.credentials), key, upload);
        self.send(&abort, &[], b"")
    }

    fn send<'a, A: S3Action<'a>>(
        &self,
        action: &A,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Reply> {
        let method = match A::METHOD {
            Method::Head => "HEAD",
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
        };
        self.request(method, action.sign(VALID).as_str(), headers, body)
    }

    fn request(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Reply> {
        let base = self.bucket.base_url();
        let host = base.host_str().expect("an endpoint has a host");
        let port = base
            .port_or_known_default()
            .expect("an endpoint has a port");
        // The URL as a request line has it: without scheme and host.
        let (_, rest) = url.split_once("://").expect("a URL has a scheme");
        let target = rest.find('/').map_or("/", |at| &rest[at..]);
        let named = base
            .port()
            .map_or(host.to_owned(), |port| format!("{host}:{port}"));
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header("host", named);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(Bytes::copy_from_slice(body)))
            .expect("a valid request");
        let exchange = async {
            tokio::time::timeout(PATIENCE, self.over_the_wire(host, port, request))
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
        };
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(exchange)
        };
        // On a thread of its own, since who asks may be in a runtime already.
        std::thread::scope(|scope| scope.spawn(run).join().expect("no panic"))
    }

    async fn over_the_wire(
        &self,
        host: &str,
        port: u16,
        request: Request<Full<Bytes>>,
    ) -> io::Result<Reply> {
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        let Some(ca_file) = &self.ca_file else {
            return exchange_all(stream, request).await;
        };
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let stream = trusting_only(ca_file).connect(name, stream).await?;
        exchange_all(stream, request).await
    }
}

fn trusting_only(ca_file: &Path) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca_file).expect("the file of certificates") {
        roots.add(certificate.expect("PEM")).expect("a certificate");
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}
