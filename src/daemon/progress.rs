//! What an operation says while it runs: to the log, and to the operator who waits for it.

use tokio::sync::{Mutex, MutexGuard, mpsc};

/// Words said and not yet read by the operator; beyond, words are lost and the operation goes on.
const UNREAD: usize = 1024;

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

    /// Waits for `turn`, and says so if it is another's.
    pub async fn take<'a>(&self, turn: &'a Mutex<()>) -> MutexGuard<'a, ()> {
        if let Ok(taken) = turn.try_lock() {
            return taken;
        }
        self.say("waiting for the change that is under way");
        turn.lock().await
    }

    /// Something went on.
    pub fn say(&self, text: impl Into<String>) {
        let text = text.into();
        tracing::info!("{text}");
        self.tell(Said::Word(text));
    }

    /// The end.
    pub async fn end(self, outcome: Result<(), Failed>) {
        let status = match outcome {
            Ok(()) => 0,
            Err(Failed { text, status }) => {
                tracing::error!("{text}");
                self.tell(Said::Complaint(text));
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
    async fn who_waits_for_anothers_change_is_told_so() {
        let turn = Mutex::new(());
        let (told, mut hears) = Progress::told();
        drop(told.take(&turn).await);
        assert!(hears.try_recv().is_err(), "nobody was waited for");
        let another = turn.lock().await;
        let waits = async { drop(told.take(&turn).await) };
        let ends = async {
            let said = hears.recv().await;
            drop(another);
            said
        };
        let ((), said) = tokio::join!(waits, ends);
        assert_eq!(said, Some(Said::Word("waiting for the change that is under way".to_owned())));
    }
}
