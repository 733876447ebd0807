//! Selects the sequence to preempt when seats or blocks run out.
//!
//! Tenants share seats and blocks like rows. A tenant with nothing running gets the next seat at the next step: if no seat or
//! room is free, the scheduler preempts the newest sequence of the tenant that holds most, as long as that has more than its part
//! and more than one sequence. If there are more tenants than seats, or their only sequences fill the pool, they take turns. A
//! request that needs more than its tenant's part of the pool waits until the pool empties by itself; after a long wait, it
//! claims what it needs, and no other request is admitted before it.
//!
//! A preempted sequence is readmitted before others of its tenant, and is then protected until it has gained more than it lost:
//! at most half of all work is done twice.

use std::collections::BTreeMap;

use tokens::{RequestId, TenantId};

use super::Scheduler;
use super::hit::Hit;
use super::share::Demand;
use crate::queue::Ticket;
use crate::sequence::Sequence;

/// Steps of a sequence after which another tenant may take its seat although its own has no second one. Chosen: a few dozen
/// tokens make a readmission worth while.
const TURN_STEPS: u64 = 64;

/// Steps after which a request that was refused for lack of blocks claims them. Chosen: most sequences end in that time.
const CLAIM_STEPS: u64 = 256;

/// Minimum tokens that a request gains by a claim. Chosen: as many steps as a turn.
const CLAIM_GAIN: u32 = 64;

/// Result of the search for a seat and blocks for a request.
pub(super) enum SeatOutcome {
    /// A seat and room are available.
    Available,
    /// No seat or no room is available.
    Unavailable,
    /// Both become available once others may be preempted, if no other request takes them.
    Claimed,
}

/// Seats and blocks that a tenant holds.
#[derive(Clone, Copy, Debug, Default)]
struct Holding {
    seats: usize,
    blocks: usize,
}

/// The resource that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    Seat,
    /// Blocks, for a request within its tenant's part of the pool.
    Blocks,
    /// Blocks, for a request that has waited long.
    Claim,
}

impl Scheduler {
    /// True if a seat is free or can be freed for `tenant`.
    pub(super) fn may_have_seat(&self, tenant: TenantId) -> bool {
        self.running.len() < self.config.max_num_seqs || self.victim(tenant, Missing::Seat, &[]).is_some()
    }

    /// Finds a seat and room for a request after `hit`, preempting others where it may.
    pub(super) fn find_seat(&mut self, ticket: Ticket, hit: &Hit, demand: &mut Demand) -> SeatOutcome {
        let mut victims = Vec::new();
        if self.running.len() == self.config.max_num_seqs {
            let Some(victim) = self.victim(ticket.tenant, Missing::Seat, &[]) else { return SeatOutcome::Unavailable };
            victims.push(victim);
        }
        let missing = self.missing(ticket);
        self.reclaim_for(ticket, hit);
        loop {
            let freed: usize = victims.iter().map(|victim| self.sequences[victim].lease.len()).sum();
            match self.room(ticket.request_id, hit) {
                kv::Allocation::Ready(()) => break,
                kv::Allocation::QuotaExhausted { .. } => return SeatOutcome::Unavailable,
                // Each victim also frees the headroom block for its own growth.
                kv::Allocation::CapacityExhausted { short_by } if short_by <= freed + victims.len() => break,
                kv::Allocation::CapacityExhausted { .. } => {
                    match missing.and_then(|missing| self.victim(ticket.tenant, missing, &victims)) {
                        Some(victim) => victims.push(victim),
                        None => return self.refuse_seat(ticket, hit),
                    }
                }
            }
        }
        self.preempt_all(ticket.request_id, victims, demand);
        // Blocks that victims shared with others were not freed.
        while !matches!(self.room(ticket.request_id, hit), kv::Allocation::Ready(())) {
            match missing.and_then(|missing| self.victim(ticket.tenant, missing, &[])) {
                Some(victim) => self.preempt_all(ticket.request_id, vec![victim], demand),
                None => return self.refuse_seat(ticket, hit),
            }
        }
        if missing == Some(Missing::Claim) {
            let sequence = self.sequences.get_mut(&ticket.request_id).expect("a waiting sequence is known");
            sequence.seat_term.claimed_until = sequence.num_tokens() + CLAIM_GAIN;
        }
        SeatOutcome::Available
    }

    fn preempt_all(&mut self, for_request: RequestId, victims: Vec<RequestId>, demand: &mut Demand) {
        for victim in victims {
            tracing::debug!(%victim, %for_request, "preempted for another tenant");
            demand.remove(victim);
            self.preempt(victim);
        }
    }

    fn room(&self, request_id: RequestId, hit: &Hit) -> kv::Allocation<()> {
        let sequence = &self.sequences[&request_id];
        let num_new = self.config.block_size.blocks_for(sequence.num_tokens() as usize) - hit.num_blocks();
        self.pool.check_room(&self.slot_request(sequence, hit, num_new))
    }

    /// Evicts KV kept for conversations until there is room.
    fn reclaim_for(&mut self, ticket: Ticket, hit: &Hit) {
        loop {
            let of_tenant = match self.room(ticket.request_id, hit) {
                kv::Allocation::Ready(()) => return,
                kv::Allocation::CapacityExhausted { .. } => None,
                kv::Allocation::QuotaExhausted { .. } => Some(ticket.tenant),
            };
            if !self.reclaim(of_tenant, hit.kept_id()) {
                return;
            }
        }
    }

