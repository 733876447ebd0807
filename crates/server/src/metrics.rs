//! Prometheus metrics: vLLM's metrics under their own names, units and buckets, and `kvshare_*` for features specific to this daemon.
//!
//! Every series exists from the start. All figures about one request's prompt are counted once, when it is admitted.

mod buckets;
mod embedding;
mod host;
mod kv;
mod quality;
mod registrar;

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};
use metrics_exporter_prometheus::PrometheusHandle;
use tokens::Timestamp;

use self::embedding::EmbeddingMetrics;
use self::host::HostMetrics;
pub(crate) use self::kv::{KvMetrics, erased_kind};
use self::quality::QualityMetrics;
use self::registrar::Registrar;
use crate::model::ModelInfo;
use crate::paths::PATHS;
use crate::tenants::KeyError;

/// All metrics of one server.
pub struct Metrics {
    handle: PrometheusHandle,
    pub(crate) requests: RequestMetrics,
    pub(crate) http: HttpMetrics,
    pub(crate) kv: KvMetrics,
    pub(crate) embeddings: EmbeddingMetrics,
    engine: EngineMetrics,
}

/// Metrics recorded per request.
pub(crate) struct RequestMetrics {
    pub(crate) prompt_tokens: Counter,
    pub(crate) generation_tokens: Counter,
    pub(crate) prompt_tokens_cached: Counter,
    pub(crate) prefix_cache_queries: Counter,
    pub(crate) prefix_cache_hits: Counter,
    pub(crate) local_compute: Counter,
    pub(crate) local_cache_hit: Counter,
    pub(crate) semantic_reuse: Counter,
    pub(crate) success: [Counter; 4],
    pub(crate) corrupted: Counter,
    pub(crate) ttft: Histogram,
    pub(crate) inter_token: Histogram,
    pub(crate) per_output_token: Histogram,
    pub(crate) e2e: Histogram,
    pub(crate) queue: Histogram,
    pub(crate) inference: Histogram,
    pub(crate) prefill: Histogram,
    pub(crate) decode: Histogram,
    pub(crate) prompt_len: Histogram,
    pub(crate) generation_len: Histogram,
    pub(crate) max_generation_len: Histogram,
    pub(crate) params_n: Histogram,
    pub(crate) params_max_tokens: Histogram,
    pub(crate) prefill_computed: Histogram,
    pub(crate) iteration_tokens: Histogram,
    pub(crate) source_computed: Counter,
    pub(crate) source_prefix: Counter,
    pub(crate) source_span: Counter,
    pub(crate) recomputed_tokens: Counter,
    pub(crate) cache_outcomes: [Counter; 3],
    pub(crate) ttft_by_cache: [Histogram; 3],
}

/// Metrics recorded by the HTTP layer.
pub(crate) struct HttpMetrics {
    responses: Vec<(&'static str, [Counter; 3])>,
    shed: [Counter; ShedReason::LABELS.len()],
    refused_keys: [Counter; 2],
}

/// Metrics set from the engine's own counters at each scrape.
struct EngineMetrics {
    running: Gauge,
    waiting: Gauge,
    kv_usage: Gauge,
    preemptions: Counter,
    blocks: [Gauge; 3],
    host: HostMetrics,
    queue_length: Gauge,
    queue_oldest_age: Gauge,
    evictions: Counter,
    donors: Gauge,
    span_lookups: Vec<Counter>,
    /// Donors found by span, by embedding.
    found_donors: [Counter; 2],
    shadowed_tokens: Counter,
    quality: QualityMetrics,
    ready: Gauge,
}

/// Source of the KV of a request's prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheOutcome {
    HitPrefix,
    HitSpan,
    Miss,
}

impl CacheOutcome {
    const LABELS: [&'static str; 3] = ["hit_prefix", "hit_span", "miss"];

    /// Returns the outcome. A request that used spans is a span hit even if it had a prefix: its answer is approximate.
    pub(crate) fn of(usage: &engine::KvUsage) -> Self {
        match (usage.span_tokens + usage.continued_tokens, usage.prefix_tokens) {
            (1.., _) => Self::HitSpan,
            (0, 1..) => Self::HitPrefix,
            (0, 0) => Self::Miss,
        }
    }
}

/// Outcome of a request, for `vllm:request_success_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Stop,
    Length,
    Abort,
    Error,
}

impl Ending {
    const LABELS: [&'static str; 4] = ["stop", "length", "abort", "error"];
}

/// Reason why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShedReason {
    QueueFull,
    QueueTimeout,
    Draining,
    BodyTooLarge,
    BodyTimeout,
    ForeignPage,
    Busy,
    Connections,
}

