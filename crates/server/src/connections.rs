//! Open connections: admission and serving.

mod accept_failures;
mod front;
mod replies;
mod slots;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use self::accept_failures::AcceptFailures;
use self::front::Front;
use self::replies::Replies;
pub(crate) use self::slots::Answering;
pub use self::slots::Overload;
use self::slots::{ConnectionLimits, ConnectionSlot, ConnectionSlots};
use crate::config::ServerConfig;
use crate::state::AppState;

/// Open connections. Dropping it closes them.
pub(crate) struct Connections {
    front: Front,
    http: http1::Builder,
    slots: Arc<ConnectionSlots>,
    graceful: GracefulShutdown,
    tasks: JoinSet<()>,
    accept_failures: AcceptFailures,
}

/// Type of a future that never ends: accepting does not end by itself.
pub(crate) enum Never {}

impl Connections {
    /// Creates an empty set. Until [`Self::open`], requests are answered that the model is loading.
    pub(crate) fn new(config: &ServerConfig) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(config.header_read_timeout)
            .max_headers(config.max_headers)
            .max_buf_size(config.max_header_bytes);
        let limits = ConnectionLimits { max_connections: config.max_connections, max_per_peer: config.max_connections_per_peer };
        Self {
            front: Front::default(),
            http,
            slots: ConnectionSlots::new(limits),
            graceful: GracefulShutdown::new(),
            tasks: JoinSet::new(),
            accept_failures: AcceptFailures::default(),
        }
    }

    /// Lets `app` answer requests from now on, including those on open connections.
    pub(crate) fn open(&self, app: &Arc<AppState>) {
        self.front.open(app);
    }

    pub(crate) async fn accept_all(&mut self, listener: &TcpListener) -> Never {
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((socket, address)) => self.accept(socket, address),
                    Err(error) => sleep(self.accept_failures.backoff_after(&error, &self.slots, Instant::now())).await,
                },
                // Removes finished tasks one by one.
                Some(_) = self.tasks.join_next() => {}
            }
        }
    }

    fn accept(&mut self, socket: TcpStream, address: SocketAddr) {
        self.accept_failures.reset();
        match self.slots.enter(address.ip()) {
            Some(slot) => self.spawn(socket, slot),
            None => debug!(%address, "no slot for a connection"),
        }
    }

    fn spawn(&mut self, socket: TcpStream, slot: ConnectionSlot) {
        // Tokens are small and must not wait for one another.
        if let Err(error) = socket.set_nodelay(true) {
            debug!(%error, "setting TCP_NODELAY");
        }
        let (front, overload, answering) = (self.front.clone(), slot.overload(), slot.answering());
        let service = service_fn(move |request| front.clone().answer(request, overload, answering.clone()));
        let connection = self.http.serve_connection(TokioIo::new(Replies::new(socket)), service);
        let connection = self.graceful.watch(connection);
        self.tasks.spawn(async move {
            tokio::select! {
                ended = connection => match ended {
                    Ok(()) => {}
                    Err(error) => debug!(%error, "connection closed"),
                },
                () = slot.closed() => debug!("connection closed for another one"),
            }
        });
    }

    /// Lets every connection finish its current answer, for at most `limit`.
    pub(crate) async fn close(self, limit: Duration) {
        if timeout(limit, self.graceful.shutdown()).await.is_err() {
            warn!("closing connections whose readers do not read");
        }
    }
}
