//! Normalization of insignificant whitespace.
//!
//! Pasted or converted text has different whitespace, and so different tokens, where it reads the same. With `kv_sharing.normalize` a
//! request asks for normalization before tokenization, so that more of its text matches. It changes the model's input, so it is never done
//! unasked; and whitespace that may be significant stays: that of columns, indentation and code.

/// Sentence ends, which people follow with one blank or two.
const SENTENCE_ENDS: [char; 6] = ['.', '!', '?', ':', ';', ','];

/// Replaces in `text` `\r\n` by `\n`, two blanks after the end of a sentence by one, removes blanks at the end of a line, and keeps at most
/// one empty line in a row. Returns `None` if that changes nothing or leaves nothing. Lines with tabs or backquotes keep their inner
/// blanks, and text between code fences stays unchanged.
pub(crate) fn normalized(text: &str) -> Option<String> {
    let mut result = String::with_capacity(text.len());
    let mut fence: Option<&str> = None;
    let mut num_empty = 0;
    for (idx, line) in text.split('\n').enumerate() {
        let opens = fence.is_none().then(|| opening_fence(line)).flatten();
        let is_code = fence.is_some() || opens.is_some();
        let line_end = line.trim_end_matches([' ', '\t', '\r']);
        num_empty = if !is_code && line_end.is_empty() { num_empty + 1 } else { 0 };
        if num_empty > 1 && idx > 1 {
            continue;
        }
        if idx > 0 {
            result.push('\n');
        }
        match is_code {
            true => result.push_str(line.strip_suffix('\r').unwrap_or(line)),
            false => push_line(&mut result, line_end),
        }
        fence = match fence {
            Some(open) if closes(line, open) => None,
            Some(open) => Some(open),
            None => opens,
        };
    }
    (result != text && !result.is_empty()).then_some(result)
}

/// Returns the fence of `line` if it opens a code block, which may be inside a quotation.
fn opening_fence(line: &str) -> Option<&str> {
    let marks = line.trim_start_matches([' ', '\t', '>']);
    let mark = marks.chars().next().filter(|mark| matches!(mark, '`' | '~'))?;
    let num_marks = marks.chars().take_while(|&other| other == mark).count();
    (num_marks >= 3).then(|| &marks[..num_marks])
}

/// True if `line` consists of at least as many fence characters as `open`.
fn closes(line: &str, open: &str) -> bool {
    let marks = line.trim_start_matches([' ', '\t', '>']).trim_end();
    marks.len() >= open.len() && marks.chars().all(|mark| open.starts_with(mark))
}

fn push_line(result: &mut String, line: &str) {
    if line.contains(['\t', '`']) {
        return result.push_str(line);
    }
    let mut rest = line;
    while let Some(at) = rest.find("  ") {
        let (before, after) = rest.split_at(at);
        let num_blanks = after.len() - after.trim_start_matches(' ').len();
        let is_sentence = num_blanks == 2 && before.ends_with(SENTENCE_ENDS);
        result.push_str(before);
        result.push_str(if is_sentence { " " } else { &after[..num_blanks] });
        rest = &after[num_blanks..];
    }
    result.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(normalized(text).as_deref(), Some(expected));
        assert_eq!(normalized(expected), None, "once is enough");
    }

    #[track_caller]
    fn check_kept(text: &str) {
        assert_eq!(normalized(text), None, "{text:?}");
    }

    #[test]
    fn blanks_that_mean_nothing_are_written_one_way() {
        check("One.  Two?  Three \r\nd", "One. Two? Three\nd");
        check("a\n\n\n\nb\n", "a\n\nb\n");
        check("  - a.  b  \n", "  - a. b\n");
    }

    #[test]
    fn blanks_that_may_mean_something_stay() {
        check_kept("name   price\npen    3.");
        check_kept("a\tb\tc\n1\t\t3");
        check_kept("`a.  b`");
        check_kept("x = [1,   2]");
        check_kept("a\u{a0}\u{a0}b.");
        check_kept("    if a:\n        b");
    }

    #[test]
    fn text_is_never_emptied() {
        check_kept("");
        check_kept("   ");
        check_kept("\r");
    }

    #[test]
    fn code_stays_as_it_is() {
        check("x.  y\n```\na.  =  1   \n\n\n\nb\n```\nx.  y", "x. y\n```\na.  =  1   \n\n\n\nb\n```\nx. y");
        check_kept("````\n```\na.  b\n```\n````\nc");
        check("````\n```\na.  b\n````\nc.  d", "````\n```\na.  b\n````\nc. d");
        check_kept("```\nx.  y\n  ```not closed\n  a.  b\n```");
        check_kept("> ```\n> a.  b\n> ```");
        check_kept("~~~\na.  b\n```\nc.  d\n~~~");
    }
}
