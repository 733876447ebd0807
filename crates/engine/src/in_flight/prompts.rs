//! Prompts that running requests are computing.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use semantic::{DonorStore, NewDonor, SpanIndexConfig, SpanQuery};
use tokens::{DonorId, RequestId};

use crate::Request;

/// Prompts by the request that computes each. They will become donors; until then, the ID of the request is used as the ID of the donor.
pub(super) struct PromptsInFlight(DonorStore);

impl PromptsInFlight {
    pub(super) fn new(config: SpanIndexConfig) -> Self {
        Self(DonorStore::new(config))
    }

    /// Adds the prompt of `request`.
    pub(super) fn insert(&mut self, request: &Request) {
        let tokens = std::sync::Arc::clone(&request.prompt_token_ids);
        let evicted = self.0.insert(NewDonor::new(as_donor(request.request_id), request.scope, tokens));
        drop(evicted); // Requests that share an evicted prompt compute it twice; nothing else happens.
    }

    pub(super) fn remove(&mut self, request_id: RequestId) {
        self.0.remove(as_donor(request_id));
    }

    pub(super) fn contains(&self, request_id: RequestId) -> bool {
        self.0.get(as_donor(request_id)).is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Finds the request that is computing most tokens of `query`, at any offset, and the number of these tokens.
    pub(super) fn find_spans(&self, query: &SpanQuery<'_>) -> Option<(RequestId, u32)> {
        let mut found: BTreeMap<RequestId, u32> = BTreeMap::new();
        for span in self.0.search(query, |_| u32::MAX).matches {
            *found.entry(RequestId(span.donor.0)).or_default() += span.num_tokens;
        }
        let (most, num_tokens) = found.into_iter().max_by_key(|&(request_id, num_tokens)| (num_tokens, Reverse(request_id)))?;
        Some((most, num_tokens.min(query.tokens.len() as u32 - query.from)))
    }
}

fn as_donor(request_id: RequestId) -> DonorId {
    DonorId(request_id.0)
}
