//! Embeddings: the configured embedder of prompts, for the server and for the engine's index, and that of clients' texts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use embed::{PromptEmbedder, SentenceEncoder};
use runner::EmbeddingTable;
use server::{Embedder, Embedding, TextEmbedder};
use tokenizer::Tokenizer;
use tokens::TokenId;

use crate::config::{Config, EmbedderKind, SharingConfig};

/// Builds the embedder that `config` names, if any, for a model with these input embeddings and this tokenizer. It shares the encoder of
/// `texts` if it is of the same folder.
///
/// # Errors
/// If the embedder's own model cannot be read.
pub(crate) fn build(
    config: &SharingConfig,
    table: Option<&EmbeddingTable>,
    tokenizer: &Arc<Tokenizer>,
    texts: Option<&ServedTexts>,
) -> anyhow::Result<Option<PromptEmbedder>> {
    Ok(match config.embedder {
        EmbedderKind::Off => None,
        EmbedderKind::Token => {
            let table = table.context("the model's input embeddings are not on the host")?;
            Some(PromptEmbedder::by_tokens(table.clone()))
        }
        EmbedderKind::Bert => {
            let folder = config.embedder_model.as_ref().value().context("sharing.embedder_model names no folder")?;
            let encoder = match texts {
                Some(texts) if texts.folder == *folder => Arc::clone(&texts.encoder),
                _ => load(folder)?,
            };
            Some(PromptEmbedder::by_sentences(encoder, Arc::clone(tokenizer)))
        }
    })
}

/// Builds the embedder of clients' texts, if `config` names one, or an encoder of prompts.
///
/// # Errors
/// If its model cannot be read.
pub(crate) fn texts(config: &Config) -> anyhow::Result<Option<ServedTexts>> {
    let of_prompts = config.sharing.embedder_model.as_ref().value().filter(|_| config.sharing.embedder == EmbedderKind::Bert);
    let Some(folder) = config.model.embedding_model.as_ref().value().or(of_prompts) else { return Ok(None) };
    let id = match config.model.embedding_model_name.as_ref().value() {
        Some(name) => name.clone(),
        None => folder_name(folder).with_context(|| format!("naming the embedder in {}", folder.display()))?,
    };
    let encoder = load(folder)?;
    tracing::info!(model = id, num_dimensions = encoder.num_dimensions(), max_tokens = encoder.max_tokens(), "embeds texts");
    Ok(Some(ServedTexts { id, folder: folder.clone(), encoder }))
}

/// Returns the name of a folder, also of one that is written as `.`.
fn folder_name(folder: &Path) -> anyhow::Result<String> {
    let whole = folder.canonicalize()?;
    let name = whole.file_name().context("the root has no name: give one with --embedding-model-name")?;
    Ok(name.to_string_lossy().into_owned())
}

/// Loads the sentence encoder in `folder`.
fn load(folder: &Path) -> anyhow::Result<Arc<SentenceEncoder>> {
    let encoder = SentenceEncoder::load(folder).with_context(|| format!("loading the embedder in {}", folder.display()))?;
    Ok(Arc::new(encoder))
}

/// Adapts an embedder to the server: neither imports the other.
pub(crate) struct ServedEmbedder(pub(crate) PromptEmbedder);

impl Embedder for ServedEmbedder {
    fn num_dimensions(&self) -> usize {
        self.0.num_dimensions()
    }

    fn is_quick(&self) -> bool {
        self.0.is_quick()
    }

    fn embed(&self, tokens: &[TokenId]) -> Option<Embedding> {
        self.0.embed(tokens).map(Embedding::from)
    }
}

/// Adapts a sentence encoder to the server: neither imports the other.
pub(crate) struct ServedTexts {
    id: String,
    folder: PathBuf,
    encoder: Arc<SentenceEncoder>,
}

impl TextEmbedder for ServedTexts {
    fn id(&self) -> &str {
        &self.id
    }

    fn num_dimensions(&self) -> usize {
        self.encoder.num_dimensions()
    }

    fn max_tokens(&self) -> usize {
        self.encoder.max_tokens()
    }

    fn vocab_size(&self) -> usize {
        self.encoder.vocab_size()
    }

    fn tokenize(&self, text: &str, cut: Option<usize>) -> Result<Vec<u32>, String> {
        self.encoder.tokenize(text, cut).map_err(|error| format!("{error:#}"))
    }

    fn embed(&self, texts: &[&[u32]]) -> Result<Vec<Embedding>, String> {
        let embedded = self.encoder.embed_tokens(texts).map_err(|error| format!("{error:#}"))?;
        Ok(embedded.into_iter().map(Embedding::from).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Auto;

    fn tiny() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny/bert")
    }

    #[test]
    fn texts_are_embedded_by_their_own_model_or_that_of_prompts() {
        let mut config = Config::default();
        assert!(texts(&config).unwrap().is_none());
        config.sharing.embedder_model = Auto::Set(tiny());
        assert!(texts(&config).unwrap().is_none(), "the encoder is not in use");
        config.sharing.embedder = EmbedderKind::Bert;
        assert_eq!(texts(&config).unwrap().unwrap().id(), "bert");
        config.model.embedding_model = Auto::Set(tiny().join("."));
        config.model.embedding_model_name = Auto::Set("text-embedding-3-small".to_owned());
        assert_eq!(texts(&config).unwrap().unwrap().id(), "text-embedding-3-small");
        config.model.embedding_model = Auto::Set(tiny().join("none"));
        let error = texts(&config).err().expect("there is no such folder");
        assert!(format!("{error:#}").contains("reading config.json"), "{error:#}");
    }
}
