//! `edge status` and `edge certs` tell what is so.

use crate::support::client::{Connection, Wire};
use crate::support::edge::Setup;
use crate::support::origin::Origin;

#[tokio::test]
async fn the_json_status_has_every_field_of_the_contract() {
    let edge = Setup::new().app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 2").start().await;
    edge.wait_until_up("a").await;
    assert_eq!(Connection::open(&edge, "a.test", Wire::H2).await.get("/").await.status, 200);
    let status = edge.status().await;
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["pid"], edge.pid());
    assert!(status["uptime_s"].is_number());
    let listeners = status["listeners"].as_array().unwrap();
    assert_eq!(listeners.len(), 2, "{listeners:?}");
    for (kind, address) in [("http", edge.http), ("https", edge.https)] {
        let listener = listeners.iter().find(|listener| listener["kind"] == kind).expect(kind);
        assert_eq!(listener["address"], address.to_string());
        assert_ne!(address.port(), 0);
    }
    let app = &status["apps"]["a"];
    assert_eq!(app["state"], "up");
    assert_eq!(app["generation"], 1);
    assert_eq!(app["queue"], 0);
    let workers = app["workers"].as_array().unwrap();
    assert_eq!(workers.len(), 2);
    for (slot, worker) in workers.iter().enumerate() {
        assert_eq!(worker["slot"], slot);
        assert!(worker["pid"].as_u64().is_some_and(|pid| pid > 1));
        assert_eq!(worker["state"], "ready");
        assert_eq!(worker["restarts"], 0);
        assert!(worker["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 100_000), "{worker}");
        assert!(worker["age_s"].is_number() && worker["in_flight"].is_number());
        assert!(worker["last_exit"].is_null());
        let address = worker["address"].as_str().unwrap();
        assert!(address.starts_with("unix:") || address.parse::<std::net::SocketAddr>().is_ok(), "{address}");
    }
    let requests: u64 = workers.iter().map(|worker| worker["requests"].as_u64().unwrap()).sum();
    assert_eq!(requests, 1);
    let certificate = &status["certificates"][0];
    assert_eq!(certificate["name"], "a.test");
    assert_eq!(certificate["state"], "valid");
    for field in ["issuer", "not_after"] {
        assert!(certificate[field].as_str().is_some_and(|text| !text.is_empty()), "{certificate}");
    }
    for field in ["renew_at", "last_error", "next_attempt"] {
        assert!(certificate.get(field).is_some(), "{field} missing in {certificate}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn the_status_for_people_names_apps_workers_and_certificates() {
    let edge =
        Setup::new().app("shop", "domains: [shop.test]\ncommand: edge hello\nworkers: 1").start().await;
    edge.wait_until_up("shop").await;
    let worker = edge.workers("shop").await[0];
    let output = edge.command(&["status"]).await;
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for wanted in ["shop", "shop.test", &worker.to_string(), "ready"] {
        assert!(text.contains(wanted), "{wanted} not in:\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "colours although this is no terminal");
    edge.stop().await;
}

#[tokio::test]
async fn certs_lists_the_certificates_of_the_status() {
    let origin = Origin::mirror().await;
    let edge =
        Setup::new().app("a", &format!("domains: [a.test, b.test]\n{}", origin.upstream())).start().await;
    let output = edge.command(&["certs", "--json"]).await;
    assert!(output.status.success());
    let certificates: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(certificates, edge.status().await["certificates"]);
    assert_eq!(certificates.as_array().map(Vec::len), Some(2));
    edge.stop().await;
}

#[tokio::test]
async fn status_of_an_edge_that_does_not_run_fails_and_says_where_it_looked() {
    let mut edge = Setup::new().app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 1").start().await;
    edge.kill().await;
    let output = edge.command(&["status"]).await;
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("admin.sock"), "{text}");
}

#[tokio::test]
async fn an_edge_whose_file_names_another_admin_socket_by_now_is_told_of() {
    let edge = Setup::new().app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 1").start().await;
    edge.wait_until_up("a").await;
    edge.edit("apps:", "admin: other.sock\napps:");
    for call in [&["reload"][..], &["status"], &["certs"]] {
        let (status, errors) = edge.failing(call).await;
        assert_eq!(status, 1);
        let found = format!("(process {})", edge.pid());
        for words in [
            "other.sock",
            "admin.sock",
            &found,
            "`runtime_dir` or `admin` was changed",
            "put the old value back",
        ] {
            assert!(errors.contains(words), "{words} is not in {errors}");
        }
    }
    edge.edit("admin: other.sock\n", "");
    edge.reload().await;
    edge.stop().await;
}

#[tokio::test]
async fn the_admin_socket_is_private() {
    use std::os::unix::fs::PermissionsExt;

    let origin = Origin::mirror().await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    let socket = std::fs::metadata(edge.dir().join("run/admin.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    edge.stop().await;
}

#[tokio::test]
async fn the_service_manager_hears_that_edge_is_ready() {
    let origin = Origin::mirror().await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    assert!(edge.ready_after().is_some(), "no READY=1");
    edge.stop().await;
}
