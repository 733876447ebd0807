//! Conversion of the engine's results into types of the API.

use engine::{Explanation, KvUsage, MatchClass, RejectReason, ReuseSpan, SpanMatch, SpanOutcome, TrafficClass, TrafficQuality};
use protocol::{CostEstimate, DonorSource, ExplainedSpan, ReuseReason, TrafficState};
use tokens::{DonorId, SharingMode};

use crate::encode::Encoded;
use crate::valid::ValidRequest;

/// Builds the answer to `request` with its one `prompt`.
pub(crate) fn explanation(request: ValidRequest, prompt: &Encoded, found: Explanation) -> protocol::Explanation {
    let Explanation { usage, policy_tokens, plan, mut matches, by_embedding } = found;
    let source_of = |donor: DonorId| match by_embedding.contains(&donor) {
        true => DonorSource::Embedding,
        false => DonorSource::Span,
    };
    matches.sort_by_key(|found| (found.target_pos, found.donor, found.donor_pos));
    protocol::Explanation {
        object: "kv.explanation".to_owned(),
        model: request.model,
        mode: request.sharing.mode,
        policy: request.sharing.bounded_repair().to_string(),
        prompt_tokens: u32::try_from(prompt.token_ids.len()).expect("a prompt within max_model_len"),
        prefix_tokens: usage.prefix_tokens,
        continued_tokens: usage.continued_tokens,
        span_tokens: usage.span_tokens,
        recomputed_tokens: usage.recomputed_tokens,
        computed_tokens: usage.computed_tokens,
        policy_tokens,
        donors: usage.donors,
        class: usage.class.map(class_of),
        segments: prompt.borders.segments.clone(),
        spans: plan.spans.iter().map(|span| planned(span, source_of(span.donor))).collect(),
        matches: matches.iter().map(|found| found_only(found, source_of(found.donor))).collect(),
        edited: plan.edited.iter().map(|range| [range.start, range.end]).collect(),
        estimate: plan.estimate.map(|found| CostEstimate { full_ms: found.full_ms, reuse_ms: found.reuse_ms }),
        reason: reason_of(&usage, request.sharing.mode),
    }
}

/// Returns the reason why a request of `mode` reused no span; `None` if it did.
pub(crate) const fn reason_of(usage: &KvUsage, mode: SharingMode) -> Option<ReuseReason> {
    Some(match usage.outcome {
        Some(SpanOutcome::Reused | SpanOutcome::LowMargin) => return None,
        // A prompt of one token is computed whatever its mode.
        None if matches!(mode, SharingMode::Off | SharingMode::Prefix) => ReuseReason::Mode,
        None => ReuseReason::PromptTooShort,
        Some(SpanOutcome::Rejected(RejectReason::PromptTooShort)) => ReuseReason::PromptTooShort,
        Some(SpanOutcome::Rejected(RejectReason::PrefixCovers)) => ReuseReason::PrefixCovers,
        Some(SpanOutcome::Rejected(RejectReason::NoDonor)) => ReuseReason::NoDonor,
        Some(SpanOutcome::Rejected(RejectReason::TooShort)) => ReuseReason::TooShort,
        Some(SpanOutcome::Rejected(RejectReason::Edited)) => ReuseReason::Edited,
        Some(SpanOutcome::Rejected(RejectReason::NotWorthIt)) => ReuseReason::NotWorthIt,
        Some(SpanOutcome::NotResident) => ReuseReason::NotResident,
        Some(SpanOutcome::NoRoom) => ReuseReason::NoRoom,
        Some(SpanOutcome::SwitchedOff) => ReuseReason::SwitchedOff,
        Some(SpanOutcome::Unproven) => ReuseReason::Unproven,
        Some(SpanOutcome::Shadowed) => ReuseReason::Shadowed,
        Some(SpanOutcome::BailedOut) => ReuseReason::BailedOut,
        Some(SpanOutcome::Recomputed) => ReuseReason::Recomputed,
        Some(SpanOutcome::FailedCheck) => ReuseReason::FailedCheck,
    })
}

/// Converts a traffic class into its API type.
pub(crate) fn traffic_class(class: &TrafficClass, quality: &TrafficQuality) -> protocol::TrafficClass {
    let state = if quality.is_open { TrafficState::Open } else { TrafficState::Shadow };
    protocol::TrafficClass {
        object: "kv.class".to_owned(),
        scope: format!("{:016x}", class.scope.0),
        class: class_of(class.class),
        length: class.length_label(),
        format: class.format.to_string(),
        policy: format!("{:016x}", class.policy),
        state,
        verified: quality.num_verified,
        mean_kl: quality.means.map(|(mean_kl, _)| mean_kl),
        top1: quality.means.map(|(_, top1)| top1),
        proof_kl: quality.proof[0],
        proof_top1: quality.proof[1],
        opened: quality.num_opened,
        closed: quality.num_closed,
    }
}

/// Converts a match class into its API type.
pub(crate) const fn class_of(class: MatchClass) -> protocol::MatchClass {
    match class {
        MatchClass::SamePast => protocol::MatchClass::SamePast,
        MatchClass::SameLeftContext => protocol::MatchClass::SameLeftContext,
        MatchClass::Composition => protocol::MatchClass::Composition,
        MatchClass::DownstreamOfEdit => protocol::MatchClass::DownstreamOfEdit,
    }
}

fn planned(span: &ReuseSpan, source: DonorSource) -> ExplainedSpan {
    ExplainedSpan {
        donor: span.donor.0,
        donor_pos: span.donor_pos,
        target_pos: span.target_pos,
        num_tokens: span.num_tokens,
        class: Some(class_of(span.class)),
        source,
    }
}

fn found_only(found: &SpanMatch, source: DonorSource) -> ExplainedSpan {
    ExplainedSpan {
        donor: found.donor.0,
        donor_pos: found.donor_pos,
        target_pos: found.target_pos,
        num_tokens: found.num_tokens,
        class: None,
        source,
    }
}
