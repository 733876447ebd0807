//! Decides for each class of traffic, by comparison with full computation, if its requests may reuse KV.
//!
//! A [`TrafficClass`] groups requests by properties that predict the quality of reuse and are known before any computation. Each class
//! begins in shadow: its answers are exact, and a comparison determines what reuse would have answered. Two bets, one on the mean KL and
//! one on the mean disagreement of the likeliest tokens, open the class when both are confidently below their bounds. From then on its
//! answers over reuse are verified as all others are, and the bets against them (`evidence.rs`) close the class. A closed class has to
//! prove itself anew, each time with twice the confidence.
//!
//! After a verified answer that misses a bound by far, all of the next ones are verified: this finds a class that turns bad within a few
//! dozen answers, though only a few of a hundred are verified while it is good. The decision to verify precedes the answer, so the bets
//! stay fair. If there is no time for comparisons, an open class gives a bounded number of answers and waits for the next one. A class that
//! many trials have not opened is tried seldom.
//!
//! The bet on a mean below `m` multiplies a capital by `1 + b (1 − x/m)` at each value `x` (Waudby-Smith and Ramdas 2024, arXiv
//! 2010.09686). A value above [`CLIP`] times its bound counts as that: otherwise one answer could cost the whole capital. So the proof is
//! that the mean of the clipped values is below the bound. A class whose mean is at its bound or above is opened with probability at most
//! `error_rate`, however long it is tried (Ville's inequality); of the project's own workloads those below half of both bounds open within
//! 20 to 60 answers.

use std::collections::BTreeMap;
use std::fmt;

use tokens::{Scope, TenantId};

use crate::evidence::Evidence;
use crate::{MatchClass, ReusePlan, ReuseSpan, Verdict};

/// A value counts as at most this many times its bound. Chosen: with less, rare answers that are far off would hardly count; with more,
/// every bet would have to be smaller.
const CLIP: f64 = 6.0;

/// Share of the capital that is bet. Below `1 / (CLIP - 1)`, so that no value costs all of it.
const BET: f64 = 0.18;

/// Most answers over reuse that an open class gives after the last comparison; then its answers are exact until the next one. Chosen: with
/// one answer in twenty verified, hardly reached where there is idle time at all.
const MAX_UNVERIFIED: u32 = 64;

/// A verified answer that misses a bound by this factor raises doubt, and the next `DOUBTED_ANSWERS` are verified. Chosen.
const DOUBT: f64 = 2.0;
const DOUBTED_ANSWERS: u32 = 8;

/// Most classes kept of one tenant; a new one evicts the one requested longest ago. Chosen: far more than one application has.
const MAX_CLASSES_PER_TENANT: usize = 256;
/// Most classes kept of all tenants.
const MAX_CLASSES: usize = 16_384;

/// Upper bounds of the classes of prompt length, in tokens.
const LENGTHS: [u32; 3] = [1024, 4096, 16_384];

/// Least pieces of template text in a conversation: a system message, a question and the beginning of an answer have three.
const MIN_CONVERSATION_PIECES: usize = 4;

/// Comparisons without opening a class, after which few of its answers are compared. Chosen: twice as many as open a class that is well
/// below its bounds.
const MAX_DENSE_TRIALS: u64 = 128;

/// Requests with the same predictors of the quality of reuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrafficClass {
    /// Tenant of the requests.
    pub tenant: TenantId,
    /// Tenant, `cache_salt` and model.
    pub scope: Scope,
    /// Class of the span with the least equal left context.
    pub class: MatchClass,
    /// Index of the prompt's length class.
    pub length: u8,
    /// Composition of the prompt.
    pub format: TrafficFormat,
    /// Number of the repair policy.
    pub policy: u64,
}

/// Composition of a prompt of reused text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrafficFormat {
    /// True if all spans come from one donor, in its order.
    pub keeps_order: bool,
    /// True if most of the moved tokens are in short pieces.
    pub is_short: bool,
    /// True if the prompt has several turns.
    pub is_conversation: bool,
}

