//! Results of a run of `bench serve`.

use std::collections::BTreeMap;

use eval::stats::Summary;
use eval::table;
use serde::{Deserialize, Serialize};

use crate::client::Usage;

/// Results of a whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ServeReport {
    /// URL of the server.
    pub(crate) url: String,
    /// Model requested.
    pub(crate) model: String,
    /// File of the requests.
    pub(crate) workload: String,
    /// Sharing mode requested; `None` leaves it to the server.
    pub(crate) kv_sharing: Option<String>,
    /// Maximum requests in flight.
    pub(crate) concurrency: usize,
    /// Time from the first request sent to the last answer's end.
    pub(crate) duration_seconds: f64,
    /// Answers a second.
    pub(crate) requests_per_s: f64,
    /// Prompt tokens accepted a second, reused ones included.
    pub(crate) prompt_tokens_per_s: f64,
    /// Tokens of answers a second.
    pub(crate) completion_tokens_per_s: f64,
    /// Requests without an answer.
    pub(crate) num_failed: usize,
    /// Groups by workload and expectation, in the order of first occurrence.
    pub(crate) groups: Vec<Group>,
    /// Requests in the order of the file.
    pub(crate) records: Vec<Measured>,
}

/// Requests of one workload with one expectation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Group {
    /// Kind of sharing tested.
    pub(crate) workload: String,
    /// Expectation of sharing.
    pub(crate) expect: String,
    /// Answers.
    pub(crate) n: usize,
    /// Requests without an answer.
    pub(crate) num_failed: usize,
    /// Time to the first token, in milliseconds.
    pub(crate) ttft_ms: Summary,
    /// Time between two pieces of an answer, in milliseconds.
    pub(crate) inter_token_ms: Summary,
    /// Time to the end of the answer, in milliseconds.
    pub(crate) latency_ms: Summary,
    /// Sums over the answers.
    pub(crate) tokens: TokenCounts,
}

/// Token counts by source and use, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct TokenCounts {
    /// Prompt tokens.
    pub(crate) prompt: u64,
    /// Answer tokens.
    pub(crate) completion: u64,
    /// Prompt tokens found as an exact prefix.
    pub(crate) cached: u64,
    /// Prompt tokens reused as spans.
    pub(crate) span: u64,
    /// Prompt tokens computed although a donor had them.
    pub(crate) recomputed: u64,
}

/// Result of one request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Name of the request.
    pub(crate) id: String,
    /// Kind of sharing tested.
    pub(crate) workload: String,
    /// Expectation of sharing.
    pub(crate) expect: String,
    /// Answer or error.
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
    /// Right answers, as in the workload.
    #[serde(default)]
    pub(crate) reference: Vec<serde_json::Value>,
}

/// Outcome of a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// Answer.
    Answer(Answer),
    /// Reason why there is no answer.
    Error(String),
}

/// Answer with its times.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Time from sending to the first text, or to the end of an answer without text.
    pub(crate) ttft_ms: f64,
    /// Times between two pieces of text.
    pub(crate) inter_token_ms: Vec<f64>,
    /// Time from sending to the end.
    pub(crate) latency_ms: f64,
    /// Reason why the answer ended.
    pub(crate) finish_reason: String,
    /// Tokens consumed.
    pub(crate) usage: Usage,
    /// Text of the answer.
    pub(crate) text: String,
}

impl Measured {
    /// Returns the answer, if there is one.
    pub(crate) fn answer(&self) -> Option<&Answer> {
        match &self.outcome {
            Outcome::Answer(answer) => Some(answer),
            Outcome::Error(_) => None,
        }
    }
}

impl TokenCounts {
    fn add(&mut self, usage: &Usage) {
        self.prompt += usage.prompt_tokens;
        self.completion += usage.completion_tokens;
        self.cached += usage.prompt_tokens_details.cached_tokens;
        self.span += usage.kv_sharing.span_tokens;
        self.recomputed += usage.kv_sharing.recomputed_tokens;
    }
}

/// Groups measured requests by workload and expectation, in the order of first occurrence.
pub(crate) fn group(records: &[Measured]) -> Vec<Group> {
    let mut order = Vec::new();
    let mut members: BTreeMap<(&str, &str), Vec<&Measured>> = BTreeMap::new();
    for record in records {
        let key = (record.workload.as_str(), record.expect.as_str());
        if !members.contains_key(&key) {
            order.push(key);
        }
        members.entry(key).or_default().push(record);
    }
    order.iter().map(|key| summarize(&members[key])).collect()
}

