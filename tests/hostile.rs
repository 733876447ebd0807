//! Daemon under hostile clients, operators and systems.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::daemon::{Daemon, MODEL, free_port, output, pull_default_model, serve};
use crate::places::kvshare;

/// Address space of the daemon under attack, in bytes.
const ADDRESS_SPACE: u64 = 2 << 30;
/// Maximum growth of its memory meanwhile, at the peak, in bytes.
const MAX_GROWTH: u64 = 300 << 20;
/// Maximum part of that which the allocator may keep for later, in bytes.
const MAX_KEPT: u64 = 200 << 20;
/// Simultaneous requests of each kind.
const NUM_AT_ONCE: usize = 64;

/// Serves the default model within [`ADDRESS_SPACE`].
async fn start_small() -> Daemon {
    let (port, model) = (free_port(), pull_default_model());
    let limited = format!("ulimit -v {} && exec \"$0\" \"$@\"", ADDRESS_SPACE >> 10);
    let mut command = Command::new("sh");
    command.args(["-c", &limited]).arg(kvshare()).args(["serve", "--port", &port.to_string(), "--threads", "1"]);
    command.args(["--kv-cache-memory", "64MiB", "--model"]).arg(model).args(["--served-model-name", MODEL]);
    let mut daemon = Daemon::spawn(&mut command, port);
    daemon.wait_until_ready().await;
    daemon
}

/// Returns bodies of nearly two megabytes, with the endpoint that reads them.
fn hostile_bodies() -> Vec<(&'static str, &'static str, String)> {
    let fill = |part: &str| part.repeat(((2 << 20) - 1000) / part.len());
    let chat = |content: &str| json!({"messages": [{"role": "user", "content": content}]}).to_string();
    let fields: Vec<_> = (0..100_000).map(|i| format!("\"x{i}\":0")).collect();
    vec![
        ("emoji", "/v1/completions", json!({"prompt": fill("😀")}).to_string()),
        ("emoji in a chat", "/v1/chat/completions", chat(&fill("😀"))),
        ("one word", "/v1/chat/completions", chat(&fill("a"))),
        ("combining marks", "/v1/completions", json!({"prompt": fill("e\u{301}")}).to_string()),
        ("base64", "/tokenize", json!({"prompt": fill("TG9yZW0gaXBzdW0 ")}).to_string()),
        ("unknown fields", "/v1/chat/completions", format!("{{{}}}", fields.join(","))),
        ("token ids", "/v1/completions", format!("{{\"prompt\":[{}]}}", vec!["5"; 500_000].join(","))),
    ]
}

/// Reads a long answer while the daemon is busy with others.
async fn healthy_stream(url: String) -> String {
    let body = json!({"model": MODEL, "prompt": "Once upon a time", "max_tokens": 200, "ignore_eos": true, "stream": true});
    let answer = reqwest::Client::new().post(format!("{url}/v1/completions")).json(&body).send().await.unwrap();
    answer.text().await.unwrap()
}

/// Sends one body on a separate connection; returns the status of the answer.
async fn status_of(url: String, body: String) -> u16 {
    let request = reqwest::Client::new().post(url).header("content-type", "application/json").body(body);
    request.send().await.expect("an answer").status().as_u16()
}

#[tokio::test]
async fn hostile_bodies_take_little_memory_and_hold_up_no_stream() {
    let daemon = start_small().await;
    daemon.chat(&json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4})).await;
    let before = daemon.memory("VmHWM");
    for (kind, path, body) in hostile_bodies() {
        let stream = tokio::spawn(healthy_stream(daemon.url.clone()));
        let url = format!("{}{path}", daemon.url);
        let attack: Vec<_> = (0..NUM_AT_ONCE).map(|_| tokio::spawn(status_of(url.clone(), body.clone()))).collect();
        for request in attack {
            let status = request.await.unwrap();
            assert!((400..500).contains(&status) || status == 503, "{kind} was answered {status}");
        }
        assert_eq!(daemon.status("/health").await, Some(200));
        let streamed = stream.await.unwrap();
        assert!(streamed.contains("data: [DONE]") && !streamed.contains("\"error\""), "{streamed}");
        let growth = daemon.memory("VmHWM").saturating_sub(before);
        assert!(growth < MAX_GROWTH, "{} MiB more at the peak after {kind}", growth >> 20);
    }
    let kept = daemon.memory("VmRSS").saturating_sub(before);
    assert!(kept < MAX_KEPT, "{} MiB are kept", kept >> 20);
}

