//! The flag `--json`, the same for every command that measures something.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use crate::stdout;

/// Where the result goes as JSON: nowhere, to standard output instead of the table, or to a file beside the table.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct JsonArgs {
    /// Write the result as JSON to FILE, or without FILE to standard output instead of the table
    #[arg(long, num_args = 0..=1, default_missing_value = "-", value_name = "FILE")]
    json: Option<PathBuf>,
}

impl JsonArgs {
    /// Prints the table unless JSON takes its place, and writes the JSON if asked for.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn write(&self, result: &impl Serialize, table: &str) -> anyhow::Result<()> {
        let json = || serde_json::to_string_pretty(result).context("writing JSON");
        match self.json.as_deref() {
            None => stdout::write(table)?,
            Some(path) if path == Path::new("-") => stdout::write(json()? + "\n")?,
            Some(path) => {
                stdout::write(table)?;
                std::fs::write(path, json()? + "\n").with_context(|| format!("writing {}", path.display()))?;
            }
        }
        Ok(())
    }
}
