//! The share of its waiting time that counts against a request's work.
//!
//! With rank `work - rate * age`, a request can overtake only those that arrived earlier by at most the difference of their works
//! divided by the rate. So the rate decides how much later than by arrival the largest works end, and it has to fit the load: a
//! rate that reorders seconds of queue does nothing to a queue of milliseconds. The rate is `rate = min(max_rate, work / (share *
//! delay))` with the root mean square of works and the longest recent queue delay: a request with that much more work than another
//! one waits at most that share of the longest delay for it.
//!
//! Ages grow alike for all requests, so the queue keeps only the arrival time on a clock that runs at the rate: waiting never
//! changes ranks.

use tokens::Timestamp;

/// Requests over which work is averaged. Chosen: a few queues' worth.
const WORK_MEMORY: f64 = 1_000.0;

/// Requests over which the longest queue delay decays. Chosen: long, so that a queue that grows again meets the same rate.
const DELAY_MEMORY: f64 = 10_000.0;

/// A clock that runs at the rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ageing {
    max_rate: f64,
    share: f64,
    mean_square_work: f64,
    longest_delay: f64,
    num_works: f64,
    aged_micros: f64,
    now: Timestamp,
}

impl Ageing {
    pub(crate) fn new(max_rate: f64, share: f64) -> Self {
        let (mean_square_work, longest_delay, num_works, aged_micros, now) = Default::default();
        Self { max_rate, share, mean_square_work, longest_delay, num_works, aged_micros, now }
    }

    /// Advances the clock to `now` and returns its reading in microseconds. It never goes back.
    pub(crate) fn advance(&mut self, now: Timestamp) -> u64 {
        self.aged_micros += self.rate() * now.since(self.now).as_secs_f64() * 1e6;
        self.now = self.now.max(now);
        self.aged_micros as u64
    }

    /// Records the arrival of a request of predicted `work` at the end of a queue of predicted `delay`, both in microseconds.
    pub(crate) fn observe(&mut self, work: u64, delay: u64) {
        self.num_works += 1.0;
        self.mean_square_work += ((work as f64).powi(2) - self.mean_square_work) / self.num_works.min(WORK_MEMORY);
        self.longest_delay = (self.longest_delay * (1.0 - 1.0 / DELAY_MEMORY)).max(delay as f64);
    }

    fn rate(&self) -> f64 {
        let allowed = self.share * self.longest_delay;
        if allowed > 0.0 { (self.mean_square_work.sqrt() / allowed).min(self.max_rate) } else { self.max_rate }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the weight of one second after requests of `work` at the end of queues of `delay`, both in microseconds.
    #[track_caller]
    fn check(work: u64, delay: u64, expected: u64) {
        let mut ageing = Ageing::new(0.5, 0.1);
        (0..5_000).for_each(|_| ageing.observe(work, delay));
        assert_eq!(ageing.advance(Timestamp::from_micros(1_000_000)), expected);
        assert_eq!(ageing.advance(Timestamp::from_micros(900_000)), expected, "time never goes back");
    }

    #[test]
    fn age_counts_for_less_the_longer_the_queue() {
        check(10_000, 1_000_000, 100_000);
        check(10_000, 10_000_000, 10_000);
        check(40_000, 10_000_000, 40_000);
    }

    #[test]
    fn age_never_counts_for_more_than_the_bound() {
        check(10_000, 10_000, 500_000);
        check(10_000, 0, 500_000);
    }

    #[test]
    fn a_long_queue_is_forgotten() {
        let mut ageing = Ageing::new(0.5, 0.1);
        ageing.observe(10_000, 60_000_000);
        (0..100_000).for_each(|_| ageing.observe(10_000, 1_000_000));
        assert_eq!(ageing.advance(Timestamp::from_micros(1_000_000)), 100_000);
    }
}
