//! KV of earlier requests that may be reused.

use std::path::PathBuf;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tokens::SharingMode;

use super::flag::set;
use super::sharing_mode::sharing_mode_parser;
use super::{Auto, ByteSize, Deviation, Device, Millis, RepairSetting};

/// `[sharing]` of the configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SharingConfig {
    /// Mode of requests that name none.
    #[serde(with = "protocol::sharing_mode")]
    pub(crate) mode: SharingMode,
    /// Policy of requests that name none, as `name@ratio`.
    pub(crate) repair: RepairSetting,
    /// Bound of requests that name none; none by default.
    pub(crate) max_deviation: Auto<Deviation>,
    /// Shortest run of equal tokens that is reused at another position, in tokens.
    pub(crate) min_span: u32,
    /// Tokens recomputed at the start of each moved span, twice as many after an edit.
    pub(crate) head_tokens: u32,
    /// Tokens recomputed at the end of each prompt.
    pub(crate) tail_tokens: u32,
    /// Minimum prompt length to give or take spans, in tokens.
    pub(crate) min_prompt: u32,
    /// Minimum time that reuse has to save, by prediction.
    pub(crate) min_saved: Millis,
    /// Treatment of equal text after a change inside its own paragraph.
    pub(crate) edits: Edits,
    /// Earlier prompts remembered as donors.
    pub(crate) max_donors: usize,
    /// Tokens of these together.
    pub(crate) max_donor_tokens: usize,
    /// Time after which unused KV is dropped; by default when its room is needed.
    pub(crate) donor_ttl: Auto<Millis>,
    /// Share of the answers over reused spans that is compared with full computation in idle time.
    pub(crate) verify_share: f64,
    /// Time without any request before a comparison begins.
    pub(crate) verify_idle: Millis,
    /// Longest step of a comparison, by prediction: an arriving request waits for at most one.
    pub(crate) verify_step: Millis,
    /// True to compute answers over reused spans exactly in idle time, for the next turn of their conversation; by default on a GPU.
    pub(crate) heal: Auto<bool>,
    /// Memory for answers that are recorded or wait to be compared; further ones are dropped.
    pub(crate) verify_memory: ByteSize,
    /// Mean KL divergence from full computation, in nats, above which a class of matches is switched off for a tenant.
    pub(crate) max_mean_kl: f64,
    /// Share of positions with the same top-1 token below which it is switched off.
    pub(crate) min_top1: f64,
    /// Embedder that finds earlier prompts of similar meaning.
    pub(crate) embedder: EmbedderKind,
    /// Folder of the embedder's own model, if it has one.
    pub(crate) embedder_model: Auto<PathBuf>,
}

/// Embedder that finds earlier prompts of similar meaning, for mode semantic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EmbedderKind {
    /// Nothing: donors are found by their spans alone.
    Off,
    /// The served model's input embeddings, averaged.
    Token,
    /// A sentence encoder of its own, as all-MiniLM-L6-v2.
    Bert,
}

/// Treatment of equal text after a change inside its own segment: a paragraph, a section, a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Edits {
    /// It is computed to the end of the changed sentence or line, and reused after that.
    Sentence,
    /// It is computed to the end of the segment: what it says may depend on the change.
    #[value(alias = "recompute")]
    #[serde(alias = "recompute")]
    Segment,
    /// It is reused and repaired as any other.
    Reuse,
}

impl Default for SharingConfig {
    fn default() -> Self {
        Self {
            mode: SharingMode::Prefix,
            repair: RepairSetting(engine::Repair::recommended()),
            max_deviation: Auto::Auto,
            min_span: 64,
            head_tokens: 8,
            tail_tokens: 16,
            min_prompt: 128,
            min_saved: Millis(5),
            edits: Edits::Sentence,
            max_donors: 10_000,
            max_donor_tokens: 16 << 20,
            donor_ttl: Auto::Auto,
            verify_share: 0.01,
            verify_idle: Millis(100),
            verify_step: Millis(10),
            heal: Auto::Auto,
            verify_memory: ByteSize(32 << 20),
            max_mean_kl: 0.05,
            min_top1: 0.95,
            embedder: EmbedderKind::Off,
            embedder_model: Auto::Auto,
        }
    }
}

impl SharingConfig {
    /// Returns the defaults of requests.
    pub(crate) fn defaults(&self) -> server::SharingDefaults {
        server::SharingDefaults {
            mode: self.mode,
            repair: self.repair.0,
            max_deviation: self.max_deviation.as_ref().value().map(Deviation::bound),
        }
    }

