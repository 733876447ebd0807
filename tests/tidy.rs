//! Rules that the repository keeps about itself.

mod circles;
mod comments;
mod modules;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Layer, crate, and its imports of ours. Imports point to lower layers only.
///
/// `crates/README.md` shows the same table; a new edge changes both in the commit that adds it.
const LAYERING: [(u32, &str, &[&str]); 19] = [
    (
        5,
        "cli",
        &[
            "dialect",
            "embed",
            "engine",
            "eval",
            "grammar",
            "models",
            "protocol",
            "runner",
            "semantic",
            "server",
            "sim",
            "tokenizer",
            "tokens",
        ],
    ),
    (4, "embed", &["runner", "semantic", "tokenizer", "tokens"]),
    (4, "server", &["dialect", "engine", "grammar", "protocol", "tokenizer", "tokens"]),
    (3, "eval", &["engine", "semantic", "tokenizer", "tokens"]),
    (3, "runner", &["engine", "gguf", "grammar", "kernels", "tokens"]),
    (3, "sim", &["engine", "tokens"]),
    (3, "testkit", &["engine", "tokens"]),
    (2, "engine", &["grammar", "kv", "semantic", "tokens"]),
    (1, "grammar", &["tokens"]),
    (1, "kv", &["tokens"]),
    (1, "protocol", &["tokens"]),
    (1, "semantic", &["tokens"]),
    (1, "tokenizer", &["jinja", "tokens"]),
    (0, "dialect", &[]),
    (0, "gguf", &[]),
    (0, "jinja", &[]),
    (0, "kernels", &[]),
    (0, "models", &[]),
    (0, "tokens", &[]),
];

/// Deciding crates: no clock, no thread, no randomness, no environment, and of others' crates only these.
const PURE: [&str; 4] = ["engine", "kv", "semantic", "tokens"];
const PURE_MAY_IMPORT: [&str; 2] = ["thiserror", "tracing"];
const PURE_MAY_NOT_SAY: [&str; 7] =
    ["Instant::now", "SystemTime", "std::env", "thread::spawn", "thread::sleep", "std::fs", "std::net"];

fn root() -> PathBuf {
    crate::places::repository().to_owned()
}

fn folder_of(name: &str) -> PathBuf {
    if name == "kernels" { root().join(name) } else { root().join("crates").join(name) }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the files that are, or would be, in a commit.
fn tracked_files() -> Vec<PathBuf> {
    let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").current_dir(root()).args(arguments).output().expect("git is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).expect("file names are UTF-8");
    names.split_terminator('\0').map(|name| root().join(name)).filter(|file| file.is_file()).collect()
}

/// Returns the names in `table` of the manifest of crate `name`.
fn names_in(name: &str, table: &str) -> BTreeSet<String> {
    let manifest: toml::Table = read(&folder_of(name).join("Cargo.toml")).parse().expect("cargo has read it");
    manifest.get(table).and_then(toml::Value::as_table).map(|table| table.keys().cloned().collect()).unwrap_or_default()
}

/// True if `name` is one of our crates.
fn is_ours(name: &str) -> bool {
    LAYERING.iter().any(|(_, ours, _)| *ours == name)
}

fn layer_of(name: &str) -> u32 {
    LAYERING.iter().find(|(_, ours, _)| *ours == name).expect("one of ours").0
}

/// Returns all `.rs` files under `folder`.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("a readable folder").path());
    paths
        .flat_map(|path| match path.extension() {
            _ if path.is_dir() => sources(&path),
            Some(extension) if extension == "rs" => vec![path],
            _ => Vec::new(),
        })
        .collect()
}

/// Returns the file that cargo compiles as the crate.
fn crate_root(name: &str) -> PathBuf {
    let library = folder_of(name).join("src/lib.rs");
    if library.is_file() { library } else { folder_of(name).join("src/main.rs") }
}

#[test]
fn layering() {
    for (layer, name, imports) in LAYERING {
        let found: BTreeSet<_> = names_in(name, "dependencies").into_iter().filter(|dependency| is_ours(dependency)).collect();
        let expected: BTreeSet<_> = imports.iter().map(|import| (*import).to_owned()).collect();
        assert_eq!(found, expected, "imports of {name}");
        for import in imports {
            assert!(layer_of(import) < layer, "{name} (layer {layer}) imports {import} (layer {})", layer_of(import));
        }
    }
}