/// Bounds of the means, and the confidence of the proof.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProofConfig {
    /// Highest mean KL(full‖reuse), in nats. Above 0.
    pub max_mean_kl: f64,
    /// Lowest mean share of positions with the same likeliest token. Below 1.
    pub min_top1: f64,
    /// Probability that a class at a bound is opened. Above 0 and below 1.
    pub error_rate: f64,
}

/// Findings about one class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrafficQuality {
    /// True if requests of the class reuse.
    pub is_open: bool,
    /// Number of answers compared so far, in shadow and over reuse.
    pub num_verified: u64,
    /// Mean KL and mean [top-1 agreement](Verdict::top1) of the answers compared since the class was last closed, if any.
    pub means: Option<(f64, f64)>,
    /// Progress of the proofs for KL and top-1, from 0 to 1: the class is opened when both are 1.
    pub proof: [f64; 2],
    /// Number of times the class was opened.
    pub num_opened: u32,
    /// Number of times the class was closed.
    pub num_closed: u32,
}

/// Consequence of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficChange {
    /// Requests of the class reuse from now on.
    Opened,
    /// Requests of the class do not reuse any more.
    Closed,
}

/// Guard that opens and closes classes of traffic.
#[derive(Clone, Debug)]
pub struct TrafficGuard {
    config: ProofConfig,
    records: BTreeMap<TrafficClass, Record>,
    counts: TrafficCounts,
    /// Number of requests so far.
    clock: u64,
}

/// Number of classes of all tenants, and of their changes so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TrafficCounts {
    /// Classes that are open.
    pub num_open: usize,
    /// Classes that are in shadow.
    pub num_in_shadow: usize,
    /// Times that a class was opened.
    pub num_opened: u64,
    /// Times that a class was closed.
    pub num_closed: u64,
}

#[derive(Clone, Debug, Default)]
struct Record {
    is_open: bool,
    /// `ln` of the capitals of the bets on the class.
    proofs: [f64; 2],
    /// Evidence against the class, while it is open.
    evidence: [Evidence; 2],
    /// Remaining answers to verify after a bad one.
    num_doubted: u32,
    /// Answers over reuse since the last comparison.
    num_unverified: u32,
    num_verified: u64,
    /// Sums of KL and agreement since the class was last closed.
    sums: [f64; 2],
    num_summed: u64,
    num_opened: u32,
    num_closed: u32,
    last_asked: u64,
}

impl Default for ProofConfig {
    fn default() -> Self {
        Self { max_mean_kl: 0.02, min_top1: 0.97, error_rate: 0.05 }
    }
}

impl TrafficClass {
    /// Returns the class of a prompt of `prompt_len` tokens, with `template` pieces of the chat template, that `plan` fills in part.
    /// Returns `None` if no span is moved.
    #[must_use]
    pub fn of(owner: (TenantId, Scope), plan: &ReusePlan, prompt_len: u32, template: usize, policy: u64) -> Option<Self> {
        let (tenant, scope) = owner;
        let class = plan.class()?;
        let format = TrafficFormat {
            keeps_order: keeps_order(&plan.spans),
            is_short: 2 * plan.num_short_tokens() > plan.num_reused_tokens(),
            is_conversation: template >= MIN_CONVERSATION_PIECES,
        };
        Some(Self { tenant, scope, class, length: length_idx(prompt_len), format, policy })
    }

    /// Returns a label of the length class: `below_1024`, or `from_16384`.
    #[must_use]
    pub fn length_label(&self) -> String {
        match LENGTHS.get(self.length as usize) {
            Some(bound) => format!("below_{bound}"),
            None => format!("from_{}", LENGTHS[LENGTHS.len() - 1]),
        }
    }
}

impl fmt::Display for TrafficFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_conversation { "conversation" } else { "prompt" })?;
        f.write_str(if self.keeps_order { ",in_order" } else { ",reordered" })?;
        f.write_str(if self.is_short { ",short_pieces" } else { "" })
    }
}

