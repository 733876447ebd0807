//! Data of server-sent events from a stream of bytes that may be cut anywhere.

use anyhow::Context;
use eventsource_stream::{EventStreamError, Eventsource};
use futures::{Stream, StreamExt};

/// Returns the data of the events in `bytes`, in order. Skips comments and other fields.
pub(super) fn data_of<B, E>(bytes: impl Stream<Item = Result<B, E>>) -> impl Stream<Item = anyhow::Result<String>>
where
    B: AsRef<[u8]>,
    E: std::error::Error + Send + Sync + 'static,
{
    bytes.eventsource().map(|event| match event {
        Ok(event) => Ok(event.data),
        Err(EventStreamError::Transport(error)) => Err(error).context("reading the answer"),
        Err(EventStreamError::Utf8(error)) => Err(error).context("the answer is not UTF-8"),
        Err(EventStreamError::Parser(error)) => Err(anyhow::anyhow!("the answer is no stream of events: {error}")),
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::stream;
    use tokio::runtime::Builder;

    use super::*;

    /// Returns the data of all events in `chunks`.
    fn read<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
        let bytes = stream::iter(chunks.map(Ok::<_, Infallible>));
        Builder::new_current_thread().build().unwrap().block_on(data_of(bytes).map(Result::unwrap).collect())
    }

    /// Checks that the same events come out whether `stream` arrives whole or byte by byte.
    #[track_caller]
    fn check(stream: &str, expected: &[&str]) {
        assert_eq!(read([stream.as_bytes()].into_iter()), expected);
        assert_eq!(read(stream.as_bytes().chunks(1)), expected);
    }

    #[test]
    fn events_end_at_an_empty_line() {
        check("data: a\n\ndata: [DONE]\n\ndata: cut off", &["a", "[DONE]"]);
    }

    #[test]
    fn comments_other_fields_and_carriage_returns_are_skipped() {
        check(": ping\n\nevent: x\r\nid: 1\r\ndata:é\r\n\r\n", &["é"]);
    }

    #[test]
    fn data_of_several_lines_is_joined() {
        check("data: a\ndata: b\n\n", &["a\nb"]);
    }
}
