//! Order of admission of waiting requests.
//!
//! The queue orders tenants by the service they received: a counter of each tenant adds up the work of its requests, and the tenant
//! with the lowest counter is next (the virtual token counter of Sheng et al. 2024). A prompt counts its cost without any cache, so that the order reveals nothing of
//! what others have cached; an answer counts token by token. A tenant that comes back starts level with the least served one
//! here, so that absence saves nothing. Tenants with nothing running come before all others.
//!
//! Within a tenant, preempted sequences come first: they were admitted before. Requests past their deadline follow, then the
//! lowest rank. A request that waits for KV of others is parked until that is ready. Every operation is O(log n).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use tokens::{BlockHash, RequestId, TenantId, Timestamp};

use crate::arrival::ArrivalKey;
use crate::parking::{Parking, Until};

/// A waiting request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub(crate) request_id: RequestId,
    pub(crate) tenant: TenantId,
    /// Rank by the scheduling policy, and predicted work.
    pub(crate) forecast: Forecast,
    /// Cost of its prompt if nothing is cached, in microseconds: the charge to its tenant at the first admission.
    pub(crate) uncached_micros: u64,
    /// Time from which on it is next in its tenant.
    pub(crate) deadline: Timestamp,
}

/// Prediction for a waiting request. It holds until the content of the cache changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forecast {
    /// Rank for admission: the lowest is first. Its unit depends on the policy.
    pub(crate) rank: u64,
    /// Predicted time of the work until its first token, in microseconds.
    pub(crate) micros: u64,
}

/// The next request to admit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) key: ArrivalKey,
    pub(crate) request_id: RequestId,
    pub(crate) tenant: TenantId,
    /// Its forecast, if it was selected by rank.
    pub(crate) forecast: Option<Forecast>,
}

/// Maximum parked requests put back in one step. Chosen: more than a step admits, and quickly done.
const MAX_UNPARKED_PER_STEP: usize = 256;

/// Waiting requests, and the number of running ones of each tenant.
#[derive(Debug, Default)]
pub(crate) struct RequestQueue {
    waiting: BTreeMap<ArrivalKey, Entry>,
    /// Tenants with waiting or running requests.
    tenants: BTreeMap<TenantId, Account>,
    /// Tenants with a request that can be examined, the next one first.
    order: BTreeSet<Turn>,
    /// Service of each tenant in `tenants`.
    by_service: BTreeSet<(u64, TenantId)>,
    /// Service of tenants that have left while others stayed.
    away: BTreeMap<TenantId, u64>,
    /// Service of the tenant that left last, when all had left.
    level: u64,
    /// Number of admissions and charges so far: among equals, the tenant served longest ago is first.
    num_turns: u64,
    parking: Parking,
    /// Parked requests whose wait has ended.
    woken: VecDeque<BTreeSet<ArrivalKey>>,
    /// Sum of all forecasts.
    total_micros: u64,
    /// Last request whose forecast was refreshed.
    refreshed: Option<ArrivalKey>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    waiting: Waiting,
    /// True if it was admitted before.
    is_preempted: bool,
    parked: Option<Until>,
}

/// The account of a tenant.
#[derive(Debug, Default)]
struct Account {
    preempted: BTreeSet<ArrivalKey>,
    by_rank: BTreeSet<(u64, ArrivalKey)>,
    by_deadline: BTreeSet<(Timestamp, ArrivalKey)>,
    num_parked: usize,
    num_running: usize,
    /// Microseconds of work.
    service: u64,
    last_turn: u64,
}

/// Order of a tenant among those with a request to examine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    has_running: bool,
    service: u64,
    last_turn: u64,
    tenant: TenantId,
}

impl Account {
    fn next(&self, now: Timestamp) -> Option<(ArrivalKey, bool)> {
        if let Some(&key) = self.preempted.first() {
            return Some((key, false));
        }
        match self.by_deadline.first() {
            Some(&(deadline, key)) if deadline <= now => Some((key, false)),
            _ => self.by_rank.first().map(|&(_, key)| (key, true)),
        }
    }

    fn turn(&self, tenant: TenantId) -> Turn {
        Turn { has_running: self.num_running > 0, service: self.service, last_turn: self.last_turn, tenant }
    }

    fn is_ready(&self) -> bool {
        !self.preempted.is_empty() || !self.by_rank.is_empty()
    }

    fn is_here(&self) -> bool {
        self.is_ready() || self.num_parked > 0 || self.num_running > 0
    }

