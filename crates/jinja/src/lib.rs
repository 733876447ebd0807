//! Jinja templates with Python's semantics and strings that track their origin.
//!
//! Chat templates are programs for Jinja2 in the sandbox of Hugging Face transformers, and their output determines the tokens that a model
//! sees. This engine follows Jinja2 3.1 there, including Python's spelling of values and methods of `str`, `list` and `dict`. Each
//! character of the output is tagged with its origin, the template or one of the caller's strings, whatever filters it went through:
//! client text can be distinguished from the template's control tokens.
//!
//! Contains [`Template`], [`Value`] and [`Text`]. Deliberately excludes loading of other templates (`include`, `import`, `extends`),
//! automatic HTML escaping, randomness, and a clock, which the caller provides.

#![forbid(unsafe_code)]

mod arguments;
mod arithmetic;
mod ast;
mod budget;
mod error;
mod filters;
mod format;
mod interpreter;
mod json;
mod lexer;
mod loop_state;
mod methods;
mod order;
mod parser;
mod predicates;
mod scope;
mod strings;
mod text;
mod value;

use std::collections::HashMap;

pub use budget::Limits;
pub use error::Error;
pub use interpreter::Clock;
pub use text::{Mark, Text};
pub use value::Value;

/// A parsed template.
#[derive(Debug)]
pub struct Template {
    body: ast::Body,
}

impl Template {
    /// Parses `source`.
    ///
    /// # Errors
    /// If it is not a valid template, with the line.
    pub fn parse(source: &str) -> Result<Self, Error> {
        Ok(Self { body: parser::parse(source)? })
    }

