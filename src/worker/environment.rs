//! Where a worker lives: what it inherits of edge's environment, and the directory of its sockets.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::config::model::Account;
use crate::name::AppName;

/// What a worker gets of edge's own environment: where programs are found, how people write, and where language run-times
/// look. Everything else stays with edge: its secrets, and what service managers say to edge alone (`NOTIFY_SOCKET`,
/// `LISTEN_FDS`). What an app needs beyond is written in its `environment`.
pub fn inherited(account: &Account) -> BTreeMap<OsString, OsString> {
    let mut all: BTreeMap<OsString, OsString> =
        std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_inherited)).collect();
    all.entry("PATH".into())
        .or_insert_with(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    match account {
        Account::Own => {}
        Account::Other { name, home, .. } => {
            all.insert("HOME".into(), home.into());
            all.insert("USER".into(), name.into());
            all.insert("LOGNAME".into(), name.into());
            // Edge's own says nothing about this account.
            all.remove("SHELL".as_ref() as &std::ffi::OsStr);
        }
    }
    all
}

fn is_inherited(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TZDIR",
        "TMPDIR",
        "VIRTUAL_ENV",
        "PYTHONPATH",
        "PYTHONHOME",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "LD_LIBRARY_PATH",
        "GEM_HOME",
        "GEM_PATH",
        "JAVA_HOME",
        "NODE_ENV",
        "NODE_PATH",
        "NODE_OPTIONS",
        "NODE_EXTRA_CA_CERTS",
        "NODE_USE_SYSTEM_CA",
        "NODE_ICU_DATA",
        "NVM_DIR",
        "NVM_BIN",
        "NVM_INC",
    ];
    const BEGINNINGS: &[&str] = &["LC_", "PYENV_", "RBENV_", "ASDF_"];
    // Where gems lie, and which; a name with `__` in it is a host's, and the value a password for it.
    let bundler = name.starts_with("BUNDLE_") && !name.contains("__");
    bundler || NAMES.contains(&name) || BEGINNINGS.iter().any(|begin| name.starts_with(begin))
}

/// Makes the runtime directory, if it is missing, so that workers of other accounts can reach their own part of it.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    // Below /tmp anybody could have been first; whoever owns the directory decides whom edge talks to.
    let found = fs::symlink_metadata(path)?;
    let euid = rustix::process::geteuid().as_raw();
    if !found.is_dir() || found.uid() != euid || found.mode() & 0o022 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it must be a directory of edge's own account that nobody else can write to",
        ));
    }
    Ok(())
}

/// Makes an app's socket directory, for its account and nobody else. On failure: which path, and why.
pub(super) fn prepare_directory(
    runtime_dir: &Path,
    app: &AppName,
    account: &Account,
) -> Result<(), (PathBuf, io::Error)> {
    let path = runtime_dir.join(app.as_str());
    let prepare = || {
        make_directory(runtime_dir)?;
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        // By descriptor and without following a link: what is changed is the directory itself.
        let flags = nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW;
        let directory = OpenOptions::new().read(true).custom_flags(flags).open(&path)?;
        directory.set_permissions(fs::Permissions::from_mode(0o700))?;
        match account {
            Account::Own => Ok(()),
            Account::Other { uid, gid, .. } => std::os::unix::fs::fchown(&directory, Some(*uid), Some(*gid)),
        }
    };
    prepare().map_err(|error| (path.clone(), error))
}

/// Removes a file that may not be there.
pub(super) fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot remove a file");
        }
        Ok(()) | Err(_) => {}
    }
}

/// Removes an app's directory with the sockets and pid files in it; other files, which nobody should have put there, keep it.
pub(super) fn clear_directory(path: &Path) {
    use std::os::unix::fs::FileTypeExt;
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten() {
        let is_pid_file = entry.path().extension().is_some_and(|extension| extension == "pid");
        if entry.file_type().is_ok_and(|kind| kind.is_socket() || kind.is_file() && is_pid_file) {
            remove(&entry.path());
        }
    }
    let _not_empty = fs::remove_dir(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_words_for_edge_alone_are_not_inherited() {
        for name in [
            "NOTIFY_SOCKET",
            "LISTEN_FDS",
            "AWS_SECRET_ACCESS_KEY",
            "WEB_CONCURRENCY",
            "PORT",
            "EDGE_APP",
            "NODE_AUTH_TOKEN",
            "NVM_AUTH_HEADER",
            "BUNDLE_GEMS__EXAMPLE__COM",
        ] {
            assert!(!is_inherited(name), "{name}");
        }
        for name in ["PATH", "LC_ALL", "NODE_ENV", "VIRTUAL_ENV", "BUNDLE_PATH", "NVM_DIR"] {
            assert!(is_inherited(name), "{name}");
        }
    }

    #[test]
    fn another_account_has_its_own_home_and_name() {
        let account =
            Account::Other { uid: 1, gid: 1, groups: vec![], name: "web".into(), home: "/srv/web".into() };
        let environment = inherited(&account);
        assert_eq!(environment[&OsString::from("HOME")], "/srv/web");
        assert_eq!(environment[&OsString::from("USER")], "web");
    }

    #[test]
    fn a_link_in_place_of_an_apps_directory_is_refused() {
        let root = tempfile::tempdir().expect("temporary directory");
        let app: AppName = "api".parse().expect("valid");
        std::os::unix::fs::symlink("/tmp", root.path().join("api")).expect("link");
        assert!(prepare_directory(root.path(), &app, &Account::Own).is_err());
    }
}
