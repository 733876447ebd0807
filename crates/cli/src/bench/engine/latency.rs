//! Latency of one request at a time: a new prompt, the same one again, once more from the host tier if there is one, and a new one whose
//! donor search finds nothing.

use engine::Repair;
use eval::stats::median;
use eval::table;
use serde::Serialize;
use tokens::SharingMode;

use super::super::driver::{BenchRequest, Driver, millis};
use super::from_host::FromHost;

/// Tokens of a donor without a match. Chosen: long enough to be a donor.
const DONOR_TOKENS: u32 = 256;

/// Medians of one prompt length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Latency {
    pub(super) prompt_tokens: u32,
    /// Time to first token of a new prompt, with sharing off.
    pub(super) cold_ttft_ms: f64,
    /// Time to first token of the same prompt again, in mode `prefix`.
    pub(super) hit_ttft_ms: f64,
    /// Same prompt in mode `prefix` when its blocks are in the host tier, over rounds that fetched from there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from_host: Option<FromHost>,
    /// Time to first token of a new prompt in mode `semantic`, with donors that share nothing with it. It becomes a donor itself.
    pub(super) miss_ttft_ms: f64,
    /// Median ratio of that time to the one of a new prompt with sharing off, measured right before or after.
    pub(super) miss_ratio: f64,
    /// Prefill throughput of a new prompt, with sharing off.
    pub(super) prefill_tokens_per_s: f64,
    /// Decode throughput after a new prompt, alone.
    pub(super) decode_tokens_per_s: f64,
}

/// One round of one length, in milliseconds and tokens a second.
#[derive(Clone, Copy, Debug)]
struct Sample {
    cold_ms: f64,
    hit_ms: f64,
    from_host: Option<FromHost>,
    miss_ms: f64,
    decode_tokens_per_s: f64,
}

/// Settings of the latency measurements.
#[derive(Clone, Copy, Debug)]
pub(super) struct LatencyBench<'a> {
    pub(super) lengths: &'a [u32],
    /// Tokens generated after a new prompt.
    pub(super) decode_tokens: u32,
    /// Earlier prompts that a new one is compared with, without a match.
    pub(super) donors: u32,
    pub(super) repeats: u32,
}

impl LatencyBench<'_> {
    /// Checks that there is room for the longest prompt and the donors.
    ///
    /// # Errors
    /// If not.
    pub(super) fn check(&self, driver: &Driver) -> anyhow::Result<()> {
        let longest = self.lengths.iter().copied().max().unwrap_or(0);
        let donor_blocks = self.donors as usize * driver.config().block_size.blocks_for(DONOR_TOKENS as usize);
        // The first generated token is part of prefill.
        driver.check_room(1, longest + 1 + self.decode_tokens, donor_blocks)
    }

    /// Measures all lengths in each round, so that a slow phase of the machine affects each of them. Drops the first round: it touches all
    /// weights and memory once. Measures a length that has failed no further.
    pub(super) fn measure(&self, driver: &mut Driver, done: &mut dyn FnMut()) -> Vec<(u32, anyhow::Result<Latency>)> {
        let mut rows: Vec<_> = self.lengths.iter().map(|&length| (length, Ok(Vec::new()))).collect();
        for round in 0..=self.repeats {
            for (length, row) in &mut rows {
                let Ok(samples) = row else { continue };
                match driver.attempt(|driver| self.measure_once(driver, *length, round)) {
                    Ok(_) if round == 0 => {}
                    Ok(sample) => {
                        samples.push(sample);
                        done();
                    }
                    Err(error) => *row = Err(error),
                }
            }
        }
        rows.into_iter().map(|(length, row)| (length, row.map(|samples: Vec<Sample>| summary(length, &samples)))).collect()
    }

    /// Measures one round. Cold and miss alternate in order, so that neither profits from the other.
    fn measure_once(&self, driver: &mut Driver, length: u32, round: u32) -> anyhow::Result<Sample> {
        driver.forget();
        let known = driver.text(length);
        driver.run(BenchRequest::stored(known.clone()))?;
        let again = BenchRequest { sharing: SharingMode::Prefix, ..BenchRequest::exact(known, 1) };
        let hit = driver.run(again.clone())?;
        let has_host_tier = driver.config().host.num_blocks > 0;
        let from_host = if has_host_tier { FromHost::measure(driver, again)? } else { None };
        driver.forget();
        for _ in 0..self.donors {
            let donor = BenchRequest::stored(driver.text(DONOR_TOKENS));
            driver.run(donor)?;
        }
        let is_cold_first = round.is_multiple_of(2);
        let early = if is_cold_first { Some(cold(driver, length, self.decode_tokens)?) } else { None };
        let repair = Repair::recommended();
        let request =
            BenchRequest { sharing: SharingMode::Semantic, repair, store: true, ..BenchRequest::exact(driver.text(length), 1) };
        let miss = driver.run(request)?;
        let (cold_ms, decode_tokens_per_s) = early.map_or_else(|| cold(driver, length, self.decode_tokens), Ok)?;
        let (hit_ms, miss_ms) = (millis(hit.ttft), millis(miss.ttft));
        Ok(Sample { cold_ms, hit_ms, from_host, miss_ms, decode_tokens_per_s })
    }
}

