//! Who is admitted next.
//!
//! Preempted sequences come first: they were admitted before. Then those that have waited longer than `max_overtake`, by arrival, so
//! that nobody is overtaken for longer than that. Then, by policy, the others. Every operation is O(log n).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use tokens::{RequestId, Timestamp};

use crate::SchedulePolicy;

/// Place of a request among all: by arrival, ties by submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct ArrivalKey {
    pub(crate) arrival: Timestamp,
    pub(crate) ordinal: u64,
}

/// A request taken from the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) key: ArrivalKey,
    pub(crate) request_id: RequestId,
    /// Why it was next.
    pub(crate) rank: Rank,
}

/// What put a request in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rank {
    /// It was running before.
    Preempted,
    /// Its arrival.
    Arrival,
    /// So few tokens of work are predicted.
    Work(u32),
}

/// The waiting requests.
#[derive(Debug)]
pub(crate) struct RequestQueue {
    policy: SchedulePolicy,
    max_overtake: Duration,
    preempted: BTreeMap<ArrivalKey, RequestId>,
    /// With the predicted work of each.
    by_arrival: BTreeMap<ArrivalKey, (RequestId, u32)>,
    by_work: BTreeSet<(u32, ArrivalKey)>,
    /// The last one whose prediction was renewed.
    renewed: Option<ArrivalKey>,
}

impl RequestQueue {
    pub(crate) fn new(policy: SchedulePolicy, max_overtake: Duration) -> Self {
        let (preempted, by_arrival, by_work) = Default::default();
        Self { policy, max_overtake, preempted, by_arrival, by_work, renewed: None }
    }

    pub(crate) fn len(&self) -> usize {
        self.preempted.len() + self.by_arrival.len()
    }

    /// Arrival of the one that came first.
    pub(crate) fn oldest_arrival(&self) -> Option<Timestamp> {
        let first = |key: Option<&ArrivalKey>| key.map(|key| key.arrival);
        let both = [first(self.preempted.keys().next()), first(self.by_arrival.keys().next())];
        both.into_iter().flatten().min()
    }

    pub(crate) fn push(&mut self, key: ArrivalKey, request_id: RequestId, work: u32) {
        self.by_arrival.insert(key, (request_id, work));
        self.by_work.insert((work, key));
    }

    pub(crate) fn push_preempted(&mut self, key: ArrivalKey, request_id: RequestId) {
        self.preempted.insert(key, request_id);
    }

    /// Takes out a request wherever it waits.
    pub(crate) fn remove(&mut self, key: ArrivalKey) {
        self.preempted.remove(&key);
        if let Some((_, work)) = self.by_arrival.remove(&key) {
            self.by_work.remove(&(work, key));
        }
    }

    /// The next one to be admitted at `now`, but for those `passed_over`.
    pub(crate) fn peek(&self, now: Timestamp, passed_over: &BTreeSet<ArrivalKey>) -> Option<Ticket> {
        let waits = |key: &ArrivalKey| !passed_over.contains(key);
        if let Some((&key, &request_id)) = self.preempted.iter().find(|(key, _)| waits(key)) {
            return Some(Ticket { key, request_id, rank: Rank::Preempted });
        }
        let (&key, &(request_id, _)) = self.by_arrival.iter().find(|(key, _)| waits(key))?;
        if self.policy == SchedulePolicy::Fcfs || now.since(key.arrival) > self.max_overtake {
            return Some(Ticket { key, request_id, rank: Rank::Arrival });
        }
        let &(work, key) = self.by_work.iter().find(|(_, key)| waits(key))?;
        let (request_id, _) = self.by_arrival[&key];
        Some(Ticket { key, request_id, rank: Rank::Work(work) })
    }

    /// Replaces the prediction for a request that waits for its first admission.
    pub(crate) fn set_work(&mut self, key: ArrivalKey, work: u32) {
        let (_, known) = self.by_arrival.get_mut(&key).expect("only waiting requests are predicted");
        let before = std::mem::replace(known, work);
        self.by_work.remove(&(before, key));
        self.by_work.insert((work, key));
    }

