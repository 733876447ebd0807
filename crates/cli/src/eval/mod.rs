//! Quality cost and time savings of KV reuse: workloads under a list of policies on one model, in process.
//!
//! Contains the protocol ([`evaluate`]), the metrics (`divergence`, [`task`], [`bleu`], [`work`]), their summary over requests with
//! intervals, and the report as tables, JSON and charts. Deliberately excludes the selection of tokens to recompute (`semantic`), and
//! load: one request runs at a time.

mod alone;
mod bleu;
mod bootstrap;
mod chart;
mod cover;
mod evaluate;
mod forced;
mod format;
mod measured;
mod plan;
mod plots;
pub(crate) mod policy;
mod prompt;
mod rank;
mod report;
mod summary;
mod task;
mod work;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use engine::{EngineCore, SchedulerConfig};
use tokenizer::{ChatMessage, ChatOptions, SegmentRule, Tokenizer};
use tokens::TokenId;

use self::alone::Alone;
use self::evaluate::{Evaluator, Settings};
use self::forced::Forced;
use self::plan::{Limits, Plan, Shard};
use self::policy::Policy;
pub(crate) use self::prompt::Prompt;
use self::report::{EvalReport, Setup};
use self::task::Metric;
use crate::bench::workload::{self, Record};
use crate::client::Message;
use crate::config::{Config, ConfigArgs};
use crate::json_args::JsonArgs;
use crate::loading::{self, Loaded};
use crate::progress::{Progress, Unit};

/// Arguments of `kvshare eval`. The configured sharing mode does not matter: each policy has its own.
#[derive(Debug, clap::Args)]
pub(crate) struct EvalArgs {
    /// JSON lines with id, workload, donor_id, messages, max_tokens, metric and reference; several may be given
    #[arg(long, short, num_args = 1.., value_name = "FILE", required_unless_present = "merge")]
    workload: Vec<PathBuf>,
    /// What to compare with full computation: off, prefix, or a repair policy over spans, with its share of the prompt as in dhd@0.3
    #[arg(long, num_args = 1.., value_name = "POLICY", required_unless_present = "merge")]
    policy: Vec<Policy>,
    /// Compare only the first N requests with a donor of each kind
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Leave out requests that are longer, or whose donors are
    #[arg(long, default_value_t = 7000, value_name = "N")]
    max_prompt_tokens: usize,
    /// Positions of each answer to compare at most; fewer where the request asks for fewer
    #[arg(long, default_value_t = 48, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Tokens of a free-running answer at most [default: as many as are compared]
    #[arg(long, value_name = "N", conflicts_with = "no_generate")]
    max_answer_tokens: Option<u32>,
    /// Leave out free-running answers and what is measured on them
    #[arg(long)]
    no_generate: bool,
    /// Take the noise floor from a second full computation in other chunks, in place of the run with exact prefixes
    #[arg(long)]
    repeat_floor: bool,
    /// Let requests of different tenants share, to show what keeping them apart prevents
    #[arg(long)]
    ignore_tenants: bool,
    /// Report divergences also less those of this policy, request by request
    #[arg(long, value_name = "POLICY")]
    baseline: Option<Policy>,
    /// Run one of several equal shares, as in 1/4; the results are put together with --merge
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Put results of earlier runs together instead of running
    #[arg(long, num_args = 1.., value_name = "JSON", conflicts_with_all = ["workload", "policy", "shard", "limit"])]
    merge: Vec<PathBuf>,
    /// Write charts into this folder
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    json: JsonArgs,
    #[command(flatten)]
    config: Box<ConfigArgs>,
}

/// Measures or merges, and prints the tables.
///
/// # Errors
/// If a file or the model cannot be read, a request does not fit the model, or the results cannot be written.
pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let report = match args.merge.is_empty() {
        true => measure(args)?,
        false => {
            let parts = args.merge.iter().map(|path| EvalReport::read(path)).collect::<anyhow::Result<_>>()?;
            EvalReport::merge(parts, args.baseline.map(|policy| policy.to_string()))?
        }
    };
    if let Some(folder) = &args.svg {
        plots::write(&report, folder)?;
    }
    args.json.write(&report, &report.to_table())
}

