//! What an operation says while it runs: to the log, and to the operator who waits for it.

use std::cell::RefCell;

use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::{Mutex, MutexGuard, mpsc};
use tokio::time::Instant;

use crate::name::AppName;

/// Words said and not yet read by the operator; beyond, words are lost and the operation goes on.
const UNREAD: usize = 1024;

/// How the words begin by which an operator learns that the turn is another's.
const WAITING: &str = "waiting for ";

/// One thing said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// For standard output.
    Word(String),
    /// For standard error.
    Complaint(String),
    /// The exit status; nothing follows.
    End(u8),
}

impl Said {
    /// The lines that go over the admin socket.
    pub fn written(&self) -> String {
        let lines = |sign: char, text: &str| text.lines().map(|line| format!("{sign} {line}\n")).collect();
        match self {
            Self::Word(text) => lines('>', text),
            Self::Complaint(text) => lines('!', text),
            Self::End(status) => format!("= {status}\n"),
        }
    }

    /// Whether the operation has not begun and is given up if nobody listens any more: it waits for its turn.
    pub fn is_waiting(&self) -> bool {
        matches!(self, Self::Word(text) if text.starts_with(WAITING))
    }

    /// What a line says; `None` for a sign of life and for what this version does not know.
    pub fn parse(line: &str) -> Option<Self> {
        let (sign, text) = line.split_once(' ')?;
        match sign {
            ">" => Some(Self::Word(text.to_owned())),
            "!" => Some(Self::Complaint(text.to_owned())),
            "=" => text.parse().ok().map(Self::End),
            _ => None,
        }
    }
}

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// In as many lines as it needs.
    pub text: String,
    /// The exit status that goes with it.
    pub status: u8,
}

impl Failed {
    /// Exit status 1.
    pub fn because(text: impl Into<String>) -> Self {
        Self { text: text.into(), status: 1 }
    }
}

/// Held by who changes the configuration in force: one at a time, in the order they came.
#[derive(Debug, Default)]
pub struct Turn {
    lock: Mutex<()>,
    holder: RefCell<Option<Holder>>,
}

/// Who has the turn.
#[derive(Debug)]
struct Holder {
    what: String,
    since: Instant,
    /// What it is at, if it said so.
    at: Option<String>,
}

/// One's turn, until it is dropped.
#[derive(Debug)]
pub struct Taken<'a> {
    turn: &'a Turn,
    _lock: MutexGuard<'a, ()>,
}

impl Taken<'_> {
    /// What is done now, for those who wait.
    pub fn is_at(&self, text: &str) {
        if let Some(holder) = self.turn.holder.borrow_mut().as_mut() {
            holder.at = Some(text.to_owned());
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.turn.holder.replace(None);
    }
}

/// Where an operation speaks.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    operator: Option<mpsc::Sender<Said>>,
}

impl Progress {
    /// To the log and to the operator at the other end.
    pub fn told() -> (Self, mpsc::Receiver<Said>) {
        let (operator, hears) = mpsc::channel(UNREAD);
        (Self { operator: Some(operator) }, hears)
    }

    /// Waits for `turn` to do `what`, and says whose it is if it is another's. `None` if the operator goes away meanwhile: who
    /// gives a command up before it has begun does not want it done later.
    pub async fn take<'a>(&self, turn: &'a Turn, what: &str) -> Option<Taken<'a>> {
        let lock = match turn.lock.try_lock() {
            Ok(lock) => lock,
            Err(_) => {
                if let Some(Holder { what, since, at }) = &*turn.holder.borrow() {
                    let at = at.as_ref().map(|at| format!(" ({at})")).unwrap_or_default();
                    let seconds = since.elapsed().as_secs();
                    self.say(format!("{WAITING}{what}, under way for {seconds} s{at}"));
                }
                let lock = tokio::select! {
                    lock = turn.lock.lock() => lock,
                    () = self.gone() => return None,
                };
                self.say("its turn has come");
                lock
            }
        };
        turn.holder.replace(Some(Holder { what: what.to_owned(), since: Instant::now(), at: None }));
        Some(Taken { turn, _lock: lock })
    }

    /// Completes once an operator who waited has gone away. Cancel-safe.
    async fn gone(&self) {
        match &self.operator {
            Some(operator) => operator.closed().await,
            None => std::future::pending().await,
        }
    }

    /// Something went on.
    pub fn say(&self, text: impl Into<String>) {
        let text = text.into();
        tracing::info!("{text}");
        self.tell(Said::Word(text));
    }

    /// Does `work` and says meanwhile what is remarked of the workers of `app`.
    pub async fn telling<T>(
        &self,
        app: &AppName,
        mut remarks: broadcast::Receiver<String>,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = std::pin::pin!(work);
        let done = loop {
            tokio::select! {
                done = &mut work => break done,
                remark = remarks.recv() => match remark {
                    Ok(remark) => self.say(format!("{app}: {remark}")),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => break work.await,
                }
            }
        };
        while let Ok(remark) = remarks.try_recv() {
            self.say(format!("{app}: {remark}"));
        }
        done
    }

    /// Something failed, and there is more to say than that.
    pub fn complain(&self, text: impl Into<String>) {
        let text = text.into();
        tracing::error!("{text}");
        self.tell(Said::Complaint(text));
    }

    /// The end.
    pub async fn end(self, outcome: Result<(), Failed>) {
        let status = match outcome {
            Ok(()) => 0,
            Err(Failed { text, status }) => {
                self.complain(text);
                status
            }
        };
        if let Some(operator) = self.operator {
            // Who went away needs no exit status.
            let _gone = operator.send(Said::End(status)).await;
        }
    }

    fn tell(&self, said: Said) {
        if let Some(operator) = &self.operator {
            // An operator who went away, or does not read, holds nothing up.
            let _unread = operator.try_send(said);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_for_anothers_change_is_told_which_and_may_go_away() {
        let turn = Turn::default();
        let (told, mut hears) = Progress::told();
        drop(told.take(&turn, "one").await);
        assert!(hears.try_recv().is_err(), "nobody was waited for");
        let another = Progress::default().take(&turn, "`edge reload`").await;
        let waits = async { told.take(&turn, "another").await.is_some() };
        let ends = async {
            let said = hears.recv().await;
            drop(another);
            said
        };
        let (taken, said) = tokio::join!(waits, ends);
        let words = Said::Word("waiting for `edge reload`, under way for 0 s".to_owned());
        assert!(words.is_waiting());
        assert_eq!((taken, said), (true, Some(words)));
        let begun = hears.recv().await.expect("said");
        assert!(!begun.is_waiting(), "{begun:?}");

        let another = Progress::default().take(&turn, "one").await.expect("its turn");
        another.is_at("a: starting");
        let waits = async { told.take(&turn, "another").await.is_some() };
        let ends = async {
            let said = hears.recv().await;
            drop(another);
            said
        };
        let words = "waiting for one, under way for 0 s (a: starting)".to_owned();
        assert_eq!(tokio::join!(waits, ends), (true, Some(Said::Word(words))));

        let _another = Progress::default().take(&turn, "one that takes long").await;
        let waits = async { told.take(&turn, "another").await.is_none() };
        let goes = async { drop(hears) };
        assert!(tokio::join!(waits, goes).0);
    }
}
