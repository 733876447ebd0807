//! Divides the rows of a step among requests.
//!
//! Every running sequence gets one row, which suffices for decode. The other rows are for prompts. Tenants get equal parts of the
//! time they take, and the unused part of one goes to the others: a tenant is limited only while another one can use a row. A
//! tenant whose shortest prompt is longer than one of another tenant gets the smaller part for it, in proportion, down to
//! `long_prompt_share`. So a prompt of many steps never keeps another tenant from a first token, however long it has been
//! running. Lengths are those without any cache: the division does not reveal what other tenants have cached.
//!
//! While several tenants come and go, the prompts of one of them take less time in a step than the shortest recent prompt of
//! another one: that tenant may send another, which then waits for the end of a step and shares the next one. A step that would
//! cost too much for its few rows is longer.
//!
//! Alongside answers of other tenants, the time that prompts take in a step is bounded by the step's time without them: otherwise
//! each token of those answers would take as long as a step full of prompt. If several tenants come and go, no step takes many
//! times as long as others because its rows are deep in a long prompt: the next tenant has to wait for its end.
//!
//! Within a tenant prompts go in the order of their admission; by [`crate::SchedulePolicy::RemainingWork`], one gets `long_prompt_share`
//! while a far shorter one runs or is next. Only far shorter prompts profit: if several long prompts ran concurrently, all of
//! them would end when the last one does.

use std::collections::{BTreeMap, HashMap};

use tokens::{RequestId, TenantId};

/// Ratio of work from which a prompt counts as long compared with another one (algorithms of batch formation bin by the same
/// ratio).
const LONG_RATIO: u64 = 4;

/// Maximum ratio of the time of prompts to the rest of a step with answers of other tenants. Chosen: those answers take 2.5 times
/// as long as alone, and a prompt 1.7 times.
const PROMPT_TIME_RATIO: f64 = 1.5;

/// Minimum part that prompts get of their time in a step. Chosen: the prediction may be far off.
const MIN_PROMPT_PART: f64 = 0.02;

/// A sequence with more than one row to compute.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prompt {
    pub(super) request_id: RequestId,
    pub(super) tenant: TenantId,
    /// Rows it could compute, besides the one that every sequence gets.
    pub(super) rows: usize,
    /// Predicted time to its first token: visible to its own tenant only.
    pub(super) micros: u64,
    /// Predicted time without any cache: visible to others.
    pub(super) uncached_micros: u64,
    /// Predicted time of one row.
    pub(super) row_micros: f64,
    /// Time that its tenant's prompts may take in a step.
    pub(super) tenant_micros: f64,
    /// True if it is admitted in this step.
    pub(super) is_new: bool,
}

/// Rows that running sequences could compute in the step being scheduled.
#[derive(Debug)]
pub(super) struct Demand {
    /// In order of admission.
    pub(super) prompts: Vec<Prompt>,
    /// Tenant of each running sequence that needs one row.
    pub(super) answers: HashMap<RequestId, TenantId>,
    /// Row equivalents of running sequences whose spans are measured; these have no rows themselves.
    pub(super) num_measured: usize,
    pub(super) max_rows: usize,
    /// Time of a step whose rows all belong to a prompt of as many tokens, in microseconds.
    pub(super) full_micros: f64,
    /// Time that rows of prompts may take.
    pub(super) max_micros: f64,
    pub(super) long_share: f64,
    pub(super) ranks_prompts: bool,
    /// Predicted time of the next waiting request of each tenant with prompts.
    pub(super) next_micros: BTreeMap<TenantId, u64>,
}

/// Rows that prompts of a tenant could compute.
#[derive(Clone, Copy, Debug)]
struct Claim {
    rows: usize,
    /// Predicted time of its shortest prompt without any cache.
    uncached_micros: u64,
    /// Predicted time of its slowest row.
    row_micros: f64,
    max_micros: f64,
}

impl Claim {
    /// Limits the rows to its maximum time.
    fn bounded(self) -> Self {
        let rows = (self.max_micros / self.row_micros.max(1e-3)).max(1.0) as usize;
        Self { rows: self.rows.min(rows), ..self }
    }

    fn micros(&self, num_rows: usize) -> f64 {
        num_rows as f64 * self.row_micros
    }

    /// Returns the rows that fit into `micros`, at most its demand. Compensates for rounding.
    fn rows_in(&self, micros: f64) -> usize {
        ((micros / self.row_micros.max(1e-3) + 1e-6) as usize).min(self.rows)
    }
}

impl Prompt {
    /// True if a prompt of the same tenant that takes `micros` is far shorter.
    fn is_long_beside(&self, micros: u64) -> bool {
        micros.saturating_mul(LONG_RATIO) <= self.micros
    }

