//! Whitespace that means nothing, made one.
//!
//! Text that was pasted, converted or wrapped has other blanks, and other tokens, where it reads the same: with `kv_sharing.normalize` a
//! request asks for all of that to be written one way before it is tokenized, so that more of it is found. What the model reads changes,
//! so it is never done unasked.

use std::borrow::Cow;

/// Begins and ends a block of code.
const FENCES: [&str; 2] = ["```", "~~~"];

/// `text` with `\n` for `\r\n`, one blank for a run of blanks and tabs inside a line, none at the end of a line, and at most one empty line in
/// a row. Indentation stays, and so does everything between code fences.
pub(crate) fn normalized(text: &str) -> Cow<'_, str> {
    let mut result = String::with_capacity(text.len());
    let (mut is_code, mut num_empty) = (false, 0);
    for (idx, line) in text.split('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        let is_fence = FENCES.iter().any(|fence| line.trim_start().starts_with(fence));
        let is_empty = !is_code && line.trim().is_empty();
        num_empty = if is_empty { num_empty + 1 } else { 0 };
        if num_empty > 1 && idx > 1 {
            continue;
        }
        if idx > 0 {
            result.push('\n');
        }
        match is_code || is_fence {
            true => result.push_str(line),
            false => push_line(&mut result, line),
        }
        is_code ^= is_fence;
    }
    if result == text { Cow::Borrowed(text) } else { Cow::Owned(result) }
}

fn push_line(result: &mut String, line: &str) {
    let line = line.trim_end_matches([' ', '\t']);
    let indentation = line.len() - line.trim_start_matches([' ', '\t']).len();
    result.push_str(&line[..indentation]);
    let mut is_blank = false;
    for char in line[indentation..].chars() {
        let was_blank = std::mem::replace(&mut is_blank, matches!(char, ' ' | '\t'));
        match (was_blank, is_blank) {
            (true, true) => {}
            (_, true) => result.push(' '),
            _ => result.push(char),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(normalized(text), expected);
        assert_eq!(normalized(expected), expected, "once is enough");
    }

    #[test]
    fn blanks_that_mean_nothing_become_one() {
        check("a  b\t\tc \r\nd", "a b c\nd");
        check("a\n\n\n\nb\n", "a\n\nb\n");
        check("  - a   b  \n", "  - a b\n");
        check("", "");
        check("   ", "");
        check("a\u{a0}\u{a0}b", "a\u{a0}\u{a0}b");
    }

    #[test]
    fn code_stays_as_it_is() {
        check("x  y\n```\na  =  1   \n\n\n\nb\n```\nx  y", "x y\n```\na  =  1   \n\n\n\nb\n```\nx y");
        check("    if  a:\n        b", "    if a:\n        b");
    }

    #[test]
    fn what_needs_nothing_is_not_copied() {
        assert!(matches!(normalized("a b\n\nc"), Cow::Borrowed(_)));
    }
}
