//! What a server's answer means: success, a refusal with its remedy, or a fault that may pass.
//!
//! Invariants: an answer that is not understood is an error, never a success; a body is parsed only within its
//! bound; a message shows what the server said, cut and escaped, and never a header of the request; what is told as
//! a fault that came again is asked for again before.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use mover_base::{Error, Kind, Timestamp};
use serde::Deserialize;

use super::location::Location;

/// How far two clocks may be apart before a signature is refused for it, as Amazon does.
const SKEW_US_MAX: u64 = 15 * 60 * 1_000_000;

/// What was attempted, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Put,
    Get,
    Head,
    List,
    Delete,
    Multipart,
    Abort,
    Uploads,
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
            Operation::Abort => "throw an unfinished upload away",
            Operation::Uploads => "list unfinished uploads",
        }
    }

    /// What a policy has to allow.
    fn permission(self) -> &'static str {
        match self {
            Operation::Put => "s3:PutObject",
            Operation::Get | Operation::Head => "s3:GetObject and s3:ListBucket",
            Operation::List => "s3:ListBucket",
            Operation::Delete => "s3:DeleteObject",
            Operation::Multipart => "s3:PutObject",
            Operation::Abort => "s3:AbortMultipartUpload",
            Operation::Uploads => "s3:ListBucketMultipartUploads",
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

    /// Whether it says that an upload in parts has become its object.
    pub fn is_completion(&self) -> bool {
        const ROOT: &[u8] = b"<CompleteMultipartUploadResult";
        let mut windows = self.body.windows(ROOT.len());
        self.status.is_success() && windows.any(|window| window == ROOT)
    }

    /// Whether the same request may succeed later.
    pub fn may_pass(&self, operation: Operation) -> bool {
        match self.status.as_u16() {
            404 => self.is_nobodys_absence(operation) && !self.is_page(),
            _ => self.is_fault() || self.is_spoilt_body(),
        }
    }

    /// Whether it tells of a fault of the server's, or of a proxy's before it, which passes by itself.
    fn is_fault(&self) -> bool {
        match self.status.as_u16() {
            200..=299 | 400 | 409 => is_passing_code(self.error_code()),
            status => is_fault_status(status),
        }
    }

    /// Whether a body did not arrive as it was sent.
    fn is_spoilt_body(&self) -> bool {
        self.status == StatusCode::BAD_REQUEST
            && matches!(
                self.error_code(),
                "IncompleteBody" | "XAmzContentSHA256Mismatch" | "BadDigest"
            )
    }

    /// Whether it says that something is missing without S3's words for it: a proxy whose server is being restarted answers so
    /// too, and it must not be taken for an object that was deleted. An answer to HEAD has no room for words.
    fn is_nobodys_absence(&self, operation: Operation) -> bool {
        self.status == StatusCode::NOT_FOUND
            && operation != Operation::Head
            && self.error_code().is_empty()
    }

    /// Whether the server asks for fewer requests.
    pub fn asks_to_slow_down(&self) -> bool {
        matches!(self.status.as_u16(), 429 | 503 | 509) || is_slow_down(self.error_code())
    }

    /// Whether temporary credentials ran out.
    pub fn is_expired(&self) -> bool {
        is_expiry(self.error_code())
    }

    /// Whether who signed is not let in, or not this far: where that was for a time, others may sign by now.
    pub fn is_refusal_of_signer(&self) -> bool {
        is_refusal_of_signer(self.error_code())
    }

    /// Whether a condition was not met, which a completion says behind a head of success.
    pub fn is_unmet_condition(&self) -> bool {
        let is_hidden = self.is_hidden_error() && self.error_code() == "PreconditionFailed";
        self.status == StatusCode::PRECONDITION_FAILED || is_hidden
    }

    /// Whether the server does not know such a request. A completion says it behind a head of success.
    pub fn is_not_implemented(&self) -> bool {
        let is_hidden = self.is_hidden_error() && self.error_code() == "NotImplemented";
        self.status == StatusCode::NOT_IMPLEMENTED || is_hidden
    }

    /// Whether its body is a page for people. An error of S3's is none, whatever it says that it is.
    fn is_page(&self) -> bool {
        const BEGINNINGS: [&[u8]; 2] = [b"<!doctype html", b"<html"];
        let body = self.body.trim_ascii_start();
        let begins_as_page = BEGINNINGS.iter().any(|beginning| {
            let head = body.get(..beginning.len());
            head.is_some_and(|head| head.eq_ignore_ascii_case(beginning))
        });
        let is_told_to_be_one = is_html(&self.headers) && !body.is_empty();
        self.error_code().is_empty() && (is_told_to_be_one || begins_as_page)
    }

    /// When it was made, by the server's clock, where it says so.
    pub fn server_time(&self) -> Option<Timestamp> {
        self.header("date").and_then(Timestamp::parse_http_date)
    }

    /// Whether a request was refused because it was signed at another time than the server's clock shows.
    fn is_clock_refusal(&self, now: Timestamp) -> bool {
        let apart = self
            .server_time()
            .map(|server| server.as_micros().abs_diff(now.as_micros()));
        match self.error_code() {
            "RequestTimeTooSkewed" | "RequestExpired" => true,
            // Garage has no code for it.
            "InvalidRequest" => {
                self.error.message.contains("Date is too old")
                    || apart.is_some_and(|apart| apart > SKEW_US_MAX)
            }
            _ => false,
        }
    }

    /// The region that the server names, if it is another than the location's.
    fn other_region(&self, location: &Location) -> Option<String> {
        let told = self.header("x-amz-bucket-region");
        let region = told.unwrap_or(&self.error.region);
        (!region.is_empty() && region != location.region).then(|| escaped(region))
    }

    /// The error that this answer is, with its remedy.
    pub fn into_error(self, operation: Operation, object: &str, location: &Location) -> Error {
        let status = self.status.as_u16();
        let said = said(&self);
        let told = |kind, message: String| Error::new(kind, message).object(object);
        let act = operation.to_text();
        let now = Timestamp::now();
        match (status, self.error_code()) {
            (_, "NoSuchBucket") => Error::new(Kind::NotFound, "the bucket does not exist")
                .object(format!("{} at {}", location.bucket, location.server()))
                .hint("create it first, or check the bucket's name, the endpoint and the account"),
            _ if self.is_clock_refusal(now) => told(
                Kind::Storage,
                "the store refused a request because the clocks differ".into(),
            )
            .hint("set the clock that is wrong (on this machine: timedatectl, chronyc tracking), then try again")
            .cause(format!("{said}; {}", clocks(now, self.server_time()))),
            _ if self.is_expired() => expired(object, said),
            (301 | 302 | 307 | 308, _)
            | (
                _,
                "PermanentRedirect"
                | "TemporaryRedirect"
                | "IllegalLocationConstraintException"
                | "AuthorizationHeaderMalformed",
            ) => self.elsewhere(location).object(object).cause(said),
            // Who signs for another region makes another signature.
            (_, "SignatureDoesNotMatch") if self.other_region(location).is_some() => {
                self.elsewhere(location).object(object).cause(said)
            }
            (
                _,
                "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "InvalidTokenId"
                | "InvalidSecurity",
            ) => told(
                Kind::Storage,
                "the store does not accept the credentials".into(),
            )
            .hint("check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or the profile, and the region")
            .cause(said),
            // Whose quota is used up may lack no right, though some servers say so by that status.
            (
                _,
                "QuotaExceeded"
                | "XMinioAdminBucketQuotaExceeded"
                | "XMinioStorageFull"
                | "InsufficientStorage",
            ) => full(object, said),
            (_, "InvalidObjectState") => told(
                Kind::Storage,
                format!("the store cannot {act} that is archived"),
            )
            .hint("restore it from its class of storage first (aws s3api restore-object); rules of the bucket must not archive a repository's objects")
            .cause(said),
            _ => self.error_by_status(operation, object, location, said),
        }
    }

    /// The error where the code alone does not tell what is wrong.
    fn error_by_status(
        &self,
        operation: Operation,
        object: &str,
        location: &Location,
        said: String,
    ) -> Error {
        let status = self.status.as_u16();
        let told = |kind, message: String| Error::new(kind, message).object(object);
        let act = operation.to_text();
        match (status, self.error_code()) {
            _ if self.is_page() => page(status, location, &said),
            (401 | 403, _) => told(Kind::Storage, format!("the store does not allow to {act}"))
                .hint(format!(
                    "the credentials need {} on this bucket and prefix",
                    operation.permission()
                ))
                .cause(said),
            _ if self.is_nobodys_absence(operation) => not_s3(location, &said),
            // Who aborts one wants it gone.
            (_, "NoSuchUpload") if operation == Operation::Multipart => told(
                Kind::Storage,
                "the upload of an object in parts was thrown away by somebody else".into(),
            )
            .hint("check the bucket's lifecycle rules, which must not end uploads that are under way, then run again")
            .cause(said),
            (404, _) => told(Kind::NotFound, "no such object".into()).cause(said),
            (507, _) => full(object, said),
            (501, _) => told(Kind::Storage, format!("the store does not offer to {act}"))
                .hint("the server lacks this part of S3: a newer version of it, or another server, may have it")
                .cause(said),
            _ if self.is_fault() => failed_again(operation, object, said),
            _ if is_html(&self.headers) => not_s3(location, &said),
            _ => told(Kind::Storage, format!("the store refused to {act}"))
                .hint("if the store's own words do not tell what to change, run `check`, which tries out what the mover needs of it")
                .cause(said),
        }
    }

    /// The error for a request that belongs to another region or another server.
    fn elsewhere(&self, location: &Location) -> Error {
        if let Some(region) = self.other_region(location) {
            return Error::new(Kind::Usage, "the store expects another region").hint(format!(
                "use region={region} in the repository's URL; {} was asked for",
                location.region
            ));
        }
        if self.error_code() == "AuthorizationHeaderMalformed" {
            return Error::new(Kind::Usage, "the store does not take the signature").hint(format!(
                "check region= of the repository's URL ({} was asked for); otherwise the credentials",
                location.region
            ));
        }
        let to = self.header("location").map(escaped);
        let to = to.map_or(String::new(), |to| format!("; it names {to}"));
        Error::new(Kind::Usage, "the store redirects to another place").hint(format!(
            "check endpoint and region of the repository's URL{to}"
        ))
    }
}

