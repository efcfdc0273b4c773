//! When the machine stood still: one that is shared stops its guests now and then, for tenths of a second. That is no fault of
//! edge's, and no reason for wider bounds: it is left out of what something took.

use std::collections::BTreeMap;
use std::sync::{Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use rustix::process::setpriority_process;

/// How long whoever measures sleeps.
const SLEEP: Duration = Duration::from_millis(5);
/// How late it may wake up on a machine that runs, however busy: it goes before all others, where it may.
const LATE: Duration = Duration::from_millis(20);

static MEASURED: Mutex<Measured> = Mutex::new(Measured { stalls: Vec::new(), looked: BTreeMap::new() });

struct Measured {
    /// From when to when.
    stalls: Vec<(Instant, Instant)>,
    /// When each processor was there last.
    looked: BTreeMap<usize, Instant>,
}

/// Measures from now on, for as long as the tests run.
pub(crate) fn watch() {
    static BEGUN: Once = Once::new();
    BEGUN.call_once(|| {
        let ours = sched_getaffinity(Pid::from_raw(0)).expect("the processors of this process");
        // One of them can be taken away while another runs.
        for processor in (0..CpuSet::count()).filter(|processor| ours.is_set(*processor).unwrap_or(false)) {
            MEASURED.lock().expect("nobody panics").looked.insert(processor, Instant::now());
            thread::spawn(move || measure(processor));
        }
    });
}

fn measure(processor: usize) {
    let mut own = CpuSet::new();
    own.set(processor).expect("it has this number");
    // Where this is not allowed, a busy processor may pass for one that stands still.
    let _ = sched_setaffinity(Pid::from_raw(0), &own);
    let _ = setpriority_process(None, -20);
    loop {
        let due = Instant::now() + SLEEP;
        thread::sleep(SLEEP);
        let now = Instant::now();
        let mut measured = MEASURED.lock().expect("nobody panics");
        measured.looked.insert(processor, now);
        if now.saturating_duration_since(due) > LATE {
            measured.stalls.push((due, now));
        }
    }
}

/// What was measured.
pub(crate) struct Stalls(Vec<(Instant, Instant)>);

impl Stalls {
    /// All up to now.
    pub(crate) fn so_far() -> Self {
        let now = Instant::now();
        loop {
            let measured = MEASURED.lock().expect("nobody panics");
            // After a stall others may have been let run first.
            if measured.looked.values().all(|looked| *looked > now) {
                let mut stalls = measured.stalls.clone();
                stalls.sort_unstable();
                return Self(stalls);
            }
            drop(measured);
            thread::sleep(SLEEP);
        }
    }

    /// How long something took of the time in which the machine ran.
    pub(crate) fn awake(&self, begun: Instant, ended: Instant) -> Duration {
        let (mut still, mut after) = (Duration::ZERO, begun);
        // What several processors noticed counts once.
        for (from, to) in &self.0 {
            let (from, to) = ((*from).max(after), (*to).min(ended));
            still += to.saturating_duration_since(from);
            after = after.max(to);
        }
        ended.saturating_duration_since(begun).saturating_sub(still)
    }
}

/// How long something that began then has taken, of the time in which the machine ran.
pub(crate) fn awake_since(begun: Instant) -> Duration {
    let ended = Instant::now();
    Stalls::so_far().awake(begun, ended)
}
