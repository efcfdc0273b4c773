use std::num::NonZeroU32;

use super::*;
use crate::config::model::{Address, Protocol};
use crate::name::WorkerId;

const QUEUE: Queue = Queue { size: 100, timeout: Duration::from_secs(10) };

fn slot(slot: u32, incarnation: u64, limit: u32) -> Arc<Slot> {
    let id = WorkerId { app: "api".parse().expect("valid"), slot, incarnation };
    Slot::new(id, 1, Address::Unix("/x".into()), Protocol::Http1, Duration::ZERO, NonZeroU32::new(limit))
}

fn slots(count: u32, limit: u32) -> Vec<Arc<Slot>> {
    (0..count).map(|at| slot(at, 1, limit)).collect()
}

fn pool(slots: &[Arc<Slot>]) -> (Arc<Pool>, Arc<Roster>) {
    let roster = Roster::new();
    roster.publish(slots.to_vec());
    (Pool::new("api".parse().expect("valid"), Arc::clone(&roster)), roster)
}

fn wish(tried: &[Incarnation]) -> Wish<'_> {
    Wish { tried, home: Home::Anywhere, lasting: false, queue: QUEUE, now: Instant::now() }
}

fn relieves(pool: &Arc<Pool>, slot: &Slot, now: Instant) -> bool {
    pool.relieve(slot, now).is_some()
}

