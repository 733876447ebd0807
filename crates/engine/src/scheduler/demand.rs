//! Rows that sequences could compute in the step being scheduled.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokens::{RequestId, TenantId, Timestamp};

use super::Scheduler;
use super::share::{Demand, Prompt};
use crate::SchedulePolicy;
use crate::cost::Work;
use crate::queue::Ticket;
use crate::sequence::Sequence;

/// Maximum ratio of a step of prompts to one whose rows all belong to a prompt of as many tokens. Chosen: smaller steps cost more
/// each, and this is hardly reached below some 10,000 tokens.
const MAX_STEP_RATIO: f64 = 1.5;

/// Part of the time of another tenant's shortest recent prompt that the prompts of a tenant take. Chosen: that prompt waits for
/// such a step and shares the next, and is done after 2.5 times its own time.
const SHORT_PROMPT_PART: f64 = 0.75;

/// Maximum ratio of tokens at which a prompt counts as about as short as another one. Chosen.
const ABOUT_AS_SHORT: u32 = 2;

/// Minimum ratio of the time of a tenant's prompts to the cost of a step without rows. Chosen: they keep three quarters of their
/// throughput.
const MIN_STEP_COST_RATIO: f64 = 3.0;

impl Scheduler {
    /// Demand of all running sequences.
    pub(super) fn demand(&self, now: Timestamp) -> Demand {
        let num_rows = self.config.max_num_batched_tokens as u32;
        let full_micros = self.step_costs.exact_micros(Work::of_rows(num_rows, num_rows));
        let mut demand = Demand {
            prompts: Vec::new(),
            answers: HashMap::new(),
            num_measured: 0,
            max_rows: self.token_budget(),
            full_micros,
            max_micros: if self.queue.has_several_tenants() { MAX_STEP_RATIO * full_micros } else { f64::INFINITY },
            long_share: self.config.long_prompt_share,
            ranks_prompts: self.config.policy == SchedulePolicy::RemainingWork,
            next_micros: BTreeMap::new(),
        };
        self.running.iter().for_each(|&request_id| self.add_demand(request_id, &mut demand));
        let tenants: BTreeSet<_> = demand.prompts.iter().map(|prompt| prompt.tenant).collect();
        let next_of = |tenant| Some((tenant, self.queue.next_of(tenant, now)?.forecast.micros));
        demand.next_micros = tenants.into_iter().filter_map(next_of).collect();
        demand
    }

    /// Adds the rows that a running sequence could compute.
    pub(super) fn add_demand(&self, request_id: RequestId, demand: &mut Demand) {
        let prompt = self.prompt(&self.sequences[&request_id]);
        match prompt.rows {
            0 => drop(demand.answers.insert(request_id, prompt.tenant)),
            _ => demand.prompts.push(prompt),
        }
    }

    fn prompt(&self, sequence: &Sequence) -> Prompt {
        let num_rows = sequence.num_rows_left() as usize + sequence.num_due();
        let (num_left, end) = (sequence.num_rows_left(), sequence.num_tokens());
        let micros = self.micros_left(sequence);
        Prompt {
            request_id: sequence.request_id,
            tenant: sequence.request.tenant,
            rows: num_rows - 1,
            micros,
            uncached_micros: self.step_costs.micros(Work::of_rows(end, end)),
            row_micros: self
                .step_costs
                .exact_micros(Work::of_rows(1, end - num_left + num_left.min(self.config.max_num_batched_tokens as u32) / 2)),
            tenant_micros: self.tenant_micros(sequence.request.tenant, end),
            is_new: sequence.seat_term.since == self.num_steps,
        }
    }

    /// Returns the time that prompts of `tenant`, including one of `num_tokens`, may take in a step. That prompt is not cut if it
    /// is about as short as those of others.
    fn tenant_micros(&self, tenant: TenantId, num_tokens: u32) -> f64 {
        let Some(shortest) = self.recent.shortest_of_others(tenant) else { return f64::INFINITY };
        let micros = |num_tokens| self.step_costs.exact_micros(Work::of_rows(num_tokens, num_tokens));
        let whole = if num_tokens <= ABOUT_AS_SHORT * shortest { micros(num_tokens) } else { 0.0 };
        whole.max(SHORT_PROMPT_PART * micros(shortest)).max(MIN_STEP_COST_RATIO * self.step_costs.prompt_step_micros())
    }

    /// Returns the rows that a waiting request would compute.
    pub(super) fn wanted(&self, ticket: Ticket) -> Prompt {
        let prompt = self.prompt(&self.sequences[&ticket.request_id]);
        let forecast = self.queue.get(ticket.key).map(|waiting| waiting.forecast.micros).filter(|&micros| micros > 0);
        Prompt { micros: forecast.unwrap_or(prompt.micros), ..prompt }
    }

    /// Predicts the microseconds of a step that computes one row of each sequence in decode.
    pub(super) fn answer_micros(&self, demand: &Demand) -> f64 {
        let mut work = Work::default();
        for request_id in demand.answers.keys() {
            work += Work::of_rows(1, self.sequences[request_id].num_tokens());
        }
        self.step_costs.step_micros(work) as f64
    }
}
