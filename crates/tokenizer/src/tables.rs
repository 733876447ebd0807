//! Tables in a text, whose rows depend on their header.
//!
//! A cell is read by the name of its column, which appears only above or in the table. So equal rows under another header are not the same
//! text. Tables are detected by their shape: consecutive lines with the same number of the same delimiter (pipes may differ in number), or
//! an HTML table; two columns of words count if at least four lines are nothing but two short cells. The first lines are the header, up to one with numbers where most lines have some; a table may have none. Lines of JSON
//! objects name their cells themselves.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Range;

/// Rows of a table in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableText {
    /// Byte range of all rows below the header.
    pub(crate) bytes: Range<usize>,
    /// Hash of the header; [`NO_HEADER`] if all lines are rows.
    pub(crate) header: u64,
}

/// Header value of a table without one.
const NO_HEADER: u64 = 0;

/// Cell delimiter of a line and its count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// Pipes, two or more in any number, because a row may lack cells. Those of control tokens, `<|user|>`, do not count.
    Pipes,
    Tabs(usize),
    Semicolons(usize),
    Commas(usize),
    Ampersands(usize),
    /// Gaps of two spaces or more.
    Gaps(usize),
    /// Single spaces.
    Spaces(usize),
    /// One delimiter between two short cells.
    Pair(&'static str),
}

impl Shape {
    fn of(line: &str) -> Option<Self> {
        let line = line.trim_end();
        if line.contains("\":") {
            return None;
        }
        let unquoted = |delimiter: char| {
            let mut is_quoted = false;
            let count = |c: &char| {
                is_quoted ^= *c == '"';
                *c == delimiter && (!is_quoted || delimiter == '|')
            };
            line.chars().filter(count).count()
        };
        Some(match () {
            () if unquoted('|').saturating_sub(line.matches("<|").count() + line.matches("|>").count()) >= 2 => Self::Pipes,
            () if unquoted('\t') >= 1 => Self::Tabs(unquoted('\t')),
            () if unquoted(';') >= 2 => Self::Semicolons(unquoted(';')),
            () if unquoted(',') >= 2 => Self::Commas(unquoted(',')),
            () if unquoted('&') >= 2 => Self::Ampersands(unquoted('&')),
            () if num_gaps(line) >= 1 => Self::Gaps(num_gaps(line)),
            () if unquoted(' ') >= 1 => Self::Spaces(unquoted(' ')),
            () => return None,
        })
    }

    fn cells(self, line: &str) -> impl Iterator<Item = &str> {
        let delimiter = match self {
            Self::Pipes => "|",
            Self::Tabs(_) => "\t",
            Self::Semicolons(_) => ";",
            Self::Commas(_) => ",",
            Self::Ampersands(_) => "&",
            Self::Gaps(_) => "  ",
            Self::Spaces(_) => " ",
            Self::Pair(delimiter) => delimiter,
        };
        line.trim().trim_matches('|').split(delimiter).map(str::trim).filter(move |cell| self != Self::Pipes || !cell.is_empty())
    }

    /// Returns the minimum number of lines of a table. Prose may have commas, and code gaps.
    fn min_lines(self) -> usize {
        match self {
            Self::Pipes | Self::Tabs(_) => 2,
            Self::Pair(_) => 4,
            _ => 3,
        }
    }

    /// True if lines of this shape are a table only if a column has numbers, because prose has spaces and commas too.
    fn needs_numbers(self) -> bool {
        matches!(self, Self::Spaces(_))
    }
}

/// Delimiters of [`Shape::Pair`]. Keys of `key: value` name their cells themselves.
const PAIR_DELIMITERS: [&str; 6] = ["->", "=>", "\u{2192}", "|", ";", ","];
/// Maximum words of a cell of [`Shape::Pair`]. Chosen: parts of a sentence are longer.
const MAX_CELL_WORDS: usize = 4;

