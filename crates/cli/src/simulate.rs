//! Replays a trace of requests on a virtual clock, without a model.

use std::path::PathBuf;

use anyhow::Context;
use sim::{PoolSize, SimOptions, Trace};
use tokens::SharingMode;

use crate::config::{Millis, Scheduling, sharing_mode_parser};
use crate::json_args::JsonArgs;

/// Arguments of `kvshare simulate`.
#[derive(Debug, clap::Args)]
pub(crate) struct SimulateArgs {
    /// JSON lines with arrival_s, input_length, output_length and, for prefix hits, hash_ids of blocks
    trace: PathBuf,
    /// Sizes of the KV pool in blocks of 512 tokens, or `unlimited` [default: 1000,4000,16000,unlimited]
    #[arg(long, value_delimiter = ',', value_name = "N,..")]
    blocks: Vec<PoolSize>,
    /// Orders of the waiting requests [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    policy: Vec<Scheduling>,
    /// KV of earlier requests to reuse
    #[arg(long, value_parser = sharing_mode_parser(), default_value = "prefix")]
    kv_sharing: SharingMode,
    /// Multiplies the times of arrival: below 1 is more load
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    time_scale: f64,
    /// Replay only the first N requests
    #[arg(long, short = 'n', value_name = "N")]
    requests: Option<usize>,
    /// Tokens computed in one step [default: 8192]
    #[arg(long, value_name = "N")]
    max_num_batched_tokens: Option<usize>,
    /// Requests running at once [default: 256]
    #[arg(long, value_name = "N")]
    max_num_seqs: Option<usize>,
    /// A request that has waited longer goes first [default: 2s]
    #[arg(long, value_name = "TIME")]
    max_overtake: Option<Millis>,
    /// The same in a long queue, as a multiple of the time it takes [default: 4]
    #[arg(long, value_name = "X")]
    max_overtake_ratio: Option<f64>,
    /// Share of the time waited that counts against predicted work at most [default: 0.5]
    #[arg(long, value_name = "X")]
    ageing: Option<f64>,
    /// Share of the longest delay that a request with much work waits longer than by arrival; 0: as `--ageing` has it [default: 0.35]
    #[arg(long, value_name = "X")]
    overtake_share: Option<f64>,
    /// Share of a step's rows for a long prompt while shorter ones wait [default: 0.1]
    #[arg(long, value_name = "X")]
    long_prompt_share: Option<f64>,
    #[command(flatten)]
    json: JsonArgs,
}

/// Replays, and prints a table of hit rate, time to first token and evictions by pool and policy.
///
/// # Errors
/// If the trace cannot be read, or the settings contradict each other.
pub(crate) fn run(args: &SimulateArgs) -> anyhow::Result<()> {
    let trace = Trace::open(&args.trace).with_context(|| format!("reading {}", args.trace.display()))?;
    let report = sim::simulate(trace, &options(args)).context("simulating")?;
    args.json.write(&report, &format!("{report}\n"))
}

fn options(args: &SimulateArgs) -> SimOptions {
    let defaults = SimOptions::default();
    let policies = args.policy.iter().copied().map(Into::into).collect();
    SimOptions {
        pools: if args.blocks.is_empty() { defaults.pools } else { args.blocks.clone() },
        policies: if args.policy.is_empty() { defaults.policies } else { policies },
        sharing: args.kv_sharing,
        time_scale: args.time_scale,
        max_requests: args.requests,
        max_num_batched_tokens: args.max_num_batched_tokens.unwrap_or(defaults.max_num_batched_tokens),
        max_num_seqs: args.max_num_seqs.unwrap_or(defaults.max_num_seqs),
        max_overtake: args.max_overtake.map_or(defaults.max_overtake, Millis::get),
        max_overtake_ratio: args.max_overtake_ratio.unwrap_or(defaults.max_overtake_ratio),
        ageing: args.ageing.unwrap_or(defaults.ageing),
        overtake_share: args.overtake_share.unwrap_or(defaults.overtake_share),
        long_prompt_share: args.long_prompt_share.unwrap_or(defaults.long_prompt_share),
        cost: defaults.cost,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        args: SimulateArgs,
    }

    fn parse(line: &str) -> SimOptions {
        options(&CommandLine::try_parse_from(line.split(' ')).unwrap().args)
    }

    #[test]
    fn without_flags_everything_is_the_simulators_default() {
        assert_eq!(format!("{:?}", parse("simulate trace.jsonl")), format!("{:?}", SimOptions::default()));
    }

    #[test]
    fn what_the_help_of_a_flag_calls_its_default_is_the_default() {
        use clap::CommandFactory;
        let (defaults, mut unstated) = (format!("{:?}", SimOptions::default()), Vec::new());
        for arg in CommandLine::command().get_arguments() {
            let Some(long) = arg.get_long() else { continue };
            match crate::config::help::stated_default(arg) {
                Some(all) if all == "all" => {}
                Some(stated) => {
                    assert_eq!(format!("{:?}", parse(&format!("simulate t --{long} {stated}"))), defaults, "--{long}")
                }
                // Clap prints those that it knows itself.
                None if arg.get_default_values().is_empty() => unstated.push(long.to_owned()),
                None => {}
            }
        }
        assert_eq!(unstated, ["requests", "json"]);
    }

    #[test]
    fn flags_reach_the_simulator() {
        let options = parse(
            "simulate t --blocks 10,unlimited --policy fcfs --kv-sharing off --time-scale 0.5 -n 7 --max-num-batched-tokens 64 \
             --max-num-seqs 3 --max-overtake 250ms --max-overtake-ratio 3 --ageing 0.25 --overtake-share 0.7 --long-prompt-share 1",
        );
        assert_eq!(options.pools, [PoolSize::Blocks(10), PoolSize::Unlimited]);
        assert_eq!(options.policies, [engine::SchedulePolicy::Fcfs]);
        assert_eq!((options.sharing, options.time_scale, options.max_requests), (tokens::SharingMode::Off, 0.5, Some(7)));
        assert_eq!((options.max_num_batched_tokens, options.max_num_seqs), (64, 3));
        assert_eq!(options.max_overtake, std::time::Duration::from_millis(250));
        let factors = [options.max_overtake_ratio, options.ageing, options.overtake_share, options.long_prompt_share];
        assert_eq!(factors, [3.0, 0.25, 0.7, 1.0]);
    }
}
