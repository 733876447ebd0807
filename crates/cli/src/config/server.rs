//! Address of the daemon, and its limits and timeouts.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use server::WebAccess;

use super::flag::set;
use super::{ByteSize, Millis};

/// Maximum requests that wait, and connections: more files cannot be open on any system.
const MAX_COUNT: usize = 1 << 20;
/// Largest body limit that can be set: a body is held in memory.
const MAX_BODY_LIMIT: ByteSize = ByteSize::gib(1);

/// `[server]` of the configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ServerConfig {
    /// Address or name to listen on.
    pub(crate) host: String,
    /// Port to listen on; 0 takes a free one.
    pub(crate) port: u16,
    /// Requests that may wait; one more is answered 429, unless its tenant has less than its equal part of them waiting.
    pub(crate) max_queue: usize,
    /// Time after which a request that has not begun is answered 503; 0 waits for ever.
    pub(crate) queue_timeout: Millis,
    /// Connections open at once; one more closes the one that has waited longest for its client.
    pub(crate) max_connections: usize,
    /// Connections open at once from one address.
    pub(crate) max_connections_per_peer: usize,
    /// Largest request body; a larger one is answered 413.
    pub(crate) body_limit: ByteSize,
    /// Time for a client to send its request's head; also the longest a connection may idle.
    pub(crate) header_read_timeout: Millis,
    /// Time for a client to send its request's body.
    pub(crate) body_read_timeout: Millis,
    /// Maximum answers to one request (`n`).
    pub(crate) max_n: u32,
    /// Responses of `/v1/responses` stored at once; 0 stores none.
    pub(crate) max_responses: usize,
    /// Memory of all stored responses.
    pub(crate) response_memory: ByteSize,
    /// Interval of comments on a silent event stream, so that proxies keep it open.
    pub(crate) keep_alive: Millis,
    /// Time for running requests to finish after SIGTERM.
    pub(crate) shutdown_timeout: Millis,
    /// Web pages, by origin, that a daemon without keys answers besides those of this machine; browsers let them read the answers.
    pub(crate) allowed_origins: Vec<String>,
    /// Host names that a daemon without keys answers to besides those of this machine.
    pub(crate) allowed_hosts: Vec<String>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8000,
            max_queue: 256,
            queue_timeout: Millis::seconds(0),
            max_connections: 4096,
            max_connections_per_peer: 2048,
            body_limit: ByteSize::mib(2),
            header_read_timeout: Millis::seconds(30),
            body_read_timeout: Millis::seconds(30),
            max_n: 8,
            max_responses: 1024,
            response_memory: ByteSize::mib(64),
            keep_alive: Millis::seconds(10),
            shutdown_timeout: Millis::seconds(30),
            allowed_origins: Vec::new(),
            allowed_hosts: Vec::new(),
        }
    }
}

