//! Pre-tokenization for byte-level BPE, one variant per published rule.

use regex::Regex;
use serde_json::Value;
use tokenizers::normalizer::SplitDelimiterBehavior;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

/// A known pre-tokenization rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PreTokenizerKind {
    /// GPT-2's expression.
    Gpt2,
    /// Single digits, then GPT-2's expression.
    Smollm,
    /// Qwen2's expression: single digits; line breaks end a run of white space.
    Qwen2,
    /// Llama 3's expression: like Qwen2's, with digits in groups of up to three.
    LlamaBpe,
}

/// Method of splitting text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Cut {
    /// A rule with a fast path.
    Quick(PreTokenizerKind),
    /// Expressions applied in turn: matches are pieces, and so is the text between them.
    Steps(&'static [&'static str]),
}

/// Splitter equivalent to the published expression, without its look-ahead.
///
/// All expressions end in `\s+(?!\S)|\s+`: a run of white space leaves its last character to the following word. The `regex` crate has no
/// look-ahead, so the run is matched whole and shortened afterwards.
pub(crate) struct Splitter {
    regex: Regex,
    kind: PreTokenizerKind,
}

/// Qwen2's expression as its `tokenizer.json` has it.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Llama 3's expression as its `tokenizer.json` has it.
const LLAMA_BPE: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-2's expression (Radford et al. 2019, `encoder.py`).
pub(crate) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// GPT-2's expression without the look-ahead.
const GPT2_WITHOUT_LOOKAHEAD: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";
/// The same after digits were split off: no digit takes a preceding space.
const SMOLLM_WITHOUT_LOOKAHEAD: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+";

impl PreTokenizerKind {
    const ALL: [Self; 4] = [Self::Gpt2, Self::Smollm, Self::Qwen2, Self::LlamaBpe];

    /// Returns the kind of the `pre_tokenizer` in a `tokenizer.json`, or `None` if it is none of these.
    pub(crate) fn recognize(pre_tokenizer: &PreTokenizerWrapper) -> Option<Self> {
        let wanted = comparable(pre_tokenizer);
        Self::ALL.into_iter().find(|kind| comparable(&kind.reference()) == wanted)
    }

    /// Returns the same rule in the `tokenizers` crate: slower, and the reference that [`Splitter`] is tested against.
    pub(crate) fn reference(self) -> PreTokenizerWrapper {
        let byte_level = |use_regex| ByteLevel::new(false, false, use_regex).into();
        let steps = match self {
            Self::Gpt2 => return byte_level(true),
            Self::Smollm => vec![Digits::new(true).into(), byte_level(true)],
            Self::Qwen2 => vec![split(QWEN2), byte_level(false)],
            Self::LlamaBpe => vec![split(LLAMA_BPE), byte_level(false)],
        };
        Sequence::new(steps).into()
    }

    /// True if `\s*[\r\n]+` takes line breaks before the last rule sees them.
    fn breaks_lines(self) -> bool {
        matches!(self, Self::Qwen2 | Self::LlamaBpe)
    }
}

impl Cut {
    /// Returns the rule in the `tokenizers` crate.
    pub(crate) fn reference(self) -> PreTokenizerWrapper {
        match self {
            Self::Quick(kind) => kind.reference(),
            Self::Steps(steps) => {
                let byte_level = ByteLevel::new(false, false, false).into();
                Sequence::new(steps.iter().map(|step| split(step)).chain([byte_level]).collect()).into()
            }
        }
    }
}

/// Splits into matches of `pattern` and the text between them.
fn split(pattern: &str) -> PreTokenizerWrapper {
    let pattern = SplitPattern::Regex(pattern.to_owned());
    Split::new(pattern, SplitDelimiterBehavior::Isolated, false).expect("the published expressions compile").into()
}

/// Returns the rule as JSON, without the one field that changes offsets only.
fn comparable(pre_tokenizer: &PreTokenizerWrapper) -> Option<Value> {
    let mut value = serde_json::to_value(pre_tokenizer).ok()?;
    let drop_offsets = |step: &mut Value| {
        if let Some(fields) = step.as_object_mut() {
            fields.remove("trim_offsets");
            // A separate step applies the regular expression, so some files omit this default.
            fields.entry("use_regex").or_insert(Value::Bool(true));
        }
    };
    if let Some(steps) = value.get_mut("pretokenizers").and_then(Value::as_array_mut) {
        steps.iter_mut().for_each(drop_offsets);
    } else {
        drop_offsets(&mut value);
    }
    Some(value)
}

impl Splitter {
    /// Compiles the rule.
    pub(crate) fn new(kind: PreTokenizerKind) -> Self {
        let without_lookahead = |published: &str| published.replace(r"|\s+(?!\S)|\s+", r"|\s+");
        let pattern = match kind {
            PreTokenizerKind::Gpt2 => GPT2_WITHOUT_LOOKAHEAD.to_owned(),
            PreTokenizerKind::Smollm => SMOLLM_WITHOUT_LOOKAHEAD.to_owned(),
            PreTokenizerKind::Qwen2 => without_lookahead(QWEN2),
            PreTokenizerKind::LlamaBpe => without_lookahead(LLAMA_BPE),
        };
        Self { regex: Regex::new(&pattern).expect("the expressions are constants"), kind }
    }

