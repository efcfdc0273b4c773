//! Reads how an app's workers are run.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::config::account::{self, AccountError};
use crate::config::context::{AppContext, path, read_regular, reason};
use crate::config::env_file;
use crate::config::model::{
    Account, HealthCheck, Recycle, Resource, Restart, ServerKind, Transport, Ulimit, WorkerCount, WorkerSpec,
};
use crate::config::scalar::{self, LONGEST_SOCKET_PATH, ScalarError};
use crate::config::script;
use crate::config::section::{Section, Value};
use crate::name::AppName;

/// A worker with more requests in flight has no limit to speak of.
const MOST_CONCURRENT: u64 = 100_000;
/// Longest name of a worker's socket in its app's directory.
const SOCKET_NAME: &str = "NNN-NNNNN.sock";
/// An env file is a page of text; more is a mistake.
const LONGEST_ENV_FILE: u64 = 1 << 20;

/// The workers of an app. `None` if there is no command; other faults leave a stand-in.
pub(super) fn worker(
    app: Option<&AppName>,
    command: &Value<'_>,
    section: &Section<'_>,
    context: &AppContext<'_>,
) -> Option<WorkerSpec> {
    let working_dir = working_dir(section, context.base);
    let account = account(section, &working_dir, context);
    let workers = workers(section, context);
    if let Some(app) = app {
        check_socket_path(app, section, context.runtime_dir);
    }
    let server = server(section);
    let place = command;
    let command = arguments(command, workers);
    if let Some(words) = &command {
        refuse_lost_options(place, words, server);
    }
    Some(WorkerSpec {
        gunicorn_conf: command.as_ref().is_some_and(|words| gunicorn_conf(words, server, &working_dir)),
        server,
        transport: transport(section),
        workers,
        concurrency: concurrency(section),
        working_dir,
        account,
        environment: environment(section, context.base),
        healthcheck_path: section.section("healthcheck").get("path").and_then(|value| value.parse(http_path)),
        healthcheck: healthcheck(section),
        hang_timeout: section.duration("hang_timeout"),
        start_timeout: section.positive_duration("start_timeout"),
        drain_timeout: section.duration("drain_timeout"),
        stop_signal: section.read("stop_signal", 15, scalar::signal),
        stop_grace_period: section.duration("stop_grace_period"),
        restart: restart(section),
        nice: section.get("nice").and_then(|value| value.parse(nice)),
        ulimits: ulimits(section),
        recycle: recycle(section),
        memory_limit: memory_limit(section),
        before_start: before_start(section),
        before_start_timeout: section.positive_duration("before_start_timeout"),
        command: command?,
    })
}

/// Only looked for where it would be read: for other apps it is no change that it comes or goes.
fn gunicorn_conf(command: &[String], server: ServerKind, working_dir: &Path) -> bool {
    let is_gunicorn = server == ServerKind::Gunicorn || command.iter().any(|word| word.contains("gunicorn"));
    is_gunicorn && working_dir.join("gunicorn.conf.py").is_file()
}

fn server(section: &Section<'_>) -> ServerKind {
    let kinds = [
        ("auto", ServerKind::Auto),
        ("uvicorn", ServerKind::Uvicorn),
        ("fastapi", ServerKind::Fastapi),
        ("gunicorn", ServerKind::Gunicorn),
        ("hypercorn", ServerKind::Hypercorn),
        ("daphne", ServerKind::Daphne),
        ("granian", ServerKind::Granian),
        ("waitress", ServerKind::Waitress),
        ("node", ServerKind::Node),
        ("puma", ServerKind::Puma),
        ("rails", ServerKind::Rails),
        ("generic", ServerKind::Generic),
    ];
    section.choice("server", &kinds, ServerKind::Auto)
}

fn transport(section: &Section<'_>) -> Transport {
    let kinds = [("auto", Transport::Auto), ("unix", Transport::Unix), ("tcp", Transport::Tcp)];
    section.choice("transport", &kinds, Transport::Auto)
}

/// A number, `auto`, or `{min: …, max: …}`.
fn workers(section: &Section<'_>, context: &AppContext<'_>) -> WorkerCount {
    let most = u64::from(WorkerCount::MOST);
    if let Some(value) = section.get("workers").filter(Value::is_map) {
        let number = |text: &str| scalar::number(text, 1, most);
        let (min, max) = range(&value, ["min", "max"], number).unwrap_or((1, 1));
        return WorkerCount { min: min as u32, max: max as u32 };
    }
    let count = section.count("workers", context.surroundings.cpus.get() as u64, most);
    WorkerCount::fixed(u32::try_from(count).unwrap_or(1))
}