#[test]
fn every_crate_is_in_the_table() {
    let folders =
        fs::read_dir(root().join("crates")).expect("crates/ is there").map(|entry| entry.expect("a readable folder").path());
    for folder in folders.filter(|path| path.is_dir()) {
        let name = folder.file_name().and_then(|name| name.to_str()).expect("a crate's name is UTF-8").to_owned();
        assert!(is_ours(&name), "crates/{name} is not in the table");
    }
}

#[test]
fn nobody_imports_the_composition_root_or_the_test_kit() {
    for (_, name, _) in LAYERING {
        for leaf in ["cli", "testkit"] {
            assert!(!names_in(name, "dependencies").contains(leaf), "{name} imports {leaf}");
        }
    }
}

#[test]
fn the_map_shows_the_layering() {
    let map = read(&root().join("crates/README.md"));
    for (layer, name, imports) in LAYERING {
        let imports: Vec<_> = imports.iter().map(|import| format!("`{import}`")).collect();
        let imports = if imports.is_empty() { "-".to_owned() } else { imports.join(", ") };
        let row = format!("| {layer} | `{name}` | {imports} |");
        assert!(map.contains(&row), "crates/README.md lacks the row\n{row}");
    }
}

#[test]
fn the_first_pages_are_short() {
    for (page, limit) in [("README.md", 200), ("crates/README.md", 150)] {
        let num_lines = read(&root().join(page)).lines().count();
        assert!(num_lines < limit, "{page} has {num_lines} lines");
    }
}

#[test]
fn deciding_crates_import_little() {
    for name in PURE {
        let others = names_in(name, "dependencies").into_iter().filter(|dependency| !is_ours(dependency));
        for dependency in others {
            assert!(PURE_MAY_IMPORT.contains(&dependency.as_str()), "{name} imports {dependency}");
        }
    }
}

#[test]
fn deciding_crates_see_no_clock_thread_or_environment() {
    for source in PURE.iter().flat_map(|name| sources(&folder_of(name).join("src"))) {
        let text = read(&source);
        for word in PURE_MAY_NOT_SAY {
            assert!(!text.contains(word), "{} says {word}", source.display());
        }
    }
}

#[test]
fn only_kernels_may_be_unsafe() {
    for (_, name, _) in LAYERING.into_iter().filter(|(_, name, _)| *name != "kernels") {
        let forbids = read(&crate_root(name)).lines().any(|line| line == "#![forbid(unsafe_code)]");
        assert!(forbids, "{name} does not forbid unsafe code");
    }
}

#[test]
fn every_crate_opens_with_its_sentence() {
    for (_, name, _) in LAYERING {
        let text = read(&crate_root(name));
        let sentence = text.lines().take_while(|line| line.starts_with("//! ")).collect::<Vec<_>>().join(" ");
        assert!(sentence.len() > 30 && sentence.contains('.'), "{name} opens with {sentence:?}");
    }
}

#[test]
fn no_file_names_a_folder_of_somebodys_machine() {
    // Written in two parts so that this file does not contain them.
    let folders =
        [["/ro", "ot/"], ["/wo", "rk/"], ["/ho", "me/"], ["/Us", "ers/"], ["/tmp/", "venv"]].map(|parts| parts.concat());
    for file in tracked_files() {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        for folder in &folders {
            assert!(!text.contains(folder.as_str()), "{} names {folder}", file.display());
        }
    }
}

#[test]
fn nothing_is_left_to_do_later() {
    let this_file = Path::new("tests/tidy.rs");
    let is_source = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "rs") && !file.ends_with(this_file);
    for source in tracked_files().into_iter().filter(is_source) {
        let text = read(&source);
        for mark in ["todo!(", "unimplemented!(", "TODO"] {
            assert!(!text.contains(mark), "{} says {mark}", source.display());
        }
    }
}

#[test]
fn links_of_documents_lead_to_files() {
    let is_document = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "md");
    for document in tracked_files().into_iter().filter(is_document) {
        let text = read(&document);
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://") && !target.starts_with('#')) {
            let file = document.with_file_name("").join(target.split('#').next().unwrap_or(target));
            assert!(file.exists(), "{} links to {target}", document.display());
        }
    }
}
