//! The queue of texts to be embedded.
//!
//! One batch of texts at a time is embedded, on a thread that is not tokio's, because it takes the processor from the engine. The next
//! batch takes one text of each tenant in turn, and of each of its requests in turn, until it is full: a query does not wait for the
//! thousands of texts of a request that came before it, and short requests of many clients are embedded at once.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokens::TenantId;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::TextEmbedder;
use crate::embedding::Embedding;
use crate::engine_thread::{QueueSlot, QueueSlots};

/// Maximum tokens of a batch, but for a single text. Chosen: larger ones are no quicker by token, and what arrives waits for one.
const MAX_BATCH_TOKENS: usize = 1024;
/// Tokens of a request for which it takes one slot of the queue. Chosen: 256 slots are then 16 MiB of tokens.
const TOKENS_PER_SLOT: usize = 16 << 10;
/// Texts of a request for which it takes one slot. Chosen: 256 slots are then 64 MiB of embeddings of 1,024 elements.
const TEXTS_PER_SLOT: usize = 64;

/// Reason why texts were not embedded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaneError {
    /// The queue has no place for them.
    Full,
    /// They waited too long.
    TimedOut,
    /// The model failed, and reported it in the log.
    Failed,
}

/// Texts that wait for the embedder.
pub(crate) struct EmbeddingLane {
    embedder: Arc<dyn TextEmbedder>,
    slots: Arc<QueueSlots>,
    max_slots: usize,
    /// Locked to add a request and to draw a batch, never across an `await`.
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    /// True while a thread draws batches. It ends when there is none.
    is_worked: bool,
    /// Requests by tenant, those whose turn is next first.
    tenants: VecDeque<(TenantId, VecDeque<Job>)>,
}

/// Texts of one request that were not drawn yet.
struct Job {
    texts: VecDeque<(usize, Vec<u32>)>,
    is_begun: bool,
    events: UnboundedSender<Event>,
    _slots: Vec<QueueSlot>,
}

/// A text that was drawn.
struct Drawn {
    index: usize,
    ids: Vec<u32>,
    events: UnboundedSender<Event>,
}

/// Progress of a request. There is at most one event more than twice its texts, which bounds the channel.
enum Event {
    Begun,
    Done(usize, Embedding),
    Failed,
}

impl EmbeddingLane {
    /// Creates a queue of `max_slots` slots, which tenants share as they do the engine's.
    pub(crate) fn new(embedder: Arc<dyn TextEmbedder>, max_slots: usize) -> Arc<Self> {
        Arc::new(Self { embedder, slots: Arc::new(QueueSlots::new(max_slots)), max_slots, queue: Mutex::default() })
    }

    pub(crate) fn embedder(&self) -> &Arc<dyn TextEmbedder> {
        &self.embedder
    }

