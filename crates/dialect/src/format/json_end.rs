//! End of a JSON value whose text arrives in pieces.

/// Position within a JSON value, by its brackets and quotes alone.
#[derive(Clone, Debug, Default)]
pub(crate) struct JsonEnd {
    /// Open brackets.
    depth: u32,
    has_begun: bool,
    is_string: bool,
    is_escaped: bool,
}

/// Relation of a character to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Inside,
    /// It is the last character.
    Last,
    /// The value ended before it.
    After,
}

impl JsonEnd {
    /// Reads one character. The first one must belong to the value.
    pub(crate) fn step(&mut self, c: char) -> Step {
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        if self.is_string {
            let is_escaped = std::mem::take(&mut self.is_escaped);
            self.is_escaped = c == '\\' && !is_escaped;
            self.is_string = c != '"' || is_escaped;
            return if self.is_string || self.depth > 0 { Step::Inside } else { Step::Last };
        }
        match c {
            // A number or a word has no last character of its own.
            ',' | '}' | ']' if self.depth == 0 && !is_first => return Step::After,
            _ if self.depth == 0 && !is_first && c.is_whitespace() => return Step::After,
            '"' => self.is_string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                return if self.depth == 0 { Step::Last } else { Step::Inside };
            }
            _ => {}
        }
        Step::Inside
    }

    /// Reads `text`, whose value has brackets or quotes; returns the bytes up to its end, if it is there.
    pub(crate) fn push(&mut self, text: &str) -> Option<usize> {
        text.char_indices().find_map(|(at, c)| match self.step(c) {
            Step::Inside => None,
            Step::Last => Some(at + c.len_utf8()),
            Step::After => Some(at),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_ends_with_its_bracket_or_quote_or_before_what_follows() {
        for (text, len) in [("{\"}\": [\"\\\"\"]}x", 13), ("\"a\\\"\" ", 5), ("12,", 2), ("true}", 4), ("[] ", 2)] {
            assert_eq!(JsonEnd::default().push(text), Some(len), "{text}");
        }
        assert_eq!(JsonEnd::default().push("{\"a\": 1"), None);
    }
}