    /// Returns the gate on predicted savings. Zero opens it, so that what is found can be measured where it would not pay.
    pub(crate) fn gate(&self) -> semantic::Gate {
        match self.min_saved.0 {
            0 => semantic::Gate::open(),
            least => semantic::Gate { min_saved_ms: least as f64, ..semantic::Gate::default() },
        }
    }

    /// Returns the share, times and memory of comparisons with full computation.
    pub(crate) fn verification(&self, device: Device) -> engine::VerificationConfig {
        engine::VerificationConfig {
            share: self.verify_share,
            idle: self.verify_idle.get(),
            step: self.verify_step.get(),
            heals: self.heal.as_ref().value().copied().unwrap_or(device != Device::Cpu),
            max_bytes: usize::try_from(self.verify_memory.0).unwrap_or(usize::MAX),
            ..engine::VerificationConfig::default()
        }
    }

    /// Returns the bounds that compared answers have to keep.
    pub(crate) fn guard(&self) -> engine::GuardConfig {
        engine::GuardConfig { max_mean_kl: self.max_mean_kl, min_top1: self.min_top1, ..engine::GuardConfig::default() }
    }

    /// Converts to the span planner's configuration; not yet checked.
    pub(crate) fn spans(&self) -> semantic::SpanConfig {
        semantic::SpanConfig {
            min_span_tokens: self.min_span,
            head_tokens: self.head_tokens,
            tail_tokens: self.tail_tokens,
            min_prompt_tokens: self.min_prompt,
            edits: match self.edits {
                Edits::Sentence => semantic::EditPolicy::RecomputeSentence,
                Edits::Segment => semantic::EditPolicy::RecomputeSegmentTail,
                Edits::Reuse => semantic::EditPolicy::Reuse,
            },
            ..semantic::SpanConfig::default()
        }
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Err(error) = self.spans().validated() {
            problems.push(format!("sharing: {error}"));
        }
        if !(0.0..=1.0).contains(&self.verify_share) {
            problems.push(format!("sharing.verify_share must be between 0 and 1, is {}", self.verify_share));
        }
        let refused = self.guard().checks().into_iter().filter(|(.., is_valid)| !is_valid);
        problems.extend(refused.map(|(name, value, range, _)| format!("sharing.{name} is {value}, but must be {range}")));
        if self.mode == SharingMode::Auto && self.verify_share == 0.0 {
            problems.push("sharing.mode is \"auto\", but sharing.verify_share is 0: nothing would ever be proven".to_owned());
        }
        if self.verify_step == Millis(0) {
            problems.push("sharing.verify_step is 0: use sharing.verify_share = 0 to compare nothing".to_owned());
        }
        if self.donor_ttl == Auto::Set(Millis(0)) {
            problems.push("sharing.donor_ttl is 0: use sharing.mode = \"off\" to share nothing".to_owned());
        }
        if self.embedder == EmbedderKind::Bert && self.embedder_model == Auto::Auto {
            problems.push("sharing.embedder is \"bert\", but sharing.embedder_model names no folder".to_owned());
        }
        if let (EmbedderKind::Off | EmbedderKind::Token, Auto::Set(folder)) = (self.embedder, &self.embedder_model) {
            problems.push(format!("sharing.embedder_model is {}, but sharing.embedder is not \"bert\"", folder.display()));
        }
        if self.max_donors == 0 {
            problems.push("sharing.max_donors is 0: use sharing.mode = \"prefix\" to share no spans".to_owned());
        }
        if self.max_donor_tokens < self.min_span as usize {
            problems.push(format!(
                "sharing.max_donor_tokens {} is less than one span of sharing.min_span {}",
                self.max_donor_tokens, self.min_span
            ));
        }
        problems
    }
}

