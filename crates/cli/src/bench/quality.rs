//! What span reuse costs in quality: token by token beside full computation, in process.
//!
//! The recipient's prompt is computed in full and answered greedily. Then the same prompt with spans of its donor is led
//! along that answer (teacher forcing), so that every position has two distributions after equal tokens. The same with the
//! donor's exact prefix alone is the control: what it shows is the noise of another order of computation.
//!
//! Only requests that received spans count, so that requests without a hit do not dilute the result.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use engine::{EngineCore, EngineEvent, Executor, KvSharingMode, KvUsage, LogProb, Request, SamplingParams};
use serde::Serialize;
use tokenizer::{ChatMessage, ChatOptions, EncodedPrompt, Tokenizer};
use tokens::{CacheSalt, RequestId, Timestamp, TokenId};

use super::divergence::kl_divergence;
use super::forced::{Choice, Forced};
use super::stats::Summary;
use super::table;
use super::workload::{self, Record};
use crate::client::Message;
use crate::config::{Config, ConfigArgs};
use crate::json_args::JsonArgs;
use crate::loading;
use crate::progress::{Progress, Unit};

/// What `kvshare bench quality` is told. The mode of the configuration does not matter: all modes are compared.
#[derive(Debug, clap::Args)]
pub(crate) struct QualityBenchArgs {
    /// JSON lines with id, workload, donor_id, messages and max_tokens; may be given several times
    #[arg(long, short, required = true, num_args = 1.., value_name = "FILE")]
    workload: Vec<PathBuf>,
    /// Tokens of each answer at most
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Compare only the first N requests with a donor in each workload
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    json: JsonArgs,
    #[command(flatten)]
    config: Box<ConfigArgs>,
}

/// Likeliest tokens of full computation that are told apart; all others are one.
const FULL_TOP: u32 = 64;
/// Likeliest tokens asked for beside them: more, so that those of full computation are hardly ever missing.
const COMPARED_TOP: u32 = 256;

/// A whole run.
#[derive(Debug, Serialize)]
struct QualityReport {
    model: String,
    kv_cache_dtype: crate::config::KvCacheDtype,
    max_tokens: u32,
    min_span: u32,
    head_tokens: u32,
    tail_tokens: u32,
    /// In the order of first occurrence.
    workloads: Vec<WorkloadQuality>,
}

/// Recipients of one workload. Shares and divergences are of hits only, and 0 without any.
#[derive(Debug, PartialEq, Serialize)]
struct WorkloadQuality {
    workload: String,
    /// Requests with a donor.
    recipients: usize,
    /// Those that received spans.
    hits: usize,
    /// Prompt tokens received as spans, of all prompt tokens.
    matched_ratio: f64,
    /// Prompt tokens computed, of all prompt tokens.
    computed_ratio: f64,
    /// The same of the control: below 1 where the donor's beginning was found.
    control_computed_ratio: f64,
    /// With spans.
    span: Agreement,
    /// With the donor's exact prefix only.
    control: Agreement,
    /// Each hit, in the order of the run.
    records: Vec<Hit>,
}

/// Positions of some answers beside those of full computation. Divergences are in nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Agreement {
    /// Compared.
    positions: usize,
    /// Share of the positions where the likeliest token is the one of full computation.
    top1_ratio: f64,
    /// KL(full || reuse), mean over positions.
    mean_kl: f64,
    /// The same over the first positions of answers.
    first_token_kl: f64,
}

/// One recipient that received spans.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Hit {
    id: String,
    prompt_tokens: usize,
    prefix_tokens: u32,
    span_tokens: u32,
    computed_tokens: u32,
    control_computed_tokens: u32,
    span: Comparison,
    control: Comparison,
}

/// One answer beside that of full computation, by position.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Comparison {
    agrees: Vec<bool>,
    kl: Vec<f64>,
}

/// Where a prompt comes from, and what it leaves.
#[derive(Clone, Copy)]
struct Reuse {
    cache_salt: CacheSalt,
    sharing: KvSharingMode,
    store: bool,
}

/// What a request said, and how its prompt was filled.
struct Said {
    tokens: Vec<TokenId>,
    /// At each position, if asked for.
    top: Vec<Vec<LogProb>>,
    usage: KvUsage,
}

/// An engine with one request in it at a time.
struct Bench<E> {
    engine: EngineCore<Forced<E>>,
    eos: Vec<TokenId>,
    max_tokens: u32,
    started: Instant,
    num_requests: u64,
    num_scopes: u64,
}

