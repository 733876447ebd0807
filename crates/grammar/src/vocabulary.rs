//! Tokens of a model, in the form in which grammars walk them.

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::earley::SlicedBiasComputer;
use tokens::TokenId;
use toktrie::{ApproximateTokEnv, InferenceCapabilities, TokRxInfo, TokTrie};

use crate::{Constraint, Grammar, GrammarError};

/// Most states of the lexer of one grammar. Chosen: schemas of a hundred fields have some thousand.
const MAX_LEXER_STATES: usize = 25_000;

/// Vocabulary of a model. Built once; takes some hundred milliseconds for 150,000 tokens.
pub struct Vocabulary {
    factory: ParserFactory,
}

impl Vocabulary {
    /// Builds the vocabulary of `vocab_size` tokens. `bytes` returns what a token adds to the text, empty for one that no grammar may use; `eos`
    /// are the tokens that end an answer.
    ///
    /// # Panics
    /// If `eos` is empty: no answer could end.
    #[must_use]
    pub fn new<'a>(vocab_size: usize, bytes: impl Fn(TokenId) -> &'a [u8], eos: &[TokenId]) -> Self {
        let words: Vec<Vec<u8>> = (0..vocab_size as u32).map(|token| word(bytes(TokenId(token)), token, eos)).collect();
        let eos: Vec<u32> = eos.iter().map(|token| token.0).collect();
        let first = *eos.first().expect("a model has a token that ends an answer");
        let trie = TokTrie::from(&TokRxInfo::new(vocab_size as u32, first), &words).with_eos_tokens(&eos);
        let env: toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
            .expect("the general slices are valid expressions");
        factory.quiet();
        // Errors reach clients, who need the cause and not the parser's state.
        factory.limits_mut().verbose_errors = false;
        // One to two kilobytes each: what one request may take of memory.
        factory.limits_mut().max_lexer_states = MAX_LEXER_STATES;
        Self { factory }
    }

    /// Compiles `constraint`.
    ///
    /// # Errors
    /// If it is malformed, uses something that is not supported, or is too large; says where.
    pub fn compile(&self, constraint: &Constraint) -> Result<Grammar, GrammarError> {
        Grammar::compile(&self.factory, constraint)
    }
}

/// Returns the text of a token. One that ends an answer is a control token to the parser: grammars do not spell it.
fn word(bytes: &[u8], token: u32, eos: &[TokenId]) -> Vec<u8> {
    if !eos.contains(&TokenId(token)) {
        return bytes.to_vec();
    }
    [&[TokTrie::SPECIAL_TOKEN_MARKER], format!("<eos-{token}>").as_bytes()].concat()
}
