//! Which KV of earlier requests may be reused.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::set;

/// `[sharing]` of the configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SharingConfig {
    /// Mode of requests that name none.
    pub(crate) mode: KvSharing,
    /// Shortest run of equal tokens that is reused away from its place, in tokens.
    pub(crate) min_span: u32,
    /// Tokens recomputed at the start of each moved span.
    pub(crate) head_tokens: u32,
    /// Tokens recomputed at the end of each prompt.
    pub(crate) tail_tokens: u32,
    /// Shorter prompts neither give nor take spans.
    pub(crate) min_prompt: u32,
    /// Earlier prompts remembered as donors.
    pub(crate) max_donors: usize,
}

/// Which KV of earlier requests a request may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum KvSharing {
    /// None. Exact.
    Off,
    /// Equal beginnings. Exact.
    Prefix,
    /// Also equal spans anywhere. Approximate.
    Span,
}

impl Default for SharingConfig {
    fn default() -> Self {
        Self { mode: KvSharing::Prefix, min_span: 64, head_tokens: 16, tail_tokens: 16, min_prompt: 128, max_donors: 10_000 }
    }
}

impl SharingConfig {
    /// As the planner of spans takes it; not yet checked.
    pub(crate) fn spans(&self) -> semantic::SpanConfig {
        semantic::SpanConfig {
            min_span_tokens: self.min_span,
            head_tokens: self.head_tokens,
            tail_tokens: self.tail_tokens,
            min_prompt_tokens: self.min_prompt,
            ..semantic::SpanConfig::default()
        }
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Err(error) = self.spans().validated() {
            problems.push(format!("sharing: {error}"));
        }
        if self.max_donors == 0 {
            problems.push("sharing.max_donors is 0: use sharing.mode = \"prefix\" to share no spans".to_owned());
        }
        problems
    }
}

impl KvSharing {
    /// As written in the API and the configuration.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Prefix => "prefix",
            Self::Span => "span",
        }
    }
}

impl From<KvSharing> for engine::KvSharingMode {
    fn from(mode: KvSharing) -> Self {
        match mode {
            KvSharing::Off => Self::Off,
            KvSharing::Prefix => Self::Prefix,
            KvSharing::Span => Self::Span,
        }
    }
}

/// Flags of `[sharing]`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "KV sharing")]
pub(crate) struct SharingArgs {
    /// Which KV of earlier requests is reused [default: prefix]
    #[arg(long, env = "KVSHARE_KV_SHARING", value_enum)]
    kv_sharing: Option<KvSharing>,
    /// Shortest run of equal tokens reused away from its place [default: 64]
    #[arg(long, env = "KVSHARE_MIN_SPAN", value_name = "TOKENS")]
    min_span: Option<u32>,
    /// Earlier prompts remembered as donors [default: 10000]
    #[arg(long, env = "KVSHARE_MAX_DONORS", value_name = "N")]
    max_donors: Option<usize>,
}

impl SharingArgs {
    pub(super) fn apply(self, config: &mut SharingConfig) {
        set(&mut config.mode, self.kv_sharing);
        set(&mut config.min_span, self.min_span);
        set(&mut config.max_donors, self.max_donors);
    }
}
