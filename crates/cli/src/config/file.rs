//! Files of settings and keys.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use super::error::ConfigError;

/// Maximum size of a hand-written file, in bytes. Chosen: ten thousand keys fit.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Reads the text of a configuration or key file.
///
/// # Errors
/// If the file cannot be read, is larger than [`MAX_FILE_BYTES`] (a device has no end), or is no UTF-8.
pub(super) fn read_text(path: &Path) -> Result<String, ConfigError> {
    let bytes = read_bytes(path)?;
    String::from_utf8(bytes).map_err(|error| {
        let source = io::Error::new(io::ErrorKind::InvalidData, error.utf8_error());
        ConfigError::Read { path: path.to_owned(), source }
    })
}

/// Reads arbitrary bytes; otherwise as [`read_text`].
pub(super) fn read_bytes(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    let checked = read.and_then(|_| match bytes.len() as u64 > MAX_FILE_BYTES {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {} MiB", MAX_FILE_BYTES >> 20))),
        false => Ok(()),
    });
    checked.map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    Ok(bytes)
}

/// Parses the TOML `text` as `T`; errors name `path`.
pub(super) fn parse_toml<T: serde::de::DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start).min(text.len());
        let line = 1 + text[..start].matches('\n').count();
        ConfigError::Parse { path: path.to_owned(), line, message: error.message().replace('\n', " ") }
    })
}