impl ShedReason {
    const LABELS: [&'static str; 8] =
        ["queue_full", "queue_timeout", "draining", "body_too_large", "body_timeout", "foreign_page", "busy", "connections"];
}

impl Metrics {
    /// Registers all series of a server of `model`, run by an engine configured by `scheduler`.
    #[must_use]
    pub fn new(model: &ModelInfo, scheduler: &engine::SchedulerConfig) -> Self {
        let registrar = Registrar::new(&model.id, &bucket_table(model.max_model_len));
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        registrar.gauge("kvshare_build_info", "Always 1; its labels say what runs.", &version).set(1.0);
        let (block_size, num_blocks) = (scheduler.block_size.get().to_string(), scheduler.num_blocks.to_string());
        // vLLM's name for the blocks of the pool, wherever the pool is.
        let pool = [("block_size", block_size.as_str()), ("num_gpu_blocks", num_blocks.as_str())];
        registrar.gauge("vllm:cache_config_info", "Always 1; its labels describe the KV pool.", &pool).set(1.0);
        Self {
            handle: registrar.handle(),
            requests: RequestMetrics::new(&registrar),
            http: HttpMetrics::new(&registrar, &PATHS),
            kv: KvMetrics::new(&registrar),
            embeddings: EmbeddingMetrics::new(&registrar),
            engine: EngineMetrics::new(&registrar, scheduler.host.block_bytes),
        }
    }

    /// Renders the text of a scrape at `now`.
    pub(crate) fn render(&self, stats: &engine::EngineStats, is_ready: bool, now: Timestamp) -> String {
        self.engine.observe(stats, is_ready, now);
        self.handle.render()
    }

    /// Folds samples into buckets. Otherwise a server that is never scraped would keep every sample.
    pub(crate) fn run_upkeep(&self) {
        self.handle.run_upkeep();
    }
}

fn bucket_table(max_model_len: u32) -> Vec<(&'static str, Vec<f64>)> {
    let lengths = buckets::one_two_five(max_model_len);
    let mut table = vec![
        ("vllm:time_to_first_token_seconds", buckets::TTFT.to_vec()),
        ("kvshare_time_to_first_token_seconds", buckets::TTFT.to_vec()),
        ("vllm:inter_token_latency_seconds", buckets::INTER_TOKEN.to_vec()),
        ("vllm:request_time_per_output_token_seconds", buckets::INTER_TOKEN.to_vec()),
        ("vllm:iteration_tokens_total", buckets::ITERATION.to_vec()),
        ("vllm:request_params_n", buckets::N.to_vec()),
        ("kvshare_kv_deviation", buckets::DEVIATION.to_vec()),
    ];
    let times = [
        "vllm:e2e_request_latency_seconds",
        "vllm:request_queue_time_seconds",
        "vllm:request_inference_time_seconds",
        "vllm:request_prefill_time_seconds",
        "vllm:request_decode_time_seconds",
    ];
    table.extend(times.map(|name| (name, buckets::REQUEST.to_vec())));
    let counts = [
        "vllm:request_prompt_tokens",
        "vllm:request_generation_tokens",
        "vllm:request_max_num_generation_tokens",
        "vllm:request_params_max_tokens",
        "vllm:request_prefill_kv_computed_tokens",
    ];
    table.extend(counts.map(|name| (name, lengths.clone())));
    table
}

impl RequestMetrics {
    fn new(registrar: &Registrar) -> Self {
        let counter = |name, help| registrar.counter(name, help, &[]);
        let histogram = |name, help| registrar.histogram(name, help, &[]);
        let vllm_source = |source| {
            let help = "Prompt tokens by where their KV came from; the sources add up to vllm:prompt_tokens_total.";
            registrar.counter("vllm:prompt_tokens_by_source_total", help, &[("source", source)])
        };
        let source = |source| {
            let help = "Prompt tokens by where their KV came from; the sources add up to all prompt tokens.";
            registrar.counter("kvshare_prompt_tokens_total", help, &[("source", source)])
        };
        Self {
            prompt_tokens: counter("vllm:prompt_tokens_total", "Prompt tokens of admitted requests."),
            generation_tokens: counter("vllm:generation_tokens_total", "Generated tokens."),
            prompt_tokens_cached: counter("vllm:prompt_tokens_cached_total", "Prompt tokens found in the prefix cache."),
            prefix_cache_queries: counter("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache."),
            prefix_cache_hits: counter("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache."),
            local_compute: vllm_source("local_compute"),
            local_cache_hit: vllm_source("local_cache_hit"),
            semantic_reuse: vllm_source("semantic_reuse"),
            success: Ending::LABELS.map(|reason| {
                registrar.counter("vllm:request_success_total", "Ended requests by reason.", &[("finished_reason", reason)])
            }),
            corrupted: counter("vllm:corrupted_requests_total", "Requests that ended because their logits were no numbers."),
            ttft: histogram("vllm:time_to_first_token_seconds", "Seconds from arrival to the first token."),
            inter_token: histogram("vllm:inter_token_latency_seconds", "Seconds between two tokens of a request."),
            per_output_token: histogram(
                "vllm:request_time_per_output_token_seconds",
                "Mean seconds between two tokens of a request.",
            ),
            e2e: histogram("vllm:e2e_request_latency_seconds", "Seconds from arrival to the end of a request."),
            queue: histogram("vllm:request_queue_time_seconds", "Seconds from arrival to admission."),
            inference: histogram("vllm:request_inference_time_seconds", "Seconds from admission to the last token of a request."),
            prefill: histogram("vllm:request_prefill_time_seconds", "Seconds from admission to the first token."),
            decode: histogram("vllm:request_decode_time_seconds", "Seconds from the first token to the last of a request."),
            prompt_len: histogram("vllm:request_prompt_tokens", "Prompt tokens of a request."),
            generation_len: histogram("vllm:request_generation_tokens", "Generated tokens of a request."),
            max_generation_len: histogram(
                "vllm:request_max_num_generation_tokens",
                "Most tokens generated for any of the n answers.",
            ),
            params_n: histogram("vllm:request_params_n", "Answers asked for."),
            params_max_tokens: histogram("vllm:request_params_max_tokens", "Tokens asked for at most."),
            prefill_computed: histogram("vllm:request_prefill_kv_computed_tokens", "Prompt tokens computed for a request."),
            iteration_tokens: histogram(
                "vllm:iteration_tokens_total",
                "Generated tokens of a step, and the prompt tokens of requests whose first token it brought.",
            ),
            source_computed: source("computed"),
            source_prefix: source("prefix"),
            source_span: source("span"),
            recomputed_tokens: counter(
                "kvshare_recomputed_tokens_total",
                "Prompt tokens that a donor had and that were computed on purpose.",
            ),
            cache_outcomes: CacheOutcome::LABELS.map(|cache| {
                registrar.counter("kvshare_cache_outcomes_total", "Admitted requests by what was reused.", &[("cache", cache)])
            }),
            ttft_by_cache: CacheOutcome::LABELS.map(|cache| {
                let help = "Seconds from arrival to the first token, by what was reused.";
                registrar.histogram("kvshare_time_to_first_token_seconds", help, &[("cache", cache)])
            }),
        }
    }

