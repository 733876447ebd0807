//! How the rows of a step are divided.
//!
//! Every running sequence gets one row, which is all that an answer needs. The other rows are for prompts. Tenants get equal parts of
//! them, and what one does not need goes to the others, so nobody is limited while no other tenant has use for a row. A tenant whose
//! shortest prompt is longer than one of another tenant gets the smaller part for it, in proportion, down to `long_prompt_share`. So a
//! prompt of many steps never keeps another tenant from a first token, however long it has been here. Lengths are those without any
//! cache: what others have cached is not told.
//!
//! Beside answers of other tenants, the time that prompts take in a step is bounded by what the step takes without them: otherwise each
//! token of those answers would take as long as a step full of prompt.
//!
//! Within a tenant prompts go in the order of their admission; by [`SchedulePolicy::RemainingWork`], one gets `long_prompt_share` while a
//! far shorter one runs or is next. Only those who are far shorter profit: if several long prompts went on beside each other, all of
//! them would end when the last one does.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokens::{RequestId, TenantId, Timestamp};

use super::Scheduler;
use crate::SchedulePolicy;
use crate::cost::Work;
use crate::queue::Ticket;
use crate::sequence::Sequence;

/// A prompt is long beside another one that has this many times less work (algorithms of batch formation bin by the same ratio).
const LONG_RATIO: u64 = 4;

/// Prompts take at most this many times as long as the rest of a step with answers of other tenants. Chosen: those answers take three
/// times as long as alone, and a prompt 1.5 times.
const PROMPT_TIME_RATIO: f64 = 2.0;

/// Of a step's rows, prompts get at least one in so many all the same. Chosen: the prediction may be far off.
const MIN_PROMPT_PART: usize = 32;

/// A sequence with more than one row to compute.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prompt {
    request_id: RequestId,
    tenant: TenantId,
    /// Rows it could compute, but for the one that every sequence gets.
    rows: usize,
    /// Predicted time to its first token: known to its own tenant only.
    micros: u64,
    /// What it would be without any cache: what others may see.
    uncached_micros: u64,
    /// Predicted time of one row.
    row_micros: f64,
    /// It is admitted in this step.
    is_new: bool,
}

/// What running sequences could compute in the step that is being chosen.
#[derive(Debug)]
pub(super) struct Demand {
    /// In the order of their admission.
    prompts: Vec<Prompt>,
    /// Tenant of each running sequence that needs one row.
    answers: HashMap<RequestId, TenantId>,
    /// Running sequences whose spans are measured have no rows, but cost as much as these.
    num_measured: usize,
    max_rows: usize,
    long_share: f64,
    ranks_prompts: bool,
    /// Predicted time of the next one that waits of each tenant with prompts.
    next_micros: BTreeMap<TenantId, u64>,
}

/// What prompts of a tenant could compute.
#[derive(Clone, Copy, Debug)]
struct Claim {
    rows: usize,
    /// Of its shortest prompt.
    uncached_micros: u64,
    /// Mean over its rows.
    row_micros: f64,
}

impl Prompt {
    /// Whether one of the same tenant that takes `micros` is far shorter.
    fn is_long_beside(&self, micros: u64) -> bool {
        micros.saturating_mul(LONG_RATIO) <= self.micros
    }

    fn add_to(&self, claims: &mut BTreeMap<TenantId, Claim>) {
        let &Self { tenant, rows, uncached_micros, row_micros, .. } = self;
        let claim = claims.entry(tenant).or_insert(Claim { rows: 0, uncached_micros, row_micros });
        let sum = claim.rows.saturating_add(rows);
        claim.row_micros += (row_micros - claim.row_micros) * (rows as f64 / sum.max(1) as f64);
        claim.rows = sum;
        claim.uncached_micros = claim.uncached_micros.min(uncached_micros);
    }
}

impl Demand {
    pub(super) fn add_measured(&mut self, num_rows: usize) {
        self.num_measured += num_rows;
    }

