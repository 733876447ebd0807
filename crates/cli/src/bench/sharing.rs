//! Savings and costs of moved spans: time to first token of a prompt that is nearly all text of an earlier one in another order.
//!
//! Prompts are random tokens, so that only planted spans match; random weights give the times of real ones, since times do not depend on
//! values. Steps that depend on values are off: the gate that declines small savings is open, no answer is verified, and only policies that
//! name a bound give up or stop early by a measured deviation.

mod composed;
mod decode_interference;

use anyhow::{Context, bail, ensure};
use engine::{Repair, SchedulerConfig, SpanOutcome};
use eval::stats::median;
use eval::{Policy, table};
use serde::Serialize;
use tokens::SharingMode;

use self::composed::Donor;
use self::decode_interference::{DecodeInterference, Decoders};
use super::driver::{BenchRequest, Driver, RequestTimes, millis};
use super::source::Source;
use crate::config::{ConfigArgs, KvCacheDtype};
use crate::json_args::JsonArgs;
use crate::progress::{Progress, Unit};

/// Arguments of `kvshare bench sharing`. The configured sharing mode does not matter: each policy is one of mode `span`.
#[derive(Debug, clap::Args)]
pub(crate) struct SharingBenchArgs {
    /// Lengths of the prompts, in tokens
    #[arg(long, value_delimiter = ',', default_value = "2048,8192", value_name = "N,..", value_parser = clap::value_parser!(u32).range(128..))]
    lengths: Vec<u32>,
    /// Repair policies over spans, each with the share of the prompt that it may recompute
    #[arg(long, value_delimiter = ',', value_name = "POLICY,..", value_parser = span_policy,
        default_value = "none,epic,cacheblend@.05,cacheblend@.10,cacheblend@.20,dhd@.05,dhd@.10,dhd@.20,impact@.15+drift")]
    policies: Vec<Repair>,
    /// Number of pieces of the earlier prompt that are reordered
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    spans: u32,
    /// Share of a prompt's tokens that lie in those pieces
    #[arg(long, default_value_t = 0.98, value_name = "SHARE")]
    moved_share: f64,
    /// Sequences that decode beside the prompt, to see how much later their tokens come; 0 leaves that out
    #[arg(long, default_value_t = 8, value_name = "N")]
    decoders: u32,
    /// Measurements of each kind, of which the median counts
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    #[command(flatten)]
    json: JsonArgs,
    #[command(flatten)]
    config: Box<ConfigArgs>,
}

/// All medians.
#[derive(Debug, Serialize)]
struct SharingReport {
    model: String,
    threads: usize,
    kv_cache_dtype: KvCacheDtype,
    max_num_batched_tokens: usize,
    spans: u32,
    moved_share: f64,
    decoders: u32,
    repeats: u32,
    rows: Vec<SharingRow>,
}

/// Medians of one length under one policy. Times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct SharingRow {
    prompt_tokens: u32,
    policy: String,
    /// Time to first token of a new prompt of this length, sharing off.
    cold_ttft_ms: f64,
    ttft_ms: f64,
    /// Ratio of cold time to first token to this one.
    speedup: f64,
    /// Tokens reused as the donor had them.
    span_tokens: u32,
    /// Rows computed through all layers, including those recomputed on purpose.
    computed_tokens: u32,
    /// Search, plan, and all time outside the executor.
    plan_ms: f64,
    /// Copies of spans with rotation of their keys, and copies of blocks.
    move_ms: f64,
    /// Layer-0 check.
    check_ms: f64,
    probe_ms: f64,
    /// Part of the probe that compares and scores.
    scoring_ms: f64,
    forward_ms: f64,
    sample_ms: f64,
    /// Effect on decoding sequences while this prompt is prefilled.
    beside: Option<DecodeInterferenceRow>,
}

/// Cost of this prompt for decoding sequences, and that of a prompt without spans that computes as many rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct DecodeInterferenceRow {
    sharing: DecodeInterference,
    same_rows: DecodeInterference,
    /// Median ratio of the longest times between two tokens: `sharing` to `same_rows`.
    worst_ratio: f64,
}

/// Prompt tokens of each decoding sequence.
const DECODER_PROMPT: u32 = 128;

