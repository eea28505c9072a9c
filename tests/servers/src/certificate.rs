//! Certificates for a server on loopback, made anew for each: one authority, and one leaf signed by it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// A name that no machine knows, and under which a server may be reached nevertheless: by way of a proxy.
const FAR: &str = "store.invalid";

/// Makes an authority and a certificate for `localhost`, `127.0.0.1` and [`FAR`], writes the authority's certificate to
/// `ca_file` as PEM, and returns what a server needs. The authority's key is forgotten.
pub(crate) fn for_loopback(ca_file: &Path) -> Arc<ServerConfig> {
    let mut authority = CertificateParams::new(Vec::new()).expect("no names");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let authority = CertifiedIssuer::self_signed(authority, key).expect("an authority");
    fs::write(ca_file, authority.pem()).expect("the directory can be written to");

    let names = ["localhost", "127.0.0.1", FAR].map(str::to_owned).to_vec();
    let leaf = CertificateParams::new(names).expect("names of this machine");
    let key = KeyPair::generate().expect("a key");
    let certificate = leaf.signed_by(&key, &authority).expect("a certificate");
    let chain = vec![CertificateDer::from(certificate.der().to_vec())];
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, key.into())
        .expect("the key fits the certificate");
    Arc::new(config)
}
