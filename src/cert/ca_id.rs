//! A CA as the store and other programs name it.

/// A CA as a directory name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CaId(String);

impl CaId {
    /// The CA with this directory URL.
    pub fn of(directory_url: &str) -> Self {
        let bare = directory_url.split_once("://").map_or(directory_url, |(_, rest)| rest);
        let safe = |c: char| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '_' };
        let name: String = bare.chars().map(safe).take(120).collect();
        // Neither `.` nor `..` may come out, whatever went in.
        Self(name.trim_matches(['_', '.']).to_ascii_lowercase())
    }

    /// Edge's own CA.
    pub fn internal() -> Self {
        Self("internal".to_owned())
    }

    /// Whether both are the same CA, although one may be spelled by another program.
    pub fn is(&self, other: &Self) -> bool {
        let letter = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
        self.0.chars().map(letter).eq(other.0.chars().map(letter))
    }

    /// Whether it is known to be of no use to the public: for tests, or a program's own.
    pub fn is_for_tests(&self) -> bool {
        self.0.contains("staging") || self.0.contains("testing") || self.0 == "local"
    }

    /// The name of its directory.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
