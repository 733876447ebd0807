//! Sums the usage of the answers of one HTTP request.

use engine::KvUsage;
use protocol::{CompletionTokensDetails, KvSharingUsage, PromptTokensDetails, ReuseReason, Usage};
use tokens::SharingMode;

use crate::explain::{class_of, reason_of};

/// Usage of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct ChoiceUsage {
    /// Generated tokens, stop tokens included.
    pub(super) num_generated: u32,
    /// Those of its reasoning.
    pub(super) num_reasoning: u32,
    /// Source of its prompt's KV.
    pub(super) kv: KvUsage,
}

/// Sums over the prompts and answers of one HTTP request.
#[derive(Clone, Copy, Debug)]
pub(super) struct UsageSum {
    mode: SharingMode,
    normalized: bool,
    n: u32,
    prompt_tokens: u32,
    completion_tokens: u32,
    reasoning_tokens: u32,
    kv: KvUsage,
    /// Index of the first answer that determines why no span was reused, and the reason.
    reason: Option<(u32, Option<ReuseReason>)>,
}

impl UsageSum {
    /// Creates the sums for `prompt_tokens` of all prompts, each with `n` answers.
    pub(super) fn new(mode: SharingMode, n: u32, prompt_tokens: u32) -> Self {
        Self {
            mode,
            normalized: false,
            n,
            prompt_tokens,
            completion_tokens: 0,
            reasoning_tokens: 0,
            kv: KvUsage::default(),
            reason: None,
        }
    }

    /// Sets the flag for normalized whitespace of the prompts.
    pub(super) fn normalized(self, normalized: bool) -> Self {
        Self { normalized, ..self }
    }

    /// Adds the answer `index`. A prompt counts once, by its first answer: the others reuse what that one stored.
    pub(super) fn add(&mut self, index: u32, usage: ChoiceUsage) {
        self.completion_tokens += usage.num_generated;
        self.reasoning_tokens += usage.num_reasoning;
        if index.is_multiple_of(self.n) {
            self.kv.prefix_tokens += usage.kv.prefix_tokens;
            // The reason of a prompt with spans, or else of the first.
            let reason = reason_of(&usage.kv, self.mode);
            if self.reason.is_none_or(|(first, before)| before.is_some() && (reason.is_none() || index < first)) {
                self.reason = Some((index, reason));
            }
            self.kv.continued_tokens += usage.kv.continued_tokens;
            self.kv.span_tokens += usage.kv.span_tokens;
            self.kv.recomputed_tokens += usage.kv.recomputed_tokens;
            self.kv.donors += usage.kv.donors;
            // The worst of all prompts.
            self.kv.class = self.kv.class.max(usage.kv.class);
            self.kv.deviation = [self.kv.deviation, usage.kv.deviation].into_iter().flatten().reduce(f32::max);
        }
    }

    /// Returns the usage in OpenAI's form.
    pub(super) fn total(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            total_tokens: self.prompt_tokens + self.completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens: self.kv.prefix_tokens },
            completion_tokens_details: CompletionTokensDetails { reasoning_tokens: self.reasoning_tokens },
            kv_sharing: KvSharingUsage {
                mode: self.mode,
                prefix_tokens: self.kv.prefix_tokens,
                continued_tokens: self.kv.continued_tokens,
                span_tokens: self.kv.span_tokens,
                recomputed_tokens: self.kv.recomputed_tokens,
                donors: self.kv.donors,
                class: self.kv.class.map(class_of),
                deviation: self.kv.deviation.filter(|_| self.kv.span_tokens > 0),
                normalized: self.normalized,
                reason: self.reason.and_then(|(_, reason)| reason),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use engine::{MatchClass, SpanOutcome};

    use super::*;

    #[test]
    fn prompts_count_once_and_answers_each() {
        let kv = |prefix_tokens| KvUsage { prefix_tokens, span_tokens: 2, ..KvUsage::default() };
        let mut sum = UsageSum::new(SharingMode::Span, 2, 100);
        for (index, prefix_tokens) in [(0, 10), (1, 40), (2, 20), (3, 40)] {
            sum.add(index, ChoiceUsage { num_generated: 5, num_reasoning: 0, kv: kv(prefix_tokens) });
        }
        let usage = sum.total();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (100, 20, 120));
        assert_eq!(usage.prompt_tokens_details.cached_tokens, 30);
        assert_eq!((usage.kv_sharing.prefix_tokens, usage.kv_sharing.span_tokens), (30, 4));
    }

    #[track_caller]
    fn check_worst(prompts: &[(u32, Option<MatchClass>, Option<f32>)], expected: (Option<protocol::MatchClass>, Option<f32>)) {
        let mut sum = UsageSum::new(SharingMode::Span, 1, 100);
        for (index, &(span_tokens, class, deviation)) in (0..).zip(prompts) {
            sum.add(
                index,
                ChoiceUsage {
                    num_generated: 1,
                    num_reasoning: 0,
                    kv: KvUsage { span_tokens, class, deviation, ..KvUsage::default() },
                },
            );
        }
        let sharing = sum.total().kv_sharing;
        assert_eq!((sharing.class, sharing.deviation), expected);
    }

    #[track_caller]
    fn check_reason(mode: SharingMode, outcomes: &[(u32, Option<SpanOutcome>)], expected: Option<ReuseReason>) {
        let mut sum = UsageSum::new(mode, 1, 100);
        for &(index, outcome) in outcomes {
            sum.add(index, ChoiceUsage { num_generated: 1, num_reasoning: 0, kv: KvUsage { outcome, ..KvUsage::default() } });
        }
        assert_eq!(sum.total().kv_sharing.reason, expected);
    }

    #[test]
    fn the_first_prompt_says_why_no_span_was_reused_if_none_was() {
        let (reused, off) = (Some(SpanOutcome::Reused), Some(SpanOutcome::SwitchedOff));
        check_reason(SharingMode::Span, &[(1, off), (0, Some(SpanOutcome::NoRoom))], Some(ReuseReason::NoRoom));
        check_reason(SharingMode::Span, &[(0, off), (1, reused), (2, off)], None);
        check_reason(SharingMode::Prefix, &[(0, None)], Some(ReuseReason::Mode));
        check_reason(SharingMode::Span, &[(0, None)], Some(ReuseReason::PromptTooShort));
    }

    #[test]
    fn the_worst_prompt_decides_class_and_deviation() {
        let (same, other) = (MatchClass::SamePast, MatchClass::Composition);
        check_worst(
            &[(5, Some(other), Some(0.5)), (5, Some(same), Some(0.0))],
            (Some(protocol::MatchClass::Composition), Some(0.5)),
        );
        check_worst(&[(0, None, None), (5, Some(same), Some(0.0))], (Some(protocol::MatchClass::SamePast), Some(0.0)));
        check_worst(&[(5, Some(same), None)], (Some(protocol::MatchClass::SamePast), None));
        check_worst(&[(0, None, None)], (None, None));
    }
}