impl ServerConfig {
    /// Returns the longest time a request may wait to begin, if there is a bound.
    pub(crate) fn queue_timeout(&self) -> Option<Duration> {
        Some(self.queue_timeout.get()).filter(|timeout| !timeout.is_zero())
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.host.is_empty() {
            problems.push("server.host is empty".to_owned());
        }
        let counts = [
            ("max_queue", self.max_queue),
            ("max_connections", self.max_connections),
            ("max_connections_per_peer", self.max_connections_per_peer),
            ("max_responses", self.max_responses),
        ];
        for (key, count) in counts.iter().filter(|(_, count)| *count > MAX_COUNT) {
            problems.push(format!("server.{key} {count} is above {MAX_COUNT}"));
        }
        if self.max_queue == 0 {
            problems.push("server.max_queue is 0, so every request would be refused".to_owned());
        }
        if self.max_connections == 0 {
            problems.push("server.max_connections is 0, so nobody could connect".to_owned());
        }
        if self.max_connections_per_peer == 0 {
            problems.push("server.max_connections_per_peer is 0, so nobody could connect".to_owned());
        }
        if self.body_limit > MAX_BODY_LIMIT {
            problems.push(format!("server.body_limit {} is above {MAX_BODY_LIMIT}", self.body_limit));
        }
        if self.body_limit < ByteSize(1024) {
            problems.push(format!("server.body_limit {} is below 1KiB, so hardly a request would fit", self.body_limit));
        }
        if self.max_n == 0 {
            problems.push("server.max_n is 0, so no request could be answered".to_owned());
        }
        if let Some(entry) = self.web().meaningless_entry() {
            problems.push(format!(
                "`{entry}` in server.allowed_origins or server.allowed_hosts matches nothing: an origin is `https://ui.example`, a host `ui.example`"
            ));
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

    /// Returns the pages and names that may reach a daemon on a loopback address.
    pub(crate) fn web(&self) -> WebAccess {
        WebAccess { origins: self.allowed_origins.clone(), hosts: self.allowed_hosts.clone(), ..WebAccess::default() }
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
    /// Time a request may wait to be begun before it is answered 503; 0s: for ever [default: 0s]
    #[arg(long, env = "KVSHARE_QUEUE_TIMEOUT", value_name = "TIME")]
    queue_timeout: Option<Millis>,
    /// Connections open at once [default: 4096]
    #[arg(long, env = "KVSHARE_MAX_CONNECTIONS", value_name = "N")]
    max_connections: Option<usize>,
    /// Connections open at once from one address [default: 2048]
    #[arg(long, env = "KVSHARE_MAX_CONNECTIONS_PER_PEER", value_name = "N")]
    max_connections_per_peer: Option<usize>,
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
    /// Responses of /v1/responses stored at once; 0 stores none [default: 1024]
    #[arg(long, env = "KVSHARE_MAX_RESPONSES", value_name = "N")]
    max_responses: Option<usize>,
    /// Memory of all stored responses [default: 64MiB]
    #[arg(long, env = "KVSHARE_RESPONSE_MEMORY", value_name = "SIZE")]
    response_memory: Option<ByteSize>,
    /// Time between comments on a silent event stream [default: 10s]
    #[arg(long, env = "KVSHARE_KEEP_ALIVE", value_name = "TIME")]
    keep_alive: Option<Millis>,
    /// Time running requests have to finish after SIGTERM [default: 30s]
    #[arg(long, env = "KVSHARE_SHUTDOWN_TIMEOUT", value_name = "TIME")]
    shutdown_timeout: Option<Millis>,
    /// Origins of web pages that may use the daemon besides local ones, with commas between them; `*` allows all [default: none]
    #[arg(long, env = "KVSHARE_ALLOWED_ORIGINS", value_name = "ORIGINS", value_delimiter = ',')]
    allowed_origins: Option<Vec<String>>,
    /// Host names that a daemon without keys answers to besides local ones, with commas between them; `*` allows all [default: none]
    #[arg(long, env = "KVSHARE_ALLOWED_HOSTS", value_name = "NAMES", value_delimiter = ',')]
    allowed_hosts: Option<Vec<String>>,
}

impl ServerArgs {
    pub(super) fn apply(self, config: &mut ServerConfig) {
        set(&mut config.host, self.host);
        set(&mut config.port, self.port);
        set(&mut config.max_queue, self.max_queue);
        set(&mut config.queue_timeout, self.queue_timeout);
        set(&mut config.max_connections, self.max_connections);
        set(&mut config.max_connections_per_peer, self.max_connections_per_peer);
        set(&mut config.body_limit, self.body_limit);
        set(&mut config.header_read_timeout, self.header_read_timeout);
        set(&mut config.body_read_timeout, self.body_read_timeout);
        set(&mut config.max_n, self.max_n);
        set(&mut config.max_responses, self.max_responses);
        set(&mut config.response_memory, self.response_memory);
        set(&mut config.keep_alive, self.keep_alive);
        set(&mut config.shutdown_timeout, self.shutdown_timeout);
        set(&mut config.allowed_origins, self.allowed_origins);
        set(&mut config.allowed_hosts, self.allowed_hosts);
    }
}
