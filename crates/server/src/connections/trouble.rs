//! Backoff when the system accepts no connection: pause, close a waiting connection, and log occasionally.

use std::io;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::places::Places;

/// Pause after the first failure; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// Maximum pause: health checks should not fail for it.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Interval of log lines about the same failure.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// Consecutive failures to accept a connection.
#[derive(Default)]
pub(super) struct Trouble {
    num_failures: u32,
    num_unsaid: u64,
    said_at: Option<Instant>,
}

impl Trouble {
    /// Resets the count after a connection was accepted.
    pub(super) fn reset(&mut self) {
        self.num_failures = 0;
    }

    /// Returns the time to wait after `error`.
    pub(super) fn backoff_after(&mut self, error: &io::Error, places: &Places, now: Instant) -> Duration {
        if is_of_the_peer(error) {
            debug!(%error, "accepting a connection");
            return Duration::ZERO;
        }
        if let Some(num_unsaid) = self.says(now) {
            warn!(%error, num_unsaid, "accepting a connection");
        }
        // Descriptors and memory are freed when a connection ends.
        places.close_one();
        let pause = FIRST_PAUSE * 2u32.pow(self.num_failures.min(10));
        self.num_failures = self.num_failures.saturating_add(1);
        pause.min(MAX_PAUSE)
    }

    /// Returns the number of failures since the last log line, if another one is due.
    fn says(&mut self, now: Instant) -> Option<u64> {
        if self.said_at.is_some_and(|said_at| now.duration_since(said_at) < LOG_EVERY) {
            self.num_unsaid += 1;
            return None;
        }
        self.said_at = Some(now);
        Some(std::mem::take(&mut self.num_unsaid))
    }
}

/// True if the peer has given up in the meantime: the next connection may be fine.
fn is_of_the_peer(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::super::places::PlaceLimits;
    use super::*;

    #[test]
    fn lasting_trouble_is_met_ever_more_slowly_and_seldom_told() {
        let places = Places::new(PlaceLimits { max_connections: 1, max_per_peer: 1 });
        let (start, mut elapsed, mut trouble) = (Instant::now(), Duration::ZERO, Trouble::default());
        let (mut num_failures, mut num_lines) = (0, 0);
        let no_descriptors = io::Error::from_raw_os_error(24);
        while elapsed < Duration::from_secs(300) {
            let said_at = trouble.said_at;
            elapsed += trouble.backoff_after(&no_descriptors, &places, start + elapsed);
            num_failures += 1;
            num_lines += usize::from(trouble.said_at != said_at);
        }
        assert!(num_failures < 320, "{num_failures} failures in five minutes");
        assert!(num_lines <= 10, "{num_lines} lines in five minutes");
        trouble.reset();
        assert_eq!(trouble.backoff_after(&no_descriptors, &places, start + elapsed), FIRST_PAUSE);
    }

    #[test]
    fn a_connection_that_can_be_spared_is_closed_for_its_descriptor() {
        let places = Places::new(PlaceLimits { max_connections: 9, max_per_peer: 9 });
        let idle = places.enter([10, 0, 0, 1].into()).unwrap();
        Trouble::default().backoff_after(&io::Error::from_raw_os_error(24), &places, Instant::now());
        assert!(futures::FutureExt::now_or_never(idle.closed()).is_some());
    }

    #[test]
    fn a_peer_that_gave_up_is_no_trouble() {
        let places = Places::new(PlaceLimits { max_connections: 1, max_per_peer: 1 });
        let mut trouble = Trouble::default();
        assert_eq!(trouble.backoff_after(&io::ErrorKind::ConnectionAborted.into(), &places, Instant::now()), Duration::ZERO);
        assert!(trouble.said_at.is_none());
    }
}
