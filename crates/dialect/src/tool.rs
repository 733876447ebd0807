//! Tools as a parser needs them.

use serde_json::Value;

/// A function that a model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolSpec {
    /// Name of the function.
    pub name: String,
    /// JSON schema of its arguments.
    pub parameters: Value,
    /// True if arguments must match the schema.
    pub is_strict: bool,
}

impl ToolSpec {
    /// True if `arguments` may be those of a call: JSON that matches the schema, if it must.
    pub(crate) fn accepts(&self, arguments: &str) -> bool {
        !self.is_strict || self.matches(arguments)
    }

    fn matches(&self, arguments: &str) -> bool {
        let arguments = serde_json::from_str(arguments);
        let validator = jsonschema::validator_for(&self.parameters);
        arguments.is_ok_and(|arguments| validator.is_ok_and(|validator| validator.is_valid(&arguments)))
    }

    /// Returns the JSON schema of the argument `name`, if the tool declares it.
    pub(crate) fn parameter(&self, name: &str) -> Option<&Value> {
        self.parameters.get("properties")?.get(name)
    }
}

/// Converts the text of an argument into JSON: text unless its schema says otherwise.
pub(crate) fn typed_value(text: &str, schema: Option<&Value>) -> Value {
    let is_string = match schema.and_then(|schema| schema.get("type")) {
        Some(Value::String(kind)) => kind == "string",
        Some(Value::Array(kinds)) => kinds.iter().all(|kind| kind == "string" || kind == "null") && text != "null",
        // A schema without a type may allow anything, so what reads as JSON is JSON.
        _ => schema.is_none() || schema.is_some_and(|schema| schema.get("enum").is_some_and(all_strings)),
    };
    let json =
        if is_string { None } else { serde_json::from_str(text.trim()).ok().or_else(|| crate::python::literal(text.trim())) };
    json.unwrap_or_else(|| Value::String(text.to_owned()))
}

fn all_strings(values: &Value) -> bool {
    values.as_array().is_some_and(|values| values.iter().all(Value::is_string))
}
