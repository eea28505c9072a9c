//! What a server's answer means: success, a refusal with its remedy, or a fault that may pass.
//!
//! Invariants: an answer that is not understood is an error, never a success; a body is parsed only within its
//! bound; a message shows what the server said, cut and escaped, and never a header of the request.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use mover_base::{Error, Kind};
use serde::Deserialize;

use super::location::Location;

/// What was attempted, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Put,
    Get,
    Head,
    List,
    Delete,
    Multipart,
}

impl Operation {
    /// As in "the store refused to ...".
    fn to_text(self) -> &'static str {
        match self {
            Operation::Put => "write an object",
            Operation::Get => "read an object",
            Operation::Head => "look at an object",
            Operation::List => "list objects",
            Operation::Delete => "delete an object",
            Operation::Multipart => "write an object in parts",
        }
    }

    /// What a policy has to allow.
    fn permission(self) -> &'static str {
        match self {
            Operation::Put => "s3:PutObject",
            Operation::Get | Operation::Head => "s3:GetObject and s3:ListBucket",
            Operation::List => "s3:ListBucket",
            Operation::Delete => "s3:DeleteObject",
            Operation::Multipart => {
                "s3:PutObject, s3:AbortMultipartUpload and s3:ListBucketMultipartUploads"
            }
        }
    }
}

/// A whole answer; of an object's bytes only what was not taken elsewhere.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    error: ErrorDocument,
}

/// The error document of S3.
#[derive(Debug, Default, Deserialize)]
#[serde(rename = "Error", rename_all = "PascalCase", default)]
struct ErrorDocument {
    code: String,
    message: String,
    region: String,
}

impl Answer {
    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Looks once for an error document: a listing is long, and is none.
    pub fn new(status: StatusCode, headers: HeaderMap, body: Bytes) -> Self {
        let error = match has_error_root(&body) {
            true => std::str::from_utf8(&body)
                .ok()
                .and_then(|text| quick_xml::de::from_str(text).ok())
                .unwrap_or_default(),
            false => ErrorDocument::default(),
        };
        Answer {
            status,
            headers,
            body,
            error,
        }
    }

    /// The code of an error document in the body, empty where there is none. A success may carry one too.
    pub fn error_code(&self) -> &str {
        &self.error.code
    }

    /// Whether a success holds an error document in place of its result.
    pub fn is_hidden_error(&self) -> bool {
        self.status.is_success() && !self.error_code().is_empty()
    }

    /// Whether the same request may succeed later.
    pub fn may_pass(&self) -> bool {
        let code = self.error_code();
        match self.status.as_u16() {
            408 | 429 | 500 | 502 | 503 | 504 | 507 | 509 => true,
            409 => matches!(code, "ConditionalRequestConflict" | "OperationAborted"),
            400 => matches!(
                code,
                "RequestTimeout" | "IncompleteBody" | "XAmzContentSHA256Mismatch" | "BadDigest"
            ),
            200..=299 => matches!(
                code,
                "InternalError" | "SlowDown" | "ServiceUnavailable" | "RequestTimeout"
            ),
            _ => false,
        }
    }

    /// Whether the server asks for fewer requests.
    pub fn asks_to_slow_down(&self) -> bool {
        matches!(self.status.as_u16(), 429 | 503 | 509) || self.error_code() == "SlowDown"
    }

    /// Whether temporary credentials ran out.
    pub fn is_expired(&self) -> bool {
        matches!(
            self.error_code(),
            "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired"
        )
    }

    /// The error that this answer is, with its remedy.
    pub fn into_error(self, operation: Operation, object: &str, location: &Location) -> Error {
        let status = self.status.as_u16();
        let said = said(&self);
        let document = &self.error;
        let told = |kind, message: String| Error::new(kind, message).object(object);
        let redirect = self.header("x-amz-bucket-region").map(str::to_owned);
        let act = operation.to_text();
        match (status, document.code.as_str()) {
            (_, "NoSuchBucket") => Error::new(Kind::NotFound, "the bucket does not exist")
                .object(format!("{} at {}", location.bucket, location.server()))
                .hint("create it first, or check the bucket's name, the endpoint and the account"),
            (_, "RequestTimeTooSkewed") => told(
                Kind::Storage,
                "the store refused a request because the clocks differ".into(),
            )
            .hint("set this machine's clock (timedatectl, chronyc tracking), then try again")
            .cause(said),
            (_, "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired") => told(
                Kind::Storage,
                "the session token of the credentials has expired".into(),
            )
            .hint("renew the credentials (for instance `aws sso login`), then try again")
            .cause(said),
            (
                _,
                "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "InvalidToken"
                | "AuthorizationHeaderMalformed"
                | "InvalidSecurity",
            ) => {
                let hint = match document.region.is_empty() {
                    true => "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or the profile, and the region".to_owned(),
                    false => format!("the server expects region={}; otherwise check the credentials", escaped(&document.region)),
                };
                told(
                    Kind::Storage,
                    "the store does not accept the credentials".into(),
                )
                .hint(hint)
                .cause(said)
            }
            (301 | 302 | 307 | 308, _)
            | (
                _,
                "PermanentRedirect" | "TemporaryRedirect" | "IllegalLocationConstraintException",
            ) => {
                let hint = match redirect
                    .or(Some(document.region.clone()).filter(|region| !region.is_empty()))
                {
                    Some(region) => format!(
                        "the bucket is in another region: use region={}",
                        escaped(&region)
                    ),
                    None => "check endpoint and region of the repository's URL".to_owned(),
                };
                told(Kind::Usage, "the store redirects to another place".into())
                    .hint(hint)
                    .cause(said)
            }
            (401 | 403, _) => told(Kind::Storage, format!("the store does not allow to {act}"))
                .hint(format!(
                    "the credentials need {} on this bucket and prefix",
                    operation.permission()
                ))
                .cause(said),
            (404, _) => told(Kind::NotFound, "no such object".into()).cause(said),
            (507, _) | (_, "QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage") => {
                told(Kind::Storage, "the store is full".into())
                    .hint("free or buy space, then try again; nothing that is listed was lost")
                    .cause(said)
            }
            (408 | 429 | 500..=599, _) => told(
                Kind::Unreachable,
                format!("the store failed to {act}, and again when asked again"),
            )
            .hint("try again later; what was committed is safe")
            .cause(said),
            _ if is_html(&self.headers) => not_s3(location, &said),
            _ => told(Kind::Storage, format!("the store refused to {act}")).cause(said),
        }
    }
}

