//! Tokens whose text is taken out of a prompt before anything else is cut.

use std::collections::HashMap;

use regex::Regex;
use tokens::TokenId;

/// One token that is matched as it is written.
#[derive(Clone, Debug)]
pub(crate) struct AddedToken {
    /// Its text.
    pub(crate) text: String,
    /// Its id.
    pub(crate) id: TokenId,
    /// Whether it steers the model and is no text: left out by `skip_special`.
    pub(crate) is_special: bool,
}

/// Finds added tokens in text: the leftmost first, and of several the longest.
pub(crate) struct AddedTokens {
    /// `None` when there are none.
    regex: Option<Regex>,
    ids: HashMap<String, TokenId>,
}

/// A stretch of a prompt.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Segment<'a> {
    /// Text to cut and merge.
    Text(&'a str),
    /// An added token and its length in bytes.
    Added(TokenId, usize),
}

impl AddedTokens {
    /// A matcher for `tokens`.
    pub(crate) fn new(tokens: &[AddedToken]) -> Result<Self, regex::Error> {
        let mut texts: Vec<&str> = tokens.iter().map(|token| token.text.as_str()).filter(|text| !text.is_empty()).collect();
        // The expression takes the first alternative that matches.
        texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
        let alternatives: Vec<String> = texts.iter().map(|text| regex::escape(text)).collect();
        let regex = if alternatives.is_empty() { None } else { Some(Regex::new(&alternatives.join("|"))?) };
        Ok(Self { regex, ids: tokens.iter().map(|token| (token.text.clone(), token.id)).collect() })
    }

    /// `text`, cut at its added tokens; no segment is empty.
    pub(crate) fn segments<'a>(&self, text: &'a str) -> Vec<Segment<'a>> {
        let mut segments = Vec::new();
        let mut at = 0;
        for found in self.regex.iter().flat_map(|regex| regex.find_iter(text)) {
            if at < found.start() {
                segments.push(Segment::Text(&text[at..found.start()]));
            }
            segments.push(Segment::Added(self.ids[found.as_str()], found.len()));
            at = found.end();
        }
        if at < text.len() {
            segments.push(Segment::Text(&text[at..]));
        }
        segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[Segment<'_>]) {
        let token = |(text, id): (&str, u32)| AddedToken { text: text.to_owned(), id: TokenId(id), is_special: true };
        let added: Vec<_> = [("<a>", 1), ("<a><b>", 2), ("|", 3)].into_iter().map(token).collect();
        assert_eq!(AddedTokens::new(&added).unwrap().segments(text), expected);
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
