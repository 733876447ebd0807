//! Which model is measured in process: the configured one, or random weights in the shape of a configuration.

use std::path::PathBuf;

use anyhow::Context;
use engine::SchedulerConfig;

use crate::config::{Auto, Config, ConfigArgs};
use crate::loading::{self, Loaded};
use crate::models;

/// Which model is measured.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct BenchModelArgs {
    /// Measure random weights in the shape of this config.json, or of the one in this folder; so does --config with a folder
    #[arg(long, value_name = "DIR", conflicts_with = "model")]
    model_config: Option<PathBuf>,
    /// Seed of random weights
    #[arg(long, default_value_t = 0, value_name = "N")]
    weights_seed: u64,
}

/// A model in memory, and the settings of its engine.
pub(crate) struct Source {
    /// As resolved, with room for what is measured.
    pub(crate) config: Config,
    /// The model.
    pub(crate) loaded: Loaded,
    /// For measurements: no answer is verified in idle time.
    pub(crate) scheduler: SchedulerConfig,
}

impl BenchModelArgs {
    /// Loads the model for as many sequences at once as are configured, and at least `num_seqs`.
    ///
    /// # Errors
    /// If the configuration makes no sense, or the model cannot be loaded.
    pub(crate) fn load(&self, mut args: ConfigArgs, num_seqs: usize) -> anyhow::Result<Source> {
        // A folder holds no settings, so it can only mean the shape of a model.
        let folder = args.config.take_if(|path| path.is_dir());
        let shape = self.model_config.clone().or(folder);
        let mut config = Config::resolve(args)?;
        let (num_tokens, configured) = config.engine.batch_limits(loading::device(&config.engine));
        let num_seqs = num_seqs.max(configured);
        config.engine.max_num_seqs = Auto::Set(num_seqs);
        config.engine.max_num_batched_tokens = Auto::Set(num_tokens.max(num_seqs));
        let loaded = match shape {
            Some(path) => loading::load_files(&config, models::random(&path, self.weights_seed))?,
            None => loading::load(&config)?,
        };
        let scheduler = SchedulerConfig { verify_share: 0.0, ..loading::scheduler_config(&config, &loaded.model)? };
        Ok(Source { config, loaded, scheduler })
    }
}

impl Source {
    /// Tokens the model knows.
    ///
    /// # Errors
    /// If they are more than tokens are counted.
    pub(crate) fn vocab_size(&self) -> anyhow::Result<u32> {
        u32::try_from(self.loaded.model.config.vocab_size).context("the vocabulary's size")
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        source: BenchModelArgs,
        #[command(flatten)]
        config: ConfigArgs,
    }

    /// Loads the shape of a tiny model, named by `flag`; the name of what was loaded, and its vocabulary.
    #[track_caller]
    fn check(flag: &str) -> (String, u32, usize) {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny/qwen2");
        let line = ["bench", flag, folder, "--max-model-len", "256", "--kv-cache-memory", "1MiB", "--threads", "1"];
        let line = Line::try_parse_from(line).unwrap();
        let source = line.source.load(line.config, 100).unwrap();
        (source.loaded.files.id.clone(), source.vocab_size().unwrap(), source.scheduler.max_num_seqs)
    }

    #[test]
    fn a_folder_gives_random_weights_of_its_shape_under_either_flag() {
        for flag in ["--model-config", "--config"] {
            assert_eq!(check(flag), ("random qwen2".to_owned(), 96, 100));
        }
    }

    #[test]
    fn a_shape_and_a_model_exclude_each_other() {
        assert!(Line::try_parse_from(["bench", "--model-config", "a", "--model", "b"]).is_err());
    }
}