    pub(super) fn remove(&mut self, request_id: RequestId) {
        self.prompts.retain(|prompt| prompt.request_id != request_id);
        self.answers.remove(&request_id);
    }

    /// Rows that are left when each running sequence has one.
    fn num_free(&self) -> usize {
        self.max_rows.saturating_sub(self.prompts.len() + self.answers.len() + self.num_measured)
    }

    fn claims(&self) -> BTreeMap<TenantId, Claim> {
        let mut claims = BTreeMap::new();
        self.prompts.iter().for_each(|prompt| prompt.add_to(&mut claims));
        claims
    }

    /// Whether a row is left for `wanted` if it runs in this step too.
    pub(super) fn has_rows_for(&self, wanted: &Prompt) -> bool {
        let mut claims = self.claims();
        Prompt { rows: usize::MAX, ..*wanted }.add_to(&mut claims);
        let granted = self.divide(&claims, self.num_free())[&wanted.tenant];
        let limit = self.long_limit(granted);
        let own = self.prompts.iter().filter(|prompt| prompt.tenant == wanted.tenant);
        let taken = own.map(|prompt| match self.ranks_prompts && prompt.is_long_beside(wanted.micros) {
            true => prompt.rows.min(limit),
            false => prompt.rows,
        });
        taken.sum::<usize>() < granted
    }

    /// Rows of each running sequence besides its first one; those that get none are left out.
    pub(super) fn grants(&self, answer_micros: f64) -> HashMap<RequestId, usize> {
        let claims = self.claims();
        let mut granted = self.divide(&claims, self.num_free());
        self.spare_answers(&claims, &mut granted, answer_micros);
        let mut grants = HashMap::new();
        for (tenant, num_rows) in granted {
            self.grant_within(tenant, num_rows, &mut grants);
        }
        grants
    }

    /// Divides `num_rows` among tenants.
    fn divide(&self, claims: &BTreeMap<TenantId, Claim>, num_rows: usize) -> BTreeMap<TenantId, usize> {
        let shortest = claims.values().map(|claim| claim.uncached_micros).min().unwrap_or(0) as f64;
        let least = self.long_share / (1.0 - self.long_share).max(self.long_share);
        let weight = |claim: &Claim| (shortest / claim.uncached_micros.max(1) as f64).max(least).clamp(1e-9, 1.0);
        let wanted: Vec<_> = claims.iter().map(|(&id, claim)| (id, claim.rows, weight(claim))).collect();
        let mut granted = BTreeMap::new();
        fill(wanted, num_rows, &mut granted);
        granted
    }

    /// Bounds the time of prompts beside answers of other tenants, which take `answer_micros`. What they give up goes to those whose own
    /// answers those are.
    fn spare_answers(&self, claims: &BTreeMap<TenantId, Claim>, granted: &mut BTreeMap<TenantId, usize>, answer_micros: f64) {
        let answering: BTreeSet<_> = self.answers.values().collect();
        let is_limited = |tenant: &TenantId| answering.iter().any(|&other| other != tenant);
        let limited = || granted.iter().filter(|(tenant, _)| is_limited(tenant));
        let micros: f64 = limited().map(|(tenant, &rows)| rows as f64 * claims[tenant].row_micros).sum();
        let num_rows: usize = limited().map(|(_, rows)| rows).sum();
        let least = (self.max_rows / MIN_PROMPT_PART) as f64 / num_rows.max(1) as f64;
        let scale = (PROMPT_TIME_RATIO * answer_micros / micros).max(least);
        if num_rows == 0 || micros == 0.0 || scale >= 1.0 {
            return;
        }
        let before: usize = granted.values().sum();
        granted.iter_mut().filter(|(tenant, _)| is_limited(tenant)).for_each(|(_, rows)| *rows = (*rows as f64 * scale) as usize);
        let left = before - granted.values().sum::<usize>();
        let others = claims.iter().filter(|(id, _)| !is_limited(id));
        fill(others.map(|(&id, claim)| (id, claim.rows - granted[&id], 1.0)).collect(), left, granted);
    }

