//! Clients show certificates: who must, who may, who is refused how, and that no request gets past that by another connection's
//! policy.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::client::{Connection, PATIENCE, Wire, empty, tls};
use crate::support::edge::{Edge, Setup};
use crate::support::origin::Origin;
use crate::support::within;

/// Makes certificates for clients.
struct Ca(Issuer<'static, KeyPair>, String);

impl Ca {
    fn new() -> Self {
        Self::called("test clients")
    }

    fn called(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap();
        let pem = root.pem();
        Self(Issuer::new(params, key), pem)
    }

    /// A certificate for `name`, as PEM, with its key.
    fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = named(name);
        change(&mut params);
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    fn good(&self, name: &str) -> Option<(String, String)> {
        Some(self.issue(name, |_| ()))
    }
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Example");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// A client that shows `certificate`.
async fn config(
    edge: &Edge,
    versions: &[&'static SupportedProtocolVersion],
    wire: Wire,
    certificate: Option<&(String, String)>,
) -> ClientConfig {
    edge.trust().await;
    let mut roots = RootCertStore::empty();
    let pem = fs::read(edge.dir().join("storage/internal/root.pem")).unwrap();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let builder =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
    let mut config = match certificate {
        Some((chain, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()];
            builder
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
                .unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![wire.alpn().as_bytes().to_vec()];
    config
}

async fn connect(edge: &Edge, host: &str, wire: Wire, certificate: Option<&(String, String)>) -> Connection {
    let config = config(edge, rustls::ALL_VERSIONS, wire, certificate).await;
    let stream = tls(edge.https, host, config).await.unwrap();
    Connection::over(stream, "https", host, wire).await.unwrap()
}

/// Status, and the subject that the worker saw, of a request for `host` with these fields.
async fn asked(connection: &mut Connection, host: &str, fields: &[(&str, &str)]) -> (u16, Option<String>) {
    let request = connection.request_for(host, "GET", "/");
    let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let answer = connection.exchange(request.body(empty()).unwrap()).await.unwrap();
    let text = answer.text().to_lowercase();
    let subjects: Vec<_> = text.lines().filter(|line| line.contains("cert")).map(str::to_owned).collect();
    assert!(subjects.len() <= 1, "{subjects:?}");
    (answer.status.as_u16(), subjects.first().cloned())
}

/// Why a handshake, or the first read after it, fails: in TLS 1.3 a client is done before edge has looked at its certificate.
async fn refusal(address: SocketAddr, config: ClientConfig) -> String {
    let shaken = async {
        let mut stream = tls(address, "require.a.test", config).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: require.a.test\r\n\r\n").await?;
        stream.read_u8().await
    };
    within(PATIENCE, "an end", shaken).await.expect_err("refused").to_string()
}

/// Apps that require, request and ask for nothing, all below one wildcard certificate of the operator's would cover.
async fn edge(origin: &Origin, ca: &Ca) -> (Edge, PathBuf) {
    let setup = Setup::new();
    let file = setup.dir().join("clients.pem");
    fs::write(&file, &ca.1).unwrap();
    let auth = |mode: &str| format!("client_auth: {{ca: {}, mode: {mode}}}", file.display());
    let app = |domains: &str, more: &str| format!("domains: [{domains}]\n{more}\n{}", origin.upstream());
    let edge = setup
        .top("log: {level: debug}")
        .app("require", &app("require.a.test, also.a.test", &auth("require")))
        .app("request", &app("request.a.test", &auth("request")))
        .app("open", &app("\"*.a.test\", 127.0.0.1", "default: true"))
        .start()
        .await;
    (edge, file)
}

#[tokio::test]
async fn the_verified_subject_reaches_the_worker_and_clients_cannot_write_it() {
    let (origin, ca) = (Origin::mirror().await, Ca::new());
    let (edge, _) = edge(&origin, &ca).await;
    let ada = ca.good("ada, \"admin\"");
    let forged = [
        ("x-client-cert-subject", "CN=root"),
        ("x_client_cert_subject", "CN=root"),
        ("x-client-cert_subject", "CN=root"),
        ("x-client-cert-verified", "yes"),
        ("connection", "x-client-cert-subject"),
    ];
    for wire in Wire::BOTH {
        // HTTP/2 has no `Connection`.
        let forged = if wire == Wire::H2 { &forged[..4] } else { &forged[..] };
        let line = "x-client-cert-subject: cn=ada\\, \\\"admin\\\",o=example".to_owned();
        let mut require = connect(&edge, "require.a.test", wire, ada.as_ref()).await;
        assert_eq!(asked(&mut require, "require.a.test", forged).await, (200, Some(line.clone())));
        let mut request = connect(&edge, "request.a.test", wire, ada.as_ref()).await;
        assert_eq!(asked(&mut request, "request.a.test", forged).await, (200, Some(line)));
        let mut without = connect(&edge, "request.a.test", wire, None).await;
        assert_eq!(asked(&mut without, "request.a.test", forged).await, (200, None));
        let mut open = connect(&edge, "open.a.test", wire, ada.as_ref()).await;
        assert_eq!(asked(&mut open, "open.a.test", forged).await, (200, None), "nobody asked for it");
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_certificate_that_is_missing_expired_or_a_strangers_gets_the_alert_that_says_so() {
    let (origin, ca) = (Origin::mirror().await, Ca::new());
    let (edge, _) = edge(&origin, &ca).await;
    let year = |params: &mut CertificateParams, from, to| {
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 1, 1));
    };
    let expired = ca.issue("ada", |params| year(params, 2000, 2001));
    let early = ca.issue("ada", |params| year(params, 2100, 2101));
    let stranger = Ca::called("others").issue("ada", |_| ());
    // By the name of the right CA, with a key of its own.
    let forged = Ca::new().issue("ada", |_| ());
    for (version, missing) in
        [(&rustls::version::TLS12, "CertificateRequired"), (&rustls::version::TLS13, "CertificateRequired")]
    {
        for (certificate, alert) in [
            (None, missing),
            (Some(&expired), "CertificateExpired"),
            (Some(&early), "CertificateExpired"),
            (Some(&stranger), "UnknownCA"),
            (Some(&forged), "DecryptError"),
        ] {
            let config = config(&edge, &[version], Wire::H1, certificate).await;
            let said = refusal(edge.https, config).await;
            assert!(said.contains(alert), "{version:?} {alert}: {said}");
        }
    }
    let mut after = connect(&edge, "require.a.test", Wire::H2, ca.good("ada").as_ref()).await;
    assert_eq!(asked(&mut after, "require.a.test", &[]).await.0, 200);
    let log = edge.log();
    for why in [
        "it showed no certificate",
        "its certificate is expired",
        "its certificate is not valid yet",
        "(UnknownIssuer)",
    ] {
        assert!(log.contains(why), "{why}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn b05_a_host_with_another_policy_than_its_connection_is_answered_421() {
    let (origin, ca) = (Origin::mirror().await, Ca::new());
    let setup = Setup::new();
    // One certificate that covers them all, so that nothing but the policy stands between.
    let key = KeyPair::generate().unwrap();
    let names = ["*.a.test", "127.0.0.1"].map(str::to_owned).to_vec();
    let shared = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    let [chain, secret, clients] = ["chain.pem", "key.pem", "clients.pem"].map(|name| setup.dir().join(name));
    fs::write(&chain, shared.pem()).unwrap();
    fs::write(&secret, key.serialize_pem()).unwrap();
    fs::write(&clients, &ca.1).unwrap();
    let app = |domains: &str, more: &str| {
        let (cert, key) = (chain.display(), secret.display());
        format!("domains: [{domains}]\n{more}\ntls: {{cert: {cert}, key: {key}}}\n{}", origin.upstream())
    };
    let auth = |mode: &str| format!("client_auth: {{ca: {}, mode: {mode}}}", clients.display());
    let edge = setup
        .top("trusted_proxies: [127.0.0.1]")
        .app("require", &app("require.a.test, also.a.test", &auth("require")))
        .app("request", &app("request.a.test", &auth("request")))
        .app("open", &app("\"*.a.test\", 127.0.0.1", "default: true"))
        .start()
        .await;
    let mut roots = RootCertStore::empty();
    roots.add(shared.der().clone()).unwrap();
    let ada = ca.good("ada").unwrap();
    for wire in Wire::BOTH {
        for (sni, shows, served, refused) in [
            (
                "require.a.test",
                true,
                &["require.a.test", "also.a.test"][..],
                &["request.a.test", "open.a.test"][..],
            ),
            ("request.a.test", false, &["request.a.test"], &["require.a.test", "also.a.test", "open.a.test"]),
            ("request.a.test", true, &["request.a.test"], &["require.a.test", "open.a.test"]),
            (
                "open.a.test",
                false,
                &["open.a.test", "other.a.test"],
                &["require.a.test", "request.a.test", "also.a.test"],
            ),
            // No name in the hello, or one that nobody has: the app for strangers has a policy, too.
            ("127.0.0.1", false, &["127.0.0.1"], &["require.a.test", "request.a.test"]),
        ] {
            let builder =
                ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                    .with_safe_default_protocol_versions()
                    .unwrap()
                    .with_root_certificates(roots.clone());
            let mut config = if shows {
                let chain = vec![CertificateDer::from_pem_slice(ada.0.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(ada.1.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            } else {
                builder.with_no_client_auth()
            };
            config.alpn_protocols = vec![wire.alpn().as_bytes().to_vec()];
            let stream = tls(edge.https, sni, config).await.unwrap();
            let mut connection = Connection::over(stream, "https", sni, wire).await.unwrap();
            for host in served {
                assert_eq!(asked(&mut connection, host, &[]).await.0, 200, "{wire:?} {sni} {shows} → {host}");
            }
            for host in refused {
                assert_eq!(asked(&mut connection, host, &[]).await.0, 421, "{wire:?} {sni} {shows} → {host}");
            }
            // What was refused has not ended what was not.
            assert_eq!(asked(&mut connection, served[0], &[]).await.0, 200, "{wire:?} {sni}");
        }
    }
    // Nor does the word of a proxy that somebody else has shown a certificate to.
    let mut plain = Connection::plain(&edge, "require.a.test").await;
    assert_eq!(asked(&mut plain, "require.a.test", &[("x-forwarded-proto", "https")]).await.0, 421);
    assert_eq!(asked(&mut plain, "require.a.test", &[]).await.0, 308);
    edge.stop().await;
}

#[tokio::test]
async fn another_ca_file_is_in_force_after_a_reload_and_one_that_cannot_be_used_is_not() {
    let (origin, old, new) = (Origin::mirror().await, Ca::new(), Ca::called("new clients"));
    let (edge, file) = edge(&origin, &old).await;
    let (ada, eve) = (old.good("ada").unwrap(), new.good("eve").unwrap());
    let mut open = connect(&edge, "require.a.test", Wire::H1, Some(&ada)).await;
    assert_eq!(asked(&mut open, "require.a.test", &[]).await.0, 200);

    fs::write(&file, "no certificate").unwrap();
    for _ in 0..2 {
        let (status, said) = edge.refused(&["reload"]).await;
        assert!(status == 78 && said.contains("client_auth.ca: cannot use"), "{said}");
    }
    let mut still = connect(&edge, "require.a.test", Wire::H1, Some(&ada)).await;
    assert_eq!(asked(&mut still, "require.a.test", &[]).await.0, 200, "the one before stays");
    edge.wait_for_log("why", |line| line.to_string().contains("client_auth.ca: cannot use")).await;

    fs::write(&file, &old.1).unwrap();
    assert!(edge.reload().await.contains("nothing has changed"));
    fs::write(&file, &new.1).unwrap();
    assert!(edge.reload().await.contains("the new certificate files are served"));
    let refused = refusal(edge.https, config(&edge, rustls::ALL_VERSIONS, Wire::H1, Some(&ada)).await).await;
    assert!(refused.contains("UnknownCA"), "{refused}");
    let mut after = connect(&edge, "require.a.test", Wire::H1, Some(&eve)).await;
    assert_eq!(asked(&mut after, "require.a.test", &[]).await.0, 200);

    // An app that asks from now on does so also of those who know it from before.
    let known = config(&edge, rustls::ALL_VERSIONS, Wire::H1, None).await;
    let mut before = Connection::over(
        tls(edge.https, "request.a.test", known).await.unwrap(),
        "https",
        "request.a.test",
        Wire::H1,
    )
    .await
    .unwrap();
    assert_eq!(asked(&mut before, "request.a.test", &[]).await.0, 200);
    edge.edit("mode: request", "mode: require");
    edge.reload().await;
    assert_eq!(asked(&mut before, "request.a.test", &[]).await.0, 421);

    // At a start, or in a changed configuration, a file that cannot be used is refused by name.
    fs::write(&file, "no certificate").unwrap();
    edge.edit("domains: [request.a.test]", "domains: [request.a.test, more.a.test]");
    let (status, said) = edge.refused(&["reload"]).await;
    assert!(status == 78 && said.contains("client_auth.ca: cannot use"), "{said}");
    edge.stop().await;
}
