//! Compiles the constraints of requests over the served model's vocabulary.

use std::sync::{Arc, OnceLock};

use grammar::{Grammar, GrammarError, Vocabulary};
use tokenizer::Tokenizer;

use crate::error::ApiError;
use crate::heavy::Heavy;
use crate::valid::ValidConstraint;

/// Compiler of constraints. Builds its vocabulary on a thread of its own, so that neither the start nor the first request waits for it long.
#[derive(Clone)]
pub(crate) struct Grammars {
    tokenizer: Arc<Tokenizer>,
    vocabulary: Arc<OnceLock<Option<Vocabulary>>>,
}

impl Grammars {
    /// Begins to build the vocabulary of `tokenizer`.
    pub(crate) fn new(tokenizer: &Arc<Tokenizer>) -> Self {
        let grammars = Self { tokenizer: Arc::clone(tokenizer), vocabulary: Arc::default() };
        let built = grammars.clone();
        let build = move || {
            built.vocabulary();
        };
        // Without the thread, the first constrained request builds it.
        drop(std::thread::Builder::new().name("vocabulary".to_owned()).spawn(build));
        grammars
    }

    /// Compiles a constraint, away from the tasks that do I/O.
    ///
    /// # Errors
    /// If it cannot be enforced; names its field.
    pub(crate) async fn compile(&self, constraint: ValidConstraint, heavy: &Heavy) -> Result<Grammar, ApiError> {
        let ValidConstraint { param, constraint } = constraint;
        let grammars = self.clone();
        // Any constraint may take long, however short it is.
        let compiled = heavy.run(1, 0, move || Some(grammars.vocabulary()?.compile(&constraint))).await;
        match compiled {
            Some(compiled) => compiled.map_err(|error: GrammarError| ApiError::param(param, error.to_string())),
            None => Err(ApiError::param(param, "this model has no token that ends an answer, so none can be constrained")),
        }
    }

    fn vocabulary(&self) -> Option<&Vocabulary> {
        self.vocabulary.get_or_init(|| vocabulary(&self.tokenizer)).as_ref()
    }
}

/// Builds the vocabulary of `tokenizer` for grammars: control tokens have no text there. `None` if no token ends an answer.
#[must_use]
pub fn vocabulary(tokenizer: &Tokenizer) -> Option<Vocabulary> {
    let text = |token| if tokenizer.is_special(token) { &[][..] } else { tokenizer.token_bytes(token) };
    let has_end = !tokenizer.eos_ids().is_empty();
    has_end.then(|| Vocabulary::new(tokenizer.vocab_size(), text, tokenizer.eos_ids()))
}
