//! A worker that writes down every request exactly as it reads it, and answers each with what it read.

use std::sync::{Arc, Mutex};

use super::origin::{Head, Origin, Peer};

/// One request as a worker read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recorded {
    /// Request line and fields, without line ends of the last.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// Lines after the last chunk.
    pub(crate) trailers: String,
}

impl Recorded {
    /// The method and target.
    pub(crate) fn asked(&self) -> &str {
        let line = self.head.lines().next().unwrap_or_default();
        line.strip_suffix(" HTTP/1.1").unwrap_or(line)
    }

    /// The value of a field that stands there at most once; empty where there is none.
    pub(crate) fn field(&self, name: &str) -> &str {
        let fields = self.head.lines().filter_map(|line| line.split_once(':'));
        let mut values =
            fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim());
        values.next().unwrap_or_default()
    }

    /// All of it as text, names in lower case.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for (at, line) in self.head.lines().enumerate() {
            match line.split_once(": ").filter(|_| at > 0) {
                Some((name, value)) => text.push_str(&format!("{}: {value}\n", name.to_ascii_lowercase())),
                None => text.push_str(&format!("{line}\n")),
            }
        }
        format!("{text}\n{}\n{}", String::from_utf8_lossy(&self.body), self.trailers.to_ascii_lowercase())
    }
}

/// The worker.
pub(crate) struct Recorder {
    pub(crate) origin: Origin,
    seen: Arc<Mutex<Vec<Result<Recorded, String>>>>,
}

impl Recorder {
    /// Listens.
    pub(crate) async fn start() -> Self {
        let seen = Arc::<Mutex<Vec<_>>>::default();
        let record = Arc::clone(&seen);
        let origin = Origin::start(move |mut peer| {
            let record = Arc::clone(&record);
            async move {
                while let Some(head) = peer.head().await {
                    let Some(request) = rest(&mut peer, head).await else { return };
                    let text = request.as_ref().map_or_else(String::clone, Recorded::text);
                    record.lock().expect("nobody panics").push(request);
                    peer.answer("200 OK", "", &text).await;
                }
            }
        })
        .await;
        Self { origin, seen }
    }

    /// What came since this was asked last. Nothing of it may be framed in two ways, or wrongly.
    pub(crate) fn take(&self) -> Vec<Recorded> {
        let seen = std::mem::take(&mut *self.seen.lock().expect("nobody panics"));
        seen.into_iter().map(|request| request.unwrap_or_else(|wrong| panic!("{wrong}"))).collect()
    }
}

/// The body after a head, which must be framed in exactly one way or not at all; `None` where the connection ends in it.
async fn rest(peer: &mut Peer, head: Head) -> Option<Result<Recorded, String>> {
    let (lengths, codings) = (head.headers("content-length"), head.headers("transfer-encoding"));
    let wrong = || Some(Err(format!("framed in another way than one: {}", head.text)));
    let (mut body, mut trailers) = (Vec::new(), String::new());
    match (&lengths[..], &codings[..]) {
        ([], []) => {}
        ([length], []) => {
            let Ok(length) = length.parse() else { return wrong() };
            body = peer.body(length).await?;
        }
        ([], ["chunked"]) => {
            loop {
                let chunk = peer.chunk().await?;
                if chunk.is_empty() {
                    break;
                }
                body.extend(chunk);
            }
            trailers = peer.trailers().await?;
        }
        _ => return wrong(),
    }
    Some(Ok(Recorded { head: head.text.trim_end().to_owned(), body, trailers }))
}
