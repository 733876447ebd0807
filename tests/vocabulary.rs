//! Tokenizers and a chat template, through the daemon, compared with Hugging Face's and Google's.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::daemon::{Daemon, pull, pull_default_model};

/// Reads the output of `tests/reference/make_tokenizer_fixture.py` for a model.
fn fixture(model: &Path) -> Value {
    let stem = model.file_stem().and_then(|stem| stem.to_str()).expect("a model's name is UTF-8");
    let path = crate::places::repository().join(format!("tests/fixtures/tokenizer/{stem}.json"));
    serde_json::from_str(&fs::read_to_string(path).expect("the fixture is there")).expect("the fixture is JSON")
}

/// Checks that the daemon's tokens of all texts and chats are those of `fixture`.
async fn check(daemon: &Daemon, fixture: &Value) {
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

#[tokio::test]
async fn texts_and_chats_have_the_tokens_of_the_published_tokenizer() {
    check(&Daemon::start(&[]).await, &fixture(pull_default_model())).await;
}

#[tokio::test]
async fn texts_have_the_tokens_of_sentencepiece() {
    let daemon = Daemon::start(&["--model", "gemma-3-270m", "--max-model-len", "2048"]).await;
    check(&daemon, &fixture(&pull("gemma-3-270m"))).await;
    let (status, answer) = daemon.post("/v1/completions", &json!({"prompt": "The capital of France is", "max_tokens": 4})).await;
    assert_eq!((status, &answer["usage"]["prompt_tokens"]), (200, &json!(6)), "{answer}");
    let (status, answer) = daemon.post("/v1/chat/completions", &json!({"messages": [{"role": "user", "content": "Hi"}]})).await;
    assert_eq!(status, 400, "a base model has no chat template: {answer}");
}
