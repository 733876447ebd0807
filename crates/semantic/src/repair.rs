//! Repair settings of moved spans, and their text form.

use std::fmt;
use std::str::FromStr;

use crate::{MatchClass, Probe, Readers, RepairPolicy, UnknownPolicy};

/// A repair policy and its budget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Repair {
    /// Rule that selects the tokens.
    pub policy: RepairPolicy,
    /// Largest share of the prompt to recompute. Rows that are computed in any case do not count.
    pub ratio: f32,
    /// Selection stops once the deviation of the remaining tokens is at most this; 0 spends the whole budget.
    pub max_deviation: f32,
    /// The whole prompt is computed if the deviation is above this at the end of the budget; 0 disables this.
    pub bail_out: f32,
    /// The whole prompt is computed if the remaining tokens deviate by more than this per token of the prompt at a quarter of the model's
    /// depth; 0 disables this. See [`Repair::deep_probe`].
    pub deep_bail_out: f32,
    /// If the logits of the two likeliest first tokens are closer than this and the deviation is not negligible, the budget is doubled once
    /// before the first token is emitted; 0 disables this.
    pub min_margin: f32,
    /// Stride of the measurement: one of this many moved neighbours is measured for all of them; at least 1. Rules that measure attention
    /// measure all.
    pub sample: u32,
    /// True if tokens that are not recomputed follow the recomputed ones; see [`crate::follow_drift`].
    pub drift: bool,
    /// Repair after the first token; `None` leaves the rest as it is.
    pub decode: Option<DecodeRepair>,
}

/// Repair during decode: the query has moved on since the prompt, so other tokens matter.
///
/// KVShare (arXiv 2503.16525) recomputes 3 tokens in every step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeRepair {
    /// Number of tokens recomputed at once.
    pub tokens: u32,
    /// Steps between two repairs, at least 1.
    pub every: u32,
    /// Most rows of all sequences in a step in which a repair may run, and then only while no request waits; 0 disables this condition.
    pub max_batch_rows: u32,
}

/// Default share of the prompt that a policy recomputes: that of CacheBlend (arXiv 2405.16444, section 7).
const DEFAULT_RATIO: f32 = 0.15;

/// Share of the tokens in short pieces that [`RepairPolicy::Impact`] recomputes besides its ratio. Measured on Qwen2.5-Coder-0.5B: FAQ
/// entries and tool schemas in another order have a KL of .069 and .106 at a ratio of .15, and of .012 and .054 at .3.
const SHORT_PIECE_RATIO: f32 = 0.25;

/// Prompt tokens beyond this number count in part for the budget of [`RepairPolicy::Impact`]: tokens near the borders of runs deviate most,
/// and a longer prompt has longer runs rather than more. Measured on ten documents of 600 tokens each, where a KL of .12 to .26 does not
/// follow the budget from .05 to .3 of the prompt.
const WHOLE_BUDGET_TOKENS: u32 = 2048;
/// Part by which these tokens count. Chosen.
const LONG_PROMPT_PART: f32 = 0.1;

impl Repair {
    /// Returns the policy with the best result for its work in the project's own evaluation: [`RepairPolicy::Impact`] over at most a
    /// quarter of the prompt, less of a long one, with one measured token in eight, until little deviates; neighbours that follow; and full
    /// computation if much still deviates deeper in the model.
    #[must_use]
    pub const fn recommended() -> Self {
        Self {
            policy: RepairPolicy::Impact,
            ratio: 0.25,
            max_deviation: 0.12,
            deep_bail_out: 0.01,
            sample: 8,
            drift: true,
            ..Self::structural()
        }
    }

    /// Returns the measurements that the policy needs; `None` if it never selects a token.
    #[must_use]
    pub fn probe(&self) -> Option<Probe> {
        let probe = self.policy.probe()?;
        let stride = if probe.readers == Readers::None { self.sample.max(1) } else { 1 };
        Some(Probe { stride, ..probe })
    }