/// Two numbers under these keys, of which the second is not the smaller one.
fn range<E: Display>(
    value: &Value<'_>,
    keys: [&str; 2],
    number: impl Fn(&str) -> Result<u64, E>,
) -> Option<(u64, u64)> {
    let [least, most] = keys;
    let (mut found, mut faulty) = ([None; 2], false);
    for entry in value.entries().iter() {
        let part = Value::of_entry(value.reader(), &value.path, entry);
        match keys.iter().position(|key| *key == &*entry.key) {
            Some(at) => {
                found[at] = part.parse(&number);
                faulty |= found[at].is_none();
            }
            None => {
                part.refuse(format_args!("`{least}` and `{most}` are expected"));
                faulty = true;
            }
        }
    }
    match found {
        // What is wrong has been said.
        _ if faulty => None,
        [Some(one), Some(other)] if one <= other => Some((one, other)),
        _ => {
            value.refuse(format_args!(
                "`{least}` and `{most}` are both needed, and `{least}` may not be more than `{most}`"
            ));
            None
        }
    }
}

fn concurrency(section: &Section<'_>) -> Option<u32> {
    let value = section.get("concurrency")?;
    let number = value.parse(|text| scalar::number(text, 0, MOST_CONCURRENT))?;
    u32::try_from(number).ok()
}

fn arguments(value: &Value<'_>, workers: WorkerCount) -> Option<Vec<String>> {
    let words = if value.is_list() {
        let items = value.items();
        let words: Vec<_> = items.iter().filter_map(|item| item.text()).map(|text| text.value).collect();
        if words.len() < items.len() {
            return None;
        }
        words
    } else {
        let words = split(value)?;
        refuse_shell_words(
            value,
            &words,
            "write `sh -c '…; exec PROGRAM'` if you need a shell, or a list to pass it on",
        );
        words
    };
    if words.first().is_none_or(String::is_empty) {
        value.refuse("the command is empty");
        return None;
    }
    if words.iter().any(|word| word.contains('\0')) {
        value.refuse("a command cannot hold a zero byte");
    }
    refuse_product(value, &words, workers);
    Some(words)
}

/// These servers are told where to listen by options at the end of the command, which a shell keeps to itself.
fn refuse_lost_options(value: &Value<'_>, words: &[String], server: ServerKind) {
    let by_options = match server {
        ServerKind::Hypercorn
        | ServerKind::Daphne
        | ServerKind::Waitress
        | ServerKind::Puma
        | ServerKind::Rails => true,
        ServerKind::Auto
        | ServerKind::Uvicorn
        | ServerKind::Fastapi
        | ServerKind::Gunicorn
        | ServerKind::Granian
        | ServerKind::Node
        | ServerKind::Generic => false,
    };
    let told = words.iter().any(|word| word.contains("{socket}") || word.contains("{port}"));
    if by_options && !told && script::of(words).is_some_and(|script| !script.passes_on()) {
        value.refuse_with(
            "the options by which edge tells this `server` where to listen would go to the shell, not to the server",
            "end the script with `\"$@\"` and put a name behind it, `sh -c 'exec PROGRAM \"$@\"' sh`, or write the command without a shell",
        );
    }
}

fn split(value: &Value<'_>) -> Option<Vec<String>> {
    let text = value.text()?;
    let words = shlex::split(&text.value);
    if words.is_none() {
        value.refuse("a quote in the command is not closed");
    }
    words
}

fn healthcheck(section: &Section<'_>) -> HealthCheck {
    let section = section.section("healthcheck");
    HealthCheck {
        interval: section.positive_duration("interval"),
        timeout: section.positive_duration("timeout"),
        retries: section.read("retries", 1, |text| scalar::number(text, 1, 100)) as u32,
    }
}

fn nice(text: &str) -> Result<i32, &'static str> {
    let number = text.parse().ok().filter(|number| (-20..=19).contains(number));
    number.ok_or("is not a whole number from -20 to 19")
}

/// Later wins: those of the defaults, then the app's own.
fn ulimits(section: &Section<'_>) -> Vec<Ulimit> {
    const NAMES: [(&str, Resource); 9] = [
        ("as", Resource::As),
        ("core", Resource::Core),
        ("cpu", Resource::Cpu),
        ("data", Resource::Data),
        ("fsize", Resource::Fsize),
        ("memlock", Resource::Memlock),
        ("nofile", Resource::Nofile),
        ("nproc", Resource::Nproc),
        ("stack", Resource::Stack),
    ];
    let mut limits: Vec<Ulimit> = Vec::new();
    for layer in section.all("ulimits") {
        for entry in layer.entries().iter() {
            let value = Value::of_entry(layer.reader(), &layer.path, entry);
            let Some((_, resource)) = NAMES.iter().find(|(name, _)| *name == &*entry.key) else {
                let known = NAMES.map(|(name, _)| name).join(", ");
                value.refuse(format_args!("this is no limit; known are {known}"));
                continue;
            };
            if let Some((soft, hard)) = ulimit(&value) {
                limits.retain(|limit| limit.resource != *resource);
                limits.push(Ulimit { resource: *resource, soft, hard });
            }
        }
    }
    limits
}

