//! How workers are limited, asked for their health and recycled: checked values, part of the model.

use std::fmt;
use std::time::Duration;

/// How many workers an app has: at least `min`, at most `max`, by its load. Equal where the file names one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerCount {
    /// At least 1.
    pub min: u32,
    /// At least `min`.
    pub max: u32,
}

impl WorkerCount {
    /// The most an app can have: slots are numbered with three digits in socket names.
    pub const MOST: u32 = 1000;

    /// One number, whatever the load.
    pub fn fixed(count: u32) -> Self {
        Self { min: count, max: count }
    }

    /// Whether the load has no say.
    pub fn is_fixed(self) -> bool {
        self.min == self.max
    }

    /// The nearest number that is allowed.
    pub fn nearest(self, count: u32) -> u32 {
        count.clamp(self.min, self.max)
    }
}

impl fmt::Display for WorkerCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_fixed() { write!(f, "{}", self.min) } else { write!(f, "{} to {}", self.min, self.max) }
    }
}

/// How a worker that serves is asked for its health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// Between two questions.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Failures in a row after which it is replaced.
    pub retries: u32,
}

/// When a worker that serves well is replaced all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recycle {
    /// After that many requests; 0 for never.
    pub max_requests: u64,
    /// By how many percent more it may be, at random.
    pub jitter_percent: u8,
    /// After that time; zero for never.
    pub max_lifetime: Duration,
    /// When it uses more bytes of memory than this.
    pub max_memory: Option<u64>,
}

/// A limit the kernel keeps for each process (setrlimit).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ulimit {
    /// Of what.
    pub resource: Resource,
    /// What a process may use, unless it raises this itself; `u64::MAX` is unlimited.
    pub soft: u64,
    /// How far it may raise that.
    pub hard: u64,
}

/// What can be limited, by Compose's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is RLIMIT_ of that name")]
pub enum Resource {
    As,
    Core,
    Cpu,
    Data,
    Fsize,
    Memlock,
    Nofile,
    Nproc,
    Stack,
}
