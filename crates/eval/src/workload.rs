//! Workloads: files of requests, one JSON object a line; some requests follow another one of their group.

use std::path::Path;

use anyhow::{Context, bail};
use serde::Deserialize;

use super::task::Metric;

/// One request of a workload. Other fields are ignored.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Record {
    /// Name of the request; unique in its file.
    pub id: String,
    /// Kind of sharing tested.
    pub workload: String,
    /// Request that must have finished before this one is sent.
    #[serde(default)]
    pub donor_id: Option<String>,
    /// Expectation of sharing: `seed`, `reuse`, `partial` or `no_reuse`.
    #[serde(default)]
    pub expect: String,
    /// Messages of the conversation.
    pub messages: Vec<Message>,
    /// Maximum tokens to generate.
    pub max_tokens: u32,
    /// Metric that scores an answer.
    #[serde(default)]
    pub metric: String,
    /// Right answers, for scoring. Not always texts.
    #[serde(default)]
    pub reference: Vec<serde_json::Value>,
    /// Facts that only the donor's prompt contains: an answer that holds one has taken it from there.
    #[serde(default)]
    pub stale_reference: Vec<String>,
    /// Tenant; two tenants never share.
    #[serde(default)]
    pub tenant: Option<String>,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Text of the message.
    pub content: String,
}

/// Reads a workload, at most `limit` of its requests.
///
/// # Errors
/// If the file cannot be read, a line is no request, or it holds none. Names the line.
pub fn read(path: &Path, limit: Option<usize>) -> anyhow::Result<Vec<Record>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    parse(&text, limit).with_context(|| path.display().to_string())
}

/// Reads a workload to be scored, with the name of its file.
///
/// # Errors
/// As [`read`], or if a request names an unknown metric.
pub fn read_scored(path: &Path) -> anyhow::Result<(String, Vec<Record>)> {
    let records = read(path, None)?;
    for record in &records {
        if Metric::by_name(&record.metric).is_none() {
            let (file, known) = (path.display(), Metric::NAMES);
            bail!("{file}: {} has the unknown metric {:?}; there are {known}", record.id, record.metric);
        }
    }
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    Ok((name, records))
}

fn parse(text: &str, limit: Option<usize>) -> anyhow::Result<Vec<Record>> {
    let mut records: Vec<Record> = Vec::new();
    let mut ids = std::collections::BTreeSet::new();
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    for (index, line) in lines.take(limit.unwrap_or(usize::MAX)) {
        let record: Record = serde_json::from_str(line).with_context(|| format!("line {} is no request", index + 1))?;
        if !ids.insert(record.id.clone()) {
            bail!("line {} repeats the id {}", index + 1, record.id);
        }
        records.push(record);
    }
    if records.is_empty() {
        bail!("it holds no requests");
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: &str) -> String {
        format!(
            r#"{{"id":"{id}","workload":"w1","group":"0","donor_id":null,"expect":"seed","messages":[{{"role":"user","content":"x"}}],"max_tokens":4,"metric":"vs_full","reference":["a",{{"b":1}}]}}"#
        )
    }

    /// Checks the ids read, or a part of the error.
    #[track_caller]
    fn check(text: &str, limit: Option<usize>, expected: Result<&[&str], &str>) {
        let ids = |records: Vec<Record>| records.into_iter().map(|record| record.id).collect::<Vec<_>>();
        match (parse(text, limit).map(ids), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (found, _) => panic!("{found:?}"),
        }
    }

    #[test]
    fn records_are_read_in_order_up_to_the_limit() {
        let text = [line("a"), String::new(), line("b"), line("c")].join("\n");
        check(&text, None, Ok(&["a", "b", "c"]));
        check(&text, Some(2), Ok(&["a", "b"]));
    }

    #[test]
    fn bad_lines_are_named() {
        check(&format!("{}\n{{}}", line("a")), None, Err("line 2 is no request"));
        check(&format!("{}\n{}", line("a"), line("a")), None, Err("line 2 repeats the id a"));
        check("\n", None, Err("no requests"));
    }

    #[test]
    fn an_unknown_measure_is_refused_before_anything_runs() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"id":"a","workload":"w","messages":[],"max_tokens":1,"metric":"taste"}"#).unwrap();
        assert!(read_scored(file.path()).unwrap_err().to_string().contains("unknown metric \"taste\""));
    }
}
