use tokio::io::{AsyncReadExt, DuplexStream, duplex};

use super::*;
use crate::deadline::Deadlines;

const PATIENCE: Patience =
    Patience { idle: Duration::from_secs(600), half_closed: Duration::from_secs(30), parting: None };

/// Relays between the far ends of two pipes while `sides` plays client and worker at the near ends.
async fn between<T>(
    scope: &Scope,
    size: usize,
    sides: impl AsyncFnOnce(DuplexStream, DuplexStream) -> T,
) -> (T, Relayed) {
    between_until(PATIENCE, std::future::pending(), scope, size, sides).await
}

/// As [`between`], with a worker that is replaced when `replaced` completes.
async fn between_until<T>(
    patience: Patience,
    replaced: impl Future<Output = ()>,
    scope: &Scope,
    size: usize,
    sides: impl AsyncFnOnce(DuplexStream, DuplexStream) -> T,
) -> (T, Relayed) {
    let (client, mut client_end) = duplex(size);
    let (worker, mut worker_end) = duplex(size);
    let deadlines = Deadlines::new();
    let deadline = deadlines.deadline();
    let relayed = async {
        let relayed = relay(&mut client_end, &mut worker_end, &deadline, patience, scope, replaced).await;
        drop((client_end, worker_end));
        relayed
    };
    tokio::select! {
        both = async { tokio::join!(sides(client, worker), relayed) } => both,
        () = deadlines.run() => unreachable!("run never returns"),
    }
}

