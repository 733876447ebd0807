//! Adds up what the answers of one HTTP request consumed.

use engine::{KvSharingMode, KvUsage};
use protocol::{CompletionTokensDetails, KvSharingUsage, PromptTokensDetails, SharingMode, Usage};

/// What one answer consumed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct ChoiceUsage {
    /// Stop tokens included.
    pub(super) num_generated: u32,
    /// Where its prompt's KV came from.
    pub(super) kv: KvUsage,
}

/// Sums over the prompts and answers of one HTTP request.
#[derive(Clone, Copy, Debug)]
pub(super) struct UsageSum {
    mode: KvSharingMode,
    n: u32,
    prompt_tokens: u32,
    completion_tokens: u32,
    kv: KvUsage,
}

impl UsageSum {
    /// `prompt_tokens` of all prompts, each with `n` answers.
    pub(super) fn new(mode: KvSharingMode, n: u32, prompt_tokens: u32) -> Self {
        Self { mode, n, prompt_tokens, completion_tokens: 0, kv: KvUsage::default() }
    }

    /// Adds the answer `index`. A prompt counts once, as its first answer found it: the others find what that one left.
    pub(super) fn add(&mut self, index: u32, usage: ChoiceUsage) {
        self.completion_tokens += usage.num_generated;
        if index.is_multiple_of(self.n) {
            self.kv.prefix_tokens += usage.kv.prefix_tokens;
            self.kv.span_tokens += usage.kv.span_tokens;
            self.kv.recomputed_tokens += usage.kv.recomputed_tokens;
            self.kv.donors += usage.kv.donors;
        }
    }

    /// As OpenAI's clients read it.
    pub(super) fn total(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            total_tokens: self.prompt_tokens + self.completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens: self.kv.prefix_tokens },
            completion_tokens_details: CompletionTokensDetails { reasoning_tokens: 0 },
            kv_sharing: KvSharingUsage {
                mode: match self.mode {
                    KvSharingMode::Off => SharingMode::Off,
                    KvSharingMode::Prefix | KvSharingMode::Shadow => SharingMode::Prefix,
                    KvSharingMode::Span | KvSharingMode::Semantic => SharingMode::Span,
                },
                prefix_tokens: self.kv.prefix_tokens,
                span_tokens: self.kv.span_tokens,
                recomputed_tokens: self.kv.recomputed_tokens,
                donors: self.kv.donors,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_count_once_and_answers_each() {
        let kv = |prefix_tokens| KvUsage { prefix_tokens, span_tokens: 2, ..KvUsage::default() };
        let mut sum = UsageSum::new(KvSharingMode::Span, 2, 100);
        for (index, prefix_tokens) in [(0, 10), (1, 40), (2, 20), (3, 40)] {
            sum.add(index, ChoiceUsage { num_generated: 5, kv: kv(prefix_tokens) });
        }
        let usage = sum.total();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (100, 20, 120));
        assert_eq!(usage.prompt_tokens_details.cached_tokens, 30);
        assert_eq!((usage.kv_sharing.prefix_tokens, usage.kv_sharing.span_tokens), (30, 4));
    }
}