    fn insert(&mut self, key: ArrivalKey, entry: &Entry) {
        let Entry { waiting: Waiting { forecast, deadline, .. }, is_preempted, parked } = *entry;
        match (parked, is_preempted) {
            (Some(_), _) => self.num_parked += 1,
            (None, true) => drop(self.preempted.insert(key)),
            (None, false) => {
                self.by_rank.insert((forecast.rank, key));
                self.by_deadline.insert((deadline, key));
            }
        }
    }

    fn remove(&mut self, key: ArrivalKey, entry: &Entry) {
        let Entry { waiting: Waiting { forecast, deadline, .. }, is_preempted, parked } = *entry;
        match (parked, is_preempted) {
            (Some(_), _) => self.num_parked -= 1,
            (None, true) => drop(self.preempted.remove(&key)),
            (None, false) => {
                self.by_rank.remove(&(forecast.rank, key));
                self.by_deadline.remove(&(deadline, key));
            }
        }
    }
}

impl RequestQueue {
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Returns the earliest arrival.
    pub(crate) fn oldest_arrival(&self) -> Option<Timestamp> {
        self.waiting.keys().next().map(|key| key.arrival)
    }

    /// Returns the predicted work of all requests that wait for their first admission, in microseconds.
    pub(crate) fn total_micros(&self) -> u64 {
        self.total_micros
    }

    /// True if more than one tenant has been here since all had left.
    pub(crate) fn has_several_tenants(&self) -> bool {
        self.tenants.len() + self.away.len() > 1
    }

    /// Returns the number of running sequences of `tenant`.
    pub(crate) fn num_running(&self, tenant: TenantId) -> usize {
        self.tenants.get(&tenant).map_or(0, |account| account.num_running)
    }

    pub(crate) fn push(&mut self, key: ArrivalKey, waiting: Waiting) {
        self.total_micros += waiting.forecast.micros;
        self.insert(key, Entry { waiting, is_preempted: false, parked: None });
    }

    /// Queues a preempted sequence. It is not charged again.
    pub(crate) fn push_preempted(&mut self, key: ArrivalKey, request_id: RequestId, tenant: TenantId) {
        let forecast = Forecast { rank: 0, micros: 0 };
        let waiting = Waiting { request_id, tenant, forecast, uncached_micros: 0, deadline: key.arrival };
        self.insert(key, Entry { waiting, is_preempted: true, parked: None });
        self.end_running(tenant);
    }

    fn insert(&mut self, key: ArrivalKey, entry: Entry) {
        self.change(entry.waiting.tenant, |account| account.insert(key, &entry));
        self.waiting.insert(key, entry);
    }

    /// Removes a request that starts running, and charges its tenant for the prompt.
    ///
    /// # Panics
    /// If it is not waiting.
    pub(crate) fn admit(&mut self, key: ArrivalKey) {
        let Waiting { tenant, uncached_micros, .. } = self.waiting[&key].waiting;
        self.change(tenant, |account| account.num_running += 1);
        self.remove(key);
        self.charge(tenant, uncached_micros);
    }

    /// Records that a running sequence of `tenant` has ended.
    pub(crate) fn end_running(&mut self, tenant: TenantId) {
        self.change(tenant, |account| account.num_running -= 1);
    }

    /// Charges `tenant` for `micros` of work.
    pub(crate) fn charge(&mut self, tenant: TenantId, micros: u64) {
        self.num_turns += 1;
        let last_turn = self.num_turns;
        if self.tenants.contains_key(&tenant) {
            self.change(tenant, |account| {
                account.service += micros;
                account.last_turn = last_turn;
            });
        } else if !self.tenants.is_empty() {
            let service = self.level_for(tenant) + micros;
            self.away.insert(tenant, service);
        }
    }

    /// Removes a request if it is waiting, parked or not.
    pub(crate) fn remove(&mut self, key: ArrivalKey) {
        let Some(entry) = self.waiting.remove(&key) else { return };
        self.total_micros -= entry.waiting.forecast.micros;
        if let Some(until) = entry.parked {
            self.parking.remove(key, until);
        }
        self.change(entry.waiting.tenant, |account| account.remove(key, &entry));
    }

    /// Returns the next request to admit at `now`, skipping the tenants `passed_over`. Returns the same one until the queue
    /// changes.
    pub(crate) fn next(&self, now: Timestamp, passed_over: &BTreeSet<TenantId>) -> Option<Ticket> {
        let Turn { tenant, .. } = *self.order.iter().find(|turn| !passed_over.contains(&turn.tenant))?;
        let (key, is_by_rank) = self.tenants[&tenant].next(now)?;
        let Waiting { request_id, forecast, .. } = self.waiting[&key].waiting;
        Some(Ticket { key, request_id, tenant, forecast: is_by_rank.then_some(forecast) })
    }

