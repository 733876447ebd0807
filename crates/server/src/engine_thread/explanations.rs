//! Questions that take the engine as long as a step: what sharing could give a request.
//!
//! They are answered one at a time between two steps, and as long as there are steps to make they take at most a quarter of the time.
//! The time each took is counted as work of its tenant.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use engine::{EngineCore, Executor, Explanation, Request};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// After a question, steps have so many times as long as it took. Chosen.
const STEPS_PER_QUESTION: u32 = 3;

/// A question, where its answer goes, and its permits.
pub(super) struct Question {
    pub(super) request: Box<Request>,
    pub(super) reply: oneshot::Sender<Explanation>,
    pub(super) permits: [OwnedSemaphorePermit; 2],
}

/// Those that wait.
#[derive(Default)]
pub(super) struct Explanations {
    waiting: VecDeque<Question>,
    /// Until then, steps come first.
    next_at: Option<Instant>,
}

impl Explanations {
    pub(super) fn push(&mut self, question: Question) {
        self.waiting.push_back(question);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Answers the next question, if it is time.
    pub(super) fn answer_next<E: Executor>(&mut self, engine: &mut EngineCore<E>) {
        let began = Instant::now();
        if engine.has_work() && self.next_at.is_some_and(|at| began < at) {
            return;
        }
        let Some(Question { request, reply, permits }) = self.waiting.pop_front() else { return };
        // The caller may have gone.
        if !reply.is_closed() {
            let _ = reply.send(engine.explain(&request));
        }
        let took = began.elapsed();
        engine.charge(request.tenant, took);
        self.next_at = Some(began + took + (took * STEPS_PER_QUESTION).min(Duration::from_secs(1)));
        drop(permits);
    }
}
