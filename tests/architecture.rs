//! The map in `src/lib.rs` is true: every file stands in it, and imports only what the map lets it.
//!
//! # The map's form
//! Lines of `src/lib.rs`'s own documentation, read from the first floor's heading to the end of its code block:
//! ```text
//! ── floor 3: worker ── a sentence   ← config, telemetry
//! worker/lifecycle.rs   P  a sentence
//! worker/supervisor.rs     a sentence   ← config, telemetry::status
//! ```
//! - A heading opens a floor; floors are numbered from 0 upwards, and several headings may share a number.
//! - A line that begins with a path is a file. `P` after it says that the file is pure. Lines that begin with neither are prose.
//! - A file may import floor 0, its own folder, and what is named after `←` on its line or its floor's heading: a folder, or
//!   `folder::file`. What is named stands on a lower floor. `← everything above` names every lower floor.
//! - `lib.rs`, `main.rs` and each folder's `mod.rs` have no line: `lib.rs` is the map, `main.rs` is the top, and a `mod.rs`
//!   holds documentation and `mod` lines alone.
//!
//! A pure file imports only pure files, and neither waits, nor reads a clock, nor touches a file or a socket, nor logs, nor draws
//! random numbers by itself. Tests may do and import what they like and have no line: modules from `#[cfg(test)] mod …` on, files
//! named `tests.rs` or `…_tests.rs` or in a folder `tests`, and files whose folder declares them under `#[cfg(test)]`.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const EVERYTHING: &str = "everything above";

#[test]
fn the_map_names_every_file_and_only_files() {
    let map = Map::read();
    let named: BTreeSet<String> = map.files.iter().map(|file| file.path.clone()).collect();
    assert_eq!(named.len(), map.files.len(), "a file stands in the map twice");
    let there: BTreeSet<String> = sources().into_iter().filter(|path| !unmapped(path)).collect();
    let missing: Vec<_> = there.difference(&named).collect();
    let gone: Vec<_> = named.difference(&there).collect();
    assert!(missing.is_empty() && gone.is_empty(), "not in the map: {missing:?}\nonly in the map: {gone:?}");
}

#[test]
fn what_a_file_may_import_stands_on_a_lower_floor() {
    let map = Map::read();
    for file in &map.files {
        for name in file.allowed.iter().filter(|name| *name != EVERYTHING) {
            let targets: Vec<_> = map.files.iter().filter(|other| other.is_within(name)).collect();
            assert!(!targets.is_empty(), "{}: the map knows no {name}", file.path);
            for target in targets {
                assert!(target.floor < file.floor, "{} may not import {name}: it is not lower", file.path);
            }
        }
    }
}

