//! Endpoints that embed texts: embeddings themselves, documents in the order of their relevance, and scores of pairs.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use protocol::{
    DocumentText, EmbeddingObject, EmbeddingValue, EmbeddingsRequest, EmbeddingsResponse, EncodingFormat, RerankRequest,
    RerankResponse, RerankResult, ScoreObject, ScoreRequest, ScoreResponse,
};
use serde::Serialize;

use crate::answer::AnswerHead;
use crate::body::Body;
use crate::error::ApiError;
use crate::heavy::Heavy;
use crate::state::AppState;
use crate::tenants::Caller;
use crate::valid::{ValidEmbeddings, ValidRerank, ValidScore};

/// Maximum bytes of an answer that is written inline. Chosen: that takes below a millisecond.
const INLINE_BYTES: usize = 32 << 10;
/// Bytes of an element in an answer, at most.
const ELEMENT_BYTES: usize = 16;

/// `POST /v1/embeddings`.
pub(super) async fn embeddings(State(app): State<Arc<AppState>>, caller: Caller, mut body: Body) -> Result<Response, ApiError> {
    let request = body.parse::<EmbeddingsRequest>().await?;
    let embedder = app.text_embeddings().embedder()?;
    let model = embedder.id().to_owned();
    let ValidEmbeddings { inputs, format, num_dimensions } = ValidEmbeddings::new(request, embedder)?;
    let embedded = app.text_embeddings().embed(&caller, inputs, body).await?;
    let num_bytes = embedded.vectors.len() * num_dimensions * ELEMENT_BYTES;
    let answer = move || {
        let object = |(index, vector): (usize, &Arc<[f32]>)| EmbeddingObject {
            object: "embedding".to_owned(),
            index,
            embedding: encoded(shortened(vector, num_dimensions), format),
        };
        let data = embedded.vectors.iter().enumerate().map(object).collect();
        EmbeddingsResponse { object: "list".to_owned(), data, model, usage: embedded.num_tokens.into() }
    };
    written(&app.heavy, num_bytes, answer).await
}

/// `POST /v1/rerank`.
pub(super) async fn rerank(State(app): State<Arc<AppState>>, caller: Caller, mut body: Body) -> Result<Response, ApiError> {
    let request = body.parse::<RerankRequest>().await?;
    let embedder = app.text_embeddings().embedder()?;
    let head = AnswerHead::new("rerank", embedder.id().to_owned(), String::new());
    let ValidRerank { inputs, documents, top_n } = ValidRerank::new(request, embedder)?;
    let embedded = app.text_embeddings().embed(&caller, inputs, body).await?;
    let num_bytes = embedded.vectors.len() * embedder.num_dimensions();
    let documents_bytes = documents.iter().flatten().map(String::len).sum::<usize>();
    let answer = move || {
        let (query, of_documents) = embedded.vectors.split_first().expect("a valid request has a query");
        let mut results: Vec<_> = of_documents
            .iter()
            .enumerate()
            .map(|(index, vector)| RerankResult { index, relevance_score: cosine(query, vector), document: None })
            .collect();
        // Stable: documents that are equally relevant stay in their order.
        results.sort_by(|a, b| b.relevance_score.total_cmp(&a.relevance_score));
        results.truncate(top_n);
        if let Some(mut documents) = documents {
            for result in &mut results {
                result.document = Some(DocumentText { text: std::mem::take(&mut documents[result.index]) });
            }
        }
        RerankResponse { id: head.id, model: head.model, results, usage: embedded.num_tokens.into() }
    };
    written(&app.heavy, num_bytes + documents_bytes, answer).await
}

/// `POST /v1/score`.
pub(super) async fn score(State(app): State<Arc<AppState>>, caller: Caller, mut body: Body) -> Result<Response, ApiError> {
    let request = body.parse::<ScoreRequest>().await?;
    let embedder = app.text_embeddings().embedder()?;
    let head = AnswerHead::new("score", embedder.id().to_owned(), String::new());
    let ValidScore { inputs, num_first } = ValidScore::new(request, embedder)?;
    let embedded = app.text_embeddings().embed(&caller, inputs, body).await?;
    let num_bytes = embedded.vectors.len() * embedder.num_dimensions();
    let answer = move || {
        let (first, second) = embedded.vectors.split_at(num_first);
        let scores = first.iter().cycle().zip(second).map(|(a, b)| cosine(a, b));
        let object = |(index, score)| ScoreObject { index, object: "score".to_owned(), score };
        ScoreResponse {
            id: head.id,
            object: "list".to_owned(),
            created: head.created,
            model: head.model,
            data: scores.enumerate().map(object).collect(),
            usage: embedded.num_tokens.into(),
        }
    };
    written(&app.heavy, num_bytes, answer).await
}

/// Makes an answer of about `num_bytes` and writes it, away from the tasks that do I/O if it is long.
async fn written<T: Serialize>(
    heavy: &Heavy,
    num_bytes: usize,
    answer: impl FnOnce() -> T + Send + 'static,
) -> Result<Response, ApiError> {
    let write = move || serde_json::to_vec(&answer());
    let bytes = heavy.run(num_bytes, INLINE_BYTES, write).await.map_err(|error| {
        tracing::error!(%error, "writing an answer");
        ApiError::Internal
    })?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], bytes).into_response())
}

/// Returns the first `num_dimensions` elements of an embedding, scaled to length 1 again if they are not all.
fn shortened(vector: &[f32], num_dimensions: usize) -> Vec<f32> {
    let mut first = vector[..num_dimensions].to_vec();
    let length = first.iter().map(|x| x * x).sum::<f32>().sqrt();
    // Elements that are all 0 have no direction.
    if num_dimensions < vector.len() && length.is_normal() {
        first.iter_mut().for_each(|x| *x /= length);
    }
    first
}

fn encoded(vector: Vec<f32>, format: EncodingFormat) -> EmbeddingValue {
    match format {
        EncodingFormat::Float => EmbeddingValue::Float(vector),
        EncodingFormat::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            EmbeddingValue::Base64(BASE64_STANDARD.encode(bytes))
        }
    }
}

/// Returns the cosine of two vectors of length 1.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>().clamp(-1.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortened_embedding_has_length_one_again() {
        let vector = [0.6, 0.0, 0.8];
        assert_eq!(shortened(&vector, 3), vector);
        assert_eq!(shortened(&vector, 1), [1.0]);
        assert_eq!(shortened(&[0.0, 1.0], 1), [0.0]);
        let two = shortened(&[0.5, 0.5, 0.5, 0.5], 2);
        assert!(two.iter().all(|x| (x - 0.5f32.sqrt()).abs() < 1e-6), "{two:?}");
    }

    #[test]
    fn base64_is_of_little_endian_numbers() {
        assert_eq!(encoded(vec![0.5, -1.0], EncodingFormat::Base64), EmbeddingValue::Base64("AAAAPwAAgL8=".to_owned()));
        assert_eq!(encoded(vec![0.5], EncodingFormat::Float), EmbeddingValue::Float(vec![0.5]));
    }

    #[test]
    fn rounding_takes_no_cosine_out_of_its_range() {
        let long = [1.000_001, 0.0];
        assert_eq!((cosine(&long, &long), cosine(&long, &[-1.0, 0.0])), (1.0, -1.0));
    }
}
