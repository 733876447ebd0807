//! Reasons why there is no configuration.

use std::path::PathBuf;

/// Reason why there is no configuration. One line each.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The file is no TOML, has an unknown key, or a value of the wrong type.
    #[error("{}:{line}: {message}", path.display())]
    Parse {
        /// Path of the file.
        path: PathBuf,
        /// Line in it, from 1.
        line: usize,
        /// Description of the error.
        message: String,
    },
    /// Values that are out of range or contradict each other.
    #[error("{}", problems.join("; "))]
    Invalid {
        /// Descriptions of all problems.
        problems: Vec<String>,
    },
}
