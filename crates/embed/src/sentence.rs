//! Sentence encoder: all-MiniLM-L6-v2 and others of its form.
//!
//! A text of a client has a limit of tokens, as in sentence-transformers. A prompt may be longer: it is cut into windows of at most 256
//! tokens, the length that the encoder was trained on, whose embeddings are averaged.

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use candle_core::{DType, Device};
use candle_nn::VarBuilder;

use crate::bert::{Bert, BertConfig};
use crate::modules::{Modules, Pooling};

/// Maximum tokens of a window, with the two around it: `max_seq_length` of all-MiniLM-L6-v2.
const WINDOW_TOKENS: usize = 256;
/// Tokens around a text.
const AROUND: usize = 2;

/// Sentence encoder.
pub struct SentenceEncoder {
    model: Bert,
    words: tokenizers::Tokenizer,
    pooling: Pooling,
    lowercases: bool,
    /// Tokens before and after each text.
    begin: u32,
    end: u32,
    num_dimensions: usize,
    vocab_size: usize,
    max_tokens: usize,
}

impl SentenceEncoder {
    /// Loads from a folder with `config.json`, `tokenizer.json` and `model.safetensors`, and with the `modules.json` and
    /// `sentence_bert_config.json` of sentence-transformers if they are there.
    ///
    /// # Errors
    /// If one of the first three is missing or does not belong to a BERT encoder, or a step of `modules.json` is not supported.
    pub fn load(folder: &Path) -> anyhow::Result<Self> {
        let Modules { transformer, pooling, max_seq_length, lowercases } = Modules::read(folder)?;
        let read = |name: &str| std::fs::read(transformer.join(name)).with_context(|| format!("reading {name}"));
        let config: BertConfig = serde_json::from_slice(&read("config.json")?).context("config.json is not of a BERT encoder")?;
        config.check()?;
        let mut words =
            tokenizers::Tokenizer::from_bytes(read("tokenizer.json")?).map_err(|error| anyhow!("tokenizer.json: {error}"))?;
        // Texts are cut here; the file may ask for shorter ones.
        words.with_truncation(None).map_err(|error| anyhow!("tokenizer.json: {error}"))?.with_padding(None);
        let id = |name: &str| words.token_to_id(name).with_context(|| format!("tokenizer.json has no {name}"));
        let (begin, end) = (id("[CLS]")?, id("[SEP]")?);
        if words.get_vocab_size(true) > config.vocab_size {
            bail!("tokenizer.json has {} tokens, config.json only {}", words.get_vocab_size(true), config.vocab_size);
        }
        let weights = VarBuilder::from_buffered_safetensors(read("model.safetensors")?, DType::F32, &Device::Cpu);
        let model = weights.and_then(|weights| Bert::load(&weights, &config));
        let model = model.map_err(|error| plain(&error)).context("model.safetensors")?;
        let max_tokens = max_seq_length.unwrap_or(usize::MAX).min(config.max_position_embeddings);
        if max_tokens <= AROUND {
            bail!("it reads {max_tokens} tokens at once: none but those around a text");
        }
        let (num_dimensions, vocab_size) = (config.hidden_size, config.vocab_size);
        Ok(Self { model, words, pooling, lowercases, begin, end, num_dimensions, vocab_size, max_tokens })
    }

    /// Returns the number of elements of an embedding.
    #[must_use]
    pub fn num_dimensions(&self) -> usize {
        self.num_dimensions
    }

    /// Returns the exclusive upper bound of token ids.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Returns the maximum number of tokens that [`Self::embed_tokens`] takes for one text, with those around it.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Tokenizes `text`, with the tokens around it, of which there are two. With `cut`, further tokens than these are dropped from the end
    /// of the text.
    ///
    /// # Errors
    /// If the text cannot be tokenized.
    pub fn tokenize(&self, text: &str, cut: Option<usize>) -> anyhow::Result<Vec<u32>> {
        let words = self.words_of(text)?;
        let max_words = cut.unwrap_or(usize::MAX).saturating_sub(AROUND);
        Ok(self.framed(&words[..words.len().min(max_words)]))
    }

    /// Embeds texts given as tokens, all of them in one pass: each result has length 1.
    ///
    /// # Errors
    /// If a text is empty or has more than [`Self::max_tokens`], an id lies outside the vocabulary, or hidden states are not finite.
    pub fn embed_tokens(&self, texts: &[&[u32]]) -> anyhow::Result<Vec<Vec<f32>>> {
        if let Some(text) = texts.iter().find(|text| text.is_empty() || text.len() > self.max_tokens) {
            bail!("a text of {} tokens, of which there may be 1 to {}", text.len(), self.max_tokens);
        }
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let unit = |pooled| semantic::unit(pooled).context("the hidden states of a text have no direction");
        self.pool(texts)?.into_iter().map(unit).collect()
    }

