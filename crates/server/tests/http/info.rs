//! Endpoints about the server itself.

use std::collections::BTreeMap;

use engine::{HostConfig, SchedulerConfig};
use serde_json::json;

use crate::world::{CHAT, COMPLETIONS, MODEL, Options, World, byte, chat, completion};

#[tokio::test]
async fn models_are_listed_and_found_by_every_name() {
    let world = World::new();
    let list = world.get("/v1/models").await.ok();
    let names: Vec<_> = list["data"].as_array().unwrap().iter().map(|card| card["id"].as_str().unwrap()).collect();
    assert_eq!(names, [MODEL, "alias"]);
    for name in names {
        let card = world.get(&format!("/v1/models/{name}")).await.ok();
        assert_eq!((&card["id"], &card["root"], &card["max_model_len"]), (&json!(name), &json!(MODEL), &json!(1000)));
    }
    let answer = world.post(CHAT, &chat("hi", json!({"model": "alias"}))).await.ok();
    assert_eq!(answer["model"], "alias");
}

#[tokio::test]
async fn every_documented_operation_is_routed() {
    let world = World::new();
    let document = world.get("/openapi.json").await.ok();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let path = path.replace("models/{id}", &format!("models/{MODEL}")).replace("{id}", "7").replace("{name}", "default");
            let answer = world.send(&method.to_uppercase(), &path, "").await;
            let is_routed = answer.status == 200 || answer.status == 400 || answer.json()["error"]["code"] == "not_found";
            assert!(is_routed, "{method} {path}: {}", answer.text);
        }
    }
}

#[tokio::test]
async fn version_load_and_health_answer() {
    let world = World::new();
    assert_eq!(world.get("/version").await.ok()["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(world.get("/load").await.ok(), json!({"server_load": 0, "num_requests_running": 0, "num_requests_waiting": 0}));
    for path in ["/health", "/health/live", "/health/ready"] {
        assert_eq!(world.get(path).await.ok()["status"], "ok");
    }
}

#[tokio::test]
async fn an_answer_carries_a_request_id() {
    let world = World::new();
    assert!(!world.get("/version").await.headers["x-request-id"].is_empty());
}

#[tokio::test]
async fn text_becomes_tokens_and_text_again() {
    let world = World::new();
    let answer = world.post("/tokenize", &json!({"prompt": "é a", "return_token_strs": true})).await.ok();
    assert_eq!((&answer["count"], &answer["max_model_len"]), (&json!(4), &json!(1000)));
    assert_eq!(answer["tokens"], json!([byte(0xc3), byte(0xa9), 259, byte(b'a')]));
    assert_eq!(answer["token_strs"][3], "a");
    let text = world.post("/detokenize", &json!({"tokens": answer["tokens"]})).await.ok();
    assert_eq!(text, json!({"prompt": "é a"}));
    let messages = json!([{"role": "user", "content": "hi"}]);
    let rendered = world.post("/tokenize", &json!({"messages": messages})).await.ok();
    assert_eq!(rendered["count"], "[user]hi[assistant]".len());
    assert_eq!(world.post("/tokenize", &json!({})).await.status, 400);
    assert_eq!(world.post("/detokenize", &json!({"tokens": [100_000]})).await.status, 400);
    assert_eq!(world.post("/detokenize", &json!({"model": "other", "tokens": [5]})).await.status, 404);
}

/// Returns the value of every series in a scrape, without the common labels.
async fn scrape(world: &World) -> BTreeMap<String, f64> {
    let text = world.get("/metrics").await.text;
    let samples = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    samples
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let series = series.replace("model_name=\"owner/echo\",engine=\"0\"", "").replace("{,", "{").replace("{}", "");
            (series, value.parse().unwrap())
        })
        .collect()
}

