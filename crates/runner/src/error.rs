//! Errors of loading a model.

use std::path::PathBuf;

/// An error that states in one line what is wrong and where.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant and fields")]
pub enum LoadError {
    #[error("reading {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a usable model file: {reason}")]
    Corrupt { path: PathBuf, reason: String },
    #[error("{path} is truncated: tensor {tensor} ends at byte {end}, the file at {len}")]
    Truncated { path: PathBuf, tensor: String, end: u64, len: u64 },
    #[error("{what} is not supported")]
    Unsupported { what: String },
    #[error("the checkpoint has no tensor {name}")]
    MissingTensor { name: String },
    #[error("tensor {name} has shape {found:?}, the configuration says {expected:?}")]
    Shape { name: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("{path}: {field} {problem}")]
    Field { path: PathBuf, field: String, problem: String },
    #[error(
        "{budget} bytes of memory for KV hold {num_blocks} of this model's blocks; sequences of {model_len} tokens need {needed_blocks} blocks, one of them spare: {needed} bytes"
    )]
    CacheTooSmall { budget: u64, num_blocks: usize, needed_blocks: usize, needed: u64, model_len: usize },
    #[error("a KV cache of {wanted} bytes of memory does not fit the GPU's memory, of which {free} are free")]
    CacheTooLarge { wanted: u64, free: u64 },
    #[error("this build was not compiled with CUDA: build with --features cuda, or serve on --device cpu")]
    NoCuda,
    #[error("{0}")]
    Device(String),
    #[error("out of memory: {bytes} bytes for weights could not be allocated")]
    OutOfMemory { bytes: usize },
    #[error("starting kernel threads: {0}")]
    Threads(String),
}

impl LoadError {
    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into() }
    }
}

#[cfg(feature = "cuda")]
impl From<kernels::cuda::DeviceError> for LoadError {
    fn from(error: kernels::cuda::DeviceError) -> Self {
        Self::Device(error.to_string())
    }
}

/// Escapes and truncates a name from an untrusted file.
pub(crate) fn shown(name: &str) -> String {
    let is_plain = |c: char| {
        c.is_alphanumeric() || matches!(c, ' ' | '.' | '_' | '-' | '/' | ':' | '(' | ')' | '`' | '\'' | ',' | '[' | ']')
    };
    let mut text = String::new();
    for (index, c) in name.chars().enumerate() {
        if index == MAX_SHOWN {
            return text + "...";
        }
        if is_plain(c) { text.push(c) } else { text.extend(c.escape_default()) }
    }
    text
}

/// Shortens a parser's message, which may repeat its input, to one line.
pub(crate) fn brief(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(MAX_SHOWN) {
        // Parsers name the position last; it is the most useful part.
        Some((cut, _)) => format!("{}...{}", shown(&line[..cut]), line.rfind(" at line ").map_or("", |at| &line[at..])),
        None => shown(line),
    }
}

/// Number of characters of a string from a file that an error shows.
const MAX_SHOWN: usize = 120;
