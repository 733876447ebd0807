//! Who is admitted next.
//!
//! Preempted sequences come first: they were admitted before. Then tenants take turns by deficit round robin (Shreedhar, Varghese 1996)
//! on what their prompts cost without any cache, so that a tenant's turn says nothing about what others have cached and a flood of one
//! delays the others by its share only. Within a tenant, those that have waited too long come first, then the lowest rank. Every
//! operation is O(log n), but for tenants, which are gone round.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use tokens::{RequestId, TenantId, Timestamp};

/// Place of a request among all: by arrival, ties by submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct ArrivalKey {
    pub(crate) arrival: Timestamp,
    pub(crate) ordinal: u64,
}

/// A request that waits for its first admission.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub(crate) request_id: RequestId,
    pub(crate) tenant: TenantId,
    /// Predicted by policy.
    pub(crate) forecast: Forecast,
    /// What its prompt costs if nothing is cached, in microseconds: what the tenant is charged.
    pub(crate) uncached_micros: u64,
    /// From then on it is next in its tenant.
    pub(crate) deadline: Timestamp,
}

/// What is predicted of a waiting request, as long as the cache does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forecast {
    /// Lowest first. Its unit is the policy's.
    pub(crate) rank: u64,
    /// Work until its first token, in microseconds.
    pub(crate) micros: u64,
}

/// A request that is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) key: ArrivalKey,
    pub(crate) request_id: RequestId,
    /// What put it in front, if that was a forecast.
    pub(crate) forecast: Option<Forecast>,
}

/// Given to a tenant at each turn, in microseconds of uncached prefill. Chosen: less than most prompts cost, so that tenants alternate.
const QUANTUM_MICROS: u64 = 10_000;

/// The waiting requests.
#[derive(Debug, Default)]
pub(crate) struct RequestQueue {
    preempted: BTreeMap<ArrivalKey, RequestId>,
    by_arrival: BTreeMap<ArrivalKey, Waiting>,
    tenants: BTreeMap<TenantId, TenantQueue>,
    /// Tenants with somebody waiting; it is the first one's turn.
    turns: VecDeque<TenantId>,
    /// Whether somebody was admitted at this turn.
    turn_is_used: bool,
    /// Sum of all forecasts.
    total_micros: u64,
    /// The last one whose forecast was renewed.
    renewed: Option<ArrivalKey>,
}

/// What comes of a tenant's turn.
enum Turn {
    /// Its next request is admitted.
    Next(Ticket),
    /// It has to save for so many rounds first.
    After {
        /// Quanta that are missing.
        rounds: u64,
    },
}

/// Orders of the waiting requests of one tenant; never empty.
#[derive(Debug, Default)]
struct TenantQueue {
    by_rank: BTreeSet<(u64, ArrivalKey)>,
    by_deadline: BTreeSet<(Timestamp, ArrivalKey)>,
    /// Credit for admissions, in microseconds.
    deficit: u64,
}

impl TenantQueue {
    fn next(&self, now: Timestamp, waits: impl Fn(&ArrivalKey) -> bool) -> Option<(ArrivalKey, bool)> {
        let due = self.by_deadline.range(..=(now, ArrivalKey::LAST)).find(|(_, key)| waits(key));
        match due {
            Some(&(_, key)) => Some((key, true)),
            None => self.by_rank.iter().find(|(_, key)| waits(key)).map(|&(_, key)| (key, false)),
        }
    }
}

impl ArrivalKey {
    const LAST: Self = Self { arrival: Timestamp(std::time::Duration::MAX), ordinal: u64::MAX };
}

impl RequestQueue {
    pub(crate) fn len(&self) -> usize {
        self.preempted.len() + self.by_arrival.len()
    }

    /// Arrival of the one that came first.
    pub(crate) fn oldest_arrival(&self) -> Option<Timestamp> {
        let first = |key: Option<&ArrivalKey>| key.map(|key| key.arrival);
        let both = [first(self.preempted.keys().next()), first(self.by_arrival.keys().next())];
        both.into_iter().flatten().min()
    }

    /// Predicted work of all that wait for their first admission, in microseconds.
    pub(crate) fn total_micros(&self) -> u64 {
        self.total_micros
    }