fn length_idx(prompt_len: u32) -> u8 {
    LENGTHS.iter().filter(|&&bound| prompt_len >= bound).count() as u8
}

fn keeps_order(spans: &[ReuseSpan]) -> bool {
    spans.is_sorted_by(|before, after| before.donor == after.donor && before.donor_pos < after.donor_pos)
}

impl TrafficGuard {
    /// Creates a guard without any proven class.
    #[must_use]
    pub fn new(config: ProofConfig) -> Self {
        Self { config, records: BTreeMap::new(), counts: TrafficCounts::default(), clock: 0 }
    }

    /// True if reuse has proven itself for `class`.
    #[must_use]
    pub fn is_open(&self, class: &TrafficClass) -> bool {
        self.records.get(class).is_some_and(|record| record.is_open && record.num_unverified < MAX_UNVERIFIED)
    }

    /// Counts an answer over reuse of `class`.
    pub fn note_reuse(&mut self, class: &TrafficClass) {
        if let Some(record) = self.records.get_mut(class) {
            record.num_unverified += 1;
        }
    }

    /// True if an answer of `class`, which is open, was bad lately: then all are verified.
    #[must_use]
    pub fn is_doubted(&self, class: &TrafficClass) -> bool {
        self.records.get(class).is_some_and(|record| record.num_doubted > 0)
    }

    /// Records a request of `class`: the class requested longest ago is evicted first.
    pub fn note_request(&mut self, class: TrafficClass) {
        self.clock += 1;
        let clock = self.clock;
        if !self.records.contains_key(&class) {
            self.make_room(class.tenant);
            self.counts.num_in_shadow += 1;
        }
        self.records.entry(class).or_default().last_asked = clock;
    }

    /// Evicts the class of `tenant`, or of all, that was requested longest ago, if there are too many.
    fn make_room(&mut self, tenant: TenantId) {
        let of_tenant = self.records.iter().filter(|(class, _)| class.tenant == tenant);
        let oldest = match of_tenant.clone().count() >= MAX_CLASSES_PER_TENANT {
            true => of_tenant.min_by_key(|(_, record)| record.last_asked),
            false if self.records.len() >= MAX_CLASSES => self.records.iter().min_by_key(|(_, record)| record.last_asked),
            false => None,
        };
        if let Some((&oldest, _)) = oldest {
            self.records.remove(&oldest);
            self.count_classes();
        }
    }

    /// Records the verdict on a compared answer: in shadow that of reuse, otherwise the one given.
    pub fn record(&mut self, class: TrafficClass, verdict: Verdict) -> Option<TrafficChange> {
        let config = self.config;
        let record = self.records.get_mut(&class)?;
        // A value that is not finite counts as the worst.
        let kl = if verdict.mean_kl.is_finite() { verdict.mean_kl.max(0.0) } else { CLIP * config.max_mean_kl };
        let top1 = if verdict.top1.is_nan() { 0.0 } else { verdict.top1.clamp(0.0, 1.0) };
        record.num_verified += 1;
        record.num_unverified = 0;
        record.num_summed += 1;
        record.sums = [record.sums[0] + kl, record.sums[1] + top1];
        let values = [(kl, config.max_mean_kl), (1.0 - top1, 1.0 - config.min_top1)].map(|(x, m)| (x.min(CLIP * m), m));
        let change = match record.is_open {
            true => record.doubt(values, config.error_rate).then_some(TrafficChange::Closed),
            false => record.prove(values, config.error_rate).then_some(TrafficChange::Opened),
        };
        if let Some(change) = change {
            self.counts.num_opened += u64::from(change == TrafficChange::Opened);
            self.counts.num_closed += u64::from(change == TrafficChange::Closed);
            self.count_classes();
        }
        change
    }

    /// Returns the numbers of classes and changes. Constant time: called after every step.
    #[must_use]
    pub fn counts(&self) -> TrafficCounts {
        self.counts
    }

