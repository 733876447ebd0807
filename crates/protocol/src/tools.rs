//! Tools that a model may call, and its calls.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A call of a function by the model, in an answer or in a history.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ToolCall {
    /// Name by which a message with role `tool` answers it.
    pub id: String,
    /// `function`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Function and its arguments.
    pub function: FunctionCall,
}

/// Function and arguments of a call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FunctionCall {
    /// Name of the function.
    pub name: String,
    /// Arguments: the text of a JSON object. Some clients send the object itself in a history.
    pub arguments: Value,
}

/// Update of a call in a streamed answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCallDelta {
    /// Index of the call within its message.
    pub index: u32,
    /// Set only in the first update of the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`, in the first update.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Further text.
    #[serde(default)]
    pub function: FunctionDelta,
}

/// Update of a call's function.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionDelta {
    /// Set only in the first update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Further text of the arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
}

/// Fields of a chat request about calls and reasoning in its answer. The tools themselves are part of the prompt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ToolFields {
    /// `none`, `auto`, `required`, or an object that names a function or allows some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<Value>,
    /// False limits an answer to one call; true when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel_tool_calls: Option<bool>,
    /// False leaves reasoning out of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include_reasoning: Option<bool>,
    /// Option of SGLang: false leaves reasoning in the text of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub separate_reasoning: Option<bool>,
}

impl ToolCall {
    /// Creates the call `id` of the function `name` with the text `arguments`.
    #[must_use]
    pub fn new(id: String, name: String, arguments: String) -> Self {
        Self { id, kind: "function".to_owned(), function: FunctionCall { name, arguments: Value::String(arguments) } }
    }
}

/// Definition of a tool, as sent: an object with `type` and `function`.
pub type Tool = Map<String, Value>;
