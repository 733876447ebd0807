//! Answers in one piece.

use serde_json::{Value, json};

use crate::world::{CHAT, COMPLETIONS, EOS, MODEL, World, byte, chat, completion, document};

/// Returns the text and finish reason of a completion.
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
            "kv_sharing": {"mode": "prefix", "prefix_tokens": 0, "continued_tokens": 0, "span_tokens": 0, "recomputed_tokens": 0, "donors": 0,
                           "class": null, "deviation": null, "normalized": false, "reason": "mode"},
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
    assert_eq!(logprobs["tokens"], json!(["a", "bytes:\\xc3", "bytes:\\xa9"]));
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
    assert_eq!(answer["choices"][0]["logprobs"]["top_logprobs"], json!([null, {"a": 0.0}]));
}

/// Checks text and offsets of an echo, whole and streamed.
async fn check_echo(prompt: Value, expected_text: &str, tokens: Value, offsets: Value) {
    let world = World::new();
    let request = |stream: bool| {
        let wishes = json!({"logprobs": 1, "echo": true, "max_tokens": 1, "ignore_eos": true, "stream": stream});
        completion(prompt.clone(), wishes)
    };
    let answer = world.post(COMPLETIONS, &request(false)).await.ok();
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["logprobs"]["tokens"]), (&json!(expected_text), &tokens));
    assert_eq!(choice["logprobs"]["text_offset"], offsets);
    let events = world.post(COMPLETIONS, &request(true)).await.events();
    let streamed = |field: &str| {
        let lists = events.iter().filter_map(|event| event["choices"][0]["logprobs"][field].as_array());
        lists.flatten().cloned().collect::<Vec<_>>()
    };
    let text: String = events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!((text.as_str(), json!(streamed("tokens"))), (expected_text, tokens));
    assert_eq!(json!(streamed("text_offset")), offsets);
    assert_eq!(json!(streamed("top_logprobs")), choice["logprobs"]["top_logprobs"]);
}

#[tokio::test]
async fn an_echo_of_token_ids_shows_special_tokens() {
    let prompt = json!([byte(b'a'), 1, byte(b'b')]);
    check_echo(prompt, "a<s>ba", json!(["a", "<s>", "b", "a"]), json!([0, 1, 4, 5])).await;
    let prompt = json!([1, byte(b'b'), EOS]);
    check_echo(prompt, "<s>b</s>", json!(["<s>", "b", "</s>", "<s>"]), json!([0, 3, 4, 8])).await;
}

#[tokio::test]
async fn offsets_of_an_echo_count_characters() {
    let pieces = |text: &str| text.bytes().map(|byte| format!("bytes:\\x{byte:02x}")).collect::<Vec<_>>();
    let tokens = [vec!["a".to_owned()], pieces("é😀"), vec!["b".to_owned(), "a".to_owned()]].concat();
    check_echo(json!("aé😀b"), "aé😀ba", json!(tokens), json!([0, 1, 1, 2, 2, 2, 2, 3, 4])).await;
    let ids: Vec<_> = "aé😀b".bytes().map(byte).collect();
    check_echo(json!(ids), "aé😀ba", json!(tokens), json!([0, 1, 1, 2, 2, 2, 2, 3, 4])).await;
    check_echo(json!("<s>hi"), "<s>hi", json!(["<s>", "h", "i", "<s>"]), json!([0, 3, 4, 5])).await;
}

