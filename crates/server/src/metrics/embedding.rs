//! Metrics of embedded texts.

use metrics::Counter;

use super::registrar::Registrar;

/// Counts of embedded texts.
pub(crate) struct EmbeddingMetrics {
    texts: Counter,
    tokens: Counter,
}

impl EmbeddingMetrics {
    pub(super) fn new(registrar: &Registrar) -> Self {
        Self {
            texts: registrar.counter("kvshare_embedded_texts_total", "Texts embedded for clients.", &[]),
            tokens: registrar.counter("kvshare_embedded_tokens_total", "Tokens of these texts.", &[]),
        }
    }

    /// Counts the texts of a request and their tokens.
    pub(crate) fn count(&self, num_texts: usize, num_tokens: usize) {
        self.texts.increment(num_texts as u64);
        self.tokens.increment(num_tokens as u64);
    }
}
