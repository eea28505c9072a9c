//! Certificates for a server on loopback, made anew for each: one authority, and one leaf signed by it.
//!
//! Invariants: the two have different names, since some clients take a certificate that names itself as its issuer for
//! one that nobody else signed.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair,
};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// A name that no machine knows, and under which a server may be reached nevertheless: by way of a proxy.
const FAR: &str = "store.invalid";

/// What a server of this package needs, with every algorithm: see [`certificate_for_loopback`].
pub(crate) fn for_loopback(ca_file: &Path) -> Arc<ServerConfig> {
    certificate_for_loopback(ca_file, aws_lc_rs::default_provider())
}

/// Makes an authority and a certificate for `localhost`, `127.0.0.1` and `store.invalid`, writes the authority's certificate
/// to `ca_file` as PEM, and returns what a server needs, with the algorithms of `provider`. The authority's key is forgotten.
pub fn certificate_for_loopback(ca_file: &Path, provider: CryptoProvider) -> Arc<ServerConfig> {
    let (certificate, key) = issue(ca_file);
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
    let (certificate, key) = issue(ca_file);
    certificate.pem() + &key.serialize_pem()
}

fn issue(ca_file: &Path) -> (Certificate, KeyPair) {
    let mut authority = named("authority of a test", &[]);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let authority = CertifiedIssuer::self_signed(authority, key).expect("an authority");
    fs::write(ca_file, authority.pem()).expect("the directory can be written to");

    let leaf = named("localhost", &["localhost", "127.0.0.1", FAR]);
    let key = KeyPair::generate().expect("a key");
    let certificate = leaf.signed_by(&key, &authority).expect("a certificate");
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