fn measure(args: &EvalArgs) -> anyhow::Result<EvalReport> {
    let files = args.workload.iter().map(|path| read(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let config = Config::resolve(*args.config.clone())?;
    let mut loaded = loading::load(&config)?;
    let tokenizer = loading::tokenizer(&config.model, &mut loaded)?;
    let limits = Limits { per_workload: args.limit, max_prompt_tokens: args.max_prompt_tokens };
    let mut plan = Plan::new(files, limits, &|record| encode(&tokenizer, record))?;
    if let Some(shard) = args.shard {
        plan.keep(shard);
    }
    let settings = settings(args, &loaded, &tokenizer);
    let mut report = empty_report(args, &config, &loaded, &settings, plan.num_too_long);
    // Only the policies may decide, no class of spans may be switched off on the way, and reuse that does not pay is a result.
    let gate = semantic::Gate::open();
    let scheduler = SchedulerConfig {
        verification: engine::VerificationConfig::default(),
        gate,
        ..loading::scheduler_config(&config, &loaded)?
    };
    let engine = EngineCore::new(scheduler, Forced::new(loaded.model.runner)).context("starting the engine")?;
    let decode = |tokens: &[TokenId]| tokenizer.decode(tokens, true);
    let mut evaluator = Evaluator { alone: Alone::new(engine), settings, decode: &decode };
    let mut progress = Progress::new("comparing", Unit::Count, plan.num_recipients() as u64);
    for group in &plan.groups {
        let measured = evaluator.measure(group, &mut || progress.add(1));
        report.requests.extend(measured.with_context(|| format!("recipients of {}", group.donor.record.id))?);
        // Without result rows; --merge computes them if the run ends here.
        args.json.save(&report)?;
    }
    progress.finish();
    let requests = std::mem::take(&mut report.requests);
    Ok(report.with_requests(requests))
}

/// Reads a file's name and requests, and checks that each names a known metric.
fn read(path: &Path) -> anyhow::Result<(String, Vec<Record>)> {
    let records = workload::read(path, None)?;
    for record in &records {
        if Metric::by_name(&record.metric).is_none() {
            bail!("{}: {} has the unknown metric {:?}", path.display(), record.id, record.metric);
        }
    }
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    Ok((name, records))
}

/// Encodes the prompt as the server does for the same messages.
///
/// # Errors
/// If the model has no chat template, or it refuses the conversation.
pub(crate) fn encode(tokenizer: &Tokenizer, record: &Record) -> anyhow::Result<Prompt> {
    let message = |message: &Message| ChatMessage::new(message.role.as_str(), message.content.as_str());
    let messages: Vec<_> = record.messages.iter().map(message).collect();
    let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
    let prompt = tokenizer.encode_chat(&messages, &options)?;
    let borders = tokenizer.borders(&prompt, &SegmentRule::Text);
    Ok(Prompt { token_ids: prompt.token_ids, template: prompt.template, borders })
}

fn settings(args: &EvalArgs, loaded: &Loaded, tokenizer: &Tokenizer) -> Settings {
    let mut policies: Vec<Policy> = Vec::new();
    let floor = args.repeat_floor.then_some(Policy::Off);
    for policy in floor.into_iter().chain(args.policy.iter().copied()) {
        if !policies.contains(&policy) {
            policies.push(policy);
        }
    }
    Settings {
        policies,
        max_tokens: args.max_tokens,
        max_answer_tokens: args.max_answer_tokens.unwrap_or(args.max_tokens).max(args.max_tokens),
        generates: !args.no_generate,
        ignores_tenants: args.ignore_tenants,
        num_layers: u32::try_from(loaded.model.config.num_layers()).unwrap_or(u32::MAX),
        eos: tokenizer.eos_ids().to_vec(),
    }
}

fn empty_report(args: &EvalArgs, config: &Config, loaded: &Loaded, settings: &Settings, num_too_long: usize) -> EvalReport {
    let setup = Setup {
        model: loaded.files.id.clone(),
        kv_cache_dtype: config.engine.kv_cache_dtype,
        max_tokens: args.max_tokens,
        max_answer_tokens: settings.generates.then_some(settings.max_answer_tokens),
        max_prompt_tokens: args.max_prompt_tokens,
        limit: args.limit,
        max_num_batched_tokens: loaded.model.max_num_batched_tokens,
        min_span: config.sharing.min_span,
        head_tokens: config.sharing.head_tokens,
        tail_tokens: config.sharing.tail_tokens,
        ignores_tenants: args.ignore_tenants,
    };
    EvalReport {
        setup,
        threads: config.engine.num_threads(),
        num_too_long,
        baseline: args.baseline.map(|policy| policy.to_string()),
        results: Vec::new(),
        requests: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::Command;

    use super::*;

    /// Writes files in the format that `benches/quality/suites.py` reads, with enough lines for each suite.
    fn write_data(folder: &Path) {
        let write = |name: &str, lines: &mut dyn Iterator<Item = serde_json::Value>| {
            let mut file = std::fs::File::create(folder.join(name)).unwrap();
            lines.for_each(|line| writeln!(file, "{line}").unwrap());
        };
        let text = |i: usize| format!("Line {i} of a speech. It goes on for a while.\n").repeat(600);
        write("longcontext_presidential.jsonl", &mut (0..3).map(|i| serde_json::json!({"id": i.to_string(), "text": text(i)})));
        let needle = |i: usize| {
            let (needle, answer) = (format!("The archive door code for the Town{i} office is 3000{i}."), format!("3000{i}"));
            serde_json::json!({"id": i.to_string(), "needle": needle, "question": "Which code?", "answer": answer})
        };
        write("longcontext_needles.jsonl", &mut (0..3).map(needle));
        let problem = |i: usize| serde_json::json!({"id": i.to_string(), "question": format!("{i}?"), "answer": "1 + 1 = <<1+1=2>>2\n#### 2", "final": "2"});
        write("gsm8k.jsonl", &mut (0..60).map(problem));
    }

    #[test]
    fn the_suites_are_workloads_with_known_measures() {
        let data = tempfile::tempdir().unwrap();
        write_data(data.path());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/quality/suites.py");
        let output = Command::new("python3").arg(script).arg(data.path()).args(["all", "2"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let path = data.path().join("suites.jsonl");
        std::fs::write(&path, output.stdout).unwrap();
        let files = vec![read(&path).unwrap()];
        let bytes = |record: &Record| {
            let text: String = record.messages.iter().map(|message| message.content.as_str()).collect();
            Ok(Prompt::plain(text.bytes().map(|byte| TokenId(byte.into())).collect()))
        };
        let limits = Limits { per_workload: None, max_prompt_tokens: usize::MAX };
        let plan = Plan::new(files, limits, &bytes).unwrap();
        // Of each document: two questions at each of three distances, six instructions, one canary; and one problem. Five kinds of rows and
        // sentences that something else governs.
        assert_eq!((plan.groups.len(), plan.num_recipients()), (2 * (3 + 6 + 1 + 1 + 5), 2 * (6 + 6 + 1 + 1 + 5)));
        for group in &plan.groups {
            let recipients: Vec<_> = group.recipients.iter().map(|recipient| &recipient.request.record).collect();
            let differs = recipients.iter().all(|record| record.messages != group.donor.record.messages);
            assert!(differs, "{} has a recipient that asks the same", group.donor.record.id);
            let is_canary = group.donor.record.workload == "canary";
            assert_eq!(recipients.iter().any(|record| record.tenant != group.donor.record.tenant), is_canary);
        }
    }

    #[test]
    fn an_unknown_measure_is_refused_before_anything_runs() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, r#"{{"id":"a","workload":"w","messages":[],"max_tokens":1,"metric":"taste"}}"#).unwrap();
        assert!(read(file.path()).unwrap_err().to_string().contains("unknown metric \"taste\""));
    }
}
