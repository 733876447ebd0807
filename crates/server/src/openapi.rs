//! The OpenAPI document. Written by hand: the types are few, and a test compares it with the router and the types.

mod embeddings;
mod messages;
mod responses;
mod schema;
mod usage;

use serde_json::{Map, Value, json};

use self::schema::{Field, boolean, integer, kv_sharing_field, number, string};

/// Returns the document as served.
pub(crate) fn document() -> Value {
    let paths: Map<_, _> = [generation_paths(), other_paths()].map(into_object).into_iter().flatten().collect();
    json!({
        "openapi": "3.1.0",
        "info": {"title": "kvshare", "version": env!("CARGO_PKG_VERSION"), "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "security": [{"key": []}, {"x_api_key": []}],
        "components": {"securitySchemes": {
            "key": {
                "type": "http", "scheme": "bearer",
                "description": "A key of the daemon's key file. Without such a file no key is needed.",
            },
            "x_api_key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same key."},
        }, "schemas": {
            "ChatCompletionRequest": object(&["messages"], [&chat_fields()[..], &shared_fields()].concat()),
            "CompletionRequest": object(&["prompt"], [&completion_fields()[..], &shared_fields()].concat()),
            "MessagesRequest": object(&["messages"], messages_fields()),
            "ResponseRequest": object(&["input"], responses::fields()),
            "TokenizeRequest": object(&[], tokenize_fields()),
            "KvSharingOptions": kv_sharing_options(),
            "CorpusRequest": object(&["name"], vec![("name", string("manuals")), ("text", string("hi")), ("messages", messages())]),
            "DetokenizeRequest": object(&["tokens"], detokenize_fields()),
            "EmbeddingsRequest": embeddings::embeddings_request(),
            "EmbeddingsResponse": embeddings::embeddings_response(),
            "RerankRequest": embeddings::rerank_request(),
            "RerankResponse": embeddings::rerank_response(),
            "ScoreRequest": embeddings::score_request(),
            "ScoreResponse": embeddings::score_response(),
            "KvSharingUsage": usage::kv_sharing_usage(),
            "KvExplanation": usage::explanation(),
            "ErrorResponse": error_response(),
            "MessageErrorResponse": messages::error_response(),
        }},
    })
}

/// Paths that generate or embed.
fn generation_paths() -> Value {
    json!({
        "/v1/chat/completions": {"post": generates("Answers a conversation", "ChatCompletionRequest")},
        "/v1/completions": {"post": generates("Continues a text", "CompletionRequest")},
        "/v1/messages": {"post": messages::with_its_errors(
            generates("Answers a conversation, in the shape of Anthropic's API", "MessagesRequest"),
        )},
        "/v1/messages/count_tokens": {"post": messages::with_its_errors(
            takes("Counts the tokens of the prompt of a message", "MessagesRequest"),
        )},
        "/v1/responses": {"post": generates("Answers a conversation, in OpenAI's newer form", "ResponseRequest")},
        "/v1/responses/{id}": {
            "get": about("id", says("Returns a stored response")),
            "delete": about("id", says("Deletes a stored response")),
        },
        "/v1/responses/{id}/input_items": {"get": with_query(about("id", says("Lists the input of a stored response")), &[
            ("limit", "At most so many, 1 to 100; 20 when absent"), ("order", "asc, or desc when absent"), ("after", "Only items after this one"),
        ])},
        "/v1/responses/{id}/cancel": {"post": about("id", says("Always an error: no response runs in the background"))},
    })
}

