//! Choice of a model, and of the places it may come from.

use std::path::{Path, PathBuf};

/// Model to resolve, and the places it may come from.
///
/// Has no `Debug`, so that the token is never printed.
#[derive(Clone, Copy)]
pub struct ModelSource<'a> {
    /// Catalogue name, `owner/name` or `owner/name:file.gguf` on the hub, or a path.
    pub name: &'a str,
    /// Branch, tag or commit on the hub.
    pub revision: &'a str,
    /// Name in the API; the model's own if absent.
    pub served_name: Option<&'a str>,
    /// True to make up weights in the shape of the `config.json` that `name` gives the path of.
    pub has_random_weights: bool,
    /// `tokenizer.json`, or a GGUF file with a vocabulary, to use instead of the model's own.
    pub tokenizer: Option<&'a Path>,
    /// Folder of catalogue models; by default in the user's cache folder.
    pub cache_dir: Option<&'a Path>,
    /// True to never contact the hub; its cache is still read.
    pub is_offline: bool,
    /// Access token for the hub; by default the one that the hub's own tools have stored.
    pub hub_token: Option<&'a str>,
}

impl<'a> ModelSource<'a> {
    /// Chooses the model `name` with defaults for all else.
    #[must_use]
    pub fn named(name: &'a str) -> Self {
        Self {
            name,
            revision: "main",
            served_name: None,
            has_random_weights: false,
            tokenizer: None,
            cache_dir: None,
            is_offline: false,
            hub_token: None,
        }
    }

    /// Returns the folder of catalogue models; `None` on a system without a cache folder.
    pub(crate) fn cache_dir(&self) -> Option<PathBuf> {
        let home = || Some(dirs::cache_dir()?.join("kvshare").join("models"));
        self.cache_dir.map(Path::to_owned).or_else(home)
    }
}
