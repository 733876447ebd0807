//! Results of a simulation, for users and for programs.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::{CostModel, Trace, ideal_hits};

/// Results of all runs over one trace. Prints as a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SimReport {
    /// Trace that was replayed.
    pub trace: TraceReport,
    /// Cost of steps.
    pub cost: CostModel,
    /// Factor of the arrival times.
    pub time_scale: f64,
    /// One run for each pool and policy.
    pub runs: Vec<RunReport>,
}

/// Trace, with the hits of an unbounded exact-prefix cache.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TraceReport {
    /// Requests replayed.
    pub num_requests: u64,
    /// Blocks of their prompts; a partial last block counts as one.
    pub num_blocks: u64,
    /// Tokens of their prompts.
    pub input_tokens: u64,
    /// Tokens they generate.
    pub output_tokens: u64,
    /// Time from the first arrival to the last.
    pub span_seconds: f64,
    /// Share of the blocks that the unbounded cache finds, counted from the trace alone.
    pub ideal_block_hit_ratio: f64,
}

/// Results of one run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunReport {
    /// Blocks of the pool, or `unlimited`.
    pub pool: String,
    /// `fcfs`, `kv-hit-rate` or `remaining-work`.
    pub policy: String,
    /// Requests that ran to their end.
    pub num_finished: u64,
    /// Requests that the pool could never hold. They count nowhere else.
    pub num_refused: u64,
    /// Share of blocks found as prefix at first admission, of all blocks.
    ///
    /// A partial last block counts like any other, because the trace names it like any other. It is found if an equal one was computed
    /// before; its last token is computed nevertheless.
    pub block_hit_ratio: f64,
    /// Share of prompt tokens found as prefix at first admission.
    pub token_hit_ratio: f64,
    /// Share of prompt tokens copied as spans.
    pub span_token_ratio: f64,
    /// Time to first token.
    pub ttft: TtftReport,
    /// Time to first token of requests of which even an unbounded cache finds less than a tenth.
    pub miss_ttft: TtftReport,
    /// Cached blocks evicted.
    pub num_evictions: u64,
    /// Preempted requests.
    pub num_preemptions: u64,
    /// Steps that computed rows.
    pub num_steps: u64,
    /// Time from the first arrival to the last token.
    pub makespan_seconds: f64,
    /// Share of the makespan in which a step ran.
    pub busy_ratio: f64,
}

/// Distribution of times to first token, on virtual time. Percentiles are the nearest rank; all are 0 without requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TtftReport {
    /// Number of requests.
    pub num_requests: u64,
    /// Mean.
    pub mean_seconds: f64,
    /// Median.
    pub p50_seconds: f64,
    /// 99th percentile.
    pub p99_seconds: f64,
}

impl TraceReport {
    pub(crate) fn new(trace: &Trace) -> Self {
        let requests = &trace.requests;
        let ideal = ideal_hits(trace);
        let num_blocks: u64 = ideal.iter().map(|hits| hits.lookups).sum();
        let num_hits: u64 = ideal.iter().map(|hits| hits.hits).sum();
        let ends = requests.first().zip(requests.last());
        Self {
            num_requests: requests.len() as u64,
            num_blocks,
            input_tokens: requests.iter().map(|request| u64::from(request.input_tokens)).sum(),
            output_tokens: requests.iter().map(|request| u64::from(request.output_tokens)).sum(),
            span_seconds: ends.map_or(0.0, |(first, last)| last.arrival.since(first.arrival).as_secs_f64()),
            ideal_block_hit_ratio: crate::BlockHits { hits: num_hits, lookups: num_blocks }.ratio(),
        }
    }
}

impl TtftReport {
    pub(crate) fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let Some(last) = times.len().checked_sub(1) else { return Self::default() };
        let nearest_rank =
            |percent: usize| times[(times.len() * percent).div_ceil(100).saturating_sub(1).min(last)].as_secs_f64();
        Self {
            num_requests: times.len() as u64,
            mean_seconds: times.iter().sum::<Duration>().as_secs_f64() / times.len() as f64,
            p50_seconds: nearest_rank(50),
            p99_seconds: nearest_rank(99),
        }
    }
}

const COLUMNS: [&str; 12] = [
    "pool",
    "policy",
    "block hit",
    "token hit",
    "ttft mean",
    "p50",
    "p99",
    "misses' p99",
    "evictions",
    "preempted",
    "refused",
    "busy",
];

