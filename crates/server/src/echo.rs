//! Prompts shown in an answer with `echo`.

use std::sync::Arc;

use tokenizer::{DetokenizeStream, EncodedPrompt, Tokenizer};
use tokens::TokenId;

/// Start of an answer that includes its prompt.
#[derive(Clone)]
pub(crate) struct EchoedPrompt {
    /// Text prompt as sent; for token ids, the text of all of them, including special ones, up to the last complete character.
    pub(crate) text: String,
    /// Start of each token's text, in characters. Tokens that the server adds around a text are not shown and have no length.
    pub(crate) offsets: Arc<[u32]>,
    /// Index of the token whose leading space, which encoding had added, is not shown.
    pub(crate) drops_space: Option<usize>,
    /// Stream that continues after the prompt.
    pub(crate) following: DetokenizeStream,
}

impl EchoedPrompt {
    /// Creates the echo of `text` with its encoding `encoded`.
    pub(crate) fn of_text(tokenizer: &Arc<Tokenizer>, text: String, encoded: &EncodedPrompt) -> Self {
        let is_around = |position: usize| encoded.template.iter().any(|range| range.as_usize().contains(&position));
        let ids = &encoded.token_ids;
        let num_before = (0..ids.len()).take_while(|&position| is_around(position)).count();
        let num_after = (num_before..ids.len()).rev().take_while(|&position| is_around(position)).count();
        let own = &ids[num_before..ids.len() - num_after];
        let starts = tokenizer.token_starts(&text).unwrap_or_default();
        let offsets = if starts.len() == own.len() { chars_before(&text, &starts) } else { streamed(tokenizer, own).1 };
        let num_chars = num_chars(&text);
        let all = std::iter::repeat_n(0, num_before).chain(offsets).chain(std::iter::repeat_n(num_chars, num_after));
        let drops_space = own.first().is_some_and(|&id| tokenizer.token_bytes(id).starts_with(b" ")) && !text.starts_with(' ');
        Self {
            offsets: all.collect(),
            drops_space: drops_space.then_some(num_before),
            following: DetokenizeStream::after_prompt(Arc::clone(tokenizer), true),
            text,
        }
    }

    /// Creates the echo of a prompt sent as `ids`.
    pub(crate) fn of_tokens(tokenizer: &Arc<Tokenizer>, ids: &[TokenId]) -> Self {
        let (text, offsets, following) = streamed(tokenizer, ids);
        let drops_space = ids.first().is_some_and(|&id| tokenizer.token_bytes(id).starts_with(b" ")) && !text.starts_with(' ');
        Self { text, offsets: offsets.into(), drops_space: drops_space.then_some(0), following: following.skipping_special(true) }
    }
}

/// Returns the text of `ids` with special tokens, the start of each token in it, and the stream that decoded them.
fn streamed(tokenizer: &Arc<Tokenizer>, ids: &[TokenId]) -> (String, Vec<u32>, DetokenizeStream) {
    let mut stream = DetokenizeStream::new(Arc::clone(tokenizer), false);
    let (mut text, mut offsets, mut at) = (String::new(), Vec::with_capacity(ids.len()), 0);
    for &id in ids {
        offsets.push(at + stream.chars_broken_by(id));
        let piece = stream.push(id);
        at += num_chars(&piece);
        text.push_str(&piece);
    }
    (text, offsets, stream)
}

/// Counts the characters of `text` before the one that holds each of these bytes, which are in ascending order.
fn chars_before(text: &str, bytes: &[usize]) -> Vec<u32> {
    let mut starts = text.char_indices().map(|(start, _)| start).peekable();
    let mut num_started = 0u32;
    let count = |&byte: &usize| {
        while starts.next_if(|&start| start <= byte).is_some() {
            num_started += 1;
        }
        if byte >= text.len() { num_started } else { num_started.saturating_sub(1) }
    };
    bytes.iter().map(count).collect()
}

pub(crate) fn num_chars(text: &str) -> u32 {
    u32::try_from(text.chars().count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use tokenizer::GgufVocabulary;

    use super::*;

    /// SentencePiece with a bos token: ids 0 to 255 are the bytes, then "<s>" (begins a text), "▁hi", "▁", "<|x|>" (control). A text is
    /// spelt, since there are no merges.
    fn tokenizer() -> Arc<Tokenizer> {
        let mut tokens: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
        tokens.extend(["<s>", "▁hi", "▁", "<|x|>"].map(str::to_owned));
        let mut token_types = vec![6; 256];
        token_types.extend([3, 1, 1, 3]);
        let scores = Some(vec![0.0; tokens.len()]);
        let (bos, add_bos) = (Some(256), Some(true));
        let vocabulary =
            GgufVocabulary { model: "llama".into(), tokens, token_types, scores, bos, add_bos, ..GgufVocabulary::default() };
        Arc::new(Tokenizer::from_gguf(vocabulary).unwrap())
    }

    #[track_caller]
    fn check_text(text: &str, expected: &[u32]) {
        let tokenizer = tokenizer();
        let encoded = tokenizer.encode(text, true).unwrap();
        let echo = EchoedPrompt::of_text(&tokenizer, text.to_owned(), &encoded);
        assert_eq!((&echo.offsets[..], echo.text.as_str()), (expected, text));
        assert_eq!(echo.offsets.len(), encoded.token_ids.len());
    }

    #[test]
    fn a_text_is_shown_as_sent_and_what_is_put_around_it_is_not() {
        check_text("hi!", &[0, 0, 0, 1, 2]);
        check_text("é!", &[0, 0, 0, 0, 1]);
    }

    #[test]
    fn a_special_token_that_a_text_names_has_its_length() {
        let tokenizer = tokenizer();
        let encoded = tokenizer.encode("<|x|>a", true).unwrap();
        let echo = EchoedPrompt::of_text(&tokenizer, "<|x|>a".to_owned(), &encoded);
        assert_eq!((encoded.token_ids[1], echo.offsets[1]), (TokenId(259), 0));
        assert_eq!(echo.offsets.last(), Some(&5));
    }

    #[track_caller]
    fn check_tokens(ids: &[u32], text: &str, expected: &[u32]) {
        let ids: Vec<_> = ids.iter().copied().map(TokenId).collect();
        let echo = EchoedPrompt::of_tokens(&tokenizer(), &ids);
        assert_eq!((echo.text.as_str(), &echo.offsets[..]), (text, expected));
    }

    #[test]
    fn token_ids_are_shown_with_special_tokens() {
        check_tokens(&[256, 257, 259, 0x21], "<s> hi<|x|>!", &[0, 3, 6, 11]);
        check_tokens(&[257, 257], "hi hi", &[0, 2]);
    }

    #[test]
    fn parts_of_a_character_start_where_it_does() {
        check_tokens(&[0x61, 0xf0, 0x9f, 0x98, 0x80, 0x62], "a😀b", &[0, 1, 1, 1, 1, 2]);
        check_tokens(&[0xf0, 0x9f, 0x62], "\u{fffd}b", &[0, 0, 1]);
        check_tokens(&[0x62, 0xf0, 0x9f], "b", &[0, 1, 1]);
    }

    #[test]
    fn an_unfinished_character_is_finished_by_the_answer() {
        let mut echo = EchoedPrompt::of_tokens(&tokenizer(), &[TokenId(0xc3)]);
        assert_eq!((echo.text.as_str(), echo.following.push(TokenId(0xa9)).as_str()), ("", "é"));
    }
}
