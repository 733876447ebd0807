//! Repair policies and quality bounds by the names that requests and the configuration use.

use std::str::FromStr;

use engine::Repair;

/// Why a text names no policy.
pub type InvalidRepair = <Repair as FromStr>::Err;

/// Share of the prompt that is recomputed when a policy is named without one: that of CacheBlend (arXiv 2405.16444, section 7).
const DEFAULT_RATIO: f32 = 0.15;

/// Named bounds of the deviation, in the unit of [`Repair::max_deviation`]. Chosen.
const PRESETS: [(&str, f32); 3] = [("strict", 0.05), ("balanced", 0.12), ("fast", 0.5)];

/// The policy that `text` names: `name[@ratio]`, and what [`Repair`] reads behind that.
///
/// # Errors
/// If there is no such policy, or the ratio is no share.
pub fn parse_repair(text: &str) -> Result<Repair, InvalidRepair> {
    let repair: Repair = text.parse()?;
    let has_budget = repair.policy.probe().is_some();
    Ok(if has_budget && !text.contains('@') { Repair { ratio: DEFAULT_RATIO, ..repair } } else { repair })
}

/// The bound that a preset stands for, in the unit of [`Repair::max_deviation`].
#[must_use]
pub fn deviation_preset(name: &str) -> Option<f32> {
    PRESETS.iter().find(|(preset, _)| *preset == name).map(|&(_, bound)| bound)
}

#[cfg(test)]
mod tests {
    use engine::RepairPolicy;

    use super::*;

    #[track_caller]
    fn check(text: &str, policy: RepairPolicy, ratio: f32) {
        let repair = parse_repair(text).unwrap();
        assert_eq!((repair.policy, repair.ratio), (policy, ratio));
        assert_eq!(parse_repair(&repair.to_string()), Ok(repair));
    }

    #[track_caller]
    fn check_refused(text: &str, part: &str) {
        let error = parse_repair(text).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }

    #[test]
    fn a_policy_is_named_with_or_without_its_ratio() {
        check("impact@0.3", RepairPolicy::Impact, 0.3);
        check("dhd", RepairPolicy::Dhd, DEFAULT_RATIO);
        check("dhd@0", RepairPolicy::Dhd, 0.0);
        check("epic", RepairPolicy::Epic, 0.0);
    }

    #[test]
    fn what_is_no_policy_is_told_what_there_is() {
        check_refused("best", "cacheblend");
        check_refused("impact@1.5", "1.5");
        check_refused("impact@NaN", "NaN");
    }

    #[test]
    fn presets_ascend() {
        let bounds = ["strict", "balanced", "fast"].map(|name| deviation_preset(name).unwrap());
        assert!(bounds.is_sorted() && bounds[0] > 0.0);
        assert_eq!(deviation_preset("loose"), None);
    }
}
