//! Runs a valid request and turns engine events into an answer, whole or streamed.
//!
//! A request with `n` answers, or several prompts, becomes as many engine requests, merged by `index`. Dropping the future or the stream
//! in any state aborts all of them.

mod alone;
mod choice;
mod delta;
mod events;
mod parse;
mod scores;
mod start;
mod usage;
mod whole;
mod writer;

pub(crate) use alone::run_alone;
pub(crate) use delta::{CallDelta, CallHead, ChoiceDelta};
pub(crate) use events::event_stream;
pub(crate) use start::{Generation, Generator, fits, submit_error};
pub(crate) use whole::{whole_chat, whole_completion};
pub(crate) use writer::{AnswerEvent, AnswerHead, AnswerWriter, ChatWriter, CompletionWriter, chat_logprobs};