/// Whether a status tells of a fault that passes by itself. Those from 520 on are a proxy's, for whose server is gone or late;
/// what a server does not know (501, 505) it does not know the next time either.
fn is_fault_status(status: u16) -> bool {
    match status {
        408 | 429 => true,
        500..=599 => status != 501 && status != 505,
        _ => false,
    }
}

/// Whether a code tells of such a fault where the status does not: behind a head of success, and beside one of the objects that
/// a request is about.
pub(super) fn is_passing_code(code: &str) -> bool {
    is_slow_down(code)
        || matches!(
            code,
            "InternalError"
                | "ServiceUnavailable"
                | "RequestTimeout"
                | "ConditionalRequestConflict"
                | "OperationAborted"
        )
}

/// Whether a code asks for fewer requests. MinIO has two of its own.
pub(super) fn is_slow_down(code: &str) -> bool {
    matches!(code, "SlowDown" | "SlowDownRead" | "SlowDownWrite")
}

/// Whether a code says that temporary credentials ran out.
pub(super) fn is_expiry(code: &str) -> bool {
    matches!(
        code,
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired"
    )
}

/// Whether a code says that who signed is not let in, or not this far.
pub(super) fn is_refusal_of_signer(code: &str) -> bool {
    matches!(
        code,
        "AccessDenied" | "InvalidAccessKeyId" | "InvalidToken" | "InvalidTokenId"
    )
}

