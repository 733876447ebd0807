//! Stop strings in streamed text.

use std::ops::Range;

/// Matcher that holds back text which may be the start of a stop string.
///
/// A stop string matches as soon as its last character arrives; of two that end at the same place the longer one wins. So the result does
/// not depend on how the text is split into pieces, and no text after a stop is awaited.
///
/// Hidden special tokens can be part of a stop string too: a stop string matches the text as shown, and the text including all special
/// tokens, of which it must then contain each one wholly.
pub struct StopMatcher {
    stops: Vec<String>,
    include_stop_str: bool,
    /// Text not yet released: empty or the start of a stop string.
    held: PendingText,
    is_stopped: bool,
}

/// Text that may include hidden special tokens.
#[derive(Default)]
struct PendingText {
    text: String,
    /// Byte ranges of the hidden tokens: sorted and disjoint.
    hidden: Vec<Range<usize>>,
}

/// Result of processing a piece of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOutput {
    /// Text that may be released now.
    pub text: String,
    /// Index of the stop string that matched. Everything after it is dropped.
    pub stop: Option<usize>,
}

/// Location of a matched stop string.
struct Found {
    start: usize,
    end: usize,
    stop: usize,
    /// True if the match includes special tokens.
    shows_hidden: bool,
}

impl StopMatcher {
    /// Creates a matcher for `stops`; an empty one never matches. `include_stop_str` releases the stop string itself too.
    #[must_use]
    pub fn new(stops: Vec<String>, include_stop_str: bool) -> Self {
        Self { stops, include_stop_str, held: PendingText::default(), is_stopped: false }
    }

    /// Returns the stop string at an index that it reported.
    #[must_use]
    pub fn stop(&self, index: usize) -> &str {
        &self.stops[index]
    }

    /// Processes the next piece. After a match, all further text is dropped.
    #[must_use]
    pub fn push(&mut self, piece: &str) -> StopOutput {
        if self.is_stopped {
            return StopOutput::default();
        }
        if self.stops.is_empty() {
            return StopOutput { text: piece.to_owned(), stop: None };
        }
        self.held.text.push_str(piece);
        self.search()
    }

    /// Processes a hidden special token, given by its text.
    #[must_use]
    pub fn push_hidden(&mut self, token: &str) -> StopOutput {
        if self.is_stopped || self.stops.is_empty() || token.is_empty() {
            return StopOutput::default();
        }
        let start = self.held.text.len();
        self.held.text.push_str(token);
        self.held.hidden.push(start..self.held.text.len());
        self.search()
    }

    /// Passes a piece through without searching it.
    #[must_use]
    pub fn pass(&mut self, piece: &str) -> String {
        if self.is_stopped { String::new() } else { self.finish() + piece }
    }

    /// Releases the held text at the end of the stream.
    #[must_use]
    pub fn finish(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        held.shown(0..held.text.len())
    }

    fn search(&mut self) -> StopOutput {
        match self.first_stop() {
            Some(found) => {
                self.is_stopped = true;
                let held = std::mem::take(&mut self.held);
                let mut text = held.shown(0..found.start);
                if self.include_stop_str {
                    let range = found.start..found.end;
                    text += &if found.shows_hidden { held.text[range].to_owned() } else { held.shown(range) };
                }
                StopOutput { text, stop: Some(found.stop) }
            }
            None => StopOutput { text: self.release(), stop: None },
        }
    }

    /// Returns the stop string that completes first.
    fn first_stop(&self) -> Option<Found> {
        let stops = self.stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
        let found = stops.flat_map(|(index, stop)| [self.held.find_shown(stop, index), self.held.find_whole(stop, index)]);
        found.flatten().min_by_key(|found| (found.end, found.start, found.stop))
    }

    /// Takes the text that cannot be part of a stop string: all before the longest suffix that starts one.
    fn release(&mut self) -> String {
        let Self { stops, held, .. } = self;
        let whole_start = held.starts().find(|&at| stops.iter().any(|stop| stop.starts_with(&held.text[at..])));
        held.forget_hidden_before(whole_start.unwrap_or(held.text.len()));
        let may_grow = |at: usize| {
            let shown = held.shown(at..held.text.len());
            let is_start = |stop: &String| (!shown.is_empty() && stop.starts_with(&shown)) || stop.starts_with(&held.text[at..]);
            stops.iter().any(is_start)
        };
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        let num_hidden = held.hidden.iter().map(Range::len).sum::<usize>();
        let from = held.text.len().saturating_sub(longest + num_hidden);
        let safe = held.starts().filter(|&at| at >= from).find(|&at| may_grow(at)).unwrap_or(held.text.len());
        held.take(safe)
    }
}

impl PendingText {
    /// Returns the offsets where a stop string may start: at shown characters, and at the starts of hidden tokens.
    fn starts(&self) -> impl Iterator<Item = usize> {
        let is_inside = |at: usize| self.hidden.iter().any(|token| token.start < at && at < token.end);
        self.text.char_indices().map(|(at, _)| at).filter(move |&at| !is_inside(at))
    }

