//! Tests over a real port: signals, limits of connections, clients that disconnect.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::{AppState, Ended, ServerConfig, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::world::{COMPLETIONS, Options, World, completion};

/// A server on a port, with control of its signals.
struct Daemon {
    world: World,
    address: SocketAddr,
    signals: mpsc::Sender<()>,
    ended: JoinHandle<Ended>,
}

impl Daemon {
    async fn start(server: ServerConfig) -> Self {
        let world = World::with(Options { server: server.clone(), ..Options::default() });
        world.control.slow_down(Duration::from_millis(2));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (signals, mut receiver) = mpsc::channel(2);
        let received = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        let (app, config) = (world.app.clone(), server);
        let ended = tokio::spawn(async move {
            let loaded = std::future::ready(Ok::<_, Infallible>(app));
            serve(listener, &config, loaded, || (), received).await.unwrap()
        });
        Self { world, address, signals, ended }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends a request on a connection of its own.
    async fn send(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut socket = self.connect().await;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n"
        );
        socket.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        socket
    }

    async fn generate(&self, max_tokens: u32, stream: bool) -> TcpStream {
        let request: Value = completion("x", json!({"stream": stream, "max_tokens": max_tokens}));
        self.send("POST", COMPLETIONS, &request.to_string()).await
    }

    async fn status_of(&self, path: &str) -> String {
        let answer = read_all(self.send("GET", path, "").await).await;
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    }

    async fn wait_until_running(&self) {
        self.world.wait_for("running", |stats| stats.num_running == 1).await;
    }

    async fn signal(&self) {
        self.signals.send(()).await.unwrap();
    }

    async fn ended(self) -> Ended {
        timeout(Duration::from_secs(30), self.ended).await.expect("serving ends").unwrap()
    }
}

async fn read_all(mut socket: TcpStream) -> String {
    let mut bytes = vec![];
    timeout(Duration::from_secs(30), socket.read_to_end(&mut bytes)).await.expect("the connection is closed").unwrap();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn an_answer_is_streamed_over_a_port() {
    let daemon = Daemon::start(ServerConfig::default()).await;
    let answer = read_all(daemon.generate(3, true).await).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("data: [DONE]"), "{answer}");
}

#[tokio::test]
async fn a_signal_lets_running_requests_finish() {
    let daemon = Daemon::start(ServerConfig::default()).await;
    // Long enough for the following steps, on a busy machine too.
    daemon.world.control.slow_down(Duration::from_millis(10));
    let running = daemon.generate(200, true).await;
    daemon.wait_until_running().await;
    daemon.signal().await;
    while daemon.world.engine.phase() == server::Phase::Running {
        tokio::task::yield_now().await;
    }
    assert_eq!(daemon.status_of("/health/ready").await, "503");
    assert_eq!(daemon.status_of("/health/live").await, "200");
    assert!(read_all(daemon.generate(1, false).await).await.starts_with("HTTP/1.1 503"));
    assert!(read_all(running).await.contains("data: [DONE]"));
    assert_eq!(daemon.ended().await, Ended::Drained);
}

#[tokio::test]
async fn what_does_not_finish_in_time_is_cut_with_an_error() {
    let daemon = Daemon::start(ServerConfig { shutdown_timeout: Duration::from_millis(50), ..ServerConfig::default() }).await;
    let (streamed, whole) = (daemon.generate(999, true).await, daemon.generate(999, false).await);
    daemon.world.wait_for("running", |stats| stats.num_running == 2).await;
    daemon.signal().await;
    let text = read_all(streamed).await;
    assert!(text.contains("\"code\":\"shutting_down\"") && !text.contains("[DONE]"), "{text}");
    assert!(read_all(whole).await.starts_with("HTTP/1.1 503"));
    assert_eq!(daemon.ended().await, Ended::Cut);
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let daemon = Daemon::start(ServerConfig::default()).await;
    daemon.world.control.slow_down(Duration::from_millis(20));
    let running = daemon.generate(999, true).await;
    daemon.wait_until_running().await;
    let since = Instant::now();
    daemon.signal().await;
    daemon.signal().await;
    let text = read_all(running).await;
    assert!(text.contains("\"code\":\"shutting_down\"") && !text.contains("[DONE]"), "{text}");
    assert_eq!(daemon.ended().await, Ended::Forced);
    assert!(since.elapsed() < Duration::from_secs(10), "twice that is what the request needs");
}

#[tokio::test]
async fn an_idle_server_ends_at_the_first_signal() {
    let daemon = Daemon::start(ServerConfig::default()).await;
    let _idle = daemon.connect().await;
    daemon.signal().await;
    assert_eq!(daemon.ended().await, Ended::Drained);
}

#[tokio::test]
async fn a_client_that_hangs_up_frees_its_blocks() {
    let daemon = Daemon::start(ServerConfig::default()).await;
    for stream in [true, false] {
        let socket = daemon.generate(999, stream).await;
        daemon.wait_until_running().await;
        drop(socket);
        daemon.world.wait_until_free().await;
    }
}

