//! Answers in one piece.

use serde_json::{Value, json};

use crate::world::{CHAT, COMPLETIONS, EOS, MODEL, World, byte, chat, completion, document};

/// The text and finish reason of the completion of `prompt`.
#[track_caller]
fn text_and_reason(answer: &Value) -> (&str, &str) {
    let choice = &answer["choices"][0];
    (choice["text"].as_str().unwrap(), choice["finish_reason"].as_str().unwrap())
}

#[tokio::test]
async fn a_chat_answer_has_openais_shape() {
    let world = World::new();
    let answer = world.post(CHAT, &chat("hi", json!({"max_tokens": 6}))).await.ok();
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!(MODEL)));
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    assert!(answer["system_fingerprint"].as_str().unwrap().starts_with("fp_"));
    let message = json!({"role": "assistant", "content": "[user]", "refusal": null});
    assert_eq!(answer["choices"], json!([{"index": 0, "message": message, "logprobs": null, "finish_reason": "length"}]));
    let prompt_tokens = "[user]hi[assistant]".len();
    assert_eq!(
        answer["usage"],
        json!({
            "prompt_tokens": prompt_tokens, "completion_tokens": 6, "total_tokens": prompt_tokens + 6,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
            "kv_sharing": {"mode": "prefix", "prefix_tokens": 0, "span_tokens": 0, "recomputed_tokens": 0, "donors": 0,
                           "class": null, "deviation": null, "reason": "mode"},
        })
    );
}

#[tokio::test]
async fn max_completion_tokens_wins() {
    let world = World::new();
    let answer = world.post(CHAT, &chat("hi", json!({"max_completion_tokens": 2}))).await.ok();
    assert_eq!(answer["choices"][0]["message"]["content"], "[u");
}

#[tokio::test]
async fn a_chat_answer_fills_the_model_by_default() {
    let world = World::new();
    let answer = world.post(CHAT, &chat("hi", json!({"max_tokens": null}))).await.ok();
    assert_eq!(answer["usage"]["total_tokens"], 1000);
}

#[tokio::test]
async fn a_list_of_prompts_is_answered_in_order() {
    let world = World::new();
    let answer = world.post(COMPLETIONS, &completion(json!(["ab", "cd"]), json!({"n": 2, "max_tokens": 2}))).await.ok();
    let texts: Vec<_> = answer["choices"].as_array().unwrap().iter().map(|choice| (&choice["index"], &choice["text"])).collect();
    assert_eq!(json!(texts), json!([[0, "ab"], [1, "ab"], [2, "cd"], [3, "cd"]]));
    assert_eq!((&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]), (&json!(4), &json!(8)));
}

#[tokio::test]
async fn answers_of_one_prompt_have_successive_seeds() {
    let world = World::new();
    world.post(COMPLETIONS, &completion("ab", json!({"n": 3, "seed": 40}))).await.ok();
    let mut seeds = world.control.seeds();
    seeds.sort_unstable();
    assert_eq!(seeds, [40, 41, 42]);
}

#[tokio::test]
async fn token_ids_are_a_prompt_too() {
    let world = World::new();
    let prompt = json!([byte(b'o'), byte(b'k')]);
    let answer = world.post(COMPLETIONS, &completion(prompt, json!({"max_tokens": 2}))).await.ok();
    assert_eq!(text_and_reason(&answer), ("ok", "length"));
}

#[tokio::test]
async fn a_stop_string_over_several_tokens_does_not_leak() {
    let world = World::new();
    let request = completion("one END two", json!({"stop": ["never", "END"], "max_tokens": 100}));
    let answer = world.post(COMPLETIONS, &request).await.ok();
    assert_eq!(text_and_reason(&answer), ("one ", "stop"));
    assert_eq!(answer["usage"]["completion_tokens"], "one END".len());
    world.wait_until_free().await;
}

#[tokio::test]
async fn the_start_of_a_stop_string_is_shown_when_nothing_follows() {
    let world = World::new();
    let answer = world.post(COMPLETIONS, &completion("one END", json!({"stop": "END", "max_tokens": 6}))).await.ok();
    assert_eq!(text_and_reason(&answer), ("one EN", "length"));
}

#[tokio::test]
async fn an_end_token_ends_the_answer_unless_ignored() {
    let world = World::new();
    let prompt = json!([byte(b'a'), EOS, byte(b'b')]);
    let answer = world.post(COMPLETIONS, &completion(prompt.clone(), json!({}))).await.ok();
    assert_eq!(text_and_reason(&answer), ("a", "stop"));
    assert_eq!(answer["usage"]["completion_tokens"], 2);
    let answer = world.post(COMPLETIONS, &completion(prompt, json!({"ignore_eos": true, "max_tokens": 3}))).await.ok();
    assert_eq!(text_and_reason(&answer), ("ab", "length"));
}

#[tokio::test]
async fn a_stop_token_of_the_request_ends_the_answer() {
    let world = World::new();
    let answer = world.post(COMPLETIONS, &completion("abc", json!({"stop_token_ids": [byte(b'c')]}))).await.ok();
    assert_eq!(text_and_reason(&answer), ("ab", "stop"));
}

