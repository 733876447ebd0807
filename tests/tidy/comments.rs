//! Openings of doc comments: a comment says first what acts, or what a thing is.

use proc_macro2::{TokenStream, TokenTree};

use super::{read, tracked_files};

/// Words that leave the subject of a sentence to its end.
const OPENINGS: [&str; 10] = ["what", "whether", "who", "whose", "whom", "how", "where", "which", "why", "when"];

/// Doc comments that open with one of [`OPENINGS`].
///
/// Reads tokens, where a comment of any form is an attribute: `///`, `//!`, `/**`, `/*!` and `#[doc = ""]`.
#[derive(Default)]
struct Riddles {
    found: Vec<String>,
    /// True inside a doc comment that has its first word.
    has_opened: bool,
}

impl Riddles {
    fn of_source(source: &str) -> Vec<String> {
        let mut riddles = Self::default();
        riddles.read(source.parse().expect("cargo has read it"));
        riddles.found
    }

    fn read(&mut self, tokens: TokenStream) {
        let mut is_attribute = false;
        for token in tokens {
            match token {
                TokenTree::Punct(mark) if mark.as_char() == '#' => {
                    is_attribute = true;
                    continue;
                }
                TokenTree::Punct(mark) if mark.as_char() == '!' && is_attribute => continue,
                TokenTree::Group(group) => match doc_text(group.stream()).filter(|_| is_attribute) {
                    Some(text) => self.add(&text),
                    None => {
                        self.has_opened = false;
                        self.read(group.stream());
                        self.has_opened = false;
                    }
                },
                _ => self.has_opened = false,
            }
            is_attribute = false;
        }
    }

    /// Adds one attribute; consecutive ones are one comment.
    fn add(&mut self, text: &str) {
        let word = text.split(|c: char| !c.is_alphabetic()).find(|word| !word.is_empty());
        let Some(word) = word.filter(|_| !self.has_opened) else { return };
        self.has_opened = true;
        if OPENINGS.contains(&word.to_lowercase().as_str()) {
            self.found.push(text.trim().to_owned());
        }
    }
}

/// Returns the text of a `doc = ""` in an attribute.
fn doc_text(attribute: TokenStream) -> Option<String> {
    let tokens: Vec<_> = attribute.into_iter().collect();
    let direct = tokens.windows(3).find_map(|tokens| match tokens {
        [TokenTree::Ident(name), TokenTree::Punct(mark), TokenTree::Literal(text)] if name == "doc" && mark.as_char() == '=' => {
            Some(text.to_string())
        }
        _ => None,
    });
    let text = direct.map(|text| text.trim_start_matches('r').trim_matches(['#', '"']).replace("\\n", "\n").replace("\\t", "\t"));
    let nested = |token| if let TokenTree::Group(group) = token { doc_text(group.stream()) } else { None };
    text.or_else(|| tokens.into_iter().find_map(nested))
}

#[test]
fn doc_comments_open_with_what_acts() {
    let is_source = |file: &std::path::PathBuf| file.extension().is_some_and(|extension| extension == "rs");
    for source in tracked_files().into_iter().filter(is_source) {
        let riddles = Riddles::of_source(&read(&source));
        assert!(riddles.is_empty(), "{}: {riddles:#?}", source.display());
    }
}

#[test]
fn openings_are_found_in_comments_of_every_form() {
    let forms = [
        "/// What",
        "///What",
        "///\n/// whether it is",
        "/// `Who` is",
        "/// Whose: a name",
        "/** Whom */",
        "/**\n * How\n */",
        "#[doc = \"Where\"]",
        "#[doc = r#\"Which\"#]",
        "#[cfg_attr(test, doc = \"Why\")]",
        "#[derive(Debug)]\n/// When",
    ];
    for form in forms {
        assert_eq!(Riddles::of_source(&format!("{form}\nstruct S;")).len(), 1, "{form}");
        assert_eq!(Riddles::of_source(&format!("/// A shape.\nenum E {{\n{form}\nA }}")).len(), 1, "{form}");
        assert!(
            Riddles::of_source(&format!("/// Says\n{}\nstruct S;", form.replace("#[derive(Debug)]\n", ""))).is_empty(),
            "{form}"
        );
    }
    for inner in ["//! What", "/*! What */", "#![doc = \"What\"]"] {
        assert_eq!(Riddles::of_source(inner).len(), 1, "{inner}");
    }
    for fine in ["// What", "//// What", "/* What */", "/// Whatever", "fn f() { let doc = \"What\"; }"] {
        assert!(Riddles::of_source(fine).is_empty(), "{fine}");
    }
}
