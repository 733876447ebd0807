//! Chat templates: rendering messages into the text format that the model was trained on.

use std::collections::HashMap;
use std::fmt::Write;
use std::ops::Range;

use jinja::{Limits, Mark, Template, Value};
use serde_json::Map;

use crate::ChatError;
use crate::contents::Located;

/// One message of a conversation. Content parts are joined beforehand.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatMessage {
    /// Role: "system", "user", "assistant", "tool", or another that the template supports.
    pub role: String,
    /// Text of the message.
    pub content: String,
    /// Other fields that a template may read, such as `name` or `tool_calls`.
    pub extra: Map<String, serde_json::Value>,
}

/// Options of rendering a conversation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatOptions {
    /// True to end with the start of the assistant's next message.
    pub add_generation_prompt: bool,
    /// True to end with the text of the last message, which the model continues.
    pub continue_final_message: bool,
    /// Source of a template that replaces the model's own.
    pub template: Option<String>,
    /// Variables for the template in addition to the standard ones, such as `enable_thinking`.
    pub variables: Map<String, serde_json::Value>,
}

impl ChatOptions {
    /// Returns the approximate bytes of the variables.
    #[must_use]
    pub fn num_variable_bytes(&self) -> usize {
        self.variables.values().map(num_bytes).sum()
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    source: String,
    template: Template,
    /// Variables that name the model's special tokens, such as `bos_token`.
    tokens: Map<String, serde_json::Value>,
}

/// A conversation rendered by a template.
pub(crate) struct RenderedChat {
    pub(crate) text: String,
    /// Bytes that come from messages and variables, even if the template transformed them: sorted and disjoint.
    pub(crate) inputs: Vec<Range<usize>>,
    /// Those of `inputs` that come from the contents of messages.
    pub(crate) contents: Vec<Located>,
}

/// Maximum steps of one rendering. Chosen: a conversation of 10,000 messages in Qwen2.5's template takes fewer, and a template that never
/// ends is stopped within a few tenths of a second.
const MAX_FUEL: u64 = 2_000_000;
/// Bytes of text that one rendering may create: a base amount, and an amount for each input byte.
const BASE_TEXT_BYTES: u64 = 16 << 20;
const TEXT_BYTES_PER_BYTE: u64 = 16;

/// Marker after a text that is to be continued. Private-use characters that no template changes; identified by their origin.
const END_MARK: &str = "\u{10fffc}\u{10fffc}";
/// Origin of [`END_MARK`].
const END: u32 = u32::MAX;
/// Origin of the caller's strings that are not content.
const OTHER: u32 = u32::MAX - 1;

/// Roles that templates know. Their names count as the template's text: some write control tokens around them, such as `<|user|>`.
const ROLES: [&str; 10] =
    ["system", "developer", "user", "assistant", "tool", "function", "ipython", "observation", "environment", "model"];

impl ChatMessage {
    /// Creates a message with text only.
    #[must_use]
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), extra: Map::new() }
    }

    /// Returns the approximate bytes of its text and its other fields.
    fn num_bytes(&self) -> usize {
        self.content.len() + self.extra.values().map(num_bytes).sum::<usize>()
    }
}

impl ChatTemplate {
    /// Compiles `source`. `tokens` are variables with the texts of the model's special tokens, which the template may write.
    ///
    /// # Errors
    /// If the source is not a valid template.
    pub fn new(source: &str, tokens: Map<String, serde_json::Value>) -> Result<Self, ChatError> {
        let template = Template::parse(source).map_err(|error| ChatError::Syntax { reason: error.to_string() })?;
        Ok(Self { source: source.to_owned(), template, tokens })
    }

    /// Returns the source that it was compiled from.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders `messages` into a prompt.
    ///
    /// # Errors
    /// If the template refuses the messages, fails on them, does not end, or writes too much.
    pub fn render(&self, messages: &[ChatMessage], options: &ChatOptions) -> Result<String, ChatError> {
        self.render_chat(messages, options).map(|rendered| rendered.text)
    }