    /// Averages the embeddings of a text's windows, weighted by length, and normalizes to length 1; `None` for a text without words.
    ///
    /// # Errors
    /// If the text cannot be tokenized, or the encoder fails.
    pub fn embed(&self, text: &str) -> anyhow::Result<Option<Vec<f32>>> {
        let words = self.words_of(text)?;
        let mut sum = vec![0.0; self.num_dimensions];
        for window in words.chunks(self.max_tokens.min(WINDOW_TOKENS) - AROUND) {
            let pooled = self.pool(&[&self.framed(window)])?.pop().and_then(semantic::unit);
            let Some(embedded) = pooled else { continue };
            sum.iter_mut().zip(embedded).for_each(|(sum, x)| *sum += x * window.len() as f32);
        }
        Ok(semantic::unit(sum))
    }

    /// Returns the tokens of `text` without those around it.
    fn words_of(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let lower = self.lowercases.then(|| text.to_lowercase());
        let words = self.words.encode_fast(lower.as_deref().unwrap_or(text), false);
        Ok(words.map_err(|error| anyhow!("tokenizing: {error}"))?.get_ids().to_vec())
    }

    /// Puts the two tokens around `words`.
    fn framed(&self, words: &[u32]) -> Vec<u32> {
        [&[self.begin], words, &[self.end]].concat()
    }

    /// Pools the last hidden states of each text.
    fn pool(&self, texts: &[&[u32]]) -> candle_core::Result<Vec<Vec<f32>>> {
        let states = self.model.forward(texts)?;
        let mut start = 0;
        let pool = |text: &&[u32]| {
            let of_text = states.narrow(0, start, text.len())?;
            start += text.len();
            self.pooling.pool(&of_text)?.to_vec1()
        };
        texts.iter().map(pool).collect()
    }
}

/// Returns candle's error without the backtrace that it prints after it.
fn plain(error: &candle_core::Error) -> anyhow::Error {
    let text = error.to_string();
    let line: String = text.lines().next().unwrap_or_default().chars().take(MAX_ERROR_CHARS).collect();
    anyhow!("{line}")
}

