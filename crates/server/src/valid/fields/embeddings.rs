//! The fields of requests for embeddings, orders and scores, with the verdict on each.

use super::field::Verdict::{Accepted, Honoured, Refused, SameAs};
use super::field::{C, EMBEDDINGS, Field, L, O, RERANK, S, SCORE, T, V, Verdict};

const ALL: u8 = EMBEDDINGS | RERANK | SCORE;
const WITH_MEDIA: Verdict = Accepted("only media are processed by it, and those are refused");
const FALSE: Verdict = Refused(&["false"]);
const ALWAYS: Verdict = Refused(&[]);

const fn field(name: &'static str, on: u8, known_to: u8, verdict: Verdict) -> Field {
    Field { name, on, known_to, verdict }
}

/// All fields, in groups. Cohere's are those of Jina, and TGI stands for Hugging Face's text-embeddings-inference too.
#[rustfmt::skip]
pub(super) const EMBEDDINGS_TABLE: &[Field] = &[
    // Texts.
    field("model", ALL, O | C | V | S | L | T, Honoured),
    field("input", EMBEDDINGS, O | V | S | L | T, Honoured),
    field("content", EMBEDDINGS, L, SameAs("input")),
    field("messages", EMBEDDINGS, V, ALWAYS),
    field("chat_template", ALL, V, ALWAYS),
    field("chat_template_kwargs", ALL, V, Refused(&["{}"])),
    field("query", RERANK, C | V | S | L | T, Honoured),
    field("documents", RERANK, C | V | S | L, Honoured),
    field("texts", RERANK, L | T, ALWAYS),
    field("instruct", RERANK, S, Refused(&["\"\""])),
    field("instruction", ALL, V, Refused(&["\"\""])),
    field("text_1", SCORE, V, Honoured),
    field("text_2", SCORE, V, Honoured),
    field("queries", SCORE, V, SameAs("text_1")),
    field("documents", SCORE, V, SameAs("text_2")),
    field("data_1", SCORE, V, SameAs("text_1")),
    field("data_2", SCORE, V, SameAs("text_2")),
    field("query", SCORE, S, ALWAYS),
    field("items", SCORE, V | S, ALWAYS),
    field("label_token_ids", SCORE, S, Refused(&["[]"])),
    field("apply_softmax", SCORE, S, FALSE),
    field("item_first", SCORE, S, FALSE),
    field("image_data", EMBEDDINGS, S | L, Refused(&["[]"])),
    field("mm_processor_kwargs", ALL, V, WITH_MEDIA),
    // Lengths.
    field("truncate_prompt_tokens", ALL, V, Honoured),
    field("truncation_side", ALL, V, Refused(&["\"right\""])),
    field("max_tokens_per_doc", RERANK, C | V, Honoured),
    field("add_special_tokens", ALL, V, Refused(&["true"])),
    // Answers.
    field("encoding_format", EMBEDDINGS, O | V | S | L, Honoured),
    field("dimensions", EMBEDDINGS, O | V | S, Honoured),
    field("embed_dtype", EMBEDDINGS, V, Refused(&["\"float32\""])),
    field("endianness", EMBEDDINGS, V, Refused(&["\"native\"", "\"little\""])),
    field("normalize", EMBEDDINGS, V | T, Refused(&["true"])),
    field("embd_normalize", EMBEDDINGS, L, Refused(&["2"])),
    field("activation", ALL, V, Refused(&["true"])),
    field("use_activation", ALL, V, Refused(&["true"])),
    field("softmax", ALL, V, Refused(&["true"])),
    field("top_n", RERANK, C | V | S | L, Honoured),
    field("return_documents", RERANK, C | S, Honoured),
    field("return_text", RERANK, T, FALSE),
    field("raw_scores", RERANK, T, FALSE),
    field("rank_fields", RERANK, C, Refused(&["[]", "[\"text\"]"])),
    field("max_chunks_per_doc", RERANK, C, ALWAYS),
    // The request itself.
    field("user", ALL, O | V | S | L, Honoured),
    field("priority", ALL, V | S, Refused(&["0"])),
    field("cache_salt", ALL, V, Accepted("nothing of embedded texts is kept")),
    field("request_id", ALL, V, Accepted("an answer has an id of its own; the header `x-request-id` comes back")),
    field("rid", ALL, S, Accepted("an answer has an id of its own; the header `x-request-id` comes back")),
    field("lora_path", ALL, S, Refused(&["\"\"", "[]"])),
];
