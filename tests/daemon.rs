//! Separate daemon for a test: started on a free loopback port, ended when dropped.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::places::{kvshare, scratch};

/// Name of the default model.
pub(crate) const MODEL: &str = "smollm2-135m-instruct";

/// Timeout of waits. Unoptimised tests on a busy machine are slow; no successful wait takes this long.
const PATIENCE: Duration = Duration::from_secs(180);

/// Running `kvshare serve`.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
    /// URL of the daemon without a path: `http://127.0.0.1:PORT`.
    pub(crate) url: String,
}

impl Daemon {
    /// Serves the default model with `args` and waits until it is ready.
    pub(crate) async fn start(args: &[&str]) -> Self {
        pull_default_model();
        let port = free_port();
        let mut daemon = Self::spawn(serve(port).args(args), port);
        daemon.wait_until_ready().await;
        daemon
    }

    /// Starts `command`, which will listen on `port`, and does not wait for it.
    pub(crate) fn spawn(command: &mut Command, port: u16) -> Self {
        let log = scratch().join(format!("daemon-{port}.log"));
        let stderr = fs::File::create(&log).expect("the target folder can be written");
        let child = command.stdout(Stdio::null()).stderr(stderr).spawn().expect("kvshare starts");
        Self { child, log, url: format!("http://127.0.0.1:{port}") }
    }

    pub(crate) async fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.status("/health/ready").await != Some(200) {
            if let Some(status) = self.child.try_wait().expect("the child is ours") {
                panic!("kvshare serve ended with {status}:\n{}", self.log());
            }
            assert!(Instant::now() < deadline, "kvshare serve is not ready:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Returns its log so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Returns the status of `GET path`; `None` if the port does not answer.
    pub(crate) async fn status(&self, path: &str) -> Option<u16> {
        reqwest::get(format!("{}{path}", self.url)).await.ok().map(|answer| answer.status().as_u16())
    }

    /// Returns the body of `GET path`.
    pub(crate) async fn get(&self, path: &str) -> String {
        reqwest::get(format!("{}{path}", self.url)).await.unwrap().text().await.unwrap()
    }

    /// Sends `POST path`; returns the answer with its body not yet read.
    pub(crate) async fn send(&self, path: &str, body: &Value) -> reqwest::Response {
        reqwest::Client::new().post(format!("{}{path}", self.url)).json(body).send().await.expect("the daemon answers")
    }

    /// Sends `POST path`; returns status and body.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let answer = self.send(path, body).await;
        (answer.status().as_u16(), answer.json().await.expect("every answer is JSON"))
    }

    /// Sends `POST /v1/chat/completions`, which must succeed.
    pub(crate) async fn chat(&self, body: &Value) -> Value {
        let (status, answer) = self.post("/v1/chat/completions", body).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// Returns the sum of a metric over its labels; zero if it is absent.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await;
        let values = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Requests its end, as an operator's `kill` does.
    pub(crate) fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status().expect("kill is there");
        assert!(status.success(), "the daemon has already ended:\n{}", self.log());
    }

    /// Returns one of its memory figures in bytes, as `/proc` names it.
    pub(crate) fn memory(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the daemon runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a figure of every process");
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().expect("a number of KiB") << 10
    }

    /// Returns its exit status, if it has ended.
    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the child is ours")
    }

    /// Waits for its end, at most `limit`.
    pub(crate) async fn exit(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("the child is ours") {
                return status;
            }
            assert!(Instant::now() < deadline, "still running after {limit:?}:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails only if it has ended, which some tests expect.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns `kvshare serve` on `port`, small enough that several fit on one machine.
pub(crate) fn serve(port: u16) -> Command {
    let mut command = Command::new(kvshare());
    command.args(["serve", "--host", "127.0.0.1", "--port", &port.to_string()]);
    command.args(["--kv-cache-memory", "256MiB", "--threads", "2"]);
    command
}

/// Runs `command` to its end, which must come soon.
pub(crate) fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("kvshare starts")
}

/// Returns a port that is free now.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// Returns the default model's file, fetched if it is missing.
pub(crate) fn pull_default_model() -> &'static Path {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| pull(MODEL))
}

/// Returns the file of a model of the catalogue, fetched if it is missing.
pub(crate) fn pull(model: &str) -> PathBuf {
    let output = output(Command::new(kvshare()).args(["pull", model]));
    assert!(output.status.success(), "kvshare pull {model}: {}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8(output.stdout).expect("a path in UTF-8");
    let file = PathBuf::from(stdout.lines().last().expect("kvshare pull prints where the model is"));
    assert!(file.is_file(), "kvshare pull printed {}", file.display());
    file
}
