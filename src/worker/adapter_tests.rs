use std::num::NonZeroU32;

use super::*;
use crate::config::model::{Account, HealthCheck, Recycle, Restart, WorkerCount};

fn spec(command: &str) -> WorkerSpec {
    WorkerSpec {
        command: shlex::split(command).expect("splits"),
        server: ServerKind::Auto,
        transport: Transport::Auto,
        workers: WorkerCount::fixed(1),
        concurrency: None,
        working_dir: "/srv".into(),
        gunicorn_conf: false,
        account: Account::Own,
        environment: BTreeMap::new(),
        healthcheck_path: None,
        healthcheck: HealthCheck {
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            retries: 3,
        },
        hang_timeout: Duration::from_secs(30),
        start_timeout: Duration::from_secs(60),
        drain_timeout: Duration::from_secs(30),
        stop_signal: 15,
        stop_grace_period: Duration::from_secs(10),
        restart: Restart { backoff: Duration::from_millis(200), max_backoff: Duration::from_secs(30) },
        nice: None,
        ulimits: Vec::new(),
        recycle: Recycle {
            max_requests: 0,
            jitter_percent: 0,
            max_lifetime: Duration::ZERO,
            max_memory: None,
        },
        memory_limit: None,
        before_start: Vec::new(),
        before_start_timeout: Duration::from_secs(300),
    }
}

fn planned(spec: &WorkerSpec) -> Plan {
    let app = "api".parse().expect("valid");
    plan_at(spec, &Place::new(&app, 2, 5, Path::new("/run/edge"), "4711".into()))
}