    /// Embeds `texts` of `tenant`, and returns their embeddings in order. Dropping the future takes those not yet drawn off the queue.
    pub(crate) async fn embed(
        self: &Arc<Self>,
        tenant: TenantId,
        texts: Vec<Vec<u32>>,
        max_wait: Option<Duration>,
    ) -> Result<Vec<Embedding>, LaneError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let num_texts = texts.len();
        let mut events = self.submit(tenant, texts)?;
        let begun = async { events.recv().await.ok_or(LaneError::Failed) };
        match max_wait {
            Some(max_wait) => timeout(max_wait, begun).await.unwrap_or(Err(LaneError::TimedOut))?,
            None => begun.await?,
        };
        collect(events, num_texts).await
    }

    /// Adds a request to the queue, and has the queue worked off.
    fn submit(self: &Arc<Self>, tenant: TenantId, texts: Vec<Vec<u32>>) -> Result<UnboundedReceiver<Event>, LaneError> {
        let num_tokens = texts.iter().map(Vec::len).sum::<usize>();
        let num_slots = num_tokens.div_ceil(TOKENS_PER_SLOT).max(texts.len().div_ceil(TEXTS_PER_SLOT)).min(self.max_slots);
        let slots = QueueSlots::take(&self.slots, tenant, num_slots).ok_or(LaneError::Full)?;
        let (events, receiver) = unbounded_channel();
        let job = Job { texts: texts.into_iter().enumerate().collect(), is_begun: false, events, _slots: slots };
        let was_worked = {
            let mut queue = self.lock();
            queue.add(tenant, job);
            std::mem::replace(&mut queue.is_worked, true)
        };
        if !was_worked {
            let lane = Arc::clone(self);
            spawn_blocking(move || lane.work());
        }
        Ok(receiver)
    }

    /// Embeds batches until there is none.
    fn work(&self) {
        loop {
            let batch = {
                let mut queue = self.lock();
                let batch = queue.draw();
                queue.is_worked = !batch.is_empty();
                batch
            };
            if batch.is_empty() {
                return;
            }
            let texts: Vec<_> = batch.iter().map(|drawn| &drawn.ids[..]).collect();
            let embedded = catch_unwind(AssertUnwindSafe(|| self.embedder.embed(&texts)))
                .unwrap_or_else(|_| Err("the embedder panicked".to_owned()))
                .and_then(|embedded| match embedded.len() == batch.len() {
                    true => Ok(embedded),
                    false => Err(format!("{} embeddings of {} texts", embedded.len(), batch.len())),
                })
                .inspect_err(|error| tracing::error!(error, num_texts = batch.len(), "embedding failed"));
            // Sending fails where the client has left.
            match embedded {
                Ok(embedded) => {
                    for (drawn, embedding) in batch.iter().zip(embedded) {
                        let _ = drawn.events.send(Event::Done(drawn.index, embedding));
                    }
                }
                Err(_) => batch.iter().for_each(|drawn| drop(drawn.events.send(Event::Failed))),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Receives the embeddings of `num_texts` texts.
async fn collect(mut events: UnboundedReceiver<Event>, num_texts: usize) -> Result<Vec<Embedding>, LaneError> {
    let mut embedded = vec![None; num_texts];
    let mut num_left = num_texts;
    while num_left > 0 {
        match events.recv().await {
            Some(Event::Begun) => {}
            Some(Event::Done(index, embedding)) => {
                embedded[index] = Some(embedding);
                num_left -= 1;
            }
            Some(Event::Failed) | None => return Err(LaneError::Failed),
        }
    }
    Ok(embedded.into_iter().flatten().collect())
}

impl Queue {
    fn add(&mut self, tenant: TenantId, job: Job) {
        match self.tenants.iter_mut().find(|(known, _)| *known == tenant) {
            Some((_, jobs)) => jobs.push_back(job),
            None => self.tenants.push_back((tenant, VecDeque::from([job]))),
        }
    }

    /// Draws the next batch: one text of the first request of each tenant in turn, until it is full or the queue is empty.
    fn draw(&mut self) -> Vec<Drawn> {
        let (mut batch, mut num_tokens) = (Vec::new(), 0);
        while let Some((tenant, mut jobs)) = self.tenants.pop_front() {
            let Some(mut job) = jobs.pop_front().filter(|job| !job.events.is_closed()) else {
                // The client has left.
                if !jobs.is_empty() {
                    self.tenants.push_front((tenant, jobs));
                }
                continue;
            };
            let len = job.texts.front().map_or(0, |(_, ids)| ids.len());
            if !batch.is_empty() && num_tokens + len > MAX_BATCH_TOKENS {
                jobs.push_front(job);
                self.tenants.push_front((tenant, jobs));
                break;
            }
            if let Some((index, ids)) = job.texts.pop_front() {
                if !std::mem::replace(&mut job.is_begun, true) {
                    let _ = job.events.send(Event::Begun);
                }
                num_tokens += len;
                batch.push(Drawn { index, ids, events: job.events.clone() });
            }
            if !job.texts.is_empty() {
                jobs.push_back(job);
            }
            if !jobs.is_empty() {
                self.tenants.push_back((tenant, jobs));
            }
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use futures::future::join_all;

    use super::*;

    const A: TenantId = TenantId(0);
    const B: TenantId = TenantId(1);

    /// Embedder of a text as its first token. Records the first tokens of each batch, and waits for a sign before it embeds.
    #[derive(Default)]
    struct First {
        batches: Mutex<Vec<Vec<u32>>>,
        is_open: AtomicBool,
    }

    impl TextEmbedder for First {
        fn id(&self) -> &str {
            "first"
        }

        fn num_dimensions(&self) -> usize {
            1
        }

        fn max_tokens(&self) -> usize {
            2 * MAX_BATCH_TOKENS
        }

        fn vocab_size(&self) -> usize {
            1000
        }

        fn tokenize(&self, _: &str, _: Option<usize>) -> Result<Vec<u32>, String> {
            Ok(vec![1])
        }

        fn embed(&self, texts: &[&[u32]]) -> Result<Vec<Embedding>, String> {
            self.batches.lock().unwrap().push(texts.iter().map(|text| text[0]).collect());
            let begun = Instant::now();
            while !self.is_open.load(Ordering::Acquire) {
                assert!(begun.elapsed() < Duration::from_secs(10), "a test that fails must not wait for ever");
                std::thread::sleep(Duration::from_millis(1));
            }
            match texts[0][0] {
                666 => Err("a device has gone".to_owned()),
                667 => panic!("a defect"),
                _ => Ok(texts.iter().map(|text| Embedding::from([text[0] as f32])).collect()),
            }
        }
    }

    fn lane(max_slots: usize) -> (Arc<First>, Arc<EmbeddingLane>) {
        let first = Arc::<First>::default();
        let embedder: Arc<dyn TextEmbedder> = Arc::<First>::clone(&first);
        (first, EmbeddingLane::new(embedder, max_slots))
    }

    /// Waits until the embedder has begun a batch.
    async fn begun(first: &First) {
        while first.batches.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Returns texts of `len` tokens with these first ones.
    fn texts(firsts: impl IntoIterator<Item = u32>, len: usize) -> Vec<Vec<u32>> {
        firsts.into_iter().map(|first| vec![first; len]).collect()
    }

    fn firsts(embedded: &[Embedding]) -> Vec<f32> {
        embedded.iter().map(|embedding| embedding[0]).collect()
    }

    #[tokio::test]
    async fn tenants_and_their_requests_take_turns_in_batches() {
        let (first, lane) = lane(8);
        let len = MAX_BATCH_TOKENS / 4;
        let opener = tokio::spawn({
            let lane = Arc::clone(&lane);
            async move { lane.embed(A, texts([0], 1), None).await }
        });
        begun(&first).await;
        let requests = [(A, texts(1..=5, len)), (A, texts([6], len)), (B, texts([7, 8], len))];
        let requests = requests.map(|(tenant, texts)| {
            let lane = Arc::clone(&lane);
            async move { lane.embed(tenant, texts, None).await.unwrap() }
        });
        let open = async {
            tokio::task::yield_now().await;
            first.is_open.store(true, Ordering::Release);
        };
        let (embedded, ()) = tokio::join!(join_all(requests), open);
        assert_eq!(firsts(&embedded[0]), [1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!((firsts(&embedded[1]), firsts(&embedded[2])), (vec![6.0], vec![7.0, 8.0]));
        opener.await.unwrap().unwrap();
        let batches = first.batches.lock().unwrap().clone();
        assert_eq!(batches, [vec![0], vec![1, 7, 6, 8], vec![2, 3, 4, 5]]);
    }

    #[tokio::test]
    async fn a_text_longer_than_a_batch_is_one() {
        let (first, lane) = lane(8);
        first.is_open.store(true, Ordering::Release);
        let embedded = lane.embed(A, texts([3, 4], MAX_BATCH_TOKENS + 1), None).await.unwrap();
        assert_eq!(firsts(&embedded), [3.0, 4.0]);
        assert_eq!(*first.batches.lock().unwrap(), [[3], [4]]);
        assert_eq!(lane.embed(A, vec![], None).await.unwrap(), Vec::<Embedding>::new());
    }

    #[tokio::test]
    async fn a_full_queue_refuses_a_tenant_that_has_its_part_and_no_other() {
        let (first, lane) = lane(2);
        let _open = lane.submit(A, texts([0], 1)).unwrap();
        begun(&first).await;
        let _many = lane.submit(A, texts([1; 2048], 1)).expect("as many slots as there are");
        assert_eq!(lane.submit(A, texts([2], 1)).err(), Some(LaneError::Full));
        let of_b = lane.submit(B, texts([3], 1)).expect("it has nothing in the queue");
        first.is_open.store(true, Ordering::Release);
        assert_eq!(firsts(&collect(of_b, 1).await.unwrap()), [3.0]);
        while lane.submit(A, texts([4], 1)).is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn what_its_client_has_left_or_has_waited_too_long_is_not_embedded() {
        let (first, lane) = lane(8);
        let opener = lane.submit(A, texts([0], 1)).unwrap();
        begun(&first).await;
        drop(lane.submit(A, texts([1], 1)).unwrap());
        let waited = lane.embed(B, texts([2], 1), Some(Duration::from_millis(1))).await;
        assert_eq!(waited, Err(LaneError::TimedOut));
        first.is_open.store(true, Ordering::Release);
        collect(opener, 1).await.unwrap();
        lane.embed(A, texts([3], 1), Some(Duration::from_secs(10))).await.unwrap();
        assert_eq!(first.batches.lock().unwrap().concat(), [0, 3]);
    }

    #[tokio::test]
    async fn a_fault_is_that_of_its_batch() {
        let (first, lane) = lane(8);
        first.is_open.store(true, Ordering::Release);
        for fault in [666, 667] {
            assert_eq!(lane.embed(A, texts([fault], 1), None).await, Err(LaneError::Failed));
            assert_eq!(firsts(&lane.embed(A, texts([5], 1), None).await.unwrap()), [5.0]);
        }
    }
}
