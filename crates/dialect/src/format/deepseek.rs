//! `<｜tool▁call▁begin｜>` with a name and JSON (DeepSeek V3, R1 and V3.1).

use super::named::NamedJson;
use super::reading::{Format, text_before};
use crate::OutputEvent;
use crate::markers::{DEEPSEEK_CALL as CALL, DEEPSEEK_SEPARATOR as SEPARATOR};
use crate::scan::take;

const ENDS: &[&str] = &["```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"];

/// Beginning of all calls, and of each.
const MARKERS: [&str; 2] = ["<｜tool▁calls▁begin｜>", CALL];

/// Reader of DeepSeek's calls.
#[derive(Default)]
pub(crate) struct DeepSeek {
    call: Option<NamedJson>,
}

impl Format for DeepSeek {
    fn read(&mut self, text: &mut String, is_last: bool, events: &mut Vec<OutputEvent>) {
        loop {
            if let Some(call) = &mut self.call {
                if !call.read(text, is_last, events) {
                    return;
                }
                self.call = None;
            }
            let Some(marker) = text_before(&MARKERS, text, is_last, events) else { return };
            take(text, MARKERS[marker].len());
            self.call = (marker == 1).then(|| NamedJson::new(name_of, ENDS));
        }
    }
}

/// V3 and R1 write `function`, the separator, the name and a fence; V3.1 the name and the separator.
fn name_of(before: &str) -> &str {
    let before = before.trim().trim_end_matches("```json").trim();
    before.rsplit(SEPARATOR).map(str::trim).find(|part| !part.is_empty()).unwrap_or_default()
}
