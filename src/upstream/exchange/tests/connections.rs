//! When connections are made, kept, given up and handed over.

use super::*;

#[tokio::test]
async fn an_idle_connection_closed_meanwhile_is_not_tried() {
    let rig = Rig::new();
    let first = rig.get_answered(OK).await;
    assert_eq!(first.expect("whole").to_bytes(), "ok");
    assert_eq!(rig.reach.idle.len(), 1);
    // The runtime learns of the close before the next request comes.
    tokio::task::yield_now().await;
    assert_eq!(rig.get_answered(OK).await.expect("whole").to_bytes(), "ok");
}

#[tokio::test]
async fn a_worker_that_closes_just_as_the_next_request_comes_is_asked_again_if_that_is_safe() {
    for method in [Method::GET, Method::POST] {
        let rig = Rig::new();
        let worker = async {
            let mut peer = rig.accept().await;
            peer.answer(OK).await;
            peer.read_to("\r\n\r\n").await;
            drop(peer);
            if method == Method::GET {
                rig.accept().await.answer(OK).await;
            }
        };
        let client = async {
            rig.get().await.expect("whole");
            rig.response(method.clone()).await
        };
        let (answer, ()) = rig.run(async { tokio::join!(client, worker) }).await;
        match answer {
            Ok(response) => assert!(method == Method::GET && response.status() == 200),
            Err(SendError::Closed { reused: true, sent: true, .. }) => assert_eq!(method, Method::POST),
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test]
async fn a_worker_that_ends_with_a_request_is_not_one_that_could_not_be_reached() {
    let mut rig = Rig::new();
    let listener =
        std::mem::replace(&mut rig.listener, UnixListener::bind(rig._dir.path().join("o")).expect("bound"));
    let worker = async {
        let mut peer = Peer(listener.accept().await.expect("a connection").0);
        peer.answer(OK).await;
        peer.read_to("\r\n\r\n").await;
        drop((peer, listener));
    };
    let client = async {
        rig.get().await.expect("whole");
        rig.response(Method::GET).await.err()
    };
    let (error, ()) = rig.run(async { tokio::join!(client, worker) }).await;
    assert!(matches!(error, Some(SendError::Closed { sent: true, .. })), "{error:?}");
}

#[tokio::test]
async fn of_a_worker_that_hung_to_its_end_what_it_read_is_told_from_what_it_left() {
    for read in [true, false] {
        let rig = Rig::new();
        rig.slot.suspend();
        // The request was sent before the worker was found to hang.
        rig.slot.resume();
        let worker = async {
            let mut peer = rig.accept().await;
            if read {
                peer.read_to("\r\n\r\n").await;
            } else {
                peer.0.read_u8().await.expect("it came");
            }
            rig.slot.suspend();
        };
        let client = async { rig.response(Method::GET).await.err() };
        let (error, ()) = rig.run(async { tokio::join!(client, worker) }).await;
        match error {
            Some(SendError::Hung) => assert!(read),
            Some(SendError::Closed { sent: true, cause: Some(_), .. }) => assert!(!read),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_worker_that_cannot_be_reached_is_told_at_once() {
    let mut rig = Rig::new();
    rig.listener = UnixListener::bind(rig._dir.path().join("other")).expect("bound");
    let answer = rig.run(rig.response(Method::GET)).await;
    assert!(matches!(answer, Err(SendError::Connect(_))));
    assert_eq!(rig.slot.in_flight(), 0);
}

#[tokio::test]
async fn silence_ends_in_a_timeout() {
    let mut rig = Rig::new();
    rig.reach.timeouts.first_byte = SHORT;
    let worker = async {
        let mut peer = rig.accept().await;
        peer.read_to("\r\n\r\n").await;
        peer.rest().await
    };
    let client = async { rig.response(Method::GET).await.err() };
    let (error, rest) = rig.run(async { tokio::join!(client, worker) }).await;
    assert!(matches!(error, Some(SendError::TimedOut)));
    assert_eq!(rest, "", "the worker sees the end");

    (rig.reach.timeouts.first_byte, rig.reach.timeouts.upstream_idle) = (LONG, SHORT);
    let worker = async {
        let mut peer = rig.accept().await;
        peer.answer("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok").await;
        peer.rest().await
    };
    let (body, _) = rig.run(async { tokio::join!(rig.get(), worker) }).await;
    assert!(matches!(body, Err(ResponseBodyError::Stalled)));
}

#[tokio::test]
async fn whoever_stops_waiting_cancels_the_request() {
    let rig = Rig::new();
    rig.run(async {
        let mut peer = tokio::select! {
            _ = rig.response(Method::GET) => panic!("nobody answered"),
            peer = async { let mut peer = rig.accept().await; peer.read_to("\r\n\r\n").await; peer } => peer,
        };
        assert_eq!(peer.0.read(&mut [0]).await.expect("FIN, not reset"), 0);

        let worker = async {
            let mut peer = rig.accept().await;
            peer.answer("HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\nsome").await;
            peer
        };
        let (response, mut peer) = tokio::join!(rig.response(Method::GET), worker);
        peer.say("more that nobody reads").await;
        tokio::task::yield_now().await;
        drop(response);
        assert_eq!(peer.0.read(&mut [0]).await.expect("FIN, not reset"), 0);
        assert_eq!((rig.reach.idle.len(), rig.slot.in_flight()), (0, 0));
    })
    .await;
}

#[tokio::test]
async fn idle_connections_of_a_closed_slot_are_closed() {
    let rig = Rig::new();
    let worker = async {
        let mut peer = rig.accept().await;
        peer.answer(OK).await;
        peer.rest().await
    };
    let client = async {
        rig.get().await.expect("whole");
        rig.slot.close();
        rig.reach.idle.run().await
    };
    let rest = rig
        .run(async {
            tokio::select! { rest = worker => rest, () = client => unreachable!() }
        })
        .await;
    assert_eq!(rest, "");
    assert!(rig.reach.idle.is_empty());
}

#[tokio::test]
async fn a_websocket_gets_the_connection_and_what_was_said_early() {
    let rig = Rig::new();
    let worker = async {
        let mut peer = rig.accept().await;
        let head = peer.read_to("\r\n\r\n").await;
        assert!(head.contains("connection: Upgrade\r\nupgrade: websocket\r\n"), "{head}");
        peer.say("HTTP/1.1 101 X\r\nupgrade: websocket\r\nsec-websocket-accept: y\r\n\r\nearly").await;
        assert_eq!(peer.read_to("!").await, "ping!");
        peer.say(" pong").await;
    };
    let client = async {
        let Ok(Answer::Upgraded { head, mut tunnel }) = rig.send(Method::GET, true, &mut None).await else {
            panic!("no tunnel")
        };
        assert_eq!(
            (head.status().as_u16(), &head.headers()["sec-websocket-accept"]),
            (101, &HeaderValue::from_static("y"))
        );
        tunnel.stream.write_all(b"ping!").await.expect("written");
        let mut heard = String::new();
        tunnel.stream.read_to_string(&mut heard).await.expect("read");
        assert_eq!(heard, "early pong");
        assert_eq!(rig.slot.in_flight(), 1);
    };
    rig.run(async { tokio::join!(client, worker) }).await;
    assert_eq!(rig.slot.in_flight(), 0);
}

#[tokio::test]
async fn a_worker_may_listen_on_tcp_and_have_a_name() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    for address in [Address::Tcp(address), Address::Name("localhost".into(), address.port())] {
        let rig = Rig::at(address);
        let worker = async {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut head).await.expect("the request goes on");
            }
            stream.write_all(OK.as_bytes()).await.expect("edge listens");
            stream
        };
        let client = async {
            assert_eq!(rig.get().await.expect("whole").to_bytes(), "ok");
        };
        rig.run(async { tokio::join!(client, worker) }).await;
    }
}

#[tokio::test]
async fn a_full_backlog_is_waited_for_as_long_as_connecting_may_take() {
    let mut rig = Rig::new();
    let path = rig._dir.path().join("full");
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&socket2::SockAddr::unix(&path).expect("short")).expect("bound");
    socket.listen(0).expect("listening");
    socket.set_nonblocking(true).expect("set");
    rig.listener = UnixListener::from_std(socket.into()).expect("registered");
    rig.slot = Rig::at(Address::Unix(path.clone())).slot;
    let first = std::os::unix::net::UnixStream::connect(&path).expect("room for one");
    rig.reach.timeouts.connect = SHORT;
    let answer = rig.run(rig.response(Method::GET)).await;
    assert!(matches!(answer, Err(SendError::Connect(error)) if error.kind() == io::ErrorKind::TimedOut));

    rig.reach.timeouts.connect = LONG;
    let worker = async {
        // The exchange has met the full backlog by now.
        tokio::time::sleep(SHORT / 4).await;
        drop(rig.accept().await);
        rig.accept().await.answer(OK).await;
    };
    let (body, ()) = rig.run(async { tokio::join!(rig.get(), worker) }).await;
    assert_eq!(body.expect("whole").to_bytes(), "ok");
    drop(first);
}

#[tokio::test]
async fn what_a_worker_leaves_unread_is_asked_of_another_where_that_helps() {
    let cases = [
        (Method::GET, false, Some(true), true),
        (Method::GET, false, Some(false), false),
        (Method::GET, false, None, false),
        (Method::GET, true, Some(true), false),
        (Method::POST, false, Some(true), false),
        (Method::DELETE, false, Some(true), false),
    ];
    for (method, read, relief, left) in cases {
        let mut rig = Rig::new();
        rig.relief = relief;
        // Where the others are no better off, a worker that reads nothing is as good.
        rig.slot.forsake();
        rig.reach.timeouts.first_byte = FIRST_LOOK * 8;
        let worker = async {
            let mut peer = rig.accept().await;
            if read {
                peer.read_to("\r\n\r\n").await;
            }
            std::future::pending::<()>().await;
        };
        let answer = async {
            tokio::select! {
                answer = rig.response(method.clone()) => answer.err(),
                () = worker => None,
            }
        };
        match rig.run(answer).await {
            Some(SendError::Unread) => assert!(left, "{method} {read} {relief:?}"),
            Some(SendError::TimedOut) => assert!(!left, "{method} {read} {relief:?}"),
            other => panic!("{method} {read} {relief:?}: {other:?}"),
        }
    }
}