#[tokio::test]
async fn a_client_that_sends_its_headers_slowly_is_hung_up_on() {
    let daemon = Daemon::start(ServerConfig { header_read_timeout: Duration::from_millis(100), ..ServerConfig::default() }).await;
    let mut slow = daemon.connect().await;
    slow.write_all(b"GET /health HTTP/1.1\r\nhost:").await.unwrap();
    let silent = daemon.connect().await;
    assert!(!read_all(slow).await.contains("200 OK"));
    assert_eq!(read_all(silent).await, "");
}

#[tokio::test]
async fn more_headers_than_allowed_are_refused() {
    let daemon = Daemon::start(ServerConfig::default()).await;
    let mut socket = daemon.connect().await;
    let headers = (0..100).map(|i| format!("h{i}: x\r\n")).collect::<String>();
    socket.write_all(format!("GET /health HTTP/1.1\r\n{headers}\r\n").as_bytes()).await.unwrap();
    assert!(read_all(socket).await.starts_with("HTTP/1.1 431"));
}

#[tokio::test]
async fn connections_that_wait_make_room_for_others() {
    let limits = ServerConfig { max_connections: 8, max_connections_per_peer: 8, ..ServerConfig::default() };
    let daemon = Daemon::start(limits).await;
    let running = daemon.generate(300, true).await;
    daemon.wait_until_running().await;
    let mut half_open = vec![];
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    for i in 0..64 {
        let mut socket = daemon.connect().await;
        let body = if i % 2 == 0 { "" } else { "content-length: 1000\r\n\r\n{" };
        socket.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        half_open.push(socket);
        if i % 8 == 0 {
            assert_eq!(daemon.status_of("/health").await, "200");
        }
    }
    assert!(read_all(daemon.generate(3, false).await).await.starts_with("HTTP/1.1 200"));
    assert!(read_all(running).await.contains("data: [DONE]"), "an answer that runs is not cut for others");
}

#[tokio::test]
async fn when_all_connections_are_busy_health_checks_are_answered_and_others_told_to_come_back() {
    for (max_connections, max_connections_per_peer, status) in [(2, 9, "HTTP/1.1 503"), (9, 2, "HTTP/1.1 429")] {
        let daemon = Daemon::start(ServerConfig { max_connections, max_connections_per_peer, ..ServerConfig::default() }).await;
        let running = [daemon.generate(900, true).await, daemon.generate(900, true).await];
        daemon.world.wait_for("running", |stats| stats.num_running == 2).await;
        for path in ["/health", "/health/live", "/health/ready"] {
            assert_eq!(daemon.status_of(path).await, "200");
        }
        let refused = read_all(daemon.send("GET", "/v1/models", "").await).await;
        assert!(refused.starts_with(status) && refused.contains("retry-after: 1"), "{refused}");
        assert_eq!(error_of(&refused)["code"], "too_many_connections");
        drop(running);
        daemon.world.wait_until_free().await;
        while daemon.status_of("/v1/models").await != "200" {
            tokio::task::yield_now().await;
        }
    }
}

/// Returns the error object of an answer.
fn error_of(answer: &str) -> Value {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {answer:?}"));
    assert!(head.to_lowercase().contains("content-type: application/json"), "{answer}");
    let error = serde_json::from_str::<Value>(body).unwrap_or_else(|error| panic!("{error}: {answer}"))["error"].clone();
    let keys: Vec<_> = error.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["message", "type", "param", "code"]);
    error
}

/// Sends `request` verbatim and nothing else.
async fn answer_to(daemon: &Daemon, request: &str) -> String {
    let mut socket = daemon.connect().await;
    socket.write_all(request.as_bytes()).await.unwrap();
    read_all(socket).await
}

#[tokio::test]
async fn what_the_parser_refuses_is_told_in_an_error_object() {
    let daemon = Daemon::start(ServerConfig::default()).await;
    let long = "x".repeat(70_000);
    let fields = (0..100).map(|i| format!("h{i}: x\r\n")).collect::<String>();
    let cases = [
        ("nonsense\r\n\r\n".to_owned(), 400),
        ("GET /health HTTP/9.9\r\n\r\n".to_owned(), 400),
        ("GET /hea lth HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("G\u{e9}T /health HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET /health HTTP/1.1\r\nbad header: x\r\n\r\n".to_owned(), 400),
        ("GET /health HTTP/1.1\r\nx: a\u{0}b\r\n\r\n".to_owned(), 400),
        ("GET /health HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET /health HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n".to_owned(), 400),
        ("POST /tokenize HTTP/1.1\r\ncontent-length: many\r\n\r\n".to_owned(), 400),
        ("POST /tokenize HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n".to_owned(), 400),
        (format!("GET /health HTTP/1.1\r\n{fields}\r\n"), 431),
        (format!("GET /health HTTP/1.1\r\nx: {long}\r\n\r\n"), 431),
    ];
    for (request, status) in cases {
        let answer = answer_to(&daemon, &request).await;
        let shown = &request[..request.len().min(60)];
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown:?}: {answer}");
        error_of(&answer);
    }
}

