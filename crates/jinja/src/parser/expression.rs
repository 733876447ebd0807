//! Parser of expressions, with Jinja's precedence.

use super::Parser;
use crate::ast::{Args, Comparison, Expr, FilterCall, Operator};
use crate::error::Result;
use crate::lexer::Token;

/// Maximum operands of a chain on one level, which nests to the left.
const MAX_CHAIN: usize = 100;

/// Combines two operands into one expression.
type Join = fn(Box<Expr>, Box<Expr>) -> Expr;

impl Parser {
    /// Parses one expression, or several separated by commas as a tuple.
    pub(super) fn tuple(&mut self) -> Result<Expr> {
        self.tuple_of(Self::expression, false)
    }

    /// Parses the same, without a trailing `if`.
    pub(super) fn tuple_without_condition(&mut self) -> Result<Expr> {
        self.tuple_of(|parser| parser.deeper(Self::or), false)
    }

    fn tuple_of(&mut self, parse: impl Fn(&mut Self) -> Result<Expr>, may_be_empty: bool) -> Result<Expr> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        while !self.ends_tuple() {
            items.push(parse(self)?);
            if !self.skip_operator(",") {
                break;
            }
            is_tuple = true;
        }
        match items.pop() {
            Some(only) if !is_tuple => Ok(only),
            None if !may_be_empty => Err(self.unexpected()),
            last => Ok(Expr::Tuple(items.into_iter().chain(last).collect())),
        }
    }

    fn ends_tuple(&self) -> bool {
        matches!(self.peek(), Token::VariableEnd | Token::BlockEnd | Token::Operator(")"))
    }

    pub(super) fn expression(&mut self) -> Result<Expr> {
        self.deeper(|parser| {
            let mut value = parser.or()?;
            while parser.skip_name("if") {
                let condition = parser.or()?;
                let otherwise = if parser.skip_name("else") { Some(Box::new(parser.expression()?)) } else { None };
                value = Expr::Conditional(Box::new(condition), Box::new(value), otherwise);
            }
            Ok(value)
        })
    }

    /// Joins operands of `parse` from the left while `next` finds an operator.
    fn chain(&mut self, parse: fn(&mut Self) -> Result<Expr>, next: fn(&mut Self) -> Option<Join>) -> Result<Expr> {
        let mut left = parse(self)?;
        let mut len = 0;
        while let Some(join) = next(self) {
            len += 1;
            if len > MAX_CHAIN {
                return self.error("the expression is too long");
            }
            left = join(Box::new(left), Box::new(parse(self)?));
        }
        Ok(left)
    }

    fn or(&mut self) -> Result<Expr> {
        self.chain(Self::and, |parser| parser.skip_name("or").then_some(Expr::Or))
    }

    fn and(&mut self) -> Result<Expr> {
        self.chain(Self::not, |parser| parser.skip_name("and").then_some(Expr::And))
    }

    fn not(&mut self) -> Result<Expr> {
        if self.skip_name("not") {
            return Ok(Expr::Not(Box::new(self.deeper(Self::not)?)));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Expr> {
        let first = self.sum()?;
        let mut rest = Vec::new();
        while let Some(comparison) = self.comparison_operator() {
            rest.push((comparison, self.sum()?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Compare(Box::new(first), rest) })
    }

    fn comparison_operator(&mut self) -> Option<Comparison> {
        let found = match self.peek() {
            Token::Operator("==") => Comparison::Equal,
            Token::Operator("!=") => Comparison::NotEqual,
            Token::Operator("<") => Comparison::Less,
            Token::Operator("<=") => Comparison::LessOrEqual,
            Token::Operator(">") => Comparison::Greater,
            Token::Operator(">=") => Comparison::GreaterOrEqual,
            Token::Name(name) if name == "in" => Comparison::In,
            Token::Name(name) if name == "not" && matches!(self.peek_second(), Token::Name(next) if next == "in") => {
                self.next();
                Comparison::NotIn
            }
            _ => return None,
        };
        self.next();
        Some(found)
    }

    fn sum(&mut self) -> Result<Expr> {
        self.chain(Self::concatenation, |parser| {
            if parser.skip_operator("+") {
                return Some(|left, right| Expr::Binary(Operator::Add, left, right));
            }
            parser.skip_operator("-").then_some(|left, right| Expr::Binary(Operator::Sub, left, right))
        })
    }

    fn concatenation(&mut self) -> Result<Expr> {
        let first = self.product()?;
        if !self.is_operator("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_operator("~") {
            parts.push(self.product()?);
        }
        Ok(Expr::Concat(parts))
    }

    fn product(&mut self) -> Result<Expr> {
        self.chain(Self::power, |parser| {
            if parser.skip_operator("*") {
                return Some(|left, right| Expr::Binary(Operator::Mul, left, right));
            }
            if parser.skip_operator("//") {
                return Some(|left, right| Expr::Binary(Operator::FloorDiv, left, right));
            }
            if parser.skip_operator("/") {
                return Some(|left, right| Expr::Binary(Operator::Div, left, right));
            }
            parser.skip_operator("%").then_some(|left, right| Expr::Binary(Operator::Mod, left, right))
        })
    }

    fn power(&mut self) -> Result<Expr> {
        self.chain(Self::unary, |parser| {
            parser.skip_operator("**").then_some(|left, right| Expr::Binary(Operator::Pow, left, right))
        })
    }

    fn unary(&mut self) -> Result<Expr> {
        let value = self.unary_without_filter()?;
        self.filters_and_tests(value)
    }

    fn unary_without_filter(&mut self) -> Result<Expr> {
        let value = if self.skip_operator("-") {
            Expr::Negative(Box::new(self.deeper(Self::unary_without_filter)?))
        } else if self.skip_operator("+") {
            Expr::Positive(Box::new(self.deeper(Self::unary_without_filter)?))
        } else {
            self.primary()?
        };
        self.postfix(value)
    }

    fn primary(&mut self) -> Result<Expr> {
        match self.peek() {
            Token::Operator("(") => {
                self.next();
                let inner = self.tuple_of(Self::expression, true)?;
                self.expect_operator(")")?;
                return Ok(inner);
            }
            Token::Operator("[") => return self.list(),
            Token::Operator("{") => return self.dict(),
            Token::Name(_) | Token::Str(_) | Token::Int(_) | Token::Float(_) => {}
            _ => return Err(self.unexpected()),
        }
        Ok(match self.next() {
            Token::Name(name) => match name.as_str() {
                "true" | "True" => Expr::Bool(true),
                "false" | "False" => Expr::Bool(false),
                "none" | "None" => Expr::None,
                _ => {
                    let name = crate::ast::Name::from(name);
                    self.read.push(name.clone());
                    Expr::Name(name)
                }
            },
            Token::Str(mut text) => {
                while let Token::Str(next) = self.peek() {
                    text.push_str(next);
                    self.next();
                }
                Expr::Str(text.into())
            }
            Token::Int(number) => Expr::Int(number),
            Token::Float(number) => Expr::Float(number),
            _ => return Err(self.unexpected()),
        })
    }

    fn list(&mut self) -> Result<Expr> {
        self.expect_operator("[")?;
        let mut items = Vec::new();
        while !self.is_operator("]") {
            items.push(self.expression()?);
            if !self.skip_operator(",") {
                break;
            }
        }
        self.expect_operator("]")?;
        Ok(Expr::List(items))
    }

    fn dict(&mut self) -> Result<Expr> {
        self.expect_operator("{")?;
        let mut entries = Vec::new();
        while !self.is_operator("}") {
            let key = self.expression()?;
            self.expect_operator(":")?;
            entries.push((key, self.expression()?));
            if !self.skip_operator(",") {
                break;
            }
        }
        self.expect_operator("}")?;
        Ok(Expr::Dict(entries))
    }

    fn postfix(&mut self, mut value: Expr) -> Result<Expr> {
        let mut len = 0;
        loop {
            len += 1;
            if len > MAX_CHAIN {
                return self.error("the expression is too long");
            }
            value = if self.skip_operator(".") {
                match self.next() {
                    Token::Name(name) => Expr::Attribute(Box::new(value), name.into()),
                    Token::Int(index) => Expr::Item(Box::new(value), Box::new(Expr::Int(index))),
                    _ => return self.error("expected name or number"),
                }
            } else if self.is_operator("[") {
                Expr::Item(Box::new(value), Box::new(self.subscript()?))
            } else if self.is_operator("(") {
                Expr::Call(Box::new(value), Box::new(self.call_args()?))
            } else {
                return Ok(value);
            };
        }
    }

    fn filters_and_tests(&mut self, mut value: Expr) -> Result<Expr> {
        let mut len = 0;
        loop {
            len += 1;
            if len > MAX_CHAIN {
                return self.error("the expression is too long");
            }
            value = if self.skip_operator("|") {
                Expr::Filter(Box::new(value), Box::new(self.filter_call()?))
            } else if self.skip_name("is") {
                self.test(value)?
            } else if self.is_operator("(") {
                Expr::Call(Box::new(value), Box::new(self.call_args()?))
            } else {
                return Ok(value);
            };
        }
    }

    fn test(&mut self, value: Expr) -> Result<Expr> {
        let is_negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let takes_argument = match self.peek() {
            Token::Name(next) if next == "is" => return self.error("You cannot chain multiple tests with is"),
            Token::Name(next) => !matches!(next.as_str(), "else" | "or" | "and"),
            Token::Str(_) | Token::Int(_) | Token::Float(_) | Token::Operator("[" | "{") => true,
            _ => false,
        };
        let args = if self.is_operator("(") {
            self.call_args()?
        } else if takes_argument {
            let argument = self.primary()?;
            Args { positional: vec![self.postfix(argument)?], ..Args::default() }
        } else {
            Args::default()
        };
        let test = Expr::Test(Box::new(value), Box::new(FilterCall { name, args }));
        Ok(if is_negated { Expr::Not(Box::new(test)) } else { test })
    }

    /// Parses the content of brackets: an index, a slice, or several of them.
    fn subscript(&mut self) -> Result<Expr> {
        self.expect_operator("[")?;
        let mut parts = Vec::new();
        while !self.is_operator("]") {
            if !parts.is_empty() {
                self.expect_operator(",")?;
            }
            parts.push(self.index_or_slice()?);
        }
        self.expect_operator("]")?;
        match parts.pop() {
            Some(only) if parts.is_empty() => Ok(only),
            last => Ok(Expr::Tuple(parts.into_iter().chain(last).collect())),
        }
    }

    fn index_or_slice(&mut self) -> Result<Expr> {
        let start = if self.is_operator(":") { None } else { Some(self.expression()?) };
        if !self.skip_operator(":") {
            return start.map_or_else(|| Err(self.unexpected()), Ok);
        }
        let is_end = |parser: &Self| parser.is_operator("]") || parser.is_operator(",");
        let stop = if self.is_operator(":") || is_end(self) { None } else { Some(self.expression()?) };
        let step = if self.skip_operator(":") && !is_end(self) { Some(self.expression()?) } else { None };
        Ok(Expr::Slice(Box::new([start, stop, step])))
    }

    pub(super) fn call_args(&mut self) -> Result<Args> {
        self.expect_operator("(")?;
        let mut args = Args::default();
        while !self.is_operator(")") {
            if self.skip_operator("*") {
                args.star = Some(Box::new(self.expression()?));
            } else if self.skip_operator("**") {
                args.double_star = Some(Box::new(self.expression()?));
            } else if matches!((self.peek(), self.peek_second()), (Token::Name(_), Token::Operator("="))) {
                let name = self.name()?;
                self.next();
                args.keyword.push((name, self.expression()?));
            } else if args.keyword.is_empty() && args.star.is_none() && args.double_star.is_none() {
                args.positional.push(self.expression()?);
            } else {
                return self.error("invalid syntax for function call expression");
            }
            if !self.skip_operator(",") {
                break;
            }
        }
        self.expect_operator(")")?;
        Ok(args)
    }
}
