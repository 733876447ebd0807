//! Schemas of Anthropic's Messages.

use serde_json::{Value, json};

/// Returns the fields of a request that no other endpoint has in this form.
pub(super) fn own_fields() -> Vec<(&'static str, Value)> {
    let object = |properties: Value, required: &[&str], example: Value| json!({"type": ["object", "null"], "required": required, "properties": properties, "examples": [example]});
    let text = || json!({"type": "string"});
    let thinking = json!({"type": {"type": "string"}, "budget_tokens": {"type": "integer", "description": "Not a limit here."}});
    let choice = json!({
        "type": {"enum": ["auto", "any", "tool", "none"]}, "name": text(), "disable_parallel_tool_use": {"type": "boolean"},
    });
    let format = json!({
        "type": ["object", "null"], "required": ["type", "schema"],
        "properties": {"type": {"const": "json_schema"}, "schema": {"type": "object"}},
    });
    let effort = json!({"enum": ["low", "medium", "high", "xhigh", "max", null]});
    vec![
        ("messages", messages()),
        ("system", json!({"oneOf": [text(), blocks(), {"type": "null"}], "examples": ["Be brief."]})),
        ("metadata", object(json!({"user_id": {"type": ["string", "null"]}}), &[], json!({"user_id": "me"}))),
        ("tools", tools()),
        ("tool_choice", object(choice, &["type"], json!({"type": "auto"}))),
        ("thinking", object(thinking, &["type"], json!({"type": "disabled"}))),
        ("output_config", object(json!({"effort": effort, "format": format}), &[], json!({"effort": "low"}))),
    ]
}

fn messages() -> Value {
    let message = json!({
        "type": "object", "required": ["role", "content"],
        "properties": {
            "role": {"enum": ["user", "assistant", "system"]}, "content": {"oneOf": [{"type": "string"}, blocks()]},
        },
    });
    json!({
        "type": "array", "minItems": 1, "items": message, "examples": [[{"role": "user", "content": "hi"}]],
        "description": "The answer continues a last message of the assistant.",
    })
}

fn blocks() -> Value {
    let text = json!({"type": "string"});
    let block = json!({
        "type": "object", "required": ["type"],
        "properties": {
            "type": {"enum": ["text", "thinking", "redacted_thinking", "tool_use", "tool_result"]},
            "text": text, "thinking": text, "id": text, "name": text, "input": {"type": "object"}, "tool_use_id": text,
            "content": {"oneOf": [text, {"type": "array", "items": {"type": "object"}}]}, "is_error": {"type": "boolean"},
        },
    });
    json!({"type": "array", "items": block})
}

fn tools() -> Value {
    let tool = json!({
        "type": "object", "required": ["name", "input_schema"],
        "properties": {
            "type": {"enum": ["custom", null]}, "name": {"type": "string"}, "description": {"type": "string"},
            "input_schema": {"type": "object"}, "strict": {"type": ["boolean", "null"]},
        },
    });
    json!({"type": ["array", "null"], "items": tool, "examples": [[{"name": "now", "input_schema": {"type": "object"}}]]})
}

/// Replaces the errors of an operation by Anthropic's.
pub(super) fn with_its_errors(mut operation: Value) -> Value {
    let schema = json!({"$ref": "#/components/schemas/MessageErrorResponse"});
    operation["responses"]["default"]["content"]["application/json"]["schema"] = schema;
    operation
}

/// Returns the schema of an error.
pub(super) fn error_response() -> Value {
    let text = json!({"type": "string"});
    let error = json!({"type": "object", "required": ["type", "message"], "properties": {"type": text, "message": text}});
    json!({
        "type": "object", "required": ["type", "error", "request_id"],
        "properties": {"type": {"const": "error"}, "error": error, "request_id": {"type": ["string", "null"]}},
    })
}
