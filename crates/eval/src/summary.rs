//! Summary of many requests: one row for each kind of request, each file and all of them, under each policy.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::bootstrap::mean_interval;
use super::measured::{AnswerScores, Measured, mean};
use super::policy::label;
use super::rank::spearman;
use super::stats::{median, percentile};

/// Grouping of requests in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Requests of one kind.
    Workload,
    /// Requests of one file.
    File,
    /// All requests.
    All,
}

/// Summary of requests under one policy. Values over hits are null without any; misses are apart in `misses`.
///
/// Means are over requests, each counting once, unless a name says otherwise. A `ttft_ratio` is the speedup of the first token: the median
/// over hits of the other run's time over this one's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResultRow {
    /// Grouping of the requests.
    pub level: Level,
    /// Name of their kind, of their file, or `all`.
    pub workload: String,
    /// Name of the policy.
    pub policy: String,
    /// Share of the prompt it may recompute.
    pub r: Option<f32>,
    /// Requests.
    pub n: usize,
    /// Requests that reused KV.
    pub hits: usize,
    /// Share of tokens found in spans, of all prompt tokens of hits.
    pub matched: Option<f64>,
    /// Share of tokens that any search for spans could have found, of the same.
    pub cover: Option<f64>,
    /// Share of (token, layer) pairs computed.
    pub work: Option<f64>,
    /// Share of tokens computed although a donor had them, of all prompt tokens of hits.
    pub recomputed: Option<f64>,
    /// Hits that gave up their reused KV before the first token.
    pub bail_outs: usize,
    /// KL(full ‖ reuse) in nats.
    pub kl_mean: Option<f64>,
    /// KL divergence at first positions.
    pub kl_first: Option<f64>,
    /// 95th percentile of the divergence over positions.
    pub kl_p95: Option<f64>,
    /// Mean of the divergence over positions.
    pub kl_mean_positions: Option<f64>,
    /// Share of positions with the same top-1 token.
    pub top1: Option<f64>,
    /// Mean of `top1` over positions.
    pub top1_positions: Option<f64>,
    /// Share of positions before the first with another top-1 token.
    pub first_divergence: Option<f64>,
    /// `kl_mean` of another exact run of the same requests.
    pub floor_kl: Option<f64>,
    /// `top1` of that run.
    pub floor_top1: Option<f64>,
    /// ROUGE-L of free-running answers against those of full computation.
    pub rouge_l: Option<f64>,
    /// Smoothed BLEU-4 of the same.
    pub bleu: Option<f64>,
    /// Ratio of an answer's tokens to those of full computation.
    pub length_ratio: Option<f64>,
    /// Score by the workload's metric.
    pub task: Option<f64>,
    /// Score of full computation, on the same requests.
    pub task_full: Option<f64>,
    /// Share of hits where full computation is right and reuse wrong, of those with right and wrong answers.
    pub negative_samples: Option<f64>,
    /// Share of hits whose answers contain facts of the donor's prompt only, where full computation is not wrong.
    pub stale: Option<f64>,
    /// Same share for full computation.
    pub stale_full: Option<f64>,
    /// Median time to the first token, in milliseconds.
    pub ttft_ms: Option<f64>,
    /// Speedup over full computation.
    pub ttft_ratio: Option<f64>,
    /// Speedup over reuse of exact prefixes.
    pub ttft_ratio_prefix: Option<f64>,
    /// Speedup over full computation, with a part of the donor's time added: its time over the number of its recipients.
    pub ttft_ratio_cold: Option<f64>,
    /// Ratios of medians instead of medians of ratios.
    pub ttft_of_medians: Option<TtftOfMedians>,
    /// Counts by source of KV, of all requests: `prefix`, and the classes of spans. One request may count under both.
    pub by_class: BTreeMap<String, ClassCount>,
    /// Spearman's rank correlation of the policy's predicted deviation with `kl_mean`, over hits.
    pub deviation_rho: Option<f64>,
    /// Confidence intervals of 95 %.
    pub ci95: Intervals,
    /// Mean divergence minus that of the baseline policy, on requests that both hit.
    pub beside_baseline: Option<Difference>,
    /// Requests that reused nothing.
    pub misses: Option<Misses>,
}

/// Ratios of median times.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TtftOfMedians {
    /// Speedup over full computation.
    pub full: f64,
    /// Speedup over reuse of exact prefixes.
    pub prefix: f64,
    /// Speedup over full computation, with a part of the donor's time added.
    pub cold: f64,
}

