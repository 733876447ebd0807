//! Model for measurements in process.

use anyhow::{Context, bail};
use engine::SchedulerConfig;

use crate::config::{Auto, Config, ConfigArgs, LoadFormat};
use crate::loading::{self, Loaded};

/// Loaded model with its engine's settings.
pub(crate) struct Source {
    /// Resolved configuration, with room for the measurements.
    pub(crate) config: Config,
    /// Model.
    pub(crate) loaded: Loaded,
    /// Settings for measurements: no answer is verified in idle time.
    pub(crate) scheduler: SchedulerConfig,
}

impl Source {
    /// Loads the configured model for the configured number of sequences at once, at least `num_seqs`. `--config` with a folder gives
    /// random weights in the shape of the `config.json` in it.
    ///
    /// # Errors
    /// If the configuration is invalid, or the model cannot be loaded.
    pub(crate) fn load(mut args: ConfigArgs, num_seqs: usize) -> anyhow::Result<Self> {
        // A folder holds no settings, so it can only mean the shape of a model.
        let shape = args.config.take_if(|path| path.is_dir());
        if shape.is_some() && args.model.model.is_some() {
            bail!("--config with a folder and --model name two models");
        }
        let mut config = Config::resolve(args)?;
        if let Some(folder) = shape {
            config.model.name =
                folder.to_str().with_context(|| format!("{} is no name of a model", folder.display()))?.to_owned();
            config.model.load_format = LoadFormat::Dummy;
        }
        let (num_tokens, configured) = config.engine.batch_limits(loading::device(&config.engine));
        let num_seqs = num_seqs.max(configured);
        config.engine.max_num_seqs = Auto::Set(num_seqs);
        config.engine.max_num_batched_tokens = Auto::Set(num_tokens.max(num_seqs));
        let loaded = loading::load(&config)?;
        let scheduler = SchedulerConfig {
            verification: engine::VerificationConfig::default(),
            ..loading::scheduler_config(&config, &loaded)?
        };
        Ok(Self { config, loaded, scheduler })
    }

    /// Returns the vocabulary size.
    ///
    /// # Errors
    /// If it exceeds `u32`.
    pub(crate) fn vocab_size(&self) -> anyhow::Result<u32> {
        u32::try_from(self.loaded.model.config.vocab_size).context("the vocabulary's size")
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        config: ConfigArgs,
    }

    /// Loads the shape of a tiny model that `flags` name, and checks its name and the room asked for.
    #[track_caller]
    fn check(flags: &[&str]) {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny/qwen2");
        let rest = [folder, "--max-model-len", "256", "--kv-cache-memory", "1MiB", "--threads", "1"];
        let line = CommandLine::try_parse_from(["bench"].iter().chain(flags).chain(&rest)).unwrap();
        let source = Source::load(line.config, 100).unwrap();
        let found = (source.loaded.files.id.as_str(), source.vocab_size().unwrap(), source.scheduler.max_num_seqs);
        assert_eq!(found, ("random qwen2", 96, 100));
    }

    #[test]
    fn a_folder_in_place_of_a_configuration_is_the_shape_of_random_weights() {
        check(&["--config"]);
        check(&["--load-format", "dummy", "--model"]);
    }
}
