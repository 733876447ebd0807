//! The border between deciding and computing.

use crate::{ModelRunnerOutput, SchedulerOutput};

/// Runs one step of the model. Implemented by the model runner, by the simulator, and by fakes in tests.
pub trait Executor {
    /// Executes `step` and returns one sampled token for each sequence that asks for one.
    ///
    /// # Errors
    /// Only for faults of the device or the weights. A bad request can never cause one: it was refused earlier.
    fn execute_model(&mut self, step: &SchedulerOutput) -> Result<ModelRunnerOutput, ExecutorError>;
}

/// A fault after which the device must not be used any more.
#[derive(Debug, thiserror::Error)]
#[error("executing the model: {0}")]
pub struct ExecutorError(#[source] pub Box<dyn std::error::Error + Send + Sync>);
