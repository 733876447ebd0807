//! The `openai` Python package against the daemon.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::daemon::{Daemon, MODEL};
use crate::places::{repository, scratch};

/// Runs `command` and returns its output; panics with that if it fails.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let printed = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{command:?} ended with {}:\n{printed}", output.status);
    printed
}

/// Returns a Python with the pinned packages of `requirements`, made once and kept in the target folder under `name`.
fn python_with(requirements: &Path, name: &str) -> PathBuf {
    let venv = scratch().join(format!("{name}-venv"));
    let python = venv.join("bin/python");
    if !python.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv));
    }
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(requirements));
    python
}

/// Runs the tests in `tests/NAME_sdk` with the package that they pin, against a daemon with a small sentence encoder.
pub(crate) async fn tour(name: &str) {
    let folder = repository().join(format!("tests/{name}_sdk"));
    let encoder = repository().join("tests/fixtures/tiny/bert");
    let python = python_with(&folder.join("requirements.txt"), name);
    let daemon = Daemon::start(&["--embedding-model", encoder.to_str().unwrap()]).await;
    let mut test = Command::new(python);
    test.arg("-B").arg(folder.join("test_sdk.py")).args([&daemon.url, MODEL]);
    let printed = tokio::task::spawn_blocking(move || run(&mut test)).await.expect("a failure shows what Python printed");
    assert!(printed.contains("\nOK"), "{printed}");
}

#[tokio::test]
async fn the_openai_package_works_unchanged() {
    tour("openai").await;
}
