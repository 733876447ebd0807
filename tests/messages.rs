//! Anthropic's Messages of the default model: the answers of chat in another shape.

use serde_json::{Value, json};

use crate::daemon::{Daemon, MODEL};

/// Makes a greedy request for a message.
fn request(text: &str) -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 12})
}

#[tokio::test]
async fn a_message_is_the_answer_of_a_chat_whole_and_streamed() {
    let daemon = Daemon::start(&[]).await;
    let mut request = request("What is the capital of France?");
    let chat = daemon.chat(&request).await;
    let (status, message) = daemon.post("/v1/messages", &request).await;
    assert_eq!(status, 200, "{message}");
    let text = chat["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.contains("Paris"), "{chat}");
    assert_eq!(message["content"], json!([{"type": "text", "text": text}]));
    let count = |usage: &Value, name: &str| usage[name].as_u64().unwrap();
    let usage = &message["usage"];
    let num_input = count(usage, "input_tokens") + count(usage, "cache_read_input_tokens");
    assert_eq!(num_input, count(&chat["usage"], "prompt_tokens"));
    assert!(count(usage, "cache_read_input_tokens") > 0, "the prompt was seen before: {usage}");
    let (status, counted) = daemon.post("/v1/messages/count_tokens", &request).await;
    assert_eq!((status, counted), (200, json!({"input_tokens": num_input})));

    request["stream"] = json!(true);
    let body = daemon.send("/v1/messages", &request).await.text().await.unwrap();
    let events = body.lines().filter_map(|line| line.strip_prefix("data: "));
    let events: Vec<Value> = events.map(|data| serde_json::from_str(data).expect("every event is JSON")).collect();
    let names: Vec<_> = body.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert!(events.iter().map(|event| event["type"].as_str().unwrap()).eq(names.iter().copied()), "{body}");
    let streamed: String = events.iter().filter_map(|event| event["delta"]["text"].as_str()).collect();
    assert_eq!(streamed, text);
    let [.., ending, _] = events.as_slice() else { panic!("too few events: {body}") };
    assert_eq!(ending["delta"]["stop_reason"], message["stop_reason"]);
    assert_eq!(ending["usage"]["output_tokens"], usage["output_tokens"]);
    assert_eq!(names.last(), Some(&"message_stop"));
}

#[tokio::test]
async fn a_document_behind_another_question_is_reused_as_a_span_in_messages_too() {
    let daemon = Daemon::start(&["--kv-sharing", "span"]).await;
    let document = (0..300).map(|i| format!("item {} of {}", i * 7919 % 1000, i * 104_729 % 997)).collect::<Vec<_>>().join(", ");
    let ask = |question: &str| request(&format!("{question}\n\nDocument:\n{document}\n\nAnswer the question above."));
    daemon.post("/v1/messages", &ask("Which item is named first?")).await;
    let (_, answer) = daemon.post("/v1/messages", &ask("How many items are there, and which of them comes last of all?")).await;
    let usage = &answer["usage"];
    assert!(usage["kv_sharing"]["span_tokens"].as_u64().unwrap() > 1000, "{answer}");
    assert!(usage["input_tokens"].as_u64() >= usage["kv_sharing"]["span_tokens"].as_u64(), "spans are input: {answer}");
}
