//! Paths that tests need: as they were when the tests were built, or next to the test binary if it was copied to another machine.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Returns the binary under test.
pub(crate) fn kvshare() -> &'static Path {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let built = Path::new(env!("CARGO_BIN_EXE_kvshare"));
        let tests = std::env::current_exe().expect("the test runs from a file");
        // Cargo puts tests one folder below binaries.
        let beside = tests.ancestors().skip(1).take(2).map(|folder| folder.join("kvshare"));
        first_there(std::iter::once(built.to_owned()).chain(beside), "kvshare", Path::is_file)
    })
}

/// Returns the repository: where it was built, or the working directory or a folder above that.
pub(crate) fn repository() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let here = std::env::current_dir().expect("there is a working directory");
        let above = here.ancestors().map(Path::to_owned).collect::<Vec<_>>();
        first_there(std::iter::once(built).chain(above), "the repository", |folder| folder.join("tests/fixtures").is_dir())
    })
}

/// Returns a folder for files that tests write and may find again.
pub(crate) fn scratch() -> PathBuf {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR"));
    if built.is_dir() { built.to_owned() } else { std::env::temp_dir() }
}

fn first_there(places: impl Iterator<Item = PathBuf>, what: &str, is_there: impl Fn(&Path) -> bool) -> PathBuf {
    let places: Vec<PathBuf> = places.collect();
    places.iter().find(|place| is_there(place)).unwrap_or_else(|| panic!("{what} is in none of {places:?}")).clone()
}

#[test]
fn a_place_that_is_gone_is_looked_for_elsewhere() {
    let places = ["/no/such/folder", "/tmp/..", "/"].map(PathBuf::from);
    assert_eq!(first_there(places.into_iter(), "a folder", Path::is_dir), Path::new("/tmp/.."));
    assert!(kvshare().is_file() && repository().join("Cargo.toml").is_file() && scratch().is_dir());
}
