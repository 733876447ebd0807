//! The accept loop, and the way from the first signal to the end.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, info, warn};

use crate::routes::router;
use crate::state::AppState;

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every request was answered.
    Drained,
    /// The time to drain ran out: what still ran was cut with an error.
    Cut,
    /// A second signal came: connections were dropped as they were.
    Forced,
}

/// Time between foldings of metric samples into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);
/// Time that answers which are complete, or cut, have to reach their readers.
const FLUSH: Duration = Duration::from_secs(2);
/// Pause after a failure to accept, such as having no file descriptor left, which only time can cure.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Answers requests on `listener` until signals say otherwise.
///
/// At the first item of `signals` the server is not ready any more and refuses new requests, but finishes those it has for as
/// long as its configuration says; at the second one it returns at once.
pub async fn serve(listener: TcpListener, app: Arc<AppState>, signals: impl Stream<Item = ()>) -> Ended {
    // After its end a stream of signals is silent, not ready.
    let mut signals = pin!(signals.chain(stream::pending()));
    let mut connections = Connections::new(Arc::clone(&app));
    tokio::select! {
        biased;
        _ = signals.next() => {}
        never = connections.accept_all(&listener) => match never {},
    }
    info!(num_in_flight = app.engine.num_in_flight(), "draining");
    app.engine.begin_drain();
    // Health checks and refusals are answered meanwhile.
    let ended = tokio::select! {
        biased;
        _ = signals.next() => return force(&app).await,
        never = connections.accept_all(&listener) => match never {},
        result = timeout(app.config.shutdown_timeout, app.engine.wait_idle()) => match result {
            Ok(()) => Ended::Drained,
            Err(_) => Ended::Cut,
        },
    };
    drop(listener);
    app.engine.stop().await;
    tokio::select! {
        biased;
        _ = signals.next() => return force(&app).await,
        () = connections.close() => {}
    }
    info!(?ended, "stopped");
    ended
}

async fn force(app: &AppState) -> Ended {
    warn!(num_in_flight = app.engine.num_in_flight(), "second signal, ending at once");
    app.engine.stop().await;
    Ended::Forced
}

/// SIGTERM and SIGINT, as items.
///
/// # Errors
/// When the operating system refuses a handler.
#[cfg(unix)]
pub fn termination_signals() -> io::Result<impl Stream<Item = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(stream::poll_fn(move |cx| match terminate.poll_recv(cx) {
        std::task::Poll::Pending => interrupt.poll_recv(cx),
        ready => ready,
    }))
}

/// Open connections, at most as many as configured. Dropping it closes them.
struct Connections {
    app: Arc<AppState>,
    service: TowerToHyperService<axum::Router>,
    http: http1::Builder,
    permits: Arc<Semaphore>,
    graceful: GracefulShutdown,
    tasks: JoinSet<()>,
}

/// What never happens: accepting does not end by itself.
enum Never {}

impl Connections {
    fn new(app: Arc<AppState>) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(app.config.header_read_timeout)
            .max_headers(app.config.max_headers)
            .max_buf_size(app.config.max_header_bytes);
        Self {
            service: TowerToHyperService::new(router(Arc::clone(&app))),
            http,
            permits: Arc::new(Semaphore::new(app.config.max_connections)),
            graceful: GracefulShutdown::new(),
            tasks: JoinSet::new(),
            app,
        }
    }

    async fn accept_all(&mut self, listener: &TcpListener) -> Never {
        let mut upkeep = interval(UPKEEP);
        upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                connection = accept(listener, Arc::clone(&self.permits)) => self.spawn(connection),
                // Finished tasks are forgotten one by one.
                Some(_) = self.tasks.join_next() => {}
                _ = upkeep.tick() => self.app.metrics.run_upkeep(),
            }
        }
    }

    fn spawn(&mut self, (socket, permit): (TcpStream, OwnedSemaphorePermit)) {
        // Tokens are small and must not wait for one another.
        if let Err(error) = socket.set_nodelay(true) {
            debug!(%error, "setting TCP_NODELAY");
        }
        let connection = self.graceful.watch(self.http.serve_connection(TokioIo::new(socket), self.service.clone()));
        self.tasks.spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "connection closed");
            }
            drop(permit);
        });
    }

    /// Lets every connection finish its current answer, for a while.
    async fn close(self) {
        if timeout(FLUSH, self.graceful.shutdown()).await.is_err() {
            warn!("closing connections whose readers do not read");
        }
    }
}

/// Waits for room, then for a connection.
async fn accept(listener: &TcpListener, permits: Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    let permit = permits.acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((socket, _)) => return (socket, permit),
            Err(error) => {
                warn!(%error, "accepting a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
