//! Switches off classes of reuse whose verified answers miss their bounds.
//!
//! A sample of the answers over reused KV is compared with full computation. Each tenant has a record for each class of matches, so that
//! the traffic of one tenant decides nothing for another. A sequential test switches a class off for a tenant when, with confidence, its
//! mean KL is above a bound, or its mean top-1 agreement below one; a class with few verified answers stays on.
//!
//! Error rates, for a tenant and a class, whatever the distribution of the answers (`evidence.rs`):
//! - A class exactly at its bound is switched off within `n` verified answers with probability at most `error_rate · (1 + n / 1000)` for
//!   each of the two bounds. A better class is switched off far more seldom: with the answers of the project's own evaluation, in 4 of
//!   10,000 runs of 1,000 answers.
//! - A class at three times its bound is switched off within 64 verified answers in at least 95 of 100 runs (`benches/scale/guard.md`).
//!
//! A value above 20 times its bound counts as 20 times: one answer alone never switches a class off. That lowers the mean, so it can only
//! keep a class on. A KL or an agreement that is not a number counts as the worst.
//!
//! Requests of a class that was switched off are computed in full for a number of requests (the pause), then the class is tried again: all
//! of its answers are verified until it passes a trial. Each failure doubles the next pause, each passed trial halves it. Only requests and
//! answers are counted, never time, so every replay is the same.

use std::collections::{BTreeMap, VecDeque};

use tokens::TenantId;

use crate::MatchClass;
use crate::evidence::Evidence;

/// Bounds of a class, and the confidence of the test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GuardConfig {
    /// Highest mean KL(full‖reuse) of answers, in nats. Above 0; infinite sets no bound.
    pub max_mean_kl: f64,
    /// Lowest mean share of positions with the same likeliest token. At least 0, which sets no bound, and below 1.
    pub min_top1: f64,
    /// Probability that a class exactly at one of its bounds is switched off within `n` verified answers is at most this, times `1 + n /
    /// 1000`. Above 0 and below 1.
    pub error_rate: f64,
    /// Answers after which a class is no longer new, or has passed its trial.
    pub trial_answers: usize,
    /// Number of answers whose means are reported.
    pub window: usize,
    /// Requests of a class that are computed in full after it was switched off for the first time.
    pub first_pause: u64,
}

/// Comparison of one answer with full computation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Verdict {
    /// KL(full‖reuse), mean over the answer's positions, in nats.
    pub mean_kl: f64,
    /// KL at the first position of the answer.
    pub first_kl: f64,
    /// Share of positions with the same likeliest token.
    pub top1: f64,
}

/// A bound that a class may miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// Its mean KL is confidently above [`GuardConfig::max_mean_kl`].
    Kl,
    /// Its mean agreement is confidently below [`GuardConfig::min_top1`].
    Top1,
}

/// The record of one class, over all tenants.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ClassQuality {
    /// Number of answers verified so far.
    pub num_verified: u64,
    /// Mean of [`Verdict::mean_kl`] over the last answers of each tenant.
    pub mean_kl: f64,
    /// Mean of [`Verdict::first_kl`].
    pub first_kl: f64,
    /// Mean of [`Verdict::top1`].
    pub top1: f64,
    /// Number of tenants whose requests of the class are computed in full at present.
    pub num_tenants_off: usize,
    /// Times that the class was switched off for a tenant, by the bound it missed, in the order of [`Fault::ALL`].
    pub num_switched_off: [u64; Fault::ALL.len()],
    /// Strongest evidence of any tenant's answers against the class, by bound: at 1 the class is switched off for that tenant.
    pub evidence: [f64; Fault::ALL.len()],
}

/// Guard of all classes.
#[derive(Clone, Debug)]
pub struct QualityGuard {
    config: GuardConfig,
    records: BTreeMap<(TenantId, MatchClass), Record>,
    /// Cached results of all classes: read after every step, changed by a verdict and by the end of a pause.
    classes: Vec<(MatchClass, ClassQuality)>,
}

