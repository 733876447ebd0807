//! Constraint of an answer's text, under the names of OpenAI and of its peers.

use grammar::Constraint;
use protocol::ConstraintFields;
use serde_json::{Map, Value, json};

use crate::error::ApiError;

/// A constraint, with the field that it came from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ValidConstraint {
    pub(crate) param: &'static str,
    pub(crate) constraint: Constraint,
}

/// Maximum texts of a choice. Chosen: labels of the largest classification sets.
const MAX_CHOICES: usize = 1024;

/// Reads the constraint of a request; `None` if its text is free.
///
/// # Errors
/// If a field is malformed, or two of them constrain.
pub(super) fn valid_constraint(fields: ConstraintFields) -> Result<Option<ValidConstraint>, ApiError> {
    let ConstraintFields {
        response_format,
        structured_outputs,
        guided_json,
        guided_regex,
        guided_choice,
        guided_grammar,
        json_schema,
        regex,
        grammar,
    } = fields;
    let of_schema = |param, schema| Ok(Constraint::JsonSchema(schema_of(param, schema, Strictness::Strict)?));
    let found = [
        ("response_format", response_format.map(of_response_format).transpose()?.flatten()),
        ("structured_outputs", structured_outputs.map(of_structured_outputs).transpose()?.flatten()),
        ("guided_json", guided_json.map(|schema| of_schema("guided_json", schema)).transpose()?),
        ("guided_regex", guided_regex.map(Constraint::Regex)),
        ("guided_choice", guided_choice.map(|texts| choice("guided_choice", texts)).transpose()?),
        ("guided_grammar", guided_grammar.map(|text| lark("guided_grammar", text)).transpose()?),
        ("json_schema", json_schema.map(|schema| of_schema("json_schema", schema)).transpose()?),
        ("regex", regex.filter(|regex| !regex.is_empty()).map(Constraint::Regex)),
        ("grammar", grammar.map(of_grammar).transpose()?.flatten()),
    ];
    let mut found = found.into_iter().filter_map(|(param, found)| found.map(|constraint| ValidConstraint { param, constraint }));
    let first = found.next();
    match (&first, found.next()) {
        (Some(first), Some(second)) => {
            let message = format!("`{}` and `{}` both constrain the answer; only one may", first.param, second.param);
            Err(ApiError::param(second.param, message))
        }
        _ => Ok(first),
    }
}

/// Treatment of keywords of a schema that cannot be enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strictness {
    /// A keyword that cannot be enforced is an error.
    Strict,
    /// Such a keyword is left out.
    Lenient,
}

/// Returns a schema that may be sent as text.
fn schema_of(param: &'static str, schema: Value, strictness: Strictness) -> Result<Value, ApiError> {
    let schema = match schema {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|error| ApiError::param(param, format!("the text of `{param}` is not JSON: {error}")))?,
        schema => schema,
    };
    match (schema, strictness) {
        (Value::Object(mut schema), Strictness::Lenient) => {
            schema.entry("x-guidance").or_insert(json!({"lenient": true}));
            Ok(Value::Object(schema))
        }
        (schema @ (Value::Object(_) | Value::Bool(_)), _) => Ok(schema),
        _ => Err(ApiError::param(param, format!("`{param}` must be a JSON schema: an object, true or false"))),
    }
}

/// Reads OpenAI's `response_format`, and its extensions by llama.cpp and TGI.
fn of_response_format(format: Value) -> Result<Option<Constraint>, ApiError> {
    const PARAM: &str = "response_format";
    let mut format = object(PARAM, format)?;
    let kind = format.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let schema = |schema| Ok(Some(Constraint::JsonSchema(schema_of(PARAM, schema, Strictness::Strict)?)));
    match kind.as_str() {
        "text" => Ok(None),
        "json_object" | "json" => match format.remove("schema").or_else(|| format.remove("value")) {
            Some(given) => schema(given),
            None => Ok(Some(Constraint::JsonObject)),
        },
        "json_schema" => of_json_schema(format).map(Some),
        "regex" => match format.remove("value").or_else(|| format.remove("pattern")) {
            Some(Value::String(regex)) => Ok(Some(Constraint::Regex(regex))),
            _ => Err(ApiError::param(PARAM, "`response_format` of type `regex` has the expression in `value`")),
        },
        "grammar" => match format.remove("grammar") {
            Some(Value::String(text)) => lark(PARAM, text).map(Some),
            _ => Err(ApiError::param(PARAM, "`response_format` of type `grammar` has the text in `grammar`")),
        },
        _ => {
            let known = "`text`, `json_object`, `json_schema`, `regex` or `grammar`";
            Err(ApiError::param(PARAM, format!("the type of `response_format` must be {known}, is `{kind}`")))
        }
    }
}

