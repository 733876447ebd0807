//! `kvshare eval`: measures the quality cost and time savings of KV reuse on one model, in process.

use std::path::PathBuf;

use anyhow::Context;
use eval::workload::read_scored;
use eval::{EvalReport, Evaluator, Layers, Limits, Plan, Policy, Prompt, Settings, Setup, Shard};
use tokenizer::Tokenizer;
use tokens::TokenId;

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
    /// Policies to compare with full computation: off, prefix, or a repair policy over spans, with its share of the prompt as in dhd@0.3
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
        eval::write_charts(&report, folder)?;
    }
    args.json.write(&report, &report.to_table())
}

fn measure(args: &EvalArgs) -> anyhow::Result<EvalReport> {
    let files = args.workload.iter().map(|path| read_scored(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let config = Config::resolve(*args.config.clone())?;
    let mut loaded = loading::load(&config)?;
    let tokenizer = loading::tokenizer(&config.model, &mut loaded)?;
    let limits = Limits { per_workload: args.limit, max_prompt_tokens: args.max_prompt_tokens };
    let mut plan = Plan::new(files, limits, &|record| Ok(Prompt::encode(&tokenizer, record)?))?;
    if let Some(shard) = args.shard {
        plan.keep(shard);
    }
    let settings = settings(args, &loaded, &tokenizer);
    let mut report = empty_report(args, &config, &loaded, &settings, plan.num_too_long);
    let scheduler = loading::scheduler_config(&config, &loaded)?;
    let decode = |tokens: &[TokenId]| tokenizer.decode(tokens, true);
    let mut evaluator = Evaluator::new(scheduler, loaded.model.runner, settings, &decode)?;
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
        layers: Layers {
            total: u32::try_from(loaded.model.config.num_layers()).unwrap_or(u32::MAX),
            local: u32::try_from(loaded.model.config.num_local_layers()).unwrap_or(0),
        },
        eos: tokenizer.eos_ids().to_vec(),
    }
}

fn empty_report(args: &EvalArgs, config: &Config, loaded: &Loaded, settings: &Settings, num_too_long: usize) -> EvalReport {
    let setup = Setup {
        model: loaded.files.id.clone(),
        kv_cache_dtype: config.engine.kv_cache_dtype.as_str().to_owned(),
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
