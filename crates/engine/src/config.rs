//! Scheduler settings, and checks of the requests it can run.

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
    /// Groups of layers that the pool is made for.
    pub cache_groups: kv::CacheGroups,
    /// Host tier for blocks that the pool evicts.
    pub host: HostConfig,
    /// Rows computed in one step, prefill and decode together.
    pub max_num_batched_tokens: usize,
    /// Sequences computed in one step.
    pub max_num_seqs: usize,
    /// True to schedule the next step while one runs, if its work is known by then, on devices that compute asynchronously.
    pub run_ahead: bool,
    /// Context length of the model: prompt and output of one request together.
    pub max_model_len: u32,
    /// Order of admission.
    pub policy: SchedulePolicy,
    /// Maximum weight of a request's waiting time against its predicted work, for [`SchedulePolicy::RemainingWork`]. At 1, no
    /// request is overtaken by one that arrives later by more than its own work; at 0, only work counts. From 0 to 1000.
    pub ageing: f64,
    /// Share of the longest recent delay that a request with much work waits longer than by arrival: waiting time has a lower
    /// weight where that suffices. From 0 to 1000; 0 leaves `ageing` alone.
    pub overtake_share: f64,
    /// Wait after which a request is the next of its tenant, unless it arrived at a long queue.
    pub max_overtake: Duration,
    /// Ratio of the queue's predicted time after which a request that arrived at a long queue is the next of its tenant. Finite
    /// and not negative; 0 leaves `max_overtake` alone.
    pub max_overtake_ratio: f64,
    /// Maximum wait of a request for spans that another one is computing, and no longer than a fifth of what its prompt takes.
    pub max_span_wait: Duration,
    /// Share of a step's rows for a prompt while others with far less work wait, for [`SchedulePolicy::RemainingWork`]. In
    /// `0..=1`.
    pub long_prompt_share: f64,
    /// Minimum saving of span reuse.
    pub gate: semantic::Gate,
    /// Waiting requests whose hits are estimated again in one step.
    pub max_estimates_per_step: usize,
    /// Criteria for spans of earlier prompts that are worth copying.
    pub spans: semantic::SpanConfig,
    /// Earlier prompts kept as donors of spans; 0 keeps none. Tenants share them equally, and may borrow unused shares.
    pub max_donors: usize,
    /// Total tokens of the donors, shared likewise. The host needs about 8 bytes for each.
    pub max_donor_tokens: usize,
    /// Index of donors by embedding; `None` disables it.
    pub embeddings: Option<semantic::EmbeddingIndexConfig>,
    /// Time without use after which donors and cached blocks are dropped; `None` keeps them while there is room.
    pub donor_ttl: Option<Duration>,
    /// Maximum blocks that a tenant may have in use or cached, and as large a part of the host tier. Above it the tenant evicts
    /// cached blocks of its own, or waits; a tenant without a quota may evict any tenant's least recently used cached blocks.
    pub quotas: BTreeMap<TenantId, usize>,
    /// Selection and timing of answers over reused KV that are compared with full computation.
    pub verification: VerificationConfig,
    /// Quality bounds of such answers.
    pub guard: semantic::GuardConfig,
    /// Bounds that traffic in mode `auto` has to prove before it reuses.
    pub proof: semantic::ProofConfig,
}

/// Comparison of answers over reused KV with full computation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VerificationConfig {
    /// Share of the answers that are compared; 0 compares none. In `0..=1`.
    pub share: f64,
    /// Time without any request before a comparison begins.
    pub idle: Duration,
    /// Time without use after which cached blocks may be evicted for a comparison.
    pub unused: Duration,
    /// Maximum predicted time of a comparison's step; at least one row is computed. A request that arrives waits for one step at
    /// most.
    pub step: Duration,
    /// True to recompute exactly answers over reused KV that are not compared, for the next turns of their conversations.
    pub heals: bool,
    /// Total bytes of the answers that are recorded or wait to be compared. Further ones are dropped and counted.
    pub max_bytes: usize,
}

