//! Chat templates: messages to the text the model was trained on.

use std::fmt::Write;

use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use regex::Regex;
use serde::Serialize;
use serde_json::{Map, ser};

use crate::ChatError;
use crate::contents::{Located, PLACEHOLDER, locate, locate_by_search};

/// One message of a conversation. Content given in parts is joined before.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatMessage {
    /// "system", "user", "assistant", "tool", or what else the template knows.
    pub role: String,
    /// The text.
    pub content: String,
    /// Other fields that a template may read, such as `name` or `tool_calls`.
    pub extra: Map<String, serde_json::Value>,
}

/// How to render a conversation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatOptions {
    /// Whether to end with the start of the assistant's next message.
    pub add_generation_prompt: bool,
    /// Variables for the template beside the usual ones, such as `enable_thinking`.
    pub variables: Map<String, serde_json::Value>,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

/// Instructions that one rendering may take. Chosen: a conversation of 10,000 messages in Qwen2.5's template takes fewer, and a
/// template that never ends is stopped within a tenth of a second.
const MAX_FUEL: u64 = 2_000_000;
const NAME: &str = "chat_template";

impl ChatMessage {
    /// A message of text alone.
    #[must_use]
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), extra: Map::new() }
    }
}

impl ChatTemplate {
    /// Compiles `source`; `bos` and `eos` are the texts of the model's special tokens, which the template may write.
    ///
    /// # Errors
    /// If the source is no valid template.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, ChatError> {
        let syntax_error = |error: Error| ChatError::Syntax { reason: describe(&error) };
        let mut environment = Environment::new();
        let syntax = minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(syntax_error)?);
        environment.set_fuel(Some(MAX_FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_template_owned(NAME, without_generation_marks(source)).map_err(syntax_error)?;
        Ok(Self { environment, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The prompt that `messages` make.
    ///
    /// # Errors
    /// If the template refuses the messages, fails on them, or does not end.
    pub fn render(&self, messages: &[ChatMessage], options: &ChatOptions) -> Result<String, ChatError> {
        let messages: Vec<Value> = messages.iter().map(|message| to_value(message, &message.content)).collect();
        self.render_values(messages, options).map_err(|error| ChatError::Render { reason: describe(&error) })
    }

    /// Where the contents of `messages` are in `rendered`, in bytes: sorted and disjoint. What is not found is left out.
    pub(crate) fn locate_contents(&self, messages: &[ChatMessage], options: &ChatOptions, rendered: &str) -> Vec<Located> {
        let contents: Vec<&str> = messages.iter().map(|message| message.content.as_str()).collect();
        let placeholder = |index: usize| match contents[index] {
            "" => String::new(),
            _ => format!("{PLACEHOLDER}{index}{PLACEHOLDER}"),
        };
        let marked: Vec<Value> =
            messages.iter().enumerate().map(|(index, message)| to_value(message, &placeholder(index))).collect();
        let outline = self.render_values(marked, options).ok();
        outline.and_then(|outline| locate(&outline, &contents, rendered)).unwrap_or_else(|| locate_by_search(&contents, rendered))
    }

    fn render_values(&self, messages: Vec<Value>, options: &ChatOptions) -> Result<String, Error> {
        let usual = context! {
            messages => messages,
            add_generation_prompt => options.add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            tools => (),
            documents => (),
        };
        let variables = Value::from(Serde(&options.variables));
        self.environment.get_template(NAME)?.render(context! { ..usual, ..variables })
    }
}

fn to_value(message: &ChatMessage, content: &str) -> Value {
    let usual = [("role", Value::from(message.role.as_str())), ("content", Value::from(content))];
    let extra = message.extra.iter().map(|(key, value)| (key.as_str(), Value::from(Serde(value))));
    Value::from_pairs(usual.into_iter().chain(extra))
}

/// The message of an error and of its causes: a template's own words come first.
fn describe(error: &Error) -> String {
    let mut text = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    if let Some(line) = error.line() {
        let _infallible = write!(text, " (line {line} of the template)");
    }
    text
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// The local time, as templates that print today's date expect it.
fn strftime_now(format: &str) -> Result<String, Error> {
    let mut text = String::new();
    match write!(text, "{}", chrono::Local::now().format(format)) {
        Ok(()) => Ok(text),
        Err(_) => Err(Error::new(ErrorKind::InvalidOperation, format!("{format:?} is no time format"))),
    }
}

/// JSON as Python's `json.dumps` writes it, which models were trained on; minijinja's own filter escapes `<` and `'` for HTML.
#[expect(clippy::needless_pass_by_value, reason = "the template engine hands keyword arguments over by value")]
fn to_json(value: &Value, indent: Option<usize>, kwargs: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => kwargs.get::<Option<usize>>("indent")?,
    };
    // Python's default; the characters are never escaped here.
    kwargs.get::<Option<bool>>("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let json = serde_json::to_value(value).map_err(json_error)?;
    let text = match indent {
        Some(width) => write_json(&json, ser::PrettyFormatter::with_indent(" ".repeat(width).as_bytes())),
        None => write_json(&json, PythonFormatter),
    };
    text.map(Value::from_safe_string)
}

fn write_json(json: &serde_json::Value, formatter: impl ser::Formatter) -> Result<String, Error> {
    let mut bytes = Vec::new();
    json.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter)).map_err(json_error)?;
    Ok(String::from_utf8(bytes).expect("JSON is written from strings"))
}

fn json_error(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::BadSerialization, "not JSON").with_source(error)
}

/// A space after each comma and colon.
struct PythonFormatter;

impl ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Templates mark the assistant's words for training with `{% generation %}`; for rendering that is a block that does nothing.
fn without_generation_marks(source: &str) -> String {
    let start = Regex::new(r"(\{%-?\s*)generation(\s*-?%\})").expect("a constant");
    let end = Regex::new(r"(\{%-?\s*)endgeneration(\s*-?%\})").expect("a constant");
    end.replace_all(&start.replace_all(source, "${1}if true${2}"), "${1}endif${2}").into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> ChatOptions {
        ChatOptions { add_generation_prompt: true, ..ChatOptions::default() }
    }

    #[track_caller]
    fn check(source: &str, messages: &[(&str, &str)], expected: &str) {
        let messages: Vec<_> = messages.iter().map(|&(role, content)| ChatMessage::new(role, content)).collect();
        let template = ChatTemplate::new(source, "<s>", "</s>").unwrap();
        assert_eq!(template.render(&messages, &options()).unwrap(), expected);
    }

    #[track_caller]
    fn check_refused(source: &str, named: &str) {
        let template = ChatTemplate::new(source, "", "").unwrap();
        let error = template.render(&[ChatMessage::new("user", "x")], &options()).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }

    #[test]
    fn a_template_sees_messages_and_special_tokens() {
        let source = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'].strip() }}{{ eos_token }}{% endfor %}\
                      {% if add_generation_prompt %}>{% endif %}";
        check(source, &[("user", " a "), ("bot", "b")], "<s>[user]a</s>[bot]b</s>>");
    }

    #[test]
    fn blocks_take_their_line_with_them() {
        check("{% if true %}\n  a\n  {% endif %}\nb\n", &[], "  a\nb");
    }

    #[test]
    fn loops_can_be_left() {
        check(
            "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
            &[("a", ""), ("b", "")],
            "a",
        );
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        check("{{ messages[0] | tojson }}", &[("user", "<é'\"")], r#"{"role": "user", "content": "<é'\""}"#);
        check("{{ [1, {}] | tojson(indent=2) }}", &[], "[\n  1,\n  {}\n]");
    }

    #[test]
    fn tools_are_none() {
        check("{% if tools is defined and tools is none %}none{% endif %}", &[], "none");
    }

    #[test]
    fn marks_for_training_do_nothing() {
        check("a {%- generation -%} b {%- endgeneration %}c", &[], "abc");
    }

    #[test]
    fn content_is_not_escaped_for_html() {
        check("{{ messages[0].content }}", &[("user", "<a & 'b'>")], "<a & 'b'>");
    }

    #[test]
    fn other_variables_reach_the_template() {
        let template = ChatTemplate::new("{{ enable_thinking }}", "", "").unwrap();
        let variables = Map::from_iter([("enable_thinking".to_owned(), false.into())]);
        assert_eq!(template.render(&[], &ChatOptions { variables, ..options() }).unwrap(), "False");
    }

    #[test]
    fn the_time_is_formatted() {
        let template = ChatTemplate::new("{{ strftime_now('%d %b %Y') | length }}", "", "").unwrap();
        assert_eq!(template.render(&[], &options()).unwrap(), "11");
        check_refused("{{ strftime_now('%Q') }}", "no time format");
    }

    #[test]
    fn a_template_can_refuse_in_its_own_words() {
        check_refused("{{ raise_exception('roles must alternate') }}", "roles must alternate");
    }

    #[test]
    fn a_template_that_does_not_end_is_stopped() {
        check_refused("{% for i in range(10000) %}{% for j in range(10000) %}x{% endfor %}{% endfor %}", "fuel");
    }

    #[test]
    fn a_broken_template_is_refused_with_its_line() {
        let error = ChatTemplate::new("a\n{% if %}", "", "").unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }
}
