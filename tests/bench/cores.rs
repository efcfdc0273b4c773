//! What data-plane threads share, measured and thought through to more cores than there are: `cargo bench --bench cores`.
//!
//! The real pool, slots, counts of clients and deadlines, without sockets and without the 15 to 20 µs that a request costs its own
//! thread besides: threads meet here some thirty times as often as they do in service. What one transfer of a cache line costs is
//! measured, and put into a model of the machine there is not: 32 threads that serve 50,000 requests a second each.

#![allow(clippy::expect_used, reason = "a tool that cannot run says why and ends")]
#![allow(
    clippy::disallowed_methods,
    reason = "the rules are for the program; here tasks end with the process"
)]

use std::future::Future;
use std::hint::{black_box, spin_loop};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use edge::config::model::{Address, Protocol, Queue};
use edge::deadline::{Deadlines, TICK};
use edge::name::{AppName, WorkerId};
use edge::proxy::clients::Clients;
use edge::proxy::route::Routing;
use edge::telemetry::line::Shape;
use edge::telemetry::sink::Sink;
use edge::telemetry::tally::Tally;
use edge::upstream::affinity::Home;
use edge::upstream::lease::Lease;
use edge::upstream::pool::{Pool, Wish};
use edge::worker::slot::{Roster, Slot};
use nix::sys::resource::{UsageWho, getrusage};

/// Each measurement.
const LENGTH: Duration = Duration::from_millis(500);
/// Requests of one client that may be in flight: more than there ever are.
const MOST: u32 = 1_000_000;

fn main() {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads: Vec<usize> =
        std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|n| *n <= 2 * cores).collect();
    println!("{cores} cores\n");
    let alone = requests(&threads);
    let transfer = transfer();
    println!("\na cache line from one core to another: {transfer:.0} ns\n");
    line(&threads);
    connections(&threads);
    deadlines();
    log();
    println!();
    for transfer in [transfer, 100.0, 250.0] {
        model(transfer, alone);
    }
}

// ── what every request shares ──

/// What the threads of one run have in common.
struct Shared {
    pools: Vec<Arc<Pool>>,
    clients: Arc<Clients>,
    routing: ArcSwap<Routing>,
    tally: Tally,
    one_client: bool,
}

/// Everything on a request's way that another thread can see, and nothing else. Returns what a request takes one thread alone, in ns.
fn requests(threads: &[usize]) -> f64 {
    println!("what a request shares, nanoseconds of CPU time for each, by threads at once");
    heading(threads);
    let mut alone = 0.0;
    for (what, slots, own, one_client) in [
        ("nothing: each thread with workers of its own", 32, true, false),
        ("32 workers", 32, false, false),
        ("8 workers", 8, false, false),
        ("4 workers", 4, false, false),
        ("4 workers, and all requests from one client", 4, false, true),
    ] {
        let took: Vec<f64> = threads
            .iter()
            .map(|&count| {
                let shared = Shared {
                    pools: (0..if own { count } else { 1 }).map(|_| pool(slots, None)).collect(),
                    clients: Arc::default(),
                    routing: ArcSwap::default(),
                    tally: Tally::new(count),
                    one_client,
                };
                at_once(count, |thread, over| forward(&shared, thread, over))
            })
            .collect();
        if own {
            alone = took[0];
        }
        row(what, &took);
    }
    alone
}

fn forward(shared: &Shared, thread: usize, over: &AtomicBool) -> u64 {
    let pool = &shared.pools[thread % shared.pools.len()];
    let presence =
        shared.clients.connect(client(if shared.one_client { 0 } else { thread as u32 }), 0).expect("room");
    let wish = |now| Wish { tried: &[], home: Home::Anywhere, lasting: false, queue: QUEUE, now };
    let mut count = 0;
    while !over.load(Ordering::Relaxed) {
        let began = Instant::now();
        black_box(shared.routing.load());
        let in_flight = presence.try_enter(MOST).expect("room");
        let mut lease = at_once_ready(pool.acquire(&wish(began))).expect("a worker");
        pool.note_answer(lease.slot(), Some(Duration::from_micros(500)), began);
        lease.answered();
        drop(lease);
        drop(in_flight);
        shared.tally.count(thread, Some(200), Some(Duration::from_micros(500)));
        count += 1;
    }
    count
}