/// Recipients of one workload, by donor, donors in the order of their first recipient.
struct Plan<'a> {
    workload: &'a str,
    donors: Vec<(&'a Record, Vec<&'a Record>)>,
}

/// Loads the model, compares, and prints the table.
///
/// # Errors
/// If a workload or the model cannot be read, or a request does not fit the model.
pub(crate) fn run(args: QualityBenchArgs) -> anyhow::Result<()> {
    let files = args.workload.iter().map(|path| workload::read(path, None)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut plans = Vec::new();
    for records in &files {
        plans.extend(plan(records, args.limit)?);
    }
    let config = Config::resolve(*args.config)?;
    let mut loaded = loading::load(&config)?;
    let tokenizer = loading::tokenizer(&mut loaded)?;
    let scheduler = loading::scheduler_config(&config, &loaded.model)?;
    let mut report = QualityReport {
        model: loaded.files.id.clone(),
        kv_cache_dtype: config.engine.kv_cache_dtype,
        max_tokens: args.max_tokens,
        min_span: config.sharing.min_span,
        head_tokens: config.sharing.head_tokens,
        tail_tokens: config.sharing.tail_tokens,
        workloads: Vec::new(),
    };
    let engine = EngineCore::new(scheduler, Forced::new(loaded.model.runner)).context("starting the engine")?;
    let mut bench = Bench::new(engine, tokenizer.eos_ids().to_vec(), args.max_tokens);
    let num_recipients: usize = plans.iter().map(Plan::num_recipients).sum();
    let mut progress = Progress::new("comparing", Unit::Count, num_recipients as u64);
    for plan in &plans {
        report.workloads.push(measure(&mut bench, &tokenizer, plan, &mut progress)?);
    }
    progress.finish();
    args.json.write(&report, &report.to_table())
}

/// The recipients of a file by workload, at most `limit` of each.
fn plan(records: &[Record], limit: Option<usize>) -> anyhow::Result<Vec<Plan<'_>>> {
    let by_id: BTreeMap<_, _> = records.iter().map(|record| (record.id.as_str(), record)).collect();
    let mut plans: Vec<Plan<'_>> = Vec::new();
    for record in records {
        let Some(donor_id) = record.donor_id.as_deref() else { continue };
        let donor =
            *by_id.get(donor_id).with_context(|| format!("{} has the donor {donor_id}, which is not there", record.id))?;
        let index = plans.iter().position(|plan| plan.workload == record.workload).unwrap_or_else(|| {
            plans.push(Plan { workload: &record.workload, donors: Vec::new() });
            plans.len() - 1
        });
        if limit.is_none_or(|limit| plans[index].num_recipients() < limit) {
            plans[index].add(donor, record);
        }
    }
    if plans.is_empty() {
        bail!("a workload has no request with a donor_id");
    }
    Ok(plans)
}

impl<'a> Plan<'a> {
    fn num_recipients(&self) -> usize {
        self.donors.iter().map(|(_, recipients)| recipients.len()).sum()
    }

    fn add(&mut self, donor: &'a Record, recipient: &'a Record) {
        match self.donors.iter_mut().find(|(known, _)| known.id == donor.id) {
            Some((_, recipients)) => recipients.push(recipient),
            None => self.donors.push((donor, vec![recipient])),
        }
    }
}

fn measure<E: Executor>(
    bench: &mut Bench<E>,
    tokenizer: &Tokenizer,
    plan: &Plan<'_>,
    progress: &mut Progress,
) -> anyhow::Result<WorkloadQuality> {
    let mut hits = Vec::new();
    for (donor, recipients) in &plan.donors {
        let scope = bench.new_scope(&encode(tokenizer, donor)?).with_context(|| donor.id.clone())?;
        for recipient in recipients {
            let prompt = encode(tokenizer, recipient)?;
            hits.extend(bench.compare(&recipient.id, &prompt, scope).with_context(|| recipient.id.clone())?);
            progress.add(1);
        }
    }
    Ok(WorkloadQuality::of(plan.workload, plan.num_recipients(), hits))
}

/// The prompt as the server makes it of the same messages.
fn encode(tokenizer: &Tokenizer, record: &Record) -> anyhow::Result<EncodedPrompt> {
    let message = |message: &Message| ChatMessage::new(message.role.as_str(), message.content.as_str());
    let messages: Vec<_> = record.messages.iter().map(message).collect();
    let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
    tokenizer.encode_chat(&messages, &options).with_context(|| record.id.clone())
}

impl<E: Executor> Bench<E> {
    fn new(engine: EngineCore<Forced<E>>, eos: Vec<TokenId>, max_tokens: u32) -> Self {
        Self { engine, eos, max_tokens, started: Instant::now(), num_requests: 0, num_scopes: 0 }
    }

