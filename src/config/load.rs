//! From a path to the checked configuration.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::config::check;
use crate::config::context::{read_regular, reason};
use crate::config::model::Config;
use crate::config::problem::{Position, Problem, Problems};
use crate::config::raw;
use crate::config::surroundings::Surroundings;

/// Reads and checks the file; on any fault all of them are returned and nothing else happens.
pub fn load(path: &Path, surroundings: &Surroundings) -> Result<Config, Problems> {
    let text = read(path)?;
    let (file, base) = place(path)?;
    let mut parsed = raw::parse(&text);
    let checked = parsed.root.map(|root| check::check(&root, &file, &base, surroundings));
    match checked {
        Some(Ok(config)) if parsed.problems.is_empty() => return Ok(config),
        Some(Err(more)) => parsed.problems.extend(more),
        Some(Ok(_)) | None => {}
    }
    Err(Problems::new(path, parsed.problems))
}

/// Where the edge that runs with the file answers, as far as the file tells: it may be wrong otherwise, and somebody wants to
/// know how edge is meanwhile.
pub fn whereabouts(path: &Path, surroundings: &Surroundings) -> Result<Whereabouts, Problems> {
    let text = read(path)?;
    let (file, base) = place(path)?;
    let parsed = raw::parse(&text);
    let Some(root) = parsed.root else { return Err(Problems::new(path, parsed.problems)) };
    let admin = check::admin_path(&root, &base, surroundings);
    Ok(Whereabouts { file, admin: admin.map_err(|problems| Problems::new(path, problems))? })
}

/// A running edge, as its file tells where to find it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whereabouts {
    /// The file.
    pub file: PathBuf,
    /// The admin socket.
    pub admin: PathBuf,
}

fn place(path: &Path) -> Result<(PathBuf, PathBuf), Problems> {
    let file = std::path::absolute(path).map_err(|error| {
        Problems::whole(path, format!("cannot tell where the file is: {}", reason(&error)))
    })?;
    let base = file.parent().unwrap_or(Path::new("/")).to_owned();
    Ok((file, base))
}

/// The file to read: the one named, else `./edge.yaml`, else `/etc/edge/edge.yaml`.
pub fn find(explicit: Option<&Path>) -> Result<PathBuf, Problems> {
    if let Some(path) = explicit {
        return Ok(path.to_owned());
    }
    let places = ["edge.yaml", "/etc/edge/edge.yaml"].map(Path::new);
    // One that is there and cannot be read is still the one meant: loading it says why.
    places.into_iter().find(|path| path.symlink_metadata().is_ok()).map(Path::to_owned).ok_or_else(|| {
        let what = "there is no such file here, nor /etc/edge/edge.yaml; name one with --config";
        Problems::whole(places[0], what)
    })
}

/// A configuration is a few pages of text; more is a mistake.
const LONGEST: u64 = 1 << 20;

fn read(path: &Path) -> Result<String, Problems> {
    let unread = |error| Problems::whole(path, format!("cannot read the file: {}", reason(&error)));
    let mut bytes = Vec::new();
    read_regular(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes)).map_err(unread)?;
    if bytes.len() as u64 > LONGEST {
        return Err(Problems::whole(path, "the file is longer than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let known = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let known = String::from_utf8_lossy(known);
        let last = known.rsplit('\n').next().unwrap_or_default();
        let at = Position { line: known.matches('\n').count() + 1, column: last.chars().count() + 1 };
        let what = "the file is not UTF-8 text: save it as that".to_owned();
        Problems::new(path, vec![Problem { at: Some(at), key: String::new(), what, help: None }])
    })
}
