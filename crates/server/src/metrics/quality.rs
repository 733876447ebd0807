//! What verification found out about answers over reused spans, by class of match.

use engine::{ClassQuality, MatchClass};
use metrics::{Counter, Gauge};

use super::registrar::Registrar;

/// Series of every class, in the order of [`MatchClass::ALL`], which is that of the classes themselves.
pub(super) struct QualityMetrics([ClassMetrics; MatchClass::ALL.len()]);

struct ClassMetrics {
    verified: Counter,
    mean_kl: Gauge,
    top1: Gauge,
    is_off: Gauge,
}

impl QualityMetrics {
    pub(super) fn new(registrar: &Registrar) -> Self {
        let gauge = |name, help, class| registrar.gauge(name, help, &[("class", class)]);
        Self(MatchClass::ALL.map(MatchClass::label).map(|class| ClassMetrics {
            verified: registrar.counter(
                "kvshare_verified_answers_total",
                "Answers over reused spans that were compared with full computation.",
                &[("class", class)],
            ),
            mean_kl: gauge("kvshare_verified_kl_nats", "Mean KL divergence of the last verified answers.", class),
            top1: gauge("kvshare_verified_top1_ratio", "Share of positions with the same likeliest token, 0 to 1.", class),
            is_off: gauge("kvshare_class_switched_off", "1 while spans of this class are not reused.", class),
        }))
    }

    pub(super) fn observe(&self, quality: &[(MatchClass, ClassQuality)]) {
        for (class, found) in quality {
            let series = &self.0[*class as usize];
            series.verified.absolute(found.num_verified);
            series.mean_kl.set(found.mean_kl);
            series.top1.set(found.top1);
            series.is_off.set(f64::from(u8::from(found.is_off)));
        }
    }
}
