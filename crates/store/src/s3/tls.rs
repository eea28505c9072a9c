//! What a failure of TLS means: whom it concerns, and what can be done.
//!
//! Invariants: each reason for which a certificate is refused has a remedy of its own, since naming an authority by `ca=` mends
//! none but that of an unknown one and that of an authority's own.

use std::error::Error as _;

use mover_base::{Error, Kind};
use rustls::CertificateError as Reason;
use rustls::Error::{InvalidCertificate, InvalidMessage, NoCertificatesPresented};
use rustls::InvalidMessage::InvalidContentType;
use rustls::OtherError;

/// The error, still without object and cause, where TLS failed because of who the server says it is.
pub(super) fn of_certificate(error: &reqwest::Error) -> Option<Error> {
    let (what, remedy) = match of_tls(error)? {
        InvalidCertificate(reason) => refused(reason),
        NoCertificatesPresented => (
            "the server shows no certificate",
            "give it one that names it, or write http:// in endpoint= if it is meant to speak in the open",
        ),
        _ => return None,
    };
    Some(Error::new(Kind::Storage, what).hint(remedy))
}

fn refused(reason: &Reason) -> (&'static str, &'static str) {
    match reason {
        Reason::Expired | Reason::ExpiredContext { .. } => (
            "the server's certificate has expired",
            "have it renewed on the server; if it should be valid, set this machine's clock",
        ),
        Reason::NotValidYet | Reason::NotValidYetContext { .. } => (
            "the server's certificate is not valid yet",
            "set this machine's clock, or that of the machine which made the certificate",
        ),
        Reason::NotValidForName | Reason::NotValidForNameContext { .. } => (
            "the server's certificate is for another name",
            "write the name that it is for in endpoint=, or give the server one for this name",
        ),
        Reason::Revoked => (
            "the server's certificate was revoked",
            "give the server another one; its key may be in other hands",
        ),
        other if is_of_an_authority(other) => (
            "the server's certificate is an authority's own, which stands for no server unless ca= names this very certificate",
            "if it is this server's, a file with exactly this certificate is enough: add ca=/path/to/it.pem to the repository's URL; \
             otherwise give the server one that this authority signed",
        ),
        _ => (
            "the server's certificate is not trusted",
            "if your own authority signed it, or it signed itself, add ca=/path/to/ca.pem to the repository's URL",
        ),
    }
}

/// Whether a certificate was refused because it may sign others. The library says so by the name alone, which has to be all that
/// it says: by this word `trust` takes certificates.
pub(super) fn is_of_an_authority(reason: &Reason) -> bool {
    matches!(reason, Reason::Other(OtherError(error)) if format!("{error:?}") == "CaUsedAsEndEntity")
}

/// Whether what came was none of TLS, as from a server that speaks plain HTTP.
pub(super) fn is_no_tls(error: &reqwest::Error) -> bool {
    of_tls(error).is_some_and(|error| matches!(error, InvalidMessage(InvalidContentType)))
}

/// The error of TLS among the causes of an error.
fn of_tls(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut causes = std::iter::successors(error.source(), |&error| error.source());
    causes.find_map(tls_error)
}

/// The error of TLS that `error` is, or that errors of I/O are wrapped around: their source is not what they wrap.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return Some(error);
    }
    let wrapped = error.downcast_ref::<std::io::Error>()?.get_ref()?;
    tls_error(wrapped)
}