    /// Rows of a long prompt besides its first one, in a tenant that is granted `num_rows`.
    fn long_limit(&self, num_rows: usize) -> usize {
        let part = num_rows as f64 / self.num_free().max(1) as f64;
        (self.max_rows as f64 * part * self.long_share).ceil().max(1.0) as usize - 1
    }

    /// Divides `num_rows` among the prompts of one tenant.
    fn grant_within(&self, tenant: TenantId, num_rows: usize, grants: &mut HashMap<RequestId, usize>) {
        let own: Vec<_> = self.prompts.iter().filter(|prompt| prompt.tenant == tenant).collect();
        let shortest = own.iter().map(|prompt| prompt.micros).chain(self.next_micros.get(&tenant).copied()).min();
        let may_be_limited = |prompt: &Prompt| self.ranks_prompts && !prompt.is_new;
        let is_long = |prompt: &Prompt| may_be_limited(prompt) && shortest.is_some_and(|micros| prompt.is_long_beside(micros));
        let limit = self.long_limit(num_rows);
        let mut left = num_rows;
        for prompt in own {
            let limit = if is_long(prompt) { limit } else { usize::MAX };
            let granted = prompt.rows.min(limit).min(left);
            grants.insert(prompt.request_id, granted);
            left -= granted;
        }
    }
}

/// Adds to what is `granted` of `num_rows` to each of `wanted` a part by its weight, and no more than it wants.
fn fill(mut wanted: Vec<(TenantId, usize, f64)>, num_rows: usize, granted: &mut BTreeMap<TenantId, usize>) {
    let mut weights: f64 = wanted.iter().map(|&(.., weight)| weight).sum();
    // Those who are content with less than their part come first, so that what they leave goes to all others.
    wanted.sort_by(|a, b| (a.1 as f64 / a.2).total_cmp(&(b.1 as f64 / b.2)).then(a.0.cmp(&b.0)));
    let (num_wanted, mut left) = (wanted.len(), num_rows);
    for (idx, (id, rows, weight)) in wanted.into_iter().enumerate() {
        let part = if idx + 1 == num_wanted { left } else { (left as f64 * weight / weights) as usize };
        let more = rows.min(part);
        *granted.entry(id).or_insert(0) += more;
        left -= more;
        weights -= weight;
    }
}

impl Scheduler {
    /// What all running sequences could compute.
    pub(super) fn demand(&self, now: Timestamp) -> Demand {
        let mut demand = Demand {
            prompts: Vec::new(),
            answers: HashMap::new(),
            num_measured: 0,
            max_rows: self.token_budget(),
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

    /// Adds what a running sequence could compute.
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
            uncached_micros: self.step_times.micros(Work::of_rows(end, end)),
            row_micros: self.step_times.exact_micros(Work::of_rows(1, end - num_left / 2)),
            is_new: sequence.tenure.since == self.num_steps,
        }
    }

    /// What a waiting request would compute.
    pub(super) fn wanted(&self, ticket: Ticket) -> Prompt {
        let prompt = self.prompt(&self.sequences[&ticket.request_id]);
        let forecast = self.queue.get(ticket.key).map(|waiting| waiting.forecast.micros).filter(|&micros| micros > 0);
        Prompt { micros: forecast.unwrap_or(prompt.micros), ..prompt }
    }

    /// Predicted time of a step that computes one row of each sequence that answers, in microseconds.
    pub(super) fn answer_micros(&self, demand: &Demand) -> f64 {
        let mut work = Work::default();
        for request_id in demand.answers.keys() {
            work += Work::of_rows(1, self.sequences[request_id].num_tokens());
        }
        self.step_times.step_micros(work) as f64
    }
}
