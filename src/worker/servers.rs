//! What each server program has to be told, and how: where to listen, whose forwarded headers to believe, how long to keep
//! idle connections. Facts about a program stand at its function.

use std::net::IpAddr;
use std::time::Duration;

use crate::config::model::ServerKind;
use crate::worker::adapter::{Draft, Place, RAISED_IDLE, Wire};
use crate::worker::flags::Command;
use crate::worker::program;

/// Edge asks servers to keep idle connections this long, in seconds …
const RAISED: &str = "75";
/// What some applications do not see unless they are wrapped.
const BOTH: &str = "https and the client's address";

impl Draft<'_> {
    /// A unix socket's peer has no address a server could trust by; the directory around it is what keeps others out.
    fn trust(&mut self) {
        self.set("FORWARDED_ALLOW_IPS", if self.wire == Wire::Unix { "*" } else { "127.0.0.1" });
    }

    /// Every option can be given as `UVICORN_…`; a flag beats the variable of the same name, `UVICORN_UDS` beats
    /// `--host` and `--port`.
    pub(super) fn uvicorn(&mut self) {
        self.replace(&["--uds", "--fd", "--host", "--port"]);
        match self.wire {
            Wire::Unix => self.address("UVICORN_UDS", self.socket.clone()),
            Wire::Tcp => {
                self.address("UVICORN_HOST", "127.0.0.1");
                self.address("UVICORN_PORT", self.port.clone());
            }
        }
        self.set("UVICORN_TIMEOUT_KEEP_ALIVE", RAISED);
        self.set("UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN", self.grace.to_string());
        self.keep_alive(&["--timeout-keep-alive"]);
        self.trust();
    }

    /// No unix socket, no keep-alive option (5 s), and `0.0.0.0` unless told otherwise.
    pub(super) fn fastapi(&mut self) {
        self.replace(&["--host", "--port"]);
        if !self.told {
            self.command.append(["--host", "127.0.0.1", "--port", &self.port]);
        }
        self.idle_timeout = Duration::from_secs(4);
        self.trust();
    }

    /// Reads options from a variable; the command's own beat those, and several `-b` add up.
    /// Without `-c` it reads `gunicorn.conf.py` of the directory it starts in (`conf`).
    pub(super) fn gunicorn(&mut self, place: &Place, conf: bool) {
        const BIND: [&str; 2] = ["-b", "--bind"];
        const PID: [&str; 2] = ["-p", "--pid"];
        self.replace(&BIND);
        let mut own = match self.user.get("GUNICORN_CMD_ARGS").and_then(|text| shlex::split(text)) {
            Some(words) => Command::new(words, 0),
            None => Command::new(Vec::new(), 0),
        };
        let mut words = Vec::new();
        // It refuses to start where the file names another that lives, such as the worker beside it.
        let files = [self.command.take(&PID), own.take(&PID)].concat();
        for (name, value) in &files {
            self.notes.push(format!("`{name} {value}` is replaced: each worker has a pid file of its own"));
        }
        if !files.is_empty() || conf || self.scripted || self.names_a_file(&own) {
            words.extend(["--pid".to_owned(), place.pid_file().display().to_string()]);
        }
        if !self.told {
            own.take(&BIND);
            let address = match self.wire {
                Wire::Unix => format!("unix:{}", self.socket),
                Wire::Tcp => format!("127.0.0.1:{}", self.port),
            };
            words.extend(["-b".to_owned(), address]);
        }
        let grace = self.grace.to_string();
        words.extend(["-w", "1", "--keep-alive", RAISED, "--graceful-timeout", &grace].map(str::to_owned));
        words.extend(own.into_words());
        let options = shlex::try_join(words.iter().map(String::as_str));
        // A NUL is all that cannot be joined, and no environment value holds one.
        self.set("GUNICORN_CMD_ARGS", options.unwrap_or_default());
        // Where newer versions put a control socket, one path for all of a user's gunicorns; older versions do not know the
        // option that turns it off.
        if let Some(directory) = place.socket.parent() {
            self.set("XDG_RUNTIME_DIR", directory.display().to_string());
        }
        self.trust();
        self.gunicorn_kind(&Command::new(words, 0), conf);
    }

    fn names_a_file(&self, own: &Command) -> bool {
        [&self.command, own].iter().any(|words| words.value(&["-c", "--config"]).is_some())
    }

    fn gunicorn_kind(&mut self, options: &Command, conf: bool) {
        let ask = |names: &[&str]| self.command.value(names).or_else(|| options.value(names));
        let class = ask(&["-k", "--worker-class"]);
        let threads = ask(&["--threads"]).and_then(|text| text.parse::<u32>().ok());
        let file = match ask(&["-c", "--config"]) {
            Some(_) => Some("the file of `-c`"),
            None if self.scripted => Some("the script"),
            None => conf.then_some("`gunicorn.conf.py`"),
        };
        match (class.as_deref(), threads) {
            (None | Some("gthread"), None) if file.is_some() => self.unseen = file,
            (None | Some("sync"), None | Some(0 | 1)) => {
                // Answers every request with `Connection: close` and takes the next when that is done.
                self.idle_timeout = Duration::ZERO;
                self.concurrency = Some(1);
            }
            (None | Some("sync" | "gthread"), threads) => {
                self.concurrency = Some(threads.unwrap_or(1));
                self.keep_alive(&["--keep-alive"]);
            }
            (Some(class), _) => {
                self.keep_alive(&["--keep-alive"]);
                if class == "asgi" {
                    let wrap = "uvicorn.middleware.proxy_headers.ProxyHeadersMiddleware";
                    let wrapped = format!("{wrap}(app, trusted_hosts=\"*\")");
                    self.note_wrapper("gunicorn's asgi worker", "the client's address", &wrapped);
                }
            }
        }
    }

    /// Options only; several `-b` add up.
    pub(super) fn hypercorn(&mut self) {
        self.replace(&["-b", "--bind"]);
        if !self.told {
            let address = match self.wire {
                Wire::Unix => format!("unix:{}", self.socket),
                Wire::Tcp => format!("127.0.0.1:{}", self.port),
            };
            self.command.append(["-b", &address]);
        }
        if self.command.value(&["-w", "--workers"]).is_none() {
            // Without a supervising process of its own, which would end with status 0 when its child dies.
            self.command.append(["-w", "0"]);
        }
        self.keep_alive(&["--keep-alive"]);
        if self.command.value(&["--keep-alive"]).is_none() {
            self.command.append(["--keep-alive", RAISED]);
        }
        self.note_wrapper("hypercorn", BOTH, "hypercorn.middleware.ProxyFixMiddleware(app)");
    }

    /// Options only; keeps idle connections 60 s.
    pub(super) fn daphne(&mut self) {
        self.replace(&["-u", "--unix-socket", "-b", "--bind", "-p", "--port", "--fd", "-e", "--endpoint"]);
        if !self.told {
            match self.wire {
                Wire::Unix => self.command.append(["-u", &self.socket]),
                Wire::Tcp => self.command.append(["-b", "127.0.0.1", "-p", &self.port]),
            }
        }
        if !self.command.has("--proxy-headers") {
            self.command.append(["--proxy-headers"]);
        }
        self.idle_timeout = Duration::from_secs(50);
    }

    /// Every option can be given as `GRANIAN_…`; a flag beats the variable of the same name. Keeps idle connections 30 s.
    pub(super) fn granian(&mut self) {
        self.replace(&["--uds", "--host", "--port"]);
        match self.wire {
            Wire::Unix => self.address("GRANIAN_UDS", self.socket.clone()),
            Wire::Tcp => {
                self.address("GRANIAN_HOST", "127.0.0.1");
                self.address("GRANIAN_PORT", self.port.clone());
            }
        }
        self.set("GRANIAN_WORKERS", "1");
        self.idle_timeout = Duration::from_secs(25);
        let wrap = "wrap_asgi_with_proxy_headers(app, trusted_hosts=\"*\")";
        self.note_wrapper("granian", BOTH, &format!("granian.utils.proxies.{wrap}"));
    }

    /// Options only, and only before the application; keeps idle connections 120 s.
    pub(super) fn waitress(&mut self) {
        self.replace(&["--listen", "--host", "--port", "--unix-socket", "--unix-socket-perms"]);
        let mut options = Vec::new();
        if !self.told {
            match self.wire {
                Wire::Unix => {
                    options.push(format!("--unix-socket={}", self.socket));
                    options.push("--unix-socket-perms=660".to_owned());
                }
                Wire::Tcp => options.push(format!("--listen=127.0.0.1:{}", self.port)),
            }
        }
        if self.command.value(&["--trusted-proxy"]).is_none() {
            let peer = if self.wire == Wire::Unix { "*" } else { "127.0.0.1" };
            options.push(format!("--trusted-proxy={peer}"));
            if self.command.value(&["--trusted-proxy-headers"]).is_none() {
                options.push("--trusted-proxy-headers=x-forwarded-for x-forwarded-proto".to_owned());
            }
        }
        self.command.insert(options);
        self.keep_alive(&["--channel-timeout"]);
    }

    /// `server.listen(process.env.PORT)` takes a port or a path; closes idle connections after 5 s.
    pub(super) fn node(&mut self) {
        if !self.told {
            let address = if self.wire == Wire::Unix { self.socket.clone() } else { self.port.clone() };
            self.set("PORT", address);
        }
        self.fixed_port_note();
        self.idle_timeout = Duration::from_secs(4);
    }

    /// Options beat the configuration file; keeps idle connections 20 s, newer versions 65 s.
    pub(super) fn puma(&mut self) {
        self.replace(&["-b", "--bind", "-p", "--port"]);
        if !self.told {
            let address = match self.wire {
                Wire::Unix => format!("unix://{}", self.socket),
                Wire::Tcp => format!("tcp://127.0.0.1:{}", self.port),
            };
            self.command.append(["-b", &address]);
        }
        if self.command.value(&["-w", "--workers"]).is_none() {
            self.command.append(["-w", "0"]);
        }
        self.idle_timeout = Duration::from_secs(15);
    }

    /// Options only; a port, for not every version takes a unix socket. One that finds the pid file of another refuses to start,
    /// and `config/puma.rb`, as it is generated, writes the same file by `PIDFILE`: each worker has its own.
    pub(super) fn rails(&mut self, place: &Place) {
        self.replace(&["-b", "--binding", "-p", "--port"]);
        if !self.told {
            self.command.append(["-b", "127.0.0.1", "-p", &self.port]);
        }
        for (name, value) in self.command.take(&["-P", "--pid"]) {
            self.notes.push(format!("`{name} {value}` is replaced: each worker has a pid file of its own"));
        }
        let pid_file = place.pid_file().display().to_string();
        self.command.append(["-P", &pid_file]);
        self.set("PIDFILE", pid_file);
        let is_named = ["RAILS_ENV", "RACK_ENV"].iter().any(|name| self.user.contains_key(*name))
            || self.command.value(&["-e", "--environment"]).is_some();
        if !is_named {
            self.notes.push(
                "Rails runs in its `development` environment: set `RAILS_ENV: production` under `environment`".to_owned(),
            );
        }
        self.idle_timeout = Duration::from_secs(15);
    }

    /// Flask's own server and Streamlit read variables of their own instead of `PORT`; their options beat those.
    pub(super) fn generic(&mut self, hello: bool, command: &[String]) {
        if hello {
            self.idle_timeout = RAISED_IDLE;
        }
        match (program::name(command), self.wire) {
            ("flask", Wire::Tcp) => self.address("FLASK_RUN_PORT", self.port.clone()),
            ("streamlit", Wire::Tcp) => {
                self.address("STREAMLIT_SERVER_PORT", self.port.clone());
                self.address("STREAMLIT_SERVER_ADDRESS", "127.0.0.1");
                self.set("STREAMLIT_SERVER_HEADLESS", "true");
            }
            (_, Wire::Tcp | Wire::Unix) => {}
        }
        self.fixed_port_note();
    }

    /// Which option of an unknown program says where it listens is not known, so none is replaced.
    fn fixed_port_note(&mut self) {
        if self.told || self.scripted {
            return;
        }
        if let Some(fixed) = insists_on_a_port(self.command.arguments()) {
            self.notes.push(format!(
                "`{fixed}` is left as it is: where it says on which port this program listens, write `{{port}}` for that port, \
                 or leave it out where the program reads `PORT`"
            ));
        }
    }

    /// Servers that watch their files and begin anew when one changes. They serve, but not as edge would have them.
    pub(super) fn reloader_notes(&mut self, server: ServerKind) {
        let has = |word: &str| self.command.has(word);
        let (word, instead) = match server {
            ServerKind::Fastapi if has("dev") && !has("--no-reload") => ("fastapi dev", "use `fastapi run`"),
            ServerKind::Uvicorn
            | ServerKind::Fastapi
            | ServerKind::Gunicorn
            | ServerKind::Hypercorn
            | ServerKind::Granian
                if has("--reload") =>
            {
                ("--reload", "leave it out")
            }
            ServerKind::Node if has("--watch") => ("--watch", "leave it out"),
            ServerKind::Node if has("dev") => ("dev", "build it and use `start`"),
            ServerKind::Generic if has("runserver") => ("runserver", "use `gunicorn PROJECT.wsgi`"),
            ServerKind::Auto
            | ServerKind::Uvicorn
            | ServerKind::Fastapi
            | ServerKind::Gunicorn
            | ServerKind::Hypercorn
            | ServerKind::Daphne
            | ServerKind::Granian
            | ServerKind::Waitress
            | ServerKind::Node
            | ServerKind::Puma
            | ServerKind::Rails
            | ServerKind::Generic => return,
        };
        self.notes.push(format!(
            "`{word}` is for development: edge runs it as it is, but when a file changes it begins anew by itself, and edge \
             cannot spare the requests that are open; in production {instead}, and `edge reload APP` brings new code"
        ));
    }

    /// There is no option by which this server would believe edge.
    fn note_wrapper(&mut self, server: &str, what: &str, wrapped: &str) {
        self.notes.push(format!(
            "{server} has no option to trust forwarded headers: to see {what}, serve `{wrapped}`"
        ));
    }
}

/// The first argument that looks like the port a program is to listen on.
fn insists_on_a_port(arguments: &[String]) -> Option<String> {
    const OPTIONS: [&str; 9] =
        ["-p", "--port", "-b", "--bind", "--listen", "-addr", "--addr", "--address", "--http"];
    arguments.iter().enumerate().find_map(|(at, word)| {
        let (name, value) = match (word.split_once('='), arguments.get(at + 1)) {
            (Some(both), _) => both,
            (None, Some(next)) => (word.as_str(), next.as_str()),
            (None, None) => (word.as_str(), ""),
        };
        let is_option = OPTIONS.contains(&name) && (is_port(value) || is_address(value));
        match (is_option, word.contains('=')) {
            (true, false) => Some(format!("{name} {value}")),
            (true, true) => Some(word.clone()),
            (false, _) => is_address(word).then(|| word.clone()),
        }
    })
}

fn is_port(text: &str) -> bool {
    const FIRST_FREE_TO_ALL: u16 = 1024;
    text.parse().is_ok_and(|port| port >= FIRST_FREE_TO_ALL || [80, 443].contains(&port))
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        is_port(port) && (["", "*", "localhost"].contains(&host) || bare.parse::<IpAddr>().is_ok())
    })
}
