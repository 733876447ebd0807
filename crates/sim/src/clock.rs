//! Virtual time that passes only on request.

use std::time::Duration;

use tokens::Timestamp;

/// Clock that moves only in `advance`.
#[derive(Clone, Copy, Debug, Default)]
pub struct VirtualClock {
    now: Timestamp,
}

impl VirtualClock {
    /// Returns the current time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Advances the clock by `time`.
    pub fn advance(&mut self, time: Duration) {
        self.now = Timestamp(self.now.0 + time);
    }

    /// Advances the clock to `at`; does nothing if `at` has passed.
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
