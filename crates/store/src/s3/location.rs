//! The URL of a repository in an S3-compatible store: bucket, prefix, server, and how to talk to it.
//!
//! Invariants: a location holds no secret (a URL with a password is refused unseen); every option is known or an
//! error; a path is percent-encoded once, here, so what is signed is what is sent; no part of a path is `.` or
//! `..`, which clients and servers resolve differently.

use std::path::PathBuf;
use std::time::Duration;

use mover_base::{Error, Kind, Result};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Url;

use crate::key::KEY_BYTES_MAX;

/// Longest name of an object in S3, in bytes.
const OBJECT_NAME_BYTES_MAX: usize = 1024;
/// Most connections of a job, all shards together.
const CONNECTIONS_MAX: usize = 256;
/// Connections of a job where the URL says nothing: 2.5 per Gbit/s of a 10 Gbit/s link.
const CONNECTIONS_DEFAULT: usize = 32;
/// Seconds without progress where the URL says nothing, and at most.
const TIMEOUT_S_DEFAULT: usize = 30;
const TIMEOUT_S_MAX: usize = 3600;
/// Signing region where nobody names one and the server is not Amazon's, which alone has many.
const REGION_DEFAULT: &str = "us-east-1";

/// The header that says what an object's storage costs.
pub(super) const STORAGE_CLASS_HEADER: &str = "x-amz-storage-class";

/// What stays as it is in a path: RFC 3986's unreserved characters, as the signature demands.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');
/// What stays as it is in a query.
const QUERY: &AsciiSet = &PATH.add(b'/');

/// A checksum that goes along with each upload, for the server to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checksum {
    /// None: over TLS only the transport protects the bytes on their way.
    None,
    /// CRC-32C.
    Crc32c,
    /// SHA-256.
    Sha256,
}

impl Checksum {
    /// Its name in S3, as the sender of an object in parts announces it.
    pub fn algorithm(self) -> Option<&'static str> {
        match self {
            Checksum::None => None,
            Checksum::Crc32c => Some("CRC32C"),
            Checksum::Sha256 => Some("SHA256"),
        }
    }

    /// The header that bears it.
    pub fn header(self) -> Option<&'static str> {
        match self {
            Checksum::None => None,
            Checksum::Crc32c => Some("x-amz-checksum-crc32c"),
            Checksum::Sha256 => Some("x-amz-checksum-sha256"),
        }
    }
}

/// How a body is bound to its request's signature where no TLS does that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signing {
    /// By one hash.
    Whole,
    /// By one hash for each chunk, where it is long.
    Chunks,
}

/// Where a repository lies and how its server is spoken to.
#[derive(Debug, Clone)]
pub(super) struct Location {
    /// The URL as given, without trailing slashes in its prefix.
    pub url: String,
    pub bucket: String,
    /// Empty, or with a slash at its end.
    pub prefix: String,
    /// Scheme, host and port.
    pub endpoint: Url,
    pub region: String,
    /// The bucket in the path, not in the host's name.
    pub path_style: bool,
    /// Certificates to trust beside the system's, PEM.
    pub ca: Option<PathBuf>,
    /// File with credentials, in the form that Amazon's tools share.
    pub credentials: Option<PathBuf>,
    /// Profile of the credentials.
    pub profile: Option<String>,
    pub checksum: Checksum,
    pub signing: Signing,
    /// Headers of every new object: storage class, encryption by the server, object lock.
    pub object_headers: Vec<(&'static str, String)>,
    /// Days for which new objects are locked, with the mode.
    pub lock: Option<(&'static str, u32)>,
    pub connections: usize,
    /// How long a request may stand still before it counts as lost.
    pub timeout: Duration,
}

/// The environment's say, for what a URL leaves open.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    pub region: Option<String>,
    pub endpoint: Option<String>,
}

impl Surroundings {
    /// The variables that Amazon's own tools read.
    pub fn of_process() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        Surroundings {
            region: set("AWS_REGION").or_else(|| set("AWS_DEFAULT_REGION")),
            endpoint: set("AWS_ENDPOINT_URL_S3").or_else(|| set("AWS_ENDPOINT_URL")),
        }
    }
}

