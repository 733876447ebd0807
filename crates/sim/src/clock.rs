//! Time that passes only when somebody says so.

use std::time::Duration;

use tokens::Timestamp;

/// A clock that stands still between two calls of `advance`.
#[derive(Clone, Copy, Debug, Default)]
pub struct VirtualClock {
    now: Timestamp,
}

impl VirtualClock {
    /// The time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Lets `time` pass.
    pub fn advance(&mut self, time: Duration) {
        self.now = Timestamp(self.now.0 + time);
    }

    /// Moves on to `at`; stays where it is when that has passed.
    pub fn advance_to(&mut self, at: Timestamp) {
        self.now = self.now.max(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_never_goes_back() {
        let mut clock = VirtualClock::default();
        clock.advance(Duration::from_micros(7));
        clock.advance_to(Timestamp::from_micros(5));
        assert_eq!(clock.now(), Timestamp::from_micros(7));
        clock.advance_to(Timestamp::from_micros(9));
        assert_eq!(clock.now(), Timestamp::from_micros(9));
    }
}
