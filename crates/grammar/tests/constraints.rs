//! Constraints over a vocabulary of bytes and a few words, walked token by token.

use grammar::{Constraint, Grammar, Matcher, Vocabulary};
use serde_json::json;
use tokens::TokenId;

/// Token that ends an answer.
const EOS: u32 = 256;
/// Tokens of several bytes, after those of one byte and the end.
const WORDS: [&str; 6] = ["{\"", "\":", "true", " an", "yes", "no"];

fn word(token: TokenId) -> &'static [u8] {
    static BYTES: [u8; 256] = {
        let mut bytes = [0; 256];
        let mut idx = 0;
        while idx < 256 {
            bytes[idx] = idx as u8;
            idx += 1;
        }
        bytes
    };
    match token.0 as usize {
        byte @ 0..=255 => &BYTES[byte..=byte],
        256 => &[],
        word => WORDS[word - 257].as_bytes(),
    }
}

fn vocabulary() -> Vocabulary {
    Vocabulary::new(257 + WORDS.len(), word, &[TokenId(EOS)])
}

fn compile(constraint: &Constraint) -> Grammar {
    vocabulary().compile(constraint).unwrap_or_else(|error| panic!("{error}"))
}

/// Feeds `text` byte by byte. Returns the bytes accepted before the first that may not follow.
fn accepted(matcher: &mut Matcher, text: &str) -> usize {
    let mut num_accepted = 0;
    for byte in text.bytes() {
        let token = TokenId(u32::from(byte));
        if !matcher.mask().unwrap().allows(token) {
            break;
        }
        matcher.accept(token).unwrap();
        num_accepted += 1;
    }
    num_accepted
}

/// Checks that `text` may be an answer as a whole if `is_sentence`, and may not otherwise.
#[track_caller]
fn check(grammar: &Grammar, text: &str, is_sentence: bool) {
    let mut matcher = grammar.matcher();
    let is_accepted = accepted(&mut matcher, text) == text.len() && matcher.mask().unwrap().allows(TokenId(EOS));
    assert_eq!(is_accepted, is_sentence, "{text:?}");
}

