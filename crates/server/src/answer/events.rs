//! Server-sent events of an answer: opening, deltas, finish, usage if requested, `[DONE]`; or an error, and then nothing.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::response::sse::Event;
use futures::stream::{self, BoxStream, SelectAll, Stream, StreamExt};
use protocol::Usage;

use super::choice::{Choice, ChoiceDelta};
use super::start::Generation;
use super::usage::{ChoiceUsage, UsageSum};
use super::writer::Writer;
use crate::error::ApiError;
use crate::valid::StreamMode;

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
    /// The end marker is pending.
    Done,
    /// The stream has ended.
    Over,
}

/// Event stream of one HTTP request. Dropping it aborts its requests.
pub(crate) struct EventStream {
    writer: Writer,
    mode: StreamMode,
    num_choices: u32,
    choices: SelectAll<BoxStream<'static, ChoiceUpdate>>,
    /// Sums without any answer.
    no_usage: UsageSum,
    /// Usage of each answer so far.
    usages: Vec<ChoiceUsage>,
    stage: Stage,
}

/// Streams the answers of `generation`.
pub(crate) fn event_stream(mut writer: Writer, mode: StreamMode, generation: Generation) -> EventStream {
    writer.set_usage(mode.include_usage.then_some(None));
    EventStream {
        writer,
        mode,
        num_choices: u32::try_from(generation.choices.len()).expect("the queue is shorter than that"),
        usages: vec![ChoiceUsage::default(); generation.choices.len()],
        no_usage: UsageSum::new(generation.sharing, generation.n, generation.prompt_tokens).normalized(generation.normalized),
        choices: stream::select_all(generation.choices.into_iter().map(news_of)),
        stage: Stage::Opening(0),
    }
}

/// Streams the updates of one answer up to its finish or an error.
fn news_of(choice: Choice) -> BoxStream<'static, ChoiceUpdate> {
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
    fn poll_text(&mut self, cx: &mut Context<'_>) -> Poll<Option<String>> {
        loop {
            match self.stage {
                Stage::Opening(index) if index < self.num_choices => {
                    self.stage = Stage::Opening(index + 1);
                    if let Some(chunk) = self.writer.opening(index) {
                        return Poll::Ready(Some(chunk));
                    }
                }
                Stage::Opening(_) => self.stage = Stage::Deltas,
                Stage::Deltas => match self.choices.poll_next_unpin(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Some(news)) => return Poll::Ready(Some(self.write(news))),
                    Poll::Ready(None) => {
                        self.stage = Stage::Done;
                        if self.mode.include_usage {
                            return Poll::Ready(Some(self.writer.usage(self.usage())));
                        }
                    }
                },
                Stage::Done => {
                    self.stage = Stage::Over;
                    return Poll::Ready(Some("[DONE]".to_owned()));
                }
                Stage::Over => return Poll::Ready(None),
            }
        }
    }

    /// Returns the usage of all answers so far.
    fn usage(&self) -> Usage {
        let mut sum = self.no_usage;
        (0..).zip(&self.usages).for_each(|(index, usage)| sum.add(index, *usage));
        sum.total()
    }

    fn write(&mut self, news: ChoiceUpdate) -> String {
        match news.result {
            Ok((delta, usage)) => {
                self.usages[news.index as usize] = usage;
                if self.mode.continuous_usage {
                    self.writer.set_usage(Some(Some(self.usage())));
                }
                self.writer.delta(news.index, delta)
            }
            Err(error) => {
                // One answer without the others would look complete: all of them end here, without an end marker.
                tracing::warn!(%error, "stream cut");
                self.choices.clear();
                self.stage = Stage::Over;
                serde_json::to_string(&error.body()).expect("errors have string keys only")
            }
        }
    }
}

impl Stream for EventStream {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_text(cx).map(|text| text.map(|text| Ok(Event::default().data(text))))
    }
}
