//! Hundreds of certificates at once.

use std::time::Duration;

use super::fakes::rig;
use super::lab::{DAY, HOUR, MINUTE, local, valid};

#[tokio::test(start_paused = true)]
async fn five_hundred_names_due_at_once_are_renewed_the_oldest_first_and_within_limits() {
    const MANY: usize = 500;
    local(async {
        let rig = rig();
        // An order is about eight calls, of a second each.
        rig.ca.takes.set(Duration::from_secs(8));
        let names: Vec<String> = (0..MANY).map(|one| format!("n{one:03}.example.com")).collect();
        // All due; in an order that is not that of the configuration.
        let rank = |index: usize| (index * 7) % MANY;
        rig.store(names.iter().map(String::as_str), |index| 70 * DAY + MINUTE * rank(index) as u32);
        let domains: Vec<&str> = names.iter().map(String::as_str).collect();
        let running = rig.run(&domains);
        let begun = tokio::time::Instant::now();
        while rig.ca.orders.get() < MANY as u32 || !valid(&running.manager.status()) {
            tokio::time::sleep(MINUTE).await;
            assert!(begun.elapsed() < 12 * HOUR, "{} orders", rig.ca.orders.get());
        }
        let started = rig.ca.started.borrow().clone();
        assert_eq!(started.len(), MANY, "one order each");
        assert!(rig.ca.most_at_once.get() <= 4, "{} at once", rig.ca.most_at_once.get());
        let most = started
            .iter()
            .map(|(from, _)| started.iter().filter(|(at, _)| at >= from && *at < *from + 3 * HOUR).count())
            .max();
        println!(
            "figure: 500 names due at once: {:?} at most in three hours, done after {:?}",
            most,
            begun.elapsed()
        );
        assert!(most <= Some(300), "{most:?} orders in three hours");
        let order: Vec<_> = started
            .iter()
            .map(|(_, name)| rank(names.iter().position(|one| *one == name.to_string()).expect("known")))
            .collect();
        assert!(order.windows(2).all(|pair| pair[0] > pair[1]), "not the oldest first: {order:?}");
        running.stop().await;
    })
    .await;
}