#[tokio::test]
async fn an_echo_starts_with_the_prompt() {
    let world = World::new();
    let answer = world.post(COMPLETIONS, &completion("abc", json!({"echo": true, "max_tokens": 2}))).await.ok();
    assert_eq!(text_and_reason(&answer), ("abcab", "length"));
    let answer = world.post(COMPLETIONS, &completion("abc", json!({"echo": true, "max_tokens": 0}))).await.ok();
    assert_eq!(text_and_reason(&answer), ("abc", "length"));
    assert_eq!(answer["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn log_probabilities_of_a_completion_are_parallel_lists() {
    let world = World::new();
    let answer = world.post(COMPLETIONS, &completion("aé", json!({"logprobs": 2, "max_tokens": 3}))).await.ok();
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["a", "\u{fffd}", "\u{fffd}"]));
    assert_eq!(logprobs["token_logprobs"], json!([0.0, 0.0, 0.0]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 1]));
    assert_eq!(logprobs["top_logprobs"][0], json!({"a": 0.0, "b": -100.0}));
}

#[tokio::test]
async fn an_echo_is_scored_but_for_its_first_token() {
    let world = World::new();
    let request = completion("abc", json!({"logprobs": 1, "echo": true, "max_tokens": 1}));
    let answer = world.post(COMPLETIONS, &request).await.ok();
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(answer["choices"][0]["text"], "abca");
    assert_eq!(logprobs["tokens"], json!(["a", "b", "c", "a"]));
    assert_eq!(logprobs["token_logprobs"], json!([null, 0.0, 0.0, 0.0]));
    assert_eq!(logprobs["top_logprobs"], json!([null, {"b": 0.0}, {"c": 0.0}, {"a": 0.0}]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 3]));
}

#[tokio::test]
async fn an_echo_of_one_token_is_scored_too() {
    let world = World::new();
    let request = completion("a", json!({"logprobs": 0, "echo": true, "max_tokens": 1}));
    let answer = world.post(COMPLETIONS, &request).await.ok();
    assert_eq!(answer["choices"][0]["text"], "aa");
    assert_eq!(answer["choices"][0]["logprobs"]["token_logprobs"], json!([null, 0.0]));
}

#[tokio::test]
async fn log_probabilities_of_a_chat_answer_are_objects() {
    let world = World::new();
    let request = chat("hi", json!({"logprobs": true, "top_logprobs": 1, "max_tokens": 2}));
    let answer = world.post(CHAT, &request).await.ok();
    let entry = |token: &str| {
        let top = json!({"token": token, "logprob": 0.0, "bytes": token.as_bytes()});
        json!({"token": token, "logprob": 0.0, "bytes": token.as_bytes(), "top_logprobs": [top]})
    };
    assert_eq!(answer["choices"][0]["logprobs"]["content"], json!([entry("["), entry("u")]));
}

#[tokio::test]
async fn log_probabilities_do_not_tell_the_stop_string() {
    let world = World::new();
    let request = completion("abEND", json!({"logprobs": 0, "stop": "END"}));
    let answer = world.post(COMPLETIONS, &request).await.ok();
    assert_eq!(answer["choices"][0]["logprobs"]["tokens"], json!(["a", "b"]));
}

/// Cached tokens of `request` after the same text was asked with `first`.
async fn cached_after(first: Value, second: Value) -> Value {
    let world = World::new();
    let text = "a text of more than one block, so that there is something to be found";
    world.post(COMPLETIONS, &completion(text, first)).await.ok();
    let usage = world.post(COMPLETIONS, &completion(text, second)).await.ok()["usage"].clone();
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], usage["kv_sharing"]["prefix_tokens"]);
    usage["prompt_tokens_details"]["cached_tokens"].clone()
}

#[tokio::test]
async fn an_equal_prefix_is_found_inside_its_scope_only() {
    assert!(cached_after(json!({}), json!({})).await.as_u64().unwrap() >= 64);
    assert!(cached_after(json!({"cache_salt": "s"}), json!({"cache_salt": "s"})).await.as_u64().unwrap() >= 64);
    assert_eq!(cached_after(json!({"cache_salt": "s"}), json!({"cache_salt": "t"})).await, 0);
    assert_eq!(cached_after(json!({"cache_salt": "s"}), json!({})).await, 0);
}

#[tokio::test]
async fn a_request_may_keep_to_itself() {
    assert_eq!(cached_after(json!({}), json!({"kv_sharing": {"mode": "off"}})).await, 0);
    assert_eq!(cached_after(json!({"kv_sharing": {"store": false}}), json!({})).await, 0);
}

#[tokio::test]
async fn a_span_at_another_place_is_reused_when_asked_for() {
    let world = World::new();
    let document = document();
    world.post(COMPLETIONS, &completion(format!("first question:\n\n{document}"), json!({}))).await.ok();
    let request =
        completion(format!("another, longer question:\n\n{document}\n\nand a tail"), json!({"kv_sharing": {"mode": "span"}}));
    let usage = world.post(COMPLETIONS, &request).await.ok()["usage"].clone();
    assert_eq!((&usage["kv_sharing"]["mode"], &usage["kv_sharing"]["donors"]), (&json!("span"), &json!(1)));
    assert!(usage["kv_sharing"]["span_tokens"].as_u64().unwrap() > 0, "{usage}");
    assert_eq!((&usage["kv_sharing"]["class"], &usage["kv_sharing"]["deviation"]), (&json!("composition"), &json!(0.0)));
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
}
