//! Comparison of two runs of `bench serve` over the same workload: speedup of the first token, and agreement of the answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use eval::rouge::{recall, rouge_l, words};
use eval::stats::{Summary, median};
use eval::table;
use serde::Serialize;

use super::report::{Answer, Measured, ServeReport};
use crate::json_args::JsonArgs;

/// Arguments of `kvshare bench compare`.
#[derive(Debug, clap::Args)]
pub(crate) struct CompareArgs {
    /// Report of the run to compare with, written by `bench serve --json`
    baseline: PathBuf,
    /// Report of the run to judge
    candidate: PathBuf,
    #[command(flatten)]
    json: JsonArgs,
}

/// Comparison of all groups of a workload that both runs answered.
#[derive(Debug, Serialize)]
struct Comparison {
    baseline: RunName,
    candidate: RunName,
    groups: Vec<ComparedGroup>,
}

#[derive(Debug, Serialize)]
struct RunName {
    file: String,
    model: String,
    kv_sharing: Option<String>,
}

/// Requests of one workload with one expectation that both runs answered.
#[derive(Debug, PartialEq, Serialize)]
struct ComparedGroup {
    workload: String,
    expect: String,
    n: usize,
    /// Median times to the first token, in milliseconds.
    baseline_ttft_p50_ms: f64,
    candidate_ttft_p50_ms: f64,
    /// Candidate over baseline: of the medians, and the median over requests.
    ttft_p50_ratio: f64,
    median_ttft_ratio: f64,
    /// Mean ROUGE-L F1 of the candidate's answer against the baseline's.
    rouge_l: f64,
    /// Share of requests whose answers are equal, and whose answers begin with the same word.
    equal_ratio: f64,
    same_first_word_ratio: f64,
    /// Mean share of the baseline's words before the answers first differ.
    agreed_words_ratio: f64,
    /// Mean over requests of the best ROUGE-L recall of a right answer, if the workload has right answers as texts.
    baseline_reference_recall: Option<f64>,
    candidate_reference_recall: Option<f64>,
}

/// Compares the two runs, and prints the table.
///
/// # Errors
/// If a report cannot be read, or the two have no request in common.
pub(crate) fn run(args: &CompareArgs) -> anyhow::Result<()> {
    let (baseline, candidate) = (read(&args.baseline)?, read(&args.candidate)?);
    let groups = compare(&baseline.records, &candidate.records);
    if groups.is_empty() {
        bail!("{} and {} have no answered request in common", args.baseline.display(), args.candidate.display());
    }
    let name = |path: &Path, report: ServeReport| RunName {
        file: path.display().to_string(),
        model: report.model,
        kv_sharing: report.kv_sharing,
    };
    let comparison = Comparison { baseline: name(&args.baseline, baseline), candidate: name(&args.candidate, candidate), groups };
    args.json.write(&comparison, &comparison.to_table())
}

fn read(path: &Path) -> anyhow::Result<ServeReport> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no report of `bench serve --json`", path.display()))
}

fn compare(baseline: &[Measured], candidate: &[Measured]) -> Vec<ComparedGroup> {
    let by_id: BTreeMap<_, _> = candidate.iter().filter_map(|record| Some((record.id.as_str(), record.answer()?))).collect();
    let mut order = Vec::new();
    let mut pairs: BTreeMap<(&str, &str), Vec<AnswerPair<'_>>> = BTreeMap::new();
    for record in baseline {
        let (Some(baseline), Some(candidate)) = (record.answer(), by_id.get(record.id.as_str())) else { continue };
        let key = (record.workload.as_str(), record.expect.as_str());
        if !pairs.contains_key(&key) {
            order.push(key);
        }
        pairs.entry(key).or_default().push(AnswerPair { baseline, candidate, reference: &record.reference });
    }
    order.iter().map(|key| compare_group(*key, &pairs[key])).collect()
}

/// Both answers to one request.
struct AnswerPair<'a> {
    baseline: &'a Answer,
    candidate: &'a Answer,
    reference: &'a [serde_json::Value],
}

