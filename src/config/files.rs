//! Tests against whole files: those of `config/`, and the collection in `tests/config/`.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use crate::config::key::Shape;
use crate::config::key::{Place, Preset};
use crate::config::keys::KEYS;
use crate::config::load::load;
use crate::config::model::{App, Backend, Config, Tls};
use crate::config::raw::{self, Node, Value};
use crate::config::surroundings::Surroundings;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// An ordinary user with four CPUs.
fn surroundings() -> Surroundings {
    let variables =
        [("HOME", "/home/ada"), ("SECRET", "hunter2"), ("HOST", "env.example.com"), ("EMPTY", "")];
    Surroundings {
        variables: variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        uid: 3_999_999,
        gid: 3_999_999,
        cpus: NonZeroUsize::new(4).expect("not 0"),
        open_files: 524_288,
    }
}

fn as_root() -> Surroundings {
    Surroundings { uid: 0, gid: 0, variables: BTreeMap::new(), ..surroundings() }
}

fn loaded(text: &str, surroundings: &Surroundings) -> Result<Config, String> {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("edge.yaml");
    std::fs::write(&file, text).expect("written");
    std::fs::write(dir.path().join("some.file"), "NAME=VALUE\n").expect("written");
    std::fs::write(dir.path().join("some.pem"), include_bytes!("../../tests/config/files/ca.pem"))
        .expect("written");
    std::fs::write(dir.path().join("some.key"), "aHVudGVyMg==\n").expect("written");
    std::fs::write(dir.path().join("tsig.key"), "c2l4dGVlbiBieXRlcyBvcg==\n").expect("written");
    let here = |text: String| text.replace(&*dir.path().to_string_lossy(), "DIR");
    match load(&file, surroundings) {
        // The directory is another each time; two files are compared as if they stood in one.
        Ok(mut config) => {
            config.file = "edge.yaml".into();
            for app in &mut config.apps {
                let mut changed = App::clone(app);
                if let Backend::Workers(spec) = &mut changed.backend {
                    spec.working_dir = here(spec.working_dir.display().to_string()).into();
                }
                *app = changed.into();
            }
            Ok(config)
        }
        Err(problems) => Err(here(problems.to_string())),
    }
}

fn problems(text: &str) -> String {
    loaded(text, &surroundings()).expect_err(text).replace("DIR/", "")
}

const SMALLEST: &str = "apps: {api: {domains: [api.example.com], command: uvicorn main:app}}\n";

#[test]
fn every_file_in_the_collection_is_judged_as_recorded() {
    let dir = root().join("tests/config");
    let mut files: Vec<_> =
        std::fs::read_dir(&dir).expect("tests/config").map(|f| f.expect("entry").path()).collect();
    files.sort();
    let mut judged = 0;
    for file in files.iter().filter(|file| file.extension().is_some_and(|kind| kind == "yaml")) {
        let name = file.file_name().expect("named").to_string_lossy().into_owned();
        let result = load(file, &surroundings());
        assert_eq!(result.is_ok(), name.starts_with("good-"), "{name}: {result:?}");
        let text = match result {
            Ok(config) => format!("{config:#?}\n"),
            Err(problems) => format!("{problems}\n"),
        };
        let text =
            text.replace(&format!("{}/", dir.display()), "").replace(&dir.display().to_string(), "DIR");
        let expected = file.with_extension("expected");
        if std::env::var_os("EDGE_RECORD").is_some() {
            std::fs::write(&expected, &text).expect("recorded");
        }
        let recorded = std::fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(text, recorded, "{name} (EDGE_RECORD=1 records anew)");
        assert!(!text.contains("hunter2"), "{name} prints a secret");
        judged += 1;
    }
    assert!(judged >= 10);
}

#[test]
fn the_shipped_files_are_valid_for_root_and_for_others() {
    for file in ["config/edge.yaml", "config/demo.yaml", "config/reference.yaml"] {
        for surroundings in [surroundings(), as_root()] {
            load(&root().join(file), &surroundings).unwrap_or_else(|problems| panic!("{problems}"));
        }
    }
}

