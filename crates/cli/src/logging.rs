//! Logging of the crates' traces to standard error. A log line that cannot be written is lost, without other effect.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

/// Installs the process's subscriber. Call once.
///
/// # Panics
/// If the filter is invalid: the configuration was checked before.
pub(crate) fn init(config: &LogConfig) {
    let filter = EnvFilter::try_new(&config.filter).expect("the filter was checked with the configuration");
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match config.format {
        LogFormat::Text => subscriber.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
}