/// Requests and tokens whose KV came from one source.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassCount {
    /// Requests.
    pub requests: usize,
    /// Share of all requests.
    pub request_rate: f64,
    /// Prompt tokens.
    pub tokens: u64,
    /// Share of all prompt tokens.
    pub token_rate: f64,
    /// `kl_mean` over the hits among them.
    pub kl_mean: Option<f64>,
}

/// Percentile intervals of 95 % of means over hits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Intervals {
    /// Interval of `kl_mean`.
    pub kl_mean: Option<[f64; 2]>,
    /// Interval of `top1`.
    pub top1: Option<[f64; 2]>,
    /// Interval of `rouge_l`.
    pub rouge_l: Option<[f64; 2]>,
    /// Interval of `task` minus `task_full`, paired.
    pub task_difference: Option<[f64; 2]>,
}

/// Paired difference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Policy subtracted.
    pub policy: String,
    /// Requests.
    pub n: usize,
    /// Mean difference.
    pub kl_mean: f64,
    /// Interval of 95 %.
    pub ci95: Option<[f64; 2]>,
}

/// Requests that reused nothing: their results have to equal those without sharing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Misses {
    /// Requests.
    pub n: usize,
    /// Largest divergence at any position.
    pub kl_max: f64,
    /// Share of positions with the same top-1 token.
    pub top1: f64,
    /// Median ratio of the time with exact prefixes to this one: below 1 is the cost of the span search.
    pub ttft_ratio_prefix: f64,
}

/// Summarizes all rows of a run. `baseline` is a policy's label.
pub(crate) fn summarize(requests: &[Measured], baseline: Option<&str>) -> Vec<ResultRow> {
    let mut rows = Vec::new();
    for level in [Level::Workload, Level::File, Level::All] {
        let mut names = Vec::new();
        let mut members: BTreeMap<&str, Vec<&Measured>> = BTreeMap::new();
        for request in requests {
            let name = level.name_of(request);
            let known = members.entry(name).or_insert_with(|| {
                names.push(name);
                Vec::new()
            });
            known.push(request);
        }
        for name in names {
            rows.extend(by_policy(level, name, &members[name], baseline));
        }
    }
    rows
}

impl Level {
    /// Returns the name of the request's row at this level.
    fn name_of(self, request: &Measured) -> &str {
        match self {
            Self::Workload => &request.workload,
            Self::File => &request.file,
            Self::All => "all",
        }
    }
}

fn by_policy(level: Level, name: &str, members: &[&Measured], baseline: Option<&str>) -> Vec<ResultRow> {
    let mut labels = Vec::new();
    let mut policies: BTreeMap<String, Vec<&Measured>> = BTreeMap::new();
    for &request in members {
        let label = request.policy_label();
        if !policies.contains_key(&label) {
            labels.push(label.clone());
        }
        policies.entry(label).or_default().push(request);
    }
    let beside = baseline.and_then(|label| Some((label, policies.get(label)?)));
    let row = |label: &String| {
        let members = &policies[label];
        let difference = beside.and_then(|(baseline, others)| difference(baseline, members, others));
        ResultRow { beside_baseline: difference, ..ResultRow::of(level, name, members) }
    };
    labels.iter().map(row).collect()
}

fn difference(baseline: &str, members: &[&Measured], others: &[&Measured]) -> Option<Difference> {
    let name = |request: &Measured| (request.file.clone(), request.id.clone());
    let known: BTreeMap<_, _> = others.iter().filter(|other| other.is_hit).map(|other| (name(other), other.mean_kl())).collect();
    let hits = members.iter().filter(|request| request.is_hit);
    let values: Vec<_> = hits.filter_map(|request| Some(request.mean_kl() - known.get(&name(request))?)).collect();
    let (n, kl_mean) = (values.len(), mean(&values));
    (n > 0).then(|| Difference { policy: baseline.to_owned(), n, kl_mean, ci95: mean_interval(&values) })
}