#[tokio::test]
async fn a_character_that_the_prompt_begins_is_finished_by_the_answer() {
    let prompt = json!([byte(0xa9), byte(b'a'), byte(0xc3)]);
    let tokens = json!(["bytes:\\xa9", "a", "bytes:\\xc3", "bytes:\\xa9"]);
    check_echo(prompt, "\u{fffd}aé", tokens, json!([0, 1, 2, 2])).await;
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

/// Returns the cached tokens of `second` after `first` with the same text.
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
    assert_eq!(cached_after(json!({}), json!({"cache_prompt": false})).await, 0);
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

/// Checks text and finish reason of an answer to token ids, with the options `more`.
async fn check_stop(prompt: &[u32], more: Value, expected: (&str, &str)) {
    let world = World::new();
    let answer = world.post(COMPLETIONS, &completion(json!(prompt), more.clone())).await.ok();
    assert_eq!(text_and_reason(&answer), expected, "{more}");
    let mut streamed = completion(json!(prompt), more.clone());
    streamed["stream"] = json!(true);
    let events = world.post(COMPLETIONS, &streamed).await.events();
    let text: String = events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, expected.0, "{more}, streamed");
}

/// Special token that the test model generates: `<s>`.
const BOS: u32 = 1;

#[tokio::test]
async fn a_stop_string_matches_the_text_of_a_special_token() {
    let prompt = [byte(b'a'), byte(b'b'), BOS, byte(b'c')];
    check_stop(&prompt, json!({"max_tokens": 4}), ("abc", "length")).await;
    check_stop(&prompt, json!({"stop": ["<s>"]}), ("ab", "stop")).await;
    check_stop(&prompt, json!({"stop": "b<s>"}), ("a", "stop")).await;
    check_stop(&prompt, json!({"stop": "<s>c"}), ("ab", "stop")).await;
    check_stop(&prompt, json!({"stop": "bc"}), ("a", "stop")).await;
    check_stop(&prompt, json!({"stop": "<s", "max_tokens": 4}), ("abc", "length")).await;
    check_stop(&prompt, json!({"stop": "<s>", "skip_special_tokens": false}), ("ab", "stop")).await;
    check_stop(&prompt, json!({"stop": "<s", "skip_special_tokens": false}), ("ab", "stop")).await;
    check_stop(&prompt, json!({"skip_special_tokens": false, "max_tokens": 4}), ("ab<s>c", "length")).await;
}

#[tokio::test]
async fn what_ends_an_answer_is_part_of_it_when_asked_for() {
    let prompt = [byte(b'a'), byte(b'b'), BOS, byte(b'c'), EOS];
    let including = |more: Value| {
        let mut wishes = more;
        wishes["include_stop_str_in_output"] = json!(true);
        wishes
    };
    check_stop(&prompt, including(json!({"stop": "b"})), ("ab", "stop")).await;
    check_stop(&prompt, including(json!({"stop": "<s>"})), ("ab<s>", "stop")).await;
    check_stop(&prompt, including(json!({"stop_token_ids": [byte(b'b')]})), ("ab", "stop")).await;
    check_stop(&prompt, including(json!({})), ("abc", "stop")).await;
    check_stop(&prompt, including(json!({"skip_special_tokens": false})), ("ab<s>c</s>", "stop")).await;
    check_stop(&prompt, json!({"skip_special_tokens": false}), ("ab<s>c", "stop")).await;
}

#[tokio::test]
async fn no_stop_string_ends_an_answer_before_min_tokens() {
    let prompt = [byte(b'a'), byte(b'b'), BOS];
    check_stop(&prompt, json!({"stop": "b", "min_tokens": 4}), ("aba", "stop")).await;
    check_stop(&prompt, json!({"stop": "<s>", "min_tokens": 3}), ("abab", "stop")).await;
}

/// Returns the tokens of `conversation` by `/tokenize`, and the prompt's length by chat and by explain.
async fn counts(world: &World, conversation: &Value) -> (usize, [Value; 2]) {
    let tokens = world.post("/tokenize", conversation).await.ok();
    let mut request = conversation.clone();
    request["max_tokens"] = json!(1);
    let answer = world.post(CHAT, &request).await.ok();
    let explained = world.post("/v1/kv/explain", &request).await.ok();
    let count = tokens["count"].as_u64().unwrap() as usize;
    assert_eq!(tokens["tokens"].as_array().unwrap().len(), count);
    (count, [answer["usage"]["prompt_tokens"].clone(), explained["prompt_tokens"].clone()])
}

