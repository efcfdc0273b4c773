//! What keeps a client with one worker, for apps that hold a client's state in a worker's memory.

use std::net::IpAddr;

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

use crate::config::model::{App, Sticky};
use crate::upstream::affinity::{Home, mark};

/// Where the client of a request belongs.
pub fn home(app: &App, headers: &HeaderMap, client: IpAddr) -> Home {
    match app.sticky {
        Sticky::None => Home::Anywhere,
        Sticky::Ip => Home::of_client(client),
        Sticky::Cookie => {
            let pairs =
                headers.get_all(COOKIE).iter().flat_map(|field| field.as_bytes().split(|b| *b == b';'));
            let value = |pair: &[u8]| {
                let rest =
                    pair.trim_ascii().strip_prefix(b"edge_")?.strip_prefix(app.name.as_str().as_bytes())?;
                Some(Home::in_cookie(rest.strip_prefix(b"=")?))
            };
            pairs.filter_map(value).next().unwrap_or(Home::Unsettled)
        }
    }
}

/// The cookie that leads back to `slot`, where the client was not at home there already. It ends with the browser's session,
/// because the state it leads to lives no longer than a worker.
pub fn cookie(app: &App, slot: u32, home: Home, secure: bool) -> Option<HeaderValue> {
    match app.sticky {
        Sticky::None | Sticky::Ip => return None,
        Sticky::Cookie => {}
    }
    let mark = mark(&app.name, slot);
    if home == Home::Marked(mark) {
        return None;
    }
    let secure = if secure { "; Secure" } else { "" };
    let text = format!("edge_{}={mark:016x}; Path=/; HttpOnly; SameSite=Lax{secure}", app.name);
    // An app's name is a token.
    HeaderValue::try_from(text).ok()
}
