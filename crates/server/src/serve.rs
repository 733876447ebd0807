//! Life cycle of the server: loading, serving, draining.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt};
use tokio::net::TcpListener;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::info;

use crate::config::ServerConfig;
use crate::connections::{Connections, Never};
use crate::state::AppState;

/// Outcome of serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every request was answered.
    Drained,
    /// The shutdown timeout expired: running requests were cut with an error.
    Cut,
    /// A second signal arrived: running requests were cut with an error, and readers had a moment to receive it.
    Forced,
}

/// Interval of folding metric samples into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);
/// Time for complete or cut answers to reach their readers.
const FLUSH: Duration = Duration::from_secs(2);
/// The same time after a second signal.
const FORCED_FLUSH: Duration = Duration::from_millis(200);

/// Answers requests on `listener` until signals end it.
///
/// Until `loaded` gives the model, health checks report that it is loading, and all other requests are told to retry. Calls `opened` when requests are answered. At the first item of
/// `signals` the server stops being ready and refuses new requests, but finishes running ones for as long as its configuration allows; at
/// the second one it cuts them, notifies their readers and returns.
///
/// # Errors
/// The error of `loaded`, as soon as it occurs.
pub async fn serve<E>(
    listener: TcpListener,
    config: &ServerConfig,
    loaded: impl Future<Output = Result<Arc<AppState>, E>>,
    opened: impl FnOnce(),
    signals: impl Stream<Item = ()>,
) -> Result<Ended, E> {
    // After its end a stream of signals stays pending.
    let mut signals = pin!(signals.chain(stream::pending()));
    let mut connections = Connections::new(config);
    let app = tokio::select! {
        biased;
        _ = signals.next() => return Ok(Ended::Drained),
        loaded = loaded => loaded?,
        never = connections.accept_all(&listener) => match never {},
    };
    connections.open(&app);
    opened();
    tokio::select! {
        biased;
        _ = signals.next() => {}
        never = connections.accept_all(&listener) => match never {},
        never = keep_up(&app) => match never {},
    }
    info!(num_in_flight = app.engine.num_in_flight(), "draining");
    app.engine.begin_drain();
    // Health checks and refusals are answered in the meantime.
    let ended = tokio::select! {
        biased;
        _ = signals.next() => Ended::Forced,
        result = timeout(app.config.shutdown_timeout, app.engine.wait_idle()) => match result {
            Ok(()) => Ended::Drained,
            Err(_) => Ended::Cut,
        },
        never = connections.accept_all(&listener) => match never {},
    };
    drop(listener);
    // From here on every reader learns that its answer was cut, however long the current step lasts.
    app.engine.stop();
    let flush = if ended == Ended::Forced { FORCED_FLUSH } else { FLUSH };
    let ended = tokio::select! {
        biased;
        _ = signals.next() => Ended::Forced,
        () = connections.close(flush) => ended,
    };
    info!(?ended, "stopped");
    Ok(ended)
}

async fn keep_up(app: &AppState) -> Never {
    let mut upkeep = interval(UPKEEP);
    upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        upkeep.tick().await;
        app.metrics.run_upkeep();
    }
}

/// Returns a stream of SIGTERM and SIGINT.
///
/// # Errors
/// If the operating system refuses a handler.
#[cfg(unix)]
pub fn termination_signals() -> io::Result<impl Stream<Item = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(stream::poll_fn(move |cx| match terminate.poll_recv(cx) {
        std::task::Poll::Pending => interrupt.poll_recv(cx),
        ready => ready,
    }))
}

/// Returns a stream of SIGHUP, which reloads the keys.
///
/// # Errors
/// If the operating system refuses a handler.
#[cfg(unix)]
pub fn hangup_signals() -> io::Result<impl Stream<Item = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(stream::poll_fn(move |cx| hangup.poll_recv(cx)))
}
