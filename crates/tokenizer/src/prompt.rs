//! Encoded prompts, and the token ranges that belong to the template.

use std::ops::Range;

use tokens::{TokenId, TokenRange};

use crate::contents::Located;

/// An encoded prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodedPrompt {
    /// Tokens of the prompt.
    pub token_ids: Vec<TokenId>,
    /// Positions of tokens that do not come from the caller's own text: special tokens, roles, line breaks and default prompts of a chat
    /// template. Sorted and disjoint. KV of earlier prompts is never copied to them.
    pub template: Vec<TokenRange>,
    /// Starts of the texts of messages, by position. Omits empty texts and those that the template rewrote. A text without a conversation
    /// is message 0.
    pub contents: Vec<ContentStart>,
}

/// Start of the text of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentStart {
    /// Index of the message.
    pub message: u32,
    /// Position of the first token that lies wholly within its text.
    pub position: u32,
}

/// A token and the byte range of the prompt that it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenSpan {
    pub(crate) id: TokenId,
    pub(crate) bytes: Range<usize>,
}

/// Returns the positions of tokens that are special or not wholly inside one of `contents`, which are sorted and disjoint.
///
/// A token that crosses the border of a content belongs to the template, because it changes with the template.
pub(crate) fn template_ranges(
    spans: &[TokenSpan],
    contents: &[Range<usize>],
    is_special: impl Fn(TokenId) -> bool,
) -> Vec<TokenRange> {
    let mut ranges: Vec<TokenRange> = Vec::new();
    let mut contents = contents.iter().peekable();
    for (pos, span) in (0u32..).zip(spans) {
        while contents.next_if(|content| content.end < span.bytes.end).is_some() {}
        let is_inside = contents.peek().is_some_and(|content| content.start <= span.bytes.start) && !span.bytes.is_empty();
        if is_inside && !is_special(span.id) {
            continue;
        }
        match ranges.last_mut() {
            Some(last) if last.end == pos => last.end += 1,
            _ => ranges.push(TokenRange::new(pos, pos + 1)),
        }
    }
    ranges
}

/// Returns the position of the first token that begins in each of `contents`, which are sorted and disjoint. Of several pieces of one
/// message, the first counts.
pub(crate) fn content_starts(spans: &[TokenSpan], contents: &[Located]) -> Vec<ContentStart> {
    let first_in = |content: &Located| {
        let index = spans.partition_point(|span| span.bytes.start < content.bytes.start);
        let is_inside = spans.get(index).is_some_and(|span| span.bytes.start < content.bytes.end);
        is_inside.then(|| ContentStart { message: to_u32(content.message), position: to_u32(index) })
    };
    let mut starts: Vec<ContentStart> = contents.iter().filter_map(first_in).collect();
    starts.dedup_by_key(|start| start.message);
    starts
}

fn to_u32(index: usize) -> u32 {
    u32::try_from(index).expect("a prompt has less than 2^32 tokens and messages")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds consecutive tokens of the given lengths; token 9 is special.
    #[track_caller]
    fn check(tokens: &[(u32, usize)], contents: &[(usize, usize)], expected: &[(u32, u32)]) {
        let contents: Vec<_> = contents.iter().map(|&(start, end)| start..end).collect();
        let mut at = 0;
        let spans: Vec<_> = tokens
            .iter()
            .map(|&(id, len)| {
                at += len;
                TokenSpan { id: TokenId(id), bytes: at - len..at }
            })
            .collect();
        let expected: Vec<_> = expected.iter().map(|&(start, end)| TokenRange::new(start, end)).collect();
        assert_eq!(template_ranges(&spans, &contents, |id| id.0 == 9), expected);
    }

    #[test]
    fn tokens_outside_of_contents_are_the_templates() {
        check(&[(1, 2), (2, 3), (3, 3), (4, 1)], &[(2, 8)], &[(0, 1), (3, 4)]);
    }

    #[test]
    fn a_token_over_a_border_is_the_templates() {
        check(&[(1, 2), (2, 3), (3, 3), (4, 2)], &[(3, 9)], &[(0, 2), (3, 4)]);
    }

    #[test]
    fn a_special_token_inside_a_content_is_the_templates() {
        check(&[(1, 2), (9, 3), (1, 2)], &[(0, 7)], &[(1, 2)]);
    }

    #[test]
    fn contents_that_touch_do_not_share_a_token() {
        check(&[(1, 2), (2, 2), (3, 2)], &[(0, 3), (3, 6)], &[(1, 2)]);
    }
}
