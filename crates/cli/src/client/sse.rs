//! Parser of server-sent events from a stream of bytes that may be cut anywhere.

/// Collects bytes until an event is complete.
#[derive(Debug, Default)]
pub(crate) struct EventParser {
    line: Vec<u8>,
    data: Vec<String>,
}

impl EventParser {
    /// Returns the data of the events that `bytes` complete, in order. Skips comments and other fields.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut events = Vec::new();
        for &byte in bytes {
            if byte == b'\n' {
                events.extend(self.end_line());
            } else {
                self.line.push(byte);
            }
        }
        events
    }

    /// Returns the event that ends with this line, if it is the empty one.
    fn end_line(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        if line.is_empty() {
            return (!self.data.is_empty()).then(|| std::mem::take(&mut self.data).join("\n"));
        }
        if let Some(data) = line.strip_prefix(b"data:") {
            let data = data.strip_prefix(b" ").unwrap_or(data);
            self.data.push(String::from_utf8_lossy(data).into_owned());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that the same events come out whether `stream` arrives whole or byte by byte.
    #[track_caller]
    fn check(stream: &str, expected: &[&str]) {
        assert_eq!(EventParser::default().feed(stream.as_bytes()), expected);
        let mut parser = EventParser::default();
        let one_by_one: Vec<_> = stream.as_bytes().chunks(1).flat_map(|byte| parser.feed(byte)).collect();
        assert_eq!(one_by_one, expected);
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