    fn add_to(&self, claims: &mut BTreeMap<TenantId, Claim>) {
        let &Self { tenant, rows, uncached_micros, row_micros, tenant_micros: max_micros, .. } = self;
        let claim = claims.entry(tenant).or_insert(Claim { rows: 0, uncached_micros, row_micros, max_micros });
        claim.rows = claim.rows.saturating_add(rows);
        claim.row_micros = claim.row_micros.max(row_micros);
        claim.max_micros = claim.max_micros.max(max_micros);
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

    /// Returns the rows that are left when each running sequence has one.
    fn num_free(&self) -> usize {
        self.max_rows.saturating_sub(self.prompts.len() + self.answers.len() + self.num_measured)
    }

    /// Returns the claims of the current prompts and `another` one.
    fn claims(&self, another: Option<&Prompt>) -> BTreeMap<TenantId, Claim> {
        let mut claims = BTreeMap::new();
        self.prompts.iter().chain(another).for_each(|prompt| prompt.add_to(&mut claims));
        claims.values_mut().for_each(|claim| *claim = claim.bounded());
        claims
    }

    /// True if a row is left for `wanted` if it runs in this step too.
    pub(super) fn has_rows_for(&self, wanted: &Prompt) -> bool {
        let claims = self.claims(Some(&Prompt { rows: usize::MAX, ..*wanted }));
        let granted = self.divide(&claims, self.num_free())[&wanted.tenant];
        let limit = self.long_limit(granted);
        let own = self.prompts.iter().filter(|prompt| prompt.tenant == wanted.tenant);
        let taken = own.map(|prompt| match self.ranks_prompts && prompt.is_long_beside(wanted.micros) {
            true => prompt.rows.min(limit),
            false => prompt.rows,
        });
        taken.sum::<usize>() < granted
    }

    /// Returns the rows of each running sequence besides its first one; omits sequences that get none.
    pub(super) fn grants(&self, answer_micros: f64) -> HashMap<RequestId, usize> {
        let claims = self.claims(None);
        let mut granted = self.divide(&claims, self.num_free());
        self.spare_answers(&claims, &mut granted, answer_micros);
        let mut grants = HashMap::new();
        for (tenant, num_rows) in granted {
            self.grant_within(tenant, num_rows, &mut grants);
        }
        grants
    }

    /// Divides `num_rows` among tenants by time: a row deep in a long prompt takes many times as long as one of a short prompt.
    fn divide(&self, claims: &BTreeMap<TenantId, Claim>, num_rows: usize) -> BTreeMap<TenantId, usize> {
        let shortest = claims.values().map(|claim| claim.uncached_micros).min().unwrap_or(0) as f64;
        let least = self.long_share / (1.0 - self.long_share).max(self.long_share);
        let weight = |claim: &Claim| (shortest / claim.uncached_micros.max(1) as f64).max(least).clamp(1e-9, 1.0);
        let mut by_cost: Vec<_> = claims.iter().collect();
        by_cost.sort_by(|a, b| a.1.row_micros.total_cmp(&b.1.row_micros).then(a.0.cmp(b.0)));
        let Some((_, cheapest)) = by_cost.first() else { return BTreeMap::new() };
        let micros = (num_rows as f64 * cheapest.row_micros).min(self.max_micros);
        let wanted = claims.iter().map(|(&id, claim)| (id, claim.micros(claim.rows), weight(claim)));
        let parts = fill(wanted.collect(), micros);
        let mut granted: BTreeMap<_, _> =
            claims.iter().map(|(&id, claim)| (id, claim.rows_in(parts[&id]).min(num_rows))).collect();
        // Rows are left if some take longer than the cheapest ones: they go first to the tenant with the cheapest rows.
        let mut left = num_rows.saturating_sub(granted.values().sum());
        let mut micros_left = self.max_micros - claims.iter().map(|(id, claim)| claim.micros(granted[id])).sum::<f64>();
        for (id, claim) in by_cost {
            let rows = granted.get_mut(id).expect("every claim is granted something");
            // Regardless of predictions, every tenant gets a row while there are any.
            let affordable = claim.rows_in(micros_left.max(0.0)).max(usize::from(*rows == 0));
            let more = (claim.rows - *rows).min(left).min(affordable);
            *rows += more;
            left -= more;
            micros_left -= claim.micros(more);
        }
        granted
    }

    /// Bounds the time of prompts in a step with answers, which take `answer_micros`, of a tenant without prompts in it.
    fn spare_answers(&self, claims: &BTreeMap<TenantId, Claim>, granted: &mut BTreeMap<TenantId, usize>, answer_micros: f64) {
        let micros: f64 = granted.iter().map(|(tenant, &rows)| claims[tenant].micros(rows)).sum();
        let least = MIN_PROMPT_PART * self.full_micros;
        let scale = (PROMPT_TIME_RATIO * answer_micros).max(least) / micros;
        if micros > 0.0 && scale < 1.0 && self.answers.values().any(|tenant| !claims.contains_key(tenant)) {
            granted.values_mut().for_each(|rows| *rows = (*rows as f64 * scale) as usize);
        }
    }

    /// Returns the rows of a long prompt besides its first one, in a tenant that is granted `num_rows`.
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

/// Gives each of `wanted` a part of `amount` by its weight, and no more than it wants.
fn fill(mut wanted: Vec<(TenantId, f64, f64)>, amount: f64) -> BTreeMap<TenantId, f64> {
    // Tenants with less demand than their part come first, so that the rest of it goes to all others.
    wanted.sort_by(|a, b| (a.1 / a.2).total_cmp(&(b.1 / b.2)).then(a.0.cmp(&b.0)));
    let mut weights: f64 = wanted.iter().map(|&(.., weight)| weight).sum();
    let mut left = amount;
    let mut give = |(id, wanted, weight): (TenantId, f64, f64)| {
        let part = wanted.min(left * weight / weights);
        left -= part;
        weights -= weight;
        (id, part)
    };
    wanted.into_iter().map(&mut give).collect()
}
