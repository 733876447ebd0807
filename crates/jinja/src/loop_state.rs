//! The variable `loop`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use crate::ast::For;
use crate::scope::Scope;
use crate::value::{Items, Value};

/// State of a loop.
pub struct LoopState {
    items: Items,
    index0: Cell<usize>,
    /// Number of enclosing levels of the same recursive loop.
    depth0: usize,
    /// Loop that `loop(...)` runs again, if it is recursive.
    pub(crate) recursion: Option<(Arc<For>, Rc<Scope>)>,
    /// Last argument of `loop.changed`, as printed.
    last: RefCell<Option<String>>,
}

impl LoopState {
    pub(crate) fn new(items: Items, depth0: usize, recursion: Option<(Arc<For>, Rc<Scope>)>) -> Self {
        Self { items, index0: Cell::new(0), depth0, recursion, last: RefCell::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn index(&self) -> usize {
        self.index0.get() + 1
    }

    pub(crate) fn depth0(&self) -> usize {
        self.depth0
    }

    pub(crate) fn nesting(&self) -> usize {
        1 + self.items.nesting()
    }

    pub(crate) fn go_to(&self, index0: usize) {
        self.index0.set(index0);
    }

    /// True if `printed` differs from the argument of the previous call.
    pub(crate) fn changed(&self, printed: String) -> bool {
        let printed = Some(printed);
        let changed = *self.last.borrow() != printed;
        self.last.replace(printed);
        changed
    }

    /// Returns the value for this iteration.
    pub(crate) fn cycle(&self, values: &[Value]) -> Option<Value> {
        values.get(self.index0.get().checked_rem(values.len())?).cloned()
    }

    /// Returns the attribute `name`; `None` if it does not exist.
    pub(crate) fn attribute(&self, name: &str) -> Option<Value> {
        let (index0, len) = (self.index0.get(), self.items.len());
        let int = |number: usize| Value::Int(number as i128);
        let item = |index: Option<usize>, missing: &str| {
            index.and_then(|index| self.items.get(index)).cloned().unwrap_or_else(|| Value::undefined(missing))
        };
        Some(match name {
            "index" => int(index0 + 1),
            "index0" => int(index0),
            "revindex" => int(len - index0),
            "revindex0" => int(len - index0 - 1),
            "first" => Value::Bool(index0 == 0),
            "last" => Value::Bool(index0 + 1 == len),
            "length" => int(len),
            "depth" => int(self.depth0 + 1),
            "depth0" => int(self.depth0),
            "previtem" => item(index0.checked_sub(1), "there is no previous item"),
            "nextitem" => item(Some(index0 + 1), "there is no next item"),
            _ => return None,
        })
    }
}