#[tokio::test]
async fn a_conversation_is_the_same_prompt_wherever_it_is_sent() {
    let world = World::new();
    let check = async |more: Value, expected: &str| {
        let mut conversation = json!({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so"}]});
        conversation.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (count, others) = counts(&world, &conversation).await;
        assert_eq!((count, &others), (expected.len(), &[json!(count), json!(count)]), "{more}");
    };
    check(json!({}), "[user]hi[assistant]so[assistant]").await;
    let template = "{% for m in messages %}<{{ m.content }}>{% endfor %}{% if add_generation_prompt %}!{{ mood }}{% endif %}";
    let with = |mut more: Value| {
        more["chat_template"] = json!(template);
        more
    };
    check(with(json!({})), "<hi><so>!").await;
    check(with(json!({"chat_template_kwargs": {"mood": "glad"}})), "<hi><so>!glad").await;
    check(with(json!({"add_generation_prompt": false})), "<hi><so>").await;
    check(with(json!({"continue_final_message": true})), "<hi><so").await;
    check(with(json!({"continue_final_message": true, "add_generation_prompt": false})), "<hi><so").await;
}

#[tokio::test]
async fn a_conversation_that_cannot_be_rendered_so_is_refused_by_name() {
    let world = World::new();
    for (field, more) in [
        ("continue_final_message", json!({"continue_final_message": true, "add_generation_prompt": true})),
        ("chat_template", json!({"chat_template": "{% if %}"})),
        ("messages", json!({"chat_template": "nothing", "continue_final_message": true})),
        ("documents", json!({"documents": [{"text": "x"}]})),
        ("tools[0].function", json!({"tools": [{"type": "function"}]})),
    ] {
        for path in ["/tokenize", CHAT, "/v1/kv/explain"] {
            let mut request = json!({"messages": [{"role": "user", "content": "hi"}]});
            request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let answer = world.post(path, &request).await;
            assert_eq!((answer.status.as_u16(), &answer.json()["error"]["param"]), (400, &json!(field)), "{path} {more}");
        }
    }
}

#[tokio::test]
async fn constraints_of_peers_are_refused_and_never_dropped() {
    let world = World::new();
    for (field, value) in [
        ("ebnf", json!("root ::= \"a\"")),
        ("grammar", json!("root ::= \"a\"")),
        ("format", json!("json")),
        ("stop_regex", json!("a+")),
        ("lora_path", json!("adapter")),
        ("custom_logit_processor", json!("code")),
        ("input_ids", json!([1, 2])),
        ("typical_p", json!(0.5)),
        ("mirostat", json!(2)),
        ("dry_multiplier", json!(0.8)),
        ("xtc_probability", json!(0.5)),
    ] {
        for (path, request) in [(CHAT, chat("hi", json!({}))), (COMPLETIONS, completion("hi", json!({})))] {
            let mut request = request;
            request[field] = value.clone();
            let answer = world.post(path, &request).await;
            assert_eq!((answer.status.as_u16(), &answer.json()["error"]["param"]), (400, &json!(field)), "{path}");
            request[field] = Value::Null;
            world.post(path, &request).await.ok();
        }
    }
    let answer = world.post(COMPLETIONS, &completion("abcdef", json!({"max_tokens": null, "n_predict": 3}))).await.ok();
    assert_eq!(text_and_reason(&answer), ("abc", "length"));
}

#[tokio::test]
async fn special_tokens_are_shown_or_skipped_when_detokenized() {
    let world = World::new();
    let text = async |more: Value| {
        let mut request = json!({"tokens": [BOS, byte(b'a')]});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.post("/detokenize", &request).await.ok()["prompt"].clone()
    };
    assert_eq!((text(json!({})).await, text(json!({"skip_special_tokens": true})).await), (json!("<s>a"), json!("a")));
}
