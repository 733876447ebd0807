//! Building a tokenizer from the vocabulary in a GGUF file.

use serde_json::{Map, Value};
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::prepend::Prepend;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::normalizers::{NormalizerWrapper, Sequence};
use tokens::TokenId;

use crate::TokenizerError;
use crate::added::AddedToken;
use crate::error::brief;
use crate::gguf_rules::GgufRule;
use crate::parts::Parts;
use crate::pre_tokenizer::{Cut, PreTokenizerKind};
use crate::token_bytes::{Speller, Spelling, TokenBytes};

/// The `tokenizer.ggml.*` keys of a GGUF file, unmodified. An absent key is `None` or empty.
#[derive(Clone, Debug, Default)]
pub struct GgufVocabulary {
    /// `model`: "gpt2" is byte-level BPE, "llama" is SentencePiece.
    pub model: String,
    /// `pre`: pre-tokenizer of byte-level BPE. Not read for SentencePiece.
    pub pre: String,
    /// `tokens`, in order of id.
    pub tokens: Vec<String>,
    /// `scores`: SentencePiece merges the piece of the highest score first.
    pub scores: Option<Vec<f32>>,
    /// `token_type` of each token; all normal when empty.
    pub token_types: Vec<i32>,
    /// `merges` of byte-level BPE, best first, two pieces with a space between them.
    pub merges: Vec<String>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `eot_token_id`: end of a turn, where it is not the end of text.
    pub eot: Option<u32>,
    /// `unknown_token_id`.
    pub unk: Option<u32>,
    /// `padding_token_id`.
    pub pad: Option<u32>,
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `add_space_prefix` of SentencePiece.
    pub add_space_prefix: Option<bool>,
}

/// `token_type` of GGUF (ggml's `llama_token_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenKind {
    Normal,
    /// A control token: unknown (2) and control (3).
    Control,
    UserDefined,
    /// Padding of the vocabulary to a round size: never generated, decodes to nothing.
    Unused,
    Byte,
}

/// Properties that the kind of vocabulary implies.
#[derive(Clone, Copy)]
struct Traits {
    pre_tokenizer: Option<PreTokenizerKind>,
    spelling: Spelling,
    strips_leading_space: bool,
    /// True if a text starts with the beginning-of-text token unless the file specifies otherwise.
    adds_bos: bool,
}

/// Control tokens that end an answer regardless of `eos_token_id`: files name one, models were trained with several.
const END_TOKENS: [&str; 8] =
    ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>", "</s>"];

impl GgufVocabulary {
    /// Checks the lists against one another and builds the tokenizer's parts.
    pub(crate) fn into_parts(self) -> Result<Parts, TokenizerError> {
        self.check_lengths()?;
        let kinds = self.kinds();
        match self.model.as_str() {
            "gpt2" => self.byte_level_parts(&kinds),
            "llama" => self.sentencepiece_parts(&kinds),
            _ => Err(TokenizerError::UnsupportedModel { model: brief(&self.model) }),
        }
    }

    fn check_lengths(&self) -> Result<(), TokenizerError> {
        let expected = self.tokens.len();
        if expected == 0 {
            return Err(TokenizerError::MissingField { field: "tokens" });
        }
        let num_scores = self.scores.as_ref().map_or(expected, Vec::len);
        let num_types = if self.token_types.is_empty() { expected } else { self.token_types.len() };
        for (field, found) in [("scores", num_scores), ("token_type", num_types)] {
            if found != expected {
                return Err(TokenizerError::LengthMismatch { field, found, expected });
            }
        }
        let special = [self.bos, self.eos, self.eot, self.unk, self.pad];
        match special.into_iter().flatten().find(|&id| id as usize >= expected) {
            Some(id) => Err(TokenizerError::TokenOutOfRange { id, vocab_size: expected }),
            None => Ok(()),
        }
    }

