//! Trace of recorded requests: lengths, arrival times, and equal blocks of their prompts.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use tokens::Timestamp;

/// Tokens of one block of a trace (Mooncake, FAST'25 traces). The last block of a prompt may have fewer.
pub const BLOCK_TOKENS: u32 = 512;

/// Maximum time of an arrival, in seconds. Chosen: thirty years, whose microseconds times any factor of the engine fit 64 bits.
pub(crate) const MAX_ARRIVAL_SECONDS: f64 = 1e9;
/// Maximum length of a prompt or an answer. Chosen: more than any model reads; a prompt of it takes 64 MiB.
const MAX_TOKENS: u32 = 1 << 24;

/// Requests in the order of arrival.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// Requests by ascending arrival.
    pub requests: Vec<TraceRequest>,
}

/// One request of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceRequest {
    /// Time since the first request.
    pub arrival: Timestamp,
    /// Prompt tokens, at least 1.
    pub input_tokens: u32,
    /// Generated tokens, at least 1.
    pub output_tokens: u32,
    /// Name of each block of [`BLOCK_TOKENS`] of the prompt, the last one partial. Equal names in two prompts mean equal blocks after equal
    /// blocks. Names are dense: `0..` by first appearance. A request of a trace without names shares none.
    pub blocks: Vec<u32>,
}

/// Reason why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file is missing or cannot be read to its end.
    #[error("reading the trace: {0}")]
    Io(#[from] std::io::Error),
    /// A line is not a request.
    #[error("line {line}: {source}")]
    Json {
        /// Line, from 1.
        line: usize,
        /// Parse error.
        source: serde_json::Error,
    },
    /// A request is empty, is longer than any, or arrives before time 0 or decades after it.
    #[error(
        "line {line}: arrival_s must be between 0 and {MAX_ARRIVAL_SECONDS}, input_length and output_length between 1 and {MAX_TOKENS}"
    )]
    OutOfRange {
        /// Line, from 1.
        line: usize,
    },
    /// The number of names does not match the length.
    #[error("line {line}: {num_ids} hash_ids for {input_length} tokens, which are {num_blocks} blocks of 512")]
    BlockCount {
        /// Line, from 1.
        line: usize,
        /// Names given.
        num_ids: usize,
        /// Length given, in tokens.
        input_length: u32,
        /// Names needed.
        num_blocks: usize,
    },
}

/// One line of the file. Other fields are skipped.
#[derive(Deserialize)]
struct TraceRecord {
    arrival_s: f64,
    input_length: u32,
    output_length: u32,
    hash_ids: Option<Vec<u64>>,
}

impl Trace {
    /// Reads a file of one JSON object a line: `arrival_s`, `input_length`, `output_length`, and perhaps `hash_ids`.
    ///
    /// # Errors
    /// If a line is not such a request; names the first.
    pub fn open(path: &Path) -> Result<Self, TraceError> {
        Self::read(BufReader::new(File::open(path)?))
    }

    /// Reads the same from memory or a pipe. Skips empty lines.
    ///
    /// # Errors
    /// If a line is not such a request; names the first.
    pub fn read(reader: impl BufRead) -> Result<Self, TraceError> {
        let mut names = BlockNames::default();
        let mut requests = Vec::new();
        for (line_idx, text) in reader.lines().enumerate() {
            let (line, text) = (line_idx + 1, text?);
            if text.trim().is_empty() {
                continue;
            }
            let parsed: TraceRecord = serde_json::from_str(&text).map_err(|source| TraceError::Json { line, source })?;
            requests.push(parsed.into_request(line, &mut names)?);
        }
        requests.sort_by_key(|request| request.arrival);
        Ok(Self { requests })
    }

    /// Keeps the first `num_requests` requests.
    #[must_use]
    pub fn truncated(mut self, num_requests: usize) -> Self {
        self.requests.truncate(num_requests);
        self
    }

    /// Multiplies the time between requests by `time_scale`: below 1 is more load. `None` if `time_scale` is negative or not finite, or
    /// moves an arrival beyond the maximum.
    #[must_use]
    pub fn scaled(mut self, time_scale: f64) -> Option<Self> {
        if !(time_scale.is_finite() && time_scale >= 0.0) {
            return None;
        }
        for request in &mut self.requests {
            let seconds = request.arrival.0.as_secs_f64() * time_scale;
            if seconds > MAX_ARRIVAL_SECONDS {
                return None;
            }
            request.arrival = Timestamp(request.arrival.0.mul_f64(time_scale));
        }
        Some(self)
    }
}

impl TraceRequest {
    /// Counts prompt tokens with the last block padded.
    #[must_use]
    pub fn padded_tokens(&self) -> u32 {
        self.blocks.len() as u32 * BLOCK_TOKENS
    }
}

