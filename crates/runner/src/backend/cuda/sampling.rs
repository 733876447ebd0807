//! Sampling where the logits are, so that they need not cross to the host.

use kernels::cuda::{Choice, DeviceError, MAX_TOP, SampleSpec};
use tokens::TokenId;

use super::CudaBackend;
use super::activations::MAX_LOGIT_ROWS;
use crate::sampler::named;
use crate::{SampleRow, Sampled};

impl CudaBackend {
    /// Whether the device can choose for all of `rows`: it reports some likeliest tokens, and reads rows in vectors.
    pub(super) fn can_sample(&self, rows: &[SampleRow]) -> bool {
        let is_short = |row: &SampleRow| row.logprobs.is_none_or(|top| top as usize <= MAX_TOP);
        self.decoder.config.vocab_size.is_multiple_of(4) && rows.iter().all(is_short)
    }

    /// Chooses for all of `rows`, some at a time.
    pub(super) fn sample_on_device(&mut self, rows: &[SampleRow]) -> Result<Vec<Sampled>, DeviceError> {
        let mut sampled = Vec::with_capacity(rows.len());
        for rows in rows.chunks(MAX_LOGIT_ROWS) {
            self.begin_choice(rows)?;
            sampled.extend(self.finish_choice()?);
        }
        Ok(sampled)
    }

    /// Launches the choice for `rows`, at most [`MAX_LOGIT_ROWS`].
    pub(super) fn begin_choice(&mut self, rows: &[SampleRow]) -> Result<(), DeviceError> {
        let vocab = self.decoder.config.vocab_size;
        let places: Vec<u32> = rows.iter().map(|row| self.step.place(row.row)).collect();
        let [range] = self.put_extra([places.len()], |[list]| list.copy_from_slice(&places))?;
        let specs: Vec<SampleSpec<'_>> = rows.iter().map(spec).collect();
        let chain = self.sampler.upload(&specs)?;
        self.decoder.head(&self.extra.words(range), self.step.wanted.is_some())?;
        self.sampler.launch(&mut self.decoder.activations.logits, vocab, vocab, rows.len(), chain)
    }

    /// Waits for the choice that was launched.
    pub(super) fn finish_choice(&mut self) -> Result<Vec<Sampled>, DeviceError> {
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
    SampleSpec { adjustments: &row.adjustments, distribution: row.distribution, uniform: row.uniform, logprobs: row.logprobs }
}
