//! Over a real port: signals, limits of connections, clients that hang up.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::{Ended, ServerConfig, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::world::{COMPLETIONS, Options, World, completion};

/// A server on a port, and the hand on its signals.
struct Daemon {
    world: World,
    address: SocketAddr,
    signals: mpsc::Sender<()>,
    ended: JoinHandle<Ended>,
}

impl Daemon {
    async fn start(server: ServerConfig) -> Self {
        let world = World::with(Options { server, ..Options::default() });
        world.control.slow_down(Duration::from_millis(2));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (signals, mut receiver) = mpsc::channel(2);
        let received = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        let ended = tokio::spawn(serve(listener, world.app.clone(), received));
        Self { world, address, signals, ended }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends a request on a connection of its own.
    async fn send(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut socket = self.connect().await;
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
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
    // Long enough for what follows, on a busy machine too.
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
    let _running = daemon.generate(999, true).await;
    daemon.wait_until_running().await;
    let since = Instant::now();
    daemon.signal().await;
    daemon.signal().await;
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
async fn connections_over_the_limit_wait() {
    let daemon = Daemon::start(ServerConfig { max_connections: 1, ..ServerConfig::default() }).await;
    let first = daemon.connect().await;
    // Only when the first one has been accepted is the limit reached.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut second = daemon.send("GET", "/version", "").await;
    let mut byte = [0];
    assert!(timeout(Duration::from_millis(100), second.read(&mut byte)).await.is_err());
    drop(first);
    assert!(read_all(second).await.contains("version"));
}