#[test]
fn the_reference_holds_every_key_with_its_sentence_and_its_default() {
    let text = std::fs::read_to_string(root().join("config/reference.yaml")).expect("reference.yaml");
    let open: String =
        text.lines().map(|line| uncommented(line).unwrap_or_else(|| line.to_owned()) + "\n").collect();
    let tree = raw::parse(&open).root.expect("YAML also with the commented keys");
    let mut written = BTreeMap::new();
    leaves(&tree, "", &mut written);
    let written_paths: BTreeSet<_> = written.keys().map(String::as_str).collect();
    assert_eq!(written_paths, KEYS.iter().map(|key| key.path).collect());

    let lines: Vec<_> = text.lines().collect();
    for key in KEYS {
        let line = written[key.path] - 1;
        let above = lines[line - 1].trim().trim_start_matches("# ");
        let sentence = match key.preset {
            Preset::Found(how) => format!("{} Default: {how}.", key.about),
            Preset::Is(_) | Preset::Nothing => key.about.to_owned(),
        };
        assert_eq!(above, sentence, "{}", key.path);
        let shown = lines[line].trim().split_once(": ").expect("a value").1;
        match key.preset {
            Preset::Is(default) => {
                assert_eq!((shown, uncommented(lines[line])), (default, None), "{}", key.path)
            }
            Preset::Found(_) | Preset::Nothing => {
                let needed = ["apps.NAME.domains", "apps.NAME.command"].contains(&key.path);
                assert_eq!(uncommented(lines[line]).is_none(), needed, "{}", key.path);
            }
        }
    }
    let domains = "[api.example.com, www.api.example.com]";
    let smallest = SMALLEST.replace("[api.example.com]", domains);
    assert_eq!(
        loaded(&text, &surroundings()),
        loaded(&smallest, &surroundings()),
        "its defaults are the code's"
    );
}

#[test]
fn the_schema_has_every_key_and_the_words_that_the_checker_knows() {
    let schema = crate::config::schema::schema();
    for key in KEYS {
        let mut path = key.path.replace('.', "/properties/");
        path = match path.strip_prefix("apps/properties/NAME/") {
            Some(path) => format!("/$defs/app/{path}"),
            None => format!("/properties/{path}"),
        };
        let found = schema.pointer(&path).unwrap_or_else(|| panic!("{path}"));
        assert!(found["description"].as_str().is_some_and(|text| text.starts_with(key.about)), "{path}");
        for (path, words) in words_of(key.path, key.shape) {
            let said = problems(&with_value(&path, "nonsense"));
            match said.split_once(" is not one of ") {
                Some((_, known)) => {
                    let known: Vec<_> = known.split('`').skip(1).step_by(2).collect();
                    assert_eq!(known, words, "{path}");
                }
                None => {
                    for word in words {
                        let said =
                            loaded(&with_value(&path, word), &surroundings()).err().unwrap_or_default();
                        assert!(!said.contains(&format!("`{word}` ")), "{path}: {said}");
                    }
                }
            }
        }
    }
}

/// The keys at `path` or below that take only some words, and these.
fn words_of(path: &str, shape: Shape) -> Vec<(String, &'static [&'static str])> {
    match shape {
        Shape::Word(words) => vec![(path.to_owned(), words)],
        Shape::Many(one) => words_of(path, *one),
        Shape::Any(shapes) => shapes.iter().flat_map(|shape| words_of(path, *shape)).collect(),
        Shape::Map(fields) => {
            fields.iter().flat_map(|(name, shape)| words_of(&format!("{path}.{name}"), *shape)).collect()
        }
        Shape::Text
        | Shape::Flag
        | Shape::Count
        | Shape::Duration
        | Shape::Size
        | Shape::Names(_)
        | Shape::Apps => Vec::new(),
    }
}

/// The smallest file with `value` at `path`.
fn with_value(path: &str, value: &str) -> String {
    let mut text =
        String::from("apps:\n  api:\n    domains: [api.example.com]\n    command: uvicorn main:app\n");
    let (path, mut indent) = match path.strip_prefix("apps.NAME.") {
        Some(path) => (path, 4),
        None => (path, 0),
    };
    for name in path.split('.') {
        text += &format!("{:indent$}{name}:\n", "");
        indent += 2;
    }
    text + &format!("{:indent$}{value}\n", "")
}

