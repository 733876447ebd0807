//! Errors of reading a header.

use std::fmt;

/// An error that is one short line; names from the file are escaped and truncated.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant and fields")]
pub enum Error {
    #[error("it does not begin with \"GGUF\"")]
    NotGguf,
    #[error("GGUF version {version} is not known (of another byte order perhaps)")]
    Version { version: u32 },
    #[error("it ends within {what}")]
    Truncated { what: &'static str },
    #[error("reading {what}: {source}")]
    Io { what: &'static str, source: std::io::Error },
    #[error("it claims {count} {what}, more than the file can hold")]
    Count { what: &'static str, count: u64 },
    #[error("its header is longer than {limit} bytes")]
    HeaderTooLong { limit: u64 },
    #[error("its metadata has more than {limit} elements")]
    TooManyElements { limit: u64 },
    #[error("{what} has {len} bytes, at most {limit} are read")]
    NameTooLong { what: &'static str, len: u64, limit: u64 },
    #[error("{what} is not UTF-8")]
    NotUtf8 { what: &'static str },
    #[error("two values of {what} {}", Shown(name))]
    Duplicate { what: &'static str, name: String },
    #[error("key {} has a value of unknown type {ty}", Shown(key))]
    ValueType { key: String, ty: u32 },
    #[error("key {} is an array of arrays", Shown(key))]
    NestedArray { key: String },
    #[error("general.alignment is {found}, not a power of two up to 1048576")]
    Alignment { found: String },
    #[error("tensor {} has {num_dims} dimensions", Shown(name))]
    Dimensions { name: String, num_dims: u32 },
    #[error("tensor {} has the impossible shape {shape:?}", Shown(name))]
    Shape { name: String, shape: Vec<u64> },
}

/// A string from the file, escaped and truncated for an error message.
pub(crate) struct Shown<'s>(pub(crate) &'s str);

/// Number of characters of a string that are shown.
const MAX_SHOWN: usize = 64;

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut: String = self.0.chars().take(MAX_SHOWN).collect();
        write!(f, "{cut:?}{}", if cut.len() < self.0.len() { "..." } else { "" })
    }
}
