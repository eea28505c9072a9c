//! Endpoints that are not the S3 server that was meant, or that hand out credentials: they answer what a script says.
//!
//! Invariants: every request is recorded before it is answered, up to [`RECORDED_MAX`]; of a body at most
//! [`BODY_MAX`] is taken, and a longer one breaks the connection.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

use crate::message::{Reply, RequestHead};
use crate::serve::Server;

/// How many requests are remembered.
const RECORDED_MAX: usize = 10_000;

/// The longest body.
const BODY_MAX: usize = 64 * 1024 * 1024;

/// A request that a [`Scripted`] server has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Its head.
    pub head: RequestHead,
    /// Its body.
    pub body: Vec<u8>,
}

/// Credentials that hold for a time, as roles have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionCredentials {
    /// The access key.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: String,
    /// The session token.
    pub token: String,
    /// Until when they hold, as `2026-01-01T00:00:00Z`.
    pub expiration: String,
}

/// Credentials that follow each other; the last stay.
struct InTurn {
    all: Vec<SessionCredentials>,
    given: AtomicUsize,
}

impl InTurn {
    fn new(all: &[SessionCredentials]) -> Self {
        assert!(!all.is_empty(), "credentials to give");
        InTurn {
            all: all.to_vec(),
            given: AtomicUsize::new(0),
        }
    }

    fn next(&self) -> &SessionCredentials {
        let at = self.given.fetch_add(1, Ordering::Relaxed);
        &self.all[at.min(self.all.len() - 1)]
    }
}

type Handler = dyn Fn(&RequestHead, &[u8]) -> Reply + Send + Sync;

/// A running server; it stops when dropped.
#[derive(Debug)]
pub struct Scripted {
    server: Server,
    answered: Arc<Mutex<Vec<Answered>>>,
}

impl Scripted {
    /// Answers every request by what `handler` returns.
    pub fn start(handler: impl Fn(&RequestHead, &[u8]) -> Reply + Send + Sync + 'static) -> Self {
        let handler: Arc<Handler> = Arc::new(handler);
        let answered = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&answered);
        let server = Server::start("scripted", move |stream| {
            let (handler, record) = (Arc::clone(&handler), Arc::clone(&record));
            async move {
                let service = service_fn(|request| {
                    answer(Arc::clone(&handler), Arc::clone(&record), request)
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        });
        Scripted { server, answered }
    }

    /// A web server: every request gets a page of HTML with status 200.
    pub fn html_page() -> Self {
        Self::start(|_, _| {
            Reply::new(
                200,
                "<!DOCTYPE html><html><body><h1>It works!</h1></body></html>",
            )
            .with("content-type", "text/html")
        })
    }

    /// A bucket in another region: `301 PermanentRedirect`, with the region in `x-amz-bucket-region`.
    pub fn other_region(region: &str) -> Self {
        let region = region.to_owned();
        Self::start(move |_, _| {
            let message = "The bucket you are attempting to access must be addressed using the specified endpoint.";
            Reply::s3_error(301, "PermanentRedirect", message).with("x-amz-bucket-region", &region)
        })
    }

    /// A listing without an end. Each page names one object and a token to go on with: always the same page and
    /// token, or new ones each time.
    pub fn endless_list(same_token: bool) -> Self {
        let pages = Mutex::new(0_u64);
        Self::start(move |_, _| {
            let page = {
                let mut pages = pages.lock().expect("nobody panics while it is held");
                *pages += u64::from(!same_token);
                *pages
            };
            Reply::new(200, list_page(page)).with("content-type", "application/xml")
        })
    }

    /// A machine's metadata service, version 2 only: a token by `PUT`, without which everything is `401`; then the
    /// role's name; then its credentials: the first of these at first, then the second, and so on; the last stay.
    pub fn instance_metadata(role: &str, credentials: &[SessionCredentials]) -> Self {
        const TOKEN: &str = "metadata-token";
        const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
        let (role, given) = (role.to_owned(), InTurn::new(credentials));
        Self::start(move |head, _| {
            if head.path == "/latest/api/token" {
                let asked = head.header("x-aws-ec2-metadata-token-ttl-seconds");
                return match (head.method.as_str(), asked) {
                    ("PUT", Some(ttl)) => {
                        Reply::new(200, TOKEN).with("x-aws-ec2-metadata-token-ttl-seconds", ttl)
                    }
                    ("PUT", None) => Reply::new(400, ""),
                    _ => Reply::new(405, ""),
                };
            }
            if head.header("x-aws-ec2-metadata-token") != Some(TOKEN) {
                return Reply::new(401, "");
            }
            match head.path.strip_prefix(ROLES) {
                Some("") => Reply::new(200, role.clone()),
                Some(name) if name == role => Reply::new(200, metadata_json(given.next())),
                _ if head.path == ROLES.trim_end_matches('/') => Reply::new(200, role.clone()),
                _ => Reply::new(404, ""),
            }
        })
    }

    /// A container's credentials at any path, for requests with this `Authorization` field; others get `401`. Of
    /// several credentials each is given once, and the last from then on.
    pub fn container_credentials(authorization: &str, credentials: &[SessionCredentials]) -> Self {
        let (authorization, given) = (authorization.to_owned(), InTurn::new(credentials));
        Self::start(move |head, _| {
            if head.header("authorization") == Some(&authorization) {
                Reply::new(200, container_json(given.next()))
                    .with("content-type", "application/json")
            } else {
                Reply::new(401, "")
            }
        })
    }

    /// A service that gives roles to whoever bears a web identity: for these tokens, each once and in turn (the last
    /// from then on), the credentials beside it; any other token is refused.
    pub fn web_identity(role: &str, given: &[(&str, SessionCredentials)]) -> Self {
        assert!(!given.is_empty(), "credentials to give");
        let role = role.to_owned();
        let owned = |(token, credentials): &(&str, SessionCredentials)| {
            ((*token).to_owned(), credentials.clone())
        };
        let given: Vec<(String, SessionCredentials)> = given.iter().map(owned).collect();
        let turns = AtomicUsize::new(0);
        Self::start(move |head, body| {
            let fields = form_fields(body);
            let field = |name: &str| fields.get(name).map(String::as_str);
            let is_known = head.method == "POST"
                && field("Action") == Some("AssumeRoleWithWebIdentity")
                && field("Version") == Some("2011-06-15")
                && field("RoleArn") == Some(&role)
                && field("RoleSessionName").is_some_and(|name| !name.is_empty());
            if !is_known {
                return Reply::s3_error(400, "InvalidParameterValue", "not what is given here");
            }
            let (token, credentials) = &given[turns.load(Ordering::Relaxed).min(given.len() - 1)];
            if field("WebIdentityToken") != Some(token) {
                let message = format!(
                    "No OpenIDConnect provider found for {}",
                    field("WebIdentityToken").unwrap_or_default()
                );
                return sts_error(400, "InvalidIdentityToken", &message);
            }
            turns.fetch_add(1, Ordering::Relaxed);
            Reply::new(200, role_xml(credentials)).with("content-type", "text/xml")
        })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// The requests so far, the first 10,000 of them.
    pub fn requests(&self) -> Vec<Answered> {
        self.answered
            .lock()
            .expect("nobody panics while it is held")
            .clone()
    }
}

async fn answer(
    handler: Arc<Handler>,
    record: Arc<Mutex<Vec<Answered>>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
    let head = RequestHead::of(&request);
    let body = Limited::new(request.into_body(), BODY_MAX)
        .collect()
        .await?
        .to_bytes();
    {
        let mut record = record.lock().expect("nobody panics while it is held");
        if record.len() < RECORDED_MAX {
            record.push(Answered {
                head: head.clone(),
                body: body.to_vec(),
            });
        }
    }
    Ok::<_, Infallible>(handler(&head, &body).into_response()).map_err(Into::into)
}

fn list_page(page: u64) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>mover</Name><Prefix></Prefix>\
         <KeyCount>1</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>true</IsTruncated>\
         <NextContinuationToken>token-{page}</NextContinuationToken><Contents><Key>object-{page:020}</Key>\
         <LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag>\
         <Size>0</Size><StorageClass>STANDARD</StorageClass></Contents></ListBucketResult>"
    )
}

/// The fields of a form as a browser sends one.
fn form_fields(body: &[u8]) -> HashMap<String, String> {
    let text = String::from_utf8_lossy(body);
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), plain(value)))
        .collect()
}

