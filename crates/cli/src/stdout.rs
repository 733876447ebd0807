//! Output of results on standard output.

use std::io::{ErrorKind, Write};

use anyhow::Context;

/// Writes `text`. A closed pipe, as after `head`, is no error.
///
/// # Errors
/// If it cannot be written for another reason, such as a full disk.
pub(crate) fn write(text: impl AsRef<[u8]>) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_ref()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("writing to standard output"),
        _ => Ok(()),
    }
}