#[derive(Clone, Debug, Default)]
struct Record {
    num_verified: u64,
    recent: VecDeque<Verdict>,
    /// Evidence of the present trial, by bound.
    evidence: [Evidence; Fault::ALL.len()],
    /// Number of answers of the present trial.
    num_tried: usize,
    /// True if it was switched off and has not passed a trial since.
    is_on_probation: bool,
    /// Remaining requests to compute in full.
    pause: u64,
    /// Number of doublings of the next pause.
    num_doublings: u32,
    num_switched_off: [u64; Fault::ALL.len()],
}

/// Most multiples of its bound that a KL or a disagreement counts. Chosen: with the default bounds 1 nat, and no agreement at all.
const CLIP: f64 = 20.0;

/// Most doublings of the pause.
const MAX_DOUBLINGS: u32 = 10;

impl Default for GuardConfig {
    /// The agreement in the project's own evaluation is .97; its bound leaves it the same margin as the bound of the KL leaves to .020.
    fn default() -> Self {
        Self { max_mean_kl: 0.05, min_top1: 0.95, error_rate: 0.05, trial_answers: 64, window: 128, first_pause: 64 }
    }
}

impl Fault {
    /// Both bounds.
    pub const ALL: [Self; 2] = [Self::Kl, Self::Top1];

    /// Returns its name as a metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Kl => "kl",
            Self::Top1 => "top1",
        }
    }
}

impl GuardConfig {
    /// Returns name, value, range and validity of each setting.
    #[must_use]
    pub fn checks(&self) -> [(&'static str, f64, &'static str, bool); 3] {
        [
            ("max_mean_kl", self.max_mean_kl, "above 0", self.max_mean_kl > 0.0),
            ("min_top1", self.min_top1, "at least 0 and below 1", (0.0..1.0).contains(&self.min_top1)),
            ("error_rate", self.error_rate, "above 0 and below 1", self.error_rate > 0.0 && self.error_rate < 1.0),
        ]
    }

    /// Returns the values that count against each bound, and the bound.
    fn measured(&self, verdict: &Verdict) -> [(f64, f64); Fault::ALL.len()] {
        let bounds = [(verdict.mean_kl, self.max_mean_kl), (1.0 - verdict.top1, 1.0 - self.min_top1)];
        bounds.map(|(value, bound)| (value.min(CLIP * bound), bound))
    }

    /// Replaces each value of `verdict` that is not a number by the worst one.
    fn numeric(&self, verdict: Verdict) -> Verdict {
        let clip = if self.max_mean_kl.is_finite() { CLIP * self.max_mean_kl } else { f64::MAX };
        let kl = |kl: f64| if kl.is_finite() { kl.max(0.0) } else { clip };
        let top1 = if verdict.top1.is_nan() { 0.0 } else { verdict.top1.clamp(0.0, 1.0) };
        Verdict { mean_kl: kl(verdict.mean_kl), first_kl: kl(verdict.first_kl), top1 }
    }
}

impl QualityGuard {
    /// Creates a guard without any record, which allows every class.
    #[must_use]
    pub fn new(config: GuardConfig) -> Self {
        Self { config, records: BTreeMap::new(), classes: Vec::new() }
    }

    /// True if requests of `tenant` may reuse spans of `class`.
    #[must_use]
    pub fn allows(&self, tenant: TenantId, class: MatchClass) -> bool {
        self.records.get(&(tenant, class)).is_none_or(|record| record.pause == 0)
    }

    /// Counts a request that was computed in full because its class is off. Enough of them end the pause.
    pub fn count_refusal(&mut self, tenant: TenantId, class: MatchClass) {
        let Some(record) = self.records.get_mut(&(tenant, class)) else { return };
        let was_off = record.pause > 0;
        record.pause = record.pause.saturating_sub(1);
        if was_off && record.pause == 0 {
            self.refresh_quality(class);
        }
    }