impl Default for VerificationConfig {
    /// Compares and heals nothing. 32 MiB hold 10,000 tokens of answers.
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
    /// By the share of the prompt whose KV is found, highest first; ties by arrival (KVShare, arXiv 2503.16525).
    KvHitRate,
    /// By predicted time until the first token less a share of the waiting time, lowest first; ties by arrival.
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
        /// Configured value.
        max_num_batched_tokens: usize,
        /// Configured value.
        max_num_seqs: usize,
    },
    /// A factor outside its range.
    #[error("{name} is {value:?}, but must be {range}")]
    Factor {
        /// Name of the setting.
        name: &'static str,
        /// Configured value.
        value: f64,
        /// Valid range.
        range: &'static str,
    },
    /// The configuration exceeds what the executor is built for.
    #[error("{name} is {configured}, but the executor is built for {limit}")]
    Executor {
        /// Name of the setting.
        name: &'static str,
        /// Configured value.
        configured: usize,
        /// Limit of the executor.
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

/// Reason why a request can never run here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The prompt is empty.
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
    /// The request exceeds the pool even when it runs alone.
    #[error("request of up to {num_tokens} tokens needs {needed} KV blocks, but the pool has {num_blocks}")]
    PoolTooSmall {
        /// Maximum tokens of prompt and output.
        num_tokens: usize,
        /// Blocks that these need.
        needed: usize,
        /// Blocks in the pool.
        num_blocks: usize,
    },
    /// The request exceeds its tenant's quota even when it runs alone.
    #[error("request of up to {num_tokens} tokens needs {needed} KV blocks, but its tenant's quota is {quota}")]
    QuotaTooSmall {
        /// Prompt and output at their longest.
        num_tokens: usize,
        /// Blocks for them.
        needed: usize,
        /// Blocks the tenant may hold.
        quota: usize,
    },
    /// The embedding has other dimensions than those of the donors.
    #[error("the embedding has {found} dimensions, but the index has {expected}")]
    EmbeddingDimensions {
        /// Dimensions of the request's embedding.
        found: usize,
        /// Dimensions of the index.
        expected: usize,
    },
}

/// Maximum factor of a waiting time. Chosen: far above what is of use, and so small that the microseconds of decades times it fit 64 bits.
const MAX_RATIO: f64 = 1000.0;

impl SchedulerConfig {
    /// Returns settings of a pool of `num_blocks` blocks of the default size for a model of `max_model_len` positions, with
    /// defaults for the rest.
    #[must_use]
    pub fn new(num_blocks: usize, max_model_len: u32) -> Self {
        Self {
            block_size: BlockSize::DEFAULT,
            num_blocks,
            cache_groups: kv::CacheGroups::default(),
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

    /// Returns itself if consistent.
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
        let ratios =
            [("ageing", self.ageing), ("overtake_share", self.overtake_share), ("max_overtake_ratio", self.max_overtake_ratio)];
        for (name, value) in ratios {
            factor(name, value, "between 0 and 1000", (0.0..=MAX_RATIO).contains(&value))?;
        }
        let share = self.long_prompt_share;
        factor("long_prompt_share", share, "between 0 and 1", (0.0..=1.0).contains(&share))?;
        let share = self.verification.share;
        factor("verification.share", share, "between 0 and 1", (0.0..=1.0).contains(&share))?;
        self.guard.checks().into_iter().try_for_each(|(name, value, range, is_valid)| factor(name, value, range, is_valid))?;
        let bandwidth = self.host.bandwidth;
        factor("host.bandwidth", bandwidth, "finite and above 0", bandwidth.is_finite() && bandwidth > 0.0)?;
        let spans = self.spans.validated()?;
        Ok(Self { spans, ..self })
    }

    /// Checks that an executor with `limits` can compute every step.
    ///
    /// # Errors
    /// Names the first setting that exceeds them, with both values.
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

    /// Checks that `request` can run to its end when it has the pool to itself, so that admitting it can never block forever.
    ///
    /// # Errors
    /// Names the limit that it exceeds.
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
        // The last token is never computed: no token follows it.
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

    /// Returns the settings of the span index.
    pub(crate) fn span_index(&self) -> semantic::SpanIndexConfig {
        semantic::SpanIndexConfig {
            max_donors: self.max_donors,
            max_tokens: self.max_donor_tokens,
            ..semantic::SpanIndexConfig::for_spans(&self.spans)
        }
    }

    /// Checks that `embedding` can be compared with those of donors.
    pub(crate) fn fits_index(&self, embedding: &[f32]) -> Result<(), RequestError> {
        match self.embeddings.map(|index| index.num_dimensions) {
            Some(expected) if expected != embedding.len() => {
                Err(RequestError::EmbeddingDimensions { found: embedding.len(), expected })
            }
            _ => Ok(()),
        }
    }

    /// Returns the maximum tokens of prompt and output of a request of `tenant` that [fits](Self::fits). Their last one is never
    /// computed.
    #[must_use]
    pub fn most_tokens(&self, tenant: TenantId) -> usize {
        let held = self.max_blocks(tenant).saturating_mul(self.block_size.as_usize());
        held.saturating_add(1).min(self.max_model_len as usize)
    }

    /// Returns the maximum blocks that requests of `tenant` can hold together.
    pub(crate) fn max_blocks(&self, tenant: TenantId) -> usize {
        self.quotas.get(&tenant).map_or(self.num_blocks, |&quota| quota.min(self.num_blocks))
    }
}