// ── where threads wait for each other ──

/// The line of requests for workers that are all taken: behind a lock, twice for each.
fn line(threads: &[usize]) {
    println!(
        "a request that waits in line, 64 of them for each thread and four workers that take one each: likewise"
    );
    heading(threads);
    let took: Vec<f64> = threads
        .iter()
        .map(|&count| {
            let pool = pool(4, NonZeroU32::new(1));
            at_once(count, |_, _| wait_in_line(&pool))
        })
        .collect();
    row("", &took);
}

fn wait_in_line(pool: &Arc<Pool>) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let count = Rc::new(std::cell::Cell::new(0));
    let tasks = tokio::task::LocalSet::new();
    for _ in 0..64 {
        let (pool, count) = (Arc::clone(pool), Rc::clone(&count));
        tasks.spawn_local(async move {
            loop {
                let wish = Wish {
                    tried: &[],
                    home: Home::Anywhere,
                    lasting: false,
                    queue: QUEUE,
                    now: Instant::now(),
                };
                let lease: Lease = pool.acquire(&wish).await.expect("a worker");
                tokio::task::yield_now().await;
                drop(lease);
                count.set(count.get() + 1);
            }
        });
    }
    tasks.block_on(&runtime, async { tokio::time::sleep(LENGTH).await });
    count.get()
}

/// Connections that come and go: each is looked up behind one of 64 locks.
fn connections(threads: &[usize]) {
    println!("\na connection's client looked up, with 100,000 connections there: likewise");
    heading(threads);
    let took: Vec<f64> = threads
        .iter()
        .map(|&count| {
            let clients = Arc::<Clients>::default();
            at_once(count, |thread, over| {
                let of = |number: u32| {
                    clients.connect(client(number * count as u32 + thread as u32), 0).expect("room")
                };
                let held: Vec<_> = (0..100_000 / count as u32).map(of).collect();
                let mut number = 0;
                while !over.load(Ordering::Relaxed) {
                    black_box(of(1_000_000 + number % 1_000_000));
                    number += 1;
                }
                drop(held);
                number.into()
            })
        })
        .collect();
    row("", &took);
}

/// 100,000 connections are as many deadlines, which are looked through.
fn deadlines() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let spent = |count: usize| {
        let table = Deadlines::new();
        let held: Vec<_> = (0..count).map(|_| table.deadline()).collect();
        held.iter().for_each(|deadline| deadline.set(Duration::from_secs(3600)));
        let before = of_this_thread();
        let span = TICK * 20;
        runtime
            .block_on(async { tokio::time::timeout(span, table.run()).await.expect_err("it never returns") });
        100.0 * (of_this_thread() - before) / span.as_secs_f64()
    };
    println!(
        "\nthe table of deadlines of one thread: {:.2} % of a core with 100,000 in it, {:.2} % with 3,125",
        spent(100_000),
        spent(3_125)
    );
}

/// The one thread that writes a destination of the access log.
fn log() {
    const BATCH: usize = 64 << 10;
    const BATCHES: usize = (1 << 29) / BATCH;
    let dir = tempfile::tempdir().expect("a directory");
    let sink = Sink::file(Shape::Json, &dir.path().join("access.log")).expect("a file");
    let text = vec![b'x'; BATCH];
    let began = Instant::now();
    for _ in 0..BATCHES {
        let mut dropped = sink.dropped();
        sink.send(text.clone(), 1);
        while sink.dropped() > dropped {
            dropped = sink.dropped();
            thread::yield_now();
            sink.send(text.clone(), 1);
        }
    }
    assert!(sink.close(Duration::from_secs(60)), "the log is written");
    let speed = (BATCHES * BATCH) as f64 / began.elapsed().as_secs_f64() / 1e9;
    println!("the writer of an access log: {speed:.1} GB a second into a file");
}

// ── the machine there is not ──