    /// Renders `messages` into a prompt, with the byte ranges that come from them.
    pub(crate) fn render_chat(&self, messages: &[ChatMessage], options: &ChatOptions) -> Result<RenderedChat, ChatError> {
        let refused = |reason: &str| ChatError::Render { reason: reason.to_owned() };
        let open = match options.continue_final_message {
            true => Some(messages.len().checked_sub(1).ok_or_else(|| refused("there is no message to continue"))?),
            false => None,
        };
        let failed = |error: jinja::Error| ChatError::Render { reason: error.to_string() };
        let variables = self.variables(messages, open, options).map_err(failed)?;
        let given = messages.iter().map(ChatMessage::num_bytes).sum::<usize>() + options.num_variable_bytes();
        let limits = Limits { fuel: MAX_FUEL, text_bytes: BASE_TEXT_BYTES + TEXT_BYTES_PER_BYTE * given as u64 };
        let (mut text, marks) = self.template.render(variables, limits, &strftime_now).map_err(failed)?.into_parts();
        if open.is_some() {
            let unwritten = "the template does not write the last message, which is to be continued";
            cut_after_content(&mut text, &marks).ok_or_else(|| refused(unwritten))?;
        }
        Ok(located(text, &marks, messages.len()))
    }

    fn variables(
        &self,
        messages: &[ChatMessage],
        open: Option<usize>,
        options: &ChatOptions,
    ) -> Result<HashMap<String, Value>, jinja::Error> {
        let mut variables = HashMap::new();
        for (name, token) in &self.tokens {
            variables.insert(name.clone(), Value::from_json(token, None)?);
        }
        let messages = messages.iter().enumerate().map(|(index, message)| to_value(index, message, open == Some(index)));
        variables.insert("messages".to_owned(), Value::from_values(messages.collect::<Result<_, _>>()?)?);
        variables.insert("add_generation_prompt".to_owned(), Value::Bool(options.add_generation_prompt));
        for name in ["tools", "documents"] {
            variables.insert(name.to_owned(), Value::None);
        }
        for (name, value) in &options.variables {
            variables.insert(name.clone(), Value::from_json(value, Some(OTHER))?);
        }
        Ok(variables)
    }
}

fn to_value(index: usize, message: &ChatMessage, is_open: bool) -> Result<Value, jinja::Error> {
    let origin = u32::try_from(index).ok().filter(|origin| *origin < OTHER).unwrap_or(OTHER);
    let role = Value::from_text(&message.role, if ROLES.contains(&&*message.role) { None } else { Some(OTHER) });
    let content = match is_open {
        // As in transformers, a mark after the text shows where the template continues, and a space shows if it strips the text.
        true => Value::from_parts(&[(&message.content, Some(origin)), (END_MARK, Some(END)), (" ", None)]),
        false => Value::from_text(&message.content, Some(origin)),
    };
    let mut fields = vec![("role", role), ("content", content)];
    for (key, value) in &message.extra {
        fields.push((key.as_str(), Value::from_json(value, Some(OTHER))?));
    }
    Value::from_pairs(fields)
}

/// Truncates `text` at the last [`END_MARK`]; `None` if there is none.
fn cut_after_content(text: &mut String, marks: &[Mark]) -> Option<()> {
    let end = marks.iter().rev().find(|mark| mark.origin == END)?;
    let is_spacing_kept = text[end.bytes.end..].starts_with(' ');
    text.truncate(end.bytes.start);
    if !is_spacing_kept {
        text.truncate(text.trim_end().len());
    }
    Some(())
}

fn located(text: String, marks: &[Mark], num_messages: usize) -> RenderedChat {
    let (mut inputs, mut contents) = (Vec::new(), Vec::new());
    for mark in marks.iter().filter(|mark| mark.origin != END && mark.bytes.start < text.len()) {
        let bytes = mark.bytes.start..mark.bytes.end.min(text.len());
        if (mark.origin as usize) < num_messages && mark.origin < OTHER {
            contents.push(Located { message: mark.origin as usize, bytes: bytes.clone() });
        }
        inputs.push(bytes);
    }
    RenderedChat { text, inputs, contents }
}

/// Returns the bytes of the strings in `value`.
fn num_bytes(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::String(text) => text.len(),
        serde_json::Value::Array(items) => items.iter().map(num_bytes).sum(),
        serde_json::Value::Object(entries) => entries.iter().map(|(key, value)| key.len() + num_bytes(value)).sum(),
        _ => 0,
    }
}