/// Maximum characters of an error of candle.
const MAX_ERROR_CHARS: usize = 300;

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

    /// Returns the error of loading the tiny encoder with a field of a file changed, or with another file added.
    fn refused(file: &str, field: &str, value: serde_json::Value) -> String {
        let folder = tempfile::tempdir().unwrap();
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            std::fs::copy(tiny().join(name), folder.path().join(name)).unwrap();
        }
        let path = folder.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut json: serde_json::Value =
            std::fs::read(&path).map_or_else(|_| serde_json::json!({}), |bytes| serde_json::from_slice(&bytes).unwrap());
        json[field] = value;
        std::fs::write(&path, json.to_string()).unwrap();
        let error = SentenceEncoder::load(folder.path()).err().map(|error| format!("{error:#}")).unwrap_or_default();
        assert!(error.len() < 400 && !error.contains('\n'), "{error}");
        error
    }

    #[test]
    fn a_configuration_that_cannot_be_computed_is_refused_by_file_and_field() {
        let check = |field: &str, value: serde_json::Value, named: &str| {
            let error = refused("config.json", field, value);
            assert!(error.contains(named), "{field}: {error}");
        };
        check("num_attention_heads", 0.into(), "config.json: num_attention_heads is 0");
        check("num_attention_heads", 3.into(), "does not divide hidden_size, 16");
        check("hidden_size", 0.into(), "config.json: hidden_size is 0");
        check("hidden_size", u64::MAX.into(), "config.json: hidden_size");
        check("hidden_size", 32.into(), "model.safetensors: ");
        check("vocab_size", 17.into(), "tokenizer.json has ");
        check("max_position_embeddings", 512.into(), "model.safetensors: ");
        check("layer_norm_eps", (-1).into(), "layer_norm_eps is -1");
        check("hidden_act", "swish".into(), "not of a BERT encoder");
        check("position_embedding_type", "relative_key".into(), "position_embedding_type");
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

    #[track_caller]
    fn check_close(found: &[f32], expected: &[f32], bound: f32) {
        let furthest = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(found.len() == expected.len() && furthest < bound, "{furthest}");
    }

    /// A case of `tests/reference/make_sentences.py`.
    #[derive(serde::Deserialize)]
    struct Case {
        pooling: String,
        max_seq_length: usize,
        texts: Vec<String>,
        embeddings: Vec<Vec<f32>>,
    }

    #[test]
    fn embeddings_are_those_of_sentence_transformers() {
        let cases: Vec<Case> = serde_json::from_slice(&std::fs::read(tiny().join("sentences.json")).unwrap()).unwrap();
        assert_eq!(cases.len(), 6);
        for Case { pooling, max_seq_length, texts, embeddings } in cases {
            let folder = with_modules(&format!("{{\"pooling_mode\": \"{pooling}\"}}"), max_seq_length);
            let encoder = SentenceEncoder::load(folder.path()).unwrap();
            let ids: Vec<_> = texts.iter().map(|text| encoder.tokenize(text, Some(encoder.max_tokens())).unwrap()).collect();
            let found = encoder.embed_tokens(&ids.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
            for (found, expected) in found.iter().zip(&embeddings) {
                check_close(found, expected, 1e-5);
            }
            assert_eq!((found.len(), ids[3].len()), (4, max_seq_length));
        }
    }

    #[test]
    fn texts_of_one_pass_do_not_see_each_other() {
        let encoder = SentenceEncoder::load(tiny()).unwrap();
        let texts = ["the keeper crossed the old bridge", "quickly", "", &"a river and a town ".repeat(40)];
        let ids: Vec<_> = texts.iter().map(|text| encoder.tokenize(text, None).unwrap()).collect();
        let together = encoder.embed_tokens(&ids.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
        for ((text, ids), together) in texts.iter().zip(&ids).zip(&together) {
            check_close(&encoder.embed_tokens(&[ids]).unwrap()[0], together, 1e-6);
            if let Some(alone) = encoder.embed(text).unwrap() {
                check_close(&alone, together, 1e-6);
            }
        }
        assert_eq!(ids[2], [2, 3], "of an empty text there are the two tokens around it");
        assert!(encoder.embed_tokens(&[]).unwrap().is_empty());
    }

    #[test]
    fn a_text_is_cut_before_the_token_behind_it() {
        let encoder = SentenceEncoder::load(tiny()).unwrap();
        let text = "the keeper crossed the old bridge";
        let whole = encoder.tokenize(text, None).unwrap();
        assert_eq!((whole.len(), whole[0], whole[7]), (8, 2, 3));
        assert_eq!(encoder.tokenize(text, Some(8)).unwrap(), whole);
        assert_eq!(encoder.tokenize(text, Some(5)).unwrap(), [&whole[..4], &[3]].concat());
        assert_eq!(encoder.tokenize(text, Some(1)).unwrap(), [2, 3]);
    }

    #[test]
    fn tokens_that_cannot_be_embedded_are_refused() {
        let encoder = SentenceEncoder::load(tiny()).unwrap();
        assert_eq!((encoder.max_tokens(), encoder.vocab_size()), (256, 18));
        for ids in [vec![], vec![5; 257], vec![18]] {
            assert!(encoder.embed_tokens(&[&[2, 3], &ids]).is_err(), "{ids:?}");
        }
    }

    /// Copies the tiny encoder, with changes to its `config.json`.
    fn changed(config: &[(&str, serde_json::Value)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            std::fs::copy(tiny().join(name), folder.path().join(name)).unwrap();
        }
        let path = folder.path().join("config.json");
        let mut fields: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for (name, value) in config {
            fields[*name] = value.clone();
        }
        std::fs::write(path, fields.to_string()).unwrap();
        folder
    }

    #[test]
    fn encoders_with_other_positions_are_refused() {
        for (name, value) in [("model_type", "roberta"), ("position_embedding_type", "relative_key")] {
            let folder = changed(&[(name, value.into())]);
            let error = SentenceEncoder::load(folder.path()).err().expect("it is of another kind");
            assert!(format!("{error:#}").contains(&format!("its `{name}` is `{value}`")), "{error:#}");
        }
    }

    /// Copies the tiny encoder, with the files of sentence-transformers beside it.
    fn with_modules(pooling: &str, max_seq_length: usize) -> tempfile::TempDir {
        let folder = changed(&[]);
        std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        let files = [
            ("modules.json", r#"[{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.Pooling"}]"#),
            ("1_Pooling/config.json", pooling),
            ("sentence_bert_config.json", &format!("{{\"max_seq_length\": {max_seq_length}}}")),
        ];
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn the_steps_beside_the_checkpoint_are_followed() {
        let folder = with_modules(r#"{"pooling_mode_cls_token": true}"#, 6);
        let encoder = SentenceEncoder::load(folder.path()).unwrap();
        assert_eq!(encoder.max_tokens(), 6);
        let ids = encoder.tokenize("the old bridge", None).unwrap();
        let first = encoder.model.forward(&[&ids]).unwrap().get(0).unwrap().to_vec1().unwrap();
        check_close(&encoder.embed_tokens(&[&ids]).unwrap()[0], &semantic::unit(first).unwrap(), 1e-6);
        assert!(encoder.embed(&"a river ".repeat(9)).unwrap().is_some(), "windows are as short as the encoder's texts");
    }
}