/// The error for temporary credentials that ran out.
pub(super) fn expired(object: &str, said: String) -> Error {
    Error::new(
        Kind::Storage,
        "the session token of the credentials has expired",
    )
    .object(object)
    .hint("renew the credentials (for instance `aws sso login`), then try again")
    .cause(said)
}

/// The error for a fault that did not pass while it was asked again and again.
pub(super) fn failed_again(operation: Operation, object: &str, said: String) -> Error {
    let act = operation.to_text();
    let message = format!("the store failed to {act}, and again when asked again");
    Error::new(Kind::Unreachable, message)
        .object(object)
        .hint("try again later; what was committed is safe")
        .cause(said)
}

/// The error for a store that takes no more.
fn full(object: &str, said: String) -> Error {
    Error::new(Kind::Storage, "the store is full")
        .object(object)
        .hint("free or buy space, or raise the quota, then try again; nothing that is listed was lost")
        .cause(said)
}

/// What two clocks show, in whole seconds.
fn clocks(here: Timestamp, server: Option<Timestamp>) -> String {
    let shown = |time: Timestamp| {
        let micros = time.as_micros();
        Timestamp::from_micros(micros - micros.rem_euclid(1_000_000))
    };
    let server = server.map_or("no time".to_owned(), |time| shown(time).to_string());
    format!(
        "this machine's clock says {}, the server's {server}",
        shown(here)
    )
}

