//! Rules of repair, and the measurements that they need.

use std::str::FromStr;

use tokens::{SPLITMIX64_STEP, splitmix64};

use crate::{SpanConfig, TokenDeviation};

/// Repair rules, by the names of their sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RepairPolicy {
    /// The prompt's last token only: the span is used as in the donor.
    None,
    /// Every token: full computation by the machinery of repair.
    Full,
    /// Random tokens, by a hash of the position. The baseline every rule has to beat.
    Random,
    /// The first tokens of each span (EPIC, arXiv 2410.15332, LegoLink), and no others.
    Epic,
    /// `‖ΔV‖₂²` at layer 1, single tokens (CacheBlend, arXiv 2405.16444, in its released form).
    CacheBlend,
    /// `α ‖ΔV‖₁` at layer 1, single tokens; α is the attention a token receives there from all rows (KVShare, arXiv 2503.16525).
    Dhd,
    /// Attention received from fresh rows at layer 3, single tokens (SparseX, arXiv 2606.01751, without its dense layers).
    QueryLayer,
    /// Attention as for `QueryLayer`, summed over all layers in a first pass of the fresh rows (ProphetKV, arXiv 2602.02579).
    Query,
    /// Attention from fresh rows × `(‖ΔV‖₂ + ‖ΔK‖₂ ‖V‖₂ / √d)` at layer 3, in runs.
    ImpactLayer,
    /// Attention gathered over all layers × `‖ΔV‖₂` at layer 1, in runs: fresh rows run twice.
    TwoPass,
    /// `‖ΔV‖₂²` at layer 1, in runs: with a bound on the remaining deviation, and neighbours that follow, the best found.
    Impact,
}

/// Measurements needed before tokens can be selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Layer up to whose keys and values rows are computed, to compare them with the moved ones.
    pub depth: Depth,
    /// Rows whose attention counts.
    pub readers: Readers,
    /// Stride: one of this many moved neighbours is measured; at least 1.
    pub stride: u32,
}

/// A layer of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Layer by index, from 0, at most the last one. An index from 1 on skips the leading layers with a sliding window: within a moved
    /// span, their rows attend to no token left of it.
    Layer(u32),
    /// First layer after a quarter of them; not before the third one that is not skipped, since nothing deviates at the first and little
    /// at the second.
    Quarter,
}

impl Depth {
    /// Returns its index in a model of `num_layers`, from 0, the first `num_local` of which attend within a window.
    #[must_use]
    pub const fn layer(self, num_layers: usize, num_local: usize) -> usize {
        let layer = match self {
            Self::Layer(0) => 0,
            Self::Layer(layer) => layer as usize + num_local,
            Self::Quarter if num_layers / 4 > 2 + num_local => num_layers / 4,
            Self::Quarter => 2 + num_local,
        };
        if layer < num_layers { layer } else { num_layers.saturating_sub(1) }
    }
}

/// Rows whose attention to reused tokens is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// No rows.
    None,
    /// All rows, at the check layer.
    AllRows,
    /// Rows that no donor has, at the check layer.
    FreshRows,
    /// Rows that no donor has, at every layer: they run once over the moved spans as they are.
    FreshRowsAllLayers,
}

/// Tokens of a run: runs do not lower quality and are cheaper to execute than single tokens.
const RUN_TOKENS: u32 = 16;

impl RepairPolicy {
    /// All rules.
    pub const ALL: [Self; 11] = [
        Self::None,
        Self::Full,
        Self::Random,
        Self::Epic,
        Self::CacheBlend,
        Self::Dhd,
        Self::QueryLayer,
        Self::Query,
        Self::ImpactLayer,
        Self::TwoPass,
        Self::Impact,
    ];

