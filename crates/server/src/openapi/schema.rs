//! Schemas of single fields.

use serde_json::{Value, json};

/// Name of a field and its schema.
pub(super) type Field = (&'static str, Value);

pub(super) fn number(minimum: f64, maximum: f64, example: f64) -> Value {
    json!({"type": ["number", "null"], "minimum": minimum, "maximum": maximum, "examples": [example]})
}

pub(super) fn integer(minimum: i64, example: i64) -> Value {
    json!({"type": ["integer", "null"], "minimum": minimum, "examples": [example]})
}

pub(super) fn boolean() -> Value {
    json!({"type": ["boolean", "null"], "examples": [true]})
}

pub(super) fn string(example: &str) -> Value {
    json!({"type": ["string", "null"], "examples": [example]})
}

/// Returns the schema of the field `kv_sharing`.
pub(super) fn kv_sharing_field() -> Value {
    json!({
        "oneOf": [{"$ref": "#/components/schemas/KvSharingOptions"}, {"type": "null"}],
        "examples": [{"mode": "span", "policy": "impact@0.15", "store": true}],
    })
}
