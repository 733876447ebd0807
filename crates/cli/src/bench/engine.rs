//! In-process engine benchmark: time to first token of new and of cached prompts, also from the host tier if there is one, decode by
//! batch, and many requests at once.
//!
//! No HTTP and no text. Measurements share KV only where they say so.

mod batches;
mod from_host;
mod latency;
mod load;

use std::fmt::Write;

use anyhow::bail;
use eval::table;
use serde::Serialize;

use self::batches::{BatchBench, DecodeSpeed};
use self::latency::{Latency, LatencyBench};
use self::load::{Load, LoadSpeed};
use super::driver::Driver;
use super::source::Source;
use crate::config::{ConfigArgs, KvCacheDtype};
use crate::json_args::JsonArgs;
use crate::progress::{Progress, Unit};

/// Arguments of `kvshare bench engine`.
#[derive(Debug, clap::Args)]
pub(crate) struct EngineBenchArgs {
    /// Prompt lengths whose time to first token is measured, in tokens
    #[arg(long, value_delimiter = ',', default_value = "512,2048", value_name = "N,..", value_parser = clap::value_parser!(u32).range(1..))]
    lengths: Vec<u32>,
    /// Sequences decoded at once, as in 1,8,32
    #[arg(long, value_delimiter = ',', value_name = "N,..", value_parser = clap::value_parser!(u32).range(1..))]
    batches: Vec<u32>,
    /// Prompt tokens of each sequence of a batch
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    decode_prompt: u32,
    /// Tokens generated after each prompt, and steps of each batch that are timed
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    decode_tokens: u32,
    /// Requests at once, as in 256x1024+128: how many, and tokens of each prompt and answer
    #[arg(long, value_name = "NxIN+OUT")]
    throughput: Option<Load>,
    /// Earlier prompts that a new one is compared with in vain, for the cost of a miss
    #[arg(long, default_value_t = 16, value_name = "N")]
    donors: u32,
    /// Measurements of each kind, of which the median counts
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    #[command(flatten)]
    json: JsonArgs,
    #[command(flatten)]
    config: Box<ConfigArgs>,
}

/// Medians of all measurements.
#[derive(Debug, Serialize)]
struct EngineReport {
    model: String,
    threads: usize,
    kv_cache_dtype: KvCacheDtype,
    num_kv_blocks: usize,
    /// Blocks of the host tier.
    #[serde(skip_serializing_if = "is_zero")]
    num_host_blocks: u32,
    max_num_batched_tokens: usize,
    decode_tokens: u32,
    decode_prompt: u32,
    repeats: u32,
    load_seconds: f64,
    weight_bytes: usize,
    lengths: Vec<Latency>,
    batches: Vec<DecodeSpeed>,
    throughput: Option<LoadSpeed>,
    /// Rows that could not be measured, with the errors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failures: Vec<Failure>,
}

/// Row that is missing.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Failure {
    what: String,
    error: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Loads the model, measures, and prints the medians.
///
/// # Errors
/// If the model cannot be loaded, a length or batch does not fit it, or something could not be measured; the rest is printed then.
pub(crate) fn run(args: &EngineBenchArgs) -> anyhow::Result<()> {
    let num_requests = args.throughput.map(|load| load.num_requests);
    let num_seqs = args.batches.iter().copied().chain(num_requests).max().unwrap_or(1) as usize;
    let source = Source::load(*args.config.clone(), num_seqs)?;
    let mut report = empty_report(args, &source);
    let vocab_size = source.vocab_size()?;
    let mut driver = Driver::new(source.scheduler, source.loaded.model.runner, vocab_size)?;
    measure(args, &mut driver, &mut report)?;
    args.json.write(&report, &report.to_table())?;
    match &report.failures[..] {
        [] => Ok(()),
        failures => bail!("{} measurements failed", failures.len()),
    }
}

