//! Reads the apps: names, certificates, redirects, and who answers.

use std::collections::HashMap;
use std::time::Duration;

use crate::config::check_acme;
use crate::config::check_worker;
use crate::config::context::{AppContext, readable_file};
use crate::config::key::Place;
use crate::config::keys;
use crate::config::model::{
    Acme, App, Backend, ClientAuth, ClientAuthMode, PlainHttp, Protocol, Queue, Sticky, Tls,
};
use crate::config::scalar;
use crate::config::section::{Section, Value};
use crate::name::{AppName, HostName, HostPattern};

/// Each waiting request holds a client's connection; more than this is a mistake.
const LONGEST_QUEUE: u64 = 100_000;

/// What no two apps may both have.
#[derive(Default)]
struct Taken {
    domains: HashMap<HostPattern, String>,
    default: Option<String>,
}

/// All apps, in the order of the file.
pub(super) fn apps(root: &Section<'_>, context: &AppContext<'_>) -> Vec<App> {
    let defaults = root.get("defaults").map(|value| Section::new(&value, "apps.NAME", None));
    let Some(value) = root.get("apps") else {
        root.miss(&["apps"], "there is no `apps`: nothing would be served");
        return Vec::new();
    };
    let entries = value.entries();
    if entries.is_empty() && !context.reader.is_faulty("apps") {
        value.refuse("there is no app: nothing would be served");
    }
    let mut taken = Taken::default();
    let mut apps = Vec::new();
    for entry in entries.iter() {
        let value = Value::of_entry(context.reader, "apps", entry);
        // Keys of the app are checked under a name that cannot be, too.
        let name = entry.key.parse::<AppName>().inspect_err(|error| {
            context.reader.refuse(entry.at, &value.path, error, None);
        });
        let section = Section::new(&value, "apps.NAME", defaults.as_ref());
        apps.extend(app(&entry.key, name.ok(), &section, &mut taken, context));
    }
    apps
}

fn app(
    written_name: &str,
    name: Option<AppName>,
    section: &Section<'_>,
    taken: &mut Taken,
    context: &AppContext<'_>,
) -> Option<App> {
    let tls = tls(section, context);
    let domains = domains(written_name, section, &tls, taken, context);
    let default = default(written_name, section, taken);
    let backend = backend(name.as_ref(), section, context);
    let protocol = protocol(section);
    let http = plain_http(section, &tls);
    let client_auth = client_auth(section, &tls, http, context);
    let redirect_to = redirect_to(section, &domains);
    let hsts = hsts(section, &tls);
    let max_body = section.read("max_body", 0, scalar::size);
    let (queue, sticky) = (queue(section), sticky(section));
    Some(App {
        name: name?,
        domains,
        default,
        backend: backend?,
        protocol,
        tls,
        client_auth,
        http,
        redirect_to,
        hsts,
        max_body,
        queue,
        sticky,
    })
}

fn queue(section: &Section<'_>) -> Queue {
    let section = section.section("queue");
    let size = section.read("size", 0, |text| scalar::number(text, 0, LONGEST_QUEUE));
    Queue { size: u32::try_from(size).unwrap_or(0), timeout: section.positive_duration("timeout") }
}

fn protocol(section: &Section<'_>) -> Protocol {
    let kinds = [("http1", Protocol::Http1), ("h2c", Protocol::H2c)];
    section.choice("protocol", &kinds, Protocol::Http1)
}

fn sticky(section: &Section<'_>) -> Sticky {
    let kinds = [("none", Sticky::None), ("cookie", Sticky::Cookie), ("ip", Sticky::Ip)];
    section.choice("sticky", &kinds, Sticky::None)
}

fn domains(
    app: &str,
    section: &Section<'_>,
    tls: &Tls,
    taken: &mut Taken,
    context: &AppContext<'_>,
) -> Vec<HostPattern> {
    let values = section.own("domains").map(|value| value.items()).unwrap_or_default();
    if values.is_empty() {
        section.miss(&["domains"], "`domains` is missing: which hosts does this app answer for?");
    }
    let mut domains = Vec::new();
    for value in values {
        let Some(domain) = domain(&value) else { continue };
        let concluded = match domain {
            HostPattern::Wildcard(_) => "acme",
            HostPattern::Exact(_) => "acme.challenges",
        };
        if !context.reader.is_faulty(concluded) {
            check_certifiable(&value, &domain, tls, context.acme);
        }
        match taken.domains.insert(domain.clone(), app.to_owned()) {
            Some(other) if other == app => value.refuse(format_args!("`{domain}` is already in this list")),
            Some(other) => value.refuse(format_args!("`{domain}` already belongs to app `{other}`")),
            None => domains.push(domain),
        }
    }
    domains
}