    /// True if `class` was tried so often without opening that few of its answers are still compared.
    #[must_use]
    pub fn is_tried_seldom(&self, class: &TrafficClass) -> bool {
        self.records.get(class).is_some_and(|record| !record.is_open && record.num_summed >= MAX_DENSE_TRIALS)
    }

    fn count_classes(&mut self) {
        self.counts.num_open = self.records.values().filter(|record| record.is_open).count();
        self.counts.num_in_shadow = self.records.len() - self.counts.num_open;
    }

    /// Returns every class of `tenant`, or of all tenants, with its findings.
    pub fn classes(&self, tenant: Option<TenantId>) -> impl Iterator<Item = (TrafficClass, TrafficQuality)> {
        let seen = self.records.iter().filter(move |(class, _)| tenant.is_none_or(|tenant| class.tenant == tenant));
        seen.map(|(&class, record)| (class, record.quality(self.config.error_rate)))
    }

    /// Removes the classes of `tenant`, or of all.
    pub fn erase(&mut self, tenant: Option<TenantId>) {
        self.records.retain(|class, _| tenant.is_some_and(|tenant| class.tenant != tenant));
        self.count_classes();
    }
}

impl Record {
    /// Returns the `ln` of the capital that opens the class: doubled for each time it was closed.
    fn goal(&self, error_rate: f64) -> f64 {
        -error_rate.ln() + f64::from(self.num_closed) * std::f64::consts::LN_2
    }

    /// Adds values with their bounds to the proofs. Returns true if that opens the class.
    fn prove(&mut self, values: [(f64, f64); 2], error_rate: f64) -> bool {
        let goal = self.goal(error_rate);
        for (proof, (value, bound)) in self.proofs.iter_mut().zip(values) {
            // A complete proof stays complete: its capital has reached the goal once.
            if *proof < goal {
                *proof += (BET * (1.0 - value / bound)).ln_1p();
            }
        }
        let is_proven = self.proofs.iter().all(|proof| *proof >= goal);
        if is_proven {
            self.is_open = true;
            self.num_opened += 1;
            self.evidence = Default::default();
        }
        is_proven
    }

    /// Adds values with their bounds to the evidence against the class. Returns true if that closes it.
    fn doubt(&mut self, values: [(f64, f64); 2], error_rate: f64) -> bool {
        for (evidence, (value, bound)) in self.evidence.iter_mut().zip(values) {
            evidence.add(value, bound);
        }
        let is_bad = values.iter().any(|(value, bound)| *value > DOUBT * bound);
        self.num_doubted = if is_bad { DOUBTED_ANSWERS } else { self.num_doubted.saturating_sub(1) };
        let is_refuted = self.evidence.iter().any(|evidence| evidence.strength(error_rate) >= 1.0);
        if is_refuted {
            let (num_verified, num_opened, num_closed) = (self.num_verified, self.num_opened, self.num_closed + 1);
            *self = Self { num_verified, num_opened, num_closed, last_asked: self.last_asked, ..Self::default() };
        }
        is_refuted
    }

