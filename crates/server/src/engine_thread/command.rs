//! Commands to the engine thread.

use engine::Request;
use tokio::sync::OwnedSemaphorePermit;

use super::explanations::Question;
use super::inspect::Inspection;
use super::route::Submission;

/// Command from the HTTP side to the engine.
pub(super) enum EngineCommand {
    /// Adds requests. One inner list per prompt, one entry for each of its `n` answers.
    Add(Vec<Vec<Submission>>),
    /// Answers an inspection between two steps.
    Inspect(Inspection, OwnedSemaphorePermit),
    /// Answers an explanation when steps leave time for it.
    Explain(Question),
    /// Aborts all requests and ends.
    Stop,
}

/// Requests of one prompt, equal except for their ids and seeds.
pub(crate) type PromptGroup = Vec<Request>;
