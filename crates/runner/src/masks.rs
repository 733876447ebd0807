//! Masks of constrained answers, computed on threads of their own from one token to the next.
//!
//! A mask depends on the tokens so far, so its computation starts when a token is recorded. It runs while the host processes the
//! result of that step and the device computes the next one, which waits for the mask only before it samples.

use std::num::NonZero;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use grammar::{Grammar, Matcher, TokenMask};
use rayon::ThreadPool;
use tokens::TokenId;
use tracing::{error, warn};

/// Mask of a row, which arrives while the device computes. A grammar that fails leaves one that allows nothing.
pub type MaskSlot = Arc<OnceLock<TokenMask>>;

/// Threads that compute masks. Clones share them.
#[derive(Clone)]
pub(crate) struct MaskThreads(Arc<OnceLock<ThreadPool>>);

impl MaskThreads {
    /// Prepares threads, which start with the first constrained request.
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    fn spawn(&self, work: impl FnOnce() + Send + 'static) {
        let start = || {
            // The device has its own threads, so half of the cores are enough.
            let num_threads = std::thread::available_parallelism().map_or(1, NonZero::get).div_ceil(2);
            let threads = rayon::ThreadPoolBuilder::new().num_threads(num_threads).thread_name(|idx| format!("mask-{idx}"));
            threads.build().expect("a few threads can be started")
        };
        self.0.get_or_init(start).spawn(work);
    }
}

/// Position of an answer in its grammar, with the mask of its next token.
pub(crate) struct Constrained {
    matcher: Arc<Mutex<Matcher>>,
    /// Token after which the constraint begins.
    trigger: Option<TokenId>,
    /// Tokens since the constraint began; `None` before.
    num_tokens: Option<u32>,
    next: MaskSlot,
    threads: MaskThreads,
}

impl Constrained {
    /// Starts at the beginning of an answer. `premature` tokens may not follow as long as another one may.
    pub(crate) fn new(grammar: &Grammar, premature: &[TokenId], threads: MaskThreads) -> Self {
        let matcher = Arc::new(Mutex::new(grammar.matcher()));
        let trigger = grammar.trigger();
        let num_tokens = trigger.is_none().then_some(0);
        let mut constrained = Self { matcher, trigger, num_tokens, next: MaskSlot::default(), threads };
        constrained.begin_mask(premature);
        constrained
    }

    /// Returns the place where the mask of the next token arrives; `None` before the constraint begins.
    pub(crate) fn next_mask(&self) -> Option<MaskSlot> {
        self.num_tokens.map(|_| Arc::clone(&self.next))
    }

    /// Goes on by `token`. Returns true if nothing but the end may follow. A row after the end is void, and so is its token.
    pub(crate) fn record(&mut self, token: TokenId, premature: &[TokenId]) -> bool {
        let Some(num_tokens) = &mut self.num_tokens else {
            if self.trigger == Some(token) {
                self.num_tokens = Some(0);
                self.begin_mask(premature);
            }
            return false;
        };
        *num_tokens += 1;
        let is_complete = {
            let mut matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner);
            if !matcher.is_complete()
                && let Err(error) = matcher.accept(token)
            {
                error!(%error, "a grammar does not accept a token of its mask");
            }
            matcher.is_complete()
        };
        self.begin_mask(premature);
        is_complete
    }

    /// Takes the last token back.
    pub(crate) fn retract(&mut self, premature: &[TokenId]) {
        let Some(num_tokens) = &mut self.num_tokens else { return };
        if *num_tokens == 0 {
            // The trigger itself, as nothing is retracted before the first token.
            self.num_tokens = None;
            return;
        }
        *num_tokens -= 1;
        let retracted = self.matcher.lock().unwrap_or_else(PoisonError::into_inner).retract();
        if let Err(error) = retracted {
            error!(%error, "a grammar does not take its last token back");
        }
        self.begin_mask(premature);
    }

    /// Begins to compute the mask of the next token.
    fn begin_mask(&mut self, premature: &[TokenId]) {
        if self.num_tokens.is_none() {
            return;
        }
        self.next = MaskSlot::default();
        let job = MaskJob { matcher: Arc::clone(&self.matcher), premature: premature.to_vec(), slot: Arc::clone(&self.next) };
        self.threads.spawn(move || job.run());
    }
}

/// Job that computes a mask. If it is dropped without a mask, it fills the slot with one that allows no token, so that the row does not wait
/// for ever.
struct MaskJob {
    matcher: Arc<Mutex<Matcher>>,
    premature: Vec<TokenId>,
    slot: MaskSlot,
}

impl MaskJob {
    fn run(self) {
        let mask = self.matcher.lock().unwrap_or_else(PoisonError::into_inner).mask();
        match mask {
            Ok(mut mask) => {
                mask.forbid_unless_last(&self.premature);
                // The slot is this job's own, so it is empty.
                let _ = self.slot.set(mask);
            }
            Err(error) => warn!(%error, "a grammar fails"),
        }
    }
}

impl Drop for MaskJob {
    fn drop(&mut self) {
        self.slot.get_or_init(TokenMask::none);
    }
}