#[test]
fn files_import_only_what_the_map_lets_them() {
    let map = Map::of_existing_files();
    let mut wrong = Vec::new();
    for file in &map.files {
        for module in imports(&file.path) {
            match map.find(&module) {
                Err(why) => wrong.push(format!("{}: crate::{module}: {why}", file.path)),
                Ok(target) if !file.may_import(target) => {
                    wrong
                        .push(format!("{} imports {}, which its line does not name", file.path, target.path));
                }
                Ok(_) => {}
            }
        }
        if production(&file.path).contains("super::") {
            wrong.push(format!("{}: super:: hides where an import comes from; write crate::", file.path));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn pure_files_import_only_pure_files() {
    let map = Map::of_existing_files();
    let mut wrong = Vec::new();
    for file in map.files.iter().filter(|file| file.pure) {
        for target in imports(&file.path).iter().filter_map(|module| map.find(module).ok()) {
            if !target.pure {
                wrong.push(format!("{} is pure and imports {}, which is not", file.path, target.path));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn pure_files_touch_nothing() {
    const EFFECTS: [&str; 22] = [
        "tokio::",
        "tracing::",
        "std::fs",
        "std::env",
        "std::thread",
        "std::process",
        "std::os::unix::net",
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "UnixStream",
        "UnixListener",
        "ToSocketAddrs",
        "SystemTime::now",
        "Instant::now",
        "now_utc",
        "fastrand::Rng::new",
        "println!",
        "eprintln!",
        "nix::",
        "rustix::",
        "socket2::",
    ];
    let mut wrong = Vec::new();
    for file in Map::of_existing_files().files.iter().filter(|file| file.pure) {
        // The names and numbers of signals are a table, not an effect.
        let text = production(&file.path).replace("nix::sys::signal::Signal;", "");
        for effect in EFFECTS.iter().filter(|effect| text.contains(*effect)) {
            wrong.push(format!("{} is pure and has {effect}", file.path));
        }
        // The generator of the thread, unlike one that is an argument.
        for (at, _) in text.match_indices("fastrand::") {
            if !text[at..].starts_with("fastrand::Rng") {
                wrong.push(format!("{} is pure and draws its own random numbers", file.path));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn no_file_needs_itself() {
    let map = Map::of_existing_files();
    let needs: BTreeMap<&str, Vec<&str>> = map
        .files
        .iter()
        .map(|file| {
            let targets = imports(&file.path);
            let targets = targets.iter().filter_map(|module| map.find(module).ok());
            let family = family(&file.path);
            (
                file.path.as_str(),
                targets
                    .map(|target| target.path.as_str())
                    .filter(|path| self::family(path) != family)
                    .collect(),
            )
        })
        .collect();
    // A file is in no cycle if it needs nothing that is left, or nothing that is left needs it.
    let mut left: BTreeSet<&str> = needs.keys().copied().collect();
    loop {
        let needed: BTreeSet<&str> =
            left.iter().flat_map(|file| &needs[file]).copied().filter(|file| left.contains(file)).collect();
        let needing = |file: &&str| needs[file].iter().any(|target| left.contains(target));
        let still: BTreeSet<&str> =
            left.iter().copied().filter(|file| needed.contains(file) && needing(file)).collect();
        if still.len() == left.len() {
            break;
        }
        left = still;
    }
    let circles = left.iter().map(|file| {
        let targets: Vec<_> = needs[file].iter().copied().filter(|target| left.contains(target)).collect();
        format!("{file} needs {}", targets.join(", "))
    });
    assert!(left.is_empty(), "imports in a circle:\n{}", circles.collect::<Vec<_>>().join("\n"));
}

/// A file and the files in the folder of its name are one thing in parts: `hello.rs` and `hello/routes.rs`.
fn family(path: &str) -> &str {
    let parts: Vec<&str> = path.splitn(3, '/').collect();
    match parts[..] {
        [folder, part, _] => &path[..folder.len() + 1 + part.len()],
        _ => path.trim_end_matches(".rs"),
    }
}

#[test]
fn folders_only_list_their_files() {
    for path in sources().iter().filter(|path| path.ends_with("mod.rs")) {
        for line in text(path).lines() {
            let line = line.trim();
            let lists = line.is_empty() || line.starts_with("//") || line.starts_with("#[");
            let declares = line.ends_with(';') && declares_module(line);
            assert!(lists || declares, "{path}: {line}");
        }
    }
}

#[test]
fn names_say_what_a_file_is_for() {
    const EMPTY_WORDS: [&str; 8] =
        ["util", "utils", "common", "helper", "helpers", "misc", "shared", "stuff"];
    for path in sources() {
        for part in Path::new(&path).components() {
            let part = part.as_os_str().to_string_lossy();
            let stem = part.trim_end_matches(".rs");
            assert!(!EMPTY_WORDS.contains(&stem), "{path}");
        }
    }
}

/// The map in `src/lib.rs`.
struct Map {
    files: Vec<File>,
}

/// One line of it.
struct File {
    path: String,
    floor: u32,
    pure: bool,
    allowed: Vec<String>,
}

impl Map {
    fn read() -> Self {
        let mut files = Vec::new();
        let mut floor: Option<(u32, Vec<String>)> = None;
        for line in text("lib.rs").lines().filter_map(|line| line.strip_prefix("//!")) {
            let line = line.trim();
            if let Some(heading) = line.strip_prefix("── floor ") {
                let number = heading.split(':').next().and_then(|number| number.trim().parse().ok());
                let number = number.unwrap_or_else(|| panic!("a floor without a number: {line}"));
                assert!(
                    floor.as_ref().is_none_or(|(before, _)| *before <= number),
                    "floors out of order: {line}"
                );
                floor = Some((number, arrows(line)));
            } else if line.starts_with("```") {
                floor = floor.filter(|_| files.is_empty());
            } else if let Some((number, shared)) = &floor {
                let mut words = line.split_whitespace();
                let Some(path) = words.next().filter(|word| word.ends_with(".rs")) else { continue };
                if unmapped(path) {
                    continue;
                }
                let mut allowed = shared.clone();
                allowed.extend(arrows(line));
                files.push(File {
                    path: path.into(),
                    floor: *number,
                    pure: words.next() == Some("P"),
                    allowed,
                });
            }
        }
        assert!(!files.is_empty(), "src/lib.rs has no map");
        Self { files }
    }

    /// The map without files that are gone, which one test reports.
    fn of_existing_files() -> Self {
        let mut map = Self::read();
        map.files.retain(|file| src().join(&file.path).exists());
        map
    }

    /// The file of a module path such as `config::model::App`.
    fn find(&self, module: &str) -> Result<&File, &'static str> {
        let parts: Vec<&str> = module.split("::").collect();
        let at = |path: String| self.files.iter().find(|file| file.path == path);
        at(format!("{}.rs", parts[0]))
            .or_else(|| at(format!("{}/{}.rs", parts[0], parts.get(1)?)))
            .ok_or("names no file of the map; imports are written crate::folder::file::Item")
    }
}

impl File {
    /// Whether `name`, a folder or `folder::file`, means this file.
    fn is_within(&self, name: &str) -> bool {
        self.path == format!("{}.rs", name.replace("::", "/")) || self.path.starts_with(&format!("{name}/"))
    }

    fn folder(&self) -> Option<&str> {
        self.path.split_once('/').map(|(folder, _)| folder)
    }

    fn may_import(&self, target: &Self) -> bool {
        let own = self.folder().is_some() && self.folder() == target.folder();
        let ground = target.floor == 0;
        let named = self
            .allowed
            .iter()
            .any(|name| target.is_within(name) || (name == EVERYTHING && target.floor < self.floor));
        own || ground || named
    }
}

/// What a line names after its arrow.
fn arrows(line: &str) -> Vec<String> {
    let Some((_, names)) = line.split_once('←') else { return Vec::new() };
    names.split(',').map(|name| name.trim().trim_end_matches(['─', '.', ' ']).to_owned()).collect()
}

/// Module paths after `crate::`, each up to its item.
fn imports(path: &str) -> BTreeSet<String> {
    let text = production(path);
    let mut found = BTreeSet::new();
    for (at, prefix) in text.match_indices("crate::") {
        // `pub(in crate::folder)` says who may see an item and imports nothing.
        if text[..at].ends_with("(in ") {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        let end = rest.find(|letter: char| !(letter.is_alphanumeric() || letter == '_' || letter == ':'));
        found.insert(rest[..end.unwrap_or(rest.len())].trim_end_matches(':').to_owned());
    }
    found
}

/// The text of a file without comments and test modules.
fn production(path: &str) -> String {
    let text = text(path);
    let code = text[..tests_begin(&text)].lines().map(|line| match line.find("//") {
        // Not the slashes of a URL in a string.
        Some(at) if !line[..at].ends_with(':') => &line[..at],
        _ => line,
    });
    code.collect::<Vec<_>>().join("\n")
}

/// Where the first test module is declared, other attributes of it included; or the end.
fn tests_begin(text: &str) -> usize {
    for (at, attribute) in text.match_indices("#[cfg(test)]\n") {
        let rest = text[at + attribute.len()..].lines();
        if rest.map(str::trim).find(|line| !line.starts_with("#[")).is_some_and(declares_module) {
            return at;
        }
    }
    text.len()
}

fn declares_module(line: &str) -> bool {
    ["mod ", "pub mod ", "pub(crate) mod "].iter().any(|start| line.starts_with(start))
}

/// Whether a file only exists in tests.
fn is_test(path: &str) -> bool {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let stem = name.trim_end_matches(".rs");
    let declared = folder.split('/').next().filter(|folder| !folder.is_empty()).is_some_and(|folder| {
        fs::read_to_string(src().join(folder).join("mod.rs")).is_ok_and(|text| {
            [format!("#[cfg(test)]\nmod {stem};"), format!("#[cfg(test)]\npub(crate) mod {stem};")]
                .iter()
                .any(|line| text.contains(line))
        })
    });
    stem == "tests" || stem.ends_with("_tests") || folder.split('/').any(|part| part == "tests") || declared
}

fn text(path: &str) -> String {
    let path = src().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every source file but those of tests, relative to `src`.
fn sources() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![src()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(src()).expect("below src");
                let relative = relative.to_str().expect("a plain name");
                if !is_test(relative) {
                    found.insert(relative.to_owned());
                }
            }
        }
    }
    found
}

fn unmapped(path: &str) -> bool {
    path == "lib.rs" || path == "main.rs" || path.ends_with("/mod.rs")
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}
