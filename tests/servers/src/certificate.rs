//! Certificates for a server on loopback, made anew for each: one authority and one leaf signed by it, or what operators put
//! in their place.
//!
//! Invariants: authority and leaf have different names, since some clients take a certificate that names itself as its issuer for
//! one that nobody else signed.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair,
    date_time_ymd,
};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// A name that no machine knows, and under which a server may be reached nevertheless: by way of a proxy.
const FAR: &str = "store.invalid";

/// Whether a server of this package speaks TLS, and with what kind of certificate. What a client has to trust is in the
/// server's `ca_file`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tls {
    /// Plain HTTP.
    #[default]
    Off,
    /// Signed by an authority that nobody knows.
    Signed,
    /// The same, and it was valid in the year 2020 alone.
    Expired,
    /// The same, for a year that is far ahead.
    NotValidYet,
    /// The same, and it is for another server.
    OfAnother,
    /// Signed by itself, and no authority.
    SelfSigned,
    /// Signed by itself and an authority, as many tools make them.
    SelfSignedAuthority,
}

/// What a server of this package needs, with every algorithm. `tls` is not [`Tls::Off`].
pub(crate) fn for_loopback(tls: Tls, ca_file: &Path) -> Arc<ServerConfig> {
    let (certificate, key) = issue(tls, ca_file);
    server_config(&certificate, &key, aws_lc_rs::default_provider())
}

/// Makes an authority and a certificate for `localhost`, `127.0.0.1` and `store.invalid`, writes the authority's certificate
/// to `ca_file` as PEM, and returns what a server needs, with the algorithms of `provider`. The authority's key is forgotten.
pub fn certificate_for_loopback(ca_file: &Path, provider: CryptoProvider) -> Arc<ServerConfig> {
    let (certificate, key) = issue(Tls::Signed, ca_file);
    server_config(&certificate, &key, provider)
}

fn server_config(
    certificate: &Certificate,
    key: &KeyPair,
    provider: CryptoProvider,
) -> Arc<ServerConfig> {
    let chain = vec![CertificateDer::from(certificate.der().to_vec())];
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, key.into())
        .expect("the key fits the certificate");
    Arc::new(config)
}

/// The same for a program: certificate and key as PEM.
pub fn certificate_file_for_loopback(ca_file: &Path) -> String {
    let (certificate, key) = issue(Tls::Signed, ca_file);
    certificate.pem() + &key.serialize_pem()
}

fn issue(tls: Tls, ca_file: &Path) -> (Certificate, KeyPair) {
    let hosts: &[&str] = match tls {
        Tls::OfAnother => &["other.invalid"],
        _ => &["localhost", "127.0.0.1", FAR],
    };
    let mut leaf = named("localhost", hosts);
    match tls {
        Tls::Expired => {
            leaf.not_before = date_time_ymd(2020, 1, 1);
            leaf.not_after = date_time_ymd(2020, 12, 31);
        }
        Tls::NotValidYet => leaf.not_before = date_time_ymd(3000, 1, 1),
        Tls::SelfSigned => leaf.is_ca = IsCa::ExplicitNoCa,
        Tls::SelfSignedAuthority => leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
        Tls::Off | Tls::Signed | Tls::OfAnother => {}
    }
    let key = KeyPair::generate().expect("a key");
    let (certificate, trusted) = match tls {
        Tls::SelfSigned | Tls::SelfSignedAuthority => {
            let certificate = leaf.self_signed(&key).expect("a certificate");
            let trusted = certificate.pem();
            (certificate, trusted)
        }
        _ => {
            let mut authority = named("authority of a test", &[]);
            authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let authority_key = KeyPair::generate().expect("a key");
            let authority =
                CertifiedIssuer::self_signed(authority, authority_key).expect("an authority");
            let certificate = leaf.signed_by(&key, &authority).expect("a certificate");
            (certificate, authority.pem())
        }
    };
    fs::write(ca_file, trusted).expect("the directory can be written to");
    (certificate, key)
}

fn named(common_name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut parameters = CertificateParams::new(hosts).expect("names of this machine");
    parameters
        .distinguished_name
        .push(DnType::CommonName, common_name);
    parameters
}
