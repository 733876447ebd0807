//! Report of a whole run: setup, rows and requests; and the merge of runs over shares of one plan.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use super::bootstrap::{NUM_RESAMPLES, SEED};
use super::measured::Measured;
use super::summary::{Level, ResultRow, policies_of, summarize};
use super::table;

/// Report of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalReport {
    /// Setup that the figures depend on.
    pub setup: Setup,
    /// Compute threads. Times depend on them, and on other load.
    pub threads: usize,
    /// Requests left out because they or their donors are too long.
    pub num_too_long: usize,
    /// `name@share` of the policy that others are subtracted from.
    pub baseline: Option<String>,
    /// Rows by kind of request, by file, and over all.
    pub results: Vec<ResultRow>,
    /// Requests under each policy, in the order of the plan.
    pub requests: Vec<Measured>,
}

/// Settings that have to be equal to merge two runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// Name of the model.
    pub model: String,
    /// Number format of its KV, as configured: `f16` or `f32`.
    pub kv_cache_dtype: String,
    /// Maximum positions compared.
    pub max_tokens: u32,
    /// Maximum tokens of a free-running answer; `None` if none was requested.
    pub max_answer_tokens: Option<u32>,
    /// Maximum tokens of a prompt and its donor's.
    pub max_prompt_tokens: usize,
    /// Maximum requests of one kind.
    pub limit: Option<usize>,
    /// Rows computed in one step.
    pub max_num_batched_tokens: usize,
    /// Shortest span, in tokens.
    pub min_span: u32,
    /// Tokens recomputed at the start of a span.
    pub head_tokens: u32,
    /// Tokens recomputed at the end of a prompt.
    pub tail_tokens: u32,
    /// True if tenants shared with each other.
    pub ignores_tenants: bool,
}

impl EvalReport {
    /// Reads a report written as JSON.
    ///
    /// # Errors
    /// If it cannot be read or is no such report.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no report of `eval --json`", path.display()))
    }

    /// Sets `requests` in the order of the plan, and summarizes them.
    pub fn with_requests(mut self, mut requests: Vec<Measured>) -> Self {
        // Stable, so that policies stay in their order.
        requests.sort_by_key(|request| request.index);
        self.results = summarize(&requests, self.baseline.as_deref());
        self.requests = requests;
        self
    }

    /// Merges runs over shares of one plan, or under different policies. `baseline` replaces theirs.
    ///
    /// # Errors
    /// If their setups differ, or two hold the same request under the same policy.
    pub fn merge(parts: Vec<Self>, baseline: Option<String>) -> anyhow::Result<Self> {
        let mut parts = parts.into_iter();
        let mut whole = parts.next().context("there is nothing to merge")?;
        let mut requests = std::mem::take(&mut whole.requests);
        for part in parts {
            ensure!(part.setup == whole.setup, "the runs differ in their setups: {:?} and {:?}", whole.setup, part.setup);
            whole.threads = whole.threads.max(part.threads);
            requests.extend(part.requests);
        }
        let mut known = BTreeSet::new();
        for request in &requests {
            if !known.insert((&request.file, &request.id, request.policy_label())) {
                bail!("{} of {} is there twice under {}", request.id, request.file, request.policy_label());
            }
        }
        whole.baseline = baseline.or(whole.baseline);
        Ok(whole.with_requests(requests))
    }

    /// Formats the report as tables: costs and savings of reuse.
    pub fn to_table(&self) -> String {
        let Setup { model, max_tokens, min_span, head_tokens, tail_tokens, kv_cache_dtype, .. } = &self.setup;
        let mut text = format!(
            "{model}, KV as {}, up to {max_tokens} positions, min_span {min_span}, head_tokens {head_tokens}, \
             tail_tokens {tail_tokens}, {} threads, {} requests too long\n\nBeside full computation, hits only; means over requests. \
             KL(full || reuse) in nats, [95 % interval of {NUM_RESAMPLES} resamples, seed {SEED}]\n\n",
            kv_cache_dtype.to_uppercase(),
            self.threads,
            self.num_too_long,
        );
        let header = [
            "workload", "policy", "n", "hits", "matched", "work", "mean KL", "interval", "first KL", "p95 KL", "top-1",
            "floor KL", "ROUGE-L", "BLEU", "task", "in full", "negative", "stale",
        ];
        text += &table::markdown(&header, &self.results.iter().map(ResultRow::quality_cells).collect::<Vec<_>>(), 2);
        text += "\nTimes sooner to the first token, median over hits (ratio of medians):\n\n";
        let header = [
            "workload",
            "policy",
            "hits",
            "TTFT ms",
            "to no cache",
            "to prefixes",
            "with donor",
            "recomputed",
            "bail-outs",
            "misses",
            "miss to prefixes",
        ];
        text += &table::markdown(&header, &self.results.iter().map(ResultRow::speed_cells).collect::<Vec<_>>(), 2);
        text
    }

    /// Returns the labels of its policies, in their order.
    pub fn policies(&self) -> Vec<String> {
        policies_of(&self.requests)
    }
}

impl ResultRow {
    fn name(&self) -> String {
        match self.level {
            Level::Workload => self.workload.clone(),
            Level::File => format!("file {}", self.workload),
            Level::All => "all".to_owned(),
        }
    }

    fn quality_cells(&self) -> Vec<String> {
        let mut cells = vec![self.name(), self.policy_label(), self.n.to_string(), self.hits.to_string()];
        cells.extend([percent(self.matched), fixed(self.work, 2), fixed(self.kl_mean, 4), interval(self.ci95.kl_mean)]);
        cells.extend([self.kl_first, self.kl_p95].map(|value| fixed(value, 4)));
        cells.extend([fixed(self.top1, 3), fixed(self.floor_kl, 6)]);
        cells.extend([self.rouge_l, self.bleu, self.task, self.task_full].map(|value| fixed(value, 3)));
        cells.extend([self.negative_samples, self.stale].map(percent));
        cells
    }

