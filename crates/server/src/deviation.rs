//! Named bounds of the deviation, as requests and the configuration use them.

/// Names and bounds, in the unit of [`engine::Repair::max_deviation`]. Chosen.
const PRESETS: [(&str, f32); 3] = [("strict", 0.05), ("balanced", 0.12), ("fast", 0.5)];

/// Returns the bound of the preset `name`, in the unit of [`engine::Repair::max_deviation`].
#[must_use]
pub fn deviation_preset(name: &str) -> Option<f32> {
    PRESETS.iter().find(|(preset, _)| *preset == name).map(|&(_, bound)| bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_ascend() {
        let bounds = ["strict", "balanced", "fast"].map(|name| deviation_preset(name).unwrap());
        assert!(bounds.is_sorted() && bounds[0] > 0.0);
        assert_eq!(deviation_preset("loose"), None);
    }
}