/// The error for a page where an answer of S3 was expected. A server that is busy, or a proxy before it, may send one too:
/// that may pass.
fn page(status: u16, location: &Location, said: &str) -> Error {
    let error = not_s3(location, &format!("{said} with a web page"));
    match is_fault_status(status) {
        true => error.with_kind(Kind::Unreachable),
        false => error,
    }
}

/// The error for a server that speaks HTTP and not S3.
pub(super) fn not_s3(location: &Location, said: &str) -> Error {
    Error::new(
        Kind::Storage,
        "the endpoint does not answer as an S3 server does",
    )
    .object(location.server())
    .hint("check the endpoint: it is probably none of S3, but a web page's, a proxy's or the server's administration; if it is right, try again later")
    .cause(said.to_owned())
}

/// A document without its declaration, and without the white space before and behind that, which keeps a connection alive
/// while an upload is completed, for minutes.
fn root(document: &[u8]) -> &[u8] {
    const END: &[u8] = b"?>";
    let document = document.trim_ascii_start();
    let Some(declaration) = document.strip_prefix(b"<?xml") else {
        return document;
    };
    let end = declaration.windows(END.len()).position(|at| at == END);
    end.map_or(document, |end| {
        declaration[end + END.len()..].trim_ascii_start()
    })
}

