//! Embeddings, orders and scores of texts by a sentence encoder beside the default model.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::daemon::{Daemon, MODEL, free_port, pull_default_model, serve};
use crate::places::repository;

/// Returns the folder of the tiny encoder, whose name is `bert`.
fn encoder() -> PathBuf {
    repository().join("tests/fixtures/tiny/bert")
}

/// Returns texts and their embeddings as sentence-transformers computes them, further tokens than 256 dropped.
fn reference() -> (Vec<String>, Vec<Vec<f32>>) {
    let cases: Value = serde_json::from_slice(&fs::read(encoder().join("sentences.json")).unwrap()).unwrap();
    let case = cases.as_array().unwrap().iter().find(|case| case["pooling"] == "mean" && case["max_seq_length"] == 256).unwrap();
    let read = |name: &str| case[name].clone();
    (serde_json::from_value(read("texts")).unwrap(), serde_json::from_value(read("embeddings")).unwrap())
}

#[track_caller]
fn check_vector(found: &Value, expected: &[f32]) {
    let found: Vec<f32> = serde_json::from_value(found.clone()).unwrap();
    let furthest = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(found.len() == expected.len() && furthest < 1e-4, "{furthest}");
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    f64::from(a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>())
}

#[tokio::test]
async fn embeddings_and_scores_are_those_of_sentence_transformers() {
    let daemon = Daemon::start(&["--embedding-model", encoder().to_str().unwrap()]).await;
    let (texts, expected) = reference();
    let body = json!({"model": "bert", "input": texts, "truncate_prompt_tokens": -1});
    let (status, answer) = daemon.post("/v1/embeddings", &body).await;
    assert_eq!(status, 200, "{answer}");
    for (object, expected) in answer["data"].as_array().unwrap().iter().zip(&expected) {
        check_vector(&object["embedding"], expected);
    }
    assert_eq!(answer["usage"]["total_tokens"], 8 + 4 + 9 + 256, "{answer}");

    let (status, answer) = daemon.post("/v1/embeddings", &json!({"input": texts})).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("input[3]")), "{answer}");
    // The reference's tokens of a text, as transformers would send them.
    let (_, answer) = daemon.post("/v1/embeddings", &json!({"input": [[2, 4, 8, 10, 4, 11, 7, 3]]})).await;
    check_vector(&answer["data"][0]["embedding"], &expected[0]);

    let (_, answer) = daemon.post("/v1/rerank", &json!({"query": texts[0], "documents": &texts[1..3]})).await;
    let results = answer["results"].as_array().unwrap();
    for result in results {
        let index = result["index"].as_u64().unwrap() as usize;
        let score = result["relevance_score"].as_f64().unwrap();
        assert!((score - cosine(&expected[0], &expected[1 + index])).abs() < 1e-4, "{answer}");
    }
    assert!(results[0]["relevance_score"].as_f64() >= results[1]["relevance_score"].as_f64(), "{answer}");
    let (_, answer) = daemon.post("/v1/score", &json!({"text_1": texts[1], "text_2": texts[2]})).await;
    assert!((answer["data"][0]["score"].as_f64().unwrap() - cosine(&expected[1], &expected[2])).abs() < 1e-4, "{answer}");
    assert_eq!(daemon.metric("kvshare_embedded_texts_total").await, 4.0 + 1.0 + 3.0 + 2.0);
}

#[tokio::test]
async fn without_an_encoder_chat_works_and_embeddings_name_the_flag() {
    let daemon = Daemon::start(&[]).await;
    let (status, answer) = daemon.post("/v1/embeddings", &json!({"model": MODEL, "input": "hi"})).await;
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("no_embedding_model")), "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("--embedding-model PATH"), "{answer}");
}

#[tokio::test]
async fn two_tenants_embed_with_their_keys_and_the_encoder_of_prompts() {
    pull_default_model();
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    let file = folder.path().join("keys.toml");
    let key = |tenant: &str| format!("[[key]]\ntenant = \"{tenant}\"\nenv = \"EMBEDDING_KEY_{tenant}\"\n");
    fs::write(&file, [key("a"), key("b")].concat()).unwrap();
    let mut command = serve(port);
    command.args(["--embedder", "bert", "--embedder-model"]).arg(encoder()).args(["--embedding-model-name", "encoder"]);
    command.arg("--api-keys").arg(&file).envs([("EMBEDDING_KEY_a", "key-of-a"), ("EMBEDDING_KEY_b", "key-of-b")]);
    let mut daemon = Daemon::spawn(&mut command, port);
    daemon.wait_until_ready().await;
    let (texts, expected) = reference();
    let embed = async |key: &str, text: &str| {
        let request = reqwest::Client::new().post(format!("{}/v1/embeddings", daemon.url)).bearer_auth(key);
        let answer = request.json(&json!({"model": "encoder", "input": text})).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let (of_a, of_b, of_c) =
        tokio::join!(embed("key-of-a", &texts[0]), embed("key-of-b", &texts[1]), embed("key-of-c", &texts[0]));
    for ((status, answer), expected) in [of_a, of_b].iter().zip(&expected) {
        assert_eq!((*status, &answer["model"]), (200, &json!("encoder")), "{answer}");
        check_vector(&answer["data"][0]["embedding"], expected);
    }
    assert_eq!((of_c.0, &of_c.1["error"]["code"]), (401, &json!("invalid_api_key")), "{}", of_c.1);
}