/// Returns the shape of a line of two short cells: words around one delimiter that occurs once, and no end of a sentence.
fn pair_of(line: &str) -> Option<Shape> {
    let line = line.trim();
    let is_short = |cell: &str| (1..=MAX_CELL_WORDS).contains(&cell.split_whitespace().take(MAX_CELL_WORDS + 1).count());
    let is_pair = |delimiter: &&str| {
        let mut cells = line.split(*delimiter);
        let (Some(left), Some(right), None) = (cells.next(), cells.next(), cells.next()) else { return false };
        is_short(left) && is_short(right)
    };
    let is_other = line.ends_with(['.', '!', '?', ':', '{', '}', ')']) || line.contains("\":") || line.contains("<|");
    PAIR_DELIMITERS.into_iter().find(is_pair).filter(|_| !is_other).map(Shape::Pair)
}

/// Counts gaps of two spaces or more between words, except after a sentence.
fn num_gaps(line: &str) -> usize {
    let ends_sentence = |cell: &str| cell.trim_end().ends_with(['.', '!', '?', ':', ';']);
    let cells: Vec<&str> = line.trim().split("  ").filter(|cell| !cell.trim().is_empty()).collect();
    cells.iter().rev().skip(1).filter(|cell| !ends_sentence(cell)).count()
}

/// True for a line that separates a header from its rows: `|---|:-:|`, `+----+`, `====  ====`.
fn is_rule(line: &str) -> bool {
    let num_strokes = line.chars().filter(|c| matches!(c, '-' | '=' | '─' | '━')).count();
    num_strokes >= 3 && line.trim_end().chars().all(|c| matches!(c, '-' | '=' | '─' | '━' | '|' | '+' | ':' | ' ' | '\t' | '┼'))
}

/// Returns the rows of all tables in `text`, ascending and disjoint. Linear in the text.
pub(crate) fn tables(text: &str) -> Vec<TableText> {
    let tables = beside(of_html(text), of_shapes(text, Shape::of));
    beside(tables, of_shapes(text, pair_of))
}

/// Returns `tables` and those of `others` that overlap none of them. Both must be ascending and disjoint.
fn beside(mut tables: Vec<TableText>, mut others: Vec<TableText>) -> Vec<TableText> {
    others.retain(|table| {
        let next = tables.partition_point(|other| other.bytes.end <= table.bytes.start);
        tables.get(next).is_none_or(|other| other.bytes.start >= table.bytes.end)
    });
    tables.extend(others);
    tables.sort_by_key(|table| table.bytes.start);
    tables
}

/// Returns the tables of consecutive lines with one shape. Ascending, disjoint.
fn of_shapes(text: &str, shape_of: impl Fn(&str) -> Option<Shape>) -> Vec<TableText> {
    let mut tables = Vec::new();
    let mut lines: Vec<&str> = Vec::new();
    let (mut shape, mut offset) = (None, 0);
    for line in text.split_inclusive('\n') {
        let found = if is_rule(line) { shape } else { shape_of(line) };
        if found != shape {
            tables.extend(shape.and_then(|shape| of_lines(&lines, shape, offset)));
            lines.clear();
            shape = found;
        }
        lines.push(line);
        offset += line.len();
    }
    tables.extend(shape.and_then(|shape| of_lines(&lines, shape, offset)));
    tables
}

/// Returns the table of `lines` of one shape that end at byte `end`, if they form one.
fn of_lines(lines: &[&str], shape: Shape, end: usize) -> Option<TableText> {
    let columns = Columns::of(lines, shape);
    if lines.len() < shape.min_lines() || shape.needs_numbers() && !columns.have_numbers() {
        return None;
    }
    let mut num_names = columns.num_header_lines();
    let is_header = |line: &&&str| {
        let is_name = !is_rule(line) && num_names > 0;
        num_names -= usize::from(is_name);
        is_name || is_rule(line)
    };
    let header: Vec<&str> = lines.iter().take_while(is_header).copied().collect();
    let rows: usize = lines[header.len()..].iter().map(|line| line.len()).sum();
    let names = header.iter().filter(|line| !is_rule(line));
    let hash = if names.clone().next().is_none() { NO_HEADER } else { hash(names.copied()) };
    (rows > 0).then_some(TableText { bytes: end - rows..end, header: hash })
}

/// Columns of a table, with those that hold numbers.
struct Columns<'a> {
    lines: Vec<&'a str>,
    shape: Shape,
    /// Flags of each column: most lines have a number in it, and most have a year.
    kinds: Vec<(bool, bool)>,
}

/// Maximum header lines above the rows. Chosen.
const MAX_HEADER_LINES: usize = 4;

