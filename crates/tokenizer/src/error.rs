//! Errors of building tokenizers and of encoding.

use std::path::PathBuf;

/// Reason why a tokenizer could not be built or could not encode.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// The content of a file does not match its name.
    #[error("cannot parse {}: {reason}", path.display())]
    Parse {
        /// Path of the file.
        path: PathBuf,
        /// Error of the parser.
        reason: String,
    },
    /// The GGUF key `tokenizer.ggml.model` names an unsupported kind of vocabulary.
    #[error("tokenizer model {model:?} is not supported (supported: gpt2, llama)")]
    UnsupportedModel {
        /// Name in the file.
        model: String,
    },
    /// The GGUF key `tokenizer.ggml.pre` names an unknown pre-tokenizer. Guessing would serve wrong tokens.
    #[error("pre-tokenizer {pre:?} is not supported (supported: {supported})")]
    UnsupportedPreTokenizer {
        /// Name in the file.
        pre: String,
        /// Names of the known pre-tokenizers.
        supported: String,
    },
    /// The decoder of a `tokenizer.json` is neither byte-level nor SentencePiece with byte fallback.
    #[error("decoder {decoder} is not supported (supported: ByteLevel, SentencePiece with ByteFallback)")]
    UnsupportedDecoder {
        /// Decoder as JSON.
        decoder: String,
    },
    /// A list of the vocabulary differs in length from its list of tokens.
    #[error("{field} has {found} entries, the vocabulary has {expected} tokens")]
    LengthMismatch {
        /// Name of the list.
        field: &'static str,
        /// Length of the list.
        found: usize,
        /// Number of tokens.
        expected: usize,
    },
    /// A list that this kind of vocabulary requires is absent.
    #[error("the vocabulary has no {field}")]
    MissingField {
        /// Name of the list.
        field: &'static str,
    },
    /// A merge rule is not two pieces with a space between them.
    #[error("merge rule {merge:?} is not two pieces")]
    MalformedMerge {
        /// Text of the rule.
        merge: String,
    },
    /// The id of a special token is outside of the vocabulary.
    #[error("token id {id} is outside of a vocabulary of {vocab_size} tokens")]
    TokenOutOfRange {
        /// Id of the token.
        id: u32,
        /// Number of tokens.
        vocab_size: usize,
    },
    /// A token has an id that no vocabulary has. Tables by id are as long as the largest.
    #[error("token {token:?} has id {id}; ids up to {limit} are supported")]
    IdTooLarge {
        /// Text of the token.
        token: String,
        /// Its id.
        id: u32,
        /// Bound of ids.
        limit: u32,
    },
    /// A special token named in `tokenizer_config.json` is not in the vocabulary.
    #[error("special token {token:?} is not in the vocabulary")]
    UnknownToken {
        /// Text of the token.
        token: String,
    },
    /// The text has more tokens than the caller allows. Most of it was not tokenized.
    #[error("the text has at least {at_least} tokens")]
    TooManyTokens {
        /// Lower bound on its number of tokens.
        at_least: usize,
    },
    /// The text has an uncuttable run so long that merging it would take too much memory.
    #[error("a run of {num_bytes} bytes without a word boundary is longer than {max_bytes} bytes")]
    RunTooLong {
        /// Bytes of the run.
        num_bytes: usize,
        /// Maximum bytes of a run.
        max_bytes: usize,
    },
    /// The underlying library refused the vocabulary or the text.
    #[error("tokenizer: {reason}")]
    Library {
        /// Error of the library.
        reason: String,
    },
}

impl TokenizerError {
    /// Wraps an error of the `tokenizers` crate.
    pub(crate) fn library(error: impl std::fmt::Display) -> Self {
        Self::Library { reason: brief(&error) }
    }
}

/// Formats a parser's message, which may repeat its input, as one truncated line.
pub(crate) fn brief(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let shown: String = text.lines().next().unwrap_or_default().chars().take(MAX_REASON_CHARS).collect();
    let is_cut = shown.len() < text.trim_end().len();
    shown.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>() + if is_cut { "..." } else { "" }
}

/// Maximum characters of a parser's message in an error.
const MAX_REASON_CHARS: usize = 160;

/// Reason why messages could not be turned into a prompt. The caller can correct every variant but `Encode` and `Syntax`.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The model has no chat template. None is invented: a wrong one silently gives wrong answers.
    #[error("this model has no chat template: use completions with a raw prompt")]
    NoTemplate,
    /// The template itself is invalid.
    #[error("chat template is invalid: {reason}")]
    Syntax {
        /// Error of the template engine, with the line.
        reason: String,
    },
    /// The template refuses these messages (`raise_exception`), or fails on them.
    #[error("chat template cannot render these messages: {reason}")]
    Render {
        /// Message of the template or of the template engine.
        reason: String,
    },
    /// The rendered prompt could not be encoded.
    #[error(transparent)]
    Encode(#[from] TokenizerError),
}