/// Minimum steps that decoding sequences last for each repetition: both prompts and the steps before them. Chosen generously; they are
/// aborted at the end.
const DECODER_STEPS: u32 = 256;

/// Loads the model, measures, and prints the medians.
///
/// # Errors
/// If the model cannot be loaded, a length does not fit it, or nothing is reused.
pub(crate) fn run(args: &SharingBenchArgs) -> anyhow::Result<()> {
    ensure!((0.5..1.0).contains(&args.moved_share), "--moved-share must be at least 0.5 and below 1, is {}", args.moved_share);
    let source = Source::load(*args.config.clone(), args.decoders as usize + 1)?;
    let mut report = SharingReport {
        model: source.loaded.files.id.clone(),
        threads: source.config.engine.num_threads(),
        kv_cache_dtype: source.config.engine.kv_cache_dtype,
        max_num_batched_tokens: source.scheduler.max_num_batched_tokens,
        spans: args.spans,
        moved_share: args.moved_share,
        decoders: args.decoders,
        repeats: args.repeats,
        rows: Vec::new(),
    };
    let vocab_size = source.vocab_size()?;
    let scheduler = SchedulerConfig { gate: semantic::Gate::open(), ..source.scheduler };
    let mut driver = Driver::new(scheduler, source.loaded.model.runner, vocab_size)?;
    measure(args, &mut driver, &mut report)?;
    args.json.write(&report, &report.to_table())
}

fn span_policy(text: &str) -> Result<Repair, String> {
    match text.parse::<Policy>() {
        Ok(Policy::Span(repair)) => Ok(repair),
        Ok(policy) => Err(format!("{policy} moves no spans")),
        Err(error) => Err(error.to_string()),
    }
}

fn measure(args: &SharingBenchArgs, driver: &mut Driver, report: &mut SharingReport) -> anyhow::Result<()> {
    for &length in &args.lengths {
        let decoders =
            args.decoders as usize * driver.config().block_size.blocks_for((DECODER_PROMPT + decoder_tokens(args)) as usize);
        driver.check_room(2, length + 1, decoders)?;
    }
    let num_rows = args.lengths.len() * args.policies.len();
    let mut progress = Progress::new("measuring", Unit::Count, num_rows as u64);
    for &length in &args.lengths {
        let cold_ttft_ms = cold(driver, length, args.repeats)?;
        driver.forget();
        let donor = Donor::new(driver, length, args.spans, args.moved_share);
        driver.run(donor.request())?;
        for &repair in &args.policies {
            let row = Case { driver, donor: &donor, repair, length, cold_ttft_ms }.measure(args);
            report.rows.push(row.with_context(|| format!("{repair} at {length} tokens"))?);
            progress.add(1);
        }
    }
    progress.finish();
    Ok(())
}

fn decoder_tokens(args: &SharingBenchArgs) -> u32 {
    DECODER_STEPS * args.repeats
}

/// Measures the time to first token of new prompts, without the first one.
fn cold(driver: &mut Driver, length: u32, repeats: u32) -> anyhow::Result<f64> {
    let mut times = Vec::new();
    for _ in 0..=repeats {
        let request = BenchRequest::exact(driver.text(length), 1);
        times.push(millis(driver.run(request)?.ttft));
    }
    Ok(median(times.split_off(1)))
}

/// One length under one policy, with the donor in the pool.
struct Case<'a> {
    driver: &'a mut Driver,
    donor: &'a Donor,
    repair: Repair,
    length: u32,
    cold_ttft_ms: f64,
}