/// Options as they are written in a URL, before what depends on several of them is decided.
#[derive(Default)]
struct Options {
    endpoint: Option<String>,
    region: Option<String>,
    path_style: Option<bool>,
    ca: Option<PathBuf>,
    credentials: Option<PathBuf>,
    profile: Option<String>,
    checksum: Option<Checksum>,
    signing: Option<Signing>,
    headers: Vec<(&'static str, String)>,
    lock_mode: Option<&'static str>,
    lock_days: Option<u32>,
    connections: Option<usize>,
    timeout_s: Option<usize>,
}

impl Location {
    /// From the part of a URL behind `s3://`.
    pub fn parse(rest: &str, surroundings: &Surroundings) -> Result<Self> {
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        check_bucket(bucket)?;
        let prefix = prefix.trim_end_matches('/');
        check_prefix(prefix)?;
        let options = Options::parse(query)?;
        let endpoint = options.endpoint.or_else(|| surroundings.endpoint.clone());
        let region = options.region.or_else(|| surroundings.region.clone());
        let is_amazon = endpoint.is_none();
        let region = match region {
            Some(region) => region,
            None if is_amazon => {
                return Err(wrong("the region of the bucket is not known").hint(
                    "add ?region=REGION to the repository's URL, or set AWS_REGION; for another server than Amazon's add endpoint=URL",
                ));
            }
            None => REGION_DEFAULT.to_owned(),
        };
        check_region(&region)?;
        let endpoint = match endpoint {
            Some(endpoint) => parse_endpoint(&endpoint)?,
            None => parse_endpoint(&format!("https://s3.{region}.{}", domain_of(&region)))?,
        };
        // A name with dots does not match a certificate for one level of names.
        let path_style = options
            .path_style
            .unwrap_or(!is_amazon || bucket.contains('.'));
        let lock = match (options.lock_mode, options.lock_days) {
            (Some(mode), Some(days)) => Some((mode, days)),
            (None, None) => None,
            _ => {
                return Err(wrong("an object lock needs a mode and a number of days")
                    .hint("give both, as in lock=governance&lock_days=30"));
            }
        };
        if lock.is_some() && options.checksum == Some(Checksum::None) {
            return Err(wrong("an object lock needs a checksum").hint(
                "leave checksum=none away: servers refuse to lock what they could not compare",
            ));
        }
        let separator = if prefix.is_empty() { "" } else { "/" };
        let question = if query.is_empty() { "" } else { "?" };
        Ok(Location {
            url: format!("s3://{bucket}{separator}{prefix}{question}{query}"),
            bucket: bucket.to_owned(),
            prefix: format!("{prefix}{separator}"),
            endpoint,
            region,
            path_style,
            ca: options.ca,
            credentials: options.credentials,
            profile: options.profile,
            checksum: options.checksum.unwrap_or(Checksum::Crc32c),
            signing: options.signing.unwrap_or(Signing::Whole),
            object_headers: options.headers,
            lock,
            connections: options.connections.unwrap_or(CONNECTIONS_DEFAULT),
            timeout: Duration::from_secs(options.timeout_s.unwrap_or(TIMEOUT_S_DEFAULT) as u64),
        })
    }

    /// Whether bytes travel encrypted.
    pub fn is_tls(&self) -> bool {
        self.endpoint.scheme() == "https"
    }

    /// The server as a person knows it.
    pub fn server(&self) -> &str {
        self.endpoint.as_str().trim_end_matches('/')
    }