    pub(crate) fn push(&mut self, key: ArrivalKey, waiting: Waiting) {
        self.by_arrival.insert(key, waiting);
        self.total_micros += waiting.forecast.micros;
        if !self.tenants.contains_key(&waiting.tenant) {
            self.turns.push_back(waiting.tenant);
        }
        let tenant = self.tenants.entry(waiting.tenant).or_default();
        tenant.by_rank.insert((waiting.forecast.rank, key));
        tenant.by_deadline.insert((waiting.deadline, key));
    }

    pub(crate) fn push_preempted(&mut self, key: ArrivalKey, request_id: RequestId) {
        self.preempted.insert(key, request_id);
    }

    /// Takes out a request that is admitted: its tenant pays.
    pub(crate) fn admit(&mut self, key: ArrivalKey) {
        if let Some(waiting) = self.by_arrival.get(&key) {
            let tenant = self.tenants.get_mut(&waiting.tenant).expect("a tenant with a waiting request is kept");
            tenant.deficit = tenant.deficit.saturating_sub(waiting.uncached_micros);
            self.turn_is_used = true;
        }
        self.remove(key);
    }

    /// Takes out a request wherever it waits. A tenant without requests keeps no credit.
    pub(crate) fn remove(&mut self, key: ArrivalKey) {
        self.preempted.remove(&key);
        let Some(waiting) = self.by_arrival.remove(&key) else { return };
        self.total_micros -= waiting.forecast.micros;
        let tenant = self.tenants.get_mut(&waiting.tenant).expect("a tenant with a waiting request is kept");
        tenant.by_rank.remove(&(waiting.forecast.rank, key));
        tenant.by_deadline.remove(&(waiting.deadline, key));
        if tenant.by_rank.is_empty() {
            self.tenants.remove(&waiting.tenant);
            self.turns.retain(|&turn| turn != waiting.tenant);
        }
    }

    /// The next one to be admitted at `now`, but for those `passed_over`. The same one is next again until the queue changes.
    pub(crate) fn next(&mut self, now: Timestamp, passed_over: &BTreeSet<ArrivalKey>) -> Option<Ticket> {
        let waits = |key: &ArrivalKey| !passed_over.contains(key);
        if let Some((&key, &request_id)) = self.preempted.iter().find(|(key, _)| waits(key)) {
            return Some(Ticket { key, request_id, forecast: None });
        }
        let is_over = std::mem::take(&mut self.turn_is_used) && !matches!(self.take_turn(now, waits), Some(Turn::Next(_)));
        if is_over && !self.turns.is_empty() {
            self.turns.rotate_left(1);
        }
        loop {
            let mut fewest_rounds = None;
            for _ in 0..self.turns.len() {
                match self.take_turn(now, waits) {
                    Some(Turn::Next(ticket)) => return Some(ticket),
                    Some(Turn::After { rounds }) => {
                        fewest_rounds = Some(fewest_rounds.map_or(rounds, |fewest| rounds.min(fewest)))
                    }
                    None => {}
                }
                self.turns.rotate_left(1);
            }
            self.grant(now, waits, fewest_rounds?);
        }
    }

    /// What comes of the first tenant's turn; nothing if all its requests are passed over.
    fn take_turn(&self, now: Timestamp, waits: impl Fn(&ArrivalKey) -> bool) -> Option<Turn> {
        let tenant = &self.tenants[self.turns.front()?];
        let (key, is_due) = tenant.next(now, waits)?;
        let &Waiting { request_id, forecast, uncached_micros, .. } = &self.by_arrival[&key];
        Some(match uncached_micros.checked_sub(tenant.deficit) {
            None | Some(0) => Turn::Next(Ticket { key, request_id, forecast: (!is_due).then_some(forecast) }),
            Some(missing) => Turn::After { rounds: missing.div_ceil(QUANTUM_MICROS) },
        })
    }

    /// As many rounds of turns as nobody can use at once: their quanta together.
    fn grant(&mut self, now: Timestamp, waits: impl Fn(&ArrivalKey) -> bool, rounds: u64) {
        for tenant in self.tenants.values_mut().filter(|tenant| tenant.next(now, &waits).is_some()) {
            tenant.deficit += rounds * QUANTUM_MICROS;
        }
    }