fn shown(plan: &Plan) -> (String, Vec<String>) {
    const ALWAYS: [&str; 5] =
        ["EDGE_APP", "EDGE_WORKER", "WEB_CONCURRENCY", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER"];
    let added = plan.environment.iter().filter(|(name, _)| !ALWAYS.contains(&name.as_str()));
    (plan.argv.join(" "), added.map(|(name, value)| format!("{name}={value}")).collect())
}

const SOCKET: &str = "/run/edge/api/2-5.sock";

#[test]
fn each_server_is_told_its_unix_socket_in_its_own_way() {
    let edge = format!("EDGE_SOCKET={SOCKET}");
    let cases: [(&str, String, Vec<String>, Duration); 8] = [
        (
            "uvicorn main:app",
            "uvicorn main:app".into(),
            vec![
                edge.clone(),
                "FORWARDED_ALLOW_IPS=*".into(),
                "UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN=8".into(),
                "UVICORN_TIMEOUT_KEEP_ALIVE=75".into(),
                format!("UVICORN_UDS={SOCKET}"),
            ],
            RAISED_IDLE,
        ),
        (
            "gunicorn a:b -k uvicorn_worker.UvicornWorker -b 0.0.0.0:80",
            "gunicorn a:b -k uvicorn_worker.UvicornWorker".into(),
            vec![
                edge.clone(),
                "FORWARDED_ALLOW_IPS=*".into(),
                format!("GUNICORN_CMD_ARGS=-b unix:{SOCKET} -w 1 --keep-alive 75 --graceful-timeout 8"),
                "XDG_RUNTIME_DIR=/run/edge/api".into(),
            ],
            RAISED_IDLE,
        ),
        (
            "hypercorn a:b",
            format!("hypercorn a:b -b unix:{SOCKET} -w 0 --keep-alive 75"),
            vec![edge.clone()],
            RAISED_IDLE,
        ),
        (
            "daphne -p 8000 a:b",
            format!("daphne a:b -u {SOCKET} --proxy-headers"),
            vec![edge.clone()],
            Duration::from_secs(50),
        ),
        (
            "granian --interface asgi a:b",
            "granian --interface asgi a:b".into(),
            vec![edge.clone(), format!("GRANIAN_UDS={SOCKET}"), "GRANIAN_WORKERS=1".into()],
            Duration::from_secs(25),
        ),
        (
            "waitress-serve a:b",
            format!(
                "waitress-serve --unix-socket={SOCKET} --unix-socket-perms=660 --trusted-proxy=* \
                 --trusted-proxy-headers=x-forwarded-for x-forwarded-proto a:b"
            ),
            vec![edge.clone()],
            RAISED_IDLE,
        ),
        (
            "bundle exec puma",
            format!("bundle exec puma -b unix://{SOCKET} -w 0"),
            vec![edge.clone()],
            Duration::from_secs(15),
        ),
        (
            "serve --at {socket} --name {app}-{worker}",
            format!("serve --at {SOCKET} --name api-2"),
            vec![edge.clone()],
            UNKNOWN_IDLE,
        ),
    ];
    for (command, argv, environment, idle) in cases {
        let plan = planned(&spec(command));
        assert_eq!(shown(&plan), (argv, environment), "{command}");
        assert_eq!(plan.wire, Wire::Unix, "{command}");
        assert_eq!(plan.idle_timeout, idle, "{command}");
    }
}

#[test]
fn each_server_is_told_its_loopback_port_in_its_own_way() {
    for (command, argv, environment) in [
        (
            "uvicorn a:b --host 0.0.0.0 --port 80",
            "uvicorn a:b",
            vec![
                "FORWARDED_ALLOW_IPS=127.0.0.1",
                "PORT=4711",
                "UVICORN_HOST=127.0.0.1",
                "UVICORN_PORT=4711",
                "UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN=8",
                "UVICORN_TIMEOUT_KEEP_ALIVE=75",
            ],
        ),
        (
            "fastapi run main.py --port 80",
            "fastapi run main.py --host 127.0.0.1 --port 4711",
            vec!["FORWARDED_ALLOW_IPS=127.0.0.1", "PORT=4711"],
        ),
        ("node server.js", "node server.js", vec!["PORT=4711"]),
        ("./serve", "./serve", vec!["PORT=4711"]),
        ("./serve :{port}", "./serve :4711", vec!["PORT=4711"]),
        ("daphne a:b", "daphne a:b -b 127.0.0.1 -p 4711 --proxy-headers", vec!["PORT=4711"]),
    ] {
        let plan = planned(&WorkerSpec { transport: Transport::Tcp, ..spec(command) });
        let environment: Vec<String> = environment.into_iter().map(str::to_owned).collect();
        assert_eq!(shown(&plan), (argv.to_owned(), environment), "{command}");
        assert_eq!(plan.wire, Wire::Tcp, "{command}");
    }
}

#[test]
fn auto_prefers_a_unix_socket_where_the_server_is_known_to_take_one() {
    for (command, wire) in [
        ("uvicorn a:b", Wire::Unix),
        ("fastapi run", Wire::Tcp),
        ("node x.js", Wire::Tcp),
        ("./serve", Wire::Tcp),
        ("edge hello", Wire::Unix),
        ("./serve {port} {socket}", Wire::Unix),
    ] {
        assert_eq!(planned(&spec(command)).wire, wire, "{command}");
    }
}

#[test]
fn a_synchronous_gunicorn_takes_one_request_and_one_connection_at_a_time() {
    for (command, concurrency, idle) in [
        ("gunicorn a:b", Some(1), Duration::ZERO),
        ("gunicorn a:b -k sync", Some(1), Duration::ZERO),
        ("gunicorn a:b --threads 4", Some(4), RAISED_IDLE),
        ("gunicorn a:b -k gthread --threads=8", Some(8), RAISED_IDLE),
        ("gunicorn a:b -k asgi --keep-alive 5", None, Duration::from_secs(4)),
        ("gunicorn a:b -c conf.py", None, UNKNOWN_IDLE),
        ("gunicorn a:b -w 4", None, Duration::ZERO),
    ] {
        let plan = planned(&spec(command));
        let found = plan.concurrency.map(NonZeroU32::get);
        assert_eq!((found, plan.idle_timeout), (concurrency, idle), "{command}");
        assert_eq!(plan.synchronous, concurrency.is_some() || command.contains("-w 4"), "{command}");
    }
}

#[test]
fn the_operators_concurrency_stands_above_the_servers() {
    for (command, written, concurrency, synchronous) in [
        ("gunicorn a:b", Some(0), None, true),
        ("gunicorn a:b", Some(3), Some(3), true),
        ("uvicorn a:b", Some(50), Some(50), false),
        ("uvicorn a:b", Some(1), Some(1), true),
        ("uvicorn a:b", None, None, false),
    ] {
        let plan = planned(&WorkerSpec { concurrency: written, ..spec(command) });
        let found = (plan.concurrency.map(NonZeroU32::get), plan.synchronous);
        assert_eq!(found, (concurrency, synchronous), "{command} {written:?}");
    }
}

#[test]
fn a_command_with_placeholders_keeps_its_own_address() {
    let plan = planned(&spec("uvicorn a:b --uds {socket}"));
    assert_eq!(plan.argv.join(" "), format!("uvicorn a:b --uds {SOCKET}"));
    assert!(!plan.environment.contains_key("UVICORN_UDS"));
    assert_eq!(plan.environment["FORWARDED_ALLOW_IPS"], "*");
    assert!(plan.notes.is_empty(), "{:?}", plan.notes);
}

#[test]
fn what_is_replaced_or_cannot_work_is_said() {
    for (command, part) in [
        ("gunicorn a:b -b :80", "`-b :80` is replaced"),
        ("uvicorn a:b --port 8000", "`--port 8000` is replaced"),
        ("granian a:b --port=8000", "`--port 8000` is replaced"),
        ("uvicorn a:b --reload", "`--reload` is for development: edge runs it as it is"),
        ("gunicorn --reload a:b", "in production leave it out, and `edge reload APP`"),
        ("fastapi run --reload main.py", "`--reload` is for development"),
        ("fastapi dev main.py", "`fastapi dev` is for development: edge runs it as it is"),
        ("python -m fastapi dev main.py", "in production use `fastapi run`"),
        ("hypercorn --reload a:b", "`--reload` is for development"),
        ("node --watch server.js", "`--watch` is for development"),
        ("npm run dev", "`dev` is for development"),
        ("python manage.py runserver", "in production use `gunicorn PROJECT.wsgi`"),
        ("bin/rails server", "set `RAILS_ENV: production`"),
        ("./serve --port $PORT", "write `{port}`"),
        ("rackup -p 3000", "`-p 3000` is left as it is"),
        ("npm start -- --port=3000", "`--port=3000` is left as it is"),
        ("./serve -addr :8080", "`-addr :8080` is left as it is"),
        ("php -S localhost:8000", "`localhost:8000` is left as it is: where it says on which port"),
        ("python manage.py runserver [::]:8000", "`[::]:8000` is left as it is"),
        ("sh -c 'exec uvicorn a:b'", "the script names `uvicorn`, which does not read `PORT`"),
        ("bash -lc 'cd /srv; venv/bin/waitress-serve a:b'", "set `server: waitress`"),
        ("hypercorn a:b", "serve `hypercorn.middleware.ProxyFixMiddleware(app)`"),
        ("granian a:b", "serve `granian.utils.proxies.wrap_asgi_with_proxy_headers(app"),
        ("gunicorn -k asgi a:b", "serve `uvicorn.middleware.proxy_headers.ProxyHeadersMiddleware(app"),
    ] {
        let notes = planned(&spec(command)).notes.join("\n");
        assert!(notes.contains(part), "{command}: {notes}");
    }
    for command in [
        "fastapi dev --no-reload main.py",
        "sh -c 'exec ./serve --port $PORT'",
        "bash -lc './serve ${PORT:-80}' x",
        "sh -c 'exec uvicorn a:b --port $PORT'",
        "sh -c 'exec uvicorn a:b --uds {socket}'",
        "sh -c 'exec fastapi run'",
        "rackup -p {port}",
        "bin/rails s -e production",
        "./serve -p 4 --redis db.internal:6379 --ratio 16:9",
    ] {
        let notes = planned(&spec(command)).notes;
        assert!(notes.is_empty(), "{command}: {notes:?}");
    }
    let unix = WorkerSpec { transport: Transport::Unix, ..spec("fastapi run") };
    assert!(planned(&unix).notes.join("\n").contains("cannot listen on a unix socket"));
}

#[test]
fn a_command_that_starts_its_own_workers_is_left_alone_and_counted() {
    let mut spec = spec("uvicorn a:b --workers 4");
    let plan = planned(&spec);
    assert_eq!(plan.argv.join(" "), "uvicorn a:b --workers 4");
    assert_eq!(plan.delegated, Some(4));
    spec.workers = WorkerCount::fixed(2);
    assert!(planned(&spec).notes.join("\n").contains("8 in all"));
}

#[test]
fn the_operators_gunicorn_options_are_kept_behind_edges() {
    let mut spec = spec("gunicorn a:b");
    spec.environment.insert("GUNICORN_CMD_ARGS".into(), "-b :80 --threads 3".into());
    let plan = planned(&spec);
    assert_eq!(
        plan.environment["GUNICORN_CMD_ARGS"],
        format!("-b unix:{SOCKET} -w 1 --keep-alive 75 --graceful-timeout 8 --threads 3")
    );
    assert_eq!(plan.concurrency.map(NonZeroU32::get), Some(3));
}

#[test]
fn each_gunicorn_that_may_write_a_pid_file_has_one_of_its_own() {
    let own = "--pid /run/edge/api/2-5.pid";
    let planned_with = |command: &str, gunicorn_conf: bool| {
        let plan = planned(&WorkerSpec { gunicorn_conf, ..spec(command) });
        (plan.environment["GUNICORN_CMD_ARGS"].contains(own), plan.argv.join(" "), plan.notes.join("\n"))
    };
    assert!(!planned_with("gunicorn a:b", false).0);
    assert!(planned_with("gunicorn a:b", true).0);
    assert!(planned_with("gunicorn -c conf.py a:b", false).0);
    let (has_own, command, notes) = planned_with("gunicorn -p /run/a.pid a:b", false);
    assert!(has_own, "{command}");
    assert_eq!(command, "gunicorn a:b");
    assert!(notes.contains("`-p /run/a.pid` is replaced: each worker has a pid file of its own"), "{notes}");
}

#[test]
fn servers_with_variables_of_their_own_are_told_by_them() {
    let told = |command: &str, name: &str| planned(&spec(command)).environment.get(name).cloned();
    assert_eq!(told("venv/bin/flask --app shop run", "FLASK_RUN_PORT").as_deref(), Some("4711"));
    assert_eq!(told("flask run -p {port}", "FLASK_RUN_PORT"), None);
    assert_eq!(told("python app.py", "FLASK_RUN_PORT"), None);
    assert_eq!(told("python -m streamlit run a.py", "STREAMLIT_SERVER_PORT").as_deref(), Some("4711"));
    assert_eq!(told("streamlit run a.py", "STREAMLIT_SERVER_ADDRESS").as_deref(), Some("127.0.0.1"));
}

#[test]
fn who_would_never_serve_is_warned_of_unless_the_operator_knows_better() {
    let warned = |command: &str| planned(&spec(command)).warnings.len();
    assert_eq!(warned("python manage.py runserver"), 1);
    assert_eq!(warned("celery -A a worker --detach"), 1, "the first reason is enough");
    assert_eq!(warned("python manage.py runserver {port}"), 0);
    assert_eq!(
        planned(&WorkerSpec { server: ServerKind::Generic, ..spec("celery -A a worker") }).warnings.len(),
        0
    );
}

#[test]
fn the_demo_worker_is_edges_own_executable() {
    assert_eq!(planned(&spec("edge hello")).program, Program::Edge);
    assert_eq!(planned(&spec("edge-hello")).program, Program::Named);
}

#[test]
fn a_plan_can_be_shown_before_a_port_is_chosen() {
    let app = "api".parse().expect("valid");
    let plan = plan(&app, &spec("fastapi run"), 0, Path::new("/run/edge"));
    assert_eq!(plan.argv.join(" "), "fastapi run --host 127.0.0.1 --port {port}");
    assert_eq!(plan.environment["PORT"], "{port}");
}

#[test]
fn what_a_file_or_a_script_may_say_of_concurrency_is_noted_as_unknown() {
    let unknown = |plan: &Plan| plan.notes.iter().any(|note| note.starts_with("concurrency unknown"));
    for (command, conf, concurrency) in [
        ("gunicorn a:b", false, Some(1)),
        ("poetry run gunicorn a:b", false, Some(1)),
        ("uv run gunicorn a:b", false, Some(1)),
        ("gunicorn a:b", true, None),
        ("gunicorn a:b -k gthread", true, None),
        ("gunicorn a:b -k sync", true, Some(1)),
        ("gunicorn a:b --threads 3", true, Some(3)),
        ("gunicorn -c x.py a:b", false, None),
        ("bash -c 'cd /srv && exec venv/bin/gunicorn a:b'", false, None),
    ] {
        let spec = WorkerSpec { gunicorn_conf: conf, ..spec(command) };
        let plan = planned(&spec);
        assert_eq!(plan.concurrency.map(NonZeroU32::get), concurrency, "{command} {conf}");
        assert_eq!(unknown(&plan), concurrency.is_none(), "{command} {conf}: {:?}", plan.notes);
        let set = planned(&WorkerSpec { concurrency: Some(2), ..spec });
        assert!(!unknown(&set) && set.concurrency == NonZeroU32::new(2), "{command}");
    }
    for command in ["gunicorn -k uvicorn_worker.UvicornWorker a:b", "bash -c 'exec uvicorn a:b'"] {
        assert!(!unknown(&planned(&WorkerSpec { gunicorn_conf: true, ..spec(command) })), "{command}");
    }
}

#[test]
fn each_rails_server_has_a_port_and_a_pid_file_of_its_own() {
    for (command, argv) in [
        ("bin/rails server", "bin/rails server -b 127.0.0.1 -p 4711 -P /run/edge/api/2-5.pid"),
        (
            "bundle exec rails s -e production -p 3000 --pid=tmp/x.pid",
            "bundle exec rails s -e production -b 127.0.0.1 -p 4711 -P /run/edge/api/2-5.pid",
        ),
        ("bin/rails s -p {port}", "bin/rails s -p 4711 -P /run/edge/api/2-5.pid"),
    ] {
        let plan = planned(&spec(command));
        assert_eq!((plan.server, plan.wire), (ServerKind::Rails, Wire::Tcp), "{command}");
        assert_eq!(plan.argv.join(" "), argv);
        assert_eq!(plan.environment["PIDFILE"], "/run/edge/api/2-5.pid");
    }
    let replaced = planned(&spec("bin/rails s --pid=tmp/x.pid -p 3000")).notes;
    assert!(replaced.join("\n").contains("`--pid tmp/x.pid` is replaced"), "{replaced:?}");
    let unix = WorkerSpec { transport: Transport::Unix, ..spec("bin/rails s") };
    assert!(planned(&unix).notes.join("\n").contains("`rails server` cannot listen on a unix socket"));
}

#[test]
fn a_shells_own_options_are_no_servers() {
    let told = WorkerSpec { server: ServerKind::Gunicorn, ..spec("sh -c 'exec gunicorn a:b'") };
    let notes = planned(&told).notes.join("\n");
    assert!(notes.contains("what the script says is not read"), "{notes}");
    let script = "bash -e -c 'exec daphne a:b \"$@\"' bash";
    let daphne = WorkerSpec { server: ServerKind::Daphne, ..spec(script) };
    let plan = planned(&daphne);
    assert_eq!(plan.argv[1..3], ["-e", "-c"]);
    assert_eq!(plan.argv[5..], ["-u", SOCKET, "--proxy-headers"]);
    let waitress =
        WorkerSpec { server: ServerKind::Waitress, ..spec("sh -c 'exec waitress-serve \"$@\"' sh a:b") };
    let argv = planned(&waitress).argv;
    assert!(
        argv[3] == "sh" && argv[4].starts_with("--unix-socket=") && argv.ends_with(&["a:b".into()]),
        "{argv:?}"
    );
}
