//! Where the daemon listens, and what it refuses.

use serde::{Deserialize, Serialize};

use super::{ByteSize, Millis, set};

/// `[server]` of the configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ServerConfig {
    /// Address or name to listen on.
    pub(crate) host: String,
    /// Port to listen on; 0 takes a free one.
    pub(crate) port: u16,
    /// Requests that may wait; one more is answered 429.
    pub(crate) max_queue: usize,
    /// Connections open at once.
    pub(crate) max_connections: usize,
    /// Largest request body; a larger one is answered 413.
    pub(crate) body_limit: ByteSize,
    /// A client must have sent its request's head within this; also the longest a connection may idle.
    pub(crate) header_read_timeout: Millis,
    /// A client must have sent its request's body within this.
    pub(crate) body_read_timeout: Millis,
    /// Answers one request may ask for (`n`).
    pub(crate) max_n: u32,
    /// A silent event stream gets a comment this often, so that proxies keep it open.
    pub(crate) keep_alive: Millis,
    /// Running requests may finish within this after SIGTERM.
    pub(crate) shutdown_timeout: Millis,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8000,
            max_queue: 256,
            max_connections: 4096,
            body_limit: ByteSize::mib(2),
            header_read_timeout: Millis::seconds(30),
            body_read_timeout: Millis::seconds(30),
            max_n: 8,
            keep_alive: Millis::seconds(10),
            shutdown_timeout: Millis::seconds(30),
        }
    }
}

impl ServerConfig {
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.host.is_empty() {
            problems.push("server.host is empty".to_owned());
        }
        if self.max_queue == 0 {
            problems.push("server.max_queue is 0, so every request would be refused".to_owned());
        }
        if self.max_connections == 0 {
            problems.push("server.max_connections is 0, so nobody could connect".to_owned());
        }
        if self.body_limit < ByteSize(1024) {
            problems.push(format!("server.body_limit {} is below 1KiB, so hardly a request would fit", self.body_limit));
        }
        if self.max_n == 0 {
            problems.push("server.max_n is 0, so no request could be answered".to_owned());
        }
        let timeouts = [
            ("header_read_timeout", self.header_read_timeout),
            ("body_read_timeout", self.body_read_timeout),
            ("keep_alive", self.keep_alive),
        ];
        for (key, _) in timeouts.iter().filter(|(_, time)| time.0 == 0) {
            problems.push(format!("server.{key} is 0, but must be some time"));
        }
        problems
    }
}

/// Flags of `[server]`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct ServerArgs {
    /// Address or name to listen on [default: 127.0.0.1]
    #[arg(long, env = "KVSHARE_HOST")]
    host: Option<String>,
    /// Port to listen on; 0 takes a free one [default: 8000]
    #[arg(long, short, env = "KVSHARE_PORT")]
    port: Option<u16>,
    /// Requests that may wait before one is answered 429 [default: 256]
    #[arg(long, env = "KVSHARE_MAX_QUEUE", value_name = "N")]
    max_queue: Option<usize>,
    /// Connections open at once [default: 4096]
    #[arg(long, env = "KVSHARE_MAX_CONNECTIONS", value_name = "N")]
    max_connections: Option<usize>,
    /// Largest request body [default: 2MiB]
    #[arg(long, env = "KVSHARE_BODY_LIMIT", value_name = "SIZE")]
    body_limit: Option<ByteSize>,
    /// Time a client has to send its request's head [default: 30s]
    #[arg(long, env = "KVSHARE_HEADER_READ_TIMEOUT", value_name = "TIME")]
    header_read_timeout: Option<Millis>,
    /// Time a client has to send its request's body [default: 30s]
    #[arg(long, env = "KVSHARE_BODY_READ_TIMEOUT", value_name = "TIME")]
    body_read_timeout: Option<Millis>,
    /// Answers one request may ask for [default: 8]
    #[arg(long, env = "KVSHARE_MAX_N", value_name = "N")]
    max_n: Option<u32>,
    /// Time between comments on a silent event stream [default: 10s]
    #[arg(long, env = "KVSHARE_KEEP_ALIVE", value_name = "TIME")]
    keep_alive: Option<Millis>,
    /// Time running requests have to finish after SIGTERM [default: 30s]
    #[arg(long, env = "KVSHARE_SHUTDOWN_TIMEOUT", value_name = "TIME")]
    shutdown_timeout: Option<Millis>,
}

impl ServerArgs {
    pub(super) fn apply(self, config: &mut ServerConfig) {
        set(&mut config.host, self.host);
        set(&mut config.port, self.port);
        set(&mut config.max_queue, self.max_queue);
        set(&mut config.max_connections, self.max_connections);
        set(&mut config.body_limit, self.body_limit);
        set(&mut config.header_read_timeout, self.header_read_timeout);
        set(&mut config.body_read_timeout, self.body_read_timeout);
        set(&mut config.max_n, self.max_n);
        set(&mut config.keep_alive, self.keep_alive);
        set(&mut config.shutdown_timeout, self.shutdown_timeout);
    }
}
