//! Measures how often the guard switches off a class that keeps its bounds, and how soon one that does not, by bootstrap of published
//! answers.
//!
//! ```sh
//! cargo run --release -p semantic --example guard_bootstrap > benches/scale/guard.md
//! ```
//!
//! The table includes the earlier rule, with its own bounds. The seed is fixed, so the table is always the same.

use std::collections::VecDeque;

use semantic::{GuardConfig, MatchClass, QualityGuard, Verdict};
use tokens::TenantId;

/// Answers: `kl` and `top1` lines.
const PUBLISHED: &str = include_str!("../../../benches/scale/guard_answers.csv");
const SEED: u64 = 20;
const NUM_RUNS: usize = 10_000;

/// Earlier rule: a normal 95 % interval of the last 128 answers, from the 16th on, must not reach beyond a bound.
#[derive(Default)]
struct OldRule {
    recent: VecDeque<Verdict>,
}

impl OldRule {
    const MAX_MEAN_KL: f64 = 0.05;
    const MIN_TOP1: f64 = 0.97;

    fn record(&mut self, verdict: Verdict) -> bool {
        self.recent.push_back(verdict);
        if self.recent.len() > 128 {
            self.recent.pop_front();
        }
        let (kl, kl_error) = self.mean_and_error(|verdict| verdict.mean_kl);
        let (top1, top1_error) = self.mean_and_error(|verdict| verdict.top1);
        let fails = kl + 1.96 * kl_error > Self::MAX_MEAN_KL || top1 + 1.96 * top1_error < Self::MIN_TOP1;
        self.recent.len() >= 16 && fails
    }

    fn mean_and_error(&self, value: fn(&Verdict) -> f64) -> (f64, f64) {
        let n = self.recent.len() as f64;
        let mean = self.recent.iter().map(value).sum::<f64>() / n;
        let squares: f64 = self.recent.iter().map(|verdict| (value(verdict) - mean).powi(2)).sum();
        (mean, (squares / (n - 1.0).max(1.0) / n).sqrt())
    }
}

/// A linear congruential generator (Knuth, MMIX) whose high bits are used.
struct Random(u64);

impl Random {
    fn pick(&mut self, values: &[f64]) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        values[(self.0 >> 33) as usize % values.len()]
    }
}

/// Source of answers: `num_good` of `good`, then others.
struct Source {
    name: &'static str,
    kl: Vec<f64>,
    disagreement: Vec<f64>,
    num_good: usize,
    num_answers: usize,
}

/// Number of answers after the first bad one, or the first one, until the class is off, of each run that ended so.
struct Found {
    answers: Vec<usize>,
    num_false: usize,
}

impl Found {
    fn within(&self, num_answers: usize) -> f64 {
        self.answers.iter().filter(|&&answers| answers <= num_answers).count() as f64 / NUM_RUNS as f64
    }

    fn median(&self) -> String {
        let mut sorted = self.answers.clone();
        sorted.sort_unstable();
        sorted.get(NUM_RUNS / 2).map_or_else(|| "-".to_owned(), usize::to_string)
    }

    fn row(&self) -> String {
        let good = self.num_false as f64 / NUM_RUNS as f64;
        format!("{:.4} | {:.4} | {} | {:.4}", self.within(64), self.within(1000), self.median(), good)
    }
}

impl Source {
    fn run(&self, good: &Self, mut rule: impl FnMut() -> Box<dyn FnMut(Verdict) -> bool>) -> Found {
        let mut random = Random(SEED);
        let mut found = Found { answers: Vec::new(), num_false: 0 };
        for _ in 0..NUM_RUNS {
            let mut is_off = rule();
            let off = (0..self.num_good + self.num_answers).find(|&idx| {
                let from = if idx < self.num_good { good } else { self };
                let mean_kl = random.pick(&from.kl);
                let top1 = 1.0 - random.pick(&from.disagreement).min(1.0);
                is_off(Verdict { mean_kl, first_kl: mean_kl, top1 })
            });
            match off {
                Some(idx) if idx < self.num_good => found.num_false += 1,
                Some(idx) => found.answers.push(idx - self.num_good + 1),
                None => {}
            }
        }
        found
    }
}

