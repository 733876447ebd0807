//! Which kinds of reuse keep their promise, judged by answers that were verified.
//!
//! A sample of the answers over reused KV is compared with full computation. A class of matches whose answers are too far from it,
//! with confidence, is switched off; after a while it is tried again with every answer verified, and each time it fails the pause
//! doubles. All of it counts requests, never time, so it is the same in every replay.

use std::collections::{BTreeMap, VecDeque};

use crate::MatchClass;

/// What a class has to keep, and how sure one has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GuardConfig {
    /// Highest mean KL(full‖reuse) of answers, in nats.
    pub max_mean_kl: f64,
    /// Lowest share of positions with the same likeliest token.
    pub min_top1: f64,
    /// Answers below which nothing is decided.
    pub min_samples: usize,
    /// Answers that are remembered.
    pub window: usize,
    /// Requests of a class that are computed in full after it was switched off for the first time.
    pub first_pause: u64,
}

/// One answer beside full computation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Verdict {
    /// KL(full‖reuse), mean over the answer's positions, in nats.
    pub mean_kl: f64,
    /// The same at its first position.
    pub first_kl: f64,
    /// Share of positions with the same likeliest token.
    pub top1: f64,
}

/// What is known of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ClassQuality {
    /// Answers verified so far.
    pub num_verified: u64,
    /// Means over the remembered ones.
    pub mean_kl: f64,
    /// As [`Verdict::first_kl`].
    pub first_kl: f64,
    /// As [`Verdict::top1`].
    pub top1: f64,
    /// Whether requests of the class are computed in full at present.
    pub is_off: bool,
}

/// The judge of all classes.
#[derive(Clone, Debug)]
pub struct QualityGuard {
    config: GuardConfig,
    classes: BTreeMap<MatchClass, Record>,
}

#[derive(Clone, Debug, Default)]
struct Record {
    num_verified: u64,
    recent: VecDeque<Verdict>,
    /// Means over them: asked for after every step, changed by a verdict only.
    means: Verdict,
    /// Requests still to be computed in full.
    pause: u64,
    num_failures: u32,
}

/// Length of a two-sided 95 % interval of the normal distribution, in standard errors to each side.
const Z_95: f64 = 1.96;

/// Doublings of the pause at most.
const MAX_DOUBLINGS: u32 = 10;

impl Default for GuardConfig {
    fn default() -> Self {
        Self { max_mean_kl: 0.05, min_top1: 0.97, min_samples: 16, window: 128, first_pause: 64 }
    }
}

impl QualityGuard {
    /// Nothing is known, so everything is allowed.
    #[must_use]
    pub fn new(config: GuardConfig) -> Self {
        Self { config, classes: BTreeMap::new() }
    }

    /// Whether a request of `class` may reuse. Counts the request if it may not.
    pub fn allows(&mut self, class: MatchClass) -> bool {
        let record = self.classes.entry(class).or_default();
        let is_allowed = record.pause == 0;
        record.pause = record.pause.saturating_sub(1);
        is_allowed
    }

    /// Whether so little is known of `class` that more of its answers should be verified.
    #[must_use]
    pub fn is_new(&self, class: MatchClass) -> bool {
        self.classes.get(&class).is_none_or(|record| record.recent.len() < self.config.min_samples)
    }

    /// Whether `class` was switched off before and has not yet proved itself again: then every answer is verified.
    #[must_use]
    pub fn is_on_probation(&self, class: MatchClass) -> bool {
        self.is_new(class) && self.classes.get(&class).is_some_and(|record| record.num_failures > 0)
    }

    /// Takes note of a verified answer. Whether this switched the class off.
    pub fn record(&mut self, class: MatchClass, verdict: Verdict) -> bool {
        let config = self.config;
        let record = self.classes.entry(class).or_default();
        record.num_verified += 1;
        record.recent.push_back(verdict);
        if record.recent.len() > config.window {
            record.recent.pop_front();
        }
        record.means = record.mean_verdict();
        if record.pause > 0 || record.recent.len() < config.min_samples || !record.fails(&config) {
            return false;
        }
        record.pause = config.first_pause << record.num_failures.min(MAX_DOUBLINGS);
        record.num_failures += 1;
        record.recent.clear();
        true
    }

    /// Every class of which something is known.
    pub fn iter(&self) -> impl Iterator<Item = (MatchClass, ClassQuality)> + '_ {
        self.classes.iter().map(|(&class, record)| (class, record.quality()))
    }
}

