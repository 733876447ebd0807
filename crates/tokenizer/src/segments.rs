//! Starts of prompt segments that do not depend on preceding text: messages, paragraphs, sections.
//!
//! KV of such a segment is the most likely to be reusable elsewhere. Only text is examined, so prompts of token ids have segments too.

use std::borrow::Cow;

use tokens::{TableRows, TokenRange};

use crate::ContentStart;
use crate::enumeration::labels;
use crate::tables::{TableText, tables};

/// Rule that determines where segments begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SegmentRule {
    /// A message, a paragraph after a blank line, a heading (a line of 1 to 6 `#` and a space), an enumeration label (`[3] `), and the
    /// text after it.
    Text,
    /// Only what the caller named.
    Named {
        /// Indices of messages.
        messages: Vec<u32>,
        /// Non-empty texts; a segment begins after each occurrence of any of them.
        separators: Vec<String>,
    },
}

impl SegmentRule {
    /// Returns the rule for a conversation with `num_inserted` further messages before its first one.
    #[must_use]
    pub fn after_messages(mut self, num_inserted: usize) -> Self {
        if let Self::Named { messages, .. } = &mut self {
            messages.iter_mut().for_each(|message| *message += num_inserted as u32);
        }
        self
    }
}

/// Text of a prompt, and the start of each of its tokens in it.
pub(crate) struct TokenText {
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

/// Longest run of `#` that makes a heading (CommonMark 0.31, section 4.2).
const MAX_HEADING_LEVEL: usize = 6;

impl TokenText {
    /// Builds the text from the bytes of each token.
    pub(crate) fn new<'a>(tokens: impl Iterator<Item = &'a [u8]>) -> Self {
        let (mut bytes, mut starts) = (Vec::new(), Vec::new());
        for token in tokens {
            starts.push(bytes.len());
            bytes.extend_from_slice(token);
        }
        Self { bytes, starts }
    }

    /// Returns the text with `?` in place of each byte that is not part of a character, which preserves offsets.
    fn as_str(&self) -> Cow<'_, str> {
        match std::str::from_utf8(&self.bytes) {
            Ok(text) => text.into(),
            Err(_) => self
                .bytes
                .utf8_chunks()
                .fold(String::new(), |text, chunk| text + chunk.valid() + &"?".repeat(chunk.invalid().len()))
                .into(),
        }
    }

    /// Returns the tokens that begin a sentence or a line: ascending, each above 0. White space in the token of the first word belongs to
    /// it.
    pub(crate) fn sentence_starts(&self) -> Vec<u32> {
        let text = self.as_str();
        let first_token = |offset: usize| {
            let next = self.starts.partition_point(|&start| start <= offset);
            let holder = next.checked_sub(1)?;
            let begins_in_it = text.as_bytes()[self.starts[holder]..offset].iter().all(u8::is_ascii_whitespace);
            if begins_in_it { u32::try_from(holder).ok() } else { self.position_of(offset) }
        };
        let mut starts: Vec<u32> = sentence_offsets(&text).filter_map(first_token).filter(|&position| position > 0).collect();
        starts.dedup();
        starts
    }

    /// Returns the rows of all tables, ascending and disjoint.
    pub(crate) fn tables(&self) -> Vec<TableRows> {
        let num_tokens = u32::try_from(self.starts.len()).expect("a prompt has less than 2^32 tokens");
        let rows = |table: TableText| {
            let start = self.position_of(table.bytes.start)?;
            let end = self.position_of(table.bytes.end).unwrap_or(num_tokens);
            Some(TableRows { range: TokenRange::new(start, end), header: table.header })
        };
        tables(&self.as_str()).into_iter().filter_map(rows).filter(|table| !table.range.is_empty()).collect()
    }

    /// Returns the first byte of the token at `position`.
    fn offset_of(&self, position: u32) -> Option<usize> {
        self.starts.get(position as usize).copied()
    }

    /// Returns the first token that begins at byte `offset` or later: a token that crosses a border belongs to the preceding segment.
    fn position_of(&self, offset: usize) -> Option<u32> {
        let index = self.starts.partition_point(|&start| start < offset);
        (index < self.starts.len()).then(|| u32::try_from(index).expect("a prompt has less than 2^32 tokens"))
    }
}