fn compare_group((workload, expect): (&str, &str), pairs: &[AnswerPair<'_>]) -> ComparedGroup {
    let baseline_ttft_p50_ms = median(pairs.iter().map(|pair| pair.baseline.ttft_ms));
    let candidate_ttft_p50_ms = median(pairs.iter().map(|pair| pair.candidate.ttft_ms));
    let mean = |value: fn(&AnswerPair<'_>) -> f64| Summary::of(pairs.iter().map(value)).mean;
    ComparedGroup {
        workload: workload.to_owned(),
        expect: expect.to_owned(),
        n: pairs.len(),
        baseline_ttft_p50_ms,
        candidate_ttft_p50_ms,
        ttft_p50_ratio: candidate_ttft_p50_ms / baseline_ttft_p50_ms,
        median_ttft_ratio: median(pairs.iter().map(|pair| pair.candidate.ttft_ms / pair.baseline.ttft_ms)),
        rouge_l: mean(|pair| rouge_l(&pair.candidate.text, &pair.baseline.text)),
        equal_ratio: mean(|pair| f64::from(u8::from(pair.candidate.text == pair.baseline.text))),
        same_first_word_ratio: mean(|pair| f64::from(u8::from(first_word(pair.candidate) == first_word(pair.baseline)))),
        agreed_words_ratio: mean(|pair| agreed_words_ratio(&pair.candidate.text, &pair.baseline.text)),
        baseline_reference_recall: mean_recall(pairs, |pair| pair.baseline),
        candidate_reference_recall: mean_recall(pairs, |pair| pair.candidate),
    }
}

fn first_word(answer: &Answer) -> Option<String> {
    words(&answer.text).into_iter().next()
}

/// Returns the share of the baseline's words before the first difference: up to there both answers have the same context.
fn agreed_words_ratio(candidate: &str, baseline: &str) -> f64 {
    let (candidate, baseline) = (words(candidate), words(baseline));
    if baseline.is_empty() {
        return f64::from(u8::from(candidate.is_empty()));
    }
    let num_agreed = candidate.iter().zip(&baseline).take_while(|(a, b)| a == b).count();
    num_agreed as f64 / baseline.len() as f64
}

/// Returns the mean share of a right answer's words that the answer has in order, over requests with right answers as texts.
fn mean_recall<'a>(pairs: &'a [AnswerPair<'a>], answer: impl Fn(&'a AnswerPair<'a>) -> &'a Answer) -> Option<f64> {
    let best = |pair: &'a AnswerPair<'a>| {
        let texts = pair.reference.iter().filter_map(serde_json::Value::as_str);
        texts.map(|text| recall(&answer(pair).text, text)).max_by(f64::total_cmp)
    };
    let recalls: Vec<_> = pairs.iter().filter_map(best).collect();
    (!recalls.is_empty()).then(|| Summary::of(recalls).mean)
}

impl Comparison {
    fn to_table(&self) -> String {
        let describe = |run: &RunName| {
            format!("{} ({}, kv_sharing: {})", run.file, run.model, run.kv_sharing.as_deref().unwrap_or("server's default"))
        };
        let header = [
            "workload",
            "expect",
            "n",
            "TTFT p50 A ms",
            "TTFT p50 B ms",
            "B/A",
            "median of B/A",
            "ROUGE-L",
            "equal",
            "same first word",
            "agreed words",
            "reference recall A",
            "B",
        ];
        let rows: Vec<_> = self.groups.iter().map(ComparedGroup::cells).collect();
        let table = table::markdown(&header, &rows, 2);
        format!("A: {}\nB: {}\n\n{table}", describe(&self.baseline), describe(&self.candidate))
    }
}

impl ComparedGroup {
    fn cells(&self) -> Vec<String> {
        let percent = |ratio: f64| format!("{:.0} %", 100.0 * ratio);
        let optional = |recall: Option<f64>| recall.map_or_else(|| "-".to_owned(), |recall| format!("{recall:.3}"));
        vec![
            self.workload.clone(),
            self.expect.clone(),
            self.n.to_string(),
            format!("{:.1}", self.baseline_ttft_p50_ms),
            format!("{:.1}", self.candidate_ttft_p50_ms),
            format!("{:.3}", self.ttft_p50_ratio),
            format!("{:.3}", self.median_ttft_ratio),
            format!("{:.3}", self.rouge_l),
            percent(self.equal_ratio),
            percent(self.same_first_word_ratio),
            percent(self.agreed_words_ratio),
            optional(self.baseline_reference_recall),
            optional(self.candidate_reference_recall),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Outcome;
    use super::*;

    fn answered(id: &str, ttft_ms: f64, text: &str) -> Measured {
        Measured {
            id: id.to_owned(),
            workload: "w".to_owned(),
            expect: "reuse".to_owned(),
            outcome: Outcome::Answer(Answer { ttft_ms, text: text.to_owned(), ..Answer::default() }),
            reference: vec!["season five".into()],
        }
    }

    #[test]
    fn equal_runs_lose_nothing() {
        let run = [answered("a", 10.0, "in season five"), answered("b", 20.0, "never")];
        let groups = compare(&run, &run);
        assert_eq!(groups.len(), 1);
        let group = &groups[0];
        assert_eq!(
            (group.n, group.ttft_p50_ratio, group.rouge_l, group.equal_ratio, group.agreed_words_ratio),
            (2, 1.0, 1.0, 1.0, 1.0)
        );
        assert_eq!(group.baseline_reference_recall, Some(0.5));
    }

    #[test]
    fn the_candidate_is_measured_against_the_baseline() {
        let baseline = [answered("a", 100.0, "the season five opener"), answered("b", 10.0, "x")];
        let candidate = [answered("a", 25.0, "the season six finale"), answered("only here", 1.0, "y")];
        let group = &compare(&baseline, &candidate)[0];
        assert_eq!((group.n, group.ttft_p50_ratio, group.median_ttft_ratio), (1, 0.25, 0.25));
        assert_eq!(
            (group.rouge_l, group.equal_ratio, group.same_first_word_ratio, group.agreed_words_ratio),
            (0.5, 0.0, 1.0, 0.5)
        );
        assert_eq!(group.candidate_reference_recall, Some(0.5));
    }

    #[test]
    fn requests_that_only_one_run_answered_are_left_out() {
        let mut failed = answered("a", 1.0, "x");
        failed.outcome = Outcome::Error("refused".to_owned());
        assert!(compare(&[failed], &[answered("a", 1.0, "x")]).is_empty());
    }
}