/// A number for both, or `{soft: …, hard: …}`.
fn ulimit(value: &Value<'_>) -> Option<(u64, u64)> {
    let number = |text: &str| match text {
        "unlimited" | "-1" => Ok(u64::MAX),
        text => scalar::number(text, 0, u64::MAX).map_err(|error| {
            let trap = matches!(error, ScalarError::LeadingZero(_));
            if trap { error.to_string() } else { "is neither a whole number nor `unlimited`".to_owned() }
        }),
    };
    if !value.is_map() {
        return value.parse(number).map(|both| (both, both));
    }
    range(value, ["soft", "hard"], number)
}

fn recycle(section: &Section<'_>) -> Recycle {
    const MOST_REQUESTS: u64 = 1_000_000_000_000;
    let percent = |text: &str| {
        let number = scalar::number(text.strip_suffix('%').unwrap_or(text), 0, 100);
        number.map(|number| number as u8).map_err(|_| "is not a share such as `20%`")
    };
    Recycle {
        max_requests: section.read("max_requests", 0, |text| scalar::number(text, 0, MOST_REQUESTS)),
        jitter_percent: section.read("max_requests_jitter", 0, percent),
        max_lifetime: section.duration("max_lifetime"),
        max_memory: section.get("max_memory").and_then(|value| value.parse(memory)),
    }
}

fn memory(text: &str) -> Result<u64, &'static str> {
    scalar::size(text).ok().filter(|bytes| *bytes > 0).ok_or("is not a size such as `512MB`")
}

fn memory_limit(section: &Section<'_>) -> Option<u64> {
    let value = section.get("memory_limit")?;
    let limit = value.parse(memory)?;
    let replaced_above = section.get("max_memory").and_then(|value| value.parse(memory));
    if replaced_above.is_some_and(|bytes| bytes >= limit) {
        value.refuse_with(
            "`max_memory` is not below it: the kernel would kill a worker before edge replaces it",
            "leave room between the two, such as `max_memory: 400MB` and `memory_limit: 512MB`",
        );
    }
    Some(limit)
}

/// Each item is a command of its own.
fn before_start(section: &Section<'_>) -> Vec<Vec<String>> {
    let items = section.get_or_default("before_start").map(|value| value.items()).unwrap_or_default();
    let command = |value: &Value<'_>| {
        let words = split(value)?;
        refuse_shell_words(value, &words, "write a list of commands, or `sh -c '…'` if you need a shell");
        if words.first().is_none_or(String::is_empty) || words.iter().any(|word| word.contains('\0')) {
            value.refuse("this is not a command");
            return None;
        }
        Some(words)
    };
    items.iter().filter_map(command).collect()
}

fn refuse_shell_words(value: &Value<'_>, words: &[String], instead: &str) {
    let operator = words.iter().find(|word| {
        matches!(
            word.as_str(),
            "&&" | "||" | "|" | "&" | ";" | ">" | ">>" | "<" | "<<" | "2>" | "2>>" | "2>&1"
        )
    });
    if let Some(operator) = operator {
        value.refuse_with(
            format_args!("no shell is run, so `{operator}` would be an argument of the program"),
            instead,
        );
    }
    // The text after `=` may be a secret.
    if let Some((name, _)) = words
        .first()
        .and_then(|first| first.split_once('='))
        .filter(|(name, _)| scalar::is_variable_name(name))
    {
        value.refuse_with(
            format_args!("no shell is run, so `{name}=` in front of the command sets nothing"),
            "put the variable under `environment`",
        );
    }
}

/// `--workers 4` in the command and `workers: 4` beside it start sixteen processes, which nobody means.
fn refuse_product(value: &Value<'_>, words: &[String], workers: WorkerCount) {
    const FORKING: [&str; 6] = ["uvicorn", "fastapi", "gunicorn", "hypercorn", "granian", "puma"];
    let names =
        |word: &String| Path::new(word).file_name().is_some_and(|name| FORKING.iter().any(|f| name == *f));
    let Some(server) = words.iter().position(names) else { return };
    let mut rest = words[server + 1..].iter();
    while let Some(word) = rest.next() {
        let count = match word.as_str() {
            "--workers" | "-w" => rest.next().map(String::as_str),
            word => word.strip_prefix("--workers=").or_else(|| word.strip_prefix("-w")),
        };
        let count = count.and_then(|count| count.parse::<u32>().ok()).unwrap_or(1);
        if count > 1 && workers.max > 1 {
            let product = u64::from(count) * u64::from(workers.max);
            let up_to = if workers.is_fixed() { "" } else { "up to " };
            value.refuse_with(
                format_args!(
                    "{workers} workers that start {count} processes each are {up_to}{product} processes"
                ),
                format!(
                    "remove the option from the command, or set `workers: 1` to let it run its own {count}"
                ),
            );
        }
    }
}