/// A value of a form without its escapes.
fn plain(value: &str) -> String {
    let (mut out, mut rest) = (Vec::new(), value.as_bytes());
    while let [byte, later @ ..] = rest {
        let escaped = (*byte == b'%').then(|| later.get(..2)).flatten();
        let escaped = escaped.and_then(|hex| std::str::from_utf8(hex).ok());
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &later[2..];
            }
            None => {
                out.push(if *byte == b'+' { b' ' } else { *byte });
                rest = later;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// An error the way the service for roles reports one.
fn sts_error(status: u16, code: &str, message: &str) -> Reply {
    let body = format!(
        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
         <Code>{code}</Code><Message>{message}</Message></Error><RequestId>0</RequestId></ErrorResponse>"
    );
    Reply::new(status, body).with("content-type", "text/xml")
}

fn role_xml(credentials: &SessionCredentials) -> String {
    let SessionCredentials {
        access_key_id,
        secret_access_key,
        token,
        expiration,
    } = credentials;
    format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{access_key_id}</AccessKeyId>\
         <SecretAccessKey>{secret_access_key}</SecretAccessKey><SessionToken>{token}</SessionToken>\
         <Expiration>{expiration}</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
         <ResponseMetadata><RequestId>0</RequestId></ResponseMetadata></AssumeRoleWithWebIdentityResponse>"
    )
}

fn metadata_json(credentials: &SessionCredentials) -> String {
    serde_json::json!({
        "Code": "Success",
        "Type": "AWS-HMAC",
        "LastUpdated": "2026-01-01T00:00:00Z",
        "AccessKeyId": credentials.access_key_id,
        "SecretAccessKey": credentials.secret_access_key,
        "Token": credentials.token,
        "Expiration": credentials.expiration,
    })
    .to_string()
}

fn container_json(credentials: &SessionCredentials) -> String {
    serde_json::json!({
        "AccessKeyId": credentials.access_key_id,
        "SecretAccessKey": credentials.secret_access_key,
        "Token": credentials.token,
        "Expiration": credentials.expiration,
    })
    .to_string()
}
