//! What a scheduler is built from, and which requests it can ever run.

use std::collections::BTreeMap;
use std::time::Duration;

use tokens::{BlockSize, TenantId};

use crate::{ExecutorLimits, HostConfig, Request};

/// Settings of one engine. They never change after the start.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Tokens in a block of the KV pool.
    pub block_size: BlockSize,
    /// Blocks in the KV pool.
    pub num_blocks: usize,
    /// Where blocks go that the pool gives up.
    pub host: HostConfig,
    /// Rows computed in one step, prefill and decode together.
    pub max_num_batched_tokens: usize,
    /// Sequences computed in one step.
    pub max_num_seqs: usize,
    /// Whether a step whose work is known before the one before it has ended is chosen while that runs, on devices that compute by
    /// themselves.
    pub run_ahead: bool,
    /// Positions the model knows: prompt and output of one request together.
    pub max_model_len: u32,
    /// Who is admitted next.
    pub policy: SchedulePolicy,
    /// How much of the time a request has waited counts against its predicted work at most, by [`SchedulePolicy::RemainingWork`]. At
    /// 1, nobody is overtaken by a request that arrives later by more than its own work; at 0, nothing counts but work. Finite and not
    /// negative.
    pub ageing: f64,
    /// Share of the longest delay of late that a request with much work waits longer than by arrival: the time waited counts for less
    /// where that is enough. Finite and not negative; 0 leaves `ageing` alone.
    pub overtake_share: f64,
    /// A request that has waited longer than this is the next of its tenant, unless it came into a long queue.
    pub max_overtake: Duration,
    /// A request that found a long queue is the next of its tenant when it has waited this many times as long as that queue takes.
    /// Finite and not negative; 0 leaves `max_overtake` alone.
    pub max_overtake_ratio: f64,
    /// A request whose spans somebody else is computing waits for them no longer than this, and no longer than a fifth of what its
    /// prompt takes.
    pub max_span_wait: Duration,
    /// Share of a step's rows for a prompt while others with far less work wait, by [`SchedulePolicy::RemainingWork`]. In `0..=1`.
    pub long_prompt_share: f64,
    /// What reuse of spans has to save.
    pub gate: semantic::Gate,
    /// Waiting requests whose hits are estimated anew in one step.
    pub max_estimates_per_step: usize,
    /// Which spans of earlier prompts are worth copying.
    pub spans: semantic::SpanConfig,
    /// Earlier prompts kept as donors of spans; 0 keeps none. Tenants share them equally; what one does not use is lent to others.
    pub max_donors: usize,
    /// Tokens of these together, shared likewise. The host needs about 8 bytes for each.
    pub max_donor_tokens: usize,
    /// Where donors are found that mean something similar; `None` looks for none.
    pub embeddings: Option<semantic::EmbeddingIndexConfig>,
    /// Donors and cached blocks that were not used for longer than this are forgotten; `None` keeps them while there is room.
    pub donor_ttl: Option<Duration>,
    /// Blocks that a tenant may have in use or cached, and as large a part of the host tier. Above that it gives up cached blocks of its own, or waits; a tenant that is not
    /// named may take the place of anybody's least recently used cached blocks.
    pub quotas: BTreeMap<TenantId, usize>,
    /// Which answers over reused KV are compared with full computation, and when.
    pub verification: VerificationConfig,
    /// What such answers have to keep.
    pub guard: semantic::GuardConfig,
    /// Bounds that traffic in mode `auto` has to keep, by proof, before it reuses.
    pub proof: semantic::ProofConfig,
}

/// Comparison of answers over reused KV with full computation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VerificationConfig {
    /// Share of the answers that are compared; 0 compares none. In `0..=1`.
    pub share: f64,
    /// Time without any request before a comparison begins.
    pub idle: Duration,
    /// Cached blocks that were not used for so long may be given up for a comparison.
    pub unused: Duration,
    /// Longest step of a comparison, by prediction; one row is computed in any case. A request that arrives waits for one step at most.
    pub step: Duration,
    /// True to compute answers over reused KV exactly that are not compared, for the next turns of their conversations.
    pub heals: bool,
    /// Bytes of the answers that are recorded or wait to be compared, together. Further ones are dropped and counted.
    pub max_bytes: usize,
}

impl Default for VerificationConfig {
    /// Nothing is compared or healed. 32 MiB hold 10,000 tokens of answers.
    fn default() -> Self {
        let (idle, step) = (Duration::from_millis(100), Duration::from_millis(10));
        Self { share: 0.0, idle, unused: Duration::from_secs(60), step, heals: false, max_bytes: 32 << 20 }
    }
}

/// Order of the waiting requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum SchedulePolicy {
    /// By arrival.
    Fcfs,
    /// By the share of the prompt whose KV is found, the highest first; ties by arrival (KVShare, arXiv 2503.16525).
    KvHitRate,
    /// By predicted time until the first token less a share of the time waited, the least first; ties by arrival.
    #[default]
    RemainingWork,
}