fn cold(driver: &mut Driver, length: u32, decode_tokens: u32) -> anyhow::Result<(f64, f64)> {
    let request = BenchRequest::exact(driver.text(length), decode_tokens + 1);
    let times = driver.run(request)?;
    Ok((millis(times.ttft), f64::from(decode_tokens) / times.decode.as_secs_f64()))
}

fn summary(prompt_tokens: u32, samples: &[Sample]) -> Latency {
    let of = |value: fn(&Sample) -> f64| median(samples.iter().map(value));
    let cold_ttft_ms = of(|sample| sample.cold_ms);
    let from_host: Vec<FromHost> = samples.iter().filter_map(|sample| sample.from_host).collect();
    Latency {
        prompt_tokens,
        cold_ttft_ms,
        hit_ttft_ms: of(|sample| sample.hit_ms),
        from_host: FromHost::median(&from_host),
        miss_ttft_ms: of(|sample| sample.miss_ms),
        miss_ratio: of(|sample| sample.miss_ms / sample.cold_ms),
        prefill_tokens_per_s: f64::from(prompt_tokens) / cold_ttft_ms * 1e3,
        decode_tokens_per_s: of(|sample| sample.decode_tokens_per_s),
    }
}

/// Formats one row for each length.
pub(super) fn table(lengths: &[Latency], has_host_tier: bool) -> String {
    let mut header = vec!["prompt tokens", "cold TTFT ms", "prefix hit ms", "miss / cold", "prefill tokens/s", "decode tokens/s"];
    if has_host_tier {
        header.splice(3..3, ["prefix from host ms", "blocks from host"]);
    }
    let row = |it: &Latency| {
        let mut row = vec![
            it.prompt_tokens.to_string(),
            format!("{:.2}", it.cold_ttft_ms),
            format!("{:.2}", it.hit_ttft_ms),
            format!("{:.4}", it.miss_ratio),
            format!("{:.1}", it.prefill_tokens_per_s),
            format!("{:.1}", it.decode_tokens_per_s),
        ];
        if has_host_tier {
            let nothing = || ["-".to_owned(), "0".to_owned()];
            let cells = it.from_host.map_or_else(nothing, |it| [format!("{:.2}", it.ttft_ms), format!("{:.0}", it.num_blocks)]);
            row.splice(3..3, cells);
        }
        row
    };
    table::markdown(&header, &lengths.iter().map(row).collect::<Vec<_>>(), 0)
}

#[cfg(test)]
mod tests {
    use super::super::super::driver::tiny_driver;
    use super::*;

    #[test]
    fn a_known_prompt_is_faster_and_every_value_is_there() {
        let mut rounds = 0;
        let bench = LatencyBench { lengths: &[900], decode_tokens: 8, donors: 3, repeats: 3 };
        let found = bench.measure(&mut tiny_driver(128), &mut || rounds += 1);
        let found: Vec<_> = found.into_iter().map(|(_, row)| row.unwrap()).collect();
        let [latency] = &found[..] else { panic!("{found:?}") };
        assert!(latency.hit_ttft_ms < latency.cold_ttft_ms / 2.0 && latency.hit_ttft_ms > 0.0, "{latency:?}");
        assert!(latency.miss_ttft_ms > latency.hit_ttft_ms && latency.decode_tokens_per_s > 0.0, "{latency:?}");
        assert_eq!(rounds, 3, "the first round is not counted");
    }

    #[test]
    fn medians_are_of_rounds_and_a_miss_is_compared_with_its_own_round() {
        let sample = |cold_ms, miss_ms| Sample { cold_ms, hit_ms: 1.0, from_host: None, miss_ms, decode_tokens_per_s: 10.0 };
        let found = summary(500, &[sample(100.0, 110.0), sample(200.0, 200.0), sample(50.0, 60.0)]);
        assert_eq!((found.cold_ttft_ms, found.miss_ttft_ms, found.prefill_tokens_per_s), (100.0, 110.0, 5000.0));
        assert!((found.miss_ratio - 1.1).abs() < 1e-9);
    }
}
