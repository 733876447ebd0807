//! Alternatives to full computation: itself in other chunks, exact prefixes, or spans under a repair policy.
//!
//! Written `off`, `prefix`, or as [`Repair`] is, with the share that its policy may recompute.

use std::fmt;
use std::str::FromStr;

use engine::{Repair, RepairError};

/// Source of a prompt's KV.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    /// Full computation once more, in other chunks: gives the difference of two exact runs.
    Off,
    /// Blocks with equal left context. Exact.
    Prefix,
    /// Spans at any position, repaired by this policy.
    Span(Repair),
}

/// Invalid policy.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum PolicyError {
    /// Unknown policy.
    #[error("{0}; and there are off and prefix")]
    Unknown(String),
}

impl Policy {
    /// Returns its name without a share.
    pub fn name(self) -> String {
        match self {
            Self::Off => "off".to_owned(),
            Self::Prefix => "prefix".to_owned(),
            Self::Span(repair) => {
                let text = repair.to_string();
                let (rule, extras) = text.split_at(text.find('+').unwrap_or(text.len()));
                format!("{}{extras}", rule.split('@').next().unwrap_or(rule))
            }
        }
    }

    /// Returns the share of the prompt it may recompute beyond mandatory rows; `None` if it has no such setting.
    pub fn ratio(self) -> Option<f32> {
        match self {
            Self::Span(repair) if repair.policy.has_ratio() => Some(repair.ratio),
            _ => None,
        }
    }
}

/// Formats `name@share` of a policy from its two parts.
pub(crate) fn label(name: &str, ratio: Option<f32>) -> String {
    let (rule, extras) = name.split_at(name.find('+').unwrap_or(name.len()));
    ratio.map_or_else(|| name.to_owned(), |ratio| format!("{rule}@{ratio}{extras}"))
}

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        match text {
            "off" => return Ok(Self::Off),
            "prefix" => return Ok(Self::Prefix),
            _ => {}
        }
        text.parse().map(Self::Span).map_err(|error: RepairError| PolicyError::Unknown(error.to_string()))
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&label(&self.name(), self.ratio()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the policy as it prints itself, or a part of the error.
    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        match (text.parse::<Policy>(), expected) {
            (Ok(policy), Ok(expected)) => {
                assert_eq!(policy.to_string(), expected);
                assert_eq!(policy.to_string().parse(), Ok(policy));
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (found, _) => panic!("{text}: {found:?}"),
        }
    }

    #[test]
    fn rules_with_a_budget_have_a_share() {
        check("cacheblend@.15", Ok("cacheblend@0.15"));
        check("impact@0.3", Ok("impact@0.3"));
        check("random@0", Ok("random@0"));
        let all = "impact@0.3+drift+sample=8+deviation=0.05+bail_out=0.5+deep_bail_out=0.02+margin=1+decode=3/1";
        check(all, Ok(all));
        check("impact@.3+margin=1+drift", Ok("impact@0.3+drift+margin=1"));
        check("dhd", Ok("dhd@0.15"));
    }

    #[test]
    fn rules_without_a_budget_have_none() {
        for name in ["none", "full", "epic"] {
            check(name, Ok(name));
            check(&format!("{name}@.1"), Err("takes no ratio"));
        }
        check("off", Ok("off"));
        check("prefix", Ok("prefix"));
        check("off@.1", Err("\"off\""));
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        check("best@.1", Err("\"best\""));
        for share in ["", "x", "1.5", "-0.1", "nan"] {
            check(&format!("dhd@{share}"), Err("not a number from 0 to 1"));
        }
        check("dhd@.1+haste", Err("haste"));
    }

    #[test]
    fn a_name_and_a_share_make_the_whole_again() {
        for text in ["prefix", "epic", "none+drift", "dhd@0.3", "impact@0.15+drift+deviation=0.1"] {
            let policy: Policy = text.parse().unwrap();
            assert_eq!(label(&policy.name(), policy.ratio()), text);
        }
        assert_eq!("impact@0.15+drift".parse::<Policy>().unwrap().name(), "impact+drift");
    }
}
