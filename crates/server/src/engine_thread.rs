//! The thread that owns the engine, and what the HTTP side holds of it.
//!
//! One OS thread named `engine` runs steps. Commands come in over one channel, bounded by the places of the queue and permits to ask.
//! The result of a step goes out over another, to a task that hands it on over one bounded channel for each request. A request is taken
//! back by dropping its [`TokenStream`]: the task looks for closed channels after every step, so nothing can be lost on the way and
//! nothing has to be sent from a destructor. No lock is held across a step, and a slow reader never blocks one: when its channel is full,
//! its request is aborted.

mod dispatch;
mod explanations;
mod handle;
mod inspect;
mod places;
mod report;
mod route;
mod stream;
mod worker;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::{EngineCore, Executor, ExecutorError, Request};
use tokio::runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

pub(crate) use handle::SubmitError;
pub use handle::{EngineHandle, Phase};
pub(crate) use stream::{StreamError, TokenStream};

use self::dispatch::Dispatcher;
use self::explanations::{Explanations, Question};
use self::handle::Shared;
use self::inspect::Inspection;
use self::places::Places;
use self::route::Submission;
use self::worker::Worker;
use crate::metrics::Metrics;

/// The thread that runs the engine. It ends when it is told to, when all its handles are gone, or with [`Fatal`].
pub struct EngineThread;

/// Bounds between the HTTP side and the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineThreadConfig {
    /// Requests that may wait for admission; further ones are refused. When as many wait, a tenant that has less than its equal part of
    /// them waiting still gets that.
    pub max_queue: usize,
    /// The longest a request may wait for admission; `None` for ever.
    pub queue_timeout: Option<Duration>,
    /// Events a reader may be behind before its request is aborted.
    pub stream_buffer: usize,
}

impl Default for EngineThreadConfig {
    fn default() -> Self {
        Self { max_queue: 256, queue_timeout: None, stream_buffer: 1024 }
    }
}

/// Questions on their way to the engine; one more waits before it is asked. Chosen: each takes the engine less than a step.
const MAX_INSPECTIONS: usize = 8;

/// Requests on their way to be explained, at most one of each tenant; further ones wait before. Chosen.
const MAX_EXPLANATIONS: usize = 8;

/// Steps whose events wait for the task that hands them on; then the engine waits too. Chosen: that task is far quicker than a step.
const MAX_STEPS_AHEAD: usize = 64;

/// Why the engine cannot go on. The process should end: the pool may be half updated.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The device or the weights are at fault.
    #[error("the engine stopped: {0}")]
    Executor(#[from] ExecutorError),
    /// A defect.
    #[error("the engine thread panicked: {0}")]
    Panic(String),
    /// A defect, too: the task that hands events on has ended before the engine.
    #[error("nobody hands the engine's events on")]
    NoReaders,
}

/// What the HTTP side tells the engine.
enum EngineCommand {
    /// Run these. One inner list for each prompt, one entry for each of its `n` answers.
    Add(Vec<Vec<Submission>>),
    /// Answer this between two steps.
    Inspect(Inspection, OwnedSemaphorePermit),
    /// Answer this when steps leave time for it.
    Explain(Question),
    /// Abort everything and end.
    Stop,
}

impl EngineThread {
    /// Starts the thread, and on `runtime` the task that hands on what it says.
    ///
    /// `on_fatal` is called on the thread as the last thing it does after a fault, when every stream has been cut; a daemon
    /// ends the process there.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    ///
    /// # Panics
    /// If a bound of `config` is zero.
    pub fn spawn<E>(
        engine: EngineCore<E>,
        config: EngineThreadConfig,
        metrics: Arc<Metrics>,
        runtime: &runtime::Handle,
        on_fatal: impl FnOnce(Fatal) + Send + 'static,
    ) -> std::io::Result<EngineHandle>
    where
        E: Executor + Send + 'static,
    {
        assert!(config.max_queue > 0 && config.stream_buffer > 0, "a queue of nothing refuses everything: {config:?}");
        // Each command but `Stop` holds a place or a permit until it has been received, which bounds it.
        let (commands, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            phase: watch::Sender::new(Phase::Running),
            stats: watch::Sender::new(engine.stats()),
            scheduler: engine.config().clone(),
            in_flight: watch::Sender::new(0),
            places: Arc::new(Places::new(config.max_queue)),
            inspections: Arc::new(Semaphore::new(MAX_INSPECTIONS)),
            explanations: Arc::new(Semaphore::new(MAX_EXPLANATIONS)),
            explaining: Mutex::default(),
            config,
            next_id: 0.into(),
            started: std::time::Instant::now(),
        });
        let (dispatches, to_dispatch) = mpsc::channel(MAX_STEPS_AHEAD);
        let (to_abort, abandoned) = std::sync::mpsc::channel();
        runtime.spawn(Dispatcher::new(to_dispatch, to_abort, Arc::clone(&metrics), Arc::clone(&shared)).run());
        let worker = Worker {
            engine,
            commands: receiver,
            dispatches,
            abandoned,
            places: BTreeMap::new(),
            arrivals: VecDeque::new(),
            explanations: Explanations::default(),
            metrics,
            shared: Arc::clone(&shared),
        };
        std::thread::Builder::new().name("engine".to_owned()).spawn(move || worker.run(on_fatal))?;
        Ok(EngineHandle::new(commands, shared))
    }
}

/// The answers of one prompt: equal but for their ids and seeds.
pub(crate) type PromptGroup = Vec<Request>;