/// Paths about models, KV and the daemon.
fn other_paths() -> Value {
    json!({
        "/v1/models": {"get": says("Lists the served models")},
        "/v1/models/{id}": {"get": about("id", says("Describes one served model"))},
        "/v1/kv/explain": {"post": explains()},
        "/v1/kv/classes": {"get": says("Lists the classes of the caller's traffic in mode auto, and what is proven of each")},
        "/v1/kv/cache": {"delete": with_query(
            erases("Erases what the caller's requests left behind"), &[("session", "Only what requests of this session left")],
        )},
        "/admin/donors": {"get": with_query(admin(says("Lists earlier prompts that can be reused")), &[
            ("tenant", "Only this tenant's"), ("limit", "At most so many, 1 to 1000; 100 when absent"), ("after", "Only higher ids"),
        ])},
        "/admin/donors/{id}": {"delete": about("id", admin(erases("Erases one of them")))},
        "/admin/tenants/{name}/cache": {"delete": about("name", admin(erases("Erases what a tenant's requests left behind")))},
        "/admin/sessions/{id}/cache": {"delete": with_query(
            about("id", admin(erases("Erases what requests of a session left behind"))),
            &[("tenant", "Whose session it is; needed where there are several tenants")],
        )},
        "/admin/corpora": {
            "get": admin(says("Lists public corpora")),
            "post": admin(takes("Adds a text to a public corpus, computed with nothing before it", "CorpusRequest")),
        },
        "/admin/corpora/{name}": {"delete": about("name", admin(erases("Erases a public corpus")))},
        "/v1/embeddings": {"post": embeds()},
        "/embeddings": {"post": embeds()},
        "/v1/rerank": {"post": reranks()},
        "/rerank": {"post": reranks()},
        "/v2/rerank": {"post": reranks()},
        "/v1/score": {"post": scores()},
        "/score": {"post": scores()},
        "/tokenize": {"post": takes("Turns a text or a conversation into tokens", "TokenizeRequest")},
        "/detokenize": {"post": takes("Turns tokens into text", "DetokenizeRequest")},
        "/health": {"get": open(says("Whether requests are taken: 200 or 503"))},
        "/health/live": {"get": open(says("Whether the process works: 200 or 503"))},
        "/health/ready": {"get": open(says("Whether requests are taken: 200 or 503"))},
        "/metrics": {"get": {
            "security": [],
            "summary": "Metrics in Prometheus' text format",
            "responses": {"200": {"description": "Metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}},
        }},
        "/version": {"get": says("Version of the daemon")},
        "/load": {"get": says("Requests in flight")},
        "/openapi.json": {"get": says("This document")},
    })
}

fn into_object(value: Value) -> Map<String, Value> {
    if let Value::Object(fields) = value { fields } else { Map::new() }
}

fn says(summary: &str) -> Value {
    json!({"summary": summary, "responses": responses(json!({"application/json": {}}))})
}

/// Adds the path parameter `name` to an operation.
fn about(name: &str, mut operation: Value) -> Value {
    operation["parameters"] = json!([{"name": name, "in": "path", "required": true, "schema": {"type": "string"}}]);
    operation
}

/// Adds optional query parameters to an operation, each with its description.
fn with_query(mut operation: Value, names: &[(&str, &str)]) -> Value {
    let mut parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
    parameters.extend(names.iter().map(|(name, description)| {
        json!({"name": name, "in": "query", "required": false, "description": description, "schema": {"type": "string"}})
    }));
    operation["parameters"] = Value::Array(parameters);
    operation
}

/// Marks an operation as needing no key.
fn open(mut operation: Value) -> Value {
    operation["security"] = json!([]);
    operation
}

/// Marks an operation as needing a key with `admin = true`.
fn admin(mut operation: Value) -> Value {
    operation["description"] = json!("Needs an administrator's key.");
    operation
}

fn erases(summary: &str) -> Value {
    let counts = object(&["donors", "blocks"], vec![("donors", integer(0, 1)), ("blocks", integer(0, 1))]);
    json!({"summary": summary, "responses": responses(json!({"application/json": {"schema": counts}}))})
}

fn explains() -> Value {
    let answer = json!({"application/json": {"schema": {"$ref": "#/components/schemas/KvExplanation"}}});
    let mut operation = says("Says what would be reused for a request, without running it");
    operation["responses"] = responses(answer);
    let bodies =
        ["ChatCompletionRequest", "CompletionRequest"].map(|name| json!({"$ref": format!("#/components/schemas/{name}")}));
    operation["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": {"oneOf": bodies}}}});
    operation
}

