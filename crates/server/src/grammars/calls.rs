//! Grammars of answers that may or must call tools.

use dialect::{Dialect, GrammarOptions, ToolSpec};
use grammar::{Constraint, schema_item};
use serde_json::{Value, json};
use tokenizer::Tokenizer;
use tokens::TokenId;

use crate::error::ApiError;
use crate::valid::{ValidConstraint, ValidTools};

/// Grammar of the calls of one request.
pub(super) struct CallGrammar<'a> {
    tools: &'a ValidTools,
    tokenizer: &'a Tokenizer,
    form: Form<'a>,
}

/// Part of the answer that the grammar covers.
#[derive(Clone, Copy)]
enum Form<'a> {
    /// All that follows the token that opens the first call.
    AfterOpening(TokenId),
    /// The whole answer, which calls; `after_reasoning` if blanks may come first.
    Calls { after_reasoning: bool },
    /// The whole answer, which is free text or calls, because no single token opens calls.
    TextOrCalls,
    /// The whole answer, which is JSON of a schema or calls.
    JsonOrCalls(&'a Value),
}

impl<'a> CallGrammar<'a> {
    /// Plans the grammar of answers that may call `tools`, and whose text is constrained by `text`. `None` if nothing is to be enforced.
    ///
    /// # Errors
    /// If the dialect has no grammar for what is required, or `text` cannot be combined with tools; names the field.
    pub(super) fn new(
        tools: &'a ValidTools,
        text: Option<&'a ValidConstraint>,
        tokenizer: &'a Tokenizer,
        is_thinking: bool,
    ) -> Result<Option<Self>, ApiError> {
        let opening = tools.dialect.opening().and_then(|opening| tokenizer.token_id(opening));
        let is_json = |text: &ValidConstraint| matches!(text.constraint, Constraint::JsonSchema(_) | Constraint::JsonObject);
        if let Some(ValidConstraint { param, constraint }) = text.filter(|text| !is_json(text)) {
            let message = format!("a {} cannot be combined with tools, unless `tool_choice` is `none`", constraint.kind());
            return Err(ApiError::param(*param, message));
        }
        let form = match (tools.is_required, text, opening) {
            (true, ..) => Form::Calls { after_reasoning: is_thinking },
            (false, Some(ValidConstraint { constraint: Constraint::JsonSchema(schema), .. }), _) => Form::JsonOrCalls(schema),
            (false, Some(_), _) => Form::JsonOrCalls(&Value::Null),
            (false, None, Some(token)) => Form::AfterOpening(token),
            (false, None, None) if tools.must_match() && tools.dialect.opening().is_some() => Form::TextOrCalls,
            (false, None, None) => return Ok(None),
        };
        let planned = Self { tools, tokenizer, form };
        if planned.calls(true).is_some() {
            return Ok(Some(planned));
        }
        match tools.must_match() {
            true => Err(ApiError::param("tools", format!("calls in the dialect {} cannot be enforced", tools.dialect))),
            false => Ok(None),
        }
    }

    /// Returns the token after which the grammar begins; `None` if it covers the whole answer.
    pub(super) fn trigger(&self) -> Option<TokenId> {
        match self.form {
            Form::AfterOpening(token) => Some(token),
            Form::Calls { .. } | Form::TextOrCalls | Form::JsonOrCalls(_) => None,
        }
    }

    /// Returns the grammar in Lark. `is_loose` takes any object for the arguments of tools that are not strict.
    pub(super) fn lark(&self, is_loose: bool) -> String {
        let calls = self.calls(is_loose).unwrap_or_default();
        let calls_as = |name: &str| calls.replacen("start:", &format!("{name}:"), 1);
        match self.form {
            Form::AfterOpening(_) | Form::Calls { after_reasoning: false } => calls,
            Form::Calls { after_reasoning: true } => format!("start: BLANKS calls\nBLANKS: /\\n{{0,2}}/\n{}", calls_as("calls")),
            Form::TextOrCalls => {
                let opening = self.tools.dialect.opening().unwrap_or_default();
                // An angle bracket after a backslash is the border of a word.
                let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '<' | '>' | '_') || !c.is_ascii();
                let escaped = |c: char| if is_plain(c) { c.to_string() } else { format!("\\{c}") };
                let pattern: String = opening.chars().map(escaped).collect();
                format!(
                    "start: TEXT | lead calls\nlead[lazy]: /(?s:.*){pattern}/\nTEXT: /(?s:.*)/ & ~/(?s:.*){pattern}(?s:.*)/\n{}",
                    calls_as("calls")
                )
            }
            Form::JsonOrCalls(schema) => {
                let object = json!({"type": "object"});
                let schema = if schema.is_null() { &object } else { schema };
                format!("start: json | calls\njson: {}\n{}", schema_item(schema, false), calls_as("calls"))
            }
        }
    }

    fn calls(&self, is_loose: bool) -> Option<String> {
        let is_open = matches!(self.form, Form::AfterOpening(_) | Form::TextOrCalls);
        let options = GrammarOptions { parallel: self.tools.is_parallel, is_open };
        let literal = |text: &str| match self.tokenizer.token_id(text) {
            Some(token) if self.tokenizer.is_special(token) => format!("<[{}]>", token.0),
            _ => Value::from(text).to_string(),
        };
        let schema = |tool: &ToolSpec, schema: &Value| match is_loose && !tool.is_strict {
            true if *schema == tool.parameters => schema_item(&json!({"type": "object"}), true),
            true => schema_item(&json!({}), true),
            false => schema_item(schema, !tool.is_strict),
        };
        Dialect::grammar(self.tools.dialect, &self.tools.tools, options, &literal, &schema)
    }
}