    /// The next `count` requests to predict anew, round and round by arrival.
    pub(crate) fn next_to_renew(&mut self, count: usize) -> Vec<(ArrivalKey, RequestId)> {
        let after = self.renewed.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = self.by_arrival.range((after, Bound::Unbounded));
        let round = behind.chain(&self.by_arrival).take(count.min(self.by_arrival.len()));
        let next: Vec<_> = round.map(|(&key, &(request_id, _))| (key, request_id)).collect();
        self.renewed = next.last().map(|&(key, _)| key);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue of `requests`, `arrival_us:work` each, named r0, r1, ... in this order; the order in which they leave at `now_us`.
    #[track_caller]
    fn check(policy: SchedulePolicy, requests: &str, now_us: u64, expected: &str) {
        let mut queue = RequestQueue::new(policy, Duration::from_micros(100));
        for (ordinal, request) in requests.split_whitespace().enumerate() {
            let (arrival, work) = request.split_once(':').unwrap();
            let key = ArrivalKey { arrival: Timestamp::from_micros(arrival.parse().unwrap()), ordinal: ordinal as u64 };
            match work {
                "preempted" => queue.push_preempted(key, RequestId(ordinal as u64)),
                work => queue.push(key, RequestId(ordinal as u64), work.parse().unwrap()),
            }
        }
        let mut order = Vec::new();
        while let Some(ticket) = queue.peek(Timestamp::from_micros(now_us), &BTreeSet::new()) {
            queue.remove(ticket.key);
            order.push(ticket.request_id.to_string());
        }
        assert_eq!(order.join(" "), expected);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn fcfs_goes_by_arrival_then_by_submission() {
        check(SchedulePolicy::Fcfs, "5:1 3:9 3:1", 5, "r1 r2 r0");
    }

    #[test]
    fn least_work_goes_first_and_ties_by_arrival() {
        check(SchedulePolicy::KvHitRate, "1:50 2:9 3:9", 5, "r1 r2 r0");
    }

    #[test]
    fn whoever_waited_too_long_is_overtaken_no_more() {
        check(SchedulePolicy::KvHitRate, "1:50 2:70 90:9", 103, "r0 r1 r2");
        check(SchedulePolicy::KvHitRate, "1:50 3:70 90:9", 103, "r0 r2 r1");
    }

    #[test]
    fn preempted_ones_go_before_all() {
        check(SchedulePolicy::KvHitRate, "1:50 2:1 90:preempted", 500, "r2 r0 r1");
    }

    #[test]
    fn who_is_passed_over_stays() {
        let mut queue = RequestQueue::new(SchedulePolicy::KvHitRate, Duration::from_micros(100));
        let key = |ordinal| ArrivalKey { arrival: Timestamp::default(), ordinal };
        queue.push(key(0), RequestId(0), 5);
        queue.push(key(1), RequestId(1), 7);
        let next = |queue: &RequestQueue, passed_over: &[u64]| {
            let passed_over = passed_over.iter().map(|&ordinal| key(ordinal)).collect();
            queue.peek(Timestamp::default(), &passed_over).map(|ticket| ticket.request_id.0)
        };
        assert_eq!(next(&queue, &[0]), Some(1));
        assert_eq!(next(&queue, &[0, 1]), None);
        assert_eq!(next(&queue, &[]), Some(0));
    }

    #[test]
    fn predictions_are_renewed_round_and_round() {
        let mut queue = RequestQueue::new(SchedulePolicy::KvHitRate, Duration::from_micros(100));
        let key = |ordinal| ArrivalKey { arrival: Timestamp::default(), ordinal };
        (0..3).for_each(|ordinal| queue.push(key(ordinal), RequestId(ordinal), 5));
        let mut renew = |count| queue.next_to_renew(count).into_iter().map(|(_, id)| id.0).collect::<Vec<_>>();
        assert_eq!(renew(2), [0, 1]);
        assert_eq!(renew(2), [2, 0]);
        assert_eq!(renew(9), [1, 2, 0]);
        queue.set_work(key(2), 1);
        assert_eq!(queue.peek(Timestamp::default(), &BTreeSet::new()).unwrap().request_id, RequestId(2));
    }
}