fn takes(summary: &str, schema: &str) -> Value {
    let mut operation = says(summary);
    let schema = json!({"$ref": format!("#/components/schemas/{schema}")});
    operation["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": schema}}});
    operation
}

fn embeds() -> Value {
    answers(takes("Embeds texts", "EmbeddingsRequest"), "EmbeddingsResponse")
}

fn reranks() -> Value {
    answers(takes("Orders documents by their relevance to a query", "RerankRequest"), "RerankResponse")
}

fn scores() -> Value {
    answers(takes("Compares texts", "ScoreRequest"), "ScoreResponse")
}

/// Adds the schema of its answer to an operation.
fn answers(mut operation: Value, schema: &str) -> Value {
    let schema = json!({"$ref": format!("#/components/schemas/{schema}")});
    operation["responses"] = responses(json!({"application/json": {"schema": schema}}));
    operation
}

fn generates(summary: &str, schema: &str) -> Value {
    let mut operation = takes(summary, schema);
    operation["responses"] = responses(json!({"application/json": {}, "text/event-stream": {}}));
    operation
}

#[expect(clippy::needless_pass_by_value, reason = "a JSON literal at every call")]
fn responses(content: Value) -> Value {
    let error = json!({"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}});
    json!({
        "200": {"description": "Success", "content": content},
        "default": {"description": "Error", "content": error},
    })
}

#[expect(clippy::needless_pass_by_value, reason = "the fields are made for this call")]
fn object(required: &[&str], fields: Vec<Field>) -> Value {
    let properties: Map<_, _> = fields.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    json!({"type": "object", "required": required, "properties": properties, "additionalProperties": true})
}

fn ids() -> Value {
    json!({"type": ["array", "null"], "items": {"type": "integer", "minimum": 0}, "examples": [[1, 2]]})
}

fn messages() -> Value {
    let part = json!({
        "type": "object", "required": ["type", "text"],
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    });
    let content = json!({"oneOf": [{"type": "string"}, {"type": "array", "items": part}, {"type": "null"}]});
    let call = json!({
        "type": "object", "required": ["id", "type", "function"],
        "properties": {"id": {"type": "string"}, "type": {"const": "function"}, "function": {
            "type": "object", "required": ["name", "arguments"],
            "properties": {"name": {"type": "string"}, "arguments": {"type": "string", "description": "A JSON object, as text."}},
        }},
    });
    let message = json!({
        "type": "object", "required": ["role"],
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]}, "content": content, "name": {"type": "string"},
            "tool_calls": {"type": "array", "items": call}, "tool_call_id": {"type": "string"},
            "reasoning_content": {"type": ["string", "null"]},
        },
    });
    json!({"type": "array", "minItems": 1, "items": message, "examples": [[{"role": "user", "content": "hi"}]]})
}

fn chat_fields() -> Vec<Field> {
    let own = vec![
        ("model", string("m")),
        ("messages", messages()),
        ("max_completion_tokens", integer(1, 5)),
        ("logprobs", boolean()),
        ("top_logprobs", integer(0, 2)),
        ("tool_choice", json!({"type": ["string", "object", "null"], "examples": ["auto"]})),
        ("parallel_tool_calls", boolean()),
        ("include_reasoning", boolean()),
        ("separate_reasoning", boolean()),
    ];
    [own, template_fields()].concat()
}

/// Returns the fields that control how a conversation becomes a prompt.
fn template_fields() -> Vec<Field> {
    let variables = json!({
        "type": ["object", "null"], "description": "Further variables of the chat template.", "examples": [{"enable_thinking": false}],
    });
    let function = json!({
        "type": "object", "required": ["name"],
        "properties": {
            "name": {"type": "string"}, "description": {"type": "string"}, "parameters": {"type": "object"},
            "strict": {"type": ["boolean", "null"]},
        },
    });
    let tool = json!({"type": "object", "required": ["type", "function"], "properties": {"type": {"const": "function"}, "function": function}});
    let tools = json!({
        "type": ["array", "null"], "items": tool, "examples": [[{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}]],
    });
    vec![
        ("add_generation_prompt", boolean()),
        ("continue_final_message", boolean()),
        ("chat_template", string("{{ messages[0].content }}")),
        ("chat_template_kwargs", variables),
        ("tools", tools),
        ("reasoning_effort", string("low")),
    ]
}