impl SegmentRule {
    /// Returns the positions at which segments begin: ascending, each above 0.
    pub(crate) fn starts(&self, text: &TokenText, contents: &[ContentStart]) -> Vec<u32> {
        let is_named = |content: &&ContentStart| match self {
            Self::Text => true,
            Self::Named { messages, .. } => messages.contains(&content.message),
        };
        let offsets: Vec<usize> = match self {
            Self::Text => {
                let messages: Vec<usize> = contents.iter().filter_map(|content| text.offset_of(content.position)).collect();
                let labels = labels(&text.as_str(), &messages).into_iter().flat_map(|range| [range.start, range.end]);
                paragraph_offsets(&text.bytes).into_iter().chain(labels).collect()
            }
            Self::Named { separators, .. } => {
                separators.iter().flat_map(|separator| separator_ends(&text.bytes, separator.as_bytes())).collect()
            }
        };
        let mut starts: Vec<u32> = offsets.into_iter().filter_map(|offset| text.position_of(offset)).collect();
        starts.extend(contents.iter().filter(is_named).map(|content| content.position));
        starts.retain(|&position| position > 0);
        starts.sort_unstable();
        starts.dedup();
        starts
    }
}

/// Returns the starts of non-blank lines that follow a blank line or are headings.
fn paragraph_offsets(text: &[u8]) -> Vec<usize> {
    let (mut offset, mut was_blank) = (0, false);
    let mut offsets = Vec::new();
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let is_blank = line.iter().all(u8::is_ascii_whitespace);
        if !is_blank && (was_blank || is_heading(line)) {
            offsets.push(offset);
        }
        was_blank = is_blank;
        offset += line.len();
    }
    offsets
}

/// Returns the starts of lines and sentences: after a line break, after a sentence-ending mark and white space, and directly after such a
/// mark of scripts without spaces.
fn sentence_offsets(text: &str) -> impl Iterator<Item = usize> + '_ {
    let mut before = ' ';
    let mut ended = false;
    text.char_indices().filter_map(move |(offset, c)| {
        let begins = ended && !c.is_whitespace();
        ended = match c {
            '\n' | '。' | '！' | '？' => true,
            _ if c.is_whitespace() => (ended && !begins) || matches!(before, '.' | '!' | '?'),
            _ => false,
        };
        before = c;
        begins.then_some(offset)
    })
}

fn is_heading(line: &[u8]) -> bool {
    let level = line.iter().take_while(|&&byte| byte == b'#').count();
    (1..=MAX_HEADING_LEVEL).contains(&level) && line.get(level) == Some(&b' ')
}

