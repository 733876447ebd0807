//! Translates tools and the choice among them.

use protocol::{InputTool, InputToolChoice, Tool, ToolFields};
use serde_json::{Value, json};

use crate::body::shortened;
use crate::error::ApiError;

/// Translates the definitions of tools; `None` if there are none.
pub(super) fn tool_definitions(tools: Vec<InputTool>) -> Result<Option<Vec<Tool>>, ApiError> {
    let tools = tools.into_iter().enumerate().map(|(idx, tool)| definition(idx, tool)).collect::<Result<Vec<_>, _>>()?;
    Ok((!tools.is_empty()).then_some(tools))
}

fn definition(idx: usize, tool: InputTool) -> Result<Tool, ApiError> {
    let InputTool { kind, name, description, input_schema, strict } = tool;
    if kind.is_some_and(|kind| kind != "custom") {
        return Err(ApiError::Unsupported { param: format!("tools[{idx}].type") });
    }
    let missing = |field: &str| ApiError::param(format!("tools[{idx}].{field}"), "missing");
    let mut function = Tool::new();
    function.insert("name".to_owned(), Value::String(name.ok_or_else(|| missing("name"))?));
    function.extend(description.map(|text| ("description".to_owned(), Value::String(text))));
    function.insert("parameters".to_owned(), Value::Object(input_schema.ok_or_else(|| missing("input_schema"))?));
    function.extend(strict.map(|strict| ("strict".to_owned(), Value::Bool(strict))));
    Ok(Tool::from_iter([
        ("type".to_owned(), Value::String("function".to_owned())),
        ("function".to_owned(), Value::Object(function)),
    ]))
}

/// Translates the choice among tools.
pub(super) fn tool_fields(choice: Option<InputToolChoice>) -> Result<ToolFields, ApiError> {
    let Some(InputToolChoice { kind, name, disable_parallel_tool_use }) = choice else { return Ok(ToolFields::default()) };
    let tool_choice = match (kind.as_str(), name) {
        ("auto" | "none", _) => json!(kind),
        ("any", _) => json!("required"),
        ("tool", Some(name)) => json!({"type": "function", "function": {"name": name}}),
        ("tool", None) => return Err(ApiError::param("tool_choice.name", "missing")),
        (other, _) => {
            let message = format!("must be `auto`, `any`, `tool` or `none`, not `{}`", shortened(other));
            return Err(ApiError::param("tool_choice.type", message));
        }
    };
    let parallel_tool_calls = disable_parallel_tool_use.map(|disables| !disables);
    Ok(ToolFields { tool_choice: Some(tool_choice), parallel_tool_calls, ..ToolFields::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definitions(tools: Value) -> Result<Value, ApiError> {
        tool_definitions(serde_json::from_value(tools).unwrap()).map(|tools| json!(tools))
    }

    #[track_caller]
    fn check_choice(choice: Value, expected: impl Into<Value>) {
        let fields = tool_fields(serde_json::from_value(choice).unwrap()).unwrap();
        assert_eq!(serde_json::to_value(fields).unwrap(), expected.into());
    }

    #[track_caller]
    fn check_refused<T: std::fmt::Debug>(result: Result<T, ApiError>, param: &str) {
        assert_eq!(result.unwrap_err().body().error.param.as_deref(), Some(param));
    }

    #[test]
    fn tools_are_functions() {
        let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
        let full = json!({
            "name": "weather", "description": "Tells it.", "input_schema": schema, "type": "custom", "strict": true,
            "cache_control": {"type": "ephemeral"},
        });
        let found = definitions(json!([full, {"name": "now", "input_schema": {}}])).unwrap();
        let function = json!({"name": "weather", "description": "Tells it.", "parameters": schema, "strict": true});
        assert_eq!(
            found,
            json!([
                {"type": "function", "function": function},
                {"type": "function", "function": {"name": "now", "parameters": {}}},
            ])
        );
        assert_eq!(definitions(json!([])).unwrap(), Value::Null);
    }

    #[test]
    fn tools_of_other_servers_and_incomplete_ones_are_refused_by_name() {
        let search = json!([{"name": "f", "input_schema": {}}, {"type": "web_search_20250305", "name": "web_search"}]);
        check_refused(definitions(search), "tools[1].type");
        check_refused(definitions(json!([{"name": "f"}])), "tools[0].input_schema");
        check_refused(definitions(json!([{"input_schema": {}}])), "tools[0].name");
    }

    #[test]
    fn every_choice_has_its_counterpart() {
        check_choice(json!(null), json!({}));
        check_choice(json!({"type": "auto"}), json!({"tool_choice": "auto"}));
        check_choice(json!({"type": "none"}), json!({"tool_choice": "none"}));
        let any = json!({"type": "any", "disable_parallel_tool_use": true});
        check_choice(any, json!({"tool_choice": "required", "parallel_tool_calls": false}));
        let named = json!({"type": "function", "function": {"name": "f"}});
        check_choice(json!({"type": "tool", "name": "f"}), json!({"tool_choice": named}));
        check_choice(
            json!({"type": "auto", "disable_parallel_tool_use": false}),
            json!({"tool_choice": "auto", "parallel_tool_calls": true}),
        );
        let choice = |value: Value| tool_fields(Some(serde_json::from_value(value).unwrap()));
        check_refused(choice(json!({"type": "tool"})), "tool_choice.name");
        check_refused(choice(json!({"type": "all"})), "tool_choice.type");
    }
}
