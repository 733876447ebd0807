//! JSON parsing with limits on depth, width, and the total number of values.
//!
//! A body of two megabytes can hold a million values, which take fifty times its size once parsed. The limits are checked during parsing,
//! so that no more than they allow is ever built.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Maximum nesting of objects and arrays. Chosen: schemas of tools are the deepest that clients send.
const MAX_DEPTH: usize = 64;
/// Maximum fields of one object. Chosen: `logit_bias` is the largest that is accepted.
const MAX_FIELDS: usize = 1024;
/// Maximum elements of one array, except of numbers. Chosen: messages of the longest conversations.
const MAX_ITEMS: usize = 4096;
/// Largest whole number up to which all are exact in floating point: 2^53.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;
/// Fields whose values are passed on unchanged: there 1.0 stays 1.0.
const HANDED_ON: [&str; 8] = [
    "chat_template_kwargs",
    "documents",
    "guided_json",
    "input",
    "json_schema",
    "response_format",
    "structured_outputs",
    "tools",
];

/// Reason why a body is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Path of the invalid value; empty for the body itself.
    pub(super) path: String,
    /// Description of the fault.
    pub(super) message: String,
}

/// Reads a body that must be an object of at most `max_values` values. Whole numbers become integers, however they are written.
pub(super) fn read_object(bytes: &[u8], max_values: usize) -> Result<Map<String, Value>, Refusal> {
    let mut reader = Reader { max_values, ..Reader::default() };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let read = Node(&mut reader).deserialize(&mut json).and_then(|value| json.end().map(|()| value));
    let whole = |message| Refusal { path: String::new(), message };
    match read {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(other) => Err(whole(format!("the body of a request must be a JSON object, not {}", kind_of(&other)))),
        Err(error) => {
            Err(reader.refusal.unwrap_or_else(|| whole(format!("We could not parse the JSON body of your request: {error}"))))
        }
    }
}

/// Returns a value's kind in JSON's terms.
pub(super) const fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[derive(Default)]
struct Reader {
    max_values: usize,
    num_values: usize,
    path: Vec<Step>,
    /// Number of enclosing objects that are passed on unchanged.
    num_handed_on: usize,
    refusal: Option<Refusal>,
}

enum Step {
    Field(String),
    Item(usize),
}

impl Reader {
    /// Records why the current value is refused. The library's own error lacks the path.
    fn refuse<E: Error>(&mut self, message: impl FnOnce(&str) -> String) -> E {
        let path = self.shown_path();
        let message = message(&super::fault::named(&path));
        self.refusal = Some(Refusal { path, message });
        E::custom("refused")
    }

    fn shown_path(&self) -> String {
        let mut shown = String::new();
        for step in &self.path {
            match step {
                Step::Field(name) => super::fault::push_field(&mut shown, name),
                Step::Item(index) => super::fault::push_item(&mut shown, *index),
            }
        }
        shown
    }

    fn count<E: Error>(&mut self) -> Result<(), E> {
        self.num_values += 1;
        if self.num_values > self.max_values {
            let max_values = self.max_values;
            self.path.truncate(1);
            return Err(self.refuse(|path| format!("{path} brings the request to more than {max_values} values")));
        }
        Ok(())
    }

    fn enter<E: Error>(&mut self) -> Result<(), E> {
        if self.path.len() < MAX_DEPTH {
            return Ok(());
        }
        self.path.truncate(1);
        Err(self.refuse(|path| format!("{path} is nested more than {MAX_DEPTH} values deep")))
    }
}

