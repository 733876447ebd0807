//! Answer formats that a request can ask for, detected by simple signs.

use super::rouge::words;

/// Answer format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// A JSON object or list and nothing else, a code fence around it allowed.
    Json,
    /// Text that is not JSON.
    Prose,
    /// Mostly French function words among the French and English ones.
    French,
    /// Mostly English function words among them.
    English,
    /// One sentence.
    OneSentence,
    /// More than one sentence.
    Sentences,
}

/// Frequent words that the other language does not have.
const FRENCH: [&str; 22] = [
    "le", "la", "les", "des", "du", "un", "une", "et", "est", "que", "qui", "dans", "pour", "avec", "sur", "par", "ce", "cette",
    "il", "elle", "sont", "au",
];
const ENGLISH: [&str; 22] = [
    "the", "of", "and", "to", "is", "was", "that", "for", "with", "as", "it", "by", "this", "are", "from", "which", "has",
    "have", "be", "or", "were", "their",
];

impl Format {
    /// Returns the format of this name in a workload's `reference`.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "json" => Self::Json,
            "prose" => Self::Prose,
            "french" => Self::French,
            "english" => Self::English,
            "one_sentence" => Self::OneSentence,
            "sentences" => Self::Sentences,
            _ => return None,
        })
    }

    /// True if `text` has the format. An empty text has none.
    pub(crate) fn is_kept_by(self, text: &str) -> bool {
        if text.trim().is_empty() {
            return false;
        }
        let of = |language: &[&str]| words(text).iter().filter(|word| language.contains(&word.as_str())).count();
        match self {
            Self::Json => is_json(text),
            Self::Prose => !begins_as_json(text),
            Self::French => of(&FRENCH) > of(&ENGLISH),
            Self::English => of(&ENGLISH) > of(&FRENCH),
            Self::OneSentence => num_sentences(text) == 1,
            Self::Sentences => num_sentences(text) > 1,
        }
    }
}

/// Removes a code fence around the text.
fn unfenced(text: &str) -> &str {
    let text = text.trim();
    let inner = text.strip_prefix("```json").or_else(|| text.strip_prefix("```")).unwrap_or(text);
    inner.strip_suffix("```").unwrap_or(inner).trim()
}

/// True for JSON. An answer cut off by its limit counts too, if it began as JSON and parses up to the cut.
fn is_json(text: &str) -> bool {
    begins_as_json(text)
        && match serde_json::from_str::<serde_json::Value>(unfenced(text)) {
            Ok(_) => true,
            Err(error) => error.is_eof(),
        }
}

fn begins_as_json(text: &str) -> bool {
    unfenced(text).starts_with(['{', '['])
}

/// Counts sentence ends: `.`, `!` or `?` after a letter or bracket and before white space or the end; a rest without one counts too.
fn num_sentences(text: &str) -> usize {
    let text = text.trim();
    let chars: Vec<_> = text.chars().collect();
    let is_end = |i: usize| {
        matches!(chars[i], '.' | '!' | '?')
            && chars.get(i + 1).is_none_or(|next| next.is_whitespace())
            && i > 1
            && chars[i - 2].is_alphanumeric()
    };
    let ends = (0..chars.len()).filter(|&i| is_end(i)).count();
    ends + usize::from(!text.is_empty() && !is_end(chars.len() - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the names of all formats that `text` has.
    #[track_caller]
    fn check(text: &str, expected: &str) {
        let all = ["json", "prose", "french", "english", "one_sentence", "sentences"];
        let found: Vec<_> = all.into_iter().filter(|name| Format::by_name(name).unwrap().is_kept_by(text)).collect();
        assert_eq!(found.join(" "), expected, "{text}");
    }

    #[test]
    fn json_may_be_fenced_and_cut_off_but_not_wrapped_in_words() {
        check(r#"{"answer": 3}"#, "json one_sentence");
        check("```json\n{\"answer\": 3}\n```", "json one_sentence");
        check(r#"{"answer": ["#, "json one_sentence");
        check(r#"{"answer": 3} is it"#, "english one_sentence");
        check(r#"It is {"answer": 3}"#, "prose english one_sentence");
    }

    #[test]
    fn languages_are_told_by_function_words() {
        check("Le chat est dans la maison.", "prose french one_sentence");
        check("The cat is in the house. It sleeps there.", "prose english sentences");
    }

    #[test]
    fn initials_and_decimals_end_no_sentence() {
        check("J. Adams paid 3.5 for it.", "prose english one_sentence");
    }

    #[test]
    fn silence_has_no_form() {
        check("  ", "");
        assert_eq!(Format::by_name("verse"), None);
    }
}
