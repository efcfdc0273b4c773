//! Tree in, checked configuration or every problem out: same input, same output, same order. This file reads what stands
//! outside the apps.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::check_acme::acme;
use crate::config::check_app;
use crate::config::check_limits;
use crate::config::context::{AppContext, path};
use crate::config::model::{
    AccessLog, App, Before, Config, Listen, ListenAddr, Log, LogFormat, LogLevel, Tls,
};
use crate::config::networks::{self, Networks};
use crate::config::problem::Problem;
use crate::config::raw::Node;
use crate::config::scalar::{self, LONGEST_SOCKET_PATH};
use crate::config::section::{Reader, Section};
use crate::config::surroundings::Surroundings;

/// Checks the tree of `file`, whose relative paths begin at `base`, an absolute directory.
pub fn check(
    root: &Node,
    file: &Path,
    base: &Path,
    surroundings: &Surroundings,
) -> Result<Config, Vec<Problem>> {
    let reader = Reader::new(&surroundings.variables);
    let config = config(&Section::root(&reader, root), &reader, file, base, surroundings);
    let problems = reader.into_problems();
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

/// The admin socket's path alone, whatever else is wrong with the tree; or what is wrong with the keys it depends on.
pub fn admin_path(root: &Node, base: &Path, surroundings: &Surroundings) -> Result<PathBuf, Vec<Problem>> {
    let reader = Reader::new(&surroundings.variables);
    let root = Section::root(&reader, root);
    let runtime_dir = directory(&root, "runtime_dir", base, || default_runtime_dir(surroundings));
    let path = admin(&root, base, &runtime_dir);
    drop(root);
    let mut problems = reader.into_problems();
    problems.retain(|problem| ["runtime_dir", "admin"].contains(&problem.key.as_str()));
    if problems.is_empty() { Ok(path) } else { Err(problems) }
}

fn config(
    root: &Section<'_>,
    reader: &Reader<'_>,
    file: &Path,
    base: &Path,
    surroundings: &Surroundings,
) -> Config {
    let storage = directory(root, "storage", base, || default_storage(surroundings));
    let runtime_dir = directory(root, "runtime_dir", base, || default_runtime_dir(surroundings));
    let listen = listen(&root.section("listen"));
    let acme = acme(root, base, &listen);
    let context = AppContext { reader, base, surroundings, runtime_dir: &runtime_dir, acme: &acme };
    let apps = check_app::apps(root, &context);
    if !root.is_faulty("listen") {
        check_listen_serves(root, reader, &listen, &apps);
    }
    Config {
        file: file.to_owned(),
        acme,
        storage,
        admin: admin(root, base, &runtime_dir),
        metrics: metrics(root, &listen),
        runtime_dir,
        listen,
        before: Before {
            trusted_proxies: networks(root, "trusted_proxies"),
            proxy_protocol: networks(root, "proxy_protocol"),
        },
        threads: threads(root, surroundings),
        log: log(&root.section("log"), base),
        drain_timeout: root.duration("drain_timeout"),
        timeouts: check_limits::timeouts(&root.section("timeouts")),
        limits: check_limits::limits(&root.section("limits"), surroundings.open_files),
        apps: apps.into_iter().map(Arc::new).collect(),
    }
}

fn listen(section: &Section<'_>) -> Listen {
    let mut seen = Vec::new();
    let http = addresses(section, "http", &mut seen);
    let https = addresses(section, "https", &mut seen);
    Listen { http, https }
}

fn addresses(section: &Section<'_>, key: &str, seen: &mut Vec<ListenAddr>) -> Vec<ListenAddr> {
    let values = section.get_or_default(key).map(|value| value.items()).unwrap_or_default();
    let mut addresses = Vec::new();
    for value in values {
        let Some(address) = value.parse(scalar::listen) else { continue };
        if let Some(other) = seen.iter().find(|other| overlap(**other, address)) {
            value.refuse(format_args!("`{address}` and `{other}` cannot both be listened on"));
        }
        seen.push(address);
        addresses.push(address);
    }
    addresses
}

/// The address of the metrics, which no client's listener has.
fn metrics(root: &Section<'_>, listen: &Listen) -> Option<ListenAddr> {
    let value = root.get("metrics")?;
    let address = value.parse(scalar::listen)?;
    if let Some(other) = listen.http.iter().chain(&listen.https).find(|other| overlap(**other, address)) {
        value.refuse(format_args!("`{address}` and `{other}` cannot both be listened on"));
    }
    Some(address)
}

/// Whether the kernel would refuse to bind both. Port 0 is another port each time.
fn overlap(a: ListenAddr, b: ListenAddr) -> bool {
    match (a, b) {
        (ListenAddr::Any(a), ListenAddr::Any(b)) => a == b && a != 0,
        (ListenAddr::Any(any), ListenAddr::At(at)) | (ListenAddr::At(at), ListenAddr::Any(any)) => {
            any == at.port() && any != 0
        }
        (ListenAddr::At(a), ListenAddr::At(b)) => {
            let wide = a.ip().is_unspecified() || b.ip().is_unspecified();
            let same = a.ip() == b.ip() || (wide && a.is_ipv4() == b.is_ipv4());
            same && a.port() == b.port() && a.port() != 0
        }
    }
}

fn check_listen_serves(root: &Section<'_>, reader: &Reader<'_>, listen: &Listen, apps: &[App]) {
    // What stands in for a wrong `tls` was not written.
    let apps = || apps.iter().filter(|app| !reader.is_faulty(&format!("apps.{}.tls", app.name)));
    if listen.http.is_empty() && listen.https.is_empty() {
        root.section("listen").refuse("`http` and `https` are both empty: nobody could connect");
    } else if listen.https.is_empty()
        && let Some(app) = apps().find(|app| app.tls != Tls::Off)
    {
        let what = format!("`https` is empty, but app `{}` has no `tls: off`", app.name);
        root.section("listen").refuse(what);
    } else if listen.http.is_empty()
        && let Some(app) = apps().find(|app| app.tls == Tls::Off)
    {
        root.section("listen").refuse(format_args!("`http` is empty, but app `{}` has `tls: off`", app.name));
    }
}

fn networks(root: &Section<'_>, key: &str) -> Networks {
    let written = root.get_or_default(key).map(|value| value.items()).unwrap_or_default();
    written.iter().filter_map(|value| value.parse(networks::network)).collect()
}

fn threads(root: &Section<'_>, surroundings: &Surroundings) -> NonZeroUsize {
    let count = root.count("threads", surroundings.cpus.get() as u64, 1024);
    usize::try_from(count).ok().and_then(NonZeroUsize::new).unwrap_or(NonZeroUsize::MIN)
}

fn log(section: &Section<'_>, base: &Path) -> Log {
    let levels = [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
    let formats = [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
    Log {
        level: section.choice("level", &levels, LogLevel::Info),
        format: section.choice("format", &formats, LogFormat::Auto),
        access: section.read("access", AccessLog::Off, |text| match text {
            "true" => Ok(AccessLog::Stdout),
            "false" => Ok(AccessLog::Off),
            // A word without `/` is a misspelt boolean rather than a file.
            path if path.contains('/') && !path.ends_with('/') => Ok(AccessLog::File(base.join(path))),
            _ => Err("is not `true`, `false` or the path of a file, which is absolute or begins with `./`, such as `/var/log/edge/access.log`"),
        }),
    }
}

/// The directory written for `key`, or the default; it need not exist yet.
fn directory(
    root: &Section<'_>,
    key: &str,
    base: &Path,
    default: impl FnOnce() -> Option<PathBuf>,
) -> PathBuf {
    match root.get(key) {
        Some(value) => path(&value, base).unwrap_or_default(),
        None => default().unwrap_or_else(|| {
            root.refuse(format_args!("`{key}` has no default without $HOME: set it"));
            PathBuf::new()
        }),
    }
}

fn default_storage(surroundings: &Surroundings) -> Option<PathBuf> {
    // systemd separates several state directories by colons.
    if let Some(state) = surroundings.variable("STATE_DIRECTORY") {
        return state.split(':').next().map(PathBuf::from);
    }
    if surroundings.is_root() {
        return Some(PathBuf::from("/var/lib/edge"));
    }
    let state = absolute(surroundings, "XDG_STATE_HOME");
    let state = state.or_else(|| absolute(surroundings, "HOME").map(|home| home.join(".local/state")));
    state.map(|state| state.join("edge"))
}

fn default_runtime_dir(surroundings: &Surroundings) -> Option<PathBuf> {
    if let Some(runtime) = surroundings.variable("RUNTIME_DIRECTORY") {
        return runtime.split(':').next().map(PathBuf::from);
    }
    if surroundings.is_root() {
        return Some(PathBuf::from("/run/edge"));
    }
    // A variable inherited from another login names a directory that is not there or not ours.
    let runtime =
        absolute(surroundings, "XDG_RUNTIME_DIR").filter(|runtime| is_owned(runtime, surroundings.uid));
    let own = || PathBuf::from(format!("/tmp/edge-{}", surroundings.uid));
    Some(runtime.map_or_else(own, |runtime| runtime.join("edge")))
}

fn absolute(surroundings: &Surroundings, variable: &str) -> Option<PathBuf> {
    surroundings.variable(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

fn is_owned(path: &Path, uid: u32) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == uid)
}

fn admin(root: &Section<'_>, base: &Path, runtime_dir: &Path) -> PathBuf {
    let written = root.get("admin");
    let socket = match &written {
        Some(value) => path(value, base).unwrap_or_default(),
        None => runtime_dir.join("admin.sock"),
    };
    if socket.as_os_str().len() > LONGEST_SOCKET_PATH {
        let what = format!(
            "the admin socket `{}` would be longer than the {LONGEST_SOCKET_PATH} bytes a unix socket's path may have",
            socket.display()
        );
        match written.or_else(|| root.get("runtime_dir")) {
            Some(value) => value.refuse(what),
            None => root.refuse(what),
        }
    }
    socket
}
