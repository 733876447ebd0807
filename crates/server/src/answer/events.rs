//! Server-sent events of an answer: opening, deltas, finish, end; or an error, and then nothing.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::response::sse::Event;
use futures::stream::{self, BoxStream, SelectAll, Stream, StreamExt};
use protocol::Usage;

use super::choice::Choice;
use super::delta::ChoiceDelta;
use super::start::Generation;
use super::usage::{ChoiceUsage, UsageSum};
use super::writer::{AnswerEvent, AnswerWriter};
use crate::error::ApiError;

/// An update of one of the answers.
struct ChoiceUpdate {
    index: u32,
    /// The delta with the usage so far, or an error.
    result: Result<(ChoiceDelta, ChoiceUsage), ApiError>,
}

/// Stage of the stream.
enum Stage {
    /// Opening chunks of the answers from this index on are pending.
    Opening(u32),
    /// Deltas of all answers, in order of arrival.
    Deltas,
    /// The stream has ended.
    Over,
}

/// Event stream of one HTTP request. Dropping it aborts its requests.
pub(crate) struct EventStream {
    writer: Box<dyn AnswerWriter>,
    /// Events that are written and not sent.
    ready: VecDeque<AnswerEvent>,
    num_choices: u32,
    choices: SelectAll<BoxStream<'static, ChoiceUpdate>>,
    /// Sums without any answer.
    no_usage: UsageSum,
    /// Usage of each answer so far.
    usages: Vec<ChoiceUsage>,
    stage: Stage,
}

/// Streams the answers of `generation`.
pub(crate) fn event_stream(writer: Box<dyn AnswerWriter>, generation: Generation) -> EventStream {
    EventStream {
        writer,
        ready: VecDeque::new(),
        num_choices: u32::try_from(generation.choices.len()).expect("the queue is shorter than that"),
        usages: vec![ChoiceUsage::default(); generation.choices.len()],
        no_usage: UsageSum::new(generation.sharing, generation.n, generation.prompt_tokens).normalized(generation.normalized),
        choices: stream::select_all(generation.choices.into_iter().map(updates_of)),
        stage: Stage::Opening(0),
    }
}

/// Streams the updates of one answer up to its finish or an error.
fn updates_of(choice: Choice) -> BoxStream<'static, ChoiceUpdate> {
    stream::unfold(Some(choice), |choice| async move {
        let mut choice = choice?;
        let index = choice.index();
        let (result, rest) = match choice.next().await {
            Ok(delta) => {
                let (usage, is_last) = (choice.usage(), delta.finish_reason.is_some());
                (Ok((delta, usage)), (!is_last).then_some(choice))
            }
            Err(error) => (Err(error), None),
        };
        Some((ChoiceUpdate { index, result }, rest))
    })
    .boxed()
}

impl EventStream {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<AnswerEvent>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(event));
            }
            let events = match self.stage {
                Stage::Opening(index) if index < self.num_choices => {
                    self.stage = Stage::Opening(index + 1);
                    self.writer.opening(index)
                }
                Stage::Opening(_) => {
                    self.stage = Stage::Deltas;
                    continue;
                }
                Stage::Deltas => match self.choices.poll_next_unpin(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Some(update)) => self.write(update),
                    Poll::Ready(None) => {
                        self.stage = Stage::Over;
                        self.writer.end(usage_of(self.no_usage, &self.usages))
                    }
                },
                Stage::Over => return Poll::Ready(None),
            };
            self.ready.extend(events);
        }
    }

    fn write(&mut self, update: ChoiceUpdate) -> Vec<AnswerEvent> {
        match update.result {
            Ok((delta, usage)) => {
                self.usages[update.index as usize] = usage;
                let (none, usages) = (self.no_usage, &self.usages);
                self.writer.delta(update.index, delta, &|| usage_of(none, usages))
            }
            Err(error) => {
                // One answer without the others would look complete: all of them end here, without an end marker.
                tracing::warn!(%error, "stream cut");
                self.choices.clear();
                self.stage = Stage::Over;
                vec![self.writer.error(&error)]
            }
        }
    }
}

/// Returns the usage of all answers so far.
fn usage_of(mut sum: UsageSum, usages: &[ChoiceUsage]) -> Usage {
    (0..).zip(usages).for_each(|(index, usage)| sum.add(index, *usage));
    sum.total()
}

impl From<AnswerEvent> for Event {
    fn from(AnswerEvent { name, data }: AnswerEvent) -> Self {
        // The name comes first, as some readers go line by line.
        let event = name.map_or_else(Self::default, |name| Self::default().event(name));
        event.data(data)
    }
}

impl Stream for EventStream {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_event(cx).map(|event| event.map(|event| Ok(event.into())))
    }
}