impl<'a> Columns<'a> {
    fn of(lines: &[&'a str], shape: Shape) -> Self {
        let lines: Vec<_> = lines.iter().copied().filter(|line| !is_rule(line)).collect();
        let mut counts: Vec<(usize, usize)> = Vec::new();
        for (column, cell) in lines.iter().flat_map(|line| shape.cells(line).enumerate()) {
            if column == counts.len() {
                counts.push((0, 0));
            }
            counts[column].0 += usize::from(has_digit(cell));
            counts[column].1 += usize::from(is_year(cell));
        }
        let is_most = |count: usize| 2 * count > lines.len();
        let kinds = counts.into_iter().map(|(numbers, years)| (is_most(numbers), is_most(years))).collect();
        Self { lines, shape, kinds }
    }

    fn have_numbers(&self) -> bool {
        self.kinds.iter().any(|&(is_number, _)| is_number)
    }

    /// Counts the header lines: those before the first line that has a number where most lines do. The first line is the header if no
    /// column has numbers. Years count as names in columns where most numbers are not years.
    fn num_header_lines(&self) -> usize {
        if !self.have_numbers() {
            return 1;
        }
        let is_row = |line: &&str| {
            let mut cells = self.shape.cells(line).zip(&self.kinds);
            cells.any(|(cell, &(is_number, has_years))| is_number && has_digit(cell) && (!is_year(cell) || has_years))
        };
        self.lines.iter().take(MAX_HEADER_LINES).take_while(|line| !is_row(line)).count()
    }
}

fn has_digit(cell: &str) -> bool {
    cell.contains(|c: char| c.is_ascii_digit())
}

fn is_year(cell: &str) -> bool {
    cell.len() == 4 && (cell.starts_with("19") || cell.starts_with("20"))
}

/// Returns the tables in HTML, whose first row is the header. Ascending, disjoint.
fn of_html(text: &str) -> Vec<TableText> {
    let lower = text.to_ascii_lowercase();
    let mut tables = Vec::new();
    let mut from = 0;
    while let Some(start) = lower[from..].find("<table").map(|at| from + at) {
        let end = lower[start..].find("</table").map_or(text.len(), |at| start + at);
        if let Some(rows) = lower[start..end].find("</tr>").map(|at| start + at + "</tr>".len()) {
            tables.push(TableText { bytes: rows..end, header: hash([&text[start..rows]].into_iter()) });
        }
        from = end;
    }
    tables
}

fn hash<'a>(header: impl Iterator<Item = &'a str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    header.flat_map(str::split_whitespace).for_each(|word| word.hash(&mut hasher));
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares the rows of each table in `text`, without the surrounding line breaks.
    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let found: Vec<&str> = tables(text).iter().map(|table| text[table.bytes.clone()].trim_matches('\n')).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn rows_are_lines_of_one_shape_below_the_first_one() {
        check("name,price,weight\na,1,2\nb,3,4\n\nprose, and more\n", &["a,1,2\nb,3,4"]);
        check("name\tprice\na\t1\n", &["a\t1"]);
        check("name;price;weight\na;1;2\n\"b;c\";3;4", &["a;1;2\n\"b;c\";3;4"]);
        check("NAME   READY  AGE\na      1/1    2d\nb      0/1    3d", &["a      1/1    2d\nb      0/1    3d"]);
        check("intro:\n| a | b |\n|---|---|\n| 1 | 2 |\n| 3 |\n", &["| 1 | 2 |\n| 3 |"]);
        check("+---+---+\n| a | b |\n+---+---+\n| 1 | 2 |\n+---+---+\n", &["| 1 | 2 |\n+---+---+"]);
    }

    #[test]
    fn html_tables_have_their_header_in_the_first_row() {
        check("<TABLE><TR><TH>a</TH></TR><TR><TD>1</TD></TR></TABLE>", &["<TR><TD>1</TD></TR>"]);
        check("x<table>\n<tr><th>a</th></tr>\n<tr><td>1</td></tr>\n</table>y", &["<tr><td>1</td></tr>"]);
    }

