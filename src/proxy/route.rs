//! Which app answers a request, or what edge says instead. A pure function of the routing, the request's authority and the
//! connection; a request keeps the routing it began with.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use http::HeaderValue;

use crate::config::model::{App, Backend, ClientAuth, ClientAuthMode, PlainHttp, Tls};
use crate::config::networks::Networks;
use crate::name::{HostName, HostPattern};
use crate::proxy::error::ProxyError;
use crate::proxy::target::Authority;
use crate::telemetry::tally::Tally;
use crate::upstream::pool::Pool;
use crate::worker::adapter;

/// One app as requests see it.
#[derive(Debug)]
pub struct Site {
    /// The app.
    pub app: Arc<App>,
    /// Its workers.
    pub pool: Arc<Pool>,
    /// Its `Strict-Transport-Security` (RFC 6797 §6.1).
    pub hsts: Option<HeaderValue>,
    /// Whether each request occupies a process or thread of a worker.
    pub synchronous: bool,
    /// What is counted of its requests.
    pub tally: Arc<Tally>,
    /// What its visitors are told while it is under maintenance.
    pub maintenance: Option<Arc<str>>,
}

impl Site {
    /// The site of `app`, answered by `pool`.
    pub fn new(app: Arc<App>, pool: Arc<Pool>, tally: Arc<Tally>) -> Arc<Self> {
        Arc::new(Self::serving(app, pool, tally))
    }

    /// As [`Self::new`], but whoever would be forwarded is told `text` instead.
    pub fn in_maintenance(app: Arc<App>, pool: Arc<Pool>, tally: Arc<Tally>, text: Arc<str>) -> Arc<Self> {
        Arc::new(Self { maintenance: Some(text), ..Self::serving(app, pool, tally) })
    }

    fn serving(app: Arc<App>, pool: Arc<Pool>, tally: Arc<Tally>) -> Self {
        let hsts = app.hsts.and_then(|age| HeaderValue::try_from(format!("max-age={}", age.as_secs())).ok());
        let synchronous = match &app.backend {
            // It follows from the command alone; the directory is never used.
            Backend::Workers(spec) => adapter::plan(&app.name, spec, 0, Path::new("/")).synchronous,
            Backend::Upstream(_) => false,
        };
        Self { app, pool, hsts, synchronous, tally, maintenance: None }
    }
}

/// Every host that is served: the publication of the configuration's reader, replaced whole.
#[derive(Debug, Default)]
pub struct Routing {
    exact: HashMap<HostName, Arc<Site>>,
    wildcards: HashMap<HostName, Arc<Site>>,
    default: Option<Arc<Site>>,
    https_port: Option<u16>,
    trusted_proxies: Networks,
}

/// What is asked, and on what kind of connection.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The host and port the client wrote.
    pub authority: Authority<'a>,
    /// Path and query, for redirects.
    pub path_and_query: &'a str,
    /// Whether the client came by https: over this connection or, says a trusted proxy, to the proxy.
    pub secure: bool,
    /// What the connection was secured with; `None` on plain HTTP.
    pub secured: Option<Secured<'a>>,
    /// Port of https in redirects; `None` is 443.
    pub https_port: Option<u16>,
}

/// The TLS side of a connection, as far as it decides about requests.
#[derive(Debug, Clone, Copy)]
pub struct Secured<'a> {
    /// The name the client asked for.
    pub sni: Option<&'a HostName>,
    /// Hosts the certificate it got may be used for.
    pub names: &'a [HostPattern],
    /// What the client was asked for.
    pub client_auth: Option<&'a ClientAuth>,
}

