//! Reader of little-endian values from untrusted input.

use std::io::{self, Read};

use crate::Error;

/// Maximum number of bytes of a header. Chosen: those of models with 256k tokens and 500k merges have 15 MB.
pub const MAX_HEADER_BYTES: u64 = 64 << 20;
/// Maximum number of elements of all arrays together. Chosen: three times those of the largest vocabularies.
pub const MAX_ELEMENTS: u64 = 4 << 20;
/// Maximum number of bytes of a key or of a tensor's name.
const MAX_NAME_BYTES: u64 = 1024;
/// Bytes allocated before any of a string has been read.
const CHUNK: usize = 64 << 10;

/// Reader of a header that enforces the limits.
pub(crate) struct Source<R> {
    reader: R,
    position: u64,
    /// Bytes that may still be read.
    left: u64,
    /// True if the file ends where `left` does.
    ends_there: bool,
    elements_left: u64,
    /// True if lengths have 64 bits.
    is_wide: bool,
}

impl<R: Read> Source<R> {
    /// Creates a reader of a file of `file_len` bytes.
    pub(crate) fn new(reader: R, file_len: u64) -> Self {
        let left = file_len.min(MAX_HEADER_BYTES);
        Self { reader, position: 0, left, ends_there: left == file_len, elements_left: MAX_ELEMENTS, is_wide: true }
    }

    /// Sets lengths to 64 bits, as from version 2 on.
    pub(crate) fn set_wide(&mut self, is_wide: bool) {
        self.is_wide = is_wide;
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Subtracts `len` bytes from the bytes that may still be read.
    fn take(&mut self, len: u64, what: &'static str) -> Result<(), Error> {
        let too_long = if self.ends_there { Error::Truncated { what } } else { Error::HeaderTooLong { limit: MAX_HEADER_BYTES } };
        self.left = self.left.checked_sub(len).ok_or(too_long)?;
        self.position += len;
        Ok(())
    }

    pub(crate) fn bytes<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Error> {
        self.take(N as u64, what)?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(|source| failed(source, what))?;
        Ok(bytes)
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, Error> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, Error> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    /// Reads a length, a count or the size of a dimension.
    pub(crate) fn length(&mut self, what: &'static str) -> Result<u64, Error> {
        if self.is_wide { self.u64(what) } else { self.u32(what).map(u64::from) }
    }

    /// Reads a count of items of at least `min_bytes` each.
    pub(crate) fn count(&mut self, what: &'static str, min_bytes: u64) -> Result<u64, Error> {
        let count = self.length(what)?;
        match count.checked_mul(min_bytes) {
            Some(bytes) if bytes <= self.left => Ok(count),
            _ => Err(Error::Count { what, count }),
        }
    }

    /// Reads the number of elements of an array, of at least `min_bytes` each.
    pub(crate) fn elements(&mut self, min_bytes: u64) -> Result<usize, Error> {
        let count = self.count("elements", min_bytes)?;
        self.elements_left = self.elements_left.checked_sub(count).ok_or(Error::TooManyElements { limit: MAX_ELEMENTS })?;
        usize::try_from(count).map_err(|_| Error::Count { what: "elements", count })
    }

    /// Reads a key or a tensor's name.
    pub(crate) fn name(&mut self, what: &'static str) -> Result<String, Error> {
        let len = self.length(what)?;
        if len > MAX_NAME_BYTES {
            return Err(Error::NameTooLong { what, len, limit: MAX_NAME_BYTES });
        }
        String::from_utf8(self.raw(len, what)?).map_err(|_| Error::NotUtf8 { what })
    }

    /// Reads a string of any length; invalid UTF-8 becomes U+FFFD. Trailing zeros, which some writers leave, are removed.
    pub(crate) fn string(&mut self, what: &'static str) -> Result<String, Error> {
        let len = self.length(what)?;
        let mut bytes = self.raw(len, what)?;
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
        Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    fn raw(&mut self, len: u64, what: &'static str) -> Result<Vec<u8>, Error> {
        self.take(len, what)?;
        let len = usize::try_from(len).expect("no more than a header was taken");
        let mut bytes = Vec::with_capacity(len.min(CHUNK));
        self.reader.by_ref().take(len as u64).read_to_end(&mut bytes).map_err(|source| failed(source, what))?;
        if bytes.len() < len { Err(Error::Truncated { what }) } else { Ok(bytes) }
    }
}

fn failed(source: io::Error, what: &'static str) -> Error {
    if source.kind() == io::ErrorKind::UnexpectedEof { Error::Truncated { what } } else { Error::Io { what, source } }
}