impl Record {
    /// Whether the 95 % interval of a mean reaches beyond its bound.
    fn fails(&self, config: &GuardConfig) -> bool {
        let (kl, kl_error) = self.mean_and_error(|verdict| verdict.mean_kl);
        let (top1, top1_error) = self.mean_and_error(|verdict| verdict.top1);
        kl + Z_95 * kl_error > config.max_mean_kl || top1 + Z_95 * top1_error < config.min_top1
    }

    fn mean_and_error(&self, value: impl Fn(&Verdict) -> f64) -> (f64, f64) {
        let n = self.recent.len() as f64;
        let mean = self.recent.iter().map(&value).sum::<f64>() / n.max(1.0);
        let squares: f64 = self.recent.iter().map(|verdict| (value(verdict) - mean).powi(2)).sum();
        (mean, (squares / (n - 1.0).max(1.0) / n.max(1.0)).sqrt())
    }

    fn mean_verdict(&self) -> Verdict {
        let mean = |value: fn(&Verdict) -> f64| self.mean_and_error(value).0;
        Verdict {
            mean_kl: mean(|verdict| verdict.mean_kl),
            first_kl: mean(|verdict| verdict.first_kl),
            top1: mean(|verdict| verdict.top1),
        }
    }

    fn quality(&self) -> ClassQuality {
        let Verdict { mean_kl, first_kl, top1 } = self.means;
        ClassQuality { num_verified: self.num_verified, mean_kl, first_kl, top1, is_off: self.pause > 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASS: MatchClass = MatchClass::Composition;

    fn guard() -> QualityGuard {
        QualityGuard::new(GuardConfig { min_samples: 4, window: 8, first_pause: 3, ..GuardConfig::default() })
    }

    fn verdict(mean_kl: f64, top1: f64) -> Verdict {
        Verdict { mean_kl, first_kl: mean_kl * 5.0, top1 }
    }

    /// Records `verdicts` one by one; after how many the class was switched off.
    #[track_caller]
    fn check(verdicts: &[(f64, f64)], expected: Option<usize>) {
        let mut guard = guard();
        let off = verdicts.iter().position(|&(kl, top1)| guard.record(CLASS, verdict(kl, top1)));
        assert_eq!(off.map(|idx| idx + 1), expected);
        assert_eq!(guard.allows(CLASS), expected.is_none());
        assert!(guard.allows(MatchClass::SameLeftContext), "other classes are not touched");
    }

    #[test]
    fn good_answers_keep_a_class_on() {
        check(&[(0.01, 1.0); 20], None);
    }

    #[test]
    fn bad_answers_switch_it_off_as_soon_as_there_are_enough() {
        check(&[(0.2, 0.9); 20], Some(4));
    }

    #[test]
    fn a_mean_that_is_good_but_not_surely_so_fails() {
        check(&[(0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.16, 1.0)], Some(4));
        check(&[(0.03, 1.0), (0.04, 1.0), (0.04, 1.0), (0.03, 1.0)], None);
    }

    #[test]
    fn top1_alone_fails_only_with_confidence() {
        check(&[(0.0, 0.95); 8], Some(4));
        check(&[(0.0, 1.0), (0.0, 0.9), (0.0, 1.0), (0.0, 0.95)], None);
    }

    #[test]
    fn a_pause_ends_in_probation_and_doubles_with_each_failure() {
        let mut guard = guard();
        let fail = |guard: &mut QualityGuard| (0..4).filter(|_| guard.record(CLASS, verdict(1.0, 0.5))).count();
        let pause = |guard: &mut QualityGuard| (0..100).take_while(|_| !guard.allows(CLASS)).count();
        assert_eq!((fail(&mut guard), pause(&mut guard)), (1, 3));
        assert!(guard.is_on_probation(CLASS) && !guard.is_on_probation(MatchClass::SameLeftContext));
        assert_eq!((fail(&mut guard), pause(&mut guard)), (1, 6));
        (0..4).for_each(|_| assert!(!guard.record(CLASS, verdict(0.0, 1.0))));
        assert!(!guard.is_on_probation(CLASS) && guard.allows(CLASS));
    }

    #[test]
    fn quality_is_of_what_is_remembered() {
        let mut guard = guard();
        assert!(guard.is_new(CLASS));
        for mean_kl in [[0.04; 12].as_slice(), &[0.02; 8]].concat() {
            guard.record(CLASS, verdict(mean_kl, 1.0));
        }
        let (class, quality) = guard.iter().next().unwrap();
        assert_eq!((class, quality.num_verified, quality.is_off), (CLASS, 20, false));
        assert!((quality.mean_kl - 0.02).abs() < 1e-9 && (quality.first_kl - 0.1).abs() < 1e-9);
    }
}