#[test]
fn a_schema_allows_what_it_describes_and_nothing_else() {
    let schema = json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": false,
    });
    let grammar = compile(&Constraint::JsonSchema(schema));
    check(&grammar, r#"{"name": "Ann", "age": 7}"#, true);
    check(&grammar, r#"{"name":"Ann","age":150}"#, true);
    check(&grammar, "{\n  \"name\": \"Ann\",\n  \"age\": 7\n}", true);
    check(&grammar, "{\n\n\"name\": \"Ann\", \"age\": 7}", false);
    check(&grammar, &format!("{{{}\"name\": \"Ann\", \"age\": 7}}", " ".repeat(30)), false);
    check(&grammar, r#"{"name": "Ann"}"#, false);
    check(&grammar, r#"{"name": "Annabel", "age": 7}"#, false);
    check(&grammar, r#"{"name": "Ann", "age": 151}"#, false);
    check(&grammar, r#"{"name": "Ann", "age": 7, "x": 1}"#, false);
    check(&grammar, r#"["name"]"#, false);
}

#[test]
fn any_object_may_be_answered_to_a_json_object() {
    let grammar = compile(&Constraint::JsonObject);
    check(&grammar, r#"{"a": [1, {"b": null}], "c": "é"}"#, true);
    check(&grammar, r#"[1]"#, false);
    check(&grammar, r#"{"a": 1"#, false);
}

#[test]
fn expressions_and_choices_match_whole_answers() {
    let number = compile(&Constraint::Regex(r"[0-9]{3}-[a-z]+".to_owned()));
    check(&number, "123-abc", true);
    check(&number, "123-", false);
    check(&number, "12-abc", false);
    let choice = compile(&Constraint::Choice(vec!["yes".to_owned(), "no \"never\"\n".to_owned(), "yes, but".to_owned()]));
    check(&choice, "yes", true);
    check(&choice, "no \"never\"\n", true);
    check(&choice, "yes, but", true);
    check(&choice, "yes, ", false);
}

#[test]
fn a_grammar_in_larks_syntax_nests() {
    let sum = compile(&Constraint::Lark("start: term (\"+\" term)*\nterm: /[0-9]+/ | \"(\" start \")\"".to_owned()));
    check(&sum, "1+(2+3)+4", true);
    check(&sum, "1+(2+3", false);
}

#[test]
fn tokens_of_several_bytes_are_allowed_where_all_of_them_fit() {
    let grammar = compile(&Constraint::Choice(vec!["yes".to_owned(), "no".to_owned()]));
    let mask = grammar.matcher().mask().unwrap();
    let allowed: Vec<u32> = (0..263).filter(|token| mask.allows(TokenId(*token))).collect();
    assert_eq!(allowed, [u32::from(b'n'), u32::from(b'y'), 261, 262]);
}

#[test]
fn an_answer_that_nothing_may_follow_is_complete() {
    let grammar = compile(&Constraint::Choice(vec!["yes".to_owned()]));
    let mut matcher = grammar.matcher();
    assert!(!matcher.is_complete());
    matcher.accept(TokenId(261)).unwrap();
    assert!(matcher.is_complete());
    let mask = matcher.mask().unwrap();
    assert_eq!((0..263).filter(|token| mask.allows(TokenId(*token))).collect::<Vec<_>>(), [EOS]);
}

#[test]
fn a_token_is_taken_back_wherever_the_answer_is() {
    let grammar = compile(&Constraint::Choice(vec!["yes".to_owned(), "yet".to_owned()]));
    let mut matcher = grammar.matcher();
    assert_eq!(accepted(&mut matcher, "yes"), 3);
    matcher.retract().unwrap();
    assert!(!matcher.is_complete());
    assert_eq!(accepted(&mut matcher, "t"), 1);
    assert!(matcher.is_complete());
    matcher.retract().unwrap();
    matcher.retract().unwrap();
    assert_eq!(accepted(&mut matcher, "es"), 2);
}

#[test]
fn answers_to_one_grammar_are_independent() {
    let grammar = compile(&Constraint::Regex("[ab]*c".to_owned()));
    let (mut first, mut second) = (grammar.matcher(), grammar.clone().matcher());
    assert_eq!((accepted(&mut first, "abc"), accepted(&mut second, "bb")), (3, 2));
    assert!(first.is_complete() && !second.is_complete());
}

#[test]
fn what_cannot_be_enforced_is_an_error_that_names_its_place() {
    let error = |constraint| vocabulary().compile(&constraint).expect_err("it cannot be enforced").to_string();
    for (constraint, part) in [
        (Constraint::JsonSchema(json!({"type": "strin"})), "strin"),
        (Constraint::JsonSchema(json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/missing"}}})), "missing"),
        (Constraint::JsonSchema(json!({"type": "array", "uniqueItems": true})), "uniqueItems"),
        (Constraint::JsonSchema(json!(false)), "JSON schema"),
        (Constraint::Regex("[a-".to_owned()), "regular expression"),
        (Constraint::Regex(r"(a)\1".to_owned()), "regular expression"),
        (Constraint::Lark("start: nothing".to_owned()), "nothing"),
        (Constraint::Lark(String::new()), "Lark"),
        (Constraint::Choice(Vec::new()), "choice"),
    ] {
        let message = error(constraint.clone());
        assert!(message.contains(part), "{constraint:?}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn a_hostile_constraint_costs_bounded_work() {
    let nested = (0..200).fold(json!({"type": "string"}), |inner, _| json!({"type": "array", "items": inner}));
    let wide = json!({"anyOf": (0..400).map(|i| json!({"type": "string", "pattern": format!("^(a|b|{i})*c{{1,50}}$")})).collect::<Vec<_>>()});
    for constraint in [
        Constraint::Regex("(a*)*b".repeat(50)),
        Constraint::Regex("((a{1,100}){1,100}){1,100}".to_owned()),
        Constraint::Regex(".*(a|b).{200}".to_owned()),
        Constraint::JsonSchema(nested),
        Constraint::JsonSchema(wide),
        Constraint::Lark("start: start start | \"a\" |".to_owned()),
    ] {
        // Either is fine, as long as it ends.
        let Ok(grammar) = vocabulary().compile(&constraint) else { continue };
        let mut matcher = grammar.matcher();
        for _ in 0..50 {
            let Ok(mask) = matcher.mask() else { break };
            let Some(token) = (0..263).map(TokenId).find(|token| mask.allows(*token)) else { panic!("nothing may follow") };
            if matcher.accept(token).is_err() || matcher.is_complete() {
                break;
            }
        }
    }
}