    /// The URI of an object (its full name, prefix included) or, for an empty name, of the bucket.
    pub fn uri(&self, name: &str, query: &[(&str, &str)]) -> String {
        let mut uri = format!("{}://", self.endpoint.scheme());
        if !self.path_style {
            uri.push_str(&self.bucket);
            uri.push('.');
        }
        uri.push_str(self.endpoint.host_str().unwrap_or_default());
        if let Some(port) = self.endpoint.port() {
            uri.push_str(&format!(":{port}"));
        }
        if self.path_style {
            uri.push('/');
            uri.push_str(&self.bucket);
        }
        if !name.is_empty() || !self.path_style {
            uri.push('/');
        }
        uri.extend(utf8_percent_encode(name, PATH));
        for (at, (name, value)) in query.iter().enumerate() {
            uri.push(if at == 0 { '?' } else { '&' });
            uri.push_str(name);
            uri.push('=');
            uri.extend(utf8_percent_encode(value, QUERY));
        }
        uri
    }
}

impl Options {
    fn parse(query: &str) -> Result<Self> {
        let mut options = Options::default();
        let mut seen = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_encoding::percent_decode_str(value)
                .decode_utf8()
                .map_err(|_| wrong("an option of the URL is not UTF-8").object(shown(name)))?;
            if value.is_empty() || seen.contains(&name) {
                return Err(
                    wrong("an option of the URL has no value, or is given twice")
                        .object(shown(name)),
                );
            }
            seen.push(name);
            options.set(name, &value)?;
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let header = |header| Ok::<_, Error>((header, header_value(name, value)?));
        match name {
            "endpoint" => self.endpoint = Some(value.to_owned()),
            "region" => self.region = Some(value.to_owned()),
            "path_style" => self.path_style = Some(parse_bool(name, value)?),
            "ca" => self.ca = Some(PathBuf::from(value)),
            "credentials" => self.credentials = Some(PathBuf::from(value)),
            "profile" => self.profile = Some(value.to_owned()),
            "checksum" => self.checksum = Some(parse_checksum(value)?),
            "sign" => self.signing = Some(parse_signing(value)?),
            "storage_class" => self.headers.push(header(STORAGE_CLASS_HEADER)?),
            "sse" => self.headers.push(header("x-amz-server-side-encryption")?),
            "sse_kms_key_id" => self
                .headers
                .push(header("x-amz-server-side-encryption-aws-kms-key-id")?),
            "lock" => self.lock_mode = Some(parse_lock(value)?),
            "lock_days" => self.lock_days = Some(parse_number(name, value, 36_500)? as u32),
            "connections" => {
                self.connections = Some(parse_number(name, value, CONNECTIONS_MAX)?);
            }
            "timeout" => self.timeout_s = Some(parse_number(name, value, TIMEOUT_S_MAX)?),
            _ => {
                return Err(wrong("the URL has an unknown option").object(shown(name)).hint(
                    "known are endpoint, region, path_style, ca, credentials, profile, sign, checksum, storage_class, sse, sse_kms_key_id, lock, lock_days, connections, timeout",
                ));
            }
        }
        Ok(())
    }
}

/// An error about the URL. What it shows of it never comes from behind an `@`.
fn wrong(message: &str) -> Error {
    Error::new(Kind::Usage, message)
}

fn shown(name: &str) -> String {
    name.chars().take(40).flat_map(char::escape_debug).collect()
}

fn check_bucket(bucket: &str) -> Result<()> {
    let safe = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if bucket.contains(['@', ':']) {
        return Err(wrong("the URL holds credentials or a port where the bucket's name stands")
            .hint("write s3://BUCKET/PREFIX?endpoint=https://HOST:PORT; credentials come from the environment or a profile"));
    }
    // "." and ".." would be resolved in a path.
    let is_dots = bucket.bytes().all(|b| b == b'.');
    if !(1..=255).contains(&bucket.len()) || !bucket.bytes().all(safe) || is_dots {
        return Err(wrong("the URL holds no name of a bucket").hint(
            "write s3://BUCKET/PREFIX?region=REGION, or ?endpoint=URL for another server than Amazon's",
        ));
    }
    Ok(())
}

fn check_prefix(prefix: &str) -> Result<()> {
    let bad_part = |part: &str| part.is_empty() || part == "." || part == "..";
    if !prefix.is_empty() && (prefix.split('/').any(bad_part) || prefix.contains(char::is_control))
    {
        return Err(
            wrong("the prefix has an empty part, a part of dots or a control character")
                .object(shown(prefix)),
        );
    }
    if prefix.len() + 1 + KEY_BYTES_MAX > OBJECT_NAME_BYTES_MAX {
        return Err(wrong("the prefix is too long").hint(format!(
            "{} bytes are left beside the names of objects",
            OBJECT_NAME_BYTES_MAX - 1 - KEY_BYTES_MAX
        )));
    }
    Ok(())
}

fn check_region(region: &str) -> Result<()> {
    let safe = |b: u8| b.is_ascii_alphanumeric() || b"_-".contains(&b);
    if region.len() > 64 || !region.bytes().all(safe) {
        return Err(wrong("this is no region's name").object(shown(region)));
    }
    Ok(())
}

/// The domain of Amazon's servers in a region: each of its partitions has one of its own.
fn domain_of(region: &str) -> &'static str {
    const OTHERS: [(&str, &str); 6] = [
        ("cn-", "amazonaws.com.cn"),
        ("eusc-", "amazonaws.eu"),
        ("us-iso-", "c2s.ic.gov"),
        ("us-isob-", "sc2s.sgov.gov"),
        ("us-isof-", "csp.hci.ic.gov"),
        ("eu-isoe-", "cloud.adc-e.uk"),
    ];
    let found = OTHERS.iter().find(|other| region.starts_with(other.0));
    found.map_or("amazonaws.com", |found| found.1)
}

