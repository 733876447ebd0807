//! The header of a GGUF file: metadata and the position of each tensor.
//!
//! A file may be untrusted, so every count is checked before anything is allocated for it. [`MAX_HEADER_BYTES`] and [`MAX_ELEMENTS`] bound
//! what one file can make this crate allocate.
//!
//! Contains [`Header`] and [`Value`]. Deliberately not here: tensor data and the meaning of any key.

#![forbid(unsafe_code)]

mod error;
mod source;
mod value;

use std::collections::BTreeMap;
use std::io::Read;

pub use error::Error;
pub use source::{MAX_ELEMENTS, MAX_HEADER_BYTES};
pub use value::{Array, Value};

use source::Source;

/// Everything that precedes the tensor data.
#[derive(Clone, Debug)]
pub struct Header {
    /// Metadata by key.
    pub metadata: BTreeMap<String, Value>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// Byte offset in the file at which the tensor data begins.
    pub data_start: u64,
    /// Number of bytes of which the offset of every tensor is a multiple: a power of two.
    pub alignment: u64,
}

/// Type, shape and position of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Element type, as in `enum ggml_type`.
    pub ggml_type: u32,
    /// Sizes, outermost first. None is 0, and their product fits into 64 bits.
    pub shape: Vec<u64>,
    /// Byte offset at which its data begins, relative to [`Header::data_start`].
    pub offset: u64,
}

/// Maximum number of dimensions of a tensor: ggml's `GGML_MAX_DIMS`.
const MAX_DIMS: u32 = 4;
/// Alignment of the data if the file does not set one.
const DEFAULT_ALIGNMENT: u64 = 32;
/// Largest alignment that is accepted: pages of all machines are smaller.
const MAX_ALIGNMENT: u64 = 1 << 20;

impl Header {
    /// Reads the header of a file of `file_len` bytes from its start.
    ///
    /// # Errors
    /// If it is not a GGUF file, ends too soon, or contains invalid values.
    pub fn read(reader: impl Read, file_len: u64) -> Result<Self, Error> {
        let mut source = Source::new(reader, file_len);
        if source.bytes::<4>("the magic number")? != *b"GGUF" {
            return Err(Error::NotGguf);
        }
        let version = source.u32("the version")?;
        if !(1..=3).contains(&version) {
            return Err(Error::Version { version });
        }
        source.set_wide(version > 1);
        let num_tensors = source.count("tensors", MIN_TENSOR_BYTES)?;
        let num_entries = source.count("metadata entries", MIN_ENTRY_BYTES)?;
        let mut metadata = BTreeMap::new();
        for _ in 0..num_entries {
            let key = source.name("a key")?;
            let value = Value::read(&mut source, &key)?;
            if metadata.contains_key(&key) {
                return Err(Error::Duplicate { what: "key", name: key });
            }
            metadata.insert(key, value);
        }
        let tensors = read_tensors(&mut source, num_tensors)?;
        let alignment = alignment(&metadata)?;
        let data_start = source.position().next_multiple_of(alignment);
        Ok(Self { metadata, tensors, data_start, alignment })
    }

    /// Returns the string value of `key`.
    #[must_use]
    pub fn string(&self, key: &str) -> Option<&str> {
        self.metadata.get(key)?.as_str()
    }

    /// Returns the non-negative integer value of `key`.
    #[must_use]
    pub fn unsigned(&self, key: &str) -> Option<u64> {
        self.metadata.get(key)?.as_u64()
    }

    /// Returns the numeric value of `key`.
    #[must_use]
    pub fn float(&self, key: &str) -> Option<f64> {
        self.metadata.get(key)?.as_f64()
    }
}

/// Bytes of the shortest entry: the length of its key, a type, a byte.
const MIN_ENTRY_BYTES: u64 = 8 + 4 + 1;
/// Bytes of the shortest tensor entry: the length of its name, its dimensions, a type, an offset. Version 1 has shorter lengths.
const MIN_TENSOR_BYTES: u64 = 4 + 4 + 4 + 8;