#[tokio::test]
async fn prompt_tokens_add_up_by_source_and_each_request_counts_once() {
    let world = World::new();
    let text = "a text of more than one block, so that there is something to be found";
    let mut prompt_tokens = 0.0;
    for request in [json!({}), json!({}), json!({"kv_sharing": {"mode": "off"}}), json!({"n": 2})] {
        let usage = world.post(COMPLETIONS, &completion(text, request.clone())).await.ok()["usage"].clone();
        prompt_tokens += usage["prompt_tokens"].as_f64().unwrap() * request["n"].as_f64().unwrap_or(1.0);
    }
    world.wait_until_free().await;
    let metrics = scrape(&world).await;
    let sum = |prefix: &str| metrics.iter().filter(|(series, _)| series.starts_with(prefix)).map(|(_, value)| value).sum::<f64>();
    assert_eq!(metrics["vllm:prompt_tokens_total"], prompt_tokens);
    assert_eq!(sum("vllm:prompt_tokens_by_source_total{"), prompt_tokens);
    assert_eq!(sum("kvshare_prompt_tokens_total{"), prompt_tokens);
    assert_eq!(sum("kvshare_cache_outcomes_total{"), 5.0);
    assert_eq!(metrics["vllm:prompt_tokens_cached_total"], metrics["kvshare_prompt_tokens_total{source=\"prefix\"}"]);
    assert!(metrics["vllm:prompt_tokens_cached_total"] > 0.0);
    assert_eq!(metrics["kvshare_cache_outcomes_total{cache=\"miss\"}"], 2.0);
    assert_eq!(metrics["vllm:time_to_first_token_seconds_count"], 5.0);
    assert_eq!(sum("kvshare_time_to_first_token_seconds_count{"), 5.0);
    assert_eq!(metrics["vllm:e2e_request_latency_seconds_count"], 5.0);
    assert_eq!(metrics["vllm:request_max_num_generation_tokens_count"], 4.0);
    assert_eq!(metrics["vllm:request_params_n_sum"], 5.0);
    assert_eq!(metrics["vllm:generation_tokens_total"], 40.0);
    assert_eq!(metrics["vllm:inter_token_latency_seconds_count"], 35.0);
    assert_eq!(metrics["vllm:request_success_total{finished_reason=\"length\"}"], 5.0);
    assert_eq!(sum("kvshare_kv_blocks{"), 64.0);
    assert_eq!(metrics["vllm:request_params_max_tokens_count"], 5.0);
    assert_eq!(metrics["vllm:iteration_tokens_total_sum"], prompt_tokens + 40.0, "prompt and generated tokens, each once");
}

#[tokio::test]
async fn an_iteration_counts_prompts_when_their_first_token_comes() {
    let scheduler = SchedulerConfig { max_num_batched_tokens: 32, max_num_seqs: 8, ..SchedulerConfig::new(64, 1000) };
    let world = World::with(Options { scheduler, ..Options::default() });
    // Four steps of prefill, of which the last one generates a token; then two of decode.
    world.post(COMPLETIONS, &completion("x".repeat(100), json!({"max_tokens": 3}))).await.ok();
    let metrics = scrape(&world).await;
    assert_eq!((metrics["vllm:iteration_tokens_total_count"], metrics["vllm:iteration_tokens_total_sum"]), (3.0, 103.0));
    // A prompt that is only scored generates nothing.
    world.post(COMPLETIONS, &completion("y".repeat(40), json!({"max_tokens": 0, "echo": true}))).await.ok();
    let metrics = scrape(&world).await;
    assert_eq!((metrics["vllm:iteration_tokens_total_count"], metrics["vllm:iteration_tokens_total_sum"]), (4.0, 143.0));
}

#[tokio::test]
async fn metrics_are_fresh_after_an_answer_and_after_an_erasure() {
    let world = World::new();
    for round in 0..20 {
        world.post(COMPLETIONS, &completion("z".repeat(100), json!({"max_tokens": 1}))).await.ok();
        let metrics = scrape(&world).await;
        assert_eq!((metrics["kvshare_donors"], metrics["vllm:num_requests_running"]), (1.0, 0.0), "round {round}");
        assert_eq!(metrics["vllm:e2e_request_latency_seconds_count"], f64::from(round + 1));
        assert!(metrics["kvshare_kv_blocks{state=\"cached\"}"] > 0.0, "round {round}");
        world.send("DELETE", "/v1/kv/cache", "").await.ok();
        let metrics = scrape(&world).await;
        assert_eq!((metrics["kvshare_donors"], metrics["kvshare_kv_blocks{state=\"cached\"}"]), (0.0, 0.0), "round {round}");
    }
}

