//! Sends a workload to a server and measures its answers.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use eval::workload::{self, Record};
use tokens::SharingMode;
use tokio::task::JoinSet;

use super::dispatch::Dispatch;
use super::report::{Answer, Measured, Outcome, ServeReport, group};
use crate::client::{ChatEvent, ChatRequest, Client, Message};
use crate::config::{Secret, sharing_mode_parser};
use crate::json_args::JsonArgs;
use crate::progress::{Progress, Unit};

/// Arguments of `kvshare bench serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct ServeBenchArgs {
    /// Server to measure
    #[arg(long, short, env = "KVSHARE_URL", default_value = "http://127.0.0.1:8000")]
    url: String,
    /// API key, where the server asks for one
    #[arg(long, env = "KVSHARE_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<Secret>,
    /// JSON lines with id, workload, donor_id, expect, messages and max_tokens
    #[arg(long, short, value_name = "FILE")]
    workload: PathBuf,
    /// Model to ask [default: the server's first]
    #[arg(long)]
    model: Option<String>,
    /// Requests in flight at most
    #[arg(long, short, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// Send only the first N requests
    #[arg(long, short = 'n', value_name = "N")]
    requests: Option<usize>,
    /// Tokens of an answer at most [default: the request's own]
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// KV that the requests may reuse [default: the server's]
    #[arg(long, value_parser = sharing_mode_parser())]
    kv_sharing: Option<SharingMode>,
    /// Share KV only with requests of this salt: another one for each run keeps runs on one server apart
    #[arg(long, value_name = "TEXT")]
    cache_salt: Option<String>,
    #[command(flatten)]
    json: JsonArgs,
    /// Write the id and text of each answer as JSON lines
    #[arg(long, value_name = "FILE")]
    save_outputs: Option<PathBuf>,
}

/// Settings common to all requests of a run.
#[derive(Clone)]
struct Target {
    client: Client,
    model: String,
    max_tokens: Option<u32>,
    kv_sharing: Option<SharingMode>,
    cache_salt: Option<String>,
}

/// Times of an answer, measured as it arrives.
struct Stopwatch {
    sent: Instant,
    first: Option<Duration>,
    last: Duration,
    gaps_ms: Vec<f64>,
}

/// Runs the workload, prints its table and writes the files asked for.
///
/// # Errors
/// If the workload cannot be read, the server does not answer, or (after the report) any request failed.
pub(crate) fn run(args: &ServeBenchArgs) -> anyhow::Result<()> {
    let records = workload::read(&args.workload, args.requests)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().context("starting the runtime")?;
    let report = runtime.block_on(measure(args, &records))?;
    args.json.write(&report, &report.to_table())?;
    if let Some(path) = &args.save_outputs {
        save_outputs(path, &report.records).with_context(|| format!("writing {}", path.display()))?;
    }
    match report.records.iter().find_map(first_error) {
        Some((id, reason)) => bail!("{} of {} requests failed, first {id}: {reason}", report.num_failed, report.records.len()),
        None => Ok(()),
    }
}

fn first_error(record: &Measured) -> Option<(&str, &str)> {
    match &record.outcome {
        Outcome::Error(reason) => Some((&record.id, reason)),
        Outcome::Answer(_) => None,
    }
}

async fn measure(args: &ServeBenchArgs, records: &[Record]) -> anyhow::Result<ServeReport> {
    let client = Client::new(&args.url)?.with_key(args.api_key.clone());
    let model = match &args.model {
        Some(model) => model.clone(),
        None => client.first_model().await?,
    };
    let cache_salt = args.cache_salt.clone();
    let target = Target { client, model, max_tokens: args.max_tokens, kv_sharing: args.kv_sharing, cache_salt };
    let started = Instant::now();
    let outcomes = send_all(&target, records, usize::from(args.concurrency)).await;
    let duration_seconds = started.elapsed().as_secs_f64();
    let measured: Vec<_> = records.iter().zip(outcomes).map(|(record, outcome)| join(record, outcome)).collect();
    let answers: Vec<_> = measured.iter().filter_map(Measured::answer).collect();
    let prompt_tokens: u64 = answers.iter().map(|answer| answer.usage.prompt_tokens).sum();
    let completion_tokens: u64 = answers.iter().map(|answer| answer.usage.completion_tokens).sum();
    Ok(ServeReport {
        url: args.url.clone(),
        model: target.model,
        workload: args.workload.display().to_string(),
        kv_sharing: args.kv_sharing.map(|mode| mode.to_string()),
        concurrency: usize::from(args.concurrency),
        duration_seconds,
        requests_per_s: answers.len() as f64 / duration_seconds,
        prompt_tokens_per_s: prompt_tokens as f64 / duration_seconds,
        completion_tokens_per_s: completion_tokens as f64 / duration_seconds,
        num_failed: measured.len() - answers.len(),
        groups: group(&measured),
        records: measured,
    })
}