#[cfg(test)]
mod tests {
    use dialect::{OutputEvent, OutputParser, ParserOptions};
    use grammar::{Matcher, Vocabulary};

    use super::*;

    /// Token that ends an answer, after those of the bytes.
    const EOS: u32 = 256;

    fn vocabulary() -> Vocabulary {
        static BYTES: [u8; 256] = {
            let mut bytes = [0; 256];
            let mut idx = 0;
            while idx < 256 {
                bytes[idx] = idx as u8;
                idx += 1;
            }
            bytes
        };
        Vocabulary::new(257, |token| BYTES.get(token.0 as usize..=token.0 as usize).unwrap_or_default(), &[TokenId(EOS)])
    }

    fn specs() -> Vec<ToolSpec> {
        let all = json!({"type": "object", "required": ["city", "days"], "additionalProperties": false, "properties": {
            "city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 1, "maximum": 9},
            "unit": {"enum": ["c", "f"]}, "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        }});
        let optional = json!({"type": "object", "additionalProperties": false, "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}}});
        let none = json!({"type": "object", "properties": {}, "additionalProperties": false});
        let named = |name: &str, parameters| ToolSpec { name: name.to_owned(), parameters, is_strict: false };
        vec![named("weather", all), named("pick", optional), named("now", none)]
    }

    /// Draws an answer that a grammar allows, with a preference for ends.
    fn draw(matcher: &mut Matcher, seed: &mut u64) -> Option<String> {
        let mut bytes = Vec::new();
        let mut next = || {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*seed >> 33) as usize
        };
        while bytes.len() < 1500 {
            let mask = matcher.mask().unwrap();
            let allowed: Vec<u32> = (0..=EOS).filter(|token| mask.allows(TokenId(*token))).collect();
            // Of what is allowed, ends and printable text are likelier.
            let ends: Vec<u32> =
                allowed.iter().copied().filter(|token| *token == EOS || b"\"}])<".contains(&(*token as u8))).collect();
            let plain: Vec<u32> = allowed.iter().copied().filter(|token| (32..127).contains(token) || *token == 10).collect();
            let among = [&ends, &plain, &ends].into_iter().nth(next() % 3).filter(|among| !among.is_empty()).unwrap_or(&allowed);
            let token = *among.get(next() % among.len())?;
            if token == EOS {
                return String::from_utf8(bytes).ok();
            }
            matcher.accept(TokenId(token)).unwrap();
            bytes.push(token as u8);
            if matcher.is_complete() {
                return String::from_utf8(bytes).ok();
            }
        }
        None
    }

    /// Parses an answer: text and calls with their arguments.
    fn parse(dialect: Dialect, text: &str) -> (String, Vec<(String, Value)>) {
        let mut parser = OutputParser::new(&ParserOptions { calls: Some((dialect, specs())), ..ParserOptions::default() });
        let mut events = parser.push(text);
        events.extend(parser.finish());
        let (mut rest, mut calls) = (String::new(), Vec::new());
        for event in events {
            match event {
                OutputEvent::Text(text) => rest.push_str(&text),
                OutputEvent::CallBegins(name) => calls.push((name, String::new())),
                OutputEvent::Arguments(text) => calls.last_mut().unwrap().1.push_str(&text),
                OutputEvent::Reasoning(_) | OutputEvent::CallEnds => {}
            }
        }
        (rest, calls.into_iter().map(|(name, text)| (name, serde_json::from_str(&text).expect(&text))).collect())
    }

    #[track_caller]
    fn check_arguments(name: &str, arguments: &Value) {
        let arguments = arguments.as_object().expect("an object");
        let is_valid = match name {
            "weather" => {
                arguments["days"].as_i64().is_some_and(|days| (1..=9).contains(&days))
                    && arguments["city"].is_string()
                    && arguments.get("unit").is_none_or(|unit| *unit == "c" || *unit == "f")
                    && arguments.get("tags").is_none_or(|tags| tags.as_array().unwrap().iter().all(Value::is_boolean))
            }
            "pick" => arguments.get("a").is_none_or(Value::is_i64) && arguments.get("b").is_none_or(Value::is_boolean),
            "now" => arguments.is_empty(),
            _ => false,
        };
        assert!(is_valid, "{name} {arguments:?}");
    }

    #[test]
    fn what_a_grammar_allows_is_parsed_as_calls_that_match_their_schemas() {
        let vocabulary = vocabulary();
        let literal = |text: &str| Value::from(text).to_string();
        let schema = |_: &ToolSpec, schema: &Value| schema_item(schema, false);
        let mut seed = 3;
        for dialect in Dialect::ALL {
            for parallel in [false, true] {
                let options = GrammarOptions { parallel, is_open: false };
                let Some(lark) = dialect.grammar(&specs(), options, &literal, &schema) else { continue };
                let grammar = vocabulary
                    .compile(&Constraint::Lark(lark.clone()))
                    .unwrap_or_else(|error| panic!("{dialect}: {error}\n{lark}"));
                let mut most = 0;
                for _ in 0..20 {
                    let Some(text) = draw(&mut grammar.matcher(), &mut seed) else { continue };
                    let (rest, calls) = parse(dialect, &text);
                    assert!(!calls.is_empty() && rest.trim().is_empty(), "{dialect}: {text:?} gives {rest:?} {calls:?}");
                    calls.iter().for_each(|(name, arguments)| check_arguments(name, arguments));
                    most = most.max(calls.len());
                }
                assert!(most >= 1 && (parallel || most == 1), "{dialect}: {most}");
            }
        }
    }
}
