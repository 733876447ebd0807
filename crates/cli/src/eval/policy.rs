//! What is compared with full computation: itself, exact prefixes, or spans under a rule of repair. Written `name` or `name@share`.

use std::fmt;
use std::str::FromStr;

use engine::{Repair, RepairPolicy};

/// One way to fill a prompt's KV.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Policy {
    /// Full computation once more, in other chunks: what two exact runs differ by.
    Off,
    /// Blocks with equal left context. Exact.
    Prefix,
    /// Spans at any place, repaired by this rule.
    Span(Repair),
}

/// Why a text names no policy.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum PolicyError {
    /// No rule is called so.
    #[error("{0}; and there are off and prefix")]
    Unknown(String),
    /// The share is no number from 0 to 1.
    #[error("{0:?} is no share from 0 to 1")]
    BadShare(String),
    /// It has nothing to spend a share on.
    #[error("{0} takes no share")]
    NeedlessShare(String),
    /// It recomputes as much as it is told to, and was told nothing.
    #[error("{0} needs the share of the prompt that it may recompute, as in {0}@0.15")]
    NoShare(String),
}

impl Policy {
    /// Its name without a share.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Prefix => "prefix",
            Self::Span(repair) => repair.policy.as_str(),
        }
    }

    /// The share of the prompt it may recompute beyond what is computed in any case; `None` if that is no setting of it.
    pub(crate) fn ratio(self) -> Option<f32> {
        match self {
            Self::Span(repair) if has_budget(repair.policy) => Some(repair.ratio),
            _ => None,
        }
    }
}

/// Whether the rule spends a share of the prompt, rather than all or nothing.
fn has_budget(policy: RepairPolicy) -> bool {
    policy.probe().is_some() && policy != RepairPolicy::Full
}

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let (name, share) = text.split_once('@').map_or((text, None), |(name, share)| (name, Some(share)));
        let rule = match name {
            "off" | "prefix" => None,
            _ => Some(name.parse::<RepairPolicy>().map_err(|error| PolicyError::Unknown(error.to_string()))?),
        };
        let spends = rule.is_some_and(has_budget);
        let ratio = match share {
            Some(_) if !spends => return Err(PolicyError::NeedlessShare(name.to_owned())),
            None if spends => return Err(PolicyError::NoShare(name.to_owned())),
            Some(share) => parse_share(share)?,
            None => 0.0,
        };
        Ok(match rule {
            Some(policy) => Self::Span(Repair { policy, ratio }),
            None if name == "off" => Self::Off,
            None => Self::Prefix,
        })
    }
}

fn parse_share(text: &str) -> Result<f32, PolicyError> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| PolicyError::BadShare(text.to_owned()))
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ratio() {
            Some(ratio) => write!(f, "{}@{ratio}", self.name()),
            None => f.write_str(self.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The policy as it prints itself, or a part of the refusal.
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
        check("dhd", Err("dhd@0.15"));
    }

    #[test]
    fn rules_without_a_budget_have_none() {
        for name in ["off", "prefix", "none", "full", "epic"] {
            check(name, Ok(name));
            check(&format!("{name}@.1"), Err("takes no share"));
        }
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        check("best@.1", Err("\"best\""));
        for share in ["", "x", "1.5", "-0.1", "nan"] {
            check(&format!("dhd@{share}"), Err("is no share"));
        }
    }
}
