//! Decode throughput of several sequences at once, without prefill.

use std::time::Duration;

use anyhow::ensure;
use eval::stats::median;
use serde::Serialize;
use tokens::SharingMode;

use super::super::driver::{BenchRequest, Driver, millis};

/// Steps before the timed ones: a device may prepare for a batch it has not seen.
const WARM_UP_STEPS: u32 = 3;

/// Median speed of one batch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct DecodeSpeed {
    pub(super) batch: u32,
    /// Throughput of all sequences together.
    pub(super) tokens_per_s: f64,
    pub(super) step_ms: f64,
}

/// Settings of the batch measurements.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchBench {
    /// Tokens of each prompt.
    pub(super) prompt_tokens: u32,
    /// Timed steps.
    pub(super) num_steps: u32,
    pub(super) repeats: u32,
}

impl BatchBench {
    /// Checks that there is room for `batch` sequences.
    ///
    /// # Errors
    /// If not.
    pub(super) fn check(&self, driver: &Driver, batch: u32) -> anyhow::Result<()> {
        driver.check_room(batch as usize, self.prompt_tokens + self.answer_tokens(), 0)
    }

    /// Returns the tokens that each sequence may generate: one ends its prefill, and one more keeps it running to the end.
    fn answer_tokens(&self) -> u32 {
        1 + WARM_UP_STEPS + self.num_steps + 1
    }

    /// Measures a batch. Prefills each prompt beforehand, so that all sequences start to decode at once, after the same number of tokens.
    ///
    /// # Errors
    /// If the model fails.
    pub(super) fn measure(&self, driver: &mut Driver, batch: u32, done: &mut dyn FnMut()) -> anyhow::Result<DecodeSpeed> {
        driver.forget();
        let prompts: Vec<_> = (0..batch).map(|_| driver.text(self.prompt_tokens)).collect();
        for prompt in &prompts {
            driver.run(BenchRequest::stored(prompt.clone()))?;
        }
        let request = |prompt: &Vec<_>| BenchRequest {
            sharing: SharingMode::Prefix,
            ..BenchRequest::exact(prompt.clone(), self.answer_tokens())
        };
        let mut step_ms = Vec::new();
        for _ in 0..self.repeats {
            let time = time_steps(driver, prompts.iter().map(request).collect(), self.num_steps)?;
            step_ms.push(millis(time) / f64::from(self.num_steps));
            done();
        }
        driver.forget();
        let step_ms = median(step_ms);
        Ok(DecodeSpeed { batch, tokens_per_s: f64::from(batch) / step_ms * 1e3, step_ms })
    }
}

/// Measures the time of `num_steps` steps in which each of `requests` gets a token.
fn time_steps(driver: &mut Driver, requests: Vec<BenchRequest>, num_steps: u32) -> anyhow::Result<Duration> {
    let batch = requests.len();
    let requests = requests.into_iter().map(|request| driver.add(request)).collect::<anyhow::Result<Vec<_>>>()?;
    while driver.step()?.num_tokens() < batch {
        ensure!(driver.stats().num_running > 0, "the batch has ended before all of it ran");
    }
    for _ in 0..WARM_UP_STEPS {
        driver.step()?;
    }
    let mut time = Duration::ZERO;
    for _ in 0..num_steps {
        let step = driver.step()?;
        ensure!(step.num_tokens() == batch, "a step gave {} tokens to {batch} sequences", step.num_tokens());
        time += step.time;
    }
    driver.abort_all(&requests)?;
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::super::super::driver::tiny_driver;
    use super::*;

    #[test]
    fn a_batch_gets_a_token_each_in_every_timed_step() {
        let mut driver = tiny_driver(64);
        let bench = BatchBench { prompt_tokens: 100, num_steps: 10, repeats: 2 };
        for batch in [1, 5] {
            let speed = bench.measure(&mut driver, batch, &mut || {}).unwrap();
            assert!(speed.step_ms > 0.0 && (speed.tokens_per_s - f64::from(batch) / speed.step_ms * 1e3).abs() < 1e-6);
            assert_eq!((driver.stats().num_running, driver.stats().num_waiting), (0, 0), "nothing is left running");
        }
    }

    #[test]
    fn sequences_that_end_early_are_no_batch() {
        let mut driver = tiny_driver(64);
        let requests = vec![BenchRequest::exact(driver.text(40), 4), BenchRequest::exact(driver.text(40), 40)];
        assert!(time_steps(&mut driver, requests, 10).unwrap_err().to_string().contains("1 tokens to 2 sequences"));
    }
}
