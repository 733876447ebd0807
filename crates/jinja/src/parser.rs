//! Parser of statements.

mod expression;

use std::sync::Arc;

use crate::ast::{Args, Body, Expr, FilterCall, For, MacroDef, Name, Stmt, StmtKind, Target};
use crate::error::{Error, Result};
use crate::lexer::{Token, tokenize};

/// Parses the statements of a template.
pub(crate) fn parse(source: &str) -> Result<Body> {
    let mut parser = Parser { tokens: tokenize(source)?, at: 0, depth: 0, read: Vec::new(), loop_depth: 0 };
    let body = parser.body(&[])?;
    match parser.peek() {
        Token::End => Ok(body),
        _ => Err(parser.unexpected()),
    }
}

/// Maximum nesting of statements and expressions. Chosen: real templates stay below 20.
const MAX_DEPTH: u32 = 64;

struct Parser {
    tokens: Vec<(Token, u32)>,
    at: usize,
    depth: u32,
    /// Names read since the start of the innermost macro.
    read: Vec<Name>,
    loop_depth: u32,
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    fn peek_second(&self) -> &Token {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].0
    }

    fn line(&self) -> u32 {
        self.tokens[self.at].1
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn error<T>(&self, reason: impl Into<String>) -> Result<T> {
        Err(Error::Syntax { reason: reason.into(), line: self.line() })
    }

    fn unexpected(&self) -> Error {
        let shown = match self.peek() {
            Token::End => "end of template".to_owned(),
            Token::BlockEnd => "end of statement block".to_owned(),
            Token::VariableEnd => "end of print statement".to_owned(),
            Token::Name(name) => format!("'{name}'"),
            Token::Operator(operator) => format!("'{operator}'"),
            Token::Str(_) => "a string".to_owned(),
            Token::Int(_) | Token::Float(_) => "a number".to_owned(),
            Token::Data(_) | Token::BlockBegin | Token::VariableBegin => "a tag".to_owned(),
        };
        Error::Syntax { reason: format!("unexpected {shown}"), line: self.line() }
    }

    fn is_operator(&self, operator: &str) -> bool {
        matches!(self.peek(), Token::Operator(found) if *found == operator)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Token::Name(found) if found == name)
    }

    fn skip_operator(&mut self, operator: &str) -> bool {
        let found = self.is_operator(operator);
        if found {
            self.next();
        }
        found
    }

    fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    fn expect_operator(&mut self, operator: &str) -> Result<()> {
        if self.skip_operator(operator) { Ok(()) } else { Err(self.unexpected()) }
    }

    fn expect_name(&mut self, name: &str) -> Result<()> {
        if self.skip_name(name) { Ok(()) } else { Err(self.unexpected()) }
    }

    fn name(&mut self) -> Result<Name> {
        match self.peek() {
            Token::Name(name) => {
                let name = Name::from(name.as_str());
                self.next();
                Ok(name)
            }
            _ => Err(self.unexpected()),
        }
    }

    fn expect(&mut self, token: &Token) -> Result<()> {
        if self.peek() == token {
            self.next();
            return Ok(());
        }
        Err(self.unexpected())
    }

    /// Runs `parse` one level deeper.
    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= MAX_DEPTH {
            return self.error("the template is nested too deeply");
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    /// Parses statements up to a block that begins with one of `ends`, which stays unconsumed after its `{%`.
    fn body(&mut self, ends: &[&str]) -> Result<Body> {
        self.deeper(|parser| {
            let mut body = Body::new();
            loop {
                let line = parser.line();
                let kind = match parser.next() {
                    Token::Data(text) => StmtKind::Data(text.into()),
                    Token::VariableBegin => {
                        let printed = parser.tuple()?;
                        parser.expect(&Token::VariableEnd)?;
                        StmtKind::Print(printed)
                    }
                    Token::BlockBegin if ends.iter().any(|end| parser.is_name(end)) => return Ok(body),
                    Token::BlockBegin => {
                        let statement = parser.statement()?;
                        parser.expect(&Token::BlockEnd)?;
                        statement
                    }
                    _ if ends.is_empty() => return Ok(body),
                    _ => return parser.error(format!("unexpected end of template: '{}' is missing", ends[ends.len() - 1])),
                };
                body.push(Stmt { line, kind });
            }
        })
    }

    /// Parses a body that ends with `{% end %}`; the end tag is consumed up to its `%}`.
    fn body_until(&mut self, end: &str) -> Result<Body> {
        self.expect(&Token::BlockEnd)?;
        let body = self.body(&[end])?;
        self.expect_name(end)?;
        Ok(body)
    }

    fn statement(&mut self) -> Result<StmtKind> {
        let name = self.name()?;
        match &*name {
            "for" => self.for_loop(),
            "if" => self.conditional(),
            "set" => self.set(),
            "with" => self.with(),
            "macro" => {
                let name = self.name()?;
                let parameters = self.parameters()?;
                Ok(StmtKind::Macro(self.macro_body(name, parameters, "endmacro")?))
            }
            "call" => self.call_block(),
            "filter" => {
                let filters = self.filters_inline()?;
                Ok(StmtKind::Filter(filters, self.body_until("endfilter")?))
            }
            "block" => {
                self.name()?;
                while self.skip_name("scoped") || self.skip_name("required") {}
                let body = self.body_until("endblock")?;
                if matches!(self.peek(), Token::Name(_)) {
                    self.next();
                }
                Ok(StmtKind::Scope(body))
            }
            "generation" => Ok(StmtKind::Scope(self.body_until("endgeneration")?)),
            "break" | "continue" if self.loop_depth == 0 => self.error(format!("'{name}' outside of a loop")),
            "break" => Ok(StmtKind::Break),
            "continue" => Ok(StmtKind::Continue),
            "include" | "import" | "from" | "extends" => {
                self.error(format!("'{name}' is not supported: there are no other templates"))
            }
            _ => self.error(format!("Encountered unknown tag '{name}'.")),
        }
    }

    fn for_loop(&mut self) -> Result<StmtKind> {
        let target = self.target(false)?;
        self.expect_name("in")?;
        let iter = self.tuple_without_condition()?;
        let condition = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_name("recursive");
        self.expect(&Token::BlockEnd)?;
        self.loop_depth += 1;
        let body = self.body(&["endfor", "else"]);
        self.loop_depth -= 1;
        let body = body?;
        let otherwise = if self.skip_name("else") {
            self.body_until("endfor")?
        } else {
            self.expect_name("endfor")?;
            Body::new()
        };
        Ok(StmtKind::For(Arc::new(For { target, iter, condition, recursive, body, otherwise })))
    }

    fn conditional(&mut self) -> Result<StmtKind> {
        let mut branches = Vec::new();
        loop {
            let condition = self.tuple_without_condition()?;
            self.expect(&Token::BlockEnd)?;
            branches.push((condition, self.body(&["elif", "else", "endif"])?));
            if self.skip_name("elif") {
                continue;
            }
            let otherwise = if self.skip_name("else") {
                self.body_until("endif")?
            } else {
                self.expect_name("endif")?;
                Body::new()
            };
            return Ok(StmtKind::If(branches, otherwise));
        }
    }

    fn set(&mut self) -> Result<StmtKind> {
        let target = self.target(true)?;
        if self.skip_operator("=") {
            return Ok(StmtKind::Set(target, self.tuple()?));
        }
        let filters = if self.is_operator("|") { self.filters()? } else { Vec::new() };
        Ok(StmtKind::SetBlock(target, filters, self.body_until("endset")?))
    }

    fn with(&mut self) -> Result<StmtKind> {
        let mut values = Vec::new();
        while *self.peek() != Token::BlockEnd {
            if !values.is_empty() {
                self.expect_operator(",")?;
            }
            let target = self.target(false)?;
            self.expect_operator("=")?;
            values.push((target, self.expression()?));
        }
        Ok(StmtKind::With(values, self.body_until("endwith")?))
    }

    fn call_block(&mut self) -> Result<StmtKind> {
        let parameters = if self.is_operator("(") { self.parameters()? } else { Vec::new() };
        let call = self.expression()?;
        if !matches!(call, Expr::Call(..)) {
            return self.error("expected call");
        }
        let caller = self.macro_body("caller".into(), parameters, "endcall")?;
        Ok(StmtKind::Call(call, caller))
    }

    fn macro_body(&mut self, name: Name, parameters: Vec<(Name, Option<Expr>)>, end: &str) -> Result<Arc<MacroDef>> {
        let outer = std::mem::take(&mut self.read);
        let outer_loops = std::mem::take(&mut self.loop_depth);
        let body = self.body_until(end);
        self.loop_depth = outer_loops;
        let read = std::mem::replace(&mut self.read, outer);
        let reads = |wanted: &str| read.iter().any(|name| &**name == wanted);
        let (reads_varargs, reads_kwargs, reads_caller) = (reads("varargs"), reads("kwargs"), reads("caller"));
        Ok(Arc::new(MacroDef { name, parameters, body: body?, reads_varargs, reads_kwargs, reads_caller }))
    }

    fn parameters(&mut self) -> Result<Vec<(Name, Option<Expr>)>> {
        self.expect_operator("(")?;
        let mut parameters: Vec<(Name, Option<Expr>)> = Vec::new();
        while !self.is_operator(")") {
            if !parameters.is_empty() {
                self.expect_operator(",")?;
            }
            let name = self.name()?;
            let default = if self.skip_operator("=") { Some(self.expression()?) } else { None };
            if default.is_none() && parameters.last().is_some_and(|(_, default)| default.is_some()) {
                return self.error("non-default argument follows default argument");
            }
            parameters.push((name, default));
        }
        self.expect_operator(")")?;
        Ok(parameters)
    }

    /// Parses the target of an assignment or a loop.
    fn target(&mut self, with_namespace: bool) -> Result<Target> {
        let mut targets = vec![self.single_target(with_namespace)?];
        let mut is_tuple = false;
        while self.skip_operator(",") {
            is_tuple = true;
            if !matches!(self.peek(), Token::Name(name) if name != "in") && !self.is_operator("(") {
                break;
            }
            targets.push(self.single_target(with_namespace)?);
        }
        Ok(match targets.pop() {
            Some(only) if !is_tuple => only,
            last => Target::Tuple(targets.into_iter().chain(last).collect()),
        })
    }

    fn single_target(&mut self, with_namespace: bool) -> Result<Target> {
        if self.skip_operator("(") {
            let inner = self.deeper(|parser| parser.target(with_namespace))?;
            self.expect_operator(")")?;
            return Ok(inner);
        }
        let name = self.name()?;
        if matches!(&*name, "true" | "false" | "none" | "True" | "False" | "None") {
            return self.error(format!("can't assign to '{name}'"));
        }
        if with_namespace && self.skip_operator(".") {
            return Ok(Target::Attribute(name, self.name()?));
        }
        Ok(Target::Name(name))
    }

    /// Parses filters without a value: `{% filter upper %}`.
    fn filters_inline(&mut self) -> Result<Vec<FilterCall>> {
        let mut filters = vec![self.filter_call()?];
        filters.extend(self.filters()?);
        Ok(filters)
    }

    /// Parses the filters that follow with `|`.
    fn filters(&mut self) -> Result<Vec<FilterCall>> {
        let mut filters = Vec::new();
        while self.skip_operator("|") {
            filters.push(self.filter_call()?);
        }
        Ok(filters)
    }

    fn filter_call(&mut self) -> Result<FilterCall> {
        let name = self.dotted_name()?;
        let args = if self.is_operator("(") { self.call_args()? } else { Args::default() };
        Ok(FilterCall { name, args })
    }

    fn dotted_name(&mut self) -> Result<Name> {
        let mut name = self.name()?.to_string();
        while self.skip_operator(".") {
            name = format!("{name}.{}", self.name()?);
        }
        Ok(name.into())
    }
}