impl Case<'_> {
    fn measure(mut self, args: &SharingBenchArgs) -> anyhow::Result<SharingRow> {
        let mut all = Vec::new();
        for _ in 0..=args.repeats {
            all.push(self.run_alone()?);
        }
        let all = all.split_off(1); // The first run prepares memory.
        let beside = match args.decoders {
            0 => None,
            _ => Some(self.measure_decode_interference(args, &all[0])?),
        };
        Ok(self.summary(&all, beside))
    }

    fn request(&mut self) -> BenchRequest {
        BenchRequest { sharing: SharingMode::Span, repair: self.repair, ..self.donor.composed(self.driver) }
    }

    fn run_alone(&mut self) -> anyhow::Result<RequestTimes> {
        let request = self.request();
        let times = self.driver.run(request)?;
        if times.usage.span_tokens + times.usage.recomputed_tokens == 0 {
            let outcomes = self.driver.stats().span_lookups;
            let seen: Vec<_> = outcomes.iter().filter(|(outcome, n)| *n > 0 && *outcome != SpanOutcome::Reused).collect();
            bail!("no span was moved; lookups ended so far with {seen:?}");
        }
        Ok(times)
    }

    /// Measures beside decoding sequences, alternating with a prompt without spans that computes as many rows as `alone` did.
    fn measure_decode_interference(
        &mut self,
        args: &SharingBenchArgs,
        alone: &RequestTimes,
    ) -> anyhow::Result<DecodeInterferenceRow> {
        let num_rows = alone.usage.computed_tokens;
        let (mut sharing, mut same_rows) = (Vec::new(), Vec::new());
        let decoders = Decoders::start(self.driver, args.decoders, DECODER_PROMPT, decoder_tokens(args))?;
        for _ in 0..args.repeats {
            let request = self.request();
            sharing.push(decoders.measure(self.driver, request)?);
            let request = BenchRequest::exact(self.driver.text(num_rows), 1);
            same_rows.push(decoders.measure(self.driver, request)?);
        }
        decoders.stop(self.driver)?;
        let worst_ratio = median(sharing.iter().zip(&same_rows).map(|(one, other)| one.worst_ms / other.worst_ms));
        Ok(DecodeInterferenceRow {
            sharing: DecodeInterference::median_of(&sharing),
            same_rows: DecodeInterference::median_of(&same_rows),
            worst_ratio,
        })
    }

    fn summary(&self, all: &[RequestTimes], beside: Option<DecodeInterferenceRow>) -> SharingRow {
        let of = |value: &dyn Fn(&RequestTimes) -> f64| median(all.iter().map(value));
        let ttft_ms = of(&|times| millis(times.ttft));
        // The counts are equal in all repetitions except for ties between scores.
        let usage = all[all.len() / 2].usage;
        SharingRow {
            prompt_tokens: self.length,
            policy: self.repair.to_string(),
            cold_ttft_ms: self.cold_ttft_ms,
            ttft_ms,
            speedup: self.cold_ttft_ms / ttft_ms,
            span_tokens: usage.span_tokens,
            computed_tokens: usage.computed_tokens,
            plan_ms: of(&|times| millis(times.ttft.saturating_sub(times.timings.total()))),
            move_ms: of(&|times| millis(times.timings.copies + times.timings.moves)),
            check_ms: of(&|times| millis(times.timings.check)),
            probe_ms: of(&|times| millis(times.timings.probe)),
            scoring_ms: of(&|times| millis(times.timings.scoring)),
            forward_ms: of(&|times| millis(times.timings.forward)),
            sample_ms: of(&|times| millis(times.timings.sample)),
            beside,
        }
    }
}

impl SharingReport {
    fn to_table(&self) -> String {
        let facts = format!(
            "{}, {} threads, {} tokens a step at most, {:.0} % of each prompt in {} moved spans, median of {}",
            self.model,
            self.threads,
            self.max_num_batched_tokens,
            100.0 * self.moved_share,
            self.spans,
            self.repeats
        );
        let header = [
            "policy", "tokens", "cold ms", "TTFT ms", "speedup", "rows", "plan", "move", "check", "probe", "scoring", "forward",
            "sample",
        ];
        let rows: Vec<_> = self.rows.iter().map(SharingRow::cells).collect();
        let mut text = format!("{facts}\n\n{}", table::markdown(&header, &rows, 1));
        let beside: Vec<_> = self.rows.iter().filter_map(SharingRow::decode_interference_cells).collect();
        if !beside.is_empty() {
            let header = ["policy", "tokens", "ITL ms", "worst beside", "of same rows", "ratio", "delay ms", "of same rows"];
            text += &format!("\n{} sequences that decode beside the prompt:\n\n", self.decoders);
            text += &table::markdown(&header, &beside, 1);
        }
        text
    }
}

