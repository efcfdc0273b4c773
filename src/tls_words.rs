//! What the TLS library finds wrong with the other side, as an operator would say it: the library's own word stands in brackets at
//! most, for a search.
//!
//! Must not do: know what edge connects to, or which key of the file would help; who reports it does.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError};

/// Why a connection failed, where the TLS library was the one to end it.
pub fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            // An io::Error names the cause of what it wraps as its own and skips that itself.
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

/// What is wrong, with "it" for the other side.
pub fn told(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(error) => certificate(error),
        rustls::Error::AlertReceived(alert) => self::alert(*alert),
        rustls::Error::NoCertificatesPresented => "it showed no certificate".to_owned(),
        rustls::Error::InvalidMessage(_) => "what it sent is not TLS, or damaged".to_owned(),
        rustls::Error::PeerIncompatible(why) => {
            format!("it and edge have no version or algorithm of TLS in common ({why:?})")
        }
        rustls::Error::PeerMisbehaved(why) => format!("it does not keep to the TLS protocol ({why:?})"),
        rustls::Error::NoApplicationProtocol => "it speaks no protocol that was offered".to_owned(),
        other => other.to_string(),
    }
}

/// What is wrong with a certificate, with "its" for whoever showed it.
pub fn certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::BadEncoding => "its certificate is damaged (BadEncoding)".to_owned(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate is expired, or this machine's clock is ahead".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet, or this machine's clock is behind".to_owned()
        }
        CertificateError::Revoked => "its certificate is revoked".to_owned(),
        CertificateError::UnknownIssuer => {
            "its certificate is of a CA that is not trusted here, or comes without the certificates in between (UnknownIssuer)"
                .to_owned()
        }
        CertificateError::BadSignature => {
            "its certificate is not signed by the CA that it names (BadSignature)".to_owned()
        }
        CertificateError::NotValidForName => "its certificate is for other names".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names = if presented.is_empty() { "none".to_owned() } else { presented.join(", ") };
            format!("its certificate is not for {} (its names: {names})", expected.to_str())
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is for another purpose (`extendedKeyUsage`)".to_owned()
        }
        // What the library has no word of its own for, and one more that comes in two ways.
        other => match other.to_string() {
            word if word.contains("CaUsedAsEndEntity") => {
                "it shows the certificate of a CA as its own (CaUsedAsEndEntity): it needs one that the CA has issued to it, with \
                 `basicConstraints` CA:FALSE"
                    .to_owned()
            }
            word if word.contains("UnsupportedCertVersion") => {
                "its certificate is not of X.509 version 3 (UnsupportedCertVersion): `openssl x509 -req` makes one with `-extfile`"
                    .to_owned()
            }
            word if word.contains("EndEntityUsedAsCa") => {
                "its certificate was issued by one that is no CA's (EndEntityUsedAsCa)".to_owned()
            }
            word if word.contains("UnsupportedSignatureAlgorithm") => {
                "its certificate is signed in a way that is too weak or not known (UnsupportedSignatureAlgorithm)".to_owned()
            }
            word if word.contains("Eku") || word.contains("ExtendedKeyUsage") => {
                "its certificate is for another purpose (`extendedKeyUsage`)".to_owned()
            }
            word => format!("its certificate cannot be accepted ({word})"),
        },
    }
}

fn alert(alert: AlertDescription) -> String {
    let words = match alert {
        AlertDescription::UnrecognisedName => "it knows no such name",
        AlertDescription::NoApplicationProtocol => "it speaks no protocol that was offered",
        AlertDescription::CertificateRequired => "it wants a certificate of whoever asks",
        AlertDescription::UnknownCA => "it does not trust the CA of the certificate it was shown",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown => "it does not accept the certificate it was shown",
        AlertDescription::CertificateExpired => {
            "it holds the certificate it was shown for expired: are both clocks right?"
        }
        AlertDescription::CertificateRevoked => "it holds the certificate it was shown for revoked",
        AlertDescription::ProtocolVersion
        | AlertDescription::InsufficientSecurity
        | AlertDescription::HandshakeFailure => "it and edge have no version or algorithm of TLS in common",
        AlertDescription::AccessDenied => "it denies access",
        _ => "it ended the handshake",
    };
    format!("{words} (TLS alert {alert:?})")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::OtherError;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("of the library")]
    struct CaUsedAsEndEntity;

    #[derive(Debug, thiserror::Error)]
    #[error("connection failed")]
    struct Outer(#[source] io::Error);

    #[test]
    fn what_ended_a_handshake_is_found_below_other_errors_and_said_plainly() {
        let ca = rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(
            CaUsedAsEndEntity,
        ))));
        let outer = Outer(io::Error::other(ca));
        let said = told(cause(&outer).expect("the library's error"));
        assert!(
            said.starts_with("it shows the certificate of a CA as its own (CaUsedAsEndEntity): "),
            "{said}"
        );
        assert!(cause(&Outer(io::ErrorKind::ConnectionReset.into())).is_none());
    }

    #[test]
    fn the_librarys_word_stands_in_brackets_at_most() {
        let of = |error| rustls::Error::InvalidCertificate(error);
        for (error, plain) in [
            (of(CertificateError::UnknownIssuer), "its certificate is of a CA that is not trusted here"),
            (of(CertificateError::Expired), "its certificate is expired"),
            (of(CertificateError::NotValidForName), "its certificate is for other names"),
            (of(CertificateError::BadEncoding), "its certificate is damaged"),
            (of(CertificateError::ApplicationVerificationFailure), "its certificate cannot be accepted ("),
            (
                rustls::Error::AlertReceived(AlertDescription::UnrecognisedName),
                "it knows no such name (TLS alert ",
            ),
            (
                rustls::Error::AlertReceived(AlertDescription::InternalError),
                "it ended the handshake (TLS alert ",
            ),
            (rustls::Error::NoCertificatesPresented, "it showed no certificate"),
        ] {
            let said = told(&error);
            assert!(said.starts_with(plain), "{said}");
        }
    }
}