    /// Renders the template with these variables.
    ///
    /// # Errors
    /// If the template fails, refuses its variables, or exceeds `limits`.
    pub fn render(&self, variables: HashMap<String, Value>, limits: Limits, clock: Clock<'_>) -> Result<Text, Error> {
        interpreter::Interpreter::new(variables, limits, clock).render(&self.body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { fuel: 100_000, text_bytes: 1 << 20 };

    /// Renders the template with the caller's string `x`, each of whose characters is followed by a dot in the output.
    fn render(source: &str, x: &str) -> Result<String, Error> {
        let variables = HashMap::from([("x".to_owned(), Value::from_text(x, Some(0)))]);
        let text = Template::parse(source)?.render(variables, LIMITS, &|_| Ok(String::new()))?;
        let (string, marks) = text.into_parts();
        let is_input = |at: usize| marks.iter().any(|mark| mark.bytes.contains(&at));
        Ok(string.char_indices().map(|(at, c)| if is_input(at) { format!("{c}.") } else { c.to_string() }).collect())
    }

    #[track_caller]
    fn check(source: &str, x: &str, expected: &str) {
        assert_eq!(render(source, x).unwrap(), expected);
    }

    #[track_caller]
    fn check_fails(source: &str, named: &str) {
        let error = render(source, "").unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }

    #[test]
    fn the_callers_text_is_told_from_the_templates() {
        check("a{{ x }}b", "xy", "ax.y.b");
        check("{{ x.strip() ~ '|' ~ x | upper }}", " s ", "s.| .S. .");
        check("{{ ('<' + x + '>') | replace('<', '[') | title }}", "ab", "[A.b.>");
        check("{{ {'k': [x]} | tojson }} {{ [x] }}", "\"\n", r#"{"k": ["\.".\.n."]} ['".\.n.']"#);
        check("{{ x.split(',')[1] }}{{ x[::-1] }}{{ x[0] }}{% for c in x %}{{ c }}{% endfor %}", "a,b", "b.b.,.a.a.a.,.b.");
        check("{{ '%s-%s' | format(x, 1) }} {{ '{}:{:>3}'.format(x, x) }}", "a", "a.-1 a.:  a.");
        check("{{ [x, 'b'] | join(x) }}{% set y %}{{ x }}!{% endset %}{{ y | reverse }}", "a", "a.a.b!a.");
        check("{% macro m(t) %}<{{ t | indent(1) }}>{% endmacro %}{{ m(x) }}", "a\nb", "<a.\n b.>");
        check(
            "{{ x | truncate(5, true) }}{{ x.partition('b')[2] }}{{ x.center(13, '*') }}",
            "abcdefghijk",
            "a.b....c.d.e.f.g.h.i.j.k.*a.b.c.d.e.f.g.h.i.j.k.*",
        );
    }

    #[test]
    fn steps_and_text_are_bounded() {
        check_fails("{% for i in range(1000) %}{% for j in range(1000) %}{% endfor %}{% endfor %}", "fuel");
        check_fails("{{ 'x' * 10000000000 }}", "fuel");
        check_fails("{{ 'x' * 5000000 }}", "too much text");
        check_fails("{{ '%999999999d' % 1 }}", "too much text");
        check_fails("{{ 'a'.center(99999999) }}{{ 'a' | indent(99999999) }}", "too much text");
        check_fails("{{ '{:>99999999}'.format(1) }}", "too much text");
        check_fails(
            "{% set ns = namespace(s='x' * 1000) %}{% for i in range(20) %}{% set ns.s = ns.s.replace('x', ns.s) %}{% endfor %}",
            "too much text",
        );
        check_fails("{% for i in range(2000) %}{{ 'x' * 1000 }}{% endfor %}", "too much text");
    }

    #[test]
    fn recursion_is_bounded_everywhere() {
        check_fails("{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}", "recursion");
        check_fails("{% for i in [[[]]] recursive %}{{ loop([[[]]]) }}{% endfor %}", "recursion");
        check_fails(
            "{% set ns = namespace(l=[]) %}{% for i in range(1000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
            "nest too deeply",
        );
        check_fails(
            "{% set ns = namespace(l={}) %}{% for i in range(1000) %}{% set ns.l = {1: ns.l}.items() %}{% endfor %}",
            "nest too deeply",
        );
        check_fails(&format!("{{{{ {}1{} }}}}", "(".repeat(1000), ")".repeat(1000)), "nested too deeply");
        check_fails(&format!("{{{{ {}1 }}}}", "not ".repeat(1000)), "nested too deeply");
        check_fails(&format!("{{{{ {}1 }}}}", "-".repeat(1000)), "nested too deeply");
        check_fails(&format!("{{{{ 1{} }}}}", " + 1".repeat(1000)), "too long");
        check_fails(&format!("{{{{ x{} }}}}", ".a".repeat(1000)), "too long");
        check_fails(&"{% if 1 %}".repeat(1000), "nested too deeply");
    }

    #[test]
    fn circles_of_values_are_freed_and_printed() {
        check("{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}", "", "<Namespace object>");
    }

    /// Every prefix of a template, and versions with a few characters exchanged, give an output or an error, never a panic.
    #[test]
    fn broken_templates_are_answered() {
        let source = "{%- macro m(a, b=1) -%}{{ a[::2]|d('x')~b }}{% endmacro %}{% for k, v in {'a': [1.5e3, x]}.items() if v is not none %}\
                      {{ m(*v, **{'b': loop.index}) }}{% else %}{# c #}{% endfor %}{% raw %}{{{% endraw %}{% set n = namespace(a=1) %}{% set n.a = -n.a // 2 %}";
        let pieces = ["{{", "}}", "{%", "%}", "'", "\\", "|", "[", ")", ":", "\u{10ffff}", "0x", "**", "{#"];
        let mut state = 7u64;
        for round in 0..4000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let cut = (state >> 33) as usize % source.len();
            let text = match round % 3 {
                0 => source[..cut].to_owned(),
                1 => format!("{}{}{}", &source[..cut], pieces[(state >> 20) as usize % pieces.len()], &source[cut..]),
                _ => format!("{}{}", &source[..cut], &source[(cut + 3).min(source.len())..]),
            };
            if let Err(error) = render(&text, "a") {
                assert!(!error.to_string().is_empty());
            }
        }
    }
}
