//! Lines to standard error that may be lost: a full disk or a closed pipe ends no request.

use std::fmt::Display;
use std::io::Write;

/// Writes one line to standard error, if that can be written.
pub(crate) fn write_line(line: impl Display) {
    // `eprintln` panics where this does not.
    let _ = writeln!(std::io::stderr(), "{line}");
}