/// The error for a server that speaks HTTP and not S3.
pub(super) fn not_s3(location: &Location, said: &str) -> Error {
    Error::new(
        Kind::Storage,
        "the endpoint does not answer as an S3 server does",
    )
    .object(location.server())
    .hint("check the endpoint: it may be a web page's, a proxy's or the server's administration")
    .cause(said.to_owned())
}

/// Whether a document begins as S3's errors do.
fn has_error_root(body: &[u8]) -> bool {
    const HEAD_BYTES: usize = 256;
    let head = &body[..body.len().min(HEAD_BYTES)];
    head.windows(b"<Error".len())
        .any(|window| window == b"<Error")
}

/// Whether an answer is a page for people.
pub(super) fn is_html(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.to_ascii_lowercase().starts_with("text/html"))
}

/// What the server said, for people.
fn said(answer: &Answer) -> String {
    let document = &answer.error;
    let mut text = format!("HTTP {}", answer.status.as_u16());
    if !document.code.is_empty() {
        text.push_str(&format!(" {}", escaped(&document.code)));
    }
    if !document.message.is_empty() {
        text.push_str(&format!(": {}", escaped(&document.message)));
    }
    if let Some(id) = answer.header("x-amz-request-id") {
        text.push_str(&format!(" (request {})", escaped(id)));
    }
    text
}

/// Text of the server's, cut and without control characters.
pub(super) fn escaped(text: &str) -> String {
    text.chars()
        .take(200)
        .flat_map(char::escape_debug)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::location::Surroundings;
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        let status = StatusCode::from_u16(status).unwrap();
        Answer::new(
            status,
            HeaderMap::new(),
            Bytes::copy_from_slice(body.as_bytes()),
        )
    }

    fn document(code: &str) -> String {
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>m</Message><Resource>/x</Resource></Error>"
        )
    }

    fn location() -> Location {
        Location::parse("b?endpoint=http://h", &Surroundings::default()).unwrap()
    }

    #[test]
    fn refusals_have_their_kind_and_a_remedy() {
        for (status, code, kind) in [
            (404, "NoSuchBucket", Kind::NotFound),
            (404, "NoSuchKey", Kind::NotFound),
            (403, "AccessDenied", Kind::Storage),
            (403, "InvalidAccessKeyId", Kind::Storage),
            (403, "SignatureDoesNotMatch", Kind::Storage),
            (403, "RequestTimeTooSkewed", Kind::Storage),
            (400, "ExpiredToken", Kind::Storage),
            (301, "PermanentRedirect", Kind::Usage),
            (503, "SlowDown", Kind::Unreachable),
            (507, "QuotaExceeded", Kind::Storage),
        ] {
            let error =
                answer(status, &document(code)).into_error(Operation::Put, "key", &location());
            assert_eq!(error.kind(), kind, "{code}");
            assert!(
                error.hint_text().is_some() || code == "NoSuchKey",
                "{code} has a remedy"
            );
        }
    }

    #[test]
    fn what_may_pass_is_told_from_what_may_not() {
        for (status, code, passes) in [
            (500, "InternalError", true),
            (503, "SlowDown", true),
            (502, "", true),
            (409, "ConditionalRequestConflict", true),
            (409, "BucketNotEmpty", false),
            (400, "RequestTimeout", true),
            (400, "InvalidRequest", false),
            (403, "AccessDenied", false),
            (412, "PreconditionFailed", false),
            (200, "InternalError", true),
        ] {
            assert_eq!(
                answer(status, &document(code)).may_pass(),
                passes,
                "{status} {code}"
            );
        }
        assert!(answer(200, &document("InternalError")).is_hidden_error());
        assert!(!answer(200, "").is_hidden_error());
        assert!(
            !answer(
                200,
                "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
            )
            .is_hidden_error()
        );
    }

    #[test]
    fn what_a_server_says_is_escaped_and_cut() {
        let body = format!(
            "<Error><Code>X</Code><Message>\u{1b}[31m{}</Message></Error>",
            "y".repeat(5000)
        );
        let error = answer(400, &body).into_error(Operation::Get, "key", &location());
        let text = error.to_string();
        assert!(!text.contains('\u{1b}') && text.len() < 600, "{text}");
    }
}
