//! Simulation of all runs over one trace.

use crate::report::{SimReport, TraceReport};
use crate::{ReplayConfig, SimError, SimOptions, Trace, replay};

/// Replays `trace` with every pool and every policy of `options`.
///
/// # Errors
/// If `time_scale` is negative, not finite or too large, if there is no request to replay, or as [`replay()`].
pub fn simulate(trace: Trace, options: &SimOptions) -> Result<SimReport, SimError> {
    let trace = trace.truncated(options.max_requests.unwrap_or(usize::MAX)).scaled(options.time_scale);
    let trace = trace.ok_or(SimError::TimeScale(options.time_scale))?;
    if trace.requests.is_empty() {
        return Err(SimError::Empty);
    }
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
    fn settings_that_cannot_be_meant_are_refused() {
        let check = |options: SimOptions, named: &str| {
            let error = simulate(trace(&[(1, &[1], 3), (9, &[1], 3)]), &options).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        };
        check(SimOptions { time_scale: -1.0, ..SimOptions::default() }, "time_scale is -1.0, but must be finite, not negative");
        check(SimOptions { time_scale: 1e12, ..SimOptions::default() }, "time_scale is 1000000000000.0, but");
        check(SimOptions { ageing: 1e300, ..SimOptions::default() }, "ageing is 1e300, but must be between 0 and 1000");
        check(SimOptions { max_overtake_ratio: 1e300, ..SimOptions::default() }, "max_overtake_ratio");
        check(SimOptions { max_requests: Some(0), ..SimOptions::default() }, "no requests to replay");
    }

    #[test]
    fn times_at_their_bounds_do_not_overflow() {
        let options = SimOptions { ageing: 1000.0, overtake_share: 0.0, max_overtake_ratio: 1000.0, ..SimOptions::default() };
        let late = trace(&[(0, &[1], 3), (999_999_999, &[1], 3), (999_999_999, &[2], 3)]);
        assert!(simulate(late, &options).unwrap().runs.iter().all(|run| run.num_finished == 3));
    }

    #[test]
    fn only_the_first_requests_are_replayed() {
        let options = SimOptions { max_requests: Some(1), pools: vec![PoolSize::Unlimited], ..SimOptions::default() };
        let report = simulate(trace(&[(0, &[1], 3), (9, &[1], 3)]), &options).unwrap();
        assert_eq!(report.trace.num_requests, 1);
        assert_eq!(report.runs[0].num_finished, 1);
    }
}