/// Whether a document begins as S3's errors do.
fn has_error_root(body: &[u8]) -> bool {
    const HEAD_BYTES: usize = 256;
    let body = root(body);
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
            (522, "", Kind::Unreachable),
            (505, "", Kind::Storage),
            (200, "InternalError", Kind::Unreachable),
            (409, "OperationAborted", Kind::Unreachable),
            (400, "RequestTimeout", Kind::Unreachable),
            (400, "BadDigest", Kind::Storage),
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
    fn what_is_told_to_have_failed_again_is_what_is_asked_for_again() {
        for status in 300..=599 {
            // That nobody's 404 may pass is no fault of the store's, and one that is full is told as such.
            if matches!(status, 404 | 507) {
                continue;
            }
            let passes = answer(status, "").may_pass(Operation::Put);
            let error = answer(status, "").into_error(Operation::Put, "key", &location());
            assert_eq!(
                error.kind() == Kind::Unreachable,
                passes,
                "{status}: {error}"
            );
            assert_eq!(error.message().contains("again"), passes, "{status}");
        }
    }

    #[test]
    fn an_upload_that_is_gone_is_no_object_that_is_absent_unless_it_was_to_go() {
        for status in [404, 200] {
            let gone = answer(status, &document("NoSuchUpload"));
            let error = gone.into_error(Operation::Multipart, "key", &location());
            assert_eq!(error.kind(), Kind::Storage, "{error}");
            assert!(error.message().contains("thrown away"), "{error}");
            let hint = error.hint_text().unwrap();
            assert!(hint.contains("lifecycle rules"), "{hint}");
        }
        let gone = answer(404, &document("NoSuchUpload"));
        let aborted = gone.into_error(Operation::Abort, "key", &location());
        assert!(aborted.is_absence(), "{aborted}");
    }

    #[test]
    fn a_quota_that_is_used_up_is_no_missing_right() {
        for (status, code) in [
            (403, "QuotaExceeded"),
            (403, "XMinioAdminBucketQuotaExceeded"),
            (400, "XMinioAdminBucketQuotaExceeded"),
            (507, "XMinioStorageFull"),
            (507, ""),
        ] {
            let error = answer(status, &document(code));
            let error = error.into_error(Operation::Put, "key", &location());
            assert_eq!(error.message(), "the store is full", "{status} {code}");
            assert_eq!(error.kind(), Kind::Storage);
        }
    }

    #[test]
    fn an_archived_object_is_told_as_one() {
        let error = answer(403, &document("InvalidObjectState"));
        let error = error.into_error(Operation::Get, "key", &location());
        assert_eq!(
            error.message(),
            "the store cannot read an object that is archived"
        );
        let hint = error.hint_text().unwrap();
        assert!(hint.contains("restore it"), "{hint}");
    }

    #[test]
    fn what_a_completion_says_behind_a_head_of_success_is_what_it_means() {
        for status in [200, 412] {
            assert!(answer(status, &document("PreconditionFailed")).is_unmet_condition());
        }
        for status in [200, 501] {
            assert!(answer(status, &document("NotImplemented")).is_not_implemented());
        }
        let conflict = answer(200, &document("ConditionalRequestConflict"));
        assert!(conflict.may_pass(Operation::Multipart));
        assert!(!conflict.is_unmet_condition() && !conflict.is_not_implemented());
        assert!(!answer(200, "").is_unmet_condition());
    }

    fn answer_with(status: u16, headers: &[(&'static str, &str)], body: &str) -> Answer {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let status = StatusCode::from_u16(status).unwrap();
        Answer::new(status, map, Bytes::copy_from_slice(body.as_bytes()))
    }

    #[test]
    fn a_web_page_is_no_answer_whatever_its_status() {
        const PAGE: &str = "\n<!DOCTYPE HTML><html><body>no</body></html>";
        let html = [("content-type", "text/html; charset=utf-8")];
        for (status, kind) in [
            (400, Kind::Storage),
            (401, Kind::Storage),
            (403, Kind::Storage),
            (404, Kind::Storage),
            (405, Kind::Storage),
            (500, Kind::Unreachable),
            (503, Kind::Unreachable),
            (507, Kind::Unreachable),
            (524, Kind::Unreachable),
            (501, Kind::Storage),
            (505, Kind::Storage),
        ] {
            for answer in [answer_with(status, &html, "no"), answer(status, PAGE)] {
                let error = answer.into_error(Operation::Get, "key", &location());
                assert_eq!(error.kind(), kind, "{status}: {error}");
                assert!(
                    error
                        .to_string()
                        .contains("does not answer as an S3 server"),
                    "{error}"
                );
                assert!(error.to_string().contains("with a web page"), "{error}");
                assert!(
                    error.hint_text().unwrap().contains("check the endpoint"),
                    "{error}"
                );
            }
        }
        // What has no body, or S3's document in it, is what its status says.
        for body in ["", &document("NoSuchKey")] {
            let error = answer_with(404, &html, body);
            let error = error.into_error(Operation::Head, "key", &location());
            assert_eq!(error.message(), "no such object", "{error}");
            assert_eq!(error.hint_text(), None);
        }
    }

    #[test]
    fn clocks_that_differ_are_told_with_both_times() {
        let old = "<Error><Code>InvalidRequest</Code><Message>Bad request: Date is too old</Message></Error>";
        let long_ago = [("date", "Sun, 22 Nov 2020 18:14:09 GMT")];
        for (status, headers, body, server) in [
            (
                403,
                &long_ago[..],
                document("RequestTimeTooSkewed"),
                "2020-11-22T18:14:09Z",
            ),
            (403, &[], document("RequestTimeTooSkewed"), "no time"),
            (400, &long_ago[..], old.to_owned(), "2020-11-22T18:14:09Z"),
            (400, &[], old.to_owned(), "no time"),
            (
                400,
                &long_ago[..],
                document("InvalidRequest"),
                "2020-11-22T18:14:09Z",
            ),
        ] {
            let error = answer_with(status, headers, &body);
            let error = error.into_error(Operation::Get, "key", &location());
            assert_eq!(error.kind(), Kind::Storage, "{error}");
            let text = error.to_string();
            assert!(text.contains("the clocks differ"), "{text}");
            assert!(text.contains(&format!("the server's {server}")), "{text}");
            assert!(error.hint_text().unwrap().contains("clock"), "{text}");
        }
        // Other bad requests, by the same clock or an unknown one, are about something else.
        let error = answer(400, &document("InvalidRequest"));
        let error = error.into_error(Operation::Get, "key", &location());
        assert_eq!(error.message(), "the store refused to read an object");
        assert_eq!(
            clocks(Timestamp::from_micros(-1), None),
            "this machine's clock says 1969-12-31T23:59:59Z, the server's no time"
        );
    }

    #[test]
    fn another_region_is_told_and_no_word_of_credentials() {
        let malformed = |region: &str| {
            format!(
                "<Error><Code>AuthorizationHeaderMalformed</Code><Message>m</Message><Region>{region}</Region></Error>"
            )
        };
        let header = [("x-amz-bucket-region", "there")];
        for answer in [
            answer_with(301, &header, ""),
            answer_with(301, &header, &document("PermanentRedirect")),
            answer_with(400, &header, &document("AuthorizationHeaderMalformed")),
            answer_with(403, &header, &document("SignatureDoesNotMatch")),
            answer(400, &malformed("there")),
        ] {
            let error = answer.into_error(Operation::Put, "key", &location());
            assert_eq!(error.kind(), Kind::Usage, "{error}");
            assert_eq!(error.message(), "the store expects another region");
            let hint = error.hint_text().unwrap();
            assert!(hint.contains("region=there"), "{hint}");
            assert!(!hint.contains("credentials"), "{hint}");
        }
        let same = answer(400, &malformed(&location().region));
        let same = same.into_error(Operation::Put, "key", &location());
        assert!(
            same.hint_text().unwrap().contains("check region="),
            "{same}"
        );
        // A server that names its region with every error.
        let secret = "<Error><Code>SignatureDoesNotMatch</Code><Message>m</Message><Region>us-east-1</Region></Error>";
        let secret = answer(403, secret).into_error(Operation::Put, "key", &location());
        assert_eq!(
            secret.message(),
            "the store does not accept the credentials"
        );
        let moved = answer_with(302, &[("location", "https://h/login")], "<html>");
        let moved = moved.into_error(Operation::Get, "key", &location());
        assert!(
            moved
                .hint_text()
                .unwrap()
                .contains("it names https://h/login"),
            "{moved}"
        );
    }

    #[test]
    fn what_may_pass_is_told_from_what_may_not() {
        for (status, code, passes) in [
            (500, "InternalError", true),
            (503, "SlowDown", true),
            (502, "", true),
            (501, "NotImplemented", false),
            (505, "", false),
            (508, "", true),
            (511, "", true),
            (520, "", true),
            (530, "", true),
            (599, "", true),
            (409, "ConditionalRequestConflict", true),
            (409, "BucketNotEmpty", false),
            (400, "RequestTimeout", true),
            (400, "InvalidRequest", false),
            (403, "AccessDenied", false),
            (412, "PreconditionFailed", false),
            (404, "NoSuchKey", false),
            (200, "InternalError", true),
            (200, "SlowDownWrite", true),
            (200, "AccessDenied", false),
        ] {
            assert_eq!(
                answer(status, &document(code)).may_pass(Operation::Get),
                passes,
                "{status} {code}"
            );
        }
        // Whoever says so without a code is no S3 server; HEAD has no room for one.
        for body in ["", "404 page not found"] {
            assert!(answer(404, body).may_pass(Operation::Delete), "{body}");
            assert!(!answer(404, body).may_pass(Operation::Head), "{body}");
            let error = answer(404, body).into_error(Operation::Get, "key", &location());
            assert_eq!((error.kind(), error.is_absence()), (Kind::Storage, false));
        }
        assert!(answer(200, &document("InternalError")).is_hidden_error());
        assert!(!answer(200, "").is_hidden_error());
        // Behind what kept the connection alive.
        let alive = " \n".repeat(500);
        let error = document("InternalError");
        for late in [
            format!("{alive}{error}"),
            error.replace("?>", &format!("?>{alive}")),
        ] {
            assert!(answer(200, &late).is_hidden_error());
            assert!(!answer(200, &late).is_completion());
        }
        let result = "<CompleteMultipartUploadResult xmlns=\"x\"><ETag>x</ETag></CompleteMultipartUploadResult>";
        let late = format!("<?xml version=\"1.0\"?>{}{result}", " ".repeat(500));
        assert!(answer(200, &late).is_completion());
        assert!(!answer(500, &late).is_completion());
        assert!(!answer(200, "<x/>").is_completion() && !answer(200, "").is_completion());
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
