//! Requests for embeddings, orders and scores of texts.

use std::fmt;

use protocol::{EmbeddingsRequest, EncodingFormat, Prompt, RerankDocument, RerankRequest, ScoreRequest, Texts};

use super::fields::{EMBEDDINGS, RERANK, SCORE, judge};
use super::sampling::count;
use crate::error::ApiError;
use crate::text_embedding::TextEmbedder;

/// Maximum texts of one request, as in OpenAI's API.
const MAX_TEXTS: usize = 2048;

/// A text to be embedded, with its place in the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EmbeddingInput {
    pub(crate) source: InputSource,
    pub(crate) place: Place,
    /// Number of tokens beyond which further ones are dropped; `None` to refuse a longer text.
    pub(crate) cut: Option<usize>,
}

/// A text, or its tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum InputSource {
    Text(String),
    /// Ids of the embedder's vocabulary, already cut.
    Tokens(Vec<u32>),
}

/// A field of a request, or an element of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    field: &'static str,
    index: Option<usize>,
}

/// A valid request for embeddings.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ValidEmbeddings {
    /// At least one.
    pub(crate) inputs: Vec<EmbeddingInput>,
    pub(crate) format: EncodingFormat,
    /// Elements of an embedding, at most those of the model.
    pub(crate) num_dimensions: usize,
}

/// A valid request to order documents.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ValidRerank {
    /// The query, and at least one document.
    pub(crate) inputs: Vec<EmbeddingInput>,
    /// Texts of the documents, if results carry them.
    pub(crate) documents: Option<Vec<String>>,
    pub(crate) top_n: usize,
}

/// A valid request to compare texts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ValidScore {
    /// All texts, those of `text_1` first.
    pub(crate) inputs: Vec<EmbeddingInput>,
    /// Number of those of `text_1`: 1, or half of all.
    pub(crate) num_first: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(f, "{}[{index}]", self.field),
            None => f.write_str(self.field),
        }
    }
}

impl Place {
    /// Returns an error about this place.
    pub(crate) fn error(self, message: &str) -> ApiError {
        ApiError::param(self.to_string(), message)
    }

    /// Returns the error of a text of `len` tokens here, of which there may be `max`.
    pub(crate) fn too_long(self, len: usize, max: usize) -> ApiError {
        self.error(&format!("`{self}` has {len} tokens, at most {max} are embedded: shorten it, or set `truncate_prompt_tokens`"))
    }
}

impl ValidEmbeddings {
    /// Validates a request for embeddings by `embedder`.
    pub(crate) fn new(request: EmbeddingsRequest, embedder: &dyn TextEmbedder) -> Result<Self, ApiError> {
        let request = judge(request, EMBEDDINGS)?;
        check_model(request.model, embedder)?;
        let cut = valid_cut(request.truncate_prompt_tokens, embedder)?;
        let text = |place, text| valid_text(place, text, cut);
        let tokens = |place, ids| valid_ids(place, ids, cut, embedder);
        let inputs = match request.input {
            Some(Prompt::Text(input)) => vec![text(alone("input"), input)?],
            Some(Prompt::Tokens(ids)) => vec![tokens(alone("input"), ids)?],
            Some(Prompt::Texts(texts)) => elements("input", texts, text)?,
            Some(Prompt::TokenLists(lists)) => elements("input", lists, tokens)?,
            None => return Err(ApiError::param("input", "you must provide an input")),
        };
        let most = embedder.num_dimensions();
        let num_dimensions = match request.dimensions {
            Some(wanted) => usize::try_from(wanted).ok().filter(|wanted| (1..=most).contains(wanted)).ok_or_else(|| {
                let message = format!("`dimensions` must be between 1 and {most}, those of `{}`, is {wanted}", embedder.id());
                ApiError::param("dimensions", message)
            })?,
            None => most,
        };
        Ok(Self { inputs, format: request.encoding_format.unwrap_or_default(), num_dimensions })
    }
}

