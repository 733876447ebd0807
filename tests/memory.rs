//! Memory of an idle daemon, and starts without enough memory.

use std::process::Command;

use crate::daemon::{Daemon, free_port, pull_default_model};
use crate::places::kvshare;

/// Checks that a pool takes memory only where it is written: an idle daemon with a large one is as small as with a small one.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_pool_that_nobody_wrote_takes_no_memory() {
    let idle = async |pool: &str| {
        let port = free_port();
        let mut command = Command::new(kvshare());
        command.args(["serve", "--port", &port.to_string(), "--threads", "2", "--kv-cache-memory", pool]);
        let mut daemon = Daemon::spawn(&mut command, port);
        daemon.wait_until_ready().await;
        daemon.memory("VmRSS")
    };
    pull_default_model();
    let small = idle("64MiB").await;
    // Layers of these sizes lie below the largest threshold at which an allocator maps pages.
    for pool in ["512MiB", "1GiB"] {
        let growth = idle(pool).await.saturating_sub(small);
        assert!(growth < 32 << 20, "{pool}: {} MiB more than with 64 MiB", growth >> 20);
    }
}

/// Checks gigabytes of random weights under a limit of 600 MB: one line, and no abort.
#[cfg(target_os = "linux")]
#[test]
fn a_model_that_memory_does_not_hold_is_one_error_line() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"architectures":["LlamaForCausalLM"],"hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,
        "num_attention_heads":32,"vocab_size":32000,"max_position_embeddings":4096,"rms_norm_eps":1e-5}"#;
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let start =
        "ulimit -v 600000 && exec \"$0\" serve --port 0 --threads 1 --kv-cache-memory 300MiB --load-format dummy --model \"$1\"";
    let output = Command::new("sh").args(["-c", start]).arg(kvshare()).arg(folder.path()).output().expect("sh is there");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(matches!(errors[..], [line] if line.contains("memory")), "{said}");
}