/// Returns the ends of the non-overlapping occurrences of `separator`.
fn separator_ends(text: &[u8], separator: &[u8]) -> Vec<usize> {
    let (mut offset, mut offsets) = (0, Vec::new());
    while let Some(found) = text[offset..].windows(separator.len()).position(|window| window == separator) {
        offset += found + separator.len();
        offsets.push(offset);
    }
    offsets
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Splits `tokens` at `|`; `contents` are positions of the messages. The expected text has a `^` where segments begin.
    #[track_caller]
    fn check(rule: &SegmentRule, tokens: &str, contents: &[u32], expected: &str) {
        let tokens: Vec<&str> = tokens.split('|').collect();
        let text = TokenText::new(tokens.iter().map(|token| token.as_bytes()));
        let contents: Vec<_> = (0..).zip(contents).map(|(message, &position)| ContentStart { message, position }).collect();
        let starts = rule.starts(&text, &contents);
        assert!(starts.is_sorted_by(|a, b| a < b));
        let shown: String = (0..)
            .zip(&tokens)
            .map(|(pos, token)| if starts.contains(&pos) { format!("^{token}") } else { (*token).to_owned() })
            .collect();
        assert_eq!(shown, expected);
    }

    fn named(messages: &[u32], separators: &[&str]) -> SegmentRule {
        SegmentRule::Named { messages: messages.into(), separators: separators.iter().map(|&text| text.to_owned()).collect() }
    }

    /// Checks that each sentence of `text` after the first begins at a `^` of `expected`.
    #[track_caller]
    fn check_sentences(expected: &str) {
        let text = expected.replace('^', "");
        let mut shown = text.clone();
        let starts: Vec<_> = sentence_offsets(&text).collect();
        starts.iter().rev().for_each(|&offset| shown.insert(offset, '^'));
        assert_eq!(shown, expected);
    }

    #[test]
    fn sentences_and_lines_begin_after_their_marks() {
        check_sentences("One. ^Two! ^Three? ^Four");
        check_sentences("a line\n^another\n\n  ^a third.\n^end");
        check_sentences("3.14 is no end, nor is e.g. ^this");
        check_sentences("一。^二！^三？^四");
        check_sentences("He said: \"No.\" and left");
    }

    #[test]
    fn a_sentence_begins_with_the_first_token_in_it() {
        let text = TokenText::new(["One", ".", " Two", " three", ".", "\n", "Four"].iter().map(|token| token.as_bytes()));
        assert_eq!(text.sentence_starts(), [2, 6]);
        let text = TokenText::new(["One", ". T", "wo", ".", " ", " Three"].iter().map(|token| token.as_bytes()));
        assert_eq!(text.sentence_starts(), [2, 5], "a token over the border is left of it, and wide space is no sentence");
    }

    #[test]
    fn a_paragraph_begins_after_a_blank_line() {
        check(&SegmentRule::Text, "a|.\n\n|b|\n|c|\n| |\n|\n|d", &[], "a.\n\n^b\nc\n \n\n^d");
        check(&SegmentRule::Text, "a|\n\n|", &[], "a\n\n");
    }

    #[test]
    fn indentation_belongs_to_its_paragraph() {
        check(&SegmentRule::Text, "a|\n\n|  |b", &[], "a\n\n^  b");
    }

    #[test]
    fn a_heading_begins_a_section() {
        check(&SegmentRule::Text, "a|\n|##| b|\n|#|include|\n|c", &[], "a\n^## b\n#include\nc");
        check(&SegmentRule::Text, "a|\n|#######| b", &[], "a\n####### b");
    }

    #[test]
    fn labels_that_count_are_apart_from_their_texts() {
        check(&SegmentRule::Text, "<u>|[|1|]| a|.\n|[|2|] |b|</u>", &[1], "<u>^[1] a^.\n^[2] ^b</u>");
    }

    #[test]
    fn messages_begin_segments() {
        check(&SegmentRule::Text, "<u>|a|</u>|<a>|b|\n\n|c", &[1, 4], "<u>^a</u><a>^b\n\n^c");
    }

    #[test]
    fn the_start_of_the_prompt_is_none() {
        check(&SegmentRule::Text, "# |a", &[0], "# a");
    }

    #[test]
    fn a_token_over_a_border_is_left_of_it() {
        check(&SegmentRule::Text, "a\n\nb|c|d", &[], "a\n\nb^cd");
    }

    #[test]
    fn named_segments_replace_those_of_the_text() {
        check(&named(&[1], &["--"]), "<u>|a|--|b|-|-|<a>|c|\n\n|d", &[1, 7], "<u>a--^b--^<a>^c\n\nd");
        check(&named(&[], &["\n\n"]), "<u>|a|\n\n|\n|d", &[1], "<u>a\n\n^\nd");
        check(&named(&[9], &[]), "<u>|a|\n\n|d", &[1], "<u>a\n\nd");
    }
}
