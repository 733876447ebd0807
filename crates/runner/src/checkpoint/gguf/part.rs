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
        check_layout(path, &header, len)?;
        Ok(Self { path: path.to_owned(), header })
    }
}

/// Checks that every tensor lies inside its file, before anything large is allocated, and that each begins where the one before it ends,
/// padded to the file's alignment, as llama.cpp requires: otherwise a type, shape or offset is wrong.
fn check_layout(path: &Path, header: &Header, len: u64) -> Result<(), LoadError> {
    let mut placed = Vec::with_capacity(header.tensors.len());
    for (name, tensor) in &header.tensors {
        let (_, _, bytes) = layout(name, tensor)?;
        let end = header.data_start.checked_add(tensor.offset).and_then(|start| start.checked_add(bytes)).unwrap_or(u64::MAX);
        if end > len {
            return Err(LoadError::Truncated { path: path.to_owned(), tensor: shown(name), end, len });
        }
        placed.push((tensor.offset, bytes, name));
    }
    // Writers other than llama.cpp's may list tensors in another order than their data.
    placed.sort_unstable();
    let (mut expected, mut before) = (0, None);
    for (offset, bytes, name) in placed {
        if offset != expected {
            let place = before.map_or("the data starts".to_owned(), |before| format!("tensor {} before it ends", shown(before)));
            let reason = format!(
                "tensor {} begins at byte {offset} of the data, but {place} at byte {expected} (aligned to {})",
                shown(name),
                header.alignment
            );
            return Err(LoadError::Corrupt { path: path.to_owned(), reason });
        }
        // Neither overflows: the end lies in the file, and the alignment is small.
        expected = (offset + bytes).next_multiple_of(header.alignment);
        before = Some(name);
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const F32: u32 = 0;
    const F16: u32 = 1;

    /// Checks a file with `a` of ten F32 elements, 40 bytes, and `b` of four.
    fn check(alignment: u64, a: (u32, u64), b: (u32, u64), len: u64) -> Result<(), String> {
        let tensor = |(ggml_type, offset), size| Tensor { ggml_type, shape: vec![size], offset };
        let tensors = BTreeMap::from([("a".to_owned(), tensor(a, 10)), ("b".to_owned(), tensor(b, 4))]);
        let header = Header { metadata: BTreeMap::new(), tensors, data_start: 64, alignment };
        check_layout(Path::new("m.gguf"), &header, len).map_err(|error| error.to_string())
    }

    #[test]
    fn tensors_follow_each_other_padded_to_the_alignment() {
        assert_eq!(check(32, (F32, 0), (F32, 64), 144), Ok(()));
        assert_eq!(check(8, (F32, 0), (F32, 40), 120), Ok(()));
        // The order of the data need not be that of the names.
        assert_eq!(check(32, (F32, 32), (F32, 0), 200), Ok(()));
    }

    #[test]
    fn tensors_that_overlap_or_leave_gaps_are_refused_by_name() {
        let refused = |alignment, a, b| {
            let message = check(alignment, a, b, 1000).unwrap_err();
            assert!(message.contains("m.gguf") && message.contains(" begins at byte"), "{message}");
        };
        refused(32, (F32, 0), (F32, 0));
        refused(32, (F32, 0), (F32, 32));
        refused(32, (F32, 0), (F32, 40));
        refused(32, (F32, 0), (F32, 96));
        refused(32, (F32, 0), (F32, 65));
        // A type whose elements need less than the next offset says.
        refused(32, (F16, 0), (F32, 64));
        refused(16, (F32, 0), (F32, 64));
        assert!(
            check(32, (F32, 32), (F32, 96), 1000)
                .unwrap_err()
                .contains("tensor a begins at byte 32 of the data, but the data starts")
        );
        assert!(check(32, (F32, 0), (F32, u64::MAX - 8), 1000).unwrap_err().contains("truncated"));
    }
}