impl RunReport {
    fn cells(&self) -> [String; COLUMNS.len()] {
        [
            self.pool.clone(),
            self.policy.clone(),
            percent(self.block_hit_ratio),
            percent(self.token_hit_ratio),
            seconds(self.ttft.mean_seconds),
            seconds(self.ttft.p50_seconds),
            seconds(self.ttft.p99_seconds),
            seconds(self.miss_ttft.p99_seconds),
            self.num_evictions.to_string(),
            self.num_preemptions.to_string(),
            self.num_refused.to_string(),
            percent(self.busy_ratio),
        ]
    }
}

impl fmt::Display for SimReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TraceReport { num_requests, num_blocks, input_tokens, output_tokens, span_seconds, ideal_block_hit_ratio } =
            &self.trace;
        writeln!(f, "{num_requests} requests in {span_seconds:.0} s, {input_tokens} prompt tokens, {output_tokens} generated")?;
        let ideal = percent(*ideal_block_hit_ratio);
        writeln!(f, "{num_blocks} blocks, of which an unbounded exact-prefix cache finds {ideal}")?;
        writeln!(f)?;
        let rows: Vec<_> = self.runs.iter().map(RunReport::cells).collect();
        let widths: Vec<_> = (0..COLUMNS.len())
            .map(|column| rows.iter().map(|row| row[column].len()).chain([COLUMNS[column].len()]).max().unwrap_or_default())
            .collect();
        write_row(f, &COLUMNS, &widths)?;
        rows.iter().try_for_each(|row| write_row(f, row, &widths))
    }
}

/// Writes a row with names to the left, numbers to the right.
fn write_row(f: &mut fmt::Formatter<'_>, cells: &[impl AsRef<str>], widths: &[usize]) -> fmt::Result {
    for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
        match column {
            0 => write!(f, "{:>width$}", cell.as_ref())?,
            1 => write!(f, "  {:<width$}", cell.as_ref())?,
            _ => write!(f, "  {:>width$}", cell.as_ref())?,
        }
    }
    writeln!(f)
}

fn percent(ratio: f64) -> String {
    format!("{:.1} %", ratio * 100.0)
}

fn seconds(seconds: f64) -> String {
    format!("{seconds:.3} s")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::trace;

    #[track_caller]
    fn check_percentiles(millis: std::ops::RangeInclusive<u64>, expected: (f64, f64)) {
        let report = TtftReport::new(millis.rev().map(Duration::from_millis).collect());
        assert_eq!((report.p50_seconds, report.p99_seconds), expected);
    }

    #[test]
    fn percentiles_are_the_nearest_rank() {
        check_percentiles(1..=1, (0.001, 0.001));
        check_percentiles(1..=2, (0.001, 0.002));
        check_percentiles(1..=100, (0.050, 0.099));
        check_percentiles(1..=1000, (0.500, 0.990));
        assert_eq!(TtftReport::new(Vec::new()), TtftReport::default());
    }

    fn report() -> SimReport {
        let run = RunReport {
            pool: "unlimited".to_owned(),
            policy: "fcfs".to_owned(),
            num_finished: 2,
            num_refused: 0,
            block_hit_ratio: 0.366,
            token_hit_ratio: 0.5,
            span_token_ratio: 0.0,
            ttft: TtftReport { num_requests: 2, mean_seconds: 1.5, p50_seconds: 1.0, p99_seconds: 2.0 },
            miss_ttft: TtftReport { num_requests: 1, mean_seconds: 2.0, p50_seconds: 2.0, p99_seconds: 2.0 },
            num_evictions: 12_345_678_901,
            num_preemptions: 3,
            num_steps: 9,
            makespan_seconds: 10.0,
            busy_ratio: 0.25,
        };
        let trace = TraceReport::new(&trace(&[(0, &[1, 2], 3), (4, &[1, 3], 5)]));
        SimReport { trace, cost: CostModel::default(), time_scale: 1.0, runs: vec![run] }
    }

    #[test]
    fn the_table_is_aligned() {
        let expected = "\
2 requests in 4 s, 2048 prompt tokens, 8 generated
4 blocks, of which an unbounded exact-prefix cache finds 25.0 %

     pool  policy  block hit  token hit  ttft mean      p50      p99  misses' p99    evictions  preempted  refused    busy
unlimited  fcfs       36.6 %     50.0 %    1.500 s  1.000 s  2.000 s      2.000 s  12345678901          3        0  25.0 %
";
        assert_eq!(report().to_string(), expected);
    }

    #[test]
    fn the_report_serialises() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(json["trace"]["ideal_block_hit_ratio"], 0.25);
        assert_eq!(json["runs"][0]["ttft"]["p99_seconds"], 2.0);
    }
}