fn empty_report(args: &EngineBenchArgs, source: &Source) -> EngineReport {
    EngineReport {
        model: source.loaded.files.id.clone(),
        threads: source.config.engine.num_threads(),
        kv_cache_dtype: source.config.engine.kv_cache_dtype,
        num_kv_blocks: source.scheduler.num_blocks,
        num_host_blocks: source.scheduler.host.num_blocks,
        max_num_batched_tokens: source.scheduler.max_num_batched_tokens,
        decode_tokens: args.decode_tokens,
        decode_prompt: args.decode_prompt,
        repeats: args.repeats,
        load_seconds: source.loaded.load_seconds,
        weight_bytes: source.loaded.model.weight_bytes,
        lengths: Vec::new(),
        batches: Vec::new(),
        throughput: None,
        failures: Vec::new(),
    }
}

/// Runs all measurements asked for. Refuses those without room before measuring anything; a later failure costs its own row only.
fn measure(args: &EngineBenchArgs, driver: &mut Driver, report: &mut EngineReport) -> anyhow::Result<()> {
    let EngineBenchArgs { lengths, decode_tokens, donors, repeats, .. } = args;
    let latency = LatencyBench { lengths, decode_tokens: *decode_tokens, donors: *donors, repeats: *repeats };
    let batches = BatchBench { prompt_tokens: args.decode_prompt, num_steps: *decode_tokens, repeats: *repeats };
    latency.check(driver)?;
    args.batches.iter().try_for_each(|&batch| batches.check(driver, batch))?;
    args.throughput.map_or(Ok(()), |load| load.check(driver))?;
    let num_kinds = args.lengths.len() + args.batches.len() + usize::from(args.throughput.is_some());
    let mut progress = Progress::new("measuring", Unit::Count, num_kinds as u64 * u64::from(args.repeats));
    let mut done = || progress.add(1);
    for (length, row) in latency.measure(driver, &mut done) {
        report.lengths.extend(report.failures.ok_or_record(|| format!("a prompt of {length} tokens"), row));
    }
    for &batch in &args.batches {
        let row = driver.attempt(|driver| batches.measure(driver, batch, &mut done));
        report.batches.extend(report.failures.ok_or_record(|| format!("a batch of {batch}"), row));
    }
    if let Some(load) = args.throughput {
        let row = driver.attempt(|driver| load.measure(driver, args.repeats, &mut done));
        report.throughput = report.failures.ok_or_record(|| "throughput".to_owned(), row);
    }
    progress.finish();
    Ok(())
}

/// Collector of failures.
trait RecordFailure {
    /// Returns the row of `what`, or records the failure.
    fn ok_or_record<T>(&mut self, what: impl FnOnce() -> String, row: anyhow::Result<T>) -> Option<T>;
}

impl RecordFailure for Vec<Failure> {
    fn ok_or_record<T>(&mut self, what: impl FnOnce() -> String, row: anyhow::Result<T>) -> Option<T> {
        row.map_err(|error| self.push(Failure { what: what(), error: format!("{error:#}") })).ok()
    }
}

