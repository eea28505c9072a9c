//! An S3 server in the test's process, over a directory: crates s3s and s3s-fs. It checks signatures.
//!
//! What to know of s3s-fs 0.14, as seen in its code and not tested here: `If-None-Match: *` on `PutObject` and `CompleteMultipartUpload` is a look whether the
//! object exists before anything is read or written, so of two writers at a time both can win, and the later one
//! overwrites. Here that is made atomic. `ListParts` names neither ETags nor comes sorted nor in pages;
//! `CompleteMultipartUpload` ignores the ETags it is given, wants parts numbered from 1 without a gap and all but the
//! last of 5 MiB at least; `ListMultipartUploads` does not exist; listings walk the whole bucket. A key may not be a
//! directory of another (`a` and `a/b`). A listing with `encoding-type=url` says that its keys are encoded, and they
//! are not. A payload whose hash is not the signed one is a 500. Session tokens are not looked at; see
//! [`FilesystemS3::demand_token`].

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use s3s::access::S3Access;
use s3s::auth::SimpleAuth;
use s3s::dto::{CompleteMultipartUploadInput, PutObjectInput};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{HttpResponse, S3Request, S3Result};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::access::{Access, AccessKey};
use crate::certificate::{self, Tls};
use crate::crowd::Crowd;
use crate::message::Reply;
use crate::serve::Server;

const REGION: &str = "us-east-1";
const BUCKET: &str = "mover";
const ACCESS_KEY_ID: &str = "MOVERTESTACCESSKEY00";
const SECRET_ACCESS_KEY: &str = "mover/test+secret/access+key/0123456789a";

/// The longest body of a request that writes an object, which is held whole while conditions are atomic.
const OBJECT_MAX: usize = 256 * 1024 * 1024;

/// How the server treats `If-None-Match: *`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Conditions {
    /// As S3 does: of several writers exactly one wins, the others get `412 PreconditionFailed`.
    #[default]
    Atomic,
    /// The same for objects that are written by one request; at the end of an upload in parts it is not looked at.
    AtomicInOne,
    /// As a server does which does not know of it: writes always overwrite, and nobody is told.
    Ignored,
}

/// How a [`FilesystemS3`] behaves.
#[derive(Debug, Clone, Copy, Default)]
pub struct FilesystemOptions {
    /// Plain HTTP, or TLS and by what.
    pub tls: Tls,
    /// How conditional writes are treated.
    pub conditions: Conditions,
}

/// A running server with one empty bucket; it stops when dropped.
#[derive(Debug)]
pub struct FilesystemS3 {
    /// Kept for its end.
    _server: Server,
    access: Access,
    root: PathBuf,
    token: Arc<Mutex<Option<String>>>,
    crowd: Arc<OnceLock<Crowd>>,
}

impl FilesystemS3 {
    /// Plain HTTP and atomic conditions; objects are kept below `dir`.
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, FilesystemOptions::default())
    }

    /// Starts on what an earlier server left in `dir`, or on an empty bucket.
    pub fn start_with(dir: &Path, options: FilesystemOptions) -> Self {
        let root = dir.join("s3");
        fs::create_dir_all(root.join(BUCKET)).expect("the directory can be written to");
        let ca_file = (options.tls != Tls::Off).then(|| dir.join("ca.pem"));
        let tls = ca_file
            .as_deref()
            .map(|path| TlsAcceptor::from(certificate::for_loopback(options.tls, path)));
        let store = s3s_fs::FileSystem::new(&root).expect("the directory exists");
        let mut builder = S3ServiceBuilder::new(store);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, SECRET_ACCESS_KEY));
        builder.set_access(Forgetful(options.conditions));
        let token: Arc<Mutex<Option<String>>> = Arc::default();
        let crowd: Arc<OnceLock<Crowd>> = Arc::default();
        let service = Arc::new(Service {
            inner: builder.build(),
            token: Arc::clone(&token),
            crowd: Arc::clone(&crowd),
            locks: (options.conditions != Conditions::Ignored).then(Locks::default),
            root: root.clone(),
        });
        let server = Server::start("filesystem-s3", move |stream| {
            connection(stream, tls.clone(), Arc::clone(&service))
        });
        let scheme = if ca_file.is_some() { "https" } else { "http" };
        let access = Access {
            endpoint: format!("{scheme}://{}", server.address()),
            region: REGION.to_owned(),
            bucket: BUCKET.to_owned(),
            key: AccessKey::new(ACCESS_KEY_ID, SECRET_ACCESS_KEY),
            ca_file,
        };
        FilesystemS3 {
            _server: server,
            access,
            root,
            token,
            crowd,
        }
    }

    /// How it is reached.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// From now on only requests that carry this session token, signed, are looked at; any other is answered by
    /// `400 ExpiredToken`.
    pub fn demand_token(&self, token: &str) {
        *self.token.lock().expect("nobody panics while it is held") = Some(token.to_owned());
    }

    /// From now on, and for good, so many requests are served at a time, and each takes so long; any other is answered by
    /// `503 SlowDown`.
    pub fn serve_few(&self, served_max: usize, takes: Duration) {
        let crowd = Crowd::new(served_max, takes);
        self.crowd.set(crowd).expect("said once");
    }

    /// How many requests were under way when each came since then, itself counted.
    pub fn arrivals(&self) -> Vec<usize> {
        self.crowd.get().map(Crowd::arrivals).unwrap_or_default()
    }

    /// The directory whose files are the bucket's objects.
    pub fn objects(&self) -> PathBuf {
        self.root.join(BUCKET)
    }
}

