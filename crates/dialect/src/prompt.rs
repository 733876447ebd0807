//! Tools in the prompts of models whose templates know none, in the Hermes dialect.

use serde_json::Value;

/// Returns the text that tells a model about `tools` and how to call them. `system` is the system message before it, empty if there is none.
#[must_use]
pub fn instructions(system: &str, tools: &[Value]) -> String {
    let list: Vec<_> = tools.iter().map(Value::to_string).collect();
    let separator = if system.is_empty() { "" } else { "\n\n" };
    format!(
        "{system}{separator}# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function \
         signatures within <tools></tools> XML tags:\n<tools>\n{}\n</tools>\n\nFor each function call, return a json object with function \
         name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{{\"name\": <function-name>, \"arguments\": \
         <args-json-object>}}\n</tool_call>",
        list.join("\n")
    )
}

/// Returns an assistant's message with its calls, each a name and arguments.
#[must_use]
pub fn calls_as_text(content: &str, calls: &[(String, Value)]) -> String {
    let mut text = content.to_owned();
    for (name, arguments) in calls {
        let separator = if text.is_empty() { "" } else { "\n" };
        text.push_str(&format!(
            "{separator}<tool_call>\n{{\"name\": {}, \"arguments\": {arguments}}}\n</tool_call>",
            Value::from(name.as_str())
        ));
    }
    text
}

/// Returns the answer of a tool as the text of a user's message.
#[must_use]
pub fn response_as_text(content: &str) -> String {
    format!("<tool_response>\n{content}\n</tool_response>")
}
