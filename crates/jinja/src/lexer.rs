//! Lexer with Jinja's white space rules: `trim_blocks` and `lstrip_blocks` are on, as transformers sets them.

use std::sync::LazyLock;

use regex::Regex;

use crate::error::{Error, Result};

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Token {
    Data(String),
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name(String),
    Str(String),
    Int(i128),
    Float(f64),
    Operator(&'static str),
    End,
}

/// Returns the tokens of `source`, each with its line; the last is [`Token::End`].
pub(crate) fn tokenize(source: &str) -> Result<Vec<(Token, u32)>> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.strip_suffix('\n').unwrap_or(&source);
    let mut lexer = Lexer { source, at: 0, line: 1, starts_line: true, tokens: Vec::new() };
    lexer.run()?;
    lexer.push(Token::End);
    Ok(lexer.tokens)
}

/// Operators, longer ones first.
const OPERATORS: [&str; 25] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".", ":", "|",
    ",",
];

/// `{% raw %}` with its control of the white space after it.
static RAW_BEGIN: LazyLock<Regex> = LazyLock::new(|| constant(r"^\{%[-+]?\s*raw\s*(?:-%\}\s*|%\})"));
static RAW_END: LazyLock<Regex> = LazyLock::new(|| constant(r"\{%([-+]?)\s*endraw\s*(?:\+%\}|-%\}\s*|%\}\n?)"));
static COMMENT_END: LazyLock<Regex> = LazyLock::new(|| constant(r"\+#\}|-#\}\s*|#\}\n?"));
static BLOCK_END: LazyLock<Regex> = LazyLock::new(|| constant(r"^(?:\+%\}|-%\}\s*|%\}\n?)"));
static VARIABLE_END: LazyLock<Regex> = LazyLock::new(|| constant(r"^(?:-\}\}\s*|\}\})"));
static FLOAT: LazyLock<Regex> =
    LazyLock::new(|| constant(r"^(?i)(?:\d+_)*\d+(?:(?:\.(?:\d+_)*\d+)?e[+\-]?(?:\d+_)*\d+|\.(?:\d+_)*\d+)"));
static INTEGER: LazyLock<Regex> =
    LazyLock::new(|| constant(r"^(?i)(?:0b(?:_?[01])+|0o(?:_?[0-7])+|0x(?:_?[\da-f])+|[1-9](?:_?\d)*|0(?:_?0)*)"));