    /// Returns the next request of `tenant` that waits for its first admission.
    pub(crate) fn next_of(&self, tenant: TenantId, now: Timestamp) -> Option<&Waiting> {
        let (key, _) = self.tenants.get(&tenant)?.next(now)?;
        self.waiting.get(&key).filter(|entry| !entry.is_preempted).map(|entry| &entry.waiting)
    }

    /// Returns the entry of a waiting request.
    pub(crate) fn get(&self, key: ArrivalKey) -> Option<&Waiting> {
        self.waiting.get(&key).map(|entry| &entry.waiting)
    }

    /// Parks a waiting request until `until` occurs.
    pub(crate) fn park(&mut self, key: ArrivalKey, until: Until) {
        self.parking.insert(key, until);
        self.set_parked(key, Some(until));
    }

    /// Wakes the requests that wait for a block that was computed or cancelled. Returns true if there were any.
    pub(crate) fn wake_block(&mut self, hash: BlockHash) -> bool {
        let woken = self.parking.take_block(hash);
        self.wake(woken)
    }

    /// Wakes the requests that wait for the prompt of `owner`, computed or cancelled. Returns true if there were any.
    pub(crate) fn wake_prompt(&mut self, owner: RequestId) -> bool {
        let woken = self.parking.take_prompt(owner);
        self.wake(woken)
    }

    fn wake(&mut self, keys: BTreeSet<ArrivalKey>) -> bool {
        let is_any = !keys.is_empty();
        self.woken.extend(is_any.then_some(keys));
        is_any
    }

    /// Unparks requests that were woken, and those whose wait for a prompt has expired; at most [`MAX_UNPARKED_PER_STEP`] of
    /// each.
    pub(crate) fn unpark(&mut self, now: Timestamp) {
        for _ in 0..MAX_UNPARKED_PER_STEP {
            let Some((key, until)) = self.parking.take_due(now) else { break };
            if self.waiting.get(&key).is_some_and(|entry| entry.parked == Some(until)) {
                self.set_parked(key, None);
            }
        }
        for _ in 0..MAX_UNPARKED_PER_STEP {
            let Some(key) = self.next_woken() else { break };
            // It may have been aborted since, or its deadline has passed too.
            if self.waiting.get(&key).is_some_and(|entry| entry.parked.is_some()) {
                self.set_parked(key, None);
            }
        }
    }

    fn next_woken(&mut self) -> Option<ArrivalKey> {
        loop {
            match self.woken.front_mut()?.pop_first() {
                Some(key) => return Some(key),
                None => drop(self.woken.pop_front()),
            }
        }
    }

    /// True if some woken requests are still parked.
    pub(crate) fn has_woken(&self) -> bool {
        !self.woken.is_empty()
    }

    fn set_parked(&mut self, key: ArrivalKey, parked: Option<Until>) {
        let entry = self.waiting.get_mut(&key).expect("only waiting requests are parked");
        let before = *entry;
        entry.parked = parked;
        let after = *entry;
        self.change(after.waiting.tenant, |account| {
            account.remove(key, &before);
            account.insert(key, &after);
        });
    }

    /// Replaces the forecast for a request that waits for its first admission.
    pub(crate) fn set_forecast(&mut self, key: ArrivalKey, forecast: Forecast) {
        let entry = self.waiting.get_mut(&key).expect("only waiting requests are predicted");
        let before = *entry;
        entry.waiting.forecast = forecast;
        let after = *entry;
        self.change(after.waiting.tenant, |account| {
            account.remove(key, &before);
            account.insert(key, &after);
        });
        self.total_micros = self.total_micros - before.waiting.forecast.micros + forecast.micros;
    }

    /// Returns the next `count` requests to forecast again, round-robin by arrival. Skips preempted ones.
    pub(crate) fn next_to_refresh(&mut self, count: usize) -> Vec<(ArrivalKey, RequestId)> {
        let after = self.refreshed.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = self.waiting.range((after, Bound::Unbounded));
        let round: Vec<_> = behind.chain(&self.waiting).take(count.min(self.waiting.len())).collect();
        self.refreshed = round.last().map(|&(&key, _)| key);
        let unknown = round.into_iter().filter(|(_, entry)| !entry.is_preempted);
        unknown.map(|(&key, entry)| (key, entry.waiting.request_id)).collect()
    }

