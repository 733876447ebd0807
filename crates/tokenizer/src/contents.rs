//! Where the contents of messages are in the prompt that a chat template made of them.

use std::ops::Range;

/// Stands around the index of a message in an outline. A private-use character that no template writes.
pub(crate) const PLACEHOLDER: char = '\u{10fffd}';

/// Contents below this many bytes are not searched for: a short one is easily found in the template's own words, and KV of so
/// short a text is not reused anyway. Chosen.
const MIN_SEARCHED_BYTES: usize = 64;

/// Where a message's text is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    /// Index of the message.
    pub(crate) message: usize,
    /// Bytes of the prompt.
    pub(crate) bytes: Range<usize>,
}

/// Ranges of `contents` in `rendered`, or `None` when the template did more than write them, trimmed perhaps.
///
/// `outline` is the same template rendered with placeholders for the contents, so what is between two placeholders is the
/// template's own text. That tells a role name from a message that says the same.
pub(crate) fn locate(outline: &str, contents: &[&str], rendered: &str) -> Option<Vec<Located>> {
    let mut parts = outline.split(PLACEHOLDER);
    let first = parts.next().expect("a split has one part at least");
    let mut at = rendered.starts_with(first).then_some(first.len())?;
    let mut ranges = Vec::new();
    while let Some(index) = parts.next() {
        let message = index.parse::<usize>().ok()?;
        let content = contents.get(message)?;
        let following = parts.next()?;
        let is_here = |written: &&str| rendered[at..].strip_prefix(written).is_some_and(|rest| rest.starts_with(following));
        let written = [content, content.trim(), content.trim_start(), content.trim_end()].into_iter().find(is_here)?;
        if !written.is_empty() {
            ranges.push(Located { message, bytes: at..at + written.len() });
        }
        at += written.len() + following.len();
    }
    (at == rendered.len()).then_some(ranges)
}

/// Ranges of the longer ones of `contents` in `rendered`, searched in order. One that is not found is left out.
pub(crate) fn locate_by_search(contents: &[&str], rendered: &str) -> Vec<Located> {
    let mut at = 0;
    let mut ranges = Vec::new();
    let trimmed = contents.iter().map(|content| content.trim()).enumerate();
    for (message, content) in trimmed.filter(|(_, content)| content.len() >= MIN_SEARCHED_BYTES) {
        if let Some(found) = rendered[at..].find(content) {
            ranges.push(Located { message, bytes: at + found..at + found + content.len() });
            at += found + content.len();
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `outline` is written with `#` for the placeholder.
    #[track_caller]
    fn check(outline: &str, contents: &[&str], rendered: &str, expected: Option<&[&str]>) {
        let outline = outline.replace('#', &PLACEHOLDER.to_string());
        let found = locate(&outline, contents, rendered);
        let texts = found.map(|ranges| ranges.into_iter().map(|found| &rendered[found.bytes]).collect::<Vec<_>>());
        assert_eq!(texts.as_deref(), expected);
    }

    #[test]
    fn contents_are_found_between_the_templates_words() {
        check("<u>#0#</u><a>#1#</a>", &["hi", "ho"], "<u>hi</u><a>ho</a>", Some(&["hi", "ho"]));
    }

    #[test]
    fn a_content_that_says_what_the_template_says_is_told_apart() {
        let rendered = "user: user user: ";
        let outline = format!("user: {PLACEHOLDER}0{PLACEHOLDER} user: ");
        let found = locate(&outline, &["user"], rendered).unwrap();
        assert_eq!(found, [Located { message: 0, bytes: 6..10 }]);
    }

    #[test]
    fn a_trimmed_content_is_found() {
        check("<#0#>", &["  hi \n"], "<hi>", Some(&["hi"]));
        check("<#0#>", &["  "], "<>", Some(&[]));
    }

    #[test]
    fn contents_may_be_left_out_repeated_or_reordered() {
        check("#1#-#1#", &["a", "b"], "b-b", Some(&["b", "b"]));
    }

    #[test]
    fn a_content_that_was_changed_is_not_located() {
        check("<#0#>", &["think hi"], "<hi>", None);
        check("<#0#> and more", &["hi"], "<hi>", None);
        check("<#7#>", &["hi"], "<hi>", None);
    }

    #[test]
    fn a_search_finds_long_contents_only() {
        let long = "a long text ".repeat(8);
        let rendered = format!("system user: {long}; user: user");
        let found = locate_by_search(&["user", &long], &rendered);
        assert_eq!(found, [Located { message: 1, bytes: 13..13 + long.trim().len() }]);
    }
}