static NAME: LazyLock<Regex> = LazyLock::new(|| constant(r"^[\w&&[^\d]]\w*"));
static STRING: LazyLock<Regex> = LazyLock::new(|| constant(r#"^(?s)(?:'([^'\\]*(?:\\.[^'\\]*)*)'|"([^"\\]*(?:\\.[^"\\]*)*)")"#));

fn constant(expression: &str) -> Regex {
    Regex::new(expression).expect("the expressions are constants")
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    line: u32,
    /// True if the text at `at` begins a line, judging by the token before it.
    starts_line: bool,
    tokens: Vec<(Token, u32)>,
}

impl<'s> Lexer<'s> {
    fn run(&mut self) -> Result<()> {
        while let Some(begin) = self.next_tag() {
            let (tag, sign) = (&self.source[begin..begin + 2], self.source.as_bytes().get(begin + 2).copied());
            let raw = RAW_BEGIN.find(&self.source[begin..]).map(|found| found.len());
            self.push_data(begin, sign, tag != "{{");
            let sign_len = usize::from(matches!(sign, Some(b'-' | b'+')));
            match (tag, raw) {
                (_, Some(len)) => self.raw(len)?,
                ("{#", _) => self.comment(2 + sign_len)?,
                ("{%", _) => self.inside(Token::BlockBegin, Token::BlockEnd, &BLOCK_END, sign_len)?,
                _ => self.inside(Token::VariableBegin, Token::VariableEnd, &VARIABLE_END, sign_len)?,
            }
        }
        let rest = &self.source[self.at..];
        if !rest.is_empty() {
            self.push(Token::Data(rest.to_owned()));
            self.advance(rest.len());
        }
        Ok(())
    }

    /// Returns the start of the next tag.
    fn next_tag(&self) -> Option<usize> {
        let mut at = self.at;
        loop {
            let begin = at + self.source[at..].find('{')?;
            if matches!(self.source.as_bytes().get(begin + 1), Some(b'{' | b'%' | b'#')) {
                return Some(begin);
            }
            at = begin + 1;
        }
    }

    /// Pushes the text up to `end`, without the white space that the tag there removes.
    fn push_data(&mut self, end: usize, sign: Option<u8>, takes_indentation: bool) {
        let text = &self.source[self.at..end];
        let mut kept = text;
        if sign == Some(b'-') {
            kept = text.trim_end_matches(is_space);
        } else if sign != Some(b'+') && takes_indentation {
            let line_start = text.rfind('\n').map_or(0, |found| found + 1);
            let is_indentation = text[line_start..].chars().all(is_space);
            if (line_start > 0 || self.starts_line) && is_indentation {
                kept = &text[..line_start];
            }
        }
        if !kept.is_empty() {
            self.push(Token::Data(kept.to_owned()));
        }
        self.advance(text.len());
    }

    fn comment(&mut self, begin_len: usize) -> Result<()> {
        let after = self.at + begin_len;
        let end = COMMENT_END.find(&self.source[after..]).ok_or_else(|| self.error("Missing end of comment tag"))?;
        self.advance(begin_len + end.end());
        Ok(())
    }

    fn raw(&mut self, begin_len: usize) -> Result<()> {
        self.advance(begin_len);
        let found = RAW_END.captures(&self.source[self.at..]).ok_or_else(|| self.error("Missing end of raw directive"))?;
        let (whole, sign) = (found.get(0).expect("the whole is group 0"), found[1].bytes().next());
        let tag_len = whole.len();
        self.push_data(self.at + whole.start(), sign, true);
        self.advance(tag_len);
        Ok(())
    }

    /// Reads the tokens of a tag up to its end.
    fn inside(&mut self, begin: Token, end: Token, end_regex: &Regex, sign_len: usize) -> Result<()> {
        self.push(begin);
        self.advance(2 + sign_len);
        let mut open: Vec<&'static str> = Vec::new();
        loop {
            let rest = &self.source[self.at..];
            if open.is_empty()
                && let Some(found) = end_regex.find(rest)
            {
                self.push(end);
                self.advance(found.len());
                return Ok(());
            }
            let white = rest.len() - rest.trim_start_matches(is_space).len();
            if white > 0 {
                self.advance(white);
            } else if rest.is_empty() {
                return Err(self.error("unexpected end of template"));
            } else {
                self.token(rest, &mut open)?;
            }
        }
    }

    fn token(&mut self, rest: &'s str, open: &mut Vec<&'static str>) -> Result<()> {
        // A digit after a dot is an index: `a.0`.
        let after_dot = self.source[..self.at].ends_with('.');
        let (token, len) = if let Some(found) = FLOAT.find(rest).filter(|_| !after_dot) {
            let number = found.as_str().replace('_', "");
            (Token::Float(number.parse().map_err(|_| self.error("malformed number"))?), found.len())
        } else if let Some(found) = INTEGER.find(rest) {
            (Token::Int(integer(found.as_str()).ok_or_else(|| self.error("integer too large"))?), found.len())
        } else if let Some(found) = NAME.find(rest) {
            (Token::Name(found.as_str().to_owned()), found.len())
        } else if let Some(found) = STRING.captures(rest) {
            let inner = found.get(1).or_else(|| found.get(2)).expect("one of the quotes matched").as_str();
            (Token::Str(unescape(inner).map_err(|reason| self.error(reason))?), found[0].len())
        } else if let Some(operator) = OPERATORS.into_iter().find(|operator| rest.starts_with(operator)) {
            self.balance(operator, open)?;
            (Token::Operator(operator), operator.len())
        } else {
            let c = rest.chars().next().unwrap_or_default();
            return Err(self.error(format!("unexpected char {c:?}")));
        };
        self.push(token);
        self.advance(len);
        Ok(())
    }

    fn balance(&self, operator: &'static str, open: &mut Vec<&'static str>) -> Result<()> {
        match operator {
            "(" => open.push(")"),
            "[" => open.push("]"),
            "{" => open.push("}"),
            ")" | "]" | "}" => match open.pop() {
                Some(expected) if expected == operator => {}
                Some(expected) => return Err(self.error(format!("unexpected '{operator}', expected '{expected}'"))),
                None => return Err(self.error(format!("unexpected '{operator}'"))),
            },
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, token: Token) {
        self.tokens.push((token, self.line));
    }

    fn advance(&mut self, len: usize) {
        let passed = &self.source[self.at..self.at + len];
        if let Some(last) = passed.bytes().next_back() {
            self.starts_line = last == b'\n';
        }
        let num_lines = passed.bytes().filter(|&byte| byte == b'\n').count();
        self.line = self.line.saturating_add(u32::try_from(num_lines).unwrap_or(u32::MAX));
        self.at += len;
    }

    fn error(&self, reason: impl Into<String>) -> Error {
        Error::Syntax { reason: reason.into(), line: self.line }
    }
}

/// True for white space in Python's sense.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

fn integer(digits: &str) -> Option<i128> {
    let digits = digits.replace('_', "").to_ascii_lowercase();
    let radixes = [("0x", 16), ("0o", 8), ("0b", 2)];
    match radixes.into_iter().find_map(|(prefix, radix)| Some((digits.strip_prefix(prefix)?, radix))) {
        Some((digits, radix)) => i128::from_str_radix(digits, radix).ok(),
        None => digits.parse().ok(),
    }
}

/// Resolves the escapes of a Python string literal.
fn unescape(literal: &str) -> std::result::Result<String, &'static str> {
    let mut out = String::with_capacity(literal.len());
    let mut rest = literal;
    while let Some(found) = rest.find('\\') {
        out.push_str(&rest[..found]);
        let escaped = &rest[found + 1..];
        let c = escaped.chars().next().ok_or("\\ at end of string")?;
        let mut len = c.len_utf8();
        match c {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(c),
            'a' => out.push('\x07'),
            'b' => out.push('\x08'),
            'f' => out.push('\x0c'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\x0b'),
            'x' | 'u' | 'U' => {
                let (code, digits) = hexadecimal(&escaped[1..], c).ok_or("truncated \\xXX, \\uXXXX or \\UXXXXXXXX escape")?;
                out.push(code);
                len += digits;
            }
            '0'..='7' => {
                let octal = escaped.bytes().take(3).take_while(|byte| matches!(byte, b'0'..=b'7')).count();
                let code = u32::from_str_radix(&escaped[..octal], 8).unwrap_or_default();
                out.push(char::from_u32(code).ok_or("malformed octal escape")?);
                len = octal;
            }
            'N' => return Err("character names (\\N) are not supported"),
            other => out.extend(['\\', other]),
        }
        rest = &escaped[len..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Returns the character of `\xXX`, `\uXXXX` or `\UXXXXXXXX`, and the number of its digits. A pair of surrogates is one character.
fn hexadecimal(digits: &str, kind: char) -> Option<(char, usize)> {
    let len = match kind {
        'x' => 2,
        'u' => 4,
        _ => 8,
    };
    let unit = |text: &str| {
        let digits = text.get(..len).filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()))?;
        u32::from_str_radix(digits, 16).ok()
    };
    let code = unit(digits)?;
    if let Some(c) = char::from_u32(code) {
        return Some((c, len));
    }
    let low = unit(digits[len..].strip_prefix("\\u")?)?;
    let pair = [u16::try_from(code).ok()?, u16::try_from(low).ok()?];
    let c = char::decode_utf16(pair).next()?.ok()?;
    Some((c, 2 * len + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the template text left in `source`, with tags shown as `#`.
    #[track_caller]
    fn check(source: &str, expected: &str) {
        let mut shown = String::new();
        for (token, _) in tokenize(source).unwrap() {
            match token {
                Token::Data(text) => shown.push_str(&text),
                Token::BlockBegin | Token::VariableBegin => shown.push('#'),
                _ => {}
            }
        }
        assert_eq!(shown, expected);
    }

    #[test]
    fn blocks_take_their_line_with_them() {
        check("a\n  {% x %}\nb\n", "a\n#b");
        check("a {% x %} b", "a # b");
        check("a\n  {{ x }}\nb", "a\n  #\nb");
        check("{# a #}\n  {%+ x +%}\nb", "  #\nb");
        check("a  \n {%- x -%} \n b", "a#b");
    }

    #[test]
    fn raw_text_is_left_alone() {
        check("{% raw %}{{ x }}{% endraw %}\nb", "{{ x }}b");
    }

    #[test]
    fn braces_of_a_dictionary_do_not_end_a_tag() {
        check("{{ {'a': {'b': 1}} }}", "#");
    }

    #[test]
    fn strings_have_pythons_escapes() {
        let string = |source: &str| match &tokenize(source).unwrap()[1].0 {
            Token::Str(text) => text.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(string(r"{{ 'a\n\x41\u00e9\ud83d\ude00\q\'\101' }}"), "a\nAé😀\\q'A");
        assert_eq!(string("{{ 'a\\\nb' }}"), "ab");
    }
}
