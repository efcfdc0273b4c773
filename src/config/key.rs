//! What there is to know of one key that may be written.

/// A key that works.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Where it stands; `NAME` is the operator's name for an app.
    pub path: &'static str,
    /// What it is when it is not written.
    pub preset: Preset,
    /// Which apps may have it.
    pub place: Place,
    /// What may be written.
    pub shape: Shape,
    /// One sentence for the operator.
    pub about: &'static str,
}

/// What a key is when it is not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// Exactly as if this were written.
    Is(&'static str),
    /// Found out, as these words say.
    Found(&'static str),
    /// Nothing; the key's sentence says what that means where it is not plain.
    Nothing,
}

/// Where a key may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Outside the apps.
    Global,
    /// In every app, and under `defaults`.
    App,
    /// In apps with a `command`, and under `defaults`.
    Worker,
    /// In an app, but not under `defaults`: it says what makes this app another than the next.
    Own,
}

/// What may be written for a key, as far as an editor can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One value.
    Text,
    /// `true` or `false`.
    Flag,
    /// A whole number from 0.
    Count,
    /// A length of time with its units, or 0.
    Duration,
    /// A number of bytes, with or without a unit.
    Size,
    /// One of these words.
    Word(&'static [&'static str]),
    /// One or a list of them.
    Many(&'static Shape),
    /// A mapping of these keys.
    Map(&'static [(&'static str, Shape)]),
    /// A mapping of the operator's own names.
    Names(&'static Shape),
    /// One of these.
    Any(&'static [Shape]),
    /// A mapping of what apps may have, but for what is an app's own.
    Apps,
}

impl Shape {
    /// The keys that may stand in it where it is a mapping.
    pub fn fields(&self) -> Vec<&'static str> {
        match self {
            Self::Map(fields) => fields.iter().map(|(name, _)| *name).collect(),
            Self::Any(shapes) => shapes.iter().flat_map(Self::fields).collect(),
            Self::Text
            | Self::Flag
            | Self::Count
            | Self::Duration
            | Self::Size
            | Self::Word(_)
            | Self::Many(_)
            | Self::Names(_)
            | Self::Apps => Vec::new(),
        }
    }
}

/// An entry of a table of keys.
pub(super) const fn key(
    path: &'static str,
    preset: Preset,
    place: Place,
    shape: Shape,
    about: &'static str,
) -> Key {
    Key { path, preset, place, shape, about }
}
