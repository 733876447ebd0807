//! Execution of statements.

mod attributes;
mod call;
mod evaluate;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::ast::{Body, Expr, FilterCall, For, MacroDef, Stmt, StmtKind, Target};
use crate::budget::{Budget, Builder, Limits};
use crate::error::{Error, Result};
use crate::loop_state::LoopState;
use crate::scope::Scope;
use crate::text::Text;
use crate::value::{Items, Object, Value, write_str};

/// Clock that formats the time by a `strftime` format, or returns an error.
pub type Clock<'c> = &'c dyn Fn(&str) -> std::result::Result<String, String>;

/// State of one rendering.
pub(crate) struct Interpreter<'c> {
    pub(crate) budget: Budget,
    context: HashMap<String, Value>,
    clock: Clock<'c>,
    depth: Cell<u32>,
    /// Scopes in which macros were defined.
    scopes: RefCell<Vec<Rc<Scope>>>,
    namespaces: RefCell<Vec<Rc<Object>>>,
}

/// Control flow after a statement.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

/// Maximum nesting of interpreter calls: a stack of 2 MiB holds them in an unoptimized build.
const MAX_DEPTH: u32 = 350;

impl<'c> Interpreter<'c> {
    pub(crate) fn new(context: HashMap<String, Value>, limits: Limits, clock: Clock<'c>) -> Self {
        Self {
            budget: Budget::new(limits),
            context,
            clock,
            depth: Cell::new(0),
            scopes: RefCell::default(),
            namespaces: RefCell::default(),
        }
    }

    pub(crate) fn render(&self, body: &Body) -> Result<Text> {
        let mut out = Builder::new(&self.budget);
        self.run(body, &Rc::new(Scope::default()), &mut out)?;
        Ok(out.finish())
    }

