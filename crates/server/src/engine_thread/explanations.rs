//! Explanations of the sharing that a request would get, which take the engine as long as a step.
//!
//! They are answered one at a time between two steps, and while there are steps to run they take at most a quarter of the time. Their time
//! is charged to the tenant.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use engine::{EngineCore, Executor, Explanation, Request};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Ratio of the time reserved for steps after a question to the time that it took. Chosen.
const STEPS_PER_QUESTION: u32 = 3;

/// A question with its reply channel and its permits.
pub(super) struct Question {
    pub(super) request: Box<Request>,
    pub(super) reply: oneshot::Sender<Explanation>,
    pub(super) permits: [OwnedSemaphorePermit; 2],
}

/// Waiting questions.
#[derive(Default)]
pub(super) struct Explanations {
    waiting: VecDeque<Question>,
    /// Time until which steps have priority.
    next_at: Option<Instant>,
}

impl Explanations {
    pub(super) fn push(&mut self, question: Question) {
        self.waiting.push_back(question);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Answers the next question if it is due.
    pub(super) fn answer_next<E: Executor>(&mut self, engine: &mut EngineCore<E>) {
        let began = Instant::now();
        if engine.has_work() && self.next_at.is_some_and(|at| began < at) {
            return;
        }
        let Some(Question { request, reply, permits }) = self.waiting.pop_front() else { return };
        // The caller may have disconnected.
        if !reply.is_closed() {
            let _ = reply.send(engine.explain(&request));
        }
        let took = began.elapsed();
        engine.charge(request.tenant, took);
        self.next_at = Some(began + took + (took * STEPS_PER_QUESTION).min(Duration::from_secs(1)));
        drop(permits);
    }
}
