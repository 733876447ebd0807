//! Python literals, as models write them in calls.

use serde_json::{Map, Number, Value};

/// Most nested lists and dictionaries.
const MAX_DEPTH: u32 = 64;

/// A call in Python's syntax: the function's name, and its keyword arguments.
pub(crate) type Call = (String, Map<String, Value>);

/// Reads `text` as one literal: a string, number, `True`, `False`, `None`, list, tuple or dictionary; JSON's words too.
pub(crate) fn literal(text: &str) -> Option<Value> {
    let mut reader = Reader { rest: text };
    let value = reader.value(0)?;
    reader.blanks();
    reader.rest.is_empty().then_some(value)
}

/// Reads `[f(x=1), g()]` or a single `f(x=1)` at the start of `text`; returns the calls and the bytes read. `None` if it is not, or not yet, that.
pub(crate) fn calls(text: &str) -> Option<(Vec<Call>, usize)> {
    let mut reader = Reader { rest: text };
    reader.blanks();
    let is_list = reader.eat('[');
    let mut calls = Vec::new();
    loop {
        reader.blanks();
        if is_list && reader.eat(']') {
            break;
        }
        calls.push(reader.call()?);
        reader.blanks();
        if !is_list {
            break;
        }
        if !reader.eat(',') && !reader.rest.starts_with(']') {
            return None;
        }
    }
    (!calls.is_empty()).then_some((calls, text.len() - reader.rest.len()))
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn blanks(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, expected: char) -> bool {
        match self.rest.strip_prefix(expected) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn word(&mut self) -> Option<String> {
        let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-');
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!word.is_empty()).then(|| word.to_owned())
    }

    fn call(&mut self) -> Option<Call> {
        let name = self.word()?;
        self.blanks();
        if !self.eat('(') {
            return None;
        }
        let mut arguments = Map::new();
        loop {
            self.blanks();
            if self.eat(')') {
                return Some((name, arguments));
            }
            let key = self.word()?;
            self.blanks();
            if !self.eat('=') {
                return None;
            }
            arguments.insert(key, self.value(0)?);
            self.blanks();
            if !self.eat(',') && !self.rest.starts_with(')') {
                return None;
            }
        }
    }

    fn value(&mut self, depth: u32) -> Option<Value> {
        self.blanks();
        if depth > MAX_DEPTH {
            return None;
        }
        match self.rest.chars().next()? {
            quote @ ('"' | '\'') => self.string(quote).map(Value::String),
            '[' => self.items('[', ']', depth).map(Value::Array),
            '(' => self.items('(', ')', depth).map(Value::Array),
            '{' => self.dictionary(depth).map(Value::Object),
            c if c.is_ascii_digit() || matches!(c, '-' | '+' | '.') => self.number(),
            _ => match self.word()?.as_str() {
                "True" | "true" => Some(Value::Bool(true)),
                "False" | "false" => Some(Value::Bool(false)),
                "None" | "null" => Some(Value::Null),
                _ => None,
            },
        }
    }

    fn number(&mut self) -> Option<Value> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.' | '_');
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        let plain = word.replace('_', "");
        let plain = plain.strip_prefix('+').unwrap_or(&plain);
        let number = plain.parse::<i64>().ok().map(Number::from);
        number.or_else(|| plain.parse::<f64>().ok().and_then(Number::from_f64)).map(Value::Number)
    }

    fn string(&mut self, quote: char) -> Option<String> {
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => match chars.next()?.1 {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    'u' => {
                        let code: String = chars.by_ref().take(4).map(|(_, c)| c).collect();
                        text.push(
                            u32::from_str_radix(&code, 16).ok().and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER),
                        );
                    }
                    c @ ('\\' | '\'' | '"' | '/') => text.push(c),
                    c => text.extend(['\\', c]),
                },
                c if c == quote => {
                    self.rest = &self.rest[at + c.len_utf8()..];
                    return Some(text);
                }
                c => text.push(c),
            }
        }
        None
    }

    fn items(&mut self, open: char, close: char, depth: u32) -> Option<Vec<Value>> {
        self.eat(open);
        let mut items = Vec::new();
        loop {
            self.blanks();
            if self.eat(close) {
                return Some(items);
            }
            items.push(self.value(depth + 1)?);
            self.blanks();
            if !self.eat(',') && !self.rest.starts_with(close) {
                return None;
            }
        }
    }

    fn dictionary(&mut self, depth: u32) -> Option<Map<String, Value>> {
        self.eat('{');
        let mut entries = Map::new();
        loop {
            self.blanks();
            if self.eat('}') {
                return Some(entries);
            }
            let Value::String(key) = self.value(depth + 1)? else { return None };
            self.blanks();
            if !self.eat(':') {
                return None;
            }
            entries.insert(key, self.value(depth + 1)?);
            self.blanks();
            if !self.eat(',') && !self.rest.starts_with('}') {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn literals_become_json() {
        assert_eq!(
            literal("{'a': [1, -2.5, True], \"b\": (None, 'it\\'s')}"),
            Some(json!({"a": [1, -2.5, true], "b": [null, "it's"]}))
        );
        for broken in ["{'a' 1}", "[1", "x", "'a", "1 2", ""] {
            assert_eq!(literal(broken), None, "{broken}");
        }
        assert_eq!(literal(&"[".repeat(10_000)), None);
    }

    #[test]
    fn calls_have_keyword_arguments() {
        let (found, len) = calls("[f(a=1, b='x, y'), g.h()] rest").unwrap();
        assert_eq!(
            found,
            [
                ("f".to_owned(), Map::from_iter([("a".to_owned(), json!(1)), ("b".to_owned(), json!("x, y"))])),
                ("g.h".to_owned(), Map::new())
            ]
        );
        assert_eq!(len, 25);
        for other in ["[f(a=1)", "[1, 2]", "[]", "f(1)", "text (x)"] {
            assert_eq!(calls(other), None, "{other}");
        }
    }
}