/// `#key: value` without the `#`; sentences have a space after it.
fn uncommented(line: &str) -> Option<String> {
    let (indent, rest) = line.split_once('#')?;
    let key = rest.starts_with(|c: char| c.is_ascii_lowercase());
    (indent.trim().is_empty() && key).then(|| format!("{indent}{rest}"))
}

/// The line of each key of the table, apps called NAME.
fn leaves(node: &Node, path: &str, found: &mut BTreeMap<String, usize>) {
    let Value::Map(entries) = &node.value else { panic!("{path} is not a mapping") };
    for entry in entries.iter() {
        let name = if path == "apps" { "NAME" } else { &*entry.key };
        let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let inner = KEYS.iter().any(|key| key.path.starts_with(&format!("{path}.")));
        if inner {
            leaves(&entry.value, &path, found);
        } else {
            found.insert(path, entry.at.line);
        }
    }
}

#[test]
fn every_key_of_the_table_changes_something() {
    let other = |path: &str| match path {
        "email" => "a@b.example",
        "acme.ca" => "letsencrypt-staging",
        "acme.ca_root" => "some.pem",
        "apps.NAME.env_file" => "some.file",
        "acme.key_type" => "p384",
        "acme.challenges" => "[tls-alpn-01]",
        "acme.profile" => "tlsserver",
        "acme.eab" => "{kid: id, hmac_key_file: some.key}",
        "acme.self_check" => "false",
        "acme.dns.exec" => "/bin/true",
        "acme.dns.rfc2136" => "{server: 192.0.2.53, key_name: edge, key_file: tsig.key}",
        "acme.dns.resolvers" | "acme.dns.name_servers" => "[192.0.2.1, '[::1]:5353']",
        "storage" | "runtime_dir" | "admin" => "/other",
        "listen.http" | "listen.https" => "[\":8000\"]",
        "metrics" => "127.0.0.1:9090",
        "trusted_proxies" | "proxy_protocol" => "10.0.0.0/8",
        "threads" | "apps.NAME.workers" | "apps.NAME.concurrency" | "apps.NAME.queue.size" => "7",
        "limits.header_fields" | "limits.response_header_fields" | "limits.trailer_fields" => "7",
        "limits.interim_responses" => "7",
        "apps.NAME.sticky" => "ip",
        "apps.NAME.protocol" => "h2c",
        "log.level" => "debug",
        "log.format" => "json",
        "log.access" => "/var/log/access.log",
        "defaults" => "{max_body: 1KB}",
        "apps.NAME.domains" => "[other.example.com]",
        "apps.NAME.command" => "gunicorn app",
        "apps.NAME.server" => "generic",
        "apps.NAME.transport" => "tcp",
        "apps.NAME.working_dir" => "/",
        "apps.NAME.user" => "root",
        "apps.NAME.group" => "12345",
        "apps.NAME.environment" => "{A: b}",
        "apps.NAME.healthcheck.path" => "/health",
        "apps.NAME.healthcheck.retries" => "2",
        "apps.NAME.ulimits" => "{nofile: 100}",
        "apps.NAME.nice" => "5",
        "apps.NAME.max_requests" => "1000",
        "apps.NAME.max_requests_jitter" => "5%",
        "apps.NAME.max_memory" | "apps.NAME.memory_limit" => "1GB",
        "apps.NAME.before_start" => "[alembic upgrade head]",
        "apps.NAME.stop_signal" => "SIGINT",
        "apps.NAME.tls" => "internal",
        "apps.NAME.client_auth" => "{ca: some.file, mode: request}",
        "apps.NAME.http" => "serve",
        "apps.NAME.redirect_to" => "api.example.com",
        "apps.NAME.hsts" | "apps.NAME.default" => "true",
        "apps.NAME.max_body" => "1KB",
        "limits.connection_window" => "64KiB",
        path if path.starts_with("limits.") => "1001",
        _ => "7s", // the rest are durations
    };
    let smallest = loaded(SMALLEST, &as_root());
    for key in KEYS.iter().filter(|key| key.path != "apps.NAME.upstream") {
        let value = other(key.path);
        let mut lines = vec![
            ("apps.api.domains", "[api.example.com]".to_owned()),
            ("apps.api.command", "uvicorn main:app".to_owned()),
        ];
        let path = key.path.replace("NAME", "api");
        lines.retain(|(known, _)| *known != path);
        lines.push((&path, value.to_owned()));
        let config = loaded(&nested(&lines), &as_root());
        let config = config.unwrap_or_else(|problems| panic!("{problems}"));
        assert_ne!(Ok(config), smallest, "{}", key.path);

        if matches!(key.place, Place::App | Place::Worker) {
            lines.pop();
            let path = key.path.replace("apps.NAME", "defaults");
            lines.push((&path, value.to_owned()));
            let config = loaded(&nested(&lines), &as_root());
            let config = config.unwrap_or_else(|problems| panic!("{problems}"));
            assert_ne!(Ok(config), smallest, "{path}");
        }
    }
}

