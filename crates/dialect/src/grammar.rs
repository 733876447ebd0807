//! Grammars of answers that call tools, in llguidance's Lark dialect.

use std::fmt::Write;

use serde_json::Value;

use crate::{Dialect, ToolSpec};

/// Form of the calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrammarOptions {
    /// True if several calls may follow each other.
    pub parallel: bool,
    /// True if the opening of the first call is already written.
    pub is_open: bool,
}

impl Dialect {
    /// Returns the Lark grammar of one or several calls of `tools`. `literal` writes a text that may be a control token, `schema` the JSON schema of a
    /// tool's arguments or of one of them.
    /// `None` for a dialect without a grammar.
    #[must_use]
    pub fn grammar(
        self,
        tools: &[ToolSpec],
        options: GrammarOptions,
        literal: &dyn Fn(&str) -> String,
        schema: &dyn Fn(&ToolSpec, &Value) -> String,
    ) -> Option<String> {
        let (open, first_open, between, end) = self.frame(literal)?;
        let mut rules = String::new();
        let mut names = Vec::new();
        for (index, tool) in tools.iter().enumerate() {
            let name = format!("call_{index}");
            let body = self.call(index, tool, literal, schema, &mut rules)?;
            let _ = writeln!(rules, "{name}: {body}");
            names.push(name);
        }
        let first = if options.is_open { String::new() } else { format!("{open}{first_open} ") };
        let more = if options.parallel { format!(" ({between}{open} call)*") } else { String::new() };
        Some(format!("start: {first}call{more}{end}\ncall: {}\n{rules}", names.join(" | ")))
    }

    /// Returns the items before each call, before the first one only, between two, and after the last one.
    fn frame(self, literal: &dyn Fn(&str) -> String) -> Option<(String, String, String, String)> {
        let none = String::new;
        Some(match self {
            Self::Hermes | Self::Qwen3Coder | Self::Glm => (literal("<tool_call>"), none(), format!("{} ", quoted("\n")), none()),
            Self::Json => (none(), none(), format!("{} ", quoted("; ")), none()),
            Self::Pythonic => (none(), quoted("["), format!("{} ", quoted(", ")), format!(" {}", quoted("]"))),
            Self::Mistral => (literal("[TOOL_CALLS]"), none(), none(), none()),
            Self::DeepSeek | Self::Harmony => return None,
        })
    }

    fn call(
        self,
        index: usize,
        tool: &ToolSpec,
        literal: &dyn Fn(&str) -> String,
        schema: &dyn Fn(&ToolSpec, &Value) -> String,
        rules: &mut String,
    ) -> Option<String> {
        let name = Value::from(tool.name.as_str()).to_string();
        let arguments = schema(tool, &tool.parameters);
        Some(match self {
            Self::Hermes => {
                let head = quoted(&format!("\n{{\"name\": {name}, \"arguments\": "));
                format!("{head} {arguments} {} {}", quoted("}\n"), literal("</tool_call>"))
            }
            Self::Json => format!("{} {arguments} {}", quoted(&format!("{{\"name\": {name}, \"parameters\": ")), quoted("}")),
            Self::Mistral => {
                let head = quoted(&format!("[{{\"name\": {name}, \"arguments\": "));
                format!("{head} {arguments} {}", quoted("}]"))
            }
            Self::Qwen3Coder => {
                let head = quoted(&format!("\n<function={}>\n", tool.name));
                let items = elements(tool, |key, value, is_string| {
                    let open = quoted(&format!("<parameter={key}>\n"));
                    match is_string {
                        true => format!("{open} text_{index}"),
                        false => format!("{open} {} {}", schema(tool, value), quoted("\n</parameter>\n")),
                    }
                });
                let _ = writeln!(rules, "text_{index}[lazy]: /(?s:.*)\\n<\\/parameter>\\n/");
                format!("{head} {items}{} {}", quoted("</function>\n"), literal("</tool_call>"))
            }
            Self::Glm => {
                let head = quoted(&format!("{}\n", tool.name));
                let items = elements(tool, |key, value, is_string| {
                    let open = format!("{} {} {}", literal("<arg_key>"), quoted(key), literal("</arg_key>"));
                    match is_string {
                        true => format!("{open} {} {} glm_{index}", quoted("\n"), literal("<arg_value>")),
                        false => format!(
                            "{open} {} {} {} {} {}",
                            quoted("\n"),
                            literal("<arg_value>"),
                            schema(tool, value),
                            literal("</arg_value>"),
                            quoted("\n")
                        ),
                    }
                });
                let _ = writeln!(rules, "glm_{index}[lazy]: /(?s:.*)<\\/arg_value>\\n/");
                format!("{head} {items}{}", literal("</tool_call>"))
            }
            Self::Pythonic => pythonic(tool, schema),
            Self::DeepSeek | Self::Harmony => return None,
        })
    }
}

/// Returns the parameters of a tool in their order, each required or optional, as `element` writes them from key, schema and whether it is text.
fn elements(tool: &ToolSpec, element: impl Fn(&str, &Value, bool) -> String) -> String {
    let mut items = String::new();
    for (key, value) in tool.parameters.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let is_string = value.get("type").is_some_and(|kind| kind == "string") && value.get("enum").is_none();
        let item = element(key, value, is_string);
        let _ = match is_required(tool, key) {
            true => write!(items, "{item} "),
            false => write!(items, "({item})? "),
        };
    }
    items
}

/// Returns a call with keyword arguments. Required ones come first, so that a comma stands between any two.
fn pythonic(tool: &ToolSpec, schema: &dyn Fn(&ToolSpec, &Value) -> String) -> String {
    let properties: Vec<_> = tool.parameters.get("properties").and_then(Value::as_object).into_iter().flatten().collect();
    let (required, optional): (Vec<_>, Vec<_>) = properties.into_iter().partition(|(key, _)| is_required(tool, key));
    let argument = |key: &str, value: &Value| format!("{} {}", quoted(&format!("{key}=")), schema(tool, value));
    let mut items = vec![quoted(&format!("{}(", tool.name))];
    for (index, (key, value)) in required.iter().enumerate() {
        items.extend((index > 0).then(|| quoted(", ")));
        items.push(argument(key, value));
    }
    let comma = quoted(", ");
    if required.is_empty() {
        // Any one of the optional arguments may be the first.
        let tails = (0..optional.len()).map(|first| {
            let rest: String =
                optional[first + 1..].iter().map(|(key, value)| format!(" ({comma} {})?", argument(key, value))).collect();
            format!("{}{rest}", argument(optional[first].0, optional[first].1))
        });
        let tails: Vec<_> = tails.collect();
        items.extend((!tails.is_empty()).then(|| format!("({})?", tails.join(" | "))));
    } else {
        items.extend(optional.iter().map(|(key, value)| format!("({comma} {})?", argument(key, value))));
    }
    items.push(quoted(")"));
    items.join(" ")
}

fn is_required(tool: &ToolSpec, key: &str) -> bool {
    tool.parameters.get("required").and_then(Value::as_array).is_some_and(|required| required.iter().any(|name| name == key))
}

/// Returns a Lark string. JSON's escapes are a subset of Lark's.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