impl ValidRerank {
    /// Validates a request to order documents by `embedder`.
    pub(crate) fn new(request: RerankRequest, embedder: &dyn TextEmbedder) -> Result<Self, ApiError> {
        let request = judge(request, RERANK)?;
        check_model(request.model, embedder)?;
        let cut = valid_cut(request.truncate_prompt_tokens, embedder)?;
        let cut_documents = match request.max_tokens_per_doc {
            Some(max) => {
                let max = count("max_tokens_per_doc", max, 1..=u32::MAX)? as usize;
                Some(max.min(cut.unwrap_or(usize::MAX)).min(embedder.max_tokens()))
            }
            None => cut,
        };
        let query = request.query.ok_or_else(|| ApiError::param("query", "you must provide a query"))?;
        let documents = request.documents.ok_or_else(|| ApiError::param("documents", "you must provide documents"))?;
        let documents: Vec<_> = documents.into_iter().map(RerankDocument::into_text).collect();
        let returned = request.return_documents.unwrap_or(false).then(|| documents.clone());
        let mut inputs = vec![valid_text(alone("query"), query, cut)?];
        inputs.extend(elements("documents", documents, |place, text| valid_text(place, text, cut_documents))?);
        let top_n = request.top_n.map_or(Ok(u32::MAX), |top_n| count("top_n", top_n, 1..=u32::MAX))?;
        Ok(Self { inputs, documents: returned, top_n: top_n as usize })
    }
}

impl ValidScore {
    /// Validates a request to compare texts by `embedder`.
    pub(crate) fn new(request: ScoreRequest, embedder: &dyn TextEmbedder) -> Result<Self, ApiError> {
        let request = judge(request, SCORE)?;
        check_model(request.model, embedder)?;
        let cut = valid_cut(request.truncate_prompt_tokens, embedder)?;
        let texts = |field: &'static str, texts: Option<Texts>| match texts {
            Some(Texts::One(text)) => Ok(vec![valid_text(alone(field), text, cut)?]),
            Some(Texts::Many(texts)) => elements(field, texts, |place, text| valid_text(place, text, cut)),
            None => Err(ApiError::param(field, format!("you must provide `{field}`"))),
        };
        let (mut inputs, second) = (texts("text_1", request.text_1)?, texts("text_2", request.text_2)?);
        let num_first = inputs.len();
        if num_first != 1 && num_first != second.len() {
            let message = format!("`text_1` has {num_first} texts and `text_2` {}: give one, or as many", second.len());
            return Err(ApiError::param("text_1", message));
        }
        inputs.extend(second);
        Ok(Self { inputs, num_first })
    }
}

/// Returns the place of a field.
const fn alone(field: &'static str) -> Place {
    Place { field, index: None }
}

/// Validates the elements of the list `field`, of which there is at least one.
fn elements<T>(
    field: &'static str,
    elements: Vec<T>,
    valid: impl Fn(Place, T) -> Result<EmbeddingInput, ApiError>,
) -> Result<Vec<EmbeddingInput>, ApiError> {
    match elements.len() {
        0 => Err(alone(field).error("must not be empty")),
        num_texts if num_texts > MAX_TEXTS => {
            Err(alone(field).error(&format!("`{field}` has {num_texts} elements, at most {MAX_TEXTS} are taken at once")))
        }
        _ => {
            elements.into_iter().enumerate().map(|(index, element)| valid(Place { field, index: Some(index) }, element)).collect()
        }
    }
}

fn valid_text(place: Place, text: String, cut: Option<usize>) -> Result<EmbeddingInput, ApiError> {
    match text.is_empty() {
        true => Err(place.error("must not be empty")),
        false => Ok(EmbeddingInput { source: InputSource::Text(text), place, cut }),
    }
}

/// Validates token ids, which are embedded as they are: no special tokens are added.
fn valid_ids(
    place: Place,
    mut ids: Vec<u32>,
    cut: Option<usize>,
    embedder: &dyn TextEmbedder,
) -> Result<EmbeddingInput, ApiError> {
    let (vocab_size, max_tokens) = (embedder.vocab_size(), embedder.max_tokens());
    ids.truncate(cut.unwrap_or(usize::MAX));
    if ids.is_empty() {
        return Err(place.error("must not be empty"));
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
        let id = format!("token id {id} is not in the vocabulary of `{}`, which has {vocab_size} tokens", embedder.id());
        return Err(place.error(&id));
    }
    match ids.len() <= max_tokens {
        true => Ok(EmbeddingInput { source: InputSource::Tokens(ids), place, cut }),
        false => Err(place.too_long(ids.len(), max_tokens)),
    }
}