/// Dotted paths as nested flow mappings.
fn nested(lines: &[(&str, String)]) -> String {
    let mut groups: BTreeMap<&str, Vec<(&str, String)>> = BTreeMap::new();
    let mut parts = Vec::new();
    for (path, value) in lines {
        match path.split_once('.') {
            Some((first, rest)) => groups.entry(first).or_default().push((rest, value.clone())),
            None => parts.push(format!("{path}: {value}")),
        }
    }
    parts.extend(groups.iter().map(|(first, rest)| format!("{first}: {}", nested(rest))));
    format!("{{{}}}", parts.join(", "))
}

#[test]
fn each_domain_of_an_auto_app_gets_the_certificate_it_can_have() {
    let text = "apps: {a: {domains: [a.example.com, localhost, x.localhost, '*.y.test', intranet, 10.0.0.1, '::1', db.internal], upstream: '10.0.0.9:80'}}";
    let config = loaded(text, &surroundings()).expect("valid");
    let app = &config.apps[0];
    let kinds: Vec<_> = app.domains.iter().map(|domain| app.tls_for(domain)).collect();
    assert_eq!(kinds[0], Tls::Acme);
    assert!(kinds[1..].iter().all(|tls| *tls == Tls::Internal), "{kinds:?}");
}

#[test]
fn directories_follow_the_service_manager_then_root_then_the_user() {
    let with = |variables: &[(&str, &str)], uid| {
        let variables = variables.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        loaded(SMALLEST, &Surroundings { variables, uid, ..surroundings() })
            .map(|config| [config.storage, config.runtime_dir, config.admin])
    };
    let paths = |a: &str, b: &str, c: &str| Ok([PathBuf::from(a), PathBuf::from(b), PathBuf::from(c)]);
    assert_eq!(with(&[], 0), paths("/var/lib/edge", "/run/edge", "/run/edge/admin.sock"));
    let systemd = [("STATE_DIRECTORY", "/s/edge:/s/b"), ("RUNTIME_DIRECTORY", "/r/edge")];
    assert_eq!(with(&systemd, 0), paths("/s/edge", "/r/edge", "/r/edge/admin.sock"));
    // Nobody with that number owns /root, so the inherited variable is not believed.
    let inherited = [("HOME", "/home/ada"), ("XDG_RUNTIME_DIR", "/root")];
    let own = paths("/home/ada/.local/state/edge", "/tmp/edge-3999999", "/tmp/edge-3999999/admin.sock");
    assert_eq!(with(&inherited, 3_999_999), own);
    let home = with(&[("HOME", "relative")], 3_999_999).expect_err("no home");
    assert!(home.contains("`storage` has no default without $HOME: set it"), "{home}");
}

#[test]
fn a_missing_file_is_a_problem_like_any_other() {
    let missing = load(Path::new("/no/such/edge.yaml"), &surroundings()).expect_err("missing");
    assert_eq!(missing.to_string(), "/no/such/edge.yaml: cannot read the file: no such file or directory");
    let dir = load(Path::new("/"), &surroundings()).expect_err("a directory");
    assert_eq!(dir.to_string(), "/: cannot read the file: it is not a regular file");
}

