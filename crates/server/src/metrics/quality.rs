//! Verification results of answers over reused spans, by match class.

use engine::{ClassQuality, EngineStats, Fault, MatchClass};
use metrics::{Counter, Gauge};

use super::registrar::Registrar;

/// Series of every class, in the order of [`MatchClass::ALL`], which is that of the classes themselves, and of verification itself.
pub(super) struct QualityMetrics {
    classes: [ClassMetrics; MatchClass::ALL.len()],
    pending: Gauge,
    bytes: Gauge,
    dropped: Counter,
    gone: Counter,
    put_off: Counter,
    /// Traffic classes in mode `auto`: open ones and those in shadow.
    traffic: [Gauge; 2],
    /// Number of class openings and closings.
    changes: [Counter; 2],
    trials: Counter,
    healed: Counter,
}

struct ClassMetrics {
    verified: Counter,
    mean_kl: Gauge,
    top1: Gauge,
    tenants_off: Gauge,
    /// Counters in the order of [`Fault::ALL`].
    switched_off: [Counter; Fault::ALL.len()],
    evidence: [Gauge; Fault::ALL.len()],
}

impl QualityMetrics {
    pub(super) fn new(registrar: &Registrar) -> Self {
        Self {
            classes: MatchClass::ALL.map(|class| ClassMetrics::new(registrar, class.label())),
            pending: registrar.gauge(
                "kvshare_verification_pending",
                "Answers that wait to be compared with full computation.",
                &[],
            ),
            bytes: registrar.gauge(
                "kvshare_verification_bytes",
                "Memory of answers that are recorded or wait to be compared.",
                &[],
            ),
            dropped: registrar.counter(
                "kvshare_verification_dropped_total",
                "Answers that were not compared because their memory was used up.",
                &[],
            ),
            gone: registrar.counter(
                "kvshare_verification_gone_total",
                "Answers whose reuse could not be tried because the KV that they would have reused was gone.",
                &[],
            ),
            put_off: registrar.counter(
                "kvshare_verification_put_off_total",
                "Comparisons that were dropped, to be made later, because a request arrived.",
                &[],
            ),
            traffic: ["open", "shadow"].map(|state| {
                let help = "Classes of traffic in mode auto: open ones reuse, those in shadow are computed exactly and compared.";
                registrar.gauge("kvshare_traffic_classes", help, &[("state", state)])
            }),
            changes: ["opened", "closed"].map(|change| {
                let help = "Times that a class of traffic in mode auto was opened or closed.";
                registrar.counter("kvshare_traffic_class_changes_total", help, &[("change", change)])
            }),
            trials: registrar.counter(
                "kvshare_traffic_trials_total",
                "Exact answers whose reuse was computed afterwards, in idle time.",
                &[],
            ),
            healed: registrar.counter(
                "kvshare_healed_answers_total",
                "Answers over reused spans that were computed exactly afterwards, in idle time, and kept.",
                &[],
            ),
        }
    }

    pub(super) fn observe(&self, stats: &EngineStats) {
        let EngineStats { quality, verification, traffic, .. } = stats;
        for (class, found) in quality {
            self.classes[*class as usize].observe(found);
        }
        self.pending.set(verification.num_pending as f64);
        self.bytes.set(verification.num_bytes as f64);
        self.dropped.absolute(verification.num_dropped);
        self.gone.absolute(verification.num_gone);
        self.put_off.absolute(verification.num_put_off);
        self.traffic[0].set(traffic.num_open as f64);
        self.traffic[1].set(traffic.num_in_shadow as f64);
        self.changes[0].absolute(traffic.num_opened);
        self.changes[1].absolute(traffic.num_closed);
        self.trials.absolute(verification.num_trials);
        self.healed.absolute(verification.num_healed);
    }
}

impl ClassMetrics {
    fn new(registrar: &Registrar, class: &'static str) -> Self {
        let gauge = |name, help| registrar.gauge(name, help, &[("class", class)]);
        let labels = |fault: Fault| [("class", class), ("bound", fault.label())];
        Self {
            verified: registrar.counter(
                "kvshare_verified_answers_total",
                "Answers over reused spans that were compared with full computation.",
                &[("class", class)],
            ),
            mean_kl: gauge("kvshare_verified_kl_nats", "Mean KL divergence of the last verified answers."),
            top1: gauge("kvshare_verified_top1_ratio", "Share of positions with the same likeliest token, 0 to 1."),
            tenants_off: gauge("kvshare_class_switched_off", "Tenants for whom spans of this class are not reused at present."),
            switched_off: Fault::ALL.map(|fault| {
                let help = "Times that a class was switched off for a tenant, by the bound it missed.";
                registrar.counter("kvshare_class_switch_offs_total", help, &labels(fault))
            }),
            evidence: Fault::ALL.map(|fault| {
                let help = "Strongest evidence of a tenant's answers that the class misses this bound; at 1 it is switched off.";
                registrar.gauge("kvshare_class_evidence_ratio", help, &labels(fault))
            }),
        }
    }

    fn observe(&self, found: &ClassQuality) {
        self.verified.absolute(found.num_verified);
        self.mean_kl.set(found.mean_kl);
        self.top1.set(found.top1);
        self.tenants_off.set(found.num_tenants_off as f64);
        for ((counter, gauge), fault) in self.switched_off.iter().zip(&self.evidence).zip(Fault::ALL) {
            counter.absolute(found.num_switched_off[fault as usize]);
            gauge.set(found.evidence[fault as usize]);
        }
    }
}
