//! Resolution of a model's name to its files on this machine.
//!
//! A name is one of the catalogue, a repository on the hub, or a path. Missing files are fetched.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::catalogue::{self, catalogue};
use crate::hub::{Hub, RepoAt};
use crate::parts::PartName;
use crate::{ModelSource, Reporter, Weights, fetch};

/// Files of a model, all of them on this machine.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFiles {
    /// Weights to load.
    pub weights: Weights,
    /// Path of a `tokenizer.json` or a GGUF file; without one the tokenizer is in the weights, if they have one.
    pub tokenizer: Option<PathBuf>,
    /// Name in the API.
    pub id: String,
}

/// Parsed name of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
enum ModelName<'a> {
    Local(&'a Path),
    Catalogue(&'static str),
    Hub { repo: &'a str, file: Option<&'a str> },
}

/// Resolves the files of the chosen model, and fetches missing ones.
///
/// # Errors
/// If the name is invalid, or its files cannot be fetched.
pub fn resolve(source: ModelSource<'_>, reporter: &dyn Reporter) -> anyhow::Result<ModelFiles> {
    let (weights, id) = match source.has_random_weights {
        true => dummy(Path::new(source.name))?,
        false => named(source, reporter)?,
    };
    let tokenizer = match source.tokenizer {
        Some(path) if !path.is_file() => bail!("there is no tokenizer {}", path.display()),
        Some(path) => Some(path.to_owned()),
        None => own_tokenizer(&weights)?,
    };
    let id = source.served_name.map_or(id, str::to_owned);
    Ok(ModelFiles { weights, tokenizer, id })
}

/// Returns the weights of the chosen name, and the model's name in the API.
fn named(source: ModelSource<'_>, reporter: &dyn Reporter) -> anyhow::Result<(Weights, String)> {
    Ok(match parse_name(source.name, Path::new(source.name).exists())? {
        ModelName::Local(path) => (local_weights(path)?, local_id(path)),
        ModelName::Catalogue(name) => {
            let model = catalogue::find(name).expect("parsing takes catalogue names from the catalogue");
            (Weights::Gguf(fetch::fetch(model, source, reporter)?), name.to_owned())
        }
        ModelName::Hub { repo, file } => {
            let at = RepoAt { repo, revision: source.revision };
            (Hub::new(source, reporter).weights(at, file)?, repo.to_owned())
        }
    })
}

/// Returns random weights in the shape of the `config.json` at `config`, or in that folder. Their output has no meaning.
fn dummy(config: &Path) -> anyhow::Result<(Weights, String)> {
    if !config.join("config.json").is_file() && config.extension().is_none_or(|extension| extension != "json") {
        bail!(
            "--load-format dummy takes a config.json or a folder with one as --model: there is no config.json in {}",
            config.display()
        );
    }
    Ok((Weights::Random(config.to_owned()), format!("random {}", local_id(config))))
}

/// Parses a name. `exists` is true for a file or folder of that name; it wins over the hub unless the catalogue has the name.
fn parse_name(name: &str, exists: bool) -> anyhow::Result<ModelName<'_>> {
    if let Some(model) = catalogue::find(name) {
        return Ok(ModelName::Catalogue(model.name));
    }
    if exists {
        return Ok(ModelName::Local(Path::new(name)));
    }
    let (repo, file) = name.split_once(':').map_or((name, None), |(repo, file)| (repo, Some(file)));
    let is_repo = repo.split('/').count() == 2 && repo.split('/').all(is_hub_word);
    if is_repo && !repo.ends_with(".gguf") {
        return Ok(ModelName::Hub { repo, file });
    }
    let known: Vec<_> = catalogue().iter().map(|model| model.name).collect();
    bail!("there is no model `{name}`: not a file or folder, not `owner/name` on the hub, and not one of {}", known.join(", "))
}

/// Accepts letters, digits and `-_.`, without a leading dot: a path like `../x` fails.
fn is_hub_word(word: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !word.is_empty() && !word.starts_with('.') && word.chars().all(is_allowed)
}

fn local_weights(path: &Path) -> anyhow::Result<Weights> {
    if path.is_file() {
        return Ok(Weights::Gguf(path.to_owned()));
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("reading {}", path.display()))?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let has_extension = |file: &&PathBuf, wanted: &str| file.extension().is_some_and(|extension| extension == wanted);
    if files.iter().any(|file| has_extension(&file, "safetensors")) {
        if !path.join("config.json").is_file() {
            bail!("{} has safetensors but no config.json", path.display());
        }
        return Ok(Weights::Safetensors(path.to_owned()));
    }
    let ggufs: Vec<_> = files.iter().filter(|file| has_extension(file, "gguf") && !is_later_part(file)).collect();
    match ggufs.as_slice() {
        [] => bail!("{} has neither safetensors nor a GGUF file", path.display()),
        [file] => Ok(Weights::Gguf((*file).clone())),
        [first, ..] => bail!("{} has {} GGUF files: name one, as in `{}`", path.display(), ggufs.len(), first.display()),
    }
}

/// True if `file` is not the first part of a split model.
fn is_later_part(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str());
    name.and_then(PartName::of).is_some_and(PartName::is_later)
}

