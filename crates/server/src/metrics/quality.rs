//! What verification found out about answers over reused spans, by class of match.

use engine::{ClassQuality, Fault, MatchClass, VerificationStats};
use metrics::{Counter, Gauge};

use super::registrar::Registrar;

/// Series of every class, in the order of [`MatchClass::ALL`], which is that of the classes themselves, and of verification itself.
pub(super) struct QualityMetrics {
    classes: [ClassMetrics; MatchClass::ALL.len()],
    pending: Gauge,
    bytes: Gauge,
    dropped: Counter,
    put_off: Counter,
}

struct ClassMetrics {
    verified: Counter,
    mean_kl: Gauge,
    top1: Gauge,
    tenants_off: Gauge,
    /// In the order of [`Fault::ALL`].
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
            put_off: registrar.counter(
                "kvshare_verification_put_off_total",
                "Comparisons that were dropped, to be made later, because a request arrived.",
                &[],
            ),
        }
    }

    pub(super) fn observe(&self, quality: &[(MatchClass, ClassQuality)], verification: VerificationStats) {
        for (class, found) in quality {
            self.classes[*class as usize].observe(found);
        }
        self.pending.set(verification.num_pending as f64);
        self.bytes.set(verification.num_bytes as f64);
        self.dropped.absolute(verification.num_dropped);
        self.put_off.absolute(verification.num_put_off);
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