#[tokio::test]
async fn a_body_that_is_not_what_its_head_says_is_a_bad_request() {
    let daemon = Daemon::start(ServerConfig::default()).await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n";
    for chunks in ["nonsense\r\n", "5\r\n{}\r\n0\r\n\r\n", "fffffffffffffffff\r\n{}", "-1\r\n{}\r\n"] {
        let answer = answer_to(&daemon, &format!("{head}transfer-encoding: chunked\r\n\r\n{chunks}")).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{chunks:?}: {answer}");
        assert_eq!(error_of(&answer)["code"], "body_not_received");
    }
    let mut socket = daemon.connect().await;
    socket.write_all(format!("{head}content-length: 100\r\n\r\n{{").as_bytes()).await.unwrap();
    socket.shutdown().await.unwrap();
    let answer = read_all(socket).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn a_body_that_trickles_in_chunks_is_not_waited_for() {
    let daemon = Daemon::start(ServerConfig { body_read_timeout: Duration::from_millis(200), ..ServerConfig::default() }).await;
    let mut socket = daemon.connect().await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
                transfer-encoding: chunked\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    let mut num_chunks = 0;
    while timeout(Duration::from_millis(20), socket.read_exact(&mut answer)).await.is_err() {
        socket.write_all(b"1\r\n{\r\n").await.unwrap();
        num_chunks += 1;
        assert!(num_chunks < 1000, "the body is read for ever");
    }
    assert_eq!(&answer, b"HTTP/1.1 408");
}

#[tokio::test]
async fn while_the_model_loads_health_says_so_and_requests_are_told_to_come_back() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let ((loaded, loading), (opens, opened)) = (oneshot::channel(), oneshot::channel());
    let (signals, mut receiver) = mpsc::channel(2);
    let received = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    let ended = tokio::spawn(async move {
        let loaded = async { Ok::<_, Infallible>(loading.await.unwrap()) };
        serve(listener, &ServerConfig::default(), loaded, || opens.send(()).unwrap(), received).await.unwrap()
    });
    let daemon = Daemon { world, address, signals, ended };
    assert_eq!(daemon.status_of("/health/live").await, "200");
    let requests = [
        ("GET", "/health"),
        ("GET", "/health/ready"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("POST", COMPLETIONS),
        ("GET", "/x"),
    ];
    for (method, path) in requests {
        let answer = read_all(daemon.send(method, path, "").await).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 1"), "{answer}");
        assert_eq!(error_of(&answer)["code"], "loading");
    }
    let of_messages = read_all(daemon.send("POST", "/v1/messages", "").await).await;
    assert!(
        of_messages.contains("\"type\":\"overloaded_error\"") && of_messages.contains("\"request_id\":null"),
        "{of_messages}"
    );
    loaded.send(daemon.world.app.clone()).ok().unwrap();
    // What is told then holds for the very next request.
    opened.await.unwrap();
    assert_eq!(daemon.status_of("/health/ready").await, "200");
    assert!(read_all(daemon.generate(3, true).await).await.contains("[DONE]"));
    daemon.signal().await;
    assert_eq!(daemon.ended().await, Ended::Drained);
}

#[tokio::test]
async fn a_signal_or_a_failure_ends_the_loading() {
    let start = || async { TcpListener::bind("127.0.0.1:0").await.unwrap() };
    let never = std::future::pending::<Result<Arc<AppState>, &str>>();
    let signal = futures::stream::once(async {});
    assert_eq!(serve(start().await, &ServerConfig::default(), never, || (), signal).await, Ok(Ended::Drained));
    let failed = async { Err::<Arc<AppState>, _>("no such model") };
    assert_eq!(
        serve(start().await, &ServerConfig::default(), failed, || (), futures::stream::pending()).await,
        Err("no such model")
    );
}

#[tokio::test]
async fn a_step_that_lasts_holds_up_no_reader_when_a_drain_runs_out() {
    let daemon = Daemon::start(ServerConfig { shutdown_timeout: Duration::from_millis(20), ..ServerConfig::default() }).await;
    let (streamed, whole) = (daemon.generate(999, true).await, daemon.generate(999, false).await);
    daemon.world.wait_for("running", |stats| stats.num_running == 2).await;
    // Longer than the time for cut answers to reach their readers.
    daemon.world.control.slow_down(Duration::from_secs(4));
    let waiting = daemon.generate(3, true).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    daemon.signal().await;
    for streamed in [streamed, waiting] {
        let text = read_all(streamed).await;
        assert!(text.contains("\"code\":\"shutting_down\"") && !text.contains("[DONE]"), "{text}");
    }
    let whole = read_all(whole).await;
    assert!(whole.starts_with("HTTP/1.1 503") && error_of(&whole)["code"] == "shutting_down", "{whole}");
    assert_eq!(daemon.ended().await, Ended::Cut);
}
