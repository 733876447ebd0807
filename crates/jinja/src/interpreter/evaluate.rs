//! Evaluation of expressions.

use std::cmp::Ordering;
use std::rc::Rc;

use super::Interpreter;
use crate::arguments::Arguments;
use crate::arithmetic;
use crate::ast::{Args, Comparison, Expr};
use crate::budget::Builder;
use crate::error::{Error, Result};
use crate::scope::Scope;
use crate::value::{Dict, Value, write_str};

impl Interpreter<'_> {
    pub(crate) fn evaluate(&self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        self.deeper(|| self.expression(expr, scope))
    }

    fn expression(&self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        match expr {
            Expr::None => Ok(Value::None),
            Expr::Bool(value) => Ok(Value::Bool(*value)),
            Expr::Int(number) => Ok(Value::Int(*number)),
            Expr::Float(number) => Ok(Value::Float(*number)),
            Expr::Str(text) => {
                self.budget.write(text.len())?;
                Ok(Value::literal(text))
            }
            Expr::Name(name) => Ok(self.variable(name, scope)),
            Expr::Tuple(items) => Value::tuple(self.all(items, scope)?),
            Expr::List(items) => Value::list(self.all(items, scope)?),
            Expr::Dict(entries) => self.dict(entries, scope),
            Expr::Conditional(condition, value, otherwise) => self.choice(condition, value, otherwise.as_deref(), scope),
            Expr::Or(left, right) => self.either(left, right, true, scope),
            Expr::And(left, right) => self.either(left, right, false, scope),
            Expr::Not(value) => Ok(Value::Bool(!self.evaluate(value, scope)?.is_true())),
            Expr::Compare(first, rest) => self.comparison(first, rest, scope),
            Expr::Binary(operator, left, right) => {
                let (left, right) = (self.evaluate(left, scope)?, self.evaluate(right, scope)?);
                arithmetic::binary(*operator, &left, &right, self)
            }
            Expr::Concat(parts) => self.concatenation(parts, scope),
            Expr::Negative(value) => arithmetic::negative(&self.evaluate(value, scope)?),
            Expr::Positive(value) => arithmetic::positive(&self.evaluate(value, scope)?),
            Expr::Attribute(base, name) => self.attribute(&self.evaluate(base, scope)?, name),
            Expr::Item(base, index) => self.subscript(base, index, scope),
            Expr::Slice(_) => Err(Error::render("a slice outside of brackets")),
            Expr::Call(function, args) => {
                let function = self.evaluate(function, scope)?;
                let args = self.arguments(args, scope)?;
                self.call(&function, args)
            }
            Expr::Filter(value, filter) => {
                let value = self.evaluate(value, scope)?;
                let args = self.arguments(&filter.args, scope)?;
                self.filter(&filter.name, value, args)
            }
            Expr::Test(value, test) => {
                let value = self.evaluate(value, scope)?;
                let args = self.arguments(&test.args, scope)?;
                Ok(Value::Bool(self.test(&test.name, &value, &args)?))
            }
        }
    }

    fn all(&self, items: &[Expr], scope: &Rc<Scope>) -> Result<Vec<Value>> {
        items.iter().map(|item| self.evaluate(item, scope)).collect()
    }

    fn dict(&self, entries: &[(Expr, Expr)], scope: &Rc<Scope>) -> Result<Value> {
        let mut dict = Dict::default();
        for (key, value) in entries {
            dict.insert(self.evaluate(key, scope)?, self.evaluate(value, scope)?)?;
        }
        Ok(Value::Dict(Rc::new(dict)))
    }

    fn choice(&self, condition: &Expr, value: &Expr, otherwise: Option<&Expr>, scope: &Rc<Scope>) -> Result<Value> {
        if self.evaluate(condition, scope)?.is_true() {
            return self.evaluate(value, scope);
        }
        match otherwise {
            Some(otherwise) => self.evaluate(otherwise, scope),
            None => Ok(Value::undefined("the inline if-expression evaluated to false and no else section was defined")),
        }
    }

    /// Evaluates `or`, which stops at a true value, or `and`, which stops at a false one.
    fn either(&self, left: &Expr, right: &Expr, stops_at: bool, scope: &Rc<Scope>) -> Result<Value> {
        let left = self.evaluate(left, scope)?;
        if left.is_true() == stops_at { Ok(left) } else { self.evaluate(right, scope) }
    }

    fn comparison(&self, first: &Expr, rest: &[(Comparison, Expr)], scope: &Rc<Scope>) -> Result<Value> {
        let mut left = self.evaluate(first, scope)?;
        for (comparison, right) in rest {
            let right = self.evaluate(right, scope)?;
            if !self.compare(*comparison, &left, &right)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    pub(crate) fn compare(&self, comparison: Comparison, left: &Value, right: &Value) -> Result<bool> {
        Ok(match comparison {
            Comparison::Equal => left.equals(right),
            Comparison::NotEqual => !left.equals(right),
            Comparison::In => right.contains(left, &self.budget)?,
            Comparison::NotIn => !right.contains(left, &self.budget)?,
            Comparison::Less => left.compare(right, "<")? == Some(Ordering::Less),
            Comparison::LessOrEqual => left.compare(right, "<=")?.is_some_and(Ordering::is_le),
            Comparison::Greater => left.compare(right, ">")? == Some(Ordering::Greater),
            Comparison::GreaterOrEqual => left.compare(right, ">=")?.is_some_and(Ordering::is_ge),
        })
    }

    fn concatenation(&self, parts: &[Expr], scope: &Rc<Scope>) -> Result<Value> {
        let mut out = Builder::new(&self.budget);
        for part in parts {
            write_str(&self.evaluate(part, scope)?, &mut out, &self.budget)?;
        }
        Ok(Value::text(out.finish()))
    }

    fn subscript(&self, base: &Expr, index: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        let base = self.evaluate(base, scope)?;
        let Expr::Slice(parts) = index else { return self.item(&base, &self.evaluate(index, scope)?) };
        let mut bounds = [None; 3];
        for (bound, part) in bounds.iter_mut().zip(&**parts) {
            let Some(part) = part else { continue };
            *bound = match self.evaluate(part, scope)? {
                Value::None => None,
                value => match value.int() {
                    Some(int) => Some(int),
                    // Python raises TypeError here, which Jinja treats as a missing element.
                    None => return Ok(Value::undefined("slice indices must be integers or None")),
                },
            };
        }
        self.slice(&base, bounds)
    }

    pub(crate) fn arguments(&self, args: &Args, scope: &Rc<Scope>) -> Result<Arguments> {
        let mut positional = self.all(&args.positional, scope)?;
        if let Some(star) = &args.star {
            positional.extend(self.evaluate(star, scope)?.elements(&self.budget)?);
        }
        let mut keyword = Vec::with_capacity(args.keyword.len());
        for (name, expr) in &args.keyword {
            keyword.push((name.clone(), self.evaluate(expr, scope)?));
        }
        if let Some(double_star) = &args.double_star {
            let Value::Dict(dict) = self.evaluate(double_star, scope)? else {
                return Err(Error::render("argument after ** must be a mapping"));
            };
            for (key, value) in dict.entries() {
                let Value::Str(name) = key else { return Err(Error::render("keywords must be strings")) };
                keyword.push((name.as_str().into(), value.clone()));
            }
        }
        Ok(Arguments { positional, keyword })
    }
}