fn read_tensors(source: &mut Source<impl Read>, num_tensors: u64) -> Result<BTreeMap<String, Tensor>, Error> {
    let mut tensors = BTreeMap::new();
    for _ in 0..num_tensors {
        let name = source.name("a tensor's name")?;
        let num_dims = source.u32("the dimensions of a tensor")?;
        if !(1..=MAX_DIMS).contains(&num_dims) {
            return Err(Error::Dimensions { name, num_dims });
        }
        let mut shape = (0..num_dims).map(|_| source.length("the shape of a tensor")).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        let num_elements = shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size));
        if num_elements.is_none_or(|num_elements| num_elements == 0) {
            return Err(Error::Shape { name, shape });
        }
        let ggml_type = source.u32("the type of a tensor")?;
        let offset = source.u64("the offset of a tensor")?;
        if tensors.contains_key(&name) {
            return Err(Error::Duplicate { what: "tensor", name });
        }
        tensors.insert(name, Tensor { ggml_type, shape, offset });
    }
    Ok(tensors)
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, Error> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
    let alignment = value.as_u64().filter(|alignment| alignment.is_power_of_two() && *alignment <= MAX_ALIGNMENT);
    alignment.ok_or_else(|| Error::Alignment { found: value.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a file of one entry and one tensor.
    fn file(entry: &[u8], dims: &[u64]) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(entry);
        bytes.extend(string("t"));
        bytes.extend(u32::try_from(dims.len()).unwrap().to_le_bytes());
        dims.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
        bytes.extend([0; 12]);
        bytes
    }

    fn string(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    fn entry(key: &str, ty: u32, value: &[u8]) -> Vec<u8> {
        [&string(key)[..], &ty.to_le_bytes(), value].concat()
    }

    fn read(bytes: &[u8]) -> Result<Header, Error> {
        Header::read(bytes, bytes.len() as u64)
    }

    #[track_caller]
    fn check_refused(bytes: &[u8], named: &str) {
        let message = read(bytes).expect_err(named).to_string();
        assert!(message.contains(named) && message.len() < 300 && !message.contains('\n'), "{message}");
    }

    #[test]
    fn metadata_and_tensors_are_read() {
        let header = read(&file(&entry("k", 8, &string("v\0")), &[3, 2])).unwrap();
        assert_eq!(header.string("k"), Some("v"));
        assert_eq!(header.tensors["t"], Tensor { ggml_type: 0, shape: vec![2, 3], offset: 0 });
        assert_eq!(header.data_start % 32, 0);
    }

    #[test]
    fn arrays_of_every_kind_are_read() {
        let strings = [&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &string("a"), &string("b")].concat();
        let floats = [&6u32.to_le_bytes()[..], &1u64.to_le_bytes(), &1.5f32.to_le_bytes()].concat();
        let read = |value: &[u8]| read(&file(&entry("k", 9, value), &[1])).unwrap().metadata["k"].clone();
        assert_eq!(read(&strings), Value::Array(Array::Strings(vec!["a".into(), "b".into()])));
        assert_eq!(read(&floats), Value::Array(Array::Floats(vec![1.5])));
    }

    #[test]
    fn an_alignment_that_cannot_be_is_refused() {
        for alignment in [0u32, 3, 1 << 30] {
            check_refused(&file(&entry("general.alignment", 4, &alignment.to_le_bytes()), &[1]), "general.alignment");
        }
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let plain = entry("k", 0, &[1]);
        check_refused(&file(&plain, &[1 << 32, 1 << 32]), "shape");
        check_refused(&file(&plain, &[4, 0]), "shape");
        check_refused(&file(&plain, &[1; 5]), "5 dimensions");
        check_refused(&file(&plain, &[]), "0 dimensions");
    }

    #[test]
    fn counts_that_the_file_cannot_hold_are_refused_before_anything_is_allocated() {
        let mut bytes = file(&entry("k", 0, &[1]), &[1]);
        bytes[8..16].copy_from_slice(&(1u64 << 62).to_le_bytes());
        check_refused(&bytes, "tensors");
        let strings = [&8u32.to_le_bytes()[..], &(1u64 << 60).to_le_bytes()].concat();
        check_refused(&file(&entry("k", 9, &strings), &[1]), "elements");
        let long = [&8u32.to_le_bytes()[..], &(1u64 << 40).to_le_bytes()].concat();
        check_refused(&file(&entry("k", 8, &long[4..]), &[1]), "ends");
    }

    #[test]
    fn names_are_shown_short_and_on_one_line() {
        let name = "x\n".repeat(2000);
        check_refused(&file(&entry(&name, 0, &[1]), &[1]), "a key");
    }

    /// Checks that every prefix, and every byte changed in a few ways, gives a result or an error, never a panic.
    #[test]
    fn broken_headers_are_answered() {
        let strings = [&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &string("a"), &string("b")].concat();
        let whole = file(&entry("general.alignment", 4, &64u32.to_le_bytes()), &[3, 2]);
        let arrays = file(&entry("k", 9, &strings), &[1]);
        for bytes in [whole, arrays] {
            for len in 0..bytes.len() {
                assert!(read(&bytes[..len]).is_err(), "{len}");
            }
            for at in 0..bytes.len() {
                for value in [0, 1, 9, 0x7f, 0x80, 0xff] {
                    let mut changed = bytes.clone();
                    changed[at] = value;
                    if let Err(error) = read(&changed) {
                        assert!(error.to_string().len() < 300);
                    }
                }
            }
        }
    }
}
