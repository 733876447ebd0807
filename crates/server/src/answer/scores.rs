//! Log probabilities of tokens, and token names.

use engine::{LogProb, TokenLogProbs};
use protocol::NamedLogProbs;
use tokenizer::Tokenizer;
use tokens::TokenId;

/// A token with its log probability.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ScoredToken {
    pub(crate) token: TokenId,
    /// Log probability; `None` for the first token of a prompt.
    pub(crate) logprob: Option<f32>,
    /// Requested number of likeliest tokens at its position, descending.
    pub(crate) top: Vec<LogProb>,
    /// Start of its text in the answer, in characters.
    pub(crate) text_offset: u32,
    /// True if its leading space, which encoding had added, is not part of the text.
    pub(crate) drops_space: bool,
}

/// Minimum reported log probability, as in vLLM: JSON has no infinity.
const LEAST_LOGPROB: f32 = -9999.0;

impl ScoredToken {
    /// Creates the score of `token`, whose text starts at `text_offset`. The token's value is equal in `logprob` and in `top`, even if a
    /// device has computed them separately.
    pub(super) fn new(token: TokenId, scores: Option<TokenLogProbs>, text_offset: u32) -> Self {
        let Some(TokenLogProbs { chosen, mut top }) = scores else {
            return Self { token, logprob: None, top: Vec::new(), text_offset, drops_space: false };
        };
        top.iter_mut().for_each(|entry| entry.logprob = entry.logprob.max(LEAST_LOGPROB));
        let listed = top.iter().find(|entry| entry.token == token);
        let logprob = listed.map_or(chosen.logprob.max(LEAST_LOGPROB), |entry| entry.logprob);
        Self { token, logprob: Some(logprob), top, text_offset, drops_space: false }
    }

    /// Returns its name at the completions endpoint.
    pub(super) fn name(&self, tokenizer: &Tokenizer) -> String {
        let mut name = token_name(tokenizer, self.token);
        if self.drops_space && name.starts_with(' ') {
            name.remove(0);
        }
        name
    }

    /// Returns the likeliest tokens by name, and this one, last if it is not among them. Names are unique: of several tokens with the same
    /// text, this one or else the likeliest takes the name, and the others are called `token_id:N`, as vLLM calls tokens by id.
    pub(super) fn named_top(&self, tokenizer: &Tokenizer) -> Option<NamedLogProbs> {
        let own = (self.name(tokenizer), self.logprob?);
        let mut named = NamedLogProbs::default();
        for entry in &self.top {
            let is_own = entry.token == self.token;
            let name = if is_own { own.0.clone() } else { token_name(tokenizer, entry.token) };
            let is_taken = !is_own && name == own.0;
            if is_taken || !named.insert(name, entry.logprob) {
                named.insert(format!("token_id:{}", entry.token.0), entry.logprob);
            }
        }
        named.insert(own.0, own.1);
        Some(named)
    }
}

/// Returns the text of `token`, or for incomplete UTF-8 its bytes as OpenAI writes them: `bytes:\xf0\x9f`.
fn token_name(tokenizer: &Tokenizer, token: TokenId) -> String {
    let bytes = tokenizer.token_bytes(token);
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let escaped = bytes.iter().map(|byte| match byte {
                b'\\' => r"\\".to_owned(),
                b' '..=b'~' => char::from(*byte).to_string(),
                _ => format!("\\x{byte:02x}"),
            });
            format!("bytes:{}", escaped.collect::<String>())
        }
    }
}

#[cfg(test)]
mod tests {
    use tokenizer::GgufVocabulary;

    use super::*;

    /// Ids 0 to 255 are bytes; 256 and 257 both have the text " a".
    fn tokenizer() -> Tokenizer {
        let mut tokens: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
        tokens.extend(["▁a", " a"].map(str::to_owned));
        let mut token_types = vec![6; 256];
        token_types.extend([1, 1]);
        let scores = Some(vec![0.0; tokens.len()]);
        let vocabulary = GgufVocabulary { model: "llama".into(), tokens, token_types, scores, ..GgufVocabulary::default() };
        Tokenizer::from_gguf(vocabulary).unwrap()
    }

    fn entry(token: u32, logprob: f32) -> LogProb {
        LogProb { token: TokenId(token), logprob, rank: 1 }
    }

    #[track_caller]
    fn check(chosen: (u32, f32), top: &[(u32, f32)], expected: &[(&str, f32)]) {
        let top = top.iter().map(|&(token, logprob)| entry(token, logprob)).collect();
        let scores = TokenLogProbs { chosen: entry(chosen.0, chosen.1), top };
        let tokenizer = tokenizer();
        let scored = ScoredToken::new(TokenId(chosen.0), Some(scores), 0);
        let named = scored.named_top(&tokenizer).unwrap();
        assert_eq!(named.iter().collect::<Vec<_>>(), expected);
        assert_eq!(named.get(&scored.name(&tokenizer)), scored.logprob);
    }

    #[test]
    fn the_chosen_token_is_among_the_likeliest_or_follows_them() {
        check((0x62, -0.5), &[(0x62, -0.5), (0x63, -1.0)], &[("b", -0.5), ("c", -1.0)]);
        check((0x64, -7.0), &[(0x62, -0.5), (0x63, -1.0)], &[("b", -0.5), ("c", -1.0), ("d", -7.0)]);
        check((0x64, -7.0), &[], &[("d", -7.0)]);
    }

    #[test]
    fn a_token_has_one_number() {
        check((0x62, -0.500_000_1), &[(0x62, -0.5)], &[("b", -0.5)]);
        check((0x62, f32::NEG_INFINITY), &[(0x63, 0.0)], &[("c", 0.0), ("b", -9999.0)]);
    }

    #[test]
    fn tokens_of_the_same_text_keep_their_entries() {
        check((0x62, -3.0), &[(256, -1.0), (257, -2.0)], &[(" a", -1.0), ("token_id:257", -2.0), ("b", -3.0)]);
        check((257, -2.0), &[(256, -1.0), (257, -2.0)], &[("token_id:256", -1.0), (" a", -2.0)]);
        check((257, -2.0), &[(256, -1.0)], &[("token_id:256", -1.0), (" a", -2.0)]);
    }

    #[test]
    fn parts_of_characters_are_named_by_their_bytes() {
        let top = [(0xf0, -1.0), (0xf1, -2.0), (0x9f, -3.0)];
        check((0xf0, -1.0), &top, &[("bytes:\\xf0", -1.0), ("bytes:\\xf1", -2.0), ("bytes:\\x9f", -3.0)]);
    }
}