    /// Returns the end of the piece of `text` that starts at byte `start`, which must be inside of it.
    pub(crate) fn piece_end(&self, text: &str, start: usize) -> usize {
        if let Some(end) = plain_word_end(text.as_bytes(), start) {
            return end;
        }
        let found = self.regex.find_at(text, start).expect("the last rules match any character");
        debug_assert_eq!(found.start(), start, "the rules leave no gaps");
        found.end() - self.bytes_left_to_next(text, found.as_str(), found.end())
    }

    /// Returns the bytes at the end of a white space run that belong to the following piece, which `\s+(?!\S)` excludes.
    fn bytes_left_to_next(&self, text: &str, piece: &str, end: usize) -> usize {
        let last = piece.chars().next_back().expect("no rule matches nothing");
        let is_space_run = last.is_whitespace() && !(self.kind.breaks_lines() && matches!(last, '\r' | '\n'));
        if !is_space_run || piece.len() == last.len_utf8() {
            return 0;
        }
        match text[end..].chars().next() {
            None => 0,
            // Digits were split off before, so the text ends here as far as the run is concerned.
            Some(next) if self.kind == PreTokenizerKind::Smollm && next.is_numeric() => 0,
            Some(_) => last.len_utf8(),
        }
    }
}

/// Returns the end of the ASCII word, with an optional leading space, at `start`: all rules split these alike, and most text consists of
/// them. `None` if something else starts there, or the word may continue in another alphabet.
fn plain_word_end(text: &[u8], start: usize) -> Option<usize> {
    let letters = start + usize::from(text[start] == b' ');
    let end = letters + text[letters..].iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
    let is_whole = text.get(end).is_none_or(u8::is_ascii);
    (end > letters && is_whole).then_some(end)
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    fn split<'a>(splitter: &Splitter, text: &'a str) -> Vec<&'a str> {
        let mut start = 0;
        let mut pieces = Vec::new();
        while start < text.len() {
            let end = splitter.piece_end(text, start);
            pieces.push(&text[start..end]);
            start = end;
        }
        pieces
    }

    fn reference_split(kind: PreTokenizerKind, text: &str) -> Vec<&str> {
        let mut pieces = PreTokenizedString::from(text);
        kind.reference().pre_tokenize(&mut pieces).unwrap();
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(_, (start, end), _)| &text[start..end]).collect()
    }

    #[track_caller]
    fn check(kind: PreTokenizerKind, text: &str, expected: &[&str]) {
        assert_eq!(split(&Splitter::new(kind), text), expected);
    }

    #[test]
    fn a_run_of_spaces_leaves_its_last_to_the_word() {
        check(PreTokenizerKind::Gpt2, "a   b  ", &["a", "  ", " b", "  "]);
    }

    #[test]
    fn smollm_isolates_digits_and_keeps_the_space_before_them() {
        check(PreTokenizerKind::Smollm, "in  12 km", &["in", "  ", "1", "2", " km"]);
    }

    #[test]
    fn qwen2_ends_a_run_at_its_line_break() {
        check(PreTokenizerKind::Qwen2, "x \n  y 12", &["x", " \n", " ", " y", " ", "1", "2"]);
    }

    #[test]
    fn a_word_goes_on_in_another_alphabet() {
        for kind in PreTokenizerKind::ALL {
            check(kind, "Are naïve", &["Are", " naïve"]);
        }
    }

    #[test]
    fn llama_takes_digits_in_threes() {
        check(PreTokenizerKind::LlamaBpe, "1234 I'LL", &["123", "4", " I", "'LL"]);
    }

    #[test]
    fn every_kind_is_recognized_by_its_own_reference() {
        for kind in PreTokenizerKind::ALL {
            assert_eq!(PreTokenizerKind::recognize(&kind.reference()), Some(kind));
        }
    }

    /// Characters on which the rules differ: spaces of several widths, digits of several scripts, marks, letters that fold.
    const ALPHABET: &[char] = &[
        ' ', ' ', ' ', '\n', '\r', '\t', 'a', 'S', 't', 'l', 'v', 'e', '\'', '1', '2', '9', '٣', '½', 'Ⅷ', 'é', 'ſ', 'ß', 'İ',
        'K', '\u{301}', 'ा', 'क', '語', '\u{3000}', '\u{a0}', '\u{2028}', '\u{85}', '\u{200b}', '\u{180e}', '.', '-', '_', '😀',
        '\u{200d}',
    ];

    #[test]
    fn random_text_is_cut_as_the_reference_cuts_it() {
        let splitters = PreTokenizerKind::ALL.map(Splitter::new);
        let mut state = 1u64;
        for round in 0..4000 {
            let text: String = (0..1 + round % 24)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    ALPHABET[(state >> 33) as usize % ALPHABET.len()]
                })
                .collect();
            for splitter in &splitters {
                assert_eq!(split(splitter, &text), reference_split(splitter.kind, &text), "{:?} {text:?}", splitter.kind);
            }
        }
    }
}
