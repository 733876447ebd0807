//! Logging of the daemon.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::flag::set;

/// `[log]` of the configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LogConfig {
    /// Format of a line on standard error.
    pub(crate) format: LogFormat,
    /// Filter of lines: a level, or directives as in `info,engine=debug`.
    pub(crate) filter: String,
}

/// Format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".to_owned() }
    }
}

impl LogConfig {
    pub(super) fn problems(&self) -> Vec<String> {
        match tracing_subscriber::EnvFilter::try_new(&self.filter) {
            Ok(_) => Vec::new(),
            Err(error) => vec![format!("log.filter `{}`: {error}", self.filter)],
        }
    }
}

/// Flags of `[log]`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Log")]
pub(crate) struct LogArgs {
    /// Shape of a log line [default: text]
    #[arg(long, env = "KVSHARE_LOG_FORMAT", value_enum)]
    log_format: Option<LogFormat>,
    /// Filter of log lines, e.g. `info,engine=debug` [default: info]
    #[arg(long, env = "RUST_LOG", value_name = "FILTER")]
    log_filter: Option<String>,
}

impl LogArgs {
    pub(super) fn apply(self, config: &mut LogConfig) {
        set(&mut config.format, self.log_format);
        set(&mut config.filter, self.log_filter);
    }
}
