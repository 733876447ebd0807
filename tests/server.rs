//! Daemon with its default model: answers, errors, start and end.

use std::fs;
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::daemon::{Daemon, MODEL, free_port, output, pull_default_model, serve};

/// Makes a chat request of one user message, greedy.
fn question(text: &str) -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 12})
}

/// Adds the fields of `more` to `base`.
fn with(mut base: Value, more: Value) -> Value {
    let (Value::Object(fields), Value::Object(more)) = (&mut base, more) else { panic!("requests are objects") };
    fields.extend(more);
    base
}

/// Makes a request that is still running when a test checks it.
fn long_stream() -> Value {
    with(question("Tell me a very long story."), json!({"stream": true, "max_tokens": 400, "ignore_eos": true}))
}

/// Returns the `data:` lines of a whole stream.
fn events(body: &str) -> Vec<&str> {
    body.lines().filter_map(|line| line.strip_prefix("data: ")).collect()
}

/// Returns the chunks of a whole stream, which must end with `[DONE]`.
fn chunks(body: &str) -> Vec<Value> {
    let events = events(body);
    let (done, chunks) = events.split_last().expect("a stream is not empty");
    assert_eq!(*done, "[DONE]");
    chunks.iter().map(|chunk| serde_json::from_str(chunk).expect("every chunk is JSON")).collect()
}

/// Makes about `num_words` words of prose that no two seeds share.
fn document(seed: u32, num_words: u32) -> String {
    const WORDS: [&str; 16] = [
        "river", "market", "seven", "copper", "letter", "winter", "garden", "engine", "yellow", "harbour", "music", "stone",
        "paper", "window", "morning", "bridge",
    ];
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        WORDS[(state >> 24) as usize % WORDS.len()]
    };
    (0..num_words).map(|_| next()).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn a_chat_is_answered_whole_and_streamed_alike() {
    let daemon = Daemon::start(&[]).await;
    let whole = daemon.chat(&question("What is the capital of France?")).await;
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.contains("Paris"), "{whole}");
    assert!(whole["usage"]["prompt_tokens_details"]["cached_tokens"].is_u64(), "{whole}");
    assert_eq!(whole["usage"]["kv_sharing"]["mode"], "prefix");

    let request =
        with(question("What is the capital of France?"), json!({"stream": true, "stream_options": {"include_usage": true}}));
    let body = daemon.send("/v1/chat/completions", &request).await.text().await.unwrap();
    let chunks = chunks(&body);
    let streamed: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(streamed, text);
    let [first, .., finish, usage] = chunks.as_slice() else { panic!("too few chunks: {body}") };
    assert_eq!(first["choices"][0]["delta"]["role"], "assistant");
    assert!(finish["choices"][0]["finish_reason"].is_string(), "{finish}");
    assert_eq!(usage["choices"], json!([]));
    assert!(
        usage["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0,
        "the prompt was seen before: {usage}"
    );
    assert!(chunks.iter().all(|chunk| chunk["id"] == first["id"]), "{body}");
}

