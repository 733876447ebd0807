//! Added tokens, whose text is matched in a prompt before pre-tokenization.

use std::collections::HashMap;
use std::ops::Range;

use regex::Regex;
use tokens::TokenId;

/// A token that is matched verbatim.
#[derive(Clone, Debug)]
pub(crate) struct AddedToken {
    /// Text of the token.
    pub(crate) text: String,
    /// Id of the token.
    pub(crate) id: TokenId,
    /// True if it is a control token and not text: `skip_special` omits it.
    pub(crate) is_special: bool,
    /// True if the token absorbs white space before it.
    pub(crate) takes_space_before: bool,
    /// True if the token absorbs white space after it.
    pub(crate) takes_space_after: bool,
}

/// Matcher of added tokens in text: leftmost first, and the longest of several.
pub(crate) struct AddedTokens {
    /// Expression of all added tokens; `None` without any.
    all: Option<Regex>,
    /// Expression of those that are text; `None` without any.
    plain: Option<Regex>,
    tokens: HashMap<String, AddedToken>,
}

/// A segment of a prompt.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Segment<'a> {
    /// Text to pre-tokenize and merge.
    Text(&'a str),
    /// An added token and its length in bytes.
    Added(TokenId, usize),
}

impl AddedTokens {
    /// Compiles a matcher for `tokens`.
    pub(crate) fn new(tokens: &[AddedToken]) -> Result<Self, regex::Error> {
        let plain: Vec<&AddedToken> = tokens.iter().filter(|token| !token.is_special).collect();
        Ok(Self {
            all: any_of(tokens.iter())?,
            plain: any_of(plain.into_iter())?,
            tokens: tokens.iter().map(|token| (token.text.clone(), token.clone())).collect(),
        })
    }

    /// Splits `text` at its added tokens into non-empty segments. Special tokens that overlap one of `inputs`, which are sorted and
    /// disjoint, are not matched: the caller's input is text.
    pub(crate) fn segments<'a>(&self, text: &'a str, inputs: &[Range<usize>]) -> Vec<Segment<'a>> {
        let mut segments = Vec::new();
        let mut at = 0;
        while let Some((range, id)) = self.next(text, at, inputs) {
            let range = self.with_space(text, at, range);
            if at < range.start {
                segments.push(Segment::Text(&text[at..range.start]));
            }
            segments.push(Segment::Added(id, range.len()));
            at = range.end;
        }
        if at < text.len() {
            segments.push(Segment::Text(&text[at..]));
        }
        segments
    }

    /// Extends `range` by the white space that belongs to its token, back to `from` at most.
    fn with_space(&self, text: &str, from: usize, range: Range<usize>) -> Range<usize> {
        let token = &self.tokens[&text[range.clone()]];
        let start = if token.takes_space_before { from + text[from..range.start].trim_end().len() } else { range.start };
        let after = &text[range.end..];
        let end = if token.takes_space_after { range.end + after.len() - after.trim_start().len() } else { range.end };
        start..end
    }

    /// True if `inputs` prevent a special token in `text` from being matched.
    pub(crate) fn are_restricted(&self, text: &str, inputs: &[Range<usize>]) -> bool {
        let is_restricted = |found: regex::Match<'_>| self.tokens[found.as_str()].is_special && touches(inputs, &found.range());
        self.all.iter().flat_map(|all| all.find_iter(text)).any(is_restricted)
    }

    /// Returns the first added token at or after `from`.
    fn next(&self, text: &str, from: usize, inputs: &[Range<usize>]) -> Option<(Range<usize>, TokenId)> {
        let all = self.all.as_ref()?;
        let mut at = from;
        loop {
            let found = all.find_at(text, at)?;
            if let Some(accepted) = self.accepted(text, &found, inputs) {
                return Some(accepted);
            }
            at = found.start() + text[found.start()..].chars().next().map_or(1, char::len_utf8);
        }
    }

    /// Returns the token that starts at the start of `found`; it may be shorter than `found`.
    fn accepted(&self, text: &str, found: &regex::Match<'_>, inputs: &[Range<usize>]) -> Option<(Range<usize>, TokenId)> {
        let token = &self.tokens[found.as_str()];
        if !token.is_special || !touches(inputs, &found.range()) {
            return Some((found.range(), token.id));
        }
        let start = found.start();
        let starts_here = |regex: &Regex, text: &str| {
            regex.find_at(text, start).filter(|found| found.start() == start).map(|found| found.range())
        };
        let plain = self.plain.as_ref().and_then(|plain| starts_here(plain, text));
        // Text before the next input may hold a special token written by the template.
        let next_input = inputs.partition_point(|input| input.end <= start);
        let of_template = match inputs.get(next_input) {
            Some(input) if input.start > start => self.all.as_ref().and_then(|all| starts_here(all, &text[..input.start])),
            _ => None,
        };
        let longest = plain.into_iter().chain(of_template).max_by_key(ExactSizeIterator::len)?;
        let id = self.tokens[&text[longest.clone()]].id;
        Some((longest, id))
    }
}

