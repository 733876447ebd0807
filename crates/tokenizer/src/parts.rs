//! Parts of a tokenizer that a vocabulary provides.

use serde_json::{Map, Value};
use tokenizers::NormalizerWrapper;
use tokenizers::decoders::DecoderWrapper;
use tokens::TokenId;

use crate::TokenizerError;
use crate::added::AddedToken;
use crate::error::brief;
use crate::pre_tokenizer::PreTokenizerKind;
use crate::token_bytes::{Speller, Spelling, TokenBytes};

/// Components that a vocabulary source provides.
pub(crate) struct Parts {
    /// Whole pipeline, added tokens included, without post-processing.
    pub(crate) hf: tokenizers::Tokenizer,
    /// Pre-tokenizer, if it is a known byte-level one.
    pub(crate) pre_tokenizer: Option<PreTokenizerKind>,
    pub(crate) added: Vec<AddedToken>,
    pub(crate) bytes: TokenBytes,
    /// True if decoding drops one leading space, which encoding had added.
    pub(crate) strips_leading_space: bool,
    /// Tokens that `add_special_tokens` puts before and after a text.
    pub(crate) prefix: Vec<TokenId>,
    pub(crate) suffix: Vec<TokenId>,
    pub(crate) bos: Option<TokenId>,
    pub(crate) eos: Vec<TokenId>,
    /// Names of special tokens, such as `pad_token`, and their texts.
    pub(crate) named_tokens: Map<String, Value>,
}

impl Parts {
    /// Extracts from a library tokenizer what the fast path and decoding need.
    pub(crate) fn from_library(hf: tokenizers::Tokenizer) -> Result<Self, TokenizerError> {
        let (spelling, strips_leading_space) = spelling_of(hf.get_decoder())?;
        let library_added = hf.get_added_tokens_decoder();
        let mut added: Vec<AddedToken> = library_added
            .iter()
            .map(|(&id, token)| AddedToken {
                text: token.content.clone(),
                id: TokenId(id),
                is_special: token.special,
                takes_space_before: token.lstrip,
                takes_space_after: token.rstrip,
            })
            .collect();
        added.sort_by_key(|token| token.id);
        let normalizer = hf.get_normalizer();
        let is_plain = |token: &tokenizers::AddedToken| {
            !token.single_word && !token.lstrip && !token.rstrip && (!token.normalized || normalizer.is_none())
        };
        let can_be_quick = matches!(hf.get_model(), tokenizers::ModelWrapper::BPE(_))
            && matches!(normalizer, None | Some(NormalizerWrapper::NFC(_)))
            && library_added.values().all(is_plain);
        let pre_tokenizer = hf.get_pre_tokenizer().and_then(PreTokenizerKind::recognize).filter(|_| can_be_quick);
        let bytes = bytes_by_id(&hf, &added, spelling)?;
        let (prefix, suffix) = affixes(&hf)?;
        Ok(Self {
            hf,
            pre_tokenizer,
            added,
            bytes,
            strips_leading_space,
            prefix,
            suffix,
            bos: None,
            eos: Vec::new(),
            named_tokens: Map::new(),
        })
    }
}

/// Bound of token ids. Chosen: sixteen times the largest vocabularies; a table by id of that length takes 100 MB.
const MAX_TOKENS: u32 = 1 << 22;

/// # Errors
/// If an id is so large that a table by id would fill memory.
fn bytes_by_id(hf: &tokenizers::Tokenizer, added: &[AddedToken], spelling: Spelling) -> Result<TokenBytes, TokenizerError> {
    let vocab = hf.get_vocab(true);
    if let Some((token, &id)) = vocab.iter().max_by_key(|(_, id)| **id).filter(|(_, id)| **id >= MAX_TOKENS) {
        return Err(TokenizerError::IdTooLarge { token: brief(token), id, limit: MAX_TOKENS });
    }
    let len = vocab.values().max().map_or(0, |&id| id as usize + 1);
    let speller = Speller::new(spelling);
    let mut bytes = vec![Vec::new(); len];
    for (text, id) in &vocab {
        bytes[*id as usize] = speller.bytes(text);
    }
    for token in added {
        bytes[token.id.0 as usize] = token.text.as_bytes().to_vec();
    }
    Ok(TokenBytes::new(bytes))
}

/// Returns the spelling of a library decoder, and true if it drops a leading space.
fn spelling_of(decoder: Option<&DecoderWrapper>) -> Result<(Spelling, bool), TokenizerError> {
    let json = serde_json::to_value(decoder).map_err(TokenizerError::library)?;
    let steps: Vec<&serde_json::Value> = match json["decoders"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![&json],
    };
    let has = |kind: &str| steps.iter().find(|step| step["type"] == kind);
    if has("ByteLevel").is_some() {
        return Ok((Spelling::ByteLevel, false));
    }
    if let Some(metaspace) = has("Metaspace") {
        return Ok((Spelling::SentencePiece, metaspace["prepend_scheme"] != "never"));
    }
    if has("ByteFallback").is_some() && has("Replace").is_some() {
        return Ok((Spelling::SentencePiece, has("Strip").is_some()));
    }
    Err(TokenizerError::UnsupportedDecoder { decoder: brief(&json) })
}

/// Returns the tokens that post-processing puts before and after a text, determined on a text of one letter.
fn affixes(hf: &tokenizers::Tokenizer) -> Result<(Vec<TokenId>, Vec<TokenId>), TokenizerError> {
    let encode = |add_special| hf.encode_fast("a", add_special).map(|encoding| encoding.get_ids().to_vec());
    let plain = encode(false).map_err(TokenizerError::library)?;
    let whole = encode(true).map_err(TokenizerError::library)?;
    let start = whole.windows(plain.len().max(1)).position(|window| window == plain).unwrap_or(0);
    let ids = |ids: &[u32]| ids.iter().copied().map(TokenId).collect();
    Ok((ids(&whole[..start]), ids(&whole[(start + plain.len()).min(whole.len())..])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoder_that_is_not_known_is_refused() {
        let decoder = DecoderWrapper::from(tokenizers::decoders::wordpiece::WordPiece::default());
        assert!(matches!(spelling_of(Some(&decoder)), Err(TokenizerError::UnsupportedDecoder { .. })));
    }
}
