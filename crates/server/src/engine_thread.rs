//! The thread that owns the engine, and its handles on the HTTP side.
//!
//! One OS thread named `engine` runs steps. Commands arrive over one channel, bounded by queue slots and inspection permits. The result
//! of a step goes over another channel to a task that dispatches it over one bounded channel per request. A request is aborted by dropping
//! its [`TokenStream`]: the task checks for closed channels after every step, so nothing can be lost on the way and nothing has to be sent
//! from a destructor. No lock is held across a step, and a slow reader never blocks one: when its channel is full, its request is aborted.

mod command;
mod config;
mod dispatch;
mod explanations;
mod fatal;
mod handle;
mod inspect;
mod report;
mod route;
mod shared;
mod slots;
mod stream;
mod worker;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use engine::{EngineCore, Executor};
use tokio::runtime;
use tokio::sync::{Semaphore, mpsc, watch};

pub(crate) use command::PromptGroup;
pub use config::EngineThreadConfig;
pub use fatal::Fatal;
pub use handle::EngineHandle;
pub(crate) use handle::SubmitError;
pub use shared::Phase;
pub(crate) use slots::{QueueSlot, QueueSlots};
pub(crate) use stream::{StreamError, TokenStream};

use self::dispatch::Dispatcher;
use self::explanations::Explanations;
use self::shared::Shared;
use self::worker::Worker;
use crate::metrics::Metrics;

/// The thread that runs the engine. It ends on command, when all its handles are dropped, or with [`Fatal`].
pub struct EngineThread;

/// Maximum inspections sent to the engine; further ones wait before being sent. Chosen: each takes the engine less than a step.
const MAX_INSPECTIONS: usize = 8;

/// Maximum requests sent to be explained, at most one per tenant; further ones wait before being sent. Chosen.
const MAX_EXPLANATIONS: usize = 8;

/// Maximum steps whose events wait for the dispatch task; beyond it the engine waits. Chosen: that task is far quicker than a step.
const MAX_STEPS_AHEAD: usize = 64;

impl EngineThread {
    /// Starts the thread, and on `runtime` the task that dispatches its events.
    ///
    /// The thread calls `on_fatal` as its last action after a fault, when every stream has been cut; a daemon ends the process there.
    ///
    /// # Errors
    /// If the operating system refuses a thread.
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
        // Each command but `Stop` holds a slot or a permit until it has been received, which bounds the channel.
        let (commands, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            phase: watch::Sender::new(Phase::Running),
            stats: watch::Sender::new(engine.stats()),
            scheduler: engine.config().clone(),
            in_flight: watch::Sender::new(0),
            slots: Arc::new(QueueSlots::new(config.max_queue)),
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
            slots: BTreeMap::new(),
            arrivals: VecDeque::new(),
            explanations: Explanations::default(),
            metrics,
            shared: Arc::clone(&shared),
        };
        std::thread::Builder::new().name("engine".to_owned()).spawn(move || worker.run(on_fatal))?;
        Ok(EngineHandle::new(commands, shared))
    }
}