    /// Returns the resource for which a request may preempt others, if any.
    fn missing(&self, ticket: Ticket) -> Option<Missing> {
        let sequence = &self.sequences[&ticket.request_id];
        if sequence.seat_term.short_since.is_some_and(|since| self.num_steps - since >= CLAIM_STEPS) {
            return Some(Missing::Claim);
        }
        let num_tenants = self.holdings(ticket.tenant).len();
        let is_within_part = self.num_blocks_of(sequence) * num_tenants <= self.config.num_blocks;
        (self.queue.num_running(ticket.tenant) == 0 && is_within_part).then_some(Missing::Blocks)
    }

    /// Records that a request is refused for lack of blocks. When it claims them, others wait for it as long as its own tenant
    /// does not hold what it needs.
    fn refuse_seat(&mut self, ticket: Ticket, hit: &Hit) -> SeatOutcome {
        let own = self.holdings(ticket.tenant)[&ticket.tenant];
        let sequence = &self.sequences[&ticket.request_id];
        let num_needed = self.num_blocks_of(sequence) - hit.num_blocks() + own.blocks + own.seats;
        let is_claim = self.missing(ticket) == Some(Missing::Claim);
        let num_steps = self.num_steps;
        let sequence = self.sequences.get_mut(&ticket.request_id).expect("a waiting sequence is known");
        sequence.seat_term.short_since.get_or_insert(num_steps);
        if is_claim && num_needed <= self.config.num_blocks { SeatOutcome::Claimed } else { SeatOutcome::Unavailable }
    }

    fn num_blocks_of(&self, sequence: &Sequence) -> usize {
        self.config.block_size.blocks_for(sequence.num_tokens() as usize)
    }

    /// Returns the holdings of each tenant with running sequences, and of `also`.
    fn holdings(&self, also: TenantId) -> BTreeMap<TenantId, Holding> {
        let mut holdings = BTreeMap::from([(also, Holding::default())]);
        for sequence in self.running.iter().map(|id| &self.sequences[id]) {
            let holding = holdings.entry(sequence.request.tenant).or_default();
            holding.seats += 1;
            holding.blocks += sequence.lease.len();
        }
        holdings
    }

    /// Selects the sequence to preempt for `tenant`, besides those in `already`: the newest of the tenant that holds most, or one
    /// that has had its turn.
    fn victim(&self, tenant: TenantId, missing: Missing, already: &[RequestId]) -> Option<RequestId> {
        let mut holdings = self.holdings(tenant);
        for victim in already {
            let sequence = &self.sequences[victim];
            let holding = holdings.get_mut(&sequence.request.tenant).expect("a victim runs");
            holding.seats -= 1;
            holding.blocks -= sequence.lease.len();
        }
        let part = self.config.num_blocks / holdings.len();
        let amount = |other: TenantId| match missing {
            Missing::Seat => holdings[&other].seats,
            Missing::Blocks | Missing::Claim => holdings[&other].blocks,
        };
        let has_more_than_its_part = |other: TenantId| match missing {
            Missing::Seat => amount(other) > 1,
            Missing::Blocks => amount(other) > part && holdings[&other].seats > 1,
            Missing::Claim => true,
        };
        let may_lose_turn = |other: TenantId| missing == Missing::Seat || missing == Missing::Blocks && amount(other) > part;
        let candidates = || {
            let others = self.running.iter().map(|id| &self.sequences[id]).enumerate();
            others.filter(|(_, sequence)| {
                let may_go = self.may_be_preempted(sequence) && !already.contains(&sequence.request_id);
                may_go && sequence.request.tenant != tenant
            })
        };
        let rich = candidates().filter(|(_, sequence)| has_more_than_its_part(sequence.request.tenant));
        let newest = rich.max_by_key(|&(idx, sequence)| (amount(sequence.request.tenant), idx));
        let has_had_turn = |sequence: &Sequence| self.num_steps - sequence.seat_term.since >= TURN_STEPS;
        let longest = || {
            let seated = candidates().filter(|(_, sequence)| may_lose_turn(sequence.request.tenant) && has_had_turn(sequence));
            seated.min_by_key(|&(idx, sequence)| (sequence.seat_term.since, idx))
        };
        newest.or_else(longest).map(|(_, sequence)| sequence.request_id)
    }

    /// True if a running sequence may be preempted: it has computed something since its admission, and no less than it lost
    /// before.
    fn may_be_preempted(&self, sequence: &Sequence) -> bool {
        sequence.seat_term.since < self.num_steps && sequence.num_computed_tokens() >= sequence.seat_term.protected_until
    }

    /// Selects the running sequence to preempt when one has no room to grow: the newest of the tenant that holds most, if it may
    /// be preempted.
    pub(super) fn victim_of_growth(&self) -> RequestId {
        let last = *self.running.last().expect("a sequence that grows is running");
        let holdings = self.holdings(self.sequences[&last].request.tenant);
        if holdings.len() == 1 {
            return last;
        }
        let running = self.running.iter().map(|id| &self.sequences[id]).enumerate();
        let rank = |&(idx, sequence): &(usize, &Sequence)| {
            (self.may_be_preempted(sequence), holdings[&sequence.request.tenant].blocks, idx)
        };
        running.max_by_key(rank).map_or(last, |(_, sequence)| sequence.request_id)
    }

    /// Returns the running sequence of `tenant` that was admitted last.
    ///
    /// # Panics
    /// If `tenant` has no running sequence.
    pub(super) fn last_of(&self, tenant: TenantId) -> RequestId {
        let mut newest_first = self.running.iter().rev();
        *newest_first.find(|id| self.sequences[*id].request.tenant == tenant).expect("a sequence that grows is running")
    }
}
