//! Sentence encoder: all-MiniLM-L6-v2 and others of its form.
//!
//! The encoder was trained on texts of up to 256 tokens, so a longer prompt is cut into windows, whose embeddings are averaged.

use std::path::Path;

use anyhow::{Context, anyhow};
use candle_core::{DType, Device};
use candle_nn::VarBuilder;

use crate::bert::{Bert, BertConfig};

/// Tokens of a window, with the two around it: `max_seq_length` of all-MiniLM-L6-v2.
const WINDOW_TOKENS: usize = 256;

/// Sentence encoder.
pub struct SentenceEncoder {
    model: Bert,
    words: tokenizers::Tokenizer,
    /// Tokens before and after each window.
    begin: u32,
    end: u32,
    num_dimensions: usize,
}

impl SentenceEncoder {
    /// Loads from a folder with `config.json`, `tokenizer.json` and `model.safetensors`.
    ///
    /// # Errors
    /// If one of them is missing or does not belong to a BERT encoder.
    pub fn load(folder: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| std::fs::read(folder.join(name)).with_context(|| format!("reading {name}"));
        let config: BertConfig = serde_json::from_slice(&read("config.json")?).context("config.json is not of a BERT encoder")?;
        let mut words =
            tokenizers::Tokenizer::from_bytes(read("tokenizer.json")?).map_err(|error| anyhow!("tokenizer.json: {error}"))?;
        // Windows are cut here; the file may ask for shorter ones.
        words.with_truncation(None).map_err(|error| anyhow!("tokenizer.json: {error}"))?.with_padding(None);
        let id = |name: &str| words.token_to_id(name).with_context(|| format!("tokenizer.json has no {name}"));
        let (begin, end) = (id("[CLS]")?, id("[SEP]")?);
        let weights = VarBuilder::from_buffered_safetensors(read("model.safetensors")?, DType::F32, &Device::Cpu);
        let model = weights.and_then(|weights| Bert::load(&weights, &config)).context("model.safetensors")?;
        if config.max_position_embeddings < WINDOW_TOKENS {
            return Err(anyhow!("it reads {} tokens at once, fewer than {WINDOW_TOKENS}", config.max_position_embeddings));
        }
        Ok(Self { model, words, begin, end, num_dimensions: config.hidden_size })
    }

    /// Returns the number of elements of an embedding.
    #[must_use]
    pub fn num_dimensions(&self) -> usize {
        self.num_dimensions
    }

    /// Averages the embeddings of a text's windows, weighted by length, and normalizes to length 1; `None` for a text without words.
    ///
    /// # Errors
    /// If the text cannot be tokenized, or the encoder fails.
    pub fn embed(&self, text: &str) -> anyhow::Result<Option<Vec<f32>>> {
        let words = self.words.encode(text, false).map_err(|error| anyhow!("tokenizing: {error}"))?;
        let mut sum = vec![0.0; self.num_dimensions];
        for window in words.get_ids().chunks(WINDOW_TOKENS - 2) {
            let Some(embedded) = semantic::unit(self.embed_window(window)?) else { continue };
            sum.iter_mut().zip(embedded).for_each(|(sum, x)| *sum += x * window.len() as f32);
        }
        Ok(semantic::unit(sum))
    }

    /// Averages the last hidden states of all tokens, with the two around them.
    fn embed_window(&self, words: &[u32]) -> candle_core::Result<Vec<f32>> {
        let ids: Vec<u32> = [self.begin].into_iter().chain(words.iter().copied()).chain([self.end]).collect();
        self.model.forward(&ids)?.mean(0)?.to_vec1()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_an_encoder_is_refused_by_the_file_it_lacks() {
        let folder = tempfile::tempdir().unwrap();
        let error = SentenceEncoder::load(folder.path()).err().expect("there is nothing in it");
        assert!(format!("{error:#}").contains("reading config.json"), "{error:#}");
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        let error = SentenceEncoder::load(folder.path()).err().expect("it is of nothing");
        assert!(format!("{error:#}").contains("not of a BERT encoder"), "{error:#}");
    }

    /// Returns the folder of the encoder that `tests/reference/make_bert.py` made.
    fn tiny() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny/bert"))
    }

    #[test]
    fn embeddings_are_those_of_transformers() {
        let encoder = SentenceEncoder::load(tiny()).unwrap();
        let expected = std::fs::read(tiny().join("expected.json")).unwrap();
        let expected: Vec<serde_json::Value> = serde_json::from_slice(&expected).unwrap();
        assert_eq!((encoder.num_dimensions(), expected.len()), (16, 3));
        for case in expected {
            let embedded = encoder.embed(case["text"].as_str().unwrap()).unwrap().unwrap();
            let expected: Vec<f32> = serde_json::from_value(case["embedding"].clone()).unwrap();
            let furthest = embedded.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(furthest < 1e-5, "{}: {furthest}", case["text"]);
        }
        assert_eq!(encoder.embed("").unwrap(), None);
    }
}
