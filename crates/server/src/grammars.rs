//! Compiles the constraints of requests over the served model's vocabulary.

mod cache;
mod calls;
mod demand;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use grammar::{Constraint, Grammar, GrammarError, Vocabulary};
use tokenizer::Tokenizer;

use self::cache::{GrammarCache, GrammarKey};
use self::calls::CallGrammar;
pub(crate) use self::demand::Demand;

use crate::error::ApiError;
use crate::heavy::Heavy;
use crate::valid::ValidTools;

/// Compiler of constraints. Builds its vocabulary on a thread of its own, so that neither the start nor the first request waits for it long.
#[derive(Clone)]
pub(crate) struct Grammars {
    tokenizer: Arc<Tokenizer>,
    vocabulary: Arc<OnceLock<Option<Vocabulary>>>,
    /// Grammars of recent requests: agents send the same tools with every turn.
    cache: Arc<Mutex<GrammarCache>>,
}

impl Grammars {
    /// Begins to build the vocabulary of `tokenizer`.
    pub(crate) fn new(tokenizer: &Arc<Tokenizer>) -> Self {
        let grammars = Self { tokenizer: Arc::clone(tokenizer), vocabulary: Arc::default(), cache: Arc::default() };
        let built = grammars.clone();
        let build = move || {
            built.vocabulary();
        };
        // Without the thread, the first constrained request builds it.
        drop(std::thread::Builder::new().name("vocabulary".to_owned()).spawn(build));
        grammars
    }

    /// Compiles what the answers of a request of `scope` must be, away from the tasks that do I/O. `None` if nothing constrains them.
    ///
    /// # Errors
    /// If a constraint cannot be enforced; names its field.
    pub(crate) async fn compile(&self, scope: &str, demand: Demand, heavy: &Heavy) -> Result<Option<Grammar>, ApiError> {
        if demand.text.is_none() && demand.tools.is_none() {
            return Ok(None);
        }
        // Equal only to requests of its own tenant: the time to compile says nothing about those of others.
        let key = GrammarKey::new(scope, &demand);
        if let Some(found) = self.cache().get(&key) {
            return Ok(found);
        }
        let grammars = self.clone();
        // Any constraint may take long, however short it is.
        let compiled = heavy.run(1, 0, move || grammars.compile_here(&demand)).await?;
        self.cache().insert(key, compiled.clone());
        Ok(compiled)
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, GrammarCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn compile_here(&self, demand: &Demand) -> Result<Option<Grammar>, ApiError> {
        let param = demand.text.as_ref().map_or("tools", |text| text.param);
        let Some(vocabulary) = self.vocabulary() else {
            let has_need = demand.text.is_some() || demand.tools.as_ref().is_some_and(ValidTools::must_match);
            return match has_need {
                true => Err(ApiError::param(param, "this model has no token that ends an answer, so none can be constrained")),
                false => Ok(None),
            };
        };
        let compile = |constraint: &Constraint, param| {
            vocabulary.compile(constraint).map_err(|error: GrammarError| ApiError::param(param, error.to_string()))
        };
        // Reasoning is free; what follows it is constrained.
        let after_reasoning = |grammar: Grammar| match demand.thinking.and_then(|tags| self.tokenizer.token_id(tags.close)) {
            Some(close) => grammar.after(close),
            None => grammar,
        };
        match (&demand.tools, &demand.text) {
            (None, None) => Ok(None),
            (None, Some(text)) => compile(&text.constraint, text.param).map(after_reasoning).map(Some),
            (Some(tools), text) => {
                let Some(calls) = CallGrammar::new(tools, text.as_ref(), &self.tokenizer, demand.thinking.is_some())? else {
                    return Ok(None);
                };
                let strict = compile(&Constraint::Lark(calls.lark(false)), "tools");
                // A schema that cannot be enforced is none, unless its tool is strict.
                let compiled = strict.or_else(|_| compile(&Constraint::Lark(calls.lark(true)), "tools"));
                let compiled = compiled.map_err(|error| culprit(vocabulary, tools).unwrap_or(error))?;
                Ok(Some(match calls.trigger() {
                    Some(trigger) => compiled.after(trigger),
                    None => after_reasoning(compiled),
                }))
            }
        }
    }

    fn vocabulary(&self) -> Option<&Vocabulary> {
        self.vocabulary.get_or_init(|| vocabulary(&self.tokenizer)).as_ref()
    }
}

/// Returns the error of the first strict tool whose schema cannot be enforced, by its name.
fn culprit(vocabulary: &Vocabulary, tools: &ValidTools) -> Option<ApiError> {
    tools.tools.iter().filter(|tool| tool.is_strict).find_map(|tool| {
        let error = vocabulary.compile(&Constraint::JsonSchema(tool.parameters.clone())).err()?;
        Some(ApiError::param("tools", format!("the parameters of `{}` cannot be enforced: {error}", tool.name)))
    })
}

/// Builds the vocabulary of `tokenizer` for grammars: control tokens have no text there. `None` if no token ends an answer.
#[must_use]
pub fn vocabulary(tokenizer: &Tokenizer) -> Option<Vocabulary> {
    let text = |token| if tokenizer.is_special(token) { &[][..] } else { tokenizer.token_bytes(token) };
    let has_end = !tokenizer.eos_ids().is_empty();
    has_end.then(|| Vocabulary::new(tokenizer.vocab_size(), text, tokenizer.eos_ids()))
}
