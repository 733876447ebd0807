//! Dispatch of a workload's requests: in the order of the file, but none before its donor has finished.

use std::collections::BTreeSet;

use eval::workload::Record;

/// Queue of the requests still to be sent.
///
/// No request waits for ever: a donor that is not in the workload, or depends on its own recipient in a cycle, is not waited for.
#[derive(Debug)]
pub(crate) struct Dispatch<'a> {
    records: &'a [Record],
    /// Indices of the records still to be sent, in order.
    waiting: Vec<usize>,
    /// Ids of the records that have not finished, sent or not.
    unfinished: BTreeSet<&'a str>,
    num_in_flight: usize,
}

impl<'a> Dispatch<'a> {
    /// Queues all of `records`.
    pub(crate) fn new(records: &'a [Record]) -> Self {
        let unfinished = records.iter().map(|record| record.id.as_str()).collect();
        Self { records, waiting: (0..records.len()).collect(), unfinished, num_in_flight: 0 }
    }

    /// Returns the next request that may be sent now; `None` if all are sent or wait for a donor in flight.
    pub(crate) fn next_ready(&mut self) -> Option<usize> {
        let is_ready = |&index: &usize| match self.records[index].donor_id.as_deref() {
            Some(donor) => !self.unfinished.contains(donor),
            None => true,
        };
        let ready = self.waiting.iter().position(is_ready);
        // With nothing in flight no request can become ready any more: the donors form a cycle.
        let position = ready.or_else(|| (self.num_in_flight == 0 && !self.waiting.is_empty()).then_some(0))?;
        self.num_in_flight += 1;
        Some(self.waiting.remove(position))
    }

    /// Marks a request as finished, answered or failed.
    pub(crate) fn finish(&mut self, index: usize) {
        self.num_in_flight -= 1;
        self.unfinished.remove(self.records[index].id.as_str());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends records `name<donor`, `concurrency` at a time, finished in the order sent. `expected`: steps of the records sent together.
    #[track_caller]
    fn check(records: &str, concurrency: usize, expected: &str) {
        let record = |text: &str| {
            let (id, donor_id) = text.split_once('<').map_or((text, None), |(id, donor)| (id, Some(donor.to_owned())));
            Record { id: id.to_owned(), donor_id, max_tokens: 1, ..Record::default() }
        };
        let records: Vec<_> = records.split(' ').map(record).collect();
        let mut dispatch = Dispatch::new(&records);
        let mut steps = Vec::new();
        loop {
            let sent: Vec<_> = std::iter::from_fn(|| dispatch.next_ready()).take(concurrency).collect();
            if sent.is_empty() {
                break;
            }
            steps.push(sent.iter().map(|&index| records[index].id.as_str()).collect::<Vec<_>>().join("+"));
            for index in sent {
                dispatch.finish(index);
            }
        }
        assert_eq!(steps.join(" "), expected);
    }

    #[test]
    fn one_at_a_time_keeps_the_order_of_the_file() {
        check("a b<a c d<c", 1, "a b c d");
    }

    #[test]
    fn recipients_wait_and_others_overtake_them() {
        check("a b<a c<a d e", 2, "a+d b+c e");
    }

    #[test]
    fn a_donor_that_is_not_there_is_not_waited_for() {
        check("a<gone b", 2, "a+b");
    }

    #[test]
    fn a_circle_of_donors_is_broken() {
        check("a<b b<a c", 1, "c a b");
    }
}
