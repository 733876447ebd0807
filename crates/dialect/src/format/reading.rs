//! Interface of readers of calls, and the reading of text between calls.

use crate::OutputEvent;
use crate::scan::{Found, find, take};

/// Reader of the calls of one dialect in the text of an answer after its reasoning.
pub(crate) trait Format: Send {
    /// Takes from `text` what is understood and appends it to `events`. `is_last` if nothing follows: then it takes all of it.
    fn read(&mut self, text: &mut String, is_last: bool, events: &mut Vec<OutputEvent>);
}

/// Hands on the text before the first of `markers`, without the blanks before it. Returns the index of the marker, which stays in `text`.
pub(super) fn text_before(markers: &[&str], text: &mut String, is_last: bool, events: &mut Vec<OutputEvent>) -> Option<usize> {
    let (len, marker) = match find(text, markers) {
        Found::Marker(marker, bytes) => (bytes.start, Some(marker)),
        Found::Perhaps(at) if !is_last => (at, None),
        _ => (text.len(), None),
    };
    let kept = if is_last && marker.is_none() { len } else { text[..len].trim_end().len() };
    push_text(&take(text, kept), events);
    if marker.is_some() {
        take(text, len - kept);
    }
    marker
}

/// Appends `text` to `events` unless it is empty.
pub(super) fn push_text(text: &str, events: &mut Vec<OutputEvent>) {
    if !text.is_empty() {
        events.push(OutputEvent::Text(text.to_owned()));
    }
}