async fn until_waiting(pool: &Pool, count: u64) {
    while pool.waiting() != count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn requests_spread_evenly_and_avoid_who_was_tried() {
    let slots = slots(3, 0);
    let (pool, _) = pool(&slots);
    let mut leases = Vec::new();
    for _ in 0..9 {
        leases.push(pool.acquire(&wish(&[])).await.expect("open"));
    }
    assert!(slots.iter().all(|slot| slot.in_flight() == 3));
    leases.retain(|lease| lease.slot().id.slot != 0);
    assert_ne!(pool.acquire(&wish(&[(0, 1)])).await.expect("open").slot().id.slot, 0);
    slots[1].close();
    slots[2].close();
    let again = pool.acquire(&wish(&[(0, 1)])).await.expect("better again than nobody");
    assert_eq!(again.slot().id.slot, 0);
}

#[test]
fn of_idle_workers_whose_answers_are_short_a_warm_one_is_asked_again() {
    let (ms, began) = (Duration::from_millis, Instant::now() + Duration::from_secs(60));
    let short = Some(Duration::from_micros(300));
    for (workers, took, pause, home, lasting, same) in [
        (4, short, 2, Home::Anywhere, false, true),
        (4, short, 20, Home::Anywhere, false, false),
        (4, Some(ms(5)), 2, Home::Anywhere, false, false),
        (4, None, 2, Home::Anywhere, false, false),
        (4, short, 2, Home::Anywhere, true, false),
        (4, short, 2, Home::Unsettled, false, false),
        (20, short, 2, Home::Anywhere, false, true),
        (20, short, 20, Home::Anywhere, false, false),
    ] {
        let slots = slots(workers, 0);
        let (pool, _) = pool(&slots);
        slots.iter().for_each(|slot| pool.note_answer(slot, took, began));
        let taken: Vec<_> = (0..60)
            .map(|nth| {
                let now = began + ms(nth * pause);
                let mut lease = pool.at_once(&Wish { now, home, lasting, ..wish(&[]) }).expect("open");
                lease.answered();
                lease.slot().id.slot
            })
            .collect();
        let always = taken.iter().all(|slot| *slot == taken[0]);
        assert_eq!(always, same, "{workers} {took:?} {pause} {home:?} {lasting}: {taken:?}");
    }
}

#[test]
fn a_warm_worker_that_is_busy_is_not_asked_before_an_idle_one() {
    let slots = slots(4, 0);
    let (pool, _) = pool(&slots);
    let began = Instant::now() + Duration::from_secs(60);
    slots.iter().for_each(|slot| pool.note_answer(slot, Some(Duration::from_micros(300)), began));
    let wish = Wish { now: began, ..wish(&[]) };
    let _leases: Vec<_> = (0..8).map(|_| pool.at_once(&wish).expect("open")).collect();
    assert!(slots.iter().all(|slot| slot.in_flight() == 2));
}

#[tokio::test(start_paused = true)]
async fn a_blocked_worker_is_passed_over_until_it_answers() {
    let slots = slots(2, 0);
    let (pool, _) = pool(&slots);
    let began = Instant::now() + Duration::from_secs(60);
    slots.iter().for_each(|slot| pool.note_answer(slot, Some(Duration::from_millis(5)), began));
    let at = |millis| Wish { now: began + Duration::from_millis(millis), ..wish(&[]) };
    let mut blocked = pool.acquire(&at(0)).await.expect("open");
    let slow = blocked.slot().id.slot;
    for _ in 0..5 {
        let mut lease = pool.acquire(&at(200)).await.expect("open");
        assert_ne!(lease.slot().id.slot, slow);
        lease.answered();
        pool.note_answer(lease.slot(), Some(Duration::from_millis(5)), at(205).now);
        std::mem::forget(lease);
    }
    blocked.answered();
    pool.note_answer(blocked.slot(), Some(Duration::from_millis(8)), at(210).now);
    assert_eq!(pool.acquire(&at(211)).await.expect("open").slot().id.slot, slow);
}

#[test]
fn websockets_spread_evenly_though_a_worker_is_late_for_a_moment() {
    for (lasting, silent, even) in [(true, 50, true), (false, 50, false), (true, 1100, false)] {
        let slots = slots(4, 0);
        let (pool, _) = pool(&slots);
        let began = Instant::now() + Duration::from_secs(60);
        let now = began + Duration::from_millis(silent);
        for slot in &slots[1..] {
            pool.note_answer(slot, Some(Duration::from_millis(2)), now);
        }
        pool.note_answer(&slots[0], Some(Duration::from_millis(2)), began);
        let mut leases = vec![pool.take(&slots[0], 0, began).expect("room")];
        leases.extend((1..32).map(|_| {
            let mut lease = pool.at_once(&Wish { lasting, now, ..wish(&[]) }).expect("room");
            if lease.slot().id.slot > 0 {
                lease.answered();
            }
            lease
        }));
        let found: Vec<_> = slots.iter().map(|slot| slot.in_flight()).collect();
        assert_eq!(found == [8; 4], even, "lasting: {lasting}, silent for {silent} ms: {found:?}");
        assert!(even || found[0] < 3, "lasting: {lasting}, silent for {silent} ms: {found:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unread_request_is_given_away_where_nobody_is_answered_and_another_has_nothing_to_do() {
    let slots = slots(2, 0);
    let (pool, roster) = pool(&slots);
    let began = Instant::now() + Duration::from_secs(60);
    slots.iter().for_each(|slot| pool.note_answer(slot, Some(Duration::from_millis(5)), began));
    let at = |millis| began + Duration::from_millis(millis);
    let stuck = pool.acquire(&Wish { now: at(0), ..wish(&[]) }).await.expect("open");
    let other = slots.iter().find(|slot| slot.id != stuck.slot().id).expect("two").clone();
    assert!(!relieves(&pool, stuck.slot(), at(9)), "no longer than usual");
    let busy = pool.acquire(&Wish { now: at(20), ..wish(&[]) }).await.expect("open");
    assert_eq!(busy.slot().id, other.id);
    assert!(!relieves(&pool, stuck.slot(), at(200)), "the other answers nobody either");
    drop(busy);
    other.close();
    assert!(!relieves(&pool, stuck.slot(), at(200)), "it takes none");
    other.resume();
    assert!(relieves(&pool, stuck.slot(), at(200)));
    let stuck = { Arc::clone(stuck.slot()) };
    // Nothing is in flight there any more, and still nobody is sent there.
    for millis in [201, 1000, 2100] {
        let next = pool.acquire(&Wish { now: at(millis), ..wish(&[]) }).await.expect("open");
        assert_eq!(next.slot().id, other.id);
        pool.note_answer(&other, Some(Duration::from_millis(5)), at(millis));
    }
    pool.note_answer(&stuck, None, at(2110));
    assert!(!stuck.is_doubted(at(2111)), "it has answered");
    roster.publish(vec![Arc::clone(&stuck)]);
    let alone = pool.acquire(&Wish { now: at(2120), ..wish(&[]) }).await.expect("open");
    assert!(!relieves(&pool, alone.slot(), at(9000)), "there is no other");
}

#[tokio::test(start_paused = true)]
async fn only_a_tenth_of_the_requests_is_given_away() {
    let slots = slots(2, 0);
    let (pool, _) = pool(&slots);
    let now = Instant::now() + Duration::from_secs(60);
    let later = now + Duration::from_secs(1);
    assert!(slots[0].try_acquire());
    slots.iter().for_each(|slot| pool.note_answer(slot, Some(Duration::from_millis(5)), now));
    let given = |count: usize| (0..count).filter(|_| relieves(&pool, &slots[0], later)).count();
    // They are requests too, and earn the eleventh.
    assert_eq!(given(100), 11);
    for _ in 0..40 {
        assert!(slots[1].try_acquire());
        slots[1].release();
    }
    assert_eq!(given(100), 4);
}

#[tokio::test(start_paused = true)]
async fn who_reads_nothing_is_left_by_all_where_another_answers_as_usual() {
    let slots = slots(2, 0);
    let (pool, _) = pool(&slots);
    let now = Instant::now() + Duration::from_secs(60);
    slots.iter().for_each(|slot| pool.note_answer(slot, Some(Duration::from_secs(3)), now));
    let at = |millis| now + Duration::from_millis(millis);
    let stuck = Lease::take_after(&slots[0], 0, &pool).expect("room");
    assert!(!relieves(&pool, &slots[0], at(3100)), "its answers take that long");
    slots[0].suspend();
    slots[0].forsake();
    assert!(!relieves(&pool, &slots[0], at(5900)), "nor does it help to be asked for the same elsewhere");
    let other = Lease::take_after(&slots[1], 0, &pool).expect("room");
    assert!(!relieves(&pool, &slots[0], at(6100)), "the other is late too");
    drop(other);
    assert!((0..100).all(|_| relieves(&pool, &slots[0], at(6100))), "not a tenth of them only");
    slots[0].resume();
    assert!(!slots[0].is_forsaken());
    drop(stuck);
}

#[test]
fn who_is_overtaken_between_the_look_and_the_lease_goes_to_another_worker() {
    let slots = slots(4, 0);
    let (pool, _) = pool(&slots);
    let now = Instant::now();
    let look = || pick(&slots, now, &|_| true, false, None);
    for _ in 0..20 {
        let seen = look().expect("room");
        // Another thread has looked at the same moment.
        let overtaken = pool.take_or_look_again(&slots, now, look, seen).expect("room");
        assert_eq!(overtaken.slot().id, slots[seen.0].id);
        let second = pool.take_or_look_again(&slots, now, look, seen).expect("room");
        assert_ne!(second.slot().id, overtaken.slot().id);
    }
    let alone = Lease::take_after(&slots[0], u64::MAX, &pool).expect("room");
    let look = || pick(&slots[..1], now, &|_| true, false, None);
    let again = pool.take_or_look_again(&slots[..1], now, look, (0, 0)).expect("where there is no other");
    assert_eq!(again.slot().id, alone.slot().id);
}

#[tokio::test(start_paused = true)]
async fn who_is_given_away_holds_the_room_that_was_seen_and_passes_nobody_in_line() {
    let slots = slots(2, 1);
    let (pool, _) = pool(&slots);
    let now = Instant::now() + Duration::from_secs(60);
    slots.iter().for_each(|slot| pool.note_answer(slot, Some(Duration::from_millis(5)), now));
    let later = now + Duration::from_secs(1);
    let stuck = Lease::take_after(&slots[0], 0, &pool).expect("room");
    let given = pool.relieve(stuck.slot(), later).expect("there is room");
    assert_eq!((given.slot().id.slot, slots[1].in_flight()), (1, 1));
    assert!(pool.at_once(&wish(&[(0, 1)])).is_none(), "nobody takes it away again");
    // Who waits has been told of no room yet.
    drop(given);
    pool.roster.waiting.store(1, Ordering::SeqCst);
    assert!(!relieves(&pool, stuck.slot(), later));
    pool.roster.waiting.store(0, Ordering::SeqCst);
    assert!(relieves(&pool, stuck.slot(), later));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_has_not_answered_yet_is_late_by_what_answers_of_the_others_take() {
    let slots = slots(2, 0);
    let (pool, _) = pool(&slots);
    let now = Instant::now() + Duration::from_secs(60);
    pool.note_answer(&slots[1], Some(Duration::from_millis(200)), now);
    note(&slots[0], |latency| latency.heard(age(&slots[0], now)));
    assert!(slots[0].try_acquire());
    assert!(!relieves(&pool, &slots[0], now + Duration::from_millis(300)), "as long as a page takes here");
    assert!(relieves(&pool, &slots[0], now + Duration::from_millis(500)));
}

#[tokio::test(start_paused = true)]
async fn of_many_workers_each_gets_its_share_and_the_one_with_room_is_found() {
    let slots = slots(50, 2);
    let (pool, _) = pool(&slots);
    let mut leases = Vec::new();
    for _ in 0..100 {
        leases.push(pool.acquire(&wish(&[])).await.expect("room"));
    }
    assert!(slots.iter().all(|slot| slot.in_flight() == 2));
}

#[tokio::test(start_paused = true)]
async fn who_failed_the_only_worker_waits_for_its_successor() {
    let (pool, roster) = pool(&slots(1, 0));
    let replace = async {
        until_waiting(&pool, 1).await;
        roster.publish(vec![slot(0, 2, 0)]);
    };
    let wish = wish(&[(0, 1)]);
    let (lease, ()) = tokio::join!(pool.acquire(&wish), replace);
    assert_eq!(lease.expect("replaced").slot().id.incarnation, 2);
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_a_worker_but_not_for_ever() {
    let (pool, roster) = pool(&[]);
    let publish = async {
        until_waiting(&pool, 1).await;
        roster.publish(slots(1, 0));
    };
    let wish = wish(&[]);
    let (lease, ()) = tokio::join!(pool.acquire(&wish), publish);
    assert!(lease.is_ok());
    assert_eq!(pool.waiting(), 0);
    roster.publish(Vec::new());
    let refused = pool.acquire(&wish).await;
    assert!(
        matches!(refused, Err(AcquireError::NoWorker { waited, ended: None }) if waited >= QUEUE.timeout)
    );
    roster.note_end("SIGSEGV while it served");
    let why = pool.acquire(&wish).await.expect_err("nobody is there").to_string();
    assert!(why.ends_with("; none is ready, the last one ended with: SIGSEGV while it served"), "{why}");
}

#[tokio::test]
async fn the_line_is_bounded_and_who_leaves_gives_the_place_up() {
    let (pool, _roster) = pool(&[]);
    let wish = wish(&[]);
    let mut line: Vec<_> = (0..QUEUE.size).map(|_| Box::pin(pool.acquire(&wish))).collect();
    for waiting in &mut line {
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
    }
    assert!(matches!(pool.acquire(&wish).await, Err(AcquireError::QueueFull { waiting: 100, ended: None })));
    drop(line);
    assert_eq!(pool.waiting(), 0);
}

#[tokio::test]
async fn a_released_worker_goes_to_the_next_in_line_and_nobody_else_is_woken() {
    let slots = slots(1, 1);
    let (pool, _roster) = pool(&slots);
    let first = pool.acquire(&wish(&[])).await.expect("room");
    let wish = wish(&[]);
    let mut line: Vec<_> = (0..3).map(|_| by_hand(pool.acquire(&wish))).collect();
    assert!(line.iter_mut().all(|waiting| waiting.poll().is_none()));
    drop(first);
    let woken: Vec<bool> = line.iter().map(|waiting| waiting.is_woken()).collect();
    assert_eq!(woken, [true, false, false]);
    // Who comes now stands behind them, though the lease is not taken up yet.
    let mut late = by_hand(pool.acquire(&wish));
    assert!(late.poll().is_none());
    let second = line[0].poll().expect("served").expect("a lease");
    assert_eq!(slots[0].in_flight(), 1);
    // The next has gone away: the one behind it is served.
    line.remove(1);
    drop(second);
    assert!(late.poll().is_none());
    let third = line[1].poll().expect("served");
    // Served, and gone before it knew.
    drop(third);
    assert!(late.is_woken());
    drop(late);
    assert_eq!((slots[0].in_flight(), pool.waiting()), (0, 0));
}

#[tokio::test]
async fn a_client_stays_at_home_waits_for_it_and_moves_when_it_is_gone() {
    let slots = slots(3, 1);
    let (pool, roster) = pool(&slots);
    let at_home = Wish { home: Home::Marked(crate::upstream::affinity::mark(pool.app(), 1)), ..wish(&[]) };
    let first = pool.acquire(&at_home).await.expect("room");
    assert_eq!(first.slot().id.slot, 1);
    let mut second = by_hand(pool.acquire(&at_home));
    assert!(second.poll().is_none(), "others have room, and are not home");
    assert!(pool.acquire(&wish(&[])).await.is_ok(), "who takes any worker does not wait for it");
    drop(first);
    assert_eq!(second.poll().expect("served").expect("a lease").slot().id.slot, 1);
    roster.publish(vec![Arc::clone(&slots[0]), Arc::clone(&slots[2])]);
    assert_ne!(pool.acquire(&at_home).await.expect("room").slot().id.slot, 1);
}

#[tokio::test]
async fn a_line_full_of_clients_of_one_worker_keeps_nobody_from_the_others() {
    let slots = slots(2, 1);
    let (pool, _roster) = pool(&slots);
    let short = Wish { queue: Queue { size: 2, ..QUEUE }, ..wish(&[]) };
    let at_home = Wish { home: Home::Marked(crate::upstream::affinity::mark(pool.app(), 1)), ..short };
    let first = pool.acquire(&at_home).await.expect("room");
    let mut line: Vec<_> = (0..2).map(|_| by_hand(pool.acquire(&at_home))).collect();
    assert!(line.iter_mut().all(|waiting| waiting.poll().is_none()));
    assert!(matches!(pool.acquire(&at_home).await, Err(AcquireError::QueueFull { .. })));
    let other = pool.acquire(&short).await.expect("the other has room");
    assert_eq!(other.slot().id.slot, 0);
    assert!(pool.acquire(&short).await.is_err(), "none has room, and the line is full");
    drop(first);
    let second = line[0].poll();
    assert!(second.is_some_and(|lease| lease.is_ok() && line[1].poll().is_none()), "the line is as it was");
}

#[test]
fn no_release_is_missed_between_threads() {
    let slots = slots(2, 1);
    let (pool, _roster) = pool(&slots);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let pool = Arc::clone(&pool);
            std::thread::spawn(move || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
                runtime.block_on(async {
                    for _ in 0..3000 {
                        let lease =
                            pool.acquire(&wish(&[])).await.expect("served long before the time is over");
                        assert!(lease.slot().in_flight() <= 1);
                        if fastrand::bool() {
                            tokio::task::yield_now().await;
                        }
                    }
                });
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no panic");
    }
    assert_eq!((pool.waiting(), slots[0].in_flight() + slots[1].in_flight()), (0, 0));
}

/// A future polled by hand.
struct ByHand<F> {
    future: std::pin::Pin<Box<F>>,
    woken: Arc<Flag>,
}

struct Flag(std::sync::atomic::AtomicBool);

impl std::task::Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn by_hand<F: Future>(future: F) -> ByHand<F> {
    ByHand { future: Box::pin(future), woken: Arc::new(Flag(false.into())) }
}

impl<F: Future> ByHand<F> {
    fn poll(&mut self) -> Option<F::Output> {
        self.woken.0.store(false, Ordering::SeqCst);
        let waker = Arc::clone(&self.woken).into();
        match self.future.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }

    fn is_woken(&self) -> bool {
        self.woken.0.load(Ordering::SeqCst)
    }
}