/// Settings that contradict each other.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No sequence could ever run.
    #[error("max_num_seqs is 0")]
    NoSequences,
    /// A full batch could not make progress everywhere.
    #[error("max_num_batched_tokens {max_num_batched_tokens} is below max_num_seqs {max_num_seqs}")]
    BudgetBelowSequences {
        /// As given.
        max_num_batched_tokens: usize,
        /// As given.
        max_num_seqs: usize,
    },
    /// A factor outside its range.
    #[error("{name} is {value}, but must be {range}")]
    Factor {
        /// Which.
        name: &'static str,
        /// As given.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
    /// The executor is not built for it.
    #[error("{name} is {configured}, but the executor is built for {limit}")]
    Executor {
        /// Which setting.
        name: &'static str,
        /// As given.
        configured: usize,
        /// The executor's value.
        limit: usize,
    },
    /// No prompt could be continued.
    #[error("max_model_len is {0}, but one prompt token and one generated one need 2")]
    ModelTooShort(u32),
    /// The KV pool cannot be made.
    #[error(transparent)]
    Pool(#[from] kv::PoolError),
    /// The span settings contradict each other.
    #[error("span reuse: {0}")]
    Spans(#[from] semantic::SpanConfigError),
}

/// Why a request can never run here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// There is nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// There is nothing to do.
    #[error("max_tokens is 0 and no log probabilities of the prompt are asked for")]
    NothingToDo,
    /// The prompt leaves no room for an answer.
    #[error("prompt of {num_prompt_tokens} tokens leaves no room for an answer within max_model_len {max_model_len}")]
    PromptTooLong {
        /// Length of the prompt.
        num_prompt_tokens: usize,
        /// The limit.
        max_model_len: u32,
    },
    /// Even alone it would run out of blocks.
    #[error("request of up to {num_tokens} tokens needs {needed} KV blocks, but the pool has {num_blocks}")]
    PoolTooSmall {
        /// Prompt and output at their longest.
        num_tokens: usize,
        /// Blocks for them.
        needed: usize,
        /// Blocks there are.
        num_blocks: usize,
    },
    /// Even alone it would exceed what its tenant may hold.
    #[error("request of up to {num_tokens} tokens needs {needed} KV blocks, but its tenant's quota is {quota}")]
    QuotaTooSmall {
        /// Prompt and output at their longest.
        num_tokens: usize,
        /// Blocks for them.
        needed: usize,
        /// Blocks the tenant may hold.
        quota: usize,
    },
    /// It comes from another embedder than the donors' embeddings do.
    #[error("the embedding has {found} dimensions, but the index has {expected}")]
    EmbeddingDimensions {
        /// Of the request.
        found: usize,
        /// Of the index.
        expected: usize,
    },
}

impl SchedulerConfig {
    /// A pool of `num_blocks` blocks of the default size for a model of `max_model_len` positions; everything else by default.
    #[must_use]
    pub fn new(num_blocks: usize, max_model_len: u32) -> Self {
        Self {
            block_size: BlockSize::DEFAULT,
            num_blocks,
            host: HostConfig::default(),
            max_num_batched_tokens: 512,
            max_num_seqs: 64,
            run_ahead: true,
            max_model_len,
            policy: SchedulePolicy::default(),
            ageing: 0.5,
            overtake_share: 0.35,
            max_overtake: Duration::from_secs(2),
            max_overtake_ratio: 4.0,
            max_span_wait: Duration::from_millis(10),
            long_prompt_share: 0.1,
            gate: semantic::Gate::default(),
            max_estimates_per_step: 32,
            spans: semantic::SpanConfig::default(),
            max_donors: semantic::SpanIndexConfig::default().max_donors,
            max_donor_tokens: semantic::SpanIndexConfig::default().max_tokens,
            embeddings: None,
            donor_ttl: None,
            quotas: BTreeMap::new(),
            verification: VerificationConfig::default(),
            guard: semantic::GuardConfig::default(),
            proof: semantic::ProofConfig::default(),
        }
    }

    /// Itself, if consistent.
    ///
    /// # Errors
    /// Names the first contradiction.
    pub fn validated(self) -> Result<Self, ConfigError> {
        let Self { max_num_batched_tokens, max_num_seqs, max_model_len, .. } = self;
        if max_num_seqs == 0 {
            return Err(ConfigError::NoSequences);
        }
        if max_num_batched_tokens < max_num_seqs {
            return Err(ConfigError::BudgetBelowSequences { max_num_batched_tokens, max_num_seqs });
        }
        if max_model_len < 2 {
            return Err(ConfigError::ModelTooShort(max_model_len));
        }
        let factor = |name, value: f64, range, is_in_range| match is_in_range {
            true => Ok(()),
            false => Err(ConfigError::Factor { name, value, range }),
        };
        let is_factor = |value: f64| value.is_finite() && value >= 0.0;
        factor("ageing", self.ageing, "finite and at least 0", is_factor(self.ageing))?;
        factor("overtake_share", self.overtake_share, "finite and at least 0", is_factor(self.overtake_share))?;
        let ratio = self.max_overtake_ratio;
        factor("max_overtake_ratio", ratio, "finite and at least 0", is_factor(ratio))?;
        let share = self.long_prompt_share;
        factor("long_prompt_share", share, "between 0 and 1", (0.0..=1.0).contains(&share))?;
        let share = self.verification.share;
        factor("verification.share", share, "between 0 and 1", (0.0..=1.0).contains(&share))?;
        self.guard.checks().into_iter().try_for_each(|(name, value, range, is_valid)| factor(name, value, range, is_valid))?;
        let bandwidth = self.host.bandwidth;
        factor("host.bandwidth", bandwidth, "finite and above 0", is_factor(bandwidth) && bandwidth > 0.0)?;
        let spans = self.spans.validated()?;
        Ok(Self { spans, ..self })
    }

    /// Checks that an executor with `limits` can compute whatever is scheduled.
    ///
    /// # Errors
    /// Names the first setting that goes beyond them, and both numbers.
    pub fn check_executor(&self, limits: ExecutorLimits) -> Result<(), ConfigError> {
        let check = |name, configured: usize, limit: usize, fits: bool| match fits {
            true => Ok(()),
            false => Err(ConfigError::Executor { name, configured, limit }),
        };
        if let Some(block_size) = limits.block_size {
            let (configured, limit) = (self.block_size.as_usize(), block_size.as_usize());
            check("block_size", configured, limit, configured == limit)?;
        }
        let at_most = |name, configured, limit| check(name, configured, limit, configured <= limit);
        at_most("num_blocks", self.num_blocks, limits.num_blocks)?;
        at_most("max_num_batched_tokens", self.max_num_batched_tokens, limits.max_rows)?;
        at_most("max_num_seqs", self.max_num_seqs, limits.max_sequences)
    }

    /// Whether `request` can run to its end when it has the pool to itself, so that admitting it can never block for ever.
    ///
    /// # Errors
    /// Says what is in the way.
    pub fn fits(&self, request: &Request) -> Result<(), RequestError> {
        let (num_prompt_tokens, max_tokens) = (request.prompt_token_ids.len(), request.sampling.max_tokens);
        let max_model_len = self.max_model_len;
        if num_prompt_tokens == 0 {
            return Err(RequestError::EmptyPrompt);
        }
        if max_tokens == 0 && request.sampling.prompt_logprobs.is_none() {
            return Err(RequestError::NothingToDo);
        }
        let first_token = usize::from(max_tokens > 0);
        if num_prompt_tokens + first_token > max_model_len as usize {
            return Err(RequestError::PromptTooLong { num_prompt_tokens, max_model_len });
        }
        // The last token is never computed: nothing follows it.
        let num_tokens = (num_prompt_tokens + max_tokens as usize).min(max_model_len as usize);
        let needed = self.block_size.blocks_for(num_tokens - first_token);
        if needed > self.num_blocks {
            return Err(RequestError::PoolTooSmall { num_tokens, needed, num_blocks: self.num_blocks });
        }
        let quota = self.max_blocks(request.tenant);
        if needed > quota {
            return Err(RequestError::QuotaTooSmall { num_tokens, needed, quota });
        }
        request.embedding.as_deref().map_or(Ok(()), |embedding| self.fits_index(embedding))
    }

    /// Of an index of prompts whose spans are found.
    pub(crate) fn span_index(&self) -> semantic::SpanIndexConfig {
        semantic::SpanIndexConfig {
            max_donors: self.max_donors,
            max_tokens: self.max_donor_tokens,
            ..semantic::SpanIndexConfig::for_spans(&self.spans)
        }
    }

    /// Whether `embedding` can be compared with those of donors.
    pub(crate) fn fits_index(&self, embedding: &[f32]) -> Result<(), RequestError> {
        match self.embeddings.map(|index| index.num_dimensions) {
            Some(expected) if expected != embedding.len() => {
                Err(RequestError::EmbeddingDimensions { found: embedding.len(), expected })
            }
            _ => Ok(()),
        }
    }

    /// Prompt and output together of the longest request of `tenant` that [fits](Self::fits), in tokens. Their last one is never computed.
    #[must_use]
    pub fn most_tokens(&self, tenant: TenantId) -> usize {
        let held = self.max_blocks(tenant).saturating_mul(self.block_size.as_usize());
        held.saturating_add(1).min(self.max_model_len as usize)
    }

    /// Blocks that requests of `tenant` can ever hold together.
    pub(crate) fn max_blocks(&self, tenant: TenantId) -> usize {
        self.quotas.get(&tenant).map_or(self.num_blocks, |&quota| quota.min(self.num_blocks))
    }
}
