//! Strings that track which of their bytes come from the caller.

use std::ops::Range;

/// A string with the origin of its bytes: the template, or one of the caller's strings.
#[derive(Clone, Debug, Default)]
pub struct Text {
    string: String,
    /// Byte ranges from the caller: sorted, disjoint, not empty; adjacent ones of the same origin are merged.
    marks: Vec<Mark>,
}

/// Bytes that come from one of the caller's strings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Byte range.
    pub bytes: Range<usize>,
    /// Number that the caller assigned to the string.
    pub origin: u32,
}

impl Text {
    /// Creates a string of the template.
    pub(crate) fn literal(string: impl Into<String>) -> Self {
        Self { string: string.into(), marks: Vec::new() }
    }

    /// Returns the characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.string
    }

    /// Returns the string and its marks.
    #[must_use]
    pub fn into_parts(self) -> (String, Vec<Mark>) {
        (self.string, self.marks)
    }

    /// Returns the number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.string.len()
    }

    /// Returns the origin of the byte at `at`; `None` for the template.
    pub(crate) fn origin_at(&self, at: usize) -> Option<u32> {
        let index = self.marks.partition_point(|mark| mark.bytes.end <= at);
        self.marks.get(index).filter(|mark| mark.bytes.start <= at).map(|mark| mark.origin)
    }

    /// Appends `string`, all of one origin.
    pub(crate) fn push_from(&mut self, string: &str, origin: Option<u32>) {
        let start = self.string.len();
        self.string.push_str(string);
        if let Some(origin) = origin {
            self.push_mark(start..self.string.len(), origin);
        }
    }

    /// Appends `bytes` of `text`.
    pub(crate) fn push_range(&mut self, text: &Self, bytes: Range<usize>) {
        let start = self.string.len();
        self.string.push_str(&text.string[bytes.clone()]);
        let first = text.marks.partition_point(|mark| mark.bytes.end <= bytes.start);
        for mark in text.marks[first..].iter().take_while(|mark| mark.bytes.start < bytes.end) {
            let (from, to) = (mark.bytes.start.max(bytes.start), mark.bytes.end.min(bytes.end));
            self.push_mark(start + from - bytes.start..start + to - bytes.start, mark.origin);
        }
    }

    /// Returns `bytes` of this string.
    pub(crate) fn slice(&self, bytes: Range<usize>) -> Self {
        let mut text = Self::default();
        text.push_range(self, bytes);
        text
    }

    /// Replaces each character by `map`, preserving its origin.
    pub(crate) fn map_chars<I: IntoIterator<Item = char>>(&self, mut map: impl FnMut(char) -> I) -> Self {
        let mut text = Self { string: String::with_capacity(self.string.len()), marks: Vec::new() };
        for (at, c) in self.string.char_indices() {
            let start = text.string.len();
            text.string.extend(map(c));
            if let Some(origin) = self.origin_at(at) {
                text.push_mark(start..text.string.len(), origin);
            }
        }
        text
    }

    fn push_mark(&mut self, bytes: Range<usize>, origin: u32) {
        if bytes.is_empty() {
            return;
        }
        match self.marks.last_mut() {
            Some(last) if last.bytes.end == bytes.start && last.origin == origin => last.bytes.end = bytes.end,
            _ => self.marks.push(Mark { bytes, origin }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &Text) -> String {
        let show = |(at, c): (usize, char)| text.origin_at(at).map_or(c.to_string(), |origin| format!("{c}{origin}"));
        text.as_str().char_indices().map(show).collect()
    }

    #[test]
    fn slices_and_appends_keep_origins() {
        let mut text = Text::literal("ab");
        text.push_from("cd", Some(1));
        text.push_from("e", Some(1));
        text.push_from("f", Some(2));
        assert_eq!(shown(&text), "abc1d1e1f2");
        assert_eq!(shown(&text.slice(1..4)), "bc1d1");
        let mut other = Text::literal("x");
        other.push_range(&text, 4..6);
        assert_eq!(shown(&other), "xe1f2");
    }

    #[test]
    fn characters_that_grow_keep_their_origin() {
        let mut text = Text::literal("a");
        text.push_from("ß", Some(3));
        assert_eq!(shown(&text.map_chars(char::to_uppercase)), "AS3S3");
    }
}
