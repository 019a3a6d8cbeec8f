//! What tests of parity have in common.

use serde_json::{Value, json};

/// A ConfigMap.
pub(super) fn config_map(name: &str, value: &str) -> Value {
    json!({"metadata": {"namespace": "shop", "name": name, "uid": value}, "data": {"value": value}})
}