    #[test]
    fn two_columns_of_words_are_a_table() {
        for delimiter in [",", ";", " | ", " -> ", " => "] {
            let rows = ["anna", "bert", "clara"].map(|name| format!("{name}{delimiter}oslo")).join("\n");
            check(&format!("Here it is.\n\nlender{delimiter}borrower\n{rows}\n\nWho owes?"), &[&rows]);
        }
        let header = |names: &str| tables(&format!("{names}\nanna,bert\nclara,dora\nemil,fritz\n"))[0].header;
        assert_ne!(header("lender,borrower"), header("borrower,lender"));
    }

    #[test]
    fn prose_lists_and_code_are_no_tables() {
        check("He came, she left.\nIt rained, they say.\nWe sang, all day.\nNo one, ever.\n", &[]);
        check(
            "When the sun had gone down behind the hill,\nthey went home, tired and with empty hands and\nslept, as always, until it was late in the\nmorning, when the bells began to ring again\n",
            &[],
        );
        check("One, two, and three.\nFour, five.\nSix, seven, eight, nine.\n", &[]);
        check("It rained.  We went.\nThey sang.  All left.\nNo one came.  It ended.\n", &[]);
        check("- a, b\n- c\n- d\n", &[]);
        check("a <|> b\nc <|> d\ne <|> f\n", &[]);
        check("fn f(a: u8, b: u8) {\n    g(a);\n    h(b);\n}\n", &[]);
    }

    #[test]
    fn the_header_is_what_has_no_numbers_where_others_do() {
        assert_eq!(tables("anna | 3 | 4\nbert | 5 | 6\nclara | 7 | 8\n")[0].header, NO_HEADER);
        assert_eq!(tables("x:\n('anna', 3, 4),\n('bert', 5, 6),\n('clara', 7, 8),\n")[0].header, NO_HEADER);
        check("{\"a\": 1, \"b\": 2, \"c\": 3}\n{\"a\": 4, \"b\": 5, \"c\": 6}\n{\"a\": 7, \"b\": 8, \"c\": 9}\n", &[]);
        check("group,group,group\nname,price,weight\na,1,2\nb,3,4\nc,5,6\n", &["a,1,2\nb,3,4\nc,5,6"]);
        check("Unit: kg\nanna: 3\nbert: 5\nclara: 7\n", &["anna: 3\nbert: 5\nclara: 7"]);
        check("| a | b |\n|---|---|\n| kg | m |\n| 1 | 2 |\n| 3 | 4 |\n| 5 | 6 |\n", &["| 1 | 2 |\n| 3 | 4 |\n| 5 | 6 |"]);
        check("name weight price\nanna 3 4\nbert 5 6\n", &["anna 3 4\nbert 5 6"]);
        check(
            "a & b & c \\\\\n\\hline\n1 & 2 & 3 \\\\\n4 & 5 & 6 \\\\\n7 & 8 & 9 \\\\\n",
            &["1 & 2 & 3 \\\\\n4 & 5 & 6 \\\\\n7 & 8 & 9 \\\\"],
        );
        check("name | lead | city\nanna | bert | rome\n", &["anna | bert | rome"]);
        check("region,2021,2022\nnorth,5,7\nsouth,6,8\n", &["north,5,7\nsouth,6,8"]);
    }

    /// Lines of very many cells among very many lines, and nested tables: each step examines a cell once.
    #[test]
    fn hostile_shapes_take_time_in_proportion_to_the_text() {
        let ragged = format!("{}\n{}", "|1".repeat(300_000), "|1|\n".repeat(100_000));
        assert_eq!(tables(&ragged).len(), 1);
        let nested = format!("{}{}", "<table></tr>1</table".repeat(50_000), "\n1,2,3\n4,5,6\n7,8,9\n\n".repeat(30_000));
        assert_eq!(tables(&nested).len(), 80_000);
        assert_eq!(tables(&"<table".repeat(100_000)), []);
    }

    #[test]
    fn equal_headers_are_told_from_others() {
        let header = |text: &str| tables(text)[0].header;
        assert_eq!(header("a | b | c\n1 | 2 | 3\n"), header("prose\n\na  | b | c\n4 | 5 | 6\n"));
        assert_eq!(header("<|im_start|>user\na | b | c\n1 | 2 | 3\n"), header("a | b | c\n4 | 5 | 6\n"));
        assert_ne!(header("a | b | c\n1 | 2 | 3\n"), header("a | c | b\n1 | 2 | 3\n"));
    }
}
