//! Repeatable random sequences and small settings for the tests.

use tokens::TokenId;

use crate::SpanIndexConfig;

/// A linear congruential generator (Knuth, MMIX) whose high bits are used.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }

    pub(crate) fn tokens(&mut self, len: usize, alphabet: usize) -> Vec<TokenId> {
        (0..len).map(|_| TokenId(self.below(alphabet) as u32)).collect()
    }
}

/// Returns settings under which ten equal tokens are a span, and all their holders are found.
pub(crate) fn small_config() -> SpanIndexConfig {
    SpanIndexConfig {
        shingle_tokens: 4,
        window_shingles: 5,
        min_span_tokens: 10,
        max_postings: 1000,
        ..SpanIndexConfig::default()
    }
}
