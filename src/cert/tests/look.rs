//! What `edge check --dns` finds out about port 443.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::lab::{Lab, local};
use super::setup::{LOCAL, host, now, provider};
use crate::cert::look_tls;
use crate::cert::self_check::{Mark, Seen, SelfCheck, Verdict};
use crate::cert::tls_alpn;

#[tokio::test]
async fn a_handshake_tells_edge_from_others_and_a_look_gives_way_to_a_ca() {
    local(async {
        let lab = Lab::open().await;
        let here = |_| -> crate::cert::self_check::Addresses {
            Box::pin(async { Ok(vec![Ipv4Addr::LOCALHOST.into()]) })
        };
        let self_check = SelfCheck::with(Arc::clone(&lab.challenges), here, lab.http).with_tls_at(lab.tls);
        let (name, mark) = (host("a.example.com"), Mark::new());
        let _http = lab.challenges.publish_http01(None, &mark.token, &mark.answer).expect("a token");
        let over_http = self_check.look(&name, Some(&mark)).await;
        assert_eq!(over_http.verdict, Verdict::Ready);
        let look = async |needed| {
            let found = look_tls::look(&self_check, &name, &mark, needed, over_http.clone()).await;
            assert_eq!(found.handshakes.len(), 1);
            (found.verdict, found.handshakes[0].clone())
        };

        // Somebody is there who knows nothing of the mark.
        let (verdict, (at, seen)) = look(true).await;
        assert!(matches!(&verdict, Verdict::Unready(message) if message.contains("port 443")), "{verdict:?}");
        assert!(at == LOCAL && matches!(seen, Seen::Elsewhere(_)), "{seen:?}");
        assert!(matches!(look(false).await.0, Verdict::Unsure(_)), "the name can still be proven over HTTP");

        let lent = look_tls::lend(&lab.challenges, &mark, std::slice::from_ref(&name), now()).expect("made");
        assert_eq!(look(true).await, (Verdict::Ready, (LOCAL, Seen::Ours)));

        // A CA is about to look.
        let answer = tls_alpn::answer(&provider(), &name, &[7; 32], now()).expect("made");
        let published = lab.challenges.publish_tls_alpn01("a.example.com", Arc::clone(&answer));
        assert!(matches!(look(false).await.1.1, Seen::Elsewhere(_)));
        let again = look_tls::lend(&lab.challenges, &mark, std::slice::from_ref(&name), now()).expect("made");
        drop((lent, again));
        let pending = lab.challenges.tls_alpn01("a.example.com").expect("still there");
        assert!(Arc::ptr_eq(&pending, &answer));
        drop(published);
        assert!(lab.challenges.tls_alpn01("a.example.com").is_none());
        lab.close().await;
    })
    .await;
}
