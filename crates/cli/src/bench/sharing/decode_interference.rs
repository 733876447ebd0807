//! Cost of a prompt for the sequences that decode beside it.

use std::time::Duration;

use anyhow::ensure;
use eval::stats::median;
use serde::Serialize;
use tokens::RequestId;

use super::super::driver::{BenchRequest, Driver, millis};

/// Steps before another request joins; the first few of them are not counted.
const STEPS_ALONE: usize = 12;
const UNCOUNTED_STEPS: usize = 4;

/// Times between two tokens of decoding sequences, and their delay by a prompt beside them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct DecodeInterference {
    /// Time between two tokens without another request.
    pub(super) alone_ms: f64,
    /// Longest time between two tokens, until the prompt has its first token.
    pub(super) worst_ms: f64,
    /// Steps until then.
    pub(super) steps: usize,
    /// Time until then minus that of as many steps without another request.
    pub(super) delay_ms: f64,
}

impl DecodeInterference {
    /// Computes the median of each field.
    pub(super) fn median_of(all: &[Self]) -> Self {
        let of = |value: fn(&Self) -> f64| median(all.iter().map(value));
        Self {
            alone_ms: of(|it| it.alone_ms),
            worst_ms: of(|it| it.worst_ms),
            steps: of(|it| it.steps as f64) as usize,
            delay_ms: of(|it| it.delay_ms),
        }
    }
}

/// Decoding sequences.
pub(super) struct Decoders {
    requests: Vec<RequestId>,
}

impl Decoders {
    /// Starts `num_decoders` sequences after `prompt` tokens each, for at most `max_tokens` tokens.
    ///
    /// # Errors
    /// If they do not fit, or the model fails.
    pub(super) fn start(driver: &mut Driver, num_decoders: u32, prompt: u32, max_tokens: u32) -> anyhow::Result<Self> {
        let mut requests = Vec::new();
        for _ in 0..num_decoders {
            let request = BenchRequest::exact(driver.text(prompt), max_tokens);
            requests.push(driver.add(request)?);
        }
        while driver.step()?.num_tokens() < requests.len() {
            ensure!(driver.stats().num_running > 0, "those who decode have ended before all of them began");
        }
        Ok(Self { requests })
    }

    /// Runs `request` beside them until its first token, and aborts it.
    ///
    /// # Errors
    /// If it does not fit, or the model fails.
    pub(super) fn measure(&self, driver: &mut Driver, request: BenchRequest) -> anyhow::Result<DecodeInterference> {
        let mut alone = Vec::new();
        for _ in 0..STEPS_ALONE {
            alone.push(millis(self.step(driver)?.0));
        }
        let alone_ms = median(alone.split_off(UNCOUNTED_STEPS));
        let request_id = driver.add(request)?;
        let mut times: Vec<f64> = Vec::new();
        loop {
            let (time, newcomers) = self.step(driver)?;
            times.push(millis(time));
            if newcomers.contains(&request_id) {
                break;
            }
        }
        let total: f64 = times.iter().sum();
        let worst_ms = times.iter().copied().fold(0.0, f64::max);
        Ok(DecodeInterference { alone_ms, worst_ms, steps: times.len(), delay_ms: total - times.len() as f64 * alone_ms })
    }

    /// Aborts the sequences.
    ///
    /// # Errors
    /// If the model fails.
    pub(super) fn stop(self, driver: &mut Driver) -> anyhow::Result<()> {
        driver.abort_all(&self.requests)
    }

    /// Runs one step; returns its time, and the others that got a token. All sequences must get one.
    fn step(&self, driver: &mut Driver) -> anyhow::Result<(Duration, Vec<RequestId>)> {
        let step = driver.step()?;
        let (own, others): (Vec<_>, Vec<_>) = step.tokens_of().partition(|request_id| self.requests.contains(request_id));
        ensure!(own.len() == self.requests.len(), "{} of {} sequences that decode got a token", own.len(), self.requests.len());
        Ok((step.time, others))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::driver::tiny_driver;
    use super::*;

    #[test]
    fn a_prompt_delays_those_who_decode_by_its_steps() {
        let mut driver = tiny_driver(128);
        let decoders = Decoders::start(&mut driver, 3, 40, 200).unwrap();
        let long = BenchRequest::exact(driver.text(600), 1);
        let short = BenchRequest::exact(driver.text(20), 1);
        let (long, short) = (decoders.measure(&mut driver, long).unwrap(), decoders.measure(&mut driver, short).unwrap());
        assert!((5..=6).contains(&long.steps) && short.steps == 1, "128 rows a step, of which 3 decode: {long:?} {short:?}");
        assert!(long.worst_ms > long.alone_ms && long.delay_ms > 0.0 && short.alone_ms > 0.0, "{long:?} {short:?}");
        decoders.stop(&mut driver).unwrap();
        assert_eq!((driver.stats().num_running, driver.stats().num_waiting), (0, 0));
    }

    #[test]
    fn those_who_end_too_early_are_no_measure() {
        let mut driver = tiny_driver(64);
        let decoders = Decoders::start(&mut driver, 2, 40, 6).unwrap();
        let request = BenchRequest::exact(driver.text(20), 1);
        assert!(decoders.measure(&mut driver, request).unwrap_err().to_string().contains("0 of 2"));
    }
}
