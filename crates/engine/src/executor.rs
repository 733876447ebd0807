//! The interface between the scheduler and the model runner.

use tokens::BlockSize;

use crate::{ModelRunnerOutput, SchedulerOutput};

/// Sizes that an executor is built for. The engine refuses a scheduler configuration that exceeds them before the first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecutorLimits {
    /// Tokens in a block of its pool; `None` if it has no pool and accepts any block size.
    pub block_size: Option<BlockSize>,
    /// Blocks in its pool.
    pub num_blocks: usize,
    /// Maximum rows of one step.
    pub max_rows: usize,
    /// Maximum sequences of one step.
    pub max_sequences: usize,
}

impl ExecutorLimits {
    /// No limits.
    pub const NONE: Self = Self { block_size: None, num_blocks: usize::MAX, max_rows: usize::MAX, max_sequences: usize::MAX };
}

/// Runs one step of the model. The model runner, the simulator and fakes in tests implement it.
pub trait Executor {
    /// Returns the sizes it is built for. They never change.
    fn limits(&self) -> ExecutorLimits;

    /// Executes `step` and returns one sampled token for each sequence that asks for one.
    ///
    /// # Errors
    /// Fails only on faults of the device or the weights. A bad request never causes one: the engine refuses it earlier.
    fn execute_model(&mut self, step: &SchedulerOutput) -> Result<ModelRunnerOutput, ExecutorError>;

    /// Returns itself if its device computes asynchronously, so that the caller can prepare the next step meanwhile.
    fn as_overlapping(&mut self) -> Option<&mut dyn OverlappingExecutor> {
        None
    }
}

/// Runs steps on an asynchronous device, one at a time, in launch order.
pub trait OverlappingExecutor {
    /// Launches `step`. The caller has to collect it before launching another one.
    ///
    /// # Errors
    /// As [`Executor::execute_model`].
    fn launch(&mut self, step: &SchedulerOutput) -> Result<(), ExecutorError>;

    /// Prepares `next` while another step runs. If another launch follows, it is that of `next`, with the tokens of its rows, which
    /// are not known yet, or without sequences.
    fn prepare(&mut self, next: &SchedulerOutput);

    /// Waits for the launched step and returns its output as [`Executor::execute_model`] would.
    ///
    /// # Errors
    /// As [`Executor::execute_model`].
    fn collect(&mut self) -> Result<ModelRunnerOutput, ExecutorError>;
}

/// A fault after which the caller must not use the device any more.
#[derive(Debug, thiserror::Error)]
#[error("executing the model: {0}")]
pub struct ExecutorError(#[source] pub Box<dyn std::error::Error + Send + Sync>);
