//! Faults of a body whose shape does not match its endpoint, in JSON's terms and with the field's path.
//!
//! The library reports neither the path nor, for a value that may have several forms, the invalid part of it. So parts of the body are
//! tried alone until the smallest one that is refused is found.

use std::fmt::Write;

use serde_json::{Map, Value};

/// A value that is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Path of the field; empty for the whole body.
    pub(super) path: String,
    /// Description of the fault.
    pub(super) message: String,
}

/// Check of a body: `None` if it is valid, else the library's message.
pub(super) type Check<'a> = &'a dyn Fn(Value) -> Option<String>;

/// Maximum fields of an object that is tried without each of them.
const MAX_FIELDS_TRIED: usize = 32;
/// Maximum characters of a value that are shown.
const MAX_SHOWN: usize = 64;

/// Finds the smallest part of `body` that `check` refuses.
pub(super) fn find_fault(body: Value, check: Check<'_>) -> Option<Fault> {
    let message = check(body.clone())?;
    Some(descend(Part { value: body, path: String::new(), message, form: None }, &|value| value, check))
}

/// Formats a path for a message.
pub(super) fn named(path: &str) -> String {
    if path.is_empty() { "the body".to_owned() } else { format!("`{path}`") }
}

/// Appends the name of a field to a path.
pub(super) fn push_field(path: &mut String, name: &str) {
    let name: String = name.chars().take(MAX_SHOWN).collect();
    let _infallible = if path.is_empty() { write!(path, "{name}") } else { write!(path, ".{name}") };
}

/// Appends the index of an element to a path.
pub(super) fn push_item(path: &mut String, index: usize) {
    let _infallible = write!(path, "[{index}]");
}

/// A part that is refused.
struct Part {
    value: Value,
    path: String,
    message: String,
    /// Path of the value with several forms that the message is about, if any: this part or one around it.
    form: Option<String>,
}

/// Descends into the smallest refused part. `wrap` puts a value at the part's place in an otherwise empty body.
fn descend(part: Part, wrap: &dyn Fn(Value) -> Value, check: Check<'_>) -> Fault {
    let Part { value, mut path, message, mut form } = part;
    if form.is_none() && is_about_forms(&message) && check(wrap(Value::Object(Map::new()))).as_ref() == Some(&message) {
        form = Some(path.clone());
    }
    match value {
        Value::Array(items) => {
            let Some(index) = refused_item(&items, &|some| check(wrap(Value::Array(some)))) else {
                return described(path, form, &message);
            };
            push_item(&mut path, index);
            let only = |item| wrap(Value::Array(vec![item]));
            let value = items.into_iter().nth(index).expect("an index of the array");
            let message = check(only(value.clone())).unwrap_or(message);
            descend(Part { value, path, message, form }, &only, check)
        }
        Value::Object(fields) => {
            let refused = refused_field(&fields, &message, &|some| check(wrap(Value::Object(some))));
            let Some((name, message)) = refused else { return described(path, form, &message) };
            push_field(&mut path, &name);
            let value = fields.get(&name).cloned().expect("a field of the object");
            let only = |value| wrap(Value::Object(Map::from_iter([(name.clone(), value)])));
            descend(Part { value, path, message, form }, &only, check)
        }
        _ => described(path, form, &message),
    }
}

/// Returns the index of an element that is refused alone; `None` if the array itself is, or only the elements together are.
fn refused_item(items: &[Value], check: &dyn Fn(Vec<Value>) -> Option<String>) -> Option<usize> {
    let (mut start, mut end) = (0, items.len());
    if end == 0 || check(Vec::new()).is_some() {
        return None;
    }
    while end - start > 1 {
        let middle = start.midpoint(end);
        match check(items[start..middle].to_vec()) {
            Some(_) => end = middle,
            None => start = middle,
        }
    }
    check(items[start..end].to_vec()).map(|_| start)
}

/// Returns a field that is refused, with its fault.
fn refused_field(
    fields: &Map<String, Value>,
    message: &str,
    check: &dyn Fn(Map<String, Value>) -> Option<String>,
) -> Option<(String, String)> {
    let needs_others = check(Map::new()).is_some();
    let is_own = |name: &str, found: &str| {
        !needs_others || is_named(message, name) || (found != message && !found.starts_with("missing field"))
    };
    let alone = |(name, value): (&String, &Value)| {
        let found = check(Map::from_iter([(name.clone(), value.clone())]))?;
        is_own(name, &found).then(|| (name.clone(), found))
    };
    if let Some(found) = fields.iter().find_map(alone) {
        return Some(found);
    }
    // No field of an object with required fields is accepted alone: one is at fault if the others are accepted without it.
    if !needs_others || fields.len() > MAX_FIELDS_TRIED {
        return None;
    }
    let culprit = fields.keys().find(|name| check(without(fields, name)).is_none())?;
    Some((culprit.clone(), message.to_owned()))
}