fn parse_endpoint(text: &str) -> Result<Url> {
    let hint = "write it as in endpoint=https://s3.example.com:9000";
    let url = Url::parse(text).map_err(|_| wrong("the endpoint is not a URL").hint(hint))?;
    let is_http = matches!(url.scheme(), "http" | "https") && url.has_host();
    let is_bare =
        matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("the endpoint holds credentials")
            .hint("credentials come from the environment or a profile"));
    }
    if !is_http || !is_bare {
        return Err(wrong("the endpoint is not http or https, a host and a port").hint(hint));
    }
    Ok(url)
}

fn parse_bool(name: &str, value: &str) -> Result<bool> {
    match value {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err(wrong("an option of the URL is neither true nor false").object(name)),
    }
}

fn parse_number(name: &str, value: &str, max: usize) -> Result<usize> {
    value
        .parse()
        .ok()
        .filter(|number| (1..=max).contains(number))
        .ok_or_else(|| {
            wrong("an option of the URL is out of range")
                .object(name)
                .hint(format!("give a number from 1 to {max}"))
        })
}

fn parse_signing(value: &str) -> Result<Signing> {
    match value {
        "whole" => Ok(Signing::Whole),
        "chunks" => Ok(Signing::Chunks),
        _ => Err(wrong("the URL names an unknown way to sign")
            .object(shown(value))
            .hint("known are whole and chunks")),
    }
}

fn parse_checksum(value: &str) -> Result<Checksum> {
    match value {
        "none" => Ok(Checksum::None),
        "crc32c" => Ok(Checksum::Crc32c),
        "sha256" => Ok(Checksum::Sha256),
        _ => Err(wrong("the URL names an unknown checksum")
            .object(shown(value))
            .hint("known are none, crc32c and sha256")),
    }
}

fn parse_lock(value: &str) -> Result<&'static str> {
    match value {
        "governance" => Ok("GOVERNANCE"),
        "compliance" => Ok("COMPLIANCE"),
        _ => Err(wrong("the URL names an unknown mode of object lock")
            .object(shown(value))
            .hint("known are governance and compliance")),
    }
}

