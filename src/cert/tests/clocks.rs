//! Clocks that are wrong, are set, or jump.

use std::time::Duration;

use super::ca::stub::Step;
use super::lab::{DAY, Lab, local, valid};

#[tokio::test]
async fn a_clock_far_from_the_cas_orders_nothing_until_it_is_right() {
    local(async {
        let lab = Lab::open().await;
        lab.stub.pass(40 * DAY);
        let running = lab.run(&["a.example.com"]);
        running.until("seen", |all| all[0].last_error.is_some()).await;
        assert!(
            running.error(0).contains("behind") && running.error(0).contains("NTP"),
            "{}",
            running.error(0)
        );
        assert_eq!(lab.stub.asked(Step::NewOrder), 0);
        lab.clock.forward(40 * DAY);
        lab.pass_until(&running, 7 * Duration::from_secs(1), valid).await;
        running.stop().await;
        lab.close().await;
    })
    .await;
}