    /// Recomputes only rows known before any computation: heads of spans, template tokens, the tail of the prompt.
    #[must_use]
    pub const fn structural() -> Self {
        Self {
            policy: RepairPolicy::Epic,
            ratio: 0.0,
            max_deviation: 0.0,
            bail_out: 0.0,
            deep_bail_out: 0.0,
            min_margin: 0.0,
            sample: 1,
            drift: false,
            decode: None,
        }
    }

    fn set_part(&mut self, part: &str) -> Result<(), RepairError> {
        match part.split_once('=') {
            None if part == "drift" => self.drift = true,
            Some(("deviation", bound)) => self.max_deviation = parse_bound(part, bound)?,
            Some(("bail_out", bound)) => self.bail_out = parse_bound(part, bound)?,
            Some(("deep_bail_out", bound)) => self.deep_bail_out = parse_bound(part, bound)?,
            Some(("margin", bound)) => self.min_margin = parse_bound(part, bound)?,
            Some(("sample", sample)) => self.sample = parse_sample(part, sample)?,
            Some(("decode", decode)) => self.decode = Some(decode_repair(decode)?),
            _ => return Err(RepairError::Part(part.to_owned())),
        }
        Ok(())
    }

    /// Adds a budget for the short pieces that `plan` copies into a prompt of `prompt_len` tokens, and reduces that of a long prompt.
    /// Downstream of an edit all of it is spent: one more word changes the meaning of a rule and hardly its KV at an early layer.
    #[must_use]
    pub fn for_plan(self, plan: &crate::ReusePlan, prompt_len: u32) -> Self {
        if self.policy != RepairPolicy::Impact {
            return self;
        }
        let whole = prompt_len.min(WHOLE_BUDGET_TOKENS);
        let counted = whole as f32 + LONG_PROMPT_PART * (prompt_len - whole) as f32;
        let short = SHORT_PIECE_RATIO * plan.num_short_tokens() as f32;
        let ratio = (self.ratio * counted + short) / prompt_len.max(1) as f32;
        let is_edited = plan.class() == Some(MatchClass::DownstreamOfEdit);
        Self { ratio, max_deviation: if is_edited { 0.0 } else { self.max_deviation }, ..self }
    }
}

/// Parses `policy[@ratio][+drift][+sample=n][+deviation=d][+bail_out=d][+deep_bail_out=d][+margin=m][+decode=tokens/every]`, each part at
/// most once, as in `impact@0.6+drift+deviation=0.12`. A policy with a budget but no ratio uses `DEFAULT_RATIO`.
impl FromStr for Repair {
    type Err = RepairError;

    fn from_str(text: &str) -> Result<Self, RepairError> {
        let mut parts = text.split('+');
        let mut repair = rule(parts.next().unwrap_or_default())?;
        let mut seen = Vec::new();
        for part in parts {
            let name = part.split('=').next().unwrap_or_default();
            if seen.contains(&name) {
                return Err(RepairError::Twice(name.to_owned()));
            }
            seen.push(name);
            repair.set_part(part)?;
        }
        Ok(repair)
    }
}

/// Parses `policy[@ratio]`.
fn rule(text: &str) -> Result<Repair, RepairError> {
    let (policy, ratio) = text.split_once('@').map_or((text, None), |(policy, ratio)| (policy, Some(ratio)));
    let policy: RepairPolicy = policy.parse()?;
    let ratio = match (policy.has_ratio(), ratio) {
        (true, Some(ratio)) => {
            let in_range = |ratio: &f32| (0.0..=1.0).contains(ratio);
            ratio.parse().ok().filter(in_range).ok_or_else(|| RepairError::Ratio(ratio.to_owned()))?
        }
        (true, None) => DEFAULT_RATIO,
        (false, Some(_)) => return Err(RepairError::NeedlessRatio(policy.as_str())),
        (false, None) => 0.0,
    };
    Ok(Repair { policy, ratio, ..Repair::structural() })
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.policy.as_str())?;
        if self.policy.has_ratio() {
            write!(f, "@{}", self.ratio)?;
        }
        f.write_str(if self.drift { "+drift" } else { "" })?;
        if self.sample != 1 {
            write!(f, "+sample={}", self.sample)?;
        }
        let bounds = [
            ("deviation", self.max_deviation),
            ("bail_out", self.bail_out),
            ("deep_bail_out", self.deep_bail_out),
            ("margin", self.min_margin),
        ];
        for (name, bound) in bounds.into_iter().filter(|(_, bound)| *bound > 0.0) {
            write!(f, "+{name}={bound}")?;
        }
        match self.decode {
            Some(DecodeRepair { tokens, every, .. }) => write!(f, "+decode={tokens}/{every}"),
            None => Ok(()),
        }
    }
}

