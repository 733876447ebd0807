//! Backoff when the system accepts no connection: pause, close a waiting connection, and log occasionally.

use std::io;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::slots::ConnectionSlots;

/// Pause after the first failure; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// Maximum pause: health checks should not fail for it.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Interval of log lines about the same failure.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// Consecutive failures to accept a connection.
#[derive(Default)]
pub(super) struct AcceptFailures {
    num_failures: u32,
    num_unlogged: u64,
    logged_at: Option<Instant>,
}

impl AcceptFailures {
    /// Resets the count after a connection was accepted.
    pub(super) fn reset(&mut self) {
        self.num_failures = 0;
    }

    /// Returns the time to wait after `error`.
    pub(super) fn backoff_after(&mut self, error: &io::Error, slots: &ConnectionSlots, now: Instant) -> Duration {
        if is_of_the_peer(error) {
            debug!(%error, "accepting a connection");
            return Duration::ZERO;
        }
        if let Some(num_unlogged) = self.count_unlogged(now) {
            warn!(%error, num_unlogged, "accepting a connection");
        }
        // Descriptors and memory are freed when a connection ends.
        slots.close_one();
        let pause = FIRST_PAUSE * 2u32.pow(self.num_failures.min(10));
        self.num_failures = self.num_failures.saturating_add(1);
        pause.min(MAX_PAUSE)
    }

    /// Returns the number of failures since the last log line, if another one is due.
    fn count_unlogged(&mut self, now: Instant) -> Option<u64> {
        if self.logged_at.is_some_and(|logged_at| now.duration_since(logged_at) < LOG_EVERY) {
            self.num_unlogged += 1;
            return None;
        }
        self.logged_at = Some(now);
        Some(std::mem::take(&mut self.num_unlogged))
    }
}

/// True if the peer has given up in the meantime: the next connection may be fine.
fn is_of_the_peer(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::super::slots::ConnectionLimits;
    use super::*;

    #[test]
    fn lasting_trouble_is_met_ever_more_slowly_and_seldom_told() {
        let slots = ConnectionSlots::new(ConnectionLimits { max_connections: 1, max_per_peer: 1 });
        let (start, mut elapsed, mut accept_failures) = (Instant::now(), Duration::ZERO, AcceptFailures::default());
        let (mut num_failures, mut num_lines) = (0, 0);
        let no_descriptors = io::Error::from_raw_os_error(24);
        while elapsed < Duration::from_secs(300) {
            let logged_at = accept_failures.logged_at;
            elapsed += accept_failures.backoff_after(&no_descriptors, &slots, start + elapsed);
            num_failures += 1;
            num_lines += usize::from(accept_failures.logged_at != logged_at);
        }
        assert!(num_failures < 320, "{num_failures} failures in five minutes");
        assert!(num_lines <= 10, "{num_lines} lines in five minutes");
        accept_failures.reset();
        assert_eq!(accept_failures.backoff_after(&no_descriptors, &slots, start + elapsed), FIRST_PAUSE);
    }

    #[test]
    fn a_connection_that_can_be_spared_is_closed_for_its_descriptor() {
        let slots = ConnectionSlots::new(ConnectionLimits { max_connections: 9, max_per_peer: 9 });
        let idle = slots.enter([10, 0, 0, 1].into()).unwrap();
        AcceptFailures::default().backoff_after(&io::Error::from_raw_os_error(24), &slots, Instant::now());
        assert!(futures::FutureExt::now_or_never(idle.closed()).is_some());
    }

    #[test]
    fn a_peer_that_gave_up_is_no_trouble() {
        let slots = ConnectionSlots::new(ConnectionLimits { max_connections: 1, max_per_peer: 1 });
        let mut accept_failures = AcceptFailures::default();
        assert_eq!(
            accept_failures.backoff_after(&io::ErrorKind::ConnectionAborted.into(), &slots, Instant::now()),
            Duration::ZERO
        );
        assert!(accept_failures.logged_at.is_none());
    }
}