/// Deserializer of one value.
struct Node<'a>(&'a mut Reader);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.0.count()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        if self.0.num_handed_on == 0 && value.fract() == 0.0 && value.abs() <= MAX_EXACT {
            return Ok((value as i64).into());
        }
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let reader = self.0;
        reader.enter()?;
        let (mut array, mut num_items) = (Vec::new(), 0);
        loop {
            reader.path.push(Step::Item(array.len()));
            let Some(item) = items.next_element_seed(Node(reader))? else { break };
            reader.path.pop();
            num_items += usize::from(!item.is_number());
            if num_items > MAX_ITEMS {
                return Err(reader.refuse(|path| format!("{path} has more than {MAX_ITEMS} elements")));
            }
            array.push(item);
        }
        reader.path.pop();
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let reader = self.0;
        reader.enter()?;
        let mut object = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            if object.len() == MAX_FIELDS {
                return Err(reader.refuse(|path| format!("{path} has more than {MAX_FIELDS} fields")));
            }
            let is_handed_on = usize::from(HANDED_ON.contains(&name.as_str()));
            reader.num_handed_on += is_handed_on;
            reader.path.push(Step::Field(name.clone()));
            let value = fields.next_value_seed(Node(reader))?;
            if object.contains_key(&name) {
                return Err(reader.refuse(|path| format!("{path} is there twice")));
            }
            reader.path.pop();
            reader.num_handed_on -= is_handed_on;
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MANY: usize = 1 << 20;

    fn read(text: &str) -> Result<Value, Refusal> {
        read_object(text.as_bytes(), MANY).map(Value::Object)
    }

    #[track_caller]
    fn check_refused(text: &str, path: &str, message: &str) {
        let refusal = read(text).unwrap_err();
        assert_eq!(refusal.path, path);
        assert!(refusal.message.contains(message), "{}", refusal.message);
    }

    #[test]
    fn what_is_within_the_limits_is_read_as_it_is() {
        let text = r#"{"a": [1, -2, 1.5, 1e300, "é\n", null, true, {"b": {}}], "c": 18446744073709551615}"#;
        assert_eq!(read(text).unwrap(), serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn whole_numbers_are_integers_however_they_are_written() {
        assert_eq!(
            read(r#"{"n": 1.0, "m": 1e2, "x": [-0.0, 2.5, 1e17]}"#).unwrap(),
            json!({"n": 1, "m": 100, "x": [0, 2.5, 1e17]})
        );
        let kept = r#"{"chat_template_kwargs": {"x": 1.0, "y": [2.0]}}"#;
        assert_eq!(read(kept).unwrap(), serde_json::from_str::<Value>(kept).unwrap());
    }

    #[test]
    fn too_many_of_anything_is_refused_by_name() {
        let fields: Vec<_> = (0..=MAX_FIELDS).map(|i| format!("\"f{i}\": 0")).collect();
        check_refused(&format!("{{{}}}", fields.join(",")), "", "the body has more than 1024 fields");
        check_refused(&format!("{{\"logit_bias\": {{{}}}}}", fields.join(",")), "logit_bias", "more than 1024 fields");
        let items = vec!["\"x\""; MAX_ITEMS + 1].join(",");
        check_refused(&format!("{{\"stop\": [{items}]}}"), "stop", "more than 4096 elements");
        check_refused(&format!("{{\"a\": [0, {{\"b\": [{items}]}}]}}"), "a[1].b", "more than 4096 elements");
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(100), "]".repeat(100));
        check_refused(&deep, "a", "nested more than 64 values deep");
    }

    #[test]
    fn numbers_are_bounded_by_all_values_together() {
        let numbers = vec!["1"; 2 * MAX_ITEMS].join(",");
        let text = format!("{{\"model\": \"m\", \"prompt\": [{numbers}]}}");
        assert!(read(&text).is_ok());
        let refusal = read_object(text.as_bytes(), MAX_ITEMS).unwrap_err();
        assert_eq!(
            refusal,
            Refusal { path: "prompt".to_owned(), message: "`prompt` brings the request to more than 4096 values".to_owned() }
        );
    }

    #[test]
    fn what_is_no_object_or_no_json_is_refused() {
        check_refused("[]", "", "must be a JSON object, not an array");
        check_refused("null", "", "not null");
        for text in ["", "{", "{} x", "{\"a\": 01}", "nonsense", "{\"a\": 1e999}"] {
            check_refused(text, "", "could not parse");
        }
        check_refused(r#"{"a": 1, "b": {"c": 1, "c": 2}}"#, "b.c", "there twice");
    }
}