fn messages_fields() -> Vec<Field> {
    let stop = json!({"type": ["array", "null"], "items": {"type": "string"}, "examples": [["x"]]});
    let shared = vec![
        ("model", string("m")),
        ("max_tokens", integer(1, 5)),
        ("stop_sequences", stop),
        ("stream", boolean()),
        ("temperature", number(0.0, 1.0, 0.5)),
        ("top_p", number(0.0, 1.0, 0.5)),
        ("top_k", integer(-1, 5)),
        ("cache_salt", string("s")),
        ("kv_sharing", kv_sharing_field()),
    ];
    [shared, messages::own_fields()].concat()
}

fn completion_fields() -> Vec<Field> {
    let list = |items: Value| json!({"type": "array", "items": items});
    let (text, id) = (json!({"type": "string"}), json!({"type": "integer", "minimum": 0}));
    let prompt = [text.clone(), list(text), list(id.clone()), list(list(id))];
    vec![
        ("model", string("m")),
        ("prompt", json!({"oneOf": prompt, "examples": ["hi"]})),
        ("logprobs", integer(0, 2)),
        ("echo", boolean()),
        ("best_of", integer(1, 1)),
    ]
}

fn shared_fields() -> Vec<Field> {
    let stop = json!({
        "oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}], "examples": [["x"]],
    });
    let stream_options = json!({
        "type": ["object", "null"], "properties": {"include_usage": {"type": "boolean"}, "continuous_usage_stats": {"type": "boolean"}}, "examples": [{"include_usage": true}],
    });
    let logit_bias = json!({
        "type": ["object", "null"], "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        "examples": [{"7": 1.0}],
    });
    let mut fields = vec![
        ("max_tokens", integer(0, 5)),
        ("temperature", number(0.0, 2.0, 0.5)),
        ("top_p", number(0.0, 1.0, 0.5)),
        ("top_k", integer(-1, 5)),
        ("min_p", number(0.0, 1.0, 0.5)),
        ("n", integer(1, 1)),
        ("stop", stop),
        ("include_stop_str_in_output", boolean()),
        ("skip_special_tokens", boolean()),
        ("stop_token_ids", ids()),
        ("seed", json!({"type": ["integer", "null"], "examples": [7]})),
        ("frequency_penalty", number(-2.0, 2.0, 0.5)),
        ("presence_penalty", number(-2.0, 2.0, 0.5)),
        ("repetition_penalty", number(0.01, 100.0, 1.5)),
        ("logit_bias", logit_bias),
        ("ignore_eos", boolean()),
        ("min_tokens", integer(0, 1)),
        ("stream", boolean()),
        ("stream_options", stream_options),
        ("user", string("me")),
        ("cache_salt", string("s")),
        ("cache_prompt", boolean()),
        ("kv_sharing", kv_sharing_field()),
        ("cache_segments", segments()),
    ];
    fields.extend(constraint_fields());
    fields
}

/// Fields of which at most one constrains the text of an answer.
fn constraint_fields() -> Vec<Field> {
    let text = |example: &str| json!({"type": ["string", "null"], "examples": [example]});
    let schema = || json!({"type": ["object", "string", "boolean", "null"], "examples": [{"type": "object"}]});
    let response_format = json!({
        "type": ["object", "null"], "required": ["type"],
        "properties": {"type": {"enum": ["text", "json_object", "json_schema", "regex", "grammar"]}, "json_schema": {"type": "object"}},
        "examples": [{"type": "json_object"}],
    });
    let choice = json!({"type": ["array", "null"], "items": {"type": "string"}, "minItems": 1, "examples": [["yes", "no"]]});
    vec![
        ("response_format", response_format),
        ("structured_outputs", json!({"type": ["object", "null"], "examples": [{"regex": "[0-9]+"}]})),
        ("guided_json", schema()),
        ("guided_regex", text("[0-9]+")),
        ("guided_choice", choice),
        ("guided_grammar", text("start: /[0-9]+/")),
        ("json_schema", schema()),
        ("regex", text("[0-9]+")),
        ("grammar", json!({"type": ["string", "object", "null"], "examples": ["start: /[0-9]+/"]})),
    ]
}