/// Validates the number of tokens beyond which further ones are dropped; -1 is the model's maximum.
fn valid_cut(cut: Option<i64>, embedder: &dyn TextEmbedder) -> Result<Option<usize>, ApiError> {
    let max_tokens = embedder.max_tokens();
    match cut {
        None => Ok(None),
        Some(-1) => Ok(Some(max_tokens)),
        Some(wanted) => match usize::try_from(wanted) {
            Ok(cut) if (1..=max_tokens).contains(&cut) => Ok(Some(cut)),
            _ => {
                let message = format!("`truncate_prompt_tokens` must be -1, or between 1 and {max_tokens}, is {wanted}");
                Err(ApiError::param("truncate_prompt_tokens", message))
            }
        },
    }
}

/// Checks the model's name, which is optional: there is only one that embeds texts.
fn check_model(name: Option<String>, embedder: &dyn TextEmbedder) -> Result<(), ApiError> {
    match name {
        Some(name) if name != embedder.id() => {
            let message = format!("the model `{name}` embeds no texts here: `{}` does", embedder.id());
            Err(ApiError::NoSuchEmbedder { message })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::embedding::Embedding;

    /// Embedder of 10 tokens of 50, in 4 dimensions.
    struct Tiny;

    impl TextEmbedder for Tiny {
        fn id(&self) -> &str {
            "tiny"
        }

        fn num_dimensions(&self) -> usize {
            4
        }

        fn max_tokens(&self) -> usize {
            10
        }

        fn vocab_size(&self) -> usize {
            50
        }

        fn tokenize(&self, _: &str, _: Option<usize>) -> Result<Vec<u32>, String> {
            Err("not needed here".to_owned())
        }

        fn embed(&self, _: &[&[u32]]) -> Result<Vec<Embedding>, String> {
            Err("not needed here".to_owned())
        }
    }

    fn embeddings(fields: Value) -> Result<ValidEmbeddings, ApiError> {
        ValidEmbeddings::new(serde_json::from_value(fields).unwrap(), &Tiny)
    }

    fn rerank(fields: Value) -> Result<ValidRerank, ApiError> {
        ValidRerank::new(serde_json::from_value(fields).unwrap(), &Tiny)
    }

    fn score(fields: Value) -> Result<ValidScore, ApiError> {
        ValidScore::new(serde_json::from_value(fields).unwrap(), &Tiny)
    }

    /// Checks that a request is refused for `param`, with `part` in the message.
    #[track_caller]
    fn check_refused<T: fmt::Debug>(request: Result<T, ApiError>, param: &str, part: &str) {
        let error = request.unwrap_err().body().error;
        assert_eq!(error.param.as_deref(), Some(param), "{error:?}");
        assert!(error.message.contains(part), "{error:?}");
    }

    fn cuts(inputs: &[EmbeddingInput]) -> Vec<Option<usize>> {
        inputs.iter().map(|input| input.cut).collect()
    }

    #[test]
    fn an_input_has_four_shapes() {
        let places = |input: Value| {
            let inputs = embeddings(json!({"input": input})).unwrap().inputs;
            inputs.iter().map(|input| input.place.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(places(json!("a")), ["input"]);
        assert_eq!(places(json!([1, 2])), ["input"]);
        assert_eq!(places(json!(["a", "b"])), ["input[0]", "input[1]"]);
        assert_eq!(places(json!([[1], [2, 3]])), ["input[0]", "input[1]"]);
    }

    #[test]
    fn an_input_that_cannot_be_embedded_is_named() {
        check_refused(embeddings(json!({})), "input", "provide an input");
        check_refused(embeddings(json!({"input": ""})), "input", "must not be empty");
        check_refused(embeddings(json!({"input": []})), "input", "must not be empty");
        check_refused(embeddings(json!({"input": ["a", ""]})), "input[1]", "must not be empty");
        check_refused(embeddings(json!({"input": [[1], []]})), "input[1]", "must not be empty");
        check_refused(embeddings(json!({"input": [[1], [2], [3], [4, 50]]})), "input[3]", "token id 50");
        check_refused(embeddings(json!({"input": [vec![1], vec![1; 11]]})), "input[1]", "has 11 tokens, at most 10");
        check_refused(embeddings(json!({"input": vec!["a"; 2049]})), "input", "2049 elements, at most 2048");
    }

    #[test]
    fn tokens_are_cut_where_that_was_asked_for() {
        let inputs =
            |cut: i64| embeddings(json!({"input": vec![7; 12], "truncate_prompt_tokens": cut})).map(|valid| valid.inputs);
        assert_eq!(inputs(-1).unwrap()[0].source, InputSource::Tokens(vec![7; 10]));
        assert_eq!(inputs(3).unwrap()[0].source, InputSource::Tokens(vec![7; 3]));
        for cut in [-2, 0, 11] {
            check_refused(inputs(cut), "truncate_prompt_tokens", "-1, or between 1 and 10");
        }
    }

    #[test]
    fn dimensions_are_those_of_the_model_or_fewer() {
        let dimensions = |more: Value| embeddings(json!({"input": "a", "dimensions": more})).map(|valid| valid.num_dimensions);
        assert_eq!((dimensions(Value::Null).unwrap(), dimensions(json!(1)).unwrap(), dimensions(json!(4)).unwrap()), (4, 1, 4));
        for wrong in [0, -1, 5] {
            check_refused(dimensions(json!(wrong)), "dimensions", "between 1 and 4");
        }
    }

    #[test]
    fn the_model_is_the_one_that_embeds() {
        assert!(embeddings(json!({"input": "a", "model": "tiny"})).is_ok());
        let error = embeddings(json!({"input": "a", "model": "llama"})).unwrap_err();
        assert_eq!(error.status(), 404);
        check_refused(Err::<(), _>(error), "model", "`tiny` does");
    }

    #[test]
    fn documents_are_cut_alone_or_with_the_query() {
        let cuts_of = |more: Value| {
            let mut fields = json!({"query": "q", "documents": ["a", {"text": "b"}]});
            fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            cuts(&rerank(fields).unwrap().inputs)
        };
        assert_eq!(cuts_of(json!({})), [None, None, None]);
        assert_eq!(cuts_of(json!({"truncate_prompt_tokens": 5})), [Some(5), Some(5), Some(5)]);
        assert_eq!(cuts_of(json!({"max_tokens_per_doc": 4096})), [None, Some(10), Some(10)]);
        assert_eq!(cuts_of(json!({"max_tokens_per_doc": 3, "truncate_prompt_tokens": -1})), [Some(10), Some(3), Some(3)]);
    }

    #[test]
    fn an_order_needs_a_query_and_documents() {
        check_refused(rerank(json!({"documents": ["a"]})), "query", "provide a query");
        check_refused(rerank(json!({"query": "q"})), "documents", "provide documents");
        check_refused(rerank(json!({"query": "q", "documents": []})), "documents", "must not be empty");
        check_refused(rerank(json!({"query": "q", "documents": ["a", ""]})), "documents[1]", "must not be empty");
        check_refused(rerank(json!({"query": "q", "documents": ["a"], "top_n": 0})), "top_n", "at least 1");
        let valid = rerank(json!({"query": "q", "documents": ["a"], "top_n": 3, "return_documents": true})).unwrap();
        assert_eq!((valid.top_n, valid.documents), (3, Some(vec!["a".to_owned()])));
    }

    #[test]
    fn texts_are_compared_one_to_many_or_in_pairs() {
        let sizes = |first: Value, second: Value| {
            score(json!({"text_1": first, "text_2": second})).map(|valid| (valid.num_first, valid.inputs.len()))
        };
        assert_eq!(sizes(json!("a"), json!("b")).unwrap(), (1, 2));
        assert_eq!(sizes(json!("a"), json!(["b", "c"])).unwrap(), (1, 3));
        assert_eq!(sizes(json!(["a", "b"]), json!(["c", "d"])).unwrap(), (2, 4));
        check_refused(sizes(json!(["a", "b"]), json!("c")), "text_1", "has 2 texts and `text_2` 1");
        check_refused(sizes(json!("a"), json!(["b", ""])), "text_2[1]", "must not be empty");
        check_refused(sizes(json!("a"), Value::Null), "text_2", "must provide `text_2`");
    }

    #[test]
    fn names_of_vllm_are_other_names() {
        let valid = score(json!({"queries": "a", "documents": ["b", "c"]})).unwrap();
        assert_eq!((valid.num_first, valid.inputs.len()), (1, 3));
        assert_eq!(embeddings(json!({"content": "a"})).unwrap().inputs.len(), 1);
    }
}
