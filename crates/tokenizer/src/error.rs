//! Everything that can go wrong between text and tokens.

use std::path::PathBuf;

/// Why a tokenizer could not be built or could not encode.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file was read and is not what its name promises.
    #[error("cannot parse {}: {reason}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// The GGUF key `tokenizer.ggml.model` names a kind of vocabulary that is not served.
    #[error("tokenizer model {model:?} is not supported (supported: gpt2, llama)")]
    UnsupportedModel {
        /// The name in the file.
        model: String,
    },
    /// The GGUF key `tokenizer.ggml.pre` names a way of splitting text that is not known. Guessing would serve wrong tokens.
    #[error("pre-tokenizer {pre:?} is not supported (supported: {supported})")]
    UnsupportedPreTokenizer {
        /// The name in the file.
        pre: String,
        /// Names that are known.
        supported: String,
    },
    /// The decoder of a `tokenizer.json` is neither byte-level nor SentencePiece with byte fallback.
    #[error("decoder {decoder} is not supported (supported: ByteLevel, SentencePiece with ByteFallback)")]
    UnsupportedDecoder {
        /// The decoder, as JSON.
        decoder: String,
    },
    /// A list of the vocabulary has another length than its list of tokens.
    #[error("{field} has {found} entries, the vocabulary has {expected} tokens")]
    LengthMismatch {
        /// The shorter or longer list.
        field: &'static str,
        /// Its length.
        found: usize,
        /// Number of tokens.
        expected: usize,
    },
    /// A list that this kind of vocabulary cannot do without is absent.
    #[error("the vocabulary has no {field}")]
    MissingField {
        /// The list.
        field: &'static str,
    },
    /// A merge rule is not two pieces with a space between them.
    #[error("merge rule {merge:?} is not two pieces")]
    MalformedMerge {
        /// The rule.
        merge: String,
    },
    /// A special token names an id outside of the vocabulary.
    #[error("token id {id} is outside of a vocabulary of {vocab_size} tokens")]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Number of tokens.
        vocab_size: usize,
    },
    /// A special token named in `tokenizer_config.json` is not in the vocabulary.
    #[error("special token {token:?} is not in the vocabulary")]
    UnknownToken {
        /// Its text.
        token: String,
    },
    /// The text has more tokens than were asked for. Most of it was not tokenized.
    #[error("the text has at least {at_least} tokens")]
    TooManyTokens {
        /// Tokens that it has at least.
        at_least: usize,
    },
    /// The text has a run without a place to cut it, so long that merging it would take too much memory.
    #[error("a run of {num_bytes} bytes without a word boundary is longer than {max_bytes} bytes")]
    RunTooLong {
        /// Bytes of the run.
        num_bytes: usize,
        /// Bytes that a run may have.
        max_bytes: usize,
    },
    /// The underlying library refused the vocabulary or the text.
    #[error("tokenizer: {reason}")]
    Library {
        /// What it said.
        reason: String,
    },
}

impl TokenizerError {
    /// Wraps an error of the `tokenizers` crate.
    pub(crate) fn library(error: impl std::fmt::Display) -> Self {
        Self::Library { reason: brief(&error) }
    }
}

/// A parser's message, which may repeat what it read: one line, cut.
pub(crate) fn brief(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let shown: String = text.lines().next().unwrap_or_default().chars().take(MAX_REASON_CHARS).collect();
    let is_cut = shown.len() < text.trim_end().len();
    shown.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>() + if is_cut { "..." } else { "" }
}

/// Characters of a parser's words that an error shows.
const MAX_REASON_CHARS: usize = 160;

/// Why messages could not be turned into a prompt. Every variant but `Encode` and `Syntax` is the caller's to correct.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The model came without a chat template. None is invented: a wrong one gives wrong answers silently.
    #[error("this model has no chat template: use completions with a raw prompt")]
    NoTemplate,
    /// The template itself is not valid.
    #[error("chat template is invalid: {reason}")]
    Syntax {
        /// What the template engine said, with the line.
        reason: String,
    },
    /// The template refuses these messages (`raise_exception`), or fails on them.
    #[error("chat template cannot render these messages: {reason}")]
    Render {
        /// The template's own words, or the template engine's.
        reason: String,
    },
    /// The rendered prompt could not be encoded.
    #[error(transparent)]
    Encode(#[from] TokenizerError),
}