    /// Returns the shown part of `range`, which splits no hidden token.
    fn shown(&self, range: Range<usize>) -> String {
        let mut text = String::with_capacity(range.len());
        let mut at = range.start;
        for token in self.hidden.iter().filter(|token| range.start <= token.start && token.end <= range.end) {
            text.push_str(&self.text[at..token.start]);
            at = token.end;
        }
        text + &self.text[at..range.end]
    }

    /// Returns the first match of `stop` in the text as shown.
    fn find_shown(&self, stop: &str, index: usize) -> Option<Found> {
        let shown = if self.hidden.is_empty() { None } else { Some(self.shown(0..self.text.len())) };
        let start = shown.as_deref().unwrap_or(&self.text).find(stop)?;
        let (start, end) = (self.position(start), self.position(start + stop.len() - 1) + 1);
        Some(Found { start, end, stop: index, shows_hidden: false })
    }

    /// Converts an offset in the shown text into one in the whole text.
    fn position(&self, shown: usize) -> usize {
        self.hidden.iter().fold(shown, |at, token| if token.start <= at { at + token.len() } else { at })
    }

    /// Returns the first match of `stop` in the whole text that includes at least one hidden token.
    fn find_whole(&self, stop: &str, index: usize) -> Option<Found> {
        let overlaps = |token: &&Range<usize>, at: usize| token.start < at + stop.len() && at < token.end;
        let is_whole = |at: usize| {
            let mut touched = self.hidden.iter().filter(|token| overlaps(token, at)).peekable();
            touched.peek().is_some() && touched.all(|token| at <= token.start && token.end <= at + stop.len())
        };
        let start = self.starts().find(|&at| self.text[at..].starts_with(stop) && is_whole(at))?;
        Some(Found { start, end: start + stop.len(), stop: index, shows_hidden: true })
    }

    /// Drops hidden tokens that begin before `end`, because no stop string can contain them any more.
    fn forget_hidden_before(&mut self, end: usize) {
        let num_dropped = self.hidden.partition_point(|token| token.start < end);
        let dropped: Vec<_> = self.hidden.drain(..num_dropped).collect();
        for token in dropped.iter().rev() {
            self.text.drain(token.clone());
        }
        let num_bytes = dropped.iter().map(Range::len).sum::<usize>();
        self.hidden.iter_mut().for_each(|token| *token = token.start - num_bytes..token.end - num_bytes);
    }

    /// Removes the first bytes and returns the shown part of them.
    fn take(&mut self, num_bytes: usize) -> String {
        let text = self.shown(0..num_bytes);
        self.text.drain(..num_bytes);
        self.hidden.retain(|token| token.start >= num_bytes);
        self.hidden.iter_mut().for_each(|token| *token = token.start - num_bytes..token.end - num_bytes);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with `expected`, the released text of each piece and, last, of the end.
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

    #[test]
    fn a_token_that_is_not_shown_is_part_of_a_stop_string() {
        let check = |include: bool, stop: &str, expected: &[&str]| {
            let mut matcher = StopMatcher::new(vec![stop.to_owned()], include);
            let outputs = [matcher.push("a\n"), matcher.push_hidden("<|x|>"), matcher.push("b"), matcher.push("c")];
            let mut texts: Vec<_> = outputs.iter().map(|output| output.text.clone()).collect();
            texts.push(matcher.finish());
            assert_eq!(texts, expected, "{stop}");
        };
        check(false, "<|x|>", &["a\n", "", "", "", ""]);
        check(true, "<|x|>", &["a\n", "<|x|>", "", "", ""]);
        check(false, "\n<|x|>", &["a", "", "", "", ""]);
        check(false, "<|x|>b", &["a\n", "", "", "", ""]);
        check(true, "<|x|>b", &["a\n", "", "<|x|>b", "", ""]);
        check(false, "\nb", &["a", "", "", "", ""]);
        check(true, "\nb", &["a", "", "\nb", "", ""]);
        check(false, "<|", &["a\n", "", "b", "c", ""]);
        check(false, "|>b", &["a\n", "", "b", "c", ""]);
        check(false, "<|x|>c", &["a\n", "", "b", "c", ""]);
    }

    #[test]
    fn tokens_that_are_not_shown_do_not_pile_up() {
        let mut matcher = StopMatcher::new(vec!["ab".to_owned(), "<x>!".to_owned()], false);
        assert_eq!(matcher.push("a").text, "");
        for _ in 0..1000 {
            assert_eq!(matcher.push_hidden("<x>").text, "");
            assert!(matcher.held.text.len() <= 8, "{}", matcher.held.text);
        }
        assert_eq!(matcher.push("b"), StopOutput { text: String::new(), stop: Some(0) });
    }

    #[test]
    fn a_piece_may_pass_unsearched() {
        let mut matcher = StopMatcher::new(vec!["ab".to_owned()], false);
        assert_eq!((matcher.pass("ab"), matcher.push("a").text, matcher.pass("b")), ("ab".into(), "".into(), "ab".into()));
    }

    /// Returns the first prefix of `text` that ends in a stop string, by a stateless search.
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