    pub(crate) fn success(&self, ending: Ending) -> &Counter {
        &self.success[ending as usize]
    }

    /// Counts the prompt of a request. To be called once per request, when it is admitted.
    pub(crate) fn count_prompt(&self, mode: tokens::SharingMode, usage: &engine::KvUsage) -> CacheOutcome {
        let approximate = usage.span_tokens + usage.continued_tokens;
        let (computed, prefix, span) = (u64::from(usage.computed_tokens), u64::from(usage.prefix_tokens), u64::from(approximate));
        let all = computed + prefix + span;
        self.prompt_tokens.increment(all);
        self.prompt_tokens_cached.increment(prefix);
        if mode != tokens::SharingMode::Off {
            self.prefix_cache_queries.increment(all);
            self.prefix_cache_hits.increment(prefix);
        }
        for (counters, tokens) in [
            ([&self.local_compute, &self.source_computed], computed),
            ([&self.local_cache_hit, &self.source_prefix], prefix),
            ([&self.semantic_reuse, &self.source_span], span),
        ] {
            counters.into_iter().for_each(|counter| counter.increment(tokens));
        }
        self.recomputed_tokens.increment(u64::from(usage.recomputed_tokens));
        self.prompt_len.record(all as f64);
        self.prefill_computed.record(computed as f64);
        let outcome = CacheOutcome::of(usage);
        self.cache_outcomes[outcome as usize].increment(1);
        outcome
    }

