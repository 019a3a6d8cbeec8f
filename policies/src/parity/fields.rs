//! Which fields of two objects differ. Only their paths: what stands in them may be secret.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::Value;

/// The paths at which two normalised objects differ, as `kubectl explain` and jsonpath write them, at most `limit`.
#[must_use]
pub fn fields(blue: &Value, green: &Value, limit: usize) -> Vec<String> {
    let mut found = Vec::new();
    differ(blue, green, &mut String::new(), &mut found, limit);
    found
}

fn differ(blue: &Value, green: &Value, path: &mut String, found: &mut Vec<String>, limit: usize) {
    if found.len() >= limit || blue == green {
        return;
    }
    let before = path.len();
    // What is not there differs from what is as null does.
    let below = |b: Option<&Value>, g: Option<&Value>, path: &mut String, found: &mut Vec<String>| {
        differ(
            b.unwrap_or(&Value::Null),
            g.unwrap_or(&Value::Null),
            path,
            found,
            limit,
        );
    };
    match (blue, green) {
        (Value::Object(b), Value::Object(g)) => {
            let names: BTreeSet<_> = b.keys().chain(g.keys()).collect();
            for name in names {
                member(name, path);
                below(b.get(name), g.get(name), path, found);
                path.truncate(before);
            }
        }
        (Value::Array(b), Value::Array(g)) => {
            for at in 0..b.len().max(g.len()) {
                // Writing into a String cannot fail.
                let _infallible = write!(path, "[{at}]");
                below(b.get(at), g.get(at), path, found);
                path.truncate(before);
            }
        }
        _ => found.push(path.clone()),
    }
}

fn member(name: &str, path: &mut String) {
    let plain = name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let _infallible = match (plain, path.is_empty()) {
        (true, true) => write!(path, "{name}"),
        (true, false) => write!(path, ".{name}"),
        (false, _) => write!(path, "[{name:?}]"),
    };
}