fn segments() -> Value {
    json!({
        "type": ["array", "null"], "items": {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "string", "minLength": 1, "maxLength": 64}]},
        "description": "Where pieces of the prompt begin that do not depend on what stands before them: at the text of a message, by its \
            index from 0, and behind each occurrence of a text. When absent: at each message, after blank lines, and at headings.",
        "examples": [[1, "---"]],
    })
}

fn kv_sharing_options() -> Value {
    let mode = json!({
        "enum": ["off", "prefix", "span", "semantic", "auto", "shadow", null],
        "description": "off and prefix are exact; span and semantic also move equal spans of other prompts; auto does so for \
            requests like those where that has proven itself; shadow only records what \
            semantic would reuse. A prompt that is scored (echo with logprobs) shares nothing.",
        "examples": ["span"],
    });
    let policy = json!({
        "type": ["string", "null"], "examples": ["impact@0.15"],
        "description": "Which tokens of reused spans are computed all the same: name, or name@ratio with a share of the prompt.",
    });
    let max_deviation = json!({
        "oneOf": [{"type": "number", "minimum": 0}, {"enum": ["strict", "balanced", "fast"]}, {"type": "null"}], "examples": ["balanced"],
        "description": "No more tokens are computed once what is left deviates by at most this from full computation. 0 shares exactly.",
    });
    let mut session = string("chat-7");
    session["description"] = json!("A name under which what this request leaves behind can be erased. 1 to 64 bytes.");
    let mut strict = boolean();
    strict["description"] = json!("With a seed: share exactly, so that the answer does not depend on what the cache holds.");
    let edit = json!({
        "enum": ["tidy", "forget", null], "examples": ["tidy"],
        "description": "What a rewritten history keeps of what was removed from it. tidy: text after it may be reused as it was computed \
            after it. forget: all of that is computed exactly.",
    });
    let mut normalize = boolean();
    normalize["description"] =
        json!("Write blanks that mean nothing one way before the prompt is tokenized, but not in code blocks.");
    let fields = vec![
        ("mode", mode),
        ("policy", policy),
        ("max_deviation", max_deviation),
        ("store", boolean()),
        ("segments", segments()),
        ("strict", strict),
        ("edit", edit),
        ("normalize", normalize),
        ("session", session),
    ];
    let mut options = object(&[], fields);
    options["additionalProperties"] = json!(false);
    options
}

fn tokenize_fields() -> Vec<Field> {
    let own = vec![
        ("model", string("m")),
        ("prompt", string("hi")),
        ("messages", messages()),
        ("add_special_tokens", boolean()),
        ("return_token_strs", boolean()),
    ];
    [own, template_fields()].concat()
}

fn detokenize_fields() -> Vec<Field> {
    vec![("model", string("m")), ("tokens", ids()), ("skip_special_tokens", boolean())]
}

