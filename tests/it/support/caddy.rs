//! Caddy, as another client of a CA and as another CA.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// A running Caddy with a directory of its own. Dropped, it is killed, and if the test is failing its log is shown.
pub(crate) struct Caddy {
    dir: TempDir,
    child: Child,
}

impl Caddy {
    /// Starts it with `global` options besides its storage and `sites`; `files` are put into its directory, and it takes `hosts` for
    /// the machine's file of that name.
    pub(crate) fn start(global: &str, sites: &str, hosts: &str, files: &[&Path]) -> Self {
        let dir = tempfile::Builder::new().prefix("caddy-").tempdir().expect("a temporary directory");
        for file in files {
            fs::copy(file, dir.path().join(file.file_name().expect("a file"))).expect("copied");
        }
        let storage = dir.path().join("store");
        let text = format!(
            "{{\nadmin off\nskip_install_trust\nstorage file_system {}\n{global}\n}}\n{sites}\n",
            storage.display()
        );
        fs::write(dir.path().join("Caddyfile"), text).expect("written");
        fs::write(dir.path().join("hosts"), hosts).expect("written");
        let log = File::create(dir.path().join("caddy.log")).expect("a file");
        // A mount namespace of its own, so that nobody else sees its hosts.
        let run = "mount --bind hosts /etc/hosts && exec caddy run --config Caddyfile --adapter caddyfile";
        let mut words = vec!["--mount"];
        if !super::processes::root() {
            words.push("--map-root-user");
        }
        // Where tests/run puts it on a machine that has none.
        let fetched = concat!(env!("CARGO_MANIFEST_DIR"), "/target/caddy/usr/bin");
        let path = format!("{}:{fetched}", std::env::var("PATH").unwrap_or_default());
        let child = Command::new("unshare")
            .args(words)
            .args(["sh", "-c", run])
            .current_dir(dir.path())
            .env("PATH", path)
            .env("HOME", dir.path())
            .env("XDG_CONFIG_HOME", dir.path())
            .env("XDG_DATA_HOME", dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("unshare: {error}"));
        Self { dir, child }
    }

    /// Where it keeps what it has.
    pub(crate) fn storage(&self) -> std::path::PathBuf {
        self.dir.path().join("store")
    }

    /// Ends it; its files stay.
    pub(crate) fn stop(&mut self) {
        // It may have been ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Caddy {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("caddy.log")).unwrap_or_default();
            eprintln!("── caddy.log (tests/run installs caddy) ──\n{log}");
        }
    }
}