#[tokio::test]
async fn metrics_count_what_goes_to_the_host_and_comes_back() {
    let host = HostConfig { num_blocks: 20, block_bytes: 1000, ..HostConfig::default() };
    let scheduler = SchedulerConfig { host, ..SchedulerConfig::new(8, 1000) };
    let world = World::with(Options { scheduler, ..Options::default() });
    for text in ["a".repeat(100), "b".repeat(250), "a".repeat(100)] {
        world.post(COMPLETIONS, &completion(text, json!({"max_tokens": 1}))).await.ok();
    }
    let mut metrics = scrape(&world).await;
    // The engine's figures lag its answers.
    for _ in 0..500 {
        if metrics["kvshare_host_kv_transfers_total{direction=\"fetch\"}"] > 0.0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        metrics = scrape(&world).await;
    }
    assert_eq!(metrics["vllm:prompt_tokens_cached_total"], 96.0);
    assert_eq!(metrics["kvshare_host_kv_transfers_total{direction=\"fetch\"}"], 3.0);
    assert_eq!(metrics["kvshare_host_kv_transfer_bytes_total{direction=\"fetch\"}"], 3000.0);
    let offloads = metrics["kvshare_host_kv_transfers_total{direction=\"offload\"}"];
    let (used, free) = (metrics["kvshare_host_kv_blocks{state=\"used\"}"], metrics["kvshare_host_kv_blocks{state=\"free\"}"]);
    assert_eq!((used, used + free), (offloads - 3.0, 20.0));
    assert_eq!(metrics["kvshare_host_kv_bandwidth_bytes_per_second"], 16e9);
}

#[tokio::test]
async fn every_series_is_there_from_the_start_with_help_and_type() {
    let world = World::new();
    let before: Vec<_> = scrape(&world).await.into_keys().collect();
    world.post(CHAT, &chat("hi", json!({"user": "u-in-label", "cache_salt": "s-in-label"}))).await.ok();
    world.post(CHAT, &chat("hi", json!({"model": "m-in-label"}))).await;
    world.get("/path-in-label").await;
    world.wait_until_free().await;
    let text = world.get("/metrics").await.text;
    assert_eq!(scrape(&world).await.into_keys().collect::<Vec<_>>(), before, "no series appears later");
    assert!(!text.contains("in-label"), "nothing a client sends is a label");
    assert!(before.len() < 2000, "{} series", before.len());
    for name in [
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
        "vllm:num_preemptions_total",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:request_success_total",
        "vllm:time_to_first_token_seconds",
        "vllm:inter_token_latency_seconds",
        "vllm:request_time_per_output_token_seconds",
        "vllm:e2e_request_latency_seconds",
        "vllm:request_queue_time_seconds",
        "vllm:request_inference_time_seconds",
        "vllm:request_prefill_time_seconds",
        "vllm:request_decode_time_seconds",
        "vllm:request_prompt_tokens",
        "vllm:request_generation_tokens",
        "vllm:request_params_max_tokens",
        "vllm:iteration_tokens_total",
        "vllm:cache_config_info",
        "kvshare_time_to_first_token_seconds",
        "kvshare_span_lookups_total",
        "kvshare_host_kv_blocks",
        "kvshare_host_kv_transfers_total",
        "kvshare_host_kv_transfer_bytes_total",
        "kvshare_requests_shed_total",
        "kvshare_queue_oldest_age_seconds",
        "kvshare_http_responses_total",
        "kvshare_build_info",
        "kvshare_requests_total",
        "kvshare_span_requests_total",
        "kvshare_kv_deviation",
        "kvshare_explanations_total",
        "kvshare_erasures_total",
        "kvshare_erased_donors_total",
        "kvshare_erased_blocks_total",
        "kvshare_public_corpora",
        "kvshare_refused_keys_total",
        "kvshare_verified_answers_total",
        "kvshare_shadowed_tokens_total",
    ] {
        assert!(text.contains(&format!("# HELP {name} ")) && text.contains(&format!("# TYPE {name} ")), "{name}");
    }
    assert!(text.contains("vllm:time_to_first_token_seconds_bucket{model_name=\"owner/echo\",engine=\"0\",le=\"0.001\"}"));
}
