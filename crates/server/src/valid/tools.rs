//! Tools of a request, and its choice among them.

use std::collections::HashSet;

use dialect::{Dialect, ToolSpec};
use protocol::{Tool, ToolFields};
use serde_json::{Map, Value, json};

use crate::error::ApiError;

/// Maximum tools of a request. Chosen: four times what OpenAI allows.
const MAX_TOOLS: usize = 512;
/// Maximum characters of a function's name.
const MAX_NAME_CHARS: usize = 128;

/// Tools that an answer may call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ValidTools {
    pub(crate) tools: Vec<ToolSpec>,
    /// True if the answer must call one.
    pub(crate) is_required: bool,
    /// True if it may call several.
    pub(crate) is_parallel: bool,
    pub(crate) dialect: Dialect,
}

impl ValidTools {
    /// True if calls must match their grammar: one is required, or a tool is strict.
    pub(crate) fn must_match(&self) -> bool {
        self.is_required || self.tools.iter().any(|tool| tool.is_strict)
    }
}

/// Choice of a request among its tools.
enum Choice {
    None,
    Auto,
    Required,
    /// Only these functions; `is_required` if one of them must be called.
    Among {
        names: Vec<String>,
        is_required: bool,
    },
}

/// Validates tools and their choice. `None` if answers cannot call: without tools, with the choice `none`, or without a parser of calls.
///
/// # Errors
/// If a tool is malformed or not a function, or the choice names a function that is not among them; names the field.
pub(super) fn valid_tools(tools: &[Tool], fields: ToolFields, dialect: Option<Dialect>) -> Result<Option<ValidTools>, ApiError> {
    let callable = callable(tools)?;
    let choice = valid_choice(fields.tool_choice)?;
    if callable.is_empty() {
        return match choice {
            Choice::None | Choice::Auto => Ok(None),
            Choice::Required | Choice::Among { .. } => Err(ApiError::param("tool_choice", "there are no `tools` to choose from")),
        };
    }
    let (tools, is_required) = match choice {
        Choice::None => return Ok(None),
        Choice::Auto => (callable, false),
        Choice::Required => (callable, true),
        Choice::Among { names, is_required } => (chosen(callable, &names)?, is_required),
    };
    let Some(dialect) = dialect else {
        return match is_required {
            true => Err(ApiError::param(
                "tool_choice",
                "this daemon parses no calls (`--tool-call-parser none`), so none can be required",
            )),
            false => Ok(None),
        };
    };
    Ok(Some(ValidTools { tools, is_required, is_parallel: fields.parallel_tool_calls.unwrap_or(true), dialect }))
}

/// Validates `tools`.
///
/// # Errors
/// If one is malformed or not a function, two have one name, or there are too many; names the field.
pub(super) fn callable(tools: &[Tool]) -> Result<Vec<ToolSpec>, ApiError> {
    let callable = tools.iter().enumerate().map(|(idx, tool)| valid_tool(idx, tool)).collect::<Result<Vec<_>, _>>()?;
    if callable.len() > MAX_TOOLS {
        return Err(ApiError::param("tools", format!("at most {MAX_TOOLS} tools, got {}", callable.len())));
    }
    let mut names = HashSet::new();
    for (idx, tool) in callable.iter().enumerate() {
        if !names.insert(&tool.name) {
            return Err(ApiError::param(
                format!("tools[{idx}].function.name"),
                format!("`{}` is the name of two tools", tool.name),
            ));
        }
    }
    Ok(callable)
}

/// Keeps the tools with `names`.
fn chosen(tools: Vec<ToolSpec>, names: &[String]) -> Result<Vec<ToolSpec>, ApiError> {
    if let Some(unknown) = names.iter().find(|name| tools.iter().all(|tool| tool.name != **name)) {
        return Err(ApiError::param("tool_choice", format!("`{unknown}` is not among the `tools`")));
    }
    Ok(tools.into_iter().filter(|tool| names.contains(&tool.name)).collect())
}

