//! Answers that are almost right: what a parser must survive.

use fastrand::Rng;
use serde_json::{Value, json};

/// `body`, another in one place or cut off.
pub(crate) fn garbled(body: &str, seed: u64) -> String {
    let mut rng = Rng::with_seed(seed);
    match serde_json::from_str::<Value>(body) {
        Ok(mut document) if rng.u8(..) > 60 => {
            change(&mut document, &mut rng);
            document.to_string()
        }
        Ok(_) | Err(_) => {
            let mut bytes = body.as_bytes().to_vec();
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(0..=bytes.len());
                match rng.u8(0..4) {
                    0 => bytes.truncate(at),
                    1 => bytes.insert(at, rng.u8(..)),
                    2 if at < bytes.len() => bytes[at] = rng.u8(..),
                    _ if at < bytes.len() => drop(bytes.remove(at)),
                    _ => bytes.extend_from_slice(body.as_bytes()),
                }
            }
            String::from_utf8_lossy(&bytes).into_owned()
        }
    }
}

/// Changes one value somewhere below.
fn change(value: &mut Value, rng: &mut Rng) {
    let below = match value {
        Value::Object(fields) if !fields.is_empty() && rng.u8(..) > 30 => {
            let at = rng.usize(..fields.len());
            if rng.u8(..) < 40 {
                let name = fields.keys().nth(at).cloned();
                name.and_then(|name| fields.remove(&name));
                return;
            }
            fields.values_mut().nth(at)
        }
        Value::Array(items) if !items.is_empty() && rng.u8(..) > 30 => {
            let at = rng.usize(..items.len());
            items.get_mut(at)
        }
        _ => None,
    };
    match below {
        Some(below) => change(below, rng),
        None => *value = strange(rng),
    }
}

fn strange(rng: &mut Rng) -> Value {
    let strange = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!(""),
        json!("https://localhost:1/elsewhere"),
        json!("valid"),
        json!("pending"),
        json!("\u{0}\u{202e}\r\n"),
        json!("x".repeat(40_000)),
        json!([]),
        json!({}),
        json!([[[[[[[[[[]]]]]]]]]]),
        json!(["", null, {"type": 7}]),
    ];
    strange[rng.usize(..strange.len())].clone()
}
