//! Flag `--json`, the same for every measuring command.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use crate::stdout;

/// Destination of the JSON result: none, standard output instead of the table, or a file beside the table.
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

    /// Writes the results so far to the file, if there is one, so that an interrupted run keeps them.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn save(&self, result: &impl Serialize) -> anyhow::Result<()> {
        let Some(path) = self.json.as_deref().filter(|path| *path != Path::new("-")) else { return Ok(()) };
        let json = serde_json::to_string(result).context("writing JSON")?;
        // Renamed into place, so that the file is whole at any moment.
        let part = path.with_extension("part");
        let written = std::fs::write(&part, json).and_then(|()| std::fs::rename(&part, path));
        written.with_context(|| format!("writing {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_in_the_file_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.json");
        let to_file = JsonArgs { json: Some(path.clone()) };
        to_file.save(&[1, 2]).unwrap();
        to_file.save(&[3]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[3]");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        JsonArgs::default().save(&[4]).unwrap();
        JsonArgs { json: Some("-".into()) }.save(&[4]).unwrap();
        assert!(JsonArgs { json: Some(folder.path().join("no/out.json")) }.save(&[5]).is_err());
    }
}
