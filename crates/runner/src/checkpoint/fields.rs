//! Fields of a JSON object, read one by one, so that an error names the file and the field.

use std::path::Path;

use serde_json::{Map, Value};

use crate::LoadError;
use crate::error::shown;

/// An object of a JSON file.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    path: &'a Path,
    /// Name of the object in its file; empty for the file's own.
    name: &'a str,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// Wraps the content of the file at `path`.
    pub(super) fn of_file(path: &'a Path, content: &'a Value) -> Result<Self, LoadError> {
        let reason = || LoadError::Corrupt { path: path.to_owned(), reason: "it is no JSON object".into() };
        Ok(Self { path, name: "", object: content.as_object().ok_or_else(reason)? })
    }

    /// Wraps `object`, which errors call `name`.
    pub(super) fn of_object(self, name: &'a str, object: &'a Map<String, Value>) -> Self {
        Self { path: self.path, name, object }
    }

    /// Returns the object's keys.
    pub(super) fn keys(self) -> impl Iterator<Item = &'a str> {
        self.object.keys().map(String::as_str)
    }

    /// Returns the value of `key`; `None` if it is absent or null.
    pub(super) fn get(self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Returns true if `key` is present and null.
    pub(super) fn is_null(self, key: &str) -> bool {
        self.object.get(key).is_some_and(Value::is_null)
    }

    /// Returns an error that names `key`.
    pub(super) fn error(self, key: &str, problem: impl Into<String>) -> LoadError {
        let dot = if self.name.is_empty() { "" } else { "." };
        let field = format!("{}{dot}{}", self.name, shown(key));
        LoadError::Field { path: self.path.to_owned(), field, problem: problem.into() }
    }

    /// Returns an error that says what `value` of `key` is not.
    pub(super) fn not(self, key: &str, value: &Value, wanted: &str) -> LoadError {
        self.error(key, format!("is {}, not {wanted}", described(value)))
    }

    fn read<T>(self, key: &str, wanted: &str, convert: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| self.not(key, value, wanted))
    }

    /// Returns the whole number `key`.
    pub(super) fn size(self, key: &str) -> Result<Option<usize>, LoadError> {
        self.read(key, "a whole number of 0 or more", |value| value.as_u64().and_then(|number| usize::try_from(number).ok()))
    }

    /// Returns the whole number `key`.
    ///
    /// # Errors
    /// If it is absent, too.
    pub(super) fn required_size(self, key: &str) -> Result<usize, LoadError> {
        self.size(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    pub(super) fn number(self, key: &str) -> Result<Option<f64>, LoadError> {
        self.read(key, "a number", Value::as_f64)
    }

    pub(super) fn flag(self, key: &str) -> Result<Option<bool>, LoadError> {
        self.read(key, "true or false", Value::as_bool)
    }

    pub(super) fn text(self, key: &str) -> Result<Option<&'a str>, LoadError> {
        self.read(key, "a string", Value::as_str)
    }

    pub(super) fn object(self, key: &str) -> Result<Option<&'a Map<String, Value>>, LoadError> {
        self.read(key, "an object", Value::as_object)
    }

    /// Returns the list of strings `key`.
    pub(super) fn texts(self, key: &str) -> Result<Option<Vec<&'a str>>, LoadError> {
        self.read(key, "a list of strings", |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    /// Returns the ids of tokens that `key` lists or, as one number, names.
    ///
    /// # Errors
    /// If one is no id of a vocabulary of `vocab_size` tokens.
    pub(super) fn token_ids(self, key: &str, vocab_size: usize) -> Result<Vec<u32>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let many = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let id = |value: &Value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < vocab_size);
            id.ok_or_else(|| self.not(key, value, &format!("the id of one of the model's {vocab_size} tokens")))
        };
        many.iter().map(id).collect()
    }
}

/// Returns a value in a few words.
fn described(value: &Value) -> String {
    match value {
        Value::String(text) => format!("the string '{}'", shown(text)),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
        Value::Null | Value::Bool(_) | Value::Number(_) => shown(&value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check<T: std::fmt::Debug>(read: impl Fn(Fields<'_>) -> Result<T, LoadError>, expected: &str) {
        let content = json!({"text": "x\n", "list": [1, "2"], "negative": -1, "half": 0.5, "nothing": null, "big": 96});
        let error = read(Fields::of_file(Path::new("config.json"), &content).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), format!("config.json: {expected}"));
    }

    #[test]
    fn errors_name_file_and_field_and_value() {
        check(|fields| fields.size("half"), "half is 0.5, not a whole number of 0 or more");
        check(|fields| fields.size("negative"), "negative is -1, not a whole number of 0 or more");
        check(|fields| fields.number("text"), "text is the string 'x\\n', not a number");
        check(|fields| fields.texts("list").map(drop), "list is a list, not a list of strings");
        check(|fields| fields.required_size("nothing"), "nothing is missing");
        check(|fields| fields.token_ids("list", 96), "list is the string '2', not the id of one of the model's 96 tokens");
        check(|fields| fields.token_ids("big", 96), "big is 96, not the id of one of the model's 96 tokens");
        check(|fields| fields.token_ids("negative", 96), "negative is -1, not the id of one of the model's 96 tokens");
    }
}