/// Makes a folder with a model that can be opened and never read: a pipe without a writer.
fn endless_model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new("mkfifo").arg(folder.path().join("model.gguf")).status().unwrap();
    assert!(made.success());
    folder
}

#[tokio::test]
async fn while_a_model_loads_health_is_told_and_sigterm_ends_it() {
    let (folder, port) = (endless_model(), free_port());
    let mut daemon = Daemon::spawn(serve(port).arg("--model").arg(folder.path()), port);
    while daemon.status("/health/live").await != Some(200) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for path in ["/health", "/health/ready", "/v1/models"] {
        let answer = reqwest::get(format!("{}{path}", daemon.url)).await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers().contains_key("retry-after")), (503, true));
        assert_eq!(answer.json::<Value>().await.unwrap()["error"]["code"], "loading");
    }
    daemon.signal("-HUP");
    assert_eq!(daemon.status("/health/live").await, Some(200), "a hangup ends nothing");
    daemon.terminate();
    assert_eq!(daemon.exit(Duration::from_secs(20)).await.code(), Some(0), "{}", daemon.log());
}

#[tokio::test]
async fn a_model_that_fails_to_load_ends_the_daemon_with_one_line() {
    let (folder, port) = (endless_model(), free_port());
    let mut daemon = Daemon::spawn(serve(port).arg("--model").arg(folder.path()), port);
    while daemon.status("/health/live").await != Some(200) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The daemon may close the pipe before it has read all.
    drop(fs::write(folder.path().join("model.gguf"), "no model"));
    assert_eq!(daemon.exit(Duration::from_secs(20)).await.code(), Some(1), "{}", daemon.log());
    check_one_error(&daemon.log(), "model.gguf");
}

/// Checks that `log` ends with its one error line, which contains `about`.
#[track_caller]
fn check_one_error(log: &str, about: &str) {
    let errors: Vec<_> = log.lines().filter(|line| line.starts_with("error: ")).collect();
    let [error] = errors.as_slice() else { panic!("one line starts with `error: `:\n{log}") };
    assert!(error.contains(about), "`{error}` does not say {about:?}");
    assert_eq!(log.lines().last(), Some(*error), "nothing comes after it:\n{log}");
    assert!(!log.contains("panicked"), "{log}");
}

/// Returns a file of keys for these tenants; the key of tenant `x` is `key-of-x`, in the environment as `KEY_x`.
fn key_file(tenants: &[&str]) -> String {
    tenants.iter().map(|tenant| format!("[[key]]\ntenant = \"{tenant}\"\nenv = \"KEY_{tenant}\"\n")).collect()
}

async fn status_with_key(daemon: &Daemon, tenant: &str) -> u16 {
    let request = reqwest::Client::new().get(format!("{}/v1/models", daemon.url)).bearer_auth(format!("key-of-{tenant}"));
    request.send().await.expect("the daemon answers").status().as_u16()
}