    /// True if so few answers of `class` were verified that more of them should be.
    #[must_use]
    pub fn is_new(&self, tenant: TenantId, class: MatchClass) -> bool {
        self.records.get(&(tenant, class)).is_none_or(|record| record.num_tried < self.config.trial_answers)
    }

    /// True if `class` was switched off and has not passed a trial since: then every answer is verified.
    #[must_use]
    pub fn is_on_probation(&self, tenant: TenantId, class: MatchClass) -> bool {
        self.records.get(&(tenant, class)).is_some_and(|record| record.is_on_probation)
    }

    /// Records a verified answer. Returns the bound that `class` misses, if this switched it off for `tenant`. An answer given before the
    /// class was switched off counts in the means only.
    pub fn record(&mut self, tenant: TenantId, class: MatchClass, verdict: Verdict) -> Option<Fault> {
        let verdict = self.config.numeric(verdict);
        let record = self.records.entry((tenant, class)).or_default();
        record.remember(verdict, self.config.window);
        let fault = if record.pause == 0 { record.judge(&verdict, &self.config) } else { None };
        self.refresh_quality(class);
        fault
    }

    /// Returns every class with a record, over all tenants, best class first.
    #[must_use]
    pub fn classes(&self) -> &[(MatchClass, ClassQuality)] {
        &self.classes
    }

    fn refresh_quality(&mut self, class: MatchClass) {
        let records: Vec<_> = self.records.iter().filter(|((_, of), _)| *of == class).map(|(_, record)| record).collect();
        let quality = quality(&records, self.config.error_rate);
        match self.classes.binary_search_by_key(&class, |(known, _)| *known) {
            Ok(idx) => self.classes[idx].1 = quality,
            Err(idx) => self.classes.insert(idx, (class, quality)),
        }
    }
}

impl Record {
    fn remember(&mut self, verdict: Verdict, window: usize) {
        self.num_verified += 1;
        self.recent.push_back(verdict);
        if self.recent.len() > window {
            self.recent.pop_front();
        }
    }

    /// Adds `verdict` to the evidence. Returns the bound that is missed, if that is certain now.
    fn judge(&mut self, verdict: &Verdict, config: &GuardConfig) -> Option<Fault> {
        for (evidence, (value, bound)) in self.evidence.iter_mut().zip(config.measured(verdict)) {
            evidence.add(value, bound);
        }
        self.num_tried += 1;
        let is_sure = |fault: &Fault| self.evidence[*fault as usize].strength(config.error_rate) >= 1.0;
        let fault = Fault::ALL.into_iter().find(is_sure);
        match fault {
            Some(fault) => self.switch_off(fault, config.first_pause),
            None if self.num_tried >= config.trial_answers => self.pass_trial(),
            None => {}
        }
        fault
    }

    fn switch_off(&mut self, fault: Fault, first_pause: u64) {
        self.num_switched_off[fault as usize] += 1;
        self.pause = first_pause << self.num_doublings;
        self.num_doublings = (self.num_doublings + 1).min(MAX_DOUBLINGS);
        self.is_on_probation = true;
        self.num_tried = 0;
        self.evidence = Default::default();
        self.recent.clear();
    }

    /// Keeps the evidence: it detects a class that turns bad later.
    fn pass_trial(&mut self) {
        if std::mem::take(&mut self.is_on_probation) {
            self.num_doublings = self.num_doublings.saturating_sub(1);
        }
    }
}

