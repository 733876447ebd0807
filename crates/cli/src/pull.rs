//! Fetches a model, so that it can be served offline.

use models::{CatalogueModel, Weights, catalogue};

use crate::config::{ModelConfig, SourceArgs};
use crate::progress::FetchProgress;
use crate::stdout;

/// Arguments of `kvshare pull`.
#[derive(Debug, clap::Args)]
pub(crate) struct PullArgs {
    /// Catalogue name, or `owner/name[:file.gguf]` on the hub [default: smollm2-135m-instruct]
    model: Option<String>,
    #[command(flatten)]
    source: SourceArgs,
    /// List the models of the catalogue instead
    #[arg(long, conflicts_with = "model")]
    list: bool,
}

/// Fetches the model if it is missing, and prints its path on standard output.
///
/// # Errors
/// If it cannot be fetched.
pub(crate) fn run(args: PullArgs) -> anyhow::Result<()> {
    if args.list {
        let line = |model: &CatalogueModel| {
            format!("{:<28} {} ({})\n", model.name, model.description, indicatif::HumanBytes(model.num_bytes))
        };
        return stdout::write(catalogue().iter().map(line).collect::<String>());
    }
    let mut config = ModelConfig::default();
    if let Some(model) = args.model {
        config.name = model;
    }
    args.source.apply(&mut config);
    let files = models::resolve(config.source(), &FetchProgress)?;
    let (Weights::Gguf(path) | Weights::Safetensors(path) | Weights::Random(path)) = files.weights;
    stdout::write(format!("{}\n", path.display()))
}
