//! When a CA wants a certificate renewed (RFC 9773): what it said, when it is asked again, and the second that is chosen in
//! its window. Let's Encrypt counts a renewal inside the window against no limit, so the second is chosen once and kept.

use std::time::{Duration, SystemTime};

use fastrand::Rng;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cert::seconds;
use crate::cert::validity::Validity;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// From when to when a CA wants a certificate renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Start.
    pub start: SystemTime,
    /// End, which is not part of it.
    pub end: SystemTime,
}

/// What a CA said about a certificate's renewal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// When it is to be renewed.
    pub window: Window,
    /// After how long the CA is to be asked again.
    pub again_in: Option<Duration>,
    /// A page that says why the window is where it is.
    pub explanation: Option<String>,
}

/// Why there is no advice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoAdvice {
    /// The CA gives none.
    NotOffered,
    /// The CA did not answer properly; it may soon.
    Later(String),
    /// The CA answered with something that will not be better soon.
    Useless(String),
}

/// What is remembered of a CA's advice for the installed certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Advised {
    #[serde(with = "seconds")]
    start: Option<SystemTime>,
    #[serde(with = "seconds")]
    end: Option<SystemTime>,
    #[serde(with = "seconds")]
    ask_at: Option<SystemTime>,
    misses: u32,
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "suggestedWindow")]
    window: DocumentWindow,
    #[serde(rename = "explanationURL")]
    explanation: Option<String>,
}

#[derive(Deserialize)]
struct DocumentWindow {
    start: String,
    end: String,
}

impl Advice {
    /// A CA's answer.
    pub fn parse(body: &[u8], again_in: Option<Duration>) -> Result<Self, NoAdvice> {
        let useless = |why: String| NoAdvice::Useless(why);
        let document: Document = serde_json::from_slice(body).map_err(|error| useless(error.to_string()))?;
        let moment = |text: &str| {
            let at = OffsetDateTime::parse(text, &Rfc3339).map_err(|error| useless(error.to_string()))?;
            // Before 1970 is as past as anything.
            Ok(SystemTime::from(at).max(SystemTime::UNIX_EPOCH))
        };
        let window = Window { start: moment(&document.window.start)?, end: moment(&document.window.end)? };
        if window.end <= window.start {
            return Err(useless("its renewal window ends before it starts".to_owned()));
        }
        let explanation =
            document.explanation.filter(|url| url.len() < 500 && !url.contains(char::is_control));
        Ok(Self { window, again_in, explanation })
    }
}

impl Window {
    /// Whether `at` lies in it.
    pub fn holds(&self, at: SystemTime) -> bool {
        self.start <= at && at < self.end
    }

    /// A second in it, for a certificate that came at `obtained`. Neither so late that failures could not be waited out, nor
    /// so early that a CA with an odd clock is asked in a circle.
    pub fn choose(
        &self,
        validity: Validity,
        obtained: SystemTime,
        now: SystemTime,
        rng: &mut Rng,
    ) -> SystemTime {
        let width = self.end.duration_since(self.start).unwrap_or_default().as_secs().max(1);
        let drawn = self.start + Duration::from_secs(rng.u64(..width));
        let latest = validity.latest_renewal().max(now + validity.left(now) / 3);
        let earliest = obtained + (validity.life() / 10).min(6 * HOUR);
        drawn.max(now).min(latest).max(earliest)
    }
}

impl Advised {
    /// The window as it was last heard of.
    pub fn window(&self) -> Option<Window> {
        Some(Window { start: self.start?, end: self.end? })
    }

    /// When the CA is to be asked; `None` is at once.
    pub fn ask_at(&self) -> Option<SystemTime> {
        self.ask_at
    }

