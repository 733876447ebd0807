//! Modules of a crate, and the files whose items each of them names.
//!
//! Reads tokens, not types: a call of a method names no file. Skips attributes, and items for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// Names from the crate's root to a module or an item, as `["scheduler", "seats"]`.
type Names = Vec<String>;

/// Files with the files that each depends on, and the paths by which it names their items.
pub(super) type Dependencies<'a> = BTreeMap<&'a Path, BTreeMap<&'a Path, BTreeSet<String>>>;

/// All modules of a crate, by their names.
#[derive(Default)]
pub(super) struct Modules {
    by_names: BTreeMap<Names, Module>,
}

#[derive(Default)]
struct Module {
    file: PathBuf,
    /// Paths of imported and re-exported items, by the names that they have here.
    imports: BTreeMap<String, Names>,
    /// Paths that the code names, imports included and re-exports not.
    paths: BTreeSet<Names>,
}

impl Modules {
    /// Reads the modules of the crate whose root is `file`.
    pub(super) fn of_crate(file: &Path) -> Self {
        let mut modules = Self::default();
        modules.read_file(&Vec::new(), file);
        modules
    }

    /// Returns the dependencies between its files.
    pub(super) fn dependencies(&self) -> Dependencies<'_> {
        let mut files = Dependencies::new();
        for (names, module) in &self.by_names {
            let named = files.entry(&module.file).or_default();
            for path in &module.paths {
                match self.file_of(names, path) {
                    Some(file) if file != module.file => drop(named.entry(file).or_default().insert(path.join("::"))),
                    _ => {}
                }
            }
        }
        files
    }

    fn read_file(&mut self, names: &Names, file: &Path) {
        let text = super::read(file);
        let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.by_names.insert(names.clone(), Module { file: file.to_owned(), ..Module::default() });
        self.read_tokens(names, tokens);
    }

    fn read_tokens(&mut self, names: &Names, tokens: TokenStream) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let mut rest = &tokens[..];
        while let Some((first, after)) = rest.split_first() {
            rest = match (first, after) {
                (TokenTree::Punct(hash), [TokenTree::Group(attribute), after @ ..]) if hash.as_char() == '#' => {
                    if is_for_tests(attribute) { after_item(after) } else { after }
                }
                (TokenTree::Ident(word), [TokenTree::Ident(name), inner, after @ ..]) if word == "mod" => {
                    self.read_module(names, &name.to_string(), inner);
                    after
                }
                (TokenTree::Ident(word), _) if word == "pub" => {
                    let after = if matches!(after, [TokenTree::Group(_), ..]) { &after[1..] } else { after };
                    self.read_use(names, after, false).unwrap_or(after)
                }
                (TokenTree::Ident(word), _) if word == "use" => self.read_use(names, rest, true).unwrap_or(after),
                (TokenTree::Ident(_), _) => {
                    let (path, after) = read_path(rest);
                    self.module(names).paths.insert(path);
                    after
                }
                // The second dot of a range comes before a path.
                (dot, [second, after @ ..]) if is(dot, '.') && is(second, '.') => after,
                // What follows `a.` or `<A as B>::` is a member of a type.
                (dot, [TokenTree::Ident(_), after @ ..]) if is(dot, '.') => after,
                (colon, [second, TokenTree::Ident(_), after @ ..]) if is(colon, ':') && is(second, ':') => after,
                (TokenTree::Group(group), _) => {
                    self.read_tokens(names, group.stream());
                    after
                }
                _ => after,
            };
        }
    }

    /// Reads an import, if `tokens` starts with one, and returns what follows. One that only exports names nothing by itself.
    fn read_use<'a>(&mut self, names: &Names, tokens: &'a [TokenTree], is_named: bool) -> Option<&'a [TokenTree]> {
        let (word, tree) = tokens.split_first()?;
        // `use<..>` is the bound of a type.
        if word.to_string() != "use" || tree.first().is_none_or(|token| is(token, '<')) {
            return None;
        }
        let len = tree.iter().position(|token| is(token, ';'))?;
        self.module(names).read_imports(&mut Vec::new(), &tree[..len], is_named);
        Some(&tree[len..])
    }

    /// Reads the module `name` of `parent`: `inner` is its body or `;`.
    fn read_module(&mut self, parent: &Names, name: &str, inner: &TokenTree) {
        let names: Names = parent.iter().map(String::as_str).chain([name]).map(str::to_owned).collect();
        let parent_file = self.module(parent).file.clone();
        match inner {
            TokenTree::Group(body) => {
                self.by_names.insert(names.clone(), Module { file: parent_file, ..Module::default() });
                self.read_tokens(&names, body.stream());
            }
            _ => {
                let is_folder = matches!(parent_file.file_stem().and_then(|stem| stem.to_str()), Some("lib" | "main" | "mod"));
                let folder = if is_folder { parent_file.with_file_name("") } else { parent_file.with_extension("") };
                let candidates = [folder.join(format!("{name}.rs")), folder.join(name).join("mod.rs")];
                let file = candidates.iter().find(|file| file.is_file());
                self.read_file(&names, file.unwrap_or_else(|| panic!("none of {candidates:?} is there")));
            }
        }
    }

    fn module(&mut self, names: &Names) -> &mut Module {
        self.by_names.get_mut(names).expect("a module is inserted before it is read")
    }

    /// Returns the file that defines what the module `here` calls `path`; `None` for a module and for what is not of this crate.
    fn file_of(&self, here: &Names, path: &[String]) -> Option<&Path> {
        let module = self.by_names.get(here)?;
        let (first, rest) = path.split_first()?;
        let child: Names = here.iter().chain([first]).cloned().collect();
        match first.as_str() {
            "crate" => self.file_below(&Vec::new(), rest),
            "self" => self.file_below(here, rest),
            "super" => self.file_of_parent(here, rest),
            _ if self.by_names.contains_key(&child) => self.file_below(&child, rest),
            // An item of this file, a name of another crate, or an import, which counts once under its own path.
            _ => match module.imports.get(first) {
                Some(import) if import[0] != *first => self.file_of(here, &[import, rest].concat()),
                _ => None,
            },
        }
    }

    fn file_of_parent(&self, here: &Names, path: &[String]) -> Option<&Path> {
        let (_, parent) = here.split_last()?;
        self.file_of(&parent.to_vec(), &[&["self".to_owned()], path].concat())
    }

    /// Returns the file of `path` as named from the module `here`. What `here` re-exports is of the file that defines it.
    fn file_below(&self, here: &Names, path: &[String]) -> Option<&Path> {
        let module = self.by_names.get(here)?;
        let (first, rest) = path.split_first()?;
        let child: Names = here.iter().chain([first]).cloned().collect();
        let has_child = self.by_names.contains_key(&child);
        match module.imports.get(first) {
            _ if first == "super" => self.file_of_parent(here, rest),
            // A function may have the name of the module that it comes from.
            import if has_child && (import.is_none() || !rest.is_empty()) => self.file_below(&child, rest),
            // A macro is exported by an import of itself.
            Some(import) if has_child || import[0] != *first => self.file_of(here, &[import, rest].concat()),
            _ => Some(&module.file),
        }
    }
}

