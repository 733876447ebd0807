//! Repair policies and quality bounds by the names that requests and the configuration use.

use engine::{Repair, RepairPolicy};

/// Why a text names no policy.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidRepair {
    /// There is no such policy.
    #[error("{0}")]
    Policy(String),
    /// The ratio is no share.
    #[error("the ratio of a policy is a number between 0 and 1, not `{0}`")]
    Ratio(String),
}

/// Share of the prompt that is recomputed when a policy is named alone: that of CacheBlend (arXiv 2405.16444, section 7).
const DEFAULT_RATIO: f32 = 0.15;

/// Named bounds of the deviation, in the unit of [`Repair::max_deviation`]. Chosen.
const PRESETS: [(&str, f32); 3] = [("strict", 0.02), ("balanced", 0.05), ("fast", 0.15)];

/// The policy that `text` names: `name`, or `name@ratio`. It has no bound of the deviation.
///
/// # Errors
/// If there is no such policy, or the ratio is no share.
pub fn parse_repair(text: &str) -> Result<Repair, InvalidRepair> {
    let (name, ratio) = match text.split_once('@') {
        Some((name, ratio)) => (name, parse_ratio(ratio)?),
        None => (text, DEFAULT_RATIO),
    };
    let policy: RepairPolicy = name.parse().map_err(|error| InvalidRepair::Policy(format!("{error}")))?;
    Ok(Repair { policy, ratio, max_deviation: 0.0 })
}

fn parse_ratio(text: &str) -> Result<f32, InvalidRepair> {
    let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| InvalidRepair::Ratio(text.to_owned()))
}

/// `repair` without its bound, as [`parse_repair`] reads it.
#[must_use]
pub fn repair_name(repair: Repair) -> String {
    format!("{}@{}", repair.policy.as_str(), repair.ratio)
}

/// The bound that a preset stands for, in the unit of [`Repair::max_deviation`].
#[must_use]
pub fn deviation_preset(name: &str) -> Option<f32> {
    PRESETS.iter().find(|(preset, _)| *preset == name).map(|&(_, bound)| bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(RepairPolicy, f32), &str>) {
        let found = parse_repair(text).map(|repair| (repair.policy, repair.ratio));
        match expected {
            Ok(expected) => assert_eq!(found, Ok(expected)),
            Err(part) => assert!(found.as_ref().is_err_and(|error| error.to_string().contains(part)), "{found:?}"),
        }
    }

    #[test]
    fn a_policy_is_named_with_or_without_its_ratio() {
        check("impact@0.3", Ok((RepairPolicy::Impact, 0.3)));
        check("dhd", Ok((RepairPolicy::Dhd, 0.15)));
        check("epic@0", Ok((RepairPolicy::Epic, 0.0)));
    }

    #[test]
    fn what_is_no_policy_is_told_what_there_is() {
        check("best", Err("cacheblend"));
        check("impact@", Err("``"));
        check("impact@1.5", Err("`1.5`"));
        check("impact@NaN", Err("`NaN`"));
    }

    #[test]
    fn names_are_read_back() {
        for policy in RepairPolicy::ALL {
            let repair = Repair { policy, ratio: 0.25, max_deviation: 0.0 };
            assert_eq!(parse_repair(&repair_name(repair)), Ok(repair));
        }
    }

    #[test]
    fn presets_ascend() {
        let bounds = ["strict", "balanced", "fast"].map(|name| deviation_preset(name).unwrap());
        assert!(bounds.is_sorted() && bounds[0] > 0.0);
        assert_eq!(deviation_preset("loose"), None);
    }
}
