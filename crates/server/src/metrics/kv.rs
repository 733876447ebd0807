//! Metrics of reuse, explanations and erasures. Never by tenant or donor: a series must not reveal one tenant to another.

use engine::{Erase, ErasedCounts, Explanation, KvUsage, MatchClass};
use metrics::{Counter, Gauge, Histogram};
use tokens::SharingMode;

use super::registrar::Registrar;

/// Metrics of sharing and managing KV.
pub(crate) struct KvMetrics {
    /// Counters in the order of the modes.
    modes: [Counter; SharingMode::ALL.len()],
    /// Counters in the order of the classes.
    classes: [Counter; MatchClass::ALL.len()],
    deviation: Histogram,
    explanations: [Counter; 3],
    erasures: [Counter; 4],
    erased_donors: Counter,
    erased_blocks: Counter,
    corpora: Gauge,
}

const EXPLAINED: [&str; 3] = ["span", "prefix", "nothing"];
const ERASED: [&str; 4] = ["donor", "session", "tenant", "all"];

impl KvMetrics {
    pub(super) fn new(registrar: &Registrar) -> Self {
        let counters =
            |name, help, label| move |value: &'static str| -> Counter { registrar.counter(name, help, &[(label, value)]) };
        Self {
            modes: SharingMode::NAMES.map(counters(
                "kvshare_requests_total",
                "Admitted requests by what they allowed to be reused.",
                "mode",
            )),
            classes: MatchClass::ALL.map(MatchClass::label).map(counters(
                "kvshare_span_requests_total",
                "Ended requests that reused spans, by how far the worst one's left context was equal.",
                "class",
            )),
            deviation: registrar.histogram(
                "kvshare_kv_deviation",
                "Deviation of reused spans after repair, in tokens worth of change.",
                &[],
            ),
            explanations: EXPLAINED.map(counters(
                "kvshare_explanations_total",
                "Explained requests by what would be reused.",
                "reuse",
            )),
            erasures: ERASED.map(counters("kvshare_erasures_total", "Calls that erased KV, by what they named.", "kind")),
            erased_donors: registrar.counter("kvshare_erased_donors_total", "Earlier prompts that were erased.", &[]),
            erased_blocks: registrar.counter("kvshare_erased_blocks_total", "Blocks of KV that were erased.", &[]),
            corpora: registrar.gauge("kvshare_public_corpora", "Public corpora that are registered.", &[]),
        }
    }

    /// Counts a request's mode when it is admitted.
    pub(crate) fn count_mode(&self, mode: SharingMode) {
        self.modes[mode as usize].increment(1);
    }

    /// Counts a request's reuse when it has ended.
    pub(crate) fn count_reuse(&self, usage: &KvUsage) {
        let Some(class) = usage.class else { return };
        self.classes[class as usize].increment(1);
        if let Some(deviation) = usage.deviation {
            self.deviation.record(f64::from(deviation));
        }
    }

    pub(crate) fn count_explanation(&self, found: &Explanation) {
        let index = match (found.plan.spans.is_empty(), found.usage.prefix_tokens) {
            (false, _) => 0,
            (true, 1..) => 1,
            (true, 0) => 2,
        };
        self.explanations[index].increment(1);
    }

    pub(crate) fn count_erased(&self, what: Erase, counts: ErasedCounts) {
        self.erasures[kind_index(what)].increment(1);
        self.erased_donors.increment(counts.donors as u64);
        self.erased_blocks.increment(counts.blocks as u64);
    }

    pub(crate) fn set_corpora(&self, num_corpora: usize) {
        self.corpora.set(num_corpora as f64);
    }
}

/// Returns the label of an erasure.
pub(crate) fn erased_kind(what: Erase) -> &'static str {
    ERASED[kind_index(what)]
}

const fn kind_index(what: Erase) -> usize {
    match what {
        Erase::Donor(_) => 0,
        Erase::Session(..) => 1,
        Erase::Tenant(_) => 2,
        Erase::All => 3,
    }
}
