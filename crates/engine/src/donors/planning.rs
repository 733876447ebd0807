//! Plans the spans of donors to copy.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use semantic::{ByLeftContext, PlanTarget, PromptView, ReusePlan, Search, SpanMatch, SpanQuery, Steps, plan_counted};
use tokens::DonorId;

use super::DonorRegistry;
use super::residency::Residency;
use super::spans::{FoundSpans, PlannedSpans};
use super::target::{Target, segments_of};
use crate::SpanOutcome;
use crate::host::FetchGate;

/// A plan, and the search results it is based on.
pub(crate) struct Planning {
    spans: PlannedSpans,
    /// All matching spans that may be copied.
    found: Vec<SpanMatch>,
    /// Donors whose KV of matching tokens was evicted.
    unusable: Vec<DonorId>,
    pub(crate) steps: Steps,
}

/// Spans that a search would find, with the matches they are based on.
pub(crate) struct ExplainedSpans {
    /// Its plan may have been rejected.
    pub(crate) found: FoundSpans,
    /// All matching spans, resident or not.
    pub(crate) matches: Vec<SpanMatch>,
    /// True if some of their KV is resident, or if there are none.
    pub(crate) is_resident: bool,
}

/// Matching spans whose KV is worth copying.
struct Matches {
    /// By ascending target position.
    spans: Vec<SpanMatch>,
    /// Donors found only by embedding.
    by_embedding: BTreeSet<DonorId>,
    /// Donors whose KV of matching tokens was evicted.
    unusable: Vec<DonorId>,
    steps: Steps,
}

impl DonorRegistry {
    /// Plans which spans still resident in `pool` to copy into `target`. Changes nothing.
    pub(crate) fn plan_resident(
        &self,
        pool: &kv::BlockPool,
        target: Target<'_>,
        gate: FetchGate<'_>,
        residency: Residency,
    ) -> Planning {
        let Matches { mut spans, by_embedding, unusable, mut steps } =
            self.find(target, |id| self.usable(pool, id, target, residency));
        if self.has_host_tier {
            spans.retain_mut(|found| {
                found.num_tokens = self.num_worthy(pool, found, gate);
                found.num_tokens >= self.config.min_span_tokens
            });
        }
        let (plan, of_plan) = self.plan(target, &spans);
        steps += of_plan;
        Planning { spans: PlannedSpans { plan, by_embedding }, found: spans, unusable, steps }
    }

    /// Returns the outcome of `planning`, and removes evicted KV from the index, so that later searches find other donors in its
    /// place.
    pub(crate) fn settle(
        &mut self,
        pool: &kv::BlockPool,
        target: Target<'_>,
        planning: Planning,
    ) -> Result<PlannedSpans, SpanOutcome> {
        let Planning { spans, found, unusable, .. } = planning;
        let was_there = found.is_empty() && !unusable.is_empty() && !self.find(target, |id| self.unexpired(id)).spans.is_empty();
        for id in unusable {
            let Some((donor, blocks)) = self.get(id) else { continue };
            let num_blocks = pool.index().count_leading(blocks.hashed(donor, &blocks.readable));
            match self.is_too_short(num_blocks) {
                true => self.remove(id),
                false => self.store.shorten(id, self.num_tokens(num_blocks)),
            }
        }
        match spans.plan.rejected {
            _ if was_there => Err(SpanOutcome::NotResident),
            Some(reason) => Err(SpanOutcome::Rejected(reason)),
            None => Ok(spans),
        }
    }

    /// Returns the spans that would be copied into `target`, and all that match, resident or not.
    pub(crate) fn explain(&self, pool: &kv::BlockPool, target: Target<'_>, gate: FetchGate<'_>) -> ExplainedSpans {
        let sketch = target.sketch.is_none().then(|| self.sketch(target.tokens, target.borders, target.template));
        let target = Target { sketch: target.sketch.or(sketch.as_ref()), ..target };
        let estimated = self.plan_resident(pool, target, gate, Residency::Estimated);
        let (planning, sources) = match self.sources(pool, target, &estimated.spans.plan) {
            Some(sources) => (estimated, sources),
            None => {
                let confirmed = self.plan_resident(pool, target, gate, Residency::Confirmed);
                let sources = self.sources(pool, target, &confirmed.spans.plan);
                (confirmed, sources.expect("what was confirmed is there"))
            }
        };
        let Planning { spans: PlannedSpans { plan, by_embedding }, found, unusable, .. } = planning;
        let has_all = unusable.is_empty() && !self.has_host_tier;
        let nothing_left = found.is_empty() && !unusable.is_empty();
        let matches = if has_all { found } else { self.find(target, |id| self.unexpired(id)).spans };
        let is_resident = !nothing_left || matches.is_empty();
        ExplainedSpans { found: FoundSpans { plan, sources, by_embedding }, matches, is_resident }
    }

    /// Finds matching spans if the prompt is long enough for a plan. Compares all spans of donors found by embedding.
    fn find(&self, target: Target<'_>, mut usable: impl FnMut(DonorId) -> u32) -> Matches {
        let num_tokens = target.tokens.len() as u32;
        let is_worthwhile =
            num_tokens >= self.config.min_prompt_tokens && num_tokens.saturating_sub(target.from) >= self.config.min_span_tokens;
        if !is_worthwhile {
            return Matches { spans: Vec::new(), by_embedding: BTreeSet::new(), unusable: Vec::new(), steps: Steps::default() };
        }
        let sampled = target.sketch.is_none().then(|| self.sketch(target.tokens, target.borders, target.template));
        let sketch = target.sketch.or(sampled.as_ref()).expect("it was sampled if it was not there");
        let scopes: Vec<_> = target.scopes().collect();
        let query = SpanQuery { scopes: &scopes, tokens: target.tokens, sketch, from: target.from };
        let Search { matches: mut spans, mut unusable, mut steps } = self.store.search(&query, &mut usable);
        let mut by_embedding = BTreeSet::new();
        if !target.similar.is_empty() {
            let posted: BTreeSet<_> = spans.iter().map(|span| span.donor).collect();
            spans.retain(|span| !target.similar.contains(&span.donor));
            for &donor in target.similar {
                let of_donor = self.store.search_in(donor, &query, &mut usable);
                by_embedding.extend(of_donor.matches.first().map(|_| donor).filter(|donor| !posted.contains(donor)));
                spans.extend(of_donor.matches);
                unusable.extend(of_donor.unusable);
                steps += of_donor.steps;
            }
            spans.sort_by_key(|found| (found.target_pos, Reverse(found.num_tokens), Reverse(found.donor), found.donor_pos));
        }
        Matches { spans, by_embedding, unusable, steps }
    }

    fn plan(&self, target: Target<'_>, matches: &[SpanMatch]) -> (ReusePlan, Steps) {
        let segments = match target.sketch {
            Some(sketch) => sketch.segments(),
            None => &segments_of(target.borders, target.template),
        };
        let prompt = PromptView { tokens: target.tokens, segments };
        let Target { from, template, .. } = target;
        let (planned, config) = (PlanTarget { prompt, from, template }, target.policy.spans(&self.config));
        match target.ranks_donors {
            true => plan_counted(&planned, matches, &ByLeftContext::new(&self.store), &config),
            false => plan_counted(&planned, matches, &self.store, &config),
        }
    }
}