fn error_response() -> Value {
    let nullable = json!({"type": ["string", "null"]});
    let error = json!({
        "type": "object", "required": ["message", "type", "param", "code"],
        "properties": {"message": {"type": "string"}, "type": {"type": "string"}, "param": nullable, "code": nullable},
    });
    json!({"type": "object", "required": ["error"], "properties": {"error": error}})
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use protocol::{
        BlockContent, ChatCompletionRequest, CompletionRequest, CorpusRequest, DetokenizeRequest, EmbeddingsRequest,
        EncodingFormat, ErrorBody, ErrorResponse, InputToolChoice, KvSharingOptions, MessageMetadata, MessagesRequest,
        OutputConfig, RerankRequest, SamplingFields, ScoreRequest, StreamOptions, TemplateFields, ThinkingConfig,
        TokenizeRequest,
    };
    use serde::Serialize;
    use serde::de::DeserializeOwned;

    use super::*;

    /// Compares the document's fields of `schema`, each with its example, with all fields of `full`, a value that has every field.
    #[track_caller]
    fn check<T: Serialize + DeserializeOwned>(schema: &str, full: &T) {
        let document = document();
        let properties = document["components"]["schemas"][schema]["properties"].as_object().unwrap();
        let documented: BTreeSet<_> = properties.keys().cloned().collect();
        let full = serde_json::to_value(full).unwrap();
        let typed: BTreeSet<_> = full.as_object().unwrap().keys().cloned().collect();
        assert_eq!(documented, typed);
        let examples: Map<_, _> = properties.iter().map(|(name, schema)| (name.clone(), schema["examples"][0].clone())).collect();
        let parsed = serde_json::from_value::<T>(Value::Object(examples.clone())).unwrap();
        let written = serde_json::to_value(parsed).unwrap();
        assert_eq!(written.as_object().unwrap().keys().collect::<BTreeSet<_>>(), examples.keys().collect());
    }

    fn kv_sharing() -> KvSharingOptions {
        KvSharingOptions {
            mode: Some(tokens::SharingMode::Span),
            policy: Some("dhd".into()),
            max_deviation: Some(protocol::DeviationBound::Number(0.5)),
            store: Some(true),
            segments: Some(vec![]),
            strict: Some(true),
            edit: Some(protocol::EditMode::Tidy),
            normalize: Some(true),
            session: Some("s".into()),
        }
    }

    fn sampling() -> SamplingFields {
        SamplingFields {
            max_tokens: Some(1),
            temperature: Some(1.0),
            top_p: Some(1.0),
            top_k: Some(1),
            min_p: Some(1.0),
            n: Some(1),
            stop: Some(protocol::Stop::One("x".into())),
            include_stop_str_in_output: Some(true),
            skip_special_tokens: Some(true),
            stop_token_ids: Some(vec![1]),
            seed: Some(1),
            frequency_penalty: Some(1.0),
            presence_penalty: Some(1.0),
            repetition_penalty: Some(1.0),
            logit_bias: Some([("1".to_owned(), 1.0)].into()),
            ignore_eos: Some(true),
            min_tokens: Some(1),
            stream: Some(true),
            stream_options: Some(StreamOptions { include_usage: Some(true), continuous_usage_stats: None }),
            user: Some("u".into()),
            cache_salt: Some("s".into()),
            cache_prompt: Some(false),
            kv_sharing: Some(kv_sharing()),
            cache_segments: Some(vec![]),
        }
    }

    fn constraint() -> protocol::ConstraintFields {
        protocol::ConstraintFields {
            response_format: Some(json!({})),
            structured_outputs: Some(json!({})),
            guided_json: Some(json!({})),
            guided_regex: Some("a".into()),
            guided_choice: Some(vec![]),
            guided_grammar: Some("a".into()),
            json_schema: Some(json!({})),
            regex: Some("a".into()),
            grammar: Some(json!("a")),
        }
    }

    fn template() -> TemplateFields {
        TemplateFields {
            add_generation_prompt: Some(true),
            continue_final_message: Some(true),
            chat_template: Some("x".into()),
            chat_template_kwargs: Some(Map::new()),
            tools: Some(vec![]),
            reasoning_effort: Some("low".into()),
        }
    }

    #[test]
    fn the_document_has_the_fields_of_the_types() {
        let chat = ChatCompletionRequest {
            model: Some("m".into()),
            messages: Some(vec![]),
            max_completion_tokens: Some(1),
            logprobs: Some(true),
            top_logprobs: Some(1),
            tools: protocol::ToolFields {
                tool_choice: Some(json!("auto")),
                parallel_tool_calls: Some(true),
                include_reasoning: Some(true),
                separate_reasoning: Some(true),
            },
            template: template(),
            constraint: constraint(),
            sampling: sampling(),
            other: Map::new(),
        };
        check("ChatCompletionRequest", &chat);
        let completion = CompletionRequest {
            model: Some("m".into()),
            prompt: Some(protocol::Prompt::Text("x".into())),
            logprobs: Some(1),
            echo: Some(true),
            best_of: Some(1),
            constraint: constraint(),
            sampling: sampling(),
            other: Map::new(),
        };
        check("CompletionRequest", &completion);
        check("ResponseRequest", &responses::tests::full(kv_sharing()));
        let tokenize = TokenizeRequest {
            model: Some("m".into()),
            prompt: Some("x".into()),
            messages: Some(vec![]),
            add_special_tokens: Some(true),
            return_token_strs: Some(true),
            template: template(),
            other: Map::new(),
        };
        check("TokenizeRequest", &tokenize);
        check("KvSharingOptions", &kv_sharing());
        let corpus = CorpusRequest { name: Some("c".into()), text: Some("x".into()), messages: Some(vec![]) };
        check("CorpusRequest", &corpus);
        let messages = MessagesRequest {
            model: Some("m".into()),
            messages: Some(vec![]),
            system: Some(BlockContent::Text("s".into())),
            max_tokens: Some(1),
            stop_sequences: Some(vec![]),
            stream: Some(true),
            temperature: Some(1.0),
            top_p: Some(1.0),
            top_k: Some(1),
            metadata: Some(MessageMetadata::default()),
            tools: Some(vec![]),
            tool_choice: Some(InputToolChoice::default()),
            thinking: Some(ThinkingConfig::default()),
            output_config: Some(OutputConfig::default()),
            cache_salt: Some("s".into()),
            kv_sharing: Some(kv_sharing()),
            other: Map::new(),
        };
        check("MessagesRequest", &messages);
        let detokenize = DetokenizeRequest {
            model: Some("m".into()),
            tokens: Some(vec![1]),
            skip_special_tokens: Some(true),
            other: Map::new(),
        };
        check("DetokenizeRequest", &detokenize);
    }

    #[test]
    fn the_document_has_the_fields_of_embeddings() {
        let text = || Some("x".to_owned());
        let embeddings = EmbeddingsRequest {
            model: text(),
            input: Some(protocol::Prompt::Text("x".into())),
            encoding_format: Some(EncodingFormat::Float),
            dimensions: Some(1),
            truncate_prompt_tokens: Some(1),
            user: text(),
            other: Map::new(),
        };
        check("EmbeddingsRequest", &embeddings);
        let rerank = RerankRequest {
            model: text(),
            query: text(),
            documents: Some(vec![]),
            top_n: Some(1),
            return_documents: Some(true),
            max_tokens_per_doc: Some(1),
            truncate_prompt_tokens: Some(1),
            user: text(),
            other: Map::new(),
        };
        check("RerankRequest", &rerank);
        let texts = || Some(protocol::Texts::One("x".into()));
        let score = ScoreRequest {
            model: text(),
            text_1: texts(),
            text_2: texts(),
            truncate_prompt_tokens: Some(1),
            user: text(),
            other: Map::new(),
        };
        check("ScoreRequest", &score);
    }

    #[test]
    fn the_document_has_the_error_object() {
        let error = ErrorBody { message: String::new(), kind: String::new(), param: None, code: None };
        let written = serde_json::to_value(ErrorResponse { error }).unwrap();
        let documented = &document()["components"]["schemas"]["ErrorResponse"]["properties"]["error"]["properties"];
        assert!(documented.as_object().unwrap().keys().eq(written["error"].as_object().unwrap().keys()));
    }

    #[test]
    fn the_document_has_the_paths_of_the_router() {
        let documented: BTreeSet<_> = document()["paths"].as_object().unwrap().keys().cloned().collect();
        let routed: BTreeSet<_> = crate::paths::PATHS.iter().map(|path| path.replace("{*", "{")).collect();
        assert_eq!(documented, routed);
    }
}
