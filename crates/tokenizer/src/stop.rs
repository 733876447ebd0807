//! Stop strings in streamed text.

/// Holds back text that may turn out to be the start of a stop string.
///
/// A stop string counts as soon as its last character is there; of two that end at the same place the longer one counts. So the
/// result does not depend on how the text is cut into pieces, and no text after a stop is ever waited for.
pub struct StopMatcher {
    stops: Vec<String>,
    include_stop_str: bool,
    /// Text that was not handed out: empty or the start of a stop string.
    held: String,
    is_stopped: bool,
}

/// What a piece of text came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOutput {
    /// Text that may be handed out now.
    pub text: String,
    /// Index of the stop string that was hit. Everything after it is dropped.
    pub stop: Option<usize>,
}

impl StopMatcher {
    /// A matcher for `stops`; an empty one never matches. `include_stop_str` hands out the stop string itself too.
    #[must_use]
    pub fn new(stops: Vec<String>, include_stop_str: bool) -> Self {
        Self { stops, include_stop_str, held: String::new(), is_stopped: false }
    }

    /// Takes the next piece. After a stop was hit, all further text is dropped.
    #[must_use]
    pub fn push(&mut self, piece: &str) -> StopOutput {
        if self.is_stopped {
            return StopOutput::default();
        }
        if self.stops.is_empty() {
            return StopOutput { text: piece.to_owned(), stop: None };
        }
        self.held.push_str(piece);
        match self.first_stop() {
            Some((start, end, stop)) => {
                self.is_stopped = true;
                let mut text = std::mem::take(&mut self.held);
                text.truncate(if self.include_stop_str { end } else { start });
                StopOutput { text, stop: Some(stop) }
            }
            None => {
                let rest = self.held.split_off(self.safe_len());
                StopOutput { text: std::mem::replace(&mut self.held, rest), stop: None }
            }
        }
    }

    /// Hands out what was held back, when no more text comes.
    #[must_use]
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Start, end and index of the stop string that is complete first.
    fn first_stop(&self) -> Option<(usize, usize, usize)> {
        let stops = self.stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
        let found = stops.filter_map(|(index, stop)| self.held.find(stop).map(|start| (start, start + stop.len(), index)));
        found.min_by_key(|&(start, end, index)| (end, start, index))
    }

    /// Bytes of the held text that cannot be part of a stop string: all before the longest end that one starts with.
    fn safe_len(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let starts = self.held.char_indices().map(|(at, _)| at).filter(|&at| at >= from);
        let mut may_grow = starts.filter(|&at| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..])));
        may_grow.next().unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `expected` is what each piece hands out; the last is what the end does.
    #[track_caller]
    fn check(stops: &[&str], pieces: &[&str], expected: &[&str], expected_stop: Option<usize>) {
        let mut matcher = StopMatcher::new(stops.iter().map(|&stop| stop.to_owned()).collect(), false);
        let mut stop = None;
        let mut texts = Vec::new();
        for piece in pieces {
            let output = matcher.push(piece);
            stop = stop.or(output.stop);
            texts.push(output.text);
        }
        texts.push(matcher.finish());
        assert_eq!((texts, stop), (expected.iter().map(|&text| text.to_owned()).collect(), expected_stop));
    }

    #[test]
    fn a_stop_over_several_pieces_never_leaks() {
        check(&["\nUser:"], &["Hi\n", "Us", "er: more", "x"], &["Hi", "", "", "", ""], Some(0));
    }

    #[test]
    fn a_start_that_does_not_complete_is_handed_out() {
        check(&["END"], &["an EN", "D?"], &["an ", "", ""], Some(0));
        check(&["END"], &["an EN", "X"], &["an ", "ENX", ""], None);
        check(&["END"], &["an EN"], &["an ", "EN"], None);
    }

    #[test]
    fn a_start_inside_of_a_start_is_kept() {
        check(&["aab"], &["aa", "a", "b"], &["", "a", "", ""], Some(0));
    }

    #[test]
    fn the_stop_that_is_complete_first_wins() {
        check(&["abcd", "bc"], &["abcd"], &["a", ""], Some(1));
        check(&["c", "abc"], &["xabc"], &["x", ""], Some(1));
    }

    #[test]
    fn an_empty_stop_never_matches() {
        check(&[""], &["a"], &["a", ""], None);
    }

    #[test]
    fn the_stop_string_is_handed_out_when_asked_for() {
        let mut matcher = StopMatcher::new(vec!["END".to_owned()], true);
        assert_eq!(matcher.push("the EN").text, "the ");
        assert_eq!(matcher.push("D of it"), StopOutput { text: "END".to_owned(), stop: Some(0) });
    }

    /// The first prefix of `text` that ends in a stop string, searched without any state.
    fn naive(stops: &[String], text: &str) -> (String, Option<usize>) {
        for end in (1..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let hits = stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty() && text[..end].ends_with(stop.as_str()));
            if let Some((index, stop)) = hits.max_by_key(|(index, stop)| (stop.len(), std::cmp::Reverse(*index))) {
                return (text[..end - stop.len()].to_owned(), Some(index));
            }
        }
        (text.to_owned(), None)
    }

    #[test]
    fn any_cutting_gives_what_a_search_of_the_whole_gives() {
        let mut state = 3u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        };
        for _ in 0..20_000 {
            let mut word = |max: usize| (0..random(max + 1)).map(|_| ['a', 'b', 'é'][random(3)]).collect::<String>();
            let stops: Vec<String> = (0..3).map(|_| word(4)).collect();
            let pieces: Vec<String> = (0..6).map(|_| word(3)).collect();
            let mut matcher = StopMatcher::new(stops.clone(), false);
            let (mut text, mut stop) = (String::new(), None);
            for piece in &pieces {
                let output = matcher.push(piece);
                text.push_str(&output.text);
                stop = stop.or(output.stop);
            }
            text.push_str(&matcher.finish());
            assert_eq!((text, stop), naive(&stops, &pieces.concat()), "{stops:?} {pieces:?}");
        }
    }
}
