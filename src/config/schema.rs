//! The keys as a JSON Schema (draft 2020-12), by which editors complete a configuration and check it as it is typed. It refuses
//! nothing that edge takes; what depends on other values, on files or on the machine is left to `edge check`.

use serde_json::{Map, Value, json};

use crate::config::key::{Place, Preset, Shape};
use crate::config::keys::KEYS;

/// Where apps stand in the table of keys.
const APP: &str = "apps.NAME.";
/// `30s`, `1h30m`; 0 is a number.
const DURATION: &str = "^(\\d+d)?(\\d+h)?(\\d+m)?(\\d+s)?(\\d+ms)?$";
/// `100MB`, `64KiB`.
const SIZE: &str = "^\\d+([Bb]|[KkMmGgTt][Ii]?[Bb])?$";
/// A value in which a variable is replaced may become any other.
const VARIABLE: &str = "\\$\\{";

/// The schema of a configuration file.
pub fn schema() -> Value {
    let mut top = mapping();
    let (mut app, mut shared) = (mapping(), mapping());
    for key in KEYS {
        let leaf = described(of(key.shape), key.about, key.preset);
        match (key.path.strip_prefix(APP), key.place) {
            (Some(path), Place::Own) => put(&mut app, path, leaf),
            (Some(path), Place::App | Place::Worker | Place::Global) => {
                put(&mut shared, path, leaf.clone());
                put(&mut app, path, leaf);
            }
            (None, Place::Own | Place::App | Place::Worker | Place::Global) => put(&mut top, key.path, leaf),
        }
    }
    put(&mut top, "apps", json!({"type": "object", "additionalProperties": {"$ref": "#/$defs/app"}}));
    top.insert("$schema".to_owned(), "https://json-schema.org/draft/2020-12/schema".into());
    top.insert("title".to_owned(), "edge.yaml".into());
    top.insert("$defs".to_owned(), json!({"app": app, "defaults": shared}));
    top.into()
}

fn mapping() -> Map<String, Value> {
    let (kind, properties) = ("object".into(), Map::new().into());
    [("type", kind), ("additionalProperties", false.into()), ("properties", properties)]
        .map(|(name, value): (&str, Value)| (name.to_owned(), value))
        .into_iter()
        .collect()
}

/// Puts `leaf` into a mapping, with the mappings that its dotted path names.
fn put(into: &mut Map<String, Value>, path: &str, leaf: Value) {
    let Some(properties) = into.get_mut("properties").and_then(Value::as_object_mut) else { return };
    match path.split_once('.') {
        None => drop(properties.insert(path.to_owned(), leaf)),
        Some((first, rest)) => {
            let inner = properties.entry(first).or_insert_with(|| mapping().into());
            if let Some(inner) = inner.as_object_mut() {
                put(inner, rest, leaf);
            }
        }
    }
}

fn described(mut schema: Value, about: &str, preset: Preset) -> Value {
    let (text, default) = match preset {
        // Presets are written as in the file, where lists and numbers look as in JSON.
        Preset::Is(text) => {
            (about.to_owned(), Some(serde_json::from_str(text).unwrap_or_else(|_| text.into())))
        }
        Preset::Found(how) => (format!("{about} Default: {how}."), None),
        Preset::Nothing => (about.to_owned(), None),
    };
    if let Some(fields) = schema.as_object_mut() {
        fields.insert("description".to_owned(), text.into());
        fields.extend(default.map(|default| ("default".to_owned(), default)));
    }
    schema
}

fn of(shape: Shape) -> Value {
    match shape {
        Shape::Text => json!({"type": ["string", "number", "boolean"]}),
        Shape::Flag => json!({"anyOf": [{"type": "boolean"}, variable()]}),
        Shape::Count => json!({"anyOf": [{"type": "integer", "minimum": 0}, variable()]}),
        Shape::Duration => {
            json!({"anyOf": [{"const": 0}, {"type": "string", "pattern": DURATION, "minLength": 1}, variable()]})
        }
        Shape::Size => {
            json!({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": SIZE}, variable()]})
        }
        Shape::Word(words) => json!({"anyOf": [{"enum": words}, variable()]}),
        Shape::Many(one) => {
            let one = of(*one);
            json!({"anyOf": [one, {"type": "array", "items": one}]})
        }
        Shape::Map(fields) => {
            let mut map = mapping();
            for (name, shape) in fields {
                put(&mut map, name, of(*shape));
            }
            map.into()
        }
        Shape::Names(one) => json!({"type": "object", "additionalProperties": of(*one)}),
        Shape::Any(shapes) => {
            let shapes: Vec<_> = shapes.iter().map(|shape| of(*shape)).collect();
            json!({"anyOf": shapes})
        }
        Shape::Apps => json!({"$ref": "#/$defs/defaults"}),
    }
}

fn variable() -> Value {
    json!({"type": "string", "pattern": VARIABLE})
}