/// Returns the name of a local model in the API: that of its file or folder.
fn local_id(path: &Path) -> String {
    let absolute = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = if absolute.is_file() { absolute.file_stem() } else { absolute.file_name() };
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Returns the `tokenizer.json` of a safetensors folder, or next to the shape of random weights. A GGUF file carries its own vocabulary.
fn own_tokenizer(weights: &Weights) -> anyhow::Result<Option<PathBuf>> {
    match weights {
        Weights::Gguf(_) => Ok(None),
        Weights::Random(config) => {
            let folder = if config.is_dir() { config } else { config.parent().unwrap_or(Path::new("")) };
            Ok(Some(folder.join("tokenizer.json")).filter(|path| path.is_file()))
        }
        Weights::Safetensors(folder) => {
            let path = folder.join("tokenizer.json");
            if !path.is_file() {
                bail!("{} has no tokenizer.json: give one with --tokenizer", folder.display());
            }
            Ok(Some(path))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Silent;

    #[track_caller]
    fn check_name(name: &str, exists: bool, expected: ModelName<'_>) {
        assert_eq!(parse_name(name, exists).unwrap(), expected);
    }

    #[test]
    fn catalogue_names_win_over_files_and_files_over_the_hub() {
        check_name("smollm2-135m-instruct", true, ModelName::Catalogue("smollm2-135m-instruct"));
        check_name("models/tiny", true, ModelName::Local(Path::new("models/tiny")));
        check_name("models/tiny", false, ModelName::Hub { repo: "models/tiny", file: None });
    }

    #[test]
    fn a_file_in_a_repository_follows_a_colon() {
        let expected = ModelName::Hub { repo: "Qwen/Qwen2.5-0.5B", file: Some("q4/x.gguf") };
        check_name("Qwen/Qwen2.5-0.5B:q4/x.gguf", false, expected);
    }

    #[test]
    fn a_missing_path_is_not_looked_for_on_the_hub() {
        for name in ["nonsense", "../x", "./x", "/a/b", "a/b/c", "models/x.gguf", "a b/c", ""] {
            let message = parse_name(name, false).unwrap_err().to_string();
            assert!(message.starts_with(&format!("there is no model `{name}`")), "{message}");
        }
    }

    /// Checks that a folder with these files holds the weights `expected`, or is refused with a message that contains the text.
    #[track_caller]
    fn check_folder(files: &[&str], expected: Result<&str, &str>) {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        match (local_weights(dir.path()), expected) {
            (Ok(Weights::Safetensors(folder)), Ok("folder")) => assert_eq!(folder, dir.path()),
            (Ok(Weights::Gguf(path)), Ok(file)) => assert_eq!(path, dir.path().join(file)),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (found, _) => panic!("{found:?}"),
        }
    }

    #[test]
    fn folders_hold_safetensors_or_one_gguf_file() {
        check_folder(&["config.json", "model.safetensors", "tokenizer.json"], Ok("folder"));
        check_folder(&["m.gguf", "README.md"], Ok("m.gguf"));
        check_folder(&["model.safetensors"], Err("no config.json"));
        check_folder(&["a.gguf", "b.gguf"], Err("2 GGUF files: name one"));
        check_folder(&["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"], Ok("m-00001-of-00002.gguf"));
        check_folder(&["README.md"], Err("neither safetensors nor a GGUF file"));
    }

    #[test]
    fn a_local_model_is_named_after_its_file_or_folder() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("Tiny.Q4_0.gguf");
        std::fs::write(&file, "").unwrap();
        assert_eq!(local_id(&file), "Tiny.Q4_0");
        std::fs::create_dir(dir.path().join("tiny")).unwrap();
        assert_eq!(local_id(&dir.path().join("tiny")), "tiny");
    }

    #[test]
    fn the_tokenizer_and_the_name_can_be_given() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["m.gguf", "other.json"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        let [model, other, missing] = ["m.gguf", "other.json", "missing.json"].map(|file| dir.path().join(file));
        let source = ModelSource::named(model.to_str().unwrap());
        assert_eq!(resolve(source, &Silent).unwrap().tokenizer, None);
        let given = ModelSource { tokenizer: Some(&other), served_name: Some("mine"), ..source };
        let files = resolve(given, &Silent).unwrap();
        assert_eq!((files.tokenizer, files.id), (Some(other.clone()), "mine".to_owned()));
        assert!(resolve(ModelSource { tokenizer: Some(&missing), ..given }, &Silent).is_err());
    }

    #[test]
    fn random_weights_take_the_tokenizer_beside_their_shape_if_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let source = ModelSource { has_random_weights: true, ..ModelSource::named(dir.path().to_str().unwrap()) };
        assert!(resolve(source, &Silent).is_err());
        std::fs::write(dir.path().join("config.json"), "").unwrap();
        assert_eq!(resolve(source, &Silent).unwrap().tokenizer, None);
        std::fs::write(dir.path().join("tokenizer.json"), "").unwrap();
        let files = resolve(source, &Silent).unwrap();
        assert_eq!(
            (files.weights, files.tokenizer),
            (Weights::Random(dir.path().to_owned()), Some(dir.path().join("tokenizer.json")))
        );
        let missing = resolve(ModelSource { name: "no/such", ..source }, &Silent).unwrap_err().to_string();
        assert!(missing.contains("no config.json"), "{missing}");
    }
}