impl ResultRow {
    /// Summarizes requests under one policy.
    fn of(level: Level, name: &str, members: &[&Measured]) -> Self {
        let (hits, misses): (Vec<&Measured>, Vec<&Measured>) = members.iter().partition(|request| request.is_hit);
        let answers = Answers(hits.iter().filter_map(|hit| hit.answer.as_ref()).collect());
        let over_hits = |value: fn(&Measured) -> f64| mean_of(hits.iter().map(|hit| value(hit)));
        let of_tokens = |value: fn(&Measured) -> f64| {
            let tokens: f64 = hits.iter().map(|hit| f64::from(hit.prompt_tokens)).sum();
            (!hits.is_empty()).then(|| hits.iter().map(|hit| value(hit)).sum::<f64>() / tokens)
        };
        let ratio = |value: fn(&Measured) -> f64| (!hits.is_empty()).then(|| median(hits.iter().map(|hit| value(hit))));
        let kl: Vec<_> = hits.iter().flat_map(|hit| hit.kl.iter().copied()).collect();
        let pairs: Vec<_> = hits.iter().filter_map(|hit| Some((hit.deviation?, hit.mean_kl()))).collect();
        Self {
            level,
            workload: name.to_owned(),
            policy: members[0].policy.clone(),
            r: members[0].r,
            n: members.len(),
            hits: hits.len(),
            matched: of_tokens(|hit| f64::from(hit.matched_tokens)),
            cover: of_tokens(|hit| hit.cover * f64::from(hit.prompt_tokens)),
            work: over_hits(|hit| hit.work),
            recomputed: of_tokens(|hit| f64::from(hit.recomputed_tokens)),
            bail_outs: hits.iter().filter(|hit| hit.bailed_out).count(),
            kl_mean: over_hits(Measured::mean_kl),
            kl_first: mean_of(hits.iter().filter_map(|hit| hit.kl.first().copied())),
            kl_p95: percentile_of(&kl, 95.0),
            kl_mean_positions: mean_of(kl.iter().copied()),
            top1: over_hits(Measured::top1),
            top1_positions: mean_of(hits.iter().flat_map(|hit| hit.agrees.iter().map(|&agrees| f64::from(u8::from(agrees))))),
            first_divergence: over_hits(|hit| hit.num_agreed() as f64 / hit.agrees.len().max(1) as f64),
            floor_kl: over_hits(|hit| hit.floor_kl),
            floor_top1: over_hits(|hit| hit.floor_top1),
            rouge_l: answers.mean(|answer| Some(answer.rouge_l)),
            bleu: answers.mean(|answer| Some(answer.bleu)),
            length_ratio: answers.mean(|answer| Some(answer.length_ratio)),
            task: answers.mean(|answer| answer.task),
            task_full: answers.mean(|answer| answer.task_full),
            negative_samples: answers.mean(|answer| Some(yes(answer.full_is_right? && !answer.is_right?))),
            stale: answers.mean(|answer| answer.is_stale.filter(|_| answer.full_is_right != Some(false)).map(yes)),
            stale_full: answers.mean(|answer| answer.full_is_stale.filter(|_| answer.full_is_right != Some(false)).map(yes)),
            ttft_ms: ratio(|hit| hit.ttft_ms),
            ttft_ratio: ratio(|hit| hit.full_ttft_ms / hit.ttft_ms),
            ttft_ratio_prefix: ratio(|hit| hit.prefix_ttft_ms / hit.ttft_ms),
            ttft_ratio_cold: ratio(|hit| hit.full_ttft_ms / (hit.ttft_ms + hit.donor_ttft_ms)),
            ttft_of_medians: TtftOfMedians::of(&hits),
            by_class: by_class(members),
            deviation_rho: spearman(&pairs),
            ci95: Intervals::of(&hits, &answers),
            beside_baseline: None,
            misses: Misses::of(&misses),
        }
    }

    /// Returns `name@share` of its policy.
    pub fn policy_label(&self) -> String {
        label(&self.policy, self.r)
    }
}

/// Answers of hits.
struct Answers<'a>(Vec<&'a AnswerScores>);

impl Answers<'_> {
    /// Averages over those that have the value.
    fn mean(&self, value: impl Fn(&AnswerScores) -> Option<f64>) -> Option<f64> {
        mean_of(self.0.iter().filter_map(|answer| value(answer)))
    }
}

impl TtftOfMedians {
    fn of(hits: &[&Measured]) -> Option<Self> {
        let time = |value: fn(&Measured) -> f64| median(hits.iter().map(|hit| value(hit)));
        let (own, full) = (time(|hit| hit.ttft_ms), time(|hit| hit.full_ttft_ms));
        let prefix = time(|hit| hit.prefix_ttft_ms) / own;
        let cold = full / time(|hit| hit.ttft_ms + hit.donor_ttft_ms);
        (!hits.is_empty()).then(|| Self { full: full / own, prefix, cold })
    }
}