/// Reads `{"type": "json_schema", "json_schema": {"name", "schema", "strict"}}`.
fn of_json_schema(mut format: Map<String, Value>) -> Result<Constraint, ApiError> {
    const PARAM: &str = "response_format";
    // llama.cpp takes the schema itself beside the type.
    let outer = format.remove("schema");
    let mut named = match format.remove("json_schema") {
        Some(named) => object(PARAM, named)?,
        None => Map::new(),
    };
    let strictness = match named.get("strict") {
        Some(Value::Bool(true)) => Strictness::Strict,
        Some(Value::Bool(false) | Value::Null) | None => Strictness::Lenient,
        Some(_) => return Err(ApiError::param(PARAM, "`strict` of `response_format` must be true or false")),
    };
    match named.remove("schema").or(outer) {
        Some(schema) => Ok(Constraint::JsonSchema(schema_of(PARAM, schema, strictness)?)),
        None => Err(ApiError::param(PARAM, "`response_format` of type `json_schema` has the schema in `json_schema.schema`")),
    }
}

/// Reads vLLM's `structured_outputs`.
fn of_structured_outputs(outputs: Value) -> Result<Option<Constraint>, ApiError> {
    const PARAM: &str = "structured_outputs";
    let mut found = Vec::new();
    for (name, value) in object(PARAM, outputs)? {
        match (name.as_str(), value) {
            (_, Value::Null) | ("json_object" | "disable_any_whitespace" | "disable_fallback", Value::Bool(false)) => {}
            ("json", schema) => found.push(Constraint::JsonSchema(schema_of(PARAM, schema, Strictness::Strict)?)),
            ("json_object", Value::Bool(true)) => found.push(Constraint::JsonObject),
            ("regex", Value::String(regex)) => found.push(Constraint::Regex(regex)),
            ("grammar", Value::String(text)) => found.push(lark(PARAM, text)?),
            ("choice", Value::Array(texts)) => {
                let texts = texts.into_iter().map(|text| match text {
                    Value::String(text) => Ok(text),
                    _ => Err(ApiError::param(PARAM, "`choice` of `structured_outputs` must be a list of strings")),
                });
                found.push(choice(PARAM, texts.collect::<Result<_, _>>()?)?);
            }
            // Another parser is never chosen, so there is none to fall back from.
            ("disable_fallback", Value::Bool(true)) => {}
            (
                name @ ("structural_tag" | "whitespace_pattern" | "disable_any_whitespace" | "disable_additional_properties"),
                _,
            ) => {
                return Err(ApiError::param(PARAM, format!("`{name}` of `structured_outputs` is not supported")));
            }
            (name @ ("json_object" | "regex" | "grammar" | "choice"), _) => {
                return Err(ApiError::param(PARAM, format!("`{name}` of `structured_outputs` has the wrong type")));
            }
            (name, _) => return Err(ApiError::param(PARAM, format!("`structured_outputs` has no field `{name}`"))),
        }
    }
    match found.len() {
        0 => Ok(None),
        1 => Ok(found.pop()),
        _ => Err(ApiError::param(PARAM, "`structured_outputs` takes one constraint only")),
    }
}

/// Reads llama.cpp's `grammar`, a text, or TGI's, an object.
fn of_grammar(grammar: Value) -> Result<Option<Constraint>, ApiError> {
    match grammar {
        Value::String(text) if text.is_empty() => Ok(None),
        Value::String(text) => lark("grammar", text).map(Some),
        Value::Object(fields) => match (fields.get("type").and_then(Value::as_str), fields.get("value").cloned()) {
            (Some("json" | "json_schema"), Some(schema)) => {
                Ok(Some(Constraint::JsonSchema(schema_of("grammar", schema, Strictness::Strict)?)))
            }
            (Some("regex"), Some(Value::String(regex))) => Ok(Some(Constraint::Regex(regex))),
            _ => Err(ApiError::param("grammar", "`grammar` as an object has a type, `json` or `regex`, and a `value`")),
        },
        _ => Err(ApiError::param("grammar", "`grammar` must be a text in Lark's syntax, or an object with `type` and `value`")),
    }
}

/// Returns a grammar in Lark's syntax; names the other syntax that clients send.
fn lark(param: &'static str, text: String) -> Result<Constraint, ApiError> {
    if text.contains("::=") {
        return Err(ApiError::param(
            param,
            format!("`{param}` is in GBNF or EBNF, which is not supported: write it in Lark's syntax"),
        ));
    }
    Ok(Constraint::Lark(text))
}

fn choice(param: &'static str, texts: Vec<String>) -> Result<Constraint, ApiError> {
    match texts.len() {
        0 => Err(ApiError::param(param, "there is nothing to choose from")),
        1..=MAX_CHOICES => Ok(Constraint::Choice(texts)),
        _ => Err(ApiError::param(param, format!("at most {MAX_CHOICES} texts to choose from"))),
    }
}

fn object(param: &'static str, value: Value) -> Result<Map<String, Value>, ApiError> {
    match value {
        Value::Object(fields) => Ok(fields),
        _ => Err(ApiError::param(param, format!("`{param}` must be an object"))),
    }
}
