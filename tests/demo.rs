//! `kvshare demo`, as a new user runs it.

use std::process::Command;

use crate::daemon::{output, pull_default_model};
use crate::places::kvshare;

/// Returns the cells of the row of `mode`, without its name.
fn row<'a>(table: &'a str, mode: &str) -> Vec<&'a str> {
    let cells = table.lines().map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    let row =
        cells.into_iter().find(|cells| cells.get(1) == Some(&mode)).unwrap_or_else(|| panic!("no row of {mode} in {table}"));
    row[2..row.len() - 1].to_vec()
}

#[test]
fn shuffled_documents_are_moved_and_the_answers_are_shown() {
    pull_default_model();
    let output = output(Command::new(kvshare()).args(["demo", "--threads", "2", "--kv-cache-memory", "256MiB"]));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stderr}");
    let count = |mode: &str, column: usize| row(&stdout, mode)[column].parse::<u32>().expect("a number of tokens");
    let [prefix, moved, computed, recomputed] = [2, 3, 4, 5];
    assert_eq!((count("off", prefix), count("off", moved)), (0, 0));
    assert!(count("prefix", prefix) > 0 && count("prefix", moved) == 0, "{stdout}");
    assert!(count("span", moved) > count("off", computed) / 2, "{stdout}");
    assert!(count("span", computed) < count("off", computed) / 2, "{stdout}");
    assert!(count("span", recomputed) < count("span", computed), "{stdout}");
    assert_eq!(stdout.lines().filter(|line| line.starts_with("  ")).count(), 3, "an answer of each mode: {stdout}");
    assert!(stdout.contains("kvshare serve --kv-sharing span"), "{stdout}");
}