impl SharingRow {
    fn cells(&self) -> Vec<String> {
        let times = [self.plan_ms, self.move_ms, self.check_ms, self.probe_ms, self.scoring_ms, self.forward_ms, self.sample_ms];
        let mut cells = vec![self.policy.clone(), self.prompt_tokens.to_string()];
        cells.extend([self.cold_ttft_ms, self.ttft_ms, self.speedup].map(|value| format!("{value:.2}")));
        cells.push(self.computed_tokens.to_string());
        cells.extend(times.map(|time| format!("{time:.2}")));
        cells
    }

    fn decode_interference_cells(&self) -> Option<Vec<String>> {
        let DecodeInterferenceRow { sharing, same_rows, worst_ratio } = self.beside?;
        let mut cells = vec![self.policy.clone(), self.prompt_tokens.to_string()];
        let values = [sharing.alone_ms, sharing.worst_ms, same_rows.worst_ms, worst_ratio, sharing.delay_ms, same_rows.delay_ms];
        cells.extend(values.map(|value| format!("{value:.2}")));
        Some(cells)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::driver::tiny_driver;
    use super::*;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        args: SharingBenchArgs,
    }

    fn parse(flags: &str) -> Result<SharingBenchArgs, clap::Error> {
        CommandLine::try_parse_from(["bench"].into_iter().chain(flags.split_whitespace())).map(|line| line.args)
    }

    fn report(flags: &str, num_blocks: usize) -> anyhow::Result<SharingReport> {
        let args = parse(flags).unwrap();
        let mut report = SharingReport {
            model: "tiny".to_owned(),
            threads: 2,
            kv_cache_dtype: KvCacheDtype::F16,
            max_num_batched_tokens: 128,
            spans: args.spans,
            moved_share: args.moved_share,
            decoders: args.decoders,
            repeats: args.repeats,
            rows: Vec::new(),
        };
        measure(&args, &mut tiny_driver(num_blocks), &mut report)?;
        Ok(report)
    }

    #[test]
    fn nearly_all_of_the_prompt_is_moved_and_each_policy_computes_its_share() {
        let report =
            report("--lengths 1500 --policies none,epic,dhd@.10,impact@.2+drift --spans 4 --decoders 0 --repeats 1", 256)
                .unwrap();
        let rows: Vec<_> = report.rows.iter().map(|row| row.computed_tokens).collect();
        // Two percent are new, and a donor gives whole blocks; then come 8 head rows of each span, then shares.
        assert!((30..70).contains(&rows[0]) && (rows[0] + 30..rows[0] + 60).contains(&rows[1]), "{rows:?}");
        assert_eq!((rows[2] - rows[1], rows[3] - rows[1] > 280), (150, true), "{rows:?}");
        assert!(
            report.rows.iter().all(|row| row.speedup > 0.0 && row.move_ms > 0.0 && row.check_ms > 0.0 && row.forward_ms > 0.0)
        );
        assert!(report.rows[0].speedup > 1.0, "{:?}", report.rows[0]);
        assert!(report.rows[0].probe_ms < report.rows[2].probe_ms, "only some measure");
        assert!(report.to_table().contains("| dhd@0.1"), "{}", report.to_table());
    }

    #[test]
    fn those_who_decode_are_measured_beside_prompts_of_as_many_rows() {
        let report = report("--lengths 600 --policies impact@.2 --spans 4 --decoders 3 --repeats 2", 256).unwrap();
        let beside = report.rows[0].beside.unwrap();
        assert!(beside.sharing.steps >= beside.same_rows.steps && beside.sharing.alone_ms > 0.0, "{beside:?}");
        assert!(beside.worst_ratio > 0.0 && report.to_table().contains("3 sequences that decode"), "{beside:?}");
    }

    #[test]
    fn a_pool_without_room_for_donor_and_prompt_is_refused() {
        let error = report("--lengths 1500 --policies none --decoders 0", 64).unwrap_err();
        assert!(error.to_string().contains("raise --kv-cache-memory"), "{error}");
    }

    #[test]
    fn only_policies_over_spans_are_measured() {
        for (policy, part) in [("off", "moves no spans"), ("prefix", "moves no spans"), ("best", "best")] {
            let error = parse(&format!("--policies {policy}")).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