    /// A scope in which nothing but `donor` has been computed.
    fn new_scope(&mut self, donor: &EncodedPrompt) -> anyhow::Result<CacheSalt> {
        self.num_scopes += 1;
        let cache_salt = CacheSalt(self.num_scopes);
        let reuse = Reuse { cache_salt, sharing: KvSharingMode::Prefix, store: true };
        let request = self.request(donor, SamplingParams::greedy(1), reuse);
        self.say(request)?;
        Ok(cache_salt)
    }

    /// The prompt in full, with spans, and with a prefix; `None` if there was no span for it.
    fn compare(&mut self, id: &str, prompt: &EncodedPrompt, cache_salt: CacheSalt) -> anyhow::Result<Option<Hit>> {
        let reuse = |sharing| Reuse { cache_salt, sharing, store: false };
        let sampling = SamplingParams {
            logprobs: Some(FULL_TOP),
            stop_token_ids: self.eos.clone(),
            ..SamplingParams::greedy(self.max_tokens)
        };
        let request = self.request(prompt, sampling, reuse(KvSharingMode::Off));
        let full = self.say(request)?;
        let (span, usage) = self.follow(prompt, &full, reuse(KvSharingMode::Span))?;
        if usage.span_tokens == 0 {
            return Ok(None);
        }
        let (control, control_usage) = self.follow(prompt, &full, reuse(KvSharingMode::Prefix))?;
        Ok(Some(Hit {
            id: id.to_owned(),
            prompt_tokens: prompt.token_ids.len(),
            prefix_tokens: usage.prefix_tokens,
            span_tokens: usage.span_tokens,
            computed_tokens: usage.computed_tokens,
            control_computed_tokens: control_usage.computed_tokens,
            span,
            control,
        }))
    }

    /// Leads the prompt along the answer `full`.
    fn follow(&mut self, prompt: &EncodedPrompt, full: &Said, reuse: Reuse) -> anyhow::Result<(Comparison, KvUsage)> {
        let num_tokens = u32::try_from(full.tokens.len()).context("an answer's length")?;
        let sampling = SamplingParams { logprobs: Some(COMPARED_TOP), ..SamplingParams::greedy(num_tokens) };
        let request = self.request(prompt, sampling, reuse);
        let request_id = request.request_id;
        self.engine.executor_mut().force(request_id, full.tokens.clone());
        let usage = self.say(request)?.usage;
        let choices = self.engine.executor_mut().take(request_id).expect("the request was forced above");
        Ok((Comparison::of(full, &choices), usage))
    }

    fn request(&mut self, prompt: &EncodedPrompt, sampling: SamplingParams, reuse: Reuse) -> Request {
        self.num_requests += 1;
        Request {
            request_id: RequestId(self.num_requests),
            prompt_token_ids: prompt.token_ids.as_slice().into(),
            sampling,
            tenant: tokens::TenantId::default(),
            cache_salt: reuse.cache_salt,
            sharing: reuse.sharing,
            repair: engine::Repair::structural(),
            store: reuse.store,
            template: prompt.template.clone(),
            segments: Vec::new(),
            session: None,
            readable: Vec::new(),
            arrival: self.now(),
        }
    }

    /// Runs `request` alone to its end, and lets the engine forget it.
    fn say(&mut self, request: Request) -> anyhow::Result<Said> {
        self.engine.fits(&request).context("the request does not fit")?;
        let mut said = Said { tokens: Vec::new(), top: Vec::new(), usage: KvUsage::default() };
        let now = self.now();
        self.engine.add_request(request, now);
        while self.engine.has_work() {
            let now = self.now();
            for event in self.engine.step(now).context("running the model")? {
                match event {
                    EngineEvent::Token { token, logprobs, .. } => {
                        said.tokens.push(token);
                        said.top.extend(logprobs.map(|logprobs| logprobs.top));
                    }
                    EngineEvent::Finished { usage, .. } => said.usage = usage,
                    EngineEvent::Admitted { .. } | EngineEvent::PromptLogProbs { .. } => {}
                }
            }
        }
        Ok(said)
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.started.elapsed())
    }
}

impl Comparison {
    fn of(full: &Said, choices: &[Choice]) -> Self {
        let agrees = full.tokens.iter().zip(choices).map(|(token, choice)| choice.token == *token).collect();
        let kl = full.top.iter().zip(choices).map(|(top, choice)| kl_divergence(top, &choice.top)).collect();
        Self { agrees, kl }
    }
}

