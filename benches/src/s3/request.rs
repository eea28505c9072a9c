//! The heads of HTTP requests, as far as the cheap server needs them.
//!
//! Invariants: a head is bounded; what is not understood is an error that ends the connection.

use std::io::{self, Read};

use percent_encoding::percent_decode_str;

/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Most header fields.
const HEADERS_MAX: usize = 64;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Method {
    Get,
    Head,
    Put,
    Post,
    Delete,
}

/// The head of a request.
#[derive(Debug)]
pub(super) struct Head {
    pub method: Method,
    /// Bucket, slash and name, decoded.
    path: String,
    query: String,
    headers: Vec<(String, String)>,
    pub body_bytes: u64,
    /// Bytes of the object, if the body consists of signed chunks.
    pub decoded_bytes: Option<u64>,
}

/// The next head, or `None` where the client has closed the connection. What came behind it stays in `rest`.
pub(super) fn read_head(stream: &mut impl Read, rest: &mut Vec<u8>) -> io::Result<Option<Head>> {
    let mut chunk = [0; 16 << 10];
    loop {
        if let Some((head, bytes)) = parse(rest)? {
            rest.drain(..bytes);
            return Ok(Some(head));
        }
        if rest.len() > HEAD_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let read = stream.read(&mut chunk)?;
        if read == 0 {
            return Ok(None);
        }
        rest.extend_from_slice(&chunk[..read]);
    }
}

fn parse(bytes: &[u8]) -> io::Result<Option<(Head, usize)>> {
    let wrong = |_| io::Error::from(io::ErrorKind::InvalidData);
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(length) = request.parse(bytes).map_err(wrong)? else {
        return Ok(None);
    };
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let method = match request.method.unwrap_or_default() {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "PUT" => Method::Put,
        "POST" => Method::Post,
        "DELETE" => Method::Delete,
        _ => return Err(invalid()),
    };
    let target = request.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = decoded(path.strip_prefix('/').unwrap_or(path));
    let headers: Vec<(String, String)> = request
        .headers
        .iter()
        .map(|field| {
            let value = String::from_utf8_lossy(field.value).into_owned();
            (field.name.to_ascii_lowercase(), value)
        })
        .collect();
    let mut head = Head {
        method,
        path,
        query: query.to_owned(),
        headers,
        body_bytes: 0,
        decoded_bytes: None,
    };
    let number = |name| {
        let text = head.header(name);
        text.map(|text| text.trim().parse().map_err(|_| invalid()))
            .transpose()
    };
    let (body_bytes, decoded_bytes) = (
        number("content-length")?,
        number("x-amz-decoded-content-length")?,
    );
    head.body_bytes = body_bytes.unwrap_or(0);
    head.decoded_bytes = decoded_bytes;
    Ok(Some((head, length)))
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

impl Head {
    /// The first header of this name, given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.headers.iter();
        fields
            .find(|(field, _)| field == name)
            .map(|(_, value)| value.as_str())
    }

    /// A parameter of the query, decoded.
    pub fn parameter(&self, name: &str) -> Option<String> {
        self.query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .find_map(|(key, value)| (key == name).then(|| decoded(value)))
    }

    /// Bucket, slash and name of an object; `None` for a bucket.
    pub fn name(&self) -> Option<&str> {
        let (_, key) = self.path.split_once('/')?;
        (!key.is_empty()).then_some(&self.path)
    }

    /// The bucket.
    pub fn bucket(&self) -> &str {
        self.path.split('/').next().unwrap_or_default()
    }

    /// Whether the length of the body is not in the head.
    pub fn is_of_unknown_length(&self) -> bool {
        self.header("transfer-encoding").is_some()
    }

    /// First and last byte of `bytes=5-9` or `bytes=5-`.
    pub fn range(&self) -> Option<(u64, u64)> {
        let (first, last) = self
            .header("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        let last = match last.is_empty() {
            true => u64::MAX,
            false => last.parse().ok()?,
        };
        Some((first.parse().ok()?, last))
    }

    /// Metadata that goes out again with the object.
    pub fn kept_headers(&self) -> Vec<(String, String)> {
        let fields = self.headers.iter();
        fields
            .filter(|(name, _)| name.starts_with("x-amz-meta-"))
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_whole_or_not_at_all() {
        let text = b"PUT /b/a%20b?x=1&prefix=p%2Fq HTTP/1.1\r\nContent-Length: 5\r\nRange: bytes=2-\r\n\r\nhello";
        let (head, bytes) = parse(text).unwrap().unwrap();
        assert_eq!(&text[bytes..], b"hello");
        assert_eq!((head.method, head.name()), (Method::Put, Some("b/a b")));
        assert_eq!((head.bucket(), head.body_bytes), ("b", 5));
        assert_eq!(head.parameter("prefix").as_deref(), Some("p/q"));
        assert_eq!(head.range(), Some((2, u64::MAX)));
        assert!(parse(&text[..30]).unwrap().is_none());
        assert!(parse(b"BREW / HTTP/1.1\r\n\r\n").is_err());
        assert!(parse(b"PUT /b/c HTTP/1.1\r\ncontent-length: -1\r\n\r\n").is_err());
        let chunks = b"PUT /b/c HTTP/1.1\r\nx-amz-decoded-content-length: x\r\n\r\n";
        assert!(parse(chunks).is_err());
    }
}