fn quality(records: &[&Record], error_rate: f64) -> ClassQuality {
    let recent: Vec<&Verdict> = records.iter().flat_map(|record| &record.recent).collect();
    let mean = |value: fn(&Verdict) -> f64| recent.iter().map(|verdict| value(verdict)).sum::<f64>() / recent.len().max(1) as f64;
    let strongest =
        |fault: Fault| records.iter().map(|record| record.evidence[fault as usize].strength(error_rate)).fold(0.0, f64::max);
    ClassQuality {
        num_verified: records.iter().map(|record| record.num_verified).sum(),
        mean_kl: mean(|verdict| verdict.mean_kl),
        first_kl: mean(|verdict| verdict.first_kl),
        top1: mean(|verdict| verdict.top1),
        num_tenants_off: records.iter().filter(|record| record.pause > 0).count(),
        num_switched_off: Fault::ALL.map(|fault| records.iter().map(|record| record.num_switched_off[fault as usize]).sum()),
        evidence: Fault::ALL.map(strongest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    const CLASS: MatchClass = MatchClass::Composition;
    const A: TenantId = TenantId(1);
    const B: TenantId = TenantId(2);

    fn verdict(mean_kl: f64, top1: f64) -> Verdict {
        Verdict { mean_kl, first_kl: mean_kl * 5.0, top1 }
    }

    /// Records `verdicts` one by one and checks after how many the class was switched off, and by which bound.
    #[track_caller]
    fn check(verdicts: &[(f64, f64)], expected: Option<(usize, Fault)>) {
        let mut guard = QualityGuard::new(GuardConfig::default());
        let faults = verdicts.iter().map(|&(kl, top1)| guard.record(A, CLASS, verdict(kl, top1)));
        let off = faults.enumerate().find_map(|(idx, fault)| Some((idx + 1, fault?)));
        assert_eq!(off, expected);
        assert_eq!(guard.allows(A, CLASS), expected.is_none());
        assert!(guard.allows(A, MatchClass::SameLeftContext), "other classes are not touched");
        assert!(guard.allows(B, CLASS), "other tenants are not touched");
    }

    #[test]
    fn good_answers_keep_a_class_on() {
        check(&[(0.01, 1.0); 5000], None);
        check(&[(0.05, 0.95); 5000], None);
    }

    #[test]
    fn one_answer_decides_nothing_however_bad_it_is() {
        check(&[(f64::INFINITY, 0.0)], None);
        check(&[(f64::NAN, f64::NAN)], None);
    }

    #[test]
    fn what_is_not_a_number_is_as_bad_as_can_be() {
        check(&[(f64::NAN, 1.0); 2], Some((2, Fault::Kl)));
        check(&[(0.0, f64::NAN); 2], Some((2, Fault::Top1)));
    }

    #[test]
    fn the_bound_that_is_missed_is_named() {
        check(&[(0.15, 1.0); 8], Some((8, Fault::Kl)));
        check(&[(0.0, 0.85); 8], Some((8, Fault::Top1)));
    }

    #[test]
    fn bounds_that_ask_for_nothing_keep_every_class_on() {
        let mut guard = QualityGuard::new(GuardConfig { max_mean_kl: f64::INFINITY, min_top1: 0.0, ..GuardConfig::default() });
        (0..1000).for_each(|_| assert_eq!(guard.record(A, CLASS, verdict(50.0, 0.0)), None));
    }

    #[test]
    fn a_flood_of_one_tenant_switches_nothing_off_for_another() {
        let mut guard = QualityGuard::new(GuardConfig::default());
        for _ in 0..500 {
            guard.record(A, CLASS, verdict(2.0, 0.1));
            assert_eq!(guard.record(B, CLASS, verdict(0.02, 0.98)), None);
            assert!(guard.allows(B, CLASS));
        }
        let [(class, quality)] = guard.classes() else { panic!("one class was verified") };
        assert_eq!((*class, quality.num_verified, quality.num_tenants_off, quality.num_switched_off), (CLASS, 1000, 1, [1, 0]));
    }

    /// Fails, sits out the pause and returns its length.
    fn fail(guard: &mut QualityGuard) -> usize {
        while guard.record(A, CLASS, verdict(1.0, 1.0)).is_none() {}
        assert!(guard.is_on_probation(A, CLASS) && guard.is_new(A, CLASS) && !guard.is_on_probation(B, CLASS));
        assert_eq!(guard.record(A, CLASS, verdict(1.0, 1.0)), None, "an answer of before the pause decides nothing");
        let mut pause = 0;
        while !guard.allows(A, CLASS) {
            guard.count_refusal(A, CLASS);
            pause += 1;
        }
        pause
    }

    #[test]
    fn a_pause_doubles_with_each_failure_and_halves_with_each_passed_trial() {
        let mut guard = QualityGuard::new(GuardConfig { first_pause: 3, trial_answers: 4, ..GuardConfig::default() });
        assert_eq!([fail(&mut guard), fail(&mut guard), fail(&mut guard)], [3, 6, 12]);
        assert!((0..4).all(|_| guard.record(A, CLASS, verdict(0.0, 1.0)).is_none()));
        assert!(!guard.is_on_probation(A, CLASS) && !guard.is_new(A, CLASS) && guard.allows(A, CLASS));
        assert_eq!(fail(&mut guard), 12, "and not 24");
        assert_eq!((0..20).map(|_| fail(&mut guard)).max(), Some(3 << MAX_DOUBLINGS));
    }

    #[test]
    fn quality_is_of_what_is_remembered_and_of_all_tenants() {
        let mut guard = QualityGuard::new(GuardConfig { window: 8, ..GuardConfig::default() });
        assert!(guard.is_new(A, CLASS) && guard.classes().is_empty());
        for mean_kl in [[0.04; 12].as_slice(), &[0.02; 8]].concat() {
            guard.record(A, CLASS, verdict(mean_kl, 1.0));
        }
        (0..8).for_each(|_| assert_eq!(guard.record(B, CLASS, verdict(0.04, 0.98)), None));
        let (class, quality) = guard.classes()[0];
        assert_eq!((class, quality.num_verified, quality.num_tenants_off), (CLASS, 28, 0));
        assert!((quality.mean_kl - 0.03).abs() < 1e-9 && (quality.first_kl - 0.15).abs() < 1e-9);
        assert!((quality.top1 - 0.99).abs() < 1e-9 && quality.evidence[0] > 0.0 && quality.evidence[0] < 1.0);
    }

    /// Returns the KL of the answers of the project's own evaluation, or the agreement, by kind: `benches/scale/guard_answers.csv`.
    fn published(quantity: &str) -> Vec<f64> {
        let lines = include_str!("../../../benches/scale/guard_answers.csv").lines();
        lines.filter_map(|line| line.strip_prefix(quantity)?.strip_prefix(',')?.parse().ok()).collect()
    }

    /// Counts the runs that switch the class off, of `num_runs` runs of `num_answers` answers drawn from the published ones, with their KL
    /// and their disagreement times `factor`.
    fn num_off(factors: (f64, f64), num_runs: usize, num_answers: usize) -> usize {
        let (kl, top1) = (published("kl"), published("top1"));
        let mut random = Random(7);
        let mut run = || {
            let mut guard = QualityGuard::new(GuardConfig::default());
            (0..num_answers).any(|_| {
                let (kl, top1) = (kl[random.below(kl.len())], top1[random.below(top1.len())]);
                guard.record(A, CLASS, verdict(kl * factors.0, 1.0 - (1.0 - top1) * factors.1)).is_some()
            })
        };
        (0..num_runs).filter(|_| run()).count()
    }

    #[test]
    fn answers_of_the_published_quality_hardly_ever_switch_a_class_off() {
        assert_eq!((published("kl").len(), published("top1").len()), (55, 10));
        assert!(num_off((1.0, 1.0), 300, 1000) < 3, "less than 1 % of runs of 1,000 answers");
    }

    #[test]
    fn three_times_a_bound_is_found_within_64_answers() {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let (kl, top1) = (0.15 / mean(&published("kl")), 0.15 / (1.0 - mean(&published("top1"))));
        assert!(num_off((kl, 0.0), 600, 64) >= 570, "a KL of three times its bound");
        assert!(num_off((0.0, top1), 600, 64) >= 570, "three times as much disagreement as its bound lets pass");
    }
}