impl Agreement {
    fn of<'a>(comparisons: impl Iterator<Item = &'a Comparison> + Clone) -> Self {
        let agrees = comparisons.clone().flat_map(|comparison| &comparison.agrees);
        let top1 = Summary::of(agrees.map(|&agrees| f64::from(u8::from(agrees))));
        Self {
            positions: top1.n,
            top1_ratio: top1.mean,
            mean_kl: Summary::of(comparisons.clone().flat_map(|comparison| comparison.kl.iter().copied())).mean,
            first_token_kl: Summary::of(comparisons.filter_map(|comparison| comparison.kl.first().copied())).mean,
        }
    }
}

impl WorkloadQuality {
    fn of(workload: &str, recipients: usize, records: Vec<Hit>) -> Self {
        let num_tokens: usize = records.iter().map(|hit| hit.prompt_tokens).sum();
        let ratio =
            |part: fn(&Hit) -> u32| records.iter().map(|hit| f64::from(part(hit))).sum::<f64>() / num_tokens.max(1) as f64;
        Self {
            workload: workload.to_owned(),
            recipients,
            hits: records.len(),
            matched_ratio: ratio(|hit| hit.span_tokens),
            computed_ratio: ratio(|hit| hit.computed_tokens),
            control_computed_ratio: ratio(|hit| hit.control_computed_tokens),
            span: Agreement::of(records.iter().map(|hit| &hit.span)),
            control: Agreement::of(records.iter().map(|hit| &hit.control)),
            records,
        }
    }

    fn cells(&self) -> [Vec<String>; 2] {
        let row = |run: &str, ratios: [f64; 2], agreement: &Agreement| {
            let mut cells = vec![self.workload.clone(), run.to_owned(), self.recipients.to_string(), self.hits.to_string()];
            cells.extend(ratios.map(|ratio| format!("{:.1} %", 100.0 * ratio)));
            cells.extend([agreement.positions.to_string(), format!("{:.4}", agreement.top1_ratio)]);
            cells.extend([agreement.mean_kl, agreement.first_token_kl].map(|kl| format!("{kl:.6}")));
            cells
        };
        [
            row("span", [self.matched_ratio, self.computed_ratio], &self.span),
            row("control", [0.0, self.control_computed_ratio], &self.control),
        ]
    }
}

impl QualityReport {
    fn to_table(&self) -> String {
        let header =
            ["workload", "run", "recipients", "hits", "matched", "computed", "positions", "top-1", "mean KL", "first-token KL"];
        let rows: Vec<_> = self.workloads.iter().flat_map(WorkloadQuality::cells).collect();
        format!(
            "{}, answers of up to {} tokens, min_span {}, head_tokens {}, tail_tokens {}\n\
             Beside full computation, hits only. KL(full || reuse) in nats; control: exact prefix only\n\n{}",
            self.model,
            self.max_tokens,
            self.min_span,
            self.head_tokens,
            self.tail_tokens,
            table::markdown(&header, &rows, 2)
        )
    }
}

#[cfg(test)]
mod tests {
    use engine::SchedulerConfig;
    use testkit::{EchoExecutor, Reply};

    use super::*;

    fn prompt(tokens: impl Iterator<Item = u32>) -> EncodedPrompt {
        EncodedPrompt { token_ids: tokens.map(TokenId).collect(), template: Vec::new() }
    }

    fn bench() -> Bench<EchoExecutor> {
        let config = SchedulerConfig::new(64, 1024);
        let echo = EchoExecutor::new(Reply::Successor { vocab_size: 5000 }, config.block_size.as_usize());
        Bench::new(EngineCore::new(config, Forced::new(echo)).unwrap(), vec![TokenId(999)], 4)
    }

    fn record(id: &str, workload: &str, donor_id: Option<&str>) -> Record {
        Record {
            id: id.to_owned(),
            workload: workload.to_owned(),
            donor_id: donor_id.map(str::to_owned),
            expect: String::new(),
            messages: Vec::new(),
            max_tokens: 1,
            reference: Vec::new(),
        }
    }