fn without(fields: &Map<String, Value>, name: &str) -> Map<String, Value> {
    fields.iter().filter(|(other, _)| *other != name).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// True if the library's message is about an unknown field of this name.
fn is_named(message: &str, name: &str) -> bool {
    message.strip_prefix("unknown field `").is_some_and(|rest| rest.starts_with(name))
}

/// True if a message lists the forms of a value, as worded by its type.
fn is_about_forms(message: &str) -> bool {
    ["a ", "an ", "the "].iter().any(|article| message.starts_with(article))
}

fn described(path: String, form: Option<String>, message: &str) -> Fault {
    let message = match form.filter(|form| *form != path) {
        Some(form) => format!("`{path}` does not fit: {}", in_plain_words(&named(&form), message)),
        None => in_plain_words(&named(&path), message),
    };
    Fault { path, message }
}

/// Rewrites the library's message about the value at `place` without the names of types.
fn in_plain_words(place: &str, message: &str) -> String {
    let split = |prefix| message.strip_prefix(prefix).and_then(|rest: &str| rest.rsplit_once(", expected "));
    if let Some((found, expected)) = split("invalid type: ") {
        return format!("{place} must be {}, not {}", plain_type(expected), plain_value(found));
    }
    if let Some((found, expected)) = split("invalid value: ") {
        return format!("{place} must be {}, not {}", plain_range(expected), plain_value(found));
    }
    if let Some(rest) = message.strip_prefix("unknown variant ") {
        let (found, expected) = rest.split_once(", expected ").unwrap_or((rest, "another value"));
        return format!("{place} must be {expected}, not {}", shortened(found));
    }
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let expected = rest.split_once(", expected ").map_or("others", |(_, expected)| expected);
        return format!("{place} is not known here: the fields are {}", expected.trim_start_matches("one of "));
    }
    if let Some(field) = message.strip_prefix("missing field ") {
        return format!("{place} lacks the field {field}");
    }
    if is_about_forms(message) {
        return format!("{place} must be {message}");
    }
    format!("invalid value for {place}: {}", shortened(message))
}

fn plain_type(expected: &str) -> &str {
    match expected {
        "i8" | "i16" | "i32" | "i64" | "isize" => "an integer",
        "u8" | "u16" | "u32" | "u64" | "usize" => "an integer of at least 0",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "an array",
        "a map" | "map" => "an object",
        "unit" => "null",
        _ if expected.starts_with("struct ") => "an object",
        _ if expected.starts_with("enum ") => "a string",
        _ if expected.starts_with("tuple ") => "an array",
        _ => expected,
    }
}

fn plain_range(expected: &str) -> String {
    match expected {
        "u8" => format!("an integer from 0 to {}", u8::MAX),
        "u16" => format!("an integer from 0 to {}", u16::MAX),
        "u32" => format!("an integer from 0 to {}", u32::MAX),
        "u64" | "usize" => format!("an integer from 0 to {}", u64::MAX),
        "i32" => format!("an integer from {} to {}", i32::MIN, i32::MAX),
        "i64" | "isize" => format!("an integer from {} to {}", i64::MIN, i64::MAX),
        _ => plain_type(expected).to_owned(),
    }
}

fn plain_value(found: &str) -> String {
    let number = |prefix| found.strip_prefix(prefix).and_then(|rest: &str| rest.strip_suffix('`'));
    if let Some(number) = number("integer `").or_else(|| number("floating point `")).or_else(|| number("boolean `")) {
        return number.to_owned();
    }
    match found {
        "map" => "an object".to_owned(),
        "sequence" => "an array".to_owned(),
        "unit" | "Option value" => "null".to_owned(),
        _ if found.starts_with("string ") => format!("the {}", shortened(found)),
        _ => shortened(found),
    }
}

