//! Prefix hits whose blocks are in the host tier.

use anyhow::ensure;
use eval::stats::median;
use serde::Serialize;

use super::super::driver::{BenchRequest, Driver, millis};

/// Prefix hit from the host tier, at least in part: blocks that take longer to fetch than to compute are computed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct FromHost {
    pub(super) ttft_ms: f64,
    /// Blocks fetched.
    pub(super) num_blocks: f64,
}

impl FromHost {
    /// Runs `request`, whose prompt is cached, once its blocks are in the host tier. `None` if none of them came from there.
    ///
    /// # Errors
    /// If the model fails, or the blocks stay on the device.
    pub(super) fn measure(driver: &mut Driver, request: BenchRequest) -> anyhow::Result<Option<Self>> {
        push_out(driver, request.tokens.len() as u32)?;
        let before = driver.stats().host.fetches;
        let times = driver.run(request)?;
        let num_blocks = driver.stats().host.fetches - before;
        Ok((num_blocks > 0).then(|| Self { ttft_ms: millis(times.ttft), num_blocks: num_blocks as f64 }))
    }

    /// Returns the medians of the rounds that fetched from the host.
    pub(super) fn median(rounds: &[Self]) -> Option<Self> {
        let of = |value: fn(&Self) -> f64| median(rounds.iter().map(value));
        (!rounds.is_empty()).then(|| Self { ttft_ms: of(|round| round.ttft_ms), num_blocks: of(|round| round.num_blocks) })
    }
}

/// Runs new prompts of `len` tokens until the pool has evicted as many blocks as one prompt has. The pool may hold only the oldest
/// prompt before: its blocks are evicted first.
fn push_out(driver: &mut Driver, len: u32) -> anyhow::Result<()> {
    let num_blocks = u64::from(len / driver.config().block_size.get());
    let before = driver.stats().blocks.evictions;
    // This many fill the whole pool, and one more evicts the oldest.
    let most = driver.config().num_blocks as u64 / num_blocks.max(1) + 2;
    for _ in 0..most {
        if driver.stats().blocks.evictions - before >= num_blocks {
            return Ok(());
        }
        let other = BenchRequest::stored(driver.text(len));
        driver.run(other)?;
    }
    ensure!(
        driver.stats().blocks.evictions - before >= num_blocks,
        "{most} prompts of {len} tokens leave an earlier one in the pool"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokens::SharingMode;

    use super::super::super::driver::{tiny_driver, tiny_driver_with_host_tier};
    use super::*;

    fn known_prompt(driver: &mut Driver, len: u32) -> BenchRequest {
        let known = driver.text(len);
        driver.run(BenchRequest::stored(known.clone())).unwrap();
        BenchRequest { sharing: SharingMode::Prefix, ..BenchRequest::exact(known, 1) }
    }

    #[test]
    fn all_blocks_of_a_prompt_that_was_pushed_out_come_from_the_host() {
        let mut driver = tiny_driver_with_host_tier(64, 100);
        for len in [320, 100, 900] {
            let request = known_prompt(&mut driver, len);
            let found = FromHost::measure(&mut driver, request).unwrap().expect("the host tier has them");
            assert!((found.num_blocks - f64::from(len / 32)).abs() < 1e-9 && found.ttft_ms > 0.0, "{len}: {found:?}");
            driver.forget();
        }
    }

    #[test]
    fn a_prompt_that_was_given_up_for_good_comes_from_nowhere() {
        let mut driver = tiny_driver(64);
        let request = known_prompt(&mut driver, 320);
        assert_eq!(FromHost::measure(&mut driver, request).unwrap(), None);
    }

    #[test]
    fn medians_are_of_rounds_with_blocks() {
        let round = |ttft_ms, num_blocks| FromHost { ttft_ms, num_blocks };
        assert_eq!(FromHost::median(&[round(3.0, 10.0), round(1.0, 10.0), round(2.0, 9.0)]), Some(round(2.0, 10.0)));
        assert_eq!(FromHost::median(&[]), None);
    }
}