    /// Changes the account of a tenant, and its place in the order.
    fn change(&mut self, tenant: TenantId, change: impl FnOnce(&mut Account)) {
        let mut account = match self.tenants.remove(&tenant) {
            Some(account) => account,
            None => Account { service: self.level_for(tenant), ..Account::default() },
        };
        self.away.remove(&tenant);
        self.order.remove(&account.turn(tenant));
        self.by_service.remove(&(account.service, tenant));
        change(&mut account);
        if !account.is_here() {
            return self.leave(tenant, account.service);
        }
        if account.is_ready() {
            self.order.insert(account.turn(tenant));
        }
        self.by_service.insert((account.service, tenant));
        self.tenants.insert(tenant, account);
    }

    /// Returns the initial service of an absent tenant: no less than that of the least served one here.
    fn level_for(&self, tenant: TenantId) -> u64 {
        let least = self.by_service.first().map_or(self.level, |&(service, _)| service);
        self.away.get(&tenant).map_or(least, |&service| service.max(least))
    }

    /// Remembers the service of a leaving tenant as long as other tenants are here.
    fn leave(&mut self, tenant: TenantId, service: u64) {
        if self.tenants.is_empty() {
            self.level = self.level.max(service);
            self.away.clear();
        } else {
            self.away.insert(tenant, service);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(arrival_us: u64, ordinal: u64) -> ArrivalKey {
        ArrivalKey { arrival: Timestamp::from_micros(arrival_us), ordinal }
    }

    /// Returns a request that is due 100 us after its arrival and costs 7 ms without a cache.
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

    /// Fills a queue with `requests`, `arrival_us:rank` each, named r0, r1, ... in this order; returns the order in which they
    /// leave at `now_us`.
    #[track_caller]
    fn check(requests: &str, now_us: u64, expected: &str) {
        let mut queue = RequestQueue::default();
        for (ordinal, request) in (0..).zip(requests.split_whitespace()) {
            let (arrival, rank) = request.split_once(':').unwrap();
            let arrival_us = arrival.parse().unwrap();
            match rank {
                "preempted" => {
                    queue.push(key(arrival_us, ordinal), waiting(ordinal, arrival_us, 0));
                    queue.admit(key(arrival_us, ordinal));
                    queue.push_preempted(key(arrival_us, ordinal), RequestId(ordinal), TenantId(0));
                }
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
    fn a_request_that_is_due_is_overtaken_no_more() {
        check("1:50 2:70 90:9", 103, "r0 r1 r2");
        check("1:50 3:70 90:9", 102, "r0 r2 r1");
    }

    #[test]
    fn preempted_ones_go_before_all_of_their_tenant() {
        check("1:50 2:1 90:preempted", 500, "r2 r0 r1");
    }

    #[test]
    fn a_tenant_passed_over_stays() {
        let mut queue = RequestQueue::default();
        queue.push(key(0, 0), Waiting { tenant: TenantId(1), ..waiting(0, 0, 5) });
        queue.push(key(0, 1), Waiting { tenant: TenantId(2), ..waiting(1, 0, 7) });
        let next = |passed_over: &[u32]| {
            let passed_over = passed_over.iter().map(|&tenant| TenantId(tenant)).collect();
            queue.next(Timestamp::default(), &passed_over).map(|ticket| ticket.request_id.0)
        };
        assert_eq!(next(&[1]), Some(1));
        assert_eq!(next(&[1, 2]), None);
        assert_eq!(next(&[]), Some(0));
    }

    #[test]
    fn forecasts_are_renewed_round_and_round() {
        let mut queue = RequestQueue::default();
        (0..3).for_each(|ordinal| queue.push(key(0, ordinal), waiting(ordinal, 0, 5)));
        let mut refresh = |count| queue.next_to_refresh(count).into_iter().map(|(_, id)| id.0).collect::<Vec<_>>();
        assert_eq!(refresh(2), [0, 1]);
        assert_eq!(refresh(2), [2, 0]);
        assert_eq!(refresh(9), [1, 2, 0]);
        queue.set_forecast(key(0, 2), Forecast { rank: 1, micros: 3 });
        assert_eq!(queue.total_micros(), 50 + 50 + 3);
        assert_eq!(drain(&mut queue, 0), "r2 r0 r1");
    }

    #[test]
    fn parked_requests_are_passed_over_until_they_are_woken() {
        let mut queue = RequestQueue::default();
        (0..4).for_each(|ordinal| queue.push(key(0, ordinal), waiting(ordinal, 0, ordinal)));
        let owner = RequestId(9);
        queue.park(key(0, 0), Until::Block(BlockHash(7)));
        queue.park(key(0, 1), Until::Prompt(owner, Timestamp::from_micros(50)));
        queue.park(key(0, 2), Until::Prompt(owner, Timestamp::from_micros(60)));
        let next = |queue: &RequestQueue| queue.next(Timestamp::default(), &BTreeSet::new()).map(|ticket| ticket.request_id.0);
        assert_eq!(next(&queue), Some(3));
        queue.unpark(Timestamp::from_micros(50));
        assert_eq!(next(&queue), Some(1));
        assert!(queue.wake_block(BlockHash(7)) && !queue.wake_block(BlockHash(7)));
        queue.unpark(Timestamp::default());
        assert_eq!(next(&queue), Some(0));
        assert!(queue.wake_prompt(owner) && !queue.wake_prompt(owner) && queue.has_woken());
        queue.unpark(Timestamp::from_micros(60));
        queue.park(key(0, 3), Until::Prompt(owner, Timestamp::from_micros(70)));
        queue.remove(key(0, 3));
        assert!(!queue.wake_prompt(owner));
        assert_eq!(drain(&mut queue, 0), "r0 r1 r2");
    }

    /// Returns a queue of `requests`, `tenant:cost_ms` each, named r0, r1, ... The later, the lower the rank.
    fn queue_of(requests: &str) -> RequestQueue {
        let mut queue = RequestQueue::default();
        for (ordinal, request) in (0..).zip(requests.split_whitespace()) {
            let (tenant, cost) = request.split_once(':').unwrap();
            let (tenant, cost): (u32, u64) = (tenant.parse().unwrap(), cost.parse().unwrap());
            let waiting =
                Waiting { tenant: TenantId(tenant), uncached_micros: 1_000 * cost, ..waiting(ordinal, 0, 1_000 - ordinal) };
            queue.push(key(ordinal, ordinal), waiting);
        }
        queue
    }

    #[test]
    fn tenants_take_turns_by_what_their_prompts_cost_without_a_cache() {
        assert_eq!(drain(&mut queue_of("1:20 1:20 1:20 2:20 2:20"), 0), "r2 r4 r1 r3 r0");
        assert_eq!(drain(&mut queue_of("1:60 1:60 2:20 2:20 2:20 2:20"), 0), "r1 r5 r4 r3 r0 r2");
    }

    #[test]
    fn answers_count_token_by_token() {
        let mut queue = queue_of("1:20 1:20 1:20 2:20 2:20");
        assert_eq!(queue.next(Timestamp::default(), &BTreeSet::new()).map(|ticket| ticket.request_id.0), Some(2));
        queue.admit(key(2, 2));
        queue.admit(key(4, 4));
        queue.charge(TenantId(1), 1);
        assert_eq!(drain(&mut queue, 0), "r3 r1 r0");
    }

    #[test]
    fn a_tenant_with_nothing_running_goes_first() {
        let mut queue = queue_of("1:20 2:20 2:20 3:20");
        queue.charge(TenantId(3), 900_000);
        queue.admit(key(0, 0));
        queue.admit(key(2, 2));
        queue.end_running(TenantId(1));
        assert_eq!(drain(&mut queue, 0), "r3 r1");
    }

    #[test]
    fn a_tenant_that_was_away_has_saved_nothing_and_owes_what_it_took() {
        let mut queue = queue_of("1:20");
        assert_eq!(drain(&mut queue, 0), "r0");
        queue.end_running(TenantId(1));
        let of = |tenant, ordinal| Waiting { tenant: TenantId(tenant), ..waiting(ordinal, 0, ordinal) };
        (1..4).for_each(|ordinal| queue.push(key(0, ordinal), of(2, ordinal)));
        (4..7).for_each(|ordinal| queue.push(key(0, ordinal), of(1, ordinal)));
        assert_eq!(drain(&mut queue, 0), "r4 r1 r5 r2 r6 r3");
        (0..3).for_each(|_| queue.end_running(TenantId(1)));
        queue.charge(TenantId(1), 14_000);
        (7..10).for_each(|ordinal| queue.push(key(0, ordinal), of(2, ordinal)));
        (10..12).for_each(|ordinal| queue.push(key(0, ordinal), of(1, ordinal)));
        assert_eq!(drain(&mut queue, 0), "r10 r7 r8 r9 r11");
    }

    #[test]
    fn a_flood_delays_others_by_one_request() {
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
        assert!(place <= 1, "{place} requests of 30 ms went before one of 90 ms");
    }
}
