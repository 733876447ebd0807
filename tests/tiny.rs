//! The small workload and trace in `benches/tiny`, as a newcomer measures with them.

use std::process::Command;

use serde_json::Value;

use crate::daemon::{output, pull_default_model};
use crate::places::{kvshare, repository, scratch};

/// Runs `kvshare` with `args` and returns the JSON it writes.
fn measured(name: &str, args: &[&str]) -> Value {
    let json = scratch().join(format!("tiny-{name}.json"));
    let output = output(Command::new(kvshare()).current_dir(repository()).args(args).arg("--json").arg(&json));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&std::fs::read_to_string(&json).expect("the report is written")).expect("the report is JSON")
}

#[test]
fn the_tiny_workload_is_reused_where_its_lines_expect_it() {
    pull_default_model();
    let policies = ["--policy", "none", "--no-generate", "--threads", "2", "--kv-cache-memory", "256MiB"];
    let report = measured("requests", &[&["eval", "--workload", "benches/tiny/requests.jsonl"][..], &policies].concat());
    let rows = report["requests"].as_array().expect("the report lists requests");
    for row in rows {
        let count = |field: &str| row[field].as_u64().expect("a request reports its tokens");
        let is_reused = 2 * count("span_tokens") > count("prompt_tokens");
        assert_eq!(is_reused, row["id"] != "alone/second", "{row}");
    }
    assert_eq!(rows.len(), 6);
}

#[test]
fn the_tiny_trace_finds_its_blocks() {
    let report = measured("trace", &["simulate", "benches/tiny/trace.jsonl", "--blocks", "unlimited", "--policy", "fcfs"]);
    let run = &report["runs"][0];
    assert_eq!((run["num_finished"].as_u64(), run["num_refused"].as_u64()), (Some(64), Some(0)));
    assert!(run["block_hit_ratio"].as_f64() > Some(0.5), "{run}");
}
