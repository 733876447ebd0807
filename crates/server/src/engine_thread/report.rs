//! One-line description of a step, for the log of a crash: ids and lengths, never a token.

use std::fmt::Write;

use engine::SchedulerOutput;

/// Describes `step` without any content of clients.
pub(super) fn describe_step(step: &SchedulerOutput) -> String {
    let mut line = format!("step {}: {} tokens", step.step, step.num_scheduled_tokens());
    // Writing to a string cannot fail.
    for new in &step.new_requests {
        let _ = write!(line, "; new {} prompt={}", new.request_id, new.prompt_token_ids.len());
    }
    for copy in &step.block_copies {
        let _ = write!(line, "; copy b{}->b{} slots={}", copy.src.0, copy.dst.0, copy.num_tokens);
    }
    for span in &step.span_copies {
        let (len, from, to) = (span.token_ids.len(), span.src_pos, span.dst_pos);
        let _ = write!(line, "; span {} from {} len={len} pos={from}->{to}", span.request_id, span.donor);
    }
    for sequence in &step.sequences {
        let positions = match (sequence.rows.first(), sequence.rows.last()) {
            (Some(first), Some(last)) => first.position..last.position + 1,
            _ => 0..0,
        };
        let (id, rows, blocks) = (sequence.request_id, sequence.rows.len(), sequence.block_table.len());
        let _ = write!(line, "; run {id} rows={rows} in {positions:?} blocks={blocks} sample={}", sequence.sample);
    }
    for id in &step.finished {
        let _ = write!(line, "; finished {id}");
    }
    line
}

#[cfg(test)]
mod tests {
    use engine::{BlockEntry, Row, ScheduledSequence};
    use tokens::{BlockId, RequestId, TokenId};

    use super::*;

    #[test]
    fn a_step_is_told_by_ids_and_lengths() {
        let rows = (7..9).map(|position| Row { token: TokenId(987_654), position }).collect();
        let sequence = ScheduledSequence {
            request_id: RequestId(3),
            rows,
            block_table: vec![BlockEntry { block: BlockId(1), position: 0 }],
            sample: true,
            watch: Vec::new(),
            drift: Vec::new(),
        };
        let step =
            SchedulerOutput { step: 5, finished: vec![RequestId(2)], sequences: vec![sequence], ..SchedulerOutput::default() };
        assert_eq!(describe_step(&step), "step 5: 2 tokens; run r3 rows=2 in 7..9 blocks=1 sample=true; finished r2");
    }
}