fn header_value(name: &str, value: &str) -> Result<String> {
    if value.len() > 2048 || !value.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(wrong("an option of the URL cannot be sent").object(name));
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(rest: &str) -> Result<Location> {
        Location::parse(rest, &Surroundings::default())
    }

    #[test]
    fn a_url_is_read_and_kept() {
        let rest =
            "db-backups/prod/eu?endpoint=http://127.0.0.1:3900&region=garage&path_style=true";
        let location = parsed(rest).unwrap();
        assert_eq!(location.url, format!("s3://{rest}"));
        assert_eq!(location.prefix, "prod/eu/");
        assert!(!location.is_tls());
        assert_eq!(
            location.uri("prod/eu/packs/ab/c", &[]),
            "http://127.0.0.1:3900/db-backups/prod/eu/packs/ab/c"
        );
        assert_eq!(
            location.uri("", &[("list-type", "2"), ("prefix", "prod/eu/a b")]),
            "http://127.0.0.1:3900/db-backups?list-type=2&prefix=prod%2Feu%2Fa%20b"
        );
    }

    #[test]
    fn amazon_is_spoken_to_by_host_name_and_needs_a_region() {
        assert_eq!(parsed("bucket/p").unwrap_err().kind(), Kind::Usage);
        let location = parsed("bucket?region=eu-central-1").unwrap();
        assert_eq!(
            location.uri("config", &[]),
            "https://bucket.s3.eu-central-1.amazonaws.com/config"
        );
        assert_eq!(
            location.uri("", &[("delete", "")]),
            "https://bucket.s3.eu-central-1.amazonaws.com/?delete="
        );
        let dotted = parsed("my.bucket?region=eu-central-1").unwrap();
        assert_eq!(
            dotted.uri("config", &[]),
            "https://s3.eu-central-1.amazonaws.com/my.bucket/config"
        );
    }

    #[test]
    fn amazon_s_servers_have_the_domain_of_their_partition() {
        for (region, server) in [
            ("us-gov-west-1", "https://s3.us-gov-west-1.amazonaws.com"),
            ("cn-north-1", "https://s3.cn-north-1.amazonaws.com.cn"),
            ("eusc-de-east-1", "https://s3.eusc-de-east-1.amazonaws.eu"),
            ("us-iso-east-1", "https://s3.us-iso-east-1.c2s.ic.gov"),
            ("us-isob-east-1", "https://s3.us-isob-east-1.sc2s.sgov.gov"),
            (
                "us-isof-south-1",
                "https://s3.us-isof-south-1.csp.hci.ic.gov",
            ),
            ("eu-isoe-west-1", "https://s3.eu-isoe-west-1.cloud.adc-e.uk"),
        ] {
            let location = parsed(&format!("bucket?region={region}")).unwrap();
            assert_eq!(location.server(), server);
            assert!(!location.path_style, "{region}");
        }
    }

    #[test]
    fn the_environment_fills_what_the_url_leaves_open() {
        let surroundings = Surroundings {
            region: Some("r1".into()),
            endpoint: Some("https://s3.example.com".into()),
        };
        let location = Location::parse("bucket", &surroundings).unwrap();
        assert_eq!(location.region, "r1");
        assert_eq!(location.uri("a", &[]), "https://s3.example.com/bucket/a");
        let location = Location::parse("bucket?region=r2", &surroundings).unwrap();
        assert_eq!(location.region, "r2");
    }

    #[test]
    fn odd_characters_of_a_prefix_are_encoded_once() {
        let location = parsed("b/ä b%20+?endpoint=http://h").unwrap();
        assert_eq!(
            location.uri(&format!("{}config", location.prefix), &[]),
            "http://h/b/%C3%A4%20b%2520%2B/config"
        );
    }

    #[test]
    fn a_wrong_url_is_a_usage_error_and_shows_no_password() {
        for rest in [
            "",
            "?region=x",
            "/prefix?region=x",
            "key:geheim@bucket/prefix?region=x",
            "..?region=x",
            "b/../c?region=x",
            "b//c?region=x",
            "b/a\nb?region=x",
            "b?region=",
            "b?region=x&region=y",
            "b?region=a/b",
            "b?regoin=x",
            "b?endpoint=ftp://h",
            "b?endpoint=http://h/path",
            "b?endpoint=http://user:geheim@h",
            "b?endpoint=h:9000",
            "b?region=x&path_style=maybe",
            "b?region=x&checksum=md5",
            "b?region=x&sign=never",
            "b?region=x&connections=0",
            "b?region=x&connections=1000",
            "b?region=x&lock=governance",
            "b?region=x&lock_days=3",
            "b?region=x&lock=governance&lock_days=3&checksum=none",
            "b?region=x&storage_class=A%0D%0AB",
        ] {
            let error = parsed(rest).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{rest:?}");
            assert!(!format!("{error} {error:?}").contains("geheim"), "{rest:?}");
        }
        let long = format!("b/{}?region=x", "p".repeat(600));
        assert_eq!(parsed(&long).unwrap_err().kind(), Kind::Usage);
    }

    #[test]
    fn the_documented_options_are_those_that_the_hint_names() {
        let error = parsed("b?region=x&regoin=y").unwrap_err();
        let hint = error.hint_text().unwrap().to_owned();
        let mut named: Vec<&str> = hint.trim_start_matches("known are ").split(", ").collect();
        let page = include_str!("../../../../docs/s3.md");
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
        let mut documented: Vec<&str> = rows
            .filter_map(|row| row.split(" |").next())
            .flat_map(|names| names.split(", "))
            .map(|name| name.trim_matches('`'))
            .collect();
        named.sort_unstable();
        documented.sort_unstable();
        assert_eq!(named, documented);
    }

    #[test]
    fn object_headers_follow_the_options() {
        let location =
            parsed("b?region=x&storage_class=STANDARD_IA&sse=aws:kms&lock=compliance&lock_days=7")
                .unwrap();
        assert_eq!(
            location.object_headers,
            [
                ("x-amz-storage-class", "STANDARD_IA".to_owned()),
                ("x-amz-server-side-encryption", "aws:kms".to_owned())
            ]
        );
        assert_eq!(location.lock, Some(("COMPLIANCE", 7)));
    }
}