    /// Returns its name in the API, in reports and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Full => "full",
            Self::Random => "random",
            Self::Epic => "epic",
            Self::CacheBlend => "cacheblend",
            Self::Dhd => "dhd",
            Self::QueryLayer => "query-layer",
            Self::Query => "query",
            Self::ImpactLayer => "impact-layer",
            Self::TwoPass => "two-pass",
            Self::Impact => "impact",
        }
    }

    /// Returns the measurements it needs before it selects; `None` if it never selects a token.
    #[must_use]
    pub const fn probe(self) -> Option<Probe> {
        let (layer, readers) = match self {
            Self::None | Self::Epic => return None,
            Self::Full | Self::Random => (0, Readers::None),
            Self::CacheBlend | Self::Impact => (1, Readers::None),
            Self::Dhd => (1, Readers::AllRows),
            Self::QueryLayer | Self::ImpactLayer => (3, Readers::FreshRows),
            Self::Query | Self::TwoPass => (1, Readers::FreshRowsAllLayers),
        };
        Some(Probe { depth: Depth::Layer(layer), readers, stride: 1 })
    }

    /// True if it spends a share of the prompt, rather than all or nothing.
    #[must_use]
    pub const fn has_ratio(self) -> bool {
        !matches!(self, Self::None | Self::Epic | Self::Full)
    }

    /// Returns the settings of a plan under this rule: only [`RepairPolicy::None`] has no heads, and computes only the last token.
    #[must_use]
    pub fn spans(self, config: &SpanConfig) -> SpanConfig {
        match self {
            Self::None => SpanConfig { head_tokens: 0, tail_tokens: 1, ..config.clone() },
            _ => config.clone(),
        }
    }

    /// Returns the most tokens that it selects in a prompt of `prompt_len` tokens, with `ratio` as its share.
    #[must_use]
    pub fn budget(self, ratio: f32, prompt_len: u32) -> u32 {
        match self {
            Self::None | Self::Epic => 0,
            Self::Full => prompt_len,
            _ => (f64::from(ratio) * f64::from(prompt_len)).round() as u32,
        }
    }

    /// Returns the tokens of a run; 1 if it selects single tokens.
    pub(crate) const fn run_tokens(self) -> u32 {
        match self {
            Self::ImpactLayer | Self::TwoPass | Self::Impact => RUN_TOKENS,
            _ => 1,
        }
    }

    /// Returns the gain of recomputing a token; only the order counts.
    pub(crate) fn score(self, position: u32, found: &TokenDeviation) -> f32 {
        match self {
            Self::None | Self::Full | Self::Epic => 0.0,
            Self::Random => random_score(position),
            Self::CacheBlend | Self::Impact => found.value_l2 * found.value_l2,
            Self::Dhd => found.attention * found.value_l1,
            Self::QueryLayer | Self::Query => found.attention,
            Self::ImpactLayer => {
                found.attention * (found.value_l2 + found.key_l2 * found.value_norm / found.root_head_dim.max(f32::MIN_POSITIVE))
            }
            Self::TwoPass => found.attention * found.value_l2,
        }
    }
}

impl FromStr for RepairPolicy {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == name).ok_or_else(|| UnknownPolicy(name.to_owned()))
    }
}

/// Unknown name of a policy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no repair policy {0:?}; there are none, full, random, epic, cacheblend, dhd, query-layer, query, impact-layer, two-pass and impact"
)]
pub struct UnknownPolicy(pub String);

/// Returns a number in 0..1 that depends on the position alone.
fn random_score(position: u32) -> f32 {
    (splitmix64(u64::from(position).wrapping_mul(SPLITMIX64_STEP)) >> 40) as f32 / (1u64 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_depth_is_a_layer_of_the_model() {
        let layers = |depth: Depth| [1, 2, 4, 24, 30].map(|num_layers| depth.layer(num_layers, 0));
        assert_eq!(layers(Depth::Layer(3)), [0, 1, 3, 3, 3]);
        assert_eq!(layers(Depth::Quarter), [0, 1, 2, 6, 7]);
        // Of Gemma 3's layers the sixth is the first without a window.
        let layers = |depth: Depth| [18, 34].map(|num_layers| depth.layer(num_layers, 5));
        assert_eq!([0, 1].map(|layer| layers(Depth::Layer(layer))), [[0, 0], [6, 6]]);
        assert_eq!(layers(Depth::Quarter), [7, 8]);
    }

    #[test]
    fn names_are_distinct_and_read_back() {
        for policy in RepairPolicy::ALL {
            assert_eq!(policy.as_str().parse(), Ok(policy));
            assert!(UnknownPolicy(String::new()).to_string().contains(policy.as_str()));
        }
        assert_eq!("best".parse::<RepairPolicy>(), Err(UnknownPolicy("best".to_owned())));
    }
}
