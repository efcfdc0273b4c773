//! What reading an app needs besides its section, and the files its keys name.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::config::model::Acme;
use crate::config::section::{Reader, Value};
use crate::config::surroundings::Surroundings;
use crate::config::trusted::Trusted;

/// Longest file with a key.
const LONGEST_SECRET: u64 = 4096;
/// Longest file with certificates.
const LONGEST_CERTIFICATES: u64 = 1 << 20;

/// What reading an app needs besides its section.
pub(super) struct AppContext<'c> {
    /// Notes faults.
    pub(super) reader: &'c Reader<'c>,
    /// Where relative paths begin.
    pub(super) base: &'c Path,
    /// The process that reads.
    pub(super) surroundings: &'c Surroundings,
    /// Where worker sockets will be.
    pub(super) runtime_dir: &'c Path,
    /// How certificates are obtained.
    pub(super) acme: &'c Acme,
}

/// A path, made absolute.
pub(super) fn path(value: &Value<'_>, base: &Path) -> Option<PathBuf> {
    value.parse(|text| {
        match text {
            "" => Err("is not a path"),
            text if text.contains('\0') => Err("is not a path"),
            // A shell's word: here it would be a directory of that name.
            text if text == "~" || text.starts_with("~/") => {
                Err("begins with `~`, which means nothing here: write the directory, or `${HOME}`")
            }
            // Without the dots that only say "here"; what `..` leads to is the system's to say.
            text => Ok(base.join(text).components().collect()),
        }
    })
}

/// The path of a file that can be read now.
pub(super) fn readable_file(value: &Value<'_>, base: &Path) -> Option<PathBuf> {
    let path = path(value, base)?;
    match read_regular(&path) {
        Ok(_) => Some(path),
        Err(error) => {
            value.refuse(format_args!("cannot read `{}`: {}", value.written(), reason(&error)));
            None
        }
    }
}

/// What a file holds that is a secret, also where it is of no use.
pub(super) fn secret(value: &Value<'_>, base: &Path) -> Option<String> {
    let path = path(value, base)?;
    let mut text = String::new();
    match read_regular(&path).and_then(|file| file.take(LONGEST_SECRET).read_to_string(&mut text)) {
        Ok(_) => Some(text),
        Err(error) => {
            value.refuse(format_args!("cannot read `{}`: {}", value.written(), reason(&error)));
            None
        }
    }
}

/// The certificates of a file, each of which can be trusted.
pub(super) fn trusted(value: &Value<'_>, base: &Path) -> Option<Trusted> {
    let path = path(value, base)?;
    let mut pem = Vec::new();
    let read = read_regular(&path).and_then(|file| file.take(LONGEST_CERTIFICATES + 1).read_to_end(&mut pem));
    let parsed = match read {
        Ok(length) if length as u64 > LONGEST_CERTIFICATES => Err("it is longer than 1 MiB".to_owned()),
        Ok(_) => Trusted::parse(&pem),
        Err(error) => {
            value.refuse(format_args!("cannot read `{}`: {}", value.written(), reason(&error)));
            return None;
        }
    };
    parsed.inspect_err(|why| value.refuse(format_args!("cannot use `{}`: {why}", value.written()))).ok()
}

/// Opens a file unless it is something else: opening a pipe would wait for a writer, a device would never end.
pub(super) fn read_regular(path: &Path) -> io::Result<std::fs::File> {
    if std::fs::metadata(path)?.is_file() {
        std::fs::File::open(path)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
    }
}

/// The system's words without `(os error N)`.
pub(super) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let words = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = words.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}
