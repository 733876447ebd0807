//! Schema of requests for responses.

use serde_json::{Value, json};

use super::schema::{Field, boolean, integer, kv_sharing_field, number, string};

/// Returns the fields of a request. Those of a chat request that are not among them mean the same here.
pub(super) fn fields() -> Vec<Field> {
    let function = json!({
        "type": "object", "required": ["type", "name"],
        "properties": {
            "type": {"const": "function"}, "name": {"type": "string"}, "description": {"type": ["string", "null"]},
            "parameters": {"type": ["object", "null"]}, "strict": {"type": ["boolean", "null"]},
        },
    });
    let tools = json!({
        "type": ["array", "null"], "items": function, "examples": [[{"type": "function", "name": "now", "parameters": {"type": "object"}}]],
    });
    let text = json!({
        "type": ["object", "null"], "examples": [{"format": {"type": "json_object"}}],
        "properties": {
            "format": {
                "type": ["object", "null"], "required": ["type"],
                "properties": {
                    "type": {"enum": ["text", "json_object", "json_schema"]}, "name": {"type": "string"}, "schema": {"type": "object"},
                    "strict": {"type": ["boolean", "null"]},
                },
            },
            "verbosity": {"type": ["string", "null"]},
        },
    });
    let reasoning = json!({
        "type": ["object", "null"], "examples": [{"effort": "low"}],
        "properties": {"effort": {"type": ["string", "null"]}, "summary": {"type": ["string", "null"]}},
    });
    let include = json!({
        "type": ["array", "null"], "items": {"type": "string"}, "examples": [["message.output_text.logprobs"]],
    });
    let metadata = json!({
        "type": ["object", "null"], "maxProperties": 16, "additionalProperties": {"type": "string", "maxLength": 512}, "examples": [{"a": "b"}],
    });
    let mut store = boolean();
    store["description"] = json!("False keeps nothing of the response. True when absent, unless kv_sharing.store is false.");
    vec![
        ("model", string("m")),
        ("input", input()),
        ("instructions", string("Be brief.")),
        ("previous_response_id", string("resp_1")),
        ("tools", tools),
        ("tool_choice", json!({"type": ["string", "object", "null"], "examples": ["auto"]})),
        ("parallel_tool_calls", boolean()),
        ("max_tool_calls", integer(1, 5)),
        ("text", text),
        ("reasoning", reasoning),
        ("max_output_tokens", integer(1, 5)),
        ("temperature", number(0.0, 2.0, 0.5)),
        ("top_p", number(0.0, 1.0, 0.5)),
        ("top_logprobs", integer(0, 2)),
        ("include", include),
        ("metadata", metadata),
        ("store", store),
        ("stream", boolean()),
        ("background", json!({"enum": [false, null], "examples": [false]})),
        ("truncation", json!({"enum": ["disabled", null], "examples": ["disabled"]})),
        ("service_tier", string("auto")),
        ("user", string("me")),
        ("safety_identifier", string("me")),
        ("prompt_cache_key", string("k")),
        ("cache_salt", string("s")),
        ("kv_sharing", kv_sharing_field()),
    ]
}

fn input() -> Value {
    let content = || json!({"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "object", "required": ["type"]}}]});
    let message = json!({
        "type": "object", "required": ["role", "content"],
        "properties": {
            "type": {"const": "message"}, "role": {"enum": ["user", "assistant", "system", "developer"]}, "content": content(),
        },
    });
    let call = json!({
        "type": "object", "required": ["type", "call_id", "name", "arguments"],
        "properties": {
            "type": {"const": "function_call"}, "call_id": {"type": "string"}, "name": {"type": "string"}, "arguments": {"type": "string"},
        },
    });
    let output = json!({
        "type": "object", "required": ["type", "call_id", "output"],
        "properties": {"type": {"const": "function_call_output"}, "call_id": {"type": "string"}, "output": content()},
    });
    let reasoning = json!({
        "type": "object", "required": ["type"],
        "properties": {"type": {"const": "reasoning"}, "content": content(), "summary": {"type": "array", "items": {"type": "object"}}},
    });
    let reference = json!({
        "type": "object", "required": ["id"], "properties": {"type": {"const": "item_reference"}, "id": {"type": "string"}},
    });
    let items = json!({"type": "array", "items": {"anyOf": [message, call, output, reasoning, reference]}});
    json!({"oneOf": [{"type": "string"}, items], "examples": ["hi"]})
}

#[cfg(test)]
pub(super) mod tests {
    use protocol::{KvSharingOptions, ResponseInput, ResponseReasoning, ResponseRequest, ResponseText};
    use serde_json::Map;

    use super::*;

    /// Returns a request that has every field.
    pub(in super::super) fn full(kv_sharing: KvSharingOptions) -> ResponseRequest {
        ResponseRequest {
            model: Some("m".into()),
            input: Some(ResponseInput::Text("x".into())),
            instructions: Some("x".into()),
            previous_response_id: Some("r".into()),
            tools: Some(vec![]),
            tool_choice: Some(json!("auto")),
            parallel_tool_calls: Some(true),
            max_tool_calls: Some(1),
            text: Some(ResponseText::default()),
            reasoning: Some(ResponseReasoning::default()),
            max_output_tokens: Some(1),
            temperature: Some(1.0),
            top_p: Some(1.0),
            top_logprobs: Some(1),
            include: Some(vec![]),
            metadata: Some([].into()),
            store: Some(true),
            stream: Some(true),
            background: Some(false),
            truncation: Some("disabled".into()),
            service_tier: Some("auto".into()),
            user: Some("u".into()),
            safety_identifier: Some("u".into()),
            prompt_cache_key: Some("k".into()),
            cache_salt: Some("s".into()),
            kv_sharing: Some(kv_sharing),
            other: Map::new(),
        }
    }
}