    fn kinds(&self) -> Vec<TokenKind> {
        if self.token_types.is_empty() {
            return vec![TokenKind::Normal; self.tokens.len()];
        }
        let kind = |&number: &i32| match number {
            2 | 3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => TokenKind::Normal,
        };
        self.token_types.iter().map(kind).collect()
    }

    fn byte_level_parts(self, kinds: &[TokenKind]) -> Result<Parts, TokenizerError> {
        let rule = GgufRule::named(&self.pre)?;
        let merges: Merges = self.merges.iter().map(|merge| parse_merge(merge)).collect::<Result<_, _>>()?;
        let bpe = BPE::builder().vocab_and_merges(self.model_vocab(kinds), merges).ignore_merges(rule.ignores_merges);
        let mut hf = tokenizers::Tokenizer::new(bpe.build().map_err(TokenizerError::library)?);
        if rule.normalizes_to_nfc {
            hf.with_normalizer(Some(NFC)).map_err(TokenizerError::library)?;
        }
        hf.with_pre_tokenizer(Some(rule.cut.reference()));
        hf.with_decoder(Some(ByteLevel::default()));
        let traits = Traits {
            pre_tokenizer: match rule.cut {
                Cut::Quick(kind) => Some(kind),
                Cut::Steps(_) => None,
            },
            spelling: Spelling::ByteLevel,
            strips_leading_space: false,
            adds_bos: rule.adds_bos,
        };
        self.finish(hf, kinds, traits)
    }

    fn sentencepiece_parts(self, kinds: &[TokenKind]) -> Result<Parts, TokenizerError> {
        let scores = self.scores.as_deref().ok_or(TokenizerError::MissingField { field: "scores" })?;
        let merges = merges_by_score(&self.tokens, scores, kinds);
        let mut bpe = BPE::builder().vocab_and_merges(self.model_vocab(kinds), merges).byte_fallback(true).fuse_unk(true);
        if let Some(unk) = self.unk {
            bpe = bpe.unk_token(self.tokens[unk as usize].clone());
        }
        let mut hf = tokenizers::Tokenizer::new(bpe.build().map_err(TokenizerError::library)?);
        let add_space_prefix = self.add_space_prefix.unwrap_or(true);
        let mut steps: Vec<NormalizerWrapper> = Vec::new();
        if add_space_prefix {
            steps.push(Prepend::new("▁".to_owned()).into());
        }
        steps.push(Replace::new(" ", "▁").map_err(TokenizerError::library)?.into());
        hf.with_normalizer(Some(Sequence::new(steps))).map_err(TokenizerError::library)?;
        let traits = Traits {
            pre_tokenizer: None,
            spelling: Spelling::SentencePiece,
            strips_leading_space: add_space_prefix,
            adds_bos: true,
        };
        self.finish(hf, kinds, traits)
    }

    /// Returns ids by text of all tokens that text may become.
    fn model_vocab(&self, kinds: &[TokenKind]) -> Vocab {
        let used = self.tokens.iter().zip(0u32..).zip(kinds).filter(|(_, kind)| **kind != TokenKind::Unused);
        used.map(|((token, id), _)| (token.clone(), id)).collect()
    }

    fn finish(self, mut hf: tokenizers::Tokenizer, kinds: &[TokenKind], traits: Traits) -> Result<Parts, TokenizerError> {
        let added = self.added_tokens(kinds);
        hf.add_tokens(added.iter().map(|token| tokenizers::AddedToken::from(&*token.text, token.is_special).normalized(false)))
            .map_err(TokenizerError::library)?;
        let add_bos = self.add_bos.unwrap_or(traits.adds_bos && self.bos.is_some());
        let add_eos = self.add_eos.unwrap_or(false);
        Ok(Parts {
            prefix: affix(add_bos, self.bos, "bos_token_id")?,
            suffix: affix(add_eos, self.eos, "eos_token_id")?,
            bytes: TokenBytes::new(self.bytes_by_id(kinds, traits.spelling)),
            bos: self.bos.map(TokenId),
            eos: self.end_tokens(&added),
            named_tokens: self.named_tokens(),
            hf,
            pre_tokenizer: traits.pre_tokenizer,
            added,
            strips_leading_space: traits.strips_leading_space,
        })
    }