/// Two threads that hand one word to and fro: half a round is one transfer. The least of many, as both must run at once.
fn transfer() -> f64 {
    const ROUNDS: u64 = 2_000;
    let word = AtomicU64::new(0);
    let mut least = f64::INFINITY;
    thread::scope(|scope| {
        scope.spawn(|| {
            for turn in 0..ROUNDS * 50 {
                while word.load(Ordering::Acquire) != 2 * turn + 1 {
                    spin_loop();
                }
                word.store(2 * turn + 2, Ordering::Release);
            }
        });
        for sample in 0..50 {
            let began = Instant::now();
            for turn in sample * ROUNDS..(sample + 1) * ROUNDS {
                word.store(2 * turn + 1, Ordering::Release);
                while word.load(Ordering::Acquire) != 2 * turn + 2 {
                    spin_loop();
                }
            }
            least = least.min(began.elapsed().as_nanos() as f64 / (2 * ROUNDS) as f64);
        }
    });
    least
}

/// Every slot's line is a queue of one server, in which a request that changes or reads it is served for one transfer; the rest of
/// a request, 20 µs, is its thread's own. Exact mean values of the closed network (Reiser and Lavenberg), for equal slots.
fn model(transfer: f64, alone: f64) {
    const OWN: f64 = 20_000.0;
    println!(
        "32 threads at most 50,000 requests a second each, a transfer of {transfer:.0} ns (a request's shared steps alone: {alone:.0} ns)"
    );
    for slots in [1u32, 4, 8, 32, 128] {
        // Taken, answered, given back; and the look at all slots where they are few, at two where they are many.
        let visits = 3.0 + f64::from(if slots <= 8 { slots } else { 2 });
        let each = visits / f64::from(slots);
        let (mut queue, mut rate) = (0.0, 0.0);
        for threads in 1..=32u32 {
            let stay = transfer * (1.0 + queue);
            rate = f64::from(threads) / (OWN + visits * stay);
            queue = rate * each * stay;
        }
        let most = 32.0 / OWN;
        println!(
            "  {slots:>3} workers: {:>5.2} million requests a second, {:>4.1} % fewer than without sharing; a line is busy {:>4.1} % of the time",
            rate * 1e3,
            100.0 * (1.0 - rate / most),
            100.0 * rate * each * transfer
        );
    }
}

// ── threads ──

/// Runs `work` on so many threads for a while. It counts what it does; what one of them took, in nanoseconds of CPU time: a thread
/// that does not run, because there are more of them than cores or others on the machine, adds nothing.
fn at_once(threads: usize, work: impl Fn(usize, &AtomicBool) -> u64 + Sync) -> f64 {
    let (over, ready) = (AtomicBool::new(false), Barrier::new(threads + 1));
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let (work, over, ready) = (&work, &over, &ready);
                scope.spawn(move || {
                    ready.wait();
                    let before = of_this_thread();
                    let count = work(thread, over);
                    (of_this_thread() - before, count)
                })
            })
            .collect();
        ready.wait();
        thread::sleep(LENGTH);
        over.store(true, Ordering::Relaxed);
        let ended = workers.into_iter().map(|worker| worker.join().expect("it ends"));
        let (spent, count) = ended.fold((0.0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        spent * 1e9 / count as f64
    })
}

/// CPU time of this thread in seconds.
fn of_this_thread() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("this thread's");
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

fn heading(threads: &[usize]) {
    println!("{}", threads.iter().map(|count| format!("{count:>8}")).collect::<String>());
}

fn row(what: &str, took: &[f64]) {
    println!("{}  {what}", took.iter().map(|took| format!("{took:>8.0}")).collect::<String>());
}

const QUEUE: Queue = Queue { size: 100_000, timeout: Duration::from_secs(60) };

fn pool(slots: u32, limit: Option<NonZeroU32>) -> Arc<Pool> {
    let app: AppName = "app".parse().expect("a name");
    let roster = Roster::new();
    let slot = |slot| {
        let id = WorkerId { app: app.clone(), slot, incarnation: 1 };
        Slot::new(id, 1, Address::Unix("/nowhere".into()), Protocol::Http1, Duration::from_secs(60), limit)
    };
    roster.publish((0..slots).map(slot).collect());
    Pool::new(app, roster)
}

fn client(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 + number).into()
}

/// What a future gives that waits for nothing.
fn at_once_ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("a worker has room"),
    }
}
