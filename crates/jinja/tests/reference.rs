//! Compares the output of this engine with that of Jinja2, stored by `tests/reference/make_templates.py`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use jinja::{Limits, Template, Value};
use serde::Deserialize;
use serde_json::Map;

type Json = serde_json::Value;

#[derive(Deserialize)]
struct Construct {
    template: String,
    /// Expected output; `None` if Jinja2 fails.
    expected: Option<String>,
}

#[derive(Deserialize)]
struct Chat {
    template: String,
    case: String,
    expected: Option<String>,
}

#[derive(Deserialize)]
struct Cases {
    usual: Map<String, Json>,
    cases: BTreeMap<String, Map<String, Json>>,
}

fn folder() -> PathBuf {
    let stored = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/templates");
    std::env::var_os("KVSHARE_TEST_TEMPLATES").map_or_else(stored, PathBuf::from)
}

fn read<T: serde::de::DeserializeOwned>(file: &str) -> T {
    let path = folder().join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).expect("the stored side is JSON")
}

fn render(source: &str, variables: &Map<String, Json>) -> Result<String, jinja::Error> {
    let mut values = HashMap::new();
    for (name, value) in variables {
        values.insert(name.clone(), Value::from_json(value, None)?);
    }
    let limits = Limits { fuel: 1_000_000, text_bytes: 16 << 20 };
    let rendered = Template::parse(source)?.render(values, limits, &|_| Ok("26 Jul 2024".to_owned()))?;
    Ok(rendered.as_str().to_owned())
}

/// Returns a line of the report if the outputs differ.
fn difference(name: &str, found: &Result<String, jinja::Error>, expected: Option<&String>) -> Option<String> {
    match (found, expected) {
        (Ok(found), Some(expected)) if found == expected => None,
        (Err(_), None) => None,
        _ => Some(format!("{name}\n  found    {found:?}\n  expected {expected:?}\n")),
    }
}

#[track_caller]
fn check_none(differences: &[String], num_compared: usize) {
    assert!(differences.is_empty(), "{} of {num_compared} differ:\n{}", differences.len(), differences.concat());
}

#[test]
fn constructs_render_as_jinja2_renders_them() {
    let variables: Map<String, Json> = read("variables.json");
    let constructs: Vec<Construct> = read("constructs.json");
    assert!(constructs.len() > 600);
    let compare = |construct: &Construct| {
        difference(&construct.template, &render(&construct.template, &variables), construct.expected.as_ref())
    };
    let differences: Vec<String> = constructs.iter().filter_map(compare).collect();
    check_none(&differences, constructs.len());
}

#[test]
fn chat_templates_render_as_jinja2_renders_them() {
    let Cases { usual, cases } = read("cases.json");
    let chats: Vec<Chat> = read("chats.json");
    assert!(chats.len() > 100);
    let mut differences = Vec::new();
    for chat in &chats {
        let source = std::fs::read_to_string(folder().join(&chat.template)).expect("the template is stored");
        let mut variables = usual.clone();
        variables.extend(cases[&chat.case].clone());
        let found = render(&source, &variables);
        differences.extend(difference(&format!("{} {}", chat.template, chat.case), &found, chat.expected.as_ref()));
    }
    check_none(&differences, chats.len());
}