    pub(crate) fn record_ttft(&self, outcome: CacheOutcome, ttft: Duration) {
        self.ttft.record(ttft);
        self.ttft_by_cache[outcome as usize].record(ttft);
    }
}

impl HttpMetrics {
    const CLASSES: [&'static str; 3] = ["2xx", "4xx", "5xx"];
    const UNKNOWN_ROUTE: &'static str = "unknown";

    fn new(registrar: &Registrar, routes: &[&'static str]) -> Self {
        let classes = |route| {
            Self::CLASSES.map(|class| {
                let help = "Answers by route and class of status.";
                registrar.counter("kvshare_http_responses_total", help, &[("route", route), ("status", class)])
            })
        };
        Self {
            responses: routes.iter().copied().chain([Self::UNKNOWN_ROUTE]).map(|route| (route, classes(route))).collect(),
            shed: ShedReason::LABELS.map(|reason| {
                let help = "Requests refused to protect the server.";
                registrar.counter("kvshare_requests_shed_total", help, &[("reason", reason)])
            }),
            refused_keys: KeyError::LABELS.map(|reason| {
                let help = "Requests without a key, or with one that is not known.";
                registrar.counter("kvshare_refused_keys_total", help, &[("reason", reason)])
            }),
        }
    }

    /// Counts a response. `route` is the router's pattern, `None` if no route matched.
    pub(crate) fn count_response(&self, route: Option<&str>, status: u16) {
        let class = match status {
            0..400 => 0,
            400..500 => 1,
            500.. => 2,
        };
        let found = self.responses.iter().find(|(known, _)| Some(*known) == route).or(self.responses.last());
        if let Some((_, classes)) = found {
            classes[class].increment(1);
        }
    }

    pub(crate) fn count_refused_key(&self, error: KeyError) {
        self.refused_keys[error as usize].increment(1);
    }

    pub(crate) fn count_shed(&self, reason: ShedReason) {
        self.shed[reason as usize].increment(1);
    }
}

impl EngineMetrics {
    const BLOCK_STATES: [&'static str; 3] = ["free", "cached", "active"];

    fn new(registrar: &Registrar, block_bytes: u64) -> Self {
        let gauge = |name, help| registrar.gauge(name, help, &[]);
        Self {
            running: gauge("vllm:num_requests_running", "Requests that hold KV blocks."),
            waiting: gauge("vllm:num_requests_waiting", "Requests that wait for admission."),
            kv_usage: gauge("vllm:kv_cache_usage_perc", "Share of the KV blocks in use by running requests, from 0 to 1."),
            preemptions: registrar.counter("vllm:num_preemptions_total", "Requests pushed out of the pool and restarted.", &[]),
            blocks: Self::BLOCK_STATES
                .map(|state| registrar.gauge("kvshare_kv_blocks", "Blocks of the KV pool by state.", &[("state", state)])),
            host: HostMetrics::new(registrar, block_bytes),
            queue_length: gauge("kvshare_queue_length", "Requests that wait for admission."),
            queue_oldest_age: gauge("kvshare_queue_oldest_age_seconds", "Seconds the longest waiting request has waited."),
            evictions: registrar.counter("kvshare_kv_evictions_total", "Cached blocks that were given to something else.", &[]),
            donors: gauge("kvshare_donors", "Earlier prompts whose spans can be found."),
            span_lookups: engine::SpanOutcome::ALL
                .iter()
                .map(|outcome| {
                    let help = "Searches for spans by outcome.";
                    registrar.counter("kvshare_span_lookups_total", help, &[("outcome", outcome.label())])
                })
                .collect(),
            found_donors: ["span", "embedding"].map(|source| {
                let help = "Donors that gave spans to admitted requests, by what found them.";
                registrar.counter("kvshare_donors_found_total", help, &[("source", source)])
            }),
            shadowed_tokens: registrar.counter(
                "kvshare_shadowed_tokens_total",
                "Tokens that requests in shadow mode would have copied.",
                &[],
            ),
            quality: QualityMetrics::new(registrar),
            ready: gauge("kvshare_ready", "1 while requests are taken."),
        }
    }

    fn observe(&self, stats: &engine::EngineStats, is_ready: bool, now: Timestamp) {
        // Requests that run for a comparison serve no client.
        self.running.set((stats.num_running - stats.num_comparing) as f64);
        self.waiting.set(stats.num_waiting as f64);
        self.queue_length.set(stats.num_waiting as f64);
        let oldest_age = stats.oldest_waiting_arrival.map_or(Duration::ZERO, |arrival| now.since(arrival));
        self.queue_oldest_age.set(oldest_age);
        let blocks = &stats.blocks;
        self.kv_usage.set(blocks.active as f64 / blocks.total.max(1) as f64);
        for (gauge, count) in self.blocks.iter().zip([blocks.free, blocks.cached, blocks.active]) {
            gauge.set(count as f64);
        }
        self.host.observe(stats);
        self.preemptions.absolute(stats.preemptions);
        self.evictions.absolute(blocks.evictions);
        self.donors.set(stats.num_donors as f64);
        for (counter, (_, count)) in self.span_lookups.iter().zip(stats.span_lookups.iter()) {
            counter.absolute(count);
        }
        let engine::FoundDonors { by_span, by_embedding } = stats.found_donors;
        for (counter, count) in self.found_donors.iter().zip([by_span, by_embedding]) {
            counter.absolute(count);
        }
        self.shadowed_tokens.absolute(stats.shadowed_tokens);
        self.quality.observe(stats);
        self.ready.set(f64::from(u8::from(is_ready)));
    }
}