#[tokio::test]
async fn errors_are_objects_with_the_right_status() {
    let daemon = Daemon::start(&[]).await;
    let chat = "/v1/chat/completions";
    let too_long = question(&"word ".repeat(40_000));
    let cases = [
        (chat, json!({"model": MODEL}), 400, "param", "messages"),
        (chat, with(question("hi"), json!({"temperature": "warm"})), 400, "type", "invalid_request_error"),
        (chat, with(question("hi"), json!({"top_p": 3})), 400, "param", "top_p"),
        (chat, with(question("hi"), json!({"tools": [{"type": "function"}]})), 400, "param", "tools[0].function"),
        (chat, with(question("hi"), json!({"model": "nobody"})), 404, "code", "model_not_found"),
        (chat, too_long, 400, "code", "context_length_exceeded"),
        ("/v1/nothing", json!({}), 404, "type", "invalid_request_error"),
    ];
    for (path, body, status, field, value) in cases {
        let (found, answer) = daemon.post(path, &body).await;
        assert_eq!((found, &answer["error"][field]), (status, &json!(value)), "{answer}");
        assert!(answer["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{answer}");
    }
    let malformed = reqwest::Client::new().post(format!("{}{chat}", daemon.url)).header("content-type", "application/json");
    let answer = malformed.body("{\"model\": ").send().await.unwrap();
    assert_eq!(answer.status(), 400);
    assert!(answer.json::<Value>().await.unwrap()["error"]["message"].is_string());
}

#[tokio::test]
async fn a_document_behind_another_question_is_reused_as_a_span() {
    let daemon = Daemon::start(&["--kv-sharing", "span"]).await;
    let document = document(1, 400);
    let ask = |question_: &str| question(&format!("{question_}\n\nDocument:\n{document}\n\nAnswer the question above."));

    let donor = daemon.chat(&ask("Which colour is named first?")).await;
    assert_eq!(donor["usage"]["kv_sharing"]["span_tokens"], 0, "{donor}");
    let recipient = daemon.chat(&ask("How many animals are there, and where does the story of this text begin?")).await;
    let sharing = &recipient["usage"]["kv_sharing"];
    let (span, prompt) = (sharing["span_tokens"].as_u64().unwrap(), recipient["usage"]["prompt_tokens"].as_u64().unwrap());
    assert!(span > prompt / 2, "{recipient}");
    assert_eq!((&sharing["mode"], &sharing["donors"]), (&json!("span"), &json!(1)), "{recipient}");
    assert!(recipient["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() < prompt - span, "{recipient}");
}

#[tokio::test]
async fn a_request_can_narrow_what_is_shared() {
    let daemon = Daemon::start(&["--kv-sharing", "span"]).await;
    let shared = document(2, 300);
    let ask = |head: &str, more: Value| with(question(&format!("{head}\n\n{shared}")), more);
    daemon.chat(&ask("First.", json!({}))).await;
    // Sent at once: later the daemon may have learned that so short a prompt is computed before reuse pays.
    let answer = daemon.chat(&ask("Something comes before it.", json!({}))).await;
    assert!(answer["usage"]["kv_sharing"]["span_tokens"].as_u64().unwrap() > 0, "{answer}");

    let narrowed = [
        json!({"kv_sharing": {"mode": "off", "store": false}}),
        json!({"kv_sharing": {"mode": "prefix", "store": false}}),
        json!({"kv_sharing": {"mode": "span", "store": false}, "cache_salt": "of another tenant"}),
    ];
    for more in narrowed {
        let answer = daemon.chat(&ask("Something else comes before it.", more)).await;
        assert_eq!(answer["usage"]["kv_sharing"]["span_tokens"], 0, "{answer}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_request() {
    let daemon = Daemon::start(&[]).await;
    let request = with(long_stream(), json!({"max_tokens": 4000}));
    let mut stream = daemon.send("/v1/chat/completions", &request).await;
    assert!(stream.chunk().await.unwrap().is_some());
    wait_for_running(&daemon, 1.0).await;
    drop(stream);
    wait_for_running(&daemon, 0.0).await;
}

/// Waits until the daemon reports `num_requests` running requests.
async fn wait_for_running(daemon: &Daemon, num_requests: f64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while daemon.metric("vllm:num_requests_running").await != num_requests {
        assert!(Instant::now() < deadline, "{num_requests} requests should run:\n{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn sigterm_lets_a_running_answer_finish() {
    let mut daemon = Daemon::start(&["--shutdown-timeout", "60s"]).await;
    let mut stream = daemon.send("/v1/chat/completions", &with(long_stream(), json!({"max_tokens": 150}))).await;
    let mut body = stream.chunk().await.unwrap().expect("a stream starts").to_vec();
    daemon.terminate();
    while let Some(more) = stream.chunk().await.expect("the stream is not cut") {
        body.extend_from_slice(&more);
    }
    let chunks = chunks(std::str::from_utf8(&body).unwrap()).len();
    assert!(chunks > 50, "an answer of 150 tokens came in {chunks} chunks");
    assert_eq!(daemon.exit(Duration::from_secs(20)).await.code(), Some(0), "{}", daemon.log());
}

#[tokio::test]
async fn after_sigterm_nothing_new_is_taken() {
    let daemon = Daemon::start(&["--shutdown-timeout", "60s"]).await;
    let mut stream = daemon.send("/v1/chat/completions", &with(long_stream(), json!({"max_tokens": 2000}))).await;
    assert!(stream.chunk().await.unwrap().is_some());
    daemon.terminate();
    let deadline = Instant::now() + Duration::from_secs(10);
    // Either answer is right: 503 on a connection still accepted, or no connection.
    while !matches!(daemon.status("/health/ready").await, Some(503) | None) {
        assert!(Instant::now() < deadline, "still ready after SIGTERM");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let url = format!("{}/v1/chat/completions", daemon.url);
    if let Ok(answer) = reqwest::Client::new().post(url).json(&question("Too late?")).send().await {
        assert_eq!(answer.status(), 503);
        assert!(answer.headers().contains_key("retry-after"));
    }
}

#[tokio::test]
async fn a_second_sigterm_ends_at_once() {
    let mut daemon = Daemon::start(&["--shutdown-timeout", "300s"]).await;
    let mut stream = daemon.send("/v1/chat/completions", &with(long_stream(), json!({"max_tokens": 4000}))).await;
    assert!(stream.chunk().await.unwrap().is_some());
    daemon.terminate();
    tokio::time::sleep(Duration::from_millis(300)).await;
    daemon.terminate();
    daemon.exit(Duration::from_secs(3)).await;
}

/// Checks that `command` ends by itself, with a failure in one line that contains `about`.
#[track_caller]
fn check_refusal(command: &mut Command, about: &str) {
    let output = output(command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let errors: Vec<_> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    let [error] = errors.as_slice() else { panic!("one line starts with `error: `:\n{stderr}") };
    assert!(error.contains(about), "`{error}` does not say {about:?}");
    assert_eq!(stderr.lines().last(), Some(*error), "nothing comes after it:\n{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn a_taken_port_is_told_in_one_line() {
    pull_default_model();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    check_refusal(&mut serve(port), &port.to_string());
}

#[test]
fn a_truncated_model_is_told_in_one_line() {
    let mut start = Vec::new();
    fs::File::open(pull_default_model()).unwrap().take(40 << 20).read_to_end(&mut start).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in [("half.gguf", start.as_slice()), ("header.gguf", &start[..1000]), ("empty.gguf", b"")] {
        let file = folder.path().join(name);
        fs::write(&file, bytes).unwrap();
        check_refusal(serve(free_port()).arg("--model").arg(&file), name);
    }
}

#[test]
fn a_missing_model_is_told_in_one_line() {
    check_refusal(serve(free_port()).args(["--model", "./no/such/model.gguf"]), "no/such/model.gguf");
}

/// Makes a folder with the shape of a tiny model of `vocab_size` tokens, without weights and without a tokenizer.
fn shape(vocab_size: u32) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true, "vocab_size": vocab_size,
    });
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

#[tokio::test]
async fn random_weights_of_a_shape_are_served_with_a_lent_vocabulary() {
    let (folder, vocabulary) = (shape(49_152), pull_default_model().to_str().unwrap());
    let model = folder.path().to_str().unwrap();
    let daemon = Daemon::start(&["--model", model, "--load-format", "dummy", "--tokenizer", vocabulary]).await;
    let models: Value = serde_json::from_str(&daemon.get("/v1/models").await).unwrap();
    let id = models["data"][0]["id"].as_str().unwrap();
    assert!(id.starts_with("random "), "{id}");
    let asked = with(question("Name a river."), json!({"model": id, "ignore_eos": true}));
    let answer = daemon.chat(&asked).await;
    // The template that was lent, too: the question alone is four tokens.
    assert!(answer["usage"]["prompt_tokens"].as_u64() > Some(10), "{answer}");
    assert_eq!(answer["usage"]["completion_tokens"], 12);
}

#[test]
fn a_vocabulary_larger_than_the_model_is_told_in_one_line() {
    let (folder, vocabulary) = (shape(1000), pull_default_model());
    let command = &mut serve(free_port());
    command.args(["--load-format", "dummy", "--model"]).arg(folder.path()).arg("--tokenizer").arg(vocabulary);
    check_refusal(command, "the tokenizer has 49152 tokens");
}

#[test]
fn an_impossible_memory_budget_is_told_in_one_line() {
    pull_default_model();
    for budget in ["1KiB", "900TiB"] {
        let mut command = Command::new(crate::places::kvshare());
        command.args(["serve", "--host", "127.0.0.1", "--port", &free_port().to_string(), "--kv-cache-memory", budget]);
        check_refusal(&mut command, "memory");
    }
}

/// Scores an answer as `lm-eval` does in its model type `local-completions`: the sum of the continuation's log probabilities, and true if
/// greedy decoding would have given it. Compares the value of each token with those of the most likely ones.
fn lm_eval_verdict(answer: &Value, context_len: usize) -> (f64, bool) {
    let logprobs = &answer["choices"][0]["logprobs"];
    let continuation = |field: &str| {
        let all = logprobs[field].as_array().unwrap();
        all[context_len..all.len() - 1].to_vec()
    };
    let own: Vec<f64> = continuation("token_logprobs").iter().map(|number| number.as_f64().unwrap()).collect();
    let likeliest = continuation("top_logprobs").into_iter().map(|top| {
        let numbers = top.as_object().unwrap().values().map(|number| number.as_f64().unwrap());
        numbers.fold(f64::NEG_INFINITY, f64::max)
    });
    let is_greedy = own.iter().zip(likeliest).all(|(own, best)| *own == best);
    (own.iter().sum(), is_greedy)
}

#[tokio::test]
async fn scores_of_a_greedy_continuation_say_that_it_is_greedy() {
    let daemon = Daemon::start(&[]).await;
    let tokens = async |text: &str| {
        let answer: Value = daemon.send("/tokenize", &json!({"prompt": text})).await.json().await.unwrap();
        answer["tokens"].as_array().unwrap().clone()
    };
    for text in ["Water freezes at zero degrees", "The capital of France is", "<|im_start|>user\nhi", "Grüße aus 東京 😀"] {
        let context = tokens(text).await;
        let greedy =
            json!({"model": MODEL, "prompt": context, "max_tokens": 8, "temperature": 0, "logprobs": 1, "ignore_eos": true});
        let answer: Value = daemon.send("/v1/completions", &greedy).await.json().await.unwrap();
        let said = &answer["choices"][0]["logprobs"];
        for (own, top) in said["token_logprobs"].as_array().unwrap().iter().zip(said["top_logprobs"].as_array().unwrap()) {
            assert!(top.as_object().unwrap().values().any(|number| number == own), "{own} is not in {top}");
        }
        let continuation = tokens(answer["choices"][0]["text"].as_str().unwrap()).await;
        let verdict = async |continuation: &[Value]| {
            let all = [&context[..], continuation].concat();
            let request = json!({
                "model": MODEL, "prompt": [all], "max_tokens": 1, "temperature": 0, "logprobs": 1, "seed": 1234, "echo": true,
            });
            let answer: Value = daemon.send("/v1/completions", &request).await.json().await.unwrap();
            lm_eval_verdict(&answer, context.len())
        };
        let (greedy, is_greedy) = verdict(&continuation[..3.min(continuation.len())]).await;
        assert!(is_greedy, "{text:?}: {answer}");
        let (other, is_greedy) = verdict(&tokens(" xylophone").await).await;
        assert!(!is_greedy && other < greedy, "{text:?}");
    }
}

#[tokio::test]
async fn every_entry_of_an_unlikely_answer_is_there() {
    let daemon = Daemon::start(&[]).await;
    let wishes = json!({"model": MODEL, "prompt": "The", "max_tokens": 40, "temperature": 2, "seed": 7, "logprobs": 20, "ignore_eos": true});
    let answer: Value = daemon.send("/v1/completions", &wishes).await.json().await.unwrap();
    let logprobs = &answer["choices"][0]["logprobs"];
    let column = |field: &str| logprobs[field].as_array().unwrap().clone();
    let mut num_unlikely = 0;
    for ((token, own), top) in column("tokens").iter().zip(column("token_logprobs")).zip(column("top_logprobs")) {
        let top = top.as_object().unwrap();
        assert_eq!(top[token.as_str().unwrap()], own);
        assert!([20, 21].contains(&top.len()), "{}: {top:?}", top.len());
        num_unlikely += top.len() - 20;
    }
    assert!(num_unlikely > 0, "no token was unlikely: {answer}");
    let chat = with(question("hi"), json!({"logprobs": true, "top_logprobs": 5}));
    let answer = daemon.chat(&chat).await;
    for entry in answer["choices"][0]["logprobs"]["content"].as_array().unwrap() {
        let same = entry["top_logprobs"].as_array().unwrap().iter().find(|top| top["bytes"] == entry["bytes"]).unwrap();
        assert_eq!(same["logprob"].to_string(), entry["logprob"].to_string());
    }
}
