//! Whom a connection trusts where `ca=` names certificates: the system's authorities, those of the file, and a server that
//! presents one of the file's very certificates.
//!
//! Invariants: every verdict is the ordinary verifier's, those on the signatures of handshakes included, but one: a certificate
//! against which nothing was held but that it is an authority's is taken where the file holds it, byte for byte, and it is for the
//! server's name. What the system or a server alone vouches for is never taken so.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use mover_base::{Error, Kind, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_platform_verifier::Verifier as Ordinary;

use super::tls::is_of_an_authority;

/// TLS for a client that trusts the certificates in the file `ca` beside the system's.
pub(super) fn config(ca: &Path) -> Result<ClientConfig> {
    let failed = |error: &dyn Display| {
        Error::new(Kind::Usage, "the file of certificates cannot be used")
            .object(ca.display().to_string())
            .hint("ca= names a PEM file of one or more certificates")
            .cause(error.to_string())
    };
    let pem = std::fs::read(ca).map_err(|error| failed(&error))?;
    let named = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| failed(&"it is no PEM, or cut off"))?;
    if named.is_empty() {
        return Err(failed(&"it holds no certificate"));
    }
    trusting(named).map_err(|error| failed(&error))
}

/// But for the verifier all is as reqwest sets it for a client of HTTP/1.1, since one that is given TLS sets nothing of it.
fn trusting(named: Vec<CertificateDer<'static>>) -> Result<ClientConfig, rustls::Error> {
    let provider = provider();
    let verifier = Verifier::new(named, Arc::clone(&provider))?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(rustls::ALL_VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    let installed = CryptoProvider::get_default().cloned();
    installed.unwrap_or_else(|| Arc::new(aws_lc_rs::default_provider()))
}

/// The ordinary verifier, and what it says too much against certificates that the user named.
#[derive(Debug)]
struct Verifier {
    /// What reqwest takes: webpki's, with the system's authorities and those of the file. It logs whatever it refuses, which the
    /// tool leaves out of its log.
    ordinary: Ordinary,
    named: Vec<CertificateDer<'static>>,
}

impl Verifier {
    fn new(
        named: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, rustls::Error> {
        let ordinary = Ordinary::new_with_extra_roots(named.iter().cloned(), provider)?;
        Ok(Verifier { ordinary, named })
    }

    fn is_named(&self, certificate: &CertificateDer<'_>) -> bool {
        self.named.iter().any(|named| **named == **certificate)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict = self.ordinary.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        let is_an_authority = matches!(
            &verdict,
            Err(rustls::Error::InvalidCertificate(reason)) if is_of_an_authority(reason)
        );
        if !is_an_authority || !self.is_named(end_entity) {
            return verdict;
        }
        // webpki 0.103 looks at the time before it looks for an authority (`check_issuer_independent_properties`), so whatever
        // has run out, or is not valid yet, was refused for that above; a test holds it to this order. For which purpose it was
        // signed and by whom, which come next, needs no look where the user vouches for these very bytes. The name comes last of
        // all and does.
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    /// That the server has the key is never taken for granted: anybody may copy a certificate.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.ordinary.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.ordinary.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.ordinary.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mover_test_servers::certificate_file_for_loopback;
    use rustls::CertificateError as Reason;
    use rustls::Error::InvalidCertificate;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::sign::{CertifiedKey, SingleCertAndKey};
    use rustls::{ClientConnection, ConnectionCommon, ServerConfig, ServerConnection};

    use super::*;

    /// As `openssl req -x509 -addext subjectAltName=DNS:store.example` makes them, for the years 2025 to 2124. Nobody has the key.
    const OWN: &str = "\
-----BEGIN CERTIFICATE-----
MIIBoTCCAUegAwIBAgIUWRrh80xcH4lC7dJtwN7IhNHIgeUwCgYIKoZIzj0EAwIw
GDEWMBQGA1UEAwwNc3RvcmUuZXhhbXBsZTAgFw0yNTAxMDEwMDAwMDBaGA8yMTI0
MTIzMTIzNTk1OVowGDEWMBQGA1UEAwwNc3RvcmUuZXhhbXBsZTBZMBMGByqGSM49
AgEGCCqGSM49AwEHA0IABL2disg4PHaWApjbvxSj4B6BN8Yl/TF9ti/dTXtcUZwA
jMspSXytb7hzrBl8TReVZtkceypJi/M6C8TXHi3bKaejbTBrMB0GA1UdDgQWBBQD
GeSteLhnnK5dfMLdelIYEcAfxjAfBgNVHSMEGDAWgBQDGeSteLhnnK5dfMLdelIY
EcAfxjAPBgNVHRMBAf8EBTADAQH/MBgGA1UdEQQRMA+CDXN0b3JlLmV4YW1wbGUw
CgYIKoZIzj0EAwIDSAAwRQIgO0p/QsLd5Yomx+PJnjkUttmq7G0luKZU33fSc9Rt
lxgCIQCPMmIRnR4VHtYhk3l6aOQHuR47rolBZhwAj2nY8JsHJg==
-----END CERTIFICATE-----
";
    /// Of the same subject, with another key.
    const OTHER: &str = "\
-----BEGIN CERTIFICATE-----
MIIBoTCCAUegAwIBAgIUYtwKUzwt9t2Orq3nCq4jDa4VdsAwCgYIKoZIzj0EAwIw
GDEWMBQGA1UEAwwNc3RvcmUuZXhhbXBsZTAgFw0yNTAxMDEwMDAwMDBaGA8yMTI0
MTIzMTIzNTk1OVowGDEWMBQGA1UEAwwNc3RvcmUuZXhhbXBsZTBZMBMGByqGSM49
AgEGCCqGSM49AwEHA0IABHMt5OHcuJV4/aIfsRQGgqBkEewMhV43dqyVlD2eQG9z
nUfAWQV7+tpnXSyUH85UPvk9cAriubjAMxiPWmodrNKjbTBrMB0GA1UdDgQWBBQ7
zhmDVgNSbj74cc3dFZEv9VtYqzAfBgNVHSMEGDAWgBQ7zhmDVgNSbj74cc3dFZEv
9VtYqzAPBgNVHRMBAf8EBTADAQH/MBgGA1UdEQQRMA+CDXN0b3JlLmV4YW1wbGUw
CgYIKoZIzj0EAwIDSAAwRQIgQ3IHMEqLIR8U6o308oomD+61UOEycL4+ybdOn/yR
UR0CIQCfseObJWR834E6qZcM2N1h+3y+popmwZZUfgDc5/1Rsw==
-----END CERTIFICATE-----
";
    const NAME: &str = "store.example";
    /// The first second of a year.
    const IN_2024: u64 = 1_704_067_200;
    const IN_2030: u64 = 1_893_456_000;
    const IN_2125: u64 = 4_891_363_200;

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    /// What is said of a server that shows `shown` and `others`, by a client to which `named` was named.
    fn verdict(
        named: &str,
        shown: &str,
        others: &[CertificateDer<'_>],
        name: &str,
        seconds: u64,
    ) -> Result<(), Reason> {
        let verifier = Verifier::new(vec![der(named)], provider()).unwrap();
        let name = ServerName::try_from(name).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        match verifier.verify_server_cert(&der(shown), others, &name, &[], now) {
            Ok(_) => Ok(()),
            Err(InvalidCertificate(reason)) => Err(reason),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_named_certificate_of_an_authority_stands_for_its_name_while_it_is_valid() {
        let of = |name, seconds| verdict(OWN, OWN, &[], name, seconds);
        assert!(of(NAME, IN_2030).is_ok());
        let other_name = of("other.example", IN_2030);
        assert!(
            matches!(other_name, Err(Reason::NotValidForNameContext { .. })),
            "{other_name:?}"
        );
        // Whatever the name: time comes first.
        for name in [NAME, "other.example"] {
            let early = of(name, IN_2024);
            assert!(
                matches!(early, Err(Reason::NotValidYetContext { .. })),
                "{early:?}"
            );
            let late = of(name, IN_2125);
            assert!(
                matches!(late, Err(Reason::ExpiredContext { .. })),
                "{late:?}"
            );
        }
    }

    #[test]
    fn only_the_very_certificate_that_was_named_is_taken() {
        for others in [vec![], vec![der(OTHER)]] {
            let said = verdict(OTHER, OWN, &others, NAME, IN_2030);
            assert!(said.is_err_and(|reason| is_of_an_authority(&reason)));
        }
    }

    /// The client's error, or the server's, or none.
    fn shake_hands(client: ClientConfig, server: ServerConfig) -> Result<(), rustls::Error> {
        let name = ServerName::try_from(NAME).unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name)?;
        let mut server = ServerConnection::new(Arc::new(server))?;
        while client.is_handshaking() || server.is_handshaking() {
            carry(&mut client, &mut server)?;
            carry(&mut server, &mut client)?;
        }
        Ok(())
    }

    fn carry<A, B>(
        from: &mut ConnectionCommon<A>,
        to: &mut ConnectionCommon<B>,
    ) -> Result<(), rustls::Error> {
        let mut sent = Vec::new();
        while from.wants_write() {
            from.write_tls(&mut sent).unwrap();
        }
        let mut rest = sent.as_slice();
        while !rest.is_empty() {
            to.read_tls(&mut rest).unwrap();
            to.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn a_copy_of_a_named_certificate_is_worth_nothing_without_its_key() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("named.pem");
        std::fs::write(&file, format!("{OTHER}{OWN}")).unwrap();
        let another = certificate_file_for_loopback(&directory.path().join("ca.pem"));
        let key = PrivateKeyDer::from_pem_slice(another.as_bytes()).unwrap();
        let key = aws_lc_rs::sign::any_supported_type(&key).unwrap();
        for &version in rustls::ALL_VERSIONS {
            let shown = CertifiedKey::new(vec![der(OWN)], Arc::clone(&key));
            let server = ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(&[version])
                .unwrap()
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
            let ended = shake_hands(config(&file).unwrap(), server);
            assert!(
                matches!(ended, Err(InvalidCertificate(Reason::BadSignature))),
                "{:?}: {ended:?}",
                version.version
            );
        }
    }

    #[test]
    fn a_client_that_trusts_a_file_speaks_what_others_speak() {
        let config = trusting(vec![der(OWN)]).unwrap();
        assert_eq!(config.alpn_protocols, [b"http/1.1"]);
        assert!(config.enable_sni);
    }

    #[test]
    fn a_file_without_certificates_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ca.pem");
        for text in [
            "",
            "no certificate\n",
            "-----BEGIN CERTIFICATE-----\nAAAA\n",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            std::fs::write(&file, text).unwrap();
            let error = config(&file).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{text}");
            assert!(error.to_string().contains("ca.pem"), "{error}");
        }
    }
}
