//! Hand-made traces.

use tokens::Timestamp;

use crate::{BLOCK_TOKENS, Trace, TraceRequest};

/// Makes requests of whole blocks: arrival in seconds, names of blocks, tokens generated.
pub(crate) fn trace(requests: &[(u64, &[u32], u32)]) -> Trace {
    let request = |&(arrival_s, blocks, output_tokens): &(u64, &[u32], u32)| TraceRequest {
        arrival: Timestamp::from_micros(arrival_s * 1_000_000),
        input_tokens: blocks.len() as u32 * BLOCK_TOKENS,
        output_tokens,
        blocks: blocks.to_vec(),
    };
    Trace { requests: requests.iter().map(request).collect() }
}
