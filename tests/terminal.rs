//! `kvshare chat` on a terminal.

use std::process::Command;

use serde_json::{Value, json};

use crate::places::kvshare;

/// Sequence written when the terminal is ready for input: pasted text comes in brackets from then on.
const READY: &str = "\u{1b}[?2004h";

const SESSION: &str = include_str!("terminal/session.py");

/// Returns output and exit status of the program after `keys` were typed: each when a text has appeared.
fn session(keys: &Value, arguments: &[&str]) -> (String, i64) {
    let output = Command::new("python3").args(["-c", SESSION, &keys.to_string()]).arg(kvshare()).args(arguments).output();
    let output = output.expect("there is a Python");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let ended: Value = serde_json::from_slice(&output.stdout).expect("the session prints JSON");
    (ended["written"].as_str().unwrap().to_owned(), ended["status"].as_i64().unwrap())
}

#[test]
fn lines_are_edited_remembered_and_pasted_whole() {
    let keys = json!([
        // The letter is inserted two places to the left.
        [READY, "/usge\u{1b}[D\u{1b}[Da\r"],
        // Repeats the last line.
        [READY, "\u{1b}[A\r"],
        // Two pasted lines are one message, which gets no answer here.
        [READY, "\u{1b}[200~/two\nlines\u{1b}[201~\r"],
        // Ctrl-C drops the line, Ctrl-D ends.
        ["error: ", ""],
        [READY, "/nothing of this is sent\u{3}"],
        ["Ctrl-D or /quit ends", ""],
        [READY, "\u{4}"],
    ]);
    let arguments = ["chat", "--model", "any", "--url", "http://127.0.0.1:1", "--no-history"];
    let (written, status) = session(&keys, &arguments);
    assert_eq!(status, 0, "{written}");
    assert!(!written.contains("there is no"), "{written}");
    assert_eq!(written.matches("error: no answer from").count(), 1, "{written}");
}

#[test]
fn a_pipe_is_read_without_a_terminal() {
    use std::io::Write;
    use std::process::Stdio;
    let mut child = Command::new(kvshare());
    child.args(["chat", "--model", "any", "--url", "http://127.0.0.1:1"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kvshare starts");
    child.stdin.take().unwrap().write_all(b"/usage\nhello\n/quit\nnot read\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout.is_empty(), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "one message is sent, nothing else is said: {stderr}");
    assert!(stderr.starts_with("error: no answer from http://127.0.0.1:1"), "{stderr}");
}