fn working_dir(section: &Section<'_>, base: &Path) -> PathBuf {
    let Some(value) = section.get("working_dir") else { return base.to_owned() };
    let Some(dir) = path(&value, base) else { return base.to_owned() };
    match std::fs::metadata(&dir) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => value.refuse(format_args!("`{}` is not a directory", value.written())),
        Err(error) => value.refuse(format_args!("cannot use `{}`: {}", value.written(), reason(&error))),
    }
    dir
}

fn account(section: &Section<'_>, working_dir: &Path, context: &AppContext<'_>) -> Account {
    let (user, group) = (section.get("user"), section.get("group"));
    let read = |value: &Option<Value<'_>>| value.as_ref().map(|value| value.text().ok_or(())).transpose();
    // A name that could not be read has been noted.
    let (Ok(user_name), Ok(group_name)) = (read(&user), read(&group)) else { return Account::Own };
    let user_name = user_name.as_ref().map(|text| text.value.as_str());
    let group_name = group_name.as_ref().map(|text| text.value.as_str());
    account::resolve(user_name, group_name, working_dir, context.surroundings).unwrap_or_else(|error| {
        let at = match &error {
            AccountError::NoGroup => group.or(user),
            AccountError::NoUser
            | AccountError::NoNobody
            | AccountError::NoPrimaryGroup(_)
            | AccountError::NotRoot
            | AccountError::Lookup(_) => user.or(group),
        };
        match at {
            Some(value) => value.refuse(format_args!("`{}`: {error}", value.written())),
            None => section.refuse(error),
        }
        Account::Own
    })
}

/// Later wins: env files in their order, then `environment` of the defaults, then the app's own.
fn environment(section: &Section<'_>, base: &Path) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::new();
    for file in section.get_or_default("env_file").map(|value| value.items()).unwrap_or_default() {
        environment.extend(env_file(&file, base));
    }
    for layer in section.all("environment") {
        if layer.is_list() {
            layer.refuse_with("this is a list", "write `NAME: value` pairs");
            continue;
        }
        for entry in layer.entries().iter() {
            let value = Value::of_entry(layer.reader(), &layer.path, entry);
            if entry.key.is_empty() || entry.key.contains(['=', '\0']) {
                value.refuse("this cannot be the name of a variable");
            }
            let Some(text) = value.text() else { continue };
            if text.value.contains('\0') {
                value.refuse("a variable cannot hold a zero byte");
            }
            environment.insert(entry.key.to_string(), text.value);
        }
    }
    environment
}

fn env_file(value: &Value<'_>, base: &Path) -> Vec<(String, String)> {
    let Some(path) = path(value, base) else { return Vec::new() };
    let mut text = String::new();
    let read = read_regular(&path).and_then(|file| file.take(LONGEST_ENV_FILE + 1).read_to_string(&mut text));
    let fault = match read {
        Ok(length) if length as u64 > LONGEST_ENV_FILE => "it is longer than 1 MiB".to_owned(),
        Ok(_) => String::new(),
        Err(error) => reason(&error),
    };
    if !fault.is_empty() {
        value.refuse(format_args!("cannot read `{}`: {fault}", value.written()));
        return Vec::new();
    }
    env_file::parse(&text).unwrap_or_else(|error| {
        value.refuse(format_args!("`{}`: {error}", value.written()));
        Vec::new()
    })
}

fn http_path(text: &str) -> Result<String, &'static str> {
    let plain = text.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    if text.starts_with('/') && plain { Ok(text.to_owned()) } else { Err("is not a path such as `/health`") }
}

fn restart(app: &Section<'_>) -> Restart {
    let section = app.section("restart");
    let restart = Restart {
        backoff: section.duration("backoff"),
        max_backoff: section.positive_duration("max_backoff"),
    };
    if !app.is_faulty("restart")
        && restart.max_backoff < restart.backoff
        && let Some(value) = section.get("max_backoff").or_else(|| section.get("backoff"))
    {
        value.refuse("`max_backoff` is shorter than `backoff`");
    }
    restart
}

fn check_socket_path(app: &AppName, section: &Section<'_>, runtime_dir: &Path) {
    let socket = runtime_dir.join(app.as_str()).join(SOCKET_NAME);
    let length = socket.as_os_str().len();
    if length > LONGEST_SOCKET_PATH {
        section.refuse(format_args!(
            "its sockets `{}` would have {length} bytes, but a unix socket's path has at most {LONGEST_SOCKET_PATH}: \
             shorten `runtime_dir` or the app's name",
            socket.display()
        ));
    }
}