    fn quality(&self, error_rate: f64) -> TrafficQuality {
        let n = self.num_summed.max(1) as f64;
        let goal = self.goal(error_rate);
        TrafficQuality {
            is_open: self.is_open && self.num_unverified < MAX_UNVERIFIED,
            num_verified: self.num_verified,
            means: (self.num_summed > 0).then(|| (self.sums[0] / n, self.sums[1] / n)),
            proof: self.proofs.map(|proof| (proof / goal).clamp(0.0, 1.0)),
            num_opened: self.num_opened,
            num_closed: self.num_closed,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokens::DonorId;

    use super::*;
    use crate::testing::Random;

    fn class(tenant: u32, policy: u64) -> TrafficClass {
        let plan = ReusePlan { spans: vec![span(1, 0, 100)], ..ReusePlan::default() };
        TrafficClass::of((TenantId(tenant), Scope(tenant.into())), &plan, 2000, 2, policy).unwrap()
    }

    fn span(donor: u64, donor_pos: u32, target_pos: u32) -> ReuseSpan {
        ReuseSpan { donor: DonorId(donor), donor_pos, target_pos, num_tokens: 100, class: MatchClass::Composition }
    }

    fn verdict(mean_kl: f64, top1: f64) -> Verdict {
        Verdict { mean_kl, first_kl: mean_kl, top1 }
    }

    /// Counts the answers until the class of `guard` changes, at most `max`.
    fn answers_until(
        guard: &mut TrafficGuard,
        change: TrafficChange,
        max: usize,
        mut answer: impl FnMut() -> Verdict,
    ) -> Option<usize> {
        guard.note_request(class(1, 0));
        (1..=max).find(|_| guard.record(class(1, 0), answer()) == Some(change))
    }

    #[track_caller]
    fn check(mean_kl: f64, top1: f64, expected: std::ops::RangeInclusive<usize>) {
        let mut guard = TrafficGuard::new(ProofConfig::default());
        let opened = answers_until(&mut guard, TrafficChange::Opened, 1000, || verdict(mean_kl, top1));
        assert!(opened.is_some_and(|opened| expected.contains(&opened)), "{opened:?}");
        assert!(guard.is_open(&class(1, 0)) && !guard.is_open(&class(2, 0)) && !guard.is_open(&class(1, 1)));
        assert!(!guard.is_tried_seldom(&class(1, 0)));
    }

    #[test]
    fn the_better_a_class_is_the_sooner_it_opens() {
        check(0.0, 1.0, 15..=25);
        check(0.005, 0.99, 25..=40);
        check(0.015, 0.98, 60..=90);
    }

    #[test]
    fn what_is_at_a_bound_is_not_opened_however_long_it_is_tried() {
        for (kl, top1) in [(0.02, 1.0), (0.0, 0.97), (f64::NAN, 1.0), (0.0, f64::NAN), (f64::INFINITY, 1.0), (0.05, 0.9)] {
            let mut guard = TrafficGuard::new(ProofConfig::default());
            let opened = answers_until(&mut guard, TrafficChange::Opened, 5000, || verdict(kl, top1));
            assert_eq!(opened, None, "{kl} {top1}");
            assert!(guard.is_tried_seldom(&class(1, 0)));
        }
    }

    /// Perfect answers but for one in four, which puts the mean at the bound.
    #[test]
    fn a_mean_at_its_bound_opens_no_more_often_than_stated() {
        let mut random = Random(5);
        let opened = |guard: &mut TrafficGuard, random: &mut Random| {
            let mut answer = || verdict(if random.below(4) == 0 { 0.08 } else { 0.0 }, 1.0);
            answers_until(guard, TrafficChange::Opened, 500, &mut answer).is_some()
        };
        let num = (0..1000).filter(|_| opened(&mut TrafficGuard::new(ProofConfig::default()), &mut random)).count();
        assert!(num <= 50, "{num} of 1000");
    }

    #[test]
    fn a_class_that_turns_bad_is_closed_and_has_to_prove_twice_as_much() {
        let mut guard = TrafficGuard::new(ProofConfig::default());
        let good = || verdict(0.002, 1.0);
        let first = answers_until(&mut guard, TrafficChange::Opened, 100, good).unwrap();
        assert_eq!(answers_until(&mut guard, TrafficChange::Closed, 200, good), None);
        let closed = answers_until(&mut guard, TrafficChange::Closed, 64, || verdict(0.08, 0.9)).unwrap();
        assert!(closed <= 16 && !guard.is_open(&class(1, 0)), "{closed}");
        let second = answers_until(&mut guard, TrafficChange::Opened, 100, good).unwrap();
        assert!(second > first, "{second} after {first}");
        let (_, quality) = guard.classes(None).next().unwrap();
        assert_eq!((quality.num_opened, quality.num_closed, quality.is_open, quality.proof), (2, 1, true, [1.0, 1.0]));
        let expected = TrafficCounts { num_open: 1, num_in_shadow: 0, num_opened: 2, num_closed: 1 };
        assert_eq!(guard.counts(), expected);
        assert!((quality.means.unwrap().0 - 0.002).abs() < 1e-9, "what was before it was closed does not count");
    }

    #[test]
    fn an_open_class_waits_for_a_comparison_after_some_answers() {
        let mut guard = TrafficGuard::new(ProofConfig::default());
        answers_until(&mut guard, TrafficChange::Opened, 100, || verdict(0.0, 1.0)).unwrap();
        let num_given = (0..1000)
            .take_while(|_| {
                guard.is_open(&class(1, 0)) && {
                    guard.note_reuse(&class(1, 0));
                    true
                }
            })
            .count();
        assert_eq!(num_given, MAX_UNVERIFIED as usize);
        guard.record(class(1, 0), verdict(0.0, 1.0));
        assert!(guard.is_open(&class(1, 0)), "one comparison is enough");
    }

    #[test]
    fn a_bad_answer_has_the_next_ones_verified() {
        let mut guard = TrafficGuard::new(ProofConfig::default());
        answers_until(&mut guard, TrafficChange::Opened, 100, || verdict(0.0, 1.0)).unwrap();
        assert!(!guard.is_doubted(&class(1, 0)));
        guard.record(class(1, 0), verdict(0.05, 1.0));
        let num_doubted =
            (0..100).take_while(|_| guard.is_doubted(&class(1, 0)) && guard.record(class(1, 0), verdict(0.0, 1.0)).is_none());
        assert_eq!(num_doubted.count(), DOUBTED_ANSWERS as usize);
        assert!(guard.is_open(&class(1, 0)));
    }

    #[test]
    fn classes_are_bounded_and_the_one_asked_for_longest_ago_goes() {
        let mut guard = TrafficGuard::new(ProofConfig::default());
        guard.note_request(class(2, 7));
        (0..300).for_each(|policy| guard.note_request(class(1, policy)));
        let policies: Vec<_> = guard.classes(Some(TenantId(1))).map(|(class, _)| class.policy).collect();
        assert_eq!(policies, (44..300).collect::<Vec<_>>());
        assert_eq!(guard.classes(Some(TenantId(2))).count(), 1, "another tenant is not touched");
        assert_eq!(guard.record(class(1, 3), verdict(0.0, 1.0)), None, "a forgotten class learns nothing");
        assert_eq!(guard.counts().num_in_shadow, 257);
        guard.erase(Some(TenantId(1)));
        assert_eq!((guard.classes(None).count(), guard.counts().num_in_shadow), (1, 1));
        guard.erase(None);
        assert_eq!((guard.classes(None).count(), guard.counts().num_in_shadow), (0, 0));
    }

    #[track_caller]
    fn check_format(spans: &[ReuseSpan], template: usize, expected: &str) {
        let plan = ReusePlan { spans: spans.to_vec(), ..ReusePlan::default() };
        let class = TrafficClass::of((TenantId(1), Scope(1)), &plan, 1024, template, 0).unwrap();
        assert_eq!((class.format.to_string().as_str(), class.length_label().as_str()), (expected, "below_4096"));
    }

    #[test]
    fn prompts_made_in_other_ways_are_of_other_classes() {
        check_format(&[span(1, 0, 0), span(1, 200, 100)], 2, "prompt,in_order");
        check_format(&[span(1, 200, 0), span(1, 0, 100)], 2, "prompt,reordered");
        check_format(&[span(1, 0, 0), span(2, 200, 100)], 5, "conversation,reordered");
        let short = ReuseSpan { num_tokens: 50, ..span(1, 0, 0) };
        check_format(&[short], 2, "prompt,in_order,short_pieces");
        assert_eq!(TrafficClass::of((TenantId(1), Scope(1)), &ReusePlan::default(), 9, 2, 0), None);
    }
}