    /// Returns the texts of the special tokens that chat templates know by name.
    fn named_tokens(&self) -> Map<String, Value> {
        let named = [("bos_token", self.bos), ("eos_token", self.eos), ("unk_token", self.unk), ("pad_token", self.pad)];
        let text = |(name, id): (&str, Option<u32>)| Some((name.to_owned(), self.tokens[id? as usize].clone().into()));
        named.into_iter().filter_map(text).collect()
    }

    fn added_tokens(&self, kinds: &[TokenKind]) -> Vec<AddedToken> {
        let tokens = self.tokens.iter().zip(0u32..).zip(kinds);
        let added = tokens.filter(|(_, kind)| matches!(kind, TokenKind::Control | TokenKind::UserDefined));
        added
            .map(|((text, id), kind)| AddedToken {
                text: text.clone(),
                id: TokenId(id),
                is_special: *kind == TokenKind::Control,
                takes_space_before: false,
                takes_space_after: false,
            })
            .collect()
    }

    fn bytes_by_id(&self, kinds: &[TokenKind], spelling: Spelling) -> Vec<Vec<u8>> {
        let speller = Speller::new(spelling);
        let bytes = |(token, kind): (&String, &TokenKind)| match kind {
            TokenKind::Unused => Vec::new(),
            TokenKind::Control | TokenKind::UserDefined => token.as_bytes().to_vec(),
            TokenKind::Normal | TokenKind::Byte => speller.bytes(token),
        };
        self.tokens.iter().zip(kinds).map(bytes).collect()
    }

    /// Returns the tokens that end an answer, the file's own first.
    fn end_tokens(&self, added: &[AddedToken]) -> Vec<TokenId> {
        let mut ids: Vec<TokenId> = [self.eos, self.eot].into_iter().flatten().map(TokenId).collect();
        ids.extend(added.iter().filter(|token| END_TOKENS.contains(&&*token.text)).map(|token| token.id));
        let mut seen = Vec::new();
        ids.retain(|id| {
            !seen.contains(id) && {
                seen.push(*id);
                true
            }
        });
        ids
    }
}

fn affix(wanted: bool, id: Option<u32>, field: &'static str) -> Result<Vec<TokenId>, TokenizerError> {
    match (wanted, id) {
        (false, _) => Ok(Vec::new()),
        (true, Some(id)) => Ok(vec![TokenId(id)]),
        (true, None) => Err(TokenizerError::MissingField { field }),
    }
}

fn parse_merge(merge: &str) -> Result<(String, String), TokenizerError> {
    match merge.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
            Ok((left.to_owned(), right.to_owned()))
        }
        _ => Err(TokenizerError::MalformedMerge { merge: brief(&merge) }),
    }
}