/// Parses a number above 0.
fn parse_bound(part: &str, text: &str) -> Result<f32, RepairError> {
    let bound = text.parse().ok().filter(|bound: &f32| *bound > 0.0 && bound.is_finite());
    bound.ok_or_else(|| RepairError::Part(part.to_owned()))
}

/// Parses an integer of at least 1.
fn parse_sample(part: &str, text: &str) -> Result<u32, RepairError> {
    text.parse().ok().filter(|sample| *sample > 0).ok_or_else(|| RepairError::Part(part.to_owned()))
}

/// Parses a repair that runs in every step, whatever the load; the server's settings add the limit on rows.
fn decode_repair(text: &str) -> Result<DecodeRepair, RepairError> {
    let parse = || {
        let (tokens, every) = text.split_once('/')?;
        let (tokens, every) = (tokens.parse().ok()?, every.parse().ok().filter(|every| *every > 0)?);
        Some(DecodeRepair { tokens, every, max_batch_rows: 0 })
    };
    parse().ok_or_else(|| RepairError::Part(format!("decode={text}")))
}

/// Error in the text form of a [`Repair`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RepairError {
    /// Invalid rule.
    #[error(transparent)]
    Policy(#[from] UnknownPolicy),
    /// Invalid ratio.
    #[error("the ratio {0:?} of a repair policy is not a number from 0 to 1")]
    Ratio(String),
    /// Ratio given for a rule that recomputes all or nothing.
    #[error("repair policy {0} takes no ratio")]
    NeedlessRatio(&'static str),
    /// Part given twice.
    #[error("{0:?} is said twice of a repair policy")]
    Twice(String),
    /// Unknown or invalid part.
    #[error(
        "{0:?} of a repair policy is not \"drift\", \"sample=n\" with n from 1, \"decode=tokens/every\", or a number above 0 for \"deviation\", \"bail_out\", \"deep_bail_out\" or \"margin\""
    )]
    Part(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repair_is_read_back_as_it_is_written() {
        for text in [
            "none",
            "epic",
            "full",
            "random@0.15",
            "impact@0.3+drift",
            "dhd@0.3+decode=3/1",
            "query@1+drift+decode=48/16",
            "impact@0.6+drift+sample=8+deviation=0.12+bail_out=2+deep_bail_out=0.02+margin=1.5",
        ] {
            assert_eq!(text.parse::<Repair>().map(|repair| repair.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn a_policy_named_without_its_ratio_has_the_default() {
        for (text, ratio) in
            [("dhd", DEFAULT_RATIO), ("dhd@0", 0.0), ("impact+drift", DEFAULT_RATIO), ("epic", 0.0), ("full", 0.0)]
        {
            assert_eq!(text.parse::<Repair>().map(|repair| repair.ratio), Ok(ratio), "{text}");
        }
    }

    #[test]
    fn a_bad_repair_is_refused_with_its_bad_part() {
        for (text, part) in [
            ("best@0.1", "\"best\""),
            ("dhd@1.5", "\"1.5\""),
            ("dhd@NaN", "\"NaN\""),
            ("dhd@", "\"\""),
            ("epic@0.1", "takes no ratio"),
            ("dhd+drift+drift", "twice"),
            ("dhd+sample=2+drift+sample=3", "\"sample\""),
            ("dhd+decode=3", "decode=3"),
            ("dhd+decode=3/0", "decode=3/0"),
            ("dhd+drif", "\"drif\""),
            ("dhd+sample=0", "sample=0"),
            ("dhd+deviation=-1", "deviation=-1"),
            ("dhd+margin=inf", "margin=inf"),
        ] {
            let error = text.parse::<Repair>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