impl TraceRecord {
    fn into_request(self, line: usize, names: &mut BlockNames) -> Result<TraceRequest, TraceError> {
        let Self { arrival_s, input_length, output_length, hash_ids } = self;
        let are_lengths = [input_length, output_length].iter().all(|length| (1..=MAX_TOKENS).contains(length));
        if !(are_lengths && (0.0..=MAX_ARRIVAL_SECONDS).contains(&arrival_s)) {
            return Err(TraceError::OutOfRange { line });
        }
        let arrival = Duration::from_secs_f64(arrival_s);
        let num_blocks = input_length.div_ceil(BLOCK_TOKENS) as usize;
        let blocks = match hash_ids {
            None => (0..num_blocks).map(|_| names.fresh()).collect(),
            Some(ids) if ids.len() == num_blocks => ids.into_iter().map(|id| names.of(id)).collect(),
            Some(ids) => return Err(TraceError::BlockCount { line, num_ids: ids.len(), input_length, num_blocks }),
        };
        Ok(TraceRequest { arrival: Timestamp(arrival), input_tokens: input_length, output_tokens: output_length, blocks })
    }
}

/// Map from the ids of a file to dense names.
#[derive(Default)]
struct BlockNames {
    known: HashMap<u64, u32>,
    num_given: u32,
}

impl BlockNames {
    fn of(&mut self, id: u64) -> u32 {
        if let Some(&name) = self.known.get(&id) {
            return name;
        }
        let name = self.fresh();
        self.known.insert(id, name);
        name
    }

    fn fresh(&mut self) -> u32 {
        self.num_given += 1;
        self.num_given - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Trace, TraceError> {
        Trace::read(text.as_bytes())
    }

    #[track_caller]
    fn check_blocks(text: &str, expected: &[&[u32]]) {
        let trace = read(text).unwrap();
        let blocks: Vec<_> = trace.requests.iter().map(|request| request.blocks.as_slice()).collect();
        assert_eq!(blocks, expected);
    }

    #[track_caller]
    fn check_refused(text: &str, expected: &str) {
        assert_eq!(read(text).unwrap_err().to_string(), expected);
    }

    #[test]
    fn equal_ids_are_equal_blocks() {
        check_blocks(
            r#"{"id":"a","arrival_s":0.0,"input_length":1024,"output_length":1,"hash_ids":[900,7]}

               {"id":"b","arrival_s":1.0,"input_length":1025,"output_length":1,"hash_ids":[900,8,9]}"#,
            &[&[0, 1], &[0, 2, 3]],
        );
    }

    #[test]
    fn requests_without_ids_share_no_block() {
        check_blocks(
            r#"{"arrival_s":0.0,"input_length":513,"output_length":1}
               {"arrival_s":0.0,"input_length":512,"output_length":1}"#,
            &[&[0, 1], &[2]],
        );
    }

    #[test]
    fn requests_come_by_arrival() {
        let trace = read(
            r#"{"arrival_s":2.5,"input_length":1,"output_length":3}
               {"arrival_s":1.0,"input_length":2,"output_length":3}"#,
        );
        let arrivals: Vec<_> = trace.unwrap().requests.iter().map(|request| request.arrival.0.as_millis()).collect();
        assert_eq!(arrivals, [1000, 2500]);
    }

    #[test]
    fn a_wrong_line_is_named() {
        check_refused("\n{}", "line 2: missing field `arrival_s` at line 1 column 2");
        check_refused(
            r#"{"arrival_s":0,"input_length":513,"output_length":1,"hash_ids":[1]}"#,
            "line 1: 1 hash_ids for 513 tokens, which are 2 blocks of 512",
        );
        let out_of_range =
            "line 1: arrival_s must be between 0 and 1000000000, input_length and output_length between 1 and 16777216";
        check_refused(r#"{"arrival_s":-1,"input_length":1,"output_length":1}"#, out_of_range);
        check_refused(r#"{"arrival_s":1e18,"input_length":1,"output_length":1}"#, out_of_range);
        check_refused(r#"{"arrival_s":0,"input_length":4294967295,"output_length":1}"#, out_of_range);
        check_refused(r#"{"arrival_s":0,"input_length":1,"output_length":4294967295}"#, out_of_range);
        check_refused(r#"{"arrival_s":0,"input_length":0,"output_length":1}"#, out_of_range);
        check_refused(r#"{"arrival_s":0,"input_length":1,"output_length":0}"#, out_of_range);
    }

    #[test]
    fn arrivals_scale() {
        let trace = read(r#"{"arrival_s":2.5,"input_length":1,"output_length":3}"#).unwrap();
        assert_eq!([-1.0, f64::NAN, f64::INFINITY, 1e12].map(|scale| trace.clone().scaled(scale)), [None, None, None, None]);
        assert_eq!(trace.scaled(2.0).unwrap().requests[0].arrival, Timestamp::from_micros(5_000_000));
    }
}
