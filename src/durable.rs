//! State files that survive a crash: a reader finds the old content or the new one, whole. The only code that writes them.
//!
//! Calls block on the disk; drivers make them from a blocking thread. Must not do: decide where anything is kept.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};

/// A file or directory that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct DurableError {
    /// What was tried: `read`, `write`, `remove`, `create`.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// Its owner: mode 0600.
    Owner,
    /// Everybody: mode 0644.
    Everyone,
}

/// Reads a file of at most `limit` bytes; `None` where there is none.
pub fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, DurableError> {
    let fail = |source| DurableError { action: "read", path: path.to_owned(), source };
    // A pipe put in the place of a file would hold the reader for ever: not even its opening waits.
    let file = match OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    if !file.metadata().map_err(fail)?.is_file() {
        return Err(fail(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
    }
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content).map_err(fail)?;
    if content.len() as u64 > limit {
        let reason = format!("it is longer than {limit} bytes");
        return Err(fail(io::Error::new(io::ErrorKind::InvalidData, reason)));
    }
    Ok(Some(content))
}

/// Replaces a file, or creates it. After a return of `Ok` the new content survives a power failure; after a crash or an
/// error it is the old content or the new one, whole.
pub fn write(path: &Path, content: &[u8], readers: Readers) -> Result<(), DurableError> {
    let fail = |source| DurableError { action: "write", path: path.to_owned(), source };
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(fail(io::ErrorKind::InvalidInput.into()));
    };
    // In the same directory: a rename across file systems is a copy.
    let temporary = directory.join(format!(".{}.new", name.to_string_lossy()));
    let written = write_new(&temporary, content, readers).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // What is left of a failed write only takes space; the failure itself is what the caller hears.
        drop(fs::remove_file(&temporary));
        return Err(fail(error));
    }
    sync_directory(directory).map_err(fail)
}

/// Writes a file where there is none, whole or not at all; says whether it did. Of several processes that try, one does.
pub fn add(path: &Path, content: &[u8], readers: Readers) -> Result<bool, DurableError> {
    let fail = |source| DurableError { action: "write", path: path.to_owned(), source };
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(fail(io::ErrorKind::InvalidInput.into()));
    };
    // Of a name that nobody else has: another process would put its own content, or half of it, in the place of this.
    let temporary = directory.join(format!(".{}.{:016x}.added", name.to_string_lossy(), fastrand::u64(..)));
    let named =
        write_new(&temporary, content, readers).and_then(|()| match fs::hard_link(&temporary, path) {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported) =>
            {
                name_without_link(&temporary, path)
            }
            named => named,
        });
    drop(fs::remove_file(&temporary));
    match named {
        Ok(()) => sync_directory(directory).map(|()| true).map_err(fail),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(fail(error)),
    }
}

/// As a link, never takes the place of what somebody else has written meanwhile; for file systems without links, as those of
/// memory cards are. Those of networks have links, and not this.
fn name_without_link(temporary: &Path, path: &Path) -> io::Result<()> {
    rustix::fs::renameat_with(CWD, temporary, CWD, path, RenameFlags::NOREPLACE).map_err(io::Error::from)
}

fn write_new(path: &Path, content: &[u8], readers: Readers) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    if readers == Readers::Everyone {
        // Explicit, because the umask would narrow a mode given at creation.
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
    }
    file.sync_all()
}

/// Removes a file; one that is not there is no error.
pub fn remove(path: &Path) -> Result<(), DurableError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(DurableError { action: "remove", path: path.to_owned(), source }),
    }
}

/// Creates a directory and its parents, mode 0700, each there for good before the next: a file that survives in a directory
/// that does not is lost all the same. Directories that exist keep their mode.
pub fn create_private_dir(path: &Path) -> Result<(), DurableError> {
    let fail = |source| DurableError { action: "create", path: path.to_owned(), source };
    // The parent of a single relative component is empty, and is the current directory.
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(Path::new(""));
    create_private_dir(parent)?;
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => sync_directory(parent).map_err(fail),
        // Somebody else was faster, and syncs it.
        Err(_) if path.is_dir() => Ok(()),
        Err(error) => Err(fail(error)),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    // An empty parent is the current directory.
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("exists").permissions().mode() & 0o777
    }

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("a/b/state.json");
        create_private_dir(file.parent().expect("has one")).expect("created");
        write(&file, b"one", Readers::Owner).expect("written");
        write(&file, b"two", Readers::Owner).expect("replaced");
        assert_eq!(read(&file, 3).expect("readable").as_deref(), Some(&b"two"[..]));
        assert_eq!(mode(&file), 0o600);
        assert_eq!(mode(&dir.path().join("a")), 0o700);
        assert_eq!(
            fs::read_dir(file.parent().expect("has one")).expect("listed").count(),
            1,
            "nothing left over"
        );
        write(&file, b"all", Readers::Everyone).expect("written");
        assert_eq!(mode(&file), 0o644);
    }

    #[test]
    fn errors_name_the_path_and_the_old_content_stays() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("state.json");
        write(&file, b"old", Readers::Owner).expect("written");
        // A directory where the temporary file should go makes the write fail, also for root.
        fs::create_dir(dir.path().join(".state.json.new")).expect("created");
        let error = write(&file, b"new", Readers::Owner).expect_err("blocked");
        assert_eq!(error.to_string(), format!("cannot write {}", file.display()));
        assert_eq!(read(&file, 100).expect("readable").as_deref(), Some(&b"old"[..]));
    }

    #[test]
    fn what_is_there_already_is_not_replaced_with_links_and_without() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (file, other) = (dir.path().join("state.json"), dir.path().join("other"));
        assert!(add(&file, b"one", Readers::Owner).expect("written"));
        assert!(!add(&file, b"two", Readers::Owner).expect("looked"));
        write(&other, b"two", Readers::Owner).expect("written");
        let error = name_without_link(&other, &file).expect_err("there is one");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read(&file, 3).expect("readable").as_deref(), Some(&b"one"[..]));
        name_without_link(&other, &dir.path().join("third")).expect("there is none");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 2, "nothing left over");
    }

    #[test]
    fn what_is_missing_is_none_and_what_is_too_long_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("x");
        assert_eq!(read(&file, 1).expect("no error"), None);
        remove(&file).expect("no error");
        write(&file, b"12", Readers::Owner).expect("written");
        assert!(read(&file, 1).is_err());
    }

    #[test]
    fn a_pipe_in_the_place_of_a_file_is_refused_without_waiting() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let pipe = dir.path().join("state.json");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("made");
        let error = read(&pipe, 100).expect_err("refused");
        assert_eq!(error.source.to_string(), "it is not a regular file");
    }
}
