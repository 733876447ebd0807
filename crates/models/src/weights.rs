//! Location of the weights of a model.

use std::path::PathBuf;

/// Location of the weights.
#[derive(Clone, Debug, PartialEq)]
pub enum Weights {
    /// One GGUF file.
    Gguf(PathBuf),
    /// Folder of safetensors files, with their `config.json`.
    Safetensors(PathBuf),
    /// Random weights in the shape of this `config.json` or the one in this folder: for measurements of speed.
    Random(PathBuf),
}