fn published(quantity: &str) -> Vec<f64> {
    PUBLISHED.lines().filter_map(|line| line.strip_prefix(quantity)?.strip_prefix(',')?.parse().ok()).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn with_mean(values: &[f64], wanted: f64) -> Vec<f64> {
    let factor = wanted / mean(values);
    values.iter().map(|value| value * factor).collect()
}

fn sources() -> Vec<Source> {
    let GuardConfig { max_mean_kl, min_top1, .. } = GuardConfig::default();
    let kl = published("kl");
    let disagreement: Vec<_> = published("top1").iter().map(|top1| 1.0 - top1).collect();
    let source = |name, kl, disagreement| Source { name, kl, disagreement, num_good: 0, num_answers: 1000 };
    let worst: Vec<_> = kl.iter().copied().filter(|kl| *kl > 1e-3).collect();
    let bound = 1.0 - min_top1;
    let mut sources = vec![
        source("published KL, agreement always 1", kl.clone(), vec![0.0]),
        source("published KL above 1e-3, agreement always 1", worst, vec![0.0]),
        source("published KL and agreement", kl.clone(), disagreement.clone()),
        source("KL at its bound", with_mean(&kl, max_mean_kl), vec![0.0]),
        source("agreement at its bound", vec![0.0], with_mean(&disagreement, bound)),
        source("KL at 1.5 times its bound", with_mean(&kl, 1.5 * max_mean_kl), vec![0.0]),
        source("KL at 3 times its bound", with_mean(&kl, 3.0 * max_mean_kl), vec![0.0]),
        source("disagreement at 3 times its bound", vec![0.0], with_mean(&disagreement, 3.0 * bound)),
    ];
    let late = source("KL at 3 times its bound after 1,000 published", with_mean(&kl, 3.0 * max_mean_kl), vec![0.0]);
    sources.push(Source { num_good: 1000, num_answers: 256, ..late });
    sources
}

fn main() {
    let config = GuardConfig::default();
    println!("# The guard by bootstrap of published answers\n");
    println!("Written by `cargo run --release -p semantic --example guard_bootstrap > benches/scale/guard.md`, seed {SEED}.\n");
    println!(
        "{NUM_RUNS} runs each. Answers are drawn from `guard_answers.csv`, scaled to the mean that the row names. Before: off from the 16th\n\
         answer on if the normal 95 % interval of the last 128 answers reaches above a mean KL of {}, or its upper end stays below a top-1\n\
         agreement of {}. After: off once the evidence of a sequential test (a bet against each bound, error rate {}) suffices; bounds {}\n\
         and {}. The old bound of the agreement is where the published answers lie. Whether a class that is off is tried again is not\n\
         part of this.\n",
        OldRule::MAX_MEAN_KL,
        OldRule::MIN_TOP1,
        config.error_rate,
        config.max_mean_kl,
        config.min_top1
    );
    println!(
        "| answers | mean KL | disagreement | rule | off within 64 | off within 1,000 | median answers until off | off while good |"
    );
    println!("|---|--:|--:|---|--:|--:|--:|--:|");
    let sources = sources();
    for source in &sources {
        let before = source.run(&sources[0], || {
            let mut rule = OldRule::default();
            Box::new(move |verdict| rule.record(verdict))
        });
        let after = source.run(&sources[0], || {
            let mut guard = QualityGuard::new(GuardConfig { window: 1, ..config });
            Box::new(move |verdict| guard.record(TenantId(0), MatchClass::Composition, verdict).is_some())
        });
        let (kl, disagreement) = (mean(&source.kl), mean(&source.disagreement));
        for (rule, found) in [("before", before), ("after", after)] {
            println!("| {} | {kl:.3} | {disagreement:.3} | {rule} | {} |", source.name, found.row());
        }
    }
}
