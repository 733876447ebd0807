use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use protocol::{
    ChatCompletionRequest, CompletionRequest, DetokenizeRequest, EmbeddingsRequest, RerankRequest, ScoreRequest, TokenizeRequest,
};
use serde_json::json;

use super::*;

const ENDPOINTS: [(u8, &str, &str); 7] = [
    (CHAT, "chat", "ChatCompletionRequest"),
    (COMPLETIONS, "completions", "CompletionRequest"),
    (TOKENIZE, "tokenize", "TokenizeRequest"),
    (DETOKENIZE, "detokenize", "DetokenizeRequest"),
    (EMBEDDINGS, "embeddings", "EmbeddingsRequest"),
    (RERANK, "rerank", "RerankRequest"),
    (SCORE, "score", "ScoreRequest"),
];

fn endpoint_names(on: u8) -> String {
    let here = ENDPOINTS.iter().filter(|(bit, _, _)| on & bit != 0);
    here.map(|(_, name, _)| *name).collect::<Vec<_>>().join(", ")
}

/// Renders the table as in `FIELDS.md`.
fn document() -> String {
    let mut text = "# Fields of requests\n\n\
        Written by a test from `src/valid/fields/`, whose tables decide. \"honoured\": the field does what its name says. \
        \"as `x`\": it is another\nname of `x`; both with different values are refused. \"accepted\": it changes no answer here. \
        \"refused\": the answer is 400 with the\nfield's name in `param`, unless the value is one of those in brackets, which ask for \
        nothing. A field that is `null` is absent. A field\nthat is not in the table is ignored, as vLLM, SGLang and llama.cpp do, and \
        its name is in the log at level `debug`.\n\n\
        | field | on | known to | verdict |\n|---|---|---|---|\n"
        .to_owned();
    for field in all() {
        let verdict = match field.verdict {
            Verdict::Honoured => "honoured".to_owned(),
            Verdict::SameAs(target) => format!("as `{target}`"),
            Verdict::Accepted(reason) => format!("accepted: {reason}"),
            Verdict::Refused([]) => "refused".to_owned(),
            Verdict::Refused(harmless) => {
                let harmless: Vec<_> = harmless.iter().map(|value| format!("`{value}`")).collect();
                format!("refused (but {})", harmless.join(", "))
            }
        };
        writeln!(text, "| `{}` | {} | {} | {verdict} |", field.name, endpoint_names(field.on), field.known_to()).unwrap();
    }
    text
}

/// `KVSHARE_WRITE_FIELDS=1 cargo test -p server fields` rewrites the file.
#[test]
fn the_document_is_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("FIELDS.md");
    if std::env::var_os("KVSHARE_WRITE_FIELDS").is_some() {
        std::fs::write(&path, document()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == document(), "FIELDS.md is not what the table says: write it anew");
}

#[test]
fn a_field_has_one_verdict_on_each_endpoint() {
    for (idx, field) in all().enumerate() {
        let twins = all().skip(idx + 1).filter(|other| other.name == field.name && other.on & field.on != 0);
        assert_eq!(twins.count(), 0, "{} is twice in the table", field.name);
        assert!(field.on != 0);
    }
}

#[test]
fn honoured_fields_are_those_of_the_types() {
    let openapi = crate::openapi::document();
    for (endpoint, _, schema) in ENDPOINTS {
        let properties = openapi["components"]["schemas"][schema]["properties"].as_object().unwrap();
        let typed: BTreeSet<_> = properties.keys().map(String::as_str).collect();
        let here = all().filter(|field| field.on & endpoint != 0);
        let honoured: BTreeSet<_> =
            here.clone().filter(|field| matches!(field.verdict, Verdict::Honoured)).map(|field| field.name).collect();
        assert_eq!(honoured, typed, "{schema}");
        for field in here {
            if let Verdict::SameAs(target) = field.verdict {
                assert!(typed.contains(target), "{} is another name of nothing", field.name);
            }
        }
    }
}