fn domain(value: &Value<'_>) -> Option<HostPattern> {
    let text = value.text()?;
    match text.value.parse::<HostPattern>() {
        Ok(HostPattern::Wildcard(suffix)) if suffix.ip().is_some() => {
            value.refuse(format_args!("`{}`: an address has no names below it", text.written));
            None
        }
        // No top-level domain is a number (RFC 3696 §2): clients take such a name for an address, and no CA certifies it.
        Ok(HostPattern::Exact(name) | HostPattern::Wildcard(name))
            if name.ip().is_none() && ends_in_a_number(&name) =>
        {
            let what = "is no address, and no name ends in a number";
            value.refuse(format_args!("`{}` {what}", text.written));
            None
        }
        Ok(domain) => Some(domain),
        Err(error) => {
            let what = format!("`{}` is not a domain: {error}", text.written);
            if text.value.contains("://") || text.value.contains('/') {
                value.refuse_with(what, "the host alone, without scheme and path");
            } else if text.value.contains(':') {
                value.refuse_with(what, "without a port: ports are under `listen`");
            } else if !text.value.is_ascii() {
                value.refuse_with(what, "an international name is written in its `xn--` form");
            } else {
                value.refuse(what);
            }
            None
        }
    }
}

fn ends_in_a_number(name: &HostName) -> bool {
    name.as_str().rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether a CA could find out that the name is ours, and would say so: no wildcards without a record in DNS, no addresses
/// by one, and of Let's Encrypt no addresses (RFC 8738) but under its profile for them.
fn check_certifiable(value: &Value<'_>, domain: &HostPattern, tls: &Tls, acme: &Acme) {
    if *tls != Tls::Acme || domain.is_internal() {
        return;
    }
    let help = "use `tls: {cert: FILE, key: FILE}` or `tls: internal`";
    match domain {
        HostPattern::Wildcard(_) if acme.challenges_for(domain).is_empty() => value.refuse_with(
            format_args!(
                "`{domain}`: a wildcard is proven to a CA by a record in DNS, and nobody publishes one: `acme.dns` has neither \
                 `exec` nor `rfc2136`"
            ),
            format!("set one of these, list `dns-persist-01` under `acme.challenges`, or {help}"),
        ),
        HostPattern::Wildcard(_) => {}
        HostPattern::Exact(name)
            if name.ip().is_some() && !acme.challenges.is_empty() && acme.challenges_for(domain).is_empty() =>
        {
            value.refuse_with(
                format_args!(
                    "`{domain}`: an address is proven to a CA over HTTP or TLS, and `acme.challenges` lists kinds by DNS alone"
                ),
                format!("list `http-01` or `tls-alpn-01` as well, or {help}"),
            )
        }
        HostPattern::Exact(name)
            if name.ip().is_some() && acme.profile.is_none() && acme.directories().any(check_acme::is_lets_encrypt) =>
        {
            value.refuse_with(
                format_args!("`{domain}`: Let's Encrypt certifies addresses only for a few days at a time"),
                format!("set `acme: {{profile: shortlived}}`, or {help}"),
            )
        }
        HostPattern::Exact(_) => {}
    }
}

fn default(app: &str, section: &Section<'_>, taken: &mut Taken) -> bool {
    let default = section.read("default", false, scalar::boolean);
    if default {
        match (&taken.default, section.own("default")) {
            (Some(other), Some(value)) => value.refuse(format_args!("app `{other}` is already the default")),
            (Some(_), None) | (None, _) => taken.default = Some(app.to_owned()),
        }
    }
    default
}

fn backend(name: Option<&AppName>, section: &Section<'_>, context: &AppContext<'_>) -> Option<Backend> {
    match (section.own("command"), section.own("upstream")) {
        (Some(command), None) => check_worker::worker(name, &command, section, context)
            .map(|spec| Backend::Workers(Box::new(spec))),
        (None, Some(upstream)) => {
            refuse_worker_keys(section);
            let servers: Vec<_> =
                upstream.items().iter().filter_map(|value| value.parse(scalar::upstream)).collect();
            if upstream.items().is_empty() {
                upstream.refuse("the list is empty");
            }
            Some(Backend::Upstream(servers))
        }
        (Some(_), Some(upstream)) => {
            upstream.refuse("an app has either `command` or `upstream`, not both");
            None
        }
        (None, None) => {
            let keys = ["command", "upstream"];
            section.miss(&keys, "`command` or `upstream` is missing: who answers for this app?");
            None
        }
    }
}

fn refuse_worker_keys(section: &Section<'_>) {
    for name in keys::children("apps.NAME") {
        let path = format!("apps.NAME.{name}");
        let of_worker =
            keys::KEYS.iter().any(|key| key.path.starts_with(&path) && key.place == Place::Worker);
        if let Some(value) = section.own(name).filter(|_| of_worker) {
            value.refuse("only an app with `command` has workers");
        }
    }
}

fn tls(section: &Section<'_>, context: &AppContext<'_>) -> Tls {
    let Some(value) = section.get_or_default("tls") else { return Tls::Off };
    if value.is_map() {
        return tls_files(&value, context);
    }
    type Make = fn() -> Tls;
    // `Tls` holds paths, so it is not `Copy` as a choice must be.
    let makers: [(&str, Make); 3] =
        [("auto", || Tls::Acme), ("internal", || Tls::Internal), ("off", || Tls::Off)];
    value.choice(&makers).map_or(Tls::Internal, |make| make())
}

fn tls_files(value: &Value<'_>, context: &AppContext<'_>) -> Tls {
    let files = Section::new(value, "apps.NAME.tls", None);
    let file = |key: &str| match files.own(key) {
        Some(value) => readable_file(&value, context.base).unwrap_or_default(),
        None => {
            let what = format_args!("`{key}` is missing: both `cert` and `key` are needed");
            files.miss(&[key], what);
            Default::default()
        }
    };
    Tls::Files { cert: file("cert"), key: file("key") }
}

fn client_auth(
    section: &Section<'_>,
    tls: &Tls,
    http: PlainHttp,
    context: &AppContext<'_>,
) -> Option<ClientAuth> {
    let value = section.get("client_auth")?;
    let keys = Section::new(&value, "apps.NAME.client_auth", None);
    let Some(ca) = keys.own("ca") else {
        keys.miss(&["ca"], "`ca` is missing: which CA signs the clients' certificates?");
        return None;
    };
    let modes = [("require", ClientAuthMode::Require), ("request", ClientAuthMode::Request)];
    let mode = keys.own("mode").map_or(Some(ClientAuthMode::Require), |value| value.choice(&modes))?;
    if *tls == Tls::Off {
        value.refuse_with("with `tls: off` no client can present a certificate", "remove one of the two");
    } else if http == PlainHttp::Serve && mode == ClientAuthMode::Require {
        value
            .refuse_with("`http: serve` would answer clients without a certificate", "remove one of the two");
    }
    Some(ClientAuth { ca: readable_file(&ca, context.base)?, mode })
}

fn plain_http(section: &Section<'_>, tls: &Tls) -> PlainHttp {
    let choices = [("redirect", PlainHttp::Redirect), ("serve", PlainHttp::Serve)];
    let http = section.choice("http", &choices, PlainHttp::Redirect);
    if *tls != Tls::Off {
        return http;
    }
    if let Some(value) = section.own("http").filter(|_| http == PlainHttp::Redirect) {
        value.refuse_with("with `tls: off` there is no https to redirect to", "remove one of the two");
    }
    PlainHttp::Serve
}

fn redirect_to(section: &Section<'_>, domains: &[HostPattern]) -> Option<HostName> {
    let value = section.own("redirect_to")?;
    let name =
        value.parse(|text| HostName::parse(text).map_err(|error| format!("is not a host name: {error}")))?;
    // One that could not be read may be it; where there is none, that has been said.
    let written = section.own("domains").map_or(0, |value| value.items().len());
    if written > 0 && domains.len() == written && !domains.contains(&HostPattern::Exact(name.clone())) {
        value.refuse(format_args!("`{}` is not one of this app's `domains`", value.written()));
    }
    Some(name)
}

fn hsts(section: &Section<'_>, tls: &Tls) -> Option<Duration> {
    const YEAR: Duration = Duration::from_secs(365 * 86_400);
    let hsts = section.read("hsts", None, |text| match text {
        "true" => Ok(Some(YEAR)),
        "false" => Ok(None),
        text => scalar::duration(text)
            .map(Some)
            .map_err(|_| "is not `true`, `false` or a duration such as `365d`"),
    });
    if let Some(value) = section.own("hsts").filter(|_| hsts.is_some() && *tls == Tls::Off) {
        value.refuse("with `tls: off` there is no https to insist on");
    }
    hsts
}
