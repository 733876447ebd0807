//! No circles of files inside a crate.
//!
//! A file depends on the files that define what it names, in an import or by a path. A re-export is no dependency: what a module exports
//! is of the file that defines it, so a parent that only declares and exports its children is in no circle. A parent that names an item of
//! a child, which names one of the parent's own, is in one. Calls of methods are not seen: the methods of a type may be spread over the
//! children of its file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::modules::{Dependencies, Modules};
use super::{LAYERING, crate_root, folder_of};

/// Crate, files of a circle, and the reason for it.
type Circle = (&'static str, &'static [&'static str], &'static str);

/// Circles that are meant: without them the code would be worse.
const MEANT: [Circle; 2] = [
    (
        "jinja",
        &["format.rs", "interpreter.rs", "interpreter/call.rs", "methods.rs", "strings.rs"],
        "an expression calls methods, and methods evaluate: `format` looks up attributes and items",
    ),
    (
        "jinja",
        &["loop_state.rs", "scope.rs", "value.rs", "value/dict.rs", "value/items.rs"],
        "a value may be a list, a dictionary, a loop or a macro with its scope, and all of these hold values",
    ),
];

#[test]
fn files_of_a_crate_form_no_circles() {
    let (mut unexpected, mut found) = (String::new(), BTreeSet::new());
    for (_, name, _) in LAYERING {
        let folder = folder_of(name).join("src");
        let modules = Modules::of_crate(&crate_root(name));
        let dependencies = modules.dependencies();
        for circle in circles(&dependencies) {
            let files = circle.iter().map(|file| file.strip_prefix(&folder).expect("a source of the crate"));
            let files: BTreeSet<_> = files.filter_map(Path::to_str).map(str::to_owned).collect();
            if !is_meant(name, &files) {
                unexpected += &format!("\n{name}: {}", describe(&circle, &dependencies, &folder));
            }
            found.insert((name, files));
        }
    }
    assert!(unexpected.is_empty(), "files depend on each other:{unexpected}");
    for (name, files, _) in MEANT {
        let files = files.iter().map(|&file| file.to_owned()).collect();
        assert!(found.contains(&(name, files)), "a circle of {name} is gone: take it off the list");
    }
}

fn is_meant(name: &str, files: &BTreeSet<String>) -> bool {
    MEANT.iter().any(|(of, listed, _)| *of == name && files.iter().eq(*listed))
}

/// Lists the dependencies inside `circle`.
fn describe(circle: &BTreeSet<&Path>, dependencies: &Dependencies<'_>, folder: &Path) -> String {
    let short = |file: &Path| file.strip_prefix(folder).unwrap_or(file).display().to_string();
    let mut text = String::new();
    for from in circle {
        for (to, paths) in dependencies[from].iter().filter(|(to, _)| circle.contains(*to)) {
            text += &format!("\n  {} names {paths:?} of {}", short(from), short(to));
        }
    }
    text
}

/// Returns the sets of several files that all depend on one another.
fn circles<'a>(dependencies: &Dependencies<'a>) -> BTreeSet<BTreeSet<&'a Path>> {
    let reached: BTreeMap<_, _> = dependencies.keys().map(|&file| (file, reached_from(file, dependencies))).collect();
    let circle_of = |file: &&'a Path| reached[file].iter().copied().filter(|other| reached[other].contains(file)).collect();
    dependencies.keys().map(circle_of).filter(|circle: &BTreeSet<_>| circle.len() > 1).collect()
}

/// Returns the files that `start` depends on, directly or not.
fn reached_from<'a>(start: &'a Path, dependencies: &Dependencies<'a>) -> BTreeSet<&'a Path> {
    let (mut reached, mut pending) = (BTreeSet::new(), vec![start]);
    while let Some(file) = pending.pop() {
        pending.extend(dependencies[file].keys().copied().filter(|&next| reached.insert(next)));
    }
    reached
}