/// Formats the local time for templates that print today's date.
fn strftime_now(format: &str) -> Result<String, String> {
    let mut text = String::new();
    match write!(text, "{}", chrono::Local::now().format(format)) {
        Ok(()) => Ok(text),
        Err(_) => Err(format!("{format:?} is no time format")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> ChatOptions {
        ChatOptions { add_generation_prompt: true, ..ChatOptions::default() }
    }

    fn template(source: &str) -> ChatTemplate {
        let tokens = [("bos_token", "<s>"), ("eos_token", "</s>"), ("pad_token", "<pad>")];
        let tokens = tokens.map(|(name, text)| (name.to_owned(), text.into()));
        ChatTemplate::new(source, Map::from_iter(tokens)).unwrap()
    }

    #[track_caller]
    fn check(source: &str, messages: &[(&str, &str)], expected: &str) {
        let messages: Vec<_> = messages.iter().map(|&(role, content)| ChatMessage::new(role, content)).collect();
        let template = template(source);
        assert_eq!(template.render(&messages, &options()).unwrap(), expected);
    }

    #[track_caller]
    fn check_refused(source: &str, named: &str) {
        let template = template(source);
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
        let template = template("{{ enable_thinking }}");
        let variables = Map::from_iter([("enable_thinking".to_owned(), false.into())]);
        assert_eq!(template.render(&[], &ChatOptions { variables, ..options() }).unwrap(), "False");
    }

    /// ChatML turns.
    const TURNS: &str =
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}";

    #[track_caller]
    fn check_continued(source: &str, contents: &[&str], expected: &str) {
        let messages: Vec<_> = contents.iter().map(|&content| ChatMessage::new("u", content)).collect();
        let options = ChatOptions { continue_final_message: true, ..ChatOptions::default() };
        let rendered = template(source).render_chat(&messages, &options).unwrap();
        assert_eq!(rendered.text, expected);
        let texts: Vec<_> = rendered.contents.into_iter().map(|content| rendered.text[content.bytes].trim()).collect();
        assert_eq!(texts, contents.iter().map(|content| content.trim()).collect::<Vec<_>>());
    }

    #[test]
    fn the_last_message_is_left_open() {
        check_continued(TURNS, &["a", "b"], "<u>a</><u>b");
        check_continued(TURNS, &["/", "/"], "<u>/</><u>/");
        check_continued(&TURNS.replace("m.content", "m.content | trim"), &["a", " b "], "<u>a</><u>b");
    }

    #[test]
    fn spacing_that_the_template_keeps_is_kept() {
        check_continued(TURNS, &["so: "], "<u>so: ");
    }

    #[test]
    fn a_message_that_is_not_written_cannot_be_continued() {
        let template = template("{{ messages[0].content }}");
        let options = ChatOptions { continue_final_message: true, ..ChatOptions::default() };
        let messages = [ChatMessage::new("u", "a"), ChatMessage::new("u", "b")];
        assert!(template.render(&messages, &options).is_err());
        assert!(template.render(&[], &options).is_err());
    }

    #[test]
    fn every_named_token_is_a_variable() {
        check("{{ pad_token }}{{ bos_token }}{{ unk_token is defined }}", &[], "<pad><s>False");
    }

    #[test]
    fn what_is_the_callers_is_told_from_the_template() {
        let mut message = ChatMessage::new("wizard", " b ");
        message.extra.insert("name".to_owned(), "n".into());
        let source = "{% for m in messages %}[{{ m.role }}{{ m.name }}|{{ m.content | trim | upper }}]{% endfor %}{{ x }}";
        let variables = Map::from_iter([("x".to_owned(), "v".into())]);
        let messages = [ChatMessage::new("user", "a"), message];
        let rendered = template(source).render_chat(&messages, &ChatOptions { variables, ..options() }).unwrap();
        assert_eq!(rendered.text, "[user|A][wizardn|B]v");
        let texts: Vec<_> = rendered.inputs.iter().map(|bytes| &rendered.text[bytes.clone()]).collect();
        assert_eq!(texts, ["A", "wizardn", "B", "v"]);
        let contents: Vec<_> = rendered.contents.iter().map(|content| (content.message, content.bytes.start)).collect();
        assert_eq!(contents, [(0, 6), (1, 17)]);
    }

    #[test]
    fn a_template_that_writes_without_end_is_stopped() {
        check_refused("{% for i in range(10000) %}{{ 'x' * 10000 }}{% endfor %}", "too much text");
    }

    #[test]
    fn the_time_is_formatted() {
        let template = template("{{ strftime_now('%d %b %Y') | length }}");
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
        let error = ChatTemplate::new("a\n{% if %}", Map::new()).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }
}
