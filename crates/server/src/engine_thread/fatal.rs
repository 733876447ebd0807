//! Faults that end the engine thread.

use engine::ExecutorError;

/// Reason why the engine cannot continue. The process should end: the pool may be half updated.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The device or the weights failed.
    #[error("the engine stopped: {0}")]
    Executor(#[from] ExecutorError),
    /// A panic, which is a bug.
    #[error("the engine thread panicked: {0}")]
    Panic(String),
    /// The dispatch task ended before the engine, which is a bug too.
    #[error("the task that dispatches the engine's events has ended")]
    NoReaders,
}