/// Waits until tenants `a` and `b` get these statuses.
async fn wait_for_statuses(daemon: &Daemon, expected: (u16, u16)) {
    for _ in 0..1000 {
        if (status_with_key(daemon, "a").await, status_with_key(daemon, "b").await) == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never {expected:?}:\n{}", daemon.log());
}

#[tokio::test]
async fn a_hangup_has_keys_read_again_and_broken_ones_change_nothing() {
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    let file = folder.path().join("keys.toml");
    fs::write(&file, key_file(&["a"])).unwrap();
    pull_default_model();
    let mut command = serve(port);
    command.arg("--api-keys").arg(&file).envs([("KEY_a", "key-of-a"), ("KEY_b", "key-of-b")]);
    let mut daemon = Daemon::spawn(&mut command, port);
    daemon.wait_until_ready().await;
    wait_for_statuses(&daemon, (200, 401)).await;
    for (keys, expected) in [(key_file(&["a", "b"]), (200, 200)), (key_file(&["b"]), (401, 200))] {
        fs::write(&file, keys).unwrap();
        daemon.signal("-HUP");
        wait_for_statuses(&daemon, expected).await;
    }
    for broken in ["[[key]]\ntenant = 1", "", "[[key]]\ntenant = \"a\"\nenv = \"NOT_SET\""] {
        fs::write(&file, broken).unwrap();
        let num_told = daemon.log().matches("keys were not read again").count();
        daemon.signal("-HUP");
        while daemon.log().matches("keys were not read again").count() == num_told {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!((status_with_key(&daemon, "a").await, status_with_key(&daemon, "b").await), (401, 200));
    }
}

#[test]
fn too_few_open_files_are_told_in_one_line() {
    pull_default_model();
    for limit in ["8", "16", "100"] {
        let limited = format!("ulimit -n {limit} && exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &limited]).arg(kvshare()).args(["serve", "--port", &free_port().to_string()]);
        let ended = output(&mut command);
        let log = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(1), "{log}");
        check_one_error(&log, "open");
    }
}

/// Flags that take a number, a size or a time.
const NUMERIC: [&str; 27] = [
    "--port",
    "--max-queue",
    "--max-connections",
    "--max-connections-per-peer",
    "--body-limit",
    "--header-read-timeout",
    "--body-read-timeout",
    "--max-n",
    "--max-responses",
    "--response-memory",
    "--keep-alive",
    "--shutdown-timeout",
    "--threads",
    "--kv-cache-memory",
    "--host-kv-memory",
    "--host-kv-bandwidth",
    "--gpu-memory-utilization",
    "--max-num-batched-tokens",
    "--max-num-seqs",
    "--max-model-len",
    "--max-overtake",
    "--max-deviation",
    "--min-span",
    "--min-saved",
    "--max-donors",
    "--donor-ttl",
    "--verify-share",
];

/// Values at the ends of their valid ranges, and beyond.
const EXTREMES: [&str; 14] = [
    "0",
    "1",
    "65535",
    "100000",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "-1",
    "1e308",
    "NaN",
    "inf",
    "18446744073709551615ms",
];

/// Checks that a start ends successfully, or with one error line.
#[track_caller]
fn check_ends_well(what: &str, code: Option<i32>, log: &str) {
    assert!(!log.contains("panicked") && !log.contains("overflow"), "{what}: {log}");
    match code {
        Some(0) => {}
        Some(1) => check_one_error(log, ""),
        // The parser refuses the command line, with more lines.
        Some(2) => assert!(log.starts_with("error: "), "{what}: {log}"),
        code => panic!("{what} ended with {code:?}: {log}"),
    }
}

#[test]
fn no_numeric_setting_panics_in_check_config() {
    for flag in NUMERIC {
        for value in EXTREMES {
            let ended = output(Command::new(kvshare()).arg("check-config").arg(format!("{flag}={value}")));
            check_ends_well(&format!("{flag}={value}"), ended.status.code(), &String::from_utf8_lossy(&ended.stderr));
        }
    }
}

#[tokio::test]
async fn no_numeric_setting_that_is_accepted_panics_at_start() {
    let model = pull_default_model();
    for flag in NUMERIC {
        let mut accepted = None;
        for value in EXTREMES {
            let setting = format!("{flag}={value}");
            if output(Command::new(kvshare()).arg("check-config").arg(&setting)).status.success() {
                accepted = Some(setting);
            }
        }
        // The last accepted value is the largest.
        let Some(setting) = accepted else { continue };
        let port = free_port();
        let mut command = Command::new(kvshare());
        // Variables, because a flag overrides them.
        let base = [
            ("KVSHARE_PORT", port.to_string()),
            ("KVSHARE_KV_CACHE_MEMORY", "64MiB".to_owned()),
            ("KVSHARE_THREADS", "1".to_owned()),
        ];
        command.arg("serve").envs(base).arg("--model").arg(model);
        let mut daemon = Daemon::spawn(command.arg(&setting), port);
        let mut num_looks = 0;
        while daemon.has_ended().is_none() && !(daemon.log().contains("serving ") && num_looks > 5) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            num_looks += 1;
        }
        if daemon.has_ended().is_none() {
            daemon.terminate();
        }
        let code = daemon.exit(Duration::from_secs(60)).await.code();
        check_ends_well(&setting, code, &daemon.log());
    }
}

#[test]
fn a_taken_port_is_told_before_anything_is_loaded() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (port, folder) = (taken.local_addr().unwrap().port(), endless_model());
    let ended = output(serve(port).arg("--model").arg(folder.path()));
    check_one_error(&String::from_utf8_lossy(&ended.stderr), &port.to_string());
}

#[cfg(target_os = "linux")]
#[test]
fn what_cannot_be_said_is_no_panic() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let ended = Command::new(kvshare()).args(["serve", "--model", "/nowhere.gguf"]).stderr(full).status().unwrap();
    assert_eq!(ended.code(), Some(1));
}