    #[test]
    fn a_moved_span_is_a_hit_in_its_own_scope_only() {
        let mut bench = bench();
        let scope = bench.new_scope(&prompt(0..320)).unwrap();
        let moved = prompt((2000..2040).chain(100..300).chain(3000..3040));
        let hit = bench.compare("a", &moved, scope).unwrap().unwrap();
        assert!(hit.span_tokens > 100 && hit.prefix_tokens == 0, "{hit:?}");
        assert_eq!(hit.prompt_tokens as u32, hit.span_tokens + hit.computed_tokens);
        assert_eq!(hit.control_computed_tokens as usize, hit.prompt_tokens, "it has no prefix in common");
        assert_eq!((hit.span.agrees.len(), hit.span.kl.len()), (4, 4));
        assert_eq!(bench.compare("a", &moved, scope).unwrap(), Some(hit), "a comparison leaves nothing behind");
        let other = bench.new_scope(&prompt(4000..4200)).unwrap();
        assert_eq!(bench.compare("a", &moved, other).unwrap(), None);
    }

    #[test]
    fn an_answer_ends_with_its_stop_token() {
        let mut bench = bench();
        let scope = bench.new_scope(&prompt(0..320)).unwrap();
        let hit = bench.compare("a", &prompt((100..300).chain(960..998)), scope).unwrap().unwrap();
        assert_eq!(hit.span.agrees, [true, true]);
    }

    #[test]
    fn each_position_is_compared_with_the_same_one_of_full_computation() {
        let top = |token, p: f64| vec![LogProb { token: TokenId(token), logprob: p.ln() as f32, rank: 1 }];
        let full = Said { tokens: vec![TokenId(1), TokenId(2)], top: vec![top(1, 0.5), top(2, 0.5)], usage: KvUsage::default() };
        let choices = [Choice { token: TokenId(1), top: top(1, 0.5) }, Choice { token: TokenId(3), top: top(2, 0.25) }];
        let found = Comparison::of(&full, &choices);
        assert_eq!(found.agrees, [true, false]);
        let expected = 0.5 * 2f64.ln() + 0.5 * (0.5f64 / 0.75).ln();
        assert!(found.kl[0].abs() < 1e-6 && (found.kl[1] - expected).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn shares_are_of_all_tokens_and_divergences_of_all_positions() {
        let comparison = |kl: &[f64]| Comparison { agrees: kl.iter().map(|&kl| kl < 1.0).collect(), kl: kl.to_vec() };
        let hit = |prompt_tokens, span_tokens, kl: &[f64]| Hit {
            id: String::new(),
            prompt_tokens,
            prefix_tokens: 0,
            span_tokens,
            computed_tokens: prompt_tokens as u32 - span_tokens,
            control_computed_tokens: prompt_tokens as u32,
            span: comparison(kl),
            control: comparison(&[0.0]),
        };
        let found = WorkloadQuality::of("w", 3, vec![hit(100, 90, &[2.0, 0.0, 0.0]), hit(300, 110, &[1.0])]);
        assert_eq!((found.recipients, found.hits, found.matched_ratio, found.computed_ratio), (3, 2, 0.5, 0.5));
        let span = Agreement { positions: 4, top1_ratio: 0.5, mean_kl: 0.75, first_token_kl: 1.5 };
        assert_eq!(found.span, span);
        assert_eq!((found.control.positions, found.control.top1_ratio), (2, 1.0));
        let cells = found.cells();
        assert_eq!(cells[0].join(" "), "w span 3 2 50.0 % 50.0 % 4 0.5000 0.750000 1.500000");
        assert_eq!(cells[1].join(" "), "w control 3 2 0.0 % 100.0 % 2 1.0000 0.000000 0.000000");
    }

    #[test]
    fn recipients_are_planned_by_workload_and_donor_up_to_the_limit() {
        let records = [
            record("a", "w1", None),
            record("b", "w1", Some("a")),
            record("c", "w2", Some("a")),
            record("d", "w1", Some("b")),
            record("e", "w1", Some("a")),
            record("f", "w1", Some("a")),
        ];
        let text = |plan: &Plan<'_>| {
            let ids = |records: &[&Record]| records.iter().map(|record| record.id.as_str()).collect::<String>();
            let donors: Vec<_> =
                plan.donors.iter().map(|(donor, recipients)| format!("{}>{}", donor.id, ids(recipients))).collect();
            format!("{} {}", plan.workload, donors.join(" "))
        };
        let plans = plan(&records, Some(3)).unwrap();
        assert_eq!(plans.iter().map(text).collect::<Vec<_>>(), ["w1 a>be b>d", "w2 a>c"]);
    }

    #[test]
    fn a_workload_without_donors_is_refused() {
        let refusal = |records: &[Record]| plan(records, None).err().unwrap().to_string();
        assert_eq!(refusal(&[record("a", "w", None)]), "a workload has no request with a donor_id");
        assert_eq!(refusal(&[record("a", "w", Some("gone"))]), "a has the donor gone, which is not there");
    }
}
