//! Sampling and scoring on the device, so that logits are not copied to the host.

use engine::TokenLogProbs;
use kernels::cuda::{Choice, DeviceError, MAX_TOP, SampleChain, SampleSpec, ScoreSpec};
use tokens::TokenId;

use super::CudaBackend;
use super::activations::MAX_LOGIT_ROWS;
use crate::sampler::{named, scored_rows};
use crate::{SampleRow, Sampled, ScoreRow};

/// Returns true if the device can sample all of `rows`: it reports a limited number of likeliest tokens.
fn can_sample(rows: &[SampleRow]) -> bool {
    rows.iter().all(|row| row.logprobs.is_none_or(|top| top as usize <= MAX_TOP))
}

/// Returns true if the device can score all of `rows`.
fn can_score(rows: &[ScoreRow]) -> bool {
    rows.iter().all(|row| row.top as usize <= MAX_TOP)
}

impl CudaBackend {
    /// Computes log probabilities of known tokens: on the device if it can, else on the host.
    pub(super) fn score(&mut self, rows: &[ScoreRow]) -> Result<Vec<TokenLogProbs>, DeviceError> {
        match can_score(rows) {
            _ if rows.is_empty() => Ok(Vec::new()),
            true => self.score_on_device(rows),
            false => self.score_on_host(rows),
        }
    }

    /// Samples a token from each row: on the device if it can, else on the host.
    pub(super) fn sample(&mut self, rows: &[SampleRow]) -> Result<Vec<Sampled>, DeviceError> {
        match can_sample(rows) {
            _ if rows.is_empty() => Ok(Vec::new()),
            true => self.sample_on_device(rows),
            false => self.sample_on_host(rows),
        }
    }

    /// Launches sampling of `rows` if the device can sample them at once. Returns false if it cannot, or there are none.
    pub(super) fn begin_sampling(&mut self, rows: &[SampleRow]) -> Result<bool, DeviceError> {
        let can_begin = (1..=MAX_LOGIT_ROWS).contains(&rows.len()) && can_sample(rows);
        if can_begin {
            self.launch_sampling(rows)?;
        }
        Ok(can_begin)
    }

    fn score_on_host(&mut self, rows: &[ScoreRow]) -> Result<Vec<TokenLogProbs>, DeviceError> {
        let vocab_size = self.decoder.config.vocab_size;
        let mut scores = Vec::with_capacity(rows.len());
        for rows in rows.chunks(scored_rows(vocab_size)) {
            let indices: Vec<usize> = rows.iter().map(|row| row.row).collect();
            let logits = self.logits_on_host(&indices)?;
            scores.extend(rows.iter().zip(logits.chunks_exact(vocab_size)).map(|(row, logits)| row.score(logits)));
        }
        Ok(scores)
    }

    fn sample_on_host(&mut self, rows: &[SampleRow]) -> Result<Vec<Sampled>, DeviceError> {
        let vocab_size = self.decoder.config.vocab_size;
        let indices: Vec<usize> = rows.iter().map(|row| row.row).collect();
        let logits = self.logits_on_host(&indices)?;
        Ok(rows.iter().zip(logits.chunks_exact_mut(vocab_size)).map(|(row, logits)| row.choose(logits)).collect())
    }

    /// Scores all of `rows` in chunks: head and log probabilities are queued on the device, and the host waits only at the end. Only the
    /// results are copied to the host.
    fn score_on_device(&mut self, rows: &[ScoreRow]) -> Result<Vec<TokenLogProbs>, DeviceError> {
        let num_likely = rows.iter().map(|row| row.top as usize).sum();
        let mut kept = self.sampler.room_for(rows.len(), num_likely)?;
        for rows in rows.chunks(MAX_LOGIT_ROWS) {
            let specs: Vec<ScoreSpec> = rows.iter().map(|row| ScoreSpec { token: row.token.0, top: row.top }).collect();
            let chain = self.sampler.upload_scores(&specs)?;
            self.launch_choice(rows.iter().map(|row| row.row), chain)?;
            self.sampler.keep(&mut kept)?;
        }
        let named = |choice: Choice| choice.logprobs.map(|(chosen, top)| named(chosen, top));
        let scores = kept.results()?.into_iter().filter_map(named).collect();
        self.extra.arrived();
        Ok(scores)
    }

    /// Samples all of `rows` in chunks.
    fn sample_on_device(&mut self, rows: &[SampleRow]) -> Result<Vec<Sampled>, DeviceError> {
        let mut sampled = Vec::with_capacity(rows.len());
        for rows in rows.chunks(MAX_LOGIT_ROWS) {
            self.launch_sampling(rows)?;
            sampled.extend(self.finish_sampling()?);
        }
        Ok(sampled)
    }

    /// Launches sampling of `rows`, at most [`MAX_LOGIT_ROWS`].
    fn launch_sampling(&mut self, rows: &[SampleRow]) -> Result<(), DeviceError> {
        let specs: Vec<SampleSpec<'_>> = rows.iter().map(spec).collect();
        let chain = self.sampler.upload(&specs)?;
        self.launch_choice(rows.iter().map(|row| row.row), chain)
    }

    /// Launches head and sampler for `rows` of the last step, as they were uploaded.
    fn launch_choice(&mut self, rows: impl Iterator<Item = usize>, chain: SampleChain) -> Result<(), DeviceError> {
        let vocab = self.decoder.config.vocab_size;
        let places: Vec<u32> = rows.map(|row| self.step.place(row)).collect();
        let [range] = self.put_extra([places.len()], |[list]| list.copy_from_slice(&places))?;
        self.decoder.head(&self.extra.words(range), self.step.wanted.is_some())?;
        self.sampler.launch(&mut self.decoder.activations.logits, vocab, vocab, places.len(), chain)
    }

    /// Waits for the launched sampling.
    pub(super) fn finish_sampling(&mut self) -> Result<Vec<Sampled>, DeviceError> {
        let choices = self.sampler.results()?;
        self.extra.arrived();
        self.upload.arrived();
        let sampled = |choice: Choice| {
            let logprobs = choice.logprobs.map(|(chosen, top)| named(chosen, top));
            Sampled { token: TokenId(choice.token), margin: choice.margin, logprobs }
        };
        Ok(choices.into_iter().map(sampled).collect())
    }
}

fn spec(row: &SampleRow) -> SampleSpec<'_> {
    // The forward pass runs meanwhile.
    let mask = row.mask.as_ref().map(|slot| slot.wait().words());
    SampleSpec {
        adjustments: &row.adjustments,
        distribution: row.distribution,
        uniform: row.uniform,
        logprobs: row.logprobs,
        mask,
    }
}