    fn speed_cells(&self) -> Vec<String> {
        let both = |ratio: Option<f64>, of_medians: Option<f64>| match (ratio, of_medians) {
            (Some(ratio), Some(of_medians)) => format!("{ratio:.2} ({of_medians:.2})"),
            _ => "-".to_owned(),
        };
        let medians = self.ttft_of_medians;
        let mut cells = vec![self.name(), self.policy_label(), self.hits.to_string(), fixed(self.ttft_ms, 1)];
        cells.push(both(self.ttft_ratio, medians.map(|medians| medians.full)));
        cells.push(both(self.ttft_ratio_prefix, medians.map(|medians| medians.prefix)));
        cells.push(both(self.ttft_ratio_cold, medians.map(|medians| medians.cold)));
        cells.extend([percent(self.recomputed), self.bail_outs.to_string()]);
        cells.push(self.misses.map_or(0, |misses| misses.n).to_string());
        cells.push(fixed(self.misses.map(|misses| misses.ttft_ratio_prefix), 3));
        cells
    }
}

fn fixed(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.1} %", 100.0 * value))
}

fn interval(value: Option<[f64; 2]>) -> String {
    value.map_or_else(|| "-".to_owned(), |[low, high]| format!("[{low:.4}, {high:.4}]"))
}

#[cfg(test)]
impl EvalReport {
    /// Makes a report of `requests` under arbitrary settings.
    pub(super) fn of_requests(requests: Vec<Measured>) -> Self {
        let setup = Setup {
            model: "m".to_owned(),
            kv_cache_dtype: "f32".to_owned(),
            max_tokens: 48,
            max_answer_tokens: None,
            max_prompt_tokens: 7000,
            limit: None,
            max_num_batched_tokens: 512,
            min_span: 64,
            head_tokens: 16,
            tail_tokens: 16,
            ignores_tenants: false,
        };
        let empty = Self { setup, threads: 2, num_too_long: 0, baseline: None, results: Vec::new(), requests: Vec::new() };
        empty.with_requests(requests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(index: usize, policy: &str) -> Measured {
        Measured {
            index,
            id: index.to_string(),
            file: "w.jsonl".to_owned(),
            workload: "w/a".to_owned(),
            policy: policy.to_owned(),
            is_hit: index > 0,
            prompt_tokens: 100,
            kl: vec![0.1 / 3.0, 0.5],
            agrees: vec![true, false],
            ttft_ms: 2.0,
            full_ttft_ms: 3.0,
            prefix_ttft_ms: 3.0,
            ..Measured::default()
        }
    }

    #[test]
    fn shares_make_up_the_whole() {
        let whole = EvalReport::of_requests(vec![
            request(0, "a"),
            request(0, "b"),
            request(1, "a"),
            request(1, "b"),
            request(2, "a"),
            request(2, "b"),
        ]);
        let first = EvalReport::of_requests(vec![request(2, "a"), request(2, "b")]);
        let second = EvalReport::of_requests(vec![request(0, "a"), request(0, "b"), request(1, "a"), request(1, "b")]);
        assert_eq!(EvalReport::merge(vec![first.clone(), second.clone()], None).unwrap(), whole);
        assert_eq!(whole.policies(), ["a", "b"]);
        let twice = EvalReport::merge(vec![first.clone(), second.clone(), first.clone()], None).unwrap_err();
        assert_eq!(twice.to_string(), "2 of w.jsonl is there twice under a");
        let other = EvalReport { setup: Setup { max_tokens: 1, ..second.setup.clone() }, ..second };
        assert!(EvalReport::merge(vec![first, other], None).unwrap_err().to_string().contains("setups"));
    }

    #[test]
    fn a_report_survives_being_written() {
        let report = EvalReport::of_requests(vec![request(0, "a"), request(1, "a")]);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), serde_json::to_string_pretty(&report).unwrap()).unwrap();
        assert_eq!(EvalReport::read(file.path()).unwrap(), report);
        std::fs::write(file.path(), "{}").unwrap();
        assert!(EvalReport::read(file.path()).unwrap_err().to_string().contains("is no report"));
    }

    #[test]
    fn a_row_has_every_field_also_without_hits() {
        let json = serde_json::to_value(EvalReport::of_requests(vec![request(0, "a")])).unwrap();
        let row = json["results"][0].as_object().unwrap();
        let fields = "workload policy r n hits matched work kl_mean kl_first kl_p95 top1 rouge_l bleu length_ratio task task_full \
                      negative_samples stale ttft_ratio ttft_ratio_prefix ttft_ratio_cold recomputed bail_outs by_class ci95";
        for field in fields.split_whitespace() {
            assert!(row.contains_key(field), "{field} is missing");
        }
        assert_eq!((&row["hits"], &row["kl_mean"], &row["misses"]["n"]), (&0.into(), &serde_json::Value::Null, &1.into()));
    }

    #[test]
    fn the_table_shows_what_is_not_there_as_a_dash() {
        let table = EvalReport::of_requests(vec![request(0, "a"), request(1, "b")]).to_table();
        assert!(table.contains("| file w.jsonl | a      |   1 |    0 |       - |"), "{table}");
        assert!(table.contains("0.2667"), "{table}");
        assert!(table.contains("1.50 (1.50)"), "{table}");
    }
}