fn join(record: &Record, outcome: Outcome) -> Measured {
    Measured {
        id: record.id.clone(),
        workload: record.workload.clone(),
        expect: record.expect.clone(),
        outcome,
        reference: record.reference.clone(),
    }
}

/// Sends all records, and returns their outcomes in the same order.
async fn send_all(target: &Target, records: &[Record], concurrency: usize) -> Vec<Outcome> {
    let mut dispatch = Dispatch::new(records);
    let mut outcomes: Vec<Option<Outcome>> = records.iter().map(|_| None).collect();
    let mut in_flight = JoinSet::new();
    let mut progress = Progress::new("requests", Unit::Count, records.len() as u64);
    loop {
        while in_flight.len() < concurrency
            && let Some(index) = dispatch.next_ready()
        {
            let (target, record) = (target.clone(), records[index].clone());
            in_flight.spawn(async move { (index, ask(&target, &record).await) });
        }
        let Some(finished) = in_flight.join_next().await else { break };
        let (index, answer) = finished.expect("a request neither panics nor is cancelled");
        dispatch.finish(index);
        progress.add(1);
        outcomes[index] = Some(answer.map_or_else(|error| Outcome::Error(format!("{error:#}")), Outcome::Answer));
    }
    outcomes.into_iter().map(|outcome| outcome.expect("every request was sent, and every answer waited for")).collect()
}

async fn ask(target: &Target, record: &Record) -> anyhow::Result<Answer> {
    let message = |message: &workload::Message| Message { role: message.role.clone(), content: message.content.clone() };
    let messages: Vec<_> = record.messages.iter().map(message).collect();
    let request = ChatRequest {
        model: &target.model,
        messages: &messages,
        max_tokens: Some(target.max_tokens.unwrap_or(record.max_tokens)),
        // Greedy, so that two runs differ only where the server does.
        temperature: Some(0.0),
        kv_sharing: target.kv_sharing.map(Into::into),
        cache_salt: target.cache_salt.as_deref(),
    };
    let mut stopwatch = Stopwatch::start();
    let mut stream = target.client.stream_chat(&request).await?;
    let mut answer = Answer::default();
    while let Some(event) = stream.next().await? {
        match event {
            ChatEvent::Text(text) => {
                stopwatch.text();
                answer.text.push_str(&text);
            }
            ChatEvent::Finished(reason) => answer.finish_reason = reason,
            ChatEvent::Usage(usage) => answer.usage = usage,
        }
    }
    stopwatch.stop(&mut answer);
    Ok(answer)
}

impl Stopwatch {
    fn start() -> Self {
        Self { sent: Instant::now(), first: None, last: Duration::ZERO, gaps_ms: Vec::new() }
    }

    /// Records the arrival of a piece of text.
    fn text(&mut self) {
        let now = self.sent.elapsed();
        match self.first {
            None => self.first = Some(now),
            Some(_) => self.gaps_ms.push(millis(now - self.last)),
        }
        self.last = now;
    }

    fn stop(self, answer: &mut Answer) {
        let end = self.sent.elapsed();
        answer.ttft_ms = millis(self.first.unwrap_or(end));
        answer.latency_ms = millis(end);
        answer.inter_token_ms = self.gaps_ms;
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn save_outputs(path: &Path, records: &[Measured]) -> anyhow::Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    for record in records {
        if let Some(answer) = record.answer() {
            writeln!(file, "{}", serde_json::json!({ "id": record.id, "text": answer.text }))?;
        }
    }
    Ok(file.flush()?)
}
