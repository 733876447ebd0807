//! Prefill and decode of the engine in process: no HTTP, no text, nothing shared.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, bail};
use engine::{EngineCore, EngineEvent, KvSharingMode, Request, SamplingParams};
use runner::ModelRunner;
use serde::Serialize;
use tokens::{CacheSalt, RequestId, Timestamp, TokenId};

use super::stats::median;
use super::table;
use crate::config::{Config, ConfigArgs};
use crate::json_args::JsonArgs;
use crate::loading;
use crate::progress::{Progress, Unit};

/// What `kvshare bench engine` is told.
#[derive(Debug, clap::Args)]
pub(crate) struct EngineBenchArgs {
    /// Prompt lengths, in tokens
    #[arg(long, value_delimiter = ',', default_value = "512,2048", value_name = "N,..", value_parser = clap::value_parser!(u32).range(1..))]
    lengths: Vec<u32>,
    /// Tokens generated after each prompt
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    decode_tokens: u32,
    /// Measurements of each length, of which the median counts
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    #[command(flatten)]
    json: JsonArgs,
    #[command(flatten)]
    config: Box<ConfigArgs>,
}

/// Medians of all lengths. Keys are prompt lengths.
#[derive(Debug, Serialize)]
struct EngineReport {
    model: String,
    threads: usize,
    kv_cache_dtype: crate::config::KvCacheDtype,
    max_num_batched_tokens: usize,
    decode_tokens: u32,
    repeats: u32,
    load_seconds: f64,
    weight_bytes: usize,
    prefill_tokens_per_s: BTreeMap<u32, f64>,
    decode_tokens_per_s: BTreeMap<u32, f64>,
}

/// Tokens a second of one request.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Speed {
    prefill: f64,
    decode: f64,
}

/// An engine with one request in it at a time.
struct Bench {
    engine: EngineCore<ModelRunner>,
    vocab_size: u32,
    started: Instant,
    num_requests: u64,
}

/// Loads the model, measures, and prints the medians.
///
/// # Errors
/// If the model cannot be loaded, or a length does not fit it.
pub(crate) fn run(args: EngineBenchArgs) -> anyhow::Result<()> {
    let config = Config::resolve(*args.config)?;
    let loaded = loading::load(&config)?;
    let scheduler = loading::scheduler_config(&config, &loaded.model)?;
    check_lengths(&args.lengths, args.decode_tokens, scheduler.max_model_len)?;
    let mut report = EngineReport {
        model: loaded.files.id.clone(),
        threads: config.engine.num_threads(),
        kv_cache_dtype: config.engine.kv_cache_dtype,
        max_num_batched_tokens: scheduler.max_num_batched_tokens,
        decode_tokens: args.decode_tokens,
        repeats: args.repeats,
        load_seconds: loaded.load_seconds,
        weight_bytes: loaded.model.weight_bytes,
        prefill_tokens_per_s: BTreeMap::new(),
        decode_tokens_per_s: BTreeMap::new(),
    };
    let mut bench = Bench {
        vocab_size: u32::try_from(loaded.model.config.vocab_size).context("the vocabulary's size")?,
        engine: EngineCore::new(scheduler, loaded.model.runner).context("starting the engine")?,
        started: Instant::now(),
        num_requests: 0,
    };
    measure(&mut bench, &args.lengths, &mut report)?;
    args.json.write(&report, &report.to_table())
}

fn check_lengths(lengths: &[u32], decode_tokens: u32, max_model_len: u32) -> anyhow::Result<()> {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    // The first generated token is part of prefill.
    let needed = u64::from(longest) + 1 + u64::from(decode_tokens);
    if needed > u64::from(max_model_len) {
        bail!(
            "{longest} prompt tokens and {decode_tokens} generated ones exceed the {max_model_len} tokens that fit: raise --kv-cache-memory or shorten --lengths"
        );
    }
    Ok(())
}

/// Rounds go over all lengths, so that a slow phase of the machine meets each of them.
fn measure(bench: &mut Bench, lengths: &[u32], report: &mut EngineReport) -> anyhow::Result<()> {
    let mut speeds: BTreeMap<u32, Vec<Speed>> = BTreeMap::new();
    let mut progress = Progress::new("measuring", Unit::Count, u64::from(report.repeats) * lengths.len() as u64);
    // Touches all weights and scratch memory once.
    bench.measure(lengths.iter().copied().min().unwrap_or(1), 1)?;
    for _ in 0..report.repeats {
        for &length in lengths {
            speeds.entry(length).or_default().push(bench.measure(length, report.decode_tokens)?);
            progress.add(1);
        }
    }
    for (length, speeds) in speeds {
        report.prefill_tokens_per_s.insert(length, median(speeds.iter().map(|speed| speed.prefill)));
        report.decode_tokens_per_s.insert(length, median(speeds.iter().map(|speed| speed.decode)));
    }
    Ok(())
}