/// Flags of `[sharing]`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "KV sharing")]
pub(crate) struct SharingArgs {
    /// KV of earlier requests to reuse [default: prefix]
    #[arg(long, env = "KVSHARE_KV_SHARING", value_parser = sharing_mode_parser())]
    kv_sharing: Option<SharingMode>,
    /// Policy that chooses which reused tokens are computed all the same, as name@ratio [default: impact@0.25+drift+sample=8+deviation=0.12+deep_bail_out=0.01]
    #[arg(long, env = "KVSHARE_REPAIR", value_name = "POLICY")]
    repair: Option<RepairSetting>,
    /// Deviation at which no more tokens are computed: a number, strict, balanced or fast [default: the policy's own]
    #[arg(long, env = "KVSHARE_MAX_DEVIATION", value_name = "BOUND")]
    max_deviation: Option<Deviation>,
    /// Shortest run of equal tokens reused away from its place [default: 64]
    #[arg(long, env = "KVSHARE_MIN_SPAN", value_name = "TOKENS")]
    min_span: Option<u32>,
    /// Time that reuse has to save, by prediction; 0 reuses all that is found; a number alone is seconds [default: 5ms]
    #[arg(long, env = "KVSHARE_MIN_SAVED", value_name = "TIME")]
    min_saved: Option<Millis>,
    /// Treatment of equal text after a change inside its own paragraph [default: sentence]
    #[arg(long, env = "KVSHARE_EDITS", value_enum)]
    edits: Option<Edits>,
    /// Earlier prompts remembered as donors [default: 10000]
    #[arg(long, env = "KVSHARE_MAX_DONORS", value_name = "N")]
    max_donors: Option<usize>,
    /// Tokens of these together, 8 bytes of memory each [default: 16777216]
    #[arg(long, env = "KVSHARE_MAX_DONOR_TOKENS", value_name = "N")]
    max_donor_tokens: Option<usize>,
    /// Time without use after which KV is dropped [default: when its room is needed]
    #[arg(long, env = "KVSHARE_DONOR_TTL", value_name = "TIME")]
    donor_ttl: Option<Millis>,
    /// Share of the answers over reused spans that is compared with full computation in idle time [default: 0.01]
    #[arg(long, env = "KVSHARE_VERIFY_SHARE", value_name = "SHARE")]
    verify_share: Option<f64>,
    /// Time without any request before such a comparison begins; a number alone is seconds [default: 100ms]
    #[arg(long, env = "KVSHARE_VERIFY_IDLE", value_name = "TIME")]
    verify_idle: Option<Millis>,
    /// Longest step of such a comparison, by prediction; a number alone is seconds [default: 10ms]
    #[arg(long, env = "KVSHARE_VERIFY_STEP", value_name = "TIME")]
    verify_step: Option<Millis>,
    /// Compute answers over reused spans exactly in idle time, for the next turn of their conversation [default: on a GPU]
    #[arg(long, env = "KVSHARE_HEAL", value_name = "BOOL")]
    heal: Option<bool>,
    /// Memory for answers that wait to be compared; further ones are dropped [default: 32MiB]
    #[arg(long, env = "KVSHARE_VERIFY_MEMORY", value_name = "SIZE")]
    verify_memory: Option<ByteSize>,
    /// Mean KL divergence in nats above which a class of matches is switched off for a tenant [default: 0.05]
    #[arg(long, env = "KVSHARE_MAX_MEAN_KL", value_name = "NATS")]
    max_mean_kl: Option<f64>,
    /// Top-1 agreement below which a class of matches is switched off for a tenant [default: 0.95]
    #[arg(long, env = "KVSHARE_MIN_TOP1", value_name = "SHARE")]
    min_top1: Option<f64>,
    /// Embedder that finds earlier prompts of similar meaning, for mode semantic [default: off]
    #[arg(long, env = "KVSHARE_EMBEDDER", value_enum)]
    embedder: Option<EmbedderKind>,
    /// Folder of the embedder's own model: config.json, tokenizer.json and model.safetensors
    #[arg(long, env = "KVSHARE_EMBEDDER_MODEL", value_name = "PATH")]
    embedder_model: Option<PathBuf>,
}

impl SharingArgs {
    pub(super) fn apply(self, config: &mut SharingConfig) {
        set(&mut config.mode, self.kv_sharing);
        set(&mut config.min_span, self.min_span);
        set(&mut config.min_saved, self.min_saved);
        set(&mut config.edits, self.edits);
        set(&mut config.max_donors, self.max_donors);
        set(&mut config.max_donor_tokens, self.max_donor_tokens);
        set(&mut config.repair, self.repair);
        set(&mut config.max_deviation, self.max_deviation.map(Auto::Set));
        set(&mut config.verify_share, self.verify_share);
        set(&mut config.verify_idle, self.verify_idle);
        set(&mut config.verify_step, self.verify_step);
        set(&mut config.heal, self.heal.map(Auto::Set));
        set(&mut config.verify_memory, self.verify_memory);
        set(&mut config.max_mean_kl, self.max_mean_kl);
        set(&mut config.min_top1, self.min_top1);
        set(&mut config.donor_ttl, self.donor_ttl.map(Auto::Set));
        // A model of its own has only this one.
        let implied = self.embedder_model.is_some() && config.embedder == EmbedderKind::Off;
        set(&mut config.embedder, self.embedder.or(implied.then_some(EmbedderKind::Bert)));
        set(&mut config.embedder_model, self.embedder_model.map(Auto::Set));
    }
}