fn valid_tool(idx: usize, tool: &Tool) -> Result<ToolSpec, ApiError> {
    let param = |name: &str| format!("tools[{idx}].{name}");
    match tool.get("type").and_then(Value::as_str) {
        Some("function") => {}
        Some(_) => return Err(ApiError::Unsupported { param: param("type") }),
        None => return Err(ApiError::param(param("type"), "must be `function`")),
    }
    let Some(Value::Object(function)) = tool.get("function") else {
        return Err(ApiError::param(param("function"), "must be an object with `name` and `parameters`"));
    };
    let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/');
    if name.is_empty() || name.chars().count() > MAX_NAME_CHARS || !name.chars().all(is_name) {
        let message = format!("must be 1 to {MAX_NAME_CHARS} letters, digits, `_`, `-`, `.`, `:` or `/`");
        return Err(ApiError::param(param("function.name"), message));
    }
    let parameters = match function.get("parameters") {
        // As in OpenAI's API: a function without parameters.
        None | Some(Value::Null) => json!({"type": "object", "properties": {}, "additionalProperties": false}),
        Some(Value::Object(fields)) if fields.is_empty() => json!({"type": "object"}),
        Some(Value::Object(fields)) if fields.get("type").is_some_and(|kind| kind != "object") => {
            return Err(ApiError::param(param("function.parameters.type"), "must be `object`: arguments have names"));
        }
        Some(schema @ Value::Object(_)) => schema.clone(),
        Some(_) => return Err(ApiError::param(param("function.parameters"), "must be a JSON schema, an object")),
    };
    let is_strict = match function.get("strict") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(is_strict)) => *is_strict,
        Some(_) => return Err(ApiError::param(param("function.strict"), "must be true or false")),
    };
    Ok(ToolSpec { name: name.to_owned(), parameters, is_strict })
}

/// Reads `none`, `auto`, `required`, `{"type": "function", ...}` or `{"type": "allowed_tools", ...}`.
fn valid_choice(choice: Option<Value>) -> Result<Choice, ApiError> {
    let invalid = || {
        ApiError::param("tool_choice", "must be `none`, `auto`, `required`, or an object that names a function or allows some")
    };
    match choice {
        None | Some(Value::Null) => Ok(Choice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "none" => Ok(Choice::None),
            "auto" => Ok(Choice::Auto),
            "required" | "any" => Ok(Choice::Required),
            _ => Err(invalid()),
        },
        Some(Value::Object(fields)) => match fields.get("type").and_then(Value::as_str) {
            Some("function") => Ok(Choice::Among { names: vec![function_name(&fields).ok_or_else(invalid)?], is_required: true }),
            Some("allowed_tools") => {
                let allowed = match fields.get("allowed_tools") {
                    Some(Value::Object(allowed)) => allowed,
                    _ => &fields,
                };
                let tools = allowed.get("tools").and_then(Value::as_array).ok_or_else(invalid)?;
                let names = tools.iter().map(|tool| tool.as_object().and_then(function_name).ok_or_else(invalid));
                let names = names.collect::<Result<Vec<_>, _>>()?;
                let is_required = match allowed.get("mode").and_then(Value::as_str) {
                    Some("required") => true,
                    Some("auto") | None => false,
                    Some(_) => {
                        return Err(ApiError::param("tool_choice", "the mode of `allowed_tools` must be `auto` or `required`"));
                    }
                };
                match names.is_empty() {
                    true => Err(ApiError::param("tool_choice", "`allowed_tools` allows none: use `none`")),
                    false => Ok(Choice::Among { names, is_required }),
                }
            }
            _ => Err(invalid()),
        },
        Some(_) => Err(invalid()),
    }
}

/// Returns the name in `{"function": {"name"}}` or `{"name"}`.
fn function_name(fields: &Map<String, Value>) -> Option<String> {
    let named = fields.get("function").and_then(Value::as_object).unwrap_or(fields);
    named.get("name").and_then(Value::as_str).map(str::to_owned)
}

/// Returns tools as a template reads them: without what only this server reads.
pub(super) fn for_template(tools: Vec<Tool>) -> Vec<Value> {
    let without_strict = |mut tool: Tool| {
        if let Some(Value::Object(function)) = tool.get_mut("function") {
            function.shift_remove("strict");
        }
        Value::Object(tool)
    };
    tools.into_iter().map(without_strict).collect()
}
