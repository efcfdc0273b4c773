//! The way to a CA: what stands in it is said in words that help.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;

use crate::support::edge::Setup;
use crate::support::until;

const NAME: &str = "a.acme.example";

/// A server that shows a certificate of this kind which nobody else has signed, and its port.
async fn showing(is_ca: IsCa) -> (Certificate, u16) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = is_ca;
    let shown = params.self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![shown.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _refused = acceptor.accept(stream).await;
        }
    });
    (shown, port)
}

#[tokio::test]
async fn a_ca_whose_own_https_cannot_be_trusted_is_told_plainly() {
    // As `openssl req -x509` makes it: a certificate of a CA.
    let (as_ca, ca_port) = showing(IsCa::Ca(BasicConstraints::Unconstrained)).await;
    let (_, strange_port) = showing(IsCa::NoCa).await;
    for (port, told, remedy) in [
        (
            ca_port,
            "it shows the certificate of a CA as its own (CaUsedAsEndEntity)",
            "`basicConstraints` CA:FALSE",
        ),
        (
            strange_port,
            "its certificate is not signed by the CA that it names (BadSignature)",
            "`acme.ca_root` names the file with the root of the CA's own https",
        ),
    ] {
        let setup = Setup::new();
        let file = setup.dir().join("root.pem");
        fs::write(&file, as_ca.pem()).unwrap();
        let top = format!(
            "acme:\n  ca: https://localhost:{port}/directory\n  ca_root: {}\n  self_check: false",
            file.display()
        );
        let app = format!("domains: [{NAME}]\ntls: auto\nupstream: http://127.0.0.1:1");
        let edge = setup.top(&top).app("a", &app).start().await;
        let error = until(Duration::from_secs(20), "it has failed", async || {
            edge.certificate(NAME).await["last_error"].as_str().map(str::to_owned)
        })
        .await;
        assert!(
            error.contains("cannot be reached: ") && error.contains(told) && error.contains(remedy),
            "{error}"
        );
        assert!(!error.contains("invalid peer certificate"), "{error}");
        edge.stop().await;
    }
}
