//! Files of bounded length.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::TokenizerError;

/// Reads a file of at most `max_bytes`.
pub(crate) fn read_bounded(path: &Path, max_bytes: u64) -> Result<Vec<u8>, TokenizerError> {
    let failed = |source| TokenizerError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(max_bytes + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > max_bytes {
        return Err(TokenizerError::Parse { path: path.to_owned(), reason: format!("it is longer than {max_bytes} bytes") });
    }
    Ok(bytes)
}