/// True if `range` overlaps one of `inputs`.
fn touches(inputs: &[Range<usize>], range: &Range<usize>) -> bool {
    let first = inputs.partition_point(|input| input.end <= range.start);
    inputs.get(first).is_some_and(|input| input.start < range.end)
}

/// Builds an expression that matches any of `tokens`, longest first, because the first matching alternative is taken.
fn any_of<'a>(tokens: impl Iterator<Item = &'a AddedToken>) -> Result<Option<Regex>, regex::Error> {
    let mut texts: Vec<&str> = tokens.map(|token| token.text.as_str()).filter(|text| !text.is_empty()).collect();
    texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
    let alternatives: Vec<String> = texts.iter().map(|text| regex::escape(text)).collect();
    if alternatives.is_empty() { Ok(None) } else { Regex::new(&alternatives.join("|")).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added() -> AddedTokens {
        let token = |(text, id): (&str, u32)| AddedToken {
            text: text.to_owned(),
            id: TokenId(id),
            is_special: id != 3,
            takes_space_before: false,
            takes_space_after: id == 4,
        };
        let added: Vec<_> = [("<a>", 1), ("<a><b>", 2), ("|", 3), ("<e>", 4)].into_iter().map(token).collect();
        AddedTokens::new(&added).unwrap()
    }

    #[track_caller]
    fn check(text: &str, expected: &[Segment<'_>]) {
        assert_eq!(added().segments(text, &[]), expected);
    }

    /// Substitutes `input`, which represents the caller's input, for `#`.
    #[track_caller]
    fn check_input(template: &str, input: &str, expected: &[Segment<'_>]) {
        let mut inputs = Vec::new();
        let mut text = String::new();
        for (index, part) in template.split('#').enumerate() {
            if index > 0 {
                inputs.push(text.len()..text.len() + input.len());
                text.push_str(input);
            }
            text.push_str(part);
        }
        assert_eq!(added().segments(&text, &inputs), expected);
        let is_restricted = added().segments(&text, &[]) != expected;
        assert_eq!(added().are_restricted(&text, &inputs), is_restricted);
    }

    #[test]
    fn white_space_may_belong_to_a_token() {
        check("x <e> \ny", &[Segment::Text("x "), Segment::Added(TokenId(4), 5), Segment::Text("y")]);
    }

    #[test]
    fn what_the_caller_wrote_is_text() {
        check_input("<a>#", "<a>", &[Segment::Added(TokenId(1), 3), Segment::Text("<a>")]);
        check_input("#", "x<a><b>", &[Segment::Text("x<a><b>")]);
    }

    #[test]
    fn a_token_cannot_be_completed_by_the_caller() {
        check_input("<#>", "a", &[Segment::Text("<a>")]);
        check_input("<a#", ">", &[Segment::Text("<a>")]);
        check_input("#a>", "<", &[Segment::Text("<a>")]);
        check_input("<a>#", "<b>", &[Segment::Added(TokenId(1), 3), Segment::Text("<b>")]);
    }

    #[test]
    fn tokens_that_are_text_are_found_everywhere() {
        check_input("#<a>", "|<a>", &[Segment::Added(TokenId(3), 1), Segment::Text("<a>"), Segment::Added(TokenId(1), 3)]);
    }

    #[test]
    fn the_longest_token_wins() {
        check("x<a><b><a>", &[Segment::Text("x"), Segment::Added(TokenId(2), 6), Segment::Added(TokenId(1), 3)]);
    }

    #[test]
    fn text_is_matched_literally() {
        check("a|b", &[Segment::Text("a"), Segment::Added(TokenId(3), 1), Segment::Text("b")]);
    }

    #[test]
    fn text_without_tokens_is_one_segment() {
        check("<b>", &[Segment::Text("<b>")]);
        check("", &[]);
    }
}