#[test]
fn a_file_in_another_encoding_is_told_of_where_it_begins() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("edge.yaml");
    std::fs::write(&file, b"# caf\xc3\xa9\n# \xc3\xa9 caf\xe9\napps: {}\n").expect("written");
    let told = load(&file, &surroundings()).expect_err("Latin-1").to_string();
    assert!(told.contains("edge.yaml:2:8: the file is not UTF-8 text"), "{told}");
}

#[test]
fn what_would_leave_a_name_without_a_certificate_for_ever_is_refused() {
    for (text, told) in [
        ("acme: {ca: []}", "acme.ca: lists no CA"),
        ("acme: {ca: [letsencrypt, zerossl, letsencrypt]}", "acme.ca[2]: `letsencrypt` is listed twice"),
    ] {
        let all = problems(&format!("{text}\n{SMALLEST}"));
        assert!(all.contains(told), "{all}");
    }
    for name in ["10.0.0.256", "1.2.3", "'*.example.7'", "010.0.0.1"] {
        let all = problems(&SMALLEST.replace("api.example.com", name));
        assert!(all.contains("is no address, and no name ends in a number"), "{name}: {all}");
    }
}

#[test]
fn a_shells_word_for_the_home_is_no_path() {
    for key in ["storage", "runtime_dir", "admin"] {
        let all = problems(&format!("{key}: ~/edge\n{SMALLEST}"));
        assert!(all.contains(&format!("{key}: `~/edge` begins with `~`")), "{all}");
        loaded(&format!("{key}: /tmp/a~\n{SMALLEST}"), &surroundings()).expect("an ordinary name");
    }
}

#[test]
fn values_of_the_environment_are_never_printed() {
    let text = SMALLEST.replace("main:app}", "'main:app ${SECRET}', environment: {KEY: '${SECRET}'}}");
    let config = loaded(&text.replace("uvicorn 'main", "'uvicorn main"), &surroundings()).expect("valid");
    let Backend::Workers(spec) = &config.apps[0].backend else { panic!("workers") };
    assert_eq!(spec.environment["KEY"], "hunter2");
    assert_eq!(spec.command, ["uvicorn", "main:app", "hunter2"]);
    assert!(!format!("{config:?}").contains("hunter2"));
    for bad in ["workers", "start_timeout", "tls", "max_body", "hsts", "redirect_to", "server", "stop_signal"]
    {
        let text = SMALLEST.replace("app}", &format!("app, {bad}: '${{SECRET}}'}}"));
        let told = problems(&text);
        assert!(told.contains("`${SECRET}`") && !told.contains("hunter2"), "{told}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_text_panics_the_loader(text in "[\\PC\\n]{0,200}") {
        let _ = loaded(&text, &surroundings());
    }

    #[test]
    fn no_value_of_any_key_panics_the_loader(index in 0..KEYS.len(), value in "[-\\[\\]{}:,'\"$&*!|a-z0-9./ \\n~]{0,24}") {
        let path = KEYS[index].path.replace("NAME", "api");
        let _ = loaded(&nested(&[(&path, value.clone())]), &surroundings());
        let _ = loaded(&nested(&[(&path.replace("apps.api", "defaults"), value)]), &surroundings());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]

    #[test]
    fn no_damage_to_a_whole_file_panics_the_loader(
        damage in prop::collection::vec((any::<prop::sample::Index>(), "[-\\[\\]{}:,'\"&*!|a-z0-9 \n]{0,6}", 0..30_usize), 1..4),
    ) {
        let mut text = std::fs::read_to_string(root().join("config/reference.yaml")).expect("reference.yaml");
        for (at, with, length) in damage {
            let boundary = |at: usize| (at..).find(|at| text.is_char_boundary(*at)).expect("the end is one");
            let at = boundary(at.index(text.len()));
            let end = boundary((at + length).min(text.len()));
            text.replace_range(at..end, &with);
        }
        let _ = loaded(&text, &surroundings());
    }
}