    /// Takes an answer that came at `now`.
    pub fn take(&mut self, answer: &Result<Advice, NoAdvice>, now: SystemTime) {
        let wait = match answer {
            Ok(advice) => {
                self.start = Some(seconds::whole(advice.window.start));
                self.end = Some(seconds::whole(advice.window.end));
                self.misses = 0;
                advice.again_in.unwrap_or(6 * HOUR).clamp(MINUTE, DAY)
            }
            Err(NoAdvice::NotOffered) => DAY,
            Err(NoAdvice::Useless(_)) => 6 * HOUR,
            Err(NoAdvice::Later(_)) => {
                self.misses = self.misses.saturating_add(1);
                match self.misses {
                    1 => MINUTE / 6,
                    2 => MINUTE,
                    3 => 5 * MINUTE,
                    _ => 6 * HOUR,
                }
            }
        };
        self.ask_at = Some(seconds::whole(now + wait));
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn an_answer_is_read_and_nonsense_is_no_advice() {
        let text = br#"{"suggestedWindow":{"start":"2026-01-02T00:00:00Z","end":"2026-01-03T00:00:00+01:00"},
            "explanationURL":"https://ca.test/why"}"#;
        let advice = Advice::parse(text, Some(HOUR)).expect("readable");
        assert_eq!(advice.window.end.duration_since(advice.window.start).expect("later"), 23 * HOUR);
        assert_eq!(advice.explanation.as_deref(), Some("https://ca.test/why"));
        for nonsense in [
            "",
            "{}",
            "<html>",
            r#"{"suggestedWindow":{"start":"2026-01-02T00:00:00Z","end":"2026-01-02T00:00:00Z"}}"#,
            r#"{"suggestedWindow":{"start":"yesterday","end":"2026-01-02T00:00:00Z"}}"#,
        ] {
            assert!(
                matches!(Advice::parse(nonsense.as_bytes(), None), Err(NoAdvice::Useless(_))),
                "{nonsense}"
            );
        }
    }

    #[test]
    fn a_window_before_the_certificate_leads_to_no_circle() {
        let (issued, life) = (1_800_000_000, 119);
        let validity = Validity { not_before: at(issued), not_after: at(issued + life) };
        let window = Window { start: at(issued - 86_400), end: at(issued - 80_000) };
        for seed in 0..100 {
            let chosen = window.choose(validity, at(issued), at(issued), &mut Rng::with_seed(seed));
            assert!(chosen >= at(issued + 11), "{chosen:?}");
        }
    }

    #[test]
    fn a_window_behind_the_end_of_the_certificate_does_not_let_it_expire() {
        let life = 90 * 86_400;
        let validity = Validity { not_before: at(0), not_after: at(life) };
        let window = Window { start: at(life + 1), end: at(life + 2) };
        let chosen = window.choose(validity, at(0), at(10), &mut Rng::with_seed(1));
        assert!(chosen < at(life * 7 / 10), "{chosen:?}");
    }

    #[test]
    fn the_ca_is_asked_again_when_it_says_and_never_in_a_circle() {
        let advice = |again| {
            Ok(Advice { window: Window { start: at(5), end: at(9) }, again_in: again, explanation: None })
        };
        let later = || Err(NoAdvice::Later(String::new()));
        let useless = || Err(NoAdvice::Useless(String::new()));
        let mut advised = Advised::default();
        for (answer, wanted) in [
            (advice(Some(Duration::ZERO)), MINUTE),
            (advice(Some(4 * HOUR)), 4 * HOUR),
            (advice(Some(400 * DAY)), DAY),
            (later(), 10 * Duration::from_secs(1)),
            (later(), MINUTE),
            (later(), 5 * MINUTE),
            (later(), 6 * HOUR),
            (useless(), 6 * HOUR),
            (Err(NoAdvice::NotOffered), DAY),
        ] {
            advised.take(&answer, at(1000));
            assert_eq!(advised.ask_at(), Some(at(1000) + wanted), "{answer:?}");
        }
        assert_eq!(advised.window(), Some(Window { start: at(5), end: at(9) }), "the last window is kept");
    }
}