fn summarize(members: &[&Measured]) -> Group {
    let answers: Vec<_> = members.iter().filter_map(|record| record.answer()).collect();
    let mut tokens = TokenCounts::default();
    answers.iter().for_each(|answer| tokens.add(&answer.usage));
    Group {
        workload: members[0].workload.clone(),
        expect: members[0].expect.clone(),
        n: answers.len(),
        num_failed: members.len() - answers.len(),
        ttft_ms: Summary::of(answers.iter().map(|answer| answer.ttft_ms)),
        inter_token_ms: Summary::of(answers.iter().flat_map(|answer| answer.inter_token_ms.iter().copied())),
        latency_ms: Summary::of(answers.iter().map(|answer| answer.latency_ms)),
        tokens,
    }
}

impl ServeReport {
    /// Formats the report as tables: times, then tokens.
    pub(crate) fn to_table(&self) -> String {
        let mode = self.kv_sharing.as_deref().unwrap_or("server's default");
        let mut text = format!(
            "{} at {}, {} requests ({} failed), concurrency {}, kv_sharing: {mode}\n\
             {:.1} s, {:.2} requests/s, {:.0} prompt tokens/s, {:.1} answer tokens/s\n\nMilliseconds:\n\n",
            self.model,
            self.url,
            self.records.len(),
            self.num_failed,
            self.concurrency,
            self.duration_seconds,
            self.requests_per_s,
            self.prompt_tokens_per_s,
            self.completion_tokens_per_s,
        );
        let header =
            ["workload", "expect", "n", "TTFT p50", "p90", "p99", "mean", "inter-token p50", "p90", "p99", "mean", "latency p50"];
        text += &table::markdown(&header, &self.groups.iter().map(Group::time_cells).collect::<Vec<_>>(), 2);
        text += "\nTokens of all prompts, and where their KV came from:\n\n";
        let header = ["workload", "expect", "prompt", "cached prefix", "spans", "recomputed", "reused", "answers"];
        text += &table::markdown(&header, &self.groups.iter().map(Group::token_cells).collect::<Vec<_>>(), 2);
        text
    }
}

impl Group {
    fn time_cells(&self) -> Vec<String> {
        let mut cells = vec![self.workload.clone(), self.expect.clone(), self.n.to_string()];
        for summary in [&self.ttft_ms, &self.inter_token_ms] {
            cells.extend([summary.p50, summary.p90, summary.p99, summary.mean].map(|ms| format!("{ms:.1}")));
        }
        cells.push(format!("{:.1}", self.latency_ms.p50));
        cells
    }

    fn token_cells(&self) -> Vec<String> {
        let tokens = &self.tokens;
        let reused = 100.0 * (tokens.cached + tokens.span) as f64 / tokens.prompt.max(1) as f64;
        let mut cells = vec![self.workload.clone(), self.expect.clone()];
        cells.extend([tokens.prompt, tokens.cached, tokens.span, tokens.recomputed].map(|n| n.to_string()));
        cells.push(format!("{reused:.1} %"));
        cells.push(tokens.completion.to_string());
        cells
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(workload: &str, expect: &str, ttft_ms: Option<f64>) -> Measured {
        let mut usage = Usage { prompt_tokens: 100, completion_tokens: 10, ..Usage::default() };
        usage.prompt_tokens_details.cached_tokens = 30;
        usage.kv_sharing.span_tokens = 20;
        let answer = |ttft_ms| Outcome::Answer(Answer { ttft_ms, usage, inter_token_ms: vec![1.0, 3.0], ..Answer::default() });
        Measured {
            id: String::new(),
            workload: workload.to_owned(),
            expect: expect.to_owned(),
            outcome: ttft_ms.map_or_else(|| Outcome::Error("refused".to_owned()), answer),
            reference: Vec::new(),
        }
    }

    #[test]
    fn groups_keep_the_order_of_the_file_and_count_failures() {
        let records = [
            measured("w2", "seed", Some(10.0)),
            measured("w1", "reuse", Some(4.0)),
            measured("w2", "seed", None),
            measured("w1", "reuse", Some(2.0)),
        ];
        let groups = group(&records);
        let shape: Vec<_> = groups.iter().map(|group| (group.workload.as_str(), group.n, group.num_failed)).collect();
        assert_eq!(shape, [("w2", 1, 1), ("w1", 2, 0)]);
        assert_eq!(groups[1].ttft_ms.mean, 3.0);
        assert_eq!(groups[1].inter_token_ms.n, 4);
        assert_eq!(groups[1].tokens, TokenCounts { prompt: 200, completion: 20, cached: 60, span: 40, recomputed: 0 });
        assert_eq!(groups[1].token_cells()[6], "50.0 %");
    }

    #[test]
    fn a_report_survives_being_written() {
        let records = vec![measured("w", "seed", Some(1.5)), measured("w", "seed", None)];
        let text = serde_json::to_string(&records).unwrap();
        let read: Vec<Measured> = serde_json::from_str(&text).unwrap();
        assert_eq!(read[0].answer(), records[0].answer());
        assert!(matches!(&read[1].outcome, Outcome::Error(reason) if reason == "refused"));
    }
}
