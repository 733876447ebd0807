//! Tables that are readable in a terminal and valid Markdown.

/// Formats a header row and rows of as many cells. The first `num_text` columns are left-aligned, the others right.
pub fn markdown(header: &[&str], rows: &[Vec<String>], num_text: usize) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].chars().count(), 3]).max().unwrap_or(3)
    };
    let widths: Vec<_> = (0..header.len()).map(width).collect();
    let mut text = line(header.iter().copied(), &widths, num_text);
    let rule: Vec<_> = widths.iter().enumerate().map(|(i, &width)| rule_cell(width, i < num_text)).collect();
    text += &line(rule.iter().map(String::as_str), &widths, num_text);
    for row in rows {
        text += &line(row.iter().map(String::as_str), &widths, num_text);
    }
    text
}

fn line<'a>(cells: impl Iterator<Item = &'a str>, widths: &[usize], num_text: usize) -> String {
    let pad = |(i, (cell, &width)): (usize, (&str, &usize))| {
        if i < num_text { format!(" {cell:<width$} |") } else { format!(" {cell:>width$} |") }
    };
    let cells: String = cells.zip(widths).enumerate().map(pad).collect();
    format!("|{cells}\n")
}

fn rule_cell(width: usize, is_text: bool) -> String {
    if is_text { "-".repeat(width) } else { format!("{}:", "-".repeat(width - 1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_left_and_numbers_are_right() {
        let rows = [vec!["w1".to_owned(), "3".to_owned()], vec!["longer".to_owned(), "12345".to_owned()]];
        let expected = "\
| workload |     n |
| -------- | ----: |
| w1       |     3 |
| longer   | 12345 |
";
        assert_eq!(markdown(&["workload", "n"], &rows, 1), expected);
    }
}
