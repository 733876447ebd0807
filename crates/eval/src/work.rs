//! Share of a prompt's computation that is done, in (token, layer) pairs.

use engine::{KvUsage, Probe, Readers, Repair};

/// Layers of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layers {
    /// Number of all of them.
    pub total: u32,
    /// Number of first ones that attend within a window.
    pub local: u32,
}

/// Computes the share of the prompt's (token, layer) pairs that are computed. Pairs computed twice count twice, so it can exceed 1.
///
/// Computed rows count in all layers. A probe counts the rows that it measures, and the unmoved ones, in the layers up to the one whose
/// keys and values it compares, including that one although only its projections are computed; with readers at all layers, the unmoved
/// rows count in all layers once more. That is an upper bound: rows left over from all spans are computed only once, but the usage does not
/// give their number. Copies, and the check of layer 0 on a few tokens of a span, do not count. `announced` is the usage at admission,
/// before the probe; `last` the final one.
pub(crate) fn computed_share(announced: &KvUsage, last: &KvUsage, repair: Option<Repair>, of_model: Layers) -> f64 {
    let layers = f64::from(of_model.total);
    let mut pairs = f64::from(last.computed_tokens) * layers;
    if let Some(repair) = repair.filter(|_| announced.span_tokens > 0) {
        pairs += repair.probe().map_or(0.0, |probe| probed_pairs(announced, probe, of_model));
        let deep = last.deep_deviation.and_then(|_| repair.deep_probe(f32::INFINITY));
        pairs += deep.map_or(0.0, |probe| probed_pairs(announced, probe, of_model));
    }
    pairs / (f64::from(num_prompt_tokens(last)) * layers)
}

fn probed_pairs(announced: &KvUsage, probe: Probe, of_model: Layers) -> f64 {
    let checked = (probe.depth.layer(of_model.total as usize, of_model.local as usize) + 1) as f64;
    let reading = match probe.readers {
        Readers::FreshRowsAllLayers => f64::from(of_model.total),
        Readers::None | Readers::AllRows | Readers::FreshRows => 0.0,
    };
    let fresh = f64::from(announced.computed_tokens);
    (f64::from(announced.span_tokens.div_ceil(probe.stride)) + fresh) * checked + fresh * reading
}

/// Returns the prompt's length as the sum of a usage's parts.
pub(crate) const fn num_prompt_tokens(usage: &KvUsage) -> u32 {
    usage.prefix_tokens + usage.continued_tokens + usage.span_tokens + usage.computed_tokens
}

#[cfg(test)]
mod tests {
    use engine::RepairPolicy;

    use super::*;

    const LAYERS: Layers = Layers { total: 10, local: 0 };

    /// Checks a prompt of 100 tokens: 10 of a prefix, 60 moved, of which `selected` are recomputed.
    #[track_caller]
    fn check(selected: u32, repair: Repair, deep_deviation: Option<f32>, expected: f64) {
        let announced = KvUsage { prefix_tokens: 10, span_tokens: 60, computed_tokens: 30, ..KvUsage::default() };
        let last = KvUsage { span_tokens: 60 - selected, computed_tokens: 30 + selected, deep_deviation, ..announced };
        let share = computed_share(&announced, &last, Some(repair), LAYERS);
        assert!((share - expected).abs() < 1e-9, "{share}");
    }

    fn by(policy: RepairPolicy) -> Repair {
        Repair { policy, ratio: 0.2, ..Repair::structural() }
    }

    #[test]
    fn rows_count_in_all_layers() {
        check(0, Repair::structural(), None, 0.3);
        check(20, Repair::structural(), None, 0.5);
    }

    #[test]
    fn a_probe_counts_all_rows_behind_the_prefix_in_its_layers() {
        check(20, by(RepairPolicy::Random), None, 0.5 + 0.9 * 0.1);
        check(20, by(RepairPolicy::Dhd), None, 0.5 + 0.9 * 0.2);
        check(0, by(RepairPolicy::ImpactLayer), None, 0.3 + 0.9 * 0.4);
        check(20, Repair { sample: 8, ..by(RepairPolicy::Impact) }, None, 0.5 + 0.38 * 0.2);
    }

    #[test]
    fn readers_at_all_layers_count_fresh_rows_twice() {
        check(20, by(RepairPolicy::TwoPass), None, 0.5 + 0.3 + 0.9 * 0.2);
    }

    #[test]
    fn a_second_look_counts_its_rows_in_a_quarter_of_the_layers() {
        let repair = Repair { deep_bail_out: 0.01, ..by(RepairPolicy::Impact) };
        check(20, repair, Some(0.001), 0.5 + 0.9 * 0.2 + 0.31 * 0.3);
        check(60, repair, Some(0.1), 0.9 + 0.9 * 0.2 + 0.31 * 0.3);
    }

    #[test]
    fn without_spans_nothing_is_probed() {
        let miss = KvUsage { computed_tokens: 100, ..KvUsage::default() };
        assert_eq!(computed_share(&miss, &miss, Some(by(RepairPolicy::Dhd)), LAYERS), 1.0);
    }
}
