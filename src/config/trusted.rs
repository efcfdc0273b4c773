//! Certificates that are trusted because the operator's file holds them: read with the configuration, so that a file of no use is
//! refused with it, and a file that was mended is a change of it.

use std::fmt;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, Error, RootCertStore};

use crate::tls_words;

/// The certificates of a PEM file, at least one; each can be trusted.
#[derive(Clone, PartialEq, Eq)]
pub struct Trusted {
    certificates: Vec<CertificateDer<'static>>,
}

impl Trusted {
    /// Those in `pem`, or what is wrong with it.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let mut certificates = Vec::new();
        for (position, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
            let certificate = certificate.map_err(|error| format!("it is not valid PEM ({error})"))?;
            let added = RootCertStore::empty().add(certificate.clone());
            added.map_err(|error| {
                let why = match error {
                    // What is well formed PEM and no X.509 inside.
                    Error::InvalidCertificate(CertificateError::BadEncoding) => {
                        "it is damaged, or no X.509 certificate".to_owned()
                    }
                    other => tls_words::told(&other),
                };
                format!("certificate {} of it cannot be trusted ({why})", position + 1)
            })?;
            certificates.push(certificate);
        }
        if certificates.is_empty() {
            Err("it holds no certificate".to_owned())
        } else {
            Ok(Self { certificates })
        }
    }

    /// As the verifier of a handshake takes them.
    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.certificates.iter().cloned());
        roots
    }

    /// Each in its binary form.
    pub fn certificates(&self) -> impl Iterator<Item = &[u8]> {
        self.certificates.iter().map(AsRef::as_ref)
    }
}

impl fmt::Debug for Trusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trusted({} certificates)", self.certificates.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = include_str!("../../tests/config/files/ca.pem");

    #[test]
    fn each_certificate_of_a_file_is_trusted_and_a_file_of_no_use_says_why() {
        let two = Trusted::parse(format!("{PEM}and\n{PEM}").as_bytes()).expect("two certificates");
        assert_eq!((two.roots().len(), two.certificates().count()), (2, 2));
        for (pem, why) in [
            ("", "it holds no certificate"),
            ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "it holds no certificate"),
            ("NAME=VALUE\n", "it holds no certificate"),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                "certificate 1 of it cannot be trusted (it is damaged, or no X.509 certificate)",
            ),
            (&format!("{PEM}-----BEGIN CERTIFICATE-----\nAAAA\n"), "it is not valid PEM"),
        ] {
            let said = Trusted::parse(pem.as_bytes()).expect_err(pem);
            assert!(said.starts_with(why), "{said}");
        }
    }
}