/// Returns the merge rules equivalent to joining the two neighbours of the highest score: every way to split a piece into two pieces,
/// ordered by the score of the whole.
fn merges_by_score(tokens: &[String], scores: &[f32], kinds: &[TokenKind]) -> Merges {
    let is_normal = |id: usize| kinds[id] == TokenKind::Normal;
    let normal: std::collections::HashSet<&str> =
        (0..tokens.len()).filter(|&id| is_normal(id)).map(|id| tokens[id].as_str()).collect();
    let mut by_score: Vec<usize> = (0..tokens.len()).filter(|&id| is_normal(id)).collect();
    by_score.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let cuts = |id: usize| {
        let token = tokens[id].as_str();
        token.char_indices().skip(1).map(move |(at, _)| token.split_at(at))
    };
    let both_known = |(left, right): &(&str, &str)| normal.contains(left) && normal.contains(right);
    by_score.into_iter().flat_map(cuts).filter(both_known).map(|(left, right)| (left.to_owned(), right.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tokenizer;

    /// Returns a SentencePiece vocabulary of "▁", letters and a few merged pieces; ids 0..=2 are control tokens, 3..=258 bytes.
    fn sentencepiece() -> GgufVocabulary {
        let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
        tokens.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
        let pieces = ["▁a", "bc", "▁ab", "ab", "▁", "a", "b", "c"];
        tokens.extend(pieces.map(str::to_owned));
        let mut token_types = vec![2, 3, 3];
        token_types.extend([6; 256]);
        token_types.extend([1; 8]);
        let scores = (0..tokens.len()).map(|id| if id < 259 { 0.0 } else { 259.0 - id as f32 }).collect();
        GgufVocabulary {
            model: "llama".into(),
            scores: Some(scores),
            tokens,
            token_types,
            bos: Some(1),
            eos: Some(2),
            unk: Some(0),
            ..GgufVocabulary::default()
        }
    }

    #[track_caller]
    fn check(vocabulary: GgufVocabulary, text: &str, expected: &[u32]) {
        let tokenizer = Tokenizer::from_gguf(vocabulary).unwrap();
        let encoded = tokenizer.encode(text, true).unwrap();
        assert_eq!(encoded.token_ids.iter().map(|id| id.0).collect::<Vec<_>>(), expected);
    }

    #[track_caller]
    fn check_refused(vocabulary: GgufVocabulary, named: &str) {
        let error = Tokenizer::from_gguf(vocabulary).err().expect("refused").to_string();
        assert!(error.contains(named), "{error}");
    }

    #[test]
    fn the_highest_score_merges_first() {
        // After "▁a", "bc" outranks "▁ab" although it is further right.
        check(sentencepiece(), "abc", &[1, 259, 260]);
    }

    #[test]
    fn a_character_without_a_piece_falls_back_to_bytes() {
        check(sentencepiece(), "é", &[1, 263, 3 + 0xc3, 3 + 0xa9]);
    }

    #[test]
    fn a_space_prefix_can_be_refused() {
        check(GgufVocabulary { add_space_prefix: Some(false), ..sentencepiece() }, "bc", &[1, 260]);
    }

    #[test]
    fn text_after_a_special_token_gets_its_own_space_prefix() {
        check(GgufVocabulary { add_bos: Some(false), ..sentencepiece() }, "a</s>a", &[259, 2, 259]);
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        check_refused(GgufVocabulary { model: "t5".into(), ..sentencepiece() }, "\"t5\"");
        check_refused(GgufVocabulary { model: "gpt2".into(), pre: "superbpe".into(), ..sentencepiece() }, "\"superbpe\"");
    }

    #[test]
    fn lists_that_disagree_are_refused() {
        check_refused(GgufVocabulary { token_types: vec![1], ..sentencepiece() }, "token_type has 1 entries");
        check_refused(GgufVocabulary { scores: None, ..sentencepiece() }, "no scores");
        check_refused(GgufVocabulary { eos: Some(9999), ..sentencepiece() }, "9999");
        check_refused(GgufVocabulary { bos: None, add_bos: Some(true), ..sentencepiece() }, "bos_token_id");
        let broken_merge =
            GgufVocabulary { model: "gpt2".into(), pre: "qwen2".into(), merges: vec!["ab".into()], ..sentencepiece() };
        check_refused(broken_merge, "\"ab\"");
    }

    #[test]
    fn an_unused_token_stands_for_nothing() {
        let mut vocabulary = sentencepiece();
        vocabulary.token_types[259] = 5;
        let tokenizer = Tokenizer::from_gguf(vocabulary).unwrap();
        assert_eq!(tokenizer.token_bytes(TokenId(259)), b"");
        assert_eq!(tokenizer.vocab_size(), 267);
    }
}
