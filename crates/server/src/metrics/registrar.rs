//! Registration of metrics with their help texts, labels and buckets, all before the first sample.

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

static METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

/// Registrar with its own recorder, so that two servers in one process (tests) do not mix their figures.
pub(super) struct Registrar {
    recorder: PrometheusRecorder,
}

/// Labels of one series, all known in advance: no client input becomes a label.
type Labels<'a> = &'a [(&'static str, &'a str)];

impl Registrar {
    /// Creates the recorder. Every series carries `model_name` and `engine`. `buckets` lists each histogram by name.
    pub(super) fn new(model_name: &str, buckets: &[(&str, Vec<f64>)]) -> Self {
        let labelled = PrometheusBuilder::new().add_global_label("model_name", model_name).add_global_label("engine", "0");
        let builder = buckets.iter().fold(labelled, |builder, (name, bounds)| {
            builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), bounds).expect("no bucket list is empty")
        });
        Self { recorder: builder.build_recorder() }
    }

    /// Returns the handle that renders all series.
    pub(super) fn handle(&self) -> PrometheusHandle {
        self.recorder.handle()
    }

    /// Registers a counter, initially 0, so that a rate has a start.
    pub(super) fn counter(&self, name: &'static str, help: &'static str, labels: Labels<'_>) -> Counter {
        self.recorder.describe_counter(KeyName::from_const_str(name), None, help.into());
        self.recorder.register_counter(&key(name, labels), &METADATA)
    }

    /// Registers a gauge.
    pub(super) fn gauge(&self, name: &'static str, help: &'static str, labels: Labels<'_>) -> Gauge {
        self.recorder.describe_gauge(KeyName::from_const_str(name), None, help.into());
        self.recorder.register_gauge(&key(name, labels), &METADATA)
    }

    /// Registers a histogram over the buckets given at the start.
    pub(super) fn histogram(&self, name: &'static str, help: &'static str, labels: Labels<'_>) -> Histogram {
        self.recorder.describe_histogram(KeyName::from_const_str(name), None, help.into());
        self.recorder.register_histogram(&key(name, labels), &METADATA)
    }
}

fn key(name: &'static str, labels: Labels<'_>) -> Key {
    Key::from_parts(name, labels.iter().map(|(label, value)| Label::new(*label, (*value).to_owned())).collect::<Vec<_>>())
}
