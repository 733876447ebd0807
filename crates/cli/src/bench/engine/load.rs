//! Throughput of many requests at once, from the first one's arrival to the last one's end.

use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use eval::stats::median;
use serde::Serialize;

use super::super::driver::{BenchRequest, Driver};

/// Requests that arrive together. Written `256x1024+128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Load {
    pub(super) num_requests: u32,
    pub(super) prompt_tokens: u32,
    pub(super) output_tokens: u32,
}

/// Measured throughput of a load.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct LoadSpeed {
    load: Load,
    seconds: f64,
    output_tokens_per_s: f64,
    /// Throughput of prompts and answers.
    total_tokens_per_s: f64,
    /// Preempted sequences, over all repetitions. Above zero, the pool was too small for a fair figure.
    preemptions: u64,
}

/// Text that does not parse as a load.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{0:?} is not written like 256x1024+128, with positive numbers")]
pub(super) struct LoadError(String);

impl FromStr for Load {
    type Err = LoadError;

    fn from_str(text: &str) -> Result<Self, LoadError> {
        let parse = || {
            let (num_requests, rest) = text.split_once('x')?;
            let (prompt_tokens, output_tokens) = rest.split_once('+')?;
            let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number > 0);
            let (prompt_tokens, output_tokens) = (number(prompt_tokens)?, number(output_tokens)?);
            Some(Self { num_requests: number(num_requests)?, prompt_tokens, output_tokens })
        };
        parse().ok_or_else(|| LoadError(text.to_owned()))
    }
}

impl Load {
    /// Checks that one of its requests has room. If not all have at once, some wait.
    ///
    /// # Errors
    /// If it has no room.
    pub(super) fn check(&self, driver: &Driver) -> anyhow::Result<()> {
        driver.check_room(1, self.prompt_tokens + self.output_tokens, 0)
    }

    /// Runs the load `repeats` times, with new prompts each.
    ///
    /// # Errors
    /// If the model fails.
    pub(super) fn measure(self, driver: &mut Driver, repeats: u32, done: &mut dyn FnMut()) -> anyhow::Result<LoadSpeed> {
        let before = driver.stats().preemptions;
        let mut seconds = Vec::new();
        for _ in 0..repeats {
            seconds.push(self.run(driver)?);
            done();
        }
        let seconds = median(seconds);
        let output = f64::from(self.num_requests) * f64::from(self.output_tokens);
        let prompts = f64::from(self.num_requests) * f64::from(self.prompt_tokens);
        Ok(LoadSpeed {
            load: self,
            seconds,
            output_tokens_per_s: output / seconds,
            total_tokens_per_s: (prompts + output) / seconds,
            preemptions: driver.stats().preemptions - before,
        })
    }

    fn run(self, driver: &mut Driver) -> anyhow::Result<f64> {
        let texts: Vec<_> = (0..self.num_requests).map(|_| driver.text(self.prompt_tokens)).collect();
        let began = Instant::now();
        for text in texts {
            driver.add(BenchRequest::exact(text, self.output_tokens))?;
        }
        let mut num_finished = 0;
        while num_finished < self.num_requests as usize {
            num_finished += driver.step()?.num_finished();
        }
        let seconds = began.elapsed().as_secs_f64();
        driver.abort_all(&[])?;
        Ok(seconds)
    }
}

impl fmt::Display for LoadSpeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Load { num_requests, prompt_tokens, output_tokens } = self.load;
        let (output, total) = (self.output_tokens_per_s, self.total_tokens_per_s);
        write!(f, "{num_requests} requests of {prompt_tokens} + {output_tokens} tokens: {:.2} s, ", self.seconds)?;
        write!(f, "{output:.1} output tokens/s, {total:.1} tokens/s in all, {} preemptions", self.preemptions)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::driver::tiny_driver;
    use super::*;

    #[test]
    fn loads_are_read_as_written() {
        let load = Load { num_requests: 256, prompt_tokens: 1024, output_tokens: 128 };
        assert_eq!("256x1024+128".parse(), Ok(load));
        for text in ["", "256", "256x1024", "x1+1", "0x1+1", "1x-1+1", "1x1+1+1"] {
            assert_eq!(text.parse::<Load>(), Err(LoadError(text.to_owned())));
        }
    }

    #[test]
    fn speeds_count_answers_and_all_tokens() {
        let mut driver = tiny_driver(128);
        let speed = "8x60+20".parse::<Load>().unwrap().measure(&mut driver, 2, &mut || {}).unwrap();
        assert!((speed.output_tokens_per_s * speed.seconds - 160.0).abs() < 1e-6, "{speed:?}");
        assert!((speed.total_tokens_per_s * speed.seconds - 640.0).abs() < 1e-6 && speed.preemptions == 0, "{speed:?}");
        assert_eq!((driver.stats().num_running, driver.stats().num_waiting), (0, 0));
    }
}