#[tokio::test(start_paused = true)]
async fn carries_both_directions_to_their_ends_through_narrow_pipes() {
    let up: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    let mut down = vec![0x82, 127];
    down.extend(200_000u64.to_be_bytes());
    down.extend((0..200_000u32).map(|n| n as u8));
    down.extend(frames::close(1000));
    let ((), relayed) = between(&Scope::new(), 1000, async |client, worker| {
        let (mut client_in, mut client_out) = tokio::io::split(client);
        let (mut worker_in, mut worker_out) = tokio::io::split(worker);
        let sent = async {
            client_out.write_all(&up).await.expect("open");
            client_out.shutdown().await.expect("open");
        };
        let answered = async {
            worker_out.write_all(&down).await.expect("open");
            worker_out.shutdown().await.expect("open");
        };
        let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
        let (.., a, b) = tokio::join!(
            sent,
            answered,
            worker_in.read_to_end(&mut got_up),
            client_in.read_to_end(&mut got_down)
        );
        assert!(a.is_ok() && b.is_ok());
        assert!(got_up == up && got_down == down);
    })
    .await;
    assert!(matches!(relayed.end, End::Closed), "{relayed:?}");
    assert_eq!((relayed.to_worker, relayed.to_client), (100_000, down.len() as u64));
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_worker_ends_without_a_word_is_told_to_come_back() {
    let ((), relayed) = between(&Scope::new(), 1000, async |mut client, worker| {
        drop(worker);
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.expect("open");
        assert_eq!(got, frames::close(frames::RESTART));
    })
    .await;
    assert!(matches!(relayed.end, End::Closed | End::ClientGone(_) | End::WorkerGone(_)), "{relayed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_worker_is_replaced_is_told_to_come_back() {
    let token = tokio_util::sync::CancellationToken::new();
    let replaced = token.clone().cancelled_owned();
    let ((), relayed) =
        between_until(PATIENCE, replaced, &Scope::new(), 1000, async |mut client, mut worker| {
            worker.write_all(&[0x81, 1, b'a']).await.expect("open");
            let mut got = vec![0; 3];
            client.read_exact(&mut got).await.expect("open");
            token.cancel();
            client.read_to_end(&mut got).await.expect("open");
            assert_eq!(got[3..], frames::close(frames::RESTART));
        })
        .await;
    assert!(matches!(relayed.end, End::Replaced), "{relayed:?}");
}

#[tokio::test(start_paused = true)]
async fn g4u_at_abort_a_client_between_two_frames_is_told_and_one_inside_a_frame_is_cut() {
    for (sent, heard) in
        [(&[0x81, 1, b'a'][..], &[0x81, 1, b'a', 0x88, 2, 3, 0xe9][..]), (&[0x81, 2, b'a'], &[0x81, 2, b'a'])]
    {
        let scope = Scope::new();
        let ((), relayed) = between(&scope, 1000, async |mut client, mut worker| {
            worker.write_all(sent).await.expect("open");
            let mut first = vec![0; sent.len()];
            client.read_exact(&mut first).await.expect("open");
            scope.abort();
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).await.expect("open");
            assert_eq!([first, rest].concat(), heard);
        })
        .await;
        assert!(matches!(relayed.end, End::Aborted), "{relayed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn at_drain_a_client_is_told_at_once_and_its_answer_reaches_the_worker() {
    let scope = Scope::new();
    let started = tokio::time::Instant::now();
    let ((), relayed) = between(&scope, 1000, async |mut client, mut worker| {
        // Inside of a frame, which is finished first.
        worker.write_all(&[0x82, 3, 1]).await.expect("open");
        let mut heard = vec![0; 3];
        client.read_exact(&mut heard).await.expect("open");
        scope.drain();
        // A frame after it comes too late.
        worker.write_all(&[2, 3, 0x81, 1, b'x']).await.expect("open");
        heard.resize(9, 0);
        client.read_exact(&mut heard[3..]).await.expect("open");
        assert_eq!(heard, [0x82, 3, 1, 2, 3, 0x88, 2, 3, 0xe9]);
        let masked = [0x88, 0x82, 0, 0, 0, 0, 3, 0xe9];
        client.write_all(&masked).await.expect("open");
        let mut said = vec![0; masked.len()];
        worker.read_exact(&mut said).await.expect("open");
        assert_eq!(said, masked);
        worker.write_all(&frames::close(frames::GOING_AWAY)).await.expect("open");
        drop(worker);
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.expect("open");
        assert!(rest.is_empty(), "{rest:?} follows a Close frame");
    })
    .await;
    assert!(matches!(relayed.end, End::Told), "{relayed:?}");
    assert!(started.elapsed() < Duration::from_millis(100), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn at_drain_nobody_is_waited_for_who_does_not_answer_or_does_not_read() {
    let told = [0x81, 1, b'a'];
    let stuck = [&[0x82, 126, 1, 0][..], &[0; 40]].concat();
    for (size, sent, lasts, is_told) in
        [(1000, &told[..], CLOSING, true), (16, &stuck[..], PATIENCE.half_closed, false)]
    {
        let scope = Scope::new();
        let started = tokio::time::Instant::now();
        let (_sides, relayed) = between(&scope, size, async |mut client, mut worker| {
            worker.write_all(sent).await.expect("open");
            scope.drain();
            // It talks on and hears nothing.
            for _ in 0..5 {
                client.write_all(&[0x81, 0x80, 0, 0, 0, 0]).await.expect("open");
                worker.read_exact(&mut [0; 6]).await.expect("open");
                tokio::time::sleep(CLOSING / 10).await;
            }
            (client, worker)
        })
        .await;
        assert_eq!(matches!(relayed.end, End::Told), is_told, "{relayed:?}");
        assert_eq!(matches!(relayed.end, End::Aborted), !is_told, "{relayed:?}");
        let took = started.elapsed();
        assert!(took >= lasts && took <= lasts + Duration::from_secs(2), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn d10_silence_ends_a_tunnel_and_traffic_keeps_it() {
    let started = tokio::time::Instant::now();
    let ((), relayed) = between(&Scope::new(), 1000, async |mut client, _worker| {
        tokio::time::sleep(Duration::from_secs(500)).await;
        client.write_all(b"x").await.expect("open");
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.expect("open");
    })
    .await;
    assert!(matches!(relayed.end, End::Idle), "{relayed:?}");
    assert!(started.elapsed() >= Duration::from_secs(1100), "{:?}", started.elapsed());
    assert!(started.elapsed() <= Duration::from_secs(1102), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_ignores_the_end_of_its_worker_is_not_waited_for() {
    let started = tokio::time::Instant::now();
    let (_sides, relayed) = between(&Scope::new(), 1000, async |client, mut worker| {
        worker.shutdown().await.expect("open");
        (client, worker)
    })
    .await;
    assert!(matches!(relayed.end, End::Idle), "{relayed:?}");
    assert!(started.elapsed() <= Duration::from_secs(32), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_client_was_gone_is_waited_for_where_only_a_stream_ends_and_until_it_is_replaced() {
    let second = Duration::from_secs(1);
    for (parting, replaced, lasts) in [
        (None, None, Duration::ZERO),
        (Some(30 * second), None, 30 * second),
        (Some(30 * second), Some(2 * second), 2 * second),
    ] {
        let started = tokio::time::Instant::now();
        let replacing = async {
            match replaced {
                Some(after) => tokio::time::sleep(after).await,
                None => std::future::pending().await,
            }
        };
        let patience = Patience { parting, ..PATIENCE };
        let (_worker, relayed) =
            between_until(patience, replacing, &Scope::new(), 1000, async |client, mut worker| {
                drop(client);
                worker.write_all(&[0x81, 1, b'a']).await.expect("open");
                // It says nothing, and does not end.
                worker
            })
            .await;
        assert!(matches!(relayed.end, End::ClientGone(_)), "{relayed:?}");
        let took = started.elapsed();
        assert!(took >= lasts && took <= lasts + 2 * second, "{parting:?} {replaced:?}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_with_the_workers_close_frame_in_hand_has_closed() {
    for (said, closed) in [(&[0x88, 2, 3, 0xe8][..], true), (&[0x81, 1, b'a'][..], false)] {
        let (_worker, relayed) = between(&Scope::new(), 1000, async |mut client, mut worker| {
            worker.write_all(said).await.expect("open");
            client.read_exact(&mut vec![0; said.len()]).await.expect("what the worker said");
            drop(client);
            // Only a write finds that out.
            worker.write_all(b"x").await.expect("open");
            worker
        })
        .await;
        assert_eq!(matches!(relayed.end, End::Closed), closed, "{relayed:?}");
        assert_eq!(matches!(relayed.end, End::ClientGone(_)), !closed, "{relayed:?}");
    }
}
