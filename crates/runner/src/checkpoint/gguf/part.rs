//! One file of a model: its header, and the places of its tensors.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use gguf::{Header, Tensor};
use kernels::cpu::GgmlType;

use crate::LoadError;
use crate::error::shown;

/// One GGUF file with its header.
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) header: Header,
}

impl Part {
    /// Reads the header of the file at `path`.
    pub(super) fn open(path: &Path) -> Result<Self, LoadError> {
        let io = |source| LoadError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        let header = Header::read(BufReader::new(file), len)
            .map_err(|error| LoadError::Corrupt { path: path.to_owned(), reason: error.to_string() })?;
        check_length(path, &header, len)?;
        Ok(Self { path: path.to_owned(), header })
    }
}

/// Checks that every tensor lies inside its file, before anything large is allocated.
fn check_length(path: &Path, header: &Header, len: u64) -> Result<(), LoadError> {
    for (name, tensor) in &header.tensors {
        let (_, _, bytes) = layout(name, tensor)?;
        let end = header.data_start.checked_add(tensor.offset).and_then(|start| start.checked_add(bytes)).unwrap_or(u64::MAX);
        if end > len {
            return Err(LoadError::Truncated { path: path.to_owned(), tensor: shown(name), end, len });
        }
    }
    Ok(())
}

/// Returns type, shape and bytes of a tensor.
pub(super) fn layout(name: &str, tensor: &Tensor) -> Result<(GgmlType, Vec<usize>, u64), LoadError> {
    let impossible = || LoadError::unsupported(format!("tensor {} of shape {:?}", shown(name), tensor.shape));
    let ty = GgmlType::try_from(tensor.ggml_type)
        .map_err(|error| LoadError::Unsupported { what: format!("tensor {}: {}", shown(name), type_name(error.0)) })?;
    let shape: Vec<usize> =
        tensor.shape.iter().map(|&size| usize::try_from(size)).collect::<Result<_, _>>().map_err(|_| impossible())?;
    let (block_len, block_bytes) = (ty.block_len() as u64, ty.block_bytes() as u64);
    // Rows consist of whole blocks.
    let row = tensor.shape.last().copied().unwrap_or(1);
    if row % block_len != 0 {
        return Err(impossible());
    }
    let num_elements = tensor.shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size)).ok_or_else(impossible)?;
    let bytes = (num_elements / block_len).checked_mul(block_bytes).ok_or_else(impossible)?;
    Ok((ty, shape, bytes))
}

/// Returns ggml's name of a type that is not supported.
fn type_name(number: u32) -> String {
    let name = match number {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        other => return format!("ggml type {other}"),
    };
    format!("type {name}")
}