    /// Runs `work` one level deeper.
    fn deeper<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let depth = self.depth.get();
        if depth >= MAX_DEPTH {
            return Err(Error::render("maximum recursion depth exceeded"));
        }
        self.budget.step(1)?;
        self.depth.set(depth + 1);
        let result = work();
        self.depth.set(depth);
        result
    }

    fn run(&self, body: &[Stmt], scope: &Rc<Scope>, out: &mut Builder<'_>) -> Result<Flow> {
        for statement in body {
            let flow = self.deeper(|| self.statement(&statement.kind, scope, out)).map_err(|error| error.at(statement.line))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn statement(&self, statement: &StmtKind, scope: &Rc<Scope>, out: &mut Builder<'_>) -> Result<Flow> {
        match statement {
            StmtKind::Data(text) => out.push_str(text)?,
            StmtKind::Print(expr) => write_str(&self.evaluate(expr, scope)?, out, &self.budget)?,
            StmtKind::Set(target, expr) => self.assign(target, self.evaluate(expr, scope)?, scope)?,
            StmtKind::If(branches, otherwise) => return self.conditional(branches, otherwise, scope, out),
            StmtKind::For(definition) => self.for_loop(definition, scope, out)?,
            StmtKind::Macro(definition) => scope.set(&definition.name, self.make_macro(definition, scope)),
            StmtKind::SetBlock(target, filters, body) => {
                let text = self.captured(body, scope)?;
                self.assign(target, self.filtered(text, filters, scope)?, scope)?;
            }
            StmtKind::Filter(filters, body) => {
                let text = self.captured(body, scope)?;
                write_str(&self.filtered(text, filters, scope)?, out, &self.budget)?;
            }
            StmtKind::With(values, body) => return self.with(values, body, scope, out),
            StmtKind::Call(call, caller) => self.call_block(call, caller, scope, out)?,
            StmtKind::Scope(body) => return self.run(body, &Scope::inside(scope), out),
            StmtKind::Break => return Ok(Flow::Break),
            StmtKind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn conditional(&self, branches: &[(Expr, Body)], otherwise: &Body, scope: &Rc<Scope>, out: &mut Builder<'_>) -> Result<Flow> {
        for (condition, body) in branches {
            if self.evaluate(condition, scope)?.is_true() {
                return self.run(body, scope, out);
            }
        }
        self.run(otherwise, scope, out)
    }

    fn with(&self, values: &[(Target, Expr)], body: &Body, scope: &Rc<Scope>, out: &mut Builder<'_>) -> Result<Flow> {
        let inner = Scope::inside(scope);
        for (target, expr) in values {
            self.assign(target, self.evaluate(expr, scope)?, &inner)?;
        }
        self.run(body, &inner, out)
    }

    /// Returns the text that `body` writes.
    fn captured(&self, body: &Body, scope: &Rc<Scope>) -> Result<Text> {
        let mut out = Builder::new(&self.budget);
        self.run(body, &Scope::inside(scope), &mut out)?;
        Ok(out.finish())
    }

    fn filtered(&self, text: Text, filters: &[FilterCall], scope: &Rc<Scope>) -> Result<Value> {
        filters.iter().try_fold(Value::text(text), |value, filter| {
            let args = self.arguments(&filter.args, scope)?;
            self.filter(&filter.name, value, args)
        })
    }

    fn for_loop(&self, definition: &Arc<For>, scope: &Rc<Scope>, out: &mut Builder<'_>) -> Result<()> {
        let iterated = self.evaluate(&definition.iter, scope)?;
        self.loop_over(definition, &iterated, 0, scope, out)
    }

    /// Runs a loop over `iterated`, nested in `depth0` recursive loops.
    fn loop_over(
        &self,
        definition: &Arc<For>,
        iterated: &Value,
        depth0: usize,
        scope: &Rc<Scope>,
        out: &mut Builder<'_>,
    ) -> Result<()> {
        let mut items = iterated.elements(&self.budget)?;
        if let Some(condition) = &definition.condition {
            let mut kept = Vec::new();
            for item in items {
                let inner = Scope::inside(scope);
                self.assign(&definition.target, item.clone(), &inner)?;
                if self.evaluate(condition, &inner)?.is_true() {
                    kept.push(item);
                }
            }
            items = kept;
        }
        if items.is_empty() {
            return self.run(&definition.otherwise, scope, out).map(drop);
        }
        let recursion = definition.recursive.then(|| (Arc::clone(definition), Rc::clone(scope)));
        let items = Items::new(items)?;
        let state = Value::object(Object::Loop(LoopState::new(items.clone(), depth0, recursion)));
        self.turns(definition, &items, &state, scope, out)
    }

    fn turns(&self, definition: &For, items: &Items, state: &Value, scope: &Rc<Scope>, out: &mut Builder<'_>) -> Result<()> {
        let name = "loop".into();
        for (index, item) in items.iter().enumerate() {
            if let Value::Object(object) = state
                && let Object::Loop(state) = &**object
            {
                state.go_to(index);
            }
            let inner = Scope::inside(scope);
            inner.set(&name, state.clone());
            self.assign(&definition.target, item.clone(), &inner)?;
            if self.run(&definition.body, &inner, out)? == Flow::Break {
                break;
            }
        }
        Ok(())
    }

    fn assign(&self, target: &Target, value: Value, scope: &Rc<Scope>) -> Result<()> {
        match target {
            Target::Name(name) => scope.set(name, value),
            Target::Attribute(name, attribute) => {
                let key = Value::literal(attribute);
                call::check_attribute(&key)?;
                let object = self.variable(name, scope);
                match object.namespace() {
                    Some(attributes) => attributes.borrow_mut().insert(key, value)?,
                    None => return Err(Error::render("cannot assign attribute on non-namespace object")),
                }
            }
            Target::Tuple(targets) => {
                let items = value.elements(&self.budget)?;
                if items.len() != targets.len() {
                    let (found, wanted) = (items.len(), targets.len());
                    return Err(Error::render(if found < wanted {
                        format!("not enough values to unpack (expected {wanted}, got {found})")
                    } else {
                        format!("too many values to unpack (expected {wanted})")
                    }));
                }
                for (target, item) in targets.iter().zip(items) {
                    self.deeper(|| self.assign(target, item, scope))?;
                }
            }
        }
        Ok(())
    }

    fn call_block(&self, call: &Expr, caller: &Arc<MacroDef>, scope: &Rc<Scope>, out: &mut Builder<'_>) -> Result<()> {
        let Expr::Call(function, args) = call else { return Err(Error::render("expected call")) };
        let function = self.evaluate(function, scope)?;
        let mut args = self.arguments(args, scope)?;
        args.keyword.push(("caller".into(), self.make_macro(caller, scope)));
        write_str(&self.call(&function, args)?, out, &self.budget)
    }

    fn make_macro(&self, definition: &Arc<MacroDef>, scope: &Rc<Scope>) -> Value {
        self.scopes.borrow_mut().push(Rc::clone(scope));
        Value::object(Object::Macro(Arc::clone(definition), Rc::clone(scope)))
    }

    fn variable(&self, name: &str, scope: &Scope) -> Value {
        let global = || call::FUNCTIONS.iter().find(|known| **known == name).map(|name| Value::object(Object::Function(name)));
        let found = scope.get(name).or_else(|| self.context.get(name).cloned()).or_else(global);
        found.unwrap_or_else(|| Value::undefined(format!("'{name}' is undefined")))
    }
}

impl Drop for Interpreter<'_> {
    /// Breaks reference cycles between macros and namespaces, which reference counting does not free.
    fn drop(&mut self) {
        for scope in self.scopes.take() {
            scope.clear();
        }
        for object in self.namespaces.take() {
            if let Object::Namespace(attributes) = &*object {
                attributes.borrow_mut().clear();
            }
        }
    }
}
