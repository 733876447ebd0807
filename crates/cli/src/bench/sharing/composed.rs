//! Prompts that are nearly all text of an earlier one, in another order.

use tokens::TokenId;

use super::super::driver::{BenchRequest, Driver};

/// Earlier prompt: pieces one after the other.
#[derive(Clone, Debug)]
pub(super) struct Donor {
    tokens: Vec<TokenId>,
    /// Ends of its pieces.
    ends: Vec<usize>,
}

impl Donor {
    /// Makes `num_tokens` random tokens; the first `moved_share` of them form `num_pieces` pieces whose lengths differ by one at most.
    pub(super) fn new(driver: &mut Driver, num_tokens: u32, num_pieces: u32, moved_share: f64) -> Self {
        let num_moved = (f64::from(num_tokens) * moved_share).round() as usize;
        let num_pieces = num_pieces as usize;
        let ends = (1..=num_pieces).map(|i| num_moved * i / num_pieces).collect();
        Self { tokens: driver.text(num_tokens), ends }
    }

    /// Returns the request that computes and stores the donor.
    pub(super) fn request(&self) -> BenchRequest {
        BenchRequest { segments: as_positions(&self.ends), ..BenchRequest::stored(self.tokens.clone()) }
    }

    /// Returns a prompt as long as the donor: new text, the pieces from last to first, new text. None of its KV is stored.
    ///
    /// In reverse order, no piece follows its predecessor of the donor. Each is a segment, like reordered documents.
    pub(super) fn composed(&self, driver: &mut Driver) -> BenchRequest {
        let num_moved = self.ends.last().copied().unwrap_or(0);
        let num_fresh = self.tokens.len() - num_moved;
        let fresh = driver.text(num_fresh as u32);
        let (head, tail) = fresh.split_at(num_fresh.div_ceil(2));
        let mut tokens = head.to_vec();
        let mut starts = Vec::new();
        let begins = [0].into_iter().chain(self.ends.iter().copied());
        for (begin, end) in begins.zip(self.ends.iter().copied()).collect::<Vec<_>>().into_iter().rev() {
            starts.push(tokens.len());
            tokens.extend_from_slice(&self.tokens[begin..end]);
        }
        starts.push(tokens.len());
        tokens.extend_from_slice(tail);
        BenchRequest { segments: as_positions(&starts), ..BenchRequest::exact(tokens, 1) }
    }
}

fn as_positions(ends: &[usize]) -> Vec<u32> {
    ends.iter().map(|&end| end as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::driver::tiny_driver;
    use super::*;

    #[test]
    fn every_piece_is_there_behind_new_text_and_in_another_order() {
        let mut driver = tiny_driver(64);
        let donor = Donor::new(&mut driver, 1000, 3, 0.98);
        let (donor, composed) = (donor.request(), donor.composed(&mut driver));
        assert_eq!((donor.segments, composed.tokens.len()), (vec![326, 653, 980], 1000));
        assert_eq!(composed.segments, [10, 337, 664, 990]);
        let moved = [&donor.tokens[653..980], &donor.tokens[326..653], &donor.tokens[..326]].concat();
        assert_eq!(composed.tokens[10..990], moved);
        assert!(composed.tokens[..10] != donor.tokens[..10] && composed.tokens[990..] != donor.tokens[980..990]);
    }
}
