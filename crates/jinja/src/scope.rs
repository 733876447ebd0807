//! Variables and their scopes.

use std::cell::RefCell;
use std::rc::Rc;

use crate::ast::Name;
use crate::value::Value;

/// Variables of one loop iteration, macro call or block; others are looked up in the parent.
#[derive(Default)]
pub struct Scope {
    variables: RefCell<Vec<(Name, Value)>>,
    parent: Option<Rc<Scope>>,
}

impl Scope {
    /// Creates a scope inside `parent`.
    pub(crate) fn inside(parent: &Rc<Self>) -> Rc<Self> {
        Rc::new(Self { variables: RefCell::default(), parent: Some(Rc::clone(parent)) })
    }

    pub(crate) fn get(&self, name: &str) -> Option<Value> {
        let mut scope = self;
        loop {
            let variables = scope.variables.borrow();
            if let Some((_, value)) = variables.iter().find(|(known, _)| &**known == name) {
                return Some(value.clone());
            }
            drop(variables);
            scope = scope.parent.as_deref()?;
        }
    }

    pub(crate) fn set(&self, name: &Name, value: Value) {
        let mut variables = self.variables.borrow_mut();
        match variables.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => variables.push((name.clone(), value)),
        }
    }

    /// Clears all variables, which breaks the reference cycle between a macro and its scope.
    pub(crate) fn clear(&self) {
        self.variables.take();
    }
}
