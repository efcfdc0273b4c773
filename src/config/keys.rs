//! Everything that may be written: the checker's known keys and defaults, its spelling help and `config/reference.yaml` all
//! follow it.

use crate::config::key::Key;
use crate::config::keys_app::APP;
use crate::config::keys_global::GLOBAL;

/// Every key that works, in the order of `config/reference.yaml`.
pub const KEYS: &[Key] = &ALL;

/// The key at `path`.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// What may be written directly below `parent` (`""` is the top), each once.
pub fn children(parent: &str) -> Vec<&'static str> {
    if let Some(key) = find(parent) {
        return key.shape.fields();
    }
    let mut names = Vec::new();
    for key in KEYS {
        let below = if parent.is_empty() {
            Some(key.path)
        } else {
            key.path.strip_prefix(parent).and_then(|rest| rest.strip_prefix('.'))
        };
        let name = below.and_then(|below| below.split('.').next());
        names.extend(name.filter(|name| !names.contains(name)));
    }
    names
}

/// Where else a key of this name belongs, if there is exactly one such place.
pub fn elsewhere(name: &str) -> Option<&'static str> {
    let mut places = KEYS.iter().map(|key| key.path).filter(|path| path.rsplit('.').next() == Some(name));
    match (places.next(), places.next()) {
        (Some(place), None) => Some(place),
        (_, Some(_)) | (None, None) => None,
    }
}

/// Words that others use, and edge's own for the same.
const SYNONYMS: [(&str, &str); 12] = [
    ("cmd", "command"),
    ("cwd", "working_dir"),
    ("directory", "working_dir"),
    ("env", "environment"),
    ("http2", "h2c"),
    ("h2", "h2c"),
    ("max_body_size", "max_body"),
    ("memory_max", "max_memory"),
    ("replicas", "workers"),
    ("stop_timeout", "stop_grace_period"),
    ("workdir", "working_dir"),
    ("working_directory", "working_dir"),
];

/// Edge's own word for one that others use.
pub fn synonym(written: &str) -> Option<&'static str> {
    let lower = written.to_lowercase().replace('-', "_");
    SYNONYMS.iter().find(|(theirs, _)| *theirs == lower).map(|(_, ours)| *ours)
}

/// The known word that `written` was probably meant to be: another word for it, or nearly its spelling.
pub fn meant<'a>(written: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> Option<&'a str> {
    let ours = synonym(written);
    let same = known.clone().into_iter().find(|word| Some(*word) == ours);
    same.or_else(|| nearest(written, known))
}

/// The known word that `written` was probably meant to be: at most a third of its letters differ.
pub fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer words are no typing mistake, and the distance takes time in the product of the lengths.
    if written.len() > 40 {
        return None;
    }
    let lower = written.to_lowercase().replace('-', "_");
    let distance = |word: &str| strsim::damerau_levenshtein(&lower, &word.replace('-', "_"));
    let (steps, word) =
        known.into_iter().map(|word| (distance(word), word)).min_by_key(|(steps, _)| *steps)?;
    (steps * 3 <= lower.len().max(word.len())).then_some(word)
}

/// One table after the other.
const ALL: [Key; GLOBAL.len() + APP.len()] = {
    let mut all = [GLOBAL[0]; GLOBAL.len() + APP.len()];
    let mut at = 0;
    while at < all.len() {
        all[at] = if at < GLOBAL.len() { GLOBAL[at] } else { APP[at - GLOBAL.len()] };
        at += 1;
    }
    all
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_spelling_is_offered_and_strangers_are_not() {
        let app = children("apps.NAME");
        for (written, meant) in [
            ("worker", Some("workers")),
            ("Domains", Some("domains")),
            ("work_dir", Some("working_dir")),
            ("stop-signal", Some("stop_signal")),
            ("rate_limit", None),
            ("compression", None),
            ("x", None),
        ] {
            assert_eq!(nearest(written, app.iter().copied()), meant, "{written}");
        }
    }

    #[test]
    fn other_words_for_a_key_lead_to_it() {
        let app = children("apps.NAME");
        for (written, ours) in [
            ("stop_timeout", "stop_grace_period"),
            ("env", "environment"),
            ("Work-Dir", "working_dir"),
            ("cmd", "command"),
        ] {
            assert_eq!(meant(written, app.iter().copied()), Some(ours), "{written}");
        }
        assert_eq!(meant("http2", ["http1", "h2c"]), Some("h2c"));
        let real = |word: &str| KEYS.iter().any(|key| key.path.rsplit('.').next() == Some(word));
        for (theirs, ours) in SYNONYMS {
            assert!(real(ours) || ours == "h2c", "{ours}");
            assert!(!real(theirs), "{theirs}");
        }
    }

    #[test]
    fn a_key_in_the_wrong_place_is_recognised() {
        assert_eq!(elsewhere("workers"), Some("apps.NAME.workers"));
        assert_eq!(elsewhere("drain_timeout"), None, "there are two");
    }

    #[test]
    fn each_key_stands_once_and_is_told_in_one_sentence() {
        for (index, key) in KEYS.iter().enumerate() {
            assert!(KEYS[..index].iter().all(|other| other.path != key.path), "{} twice", key.path);
            assert!(key.about.ends_with('.') && !key.about.contains('\n'), "{}", key.path);
        }
    }
}
