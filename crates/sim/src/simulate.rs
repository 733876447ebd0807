//! Simulation of all runs over one trace.

use crate::report::{SimReport, TraceReport};
use crate::{ReplayConfig, SimError, SimOptions, Trace, replay};

/// Replays `trace` with every pool and every policy of `options`.
///
/// # Errors
/// If `time_scale` is negative or not finite, or as [`replay()`].
pub fn simulate(trace: Trace, options: &SimOptions) -> Result<SimReport, SimError> {
    if !(options.time_scale.is_finite() && options.time_scale >= 0.0) {
        return Err(SimError::TimeScale(options.time_scale));
    }
    let trace = trace.truncated(options.max_requests.unwrap_or(usize::MAX)).scaled(options.time_scale);
    let mut runs = Vec::new();
    for &pool in &options.pools {
        for &policy in &options.policies {
            runs.push(replay(&trace, &ReplayConfig::new(options, pool, policy))?);
        }
    }
    Ok(SimReport { trace: TraceReport::new(&trace), cost: options.cost, time_scale: options.time_scale, runs })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PoolSize;
    use crate::testing::trace;

    #[test]
    fn every_pool_meets_every_policy() {
        let options = SimOptions { pools: vec![PoolSize::Blocks(8), PoolSize::Unlimited], ..SimOptions::default() };
        let report = simulate(trace(&[(0, &[1, 2], 3), (9, &[1, 2, 3], 3)]), &options).unwrap();
        let policies = ["fcfs", "kv-hit-rate", "remaining-work"];
        let expected: Vec<_> =
            ["8", "unlimited"].iter().flat_map(|pool| policies.map(|policy| format!("{pool} {policy}"))).collect();
        let runs: Vec<_> = report.runs.iter().map(|run| format!("{} {}", run.pool, run.policy)).collect();
        assert_eq!(runs, expected);
    }

    #[test]
    fn time_that_runs_backwards_is_refused() {
        let options = SimOptions { time_scale: -1.0, ..SimOptions::default() };
        let error = simulate(trace(&[]), &options).unwrap_err();
        assert_eq!(error.to_string(), "time_scale is -1, but must be finite and not negative");
    }

    #[test]
    fn only_the_first_requests_are_replayed() {
        let options = SimOptions { max_requests: Some(1), pools: vec![PoolSize::Unlimited], ..SimOptions::default() };
        let report = simulate(trace(&[(0, &[1], 3), (9, &[1], 3)]), &options).unwrap();
        assert_eq!(report.trace.num_requests, 1);
        assert_eq!(report.runs[0].num_finished, 1);
    }
}