    /// What is known of a request that waits for its first admission.
    pub(crate) fn get(&self, key: ArrivalKey) -> Option<&Waiting> {
        self.by_arrival.get(&key)
    }

    /// The next one of each tenant.
    pub(crate) fn heads(&self, now: Timestamp) -> impl Iterator<Item = &Waiting> {
        let heads = self.tenants.values().filter_map(move |tenant| tenant.next(now, |_| true));
        heads.map(|(key, _)| &self.by_arrival[&key])
    }

    /// Replaces the forecast for a request that waits for its first admission.
    pub(crate) fn set_forecast(&mut self, key: ArrivalKey, forecast: Forecast) {
        let waiting = self.by_arrival.get_mut(&key).expect("only waiting requests are predicted");
        let before = std::mem::replace(&mut waiting.forecast, forecast);
        let tenant = self.tenants.get_mut(&waiting.tenant).expect("a tenant with a waiting request is kept");
        tenant.by_rank.remove(&(before.rank, key));
        tenant.by_rank.insert((forecast.rank, key));
        self.total_micros = self.total_micros - before.micros + forecast.micros;
    }

    /// The next `count` requests to predict anew, round and round by arrival.
    pub(crate) fn next_to_renew(&mut self, count: usize) -> Vec<(ArrivalKey, RequestId)> {
        let after = self.renewed.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = self.by_arrival.range((after, Bound::Unbounded));
        let round = behind.chain(&self.by_arrival).take(count.min(self.by_arrival.len()));
        let next: Vec<_> = round.map(|(&key, waiting)| (key, waiting.request_id)).collect();
        self.renewed = next.last().map(|&(key, _)| key);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(arrival_us: u64, ordinal: u64) -> ArrivalKey {
        ArrivalKey { arrival: Timestamp::from_micros(arrival_us), ordinal }
    }

    /// A request that is due 100 us after its arrival and costs 7 ms without a cache.
    fn waiting(ordinal: u64, arrival_us: u64, rank: u64) -> Waiting {
        Waiting {
            request_id: RequestId(ordinal),
            tenant: TenantId(0),
            forecast: Forecast { rank, micros: 10 * rank },
            uncached_micros: 7_000,
            deadline: Timestamp::from_micros(arrival_us + 100),
        }
    }

    fn drain(queue: &mut RequestQueue, now_us: u64) -> String {
        let mut order = Vec::new();
        while let Some(ticket) = queue.next(Timestamp::from_micros(now_us), &BTreeSet::new()) {
            queue.admit(ticket.key);
            order.push(ticket.request_id.to_string());
        }
        assert_eq!((queue.len(), queue.total_micros()), (0, 0));
        order.join(" ")
    }

    /// A queue of `requests`, `arrival_us:rank` each, named r0, r1, ... in this order; the order in which they leave at `now_us`.
    #[track_caller]
    fn check(requests: &str, now_us: u64, expected: &str) {
        let mut queue = RequestQueue::default();
        for (ordinal, request) in (0..).zip(requests.split_whitespace()) {
            let (arrival, rank) = request.split_once(':').unwrap();
            let arrival_us = arrival.parse().unwrap();
            match rank {
                "preempted" => queue.push_preempted(key(arrival_us, ordinal), RequestId(ordinal)),
                rank => queue.push(key(arrival_us, ordinal), waiting(ordinal, arrival_us, rank.parse().unwrap())),
            }
        }
        assert_eq!(drain(&mut queue, now_us), expected);
    }

    #[test]
    fn equal_ranks_go_by_arrival_then_by_submission() {
        check("5:1 3:1 3:1", 5, "r1 r2 r0");
    }

    #[test]
    fn the_lowest_rank_goes_first() {
        check("1:50 2:9 3:9", 5, "r1 r2 r0");
    }

    #[test]
    fn whoever_is_due_is_overtaken_no_more() {
        check("1:50 2:70 90:9", 103, "r0 r1 r2");
        check("1:50 3:70 90:9", 102, "r0 r2 r1");
    }

    #[test]
    fn preempted_ones_go_before_all() {
        check("1:50 2:1 90:preempted", 500, "r2 r0 r1");
    }

    #[test]
    fn who_is_passed_over_stays() {
        let mut queue = RequestQueue::default();
        queue.push(key(0, 0), waiting(0, 0, 5));
        queue.push(key(0, 1), waiting(1, 0, 7));
        let mut next = |passed_over: &[u64]| {
            let passed_over = passed_over.iter().map(|&ordinal| key(0, ordinal)).collect();
            queue.next(Timestamp::default(), &passed_over).map(|ticket| ticket.request_id.0)
        };
        assert_eq!(next(&[0]), Some(1));
        assert_eq!(next(&[0, 1]), None);
        assert_eq!(next(&[]), Some(0));
    }

    #[test]
    fn forecasts_are_renewed_round_and_round() {
        let mut queue = RequestQueue::default();
        (0..3).for_each(|ordinal| queue.push(key(0, ordinal), waiting(ordinal, 0, 5)));
        let mut renew = |count| queue.next_to_renew(count).into_iter().map(|(_, id)| id.0).collect::<Vec<_>>();
        assert_eq!(renew(2), [0, 1]);
        assert_eq!(renew(2), [2, 0]);
        assert_eq!(renew(9), [1, 2, 0]);
        queue.set_forecast(key(0, 2), Forecast { rank: 1, micros: 3 });
        assert_eq!(queue.total_micros(), 50 + 50 + 3);
        assert_eq!(drain(&mut queue, 0), "r2 r0 r1");
    }

    /// `requests`, `tenant:cost_ms` each, named r0, r1, ...; the order in which they leave.
    #[track_caller]
    fn check_turns(requests: &str, expected: &str) {
        let mut queue = RequestQueue::default();
        for (ordinal, request) in (0..).zip(requests.split_whitespace()) {
            let (tenant, cost) = request.split_once(':').unwrap();
            let (tenant, cost): (u32, u64) = (tenant.parse().unwrap(), cost.parse().unwrap());
            let waiting =
                Waiting { tenant: TenantId(tenant), uncached_micros: 1_000 * cost, ..waiting(ordinal, 0, 1_000 - ordinal) };
            queue.push(key(ordinal, ordinal), waiting);
        }
        assert_eq!(drain(&mut queue, 0), expected);
    }

    #[test]
    fn tenants_take_turns_by_what_their_prompts_cost_without_a_cache() {
        check_turns("1:20 1:20 1:20 2:20 2:20", "r2 r4 r1 r3 r0");
        check_turns("1:60 1:60 2:20 2:20 2:20 2:20", "r5 r4 r1 r3 r2 r0");
    }

    #[test]
    fn a_tenant_that_was_away_has_saved_nothing() {
        let mut queue = RequestQueue::default();
        queue.push(key(0, 0), Waiting { tenant: TenantId(1), ..waiting(0, 0, 1) });
        assert_eq!(drain(&mut queue, 0), "r0");
        (1..4).for_each(|ordinal| queue.push(key(0, ordinal), Waiting { tenant: TenantId(2), ..waiting(ordinal, 0, ordinal) }));
        (4..7).for_each(|ordinal| queue.push(key(0, ordinal), Waiting { tenant: TenantId(1), ..waiting(ordinal, 0, ordinal) }));
        assert_eq!(drain(&mut queue, 0), "r1 r4 r2 r5 r3 r6");
    }

    #[test]
    fn a_flood_delays_others_by_their_share() {
        let mut queue = RequestQueue::default();
        let of = |tenant, ordinal, cost| Waiting { tenant: TenantId(tenant), uncached_micros: cost, ..waiting(ordinal, 0, 1) };
        (0..500).for_each(|ordinal| queue.push(key(0, ordinal), of(1, ordinal, 30_000)));
        (0..100).for_each(|_| {
            let ticket = queue.next(Timestamp::from_micros(9_999), &BTreeSet::new()).unwrap();
            queue.admit(ticket.key);
        });
        queue.push(key(9_999, 900), of(2, 900, 90_000));
        let order = drain(&mut queue, 1_000_000);
        let place = order.split(' ').position(|id| id == "r900").unwrap();
        assert!((2..=4).contains(&place), "{place} requests of 30 ms went before one of 90 ms");
    }
}