/// Forgets conditions after the signature was checked, if they are to be ignored.
#[derive(Debug)]
struct Forgetful(Conditions);

#[async_trait]
impl S3Access for Forgetful {
    async fn put_object(&self, request: &mut S3Request<PutObjectInput>) -> S3Result<()> {
        if self.0 == Conditions::Ignored {
            request.input.if_none_match = None;
        }
        Ok(())
    }

    async fn complete_multipart_upload(
        &self,
        request: &mut S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<()> {
        if self.0 != Conditions::Atomic {
            request.input.if_none_match = None;
        }
        Ok(())
    }
}

/// One lock for each path that is being written to.
#[derive(Debug, Default)]
struct Locks(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Locks {
    async fn lock(&self, path: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().expect("nobody panics while it is held");
            locks.retain(|_, lock| lock.strong_count() > 0);
            let known = locks.get(path).and_then(Weak::upgrade);
            let lock = known.unwrap_or_default();
            locks.insert(path.to_owned(), Arc::downgrade(&lock));
            lock
        };
        lock.lock_owned().await
    }
}

/// s3s with a lock around each request that makes or removes an object.
struct Service {
    inner: S3Service,
    locks: Option<Locks>,
    root: PathBuf,
    token: Arc<Mutex<Option<String>>>,
    crowd: Arc<OnceLock<Crowd>>,
}

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> io::Result<HttpResponse> {
        if !self.bears_token(&request) {
            let what = ("ExpiredToken", "The provided token has expired.");
            return refuse(request, 400, what).await;
        }
        if let Some(crowd) = self.crowd.get()
            && !crowd.pass().await
        {
            return refuse(
                request,
                503,
                ("SlowDown", "Please reduce your request rate."),
            )
            .await;
        }
        let locks = self.locks.as_ref().filter(|_| writes_object(&request));
        let Some(locks) = locks else {
            if self.names_directory(&request) {
                let reply = Reply::s3_error(404, "NoSuchKey", "There is no such object.");
                let body = match *request.method() {
                    Method::HEAD => s3s::Body::empty(),
                    _ => s3s::Body::from(reply.body.clone()),
                };
                return Ok(reply.into_response().map(|_| body));
            }
            return self.call(request.map(s3s::Body::from)).await;
        };
        // The body is read first, or a slow client would keep all others from the object.
        let (parts, body) = request.into_parts();
        let body = Limited::new(body, OBJECT_MAX)
            .collect()
            .await
            .map_err(io::Error::other)?;
        let lock = locks.lock(parts.uri.path()).await;
        let body: Bytes = body.to_bytes();
        let reply = self
            .call(Request::from_parts(parts, s3s::Body::from(body)))
            .await;
        drop(lock);
        reply
    }

    /// Whether a request carries the token that is demanded, and its signature covers it. s3s checks the signature.
    fn bears_token(&self, request: &Request<Incoming>) -> bool {
        const TOKEN: &str = "x-amz-security-token";
        let token = self.token.lock().expect("nobody panics while it is held");
        let Some(token) = token.as_deref() else {
            return true;
        };
        let header = |name: &str| {
            let value = request.headers().get(name)?;
            value.to_str().ok()
        };
        let signed = header("authorization")
            .and_then(|value| value.split_once("SignedHeaders="))
            .and_then(|(_, rest)| rest.split(',').next())
            .is_some_and(|names| names.split(';').any(|name| name == TOKEN));
        signed && header(TOKEN) == Some(token)
    }

    /// Whether a request reads what is a directory in the file system. In S3 there is no such thing: nothing exists
    /// under that name. s3s-fs answers `500`.
    fn names_directory(&self, request: &Request<Incoming>) -> bool {
        let path = request.uri().path().trim_matches('/');
        let is_object = path.contains('/');
        is_object && self.root.join(path).is_dir()
    }

    async fn call(&self, request: Request<s3s::Body>) -> io::Result<HttpResponse> {
        self.inner
            .call(request)
            .await
            .map_err(|error| io::Error::other(format!("{error:?}")))
    }
}

/// Takes the body of a request and answers by an error.
async fn refuse(
    request: Request<Incoming>,
    status: u16,
    (code, message): (&str, &str),
) -> io::Result<HttpResponse> {
    let _ = request.into_body().collect().await;
    let reply = Reply::s3_error(status, code, message);
    let body = s3s::Body::from(reply.body.clone());
    Ok(reply.into_response().map(|_| body))
}

/// Whether a request makes or removes the object at its path; to upload a part does neither.
fn writes_object(request: &Request<Incoming>) -> bool {
    let part = request.uri().query().unwrap_or("").contains("partNumber=");
    match *request.method() {
        Method::PUT => !part,
        Method::POST | Method::DELETE => true,
        _ => false,
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, service: Arc<Service>) {
    match tls {
        None => serve(stream, service).await,
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                serve(stream, service).await;
            }
        }
    }
}

async fn serve<S>(stream: S, service: Arc<Service>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let service = Arc::clone(&service);
        async move { service.answer(request).await as io::Result<Response<s3s::Body>> }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