impl Bench {
    /// Runs one request of a new prompt alone: `length` tokens to its first token, then `decode_tokens` more.
    fn measure(&mut self, length: u32, decode_tokens: u32) -> anyhow::Result<Speed> {
        self.num_requests += 1;
        let request = self.request(length, decode_tokens);
        self.engine.fits(&request).context("the request does not fit")?;
        let sent = Instant::now();
        let now = self.now();
        self.engine.add_request(request, now);
        let mut first = None;
        loop {
            let now = self.now();
            let events = self.engine.step(now).context("running the model")?;
            if first.is_none() && events.iter().any(|event| matches!(event, EngineEvent::Token { .. })) {
                first = Some(Instant::now());
            }
            if events.iter().any(|event| matches!(event, EngineEvent::Finished { .. })) {
                break;
            }
        }
        let first = first.context("the request ended without a token")?;
        let decode_seconds = first.elapsed().as_secs_f64();
        let prefill = f64::from(length) / (first - sent).as_secs_f64();
        self.flush()?;
        Ok(Speed { prefill, decode: f64::from(decode_tokens) / decode_seconds })
    }

    /// Lets the engine forget the request, outside the measured time.
    fn flush(&mut self) -> anyhow::Result<()> {
        while self.engine.has_work() {
            let now = self.now();
            self.engine.step(now).context("ending a request")?;
        }
        Ok(())
    }

    fn request(&self, length: u32, decode_tokens: u32) -> Request {
        Request {
            request_id: RequestId(self.num_requests),
            prompt_token_ids: prompt(self.num_requests, length, self.vocab_size).into(),
            sampling: SamplingParams::greedy(decode_tokens + 1),
            tenant: tokens::TenantId::default(),
            cache_salt: CacheSalt::default(),
            sharing: KvSharingMode::Off,
            repair: engine::Repair::structural(),
            store: false,
            template: Vec::new(),
            segments: Vec::new(),
            embedding: None,
            session: None,
            readable: Vec::new(),
            arrival: self.now(),
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.started.elapsed())
    }
}

/// Tokens that look random, another sequence for each `seed` (a linear congruential generator, its high bits).
fn prompt(seed: u64, length: u32, vocab_size: u32) -> Vec<TokenId> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % u64::from(vocab_size)) as u32
    };
    (0..length).map(|_| TokenId(next())).collect()
}

impl EngineReport {
    fn to_table(&self) -> String {
        let header = ["prompt tokens", "prefill tokens/s", "decode tokens/s"];
        let row = |(length, prefill): (&u32, &f64)| {
            vec![length.to_string(), format!("{prefill:.1}"), format!("{:.1}", self.decode_tokens_per_s[length])]
        };
        let rows: Vec<_> = self.prefill_tokens_per_s.iter().map(row).collect();
        let facts = format!(
            "{}, {} threads, {} generated tokens, median of {}",
            self.model, self.threads, self.decode_tokens, self.repeats
        );
        format!("{facts}\n\n{}", table::markdown(&header, &rows, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_in_the_vocabulary_and_differ() {
        let (a, b) = (prompt(1, 200, 50), prompt(2, 200, 50));
        assert!(a.iter().all(|token| token.0 < 50));
        assert_eq!(a, prompt(1, 200, 50));
        assert_ne!(a, b);
    }

    #[test]
    fn lengths_beyond_the_model_are_refused() {
        assert!(check_lengths(&[512, 1983], 64, 2048).is_ok());
        let message = check_lengths(&[512, 1984], 64, 2048).unwrap_err().to_string();
        assert!(message.starts_with("1984 prompt tokens and 64 generated ones exceed the 2048"), "{message}");
    }

    #[test]
    fn the_report_has_one_speed_for_each_length() {
        let report = EngineReport {
            model: "m".to_owned(),
            threads: 2,
            kv_cache_dtype: crate::config::KvCacheDtype::F16,
            max_num_batched_tokens: 512,
            decode_tokens: 64,
            repeats: 3,
            load_seconds: 0.5,
            weight_bytes: 1,
            prefill_tokens_per_s: BTreeMap::from([(512, 100.0)]),
            decode_tokens_per_s: BTreeMap::from([(512, 10.0)]),
        };
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["prefill_tokens_per_s"]["512"], &json["decode_tokens_per_s"]["512"]), (&100.0.into(), &10.0.into()));
        assert!(report.to_table().contains("|           512 |            100.0 |            10.0 |"), "{}", report.to_table());
    }
}