impl Intervals {
    fn of(hits: &[&Measured], answers: &Answers<'_>) -> Self {
        let of_hits = |value: fn(&Measured) -> f64| mean_interval(&hits.iter().map(|hit| value(hit)).collect::<Vec<_>>());
        let of_answers = |value: fn(&AnswerScores) -> Option<f64>| {
            mean_interval(&answers.0.iter().filter_map(|answer| value(answer)).collect::<Vec<_>>())
        };
        Self {
            kl_mean: of_hits(Measured::mean_kl),
            top1: of_hits(Measured::top1),
            rouge_l: of_answers(|answer| Some(answer.rouge_l)),
            task_difference: of_answers(|answer| Some(answer.task? - answer.task_full?)),
        }
    }
}

impl Misses {
    fn of(misses: &[&Measured]) -> Option<Self> {
        let kl_max = misses.iter().flat_map(|miss| miss.kl.iter().copied()).fold(0.0, f64::max);
        Some(Self {
            n: misses.len(),
            kl_max,
            top1: mean_of(misses.iter().map(|miss| miss.top1()))?,
            ttft_ratio_prefix: median(misses.iter().map(|miss| miss.prefix_ttft_ms / miss.ttft_ms)),
        })
    }
}

fn by_class(members: &[&Measured]) -> BTreeMap<String, ClassCount> {
    let mut classes: BTreeMap<String, Vec<(&Measured, u32)>> = BTreeMap::new();
    for request in members {
        if request.prefix_tokens > 0 {
            classes.entry("prefix".to_owned()).or_default().push((request, request.prefix_tokens));
        }
        if let Some(class) = &request.class {
            classes.entry(class.clone()).or_default().push((request, request.matched_tokens));
        }
    }
    let all_tokens: u64 = members.iter().map(|request| u64::from(request.prompt_tokens)).sum();
    let count = |requests: &[(&Measured, u32)]| {
        let tokens = requests.iter().map(|(_, tokens)| u64::from(*tokens)).sum();
        let hits = requests.iter().filter(|(request, _)| request.is_hit);
        ClassCount {
            requests: requests.len(),
            request_rate: requests.len() as f64 / members.len() as f64,
            tokens,
            token_rate: tokens as f64 / all_tokens.max(1) as f64,
            kl_mean: mean_of(hits.map(|(request, _)| request.mean_kl())),
        }
    };
    classes.iter().map(|(class, requests)| (class.clone(), count(requests))).collect()
}