impl EngineReport {
    fn to_table(&self) -> String {
        let mut text = format!(
            "{}, {} threads, {} KV blocks, {} tokens a step at most, median of {}\n\n",
            self.model, self.threads, self.num_kv_blocks, self.max_num_batched_tokens, self.repeats
        );
        text += &latency::table(&self.lengths, self.num_host_blocks > 0);
        if !self.batches.is_empty() {
            let header = ["sequences", "decode tokens/s", "ms a step"];
            let row =
                |it: &DecodeSpeed| vec![it.batch.to_string(), format!("{:.1}", it.tokens_per_s), format!("{:.2}", it.step_ms)];
            let rows: Vec<_> = self.batches.iter().map(row).collect();
            let _ = write!(text, "\nDecode behind {} prompt tokens:\n\n", self.decode_prompt); // Writing to a string cannot fail.
            text += &table::markdown(&header, &rows, 0);
        }
        if let Some(speed) = &self.throughput {
            text += &format!("\n{speed}\n");
        }
        for Failure { what, error } in &self.failures {
            text += &format!("\nNot measured: {what}: {error}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::driver::{tiny_driver, tiny_driver_for, tiny_driver_with_host_tier};
    use super::*;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        args: EngineBenchArgs,
    }

    fn report(flags: &str) -> anyhow::Result<EngineReport> {
        report_of(&mut tiny_driver(128), flags)
    }

    fn report_of(driver: &mut Driver, flags: &str) -> anyhow::Result<EngineReport> {
        let args = CommandLine::try_parse_from(["bench"].into_iter().chain(flags.split_whitespace())).unwrap().args;
        let mut report = EngineReport {
            model: "tiny".to_owned(),
            threads: 2,
            kv_cache_dtype: KvCacheDtype::F16,
            num_kv_blocks: 128,
            num_host_blocks: driver.config().host.num_blocks,
            max_num_batched_tokens: 128,
            decode_tokens: args.decode_tokens,
            decode_prompt: args.decode_prompt,
            repeats: args.repeats,
            load_seconds: 0.5,
            weight_bytes: 1,
            lengths: Vec::new(),
            batches: Vec::new(),
            throughput: None,
            failures: Vec::new(),
        };
        measure(&args, driver, &mut report)?;
        Ok(report)
    }

    #[test]
    fn all_that_was_asked_for_is_in_json_and_table() {
        let flags =
            "--lengths 200,400 --batches 1,4 --decode-prompt 100 --decode-tokens 5 --throughput 6x90+4 --donors 2 --repeats 2";
        let report = report(flags).unwrap();
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["lengths"][1]["prompt_tokens"], &json["batches"][1]["batch"]), (&400.into(), &4.into()));
        assert!(json["throughput"]["output_tokens_per_s"].as_f64() > Some(0.0));
        let table = report.to_table();
        for part in ["|           400 |", "Decode behind 100 prompt tokens", "|         4 |", "6 requests of 90 + 4 tokens: "] {
            assert!(table.contains(part), "{part} is not in\n{table}");
        }
    }

    #[test]
    fn what_comes_from_the_host_is_told_where_there_is_a_host_tier() {
        let flags = "--lengths 320,900 --decode-tokens 2 --donors 2 --repeats 2";
        let found = report_of(&mut tiny_driver_with_host_tier(128, 100), flags).unwrap();
        let json = serde_json::to_value(&found).unwrap();
        let blocks = |i: usize| json["lengths"][i]["from_host"]["num_blocks"].as_f64();
        assert_eq!((blocks(0), blocks(1), json["num_host_blocks"].as_u64()), (Some(10.0), Some(28.0), Some(100)));
        assert!(found.to_table().contains("| prefix from host ms | blocks from host |"), "{}", found.to_table());
        let without = report(flags).unwrap();
        let text = serde_json::to_string(&without).unwrap() + &without.to_table();
        assert!(!text.contains("host"), "{text}");
    }

    #[test]
    fn a_batch_of_any_size_runs() {
        let mut driver = tiny_driver_for(1_600, 300);
        let found =
            report_of(&mut driver, "--lengths 20 --donors 2 --batches 1,300 --decode-prompt 64 --decode-tokens 4 --repeats 1")
                .unwrap();
        assert_eq!(found.failures, []);
        assert_eq!(found.batches.iter().map(|row| row.batch).collect::<Vec<_>>(), [1, 300]);
    }

    #[test]
    fn a_row_that_fails_leaves_the_others() {
        // Eight sequences run at once, so that a ninth never runs beside them.
        let flags =
            "--lengths 20,30 --donors 2 --batches 9,2 --decode-prompt 20 --decode-tokens 4 --throughput 3x9+4 --repeats 1";
        let found = report_of(&mut tiny_driver_for(128, 8), flags).unwrap();
        assert_eq!(found.failures.iter().map(|failure| failure.what.as_str()).collect::<Vec<_>>(), ["a batch of 9"]);
        assert_eq!((found.lengths.len(), found.batches.len(), found.throughput.is_some()), (2, 1, true));
        assert!(found.to_table().contains("Not measured: a batch of 9: "), "{}", found.to_table());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for flags in ["--lengths 2000 --decode-tokens 60", "--lengths 9 --batches 30", "--lengths 9 --throughput 2x2000+90"] {
            let message = report(flags).unwrap_err().to_string();
            assert!(message.contains("raise --kv-cache-memory"), "{flags}: {message}");
        }
    }
}
