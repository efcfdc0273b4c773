use super::*;
use crate::listen::http1::tests::world;

async fn door(held: bool, threads: u32) -> Door {
    Door {
        kind: Kind::Http,
        held,
        share: Share::new(threads),
        plane: CurrentPlane::new(Plane::clone(&world(0).await.plane)),
        handshakes: Handshakes::new(threads),
        stage: Stage::default(),
        complaints: Rc::default(),
        scope: Scope::new(),
        standby: Standby::default(),
    }
}

#[tokio::test]
async fn of_threads_that_wait_at_one_socket_none_has_much_more_than_its_share() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    socket.set_nonblocking(true).expect("set");
    let address = socket.local_addr().expect("bound");
    let one = door(true, 2).await;
    let other = Door { share: Share::new(2), scope: Scope::new(), ..one.clone() };
    let accepting = Scope::new();
    let opened = async {
        for door in [&one, &other] {
            let arrivals = Arrivals::new(socket.try_clone().expect("a descriptor")).expect("watched");
            drop(accepting.spawn(run(arrivals, door.clone(), door.scope.clone())));
        }
        let mut clients = Vec::new();
        while clients.len() < 64 {
            clients.push(std::net::TcpStream::connect(address).expect("it listens"));
            let taken = async {
                while one.scope.len() + other.scope.len() < clients.len() {
                    tokio::time::sleep(Duration::from_micros(100)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), taken).await.expect("one of them takes it");
        }
        let most = one.scope.len().max(other.scope.len());
        assert!(most <= 32 + 4 + 4, "{most} of 64");
    };
    tokio::task::LocalSet::new().run_until(opened).await;
}

#[tokio::test]
async fn who_waits_at_a_stop_is_served_by_this_edge_or_left_to_the_next_one() {
    for (held, stops, left) in [(true, true, 1), (true, false, 0), (false, true, 0)] {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        socket.set_nonblocking(true).expect("set");
        let other = socket.try_clone().expect("a descriptor");
        let _client = std::net::TcpStream::connect(socket.local_addr().expect("bound")).expect("queued");
        let scope = Scope::new();
        let open = scope.child();
        let door = Door { scope: scope.clone(), ..door(held, 1).await };
        if stops {
            scope.drain()
        } else {
            open.drain()
        }
        let serving = async {
            run(Arrivals::new(socket).expect("watched"), door, open).await;
        };
        let local = tokio::task::LocalSet::new();
        local.run_until(serving).await;
        let waiting = std::iter::from_fn(|| other.accept().ok()).count();
        assert_eq!((waiting, scope.len()), (left, 1 - left), "held: {held}, edge stops: {stops}");
    }
}
