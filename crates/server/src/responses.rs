//! OpenAI's `/v1/responses`, translated into chat requests and back.
//!
//! `translate.rs` turns a request into one for a chat, `items.rs` a list of items into messages, and
//! `references.rs` finds the stored items that it names; `object.rs` and `writer.rs` turn the
//! answer into a response, whole or streamed. `store.rs` keeps responses, each for its tenant only.

mod error;
mod items;
mod object;
mod references;
mod store;
mod translate;
mod writer;

pub(crate) use error::in_terms_of_responses;
pub(crate) use object::whole_response;
pub(crate) use references::References;
pub(crate) use store::{ResponseOwner, ResponseStore, Turn};
pub(crate) use translate::{Origin, Translated, translate};
pub(crate) use writer::ResponseWriter;