impl Module {
    /// Reads a tree of imports below `prefix`.
    fn read_imports(&mut self, prefix: &mut Names, tree: &[TokenTree], is_named: bool) {
        let num_outer = prefix.len();
        let (path, rest) = read_path(tree);
        prefix.extend(path.into_iter().filter(|name| num_outer == 0 || name != "self"));
        match rest {
            [TokenTree::Group(group), ..] => {
                let parts: Vec<_> = group.stream().into_iter().collect();
                parts
                    .split(|token| is(token, ','))
                    .filter(|part| !part.is_empty())
                    .for_each(|part| self.read_imports(prefix, part, is_named));
            }
            [TokenTree::Punct(_), ..] => drop(self.paths.insert([&prefix[..], &["*".to_owned()]].concat())),
            _ => {
                let alias = rest.get(1).map(TokenTree::to_string);
                let name = alias.or_else(|| prefix.last().cloned()).unwrap_or_default();
                self.imports.insert(name, prefix.clone());
                if is_named {
                    self.paths.insert(prefix.clone());
                }
            }
        }
        prefix.truncate(num_outer);
    }
}

/// Reads `a::b::c`; returns it with what follows, without a `::` between them.
fn read_path(mut tokens: &[TokenTree]) -> (Names, &[TokenTree]) {
    let mut names = Vec::new();
    while let [TokenTree::Ident(name), rest @ ..] = tokens {
        names.push(name.to_string());
        match rest {
            [colon, second, rest @ ..] if is(colon, ':') && is(second, ':') => tokens = rest,
            rest => return (names, rest),
        }
    }
    (names, tokens)
}

fn is(token: &TokenTree, character: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == character)
}

fn is_for_tests(attribute: &Group) -> bool {
    let text = attribute.stream().to_string().replace(' ', "");
    text == "cfg(test)" || text.starts_with("cfg(all(test,")
}

/// Returns what follows the item, field or statement at the start of `tokens`.
fn after_item(tokens: &[TokenTree]) -> &[TokenTree] {
    let ends = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        token => is(token, ';'),
    };
    let len = tokens.iter().position(ends).map_or(tokens.len(), |index| index + 1);
    &tokens[len..]
}

#[test]
fn a_file_depends_on_the_files_that_define_what_it_names() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let files = [
        ("lib.rs", "mod a; mod b; pub use a::{A, deep::Deep}; pub use b::b;"),
        ("a.rs", "pub(crate) mod deep; use std::fmt; pub struct A; fn f() -> fmt::Result { vec![crate::b()].len(); Ok(()) }"),
        ("a/deep.rs", "pub(super) struct Deep; #[cfg(test)] mod tests { use super::super::A; }"),
        (
            "b.rs",
            "use crate::a as other; /// crate::Deep\npub fn b(_: &other::A, x: &str) { let _ = (0..super::Deep::N, x.a()); }",
        ),
    ];
    std::fs::create_dir(folder.path().join("a")).expect("a new folder");
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).expect("a new file");
    }
    let modules = Modules::of_crate(&folder.path().join("lib.rs"));
    let short = |file: &Path| file.strip_prefix(folder.path()).expect("a file in the folder").display().to_string();
    let found = modules.dependencies();
    let found = found.iter().flat_map(|(from, to)| to.keys().map(|to| (short(from), short(to))));
    let expected = [("a.rs", "b.rs"), ("b.rs", "a/deep.rs"), ("b.rs", "a.rs")];
    assert_eq!(found.collect::<Vec<_>>(), expected.map(|(from, to)| (from.to_owned(), to.to_owned())));
}
