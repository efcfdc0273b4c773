//! Apps of the servers people run, as `tests/run` installed them.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::edge::{BINARY, Setup};

/// The checkout.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A setup whose workers find these servers.
pub(crate) fn setup() -> Setup {
    let bin = Path::new(BINARY).parent().expect("the binary is in a directory");
    let rest = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}/target/test-venv/bin:{}:{rest}", root().display(), bin.display());
    Setup::new().environment("PATH", &path)
}

/// An app for `a.test` with this command, run where the applications are, and more lines.
pub(crate) fn app(command: &str, more: &str) -> String {
    format!("domains: [a.test]\ncommand: {command}\nworking_dir: {}/tests/apps\n{more}", root().display())
}

/// `uv`, of which only the tests at full length have need: installed in an environment of its own.
pub(crate) fn uv() -> PathBuf {
    let environment = root().join("target/test-uv");
    let uv = environment.join("bin/uv");
    if !uv.exists() {
        let make = "python3 -m venv \"$0\" && \"$0/bin/pip\" install --no-input --disable-pip-version-check uv==0.13.9";
        let made = Command::new("sh").args(["-c", make]).arg(&environment).output().expect("a shell");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    uv
}