/// What happens to a request.
#[derive(Debug)]
pub enum Decision<'r> {
    /// A worker of the site gets it.
    Forward(&'r Arc<Site>),
    /// 308 to another URL (RFC 9110 §15.4.9).
    Redirect(&'r Arc<Site>, String),
    /// Edge refuses; the site is the one that was asked for, where there is one.
    Refuse(Option<&'r Arc<Site>>, ProxyError),
}

impl<'r> Decision<'r> {
    /// The site that was asked for.
    pub fn site(&self) -> Option<&'r Arc<Site>> {
        match self {
            Self::Forward(site) | Self::Redirect(site, _) => Some(site),
            Self::Refuse(site, _) => *site,
        }
    }
}

impl Routing {
    /// The routing of `sites`. Where two have one host, which the configuration's check refuses, the first keeps it.
    pub fn new(sites: impl IntoIterator<Item = Arc<Site>>) -> Self {
        let mut routing = Self::default();
        for site in sites {
            for domain in &site.app.domains {
                let (table, name) = match domain {
                    HostPattern::Exact(name) => (&mut routing.exact, name),
                    HostPattern::Wildcard(suffix) => (&mut routing.wildcards, suffix),
                };
                table.entry(name.clone()).or_insert_with(|| Arc::clone(&site));
            }
            if site.app.default && routing.default.is_none() {
                routing.default = Some(site);
            }
        }
        routing
    }

    /// The same, where https is not on port 443: redirects name the port.
    pub fn with_https_port(self, https_port: Option<u16>) -> Self {
        Self { https_port, ..self }
    }

    /// The same, where these are believed about a request's client.
    pub fn with_trusted_proxies(self, trusted_proxies: Networks) -> Self {
        Self { trusted_proxies, ..self }
    }

    /// Who is believed about a request's client.
    pub fn trusted_proxies(&self) -> &Networks {
        &self.trusted_proxies
    }

    /// The port of https as clients see it, where it is not 443.
    pub fn https_port(&self) -> Option<u16> {
        self.https_port
    }

    /// Decides about one request. `pending` tells why a host has no certificate yet.
    pub fn decide(&self, asked: &Asked<'_>, pending: impl Fn(&HostName) -> Option<Arc<str>>) -> Decision<'_> {
        match self.way(asked, pending) {
            Decision::Forward(site) => match &site.maintenance {
                None => Decision::Forward(site),
                Some(text) => {
                    Decision::Refuse(Some(site), ProxyError::Maintenance { text: Arc::clone(text) })
                }
            },
            other @ (Decision::Redirect(..) | Decision::Refuse(..)) => other,
        }
    }

    fn way(&self, asked: &Asked<'_>, pending: impl Fn(&HostName) -> Option<Arc<str>>) -> Decision<'_> {
        let Ok((host, site)) = self.find(asked.authority.host) else {
            return Decision::Refuse(None, ProxyError::Malformed("its host is not a host name and port"));
        };
        let named = site.is_some();
        let site = site.or(self.default.as_ref());
        match (&asked.secured, site) {
            (None, None) => Decision::Refuse(None, ProxyError::UnknownHost),
            (Some(_), None) => Decision::Refuse(None, ProxyError::Misdirected),
            (None, Some(site)) => plain(asked, &host, site, pending),
            (Some(secured), Some(site)) => {
                if !self.belongs(secured, &host, site, named) {
                    Decision::Refuse(Some(site), ProxyError::Misdirected)
                } else if !asked.secure && site.app.http == PlainHttp::Redirect {
                    // The proxy that encrypts on the way here was asked without.
                    Decision::Redirect(site, secured_url(asked, &host, site))
                } else {
                    canonical(asked, &host, site)
                        .map_or(Decision::Forward(site), |to| Decision::Redirect(site, to))
                }
            }
        }
    }

    /// The host in its one spelling, and the site that has it by name: exact before wildcard.
    fn find(&self, text: &str) -> Result<(Cow<'_, HostName>, Option<&Arc<Site>>), crate::name::NameError> {
        // Nearly every request: a text that equals a key is in the one spelling already.
        if let Some((host, site)) = self.exact.get_key_value(text) {
            return Ok((Cow::Borrowed(host), Some(site)));
        }
        let host = HostName::parse(text)?;
        let site = self.exact.get(&host).or_else(|| self.wildcards.get(host.parent()?));
        Ok((Cow::Owned(host), site))
    }

    /// Whether `host` may be asked for on this connection: its certificate covers the host, and the name the client asked for
    /// in the handshake stood under the same TLS policy.
    fn belongs(&self, secured: &Secured<'_>, host: &HostName, site: &Site, named: bool) -> bool {
        if site.app.tls == Tls::Off {
            return false;
        }
        // Names nobody configured are covered by no certificate: the default app takes them with its own.
        let covered = if named {
            secured.names.iter().any(|name| name.covers(host))
        } else {
            secured.names.iter().any(|name| site.app.domains.contains(name))
        };
        // Whether and how the client was verified is settled for the connection: a request for an app that wants it otherwise
        // must come by another one.
        let asked_alike = secured.client_auth == site.app.client_auth.as_ref();
        covered && asked_alike && secured.sni.is_none_or(|sni| sni == host || self.same_policy(sni, site))
    }

    fn same_policy(&self, sni: &HostName, site: &Site) -> bool {
        match self.find(sni.as_str()) {
            Ok((_, Some(shown))) => shown.app.name == site.app.name || shown.app.tls == site.app.tls,
            Ok((_, None)) | Err(_) => true,
        }
    }
}

/// A request over plain HTTP.
fn plain<'r>(
    asked: &Asked<'_>,
    host: &HostName,
    site: &'r Arc<Site>,
    pending: impl Fn(&HostName) -> Option<Arc<str>>,
) -> Decision<'r> {
    let app = &site.app;
    let requires = app.client_auth.as_ref().is_some_and(|auth| auth.mode == ClientAuthMode::Require);
    if requires && asked.secure {
        // Encrypted or not on the way to the proxy, here the client has shown nothing.
        return Decision::Refuse(Some(site), ProxyError::Misdirected);
    }
    if app.tls == Tls::Off || app.http == PlainHttp::Serve || asked.secure {
        return match canonical(asked, host, site) {
            Some(to) => Decision::Redirect(site, to),
            None => Decision::Forward(site),
        };
    }
    match pending(app.redirect_to.as_ref().unwrap_or(host)) {
        Some(why) => Decision::Refuse(Some(site), ProxyError::CertificatePending { why }),
        None => Decision::Redirect(site, secured_url(asked, host, site)),
    }
}

/// What was asked for, by https and of the canonical host.
fn secured_url(asked: &Asked<'_>, host: &HostName, site: &Site) -> String {
    let to = site.app.redirect_to.as_ref().unwrap_or(host);
    url("https", to, asked.https_port, asked.path_and_query)
}

/// Where the app's canonical host answers, unless it is the one asked for.
fn canonical(asked: &Asked<'_>, host: &HostName, site: &Site) -> Option<String> {
    let to = site.app.redirect_to.as_ref().filter(|to| *to != host)?;
    Some(if asked.secure {
        url("https", to, asked.https_port, asked.path_and_query)
    } else {
        url("http", to, asked.authority.port.filter(|port| *port != 80), asked.path_and_query)
    })
}

/// An absolute URL. The host is a checked name and the path a checked target, so that nothing needs escaping.
fn url(scheme: &str, host: &HostName, port: Option<u16>, path_and_query: &str) -> String {
    let mut url = String::with_capacity(scheme.len() + host.as_str().len() + path_and_query.len() + 16);
    url.push_str(scheme);
    url.push_str("://");
    if host.as_str().contains(':') {
        url.push('[');
        url.push_str(host.as_str());
        url.push(']');
    } else {
        url.push_str(host.as_str());
    }
    if let Some(port) = port {
        // Writing to a String cannot fail.
        let _ = write!(url, ":{port}");
    }
    url.push_str(path_and_query);
    url
}

/// Whether a client that wrote `authority` came in by `port` through a mapping of ports, as containers and load balancers have:
/// it asked for the scheme's own port, and edge has another. Such a mapping has 443 beside 80.
pub fn is_mapped(authority: &Authority<'_>, secure: bool, port: u16) -> bool {
    let usual = if secure { 443 } else { 80 };
    authority.port.unwrap_or(usual) == usual && port != usual
}

const CHALLENGES: &str = "/.well-known/acme-challenge/";

/// What follows the path of HTTP-01 challenges (RFC 8555 §8.3), token or not.
pub fn challenge(path: &str) -> Option<&str> {
    path.strip_prefix(CHALLENGES)
}

/// Whether a CA could have made this token: base64url without padding.
pub fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

#[cfg(test)]
mod tests;
