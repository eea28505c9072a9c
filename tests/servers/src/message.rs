//! HTTP messages in the plain form that tests look at and scripts are written in.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response};

/// The head of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHead {
    /// `GET`, `PUT` and so on.
    pub method: String,
    /// The path as it was sent, percent-encoded, without the query.
    pub path: String,
    /// What follows the `?`, as it was sent; empty if there is none.
    pub query: String,
    /// All header fields in the order of arrival, names in lower case.
    pub headers: Vec<(String, String)>,
}

impl RequestHead {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        RequestHead {
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            headers: header_list(request.headers()),
        }
    }

    /// The first header field of this name, which is given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }
}

/// A whole reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Header fields, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, without any transfer coding.
    pub body: Vec<u8>,
}

impl Reply {
    /// A reply with a body and no header fields but those that HTTP itself needs.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Reply {
            status,
            headers: Vec::new(),
            body: body.into(),
        }
    }

    /// The same reply with one more header field.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// An error the way S3 reports one.
    pub fn s3_error(status: u16, code: &str, message: &str) -> Self {
        Reply::new(status, error_xml(code, message)).with("content-type", "application/xml")
    }

    /// The first header field of this name, which is given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// The body as text; what is not UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The error code of S3 in the body, if there is one.
    pub fn code(&self) -> Option<String> {
        self.tag("Code")
    }

    /// The text between the first `<name>` and the `</name>` after it, in a body of XML.
    pub fn tag(&self, name: &str) -> Option<String> {
        let text = self.text();
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        let (value, _) = rest.split_once(&format!("</{name}>"))?;
        Some(value.to_owned())
    }

    pub(crate) fn of(parts: &hyper::http::response::Parts, body: &Bytes) -> Self {
        Reply {
            status: parts.status.as_u16(),
            headers: header_list(&parts.headers),
            body: body.to_vec(),
        }
    }

    pub(crate) fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::builder().status(self.status);
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        response
            .body(Full::new(self.body.into()))
            .expect("the status and headers of the reply are valid")
    }
}

/// The body of an error of S3.
pub(crate) fn error_xml(code: &str, message: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <Error><Code>{code}</Code><Message>{message}</Message><RequestId>0</RequestId></Error>"
    )
}

fn header_list(headers: &hyper::HeaderMap) -> Vec<(String, String)> {
    let text =
        |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), text(value)))
        .collect()
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value.as_str()))
}
