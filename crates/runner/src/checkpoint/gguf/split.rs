//! Models whose GGUF file was split into parts: `name-00001-of-00003.gguf` and so on.

use std::path::{Path, PathBuf};

use super::part::Part;
use crate::LoadError;

/// Maximum number of parts of a model. Chosen: the largest models have some fifty.
const MAX_PARTS: u64 = 1024;

/// Opens all parts of the model whose first part is `first`, at `path`.
///
/// # Errors
/// If `path` is not the first part, or a part is missing or belongs to another model.
pub(super) fn all_parts(path: &Path, first: Part) -> Result<Vec<Part>, LoadError> {
    let count = first.header.unsigned("split.count").unwrap_or(1);
    if count <= 1 {
        return Ok(vec![first]);
    }
    let corrupt = |path: &Path, reason: String| LoadError::Corrupt { path: path.to_owned(), reason };
    if count > MAX_PARTS {
        return Err(corrupt(path, format!("it claims to be one of {count} parts")));
    }
    let number = first.header.unsigned("split.no").unwrap_or(0);
    if number != 0 {
        let first_part = part_path(path, 0, count).map(|path| path.display().to_string());
        let wanted = first_part.unwrap_or_else(|| format!("-00001-of-{count:05}.gguf"));
        let reason = format!("it is part {} of {count} of a split model: name the first, {wanted}", number.saturating_add(1));
        return Err(corrupt(path, reason));
    }
    let wanted_tensors = first.header.unsigned("split.tensors.count");
    let mut parts = vec![first];
    for index in 1..count {
        let misnamed = || corrupt(path, format!("it is one of {count} parts, but not named -00001-of-{count:05}.gguf"));
        let part_path = part_path(path, index, count).ok_or_else(misnamed)?;
        if !part_path.is_file() {
            return Err(corrupt(path, format!("it is one of {count} parts, and {} is missing", part_path.display())));
        }
        let part = Part::open(&part_path)?;
        let found = (part.header.unsigned("split.no"), part.header.unsigned("split.count"));
        if found != (Some(index), Some(count)) {
            return Err(corrupt(&part_path, format!("it is not part {} of {count}", index + 1)));
        }
        parts.push(part);
    }
    let num_tensors: usize = parts.iter().map(|part| part.header.tensors.len()).sum();
    match wanted_tensors {
        Some(wanted) if wanted != num_tensors as u64 => {
            Err(corrupt(path, format!("its {count} parts have {num_tensors} tensors, not {wanted}")))
        }
        _ => Ok(parts),
    }
}

/// Returns the path of part `index` (from 0), if `path` is named as a part of `count`.
fn part_path(path: &Path, index: u64, count: u64) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let of = name.strip_suffix(&format!("-of-{count:05}.gguf"))?;
    let (prefix, number) = of.rsplit_once('-')?;
    let is_number = number.len() == 5 && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| path.with_file_name(format!("{prefix}-{:05}-of-{count:05}.gguf", index + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, expected: Option<&str>) {
        assert_eq!(part_path(Path::new(path), 1, 3).as_deref(), expected.map(Path::new));
    }

    #[test]
    fn parts_are_named_after_the_first() {
        check("a/m-00001-of-00003.gguf", Some("a/m-00002-of-00003.gguf"));
        check("a/m-x-00003-of-00003.gguf", Some("a/m-x-00002-of-00003.gguf"));
        check("a/m-00001-of-00004.gguf", None);
        check("a/m.gguf", None);
    }
}
