//! What the engine says about a request, in the words of the API.

use engine::{Explanation, MatchClass, ReuseSpan, SpanMatch};
use protocol::{CostEstimate, DonorSource, ExplainedSpan};
use tokens::DonorId;

use crate::encode::Encoded;
use crate::valid::ValidRequest;

/// The answer to `request` with its one `prompt`.
pub(crate) fn explanation(request: ValidRequest, prompt: &Encoded, found: Explanation) -> protocol::Explanation {
    let Explanation { prefix_tokens, plan, mut matches, by_embedding } = found;
    let source_of = |donor: DonorId| match by_embedding.contains(&donor) {
        true => DonorSource::Embedding,
        false => DonorSource::Span,
    };
    let prompt_tokens = u32::try_from(prompt.token_ids.len()).expect("a prompt within max_model_len");
    let span_tokens = plan.spans.iter().map(|span| span.num_tokens).sum();
    matches.sort_by_key(|found| (found.target_pos, found.donor, found.donor_pos));
    protocol::Explanation {
        object: "kv.explanation".to_owned(),
        model: request.model,
        mode: request.sharing.mode,
        policy: request.sharing.bounded_repair().to_string(),
        prompt_tokens,
        prefix_tokens,
        span_tokens,
        recomputed_tokens: plan.recomputed_tokens,
        computed_tokens: prompt_tokens - prefix_tokens - span_tokens,
        segments: prompt.segments.clone(),
        spans: plan.spans.iter().map(|span| planned(span, source_of(span.donor))).collect(),
        matches: matches.iter().map(|found| found_only(found, source_of(found.donor))).collect(),
        edited: plan.edited.iter().map(|range| [range.start, range.end]).collect(),
        estimate: plan.estimate.map(|found| CostEstimate { full_ms: found.full_ms, reuse_ms: found.reuse_ms }),
        rejected: plan.rejected.map(|reason| reason.label().to_owned()),
    }
}

/// A class in the words of the API.
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