fn yes(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn mean_of(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<_> = values.collect();
    (!values.is_empty()).then(|| mean(&values))
}

fn percentile_of(values: &[f64], percent: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (!sorted.is_empty()).then(|| percentile(&sorted, percent))
}

/// Returns the labels of all policies, in the order of first occurrence.
pub(crate) fn policies_of(requests: &[Measured]) -> Vec<String> {
    let mut known = BTreeSet::new();
    requests.iter().map(Measured::policy_label).filter(|label| known.insert(label.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a hit of 100 tokens, 90 of them moved, that took a quarter of the time.
    fn hit(index: usize, policy: &str, kl: &[f64]) -> Measured {
        Measured {
            index,
            id: index.to_string(),
            file: "f".to_owned(),
            workload: format!("w/{}", index % 2),
            policy: policy.to_owned(),
            is_hit: true,
            prompt_tokens: 100,
            class: Some("composition".to_owned()),
            matched_tokens: 90,
            recomputed_tokens: 5,
            cover: 0.95,
            work: 0.2,
            kl: kl.to_vec(),
            agrees: kl.iter().map(|&kl| kl < 1.0).collect(),
            floor_top1: 1.0,
            ttft_ms: 10.0,
            full_ttft_ms: 40.0,
            prefix_ttft_ms: 30.0,
            donor_ttft_ms: 10.0,
            ..Measured::default()
        }
    }

    fn answer(task: (bool, bool), stale: Option<(bool, bool)>) -> Option<AnswerScores> {
        Some(AnswerScores {
            rouge_l: 0.5,
            task: Some(yes(task.0)),
            task_full: Some(yes(task.1)),
            is_right: Some(task.0),
            full_is_right: Some(task.1),
            is_stale: stale.map(|stale| stale.0),
            full_is_stale: stale.map(|stale| stale.1),
            ..AnswerScores::default()
        })
    }

    #[test]
    fn there_is_a_row_for_each_kind_each_file_and_all_under_each_policy() {
        let requests = [hit(0, "a", &[0.0]), hit(0, "b", &[0.0]), hit(1, "a", &[0.0]), hit(1, "b", &[0.0])];
        let rows: Vec<_> =
            summarize(&requests, None).iter().map(|row| format!("{}:{}={}", row.workload, row.policy, row.n)).collect();
        assert_eq!(rows, ["w/0:a=1", "w/0:b=1", "w/1:a=1", "w/1:b=1", "f:a=2", "f:b=2", "all:a=2", "all:b=2"]);
        assert_eq!(policies_of(&requests), ["a", "b"]);
    }

    #[test]
    fn requests_count_once_and_positions_where_it_is_said() {
        let members = [&hit(0, "a", &[2.0, 0.0, 0.0, 0.0]), &hit(0, "a", &[1.0])];
        let row = ResultRow::of(Level::All, "all", &members);
        assert_eq!((row.kl_mean, row.kl_mean_positions, row.kl_first), (Some(0.75), Some(0.6), Some(1.5)));
        assert_eq!((row.top1, row.top1_positions, row.first_divergence), (Some(0.375), Some(0.6), Some(0.0)));
        assert_eq!((row.matched, row.recomputed, row.cover, row.work), (Some(0.9), Some(0.05), Some(0.95), Some(0.2)));
        assert_eq!((row.ttft_ratio, row.ttft_ratio_prefix, row.ttft_ratio_cold), (Some(4.0), Some(3.0), Some(2.0)));
        assert_eq!(row.ttft_of_medians, Some(TtftOfMedians { full: 4.0, prefix: 3.0, cold: 2.0 }));
    }

    #[test]
    fn misses_stand_apart() {
        let miss = Measured { is_hit: false, class: None, kl: vec![0.25], agrees: vec![true], ..hit(0, "a", &[]) };
        let row = ResultRow::of(Level::All, "all", &[&miss, &hit(0, "a", &[0.5])]);
        assert_eq!((row.n, row.hits, row.kl_mean), (2, 1, Some(0.5)));
        assert_eq!(row.misses, Some(Misses { n: 1, kl_max: 0.25, top1: 1.0, ttft_ratio_prefix: 3.0 }));
        let found = row.by_class["composition"];
        let expected = ClassCount { requests: 1, request_rate: 0.5, tokens: 90, token_rate: 0.45, kl_mean: Some(0.5) };
        assert_eq!((found, row.by_class.len()), (expected, 1));
        let row = ResultRow::of(Level::All, "all", &[&miss]);
        assert_eq!((row.hits, row.kl_mean, row.work, row.ttft_ratio, row.ci95.kl_mean), (0, None, None, None, None));
    }

    #[test]
    fn a_negative_sample_is_right_in_full_and_wrong_with_reuse() {
        let with = |task, stale| Measured { answer: answer(task, stale), ..hit(0, "a", &[0.0]) };
        let members = [
            with((false, true), Some((true, false))),
            with((true, true), Some((false, false))),
            with((false, false), Some((true, false))),
            with((true, false), None),
        ];
        let row = ResultRow::of(Level::All, "all", &members.iter().collect::<Vec<_>>());
        assert_eq!((row.negative_samples, row.task, row.task_full), (Some(0.25), Some(0.5), Some(0.5)));
        assert_eq!((row.stale, row.stale_full), (Some(0.5), Some(0.0)), "where full computation is right");
        let [low, high] = row.ci95.task_difference.unwrap();
        assert!(low < 0.0 && high > 0.0);
    }

    #[test]
    fn a_baseline_is_subtracted_request_by_request() {
        let miss = Measured { is_hit: false, ..hit(2, "b", &[9.0]) };
        let requests =
            [hit(0, "a", &[0.5]), hit(0, "b", &[0.25]), hit(2, "a", &[0.0]), miss, hit(4, "a", &[1.5]), hit(4, "b", &[1.25])];
        let rows = summarize(&requests, Some("b"));
        let expected = Difference { policy: "b".to_owned(), n: 2, kl_mean: 0.25, ci95: Some([0.25, 0.25]) };
        assert_eq!(rows[0].beside_baseline, Some(expected));
        assert_eq!(summarize(&requests, Some("c"))[0].beside_baseline, None);
    }
}
