//! A chat template of any text.
#![no_main]

use std::collections::HashMap;

use jinja::{Limits, Template, Value};

libfuzzer_sys::fuzz_target!(|source: &str| {
    let Ok(template) = Template::parse(source) else { return };
    let variables = HashMap::from([("x".to_owned(), Value::from_text("a <b>", Some(0)))]);
    let limits = Limits { fuel: 20_000, text_bytes: 1 << 16 };
    let _rendered = template.render(variables, limits, &|_| Ok("now".to_owned()));
});
