//! The border between deciding and computing.

use tokens::BlockSize;

use crate::{ModelRunnerOutput, SchedulerOutput};

/// Sizes that an executor is built for. A scheduler that goes beyond them is refused before the first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecutorLimits {
    /// Tokens in a block of its pool; `None` if it has none, and any will do.
    pub block_size: Option<BlockSize>,
    /// Blocks of its pool.
    pub num_blocks: usize,
    /// Rows of one step.
    pub max_rows: usize,
    /// Sequences of one step.
    pub max_sequences: usize,
}

impl ExecutorLimits {
    /// No limit at all.
    pub const NONE: Self = Self { block_size: None, num_blocks: usize::MAX, max_rows: usize::MAX, max_sequences: usize::MAX };
}

/// Runs one step of the model. Implemented by the model runner, by the simulator, and by fakes in tests.
pub trait Executor {
    /// Sizes it is built for. They never change.
    fn limits(&self) -> ExecutorLimits;

    /// Executes `step` and returns one sampled token for each sequence that asks for one.
    ///
    /// # Errors
    /// Only for faults of the device or the weights. A bad request can never cause one: it was refused earlier.
    fn execute_model(&mut self, step: &SchedulerOutput) -> Result<ModelRunnerOutput, ExecutorError>;

    /// Itself, if it has a device that computes while the caller goes on: the next step is made ready meanwhile.
    fn as_overlapping(&mut self) -> Option<&mut dyn OverlappingExecutor> {
        None
    }
}

/// Runs steps on a device that computes by itself, one at a time, in the order of their launches.
pub trait OverlappingExecutor {
    /// Begins `step`. It has to be collected before another one is launched.
    ///
    /// # Errors
    /// As [`Executor::execute_model`].
    fn launch(&mut self, step: &SchedulerOutput) -> Result<(), ExecutorError>;

    /// Makes `next` ready while another step runs. It is launched next, if anything is, with the tokens of its rows, which are not
    /// known yet, or without sequences.
    fn prepare(&mut self, next: &SchedulerOutput);

    /// Waits for the step that was launched, and returns what [`Executor::execute_model`] would.
    ///
    /// # Errors
    /// As [`Executor::execute_model`].
    fn collect(&mut self) -> Result<ModelRunnerOutput, ExecutorError>;
}

/// A fault after which the device must not be used any more.
#[derive(Debug, thiserror::Error)]
#[error("executing the model: {0}")]
pub struct ExecutorError(#[source] pub Box<dyn std::error::Error + Send + Sync>);
