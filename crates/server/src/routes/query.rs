//! Query strings.

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// The query as `T`. Bytes that are not valid text are refused; axum's own extractor would replace them, and so change a name.
pub(super) struct QueryOf<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for QueryOf<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        if !is_text(parts.uri.query().unwrap_or_default()) {
            return Err(refused("its percent-encoded bytes are no UTF-8"));
        }
        match Query::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(rejection) => {
                // The library's message without the names of its parts, which come first.
                let text = rejection.body_text();
                Err(refused(text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text)))
            }
        }
    }
}

fn refused(reason: &str) -> ApiError {
    ApiError::Invalid { param: None, message: format!("the query string is not understood: {reason}") }
}

/// True if each `%` is followed by two hexadecimal digits, and all bytes together are UTF-8.
fn is_text(query: &str) -> bool {
    let is_escape = |rest: &str| matches!(rest.as_bytes(), [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit());
    query.split('%').skip(1).all(is_escape) && percent_decode_str(query).decode_utf8().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_escapes_that_spell_text_are_text() {
        for query in ["", "session=a", "session=%C3%A9&x=%25", "session=é", "a+b=%20"] {
            assert!(is_text(query), "{query}");
        }
        for query in ["session=%ff", "session=%zz", "session=%", "session=%4", "session=%c0%af", "session=%ed%a0%80"] {
            assert!(!is_text(query), "{query}");
        }
    }
}