/// Returns the verdict on `field` with `value` at each endpoint that takes it: `None` where it is accepted.
fn refusals(field: &Field, value: &Value) -> Vec<Option<String>> {
    let request = || json!({field.name: value});
    let refused = |result: Result<(), ApiError>| result.err().and_then(|error| error.body().error.param);
    let mut found = Vec::new();
    if field.on & CHAT != 0 {
        found.push(refused(judge::<ChatCompletionRequest>(serde_json::from_value(request()).unwrap(), CHAT).map(drop)));
    }
    if field.on & COMPLETIONS != 0 {
        found.push(refused(judge::<CompletionRequest>(serde_json::from_value(request()).unwrap(), COMPLETIONS).map(drop)));
    }
    if field.on & TOKENIZE != 0 {
        found.push(refused(judge::<TokenizeRequest>(serde_json::from_value(request()).unwrap(), TOKENIZE).map(drop)));
    }
    if field.on & DETOKENIZE != 0 {
        found.push(refused(judge::<DetokenizeRequest>(serde_json::from_value(request()).unwrap(), DETOKENIZE).map(drop)));
    }
    if field.on & EMBEDDINGS != 0 {
        found.push(refused(judge::<EmbeddingsRequest>(serde_json::from_value(request()).unwrap(), EMBEDDINGS).map(drop)));
    }
    if field.on & RERANK != 0 {
        found.push(refused(judge::<RerankRequest>(serde_json::from_value(request()).unwrap(), RERANK).map(drop)));
    }
    if field.on & SCORE != 0 {
        found.push(refused(judge::<ScoreRequest>(serde_json::from_value(request()).unwrap(), SCORE).map(drop)));
    }
    found
}

#[test]
fn every_verdict_is_what_happens() {
    for field in all() {
        assert!(refusals(field, &Value::Null).iter().all(Option::is_none), "{} is null", field.name);
        match field.verdict {
            Verdict::Honoured | Verdict::SameAs(_) => {}
            Verdict::Accepted(_) => {
                assert!(refusals(field, &json!({"x": [1]})).iter().all(Option::is_none), "{} is accepted", field.name);
            }
            Verdict::Refused(harmless) => {
                for value in [json!({"x": [1]}), json!(7.5), json!("x"), json!(["x"])] {
                    let expected = Some(field.name.to_owned());
                    assert!(refusals(field, &value).iter().all(|found| *found == expected), "{}: {value}", field.name);
                }
                for value in harmless.iter().map(|text| serde_json::from_str::<Value>(text).unwrap()) {
                    assert!(refusals(field, &value).iter().all(Option::is_none), "{}: {value}", field.name);
                }
            }
        }
    }
}

#[test]
fn numbers_are_compared_as_numbers() {
    for value in [json!(1), json!(1.0)] {
        assert!(asks_for_nothing(&value, &["1"]), "{value}");
    }
    assert!(asks_for_nothing(&json!(-0.0), &["0"]) && !asks_for_nothing(&json!("1"), &["1"]));
}

fn completion(fields: Value) -> Result<CompletionRequest, ApiError> {
    judge(serde_json::from_value(fields).unwrap(), COMPLETIONS)
}

#[test]
fn another_name_is_the_field() {
    let request =
        completion(json!({"n_predict": 5, "min_new_tokens": 2, "no_stop_trim": true, "extra_key": "k", "n_cmpl": 3})).unwrap();
    let sampling = request.sampling;
    assert_eq!((sampling.max_tokens, sampling.min_tokens, sampling.n), (Some(5), Some(2), Some(3)));
    assert_eq!((sampling.include_stop_str_in_output, sampling.cache_salt.as_deref()), (Some(true), Some("k")));
    assert_eq!(completion(json!({"n_predict": 5, "max_tokens": 5})).unwrap().sampling.max_tokens, Some(5));
    assert_eq!(completion(json!({"n_predict": null, "max_tokens": 5})).unwrap().sampling.max_tokens, Some(5));
}

#[test]
fn two_names_that_differ_and_wrong_types_are_refused_by_the_name_that_was_sent() {
    let param = |fields| completion(fields).unwrap_err().body().error.param;
    assert_eq!(param(json!({"n_predict": 5, "max_tokens": 6})).as_deref(), Some("n_predict"));
    assert_eq!(param(json!({"n_predict": 5, "num_predict": 6})).as_deref(), Some("num_predict"));
    assert_eq!(param(json!({"n_predict": "x"})).as_deref(), Some("n_predict"));
}

#[test]
fn what_nobody_knows_is_ignored() {
    assert!(completion(json!({"my_field": {"a": 1}, "temprature": 0})).is_ok());
}
