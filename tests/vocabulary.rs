//! Tokenizer and chat template of the default model, through the daemon, compared with Hugging Face's.

use std::fs;

use serde_json::{Value, json};

use crate::daemon::{Daemon, pull_default_model};

/// Reads the output of `tests/reference/make_tokenizer_fixture.py` for the default model.
fn fixture() -> Value {
    let stem = pull_default_model().file_stem().and_then(|stem| stem.to_str()).expect("a model's name is UTF-8");
    let path = crate::places::repository().join(format!("tests/fixtures/tokenizer/{stem}.json"));
    serde_json::from_str(&fs::read_to_string(path).expect("the fixture is there")).expect("the fixture is JSON")
}

#[tokio::test]
async fn texts_and_chats_have_the_tokens_of_the_published_tokenizer() {
    let fixture = fixture();
    let daemon = Daemon::start(&[]).await;
    for text in fixture["texts"].as_array().unwrap() {
        let (status, found) = daemon.post("/tokenize", &json!({"prompt": text["text"], "add_special_tokens": false})).await;
        assert_eq!((status, &found["tokens"]), (200, &text["ids"]), "{text}");
        if text["text"] != "" {
            let (_, back) = daemon.post("/detokenize", &json!({"tokens": text["ids"]})).await;
            assert_eq!(back["prompt"], text["text"]);
        }
    }
    for chat in fixture["chats"].as_array().unwrap() {
        let (status, found) = daemon.post("/tokenize", &json!({"messages": chat["messages"]})).await;
        assert_eq!((status, &found["tokens"]), (200, &chat["ids"]), "{chat}");
    }
}