/// Truncates `text` for a message.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use protocol::{ChatCompletionRequest, CompletionRequest};
    use serde::de::DeserializeOwned;
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check<T: DeserializeOwned>(body: Value, path: &str, message: &str) {
        let parse = |value: Value| serde_json::from_value::<T>(value).err().map(|error| error.to_string());
        let fault = find_fault(body, &parse).expect("refused");
        assert_eq!((fault.path.as_str(), fault.message.as_str()), (path, message));
    }

    #[test]
    fn a_field_is_named_with_what_it_must_be() {
        check::<ChatCompletionRequest>(json!({"n": 1.5}), "n", "`n` must be an integer, not 1.5");
        check::<ChatCompletionRequest>(
            json!({"model": "m", "temperature": "hot"}),
            "temperature",
            "`temperature` must be a number, not the string \"hot\"",
        );
        check::<ChatCompletionRequest>(json!({"stream": 1, "n": "x"}), "stream", "`stream` must be true or false, not 1");
        check::<ChatCompletionRequest>(json!({"messages": {}}), "messages", "`messages` must be an array, not an object");
        check::<ChatCompletionRequest>(json!({"logit_bias": []}), "logit_bias", "`logit_bias` must be an object, not an array");
        check::<ChatCompletionRequest>(
            json!({"seed": u64::MAX}),
            "seed",
            &format!("`seed` must be an integer from {} to {}, not {}", i64::MIN, i64::MAX, u64::MAX),
        );
    }

    #[test]
    fn the_path_leads_into_objects_and_arrays() {
        let fine = json!({"role": "user", "content": "x"});
        check::<ChatCompletionRequest>(
            json!({"messages": [fine, fine, {"role": 3, "content": "x"}]}),
            "messages[2].role",
            "`messages[2].role` must be a string, not 3",
        );
        check::<ChatCompletionRequest>(
            json!({"messages": [fine, []]}),
            "messages[1]",
            "`messages[1]` must be an object, not an array",
        );
        check::<ChatCompletionRequest>(
            json!({"messages": [{"role": "user", "content": 3}]}),
            "messages[0].content",
            "`messages[0].content` must be a string or a list of content parts",
        );
        check::<ChatCompletionRequest>(
            json!({"logit_bias": {"7": 1, "8": "x"}}),
            "logit_bias.8",
            "`logit_bias.8` must be a number, not the string \"x\"",
        );
        check::<ChatCompletionRequest>(
            json!({"stop_token_ids": [1, 2, -3, 4]}),
            "stop_token_ids[2]",
            "`stop_token_ids[2]` must be an integer from 0 to 4294967295, not -3",
        );
        check::<ChatCompletionRequest>(
            json!({"kv_sharing": {"mode": "prefix", "store": 0}}),
            "kv_sharing.store",
            "`kv_sharing.store` must be true or false, not 0",
        );
    }

    #[test]
    fn other_values_and_fields_are_named() {
        let modes = "`off`, `prefix`, `span`, `semantic`, `auto`, `shadow`";
        check::<ChatCompletionRequest>(
            json!({"kv_sharing": {"mode": "all"}}),
            "kv_sharing.mode",
            &format!("`kv_sharing.mode` must be one of {modes}, not `all`"),
        );
        let parse = |value: Value| serde_json::from_value::<ChatCompletionRequest>(value).err().map(|error| error.to_string());
        let fault = find_fault(json!({"kv_sharing": {"store": true, "stroe": true}}), &parse).unwrap();
        assert!(
            fault.path == "kv_sharing.stroe" && fault.message.contains("is not known here") && fault.message.contains("`store`"),
            "{fault:?}"
        );
    }

    #[test]
    fn values_of_several_forms_are_told_in_words() {
        let forms = "a string, a list of strings, a list of token ids, or a list of lists of token ids";
        check::<CompletionRequest>(json!({"prompt": [1, "a"]}), "prompt", &format!("`prompt` must be {forms}"));
        check::<CompletionRequest>(json!({"prompt": {"a": 1}}), "prompt", &format!("`prompt` must be {forms}"));
        check::<CompletionRequest>(
            json!({"prompt": [1, 2, -3]}),
            "prompt[2]",
            &format!("`prompt[2]` does not fit: `prompt` must be {forms}"),
        );
        let part = json!({"type": "text", "text": 5});
        let forms = "`messages[1].content` must be a string or a list of content parts";
        let messages =
            json!([{"role": "user", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "x"}, part]}]);
        check::<ChatCompletionRequest>(
            json!({"messages": messages}),
            "messages[1].content[1].text",
            &format!("`messages[1].content[1].text` does not fit: {forms}"),
        );
    }

    #[test]
    fn long_values_are_cut() {
        let fault = find_fault(json!({"n": "x".repeat(100_000)}), &|value| {
            serde_json::from_value::<ChatCompletionRequest>(value).err().map(|error| error.to_string())
        });
        assert!(fault.unwrap().message.len() < 200);
    }
}
